//! What becomes of a document: one to four small changes, to its JSON values or to its bytes.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Numbers on the edge of something.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "-9223372036854775808",
    "1.5",
    "1e308",
    "-0.0",
];
/// Texts on the edge of something.
const TEXTS: [&str; 14] = [
    "",
    " ",
    "\0",
    "..",
    "/",
    ":",
    "%s",
    "ä€😀",
    "\u{202e}",
    "true",
    "null",
    "0",
    "\\",
    "\"",
];
/// Bytes that mean something to a JSON reader.
const BYTES: &[u8] = b"{}[]\",:\\0-eE.tfn \xff\xc3\x00";

pub(crate) struct Mutator<'a> {
    pub(crate) words: &'a [&'a str],
}

impl Mutator<'_> {
    /// A document that came of one of the corpus.
    pub(crate) fn mutate(&self, corpus: &[Vec<u8>], random: &mut Random, longest: usize) -> Vec<u8> {
        let mut document = random.pick(corpus).cloned().unwrap_or_default();
        for _ in 0..=random.below(4) {
            let other = random.pick(corpus).map_or(&[][..], Vec::as_slice);
            let value = serde_json::from_slice::<Value>(&document).ok();
            match value {
                Some(mut value) if !random.once_in(4) => {
                    let donor = serde_json::from_slice::<Value>(other).ok();
                    self.change_value(&mut value, donor.as_ref(), random);
                    document = value.to_string().into_bytes();
                }
                _ => self.change_bytes(&mut document, other, random),
            }
        }
        document.truncate(longest);
        document
    }

    /// Changes one value somewhere in a tree.
    fn change_value(&self, root: &mut Value, donor: Option<&Value>, random: &mut Random) {
        let mut at = random.below(count(root));
        let Some(node) = nth(root, &mut at) else {
            return;
        };
        let lent = donor.and_then(|donor| {
            let mut donor = donor.clone();
            let mut at = random.below(count(&donor));
            nth(&mut donor, &mut at).map(std::mem::take)
        });
        match random.below(8) {
            0 => *node = self.value(random),
            1 => *node = lent.unwrap_or_default(),
            2 => *node = json!([node.take()]),
            3 => *node = json!({ self.text(random): node.take() }),
            4 => nest(node, random),
            _ => self.change_inside(node, lent, random),
        }
    }

    fn change_inside(&self, node: &mut Value, lent: Option<Value>, random: &mut Random) {
        match node {
            Value::Object(object) => self.change_object(object, lent, random),
            Value::Array(list) => {
                let at = random.below(list.len());
                match random.below(4) {
                    0 if !list.is_empty() => drop(list.remove(at)),
                    1 if !list.is_empty() => {
                        let twin = list[at].clone();
                        list.insert(at, twin);
                    }
                    2 => list.insert(at, lent.unwrap_or_default()),
                    _ => list.insert(at, self.value(random)),
                }
            }
            Value::String(text) => {
                let mut bytes = std::mem::take(text).into_bytes();
                self.change_bytes(&mut bytes, self.text(random).as_bytes(), random);
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            Value::Number(number) => {
                let step = random.below(3) as i64 - 1;
                let moved = number.as_i64().and_then(|number| number.checked_add(step));
                *node = moved.map_or_else(|| self.value(random), Value::from);
            }
            other => *other = self.value(random),
        }
    }

    fn change_object(&self, object: &mut Map<String, Value>, lent: Option<Value>, random: &mut Random) {
        let keys: Vec<String> = object.keys().cloned().collect();
        let key = random.pick(&keys).cloned();
        match (random.below(4), key) {
            (0, Some(key)) => drop(object.remove(&key)),
            (1, Some(key)) => {
                if let Some(value) = object.remove(&key) {
                    object.insert(self.text(random), value);
                }
            }
            (2, _) => drop(object.insert(self.text(random), lent.unwrap_or_default())),
            _ => drop(object.insert(self.text(random), self.value(random))),
        }
    }

    fn text(&self, random: &mut Random) -> String {
        let word = random.pick(self.words).filter(|_| !random_skips(random));
        let text = word.or_else(|| random.pick(&TEXTS)).copied();
        text.unwrap_or_default().to_owned()
    }

    fn value(&self, random: &mut Random) -> Value {
        match random.below(8) {
            0 => Value::Null,
            1 => Value::Bool(random.once_in(2)),
            2 | 3 => {
                let number = random.pick(&NUMBERS).copied().unwrap_or("0");
                serde_json::from_str(number).unwrap_or_default()
            }
            4 => json!([]),
            5 => json!({}),
            _ => Value::String(self.text(random)),
        }
    }

    fn change_bytes(&self, bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
        let at = random.below(bytes.len() + 1);
        let length = random.below(bytes.len() + 1 - at).min(1 + random.below(16));
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => {
                let twin = bytes[at..at + length].to_vec();
                bytes.splice(at..at, twin);
            }
            3 => {
                let from = random.below(other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            4 => {
                let word = self.text(random);
                bytes.splice(at..at + length, word.into_bytes());
            }
            5 => {
                let number = random.pick(&NUMBERS).copied().unwrap_or("0");
                bytes.splice(at..at + length, number.bytes());
            }
            6 => bytes.insert(at, *random.pick(BYTES).unwrap_or(&0)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

/// One word in eight is no word of the target's.
fn random_skips(random: &mut Random) -> bool {
    random.once_in(8)
}

/// Wraps a value in so many lists that a reader with a stack must say no.
fn nest(node: &mut Value, random: &mut Random) {
    for _ in 0..[3, 40, 127][random.below(3)] {
        *node = json!([node.take()]);
    }
}

/// The values in a tree, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(object) => object.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// The value at a place, in the order of reading.
fn nth<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| nth(value, at)),
        Value::Object(object) => object.values_mut().find_map(|value| nth(value, at)),
        _ => None,
    }
}
