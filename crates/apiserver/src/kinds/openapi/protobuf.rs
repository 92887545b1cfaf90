//! gnostic's protobuf form of an OpenAPI v2 document: just the fields that our document has. Numbers are those of
//! gnostic's OpenAPIv2.proto.

use serde_json::Value;

use crate::kinds::value::{entries, list, text};

/// Message `Document`.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, text(&document["swagger"]));
    let mut info = Message::default();
    info.text(1, text(&document["info"]["title"]));
    info.text(2, text(&document["info"]["version"]));
    out.message(2, info);
    let mut paths = Message::default();
    for (path, item) in entries(&document["paths"]) {
        let mut value = Message::default();
        value.message(8, operation(&item["patch"]));
        paths.message(2, named(path, value));
    }
    out.message(8, paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(&document["definitions"]) {
        definitions.message(1, named(name, schema(definition)));
    }
    out.message(9, definitions);
    out.0
}

/// Messages `NamedSchema`, `NamedPathItem` and their like.
fn named(name: &str, value: Message) -> Message {
    let mut out = Message::default();
    out.text(1, name);
    out.message(2, value);
    out
}

/// Message `Operation`.
fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.text(3, text(&operation["description"]));
    for parameter in list(&operation["parameters"]) {
        let mut query = Message::default();
        query.text(2, text(&parameter["in"]));
        query.text(3, text(&parameter["description"]));
        query.text(4, text(&parameter["name"]));
        query.text(6, text(&parameter["type"]));
        // ParametersItem.parameter.non_body_parameter.query_parameter_sub_schema
        let wrapped = Message::wrapping(1, Message::wrapping(2, Message::wrapping(3, query)));
        out.message(8, wrapped);
    }
    let mut responses = Message::default();
    for (code, response) in entries(&operation["responses"]) {
        let mut inner = Message::default();
        inner.text(1, text(&response["description"]));
        responses.message(1, named(code, Message::wrapping(1, inner)));
    }
    out.message(9, responses);
    extensions(&mut out, 13, operation);
    out
}

/// Message `Schema`.
fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, text(&schema["$ref"]));
    out.text(2, text(&schema["format"]));
    out.text(4, text(&schema["description"]));
    for field in list(&schema["required"]) {
        out.text(19, text(field));
    }
    match &schema["additionalProperties"] {
        Value::Bool(allowed) => {
            let mut item = Message::default();
            item.varint(2, u64::from(*allowed));
            out.message(21, item);
        }
        below if below.is_object() => out.message(21, Message::wrapping(1, self::schema(below))),
        _ => {}
    }
    if !text(&schema["type"]).is_empty() {
        let mut kind = Message::default();
        kind.text(1, text(&schema["type"]));
        out.message(22, kind);
    }
    if schema["items"].is_object() {
        out.message(23, Message::wrapping(1, self::schema(&schema["items"])));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::default();
        for (name, property) in entries(&schema["properties"]) {
            properties.message(1, named(name, self::schema(property)));
        }
        out.message(25, properties);
    }
    extensions(&mut out, 31, schema);
    out
}

/// Vendor extensions as `NamedAny`, their values as YAML, which JSON is.
fn extensions(out: &mut Message, field: u32, object: &Value) {
    for (name, value) in entries(object).filter(|(name, _)| name.starts_with("x-")) {
        let mut any = Message::default();
        any.text(2, &value.to_string());
        out.message(field, named(name, any));
    }
}

/// A protobuf message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn wrapping(field: u32, inner: Message) -> Message {
        let mut out = Message::default();
        out.message(field, inner);
        out
    }

    fn raw(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.raw(u64::from(field << 3));
        self.raw(value);
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.raw(u64::from(field << 3 | 2));
        self.raw(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// An empty string is the same as none.
    fn text(&mut self, field: u32, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }

    fn message(&mut self, field: u32, value: Message) {
        self.bytes(field, &value.0);
    }
}
