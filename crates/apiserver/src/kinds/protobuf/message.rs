//! Messages to JSON, as the table says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::ProtobufError;
use super::table::{self, Field, Message, Shape, Type};
use super::wire::{self, Wire};

/// Reads a message's fields into `object`. Numbers that the table does not have are passed over, as Go does with
/// fields of a newer version.
pub(super) fn read(
    message: &'static Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
) -> Result<(), ProtobufError> {
    for field in wire::fields(bytes) {
        let (number, wire) = field?;
        let Some(field) = message.field(number) else {
            continue;
        };
        read_field(field, wire, object).map_err(|error| located(error, message, field))?;
    }
    Ok(())
}

/// Says where the innermost error was.
fn located(error: ProtobufError, message: &Message, field: &Field) -> ProtobufError {
    match error {
        ProtobufError::Malformed(text) if !text.ends_with(')') => {
            let field = if field.name.is_empty() {
                "its inlined fields"
            } else {
                field.name
            };
            ProtobufError::Malformed(format!("{text} (at {field} of {})", message.name))
        }
        other => other,
    }
}

fn read_field(field: &Field, wire: Wire<'_>, object: &mut Map<String, Value>) -> Result<(), ProtobufError> {
    match field.shape {
        Shape::Inline => read(target(&field.of)?, wire.bytes()?, object),
        Shape::One => {
            let value = match (&field.of, object.get_mut(field.name).map(Value::take)) {
                // A message that comes in two parts is their union.
                (Type::Message(_), Some(Value::Object(mut known))) => {
                    read(target(&field.of)?, wire.bytes()?, &mut known)?;
                    Value::Object(known)
                }
                (of, _) => value(of, wire)?,
            };
            if field.nullable || !is_zero(&field.of, &value) {
                object.insert(field.name.to_owned(), value);
            } else {
                object.shift_remove(field.name);
            }
            Ok(())
        }
        Shape::List => {
            let list = object
                .entry(field.name)
                .or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Ok(()) };
            match (&field.of, wire) {
                // Numbers may come packed into one field.
                (Type::Int, Wire::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        list.push(wire::varint(&mut packed)?.cast_signed().into());
                    }
                }
                (of, wire) => list.push(value(of, wire)?),
            }
            Ok(())
        }
        Shape::Map => {
            let (key, value) = map_entry(&field.of, wire.bytes()?)?;
            let map = object
                .entry(field.name)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
            Ok(())
        }
    }
}

/// An entry of a map is a message of key and value; what is missing in it is zero.
fn map_entry(of: &Type, bytes: &[u8]) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut content) = (String::new(), None);
    for field in wire::fields(bytes) {
        match field? {
            (1, wire) => key = wire.text()?.to_owned(),
            (2, wire) => content = Some(value(of, wire)?),
            _ => {}
        }
    }
    let content = match content {
        Some(content) => content,
        None => value(of, Wire::Bytes(&[]))?,
    };
    Ok((key, content))
}

fn value(of: &Type, wire: Wire<'_>) -> Result<Value, ProtobufError> {
    Ok(match of {
        Type::Text => wire.text()?.into(),
        Type::Int => wire.int()?.into(),
        Type::Bool => (wire.varint()? != 0).into(),
        Type::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Type::Time | Type::MicroTime => time(wire.bytes()?)?,
        Type::Quantity => quantity(wire.bytes()?)?,
        Type::IntOrString => int_or_string(wire.bytes()?)?,
        Type::FieldsV1 => fields_v1(wire.bytes()?)?,
        Type::Message(_) => {
            let mut object = Map::new();
            read(target(of)?, wire.bytes()?, &mut object)?;
            Value::Object(object)
        }
    })
}

/// Go's zero values, which it writes although nobody gave them. A message that is there is given, even an empty one.
fn is_zero(of: &Type, value: &Value) -> bool {
    match of {
        Type::Text => value == "",
        Type::Int => value == 0,
        Type::Bool => value == false,
        Type::IntOrString => value == 0 || value == "",
        Type::Time | Type::MicroTime | Type::FieldsV1 => value.is_null(),
        Type::Bytes | Type::Quantity | Type::Message(_) => false,
    }
}

fn target(of: &Type) -> Result<&'static Message, ProtobufError> {
    let Type::Message(name) = of else {
        return Err(wire::WireError::Mismatch.into());
    };
    table::message(name).ok_or_else(|| ProtobufError::Malformed(format!("there is no message {name}")))
}

/// Messages `Time` and `MicroTime`: seconds and nanoseconds since 1970. An empty one is Go's zero time, which is null.
fn time(bytes: &[u8]) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanoseconds) = (0, 0);
    for field in wire::fields(bytes) {
        match field? {
            (1, wire) => seconds = wire.int()?,
            (2, wire) => nanoseconds = wire.int()?,
            _ => {}
        }
    }
    let out_of_range = |_| ProtobufError::Malformed(format!("{seconds} s {nanoseconds} ns is not a time"));
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(i32::MAX);
    let time = Timestamp::new(seconds, nanoseconds).map_err(out_of_range)?;
    Ok(time.to_string().into())
}

/// Message `Quantity`: its text.
fn quantity(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut text = "0";
    for field in wire::fields(bytes) {
        if let (1, wire) = field? {
            text = wire.text()?;
        }
    }
    Ok(text.into())
}

/// Message `IntOrString`: which of the two, and both.
fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in wire::fields(bytes) {
        match field? {
            (1, wire) => is_text = wire.varint()? == 1,
            (2, wire) => number = wire.int()?,
            (3, wire) => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// Message `FieldsV1`: JSON within.
fn fields_v1(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut json: &[u8] = b"null";
    for field in wire::fields(bytes) {
        if let (1, wire) = field? {
            json = wire.bytes()?;
        }
    }
    serde_json::from_slice(json)
        .map_err(|error| ProtobufError::Malformed(format!("managed fields are no JSON: {error}")))
}
