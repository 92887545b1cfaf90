//! What a runtime says outside of `runtimeConfig`: `CNI_ARGS` and `args.cni`.

use serde_json::{Value, json};

use crate::node::{Node, Pod, answer, error_code};
use crate::{addresses, answer_nothing};

fn ips(result: &Value) -> Vec<String> {
    addresses(result).iter().map(ToString::to_string).collect()
}

#[test]
fn an_address_and_a_mac_in_cni_args_are_given() {
    let mut node = Node::start();
    let pod = Pod::new("asked");
    let args = "IP=10.244.1.77;MAC=0a:58:0a:f4:01:4d";
    let result = answer(&node.cni_args("ADD", &pod, args, json!({})));
    assert_eq!(ips(&result)[0], "10.244.1.77");
    assert_eq!(result["interfaces"][1]["mac"], "0a:58:0a:f4:01:4d");
    answer_nothing(&node.cni_args("CHECK", &pod, args, json!({ "prevResult": result })));
    // Without an agent the link is known by the address that was asked for.
    node.stop();
    answer_nothing(&node.cni_args("DEL", &pod, args, json!({})));
    node.restart();
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn ips_and_labels_in_args_cni_are_accepted() {
    let node = Node::start();
    let pod = Pod::new("asked");
    let args = json!({ "args": { "of-somebody-else": 1, "cni": {
        "ips": ["10.244.1.78/24", "fd00:10:244:1::78"], "labels": [{ "key": "app", "value": "web" }],
    } } });
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", args));
    assert_eq!(ips(&result), ["10.244.1.78", "fd00:10:244:1::78"]);
}

#[test]
fn what_is_asked_for_twice_must_agree() {
    let node = Node::start();
    let pod = Pod::new("twice");
    let config = |ip: &str| json!({ "runtimeConfig": { "ips": [ip] } });
    let result = answer(&node.cni_args("ADD", &pod, "IP=10.244.1.79", config("10.244.1.79")));
    assert_eq!(ips(&result)[0], "10.244.1.79");
    let other = node.cni_args("ADD", &Pod::new("other"), "IP=10.244.1.80", config("10.244.1.81"));
    assert_eq!(error_code(&other), 7);
    let text = String::from_utf8_lossy(&other.stdout).into_owned();
    assert!(
        text.contains("10.244.1.80") && text.contains("10.244.1.81"),
        "{text}"
    );
    assert_eq!(node.leases(), 1);
}
