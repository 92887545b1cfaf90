//! Manifests: YAML (or JSON) files of Kubernetes objects, with the line of every field, so that what the API
//! server says about a field can be shown in the file.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::api::{Api, Refused};

/// What is wrong with a manifest, and where.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {message}", path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
    /// Nothing to apply.
    #[error("{}: the file holds no object", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The API server could not be asked.
    #[error("{0}")]
    Api(String),
}

/// One object of a file.
#[derive(Debug, Clone)]
pub struct Manifest {
    path: PathBuf,
    node: Spanned<Node>,
    /// Lines of the file before this document.
    offset: u64,
    /// The object as JSON.
    pub object: Value,
}

/// A YAML tree that knows its lines.
#[derive(Debug, Clone)]
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    Seq(Vec<Spanned<Node>>),
    Scalar(Value),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tree;
        impl<'de> Visitor<'de> for Tree {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping, a list or a scalar")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_str<E>(self, v: &str) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Seq(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Tree)
    }
}

impl Node {
    fn to_value(&self) -> Value {
        match self {
            Node::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(k, v)| (k.clone(), v.value.to_value()))
                    .collect::<Map<_, _>>(),
            ),
            Node::Seq(items) => Value::Array(items.iter().map(|item| item.value.to_value()).collect()),
            Node::Scalar(value) => value.clone(),
        }
    }
}

/// Reads a file of one or more documents. A `List` is taken apart.
pub fn read(path: &Path) -> Result<Vec<Manifest>, ManifestError> {
    let text = fs::read_to_string(path).map_err(|error| ManifestError::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    let mut manifests = Vec::new();
    for (offset, document) in documents(&text) {
        manifests.extend(parse(path, offset, document)?);
    }
    if manifests.is_empty() {
        return Err(ManifestError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(manifests)
}

/// The documents of a stream with the number of lines before each.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut found = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 0, 0);
    for (number, line) in (0u64..).zip(text.split_inclusive('\n')) {
        at += line.len();
        if line.trim_end() == "---" || line.starts_with("--- ") {
            found.push((first_line, &text[start..at - line.len()]));
            (start, first_line) = (at, number + 1);
        }
    }
    found.push((first_line, &text[start..]));
    found.retain(|(_, document)| {
        document
            .lines()
            .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    found
}

fn parse(path: &Path, offset: u64, document: &str) -> Result<Vec<Manifest>, ManifestError> {
    let at = |line: u64, message: String| ManifestError::At {
        path: path.to_owned(),
        line: line + offset,
        message,
    };
    // YAML 1.2: `n`, `no` and `on` are words, not booleans.
    let options = serde_saphyr::options! { strict_booleans: true };
    let node: Spanned<Node> = serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        at(line, explain(&error))
    })?;
    let line = node.referenced.line();
    let items = match &node.value {
        Node::Map(entries) if is_list(entries) => match entries.iter().find(|(key, _)| key == "items") {
            Some((
                _,
                Spanned {
                    value: Node::Seq(items),
                    ..
                },
            )) => items.clone(),
            _ => return Err(at(line, "a List without items".into())),
        },
        Node::Map(_) => vec![node.clone()],
        _ => {
            return Err(at(
                line,
                "a Kubernetes object is a mapping with apiVersion, kind and metadata".into(),
            ));
        }
    };
    items
        .into_iter()
        .map(|node| Manifest::new(path, offset, node))
        .collect()
}

/// What is wrong with the YAML, in the words of whoever wrote it.
fn explain(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key} stands twice in one mapping; remove one of the two")
        }
        Error::DuplicateMappingKey { key: None, .. } => {
            "a key stands twice in one mapping; remove one of the two".into()
        }
        Error::Budget { .. } => {
            "the file is too large or nested too deeply once its aliases (*name) are followed; write \
                                 out what they stand for, or split the file"
                .into()
        }
        other => {
            let message = other.to_string();
            format!("not valid YAML: {}", message.lines().next().unwrap_or_default())
        }
    }
}

/// Refuses two objects of one name. Which of them is meant cannot be known; the second would be refused by the API
/// server, or, as kubectl applies it, silently take the place of the first.
pub fn each_once(manifests: &[Manifest]) -> Result<(), ManifestError> {
    let mut seen: HashMap<(&str, &str, &str, &str), &Manifest> = HashMap::new();
    for manifest in manifests.iter().filter(|manifest| !manifest.name().is_empty()) {
        // Versions of a kind are forms of the same object.
        let group = manifest
            .api_version()
            .split_once('/')
            .map_or("", |(group, _)| group);
        let key = (group, manifest.kind(), manifest.namespace(), manifest.name());
        if let Some(first) = seen.insert(key, manifest) {
            let name: Vec<String> = vec!["metadata".into(), "name".into()];
            let message = format!(
                "{} {} stands already at {}:{}; remove one of the two, or give it another name",
                manifest.kind(),
                manifest.name(),
                first.path.display(),
                first.line_of(&name)
            );
            return Err(manifest.error(&name, message));
        }
    }
    Ok(())
}

fn is_list(entries: &[(String, Spanned<Node>)]) -> bool {
    entries.iter().any(|(key, value)| {
        key == "kind" && matches!(&value.value, Node::Scalar(Value::String(kind)) if kind == "List")
    })
}

impl Manifest {
    fn new(path: &Path, offset: u64, node: Spanned<Node>) -> Result<Self, ManifestError> {
        let manifest = Manifest {
            path: path.to_owned(),
            offset,
            object: node.value.to_value(),
            node,
        };
        for field in ["apiVersion", "kind"] {
            if manifest.object[field].as_str().is_none_or(str::is_empty) {
                return Err(manifest.error(&[], format!("the object has no {field}")));
            }
        }
        if manifest.name().is_empty() && manifest.object["metadata"]["generateName"].as_str().is_none() {
            return Err(manifest.error(&["metadata".into()], "the object has no metadata.name".into()));
        }
        Ok(manifest)
    }

    /// kind
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    /// apiVersion
    pub fn api_version(&self) -> &str {
        self.object["apiVersion"].as_str().unwrap_or_default()
    }

    /// metadata.name
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// metadata.namespace, or `default`.
    pub fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or("default")
    }

    fn error(&self, path: &[String], message: String) -> ManifestError {
        ManifestError::At {
            path: self.path.clone(),
            line: self.line_of(path),
            message,
        }
    }

    /// The line of the field at `path`, or of its closest ancestor that is in the file.
    fn line_of(&self, path: &[String]) -> u64 {
        let mut node = &self.node;
        let mut line = node.referenced.line();
        for step in path {
            let next = match &node.value {
                Node::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key == step)
                    .map(|(_, value)| value),
                Node::Seq(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                Node::Scalar(_) => None,
            };
            match next {
                Some(found) => node = found,
                None => break,
            }
            // A mapping or list begins on the line below its key; a scalar stands on its own.
            line = match (&node.value, step.parse::<usize>()) {
                (Node::Map(_) | Node::Seq(_), Err(_)) if node.referenced.line() > line => {
                    node.referenced.line() - 1
                }
                _ => node.referenced.line(),
            };
        }
        line + self.offset
    }

    /// Creates the object. What the server refuses is shown at the line it is about.
    pub async fn create(&self, api: &Api) -> Result<Value, ManifestError> {
        let collection = self.collection(api).await?;
        let path = format!("{collection}?fieldValidation=Strict&fieldManager=podnet-lab");
        match api
            .post(&path, &self.object)
            .await
            .map_err(|error| ManifestError::Api(format!("{error:?}")))?
        {
            Ok(created) => Ok(created),
            Err(refused) => Err(self.refused(&refused)),
        }
    }

    fn refused(&self, refused: &Refused) -> ManifestError {
        let path = field_path(&refused.message);
        self.error(&path, refused.message.clone())
    }

    /// The collection that the object goes into, from the server's own discovery.
    async fn collection(&self, api: &Api) -> Result<String, ManifestError> {
        let version = self.api_version();
        let root = if version.contains('/') {
            format!("/apis/{version}")
        } else {
            format!("/api/{version}")
        };
        let unknown = || {
            let message = format!("this API server has no kind {} in {version}", self.kind());
            self.error(&["kind".into()], message)
        };
        // A kind from a CustomResourceDefinition of the same file is served a moment after its creation.
        let mut left = 20;
        loop {
            let answer = api
                .get(&root)
                .await
                .map_err(|error| ManifestError::Api(format!("{error:?}")))?;
            let resource = answer.ok().and_then(|list| {
                let found = list["resources"].as_array()?.iter().find(|resource| {
                    resource["kind"] == self.kind()
                        && resource["name"].as_str().is_some_and(|n| !n.contains('/'))
                })?;
                Some((found["name"].as_str()?.to_owned(), found["namespaced"].as_bool()?))
            });
            match resource {
                Some((plural, true)) => {
                    return Ok(format!("{root}/namespaces/{}/{plural}", self.namespace()));
                }
                Some((plural, false)) => return Ok(format!("{root}/{plural}")),
                None if left == 0 || !version.contains('.') => return Err(unknown()),
                None => left -= 1,
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
    }
}

/// The field that a message of the API server is about: `unknown field "spec.a[0].b"`, or
/// `... is invalid: spec.a[0].b: Required value`. Empty when it names none.
fn field_path(message: &str) -> Vec<String> {
    let after = |marker: &str| message.split_once(marker).map(|(_, rest)| rest);
    let field = after("unknown field \"")
        .and_then(|rest| rest.split_once('"'))
        .or_else(|| {
            after(" is invalid: ").and_then(|rest| rest.trim_start_matches(['[', '<']).split_once(": "))
        })
        .map(|(field, _)| field)
        .unwrap_or_default();
    if field.contains(' ') {
        return Vec::new();
    }
    field
        .split(['.', '['])
        .map(|step| step.trim_end_matches(']').to_owned())
        .filter(|step| !step.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "# a comment\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  \
                       - name: c\n    imagee: host\n---\n\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n";

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.yaml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn documents_keep_their_lines() {
        let (_dir, path) = written(POD);
        let manifests = read(&path).unwrap();
        assert_eq!(manifests.len(), 2);
        assert_eq!(
            manifests[0].line_of(&field_path("unknown field \"spec.containers[0].imagee\"")),
            10
        );
        assert_eq!(manifests[0].line_of(&["kind".into()]), 4);
        assert_eq!(manifests[0].line_of(&["spec".into(), "containers".into()]), 8);
        assert_eq!(manifests[1].line_of(&["kind".into()]), 15);
    }

    #[test]
    fn the_servers_messages_are_understood() {
        assert_eq!(
            field_path("Pod \"a\" is invalid: spec.containers[0].name: Required value"),
            ["spec", "containers", "0", "name"]
        );
        assert_eq!(
            field_path("Pod \"a\" is invalid: [spec.x: Invalid value: 1: no, spec.y: no]"),
            ["spec", "x"]
        );
        assert!(field_path("pods \"a\" already exists").is_empty());
    }

    #[test]
    fn what_is_no_object_is_told_with_its_line() {
        for (text, expected) in [
            ("- a\n- b\n", ":1: a Kubernetes object is a mapping"),
            ("a: [\n", ": not valid YAML"),
            (
                "kind: Pod\nmetadata: {name: a}\n",
                ":1: the object has no apiVersion",
            ),
            (
                "apiVersion: v1\nkind: Pod\n",
                ":1: the object has no metadata.name",
            ),
            ("# nothing\n", "holds no object"),
        ] {
            let (_dir, path) = written(text);
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }

    #[test]
    fn yaml_that_cannot_be_meant_is_explained() {
        let error = |text: &str| {
            let (_dir, path) = written(text);
            let error = read(&path).unwrap_err().to_string();
            error.rsplit_once('/').unwrap().1.to_owned()
        };
        assert_eq!(
            error("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  name: b\n"),
            "m.yaml:5: the key name stands twice in one mapping; remove one of the two"
        );
        let mut bomb =
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n"
                .to_owned();
        for level in 1..10 {
            let inner = format!("*x{}, ", level - 1).repeat(10);
            bomb += &format!("x{level}: &x{level} [{}]\n", inner.trim_end_matches(", "));
        }
        let error = error(&bomb);
        assert!(error.contains("aliases") && !error.contains("Breach"), "{error}");
    }

    #[test]
    fn an_object_that_stands_twice_is_refused_with_both_lines() {
        let one = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: a\n---\n";
        let (_dir, path) = written(&format!(
            "{one}apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: b}}\n---\n{one}"
        ));
        let error = each_once(&read(&path).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("m.yaml:12: Deployment a stands already at "),
            "{error}"
        );
        assert!(error.contains("m.yaml:4; remove one"), "{error}");
        let elsewhere = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: n}\n";
        let (_dir, path) = written(&format!("{one}{elsewhere}"));
        each_once(&read(&path).unwrap()).unwrap();
    }

    #[test]
    fn a_list_is_taken_apart() {
        let (_dir, path) = written(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, \
             kind: Namespace, metadata: {name: b}}\n",
        );
        let names: Vec<String> = read(&path).unwrap().iter().map(|m| m.name().to_owned()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
