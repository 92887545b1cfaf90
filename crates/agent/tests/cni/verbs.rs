//! The specification's statements about each verb, one by one.

use std::process::Output;

use podnet_linux::netlink::{Address, Link, LinkChange, Netlink, NewLink, RouteFilter};
use podnet_linux::ns::Namespace;
use serde_json::{Value, json};

use crate::node::{Node, Pod, answer, error_code};
use crate::{addresses, answer_nothing};

fn link(netns: &Namespace, name: &str) -> Option<Link> {
    netns
        .run(|| Netlink::open().unwrap().link(name).unwrap())
        .unwrap()
}

fn change(netns: &Namespace, name: &str, change: impl Fn(LinkChange<'_>) -> LinkChange<'_> + Sync) {
    netns
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let link = netlink.link(name).unwrap().unwrap();
            netlink.request(change(link.change()).apply()).unwrap();
        })
        .unwrap();
}

fn says(output: &Output, part: &str) {
    assert!(
        String::from_utf8_lossy(&output.stdout).contains(part),
        "{output:?}"
    );
}

#[test]
fn version_lists_every_version_and_answers_in_that_of_the_request() {
    let node = Node::start();
    for (document, version) in [
        (r#"{"cniVersion":"0.3.0"}"#, "0.3.0"),
        (r#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "7.0.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let versions = answer(&node.raw(&[("CNI_COMMAND", "VERSION")], document.as_bytes()));
        assert_eq!(versions["cniVersion"], version, "{document}");
        assert_eq!(
            versions["supportedVersions"],
            json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
    let broken = node.raw(&[("CNI_COMMAND", "VERSION")], b"{");
    assert_eq!(error_code(&broken), 6);
}

#[test]
fn the_result_lists_both_ends_addresses_gateways_routes_mtu_and_dns_as_they_are() {
    let node = Node::start();
    let pod = Pod::new("told");
    let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
    let host_name = result["interfaces"][0]["name"].as_str().unwrap();
    let (host, inside) = (
        link(&node.netns, host_name).unwrap(),
        link(&pod.netns, "eth0").unwrap(),
    );
    for (interface, link) in [
        (&result["interfaces"][0], &host),
        (&result["interfaces"][1], &inside),
    ] {
        assert_eq!(interface["mac"], link.mac.unwrap().to_string());
        assert_eq!(interface["mtu"], link.mtu);
    }
    assert_eq!(result["interfaces"][0].get("sandbox"), None);
    for ip in result["ips"].as_array().unwrap() {
        assert_eq!(ip["interface"], 1);
        let gateway = ip["gateway"].as_str().unwrap();
        let through = result["routes"].as_array().unwrap().iter();
        assert_eq!(
            through.filter(|route| route["gw"] == gateway).count(),
            1,
            "{result}"
        );
    }
    assert_eq!(result["dns"], json!({ "nameservers": ["10.96.0.10"] }));
}

#[test]
fn a_mac_and_name_servers_are_as_asked_for() {
    let node = Node::start();
    let (pod, other) = (Pod::new("asked"), Pod::new("other"));
    let wishes = json!({ "runtimeConfig": {
        "mac": "0a:58:00:00:00:77",
        "dns": { "servers": ["10.0.0.53"], "searches": ["example"], "options": ["ndots:2"] },
    } });
    let result = answer(&node.cni_with("ADD", &pod, "1.0.0", wishes.clone()));
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.0.0.53"], "search": ["example"], "options": ["ndots:2"] })
    );
    assert_eq!(result["interfaces"][1]["mac"], "0a:58:00:00:00:77");
    let mac = link(&pod.netns, "eth0").unwrap().mac.unwrap().to_string();
    assert_eq!(mac, "0a:58:00:00:00:77");
    let from = addresses(&answer(&node.cni("ADD", &other, "1.0.0", None)));
    for (from, to) in from.iter().zip(addresses(&result)) {
        let server = std::net::SocketAddr::new(to, 8080);
        assert_eq!(crate::node::connect(&other.netns, &pod.netns, server), *from);
    }
    answer_nothing(&node.cni("CHECK", &pod, "1.0.0", Some(&result)));
    answer_nothing(&node.cni_with("DEL", &pod, "1.0.0", wishes));
    answer_nothing(&node.cni("DEL", &other, "1.0.0", None));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn behind_another_plugin_its_result_is_passed_on_and_unknown_keys_survive() {
    let node = Node::start();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new(&format!("chained-{version}"));
        let mut previous = json!({
            "cniVersion": version, "kept": [1, { "a": null }],
            "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/n", "kept": 1 }],
            "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
            "dns": { "nameservers": ["192.0.2.1"], "kept": true },
        });
        if version < "1.0.0" {
            previous["ips"][0]["version"] = json!("4");
        }
        let result = answer(&node.cni("ADD", &pod, version, Some(&previous)));
        assert_eq!(result["kept"], previous["kept"]);
        assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
        assert_eq!(result["ips"][0], previous["ips"][0]);
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(
            result["dns"],
            json!({ "nameservers": ["192.0.2.1", "10.96.0.10"], "kept": true })
        );
        if version >= "0.4.0" {
            // The plugins behind us added to it; what is theirs is theirs to check.
            let mut last = result.clone();
            last["interfaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "name": "theirs" }));
            answer_nothing(&node.cni("CHECK", &pod, version, Some(&last)));
        }
        answer_nothing(&node.cni("DEL", &pod, version, Some(&result)));
    }
}

#[test]
fn del_is_idempotent_and_needs_neither_namespace_nor_prev_result_nor_agent() {
    let mut node = Node::start();
    for agent in [true, false] {
        let mut pods = Vec::new();
        for kind in ["empty", "missing", "vanished", "garbage"] {
            let pod = Pod::new(&format!("{kind}-{agent}"));
            answer(&node.cni("ADD", &pod, "1.1.0", None));
            pods.push((kind, pod));
        }
        if !agent {
            node.stop();
        }
        for (kind, pod) in pods {
            let id = pod.id.clone();
            for _ in 0..2 {
                let output = match kind {
                    "empty" => node.cni_in("DEL", &id, "", "1.1.0"),
                    "missing" => node.cni_in("DEL", &id, "/nonexistent/netns", "1.1.0"),
                    "vanished" => node.cni_in("DEL", &id, "/etc/passwd", "1.1.0"),
                    _ => {
                        let garbage = json!({ "prevResult": 7, "runtimeConfig": [], "disableGC": null });
                        node.cni_with("DEL", &pod, "1.1.0", garbage)
                    }
                };
                answer_nothing(&output);
            }
            assert!(link(&pod.netns, "eth0").is_none() || agent, "{kind}");
        }
        if !agent {
            node.restart();
        }
        node.settle();
        node.wait_until("everything is gone", || node.leftovers().is_empty());
    }
}

#[test]
fn del_always_gives_the_address_back() {
    let mut node = Node::start();
    node.set_ranges(&["10.244.1.7/32"]);
    for kind in ["plain", "twice", "namespace-gone", "agent-down", "last"] {
        let pod = Pod::new(kind);
        let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
        assert_eq!(addresses(&result)[0].to_string(), "10.244.1.7", "{kind}");
        match kind {
            "twice" => answer_nothing(&node.cni("DEL", &pod, "1.1.0", None)),
            "namespace-gone" => drop(pod),
            "agent-down" => node.stop(),
            _ => {}
        }
        answer_nothing(&node.cni_in("DEL", kind, "/nonexistent/netns", "1.1.0"));
        if kind == "agent-down" {
            node.restart();
        }
        node.wait_until("everything is gone", || node.leftovers().is_empty());
    }
}

#[test]
fn check_sees_a_changed_link_address_or_route_and_prints_nothing_else() {
    let node = Node::start();
    type Break = fn(&Node, &Pod, &str);
    let breaks: [(&str, &str, Break); 6] = [
        ("mtu", "MTU", |_, pod, _| {
            change(&pod.netns, "eth0", |link| link.mtu(1400))
        }),
        ("down", "down", |_, pod, _| {
            change(&pod.netns, "eth0", |link| link.up(false))
        }),
        ("address", "lost its address", |_, pod, _| {
            let lost = |netlink: &mut Netlink| {
                let own: Vec<Address> = netlink.addresses(None).unwrap();
                let own = own
                    .iter()
                    .find(|own| own.net.to_string().starts_with("10.244.1."));
                netlink.request(own.unwrap().delete()).unwrap();
            };
            pod.netns.run(|| lost(&mut Netlink::open().unwrap())).unwrap();
        }),
        ("host-down", "on the node is down", |node, _, host| {
            change(&node.netns, host, |link| link.up(false));
        }),
        ("host-route", "the node has no route", |node, _, host| {
            node.netns
                .run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    let index = netlink.link(host).unwrap().unwrap().index;
                    let filter = RouteFilter {
                        protocol: Some(113),
                        ..RouteFilter::default()
                    };
                    let routes = netlink.routes(filter).unwrap();
                    let ours = routes.iter().find(|route| route.link == Some(index)).unwrap();
                    netlink.request(ours.delete()).unwrap();
                })
                .unwrap();
        }),
        ("gone", "is not", |_, pod, _| {
            pod.netns
                .run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    let link = netlink.link("eth0").unwrap().unwrap();
                    netlink.request(link.delete()).unwrap();
                })
                .unwrap();
        }),
    ];
    for (name, complaint, break_it) in breaks {
        let pod = Pod::new(name);
        let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
        answer_nothing(&node.cni("CHECK", &pod, "1.1.0", Some(&result)));
        break_it(&node, &pod, result["interfaces"][0]["name"].as_str().unwrap());
        let output = node.cni("CHECK", &pod, "1.1.0", Some(&result));
        assert_eq!(error_code(&output), 101, "{name}: {output:?}");
        says(&output, complaint);
    }
    let foreign = json!({ "interfaces": [{ "name": "net1", "sandbox": "/n" }] });
    let pod = Pod::new("foreign");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
    let output = node.cni("CHECK", &pod, "1.1.0", Some(&foreign));
    assert_eq!(error_code(&output), 7, "a result of something else");
    says(&output, "prevResult");
}

#[test]
fn status_is_51_when_pods_would_have_limited_connectivity() {
    let node = Node::start();
    node.limit("the kernel refused a route");
    let status = node.bare("STATUS", "1.1.0", json!({}));
    assert_eq!(error_code(&status), 51);
    says(&status, "the kernel refused a route");
    // A pod can be added all the same.
    let pod = Pod::new("limited");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
    node.set_ranges(&["10.244.1.0/24"]);
    answer_nothing(&node.bare("STATUS", "1.1.0", json!({})));
    assert_eq!(
        error_code(&node.bare("STATUS", "1.0.0", json!({}))),
        1,
        "a verb of 1.1.0"
    );
}

#[test]
fn garbage_collection_goes_on_after_an_error_and_reports_all_of_them() {
    let node = Node::start();
    let pods = ["a-stuck", "b-free", "c-stuck", "d-free"].map(Pod::new);
    for pod in &pods {
        answer(&node.cni("ADD", pod, "1.1.0", None));
    }
    let state = node.config().state_dir;
    let in_the_way = |pod: &Pod| state.join("released").join(format!("{}:eth0", pod.id)).join("x");
    for pod in pods.iter().filter(|pod| pod.id.ends_with("stuck")) {
        std::fs::create_dir_all(in_the_way(pod)).unwrap();
    }
    let collect = || node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": [] }));
    let output = collect();
    assert_eq!(error_code(&output), 5);
    says(&output, "a-stuck");
    says(&output, "c-stuck");
    node.wait_until("the others are free", || {
        node.leases() == 2 && node.pod_links() == 2
    });
    for pod in pods.iter().filter(|pod| pod.id.ends_with("stuck")) {
        std::fs::remove_dir_all(in_the_way(pod).parent().unwrap()).unwrap();
    }
    answer_nothing(&collect());
    node.wait_until("everything is gone", || node.leftovers().is_empty());
}

#[test]
fn garbage_collection_never_touches_another_networks_state() {
    let mut node = Node::start();
    let (ours, theirs) = (Pod::new("ours"), Pod::new("theirs"));
    answer(&node.cni("ADD", &ours, "1.1.0", None));
    answer(&node.cni_with("ADD", &theirs, "1.1.0", json!({ "name": "another" })));
    // A crash tore the file: whose network it was is forgotten.
    node.stop();
    std::fs::write(node.config().state_dir.join("leases/ours:eth0"), "{").unwrap();
    node.restart();
    let collect = |name: &str, valid: Value| {
        let more = json!({ "name": name, "cni.dev/valid-attachments": valid });
        answer_nothing(&node.bare("GC", "1.1.0", more));
        node.settle();
    };
    collect("a-third", json!([]));
    assert_eq!(node.leases(), 2);
    // The same container in another network is another attachment's business.
    collect("another", json!([{ "containerID": "ours", "ifname": "eth0" }]));
    assert!(link(&ours.netns, "eth0").is_some());
    node.wait_until("theirs is gone", || node.leases() == 1 && node.pod_links() == 1);
    collect("podnet", json!([{ "containerID": "ours", "ifname": "eth1" }]));
    node.wait_until("the key is both names", || node.leftovers().is_empty());
}

#[test]
fn a_network_that_lists_cni_versions_is_answered_in_the_one_asked_for_or_the_newest_that_both_know() {
    let node = Node::start();
    for (n, (asked, listed, answered)) in [
        (Some("0.4.0"), json!(["0.4.0", "1.1.0"]), "0.4.0"),
        (None, json!(["0.3.1", "1.0.0", "9.0.0"]), "1.0.0"),
        (None, json!(["0.4.0"]), "0.4.0"),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = Pod::new(&format!("listed-{n}"));
        let more = json!({ "cniVersion": asked, "cniVersions": listed });
        let result = answer(&node.cni_with("ADD", &pod, "1.1.0", more.clone()));
        assert_eq!(result["cniVersion"], answered);
        // CNI 1.0.0 took the version of each address away.
        assert_eq!(
            result["ips"][0].get("version").is_some(),
            answered < "1.0.0",
            "{result}"
        );
        answer_nothing(&node.cni_with("DEL", &pod, "1.1.0", more));
    }
    let unknown = json!({ "cniVersion": null, "cniVersions": ["7.0.0", "9.0.0"] });
    let refused = node.cni_with("ADD", &Pod::new("unknown"), "1.1.0", unknown);
    assert_eq!(error_code(&refused), 1);
    says(&refused, "7.0.0");
}

#[test]
fn disable_gc_and_disable_check_are_honoured() {
    let node = Node::start();
    let pod = Pod::new("left-alone");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
    let more = json!({ "disableGC": true, "cni.dev/valid-attachments": [] });
    answer_nothing(&node.bare("GC", "1.1.0", more));
    assert_eq!(node.leases(), 1);
    answer_nothing(&node.cni_with("CHECK", &pod, "1.1.0", json!({ "disableCheck": true })));
}

#[test]
fn an_error_is_a_json_object_with_a_code_the_cause_and_the_version_of_the_request() {
    let node = Node::start();
    for version in ["0.3.0", "0.4.0", "1.0.0", "1.1.0", "9.9.9"] {
        let output = node.cni_in("ADD", "c", "/nonexistent", version);
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["cniVersion"], version);
        let code = if version == "9.9.9" { 1 } else { 3 };
        assert_eq!(error_code(&output), code, "{error}");
        assert!(
            error["details"].as_str().is_some_and(|text| !text.is_empty()),
            "{error}"
        );
    }
}

#[test]
fn add_fails_if_the_interface_exists_and_leaves_it_as_it_was() {
    let node = Node::start();
    let pod = Pod::new("taken");
    let taken = || {
        Netlink::open()
            .unwrap()
            .request(NewLink::veth("eth0", "far", None).create())
    };
    pod.netns.run(|| taken().unwrap()).unwrap();
    let before = link(&pod.netns, "eth0").unwrap();
    assert_eq!(error_code(&node.cni("ADD", &pod, "1.1.0", None)), 4);
    let after = link(&pod.netns, "eth0").unwrap();
    assert_eq!((after.index, after.mac), (before.index, before.mac));
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}
