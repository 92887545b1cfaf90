//! Services, endpoint slices, network policies.

use serde_json::{Value, json};

use super::{created, updated};

#[test]
fn services_are_judged() {
    let cases = [
        (json!({}), vec!["spec.ports: Required value"]),
        (json!({"clusterIP": "None"}), vec![]),
        (
            json!({"ports": [{"port": 0}]}),
            vec![
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            vec!["spec.ports[0].name: Required value"],
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            vec![
                "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\
             \"TargetPort\":0,\"NodePort\":0}",
            ],
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            json!({"type": "Foo", "ports": [{"port": 80}]}),
            vec![
                "spec.type: Unsupported value: \"Foo\": supported values: \"ClusterIP\", \"ExternalName\", \
               \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            json!({"ports": [{"port": 80}], "clusterIP": "x"}),
            vec![
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
               2001:db8::ffff)",
            ],
        ),
        (
            json!({"type": "ExternalName"}),
            vec!["spec.externalName: Required value"],
        ),
        (
            json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
            vec![
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible \
               services",
            ],
        ),
        (
            json!({"ports": [{"port": 80}], "ipFamilies": ["IPv5"]}),
            vec!["spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\""],
        ),
        (
            json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
            vec![
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
               ::1/128)",
            ],
        ),
    ];
    for (spec, want) in cases {
        created("Service", json!({"spec": spec}), &want);
    }
    let service = |ip: &str| json!({"spec": {"ports": [{"port": 80}], "clusterIP": ip, "clusterIPs": [ip]}});
    updated(
        "Service",
        service("10.96.0.5"),
        service("10.96.0.6"),
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"],
    );
}

#[test]
fn slices_are_judged() {
    created(
        "EndpointSlice",
        json!({"endpoints": []}),
        &["addressType: Required value"],
    );
    created(
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": []}, {"addresses": ["::1"]}]}),
        &[
            "endpoints[0].addresses: Required value: must contain at least 1 address",
            "endpoints[1].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
        ],
    );
    let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
    created(
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": many}),
        &["endpoints: Too many: 1001: must have at most 1000 items"],
    );
    created(
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 1}, {"port": 2}]}),
        &["ports[1].name: Duplicate value: \"\""],
    );
    updated(
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": []}),
        json!({"addressType": "IPv6", "endpoints": []}),
        &["addressType: Invalid value: \"IPv6\": field is immutable"],
    );
}

#[test]
fn policies_are_judged() {
    let cases = [
        (
            json!({"ingress": [{"from": [{}]}]}),
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}]}),
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. \
          10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
        ),
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}),
            "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
        ),
        (
            json!({"egress": [{"ports": [{"port": 80, "endPort": 79}]}]}),
            "spec.egress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
        ),
        (
            json!({"egress": [{"ports": [{"endPort": 79}]}]}),
            "spec.egress[0].ports[0].endPort: Invalid value: 79: may not be specified when `port` is not specified",
        ),
        (
            json!({"policyTypes": ["Both"]}),
            "spec.policyTypes: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\"",
        ),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "spec.podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or \
          'NotIn'",
        ),
    ];
    for (spec, want) in cases {
        created("NetworkPolicy", json!({"spec": spec}), &[want]);
    }
}

#[test]
fn service_cidrs_are_judged() {
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    const FAMILIES: &str =
        "may specify no more than one CIDR for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
    let cases = [
        (json!(["10.1.0.0/24"]), vec![]),
        (json!(["fd00::/112", "10.1.0.0/24"]), vec![]),
        (json!([]), vec!["spec.cidrs: Required value: at least one CIDR required".to_owned()]),
        (
            json!(["10.1.0.0/24", "10.2.0.0/24"]),
            vec![format!("spec.cidrs: Invalid value: [\"10.1.0.0/24\",\"10.2.0.0/24\"]: {FAMILIES}")],
        ),
        (
            json!(["10.1.0.0/24", "fd00::/112", "fd01::/112"]),
            vec![
                "spec.cidrs: Invalid value: [\"10.1.0.0/24\",\"fd00::/112\",\"fd01::/112\"]: may only hold up to 2 values"
                    .to_owned(),
            ],
        ),
        (json!(["10.1.0.0"]), vec![format!("spec.cidrs[0]: Invalid value: \"10.1.0.0\": {CIDR}")]),
        (json!(["10.1.0.0/33"]), vec![format!("spec.cidrs[0]: Invalid value: \"10.1.0.0/33\": {CIDR}")]),
        (json!([""]), vec![format!("spec.cidrs[0]: Invalid value: \"\": {CIDR}")]),
        (
            json!(["10.1.0.1/24"]),
            vec![
                "spec.cidrs[0]: Invalid value: \"10.1.0.1/24\": must be in canonical form (\"10.1.0.0/24\")".to_owned(),
            ],
        ),
        (
            json!(["FD00::/112"]),
            vec!["spec.cidrs[0]: Invalid value: \"FD00::/112\": must be in canonical form (\"fd00::/112\")".to_owned()],
        ),
    ];
    for (cidrs, want) in cases {
        let want: Vec<&str> = want.iter().map(String::as_str).collect();
        created("ServiceCIDR", json!({"spec": {"cidrs": cidrs}}), &want);
    }
}

#[test]
fn a_service_cidr_stays_but_for_a_range_of_the_other_family() {
    let of = |cidrs: &[&str]| json!({"spec": {"cidrs": cidrs}});
    let immutable = "field is immutable";
    let cases: [(&[&str], &[&str], Vec<String>); 6] = [
        (&["10.1.0.0/24"], &["10.1.0.0/24"], vec![]),
        (&["10.1.0.0/24"], &["10.1.0.0/24", "fd00::/112"], vec![]),
        (
            &["10.1.0.0/24"],
            &["10.2.0.0/24"],
            vec![format!(
                "spec.cidrs[0]: Invalid value: \"10.2.0.0/24\": {immutable}"
            )],
        ),
        (
            &["10.1.0.0/24"],
            &["10.2.0.0/24", "fd00::/112"],
            vec![format!(
                "spec.cidrs[0]: Invalid value: \"10.2.0.0/24\": {immutable}"
            )],
        ),
        (
            &["10.1.0.0/24", "fd00::/112"],
            &["10.1.0.0/24"],
            vec![format!(
                "spec.cidrs: Invalid value: [\"10.1.0.0/24\"]: {immutable}"
            )],
        ),
        (
            &["10.1.0.0/24"],
            &[],
            vec![format!("spec.cidrs: Invalid value: []: {immutable}")],
        ),
    ];
    for (old, new, want) in cases {
        let want: Vec<&str> = want.iter().map(String::as_str).collect();
        updated("ServiceCIDR", of(old), of(new), &want);
    }
}

#[test]
fn ip_addresses_are_judged() {
    let of = |name: &str, parent: Value| json!({"metadata": {"name": name}, "spec": {"parentRef": parent}});
    let parent = json!({"resource": "services", "namespace": "default", "name": "web"});
    created("IPAddress", of("10.96.0.1", parent.clone()), &[]);
    created("IPAddress", of("fd00::1", parent.clone()), &[]);
    for (name, why) in [
        (
            "web",
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        ("fd00:0::1", "must be in canonical form (\"fd00::1\")"),
    ] {
        let want = format!("metadata.name: Invalid value: \"{name}\": {why}");
        created("IPAddress", of(name, parent.clone()), &[&want]);
    }
    created(
        "IPAddress",
        json!({"metadata": {"name": "10.96.0.1"}}),
        &["spec.parentRef: Required value"],
    );
    created(
        "IPAddress",
        of("10.96.0.1", json!({"namespace": "default"})),
        &[
            "spec.parentRef.resource: Required value",
            "spec.parentRef.name: Required value",
        ],
    );
    let other = json!({"resource": "services", "namespace": "default", "name": "api"});
    updated(
        "IPAddress",
        of("10.96.0.1", parent),
        of("10.96.0.1", other),
        &[
            "spec.parentRef: Invalid value: {\"resource\":\"services\",\"namespace\":\"default\",\"name\":\"api\"}: \
             field is immutable",
        ],
    );
}
