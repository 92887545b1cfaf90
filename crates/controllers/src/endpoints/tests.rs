use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Endpoints;
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::action::Op;
use crate::world::Observation;

fn merge(base: &mut Value, patch: &Value) {
    match patch.as_object() {
        Some(fields) => fields
            .iter()
            .for_each(|(key, value)| merge(&mut base[key.as_str()], value)),
        None => *base = patch.clone(),
    }
}

fn service(changes: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "s", "namespace": "d", "uid": "s", "labels": {"team": "x"}},
        "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]},
    });
    merge(&mut service, &changes);
    service
}

fn pod(number: usize, changes: Value) -> Value {
    let ips = json!([{"ip": format!("10.244.{}.{}", number / 250, number % 250)}, {"ip": format!("fd00::{number:x}")}]);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": format!("p{number}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut pod, &changes);
    pod
}

fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}})
}

struct Server {
    world: World,
    version: u64,
    /// Slices written by the last plan.
    written: usize,
}

impl Server {
    fn new(objects: &[Value]) -> Server {
        let mut server = Server {
            world: World::default(),
            version: 0,
            written: 0,
        };
        objects
            .iter()
            .for_each(|object| server.put(object.clone(), false));
        server
    }

    fn put(&mut self, mut object: Value, delete: bool) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        macro_rules! put {
            ($($kind:ident),*) => {
                match object["kind"].as_str().unwrap() {
                    $(stringify!($kind) => {
                        let object = serde_json::from_value(object).unwrap();
                        let event = if delete { Event::Delete(object) } else { Event::Apply(object) };
                        drop(self.world.observe(Observation::$kind(event)));
                    })*
                    other => panic!("{other}"),
                }
            };
        }
        put!(Pod, Node, Service, EndpointSlice, Endpoints);
    }

    /// Plans and carries out, and checks that then nothing is left to do.
    fn reconcile(&mut self) {
        let context = Context::at(jiff::Timestamp::UNIX_EPOCH);
        let key = Key::new("d", "s");
        let controllers: [&dyn Controller; 3] = [&EndpointSlices, &LegacyEndpoints, &MirroredEndpoints];
        self.written = 0;
        for controller in controllers {
            for action in controller.plan(&self.world, &key, &context).actions {
                self.carry_out(action);
            }
            let left = controller.plan(&self.world, &key, &context);
            assert!(left.actions.is_empty(), "{left:?}");
        }
    }

    fn carry_out(&mut self, action: Action) {
        let kind = action.target.resource.kind.clone();
        self.written += usize::from(kind == "EndpointSlice");
        let current = || -> Value {
            if kind == "Endpoints" {
                serde_json::to_value(&**self.world.endpoints.get(&action.target.key).unwrap()).unwrap()
            } else {
                serde_json::to_value(&**self.world.endpoint_slices.get(&action.target.key).unwrap()).unwrap()
            }
        };
        match action.op {
            Op::Create(mut body) => {
                if body["metadata"]["name"].is_null() {
                    body["metadata"]["name"] = json!(format!("s-{:05}", self.version));
                }
                body["metadata"]["uid"] = json!(format!("u{}", self.version));
                self.put(body, false);
            }
            Op::Patch(_, body) => {
                let mut object = current();
                json_merge(&mut object, &body);
                self.put(object, false);
            }
            Op::Delete { .. } => {
                let object = current();
                self.put(object, true);
            }
            other => panic!("{other:?}"),
        }
    }

    fn slices(&self) -> Vec<&EndpointSlice> {
        self.world.endpoint_slices.iter().map(|s| &**s).collect()
    }

    fn addresses(&self, family: &str) -> Vec<String> {
        let slices = self.slices().into_iter().filter(|s| s.address_type == family);
        let endpoints = slices.flat_map(|s| s.endpoints.iter().flatten());
        let mut all: Vec<String> = endpoints.flat_map(|e| e.addresses.clone()).collect();
        all.sort();
        all
    }

    fn legacy(&self) -> &Endpoints {
        self.world.endpoints.get(&Key::new("d", "s")).unwrap()
    }
}

fn json_merge(base: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        return *base = patch.clone();
    };
    for (key, value) in fields {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(key);
        } else {
            json_merge(&mut base[key.as_str()], value);
        }
    }
}

#[test]
fn shows_all_there_is_to_know_of_a_pod() {
    let mut server = Server::new(&[node(), service(json!({})), pod(1, json!({}))]);
    server.reconcile();
    let slices = server.slices();
    let slice = slices[0];
    assert_eq!(
        serde_json::to_value(slice.endpoints.clone()).unwrap(),
        json!([{
            "addresses": ["10.244.0.1"], "nodeName": "n", "zone": "z",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "d", "name": "p1", "uid": "p1"},
        }])
    );
    assert_eq!(
        serde_json::to_value(slice.ports.clone()).unwrap(),
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        serde_json::to_value(slice.metadata.labels.clone()).unwrap(),
        json!({"team": "x", SERVICE_NAME: "s", MANAGED_BY: MANAGER})
    );
    assert_eq!(
        serde_json::to_value(server.legacy().subsets.clone()).unwrap(),
        json!([{
            "addresses": [{"ip": "10.244.0.1", "nodeName": "n",
                "targetRef": {"kind": "Pod", "namespace": "d", "name": "p1", "uid": "p1"}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }])
    );
}

#[test]
fn conditions_follow_the_pod() {
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let going = json!({"metadata": {"deletionTimestamp": "2025-06-15T10:00:00Z"}});
    let cases = [
        (json!({}), false, (true, true, false), "ready"),
        (unready.clone(), false, (false, false, false), "not ready"),
        (unready, true, (true, false, false), "ready"),
        (going.clone(), false, (false, true, true), "nowhere"),
        (going, true, (true, true, true), "ready"),
    ];
    for (change, publishes, (ready, serving, terminating), legacy) in cases {
        let service = service(json!({"spec": {"publishNotReadyAddresses": publishes}}));
        let mut server = Server::new(&[service, pod(1, change.clone())]);
        server.reconcile();
        let conditions = server.slices()[0].endpoints.clone().unwrap()[0]
            .conditions
            .clone()
            .unwrap();
        let shown = (conditions.ready, conditions.serving, conditions.terminating);
        assert_eq!(
            shown,
            (Some(ready), Some(serving), Some(terminating)),
            "{change} {publishes}"
        );
        let subsets = server.legacy().subsets.clone().unwrap_or_default();
        let place = match subsets.first() {
            Some(subset) if subset.addresses.is_some() => "ready",
            Some(_) => "not ready",
            None => "nowhere",
        };
        assert_eq!(place, legacy, "{change} {publishes}");
    }
    for change in [
        json!({"status": {"phase": "Succeeded"}}),
        json!({"status": {"podIP": null, "podIPs": null}}),
    ] {
        let mut server = Server::new(&[service(json!({})), pod(1, change)]);
        server.reconcile();
        assert!(server.addresses("IPv4").is_empty());
        assert_eq!(server.slices().len(), 1, "the placeholder");
    }
}

#[test]
fn both_families_and_different_ports_have_slices_of_their_own() {
    let other =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]}});
    let dual = service(json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}));
    let mut server = Server::new(&[dual, pod(1, json!({})), pod(2, other), pod(3, json!({}))]);
    server.reconcile();
    let mut shapes: Vec<_> = server
        .slices()
        .iter()
        .map(|s| {
            (
                s.address_type.clone(),
                s.ports.clone().unwrap()[0].port,
                s.endpoints.clone().unwrap().len(),
            )
        })
        .collect();
    shapes.sort();
    let v = |family: &str, port, n| (family.to_owned(), Some(port), n);
    assert_eq!(
        shapes,
        [
            v("IPv4", 8080, 2),
            v("IPv4", 9090, 1),
            v("IPv6", 8080, 2),
            v("IPv6", 9090, 1)
        ]
    );
    assert_eq!(
        server.legacy().subsets.clone().unwrap()[0]
            .addresses
            .clone()
            .unwrap()[0]
            .ip,
        "fd00::1"
    );
}

#[test]
fn headless_services_name_their_pods() {
    let headless = service(json!({"spec": {"clusterIP": "None", "ports": null}}));
    let named = pod(1, json!({"spec": {"hostname": "a", "subdomain": "s"}}));
    let mut server = Server::new(&[headless, named, pod(2, json!({"spec": {"hostname": "b"}}))]);
    server.reconcile();
    let slice = server.slices()[0].clone();
    let names: Vec<_> = slice.endpoints.unwrap().into_iter().map(|e| e.hostname).collect();
    assert_eq!(names, [Some("a".to_owned()), None]);
    assert!(slice.metadata.labels.unwrap().contains_key(HEADLESS));
    assert_eq!(
        server.legacy().subsets.clone().unwrap()[0]
            .addresses
            .clone()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn hints_follow_the_traffic_distribution() {
    for (distribution, expected) in [
        ("PreferClose", json!({"forZones": [{"name": "z"}]})),
        ("PreferSameZone", json!({"forZones": [{"name": "z"}]})),
        (
            "PreferSameNode",
            json!({"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}),
        ),
    ] {
        let service = service(json!({"spec": {"trafficDistribution": distribution}}));
        let mut server = Server::new(&[node(), service, pod(1, json!({}))]);
        server.reconcile();
        let hints = server.slices()[0].endpoints.clone().unwrap()[0].hints.clone();
        assert_eq!(serde_json::to_value(hints).unwrap(), expected);
    }
}

#[test]
fn one_change_touches_one_slice() {
    let mut server = Server::new(&[service(json!({}))]);
    (0..250).for_each(|i| server.put(pod(i, json!({})), false));
    server.reconcile();
    assert_eq!((server.slices().len(), server.written), (3, 4 - 1));
    server.put(
        pod(
            120,
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        ),
        false,
    );
    server.reconcile();
    assert_eq!(server.written, 1);
    server.put(pod(7, json!({})), true);
    server.put(pod(300, json!({})), false);
    server.reconcile();
    assert_eq!((server.slices().len(), server.written), (3, 1));
    server.put(pod(301, json!({})), false);
    server.reconcile();
    assert_eq!((server.slices().len(), server.written), (3, 1));
}

#[test]
fn a_service_that_becomes_a_name_loses_its_slices() {
    let mut server = Server::new(&[service(json!({})), pod(1, json!({}))]);
    server.reconcile();
    server.put(
        service(json!({"spec": {"type": "ExternalName", "externalName": "x.example"}})),
        false,
    );
    server.reconcile();
    assert!(server.slices().is_empty());
}

#[test]
fn the_old_object_ends_at_a_thousand() {
    let mut server = Server::new(&[service(json!({}))]);
    (0..1010).for_each(|i| server.put(pod(i, json!({})), false));
    server.reconcile();
    assert_eq!(
        server.legacy().subsets.clone().unwrap()[0]
            .addresses
            .clone()
            .unwrap()
            .len(),
        1000
    );
    let annotations = server.legacy().metadata.annotations.clone().unwrap();
    assert_eq!(annotations["endpoints.kubernetes.io/over-capacity"], "truncated");
    assert_eq!(server.addresses("IPv4").len(), 1010);
    assert!(
        server
            .slices()
            .iter()
            .all(|s| s.endpoints.as_ref().unwrap().len() <= packing::MOST)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any state of the slices, the endpoints are exactly the pods', each once, in full slices of one kind.
    #[test]
    fn any_state_leads_to_the_pods(
        rounds in proptest::collection::vec(proptest::collection::btree_map(0usize..260, 0u8..4, 0..220), 1..4),
    ) {
        let mut server = Server::new(&[service(json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}))]);
        let mut there: BTreeMap<usize, u8> = BTreeMap::new();
        for round in rounds {
            for (number, what) in round {
                if what == 0 && there.remove(&number).is_some() {
                    server.put(pod(number, json!({})), true);
                } else if what > 0 {
                    let port = json!([{"name": "web", "containerPort": 8080 + i32::from(what)}]);
                    let change = json!({"spec": {"containers": [{"name": "c", "ports": port}]}});
                    server.put(pod(number, change), false);
                    there.insert(number, what);
                }
            }
            server.reconcile();
            let mut expected: Vec<String> =
                there.keys().map(|n| format!("10.244.{}.{}", n / 250, n % 250)).collect();
            expected.sort();
            prop_assert_eq!(server.addresses("IPv4"), expected);
            prop_assert_eq!(server.addresses("IPv6").len(), there.len());
            prop_assert!(server.slices().iter().all(|s| s.endpoints.as_ref().is_none_or(|e| e.len() <= packing::MOST)));
        }
    }
}

#[test]
fn a_slice_says_when_that_happened_which_it_is_written_for() {
    let ready = |number: usize, status: &str, at: &str| {
        let condition = json!([{"type": "Ready", "status": status, "lastTransitionTime": at}]);
        pod(number, json!({"status": {"conditions": condition}}))
    };
    let made = "2026-11-21T10:00:00Z";
    let mut server = Server::new(&[service(json!({"metadata": {"creationTimestamp": made}})), node()]);
    let told = |server: &Server| -> Option<String> {
        let slice = server.slices()[0];
        let annotations = slice.metadata.annotations.as_ref()?;
        annotations
            .get("endpoints.kubernetes.io/last-change-trigger-time")
            .cloned()
    };
    server.reconcile();
    assert_eq!(told(&server).as_deref(), Some(made));
    for (status, at) in [
        ("True", "2026-11-21T10:00:05Z"),
        ("False", "2026-11-21T10:00:09Z"),
    ] {
        server.put(ready(1, status, at), false);
        server.reconcile();
        assert_eq!(told(&server).as_deref(), Some(at));
    }
    // Nothing tells when a pod was deleted, and what is told was something else.
    server.put(ready(1, "False", "2026-11-21T10:00:09Z"), true);
    server.reconcile();
    assert_eq!(told(&server), None);
}

#[test]
fn endpoints_that_somebody_writes_are_mirrored_in_slices() {
    let written = |changes: Value| {
        let mut endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "s", "namespace": "d", "uid": "e", "labels": {"by": "hand"}},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.1"}],
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]},
                {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "http", "port": 9090}]},
            ],
        });
        merge(&mut endpoints, &changes);
        endpoints
    };
    let mut by_hand = service(json!({}));
    by_hand["spec"].as_object_mut().unwrap().remove("selector");
    let mut server = Server::new(&[by_hand.clone(), node(), written(json!({}))]);
    server.reconcile();
    let found = |server: &Server| {
        let mut found: Vec<String> = server
            .slices()
            .into_iter()
            .flat_map(|slice| {
                let port = slice
                    .ports
                    .iter()
                    .flatten()
                    .find_map(|port| port.port)
                    .unwrap_or(0);
                let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
                    endpoint.conditions.as_ref().unwrap().ready.unwrap()
                };
                let endpoints = slice.endpoints.iter().flatten();
                let lines = endpoints
                    .map(move |endpoint| format!("{} {port} {}", endpoint.addresses[0], ready(endpoint)));
                lines.collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        found
    };
    let all = [
        "192.0.2.1 8080 true",
        "192.0.2.2 8080 false",
        "192.0.2.3 9090 true",
        "2001:db8::1 8080 true",
    ];
    assert_eq!(found(&server), all);
    for slice in server.slices() {
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(labels["kubernetes.io/service-name"], "s");
        assert_eq!(
            labels["endpointslice.kubernetes.io/managed-by"],
            "endpointslicemirroring-controller.k8s.io"
        );
        assert_eq!(labels["by"], "hand");
        assert_eq!(
            slice.metadata.owner_references.as_ref().unwrap()[0].kind,
            "Endpoints"
        );
    }
    // A change of one subset leaves the other's slice alone.
    let only =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "http", "port": 9090}]}]});
    server.put(written(only), false);
    server.reconcile();
    assert_eq!(found(&server), ["192.0.2.3 9090 true"]);
    // What is a lock, or is not to be mirrored, has no slices; nor has a service that selects pods, but for its own.
    for changes in [
        json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}),
        json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}}),
    ] {
        server.put(written(changes), false);
        server.reconcile();
        assert_eq!(found(&server), [""; 0]);
        server.put(written(json!({})), false);
        server.reconcile();
        assert_eq!(found(&server), all);
    }
    server.put(service(json!({})), false);
    server.reconcile();
    assert_eq!(found(&server), [""; 0]);
    server.put(by_hand, false);
    server.put(written(json!({})), false);
    server.reconcile();
    assert_eq!(found(&server), all);
    server.put(written(json!({})), true);
    server.reconcile();
    assert_eq!(found(&server), [""; 0]);
}
