//! What is in the kernel's table of ours: read back over netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podnet_linux::netfilter::wire::{Attributes, Reader, Received};
use podnet_linux::netfilter::{Netfilter, NetfilterError, SUBSYSTEM_NFTABLES};

use super::TABLE;
use super::model::{Base, Chain, Elements, Key, MapsTo, Set, Table, Value, Verdict, concatenated, width};
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
    interval: bool,
    /// Of some range only one end is there.
    torn: bool,
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
            && (set.dynamic, set.interval) == (self.dynamic, self.interval)
            && !self.torn
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
            interval: set.interval,
            torn: false,
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

/// So often a set is read before it is given up, and so long is waited before each time but the first. The kernel grows a
/// hash table within milliseconds.
const WALKS: u32 = 20;
const GROWS: Duration = Duration::from_millis(5);

/// The elements of a set, and the ends of ranges.
///
/// The kernel hands out a set in parts, and begins each part with a walk from the start in which it passes over as many
/// elements as it has told already (nft_rhash_walk). Where it rehashes the set between two parts, which it does some time
/// after many insertions and without a new generation, the order is another: some elements are told twice, and as many
/// not at all. So what is told twice says that the rest cannot be trusted.
fn elements_of(socket: &mut Netfilter, set: &str) -> Result<(Elements, BTreeSet<Key>), NetfilterError> {
    let of_set = Attributes::new().text(1, TABLE).text(2, set);
    let mut walks = 1;
    loop {
        let (mut elements, mut ends) = (Elements::new(), BTreeSet::new());
        let mut twice = false;
        each(socket, GET_ELEMENTS, &of_set, "list elements", |message| {
            let list = message.attributes().nested(3).into_iter().flatten();
            for (key, value) in list.filter_map(|(_, element)| self::element(Reader::new(element))) {
                twice |= match value {
                    Some(value) => elements.insert(key, value).is_some(),
                    None => !ends.insert(key),
                };
            }
        })?;
        if !twice {
            return Ok((elements, ends));
        }
        if walks == WALKS {
            return Err(NetfilterError::Changed);
        }
        walks += 1;
        std::thread::sleep(GROWS);
    }
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
    let of_states = found.sets.iter_mut().filter(|(_, set)| !set.dynamic);
    for (name, set) in of_states {
        let (mut elements, ends) = elements_of(socket, name)?;
        if set.interval {
            let ranges = ranges(&elements, &ends);
            set.torn = ranges.is_none();
            elements = ranges.unwrap_or_default();
        }
        found.elements.insert(name.clone(), elements);
    }
    Ok(Some(found))
}

/// Ranges from their first values and from what follows their last ones; `None` when these do not fit together.
fn ranges(firsts: &Elements, ends: &BTreeSet<Vec<u8>>) -> Option<Elements> {
    let mut ends = ends
        .iter()
        .filter(|end| end.iter().any(|byte| *byte != 0))
        .peekable();
    let mut ranges = Elements::new();
    let mut firsts = firsts.iter().peekable();
    while let Some((first, value)) = firsts.next() {
        let next = firsts.peek().map(|(next, _)| *next);
        let end = ends.next_if(|end| *end > first && next.is_none_or(|next| *end <= next));
        let last = match (end, next) {
            (Some(end), _) => before(end),
            // Nothing follows the greatest value.
            (None, None) => vec![u8::MAX; first.len()],
            (None, Some(_)) => return None,
        };
        ranges.insert([first.clone(), last].concat(), value.clone());
    }
    ends.peek().is_none().then_some(ranges)
}

/// The value before one that is not the least.
fn before(end: &[u8]) -> Vec<u8> {
    let mut last = end.to_vec();
    for byte in last.iter_mut().rev() {
        let (difference, overflows) = byte.overflowing_sub(1);
        *byte = difference;
        if !overflows {
            break;
        }
    }
    last
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
    const INTERVAL: u32 = 4;
    let interval = attributes.u32(3).unwrap_or_default() & INTERVAL != 0;
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
            interval,
            torn: false,
        },
    ))
}

/// An element's key and value; no value for the end of a range.
fn element(attributes: Reader<'_>) -> Option<(Vec<u8>, Option<Value>)> {
    const INTERVAL_END: u32 = 1;
    let key = attributes.nested(1)?.get(1)?.to_vec();
    if attributes.u32(3).unwrap_or_default() & INTERVAL_END != 0 {
        return Some((key, None));
    }
    let Some(data) = attributes.nested(2) else {
        return Some((key, Some(Value::None)));
    };
    let value = match (data.get(1), data.nested(2)) {
        (Some(value), _) => Value::Data(value.to_vec()),
        (None, Some(verdict)) => Value::Verdict(decode_verdict(verdict)?),
        (None, None) => Value::None,
    };
    Some((key, Some(value)))
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
