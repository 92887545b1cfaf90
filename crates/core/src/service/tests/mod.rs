mod explain;

use std::num::NonZeroU16;

use super::*;
use crate::cluster::{
    AddressFamily, Endpoint, EndpointPort, EndpointSlice, External, ExternalPolicy, Family, Hints,
    InternalPolicy, Node, NodeName, ObjectName, PodRanges, Protocol, Service, ServicePort,
};
use crate::cluster::{Changes, Cluster};
use crate::state::Problem;

fn compute(
    cluster: &Cluster,
    me: &NodeName,
    pods: BTreeSet<IpNet>,
    problems: &mut Vec<Problem>,
) -> Arc<ServiceState> {
    let mut ledger = Ledger::default();
    let ranges = super::ranges::compute(cluster, problems);
    let state = ledger.update(cluster, me, (&pods, ranges), [Changes::All, Changes::All]);
    problems.extend(ledger.problems());
    problems.sort();
    state
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn service(address: &str, policy: InternalPolicy) -> Service {
    let ports = vec![ServicePort::new("http", Protocol::Tcp, port(80))];
    let mut service = Service::new(vec![address.parse().unwrap()], ports).unwrap();
    service.internal_policy = policy;
    service
}

/// `(address, node, conditions)`, conditions of `r`eady, `s`erving, `t`erminating.
fn slice(of: &str, number: u16, endpoints: &[(&str, &str, &str)]) -> EndpointSlice {
    let ports = vec![EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: Some(port(number)),
    }];
    let endpoints = endpoints.iter().map(|(address, node, conditions)| Endpoint {
        hostname: None,
        hints: Hints::default(),
        address: address.parse().unwrap(),
        ready: conditions.contains('r'),
        serving: conditions.contains('s'),
        terminating: conditions.contains('t'),
        node: Some(NodeName::new(*node).unwrap()),
    });
    EndpointSlice::new(
        Some(name(of)),
        AddressFamily::Ip(Family::V4),
        ports,
        endpoints.collect(),
    )
    .unwrap()
}

fn backend(policy: InternalPolicy, slices: Vec<EndpointSlice>) -> String {
    let mut cluster = Cluster::default();
    cluster
        .services
        .insert(name("web"), Ok(service("10.96.0.7", policy)));
    for (index, slice) in slices.into_iter().enumerate() {
        cluster.slices.insert(name(&format!("web-{index}")), Ok(slice));
    }
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
    state.frontends.values().next().unwrap().to_string()
}

#[test]
fn maglev_hashing_is_for_external_addresses_and_node_ports() {
    let mut service = outer(ExternalPolicy::Cluster);
    service.external.algorithm = Algorithm::Maglev;
    let ready = slice("web", 8080, &[("10.244.0.2", "node1", "rs")]);
    let cluster = cluster_of(vec![("web", service)], vec![ready]);
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
    for (frontend, entry) in &state.frontends {
        let is_internal = frontend.address.to_string() == "10.96.0.7";
        assert_eq!(entry.algorithm == Algorithm::Random, is_internal, "{frontend}");
    }
    assert!(
        state
            .node_ports
            .values()
            .all(|entry| entry.algorithm == Algorithm::Maglev)
    );
}

#[test]
fn ready_endpoints_of_all_slices_are_merged_each_with_its_own_port() {
    let slices = vec![
        slice(
            "web",
            8080,
            &[("10.244.1.2", "node2", "rs"), ("10.244.0.2", "node1", "rs")],
        ),
        slice(
            "web",
            9090,
            &[("10.244.2.2", "node3", "rs"), ("10.244.2.3", "node3", "")],
        ),
        slice("other", 8080, &[("10.244.9.9", "node3", "rs")]),
    ];
    let backend = backend(InternalPolicy::Cluster, slices);
    assert_eq!(backend, "to 10.244.0.2:8080 10.244.1.2:8080 10.244.2.2:9090");
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready() {
    let ending = ("10.244.1.2", "node2", "st");
    let with_ready = vec![slice("web", 8080, &[ending, ("10.244.0.2", "node1", "rs")])];
    assert_eq!(
        backend(InternalPolicy::Cluster, with_ready),
        "to 10.244.0.2:8080 (draining 10.244.1.2:8080)"
    );
    assert_eq!(
        backend(InternalPolicy::Cluster, vec![slice("web", 8080, &[ending])]),
        "to 10.244.1.2:8080"
    );
    let gone = vec![slice("web", 8080, &[("10.244.1.2", "node2", "t")])];
    assert_eq!(backend(InternalPolicy::Cluster, gone), "refuse");
}

#[test]
fn local_policy_takes_this_nodes_endpoints_or_drops() {
    let there = ("10.244.1.2", "node2", "rs");
    let here = ("10.244.0.2", "node1", "rs");
    assert_eq!(
        backend(InternalPolicy::Local, vec![slice("web", 80, &[there, here])]),
        "to 10.244.0.2:80 (draining 10.244.1.2:80)"
    );
    assert_eq!(
        backend(InternalPolicy::Local, vec![slice("web", 80, &[there])]),
        "drop"
    );
    assert_eq!(backend(InternalPolicy::Local, vec![]), "refuse");
}

#[test]
fn of_two_services_with_one_address_the_first_by_name_has_it() {
    let mut cluster = Cluster::default();
    cluster
        .services
        .insert(name("b"), Ok(service("10.96.0.7", InternalPolicy::Cluster)));
    cluster
        .services
        .insert(name("a"), Ok(service("10.96.0.7", InternalPolicy::Cluster)));
    cluster
        .slices
        .insert(name("a-1"), Ok(slice("a", 80, &[("10.244.0.2", "node1", "rs")])));
    let mut problems = Vec::new();
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut problems);
    assert_eq!(
        state.frontends.values().next().unwrap().to_string(),
        "to 10.244.0.2:80"
    );
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "Service default/b: its cluster IP 10.96.0.7 belongs to service default/a; it is not served"
    );
}

/// Clients stay with `web` for an hour, which is reached by node port 30080, by 203.0.113.7 and, from 192.0.2.0/24 only, by
/// 198.51.100.7.
fn outer(policy: ExternalPolicy) -> Service {
    let ports = vec![ServicePort {
        node_port: Some(port(30080)),
        ..ServicePort::new("http", Protocol::Tcp, port(80))
    }];
    let mut service = Service::new(vec!["10.96.0.7".parse().unwrap()], ports).unwrap();
    service.affinity = Affinity::ClientIp { seconds: 3600 };
    service.external = External {
        ips: vec!["203.0.113.7".parse().unwrap()],
        load_balancer: vec!["198.51.100.7".parse().unwrap()],
        sources: Some(["192.0.2.0/24".parse().unwrap()].into()),
        policy,
        health_check: Some(port(32000)),
        ..External::default()
    };
    service
}

fn cluster_of(services: Vec<(&str, Service)>, slices: Vec<EndpointSlice>) -> Cluster {
    let mut cluster = Cluster::default();
    cluster.config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    for (node, zone) in [("node1", "a"), ("node2", "b")] {
        let node_name = NodeName::new(node).unwrap();
        let mut node = Node::new(node_name.clone(), &[], PodRanges::default());
        node.labels
            .insert("topology.kubernetes.io/zone".into(), zone.into());
        cluster.nodes.insert(node_name, Ok(node));
    }
    for (service, object) in services {
        cluster.services.insert(name(service), Ok(object));
    }
    for (index, slice) in slices.into_iter().enumerate() {
        cluster.slices.insert(name(&format!("slice-{index}")), Ok(slice));
    }
    cluster
}

fn show(cluster: &Cluster) -> String {
    let pods = ["10.244.0.0/24".parse().unwrap()].into();
    let mut problems = Vec::new();
    let state = compute(cluster, &me(), pods, &mut problems).to_string();
    problems
        .into_iter()
        .fold(state, |text, problem| format!("{text}problem {problem}\n"))
}

const HERE: (&str, &str, &str) = ("10.244.0.2", "node1", "rs");
const THERE: (&str, &str, &str) = ("10.244.1.2", "node2", "rs");

#[test]
fn under_external_policy_local_those_outside_get_this_nodes_endpoints_and_those_inside_all() {
    let cluster = cluster_of(
        vec![("web", outer(ExternalPolicy::Local))],
        vec![slice("web", 8080, &[HERE, THERE])],
    );
    insta::assert_snapshot!(show(&cluster), @r"
    service range 10.96.0.0/16
    inside 10.244.0.0/24
    cluster ip 10.96.0.7
    service tcp 10.96.0.7:80 to 10.244.0.2:8080 10.244.1.2:8080; clients stay for 3600 s
    service tcp 198.51.100.7:80 to 10.244.0.2:8080 10.244.1.2:8080; from outside to 10.244.0.2:8080 (draining 10.244.1.2:8080); only from 192.0.2.0/24; clients stay for 3600 s
    service tcp 203.0.113.7:80 to 10.244.0.2:8080 10.244.1.2:8080; from outside to 10.244.0.2:8080 (draining 10.244.1.2:8080); clients stay for 3600 s
    node port tcp 0.0.0.0:30080 to 10.244.0.2:8080 10.244.1.2:8080; from outside to 10.244.0.2:8080 (draining 10.244.1.2:8080); clients stay for 3600 s
    local endpoint 10.244.0.2
    health check 32000 of default/web: 1 endpoints here
    ");
}

#[test]
fn under_external_policy_local_without_endpoints_here_those_outside_are_dropped() {
    let cluster = cluster_of(
        vec![("web", outer(ExternalPolicy::Local))],
        vec![slice("web", 8080, &[THERE])],
    );
    insta::assert_snapshot!(show(&cluster), @r"
    service range 10.96.0.0/16
    inside 10.244.0.0/24
    cluster ip 10.96.0.7
    service tcp 10.96.0.7:80 to 10.244.1.2:8080; clients stay for 3600 s
    service tcp 198.51.100.7:80 to 10.244.1.2:8080; from outside drop; only from 192.0.2.0/24; clients stay for 3600 s
    service tcp 203.0.113.7:80 to 10.244.1.2:8080; from outside drop; clients stay for 3600 s
    node port tcp 0.0.0.0:30080 to 10.244.1.2:8080; from outside drop; clients stay for 3600 s
    health check 32000 of default/web: 0 endpoints here
    ");
}

#[test]
fn without_endpoints_every_address_refuses() {
    let cluster = cluster_of(vec![("web", outer(ExternalPolicy::Local))], Vec::new());
    insta::assert_snapshot!(show(&cluster), @r"
    service range 10.96.0.0/16
    inside 10.244.0.0/24
    cluster ip 10.96.0.7
    service tcp 10.96.0.7:80 refuse; clients stay for 3600 s
    service tcp 198.51.100.7:80 refuse; only from 192.0.2.0/24; clients stay for 3600 s
    service tcp 203.0.113.7:80 refuse; clients stay for 3600 s
    node port tcp 0.0.0.0:30080 refuse; clients stay for 3600 s
    health check 32000 of default/web: 0 endpoints here
    ");
}

#[test]
fn an_address_in_use_or_in_the_range_of_cluster_ips_is_nobodys_external_address() {
    let mut thief = outer(ExternalPolicy::Cluster);
    thief.external.ips = ["10.96.0.8", "10.96.0.9", "203.0.113.7"]
        .map(|text| text.parse().unwrap())
        .into();
    let victim = service("10.96.0.8", InternalPolicy::Cluster);
    let mut first = service("10.96.0.6", InternalPolicy::Cluster);
    first.external.ips = vec!["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
    let services = vec![("a-first", first), ("victim", victim), ("thief", thief)];
    insta::assert_snapshot!(show(&cluster_of(services, Vec::new())), @r"
    service range 10.96.0.0/16
    inside 10.244.0.0/24
    cluster ip 10.96.0.6
    cluster ip 10.96.0.7
    cluster ip 10.96.0.8
    service tcp 10.96.0.6:80 refuse
    service tcp 10.96.0.7:80 refuse; clients stay for 3600 s
    service tcp 10.96.0.8:80 refuse
    service tcp 198.51.100.7:80 refuse; only from 192.0.2.0/24; clients stay for 3600 s
    service tcp 203.0.113.7:80 refuse
    node port tcp 0.0.0.0:30080 refuse; clients stay for 3600 s
    problem Service default/a-first: its address 2001:db8::7 is of a family that the service does not have (spec.ipFamilies); it is not served
    problem Service default/thief: its address 10.96.0.8 is the cluster IP of service default/victim; it is not served
    problem Service default/thief: its address 10.96.0.9 is in the range 10.96.0.0/16, which is for cluster IPs; it is not served
    problem Service default/thief: tcp 203.0.113.7:80 belongs to service default/a-first; it is not served
    ");
}

#[test]
fn a_list_of_sources_that_has_none_of_a_family_lets_nobody_of_it_in_and_0_everybody() {
    let mut closed = outer(ExternalPolicy::Cluster);
    closed.external.sources = Some(["fd00::/8".parse().unwrap()].into());
    let mut open = service("10.96.0.8", InternalPolicy::Cluster);
    open.external.load_balancer = vec!["198.51.100.8".parse().unwrap()];
    open.external.sources = Some(["0.0.0.0/0".parse().unwrap(), "192.0.2.0/24".parse().unwrap()].into());
    // Nothing but /0 is no list, for the other family neither.
    let mut all = service("10.96.0.9", InternalPolicy::Cluster);
    all.external.load_balancer = vec!["198.51.100.9".parse().unwrap()];
    all.external.sources = Some(["::/0".parse().unwrap()].into());
    let services = vec![("all", all), ("closed", closed), ("open", open)];
    insta::assert_snapshot!(show(&cluster_of(services, Vec::new())), @r"
    service range 10.96.0.0/16
    inside 10.244.0.0/24
    cluster ip 10.96.0.7
    cluster ip 10.96.0.8
    cluster ip 10.96.0.9
    service tcp 10.96.0.7:80 refuse; clients stay for 3600 s
    service tcp 10.96.0.8:80 refuse
    service tcp 10.96.0.9:80 refuse
    service tcp 198.51.100.7:80 refuse; only from nobody; clients stay for 3600 s
    service tcp 198.51.100.8:80 refuse
    service tcp 198.51.100.9:80 refuse
    service tcp 203.0.113.7:80 refuse; clients stay for 3600 s
    node port tcp 0.0.0.0:30080 refuse; clients stay for 3600 s
    problem Service default/closed: spec.loadBalancerSourceRanges has no range of the family of 198.51.100.7: nobody can come to it
    ");
}

fn hinted(zones: &[&str], nodes: &[&str]) -> Hints {
    Hints {
        zones: zones.iter().map(|zone| (*zone).into()).collect(),
        nodes: nodes.iter().map(|node| NodeName::new(*node).unwrap()).collect(),
    }
}

/// What clients get of endpoints 10.244.0.1, 10.244.0.2... with these hints.
fn chosen(policy: InternalPolicy, hints: &[Hints]) -> String {
    let endpoints = hints.iter().zip(1..).map(|(hints, host): (_, u8)| Endpoint {
        hints: hints.clone(),
        ..Endpoint::ready(IpAddr::from([10, 244, 0, host]), Some(me()))
    });
    let ports = vec![EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: Some(port(80)),
    }];
    let family = AddressFamily::Ip(Family::V4);
    let slice = EndpointSlice::new(Some(name("web")), family, ports, endpoints.collect()).unwrap();
    let cluster = cluster_of(vec![("web", service("10.96.0.7", policy))], vec![slice]);
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
    let entry = state.frontends.values().next().unwrap();
    entry
        .inside
        .endpoints()
        .iter()
        .map(|endpoint| format!("{} ", endpoint.ip()))
        .collect()
}

#[test]
fn hints_count_only_if_all_have_them_and_one_is_for_us_and_a_node_comes_before_a_zone() {
    let (a, b) = (hinted(&["a"], &[]), hinted(&["b"], &[]));
    let cluster_policy = |hints: &[Hints]| chosen(InternalPolicy::Cluster, hints);
    assert_eq!(cluster_policy(&[a.clone(), b.clone()]), "10.244.0.1 ");
    assert_eq!(
        cluster_policy(&[a.clone(), Hints::default()]),
        "10.244.0.1 10.244.0.2 "
    );
    assert_eq!(cluster_policy(&[b.clone(), b.clone()]), "10.244.0.1 10.244.0.2 ");
    let (near, far) = (hinted(&["a"], &["node1"]), hinted(&["a"], &["node2"]));
    assert_eq!(cluster_policy(&[far.clone(), near.clone()]), "10.244.0.2 ");
    assert_eq!(
        cluster_policy(&[far.clone(), b.clone()]),
        "10.244.0.1 ",
        "no node's hint on one: the zones count"
    );
    // Local policies ignore them.
    assert_eq!(chosen(InternalPolicy::Local, &[a, b]), "10.244.0.1 10.244.0.2 ");
}

#[test]
fn an_endpoint_that_is_not_ready_needs_no_hint() {
    let endpoint = |host: u8, ready, hints| Endpoint {
        ready,
        serving: ready,
        hints,
        ..Endpoint::ready(IpAddr::from([10, 244, 0, host]), Some(me()))
    };
    let endings = [(false, false), (true, true)];
    for (serving, terminating) in endings {
        let away = Endpoint {
            serving,
            terminating,
            ..endpoint(3, false, Hints::default())
        };
        let endpoints = vec![
            endpoint(1, true, hinted(&["a"], &[])),
            endpoint(2, true, hinted(&["b"], &[])),
            away,
        ];
        let ports = vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: Some(port(80)),
        }];
        let family = AddressFamily::Ip(Family::V4);
        let slice = EndpointSlice::new(Some(name("web")), family, ports, endpoints).unwrap();
        let web = service("10.96.0.7", InternalPolicy::Cluster);
        let cluster = cluster_of(vec![("web", web)], vec![slice]);
        let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
        let entry = state.frontends.values().next().unwrap();
        let chosen: Vec<String> = entry.inside.endpoints().iter().map(ToString::to_string).collect();
        assert_eq!(chosen, ["10.244.0.1:80"], "{serving} {terminating}");
    }
}

#[test]
fn external_policy_local_ignores_hints() {
    let mut here = slice("web", 8080, &[HERE, ("10.244.0.3", "node1", "rs"), THERE]);
    let hints = [hinted(&["b"], &[]), hinted(&["a"], &[]), hinted(&["a"], &[])];
    let mut endpoints = here.endpoints().to_vec();
    for (endpoint, hints) in endpoints.iter_mut().zip(hints) {
        endpoint.hints = hints;
    }
    here = EndpointSlice::new(
        Some(name("web")),
        AddressFamily::Ip(Family::V4),
        here.ports,
        endpoints,
    )
    .unwrap();
    let cluster = cluster_of(vec![("web", outer(ExternalPolicy::Local))], vec![here]);
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
    let entry = state.node_ports.values().next().unwrap();
    let outside = entry.outside.as_ref().unwrap();
    let chosen: Vec<String> = outside.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(chosen, ["10.244.0.2:8080", "10.244.0.3:8080"]);
}

#[test]
fn a_health_check_counts_the_nodes_ready_endpoints_and_no_others() {
    let ending = ("10.244.0.3", "node1", "st");
    let unready = ("10.244.0.4", "node1", "");
    for (endpoints, count) in [
        (vec![HERE, ending, unready, THERE], 1),
        (vec![ending, unready], 0),
    ] {
        let slices = vec![slice("web", 8080, &endpoints)];
        let cluster = cluster_of(vec![("web", outer(ExternalPolicy::Local))], slices);
        let shown = show(&cluster);
        let check = format!("health check 32000 of default/web: {count} endpoints here\n");
        assert!(shown.contains(&check), "{shown}");
    }
}

#[test]
fn a_load_balancers_address_is_served_without_a_node_port() {
    let mut without = service("10.96.0.7", InternalPolicy::Cluster);
    without.external.load_balancer = vec!["198.51.100.7".parse().unwrap()];
    let slices = vec![slice("web", 8080, &[HERE])];
    let state = compute(
        &cluster_of(vec![("web", without)], slices),
        &me(),
        BTreeSet::new(),
        &mut Vec::new(),
    );
    let served: Vec<String> = state.frontends.keys().map(ToString::to_string).collect();
    assert_eq!(served, ["tcp 10.96.0.7:80", "tcp 198.51.100.7:80"]);
    assert!(state.node_ports.is_empty());
}

#[test]
fn two_ports_of_one_protocol_have_each_their_own_target() {
    let ports =
        [("http", 80), ("admin", 81)].map(|(of, number)| ServicePort::new(of, Protocol::Tcp, port(number)));
    let web = Service::new(vec!["10.96.0.7".parse().unwrap()], ports.to_vec()).unwrap();
    let ports = [("http", 8080), ("admin", 9090)].map(|(of, number)| EndpointPort {
        name: of.into(),
        protocol: Protocol::Tcp,
        port: Some(port(number)),
    });
    let endpoint = Endpoint::ready("10.244.0.2".parse().unwrap(), Some(me()));
    let family = AddressFamily::Ip(Family::V4);
    let slice = EndpointSlice::new(Some(name("web")), family, ports.to_vec(), vec![endpoint]).unwrap();
    let cluster = cluster_of(vec![("web", web)], vec![slice]);
    let state = compute(&cluster, &me(), BTreeSet::new(), &mut Vec::new());
    let all: Vec<String> = state
        .frontends
        .iter()
        .map(|(to, entry)| format!("{to} {entry}"))
        .collect();
    assert_eq!(
        all,
        [
            "tcp 10.96.0.7:80 to 10.244.0.2:8080",
            "tcp 10.96.0.7:81 to 10.244.0.2:9090"
        ]
    );
}

#[test]
fn a_pod_has_no_host_port_at_an_address_for_cluster_ips() {
    let web = service("10.96.0.7", InternalPolicy::Cluster);
    for (address, whose) in [
        ("10.96.0.7", "for services alone"),
        ("10.96.0.99", "for services alone"),
    ] {
        let mut cluster = cluster_of(vec![("web", web.clone())], vec![slice("web", 8080, &[HERE])]);
        let host_port = HostPort {
            address: HostAddress::One(address.parse().unwrap()),
            protocol: Protocol::Tcp,
            port: port(9999),
        };
        cluster
            .host_ports
            .insert(host_port, "10.244.0.9:80".parse().unwrap());
        let mut problems = Vec::new();
        let state = compute(&cluster, &me(), BTreeSet::new(), &mut problems);
        assert!(state.host_ports.is_empty(), "{address}");
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].why.ends_with(&format!("the address is {whose}")),
            "{}",
            problems[0]
        );
    }
}

#[test]
fn pods_stay_inside_while_their_node_has_no_object() {
    let mut cluster = cluster_of(Vec::new(), Vec::new());
    let ranges = PodRanges::new(["10.244.0.0/24".parse().unwrap()]).unwrap();
    let node = Node::new(me(), &["172.30.0.11".parse().unwrap()], ranges);
    cluster.nodes.insert(me(), Ok(node.clone()));
    let before = crate::compute(&cluster, &me()).services;
    assert_eq!(before.pods, ["10.244.0.0/24".parse().unwrap()].into());
    cluster.local.node = Some(node);
    cluster.nodes.remove(&me());
    assert_eq!(crate::compute(&cluster, &me()).services, before);
}

#[test]
fn a_node_port_that_a_program_or_a_pod_of_the_node_has_is_reported_and_not_taken() {
    let slices = || vec![slice("web", 8080, &[("10.244.0.2", "node1", "rs")])];
    let mut cluster = cluster_of(vec![("web", outer(ExternalPolicy::Cluster))], slices());
    let node_port = NodePort {
        family: Family::V4,
        protocol: Protocol::Tcp,
        port: port(30080),
    };
    let free = show(&cluster);
    assert!(
        free.contains("node port tcp 0.0.0.0:30080 to 10.244.0.2:8080"),
        "{free}"
    );
    let why = "problem Node node1: tcp 0.0.0.0:30080 is not served for service default/web, whose node port it is: a \
               program or a pod of the node has that port\n";
    cluster.local.busy_ports.insert(node_port);
    let busy = show(&cluster);
    assert!(!busy.contains("node port tcp"), "{busy}");
    assert!(busy.ends_with(why), "{busy}");
    // Only that: the service's other addresses are served.
    assert!(
        busy.contains("service tcp 10.96.0.7:80 to 10.244.0.2:8080"),
        "{busy}"
    );

    let mut ledger = Ledger::default();
    let mut update = |cluster: &Cluster| {
        ledger.update(
            cluster,
            &me(),
            (&BTreeSet::new(), BTreeSet::new()),
            [Changes::Of(BTreeSet::new()), Changes::Of(BTreeSet::new())],
        )
    };
    update(&cluster);
    cluster.local.busy_ports.clear();
    assert_eq!(update(&cluster).node_ports.len(), 1);
    let host_port = HostPort {
        address: HostAddress::Any(Family::V4),
        protocol: Protocol::Tcp,
        port: port(30080),
    };
    cluster
        .host_ports
        .insert(host_port, "10.244.0.9:80".parse().unwrap());
    assert_eq!(update(&cluster).node_ports.len(), 0);
    // One address is enough, unless it has no node ports.
    for (address, left) in [("172.30.0.1", 0), ("127.0.0.1", 1)] {
        cluster.host_ports.clear();
        let one = HostPort {
            address: HostAddress::One(address.parse().unwrap()),
            ..host_port
        };
        cluster.host_ports.insert(one, "10.244.0.9:80".parse().unwrap());
        assert_eq!(update(&cluster).node_ports.len(), left, "{address}");
    }
    cluster.host_ports.clear();
    assert_eq!(update(&cluster).node_ports.len(), 1);
}

#[test]
fn of_a_host_port_and_a_service_at_one_address_only_the_winner_is_there() {
    let mut cluster = cluster_of(
        vec![("web", outer(ExternalPolicy::Cluster))],
        vec![slice("web", 8080, &[("10.244.0.2", "node1", "rs")])],
    );
    let of_pod = |address: HostAddress, number| HostPort {
        address,
        protocol: Protocol::Tcp,
        port: port(number),
    };
    let one = |address: &str| HostAddress::One(address.parse().unwrap());
    let pods = |cluster: &mut Cluster, host_port| {
        let target = "10.244.0.9:80".parse().unwrap();
        cluster.host_ports = [(host_port, target)].into();
        show(cluster)
    };
    let service = "service tcp 198.51.100.7:80 to 10.244.0.2:8080";
    assert!(show(&cluster).contains(service));
    let lost = "problem Node node1: tcp 198.51.100.7:80 is not served for service default/web: it is the host port of \
                a pod of the node\n";
    let given = pods(&mut cluster, of_pod(one("198.51.100.7"), 80));
    assert!(
        given.contains("host port tcp 198.51.100.7:80 to 10.244.0.9:80"),
        "{given}"
    );
    assert!(!given.contains(service) && given.ends_with(lost), "{given}");
    // Another port of that address is in nobody's way; nor is a port of all the node's addresses, if it is none of them.
    for host_port in [
        of_pod(one("198.51.100.7"), 81),
        of_pod(HostAddress::Any(Family::V4), 80),
    ] {
        let given = pods(&mut cluster, host_port);
        assert!(given.contains(service) && !given.contains("problem"), "{given}");
    }
    let own = ["198.51.100.7".parse().unwrap()];
    let node = Node::new(me(), &own, PodRanges::new(vec![]).unwrap());
    cluster.nodes.insert(me(), Ok(node));
    let given = pods(&mut cluster, of_pod(HostAddress::Any(Family::V4), 80));
    assert!(!given.contains(service) && given.ends_with(lost), "{given}");

    let given = pods(&mut cluster, of_pod(one("10.96.0.7"), 80));
    assert!(
        given.contains("service tcp 10.96.0.7:80 to 10.244.0.2:8080"),
        "{given}"
    );
    let lost = "problem Node node1: a pod does not have its host port tcp 10.96.0.7:80: the address is of service \
                default/web\n";
    assert!(!given.contains("\nhost port") && given.ends_with(lost), "{given}");
}
