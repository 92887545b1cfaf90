//! Pods and pod templates.

use serde_json::{Value, json};

use crate::kinds::value::{default, list, list_mut, object_mut, text, unset};

/// A pod: what a template gets too, and what only pods get (some of it through admission in Kubernetes).
pub(in crate::kinds) fn pod(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    pod_spec(spec);
    default(spec, "enableServiceLinks", true);
    for kind in ["containers", "initContainers"] {
        list_mut(spec, kind).for_each(requests_from_limits);
    }
    if spec["hostNetwork"] == true {
        for kind in ["containers", "initContainers"] {
            list_mut(spec, kind).for_each(host_ports);
        }
    }
    // The ServiceAccount, Priority and DefaultTolerationSeconds admission plugins.
    default(spec, "serviceAccountName", "default");
    default(spec, "serviceAccount", spec["serviceAccountName"].clone());
    default(spec, "priority", 0);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate(spec, "node.kubernetes.io/not-ready");
    tolerate(spec, "node.kubernetes.io/unreachable");
}

/// The spec of a pod or of a template.
pub(super) fn pod_spec(spec: &mut Value) {
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        list_mut(spec, kind).for_each(container);
    }
    list_mut(spec, "volumes").for_each(volume);
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    if unset(&spec["serviceAccountName"]) && !unset(&spec["serviceAccount"]) {
        spec["serviceAccountName"] = spec["serviceAccount"].clone();
    } else if !unset(&spec["serviceAccountName"]) {
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
    } else {
        for field in ["serviceAccount", "serviceAccountName"] {
            if spec.get(field).is_some_and(unset) {
                crate::kinds::value::remove(spec, field);
            }
        }
    }
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
}

fn container(c: &mut Value) {
    for port in list_mut(c, "ports") {
        default(port, "protocol", "TCP");
    }
    for env in list_mut(c, "env") {
        if let Some(reference) = env.pointer_mut("/valueFrom/fieldRef") {
            default(reference, "apiVersion", "v1");
        }
    }
    default(c, "resources", json!({}));
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get_mut(name) {
            probe(p);
        }
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(get) = c.pointer_mut(hook) {
            http_get(get);
        }
    }
    default(c, "terminationMessagePath", "/dev/termination-log");
    default(c, "terminationMessagePolicy", "File");
    let policy = if is_latest(text(&c["image"])) {
        "Always"
    } else {
        "IfNotPresent"
    };
    default(c, "imagePullPolicy", policy);
}

/// Whether an image has the tag `latest` or none, and no digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(p: &mut Value) {
    if let Some(get) = p.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = p.get_mut("grpc")
        && let Some(fields) = grpc.as_object_mut()
    {
        fields.entry("service").or_insert_with(|| "".into());
    }
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        // Zero is Go's unset.
        if p[field] == 0 {
            p[field] = value.into();
        }
        default(p, field, value);
    }
}

fn http_get(get: &mut Value) {
    default(get, "path", "/");
    default(get, "scheme", "HTTP");
}

fn volume(v: &mut Value) {
    let Some(fields) = v.as_object_mut() else { return };
    if fields.keys().all(|k| k == "name") {
        fields.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = v.get_mut(source) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(downward) = v.get_mut("downwardAPI") {
        field_references(downward);
    }
    if let Some(projected) = v.get_mut("projected") {
        for source in list_mut(projected, "sources") {
            if let Some(downward) = source.get_mut("downwardAPI") {
                field_references(downward);
            }
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(path) = v.get_mut("hostPath").and_then(Value::as_object_mut) {
        path.entry("type").or_insert_with(|| "".into());
    }
}

fn field_references(downward: &mut Value) {
    for item in list_mut(downward, "items") {
        if let Some(reference) = item.get_mut("fieldRef") {
            default(reference, "apiVersion", "v1");
        }
    }
}

fn requests_from_limits(c: &mut Value) {
    let Some(limits) = c["resources"]["limits"].as_object().cloned() else {
        return;
    };
    let Some(resources) = object_mut(c, "resources") else {
        return;
    };
    let Some(requests) = object_mut(resources, "requests") else {
        return;
    };
    for (name, limit) in limits {
        default(requests, &name, limit);
    }
}

/// On the node's network a container's port is the node's.
fn host_ports(c: &mut Value) {
    for port in list_mut(c, "ports") {
        let number = port["containerPort"].clone();
        if port["hostPort"] == 0 {
            port["hostPort"] = number.clone();
        }
        default(port, "hostPort", number);
    }
}

fn tolerate(spec: &mut Value, key: &str) {
    let tolerated = list(&spec["tolerations"]).iter().any(|t| {
        let matches_key = t["key"] == key || unset(&t["key"]);
        matches_key && (t["effect"] == "NoExecute" || unset(&t["effect"]))
    });
    if tolerated {
        return;
    }
    let toleration =
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        Some(all) => all.push(toleration),
        None => spec["tolerations"] = json!([toleration]),
    }
}
