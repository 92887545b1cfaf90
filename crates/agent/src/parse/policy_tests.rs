use podnet_core::cluster::{ClusterPeer, Existing, NetworkPolicyPeer, PolicyPort, Tier};
use serde_json::{Value, json};

use super::*;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_pod_is_read_with_its_labels_ports_and_addresses() {
    let (name, parsed) = pod(&from(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "nodeName": "node1",
            "initContainers": [
                {"name": "once", "ports": [{"name": "early", "containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"name": "metrics", "containerPort": 9}]},
            ],
            "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080}, {"containerPort": 9090},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            ]}],
        },
        "status": {"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]},
    })));
    let pod = parsed.unwrap();
    assert_eq!(name.to_string(), "shop/web-1");
    assert_eq!((pod.labels["app"].as_str(), pod.addresses.len()), ("web", 2));
    let ports: Vec<_> = pod
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.port.get()))
        .collect();
    assert_eq!(ports, [("dns", 53), ("http", 8080), ("metrics", 9)]);
    assert!(pod.has_own_network());
}

#[test]
fn a_pod_that_has_ended_or_has_the_nodes_network_has_none_of_its_own() {
    for (spec, phase) in [
        (json!({"containers": []}), "Succeeded"),
        (json!({"containers": []}), "Failed"),
        (json!({"containers": [], "hostNetwork": true}), "Running"),
    ] {
        let object =
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": {"phase": phase}});
        assert!(!pod(&from(object)).1.unwrap().has_own_network());
    }
}

#[test]
fn a_bad_pod_says_what_is_wrong() {
    for (spec, status, why) in [
        (
            json!({"containers": []}),
            json!({"podIP": "nowhere"}),
            "status.podIPs: \"nowhere\" is no IP address",
        ),
        (
            json!({"containers": [{"name": "c", "ports": [{"name": "p", "containerPort": 0}]}]}),
            json!({}),
            "spec.containers.ports: 0 is no port: ports are from 1 to 65535",
        ),
    ] {
        let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": status});
        let invalid = pod(&from(object)).1.unwrap_err();
        assert_eq!(
            (invalid.object.to_string().as_str(), invalid.why.as_str()),
            ("Pod n/p", why)
        );
    }
}

#[test]
fn a_network_policy_keeps_what_is_missing_apart_from_what_is_empty() {
    let (_, policy) = network_policy(&from(json!({
        "metadata": {"name": "p", "namespace": "n", "annotations": {"podnet.io/existing-connections": "keep"}},
        "spec": {
            "podSelector": {}, "policyTypes": [], "egress": [],
            "ingress": [{"from": [{"podSelector": {}}, {"namespaceSelector": {}}], "ports": [{"port": "http"}, {}]}],
        },
    })));
    assert_eq!(
        (policy.types, policy.egress, policy.existing),
        (None, None, Ok(Existing::Keep))
    );
    let rule = &policy.ingress.unwrap()[0];
    let selectors: Vec<_> = rule
        .peers
        .iter()
        .map(|peer| match peer {
            Ok(NetworkPolicyPeer::Pods { namespaces, pods }) => (namespaces.is_some(), pods.is_some()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(selectors, [(false, true), (true, false)]);
    let ports: Vec<_> = rule.ports.iter().map(|port| port.clone().unwrap().port).collect();
    assert_eq!(ports, [Some(PolicyPort::Named("http".into())), None]);
}

#[test]
fn a_cluster_network_policy_is_read_part_by_part() {
    let object: ClusterNetworkPolicyObject = from(json!({
        "metadata": {"name": "fence"},
        "spec": {
            "tier": "Baseline", "priority": 7, "subject": {"namespaces": {}}, "strange": 1,
            "egress": [
                {"name": "ok", "action": "Accept", "to": [{"nodes": {}}, {"networks": ["10.0.0.0/8"]}]},
                {"action": "Accept", "to": [{"networks": ["10.0.0.0/8", "here"]}]},
                {"action": "Accept", "to": [{"pods": {"podSelector": {}, "labels": {}}}]},
            ],
        },
    }));
    let (name, policy) = cluster_network_policy(&object);
    assert_eq!(
        (name.as_str(), policy.tier, policy.priority),
        ("fence", Ok(Tier::Baseline), Ok(7))
    );
    assert_eq!(policy.unknown[0].0, "spec.strange: this field is not known");
    let good = policy.egress[0].matches.as_ref().unwrap();
    assert!(matches!(
        good.peers[..],
        [ClusterPeer::Nodes(_), ClusterPeer::Networks(_)]
    ));
    let why = |index: usize| policy.egress[index].matches.as_ref().unwrap_err().0.clone();
    assert_eq!(
        why(1),
        "spec.egress[1].to[0].networks: \"here\" is no range such as 10.0.0.0/8"
    );
    assert!(
        why(2).starts_with("spec.egress[2].to[0]: unknown field `labels`"),
        "{}",
        why(2)
    );
    let odd = json!({"metadata": {"name": "x"}, "spec": {"ingress": {}}});
    let (_, policy) = cluster_network_policy(&from(odd));
    assert!(policy.tier.is_err() && policy.priority.is_err() && policy.subject.is_err());
    assert!(policy.ingress[0].matches.is_err());
}
