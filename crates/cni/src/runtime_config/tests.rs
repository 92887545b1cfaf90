use super::*;
use crate::error::Code;
use serde_json::{Value, json};

fn parse(runtime_config: Value) -> Result<RuntimeConfig, crate::error::CniError> {
    let document = json!({ "runtimeConfig": runtime_config });
    RuntimeConfig::parse(document.as_object().unwrap())
}

#[test]
fn every_capability_is_understood() {
    let config = parse(json!({
        "ips": ["10.244.1.7/24", "fd00::7"],
        "mac": "0a:58:0a:f4:01:07",
        "ipRanges": [[{ "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.17", "gateway": "10.1.2.1" },
                      { "subnet": "10.1.3.0/24" }]],
        "dns": { "servers": ["10.96.0.10"], "searches": ["default.svc"], "options": ["ndots:5"] },
        "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 8080, "containerPort": 53, "protocol": "UDP", "hostIP": "172.30.0.10" },
        ],
        "bandwidth": { "ingressRate": 1000, "ingressBurst": 2000, "egressRate": 0, "egressBurst": 0 },
        "aliases": { "podnet": ["somebody else's"] },
    }))
    .unwrap();
    assert_eq!(
        config.ips,
        [
            "10.244.1.7".parse::<IpAddr>().unwrap(),
            "fd00::7".parse().unwrap()
        ]
    );
    assert_eq!(config.mac.unwrap().to_string(), "0a:58:0a:f4:01:07");
    assert_eq!(config.ip_ranges[0].len(), 2);
    assert_eq!(config.ip_ranges[0][0].bounds().1.to_string(), "10.1.2.17");
    assert_eq!(config.dns.as_ref().unwrap().search, ["default.svc"]);
    assert_eq!(config.port_mappings[1].protocol, Protocol::Udp);
    assert_eq!(config.bandwidth.ingress.unwrap().burst.unwrap().get(), 2000);
    assert_eq!(config.bandwidth.egress, None);
    assert_eq!(config.wishes(), Capability::ALL[..6]);
    let again: RuntimeConfig = serde_json::from_value(json!(config)).unwrap();
    assert_eq!(again, config, "the agent gets what the plugin read");
}

#[test]
fn nothing_asked_is_nothing_wished() {
    let empty = json!({
        "ips": [], "mac": "", "ipRanges": null, "dns": { "servers": [] }, "portMappings": [],
        "bandwidth": { "ingressRate": 0 }, "infinibandGUID": null,
    });
    assert_eq!(parse(empty).unwrap(), RuntimeConfig::default());
    assert_eq!(parse(Value::Null).unwrap().wishes(), []);
}

#[test]
fn annotations_limit_bandwidth_where_the_capability_does_not() {
    let config = parse(json!({
        "bandwidth": { "egressRate": 5 },
        "io.kubernetes.cri.pod-annotations": {
            "kubernetes.io/ingress-bandwidth": "10M",
            "kubernetes.io/egress-bandwidth": "1G",
            "somebody/else": "x",
        },
    }))
    .unwrap();
    assert_eq!(config.bandwidth.ingress.unwrap().rate.get(), 10_000_000);
    assert_eq!(config.bandwidth.egress.unwrap().rate.get(), 5);
    assert_eq!(config.annotations["somebody/else"], "x");
}

#[test]
fn an_infiniband_guid_is_refused_only_where_it_is_asked_for() {
    let error = parse(json!({ "infinibandGUID": "c2:11:22:33:44:55:66:77" })).unwrap_err();
    assert_eq!(error.code, Code::UnsupportedField);
    assert!(error.msg.contains("infinibandGUID"), "{error}");
    let declared = json!({ "capabilities": { "infinibandGUID": true } });
    RuntimeConfig::parse(declared.as_object().unwrap()).unwrap();
}

#[test]
fn a_wrong_value_is_code_7_and_names_its_key() {
    let range = |range: Value| json!({ "ipRanges": [[range]] });
    let port = |mapping: Value| json!({ "portMappings": [mapping] });
    let annotation = |key: &str, value: &str| json!({ "io.kubernetes.cri.pod-annotations": { key: value } });
    for (wrong, key) in [
        (json!(7), "runtimeConfig"),
        (json!([]), "runtimeConfig"),
        (json!({ "ips": "10.0.0.1" }), "runtimeConfig.ips"),
        (json!({ "ips": ["10.0.0.1", 7] }), "runtimeConfig.ips[1]"),
        (json!({ "ips": ["10.0.0.256"] }), "runtimeConfig.ips[0]"),
        (json!({ "ips": ["0.0.0.0"] }), "runtimeConfig.ips[0]"),
        (json!({ "ips": ["ff02::1"] }), "runtimeConfig.ips[0]"),
        (json!({ "mac": "0a:58" }), "runtimeConfig.mac"),
        (json!({ "mac": 7 }), "runtimeConfig.mac"),
        (json!({ "mac": "01:00:5e:00:00:01" }), "runtimeConfig.mac"),
        (json!({ "mac": "00:00:00:00:00:00" }), "runtimeConfig.mac"),
        (json!({ "ipRanges": [[]] }), "runtimeConfig.ipRanges[0]"),
        (json!({ "ipRanges": [{}] }), "runtimeConfig.ipRanges[0]"),
        (range(json!({})), "runtimeConfig.ipRanges[0][0]"),
        (range(json!({ "subnet": "10.0.0.0/33" })), "ipRanges[0][0].subnet"),
        (
            range(json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1" })),
            "rangeStart",
        ),
        (
            range(json!({ "subnet": "10.0.0.0/24", "rangeEnd": "fd00::1" })),
            "rangeEnd",
        ),
        (
            range(json!({ "subnet": "10.0.0.0/24", "gateway": "x" })),
            "gateway",
        ),
        (
            range(json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8" })),
            "ipRanges[0][0]",
        ),
        (
            json!({ "ipRanges": [[{ "subnet": "10.0.0.0/24" }, { "subnet": "10.0.0.128/25" }]] }),
            "ipRanges[0]",
        ),
        (
            json!({ "ipRanges": [[{ "subnet": "10.0.0.0/24" }, { "subnet": "fd00::/64" }]] }),
            "ipRanges[0]",
        ),
        (json!({ "dns": [] }), "runtimeConfig.dns"),
        (
            json!({ "dns": { "servers": ["ns.example"] } }),
            "runtimeConfig.dns.servers[0]",
        ),
        (
            json!({ "dns": { "searches": [7] } }),
            "runtimeConfig.dns.searches[0]",
        ),
        (json!({ "portMappings": {} }), "runtimeConfig.portMappings"),
        (port(json!({ "containerPort": 80 })), "portMappings[0]"),
        (
            port(json!({ "hostPort": 0, "containerPort": 80 })),
            "portMappings[0].hostPort",
        ),
        (
            port(json!({ "hostPort": 65536, "containerPort": 80 })),
            "portMappings[0].hostPort",
        ),
        (
            port(json!({ "hostPort": 8080, "containerPort": -1 })),
            "portMappings[0].containerPort",
        ),
        (
            port(json!({ "hostPort": "8080", "containerPort": 80 })),
            "portMappings[0].hostPort",
        ),
        (
            port(json!({ "hostPort": 1, "containerPort": 1, "protocol": "icmp" })),
            "portMappings[0].protocol",
        ),
        (
            port(json!({ "hostPort": 1, "containerPort": 1, "hostIP": "node" })),
            "portMappings[0].hostIP",
        ),
        (
            json!({ "portMappings": [
                { "hostPort": 1, "containerPort": 1 }, { "hostPort": 1, "containerPort": 2, "hostIP": "10.0.0.1" },
            ] }),
            "portMappings[1]",
        ),
        (json!({ "bandwidth": 7 }), "runtimeConfig.bandwidth"),
        (
            json!({ "bandwidth": { "ingressRate": -1 } }),
            "runtimeConfig.bandwidth.ingressRate",
        ),
        (
            json!({ "bandwidth": { "ingressRate": 1.5 } }),
            "runtimeConfig.bandwidth.ingressRate",
        ),
        (
            json!({ "bandwidth": { "egressBurst": 8 } }),
            "runtimeConfig.bandwidth",
        ),
        (
            annotation("kubernetes.io/ingress-bandwidth", "fast"),
            "kubernetes.io/ingress-bandwidth",
        ),
        (
            annotation("kubernetes.io/egress-bandwidth", "1"),
            "kubernetes.io/egress-bandwidth",
        ),
        (
            annotation("kubernetes.io/egress-bandwidth", "2P"),
            "kubernetes.io/egress-bandwidth",
        ),
        (
            json!({ "io.kubernetes.cri.pod-annotations": { "a": 1 } }),
            "pod-annotations.a",
        ),
    ] {
        let error = parse(wrong.clone()).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{wrong}: {error}");
        assert!(error.msg.contains(key), "{wrong}: {error}");
        assert!(!error.details.is_empty(), "{wrong}: {error}");
    }
}

#[test]
fn the_same_port_may_lead_elsewhere_on_another_address_or_protocol() {
    let mappings = json!({ "portMappings": [
        { "hostPort": 1, "containerPort": 1, "hostIP": "10.0.0.1" },
        { "hostPort": 1, "containerPort": 2, "hostIP": "10.0.0.2" },
        { "hostPort": 1, "containerPort": 3, "hostIP": "10.0.0.1", "protocol": "udp" },
        { "hostPort": 1, "containerPort": 4, "hostIP": "::" },
        { "hostPort": 1, "containerPort": 1, "hostIP": "10.0.0.1" },
    ] });
    assert_eq!(parse(mappings).unwrap().port_mappings.len(), 4);
}
