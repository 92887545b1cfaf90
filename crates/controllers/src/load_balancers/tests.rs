use kube::runtime::watcher::Event;
use podnet_core::load_balancer::CLASS;
use serde_json::Value;

use super::*;
use crate::action::Op;
use crate::world::Observation;

const NOW: &str = "2026-01-01T00:10:00Z";

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn pool(name: &str, ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "podnet.io/v1alpha1", "kind": "LoadBalancerPool",
        "metadata": {"name": name, "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"ranges": ranges},
    })
}

/// A service as the API server has it, with what `patch` says otherwise.
fn service(name: &str, patch: Value) -> Value {
    let mut service = json!({
        "metadata": {
            "name": name, "namespace": "web", "uid": name, "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    });
    merge(&mut service, &patch);
    service
}

fn world(pools: &[Value], services: &[Value]) -> World {
    let mut world = World::watching(LoadBalancers::new(Vec::new(), Vec::new()).reads().iter().copied());
    for pool in pools {
        world.observe(Observation::LoadBalancerPool(Event::Apply(from(pool.clone()))));
    }
    for service in services {
        world.observe(Observation::Service(Event::Apply(from(service.clone()))));
    }
    let namespace = json!({"metadata": {"name": "web", "resourceVersion": "3"}});
    world.observe(Observation::Namespace(Event::Apply(from(namespace))));
    let node = json!({
        "metadata": {"name": "n1", "resourceVersion": "2"}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    world.observe(Observation::Node(Event::Apply(from(node))));
    world
}

fn plan(world: &World) -> Plan {
    let balancers = LoadBalancers::new(
        vec!["10.244.0.0/16".parse().unwrap()],
        vec!["10.96.0.0/16".parse().unwrap()],
    );
    balancers.plan(world, &Key::all(), &Context::at(NOW.parse().unwrap()))
}

/// What is written into the status of the object of that name.
fn written<'a>(plan: &'a Plan, name: &str) -> Option<&'a Value> {
    let mut actions = plan.actions.iter();
    let action = actions.find(|action| action.target.key.name == name)?;
    match &action.op {
        Op::Patch(Part::Status, patch) => Some(patch),
        other => panic!("{other:?}"),
    }
}

fn note(plan: &Plan, name: &str) -> (bool, &'static str, String) {
    let mut actions = plan.actions.iter();
    let action = actions.find(|action| action.target.key.name == name).unwrap();
    let note = action.note.as_ref().unwrap();
    (note.warning, note.reason, note.message.clone())
}

/// The service as it is once the plan is carried out.
fn after(plan: &Plan, mut service: Value) -> Value {
    let name = service["metadata"]["name"].as_str().unwrap().to_owned();
    if let Some(patch) = written(plan, &name) {
        merge(&mut service, patch);
    }
    service
}

#[test]
fn the_api_servers_address_is_given_to_nobody() {
    let mut world = world(&[pool("p", &["192.0.2.2-192.0.2.3"])], &[service("a", json!({}))]);
    let slice = json!({
        "metadata": {
            "name": "kubernetes", "namespace": "default", "resourceVersion": "9",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.2"]}], "ports": [],
    });
    let changes = world.observe(Observation::EndpointSlice(Event::Apply(from(slice))));
    let mut keys = BTreeSet::new();
    LoadBalancers::new(Vec::new(), Vec::new()).affected(&world, &changes[0], &mut keys);
    assert_eq!(keys.len(), 1, "all are planned anew");
    let plan = plan(&world);
    let ingress = &written(&plan, "a").unwrap()["status"]["loadBalancer"]["ingress"];
    assert_eq!(ingress[0]["ip"], "192.0.2.3");
}

#[test]
fn a_service_gets_an_address_as_it_is_written_in_the_version_that_was_read() {
    // 192.0.2.1 is a node's.
    let plan = plan(&world(
        &[pool("p", &["192.0.2.1-192.0.2.2"])],
        &[service("a", json!({}))],
    ));
    let patch = written(&plan, "a").unwrap();
    assert_eq!(
        patch["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "192.0.2.2", "ipMode": "VIP"}])
    );
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    let condition = &patch["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["message"]),
        (&json!(CONDITION), &json!("True"), &json!("192.0.2.2"))
    );
    assert_eq!(
        note(&plan, "a"),
        (false, "AddressAssigned", "192.0.2.2".to_owned())
    );
    let pool = &written(&plan, "p").unwrap()["status"];
    assert_eq!(
        (&pool["assignedIPv4"], &pool["availableIPv4"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(pool["conditions"][0]["reason"], "Serving");
}

#[test]
fn what_is_so_is_not_written_again() {
    let pools = [pool("p", &["192.0.2.8/31"])];
    let services = [
        service("a", json!({})),
        service("b", json!({})),
        service("c", json!({})),
    ];
    let first = plan(&world(&pools, &services));
    assert_eq!(note(&first, "c").1, "PoolExhausted");
    let services = services.map(|service| after(&first, service));
    let pools = pools.map(|pool| after(&first, pool));
    let again = plan(&world(&pools, &services));
    assert!(again.actions.is_empty(), "{again:?}");
}

#[test]
fn a_service_that_lacks_an_address_says_why_in_a_condition_and_an_event_until_it_has_one() {
    let asks = json!({"metadata": {"annotations": {"metallb.io/loadBalancerIPs": "192.0.2.8"}}});
    let pools = [pool("p", &["192.0.2.8"])];
    let first = plan(&world(&pools, &[service("a", json!({}))]));
    let holder = after(&first, service("a", json!({})));
    let second = plan(&world(&pools, &[holder, service("b", asks.clone())]));
    let condition = &written(&second, "b").unwrap()["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("AddressInUse"))
    );
    let (warning, reason, message) = note(&second, "b");
    assert!(warning && reason == "AddressInUse");
    assert!(
        message.starts_with("192.0.2.8 is the address of service web/a: "),
        "{message}"
    );
    assert!(written(&second, "a").is_none());
    // The holder goes.
    let waiting = after(&second, service("b", asks));
    let third = plan(&world(&pools, &[waiting]));
    let status = &written(&third, "b").unwrap()["status"];
    assert_eq!(status["loadBalancer"]["ingress"][0]["ip"], "192.0.2.8");
    assert_eq!(status["conditions"][0]["lastTransitionTime"], NOW);
}

#[test]
fn addresses_are_asked_for_as_the_ecosystem_writes_it() {
    let pools = [
        pool("p", &["192.0.2.8-192.0.2.31"]),
        pool("six", &["2001:db8::/112"]),
    ];
    let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    let dual = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}});
    let mut both = annotated("podnet.io/load-balancer-ips", "192.0.2.20, 2001:db8::20");
    merge(&mut both, &dual);
    let plan = plan(&world(
        &pools,
        &[
            service("field", json!({"spec": {"loadBalancerIP": "192.0.2.10"}})),
            service("metallb", annotated("metallb.io/loadBalancerIPs", "192.0.2.11")),
            service("cilium", annotated("lbipam.cilium.io/ips", "192.0.2.12")),
            service("pool", annotated("metallb.io/address-pool", "p")),
            service("both", both),
            service("wrong", annotated("podnet.io/load-balancer-ips", "192.0.2.300")),
            service("family", annotated("podnet.io/load-balancer-ips", "2001:db8::1")),
        ],
    ));
    let ips = |name: &str| {
        let ingress = &written(&plan, name).unwrap()["status"]["loadBalancer"]["ingress"];
        let ips = ingress.as_array().cloned().unwrap_or_default();
        ips.iter()
            .map(|ip| ip["ip"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ips("field"), ["192.0.2.10"]);
    assert_eq!(ips("metallb"), ["192.0.2.11"]);
    assert_eq!(ips("cilium"), ["192.0.2.12"]);
    // What cannot be had by name is no reason to have nothing.
    assert_eq!(ips("family"), ["192.0.2.8"]);
    assert_eq!(ips("pool"), ["192.0.2.9"]);
    assert_eq!(ips("both"), ["2001:db8::20", "192.0.2.20"]);
    assert_eq!(ips("wrong"), Vec::<String>::new());
    let (_, reason, message) = note(&plan, "wrong");
    assert_eq!(reason, "InvalidRequest");
    assert!(
        message.starts_with("podnet.io/load-balancer-ips: \"192.0.2.300\" is no IP address"),
        "{message}"
    );
    assert_eq!(note(&plan, "family").1, "InvalidRequest");
}

#[test]
fn services_of_others_are_left_alone() {
    let pools = [pool("p", &["192.0.2.8/29"])];
    let clouds = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}});
    let by_name = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}});
    let plan = plan(&world(
        &pools,
        &[
            service("class", json!({"spec": {"loadBalancerClass": "example.com/lb"}})),
            service("cloud", clouds),
            service("named", by_name),
            service("cluster", json!({"spec": {"type": "ClusterIP"}})),
            service("ours", json!({"spec": {"loadBalancerClass": CLASS}})),
        ],
    ));
    let names: Vec<&str> = plan
        .actions
        .iter()
        .map(|action| action.target.key.name.as_str())
        .collect();
    assert_eq!(names, ["ours", "p"]);
}

#[test]
fn an_address_goes_back_with_the_type_and_with_the_pool() {
    let pools = [pool("p", &["192.0.2.8/29"])];
    let first = plan(&world(&pools, &[service("a", json!({}))]));
    let held = after(&first, service("a", json!({})));
    let mut changed = held.clone();
    changed["spec"]["type"] = json!("ClusterIP");
    for (pools, service) in [(&pools[..], changed), (&[], held)] {
        let plan = plan(&world(pools, std::slice::from_ref(&service)));
        let patch = &written(&plan, "a").unwrap()["status"];
        assert_eq!(patch["loadBalancer"], json!({"ingress": null}));
        assert_eq!(patch["conditions"], json!([]));
        assert_eq!(
            note(&plan, "a"),
            (false, "AddressReleased", "192.0.2.8".to_owned())
        );
    }
}

#[test]
fn a_pool_that_cannot_be_says_why_in_its_status_and_as_an_event() {
    let plan = plan(&world(
        &[pool("p", &["10.244.9.0/24"])],
        &[service("a", json!({}))],
    ));
    let condition = &written(&plan, "p").unwrap()["status"]["conditions"][0];
    let why =
        "spec.ranges: 10.244.9.0/24 overlaps 10.244.0.0/16, the cluster's range; nothing is given out of it";
    assert_eq!(
        (&condition["status"], &condition["reason"], &condition["message"]),
        (&json!("False"), &json!("Invalid"), &json!(why))
    );
    assert_eq!(note(&plan, "p"), (true, "Invalid", why.to_owned()));
    assert_eq!(note(&plan, "a").1, "NoPool");
}

#[test]
fn only_what_matters_makes_it_look_again() {
    let balancers = LoadBalancers::new(Vec::new(), Vec::new());
    let keys = |world: &World, changes: &[Change]| {
        let mut keys = BTreeSet::new();
        for change in changes {
            balancers.affected(world, change, &mut keys);
        }
        !keys.is_empty()
    };
    let mut world = world(&[], &[]);
    let apply = |world: &mut World, object: Value| {
        let changes = world.observe(Observation::Service(Event::Apply(from(object))));
        keys(world, &changes)
    };
    assert!(!apply(&mut world, service("a", json!({}))), "there are no pools");
    let changes = world.observe(Observation::LoadBalancerPool(Event::Apply(from(pool(
        "p",
        &["192.0.2.8/29"],
    )))));
    assert!(keys(&world, &changes));
    assert!(apply(&mut world, service("b", json!({}))));
    assert!(!apply(
        &mut world,
        service("c", json!({"spec": {"type": "ClusterIP"}}))
    ));
    let node = |version: &str, heard: &str| {
        json!({
            "metadata": {"name": "n1", "resourceVersion": version}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": heard}],
            },
        })
    };
    for (version, heard) in [("3", "2026-01-01T00:00:00Z"), ("4", "2026-01-01T00:00:10Z")] {
        let changes = world.observe(Observation::Node(Event::Apply(from(node(version, heard)))));
        assert!(!keys(&world, &changes), "a heartbeat is no news");
    }
}

#[test]
fn a_pool_within_a_service_cidr_gives_no_addresses_until_that_is_gone() {
    let mut world = world(&[pool("p", &["10.111.0.0/28"])], &[service("a", json!({}))]);
    let given = |world: &World| {
        let plan = plan(world);
        written(&plan, "a").unwrap()["status"]["loadBalancer"]["ingress"][0]["ip"].clone()
    };
    assert!(given(&world).is_string());
    let cidr = json!({
        "metadata": {"name": "further", "resourceVersion": "5"}, "spec": {"cidrs": ["10.111.0.0/24"]},
    });
    let changes = world.observe(Observation::ServiceCIDR(Event::Apply(from(cidr.clone()))));
    let mut keys = BTreeSet::new();
    let balancers = LoadBalancers::new(Vec::new(), Vec::new());
    changes
        .iter()
        .for_each(|change| balancers.affected(&world, change, &mut keys));
    assert!(!keys.is_empty(), "it looks again");
    assert_eq!(given(&world), Value::Null);
    let why = written(&plan(&world), "p").unwrap()["status"]["conditions"][0]["message"].clone();
    assert!(why.as_str().unwrap().contains("overlaps"), "{why}");
    world.observe(Observation::ServiceCIDR(Event::Delete(from(cidr))));
    assert!(given(&world).is_string());
}
