//! The table of built-in kinds, and what all of them have in common.

use serde_json::Value;

use super::validate::NameRule;
use super::value::{at_path, remove};
use super::{DecodeError, FieldError, Kind, defaults, prepare, print, schema, validate};

/// What counts up `metadata.generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    None,
    /// Changes of spec.
    Spec,
    /// Changes of spec or of annotations: Deployments.
    SpecAndAnnotations,
    /// Changes of anything but metadata: kinds without spec.
    Whole,
}

const PLAIN: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: false,
    generation: Generation::None,
    stored_as: None,
    names: NameRule::Subdomain,
    default: |_| {},
    validate: |_, _| Vec::new(),
    validate_status: |_, _| Vec::new(),
    prepare_create: |_| {},
    columns: print::PLAIN,
    row: print::plain,
    field_labels: &[],
    field_label: at_path,
};

const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const NEW_EVENT_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];

static BUILTIN: &[Kind] = &[
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        status: true,
        names: NameRule::Label,
        default: defaults::namespace,
        validate: validate::namespace,
        prepare_create: prepare::new_namespace,
        columns: print::NAMESPACE,
        row: print::namespace,
        field_labels: &["status.phase", "name"],
        field_label: namespace_field,
        ..PLAIN
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        status: true,
        default: defaults::node,
        validate: validate::node,
        columns: print::NODE,
        row: print::node,
        field_labels: &["spec.unschedulable"],
        field_label: flag,
        ..PLAIN
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        status: true,
        generation: Generation::Spec,
        default: defaults::pod,
        validate: validate::pod,
        prepare_create: prepare::new_pod,
        columns: print::POD,
        row: print::pod,
        field_labels: POD_FIELDS,
        field_label: flag,
        ..PLAIN
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        status: true,
        names: NameRule::Dns1035,
        default: defaults::service,
        validate: validate::service,
        prepare_create: prepare::new_service,
        columns: print::SERVICE,
        row: print::service,
        field_labels: &["spec.clusterIP", "spec.type"],
        ..PLAIN
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        default: defaults::endpoints,
        validate: validate::endpoints,
        columns: print::ENDPOINTS,
        row: print::endpoints,
        ..PLAIN
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        validate: validate::config_map,
        columns: print::CONFIG_MAP,
        row: print::config_map,
        ..PLAIN
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        default: defaults::secret,
        validate: validate::secret,
        columns: print::SECRET,
        row: print::secret,
        field_labels: &["type"],
        ..PLAIN
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        columns: print::SERVICE_ACCOUNT,
        row: print::service_account,
        ..PLAIN
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        validate: validate::event,
        columns: print::EVENT,
        row: print::event,
        field_labels: EVENT_FIELDS,
        field_label: event_field,
        ..PLAIN
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        stored_as: Some(("", "events")),
        validate: validate::new_event,
        columns: print::EVENT,
        row: print::event,
        field_labels: NEW_EVENT_FIELDS,
        ..PLAIN
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: Generation::Whole,
        default: defaults::endpoint_slice,
        validate: validate::endpoint_slice,
        columns: print::ENDPOINT_SLICE,
        row: print::endpoint_slice,
        ..PLAIN
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        generation: Generation::Spec,
        default: defaults::network_policy,
        validate: validate::network_policy,
        columns: print::NETWORK_POLICY,
        row: print::network_policy,
        ..PLAIN
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        namespaced: false,
        status: true,
        validate: validate::service_cidr,
        columns: print::SERVICE_CIDR,
        row: print::service_cidr,
        ..PLAIN
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        namespaced: false,
        names: NameRule::Address,
        validate: validate::ip_address,
        columns: print::IP_ADDRESS,
        row: print::ip_address,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        status: true,
        scale: true,
        generation: Generation::SpecAndAnnotations,
        default: defaults::deployment,
        validate: validate::deployment,
        prepare_create: prepare::new_deployment,
        columns: print::DEPLOYMENT,
        row: print::deployment,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        status: true,
        scale: true,
        generation: Generation::Spec,
        default: defaults::replica_set,
        validate: validate::replica_set,
        prepare_create: prepare::new_replica_set,
        columns: print::REPLICA_SET,
        row: print::replica_set,
        field_labels: &["status.replicas"],
        ..PLAIN
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        validate: validate::lease,
        columns: print::LEASE,
        row: print::lease,
        ..PLAIN
    },
    Kind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        status: true,
        generation: Generation::Spec,
        default: defaults::crd,
        validate: validate::crd,
        columns: print::CRD,
        row: print::crd,
        ..PLAIN
    },
];

/// Every built-in kind.
pub fn builtin() -> &'static [Kind] {
    BUILTIN
}

/// Names of fields in core Events (stored) and in events.k8s.io Events.
const EVENT_FORMS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = remove(object, from) {
        object[to] = value;
    }
}

pub(super) fn to_storage(kind: &Kind, object: &mut Value) {
    if kind.stored_as.is_some() {
        EVENT_FORMS
            .iter()
            .for_each(|(core, new)| rename(object, new, core));
        object["apiVersion"] = "v1".into();
    }
}

pub(super) fn from_storage(kind: &Kind, object: &mut Value) {
    if kind.stored_as.is_some() {
        EVENT_FORMS
            .iter()
            .for_each(|(core, new)| rename(object, core, new));
        object["apiVersion"] = format!("{}/{}", kind.group, kind.version).into();
    }
}

pub(super) fn decode(kind: &Kind, object: &mut Value) -> Result<Vec<String>, DecodeError> {
    schema::decode(&schema::name_of(kind.group, kind.version, kind.kind), object)
}

pub(super) fn validate(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = validate::object_meta(&new["metadata"], kind.namespaced, kind.names);
    if kind.group != "apiextensions.k8s.io" {
        let finalizers = &new["metadata"]["finalizers"];
        validate::standard_finalizers(&mut errors, "metadata.finalizers", finalizers);
    }
    errors.extend((kind.validate)(new, old));
    errors
}

pub(super) fn unknown_field_label(kind: &Kind, label: &str) -> String {
    match (kind.group, kind.kind) {
        ("apps", "ReplicaSet") => format!("field label {label:?} not supported for appsv1.ReplicaSet"),
        ("" | "events.k8s.io", _) if !kind.field_labels.is_empty() => {
            format!("field label not supported: {label}")
        }
        _ => {
            format!("{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
    }
}

/// A field that is false when it is absent.
fn flag(object: &Value, label: &str) -> String {
    match (label, at_path(object, label)) {
        ("spec.hostNetwork" | "spec.unschedulable", value) if value.is_empty() => "false".to_owned(),
        ("status.podIPs", _) => at_path(object, "status.podIP"),
        (_, value) => value,
    }
}

fn namespace_field(object: &Value, label: &str) -> String {
    at_path(object, if label == "name" { "metadata.name" } else { label })
}

fn event_field(object: &Value, label: &str) -> String {
    match label {
        "source" => {
            let component = at_path(object, "source.component");
            if component.is_empty() {
                at_path(object, "reportingComponent")
            } else {
                component
            }
        }
        label => at_path(object, label),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Resource;
    use super::*;

    fn resource(group: &str, kind: &str) -> Resource {
        Resource::Builtin(
            BUILTIN
                .iter()
                .find(|k| (k.group, k.kind) == (group, kind))
                .unwrap(),
        )
    }

    #[test]
    fn events_have_two_forms_and_one_storage() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "p"}, "note": "n",
            "reportingController": "c"});
        let mut object = new.clone();
        let events = resource("events.k8s.io", "Event");
        events.to_storage(&mut object);
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "p"}, "message": "n",
                "reportingComponent": "c"})
        );
        events.from_storage(&mut object);
        assert_eq!(object, new);
        assert_eq!(events.stored_as(), resource("", "Event").stored_as());
    }

    #[test]
    fn field_labels_are_known_per_kind() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        let pods = resource("", "Pod");
        assert_eq!(pods.field_label(&pod, "spec.nodeName").unwrap(), "n");
        assert_eq!(pods.field_label(&pod, "metadata.name").unwrap(), "p");
        assert_eq!(pods.field_label(&pod, "spec.hostNetwork").unwrap(), "false");
        assert_eq!(
            pods.field_label(&pod, "spec.foo").unwrap_err(),
            "field label not supported: spec.foo"
        );
        assert_eq!(
            resource("apps", "Deployment")
                .check_field_label("spec.replicas")
                .unwrap_err(),
            r#""spec.replicas" is not a known field selector: only "metadata.name", "metadata.namespace""#
        );
    }
}
