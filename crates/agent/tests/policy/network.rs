//! The fine points of NetworkPolicy v1, each a test: manifests in, verdicts out.

use podnet_core::cluster::Namespace;
use podnet_core::policy::PolicyRef;

use crate::world::World;

#[test]
fn an_ip_block_matches_pods_too_and_except_cuts_a_hole_that_another_rule_may_fill() {
    let block = "{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}";
    let world = World::with(&[&format!("{{podSelector: {{}}, ingress: [{{from: [{block}]}}]}}")]);
    // Node 1 has x and z, node 2 has y.
    let v4 = |pod: &str| match pod {
        "x" => "10.244.1.12",
        _ => "10.244.2.13",
    };
    world.allows(&[&format!("{} -> 10.244.1.2 tcp 80", v4("x"))]);
    world.denies(&[
        &format!("{} -> 10.244.1.2 tcp 80", v4("y")),
        "203.0.113.7 -> 10.244.1.2 tcp 80",
        "fd00:10:244:1::12 -> fd00:10:244:1::2 tcp 80",
    ]);
    let filled = format!(
        "{{podSelector: {{}}, ingress: [{{from: [{block}]}}, {{from: [{{ipBlock: {{cidr: 10.244.2.13/32}}}}]}}]}}"
    );
    World::with(&[&filled]).allows(&[&format!("{} -> 10.244.1.2 tcp 80", v4("y"))]);
}

#[test]
fn a_named_port_is_resolved_per_destination_pod_and_a_missing_protocol_is_tcp() {
    let world = World::with(&["{podSelector: {}, ingress: [{ports: [{port: serve}]}]}"]);
    world.allows(&["b/x -> a/x tcp 80", "b/x -> a/z tcp 81"]);
    world.denies(&[
        "b/x -> a/x tcp 81",
        "b/x -> a/z tcp 80",
        "b/x -> a/x udp 80",
        "b/x -> a/x udp 53",
    ]);
    let world = World::with(&[
        "{podSelector: {matchLabels: {pod: x}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], \
         ports: [{port: serve}, {port: dns, protocol: UDP}]}]}",
    ]);
    world.allows(&["a/x -> b/x tcp 80", "a/x -> b/z tcp 81", "a/x -> b/z udp 53"]);
    world.denies(&["a/x -> b/x tcp 81", "a/x -> b/z tcp 80", "a/x -> b/z tcp 53"]);
}

#[test]
fn an_end_port_needs_a_number_that_is_not_above_it() {
    let of = |ports: &str| World::with(&[&format!("{{podSelector: {{}}, ingress: [{{ports: [{ports}]}}]}}")]);
    let world = of("{port: 80, endPort: 90}");
    world.allows(&["b/x -> a/x tcp 80 85 90"]);
    world.denies(&["b/x -> a/x tcp 79 91"]);
    for (ports, why) in [
        (
            "{port: 80, endPort: 79}",
            "spec.ingress[0].ports[0].endPort: 79 is below the first port, 80",
        ),
        (
            "{endPort: 90}",
            "spec.ingress[0].ports[0].endPort: it needs a port to begin with",
        ),
        (
            "{port: serve, endPort: 90}",
            "spec.ingress[0].ports[0].endPort: it does not go with a port's name",
        ),
    ] {
        let world = of(ports);
        world.denies(&["b/x -> a/x tcp 79 80 81 90"]);
        let expected = format!("NetworkPolicy a/p0: {why}; this port matches nothing");
        assert_eq!(world.problems(), [expected]);
    }
}

#[test]
fn a_policy_for_one_protocol_isolates_for_the_others() {
    for protocol in ["SCTP", "UDP"] {
        let world = World::with(&[&format!(
            "{{podSelector: {{}}, ingress: [{{ports: [{{port: 80, protocol: {protocol}}}]}}]}}"
        )]);
        world.allows(&[&format!("b/x -> a/x {} 80", protocol.to_lowercase())]);
        world.denies(&["b/x -> a/x tcp 80", "b/x -> a/x icmp"]);
    }
}

#[test]
fn missing_policy_types_are_ingress_always_and_egress_if_there_is_a_section() {
    let world = World::with(&["{podSelector: {}}"]);
    world.denies(&["b/x -> a/x tcp 80"]);
    world.allows(&["a/x -> b/x tcp 80"]);
    let world = World::with(&["{podSelector: {}, egress: [{ports: [{port: 53, protocol: UDP}]}]}"]);
    world.denies(&["b/x -> a/x tcp 80", "a/x -> b/x tcp 80"]);
    world.allows(&["a/x -> b/x udp 53"]);
    let world =
        World::with(&["{podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}"]);
    world.denies(&["a/x -> b/x tcp 80"]);
    world.allows(&["b/x -> a/x tcp 80"]);
}

#[test]
fn empty_is_not_absent() {
    // An empty selector is every pod of the namespace, and of no other.
    let world = World::with(&["{podSelector: {}, ingress: []}"]);
    world.denies(&["b/x -> a/x tcp 80", "b/x -> a/y tcp 80"]);
    world.allows(&["a/x -> b/x tcp 80"]);
    // An empty list of peers is every peer, an empty list of ports every port.
    for rule in ["{}", "{from: [], ports: []}"] {
        World::with(&[&format!("{{podSelector: {{}}, ingress: [{rule}]}}")]).allows(&[
            "b/x -> a/x tcp 80",
            "203.0.113.7 -> 10.244.1.2 sctp 9",
            "b/x -> a/x icmp",
        ]);
    }
    // A peer that selects everything is every pod, and nobody else.
    let world = World::with(&["{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"]);
    world.allows(&["c/x -> a/x tcp 80"]);
    world.denies(&["203.0.113.7 -> 10.244.1.2 tcp 80"]);
}

#[test]
fn two_selectors_in_a_peer_are_both_needed_and_of_two_peers_one_is() {
    let of = |from: &str| World::with(&[&format!("{{podSelector: {{}}, ingress: [{{from: [{from}]}}]}}")]);
    let namespace = "namespaceSelector: {matchLabels: {ns: b}}";
    let pod = "podSelector: {matchLabels: {pod: x}}";
    let both = of(&format!("{{{namespace}, {pod}}}"));
    both.allows(&["b/x -> a/z tcp 80"]);
    both.denies(&["b/y -> a/z tcp 80", "a/x -> a/z tcp 80", "c/x -> a/z tcp 80"]);
    let either = of(&format!("{{{namespace}}}, {{{pod}}}"));
    either.allows(&["b/x -> a/z tcp 80", "b/y -> a/z tcp 80", "a/x -> a/z tcp 80"]);
    // A selector of pods alone is about the policy's own namespace.
    either.denies(&["c/x -> a/z tcp 80", "a/y -> a/z tcp 80"]);
}

#[test]
fn every_namespace_has_its_name_as_a_label() {
    let from = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}}";
    let world = World::with(&[&format!("{{podSelector: {{}}, ingress: [{{from: [{from}]}}]}}")]);
    world.allows(&["b/x -> a/x tcp 80"]);
    world.denies(&["c/x -> a/x tcp 80"]);
    // Even before its object is known.
    let world = world.edit(|cluster| _ = cluster.namespaces.remove("b"));
    world.allows(&["b/x -> a/x tcp 80"]);
}

#[test]
fn labels_and_policies_that_change_take_effect() {
    let spec = "{podSelector: {matchLabels: {pod: x}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}, \
                podSelector: {matchLabels: {pod: y}}}]}]}";
    let world = World::with(&[spec]);
    world.denies(&["b/x -> a/x tcp 80"]);
    let world = world.edit(|cluster| {
        let mut pod = World::pod(cluster, "b/x");
        pod.labels.insert("pod".into(), "y".into());
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    });
    world.allows(&["b/x -> a/x tcp 80"]);
    let world = world.edit(|cluster| {
        let namespace = Namespace::new("b", [("ns".to_owned(), "d".to_owned())].into());
        cluster.namespaces.insert("b".into(), namespace);
    });
    world.denies(&["b/x -> a/x tcp 80", "b/y -> a/x tcp 80"]);
    let world = world.edit(|cluster| {
        let mut pod = World::pod(cluster, "a/x");
        pod.labels.clear();
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    });
    world.allows(&["b/x -> a/x tcp 80"]);
    world
        .edit(|cluster| cluster.network_policies.clear())
        .allows(&["b/y -> a/x tcp 80"]);
}

#[test]
fn a_pod_and_its_own_node_always_reach_each_other() {
    let world = World::with(&["{podSelector: {}, policyTypes: [Ingress, Egress]}"]);
    // All its addresses, and so the kubelet's probes.
    world.allows(&[
        "node1 -> a/x tcp 80",
        "a/x -> node1 tcp 10250",
        "198.51.100.1 -> 10.244.1.2 tcp 80",
    ]);
    world.denies(&[
        "node2 -> a/x tcp 80",
        "a/x -> node2 tcp 10250",
        "198.51.100.2 -> 10.244.1.2 tcp 80",
    ]);
    let own = &world.state("node1").policy.own_node;
    assert_eq!(own.len(), 3, "{own:?}");
}

#[test]
fn a_pod_on_its_nodes_network_is_not_isolated_and_is_nobody_to_selectors() {
    let world = World::with(&["{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"]);
    world.denies(&["b/x -> a/y tcp 80"]);
    let world = world.edit(|cluster| {
        let mut pod = World::pod(cluster, "a/y");
        pod.host_network = true;
        pod.addresses = vec!["172.30.0.12".parse().unwrap(), "fd30::12".parse().unwrap()];
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    });
    world.allows(&["b/x -> a/y tcp 80"]);
    // a/x is on the other node.
    world.denies(&["a/y -> a/x tcp 80"]);
}

#[test]
fn a_pod_always_reaches_itself() {
    let world = World::with(&["{podSelector: {}, policyTypes: [Ingress, Egress]}"]);
    world.allows(&["a/x -> a/x tcp 80", "a/x -> a/x icmp", "a/x -> a/x svc tcp 80"]);
    world.denies(&["a/y -> a/x tcp 80"]);
}

#[test]
fn through_a_service_the_pods_addresses_are_judged() {
    let spec =
        "{podSelector: {matchLabels: {pod: y}}, ingress: [{from: [{podSelector: {matchLabels: {pod: x}}}]}]}";
    let world = World::with(&[spec]);
    world.allows(&["a/x -> a/y svc tcp 80"]);
    world.denies(&["a/z -> a/y svc tcp 80", "b/x -> a/y svc tcp 80"]);
}

#[test]
fn existing_connections_are_cut_unless_the_policy_says_keep() {
    let policy = |name: &str, annotation: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: a{annotation}}}\n\
             spec: {{podSelector: {{}}}}\n"
        )
    };
    let keep = ", annotations: {podnet.io/existing-connections: keep}";
    let odd = ", annotations: {podnet.io/existing-connections: maybe}";
    let world = World::new(&[policy("cuts", ""), policy("keeps", keep), policy("odd", odd)].concat());
    let kept = &world.state("node1").policy.keep_existing;
    let names: Vec<String> = kept.iter().map(PolicyRef::to_string).collect();
    assert_eq!(names, ["NetworkPolicy a/keeps"]);
    assert_eq!(
        world.problems(),
        [
            "NetworkPolicy a/odd: metadata.annotations[podnet.io/existing-connections]: \"maybe\" is neither cut nor \
             keep; existing connections are cut"
        ]
    );
}

#[test]
fn a_pod_that_has_ended_leaves_every_set_and_one_that_is_ending_stays() {
    let world =
        World::with(&["{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}"]);
    world.allows(&["b/x -> a/x tcp 80"]);
    let world = world.edit(|cluster| {
        let mut ended = World::pod(cluster, "b/x");
        let mut heir = World::pod(cluster, "c/x");
        ended.ended = true;
        heir.addresses.clone_from(&ended.addresses);
        for pod in [ended, heir] {
            cluster.pods.insert(pod.name.clone(), Ok(pod));
        }
    });
    // Its address is another pod's now, which was given no such right.
    world.denies(&["c/x -> a/x tcp 80"]);
    let world = World::new(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: going, namespace: b, labels: {pod: x}, \
         deletionTimestamp: '2026-01-01T00:00:00Z'}\nspec: {nodeName: node2, containers: []}\n\
         status: {phase: Running, podIPs: [{ip: 10.244.2.99}, {ip: 'fd00:10:244:2::99'}]}\n",
    )
    .and(World::with(&[
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: b}}}]}]}",
    ]));
    world.allows(&["b/going -> a/x tcp 80"]);
}

#[test]
fn icmp_needs_a_rule_without_ports() {
    let of = |rule: &str| World::with(&[&format!("{{podSelector: {{}}, ingress: [{rule}]}}")]);
    of("{ports: [{protocol: TCP}]}").denies(&["b/x -> a/x icmp"]);
    of("{from: [{podSelector: {}}]}").denies(&["b/x -> a/x icmp"]);
    of("{from: [{namespaceSelector: {}}]}").allows(&["b/x -> a/x icmp"]);
}

#[test]
fn isolation_is_in_the_same_state_as_what_it_accepts() {
    let world = World::with(&["{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"]);
    let policy = world.state("node1").policy;
    for rules in policy.rules.values() {
        let isolation = rules.ingress.network.as_ref().unwrap();
        assert_eq!((isolation.by.len(), isolation.rules.len()), (1, 1));
        assert!(rules.egress.network.is_none());
    }
    assert_eq!(policy.pods.len(), 2, "x and z of namespace a are on node1");
}

#[test]
fn a_pod_has_its_rules_before_it_has_an_address() {
    let world = World::with(&["{podSelector: {}}"]).edit(|cluster| {
        let mut pod = World::pod(cluster, "a/x");
        pod.addresses.clear();
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    });
    let policy = world.state("node1").policy;
    let name = podnet_core::cluster::ObjectName::new("a", "x");
    assert!(policy.rules_of(&name).unwrap().ingress.network.is_some());
    assert!(!world.state("node2").policy.pods.contains_key(&name));
}

#[test]
fn both_families_of_a_peer_are_matched() {
    let world =
        World::with(&["{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: x}}}]}]}"]);
    world.allows(&["a/x -> a/y tcp 80"]);
    world.denies(&["a/z -> a/y tcp 80"]);
    let state = world.state("node2").policy;
    let members: Vec<_> = state
        .selections
        .keys()
        .flat_map(|selection| state.members(selection))
        .collect();
    assert_eq!(members.iter().filter(|address| address.is_ipv4()).count(), 1);
    assert_eq!(members.iter().filter(|address| address.is_ipv6()).count(), 1);
}

#[test]
fn several_policies_add_up() {
    let world = World::with(&[
        "{podSelector: {}}",
        "{podSelector: {matchLabels: {pod: x}}, ingress: [{from: [{podSelector: {matchLabels: {pod: y}}}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}",
    ]);
    world.allows(&["a/y -> a/x tcp 80", "b/x -> a/x tcp 81", "b/x -> a/z tcp 81"]);
    world.denies(&["a/z -> a/x tcp 80", "a/y -> a/z tcp 80"]);
}

#[test]
fn what_cannot_be_read_fails_closed_there_and_nowhere_else() {
    let good = "{podSelector: {matchLabels: {pod: y}}}";
    for (spec, why) in [
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.12/16}}]}]}",
            "spec.ingress[0].from[0].ipBlock: 10.244.1.12/16 has bits set beyond its prefix; write 10.244.0.0/16; \
             this peer matches nobody",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.0.0.0/8]}}]}]}",
            "spec.ingress[0].from[0].ipBlock: except 10.0.0.0/8 is no part of 10.244.0.0/16; this peer matches nobody",
        ),
        (
            "{podSelector: {}, ingress: [{from: [{}]}]}",
            "spec.ingress[0].from[0]: none of podSelector, namespaceSelector and ipBlock, or a kind of peer that is \
             not known; this peer matches nobody",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
            "spec.ingress[0].ports[0].protocol: protocol \"ICMP\": supported are TCP, UDP and SCTP; this port \
             matches nothing",
        ),
        (
            "{podSelector: {matchExpressions: [{key: pod, operator: Like, values: [y]}]}}",
            "spec.podSelector: operator \"Like\" is none of In, NotIn, Exists and DoesNotExist; it isolates every pod \
             of its namespace",
        ),
        (
            "{podSelector: {}, policyTypes: [Sideways], ingress: [], egress: [{ports: [{port: 1}]}]}",
            "spec.policyTypes: \"Sideways\" is neither Ingress nor Egress; it isolates its pods in both directions",
        ),
    ] {
        let world = World::with(&[spec, good]);
        world.denies(&["b/x -> a/x tcp 80", "b/x -> a/y tcp 80", "b/x -> a/x icmp"]);
        world.allows(&["b/x -> c/x tcp 80"]);
        assert_eq!(world.problems(), [format!("NetworkPolicy a/p0: {why}")]);
    }
    // What else the same policy says goes on.
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nowhere}}, {namespaceSelector: {}}]}]}";
    World::with(&[spec]).allows(&["b/x -> a/x tcp 80"]);
}
