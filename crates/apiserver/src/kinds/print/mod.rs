//! The rows that `kubectl get` prints, as Kubernetes' server prints them.

mod cluster;
pub(super) mod duration;
mod network;
mod pod;
mod workload;

pub(super) use cluster::*;
pub(super) use network::*;
pub(super) use pod::*;
pub(super) use workload::*;

use jiff::Timestamp;
use serde_json::Value;

use super::Column;
use super::value::{entries, list, text};

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

const NAME: Column = Column::new(
    "Name",
    "string",
    "name",
    0,
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a \
     client to request the generation of an appropriate name automatically.",
);
const AGE: Column = Column::new(
    "Age",
    "string",
    "",
    0,
    "CreationTimestamp is a timestamp representing the server time when this object was created.",
);

const fn column(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column::new(name, kind, "", 0, description)
}

const fn wide(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column::new(name, kind, "", 1, description)
}

fn name(object: &Value) -> Value {
    text(&object["metadata"]["name"]).into()
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// How long ago a time was; `<unknown>` when it is none.
pub(super) fn since(time: &Value, now: Timestamp) -> String {
    match text(time).parse::<Timestamp>() {
        Ok(then) => duration::human(now.as_second() - then.as_second()),
        Err(_) => UNKNOWN.to_owned(),
    }
}

fn or_none(value: &str) -> Value {
    if value.is_empty() {
        NONE.into()
    } else {
        value.into()
    }
}

fn integer(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

/// `a=b,c=d`, sorted by key.
fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = entries(map).map(|(k, v)| format!("{k}={}", text(v))).collect();
    pairs.sort();
    if pairs.is_empty() {
        NONE.to_owned()
    } else {
        pairs.join(",")
    }
}

/// A LabelSelector as kubectl writes it: `a=b,c in (d,e),!f`.
pub(in crate::kinds) fn label_selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = entries(&selector["matchLabels"])
        .map(|(k, v)| (k.to_owned(), format!("{k}={}", text(v))))
        .collect();
    for requirement in list(&selector["matchExpressions"]) {
        let key = text(&requirement["key"]);
        let mut values: Vec<&str> = list(&requirement["values"]).iter().map(text).collect();
        values.sort_unstable();
        let values = values.join(",");
        let shown = match text(&requirement["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), shown));
    }
    parts.sort();
    if parts.is_empty() {
        return NONE.to_owned();
    }
    parts
        .into_iter()
        .map(|(_, shown)| shown)
        .collect::<Vec<_>>()
        .join(",")
}

/// `a,b,c + 2 more...`
fn at_most_three(items: &[String]) -> String {
    let shown = items.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    match items.len() {
        0..=3 => shown,
        more => format!("{shown} + {} more...", more - 3),
    }
}

#[cfg(test)]
mod tests;
