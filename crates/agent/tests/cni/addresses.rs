//! Addresses that pods ask for, with the real plugin.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::addresses;
use super::node::{Node, Pod, answer, error_code};

fn annotated(key: &str, text: &str) -> Value {
    json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { key: text } } })
}

fn first(result: &Value) -> String {
    addresses(result)[0].to_string()
}

#[test]
fn static_addresses_by_annotation_and_by_capability() {
    let node = Node::start();
    for (n, (wish, expected)) in [
        (annotated("podnet.io/ips", "10.244.1.77"), "10.244.1.77"),
        (
            annotated("cni.projectcalico.org/ipAddrs", r#"["10.244.1.78"]"#),
            "10.244.1.78",
        ),
        (
            json!({ "runtimeConfig": { "ips": ["10.244.1.79/24"] } }),
            "10.244.1.79",
        ),
        (
            json!({ "runtimeConfig": { "ipRanges": [[{
                "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.80", "rangeEnd": "10.244.1.80"
            }]] } }),
            "10.244.1.80",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = Pod::new(&format!("static-{n}"));
        let result = answer(&node.cni_with("ADD", &pod, "1.1.0", wish.clone()));
        assert_eq!(first(&result), expected);
        assert_eq!(addresses(&result).len(), 2, "the other family is any");
        let again = node.cni_with("ADD", &Pod::new("second"), "1.1.0", wish);
        assert_eq!(error_code(&again), 11, "{again:?}");
        if n < 3 {
            let text = String::from_utf8_lossy(&again.stdout).into_owned();
            assert!(
                text.contains(&format!(
                    "{expected} is in use already, by pod default/static-{n}"
                )),
                "{text}"
            );
        }
        let del = node.cni("DEL", &pod, "1.1.0", None);
        assert!(del.status.success(), "{del:?}");
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn a_wish_for_an_address_that_cannot_be_is_an_error_that_names_the_cause() {
    let node = Node::start();
    for (wish, why) in [
        (
            annotated("podnet.io/ips", "10.244.1.777"),
            "podnet.io/ips has \\\"10.244.1.777\\\"",
        ),
        (
            annotated("podnet.io/ips", "{"),
            "the annotation podnet.io/ips has",
        ),
        (
            annotated("podnet.io/ips", "10.9.9.9"),
            "10.9.9.9 is in none of the ranges",
        ),
        (
            annotated("podnet.io/ips", "10.244.1.1"),
            "10.244.1.1 is never given to a pod",
        ),
        (
            annotated("podnet.io/ips", "10.244.1.255"),
            "10.244.1.255 is never given to a pod",
        ),
        (
            json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.9.0.0/24" }]] } }),
            "have no address in common",
        ),
    ] {
        let refused = node.cni_with("ADD", &Pod::new("wrong"), "1.1.0", wish);
        assert_eq!(error_code(&refused), 7, "{refused:?}");
        let text = String::from_utf8_lossy(&refused.stdout).into_owned();
        assert!(text.contains(why), "{text}");
    }
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn an_address_rests_over_a_restart_of_the_agent() {
    let mut node = Node::start();
    node.set_ranges(&["10.244.1.0/29"]);
    let pod = Pod::new("short");
    let had = first(&answer(&node.cni("ADD", &pod, "1.1.0", None)));
    assert!(node.cni("DEL", &pod, "1.1.0", None).status.success());
    node.settle();
    node.restart();
    let others: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("next-{n}"))).collect();
    let given: Vec<IpAddr> = others
        .iter()
        .flat_map(|pod| addresses(&answer(&node.cni("ADD", pod, "1.1.0", None))))
        .collect();
    // All five are needed; the one that was used a moment ago comes last.
    assert_eq!(given[4].to_string(), had);
    for pod in &others {
        assert!(node.cni("DEL", pod, "1.1.0", None).status.success());
    }
    node.settle();
}
