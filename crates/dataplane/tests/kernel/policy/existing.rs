//! Connections that exist when a policy begins to deny them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use podnet_core::cluster::{Direction, Existing, Family, NetworkPolicy};

use super::{Who, World, pods, policy, rule};

/// Both ends of a connection between two pods.
struct Established(TcpStream, TcpStream);

impl Established {
    fn new(world: &World, from: usize, to: usize, family: Family) -> Self {
        let address = SocketAddr::new(world.address(Who::Pod(to), family), 0);
        let listener = world.pods[to].machine.run(|| TcpListener::bind(address).unwrap());
        let to = listener.local_addr().unwrap();
        let client = world.pods[from]
            .machine
            .run(|| TcpStream::connect_timeout(&to, super::PATIENCE).unwrap());
        let (server, _) = listener.accept().unwrap();
        Established(client, server)
    }

    /// Whether what one end sends comes through. One that is cut is given a second: it sends again meanwhile.
    fn carries(&mut self) -> [bool; 2] {
        self.carries_within(Duration::from_secs(1))
    }

    fn carries_within(&mut self, patience: Duration) -> [bool; 2] {
        let Established(client, server) = self;
        let passes = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(b"?").unwrap();
            to.set_read_timeout(Some(patience)).unwrap();
            to.read_exact(&mut [0]).is_ok()
        };
        [passes(client, server), passes(server, client)]
    }
}

fn isolated(pods: &str, existing: Existing) -> NetworkPolicy {
    NetworkPolicy {
        ingress: Some(Vec::new()),
        existing: Ok(existing),
        ..policy(pods)
    }
}

#[test]
fn what_is_denied_now_is_cut_in_both_directions_and_all_else_goes_on() {
    let mut world = World::of(&["a"], 3);
    for family in [Family::V4, Family::V6] {
        world.set([]);
        let mut denied = Established::new(&world, 1, 0, family);
        let mut other_way = Established::new(&world, 0, 1, family);
        let mut elsewhere = Established::new(&world, 1, 2, family);
        assert_eq!(denied.carries(), [true; 2]);
        world.set([("a", isolated("app=x", Existing::Cut))]);
        // Neither end brings it back, not even the one that may connect to the other.
        assert_eq!(denied.carries(), [false; 2]);
        assert_eq!(other_way.carries(), [true; 2], "what the pod itself began");
        assert_eq!(elsewhere.carries(), [true; 2]);
        world.set([]);
        // Allowed again before either end gave up: what was lost is sent once more.
        assert_eq!(denied.carries_within(super::PATIENCE), [true; 2]);
    }
}

#[test]
fn a_policy_that_keeps_existing_connections_denies_new_ones_only() {
    let mut world = World::of(&["a"], 2);
    let mut kept = Established::new(&world, 1, 0, Family::V4);
    world.set([("a", isolated("app=x", Existing::Keep))]);
    assert_eq!(kept.carries(), [true; 2]);
    let new = super::each(Who::Pod(1), 0)
        .filter(|probe| probe.protocol == podnet_core::cluster::Protocol::Tcp)
        .map(|probe| (probe, false));
    world.expect(&new.collect());
    // Another one that does not keep them cuts.
    world.set([
        ("a", isolated("app=x", Existing::Keep)),
        ("a", isolated("app=x", Existing::Cut)),
    ]);
    assert_eq!(kept.carries(), [false; 2]);
}

/// Whoever speaks first when a policy begins: who began the connection is known.
#[test]
fn a_connection_keeps_its_direction_under_a_policy_that_begins() {
    let mut world = World::of(&["a"], 2);
    for family in [Family::V4, Family::V6] {
        world.set([]);
        let Established(mut client, mut server) = Established::new(&world, 1, 0, family);
        // The server may not begin anything.
        let silent = NetworkPolicy {
            types: Some(Ok([Direction::Egress].into())),
            ..policy("app=x")
        };
        world.set([("a", silent)]);
        server.write_all(b"!").unwrap();
        client.set_read_timeout(Some(super::PATIENCE)).unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert_eq!(Established(client, server).carries(), [true; 2]);
    }
}

/// As an agent does that is killed before it could tell tracking.
#[test]
fn a_connection_of_a_pod_that_was_taken_off_the_path_before_keeps_its_direction() {
    let mut world = World::of(&["a"], 2);
    let Established(mut client, mut server) = Established::new(&world, 1, 0, Family::V4);
    let node = &world.lab.nodes[0];
    let taken_off = [world.address(Who::Pod(0), Family::V4)];
    podnet_dataplane::ebpf::let_go_of(&node.programs(), &taken_off).unwrap();
    // Tracking takes it up the wrong way round.
    server.write_all(b"!").unwrap();
    client.set_read_timeout(Some(super::PATIENCE)).unwrap();
    client.read_exact(&mut [0]).unwrap();
    for (kernel, node) in world.kernels.iter_mut().zip(&world.lab.nodes) {
        *kernel = node.run(|| node.kernel(super::on().name()));
    }
    let silent = NetworkPolicy {
        types: Some(Ok([Direction::Egress].into())),
        ..policy("app=x")
    };
    world.set([("a", silent)]);
    assert_eq!(Established(client, server).carries(), [true; 2]);
}

#[test]
fn a_peer_that_loses_its_label_is_cut() {
    let mut world = World::of(&["a"], 2);
    let peers = NetworkPolicy {
        ingress: Some(vec![rule(vec![pods("app=y")], vec![])]),
        ..policy("app=x")
    };
    world.set([("a", peers)]);
    let mut connection = Established::new(&world, 1, 0, Family::V6);
    assert_eq!(connection.carries(), [true; 2]);
    world.object(1).labels.insert("app".into(), "other".into());
    world.apply();
    assert_eq!(connection.carries(), [false; 2]);
}

/// Whoever starts does not know what was in force before.
#[test]
fn an_agent_that_starts_cuts_what_was_denied_while_there_was_none() {
    let mut world = World::of(&["a"], 2);
    let mut connection = Established::new(&world, 1, 0, Family::V4);
    let from_node = world.address(Who::Pod(0), Family::V4);
    let mut probe = {
        let listener = world.pods[0]
            .machine
            .run(|| TcpListener::bind((from_node, 0)).unwrap());
        let to = listener.local_addr().unwrap();
        let client = world.lab.nodes[0].run(|| TcpStream::connect_timeout(&to, super::PATIENCE).unwrap());
        Established(client, listener.accept().unwrap().0)
    };
    for (kernel, node) in world.kernels.iter_mut().zip(&world.lab.nodes) {
        *kernel = node.run(|| node.kernel(super::on().name()));
    }
    world.set([("a", isolated("app=x", Existing::Cut))]);
    assert_eq!(connection.carries(), [false; 2]);
    assert_eq!(
        probe.carries(),
        [true; 2],
        "the node's own are no policy's business"
    );
}

/// As an nftables service that is restarted takes everything away.
#[test]
fn what_connected_while_the_table_was_gone_is_cut_when_it_is_back() {
    let mut world = World::of(&["a"], 2);
    world.set([("a", isolated("app=x", Existing::Cut))]);
    for node in &world.lab.nodes {
        node.command("nft delete table inet podnet");
    }
    let mut connection = Established::new(&world, 1, 0, Family::V4);
    assert_eq!(connection.carries(), [true; 2]);
    world.apply();
    assert_eq!(connection.carries(), [false; 2]);
}
