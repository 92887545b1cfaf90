//! Packets between pods that go past the host's stack, and all that keeps them from it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use aya::programs::{SchedClassifier, TcAttachType};
use podnet_core::cluster::{DataplaneName, Family, NetworkPolicy, Routing};
use podnet_dataplane::{Dataplane, Look, ebpf};
use podnet_linux::netlink::{LinkChange, TokenBucket};

use crate::common::{BackEnd, Lab, Machine, PATIENCE, any};
use crate::policy_by_programs::{Who, World, pods, policy, rule};
use crate::talk::Talk;

const SERVER: &str = "10.244.0.2:8080";
const SERVER_SIX: &str = "[fd00:10:244::2]:8080";

/// A node with a pod that serves, and one that asks.
struct Scene {
    lab: Lab,
    client: Machine,
    server: Machine,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Ebpf);
        let (client, server) = (lab.pod(0, 9), lab.pod(0, 2));
        server.serve("a", 8080);
        assert_eq!(lab.apply(0).left_out, [""; 0]);
        Scene { lab, client, server }
    }

    fn node(&self) -> &Machine {
        &self.lab.nodes[0]
    }

    /// What is pinned of it, by what is before the first hyphen.
    fn pins(&self, of: &str) -> Vec<PathBuf> {
        pins(&self.node().programs().bpffs.join("podnet/path"), of)
    }

    /// How many programs are at a link.
    fn programs_at(&self, link: &str) -> usize {
        let at = |side| SchedClassifier::query_tcx(link, side).unwrap().1.len();
        self.node()
            .run(|| at(TcAttachType::Ingress) + at(TcAttachType::Egress))
    }
}

fn pins(path: &Path, of: &str) -> Vec<PathBuf> {
    let pins = std::fs::read_dir(path).into_iter().flatten();
    let pins = pins.map(|pin| pin.unwrap().path());
    let is_of = |pin: &PathBuf| pin.file_name().unwrap().to_str().unwrap().starts_with(of);
    pins.filter(is_of).collect()
}

/// What tracking knows of connections to that port, which are those that took the stack.
fn tracked(node: &Machine, port: u16) -> String {
    let list = |more: &str| format!("conntrack -L {more} --dport {port} 2>/dev/null;");
    let of = ["-p tcp", "-p udp", "-f ipv6 -p tcp", "-f ipv6 -p udp"];
    node.command(&of.map(list).concat())
}

fn answers(client: &Machine, to: &str) {
    assert_eq!(client.tcp(to).unwrap().0, "a", "{to}");
    assert_eq!(client.udp(to).unwrap().0, "a", "{to}");
}

#[test]
fn pods_of_a_node_speak_past_the_stack() {
    let scene = Scene::new();
    for to in [SERVER, SERVER_SIX] {
        answers(&scene.client, to);
    }
    assert_eq!(tracked(scene.node(), 8080), "");
    // To and from the node itself there is nothing else.
    answers(scene.node(), SERVER);
    assert!(tracked(scene.node(), 8080).contains("dst=10.244.0.2"));
}

#[test]
fn pods_of_two_nodes_speak_past_the_stack() {
    for routing in [Routing::Direct, Routing::default()] {
        let lab = Lab::new(2, routing, Family::V4, 1500).carried_by(BackEnd::Ebpf);
        let (client, server) = (lab.pod(0, 9), lab.pod(1, 2));
        server.serve("a", 8080);
        lab.apply_all();
        for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
            answers(&client, to);
        }
        for node in &lab.nodes {
            assert_eq!(tracked(node, 8080), "", "{routing:?}");
        }
    }
}

/// As a pod with a limit on what it receives: the queue is at the node's end of its link.
#[test]
fn a_pod_with_a_queue_at_its_link_takes_the_stack() {
    let scene = Scene::new();
    let link = scene.node().link("pod2").index;
    let bucket = TokenBucket {
        link,
        rate: 1 << 30,
        burst: 1 << 20,
        limit: 1 << 20,
    };
    scene
        .node()
        .netlink(|netlink| netlink.request(bucket.replace()).unwrap());
    scene.lab.apply(0);
    answers(&scene.client, SERVER);
    assert!(tracked(scene.node(), 8080).contains("src=10.244.0.9"));
}

/// Which programs that hand packets on would come before.
#[test]
fn a_pod_with_filters_of_others_at_its_link_takes_the_stack() {
    let scene = Scene::new();
    scene.node().command("tc qdisc add dev pod9 clsact");
    scene.lab.apply(0);
    answers(&scene.client, SERVER);
    assert!(tracked(scene.node(), 8080).contains("src=10.244.0.9"));
    scene
        .node()
        .command("tc qdisc del dev pod9 clsact; conntrack -F 2>/dev/null");
    scene.lab.apply(0);
    answers(&scene.client, SERVER);
    assert_eq!(tracked(scene.node(), 8080), "");
}

/// As a plugin does that comes after ours: nobody waits half a minute for a limit to hold.
#[test]
fn a_queue_that_comes_later_is_heard_of() {
    let scene = Scene::new();
    let node = scene.node();
    let state = scene.lab.state(0);
    let (mut kernel, disturbed) = node.watched(&state);
    assert!(disturbed.recv_timeout(std::time::Duration::from_secs(2)).is_err());
    node.command("tc qdisc add dev pod2 root tbf rate 1gbit burst 1mb latency 100ms");
    disturbed.recv_timeout(PATIENCE).unwrap();
    node.run(|| kernel.apply(&state).unwrap());
    answers(&scene.client, SERVER);
    assert!(tracked(node, 8080).contains("src=10.244.0.9"));
}

/// What is to be encrypted is not sent as it is.
#[test]
fn where_ipsec_has_a_say_everybody_takes_the_stack() {
    let scene = Scene::new();
    let node = scene.node();
    let state = scene.lab.state(0);
    let (mut kernel, disturbed) = node.watched(&state);
    for direction in ["out", "in", "fwd"] {
        let policy = "ip xfrm policy add src 192.0.2.0/24 dst 198.51.100.0/24 dir";
        node.command(&format!("{policy} {direction}"));
        disturbed.recv_timeout(PATIENCE).unwrap();
        let left_out = node.run(|| kernel.apply(&state).unwrap()).left_out;
        assert!(
            left_out.iter().any(|told| told.contains("IPsec")),
            "{direction} {left_out:?}"
        );
        answers(&scene.client, SERVER);
        assert!(tracked(node, 8080).contains("src=10.244.0.9"));
        node.command("ip xfrm policy flush; conntrack -F 2>/dev/null");
        assert_eq!(node.run(|| kernel.apply(&state).unwrap()).left_out, [""; 0]);
        answers(&scene.client, SERVER);
        assert_eq!(tracked(node, 8080), "");
    }
}

#[test]
fn what_others_take_off_a_link_is_put_back() {
    let scene = Scene::new();
    let node = scene.node();
    let mut kernel = node.run(|| node.kernel(DataplaneName::Ebpf));
    let state = scene.lab.state(0);
    assert!(node.run(|| kernel.apply(&state).unwrap()).is_nothing());
    let [links] = scene.pins("links").try_into().unwrap();
    let at_server = format!("{}-", node.link("pod2").index);
    for pin in std::fs::read_dir(links).unwrap().map(|pin| pin.unwrap().path()) {
        if pin.file_name().unwrap().to_str().unwrap().starts_with(&at_server) {
            std::fs::remove_file(pin).unwrap();
        }
    }
    let applied = node.run(|| kernel.apply(&state).unwrap());
    assert_eq!((applied.put_back.services, scene.programs_at("pod2")), (1, 2));
    let again = node.run(|| kernel.apply(&state).unwrap());
    assert!(again.is_nothing() && again.put_back.is_nothing(), "{again:?}");
    answers(&scene.client, SERVER);
}

#[test]
fn what_has_come_too_far_is_answered_as_by_a_router() {
    let scene = Scene::new();
    for (to, ttl) in [(SERVER, 1), (SERVER, 2)] {
        let socket = scene.client.udp_socket(to);
        socket.set_ttl(ttl).unwrap();
        let before = scene.client.told_time_exceeded();
        let arrived = crate::common::ask(&socket).is_ok();
        assert_eq!(arrived, ttl > 1);
        assert_eq!(scene.client.told_time_exceeded() > before, ttl == 1, "{ttl}");
    }
}

#[test]
fn what_is_too_large_for_a_link_arrives_all_the_same() {
    let scene = Scene::new();
    let large = vec![b'x'; 6000];
    let sink = scene.server.run(|| UdpSocket::bind("[::]:9000").unwrap());
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    for to in ["10.244.0.2:9000", "[fd00:10:244::2]:9000"] {
        // In fragments.
        let to: SocketAddr = to.parse().unwrap();
        let socket = scene.client.run(|| UdpSocket::bind(any(to, 0)).unwrap());
        socket.send_to(&large, to).unwrap();
        let mut buffer = [0; 8192];
        assert_eq!(sink.recv(&mut buffer).unwrap(), large.len());
    }
    // The sender is told of a smaller link.
    scene.node().netlink(|netlink| {
        let smaller = LinkChange::named("pod2").mtu(1300);
        netlink.request(smaller.apply()).unwrap();
    });
    scene.lab.apply(0);
    let listener = scene.server.run(|| TcpListener::bind("[::]:9001").unwrap());
    for to in ["10.244.0.2:9001", "[fd00:10:244::2]:9001"] {
        let mut stream = scene.client.run(|| TcpStream::connect(to).unwrap());
        let (mut arriving, _) = listener.accept().unwrap();
        let sender = std::thread::spawn(move || stream.write_all(&[7; 1 << 20]).unwrap());
        let mut arrived = Vec::new();
        arriving.read_to_end(&mut arrived).unwrap();
        sender.join().unwrap();
        assert_eq!(arrived.len(), 1 << 20, "{to}");
    }
}

/// Its answers have to come by whoever did it.
#[test]
fn what_others_translate_between_pods_is_answered_by_whom_it_asked() {
    let scene = Scene::new();
    scene.node().command(
        "nft 'table ip theirs { chain in { type nat hook prerouting priority dstnat - 5; \
         ip daddr 203.0.113.9 meta l4proto { tcp, udp } dnat to 10.244.0.2:8080; }; }'",
    );
    // One of these began before the path knew of it.
    let mut early = Talk::begin(&scene.client, "203.0.113.9:80");
    assert_eq!(early.ask(), "a");
    let mut kernel = scene.node().run(|| scene.node().kernel(DataplaneName::Ebpf));
    scene.node().run(|| kernel.clean().unwrap());
    assert_eq!(early.ask(), "a");
    scene.lab.apply(0);
    assert_eq!(early.ask(), "a");
    answers(&scene.client, "203.0.113.9:80");
    answers(&scene.client, SERVER);
    // From one port to the same end by two names: to the server they would be one.
    for to in ["203.0.113.9:80", SERVER, "203.0.113.9:80"] {
        assert_eq!(scene.client.udp_by(7777, to).unwrap().0, "a", "{to}");
    }
}

#[test]
fn connections_go_on_while_the_path_comes_and_goes() {
    let scene = Scene::new();
    let node = scene.node();
    let mut talks = [SERVER, SERVER_SIX].map(|to| Talk::begin(&scene.client, to));
    let mut state = scene.lab.state(0);
    for name in [
        DataplaneName::Nftables,
        DataplaneName::Ebpf,
        DataplaneName::Nftables,
    ] {
        state.wired = match name {
            DataplaneName::Ebpf => scene.lab.state(0).wired,
            _ => Default::default(),
        };
        node.run(|| node.kernel(name).apply(&state).unwrap());
        assert_eq!(scene.programs_at("pod2") > 0, name == DataplaneName::Ebpf);
        for talk in &mut talks {
            assert_eq!(talk.ask(), "a", "{name}");
        }
    }
    // Tracking knows who began it.
    let known = tracked(node, 8080);
    for client in [
        "src=10.244.0.9 dst=10.244.0.2",
        "src=fd00:10:244::9 dst=fd00:10:244::2",
    ] {
        assert!(known.contains(client), "{known}");
    }
}

/// The kernel waits for all processors before a program is at a link: services and policies do not.
#[test]
fn links_get_their_programs_one_at_a_time_where_other_things_come_first() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Ebpf);
    let node = &lab.nodes[0];
    let pods = [9, 2, 3].map(|host| lab.pod(0, host));
    pods[1].serve("a", 8080);
    let mut agent = node.run(|| node.kernel(DataplaneName::Ebpf));
    let alone = podnet_core::NodeState {
        wired: Default::default(),
        ..lab.state(0)
    };
    node.run(|| agent.apply(&alone).unwrap());
    let state = lab.state(0);
    let has_programs = |link: &str| {
        let (_, found) = SchedClassifier::query_tcx(link, TcAttachType::Ingress).unwrap();
        !found.is_empty()
    };
    let at = || {
        node.run(|| {
            ["pod9", "pod2", "pod3"]
                .map(has_programs)
                .iter()
                .filter(|has| **has)
                .count()
        })
    };
    node.run(|| agent.begin(&state, Look::AtChanges).unwrap());
    // The first step loads them.
    for step in [0, 0, 1, 2] {
        assert_eq!(at(), step);
        answers(&pods[0], SERVER);
        assert!(agent.has_rest());
        assert_eq!(node.run(|| agent.go_on(&state)).left_out, [""; 0]);
    }
    assert_eq!(at(), 3);
    assert!(!agent.has_rest());
    assert!(tracked(node, 8080).contains("src=10.244.0.9"));
    node.command("conntrack -F 2>/dev/null");
    answers(&pods[2], SERVER);
    assert_eq!(tracked(node, 8080), "");
    let again = node.run(|| agent.begin(&state, Look::Everywhere).unwrap());
    assert!(again.is_nothing() && again.put_back.is_nothing(), "{again:?}");
    assert!(!agent.has_rest());
}

#[test]
fn another_build_replaces_the_programs_at_every_link() {
    let scene = Scene::new();
    let mut talk = Talk::begin(&scene.client, SERVER);
    let [programs] = scene.pins("programs-").try_into().unwrap();
    assert!(scene.lab.apply(0).is_nothing());
    std::fs::rename(&programs, programs.with_file_name("programs-of-another-build")).unwrap();
    let before = scene.programs_at("pod2");
    assert!(scene.lab.apply(0).is_nothing());
    assert_eq!(
        (scene.pins("programs-"), scene.programs_at("pod2")),
        (vec![programs], before)
    );
    assert_eq!(talk.ask(), "a");
    assert_eq!(tracked(scene.node(), 8080), "");
    answers(&scene.client, SERVER);
}

/// Also idle ones, of which nothing was seen since, and before any rule comes. Whom the policy would not let begin one speaks
/// first.
#[test]
fn connections_that_a_build_with_other_maps_let_past_are_handed_over() {
    let mut world = World::of(&["a"], 2);
    let connections: Vec<(TcpStream, TcpStream)> = [Family::V4, Family::V6]
        .into_iter()
        .map(|family| {
            let at = SocketAddr::new(world.address(Who::Pod(1), family), 0);
            let listener = world.pods[1].machine.run(|| TcpListener::bind(at).unwrap());
            let to = listener.local_addr().unwrap();
            let client = world.pods[0].machine.run(|| TcpStream::connect(to).unwrap());
            (client, listener.accept().unwrap().0)
        })
        .collect();
    for node in &world.lab.nodes {
        let path = node.programs().bpffs.join("podnet/path");
        for pin in pins(&path, "WAYS-").into_iter().chain(pins(&path, "programs-")) {
            let other = format!("{}-of-another", pin.file_name().unwrap().to_str().unwrap());
            std::fs::rename(&pin, pin.with_file_name(other)).unwrap();
        }
    }
    let nodes = world.lab.nodes.iter();
    world.kernels = nodes
        .map(|node| node.run(|| node.kernel(DataplaneName::Ebpf)))
        .collect();
    let ingress = rule(vec![pods("app=x")], Vec::new());
    world.set([(
        "a",
        NetworkPolicy {
            ingress: Some(vec![ingress]),
            ..policy("")
        },
    )]);
    for (mut client, mut server) in connections {
        let say = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(b"?").unwrap();
            to.set_read_timeout(Some(PATIENCE)).unwrap();
            to.read_exact(&mut [0]).unwrap();
        };
        say(&mut server, &mut client);
        say(&mut client, &mut server);
    }
}

#[test]
fn programs_of_others_at_the_same_links_stay() {
    let scene = Scene::new();
    let node = scene.node();
    let [programs] = scene.pins("programs-").try_into().unwrap();
    // As good as any: it lets everything through.
    let mut theirs = SchedClassifier::from_pin(programs.join("stack_sends")).unwrap();
    node.run(|| theirs.attach("pod2", TcAttachType::Ingress).unwrap());
    assert_eq!(scene.programs_at("pod2"), 3);
    answers(&scene.client, SERVER);
    assert!(scene.lab.apply(0).is_nothing());
    node.run(|| node.kernel(DataplaneName::Ebpf).clean().unwrap());
    assert_eq!(scene.programs_at("pod2"), 1);
    assert!(scene.pins("").is_empty());
    answers(&scene.client, SERVER);
}

#[test]
fn an_address_that_a_new_pod_has_does_not_lead_to_the_old_one() {
    let scene = Scene::new();
    let addresses = [SERVER, SERVER_SIX].map(|socket| socket.parse::<SocketAddr>().unwrap().ip());
    scene.lab.unplug(0, 2);
    // What an ADD does before it makes the link, whatever the loop has come to.
    ebpf::let_go_of(&scene.node().programs(), &addresses as &[IpAddr]).unwrap();
    let new = scene.lab.pod(0, 2);
    new.serve("a", 8080);
    answers(&scene.client, SERVER);
    assert!(tracked(scene.node(), 8080).contains("src=10.244.0.9"));
    scene.lab.apply(0);
    answers(&scene.client, SERVER);
}

mod linux_6_12 {
    mod ebpf {
        use super::super::*;

        #[test]
        #[ignore = "needs another kernel: cargo xtask vm"]
        fn path() {
            pods_of_two_nodes_speak_past_the_stack();
            what_is_too_large_for_a_link_arrives_all_the_same();
            what_others_translate_between_pods_is_answered_by_whom_it_asked();
            connections_go_on_while_the_path_comes_and_goes();
            another_build_replaces_the_programs_at_every_link();
            connections_that_a_build_with_other_maps_let_past_are_handed_over();
            programs_of_others_at_the_same_links_stay();
        }
    }
}
