use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::table::{Field, Message, Shape, Type};
use super::{MAGIC, ProtobufError, decode, recorded, root, table};
use crate::kinds::{builtin, schema};

fn of(recorded: &str) -> Value {
    decode(&STANDARD.decode(recorded).unwrap()).unwrap()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// A body as clients send it.
fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version), bytes(2, kind)].concat();
    [
        MAGIC,
        &bytes(1, meta),
        &bytes(2, message),
        &bytes(3, ""),
        &bytes(4, ""),
    ]
    .concat()
}

fn named(name: &str) -> Vec<u8> {
    bytes(1, bytes(1, name))
}

#[test]
fn what_kubectl_creates_is_read() {
    let labels = |app: &str| json!({"app": app});
    assert_eq!(
        of(recorded::DEPLOYMENT),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": labels("web")},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels("web")},
                "template": {"metadata": {"labels": labels("web")}, "spec": {"containers": [{"name": "echo",
                    "image": "podnet/echo", "ports": [{"containerPort": 8080}], "resources": {}}],
                    }},
                "strategy": {}},
            "status": {}})
    );
    assert_eq!(
        of(recorded::CONFIG_MAP),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"},
            "data": {"a": "1", "empty": ""}, "binaryData": {"b": "YmluAP8="}})
    );
    assert_eq!(
        of(recorded::SECRET),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"e": "", "k": "dg=="}})
    );
    let service = |name: &str, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels(name)},
            "spec": spec, "status": {"loadBalancer": {}}})
    };
    assert_eq!(
        of(recorded::CLUSTER_IP),
        service(
            "svc",
            json!({"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": labels("svc"), "type": "ClusterIP"})
        )
    );
    assert_eq!(
        of(recorded::NODE_PORT),
        service(
            "np",
            json!({"ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http",
            "nodePort": 30080}], "selector": labels("np"), "type": "NodePort"})
        )
    );
    assert_eq!(
        of(recorded::EXTERNAL_NAME),
        service(
            "ex",
            json!({"selector": labels("ex"), "type": "ExternalName", "externalName": "example.org"})
        )
    );
    assert_eq!(
        of(recorded::NAMESPACE),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns1"}, "spec": {}, "status": {}})
    );
    assert_eq!(
        of(recorded::SERVICE_ACCOUNT),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa"}})
    );
}

#[test]
fn times_quantities_unions_and_inlined_fields() {
    let time = |seconds: i64, nanoseconds: i64| [number(1, seconds), number(2, nanoseconds)].concat();
    let volume = [bytes(1, "v"), bytes(2, bytes(2, bytes(1, "Memory")))].concat();
    let quantity = [bytes(1, "cpu"), bytes(2, bytes(1, "100m"))].concat();
    let container = [
        bytes(1, "c"),
        bytes(8, bytes(1, quantity)),
        bytes(
            10,
            [bytes(1, bytes(2, bytes(2, number(1, 0)))), number(7, 0)].concat(),
        ),
    ]
    .concat();
    let grace = number(4, 0);
    let security = bytes(
        14,
        [
            number(4, 7),
            number(4, -1),
            bytes(4, [varint(300), varint(1)].concat()),
        ]
        .concat(),
    );
    let meta = bytes(
        1,
        [bytes(1, "p"), bytes(8, time(1_700_000_000, 0)), bytes(9, "")].concat(),
    );
    let spec = bytes(
        2,
        [
            bytes(1, volume),
            bytes(2, container),
            grace,
            security,
            number(11, 1),
        ]
        .concat(),
    );
    assert_eq!(
        decode(&body("v1", "Pod", &[meta, spec].concat())).unwrap(),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "creationTimestamp": "2023-11-14T22:13:20Z"},
            "spec": {"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {}, "terminationGracePeriodSeconds": 0}}],
                "terminationGracePeriodSeconds": 0, "hostNetwork": true,
                "securityContext": {"supplementalGroups": [7, -1, 300, 1]}}})
    );
    let lease = bytes(2, [bytes(1, ""), bytes(4, time(1, 5000))].concat());
    assert_eq!(
        decode(&body("coordination.k8s.io/v1", "Lease", &lease)).unwrap()["spec"],
        json!({"holderIdentity": "", "renewTime": "1970-01-01T00:00:01.000005Z"})
    );
}

#[test]
fn a_message_in_two_parts_is_their_union() {
    let parts = [named("a"), bytes(1, bytes(3, "ns")), bytes(1, bytes(1, "b"))].concat();
    assert_eq!(
        decode(&body("v1", "ConfigMap", &parts)).unwrap()["metadata"],
        json!({"name": "b", "namespace": "ns"})
    );
}

#[test]
fn delete_options_come_under_any_version() {
    let options = [number(1, 0), bytes(4, "Foreground")].concat();
    for version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        let read = decode(&body(version, "DeleteOptions", &options)).unwrap();
        assert_eq!(read["gracePeriodSeconds"], 0);
        assert_eq!(read["propagationPolicy"], "Foreground");
    }
}

#[test]
fn fields_of_a_newer_version_are_passed_over() {
    let fields = [
        named("a"),
        bytes(999, "new"),
        number(998, 1),
        varint(997 << 3 | 5),
        vec![1, 2, 3, 4],
    ]
    .concat();
    assert_eq!(
        decode(&body("v1", "ConfigMap", &fields)).unwrap()["metadata"]["name"],
        "a"
    );
}

#[test]
fn what_cannot_be_read_is_refused_with_its_cause() {
    let refused = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert!(refused(b"{}").contains("expected prefix 6b 38 73 00"));
    assert_eq!(
        decode(&body("gateway.networking.k8s.io/v1", "Gateway", &[])).unwrap_err(),
        ProtobufError::UnknownKind {
            api_version: "gateway.networking.k8s.io/v1".into(),
            kind: "Gateway".into()
        }
    );
    // A message that is part of a kind is no kind; nor is a version that there is no table for.
    for (version, kind) in [
        ("v1", "PodSpec"),
        ("v1", ""),
        ("apps/v1beta1", "Deployment"),
        ("v2", "Pod"),
    ] {
        assert!(matches!(
            decode(&body(version, kind, &[])),
            Err(ProtobufError::UnknownKind { .. })
        ));
    }
    assert_eq!(
        refused(&body("v1", "Pod", &bytes(2, number(2, 1)))),
        "the body's protobuf is broken: a field has another wire type than its kind (at containers of core.PodSpec)"
    );
    let truncated = bytes(2, bytes(2, [0x0a, 9, b'x']));
    assert_eq!(
        refused(&body("v1", "Pod", &truncated)),
        "the body's protobuf is broken: it ends within a field (at containers of core.PodSpec)"
    );
    let latin1 = bytes(1, bytes(1, [0xe9]));
    assert!(refused(&body("v1", "Pod", &latin1)).contains("not UTF-8 (at name of meta.ObjectMeta)"));
    let late = bytes(1, bytes(8, number(1, i64::MAX)));
    assert!(refused(&body("v1", "Pod", &late)).contains("is not a time (at creationTimestamp"));
    let zipped = [
        MAGIC,
        &bytes(1, [bytes(1, "v1"), bytes(2, "Pod")].concat()),
        &bytes(3, "gzip"),
    ]
    .concat();
    assert!(refused(&zipped).contains("content encoding \"gzip\""));
}

/// The definition that a message is, by the names of k8s-openapi.
fn definition(message: &Message) -> String {
    let (package, name) = message.name.split_once('.').unwrap();
    match package {
        "meta" => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"),
        package => format!("io.k8s.api.{package}.v1.{name}"),
    }
}

/// All fields that a message has in JSON, its inlined ones too.
fn fields_of(message: &'static Message) -> Vec<&'static Field> {
    let own = message.fields.iter().filter(|field| field.shape != Shape::Inline);
    let inlined = message.fields.iter().filter(|field| field.shape == Shape::Inline);
    own.chain(inlined.flat_map(|field| match &field.of {
        Type::Message(name) => fields_of(table::message(name).unwrap()),
        _ => panic!("{} inlines what is no message", message.name),
    }))
    .collect()
}

/// The type of one value in a definition: a schema's type, or the short name of what it refers to.
fn schema_type(schema: &Value) -> String {
    if let Some(name) = schema::reference(schema) {
        return schema::short_name(name).to_owned();
    }
    let format = schema["format"].as_str().unwrap_or_default();
    match (schema["type"].as_str().unwrap_or_default(), format) {
        ("string", "byte") => "byte".into(),
        (kind, _) => kind.into(),
    }
}

fn matches(field: &Field, schema: &Value) -> bool {
    let one = match field.shape {
        Shape::One | Shape::Inline => schema,
        Shape::List if schema["type"] == "array" => &schema["items"],
        Shape::Map if schema["type"] == "object" => &schema["additionalProperties"],
        Shape::List | Shape::Map => return false,
    };
    let found = schema_type(one);
    match &field.of {
        Type::Text => found == "string",
        Type::Int => found == "integer",
        Type::Bool => found == "boolean",
        Type::Bytes => matches!(found.as_str(), "byte" | "ByteString"),
        Type::Time => found == "Time",
        Type::MicroTime => found == "MicroTime",
        Type::Quantity => found == "Quantity",
        Type::IntOrString => found == "IntOrString",
        Type::FieldsV1 => found == "FieldsV1",
        Type::Message(name) => found == schema::short_name(name),
    }
}

/// Fields of the definitions that have no number here: newer than the table.
const NEWER: &[(&str, &str)] = &[
    ("core.PodSpec", "schedulingGroup"),
    ("core.PodStatus", "allocatedResources"),
    ("core.PodStatus", "nodeAllocatableResourceClaimStatuses"),
    ("core.PodCertificateProjection", "userAnnotations"),
    ("core.ResourceHealth", "message"),
    ("core.VolumeMountStatus", "volumeStatus"),
];

#[test]
fn the_table_and_the_definitions_agree() {
    let definitions = schema::definitions();
    for message in table::messages() {
        // Inlined parts, and what is only ever a body of its own.
        let Some(definition) = definitions.get(&definition(message)) else {
            let inlined = table::messages().flat_map(|m| &m.fields).any(|field| {
                field.shape == Shape::Inline && field.of == Type::Message(message.name.to_owned())
            });
            let alone = ["core.Binding", "policy.Eviction"].contains(&message.name);
            assert!(inlined || alone, "{} has no definition", message.name);
            continue;
        };
        let properties = definition["properties"].as_object().cloned().unwrap_or_default();
        let known: BTreeMap<&str, &Field> = fields_of(message)
            .into_iter()
            .map(|field| (field.name, field))
            .collect();
        for (name, field) in &known {
            let schema = properties.get(*name);
            let schema = schema.unwrap_or_else(|| panic!("{} has no field {name}", message.name));
            assert!(matches(field, schema), "{}: {field:?} is {schema}", message.name);
        }
        for name in properties
            .keys()
            .filter(|name| !["apiVersion", "kind"].contains(&name.as_str()))
        {
            let newer = NEWER.contains(&(message.name, name));
            assert_eq!(
                known.contains_key(name.as_str()),
                !newer,
                "{} {name}",
                message.name
            );
        }
    }
}

#[test]
fn every_built_in_kind_but_definitions_of_kinds_has_a_table() {
    for kind in builtin()
        .iter()
        .filter(|kind| kind.kind != "CustomResourceDefinition")
    {
        let version = match kind.group {
            "" => kind.version.to_owned(),
            group => format!("{group}/{}", kind.version),
        };
        assert!(root(&version, kind.kind).is_some(), "{version} {}", kind.kind);
    }
    assert!(root("autoscaling/v1", "Scale").is_some() && root("policy/v1", "Eviction").is_some());
}

#[test]
fn the_table_is_sound() {
    for message in table::messages() {
        let numbers: BTreeSet<u32> = message.fields.iter().map(|field| field.number).collect();
        assert_eq!(
            numbers.len(),
            message.fields.len(),
            "{} has a number twice",
            message.name
        );
        for field in &message.fields {
            assert_eq!(
                field.name.is_empty(),
                field.shape == Shape::Inline,
                "{} {field:?}",
                message.name
            );
            if let Type::Message(name) = &field.of {
                assert!(
                    table::message(name).is_some(),
                    "{}: there is no message {name}",
                    message.name
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_fall(message in prop::collection::vec(any::<u8>(), 0..200), kind in 0..16usize) {
        let kind = &builtin()[kind % builtin().len()];
        let version = if kind.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", kind.group) };
        let _ = decode(&body(&version, kind.kind, &message));
        let _ = decode(&message);
    }

    #[test]
    fn a_torn_or_flipped_body_is_no_panic(cut in 28..220usize, flip in 0..200usize, bit in 0..8u32) {
        let mut whole = STANDARD.decode(recorded::DEPLOYMENT).unwrap();
        // The last four bytes are the two empty fields behind the message.
        prop_assert!(decode(&whole[..cut.min(whole.len() - 5)]).is_err());
        whole[flip] ^= 1 << bit;
        let _ = decode(&whole);
    }
}
