//! What turns the table the kernel has into the one it should have: a list of operations that prints, and that the
//! kernel takes whole or not at all.

use std::fmt;

use podnet_linux::netfilter::Message;
use podnet_linux::netfilter::wire::Attributes;

use super::TABLE;
use super::found::{Found, FoundChain};
use super::model::{Chain, Elements, Field, Key, MapsTo, Set, Table, Value, concatenated, width};
use super::program::encode_verdict;
use super::rule::Rule;
use crate::delta::Delta;

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Makes our table.
    AddTable,
    /// Removes our table with all that is in it.
    DeleteTable,
    /// Makes a set or map.
    AddSet(String, Set),
    /// Makes a chain, without its rules.
    AddChain(String, Chain),
    /// Removes all rules of a chain.
    FlushChain(String),
    /// Puts a rule at the end of a chain.
    AddRule(String, Rule),
    /// Adds elements to a set.
    AddElements(String, Set, Vec<(Key, Value)>),
    /// Removes elements from a set.
    DeleteElements(String, Set, Vec<(Key, Value)>),
    /// Removes a chain with its rules.
    DeleteChain(String),
    /// Removes all elements of a set.
    FlushSet(String),
    /// Removes a set.
    DeleteSet(String),
}

/// A list of operations that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction(pub Vec<Operation>);

/// Most bytes of elements in one message: an attribute ends at 64 KiB.
const ELEMENTS_MOST: usize = 48 << 10;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NFPROTO_INET: u8 = 1;

impl Transaction {
    /// From what is there to what should be there.
    pub fn between(want: &Table, found: Option<&Found>) -> Self {
        let mut operations = Vec::new();
        let nothing = Found::default();
        let have = match found {
            None => {
                operations.push(Operation::AddTable);
                &nothing
            }
            Some(found) if found.fits(want) => found,
            // Something of ours is of another kind than it should be, as after an upgrade: anew, in one go.
            Some(_) => {
                operations.extend([Operation::DeleteTable, Operation::AddTable]);
                &nothing
            }
        };
        operations.extend(new_sets(want, have));
        let chains = Delta::between_by(&want.chains, &have.chains, |chain, found| {
            found.has_rules_of(chain)
        });
        operations.extend(chain_changes(&chains));
        operations.extend(element_changes(want, have));
        operations.extend(removals(want, have, &chains));
        Transaction(operations)
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many things change: elements count one by one.
    pub fn changes(&self) -> usize {
        let count = |operation: &Operation| match operation {
            Operation::AddElements(_, _, elements) | Operation::DeleteElements(_, _, elements) => {
                elements.len()
            }
            _ => 1,
        };
        self.0.iter().map(count).sum()
    }

    /// The elements that are taken from a set.
    pub(crate) fn removed(&self, set: &str) -> impl Iterator<Item = &(Key, Value)> {
        self.0.iter().flat_map(move |operation| match operation {
            Operation::DeleteElements(name, _, elements) if name == set => elements.as_slice(),
            _ => &[],
        })
    }

    /// The elements that are put into a set.
    pub(crate) fn added(&self, set: &str) -> impl Iterator<Item = &(Key, Value)> {
        self.0.iter().flat_map(move |operation| match operation {
            Operation::AddElements(name, _, elements) if name == set => elements.as_slice(),
            _ => &[],
        })
    }

    /// The sets whose elements change.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|operation| match operation {
            Operation::AddElements(name, ..) | Operation::DeleteElements(name, ..) => Some(name.as_str()),
            _ => None,
        })
    }

    pub(crate) fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        for (index, operation) in self.0.iter().enumerate() {
            operation.encode(index as u32, &mut messages);
        }
        messages
    }
}

fn new_sets<'a>(want: &'a Table, have: &'a Found) -> impl Iterator<Item = Operation> {
    let missing = want
        .sets
        .iter()
        .filter(|(name, _)| !have.sets.contains_key(*name));
    missing.map(|(name, set)| Operation::AddSet(name.clone(), set.clone()))
}

/// Chains before any rule, since rules lead from one to another.
fn chain_changes(chains: &Delta<'_, String, Chain, FoundChain>) -> Vec<Operation> {
    let new = chains.add.iter();
    let new = new.map(|(name, chain)| Operation::AddChain((*name).clone(), (*chain).clone()));
    let emptied = chains.change.iter();
    let emptied = emptied.map(|(name, _, _)| Operation::FlushChain((*name).clone()));
    let changed = chains.change.iter().map(|(name, chain, _)| (*name, *chain));
    let rules = chains.add.iter().copied().chain(changed);
    let rules = rules.flat_map(|(name, chain)| {
        let rules = chain.rules.iter();
        rules.map(|rule| Operation::AddRule(name.clone(), rule.clone()))
    });
    new.chain(emptied).chain(rules).collect()
}

/// Last, when nothing leads there any more: first all that these lead to, since they may lead to each other.
fn removals<'a>(
    want: &'a Table,
    have: &'a Found,
    chains: &'a Delta<'_, String, Chain, FoundChain>,
) -> impl Iterator<Item = Operation> {
    let chains = || chains.remove.iter().map(|(name, _)| (*name).clone());
    let sets = || have.sets.keys().filter(|name| !want.sets.contains_key(*name));
    let emptied = chains().map(Operation::FlushChain);
    emptied
        .chain(sets().cloned().map(Operation::FlushSet))
        .chain(sets().cloned().map(Operation::DeleteSet))
        .chain(chains().map(Operation::DeleteChain))
}

/// All removals before the first addition: an element that changes is removed and added.
fn element_changes(want: &Table, have: &Found) -> Vec<Operation> {
    let owned = |(key, value): (&Key, &Value)| (key.clone(), value.clone());
    let empty = Elements::new();
    let (mut removals, mut additions) = (Vec::new(), Vec::new());
    for (name, set) in want.sets.iter().filter(|(_, set)| !set.dynamic) {
        let wanted = want.elements.get(name).unwrap_or(&empty);
        let there = have.elements.get(name).unwrap_or(&empty);
        let delta = Delta::between(wanted, there);
        let old = delta.change.iter().map(|(key, _, old)| (*key, *old));
        let new = delta.change.iter().map(|(key, new, _)| (*key, *new));
        let gone = delta.remove.iter().copied().chain(old).map(owned).collect();
        let come = delta.add.iter().copied().chain(new).map(owned).collect();
        removals.push(Operation::DeleteElements(name.clone(), set.clone(), gone));
        additions.push(Operation::AddElements(name.clone(), set.clone(), come));
    }
    let all = removals.into_iter().chain(additions);
    all.filter(|operation| !operation.is_nothing()).collect()
}

impl Operation {
    fn is_nothing(&self) -> bool {
        matches!(self, Operation::AddElements(_, _, list) | Operation::DeleteElements(_, _, list) if list.is_empty())
    }

    fn encode(&self, id: u32, messages: &mut Vec<Message>) {
        let mut push = |kind, flags, attributes| {
            messages.push(Message {
                kind,
                flags,
                family: NFPROTO_INET,
                attributes,
                what: self.title(),
            });
        };
        let in_table = || Attributes::new().text(1, TABLE);
        match self {
            Operation::AddTable => push(NEW_TABLE, NLM_F_CREATE, in_table()),
            Operation::DeleteTable => push(DELETE_TABLE, 0, in_table()),
            Operation::AddSet(name, set) => {
                push(NEW_SET, NLM_F_CREATE, encode_set(in_table(), name, set, id))
            }
            Operation::AddChain(name, chain) => {
                push(NEW_CHAIN, NLM_F_CREATE, encode_chain(in_table(), name, chain))
            }
            Operation::FlushChain(name) => push(DELETE_RULE, 0, in_table().text(2, name)),
            Operation::DeleteChain(name) => push(DELETE_CHAIN, 0, in_table().text(3, name)),
            // An element list that is missing stands for all elements.
            Operation::FlushSet(name) => push(DELETE_ELEMENTS, 0, in_table().text(2, name)),
            Operation::DeleteSet(name) => push(DELETE_SET, 0, in_table().text(2, name)),
            Operation::AddRule(chain, rule) => {
                let attributes = in_table().text(2, chain).nest(4, rule.expressions());
                push(
                    NEW_RULE,
                    NLM_F_CREATE | NLM_F_APPEND,
                    attributes.bytes(7, &comment(&rule.fingerprint())),
                );
            }
            Operation::AddElements(set, set_kind, elements) => {
                for list in chunks(set_kind, elements, true) {
                    push(NEW_ELEMENTS, NLM_F_CREATE, in_table().text(2, set).nest(3, list));
                }
            }
            Operation::DeleteElements(set, set_kind, elements) => {
                for list in chunks(set_kind, elements, false) {
                    push(DELETE_ELEMENTS, 0, in_table().text(2, set).nest(3, list));
                }
            }
        }
    }

    /// For errors: what was tried, without the elements' list.
    fn title(&self) -> String {
        match self {
            Operation::AddElements(name, _, list) => format!("add {} elements to {name}", list.len()),
            Operation::DeleteElements(name, _, list) => format!("delete {} elements of {name}", list.len()),
            other => other.to_string().trim_end().to_owned(),
        }
    }
}

/// A comment as nft keeps it in a rule's user data: type 0, length, text, zero.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(&text.as_bytes()[..usize::from(length) - 1]);
    bytes.push(0);
    bytes
}

fn encode_set(attributes: Attributes, name: &str, set: &Set, id: u32) -> Attributes {
    const MAP: u32 = 8;
    const VERDICT: u32 = 0xffff_ff00;
    const TIMEOUT_AND_EVAL: u32 = 0x30;
    const INTERVAL: u32 = 4;
    let flags = if set.maps_to == MapsTo::Nothing { 0 } else { MAP };
    let flags = if set.dynamic {
        flags | TIMEOUT_AND_EVAL
    } else {
        flags
    };
    let flags = if set.interval { flags | INTERVAL } else { flags };
    let attributes = attributes
        .text(2, name)
        .u32(3, flags)
        .u32(4, concatenated(set.key))
        .u32(5, width(set.key));
    let attributes = match set.maps_to {
        MapsTo::Nothing => attributes,
        MapsTo::Verdicts => attributes.u32(6, VERDICT),
        MapsTo::Fields(fields) => attributes.u32(6, concatenated(fields)).u32(7, width(fields)),
    };
    let attributes = attributes.u32(10, id + 1);
    // For nft only: without a word on it, it prints a number of this machine's order backwards.
    const USER_DATA: u16 = 13;
    const KEY_BYTE_ORDER: u8 = 0;
    const HOST_ORDER: u32 = 1;
    if set.key == [Field::Number] {
        let mut order = vec![KEY_BYTE_ORDER, 4];
        order.extend_from_slice(&HOST_ORDER.to_ne_bytes());
        return attributes.bytes(USER_DATA, &order);
    }
    attributes
}

fn encode_chain(attributes: Attributes, name: &str, chain: &Chain) -> Attributes {
    const ACCEPT: u32 = 1;
    let attributes = attributes.text(3, name);
    let Some(base) = chain.base else {
        return attributes;
    };
    let hook = Attributes::new()
        .u32(1, base.hook as u32)
        .u32(2, i32::cast_unsigned(base.priority));
    attributes.nest(4, hook).u32(5, ACCEPT).text(7, base.kind)
}

/// What follows a range's last value; none when nothing does.
fn after(last: &[u8]) -> Option<Vec<u8>> {
    let mut next = last.to_vec();
    for byte in next.iter_mut().rev() {
        let (sum, overflows) = byte.overflowing_add(1);
        *byte = sum;
        if !overflows {
            return Some(next);
        }
    }
    None
}

fn chunks(set: &Set, elements: &[(Key, Value)], with_values: bool) -> Vec<Attributes> {
    const INTERVAL_END: u32 = 1;
    let mut lists = Vec::new();
    let mut list = Attributes::new();
    for (key, value) in elements {
        let bounds = set.bounds(key);
        let first = bounds.map_or(key.as_slice(), |(first, _)| first);
        let element = Attributes::new().nest(1, Attributes::new().bytes(1, first));
        let element = match value {
            Value::Data(data) if with_values => element.nest(2, Attributes::new().bytes(1, data)),
            Value::Verdict(verdict) if with_values => element.nest(2, encode_verdict(verdict)),
            _ => element,
        };
        list = list.nest(1, element);
        // The kernel keeps a range as two elements, its first value and what follows its last.
        if let Some(end) = bounds.and_then(|(_, last)| after(last)) {
            let end = Attributes::new().nest(1, Attributes::new().bytes(1, &end));
            list = list.nest(1, end.u32(3, INTERVAL_END));
        }
        if list.len() >= ELEMENTS_MOST {
            lists.push(std::mem::take(&mut list));
        }
    }
    if !list.is_empty() {
        lists.push(list);
    }
    lists
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements = |f: &mut fmt::Formatter<'_>, verb, name: &str, set: &Set, list: &[(Key, Value)]| {
            list.iter().try_for_each(|(key, value)| {
                writeln!(
                    f,
                    "{verb} element inet {TABLE} {name} {{ {} }}",
                    set.element(key, value)
                )
            })
        };
        match self {
            Operation::AddTable => writeln!(f, "add table inet {TABLE}"),
            Operation::DeleteTable => writeln!(f, "delete table inet {TABLE}"),
            Operation::AddSet(name, set) => {
                writeln!(f, "add {} inet {TABLE} {name} {{ {set}; }}", set.keyword())
            }
            Operation::AddChain(name, Chain { base: Some(base), .. }) => {
                writeln!(f, "add chain inet {TABLE} {name} {{ {base} }}")
            }
            Operation::AddChain(name, _) => writeln!(f, "add chain inet {TABLE} {name}"),
            Operation::FlushChain(name) => writeln!(f, "flush chain inet {TABLE} {name}"),
            Operation::DeleteChain(name) => writeln!(f, "delete chain inet {TABLE} {name}"),
            Operation::FlushSet(name) => writeln!(f, "flush set inet {TABLE} {name}"),
            Operation::DeleteSet(name) => writeln!(f, "delete set inet {TABLE} {name}"),
            Operation::AddRule(chain, rule) => writeln!(f, "add rule inet {TABLE} {chain} {rule}"),
            Operation::AddElements(name, set, list) => elements(f, "add", name, set, list),
            Operation::DeleteElements(name, set, list) => {
                let keys: Vec<_> = list.iter().map(|(key, _)| (key.clone(), Value::None)).collect();
                elements(f, "delete", name, set, &keys)
            }
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|operation| write!(f, "{operation}"))
    }
}
