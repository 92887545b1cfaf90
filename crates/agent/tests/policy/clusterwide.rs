//! The fine points of ClusterNetworkPolicy, each a test: manifests in, verdicts out.

use podnet_core::cluster::Protocol;
use podnet_core::flow::{Flow, Traffic};
use podnet_core::policy::judge::Reason;

use crate::world::World;

const ALL: &str = "subject: {namespaces: {}}";
const FROM_B: &str = "from: [{namespaces: {matchLabels: {ns: b}}}]";

/// A policy of a tier and a priority with these ingress rules for every pod.
fn ingress(tier: &str, priority: u16, rules: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, {ALL}, ingress: [{rules}]}}")
}

fn egress(tier: &str, priority: u16, rules: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, {ALL}, egress: [{rules}]}}")
}

#[test]
fn tiers_come_in_order_admin_network_baseline() {
    let admin = |action: &str| ingress("Admin", 1, &format!("{{action: {action}, {FROM_B}}}"));
    let baseline = |action: &str| ingress("Baseline", 1, &format!("{{action: {action}, {FROM_B}}}"));
    let isolated = || World::with(&["{podSelector: {}}"]);
    let open = || World::with(&["{podSelector: {}, ingress: [{}]}"]);
    // Admin has the last word either way.
    isolated()
        .and(World::with_cluster(&[&admin("Accept")]))
        .allows(&["b/x -> a/x tcp 80"]);
    open()
        .and(World::with_cluster(&[&admin("Deny")]))
        .denies(&["b/x -> a/x tcp 80"]);
    // A NetworkPolicy decides for its pods, whatever Baseline says; Baseline for the others.
    let world = isolated().and(World::with_cluster(&[&baseline("Accept")]));
    world.denies(&["b/x -> a/x tcp 80"]);
    let world = open().and(World::with_cluster(&[&baseline("Deny")]));
    world.allows(&["b/x -> a/x tcp 80"]);
    world.denies(&["b/x -> c/x tcp 80"]);
    // Pass leaves it to the next tier, past the rest of its own.
    let pass = ingress(
        "Admin",
        1,
        &format!("{{action: Pass, {FROM_B}}}, {{action: Deny, {FROM_B}}}"),
    );
    open()
        .and(World::with_cluster(&[&pass, &admin("Deny")]))
        .allows(&["b/x -> a/x tcp 80"]);
    isolated()
        .and(World::with_cluster(&[&pass]))
        .denies(&["b/x -> a/x tcp 80"]);
    let world = World::with_cluster(&[&pass, &baseline("Deny")]);
    world.denies(&["b/x -> a/x tcp 80"]);
}

#[test]
fn the_lower_priority_comes_first_and_of_one_priority_the_first_by_name() {
    let of = |priority, action: &str| ingress("Admin", priority, &format!("{{action: {action}, {FROM_B}}}"));
    World::with_cluster(&[&of(1000, "Deny"), &of(0, "Accept")]).allows(&["b/x -> a/x tcp 80"]);
    World::with_cluster(&[&of(0, "Deny"), &of(1000, "Accept")]).denies(&["b/x -> a/x tcp 80"]);
    World::with_cluster(&[&of(5, "Deny"), &of(5, "Accept")]).denies(&["b/x -> a/x tcp 80"]);
    // Within a policy the order of the rules is that of the list.
    let both = format!("{{action: Accept, {FROM_B}}}, {{action: Deny, {FROM_B}}}");
    World::with_cluster(&[&ingress("Admin", 1, &both)]).allows(&["b/x -> a/x tcp 80"]);
}

#[test]
fn it_isolates_nobody_by_itself() {
    let world = World::with_cluster(&[&ingress("Admin", 1, &format!("{{action: Accept, {FROM_B}}}"))]);
    world.allows(&[
        "b/x -> a/x tcp 80",
        "c/x -> a/x tcp 80",
        "a/x -> 203.0.113.7 tcp 80",
    ]);
    World::with_cluster(&[&format!("{{tier: Admin, priority: 1, {ALL}}}")]).allows(&["c/x -> a/x tcp 80"]);
}

#[test]
fn subjects_and_peers_are_pods_by_both_selectors() {
    let pods = "pods: {namespaceSelector: {matchLabels: {ns: a}}, podSelector: {matchLabels: {pod: x}}}";
    let world = World::with_cluster(&[&format!(
        "{{tier: Admin, priority: 1, subject: {{{pods}}}, ingress: [{{action: Deny, from: [{{pods: {{namespaceSelector: \
         {{}}, podSelector: {{matchLabels: {{pod: y}}}}}}}}]}}]}}"
    )]);
    world.denies(&["b/y -> a/x tcp 80"]);
    world.allows(&["b/x -> a/x tcp 80", "b/y -> a/z tcp 80", "b/y -> b/x tcp 80"]);
}

#[test]
fn networks_include_pods_and_icmp() {
    let world = World::with_cluster(&[&egress(
        "Admin",
        1,
        "{action: Deny, to: [{networks: ['0.0.0.0/0']}]}",
    )]);
    world.denies(&[
        "10.244.1.2 -> 10.244.1.12 tcp 80",
        "10.244.1.2 -> 203.0.113.7 udp 53",
        "10.244.1.2 -> 203.0.113.7 icmp",
    ]);
    world.allows(&["fd00:10:244:1::2 -> fd00:10:244:1::12 tcp 80"]);
}

#[test]
fn nodes_are_all_their_addresses() {
    let rule = "{action: Deny, to: [{nodes: {matchLabels: {zone: zone2}}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}";
    let world = World::with_cluster(&[&egress("Admin", 1, rule)]);
    world.denies(&["a/x -> node2 tcp 22", "10.244.1.2 -> 198.51.100.2 tcp 22"]);
    world.allows(&["a/x -> node1 tcp 22", "a/x -> node2 tcp 80", "a/x -> b/y tcp 22"]);
    // An explicit rule holds for the pod's own node too.
    world.denies(&["a/y -> node2 tcp 22"]);
}

#[test]
fn domain_names_are_for_accepting_and_a_star_is_one_or_more_labels() {
    let rules = "{action: Accept, to: [{domainNames: ['*.example.com', example.org]}]}, \
                 {action: Deny, to: [{networks: ['0.0.0.0/0']}]}";
    let world = World::with_cluster(&[&egress("Admin", 1, rules)]);
    let ask = |name: Option<&str>| {
        let port = Traffic::Port(Protocol::Tcp, 443.try_into().unwrap());
        let mut flow = Flow::new(
            "10.244.1.2".parse().unwrap(),
            "203.0.113.7".parse().unwrap(),
            port,
        );
        flow.names.extend(name.map(str::to_owned));
        world.ask(&flow).allowed()
    };
    for name in ["www.example.com", "a.b.EXAMPLE.com.", "example.org"] {
        assert!(ask(Some(name)), "{name}");
    }
    for name in [
        None,
        Some("example.com"),
        Some("www.example.org"),
        Some("my-example.com"),
    ] {
        assert!(!ask(name), "{name:?}");
    }
    let world = World::with_cluster(&[&egress(
        "Admin",
        1,
        "{action: Deny, to: [{domainNames: [example.com]}]}",
    )]);
    world.denies(&["a/x -> 203.0.113.7 tcp 80"]);
    assert_eq!(
        world.problems(),
        [
            "ClusterNetworkPolicy c0: spec.egress[0].to: domainNames are for Accept rules only; the rule denies everything"
        ]
    );
}

#[test]
fn ports_are_numbers_ranges_or_the_destinations_names() {
    let of = |protocols: &str| {
        let rule = format!("{{action: Deny, to: [{{namespaces: {{}}}}], protocols: [{protocols}]}}");
        World::with_cluster(&[&egress("Admin", 1, &rule)])
    };
    let world = of(
        "{tcp: {destinationPort: {number: 80}}}, {sctp: {destinationPort: {range: {start: 90, end: 92}}}}",
    );
    world.denies(&["a/x -> b/x tcp 80", "a/x -> b/x sctp 90 91 92"]);
    world.allows(&["a/x -> b/x udp 80", "a/x -> b/x sctp 89 93", "a/x -> b/x icmp"]);
    let world = of("{destinationNamedPort: serve}, {destinationNamedPort: dns}");
    world.denies(&["a/x -> b/x tcp 80", "a/x -> b/z tcp 81", "a/x -> b/z udp 53"]);
    world.allows(&["a/x -> b/x tcp 81", "a/x -> b/z tcp 80", "a/x -> b/z tcp 53"]);
    let rule = format!("{{action: Deny, {FROM_B}, protocols: [{{destinationNamedPort: serve}}]}}");
    let world = World::with_cluster(&[&ingress("Admin", 1, &rule)]);
    world.denies(&["b/x -> a/x tcp 80", "b/x -> a/z tcp 81"]);
    world.allows(&["b/x -> a/x tcp 81", "b/x -> a/z tcp 80"]);
}

#[test]
fn a_pod_through_a_service_to_itself_is_judged_and_to_its_own_address_is_not() {
    let all = "{action: Deny, from: [{namespaces: {}}]}";
    let world = World::with_cluster(&[&ingress("Admin", 1, all)]);
    world.allows(&["a/x -> a/x tcp 80"]);
    world.denies(&["a/x -> a/x svc tcp 80"]);
}

#[test]
fn its_own_node_always_reaches_a_pod() {
    // Even where a rule that cannot be read denies everything.
    let world = World::with_cluster(&[&ingress("Admin", 1, "{action: Deny, from: [{}]}")]);
    world.allows(&["node1 -> a/x tcp 80"]);
    world.denies(&["node2 -> a/x tcp 80", "b/x -> a/x tcp 80"]);
}

#[test]
fn an_unknown_peer_or_field_fails_closed() {
    let peers = "from: [{namespaces: {}}, {}]";
    let other = "from: [{namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}]";
    let strange = "from: [{services: {}}]";
    let field = "from: [{namespaces: {}}], ports: [{port: 80}]";
    let protocol = "from: [{namespaces: {}}], protocols: [{quic: {}}]";
    let bare = "from: [{namespaces: {}}], protocols: [{tcp: {}}]";
    let range =
        "from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 80, end: 80}}}}]";
    let nobody = "from: []";
    for part in [peers, other, strange, field, protocol, bare, range, nobody] {
        let of = |action: &str| {
            let policy = ingress("Admin", 1, &format!("{{action: {action}, {part}}}"));
            World::with_cluster(&[&policy])
        };
        // Accept matches nothing, so that the isolation stays.
        let accept = of("Accept").and(World::with(&["{podSelector: {}}"]));
        accept.denies(&["b/x -> a/x tcp 80"]);
        accept.allows(&["b/x -> c/x tcp 80"]);
        for action in ["Deny", "Pass"] {
            let world = of(action);
            world.denies(&[
                "b/x -> a/x tcp 80",
                "203.0.113.7 -> 10.244.1.2 udp 53",
                "b/x -> a/x icmp",
            ]);
            let problems = world.problems();
            assert!(
                problems.len() == 1 && problems[0].ends_with("; the rule denies everything"),
                "{problems:?}"
            );
        }
    }
    let odd = World::with_cluster(&[&ingress("Admin", 1, &format!("{{action: Log, {FROM_B}}}"))]);
    odd.denies(&["b/x -> a/x tcp 80"]);
    odd.allows(&["c/x -> a/x tcp 80"]);
}

#[test]
fn a_policy_whose_place_or_subject_is_unknown_is_taken_strictly() {
    let rules =
        format!("ingress: [{{action: Pass, {FROM_B}}}, {{action: Accept, from: [{{namespaces: {{}}}}]}}]");
    for head in [
        "tier: Platform, priority: 1, subject: {namespaces: {}}",
        "tier: Baseline, priority: 1001, subject: {namespaces: {}}",
        "tier: Baseline, priority: 1, subject: {}",
        "tier: Admin, priority: 1, subject: {namespaces: {}}, audit: true",
    ] {
        let world =
            World::with_cluster(&[&format!("{{{head}, {rules}}}")]).and(World::with(&["{podSelector: {}}"]));
        // What Pass would have left open is denied; what Accept would have opened stays closed.
        world.denies(&["b/x -> a/x tcp 80", "b/x -> c/x tcp 80", "c/x -> a/x tcp 80"]);
        world.allows(&["a/x -> c/x tcp 80"]);
        assert_eq!(world.problems().len(), 1, "{head}");
    }
}

#[test]
fn the_apis_limits_hold() {
    let peer = "{namespaces: {matchLabels: {ns: b}}}";
    let rule = |action: &str, peers: usize| {
        format!("{{action: {action}, from: [{}]}}", vec![peer; peers].join(", "))
    };
    World::with_cluster(&[&ingress("Admin", 1, &rule("Deny", 25))]).allows(&["c/x -> a/x tcp 80"]);
    World::with_cluster(&[&ingress("Admin", 1, &rule("Deny", 26))]).denies(&["c/x -> a/x tcp 80"]);
    let rules = |count| vec![rule("Pass", 1); count].join(", ");
    World::with_cluster(&[&ingress("Admin", 1, &rules(25))]).allows(&["c/x -> a/x tcp 80"]);
    World::with_cluster(&[&ingress("Admin", 1, &rules(26))]).denies(&["c/x -> a/x tcp 80"]);
    let named = "{action: Deny, to: [{networks: ['0.0.0.0/0']}], protocols: [{destinationNamedPort: serve}]}";
    let world = World::with_cluster(&[&egress("Admin", 1, named)]);
    world.denies(&["a/x -> b/x tcp 9"]);
    let bits = "{action: Accept, to: [{networks: ['10.0.0.1/8']}]}";
    let world = World::with_cluster(&[&egress("Admin", 1, bits)]);
    assert_eq!(
        world.problems(),
        [
            "ClusterNetworkPolicy c0: spec.egress[0].to[0].networks: 10.0.0.1/8 has bits set beyond its prefix; write \
             10.0.0.0/8; the rule matches nothing"
        ]
    );
}

#[test]
fn a_rules_name_is_in_what_decided() {
    let rule = format!("{{name: no b here, action: Deny, {FROM_B}}}");
    let world = World::with_cluster(&[&ingress("Admin", 1, &rule)]);
    for verdict in world.verdicts("b/x -> a/x tcp 80") {
        let decision = verdict.ingress.unwrap();
        assert!(matches!(&decision.reason, Reason::Rule(origin) if origin.name == "no b here"));
        assert_eq!(
            decision.reason.to_string(),
            "ClusterNetworkPolicy c0 ingress 0 \"no b here\""
        );
        assert_eq!(
            decision.steps[0].rule.to_string(),
            "deny pods{ns=b; *} ports any of ClusterNetworkPolicy c0 ingress 0 \"no b here\""
        );
    }
}
