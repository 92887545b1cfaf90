//! What podnet's nftables table is made of: sets and maps, their elements, chains and their rules.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use podnet_core::cluster::{Family, Protocol};

use super::rule::Rule;

/// The name of a set: most are the same in every state.
pub type SetName = Cow<'static, str>;

/// A whole table: what there should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
    /// Their elements, by the set's name.
    pub elements: BTreeMap<String, Elements>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// Elements of a set or map, by key.
pub type Elements = BTreeMap<Key, Value>;

/// Elements are bytes, laid out as the kernel compares them: each field begins at a multiple of four.
pub type Key = Vec<u8>;

/// What a set says of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is in the set.
    None,
    /// What a map maps it to.
    Data(Vec<u8>),
    /// What a verdict map does with it.
    Verdict(Verdict),
}

/// Where evaluation goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Ends the hook's base chain, letting the packet go on.
    Accept,
    /// Ends the packet.
    Drop,
    /// Out of a chain, back to where it was jumped from.
    Return,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain for good.
    Goto(String),
}

/// The kind of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The fields of its keys.
    pub key: &'static [Field],
    /// What it maps them to.
    pub maps_to: MapsTo,
    /// Packets put its elements in, and time takes them out: they are no part of a state.
    pub dynamic: bool,
    /// An element is a range, whose key has its first and its last value one after the other. Ranges do not overlap.
    pub interval: bool,
}

/// What a set maps its keys to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapsTo {
    /// Nothing.
    Nothing,
    /// Verdicts.
    Verdicts,
    /// Values of these fields.
    Fields(&'static [Field]),
}

/// A field of a key or value: nft's data types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
    /// `mark`: a number of four bytes in host order, which numgen gives.
    Number,
}

impl Field {
    /// nft's number of the type (TYPE_* in its datatype.h), so that `nft list` can print what we made.
    pub(crate) fn nft_type(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Number => 19,
        }
    }

    /// Bytes it takes in a key.
    pub(crate) fn width(self) -> usize {
        match self {
            Field::Ipv6 => 16,
            _ => 4,
        }
    }

    fn nft_name(self) -> &'static str {
        match self {
            Field::Ipv4 => "ipv4_addr",
            Field::Ipv6 => "ipv6_addr",
            Field::Protocol => "inet_proto",
            Field::Port => "inet_service",
            Field::Number => "mark",
        }
    }

    fn show(self, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = || {
            let mut word = [0; 4];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            word
        };
        match self {
            Field::Ipv4 => write!(f, "{}", Ipv4Addr::from(word())),
            Field::Ipv6 => write!(
                f,
                "{}",
                Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap_or([0; 16]))
            ),
            Field::Protocol => match Protocol::from_number(word()[0]) {
                Some(protocol) => write!(f, "{protocol}"),
                None => write!(f, "{}", word()[0]),
            },
            Field::Port => write!(f, "{}", u16::from_be_bytes([word()[0], word()[1]])),
            Field::Number => write!(f, "{}", u32::from_ne_bytes(word())),
        }
    }
}

/// A concatenation's type as nft numbers it: six bits a field.
pub(crate) fn concatenated(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| all << 6 | field.nft_type())
}

/// A concatenation's length in bytes.
pub(crate) fn width(fields: &[Field]) -> u32 {
    match fields {
        // Alone a port takes no more than it has.
        [Field::Port] => 2,
        _ => fields.iter().map(|field| field.width() as u32).sum(),
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Where the kernel enters it; none if only rules do.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hooks into the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Which hook.
    pub hook: Hook,
    /// Order among the chains of the hook; lower is earlier.
    pub priority: i32,
}

/// Netfilter's hooks, as numbered by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What arrived, before routing.
    Prerouting = 0,
    /// What is for this node itself.
    Input = 1,
    /// What passes through.
    Forward = 2,
    /// What this node sends.
    Output = 3,
    /// What leaves, after routing.
    Postrouting = 4,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {} hook {} priority {}; policy accept;",
            self.kind, self.hook, self.priority
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |fields: &[Field]| {
            fields
                .iter()
                .map(|field| field.nft_name())
                .collect::<Vec<_>>()
                .join(" . ")
        };
        write!(f, "type {}", join(self.key))?;
        match self.maps_to {
            MapsTo::Nothing => {}
            MapsTo::Verdicts => f.write_str(" : verdict")?,
            MapsTo::Fields(fields) => write!(f, " : {}", join(fields))?,
        }
        if self.dynamic {
            f.write_str("; flags dynamic,timeout")?;
        }
        if self.interval {
            f.write_str("; flags interval")?;
        }
        Ok(())
    }
}

impl Set {
    /// `set` or `map`.
    pub fn keyword(&self) -> &'static str {
        if self.maps_to == MapsTo::Nothing {
            "set"
        } else {
            "map"
        }
    }

    /// The first and the last value of a range; none where elements are no ranges.
    pub(crate) fn bounds<'a>(&self, key: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        self.interval.then(|| key.split_at(key.len() / 2))
    }

    /// An element as nft writes it.
    pub(crate) fn element(&self, key: &[u8], value: &Value) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = match self.bounds(key) {
            Some((first, last)) if first != last => {
                write!(text, "{}-{}", Fields(self.key, first), Fields(self.key, last))
            }
            Some((only, _)) => write!(text, "{}", Fields(self.key, only)),
            None => write!(text, "{}", Fields(self.key, key)),
        };
        match (value, self.maps_to) {
            (Value::Data(data), MapsTo::Fields(fields)) => _ = write!(text, " : {}", Fields(fields, data)),
            (Value::Verdict(verdict), _) => _ = write!(text, " : {verdict}"),
            _ => {}
        }
        text
    }
}

struct Fields<'a>(&'a [Field], &'a [u8]);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.1;
        for (index, field) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" . ")?;
            }
            let (bytes, after) = rest.split_at(field.width().min(rest.len()));
            field.show(bytes, f)?;
            rest = after;
        }
        Ok(())
    }
}

/// `4` or `6`, as the names of our sets end.
pub(crate) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", super::TABLE)?;
        for (name, set) in &self.sets {
            writeln!(f, "  {} {name} {{ {set}; }}", set.keyword())?;
            for (key, value) in self.elements.get(name).into_iter().flatten() {
                writeln!(f, "    {}", set.element(key, value))?;
            }
        }
        for (name, chain) in &self.chains {
            writeln!(f, "  chain {name} {{")?;
            if let Some(base) = chain.base {
                writeln!(f, "    {base}")?;
            }
            chain
                .rules
                .iter()
                .try_for_each(|rule| writeln!(f, "    {rule}"))?;
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}
