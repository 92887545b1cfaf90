//! What is in the kernel's table of ours: read back over netlink.

use std::collections::BTreeMap;

use podnet_linux::netfilter::wire::{Attributes, Reader, Received};
use podnet_linux::netfilter::{Netfilter, NetfilterError, SUBSYSTEM_NFTABLES};

use super::TABLE;
use super::model::{Base, Chain, Elements, MapsTo, Set, Table, Value, Verdict, concatenated, width};
use super::transaction::NFPROTO_INET;

/// Our table as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Sets and maps by name.
    pub sets: BTreeMap<String, FoundSet>,
    /// Their elements, by the set's name.
    pub elements: BTreeMap<String, Elements>,
    /// Chains by name.
    pub chains: BTreeMap<String, FoundChain>,
}

/// A set's kind as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSet {
    key_type: u32,
    key_length: u32,
    data_type: Option<u32>,
    data_length: Option<u32>,
    dynamic: bool,
}

/// A chain as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundChain {
    /// Hook number, priority and kind of a base chain.
    base: Option<(u32, i32, String)>,
    /// The comments of its rules, in order.
    fingerprints: Vec<String>,
}

impl FoundSet {
    fn is(&self, set: &Set) -> bool {
        let values = match set.maps_to {
            MapsTo::Fields(fields) => Some((Some(concatenated(fields)), Some(width(fields)))),
            MapsTo::Nothing | MapsTo::Verdicts => None,
        };
        (self.key_type, self.key_length) == (concatenated(set.key), width(set.key))
            && values.is_none_or(|values| values == (self.data_type, self.data_length))
            && (set.maps_to == MapsTo::Nothing) == self.data_type.is_none()
            && set.dynamic == self.dynamic
    }
}

impl FoundChain {
    /// The chain as it is after we put it there.
    pub(crate) fn of(chain: &Chain) -> Self {
        FoundChain {
            base: chain
                .base
                .map(|Base { kind, hook, priority }| (hook as u32, priority, kind.to_owned())),
            fingerprints: chain.rules.iter().map(|rule| rule.fingerprint()).collect(),
        }
    }

    pub(crate) fn has_rules_of(&self, chain: &Chain) -> bool {
        self.fingerprints == FoundChain::of(chain).fingerprints
    }
}

impl Found {
    /// The table as it is after we put it there.
    pub(crate) fn of(table: &Table) -> Self {
        let set = |set: &Set| FoundSet {
            key_type: concatenated(set.key),
            key_length: width(set.key),
            data_type: match set.maps_to {
                MapsTo::Nothing => None,
                MapsTo::Verdicts => Some(0xffff_ff00),
                MapsTo::Fields(fields) => Some(concatenated(fields)),
            },
            data_length: match set.maps_to {
                MapsTo::Fields(fields) => Some(width(fields)),
                MapsTo::Nothing | MapsTo::Verdicts => None,
            },
            dynamic: set.dynamic,
        };
        Found {
            sets: table
                .sets
                .iter()
                .map(|(name, wanted)| (name.clone(), set(wanted)))
                .collect(),
            elements: table.elements.clone(),
            chains: table
                .chains
                .iter()
                .map(|(name, chain)| (name.clone(), FoundChain::of(chain)))
                .collect(),
        }
    }

    /// Whether every set that is there and wanted is of the kind that is wanted, and so every base chain: then changing
    /// rules and elements suffices.
    pub(crate) fn fits(&self, want: &Table) -> bool {
        let same_set = |(name, found): (&String, &FoundSet)| {
            let wanted = want.sets.get(name);
            wanted.is_none_or(|set| found.is(set))
        };
        let sets = self.sets.iter().all(same_set);
        let same_base = |(name, found): (&String, &FoundChain)| {
            let wanted = want.chains.get(name);
            wanted.is_none_or(|chain| found.base == FoundChain::of(chain).base)
        };
        let chains = self.chains.iter().all(same_base);
        sets && chains
    }
}

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;

/// The number of the rule set's generation: it grows with every change anybody makes in this network namespace.
pub(crate) fn generation(socket: &mut Netfilter) -> Result<u32, NetfilterError> {
    let mut generation = 0;
    socket.get(GET_GENERATION, 0, "read nftables' generation", |message| {
        generation = message.attributes().u32(1).unwrap_or_default();
    })?;
    Ok(generation)
}

/// Reads our table; `None` when there is none.
pub(crate) fn read(socket: &mut Netfilter) -> Result<Option<Found>, NetfilterError> {
    let mut exists = false;
    each(socket, GET_TABLE, &Attributes::new(), "list tables", |message| {
        exists |= message.attributes().text(1).as_deref() == Some(TABLE);
    })?;
    if !exists {
        return Ok(None);
    }
    let mut found = Found::default();
    let ours = Attributes::new().text(1, TABLE);
    each(socket, GET_CHAIN, &ours, "list chains", |message| {
        let attributes = message.attributes();
        if let Some(name) = ours_named(attributes, 3) {
            let base = attributes.nested(4).and_then(|hook| {
                let priority = u32::cast_signed(hook.u32(2)?);
                Some((hook.u32(1)?, priority, attributes.text(7)?))
            });
            found.chains.entry(name).or_default().base = base;
        }
    })?;
    each(socket, GET_RULE, &ours, "list rules", |message| {
        let attributes = message.attributes();
        if let Some(chain) = ours_named(attributes, 2) {
            found
                .chains
                .entry(chain)
                .or_default()
                .fingerprints
                .push(comment(attributes).unwrap_or_default());
        }
    })?;
    each(socket, GET_SET, &ours, "list sets", |message| {
        if let Some((name, set)) = set(message.attributes()) {
            found.sets.insert(name, set);
        }
    })?;
    let of_states = found.sets.iter().filter(|(_, set)| !set.dynamic);
    for (name, _) in of_states {
        let elements = found.elements.entry(name.clone()).or_default();
        let of_set = Attributes::new().text(1, TABLE).text(2, name);
        each(socket, GET_ELEMENTS, &of_set, "list elements", |message| {
            let list = message.attributes().nested(3).into_iter().flatten();
            elements.extend(list.filter_map(|(_, element)| self::element(Reader::new(element))));
        })?;
    }
    Ok(Some(found))
}

/// The name in attribute `name` if what is described is in our table.
fn ours_named(attributes: Reader<'_>, name: u16) -> Option<String> {
    if attributes.text(1)? == TABLE {
        attributes.text(name)
    } else {
        None
    }
}

fn set(attributes: Reader<'_>) -> Option<(String, FoundSet)> {
    let name = ours_named(attributes, 2)?;
    const MAP: u32 = 8;
    const DYNAMIC: u32 = 0x20;
    let dynamic = attributes.u32(3).unwrap_or_default() & DYNAMIC != 0;
    let is_map = attributes.u32(3).unwrap_or_default() & MAP != 0;
    let data_type = if is_map { attributes.u32(6) } else { None };
    let data_length = if is_map { attributes.u32(7) } else { None };
    Some((
        name,
        FoundSet {
            key_type: attributes.u32(4)?,
            key_length: attributes.u32(5)?,
            data_type,
            data_length,
            dynamic,
        },
    ))
}

fn element(attributes: Reader<'_>) -> Option<(Vec<u8>, Value)> {
    let key = attributes.nested(1)?.get(1)?.to_vec();
    let Some(data) = attributes.nested(2) else {
        return Some((key, Value::None));
    };
    let value = match (data.get(1), data.nested(2)) {
        (Some(value), _) => Value::Data(value.to_vec()),
        (None, Some(verdict)) => Value::Verdict(decode_verdict(verdict)?),
        (None, None) => Value::None,
    };
    Some((key, value))
}

fn decode_verdict(verdict: Reader<'_>) -> Option<Verdict> {
    match u32::cast_signed(verdict.u32(1)?) {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -5 => Some(Verdict::Return),
        -3 => Some(Verdict::Jump(verdict.text(2)?)),
        -4 => Some(Verdict::Goto(verdict.text(2)?)),
        _ => None,
    }
}

/// A rule's comment, from nft's user data: type 0, length, text, zero.
fn comment(attributes: Reader<'_>) -> Option<String> {
    let data = attributes.get(7)?;
    let (header, text) = data.split_first_chunk::<2>()?;
    let text = text.get(..usize::from(header[1]).checked_sub(1)?)?;
    (header[0] == 0).then(|| String::from_utf8_lossy(text).into_owned())
}

fn each(
    socket: &mut Netfilter,
    kind: u16,
    attributes: &Attributes,
    what: &str,
    entry: impl FnMut(Received<'_>),
) -> Result<(), NetfilterError> {
    socket.dump(SUBSYSTEM_NFTABLES, kind, NFPROTO_INET, attributes, what, entry)
}
