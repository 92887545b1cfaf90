use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn allocations() -> Allocations {
    Allocations::new(
        vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
        30000..=32767,
    )
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
    let mut single = Allocations::new(vec!["10.96.0.0/16".parse().unwrap()], 30000..=32767);
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
    assert!(message(outside).ends_with("The range of valid IPs is 10.96.0.0/16"));
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
    let mut a = Allocations::new(vec!["10.0.0.0/29".parse().unwrap()], 30000..=30001);
    for _ in 0..6 {
        create(&mut a, json!({"type": "ClusterIP"})).unwrap();
    }
    let full = create(&mut a, json!({"type": "ClusterIP"})).unwrap_err();
    assert_eq!(message(full), "failed to allocate a serviceIP: range is full");
}

proptest! {
    /// Whatever comes and goes, nothing is held twice, and a fresh start holds the same.
    #[test]
    fn nothing_is_given_twice(steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), 1..60u8), 0..60)) {
        let mut a = Allocations::new(vec!["10.0.0.0/26".parse().unwrap()], 30000..=30019);
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
            let mut fresh = Allocations::new(a.ranges.clone(), a.ports.clone());
            for service in &live {
                fresh.restore(service);
            }
            prop_assert_eq!(held.len(), fresh.taken_addresses.len() + fresh.taken_ports.len());
            prop_assert_eq!(&fresh.taken_addresses, &a.taken_addresses);
            prop_assert_eq!(&fresh.taken_ports, &a.taken_ports);
        }
    }
}
