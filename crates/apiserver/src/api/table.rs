//! Objects and lists in the shape that the client asked for: as they are, as a Table, or metadata only.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Object;
use super::list::Listed;
use crate::kinds::Resource;
use crate::rest::Shape;

/// How much of the object each Table row carries (`includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// From the query parameter.
    pub fn parse(text: Option<&str>) -> IncludeObject {
        match text {
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            _ => IncludeObject::Metadata,
        }
    }
}

fn partial(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}

fn columns(resource: &Resource) -> Value {
    let columns = resource.columns().iter();
    columns
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect()
}

fn row(resource: &Resource, object: &Value, include: IncludeObject, version: &str, now: Timestamp) -> Value {
    let mut row = json!({"cells": resource.row(object, now)});
    row["object"] = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object, version),
        IncludeObject::Object => object.clone(),
    };
    row
}

/// One object. Watches repeat the columns only with `header`.
pub fn render(
    resource: &Resource,
    shape: Shape,
    include: IncludeObject,
    object: &Object,
    header: bool,
) -> Bytes {
    let value = object.value();
    let made = match shape {
        Shape::Object => return object.json(),
        // A Status has no rows.
        _ if value["kind"] == "Status" => return object.json(),
        Shape::Partial(version) => partial(value, version),
        Shape::Table(version) => json!({
            "kind": "Table",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": {"resourceVersion": value["metadata"]["resourceVersion"]},
            "columnDefinitions": if header { columns(resource) } else { Value::Null },
            "rows": [row(resource, value, include, version, Timestamp::now())],
        }),
    };
    Object::Made(made).json()
}

/// A list.
pub fn render_list(resource: &Resource, shape: Shape, include: IncludeObject, listed: &Listed) -> Bytes {
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(next) = &listed.next {
        metadata["continue"] = next.encode().into();
    }
    if let Some(remaining) = listed.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    match shape {
        Shape::Object => {
            let (kind, version) = (resource.list_kind(), resource.api_version());
            list_json(&kind, &version, &metadata, listed.items.iter().map(Object::json))
        }
        Shape::Partial(version) => {
            let items = listed.items.iter().map(|object| partial(object.value(), version));
            let items = items.map(|item| Object::Made(item).json());
            list_json(
                "PartialObjectMetadataList",
                &format!("meta.k8s.io/{version}"),
                &metadata,
                items,
            )
        }
        Shape::Table(version) => {
            let now = Timestamp::now();
            let rows = listed
                .items
                .iter()
                .map(|object| row(resource, object.value(), include, version, now));
            let table = json!({
                "kind": "Table",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
                "columnDefinitions": columns(resource),
                "rows": rows.collect::<Vec<_>>(),
            });
            Object::Made(table).json()
        }
    }
}

/// A list made of encoded items: what is stored is not encoded again.
fn list_json(kind: &str, version: &str, metadata: &Value, items: impl Iterator<Item = Bytes>) -> Bytes {
    let head = json!({"kind": kind, "apiVersion": version, "metadata": metadata}).to_string();
    let mut out = BytesMut::with_capacity(1024);
    out.put_slice(&head.as_bytes()[..head.len() - 1]);
    out.put_slice(b",\"items\":[");
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        out.put_slice(&item);
    }
    out.put_slice(b"]}");
    out.freeze()
}
