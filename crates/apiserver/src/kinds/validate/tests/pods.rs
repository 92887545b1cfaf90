//! Pods.

use serde_json::{Value, json};

use super::{created, kind, made, updated};

fn pod_of(container: Value) -> Value {
    let mut container = container;
    if container["name"].is_null() {
        container["name"] = "c".into();
    }
    json!({"spec": {"containers": [container]}})
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
