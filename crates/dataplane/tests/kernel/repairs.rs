//! What others changed is told as a repair, whatever else changes at the same time; what we change ourselves never is.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use podnet_core::NodeState;
use podnet_core::cluster::{Family, Routing};
use podnet_dataplane::userspace::SOCKET;
use podnet_dataplane::{Applied, ApplyError, Dataplane, Kernel, Repair};
use podnet_linux::ipvs::{Ipvs, Virtual};
use podnet_linux::netfilter::Netfilter;

use crate::common::{BackEnd, Lab, Machine, eventually, node_name};

on_every_back_end!(
    what_others_change_is_told_whatever_we_change_at_the_same_time,
    neither_a_start_nor_our_own_changes_nor_what_is_theirs_is_told,
    what_is_put_back_before_a_failure_is_told_after_it,
);

const NOTHING: Repair = Repair {
    routes: 0,
    services: 0,
    proxied: 0,
};
const PROXY: &str = "the proxy";
const TABLE_GONE: &str = "nft delete table inet podnet";

/// A node with services by one back end, and who applies it.
struct Scene {
    lab: Lab,
    kernel: Kernel,
    changes: usize,
}

impl Scene {
    fn new(on: BackEnd) -> Self {
        Scene::of(2, on)
    }

    fn of(nodes: usize, on: BackEnd) -> Self {
        let mut lab = Lab::new(nodes, Routing::default(), Family::V4, 1500).carried_by(on);
        lab.exposed(1, &[(0, 2), (1, 2)], |_| {});
        lab.exposed(2, &[(0, 3)], |_| {});
        let node = &lab.nodes[0];
        let kernel = node.run(|| node.kernel(on.name()));
        Scene {
            lab,
            kernel,
            changes: 0,
        }
    }

    fn node(&self) -> &Machine {
        &self.lab.nodes[0]
    }

    /// The cluster changes, and not how much there is of anything.
    fn change(&mut self) {
        self.changes += 1;
        let pod = (0, [3, 4][self.changes % 2]);
        self.lab.endpoints(2, &[pod], &[]);
    }

    fn state(&self) -> NodeState {
        self.lab.state(0)
    }

    fn try_apply(&mut self, state: &NodeState) -> Result<Applied, ApplyError> {
        let kernel = &mut self.kernel;
        self.lab.nodes[0].run(|| kernel.apply(state))
    }

    fn apply(&mut self) -> Applied {
        let state = self.state();
        self.try_apply(&state).unwrap()
    }

    fn follow(&mut self) -> Applied {
        let (state, kernel) = (self.state(), &mut self.kernel);
        self.lab.nodes[0].run(|| kernel.follow(&state).unwrap())
    }
}

/// What somebody does to a node.
type Deed = Box<dyn Fn(&Machine)>;

fn command(text: impl Into<String>) -> Deed {
    let text = text.into();
    Box::new(move |node| drop(node.command(&text)))
}

fn emptied(set: &'static str) -> Deed {
    Box::new(move |node| empty(node, set))
}

/// By whom services are carried, what is done to them there, and whether who follows along sees it.
fn damages(on: BackEnd) -> Vec<(&'static str, Deed, bool)> {
    let mut all = vec![("the table", command(TABLE_GONE), true)];
    match on {
        BackEnd::Nftables | BackEnd::Ebpf => all.extend([
            ("a map", command("nft flush map inet podnet service4"), true),
            ("a rule", command("nft add rule inet podnet guard drop"), true),
        ]),
        BackEnd::IptablesLegacy | BackEnd::IptablesNft => all.extend([
            (
                "a chain",
                command(format!("{} -t nat -F PODNET-SERVICES", on.iptables().unwrap())),
                true,
            ),
            ("a set", emptied("PODNET-CLUSTER4"), true),
        ]),
        BackEnd::Ipvs => all.extend([
            ("a virtual service", Box::new(delete_service) as Deed, false),
            ("a destination", Box::new(delete_destination), false),
            ("the rule", command("ip rule del fwmark 0x10/0x10"), false),
            ("routes", command("ip route flush table 28750"), false),
            ("a set", emptied("PODNET-IPVS4"), true),
        ]),
        BackEnd::Userspace => all.push((PROXY, Box::new(stop), true)),
    }
    all
}

fn empty(node: &Machine, set: &str) {
    node.run(|| {
        let mut sets = Netfilter::open().unwrap();
        let elements = sets.set_elements(set).unwrap();
        assert!(!elements.is_empty());
        sets.remove_from_set(set, &elements).unwrap();
    });
}

/// Of the service whose endpoints stay.
const SERVICE: Virtual = Virtual::Address {
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    protocol: 6,
    port: 80,
};

fn delete_service(node: &Machine) {
    node.run(|| Ipvs::open().unwrap().delete_service(SERVICE).unwrap());
}

fn delete_destination(node: &Machine) {
    let endpoint: SocketAddr = "10.244.0.2:8080".parse().unwrap();
    node.run(|| {
        Ipvs::open()
            .unwrap()
            .delete_destination(SERVICE, endpoint)
            .unwrap();
    });
}

fn stop(node: &Machine) {
    let mut stream = UnixStream::connect(node.run_dir.path().join(SOCKET)).unwrap();
    stream.write_all(b"stop\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    eventually("it has ended", || !node.run_dir.path().join(SOCKET).exists());
}

fn what_others_change_is_told_whatever_we_change_at_the_same_time(on: BackEnd) {
    let mut scene = Scene::new(on);
    assert!(scene.apply().service_changes > 0);
    for (what, damage, follower_sees) in damages(on) {
        damage(scene.node());
        let alone = scene.apply();
        let told = alone.put_back;
        let by_proxy = what == PROXY;
        assert!(alone.service_changes > 0, "{what}: {alone:?}");
        assert_eq!(
            told.services,
            if by_proxy { 0 } else { alone.service_changes },
            "{what}"
        );
        assert_eq!(
            told.proxied,
            if by_proxy { alone.service_changes } else { 0 },
            "{what}"
        );
        assert_eq!(alone.put_back.routes, 0, "{what}");
        assert_eq!(scene.apply().put_back, NOTHING, "{what}");

        damage(scene.node());
        scene.change();
        assert_eq!(scene.apply().put_back, alone.put_back, "{what}, and a change");
        assert_eq!(scene.apply().put_back, NOTHING, "{what}, and a change");

        damage(scene.node());
        scene.change();
        let followed = scene.follow().put_back;
        let told = if follower_sees { alone.put_back } else { NOTHING };
        assert_eq!(followed, told, "{what}, seen on the way");
        // Who follows along does not look for everything.
        let rest = scene.apply().put_back;
        assert_eq!(rest == NOTHING, follower_sees, "{what}, seen later: {rest:?}");
        assert!(scene.apply().is_nothing(), "{what}");
    }
}

fn neither_a_start_nor_our_own_changes_nor_what_is_theirs_is_told(on: BackEnd) {
    let mut scene = Scene::new(on);
    scene.change();
    let start = scene.apply();
    assert!(start.service_changes > 0 && start.route_changes > 0, "{start:?}");
    assert_eq!(start.put_back, NOTHING);
    // One that goes on where another ended knows nothing of what that one had put.
    scene.node().command(TABLE_GONE);
    let another = scene.lab.apply(0);
    assert!(another.service_changes > 0, "{another:?}");
    assert_eq!(another.put_back, NOTHING);
    let mut theirs = vec!["nft add table inet theirs", "nft delete table inet theirs"];
    if on.iptables().is_some() {
        theirs.extend([
            "iptables-legacy -t nat -N THEIRS",
            "iptables-nft -t nat -N THEIRS",
        ]);
    }
    assert_eq!(scene.apply().put_back, NOTHING, "it is as it was, by whomever");
    for theirs in theirs {
        scene.node().command(theirs);
        scene.change();
        let followed = scene.follow();
        assert!(followed.service_changes > 0);
        assert_eq!(followed.put_back, NOTHING, "{theirs}");
        scene
            .node()
            .command(&theirs.replace("THEIRS", "MORE").replace("theirs", "more"));
        scene.change();
        assert_eq!(scene.apply().put_back, NOTHING, "{theirs}");
        assert!(scene.apply().is_nothing(), "{theirs}");
    }
    // Services that come and go.
    for host in [3, 4] {
        scene.lab.exposed(host, &[(0, 2)], |_| {});
        assert_eq!(scene.follow().put_back, NOTHING);
        scene.lab.endpoints(3, &[], &[]);
        assert_eq!(scene.apply().put_back, NOTHING);
    }
    scene.lab.cluster.services = Default::default();
    scene.lab.cluster.slices = Default::default();
    assert_eq!(scene.follow().put_back, NOTHING);
    assert_eq!(scene.apply().put_back, NOTHING);
    let (node, kernel) = (&scene.lab.nodes[0], &mut scene.kernel);
    node.run(|| kernel.clean().unwrap());
    let again = scene.apply();
    assert!(again.route_changes > 0);
    assert_eq!(again.put_back, NOTHING, "we cleaned it ourselves");
}

fn what_is_put_back_before_a_failure_is_told_after_it(on: BackEnd) {
    let mut scene = Scene::new(on);
    scene.apply();
    scene.node().command(TABLE_GONE);
    let alone = scene.apply().put_back;
    assert!(alone.services > 0);
    scene.node().command(TABLE_GONE);
    let mut elsewhere = scene.state();
    elsewhere.routing.tunnel.as_mut().unwrap().local = "192.0.2.99".parse().unwrap();
    let failure = scene.try_apply(&elsewhere).unwrap_err();
    assert!(failure.to_string().contains("192.0.2.99 is on none"), "{failure}");
    assert_eq!(scene.apply().put_back, alone);
    assert_eq!(scene.apply().put_back, NOTHING);
}

#[test]
fn routes_that_others_remove_are_told_though_another_is_refused_and_one_that_is_free_at_last_is_not() {
    let mut scene = Scene::of(3, BackEnd::Nftables);
    let one = Repair { routes: 1, ..NOTHING };
    // Where ours to the second node is to be.
    let theirs = "10.244.1.0/24 via 172.30.0.1 proto static";
    scene.node().command(&format!("ip route add {theirs}"));
    let refused = |applied: &Applied| applied.refused.len();
    let start = scene.apply();
    assert_eq!((refused(&start), start.put_back), (1, NOTHING), "{start:?}");
    let again = scene.apply();
    assert_eq!((refused(&again), again.put_back), (1, NOTHING), "{again:?}");
    assert!(again.is_nothing());

    let damage = "ip route del 10.244.2.0/24 proto 112";
    scene.node().command(damage);
    let repaired = scene.apply();
    assert_eq!((refused(&repaired), repaired.put_back), (1, one), "{repaired:?}");
    // While what routing is to be changes, too.
    let second = scene.lab.cluster.nodes.remove(&node_name(1)).unwrap();
    scene.node().command(damage);
    let repaired = scene.follow();
    assert_eq!((refused(&repaired), repaired.put_back), (0, one), "{repaired:?}");
    scene.lab.cluster.nodes.insert(node_name(1), second);
    let back = scene.apply();
    assert_eq!((refused(&back), back.put_back), (1, NOTHING), "{back:?}");

    scene.node().command(&format!("ip route del {theirs}"));
    let free = scene.apply();
    assert_eq!((refused(&free), free.put_back), (0, NOTHING), "{free:?}");
    assert_eq!(free.route_changes, 1);
    scene.node().command(damage);
    scene.node().command(TABLE_GONE);
    let both = scene.apply().put_back;
    assert!(both.routes == 1 && both.services > 0, "{both:?}");
    // The tunnel follows the link between nodes.
    scene.node().command("ip link set eth0 mtu 1400");
    let smaller = scene.apply();
    assert!(smaller.route_changes > 0, "{smaller:?}");
    assert_eq!(smaller.put_back, NOTHING);
    assert!(scene.follow().is_nothing());
}
