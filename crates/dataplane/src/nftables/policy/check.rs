//! Whether what the kernel has judges a pod as it should.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use podnet_core::cluster::Family;

use super::super::found::{Found, FoundChain};
use super::super::model::{Table, Value, Verdict};
use super::super::rule::{Clause, octets};
use super::names;

/// What of a pod's policy is not in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// An address of it does not lead to its chains.
    Address(IpAddr),
    /// A chain is missing or another one.
    Chain(String),
    /// A set is missing, or has other elements.
    Set(String),
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gap::Address(address) => write!(f, "{address} does not lead to its rules"),
            Gap::Chain(chain) => write!(f, "chain {chain} is not as it should be"),
            Gap::Set(set) => write!(f, "set {set} is not as it should be"),
        }
    }
}

/// What is missing for pods of these addresses; all that their packets meet is compared.
pub(crate) fn gap(want: &Table, found: &Found, addresses: &[IpAddr]) -> Option<Gap> {
    let base = want.chains.iter().filter(|(_, chain)| chain.base.is_some());
    let mut chains: Vec<String> = base.map(|(name, _)| name.clone()).collect();
    for address in addresses {
        let names = names(Family::of(*address));
        let key = octets(*address);
        for set in [names.ingress, names.egress, names.policed] {
            let of = |sets: &std::collections::BTreeMap<String, super::super::Elements>| {
                sets.get(set).and_then(|elements| elements.get(&key)).cloned()
            };
            let wanted = of(&want.elements);
            if wanted != of(&found.elements) {
                return Some(Gap::Address(*address));
            }
            if let Some(Value::Verdict(Verdict::Goto(chain))) = wanted {
                chains.push(chain);
            }
        }
    }
    let mut seen = BTreeSet::new();
    while let Some(name) = chains.pop() {
        let Some(chain) = want.chains.get(&name).filter(|_| seen.insert(name.clone())) else {
            continue;
        };
        if found.chains.get(&name) != Some(&FoundChain::of(chain)) {
            return Some(Gap::Chain(name));
        }
        for clause in chain.rules.iter().flat_map(|rule| &rule.0) {
            if let Clause::Verdict(Verdict::Goto(next) | Verdict::Jump(next)) = clause {
                chains.push(next.clone());
            }
            let Some(set) = clause.set().filter(|set| !is_by_pod(set)) else {
                continue;
            };
            let wanted = want.elements.get(set);
            if wanted != found.elements.get(set) {
                return Some(Gap::Set(set.to_owned()));
            }
            chains.extend(wanted.into_iter().flatten().filter_map(|(_, value)| match value {
                Value::Verdict(Verdict::Goto(next)) => Some(next.clone()),
                _ => None,
            }));
        }
    }
    None
}

/// Whether a set has an element for each pod of the node: another pod's is none of this one's business.
fn is_by_pod(set: &str) -> bool {
    super::FAMILIES.iter().any(|family| {
        let names = names(*family);
        [names.egress, names.ingress, names.policed, names.themselves].contains(&set)
    })
}
