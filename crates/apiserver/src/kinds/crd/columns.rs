//! additionalPrinterColumns, and the simple JSON paths they are found by.

use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::Column;
use crate::kinds::print::since;
use crate::kinds::value::{list, text};

/// A JSON path as far as printer columns have them: fields, indices, wildcards and equality filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`
    Where(JsonPath, String),
}

impl JsonPath {
    fn parse(text: &str) -> JsonPath {
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after);
                steps.push(subscript(&after[..end]));
                rest = after.get(end + 1..).unwrap_or_default();
            } else {
                let after = rest.strip_prefix('.').unwrap_or(rest);
                let (field, next) = field(after);
                if !field.is_empty() {
                    steps.push(if field == "*" {
                        Step::All
                    } else {
                        Step::Field(field)
                    });
                }
                if next.len() == rest.len() {
                    break;
                }
                rest = next;
            }
        }
        JsonPath(steps)
    }

    fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        self.0.iter().fold(vec![root], |found, step| {
            found.into_iter().flat_map(|v| step.find(v)).collect()
        })
    }
}

impl Step {
    fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Index(i) => {
                let items = list(value);
                let at = if *i < 0 { items.len() as i64 + i } else { *i };
                usize::try_from(at)
                    .ok()
                    .and_then(|at| items.get(at))
                    .into_iter()
                    .collect()
            }
            Step::All => match value {
                Value::Object(fields) => fields.values().collect(),
                other => list(other).iter().collect(),
            },
            Step::Where(path, wanted) => list(value)
                .iter()
                .filter(|item| path.find(item).iter().any(|v| shown(v) == *wanted))
                .collect(),
        }
    }
}

/// Up to the bracket that closes, past quoted text.
fn closing(text: &str) -> usize {
    let mut quoted = None;
    for (i, c) in text.char_indices() {
        match (quoted, c) {
            (None, '\'' | '"') => quoted = Some(c),
            (Some(q), c) if q == c => quoted = None,
            (None, ']') => return i,
            _ => {}
        }
    }
    text.len()
}

/// A field's name, in which dots may be escaped, and what follows.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn subscript(text: &str) -> Step {
    let text = text.trim();
    if text == "*" {
        return Step::All;
    }
    if let Ok(index) = text.parse() {
        return Step::Index(index);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')'))
        && let Some((path, value)) = filter.split_once("==")
    {
        let path = JsonPath::parse(path.trim().trim_start_matches('@'));
        return Step::Where(path, value.trim().trim_matches(['"', '\'']).to_owned());
    }
    Step::Field(text.trim_matches(['"', '\'']).to_owned())
}

/// A value as a cell shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// The columns of a version, and where their cells are found.
pub(super) fn columns(version: &Value) -> (Vec<Column>, Vec<Option<JsonPath>>) {
    let description = "Name must be unique within a namespace.";
    let mut columns = vec![Column::new("Name", "string", "name", 0, description)];
    let mut paths = vec![None];
    for column in list(&version["additionalPrinterColumns"]) {
        let owned = |field: &str| text(&column[field]).to_owned().into();
        columns.push(Column {
            name: owned("name"),
            kind: owned("type"),
            format: owned("format"),
            description: owned("description"),
            priority: column["priority"]
                .as_i64()
                .and_then(|p| i32::try_from(p).ok())
                .unwrap_or(0),
        });
        paths.push(Some(JsonPath::parse(text(&column["jsonPath"]))));
    }
    if columns.len() == 1 {
        columns.push(Column::new(
            "Age",
            "date",
            "",
            0,
            "CreationTimestamp is the server time of creation.",
        ));
        paths.push(Some(JsonPath::parse(".metadata.creationTimestamp")));
    }
    (columns, paths)
}

/// One cell.
pub(super) fn cell(object: &Value, path: Option<&JsonPath>, column: &Column, now: Timestamp) -> Value {
    let Some(path) = path else {
        return object["metadata"]["name"].clone();
    };
    let found = path.find(object);
    let Some(first) = found.first() else {
        return if column.kind == "date" {
            "<unknown>".into()
        } else {
            Value::Null
        };
    };
    match column.kind.as_ref() {
        "integer" => first.as_i64().map_or(Value::Null, Value::from),
        "number" => {
            if first.is_number() {
                (*first).clone()
            } else {
                Value::Null
            }
        }
        "boolean" => first.as_bool().map_or(Value::Null, Value::from),
        "date" => since(first, now).into(),
        _ => found
            .iter()
            .map(|v| shown(v))
            .collect::<Vec<_>>()
            .join(",")
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn simple_paths_are_found() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": "x"}, {"n": "y"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, want) in [
            (".spec.list[0].n", vec!["x"]),
            (".spec.list[-1].n", vec!["y"]),
            (".spec.list[*].n", vec!["x", "y"]),
            (r".spec.a\.b", vec!["1"]),
            (".spec['a.b']", vec!["1"]),
            (r#".status.conditions[?(@.type=="Ready")].status"#, vec!["True"]),
            (".status.conditions[?(@.type == 'Other')].status", vec!["False"]),
            (".nothing.here", vec![]),
        ] {
            let found: Vec<String> = JsonPath::parse(path)
                .find(&object)
                .into_iter()
                .map(shown)
                .collect();
            assert_eq!(found, want, "{path}");
        }
    }
}
