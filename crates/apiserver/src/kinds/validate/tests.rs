use proptest::prelude::*;
use serde_json::{Value, json};

use crate::kinds::{Resource, builtin};

fn kind(name: &str) -> Resource {
    Resource::Builtin(builtin().iter().find(|k| k.kind == name).unwrap())
}

/// Decodes, defaults and prepares as the server does.
fn made(name: &str, mut object: Value) -> Value {
    let kind = kind(name);
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = "x".into();
    }
    if kind.namespaced() {
        object["metadata"]["namespace"] = "default".into();
    }
    kind.decode(&mut object).unwrap();
    kind.default(&mut object);
    kind.prepare_create(&mut object);
    object
}

#[track_caller]
fn created(name: &str, object: Value, want: &[&str]) {
    let got: Vec<String> = kind(name)
        .validate_create(&made(name, object))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got, want);
}

#[track_caller]
fn updated(name: &str, old: Value, new: Value, want: &[&str]) {
    let got: Vec<String> = kind(name)
        .validate_update(&made(name, new), &made(name, old))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got, want);
}

fn pod_of(container: Value) -> Value {
    let mut container = container;
    if container["name"].is_null() {
        container["name"] = "c".into();
    }
    json!({"spec": {"containers": [container]}})
}

#[test]
fn names_are_judged_by_kind() {
    let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation \
                     is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut config = json!({"metadata": {"name": "A_b"}});
    created(
        "ConfigMap",
        config.clone(),
        &[&format!("metadata.name: Invalid value: \"A_b\": {subdomain}")],
    );
    config["metadata"]["name"] = "".into();
    created(
        "ConfigMap",
        config,
        &["metadata.name: Required value: name or generateName is required"],
    );
    let label = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                 character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
                 validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let service = json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}});
    created(
        "Service",
        service,
        &[&format!("metadata.name: Invalid value: \"1a\": {label}")],
    );
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let namespace = json!({"metadata": {"name": "a.b"}});
    created(
        "Namespace",
        namespace,
        &[&format!("metadata.name: Invalid value: \"a.b\": {label}")],
    );
}

#[test]
fn labels_and_finalizers_are_judged() {
    let value = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                 start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
                 for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    created(
        "ConfigMap",
        json!({"metadata": {"labels": {"a": "b c"}}}),
        &[&format!("metadata.labels: Invalid value: \"b c\": {value}")],
    );
    let key = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
               alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
               '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    created(
        "ConfigMap",
        json!({"metadata": {"labels": {"a b": "c"}}}),
        &[&format!("metadata.labels: Invalid value: \"a b\": {key}")],
    );
    created(
        "ConfigMap",
        json!({"metadata": {"finalizers": ["mine"]}}),
        &[
            "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully \
           qualified",
        ],
    );
}

#[test]
fn pods_are_judged() {
    created("Pod", json!({"spec": {}}), &["spec.containers: Required value"]);
    let cases = [
        (json!({"name": ""}), "spec.containers[0].name: Required value"),
        (
            json!({"imagePullPolicy": "Sometimes"}),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
          \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{}]}),
            "spec.containers[0].ports[0].containerPort: Required value",
        ),
        (
            json!({"ports": [{"containerPort": 1, "protocol": "ICMP"}]}),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]}),
            "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"livenessProbe": {}}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"livenessProbe": {"tcpSocket": {"port": 80}, "successThreshold": 2}}),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {}}]}),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, \
          `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.foo"}}}]}),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"status.foo\": error converting \
          fieldPath: field label not supported: status.foo",
        ),
        (
            json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"resources": {"limits": {"cpu": "-1"}}}),
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
    ];
    for (container, want) in cases {
        let errors = kind("Pod").validate_create(&made("Pod", pod_of(container)));
        assert_eq!(errors.first().map(ToString::to_string).as_deref(), Some(want));
    }
}

#[test]
fn pod_specs_are_judged() {
    let cases = [
        (
            "restartPolicy",
            json!("Sometimes"),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (
            "dnsPolicy",
            json!("Foo"),
            "spec.dnsPolicy: Unsupported value: \"Foo\": supported values: \"ClusterFirst\", \"ClusterFirstWithHostNet\", \
          \"Default\", \"None\"",
        ),
        (
            "terminationGracePeriodSeconds",
            json!(-1),
            "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "volumes",
            json!([{"name": "a"}, {"name": "a"}]),
            "spec.volumes[1].name: Duplicate value: \"a\"",
        ),
        (
            "volumes",
            json!([{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            "volumes",
            json!([{"name": "a", "configMap": {}}]),
            "spec.volumes[0].configMap.name: Required value",
        ),
        (
            "hostAliases",
            json!([{"ip": "x"}]),
            "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            "tolerations",
            json!([{"key": "a", "operator": "Is"}]),
            "spec.tolerations[0].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"",
        ),
        (
            "initContainers",
            json!([{"name": "c"}]),
            "spec.initContainers[0].name: Duplicate value: \"c\"",
        ),
        (
            "initContainers",
            json!([{"name": "i", "readinessProbe": {"tcpSocket": {"port": 1}}}]),
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without \
          restartPolicy=Always",
        ),
        (
            "dnsPolicy",
            json!("None"),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
    ];
    for (field, value, want) in cases {
        let mut pod = pod_of(json!({}));
        pod["spec"][field] = value;
        created("Pod", pod, &[want]);
    }
}

#[test]
fn a_pod_spec_stays_as_it_was() {
    let old = pod_of(json!({"image": "a"}));
    updated("Pod", old.clone(), pod_of(json!({"image": "b"})), &[]);
    let mut moved = old.clone();
    moved["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    moved["metadata"] = json!({"labels": {"a": "b"}});
    updated("Pod", old.clone(), moved, &[]);
    let mut renamed = old.clone();
    renamed["spec"]["hostname"] = "h".into();
    updated(
        "Pod",
        old.clone(),
        renamed,
        &[
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
           `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
           tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n\
           - spec.hostname: null\n+ spec.hostname: \"h\"\n",
        ],
    );
    let mut more = old.clone();
    more["spec"]["containers"] = json!([{"name": "c", "image": "a"}, {"name": "d"}]);
    updated(
        "Pod",
        old,
        more,
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
}

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]}}}})
}

#[test]
fn deployments_are_judged() {
    created("Deployment", deployment(), &[]);
    let with = |path: &str, value: Value| {
        let mut object = deployment();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        object
    };
    created(
        "Deployment",
        with("/spec/template/metadata/labels", json!({"app": "b"})),
        &[
            "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    created(
        "Deployment",
        with("/spec/selector", Value::Null),
        &[
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ],
    );
    created(
        "Deployment",
        with("/spec/selector", json!({})),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    created(
        "Deployment",
        with("/spec/replicas", json!(-1)),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    created(
        "Deployment",
        with("/spec/template/spec/restartPolicy", json!("Never")),
        &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
    );
    created(
        "Deployment",
        with(
            "/spec/strategy",
            json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}),
        ),
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
    );
    created(
        "Deployment",
        with(
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
        ),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    let mut other = deployment();
    other["spec"]["selector"]["matchLabels"]["b"] = "c".into();
    other["spec"]["template"]["metadata"]["labels"]["b"] = "c".into();
    updated(
        "Deployment",
        deployment(),
        other,
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"b\":\"c\"}}: field is immutable"],
    );
}

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
fn configuration_is_judged() {
    created(
        "ConfigMap",
        json!({"data": {"a b": ""}}),
        &[
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
           (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    updated(
        "ConfigMap",
        json!({"immutable": true, "data": {"a": "b"}}),
        json!({"immutable": true, "data": {"a": "c"}}),
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    created(
        "Secret",
        json!({"type": "kubernetes.io/tls"}),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    updated(
        "Secret",
        json!({}),
        json!({"type": "a/b"}),
        &["type: Invalid value: \"a/b\": field is immutable"],
    );
    created(
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0}}),
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
    updated(
        "Node",
        json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
        json!({"spec": {"podCIDR": "10.0.1.0/24"}}),
        &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
    );
}

#[test]
fn definitions_are_judged() {
    let crd = json!({"metadata": {"name": "crontabs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "crontabs", "kind": "CronTab"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}}]}});
    let with = |path: &str, value: Value| {
        let mut object = crd.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        object
    };
    let name = "CustomResourceDefinition";
    created(name, crd.clone(), &[]);
    created(
        name,
        with("/metadata/name", json!("x")),
        &["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"],
    );
    created(
        name,
        with("/spec/scope", json!("Galaxy")),
        &["spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\""],
    );
    created(
        name,
        with("/spec/versions/0/schema", Value::Null),
        &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"],
    );
    created(
        name,
        with(
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
            json!({}),
        ),
        &[
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for \
           specified object fields",
        ],
    );
}

#[test]
fn the_status_of_an_invalid_object_is_that_of_kubernetes() {
    let errors = kind("Pod").validate_create(&made("Pod", json!({"spec": {}})));
    assert_eq!(
        crate::kinds::invalid_status("", "Pod", "x", &errors),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Pod \"x\" is invalid: spec.containers: Required value", "reason": "Invalid",
            "details": {"name": "x", "kind": "Pod", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"}]},
            "code": 422})
    );
    let errors = kind("Deployment").validate_create(&made("Deployment", json!({"spec": {}})));
    let status = crate::kinds::invalid_status("apps", "Deployment", "x", &errors);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("Deployment.apps \"x\" is invalid: [spec.selector: ")
    );
}

/// Values out of few, so that random objects are valid often and wrong in many ways.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..70000).prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("a"),
            Just("TCP"),
            Just("Always"),
            Just("ClusterIP"),
            Just("10.0.0.1"),
            Just("None"),
            Just("10%"),
            Just("A b"),
            Just("1Gi"),
        ]
        .prop_map(Value::from),
    ]
}

const FIELDS: &[&str] = &[
    "name",
    "spec",
    "metadata",
    "labels",
    "containers",
    "initContainers",
    "ports",
    "port",
    "protocol",
    "containerPort",
    "type",
    "clusterIP",
    "selector",
    "template",
    "replicas",
    "strategy",
    "rollingUpdate",
    "volumes",
    "emptyDir",
    "ingress",
    "from",
    "ipBlock",
    "cidr",
    "endpoints",
    "addresses",
    "addressType",
    "data",
    "status",
    "env",
    "livenessProbe",
    "httpGet",
    "tolerations",
    "matchLabels",
    "hostNetwork",
    "resources",
    "limits",
    "cpu",
];

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(FIELDS), inner), 0..6).prop_map(|fields| fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<Value>()),
        ]
    })
}

proptest! {
    /// Whatever is sent: nothing panics, defaulting twice is defaulting once, and what is valid stays valid.
    #[test]
    fn any_object_is_judged_and_defaulting_is_idempotent(
        at in 0..builtin().len(), spec in tree(), data in tree(),
    ) {
        let kind = Resource::Builtin(&builtin()[at]);
        let mut object = json!({"metadata": {"name": "x"}, "spec": spec, "data": data});
        if kind.namespaced() {
            object["metadata"]["namespace"] = "default".into();
        }
        if kind.decode(&mut object).is_err() {
            return Ok(());
        }
        kind.default(&mut object);
        let mut again = object.clone();
        kind.default(&mut again);
        prop_assert_eq!(&object, &again);
        prop_assert_eq!(kind.decode(&mut again).unwrap(), Vec::<String>::new());
        prop_assert_eq!(&object, &again, "a defaulted object decodes to itself");
        kind.prepare_create(&mut object);
        if kind.validate_create(&object).is_empty() {
            let mut update = object.clone();
            kind.default(&mut update);
            kind.prepare_update(&mut update, &object);
            prop_assert_eq!(&update, &object, "an update that changes nothing changes nothing");
            prop_assert_eq!(kind.validate_update(&update, &object), vec![]);
        }
        kind.row(&object, jiff::Timestamp::UNIX_EPOCH);
    }
}
