//! What ClusterNetworkPolicies mean, statement by statement.

use std::net::{SocketAddr, TcpStream};

use podnet_core::cluster::{
    Action, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, Existing, Family,
    NetworkPolicy, PodSelection, Protocol, Selector, Tier, Unread,
};

use super::{Who, World, policy, range, selector};

fn clusterwide(tier: Tier, priority: u16, pods: &str) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        tier: Ok(tier),
        priority: Ok(priority),
        subject: Ok(selection("", pods)),
        ingress: Vec::new(),
        egress: Vec::new(),
        unknown: Vec::new(),
        existing: Ok(Existing::Cut),
    }
}

fn selection(namespaces: &str, pods: &str) -> PodSelection {
    PodSelection {
        namespaces: selector(namespaces),
        pods: selector(pods),
    }
}

fn rule(action: Action, peers: Vec<ClusterPeer>, ports: &[(u16, u16)]) -> ClusterRule {
    let numbers = |(first, last): &(u16, u16)| ClusterPort::Numbers(Protocol::Tcp, range(*first, *last));
    let protocols: Vec<_> = ports.iter().map(numbers).collect();
    ClusterRule {
        name: String::new(),
        action: Ok(action),
        matches: Ok(ClusterMatch {
            peers,
            protocols: Some(protocols).filter(|protocols| !protocols.is_empty()),
        }),
    }
}

fn everybody() -> Vec<ClusterPeer> {
    vec![ClusterPeer::Namespaces(Selector::everything())]
}

fn ingress(tier: Tier, priority: u16, rules: Vec<ClusterRule>) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        ingress: rules,
        ..clusterwide(tier, priority, "app=x")
    }
}

fn egress(tier: Tier, rules: Vec<ClusterRule>) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        egress: rules,
        ..clusterwide(tier, 0, "app=x")
    }
}

#[test]
fn admin_comes_before_network_policies_and_baseline_after_them() {
    let mut world = World::of(&["a"], 2);
    // No implicit isolation: what no rule matches falls through.
    world.set_clusterwide([ingress(
        Tier::Admin,
        0,
        vec![rule(Action::Deny, everybody(), &[(80, 80)])],
    )]);
    world.reach(Who::Pod(1), 0, |probe| {
        probe.protocol == Protocol::Udp || probe.port != 80
    });
    // Admin's Accept opens what a NetworkPolicy closes, Pass leaves it to that one.
    world.set([("a", policy("app=x"))]);
    for (action, opens) in [(Action::Accept, true), (Action::Pass, false)] {
        world.set_clusterwide([ingress(
            Tier::Admin,
            0,
            vec![rule(action, everybody(), &[(80, 80)])],
        )]);
        world.reach(Who::Pod(1), 0, |probe| {
            opens && probe.protocol == Protocol::Tcp && probe.port == 80
        });
    }
    // Baseline decides nothing where a NetworkPolicy isolates, and what is left where none does.
    let closed = || ingress(Tier::Baseline, 0, vec![rule(Action::Deny, everybody(), &[])]);
    let open = NetworkPolicy {
        ingress: Some(vec![super::rule(vec![], vec![])]),
        ..policy("app=x")
    };
    world.set([("a", open)]);
    world.set_clusterwide([closed()]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.set([]);
    world.reach(Who::Pod(1), 0, |_| false);
    let passed = ingress(
        Tier::Admin,
        0,
        vec![
            rule(Action::Pass, everybody(), &[(80, 80)]),
            rule(Action::Accept, everybody(), &[]),
        ],
    );
    world.set_clusterwide([passed, closed()]);
    world.reach(Who::Pod(1), 0, |probe| {
        probe.protocol == Protocol::Udp || probe.port != 80
    });
}

#[test]
fn the_lower_priority_comes_first_and_within_a_policy_the_first_rule_decides() {
    let mut world = World::of(&["a"], 2);
    let deny = |priority| ingress(Tier::Admin, priority, vec![rule(Action::Deny, everybody(), &[])]);
    let accept = |priority| {
        ingress(
            Tier::Admin,
            priority,
            vec![rule(Action::Accept, everybody(), &[])],
        )
    };
    world.set_clusterwide([deny(1000), accept(0)]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.set_clusterwide([deny(0), accept(1000)]);
    world.reach(Who::Pod(1), 0, |_| false);
    let rules = vec![
        rule(Action::Accept, everybody(), &[(80, 81)]),
        rule(Action::Deny, everybody(), &[]),
    ];
    world.set_clusterwide([ingress(Tier::Admin, 0, rules)]);
    world.reach(Who::Pod(1), 0, |probe| {
        probe.protocol == Protocol::Tcp && probe.port <= 81
    });
}

#[test]
fn peers_are_namespaces_pods_networks_and_nodes_and_the_whole_range_includes_pods() {
    let mut world = World::of(&["a", "b"], 2);
    let [a0, a1, b0, b1] =
        [("a", 0), ("a", 1), ("b", 0), ("b", 1)].map(|(space, name)| world.pod(space, name));
    let to_b = vec![ClusterPeer::Namespaces(selector("team=b"))];
    world.set_clusterwide([egress(Tier::Admin, vec![rule(Action::Deny, to_b, &[])])]);
    for (to, allowed) in [(a1, true), (b0, false), (b1, false)] {
        world.reach(Who::Pod(a0), to, |_| allowed);
    }
    let to_y = vec![ClusterPeer::Pods(selection("team=b", "app=y"))];
    world.set_clusterwide([egress(Tier::Admin, vec![rule(Action::Deny, to_y, &[])])]);
    for (to, allowed) in [(a1, true), (b0, true), (b1, false)] {
        world.reach(Who::Pod(a0), to, |_| allowed);
    }
    let all_v4 = vec![ClusterPeer::Networks(vec!["0.0.0.0/0".parse().unwrap()])];
    world.set_clusterwide([egress(Tier::Admin, vec![rule(Action::Deny, all_v4, &[])])]);
    world.reach(Who::Pod(a0), b1, |probe| probe.family == Family::V6);
    // An explicit rule about nodes holds for a pod's own node, too.
    world.lab.nodes.iter().for_each(|node| node.serve("node", 9000));
    let nodes = || vec![ClusterPeer::Nodes(Selector::everything())];
    for action in [Action::Accept, Action::Deny] {
        world.set_clusterwide([egress(Tier::Admin, vec![rule(action, nodes(), &[])])]);
        for node in [0, 1] {
            let to = SocketAddr::new(world.address(Who::Node(node), Family::V6), 9000);
            let patience = std::time::Duration::from_secs(if action == Action::Accept { 20 } else { 1 });
            let reached = world.pods[a0]
                .machine
                .run(|| TcpStream::connect_timeout(&to, patience).is_ok());
            assert_eq!(reached, action == Action::Accept, "{to}");
        }
        world.reach(Who::Node(0), a0, |_| true);
    }
}

#[test]
fn domain_names_accept_nothing_before_they_are_learnt() {
    let mut world = World::of(&["a"], 2);
    let name = vec![ClusterPeer::DomainNames(vec!["www.example.com".parse().unwrap()])];
    let rules = vec![
        rule(Action::Accept, name, &[]),
        rule(Action::Deny, everybody(), &[]),
    ];
    world.set_clusterwide([egress(Tier::Admin, rules)]);
    world.reach(Who::Pod(0), 1, |_| false);
}

#[test]
fn what_is_not_known_fails_closed() {
    let mut world = World::of(&["a"], 2);
    for (action, allowed) in [
        (Action::Accept, false),
        (Action::Deny, false),
        (Action::Pass, false),
    ] {
        let unknown = ClusterRule {
            name: String::new(),
            action: Ok(action),
            matches: Err(Unread("spec.ingress[0].from[0]: this peer is not known".into())),
        };
        world.set_clusterwide([ingress(
            Tier::Admin,
            0,
            vec![unknown, rule(Action::Deny, everybody(), &[])],
        )]);
        world.reach(Who::Pod(1), 0, |_| allowed);
    }
}

#[test]
fn a_pods_own_address_is_not_subject_to_it_but_its_service_is() {
    let mut world = World::of(&["a"], 1);
    let host = world.pods[0].host;
    world.lab.service(1, &[(0, host)]);
    world.set_clusterwide([ingress(
        Tier::Admin,
        0,
        vec![rule(Action::Deny, everybody(), &[])],
    )]);
    world.reach(Who::Pod(0), 0, |_| true);
    let to: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let reaches = |patience| {
        let patience = std::time::Duration::from_secs(patience);
        world.pods[0]
            .machine
            .run(|| TcpStream::connect_timeout(&to, patience).is_ok())
    };
    assert!(!reaches(1));
    world.set_clusterwide([]);
    let patience = super::PATIENCE;
    assert!(
        world.pods[0]
            .machine
            .run(|| TcpStream::connect_timeout(&to, patience).is_ok())
    );
}
