use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn allocations() -> Allocations {
    of(&["10.96.0.0/16", "fd00:10:96::/112"], 30000..=32767)
}

/// With the default ServiceCIDR alone.
fn of(ranges: &[&str], ports: RangeInclusive<u16>) -> Allocations {
    let nets: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let mut allocations = Allocations::new(&nets, ports);
    allocations.set_ranges([cidr(DEFAULT, ranges)].iter());
    allocations
}

/// A ServiceCIDR that is ready.
fn cidr(name: &str, ranges: &[&str]) -> Value {
    json!({
        "metadata": {"name": name}, "spec": {"cidrs": ranges},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "s"}, "spec": spec})
}

fn create(allocations: &mut Allocations, spec: Value) -> Result<Value, ClaimError> {
    let mut service = service(spec);
    let claim = allocations.create(&mut service)?;
    allocations.succeeded(claim);
    Ok(service)
}

fn update(allocations: &mut Allocations, old: &Value, spec: Value) -> Result<Value, ClaimError> {
    let mut new = service(spec);
    let claim = allocations.update(&mut new, old)?;
    allocations.succeeded(claim);
    Ok(new)
}

fn message(error: ClaimError) -> String {
    match error {
        ClaimError::Invalid(errors) => errors[0].to_string(),
        ClaimError::Exhausted(text) => text,
    }
}

#[test]
fn a_service_gets_an_address_of_the_default_family() {
    let mut a = allocations();
    let s = create(&mut a, json!({"type": "ClusterIP", "selector": {"a": "b"}})).unwrap();
    let address: IpAddr = text(&s, "clusterIP").parse().unwrap();
    assert!("10.96.0.0/16".parse::<IpNet>().unwrap().contains(&address));
    assert_eq!(s["spec"]["clusterIPs"], json!([address.to_string()]));
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(s["spec"]["ipFamilyPolicy"], "SingleStack");
}

#[test]
fn dual_stack_and_headless() {
    let mut a = allocations();
    let s = create(
        &mut a,
        json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
    )
    .unwrap();
    assert_eq!(s["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    assert_eq!(s["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    let narrowed = update(&mut a, &s, {
        let mut spec = s["spec"].clone();
        spec["ipFamilyPolicy"] = json!("SingleStack");
        spec
    })
    .unwrap();
    assert_eq!(narrowed["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
    assert_eq!(a.taken_addresses.len(), 1);
    let headless = create(
        &mut a,
        json!({"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}}),
    )
    .unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4"]));
    let mut single = of(&["10.96.0.0/16"], 30000..=32767);
    let refused = create(
        &mut single,
        json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}),
    );
    assert!(message(refused.unwrap_err()).contains("not configured for dual-stack"));
    let prefer = create(
        &mut single,
        json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
    )
    .unwrap();
    assert_eq!(prefer["spec"]["ipFamilies"], json!(["IPv4"]));
}

#[test]
fn requested_addresses() {
    let mut a = allocations();
    create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"})).unwrap();
    let taken = create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"})).unwrap_err();
    assert!(message(taken).ends_with("failed to allocate IP 10.96.0.10: provided IP is already allocated"));
    let outside = create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.97.0.10"})).unwrap_err();
    let outside = message(outside);
    assert!(
        outside.contains(
            "The range of valid IPs is 10.96.0.0/16: choose an address in it, or make a ServiceCIDR"
        ),
        "{outside}"
    );
    let broadcast = create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.96.255.255"}));
    assert!(broadcast.is_err());
}

#[test]
fn node_ports() {
    let mut a = allocations();
    let spec = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "nodePort": 30080}]});
    let s = create(&mut a, spec).unwrap();
    assert_eq!(
        s["spec"]["ports"][0]["nodePort"],
        s["spec"]["ports"][1]["nodePort"]
    );
    let taken = create(
        &mut a,
        json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 80, "nodePort": 30080}]}),
    )
    .unwrap_err();
    assert_eq!(
        message(taken),
        "spec.ports[1].nodePort: Invalid value: 30080: provided port is already allocated"
    );
    let outside = create(
        &mut a,
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
    )
    .unwrap_err();
    assert!(message(outside).contains("The range of valid ports is 30000-32767"));
    assert_eq!((a.taken_addresses.len(), a.taken_ports.len()), (1, 2));
    let mut spec = s["spec"].clone();
    spec["type"] = json!("ClusterIP");
    let plain = update(&mut a, &s, spec).unwrap();
    assert!(plain["spec"]["ports"][2]["nodePort"].is_null());
    assert!(a.taken_ports.is_empty());
    let mut spec = plain["spec"].clone();
    spec["type"] = json!("ExternalName");
    let external = update(&mut a, &plain, spec).unwrap();
    assert!(external["spec"]["clusterIP"].is_null() && a.taken_addresses.is_empty());
}

#[test]
fn load_balancers_without_allocation_have_the_node_ports_they_name() {
    let mut a = allocations();
    let balancer = |ports: Value| json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports});
    let none = create(&mut a, balancer(json!([{"port": 80}, {"port": 443}]))).unwrap();
    assert_eq!(none["spec"]["ports"], json!([{"port": 80}, {"port": 443}]));
    assert!(a.taken_ports.is_empty());
    // One that is named is taken as any other is, and belongs to nobody else then.
    let named = create(
        &mut a,
        balancer(json!([{"port": 80, "nodePort": 30080}, {"port": 443}])),
    )
    .unwrap();
    assert_eq!(named["spec"]["ports"][0]["nodePort"], 30080);
    assert!(named["spec"]["ports"][1]["nodePort"].is_null());
    for spec in [
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
        balancer(json!([{"port": 80, "nodePort": 30080}])),
    ] {
        assert!(message(create(&mut a, spec).unwrap_err()).contains("already allocated"));
    }
    let outside = create(&mut a, balancer(json!([{"port": 80, "nodePort": 80}]))).unwrap_err();
    assert!(message(outside).contains("The range of valid ports is 30000-32767"));
    // Left out, it is free again.
    let without = update(&mut a, &named, balancer(json!([{"port": 80}, {"port": 443}]))).unwrap();
    assert!(without["spec"]["ports"][0]["nodePort"].is_null());
    assert!(a.taken_ports.is_empty());
}

#[test]
fn switching_the_allocation_of_node_ports_off_takes_none_away() {
    let mut a = allocations();
    let ports = json!([{"port": 80}]);
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports});
    let s = create(&mut a, spec).unwrap();
    let mut spec = s["spec"].clone();
    spec["allocateLoadBalancerNodePorts"] = json!(false);
    let off = update(&mut a, &s, spec.clone()).unwrap();
    assert_eq!(off["spec"], spec);
    // They go with the type.
    spec["type"] = json!("ClusterIP");
    let plain = update(&mut a, &off, spec).unwrap();
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null());
    assert!(a.taken_ports.is_empty());
}

#[test]
fn a_replace_that_leaves_them_out_keeps_them() {
    let mut a = allocations();
    let s = create(
        &mut a,
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    )
    .unwrap();
    let same = update(
        &mut a,
        &s,
        json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}),
    )
    .unwrap();
    assert_eq!(same["spec"], s["spec"]);
}

#[test]
fn local_load_balancers_get_a_health_check_port() {
    let mut a = allocations();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let s = create(&mut a, spec).unwrap();
    assert!(s["spec"]["healthCheckNodePort"].as_u64().unwrap() >= 30000);
    let claim = a.delete(&s);
    a.succeeded(claim);
    assert!(a.taken_ports.is_empty() && a.taken_addresses.is_empty());
}

#[test]
fn a_full_range_says_so() {
    let mut a = of(&["10.0.0.0/29"], 30000..=30001);
    for _ in 0..6 {
        create(&mut a, json!({"type": "ClusterIP"})).unwrap();
    }
    let full = create(&mut a, json!({"type": "ClusterIP"})).unwrap_err();
    assert_eq!(
        message(full),
        "failed to allocate a serviceIP: range is full: all addresses of 10.0.0.0/29 are in use; make a ServiceCIDR \
         with a further range"
    );
}

/// A ServiceCIDR that is being deleted.
fn going(name: &str, ranges: &[&str]) -> Value {
    let mut cidr = cidr(name, ranges);
    cidr["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    cidr
}

fn address(service: &Value) -> IpAddr {
    text(service, "clusterIP").parse().unwrap()
}

#[test]
fn a_further_range_is_used_when_the_first_is_full() {
    let mut a = of(&["10.0.0.0/29"], 30000..=30001);
    let further: IpNet = "10.1.0.0/29".parse().unwrap();
    a.set_ranges([cidr("a", &["10.1.0.0/29"]), cidr(DEFAULT, &["10.0.0.0/29"])].iter());
    let made: Vec<IpAddr> = (0..12)
        .map(|_| address(&create(&mut a, json!({"type": "ClusterIP"})).unwrap()))
        .collect();
    assert!(made[..6].iter().all(|one| !further.contains(one)), "{made:?}");
    assert!(made[6..].iter().all(|one| further.contains(one)), "{made:?}");
    assert_eq!(made.iter().collect::<HashSet<_>>().len(), 12);
    let full = message(create(&mut a, json!({"type": "ClusterIP"})).unwrap_err());
    assert!(
        full.contains("all addresses of 10.0.0.0/29, 10.1.0.0/29 are in use"),
        "{full}"
    );
}

#[test]
fn an_address_may_be_asked_for_in_any_range_that_is_open() {
    let mut a = of(&["10.0.0.0/29"], 30000..=30001);
    let wanted = |host: &str| json!({"type": "ClusterIP", "clusterIP": host});
    a.set_ranges([cidr(DEFAULT, &["10.0.0.0/29"]), cidr("more", &["10.1.0.0/29"])].iter());
    assert_eq!(
        address(&create(&mut a, wanted("10.1.0.3")).unwrap()).to_string(),
        "10.1.0.3"
    );
    assert!(message(create(&mut a, wanted("10.1.0.3")).unwrap_err()).contains("already allocated"));
    let mut unready = cidr("unready", &["10.2.0.0/29"]);
    unready["status"]["conditions"][0]["status"] = json!("False");
    a.set_ranges(
        [
            cidr(DEFAULT, &["10.0.0.0/29"]),
            going("more", &["10.1.0.0/29"]),
            unready,
        ]
        .iter(),
    );
    for (host, why) in [
        (
            "10.1.0.4",
            "its range 10.1.0.0/29 is of the ServiceCIDR more, which is being deleted",
        ),
        (
            "10.2.0.4",
            "its range 10.2.0.0/29 is of the ServiceCIDR unready, which is",
        ),
        (
            "10.3.0.4",
            "The range of valid IPs is 10.0.0.0/29: choose an address in it, or make a ServiceCIDR",
        ),
        ("10.0.0.0", "not in the valid range"),
        ("10.0.0.7", "not in the valid range"),
    ] {
        let refused = message(create(&mut a, wanted(host)).unwrap_err());
        assert!(refused.contains(why), "{host}: {refused}");
    }
    // Nor is any given from them.
    for _ in 0..6 {
        let given = address(&create(&mut a, json!({"type": "ClusterIP"})).unwrap());
        assert!(given.to_string().starts_with("10.0.0."), "{given}");
    }
    a.set_ranges(std::iter::empty());
    let none = message(create(&mut a, json!({"type": "ClusterIP"})).unwrap_err());
    assert!(
        none.contains("no ServiceCIDR with an IPv4 range is ready; make one"),
        "{none}"
    );
}

#[test]
fn what_somebody_else_keeps_is_given_to_no_service() {
    let mut a = of(&["10.0.0.0/29"], 30000..=30001);
    let kept: IpAddr = "10.0.0.3".parse().unwrap();
    a.set_reserved(HashSet::from([kept]));
    let refused = create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.0.0.3"})).unwrap_err();
    assert!(message(refused).contains("it is kept by the IPAddress 10.0.0.3"));
    for _ in 0..5 {
        assert_ne!(
            address(&create(&mut a, json!({"type": "ClusterIP"})).unwrap()),
            kept
        );
    }
    assert!(create(&mut a, json!({"type": "ClusterIP"})).is_err());
}

#[test]
fn a_range_is_needed_while_an_address_is_its_alone() {
    let mut a = of(&["10.0.0.0/29"], 30000..=30001);
    a.set_ranges([cidr(DEFAULT, &["10.0.0.0/29"]), cidr("more", &["10.1.0.0/29"])].iter());
    let s = create(&mut a, json!({"type": "ClusterIP", "clusterIP": "10.1.0.3"})).unwrap();
    let more = going("more", &["10.1.0.0/29"]);
    a.set_ranges([cidr(DEFAULT, &["10.0.0.0/29"]), more.clone()].iter());
    assert!(a.needs("more") && !a.needs(DEFAULT));
    // Another that has it lets this one go, unless it is going, too.
    a.set_ranges([more.clone(), cidr("wide", &["10.1.0.0/24"])].iter());
    assert!(!a.needs("more"));
    a.set_ranges([more.clone(), going("wide", &["10.1.0.0/24"])].iter());
    assert!(a.needs("more") && a.needs("wide"));
    let claim = a.delete(&s);
    a.succeeded(claim);
    assert!(!a.needs("more"));
    // What is no Service's holds up nothing.
    a.set_reserved(HashSet::from(["10.1.0.5".parse().unwrap()]));
    assert!(!a.needs("more"));
}

proptest! {
    /// Whatever comes and goes, nothing is held twice, and a fresh start holds the same.
    #[test]
    fn nothing_is_given_twice(steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), 1..60u8), 0..60)) {
        let mut a = of(&["10.0.0.0/26"], 30000..=30019);
        let mut live: Vec<Value> = Vec::new();
        for (step, which, host) in steps {
            match step {
                0 => live.extend(create(&mut a, json!({"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}))),
                1 => live.extend(create(&mut a, json!({"type": "ClusterIP", "clusterIP": format!("10.0.0.{host}")}))),
                2 if !live.is_empty() => {
                    let at = which.index(live.len());
                    let mut spec = live[at]["spec"].clone();
                    spec["type"] = json!(if spec["type"] == "NodePort" { "ClusterIP" } else { "NodePort" });
                    spec["ports"] = json!([{"port": 1}]);
                    if let Ok(new) = update(&mut a, &live[at].clone(), spec) {
                        live[at] = new;
                    }
                }
                3 if !live.is_empty() => {
                    let gone = live.swap_remove(which.index(live.len()));
                    let claim = a.delete(&gone);
                    a.succeeded(claim);
                }
                _ => {}
            }
            let held: Vec<Item> = live.iter().flat_map(items).collect();
            let mut fresh = of(&["10.0.0.0/26"], a.ports.clone());
            for service in &live {
                fresh.restore(service);
            }
            prop_assert_eq!(held.len(), fresh.taken_addresses.len() + fresh.taken_ports.len());
            prop_assert_eq!(&fresh.taken_addresses, &a.taken_addresses);
            prop_assert_eq!(&fresh.taken_ports, &a.taken_ports);
        }
    }
}
