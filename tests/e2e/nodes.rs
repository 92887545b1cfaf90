//! The ways between nodes, as the nodes' owner sees them: `podnet status`, metrics, Events, and nodes that are cut off
//! and deleted.

use std::collections::BTreeSet;

use crate::support::{DEMO, Lab, kill_9, stdout};
use serde_json::{Value, json};

/// A lab with the demo, looked at from node1.
struct World {
    lab: Lab,
}

impl World {
    /// What `podnet status` says of the paths from node1 to another node, of either family.
    fn paths(&self, peer: &str) -> Vec<Value> {
        let said = self.lab.node_sh("node1", "podnet status --output json");
        let status: Value = serde_json::from_str(&said).unwrap();
        let paths = status["paths"].as_array().unwrap().iter();
        paths.filter(|path| path["peer"] == peer).cloned().collect()
    }

    /// Waits until both paths to a node have all of that.
    fn until(&self, peer: &str, wanted: &Value) {
        let wanted = wanted.as_object().unwrap();
        self.lab.until(&format!("{peer}: {wanted:?}"), || {
            let paths = self.paths(peer);
            let so = |path: &Value| wanted.iter().all(|(key, value)| path[key] == *value);
            (paths.len() == 2 && paths.iter().all(so)).then_some(())
        });
    }

    /// The value of a path's metric, IPv4, from node1 to node2.
    fn metric(&self, name: &str) -> f64 {
        let script = format!(
            "curl -s http://127.0.0.1:9980/metrics | \
             grep '^podnet_path_{name}{{peer=\"node2\",range=\"10.244'"
        );
        let line = self.lab.node_sh("node1", &script);
        line.split_whitespace().next_back().unwrap().parse().unwrap()
    }

    fn until_event(&self, reason: &str) {
        self.lab.until(reason, || {
            let list = self.lab.kubectl_json(&["get", "events", "-A"]);
            let mut events = list["items"].as_array().unwrap().iter();
            let found =
                events.any(|event| event["reason"] == reason && event["involvedObject"]["name"] == "node1");
            found.then_some(())
        });
    }

    /// Has the router between the subnets spoil packets.
    fn spoil(&self, rule: &str) {
        let table = format!(
            "nft 'table inet spoil {{ chain forward {{ type filter hook forward priority 0; {rule}; }}; }}'"
        );
        self.lab.node_sh("underlay", &table);
    }

    fn mend(&self) {
        self.lab.node_sh("underlay", "nft delete table inet spoil");
    }

    /// The address of the server on a node.
    fn server(&self, node: &str) -> String {
        let pods = self.lab.pods("default");
        let server = pods.iter().find(|pod| pod.is_app("echo") && pod.node == node);
        server.unwrap().ips[0].clone()
    }

    /// Whether a pod gets an answer from the server on a node.
    fn answers(&self, address: &str) -> bool {
        let url = format!("http://{address}:8080/");
        let curl = ["curl", "-s", "-o", "/dev/null", "-m", "3", &url];
        self.lab.exec("toolbox", &curl).status.success()
    }
}

fn well(via: &str, mtu: u32) -> Value {
    json!({"via": via, "reach": "reachable", "checksums": "right", "mtu": mtu, "corrupt": 0})
}

#[test]
fn paths_are_watched_and_the_tunnel_is_used_only_between_subnets() {
    let world = World {
        lab: Lab::up("cross", &["--subnets", "2", "--cross-subnet", "-f", DEMO]),
    };
    let lab = &world.lab;
    // node1 and node3 are on one subnet, node2 is on the other.
    let routes = lab.node_sh("node1", "ip route show proto 112; ip -6 route show proto 112");
    for (hop, count) in [
        ("via 172.30.0.13 ", 1),
        ("via fd30::d ", 1),
        (" dev podnet.vxlan ", 2),
    ] {
        let found = routes.lines().filter(|line| line.contains(hop));
        assert_eq!(found.count(), count, "{hop}: {routes}");
    }
    for node in ["node1", "node2", "node3"] {
        assert!(world.answers(&world.server(node)), "{node}");
    }
    world.until("node2", &well("tunnel", 1450));
    world.until("node3", &well("direct", 1500));
    let table = lab.node_sh("node1", "podnet status");
    let row = table.lines().find(|line| line.starts_with("node2 ")).unwrap();
    let words: BTreeSet<&str> = row.split_whitespace().collect();
    assert!(
        words.is_superset(&["tunnel", "reachable", "1450", "right"].into()),
        "{table}"
    );
    assert!(world.metric("latency_seconds") > 0.0);

    world.spoil("udp dport 4789 drop");
    world.until("node2", &json!({"reach": "unreachable"}));
    assert_eq!(world.metric("reachable"), 0.0);
    world.until("node3", &well("direct", 1500));
    world.until_event("PathLost");
    world.mend();
    world.until("node2", &well("tunnel", 1450));
    assert_eq!(world.metric("reachable"), 1.0);
    world.until_event("PathRestored");
}

#[test]
fn pods_go_on_through_a_path_that_carries_less() {
    let world = World {
        lab: Lab::up("narrow", &["--subnets", "2", "-f", DEMO]),
    };
    let lab = &world.lab;
    world.until("node2", &well("tunnel", 1450));
    // Nobody is told of the loss.
    world.spoil("meta length > 1400 drop");
    world.until("node2", &json!({"mtu": 1350}));
    assert_eq!(world.metric("mtu_bytes"), 1350.0);
    world.until_event("PathMTUReduced");
    lab.until("the limit on the routes", || {
        let limited = |node| lab.node_sh(node, "ip route show proto 112").contains("mtu 1350");
        (limited("node1") && limited("node2")).then_some(())
    });
    // Pods that were there before get large packets all the same.
    let pods = lab.pods("default");
    let toolbox = pods.iter().find(|pod| pod.name == "toolbox").unwrap();
    let server = world.server(if toolbox.node == "node2" { "node1" } else { "node2" });
    // Not many: what the kernel segments last of all is one packet to the rule, and lost until it is sent again.
    let received =
        format!("curl -sS -m 40 -o /dev/null -w '%{{size_download}}' http://{server}:8080/bytes/20000");
    assert_eq!(lab.sh("toolbox", &received), "20000");
    world.mend();
    world.until("node2", &well("tunnel", 1450));
    world.until_event("PathMTURestored");
}

#[test]
fn a_node_that_is_cut_off_and_comes_back_has_all_its_ways_again() {
    let world = World {
        lab: Lab::up("cut", &["-f", DEMO]),
    };
    let lab = &world.lab;
    world.until("node2", &well("tunnel", 1450));
    let routes = || lab.node_sh("node2", "ip route show proto 112; ip -6 route show proto 112");
    let before = routes();
    lab.node_sh("node2", "ip link set eth0 down");
    world.until("node2", &json!({"reach": "unreachable"}));
    world.until("node3", &well("tunnel", 1450));
    lab.node_sh("node2", "ip link set eth0 up");
    world.until("node2", &well("tunnel", 1450));
    lab.until("the routes of before", || (routes() == before).then_some(()));
    assert!(world.answers(&world.server("node2")));
}

#[test]
fn a_node_whose_object_is_deleted_goes_on_and_registers_again() {
    let world = World {
        lab: Lab::up("again", &["-f", DEMO]),
    };
    let lab = &world.lab;
    world.until("node2", &well("tunnel", 1450));
    let routes = || lab.node_sh("node2", "ip route show proto 112; ip -6 route show proto 112");
    let before = routes();
    let old = lab.kubectl_json(&["get", "node", "node2"])["metadata"]["uid"].clone();
    lab.kubectl_ok(&["delete", "node", "node2"]);
    lab.until("its registering again", || {
        assert_eq!(routes(), before, "its own routes stay");
        let node = lab.kubectl(&["get", "node", "node2", "-o", "json"]);
        let node: Value = serde_json::from_str(&stdout(&node)).ok()?;
        (node["metadata"]["uid"] != old && node["spec"]["podCIDR"].is_string()).then_some(())
    });
    // Its pods may have been taken for lost meanwhile; the ways to it are there again.
    world.until("node2", &well("tunnel", 1450));
    assert_eq!(routes(), before);
}

#[test]
fn network_managers_are_told_and_a_setting_that_is_wrong_is_named() {
    let lab = Lab::up("managed", &["--nodes", "1"]);
    // A node that has both managers, of which the agent learns when it starts.
    lab.node_sh(
        "node1",
        "mkdir -p /etc/systemd/network /etc/NetworkManager/conf.d",
    );
    let agents = lab.pids(" agent ");
    assert_eq!(agents.len(), 1);
    kill_9(agents[0]);
    let files = "/etc/systemd/network/10-podnet.network /etc/systemd/network/10-podnet.link \
                 /etc/systemd/networkd.conf.d/10-podnet.conf /etc/NetworkManager/conf.d/10-podnet.conf";
    lab.until("the drop-ins", || {
        let read = lab.node("node1", &["sh", "-c", &format!("cat {files}")]);
        let text = stdout(&read);
        let said = ["Unmanaged=yes", "ManageForeignRoutes=no", "unmanaged-devices+="];
        (read.status.success() && said.iter().all(|part| text.contains(part))).then_some(())
    });
    // Strict reverse path filtering drops what comes by another link than its answer would leave by.
    for (value, said) in [
        ("1", "net.ipv4.conf.eth0.rp_filter is 1"),
        ("0", "the kernel's settings are right again"),
    ] {
        lab.node_sh(
            "node1",
            &format!("echo {value} >/proc/sys/net/ipv4/conf/eth0/rp_filter"),
        );
        lab.until(said, || {
            // It looks whenever it looks after the kernel.
            lab.node_sh(
                "node1",
                "ip address add 172.30.0.240/32 dev eth0; ip address del 172.30.0.240/32 dev eth0",
            );
            lab.logs().contains(said).then_some(())
        });
    }
}
