//! Programs at pods' links: from pod to pod past the host's stack, where nothing is to be decided.
//!
//! Rows are what lets a packet past: without one of its sender and one of whom it is for it takes the stack. So a pod that
//! a policy is about has none, nor has one whose traffic is held back by a queue at its link, nor one on a bridge. Before a
//! row is there, all flows are noted that the table translated and whose answers it would lead past.
//!
//! Connections that went past the stack are nobody's that tracking knows. So when a pod's row goes, tracking is told of
//! its connections, in the direction in which they were begun, before any policy asks for it.

mod flows;
mod programs;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_core::NodeState;
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::Tuple;
use podnet_linux::netfilter::Netfilter;

use super::{EbpfError, Site};
pub(super) use programs::Maps;
use programs::Programs;
pub(super) use rows::Rows;
use rows::{Places, Row, Step};

/// The programs at a node's links.
#[derive(Default)]
pub(super) struct PodPath {
    programs: Option<Programs>,
    put: Option<Put>,
    /// The last application failed, and left nothing: the next that looks for what changed unseen tries again.
    failed: bool,
    left_out: Option<String>,
    put_back: usize,
}

/// What is in the maps, and by which state.
struct Put {
    rows: Rows,
    /// None where the kernel is to be looked at again.
    state: Option<NodeState>,
}

/// Whether a state asks for the same links and rows, as far as it says.
fn is_same(old: &NodeState, new: &NodeState) -> bool {
    old.wired == new.wired && old.routing == new.routing && old.policy == new.policy
}

impl PodPath {
    /// Takes the pods off the path that a policy is about in `want`, before it is in force: their packets take the stack
    /// then, and tracking knows their connections.
    pub(super) fn make_way(&mut self, site: &Site, want: &NodeState) -> Result<(), EbpfError> {
        if want.links().next().is_none() {
            // The table will not say any more what it translates.
            return self.leave(site);
        }
        let policed = want.policy.addresses();
        if policed.is_empty() {
            return Ok(());
        }
        let Some(mut maps) = Maps::present(site)? else {
            return Ok(());
        };
        let have = match &self.put {
            Some(put) => put.rows.clone(),
            None => maps.rows()?,
        };
        let going: BTreeSet<Address> = policed
            .into_iter()
            .map(Address::from)
            .filter(|address| have.pods.contains_key(address))
            .collect();
        if going.is_empty() {
            return Ok(());
        }
        for step in have.without(&going).steps_from(&have) {
            maps.run(&step)?;
            if let Some(put) = &mut self.put {
                put.rows.take(&step);
                put.state = None;
            }
        }
        hand_over(&mut maps, |connection| {
            going.contains(&connection.source) || going.contains(&connection.destination)
        })
    }

    /// Leads packets past the stack as far as `want` lets them, or leaves them all to it. Returns how many rows changed.
    pub(super) fn apply(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        if self.failed {
            return Ok(0);
        }
        self.lead(site, want).or_else(|error| {
            self.leave(site)?;
            self.failed = true;
            self.left_out = Some(format!(
                "packets between pods do not go past the host's stack: {error}; they are routed instead"
            ));
            Ok(0)
        })
    }

    fn lead(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        if want.links().next().is_none() {
            return Ok(0);
        }
        let is_known = |put: &Put| put.state.as_ref().is_some_and(|state| is_same(state, want));
        if self.put.as_ref().is_some_and(is_known) {
            return Ok(0);
        }
        let programs = match &mut self.programs {
            Some(programs) if programs.are_pinned() => programs,
            before => {
                // Somebody took them off, and their maps with them.
                self.put = None;
                self.put_back += usize::from(before.is_some());
                before.insert(Programs::open(site)?)
            }
        };
        let places = Places::look(want)?;
        let wanted = Rows::of(want, &places);
        let is_late = self.put.as_ref().is_some_and(|put| put.state.is_none());
        let attached = programs.attach(&places.attachments(want))?;
        let have = programs.maps().rows()?;
        if let Some(put) = &self.put {
            // What we put there and is there no more, or otherwise.
            self.put_back += put.rows.steps_from(&have).len();
        }
        if is_late {
            self.put_back += attached;
            flows::tend(programs.maps(), &have)?;
        }
        let steps = wanted.steps_from(&have);
        let mut is_noted = false;
        for step in &steps {
            if step.leads() && !is_noted {
                flows::note(programs.maps(), &wanted)?;
                is_noted = true;
            }
            programs.maps().run(step)?;
        }
        let gone = have.pods.keys().any(|address| !wanted.pods.contains_key(address));
        if gone {
            flows::forget(programs.maps(), &wanted)?;
        }
        self.left_out = None;
        self.put = Some(Put {
            rows: wanted,
            state: Some(want.clone()),
        });
        Ok(steps.len())
    }

    /// Has all packets take the stack again, and takes the programs off.
    pub(super) fn leave(&mut self, site: &Site) -> Result<(), EbpfError> {
        self.programs = None;
        self.put = None;
        self.left_out = None;
        // What cannot be read any more can be removed all the same.
        if let Ok(Some(mut maps)) = Maps::present(site) {
            let have = maps.rows()?;
            for step in Rows::default().steps_from(&have) {
                maps.run(&step)?;
            }
            hand_over(&mut maps, |_| true)?;
        }
        programs::remove(site)
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = &String> {
        self.left_out.iter()
    }

    pub(super) fn take_put_back(&mut self) -> usize {
        std::mem::take(&mut self.put_back)
    }

    pub(super) fn distrust(&mut self) {
        self.failed = false;
        if let Some(put) = &mut self.put {
            put.state = None;
        }
    }
}

/// Takes pods off the path by their addresses.
pub(super) fn let_go_of(site: &Site, addresses: &[IpAddr]) -> Result<(), EbpfError> {
    let Some(mut maps) = Maps::present(site)? else {
        return Ok(());
    };
    let mut addresses = addresses.iter().map(|address| Address::from(*address));
    addresses.try_for_each(|address| maps.remove_pod(address))
}

/// Tells tracking of connections that take the stack from now on.
fn hand_over(maps: &mut Maps, which: impl Fn(&Tuple) -> bool) -> Result<(), EbpfError> {
    let mut begun = maps.begun()?;
    begun.retain(which);
    if begun.is_empty() {
        return Ok(());
    }
    flows::track(&mut Netfilter::open()?, &begun)?;
    begun.iter().try_for_each(|connection| maps.forget(connection))
}

impl Step {
    /// Whether more packets may go past the stack after it.
    fn leads(&self) -> bool {
        match self {
            Step::Put(Row::Pod(..)) => true,
            Step::Put(Row::Way(_, way)) => way.link != 0,
            Step::Remove(_) => false,
        }
    }
}
