//! Which number is which field: `fields.txt`, parsed once.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A message: its fields by number.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) name: &'static str,
    pub(super) fields: Vec<Field>,
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    /// In JSON; empty for inlined messages.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) of: Type,
    /// A pointer in Go: its zero is a value, not "not given".
    pub(super) nullable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    Inline,
    List,
    /// Keys are text.
    Map,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Int,
    Bool,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    FieldsV1,
    /// By its full name, as `core.PodSpec`.
    Message(String),
}

impl Message {
    pub(super) fn field(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    /// Whether objects of this message stand alone.
    pub(super) fn is_kind(&self) -> bool {
        self.field(1)
            .is_some_and(|field| field.of == Type::Message("meta.ObjectMeta".into()))
    }
}

/// The message of a name, as `core.Pod`.
pub(super) fn message(name: &str) -> Option<&'static Message> {
    TABLE.get(name)
}

/// All messages.
#[cfg(test)]
pub(super) fn messages() -> impl Iterator<Item = &'static Message> {
    TABLE.values()
}

static TABLE: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| parse(include_str!("fields.txt")).expect("fields.txt is checked by its tests"));

/// Parses the table; its form stands at its head. `None` when it does not have that form.
fn parse(text: &'static str) -> Option<HashMap<&'static str, Message>> {
    let mut messages: HashMap<&'static str, Message> = HashMap::new();
    let mut current = "";
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let fields = match line.strip_prefix("  ") {
            Some(more) => more,
            None => {
                let (name, fields) = line.split_once(": ")?;
                current = name;
                fields
            }
        };
        let (package, _) = current.split_once('.')?;
        let message = messages.entry(current).or_insert(Message {
            name: current,
            fields: Vec::new(),
        });
        for field in fields.split(';').map(str::trim).filter(|field| !field.is_empty()) {
            message.fields.push(parse_field(package, field)?);
        }
    }
    Some(messages)
}

fn parse_field(package: &str, text: &'static str) -> Option<Field> {
    let mut words = text.split(' ');
    let number = words.next()?.parse().ok()?;
    let (name, of) = match (words.next()?, words.next()) {
        (of, None) => ("", of),
        (name, Some(of)) => (name, of),
    };
    let (shape, of) = match of {
        _ if of.starts_with("...") => (Shape::Inline, &of[3..]),
        _ if of.starts_with("[]") => (Shape::List, &of[2..]),
        _ if of.starts_with("{}") => (Shape::Map, &of[2..]),
        _ => (Shape::One, of),
    };
    let (of, nullable) = match of.strip_suffix('?') {
        Some(of) => (of, true),
        None => (of, false),
    };
    let of = match of {
        "string" => Type::Text,
        "int" => Type::Int,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "FieldsV1" => Type::FieldsV1,
        message if message.contains('.') => Type::Message(message.to_owned()),
        message => Type::Message(format!("{package}.{message}")),
    };
    let field = Field {
        number,
        name,
        shape,
        of,
        nullable,
    };
    words.next().is_none().then_some(field)
}
