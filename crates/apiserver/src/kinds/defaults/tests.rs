use serde_json::{Value, json};

use super::*;

fn defaulted(default: fn(&mut Value), mut object: Value) -> Value {
    default(&mut object);
    let once = object.clone();
    default(&mut object);
    assert_eq!(once, object, "defaulting twice is defaulting once");
    object
}

#[test]
fn a_pod_gets_what_people_see_in_kubernetes() {
    let pod = defaulted(
        pod,
        json!({"spec": {"containers": [{"name": "a", "image": "host"}]}}),
    );
    let want = json!({"spec": {
        "containers": [{"name": "a", "image": "host", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "Always"}],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
        "serviceAccountName": "default", "serviceAccount": "default", "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
             "tolerationSeconds": 300},
        ],
    }});
    assert_eq!(pod, want);
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, want) in [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("a:1", "IfNotPresent"),
        ("registry:5000/a", "Always"),
        ("registry:5000/a:1", "IfNotPresent"),
        ("a@sha256:00", "IfNotPresent"),
        ("podnet/echo", "Always"),
    ] {
        let pod = defaulted(pod, json!({"spec": {"containers": [{"image": image}]}}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], want, "{image}");
    }
}

#[test]
fn probes_ports_volumes_and_references_are_completed() {
    let pod = defaulted(
        pod,
        json!({"spec": {"hostNetwork": true,
            "containers": [{"ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "c"}}]}}),
    );
    let c = &pod["spec"]["containers"][0];
    assert_eq!(
        c["ports"][0],
        json!({"containerPort": 80, "protocol": "TCP", "hostPort": 80})
    );
    assert_eq!(
        c["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
            "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(c["resources"]["requests"], json!({"cpu": "1"}));
    assert_eq!(pod["spec"]["volumes"][0]["emptyDir"], json!({}));
    assert_eq!(pod["spec"]["volumes"][1]["configMap"]["defaultMode"], 420);
}

#[test]
fn a_deployment_gets_its_strategy_and_no_pod_admission() {
    let got = defaulted(
        deployment,
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}),
    );
    let spec = &got["spec"];
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert_eq!(
        (&spec["replicas"], &spec["revisionHistoryLimit"]),
        (&json!(1), &json!(10))
    );
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(spec["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    assert!(spec["template"]["spec"].get("tolerations").is_none());
    assert!(spec["template"]["spec"].get("serviceAccountName").is_none());
}

#[test]
fn services_default_by_type() {
    let got = defaulted(service, json!({"spec": {"ports": [{"port": 80}]}}));
    assert_eq!(
        got["spec"],
        json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "None",
            "type": "ClusterIP", "internalTrafficPolicy": "Cluster"})
    );
    let got = defaulted(
        service,
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}),
    );
    assert_eq!(
        got["spec"],
        json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "externalTrafficPolicy": "Cluster",
            "internalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true})
    );
    let got = defaulted(
        service,
        json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
    );
    assert_eq!(
        got["spec"],
        json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"})
    );
}

#[test]
fn policies_secrets_namespaces_and_slices_are_completed() {
    let got = defaulted(
        network_policy,
        json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}}),
    );
    assert_eq!(got["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(got["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    let got = defaulted(
        secret,
        json!({"stringData": {"a": "hello"}, "data": {"b": "eA=="}}),
    );
    assert_eq!(
        got,
        json!({"data": {"b": "eA==", "a": "aGVsbG8="}, "type": "Opaque"})
    );
    let got = defaulted(namespace, json!({"metadata": {"name": "x"}}));
    assert_eq!(
        got["metadata"]["labels"],
        json!({"kubernetes.io/metadata.name": "x"})
    );
    let got = defaulted(endpoint_slice, json!({"ports": [{"port": 80}]}));
    assert_eq!(
        got["ports"][0],
        json!({"port": 80, "name": "", "protocol": "TCP"})
    );
    let got = defaulted(
        crd,
        json!({"spec": {"names": {"kind": "CronTab", "plural": "crontabs"}}}),
    );
    assert_eq!(got["spec"]["names"]["singular"], "crontab");
    assert_eq!(got["spec"]["names"]["listKind"], "CronTabList");
    assert_eq!(got["spec"]["conversion"], json!({"strategy": "None"}));
}
