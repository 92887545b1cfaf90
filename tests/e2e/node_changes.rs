//! Nodes that come, move, are renamed and go, as the kernels of the other nodes follow the API: what is touched, what is
//! not, and how soon.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::{self, DEMO, Lab, PODNET, text};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Of the node that comes and goes. No machine has the addresses.
const RANGES: [&str; 2] = ["10.244.200.0/24", "fd00:10:244:c8::/64"];
const ADDRESSES: [&str; 2] = ["172.30.0.201", "172.30.0.202"];
/// What is waited for on a busy machine; the time it takes is printed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the server of a pod over both families, without end, each question after the answer to the one before.
const ASK: &str = r#"
import os, socket, sys
asking = []
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    asking.append(socket.socket(family, socket.SOCK_DGRAM))
    asking[-1].settimeout(3)
    asking[-1].connect((address, 9090))
answered = 0
while not os.path.exists("/tmp/enough"):
    for connection in asking:
        question = b"%d" % answered
        connection.send(question)
        assert b'"%s"' % question in connection.recv(65535)
        answered += 1
    if answered == 2:
        open("/tmp/talking", "w")
print(answered)
"#;

/// Questions and answers between pods of two nodes, not one of which may be lost.
struct Conversation<'a> {
    lab: &'a Lab,
    child: Option<Child>,
}

impl<'a> Conversation<'a> {
    fn start(lab: &'a Lab) -> Self {
        let pods = lab.pods("default");
        let client = pods.iter().find(|pod| pod.name == "toolbox").unwrap();
        let elsewhere = |pod: &&support::Pod| pod.is_app("echo") && pod.node != client.node;
        let server = pods.iter().find(elsewhere).unwrap();
        let child = Command::new(PODNET)
            .args([
                "lab", "exec", "--name", &lab.name, "toolbox", "--", "python3", "-c", ASK,
            ])
            .args(&server.ips)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        lab.until("the first answers", || {
            let talking = lab.exec("toolbox", &["test", "-e", "/tmp/talking"]);
            talking.status.success().then_some(())
        });
        let child = Some(child);
        Conversation { lab, child }
    }

    /// How many were answered.
    fn end(mut self) -> u64 {
        self.lab.sh("toolbox", "touch /tmp/enough");
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "a packet was lost: {}", text(&output));
        support::stdout(&output).parse().unwrap()
    }
}

impl Drop for Conversation<'_> {
    fn drop(&mut self) {
        self.child.iter_mut().for_each(|child| drop(child.kill()));
    }
}

/// What a node's kernel announces of links, addresses, routes, neighbours and tunnel entries, and when.
struct Announced {
    children: Vec<Child>,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Announced {
    fn by(lab: &Lab, node: &str) -> Self {
        let (tell, lines) = mpsc::channel();
        let commands: [&[&str]; 2] = [
            &["ip", "-o", "monitor", "link", "address", "route", "neigh"],
            &["bridge", "monitor", "fdb"],
        ];
        let children = commands.map(|command| {
            let mut child = Command::new(PODNET)
                .args(["lab", "node", "--name", &lab.name, node, "--"])
                .args(command)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let reader = BufReader::new(child.stdout.take().unwrap());
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in reader.lines().map_while(Result::ok) {
                    let _ = tell.send((Instant::now(), line));
                }
            });
            child
        });
        let announced = Announced {
            children: children.into(),
            lines,
        };
        // Both hear something that is nobody's before they are believed to hear all.
        let (mut heard_route, mut heard_fdb) = (false, false);
        lab.until("a word of the monitors", || {
            lab.node_sh(
                node,
                "ip route replace 192.0.2.0/24 dev lo; ip route del 192.0.2.0/24 dev lo; \
                 bridge fdb replace 02:00:00:00:00:77 dev podnet.vxlan dst 192.0.2.7; \
                 bridge fdb del 02:00:00:00:00:77 dev podnet.vxlan dst 192.0.2.7",
            );
            for (_, line) in announced.lines() {
                heard_route |= line.contains("192.0.2.0/24");
                heard_fdb |= line.contains("02:00:00:00:00:77");
            }
            (heard_route && heard_fdb).then_some(())
        });
        announced.lines();
        announced
    }

    /// All that was said, until nothing more is.
    fn lines(&self) -> Vec<(Instant, String)> {
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(300)) {
            lines.push(line);
        }
        lines
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a node has to reach the others: routes of podnet's, and the tunnel's neighbours and entries.
fn ways(lab: &Lab, node: &str) -> BTreeSet<String> {
    let script = "ip route show proto 112; ip -6 route show proto 112; \
                  ip neigh show dev podnet.vxlan nud permanent; ip -6 neigh show dev podnet.vxlan nud permanent; \
                  bridge fdb show dev podnet.vxlan";
    lab.node_sh(node, script)
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// What the kernel says of its own accord: of neighbours that it asks for, and of the addresses that links give
/// themselves.
fn is_own_accord(line: &str) -> bool {
    let asking = ["REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "INCOMPLETE"];
    line.contains("fe80::") || asking.iter().any(|state| line.trim_end().ends_with(state))
}

/// The Ethernet address after this word.
fn mac(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "lladdr");
    words.nth(1).map(str::to_owned)
}

fn wanderer(name: &str, address: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": RANGES[0], "podCIDRs": RANGES, "unschedulable": true},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
    .unwrap()
}

/// What happens to the node in the API.
#[derive(Debug, Clone, Copy)]
enum Event {
    Comes,
    Moves,
    IsRenamed,
    Goes,
}

impl Event {
    async fn write(self, nodes: &Api<Node>) {
        let create = async |name, address| {
            nodes
                .create(&PostParams::default(), &wanderer(name, address))
                .await
                .unwrap();
        };
        let delete = async |name| drop(nodes.delete(name, &DeleteParams::default()).await.unwrap());
        match self {
            Event::Comes => create("wanderer", ADDRESSES[0]).await,
            Event::Moves => {
                let addresses = json!([{"type": "InternalIP", "address": ADDRESSES[1]}]);
                let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
                let params = PatchParams::default();
                nodes.patch_status("wanderer", &params, &patch).await.unwrap();
            }
            Event::IsRenamed => {
                delete("wanderer").await;
                create("drifter", ADDRESSES[1]).await;
            }
            Event::Goes => delete("drifter").await,
        }
    }

    /// How many lines of [`ways`] are of the node afterwards, and the address that it is reached at.
    fn wanted(self) -> (usize, Option<&'static str>) {
        match self {
            // Of each range a route and a neighbour, and one entry of the tunnel.
            Event::Comes => (5, Some(ADDRESSES[0])),
            Event::Moves | Event::IsRenamed => (5, Some(ADDRESSES[1])),
            Event::Goes => (0, None),
        }
    }
}

/// One node, looked at while another one comes and goes.
struct Watched<'a> {
    lab: &'a Lab,
    node: &'static str,
    announced: Announced,
    /// Its ways without the other one, and with it as it was last.
    before: BTreeSet<String>,
    last: BTreeSet<String>,
    /// What a line about the other one has in it.
    signs: BTreeSet<String>,
}

impl<'a> Watched<'a> {
    fn new(lab: &'a Lab, node: &'static str) -> Self {
        let announced = Announced::by(lab, node);
        let before = ways(lab, node);
        Watched {
            lab,
            node,
            announced,
            last: before.clone(),
            before,
            signs: ["10.244.200.0", "fd00:10:244:c8::"].map(str::to_owned).into(),
        }
    }

    fn is_about_it(&self, line: &str) -> bool {
        self.signs.iter().any(|sign| line.contains(sign))
    }

    /// Waits until the kernel has what the event wants; nothing else was touched. How long after `begin` that was.
    fn follows(&mut self, event: Event, begin: Instant) -> Duration {
        let (count, address) = event.wanted();
        let has_it = |now: &BTreeSet<String>| {
            let its_own: Vec<&String> = now.difference(&self.before).collect();
            let entry = address.map(|address| format!("dst {address} "));
            let reached = |line: &&&String| {
                entry
                    .as_ref()
                    .is_some_and(|entry| format!("{line} ").contains(entry))
            };
            *now != self.last
                && its_own.len() == count
                && its_own.iter().filter(reached).count() == usize::from(address.is_some())
        };
        let mut said = Vec::new();
        self.lab.until(&format!("{}: {event:?}", self.node), || {
            said.extend(self.announced.lines());
            has_it(&ways(self.lab, self.node)).then_some(())
        });
        said.extend(self.announced.lines());
        let now = ways(self.lab, self.node);
        assert!(
            now.is_superset(&self.before),
            "{}: {event:?}: {:?}",
            self.node,
            self.before.difference(&now)
        );
        let macs = said
            .iter()
            .filter(|(_, line)| self.is_about_it(line))
            .filter_map(|(_, line)| mac(line));
        self.signs.extend(macs.collect::<Vec<_>>());
        let (about_it, others): (Vec<_>, Vec<_>) = said.iter().partition(|(_, line)| self.is_about_it(line));
        assert!(
            others.iter().all(|(_, line)| is_own_accord(line)),
            "{}: {event:?}: {others:#?}",
            self.node
        );
        self.last = now;
        let (last, _) = about_it.last().unwrap();
        last.duration_since(begin)
    }
}

#[test]
fn routes_neighbours_and_tunnel_entries_follow_the_api_and_no_other_node_loses_a_packet() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let lab = Lab::up("come-and-go", &["-f", DEMO]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let nodes: Api<Node> = runtime.block_on(async {
        let kubeconfig = kube::config::Kubeconfig::read_from(lab.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
        let client = kube::Client::try_from(config.unwrap()).unwrap();
        let nodes: Api<Node> = Api::all(client);
        // The connection is there before anything is measured.
        nodes.get("node1").await.unwrap();
        nodes
    });
    let mut watched = NODES.map(|node| Watched::new(&lab, node));
    let conversation = Conversation::start(&lab);
    for event in [
        Event::Comes,
        Event::Moves,
        Event::IsRenamed,
        Event::Goes,
        Event::Comes,
    ] {
        let begin = Instant::now();
        runtime.block_on(event.write(&nodes));
        let written = begin.elapsed();
        for watched in &mut watched {
            let took = watched.follows(event, begin);
            println!(
                "{event:?}: written after {written:?}, {} has it after {took:?}",
                watched.node
            );
            assert!(took < PATIENCE, "{event:?} took {} {took:?}", watched.node);
        }
    }
    let answered = conversation.end();
    println!("{answered} questions answered, none lost");
    assert!(answered > 100, "{answered}");
}
