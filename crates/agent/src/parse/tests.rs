use std::net::IpAddr;

use podnet_core::cluster::{Affinity, Algorithm, Family, InternalPolicy, Resolution};
use serde_json::{Value, json};

use super::*;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_node_is_read_with_its_ranges_and_addresses() {
    let (name, parsed) = node(&from(json!({
        "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "node1"},
                {"type": "ExternalIP", "address": "203.0.113.7"},
                {"type": "InternalIP", "address": "172.30.0.11"},
                {"type": "InternalIP", "address": "fd30::11"},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })))
    .unwrap();
    let node = parsed.unwrap();
    assert_eq!(
        (name.as_str(), node.zone(), node.ready),
        ("node1", Some("a"), true)
    );
    assert_eq!(node.pod_ranges.iter().count(), 2);
    assert_eq!(node.primary, Some(Family::V4));
    assert_eq!(node.address(Family::V6), Some("fd30::11".parse().unwrap()));
}

#[test]
fn a_bad_node_says_what_is_wrong() {
    for (spec, status, why) in [
        (
            json!({"podCIDRs": ["10.244.0.0"]}),
            json!({}),
            "spec.podCIDRs: \"10.244.0.0\" is no range such as 10.244.1.0/24",
        ),
        (
            json!({"podCIDRs": ["10.244.0.1/24"]}),
            json!({}),
            "spec.podCIDRs: 10.244.0.1/24 has bits set beyond its prefix",
        ),
        (
            json!({}),
            json!({"addresses": [{"type": "InternalIP", "address": "nowhere"}]}),
            "status.addresses: \"nowhere\" is no IP address",
        ),
    ] {
        let object = json!({"metadata": {"name": "node1"}, "spec": spec, "status": status});
        let invalid = node(&from(object)).unwrap().1.unwrap_err();
        assert_eq!(
            (invalid.object.to_string().as_str(), invalid.why.as_str()),
            ("Node node1", why)
        );
    }
}

fn a_service(spec: Value, labels: Value) -> Option<Parsed<podnet_core::cluster::Service>> {
    service(&from(
        json!({"metadata": {"name": "web", "namespace": "default", "labels": labels}, "spec": spec}),
    ))
    .1
}

#[test]
fn services_are_carried_when_they_have_an_address_and_no_other_proxy() {
    let port = json!([{"port": 80}]);
    let address = json!({"clusterIP": "10.96.0.1", "ports": port});
    assert!(
        a_service(address.clone(), json!({}))
            .unwrap()
            .unwrap()
            .is_carried()
    );
    for spec in [json!({"clusterIP": "", "ports": port}), json!({"ports": port})] {
        assert!(a_service(spec, json!({})).is_none(), "it has no address yet");
    }
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        let service = a_service(address.clone(), json!({label: ""})).unwrap().unwrap();
        assert!(!service.is_carried() && service.cluster_ips().len() == 1);
    }
}

#[test]
fn services_without_an_address_have_a_name() {
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": true});
    let service = a_service(headless, json!({})).unwrap().unwrap();
    assert_eq!(service.resolution, Resolution::Endpoints);
    assert!(service.publish_not_ready && !service.is_carried());

    let alias =
        |name: &str| a_service(json!({"type": "ExternalName", "externalName": name}), json!({})).unwrap();
    let service = alias("www.example.com").unwrap();
    assert_eq!(
        service.resolution,
        Resolution::Alias("www.example.com".parse().unwrap())
    );
    assert!(!service.is_carried());
    assert_eq!(
        alias("a..b").unwrap_err().why,
        "spec.externalName: \"a..b\" is no domain name: between its dots stand 1 to 63 characters each"
    );
}

#[test]
fn a_service_is_read_with_its_policies() {
    let spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
        "ports": [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "port": 53}],
        "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
    });
    let service = a_service(spec, json!({})).unwrap().unwrap();
    assert_eq!(service.cluster_ips().len(), 2);
    assert_eq!(service.ports()[1].protocol, Protocol::Tcp);
    assert_eq!(service.internal_policy, InternalPolicy::Local);
    assert_eq!(service.affinity, Affinity::ClientIp { seconds: 10_800 });
    for (ports, why) in [
        (
            json!([{"port": 0}]),
            "spec.ports: 0 is no port: ports are from 1 to 65535",
        ),
        (
            json!([{"port": 1, "protocol": "ICMP"}]),
            "spec.ports: protocol \"ICMP\": supported are TCP, UDP and SCTP",
        ),
        (
            json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]),
            "spec.ports: tcp port 1 comes twice",
        ),
    ] {
        let invalid = a_service(json!({"clusterIP": "10.96.0.1", "ports": ports}), json!({}))
            .unwrap()
            .unwrap_err();
        assert_eq!(invalid.why, why);
    }
}

#[test]
fn what_cannot_be_read_of_the_ways_in_hurts_itself_only() {
    let spec = json!({
        "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
        "externalIPs": ["203.0.113.7", "all"], "loadBalancerSourceRanges": ["192.0.2.0/33"],
        "healthCheckNodePort": 70_000,
    });
    let mut object: k8s_openapi::api::core::v1::Service =
        from(json!({"metadata": {"name": "web", "namespace": "default",
            "annotations": {"podnet.io/load-balancing": "Maglev"}}, "spec": spec}));
    object.status = Some(from(
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}, {"ip": "::g"}]}}),
    ));
    let external = service(&object).1.unwrap().unwrap().external;
    assert_eq!(external.ips, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        external.load_balancer,
        ["198.51.100.7".parse::<IpAddr>().unwrap()]
    );
    // There is a list, and it lets nobody in.
    assert_eq!(external.sources, Some([].into()));
    assert_eq!(external.health_check, None);
    let unread = [
        "spec.externalIPs: \"all\" is no IP address; it is left out",
        "status.loadBalancer.ingress: \"::g\" is no IP address; it is left out",
        "spec.loadBalancerSourceRanges: \"192.0.2.0/33\" is no range such as 192.0.2.0/24; it lets nobody in",
        "spec.healthCheckNodePort: 70000 is no port: ports are from 1 to 65535; nothing listens there",
        "metadata.annotations[podnet.io/load-balancing]: \"Maglev\" is neither \"random\" nor \"maglev\"; endpoints are \
         chosen at random",
    ];
    assert_eq!(external.unread, unread);
    assert_eq!(external.algorithm, Algorithm::Random);
    let annotations = [("podnet.io/load-balancing".to_owned(), "maglev".to_owned())];
    object.metadata.annotations = Some(annotations.into());
    let external = service(&object).1.unwrap().unwrap().external;
    assert_eq!(external.algorithm, Algorithm::Maglev);
}

#[test]
fn addresses_whose_load_balancer_is_a_proxy_are_not_ours() {
    let mut object: k8s_openapi::api::core::v1::Service = from(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30_080}]},
    }));
    object.status = Some(from(json!({"loadBalancer": {"ingress": [
        {"ip": "198.51.100.7", "ipMode": "Proxy"},
        {"ip": "198.51.100.8", "ipMode": "VIP"},
        {"ip": "2001:db8::8"},
        {"hostname": "lb.example.org", "ipMode": "Proxy"},
    ]}})));
    let parsed = service(&object).1.unwrap().unwrap();
    let expected = ["198.51.100.8", "2001:db8::8"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(parsed.external.load_balancer, expected);
    assert_eq!(parsed.external.unread, Vec::<String>::new());
    // It comes by the node port.
    assert_eq!(parsed.ports()[0].node_port.map(u16::from), Some(30_080));
}

#[test]
fn a_slice_of_too_many_endpoints_says_so() {
    let slice_of = |count: u32| {
        let endpoints = (0..count).map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0x0af4_0000 + number);
            json!({"addresses": [address.to_string()]})
        });
        let object = json!({
            "metadata": {"name": "many", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        slice(&from(object)).1
    };
    assert_eq!(slice_of(1000).unwrap().endpoints().len(), 1000);
    for count in [1001, 5000] {
        let invalid = slice_of(count).unwrap_err();
        assert_eq!(
            (invalid.object.to_string(), invalid.why),
            (
                "EndpointSlice default/many".to_owned(),
                format!("endpoints: there are {count}, and 1000 are allowed; use more slices")
            )
        );
    }
}

#[test]
fn conditions_that_are_not_told_are_as_the_api_says() {
    let object = json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.244.0.2", "10.244.0.3"]},
            {"addresses": ["10.244.0.4"], "conditions": {"ready": false}, "nodeName": "node1", "hostname": "web-1"},
            {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ],
    });
    let (_, parsed) = slice(&from(object));
    let parsed = parsed.unwrap();
    assert_eq!(parsed.service, Some(ObjectName::new("default", "web")));
    let read: Vec<_> = parsed
        .endpoints()
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating))
        .collect();
    assert_eq!(
        read,
        [(true, true, false), (false, true, false), (false, true, true)]
    );
    assert_eq!(parsed.ports[1].port, None);
    let hostnames: Vec<_> = parsed.endpoints().iter().map(|e| e.hostname.as_deref()).collect();
    assert_eq!(hostnames, [None, Some("web-1"), None]);

    let (_, parsed) = slice(&from(json!({
        "metadata": {"name": "x", "namespace": "default"}, "addressType": "IPv6",
        "endpoints": [{"addresses": ["10.244.0.2"]}],
    })));
    assert_eq!(
        parsed.unwrap_err().why,
        "endpoints: 10.244.0.2 is not of the slice's addressType"
    );
}
