//! Random policies: every pod tries every port of every pod, and what comes through is what the oracle says.

use std::collections::BTreeSet;

use podnet_core::cluster::{
    Action, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, Direction, Existing,
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, PodSelection, PolicyPort,
    Protocol, Selector, Tier,
};
use podnet_fuzz::Random;

use super::{World, block, port, range, selector};

const ROUNDS: u64 = 100;

fn labels(random: &mut Random, key: &str, values: [&str; 3]) -> Selector {
    let value = |random: &mut Random| *random.pick(&values).unwrap();
    selector(&match random.below(6) {
        0 => String::new(),
        1 => format!("{key}!={}", value(random)),
        2 => format!("{key} in ({},{})", value(random), value(random)),
        _ => format!("{key}={}", value(random)),
    })
}

fn apps(random: &mut Random) -> Selector {
    labels(random, "app", ["x", "y", "z"])
}

fn teams(random: &mut Random) -> Selector {
    labels(random, "team", ["a", "b", "c"])
}

fn protocol(random: &mut Random) -> Protocol {
    *random
        .pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
        .unwrap()
}

fn numbers(random: &mut Random) -> podnet_core::cluster::PortRange {
    let ranges = [
        (80, 80),
        (81, 81),
        (80, 81),
        (81, 9000),
        (1, 80),
        (1, 65535),
        (8080, 8080),
    ];
    let (first, last) = *random.pick(&ranges).unwrap();
    range(first, last)
}

fn peer(random: &mut Random) -> NetworkPolicyPeer {
    let blocks: [(&str, &[&str]); 8] = [
        ("10.244.0.0/24", &[]),
        ("10.244.0.0/16", &["10.244.1.0/29"]),
        ("fd00:10:244::/48", &["fd00:10:244:1::/64"]),
        ("fd00:10:244:1::/64", &[]),
        ("0.0.0.0/0", &["10.244.0.4/32", "10.244.1.0/24"]),
        ("::/0", &[]),
        ("10.244.1.3/32", &[]),
        ("0.0.0.0/0", &[]),
    ];
    if random.once_in(4) {
        let (cidr, except) = random.pick(&blocks).unwrap();
        return block(cidr, except);
    }
    NetworkPolicyPeer::Pods {
        namespaces: random.once_in(2).then(|| teams(random)),
        pods: random.once_in(2).then(|| apps(random)),
    }
}

fn several<T>(random: &mut Random, most: usize, mut one: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..random.below(most + 1)).map(|_| one(random)).collect()
}

fn network_rule(random: &mut Random) -> NetworkPolicyRule {
    let port = |random: &mut Random| NetworkPolicyPort {
        protocol: Some(protocol(random)),
        port: match random.below(4) {
            0 => None,
            1 => Some(PolicyPort::Named("http".into())),
            _ => Some(PolicyPort::Numbers(numbers(random))),
        },
    };
    NetworkPolicyRule {
        peers: several(random, 2, |random| Ok(peer(random))),
        ports: several(random, 2, |random| Ok(port(random))),
    }
}

fn network_policy(random: &mut Random) -> NetworkPolicy {
    let rules = |random: &mut Random| {
        let some = !random.once_in(3);
        some.then(|| several(random, 3, network_rule))
    };
    let types = |random: &mut Random| -> BTreeSet<Direction> {
        let directions = [Direction::Ingress, Direction::Egress];
        directions.into_iter().filter(|_| random.once_in(2)).collect()
    };
    NetworkPolicy {
        pods: Ok(apps(random)),
        types: random.once_in(2).then(|| Ok(types(random))),
        ingress: rules(random),
        egress: rules(random),
        existing: Ok(Existing::Cut),
    }
}

fn cluster_rule(random: &mut Random, direction: Direction) -> ClusterRule {
    let peer = |random: &mut Random| match random.below(if direction == Direction::Egress { 5 } else { 3 }) {
        0 => ClusterPeer::Namespaces(teams(random)),
        3 => ClusterPeer::Networks(vec![
            random
                .pick(&["10.244.0.0/25", "fd00:10:244:1::/64", "0.0.0.0/0"])
                .unwrap()
                .parse()
                .unwrap(),
        ]),
        4 => ClusterPeer::Nodes(Selector::everything()),
        _ => ClusterPeer::Pods(PodSelection {
            namespaces: teams(random),
            pods: apps(random),
        }),
    };
    let port = |random: &mut Random| match random.below(3) {
        0 => ClusterPort::Named("http".into()),
        _ => ClusterPort::Numbers(protocol(random), numbers(random)),
    };
    let mut peers = several(random, 1, peer);
    peers.push(peer(random));
    let ports = several(random, 2, port);
    ClusterRule {
        name: String::new(),
        action: Ok(*random
            .pick(&[Action::Accept, Action::Deny, Action::Pass])
            .unwrap()),
        matches: Ok(ClusterMatch {
            peers,
            protocols: Some(ports).filter(|ports| !ports.is_empty()),
        }),
    }
}

fn cluster_policy(random: &mut Random) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        tier: Ok(*random.pick(&[Tier::Admin, Tier::Baseline]).unwrap()),
        priority: Ok(*random.pick(&[0, 5, 1000]).unwrap()),
        subject: Ok(PodSelection {
            namespaces: teams(random),
            pods: apps(random),
        }),
        ingress: several(random, 3, |random| cluster_rule(random, Direction::Ingress)),
        egress: several(random, 3, |random| cluster_rule(random, Direction::Egress)),
        unknown: Vec::new(),
        existing: Ok(Existing::Cut),
    }
}

/// Labels and port names change, too.
fn relabel(world: &mut World, random: &mut Random) {
    let pod = random.below(world.pods.len());
    let app = *random.pick(&["x", "y", "z"]).unwrap();
    let number = *random.pick(&[80, 81, 8080]).unwrap();
    let object = world.object(pod);
    object.labels.insert("app".into(), app.into());
    let ports = std::mem::take(&mut object.ports).into_iter();
    object.ports = ports
        .map(|named| podnet_core::cluster::NamedPort {
            port: port(number),
            ..named
        })
        .collect();
}

/// Each state follows the one before it, with flows that are established already.
#[test]
fn any_policies_are_enforced_as_the_oracle_judges_whatever_was_before() {
    let mut world = World::new();
    let seed = std::env::var(podnet_fuzz::SEED).map_or(7, |text| text.parse().unwrap());
    let mut random = Random::new(seed);
    for round in 0..ROUNDS {
        let namespaces = ["a", "b", "c"];
        world.lab.cluster.network_policies.clear();
        for index in 0..random.below(6) {
            let namespace = *random.pick(&namespaces).unwrap();
            let name = podnet_core::cluster::ObjectName::new(namespace, format!("policy{index}"));
            let policy = network_policy(&mut random);
            world.lab.cluster.network_policies.insert(name, Ok(policy));
        }
        world.lab.cluster.cluster_network_policies.clear();
        for index in 0..random.below(3) {
            let policy = cluster_policy(&mut random);
            world
                .lab
                .cluster
                .cluster_network_policies
                .insert(format!("policy{index}"), Ok(policy));
        }
        relabel(&mut world, &mut random);
        world.apply();
        println!("round {round} of seed {seed}");
        world.agrees();
    }
}
