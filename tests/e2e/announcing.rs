//! Load balancers' addresses on the local network, in a whole lab. The client is the underlay's gateway: a host on the nodes'
//! link that finds addresses by ARP and NDP, as any would.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{DEMO, Lab, kill_9, stdout, text};

const DEFINITION: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/deploy/crds/loadbalancerpools.podnet.io.yaml"
);
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/load-balancer.yaml");
const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// Served by one pod, whose node is to be filled in.
const LOCAL: &str = "
apiVersion: v1
kind: Service
metadata:
  name: local
  annotations: {podnet.io/load-balancer-ips: 172.30.0.219}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: single}
  ports: [{port: 80, targetPort: 8080}]
";

fn single_on(node: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "single-{node}", "labels": {{"app": "single"}}}},
            "spec": {{"nodeName": "{node}", "containers": [{{"name": "echo", "image": "podnet/echo"}}]}}}}"#
    )
}

struct World {
    lab: Lab,
}

impl World {
    /// The Ethernet address of a node's link.
    fn mac(&self, node: &str) -> String {
        let link = self.lab.node_sh(node, "ip -o link show eth0");
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        words.nth(1).unwrap().to_owned()
    }

    /// The nodes that say they answer for an address.
    fn speakers(&self, address: &str) -> Vec<&'static str> {
        let speaks = |node: &&str| {
            let said = self.lab.node(node, &["podnet", "status", "--output", "json"]);
            let status: Value = serde_json::from_str(&stdout(&said)).unwrap_or_default();
            let links = status["announces"].as_object().cloned().unwrap_or_default();
            let mut addresses = links
                .values()
                .flat_map(|of_link| of_link.as_array().cloned().unwrap_or_default());
            addresses.any(|spoken| spoken == address)
        };
        NODES.into_iter().filter(speaks).collect()
    }

    /// Where the client believes an address to be.
    fn neighbour(&self, address: &str) -> Option<String> {
        let entry = self.lab.node_sh("underlay", &format!("ip neigh show {address}"));
        let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned)
    }

    /// What the client gets from an address, once it gets anything.
    fn ask(&self, address: &str) -> Value {
        let url = if address.contains(':') {
            format!("http://[{address}]/")
        } else {
            format!("http://{address}/")
        };
        self.lab.until(&format!("an answer from {url}"), || {
            let output = self
                .lab
                .node("underlay", &["curl", "-sS", "-g", "--max-time", "2", &url]);
            serde_json::from_str(&stdout(&output)).ok()
        })
    }

    /// The one node that answers for an address, once the client gets what it serves from there.
    fn speaker(&self, address: &str) -> &'static str {
        self.lab.until(&format!("one node answers for {address}"), || {
            self.ask(address);
            let speakers = self.speakers(address);
            let [speaker] = speakers[..] else { return None };
            (self.neighbour(address)? == self.mac(speaker)).then_some(speaker)
        })
    }

    /// Does something to the node that has an address; how long the client believed in it still, and how long after that it
    /// got answers again.
    fn moves(&self, address: &str, what: &str, disturb: impl FnOnce()) {
        let before = self.neighbour(address).unwrap();
        let watch =
            format!("until ip neigh show {address} | grep lladdr | grep -qv {before}; do sleep 0.01; done");
        let (moved, served) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let output = self.lab.node("underlay", &["timeout", "60", "sh", "-c", &watch]);
                assert!(output.status.success(), "{what}: it stays: {}", text(&output));
                Instant::now()
            });
            std::thread::sleep(Duration::from_millis(300));
            let begin = Instant::now();
            disturb();
            let moved = watching.join().unwrap() - begin;
            self.ask(address);
            (moved, begin.elapsed())
        });
        println!("{what}: {address} has moved after {moved:?}, and is served after {served:?}");
    }
}

fn signal(signal: &str, pids: &[u32]) {
    for pid in pids {
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
        assert!(sent.unwrap().success(), "{signal} {pid}");
    }
}

#[test]
fn one_node_answers_for_an_address_and_another_when_it_is_gone() {
    let world = World {
        lab: Lab::up("announce", &["-f", DEFINITION, "-f", DEMO, "-f", EXAMPLE]),
    };
    let lab = &world.lab;
    let service = lab.until("the addresses of the service", || {
        let service = lab.kubectl_json(&["get", "service", "front"]);
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned()?;
        (ingress.len() == 2).then_some(ingress)
    });
    let addresses: Vec<&str> = service
        .iter()
        .map(|ingress| ingress["ip"].as_str().unwrap())
        .collect();
    assert_eq!(addresses, ["172.30.0.200", "fd30::200"]);
    for address in &addresses {
        let speaker = world.speaker(address);
        for node in NODES {
            let links = lab.node_sh(node, "ip addr");
            assert!(!links.contains(address), "it is on no link: {links}");
        }
        // Whoever owns the service, and whoever watches the node, is told.
        let note = format!("node {speaker} answers for {address} on eth0");
        lab.until("an Event on the service", || {
            let events = lab.kubectl_ok(&[
                "get",
                "events",
                "--field-selector",
                "involvedObject.name=front,reason=AddressAnnounced",
            ]);
            events.contains(&note).then_some(())
        });
        let metrics = lab.node_sh(speaker, "curl -sS http://127.0.0.1:9980/metrics");
        let is_told = |line: &str| line.starts_with("podnet_load_balancer_addresses{link=\"eth0\"} ");
        assert!(metrics.lines().any(is_told), "{metrics}");
    }

    let server = lab.pids("podnet apiserver");
    assert_eq!(server.len(), 1, "{server:?}");
    for address in &addresses {
        let first = world.speaker(address);
        let agent = lab.pids(&format!("agent --node {first}"));
        assert_eq!(agent.len(), 1, "{agent:?}");
        // Nobody needs the API server for it.
        signal("-STOP", &server);
        world.moves(address, "kill -9 of the agent", || kill_9(agent[0]));
        signal("-CONT", &server);
        // The agent is started again, and has its addresses again.
        lab.until("it comes back", || {
            (world.speaker(address) == first).then_some(())
        });
        world.moves(address, "the node's link goes down", || {
            lab.node_sh("underlay", &format!("ip link set {first} down"));
        });
        let second = lab.until("another answers", || {
            let others: Vec<_> = world
                .speakers(address)
                .into_iter()
                .filter(|node| *node != first)
                .collect();
            (others.len() == 1).then(|| others[0])
        });
        assert_eq!(world.neighbour(address), Some(world.mac(second)));
        lab.node_sh("underlay", &format!("ip link set {first} up"));
        lab.until("it comes back", || {
            (world.speaker(address) == first).then_some(())
        });
    }

    nodes_that_hear_each_other_again_leave_an_address_to_one(&world, &addresses);
    who_has_endpoints_answers_under_local(&world);
    lab.down();
}

/// The nodes do not hear each other for a while; the client hears them all.
fn nodes_that_hear_each_other_again_leave_an_address_to_one(world: &World, addresses: &[&str]) {
    let isolate = |how: &str| {
        for node in NODES {
            let script = format!("bridge link set dev {node} isolated {how}");
            world.lab.node_sh("underlay", &script);
        }
    };
    let before: Vec<_> = addresses.iter().map(|address| world.speaker(address)).collect();
    isolate("on");
    for address in addresses {
        world.lab.until("each node answers", || {
            (world.speakers(address) == NODES).then_some(())
        });
    }
    isolate("off");
    let after: Vec<_> = addresses.iter().map(|address| world.speaker(address)).collect();
    assert_eq!(before, after);
}

fn who_has_endpoints_answers_under_local(world: &World) {
    let lab = &world.lab;
    lab.apply(&single_on("node2"));
    lab.apply(LOCAL);
    let address = "172.30.0.219";
    assert_eq!(world.speaker(address), "node2");
    let answer = world.ask(address);
    let client = answer["client"].as_str().unwrap();
    assert!(
        client.starts_with("172.30.0.1:"),
        "the client's address is kept: {client}"
    );
    lab.apply(&single_on("node3"));
    lab.kubectl_ok(&[
        "wait",
        "--for=condition=Ready",
        "pod/single-node3",
        "--timeout=60s",
    ]);
    // Either of the two, as hashing has it.
    lab.until("both are endpoints", || {
        let slices = lab.kubectl_json(&["get", "endpointslices", "-l", "kubernetes.io/service-name=local"]);
        let endpoints = slices["items"][0]["endpoints"].as_array()?;
        let ready = endpoints
            .iter()
            .filter(|endpoint| endpoint["conditions"]["ready"] == true);
        (ready.count() == 2).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    let first = world.speaker(address);
    let pod = format!("single-{first}");
    world.moves(address, "its endpoint goes", || {
        lab.kubectl_ok(&["delete", "pod", &pod, "--grace-period=0", "--force"]);
    });
    let second = if first == "node2" { "node3" } else { "node2" };
    assert_eq!(world.speaker(address), second);
}
