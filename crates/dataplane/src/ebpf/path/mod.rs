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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use podnet_core::NodeState;
use podnet_ebpf_abi::Address;
use podnet_linux::netlink::{Netlink, NetlinkError};
use podnet_linux::xfrm;

use super::{EbpfError, Site};
use programs::Programs;
pub(super) use programs::{Maps, numbers};
pub(super) use rows::Rows;
use rows::{Places, Qdiscs, Row, Side, Step, Underlay};

/// What rows go by that nobody announces: shared with who looks whether it still is so; none while there are no rows.
type Shared = Arc<Mutex<Option<Watched>>>;

struct Watched {
    links: BTreeSet<u32>,
    qdiscs: Qdiscs,
    underlay: Underlay,
    /// The node whose route was looked at last.
    last: Option<IpAddr>,
}

impl Watched {
    /// Queues, filters and IPsec that have come: that some go may wait until everything is looked over. And nodes that are
    /// reached by other links, some at a time.
    fn is_disturbed(&mut self) -> Result<bool, NetlinkError> {
        /// As many as can be asked for in passing.
        const SOME: usize = 64;
        if has_ipsec().unwrap_or(false) {
            return Ok(true);
        }
        let mut netlink = Netlink::open()?;
        let found = Qdiscs::look(&mut netlink, &self.links)?;
        if !found.queued.is_subset(&self.qdiscs.queued) || !found.filtered.is_subset(&self.qdiscs.filtered) {
            return Ok(true);
        }
        let Some(tunnel) = self.underlay.tunnel else {
            return Ok(false);
        };
        let some = self.underlay.some_after(self.last, SOME);
        let nodes: Vec<IpAddr> = some.iter().map(|(node, _)| *node).collect();
        let found = Underlay::look(&mut netlink, tunnel, &nodes)?;
        self.last = nodes.last().copied();
        Ok(!found.ways.into_iter().eq(some))
    }
}

/// Whether the stack would ask IPsec about what goes past it.
fn has_ipsec() -> io::Result<bool> {
    let policies = xfrm::policies()?;
    Ok(policies != xfrm::Policies::default())
}

/// Looks whether it is.
pub(super) struct Guard(Shared);

impl Guard {
    pub(super) fn is_disturbed(&mut self) -> bool {
        // Told once: whoever takes it into account says again what there is.
        let is_disturbed = |watched: &mut Watched| watched.is_disturbed().unwrap_or(false);
        self.0.lock().take_if(is_disturbed).is_some()
    }
}

/// The programs at a node's links.
#[derive(Default)]
pub(super) struct PodPath {
    watched: Shared,
    programs: Option<Programs>,
    put: Option<Put>,
    /// Pods were taken off the path, and tracking was not told of all their connections.
    owes: bool,
    /// The last application failed, and left nothing: the next that looks for what changed unseen tries again.
    failed: bool,
    /// There is no use in trying.
    is_hopeless: bool,
    /// What is left to do where anything is: links without their programs, whose packets take the stack. Until the kernel
    /// has a program at a link it waits for all processors, and so would services and policies.
    left: Option<BTreeSet<(Side, u32)>>,
    left_out: Vec<String>,
    put_back: usize,
}

/// What is in the maps, and by which state.
struct Put {
    rows: Rows,
    attached: BTreeMap<u32, Side>,
    state: NodeState,
    /// What others may have changed unseen is to be looked at.
    is_stale: bool,
}

/// Whether a state asks for the same links and rows, as far as it says.
fn is_same(old: &NodeState, new: &NodeState) -> bool {
    old.links().eq(new.links()) && old.routing == new.routing && old.policy == new.policy
}

impl PodPath {
    /// Takes the pods off the path that a policy is about in `want`, before it is in force: their packets take the stack
    /// then, and tracking knows their connections.
    pub(super) fn make_way(&mut self, site: &Site, want: &NodeState) -> Result<(), EbpfError> {
        if want.links().next().is_none() {
            // The table will not say any more what it translates.
            return self.leave(site);
        }
        // An agent that starts may have to end what another had begun.
        let is_settled = |put: &Put| !put.is_stale && put.state.policy == want.policy;
        if !self.owes && self.put.as_ref().is_some_and(is_settled) {
            return Ok(());
        }
        let policed: BTreeSet<Address> = want.policy.addresses().into_iter().map(Address::from).collect();
        if policed.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.find(site) {
            tracing::warn!("programs that cannot be told of a policy are taken off: {error}");
            return self.leave(site);
        }
        let Some(maps) = self.programs.as_mut().map(Programs::maps) else {
            return Ok(());
        };
        self.owes = true;
        let have = maps.rows()?;
        for step in have.without(&policed).steps_from(&have) {
            maps.run(&step)?;
            if let Some(put) = &mut self.put {
                put.rows.take(&step);
                put.is_stale = true;
            }
        }
        flows::hand_over(maps, |connection| {
            policed.contains(&connection.source) || policed.contains(&connection.destination)
        })?;
        self.owes = false;
        Ok(())
    }

    /// Leads packets past the stack as far as `want` lets them and links have programs, or leaves them all to it. Returns how
    /// many rows changed.
    pub(super) fn apply(&mut self, site: &Site, want: &NodeState) -> usize {
        if self.failed || self.is_hopeless {
            return 0;
        }
        let led = self.lead(site, want);
        self.or_leave(site, led)
    }

    /// Whether something is left to do.
    pub(super) fn has_rest(&self) -> bool {
        self.left.is_some()
    }

    /// Loads the programs, or has them at one more link; after the last one, packets go by these links, too.
    pub(super) fn go_on(&mut self, site: &Site, want: &NodeState) -> usize {
        let led = self.step(site, want);
        self.or_leave(site, led)
    }

    fn step(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        let Some(left) = &mut self.left else {
            return Ok(0);
        };
        match &mut self.programs {
            Some(programs) => {
                if let Some(link) = left.pop_first() {
                    programs.attach(&BTreeSet::from([link]))?;
                }
            }
            none => *none = Some(Programs::open(site)?),
        }
        match left.is_empty() {
            true => self.lead(site, want),
            false => Ok(0),
        }
    }

    /// What cannot be led takes the stack, and somebody is told.
    fn or_leave(&mut self, site: &Site, led: Result<usize, EbpfError>) -> usize {
        led.unwrap_or_else(|error| {
            let left = self.leave(site);
            self.failed = true;
            self.is_hopeless = matches!(error, EbpfError::NoTcx);
            let told = format!(
                "packets between pods do not go past the host's stack: {error}; they are routed instead"
            );
            let not_left = left.err().map(|error| {
                format!(
                    "what led packets between pods past the host's stack cannot be taken off whole: {error}"
                )
            });
            self.left_out = [told].into_iter().chain(not_left).collect();
            0
        })
    }

    /// Has the programs that are at links be known, and this build's.
    fn find(&mut self, site: &Site) -> Result<(), EbpfError> {
        if !self.programs.as_ref().is_some_and(Programs::are_pinned) {
            // Somebody took them off, and their maps with them; or nobody looked yet.
            self.put = None;
            self.put_back += usize::from(self.programs.take().is_some());
            self.programs = Programs::take_over(site)?;
        }
        Ok(())
    }

    fn lead(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        if want.links().next().is_none() {
            self.left = None;
            return Ok(0);
        }
        let has_come_to_end = self.left.as_ref().is_some_and(BTreeSet::is_empty);
        let is_known = |put: &Put| !put.is_stale && !has_come_to_end && is_same(&put.state, want);
        if self.put.as_ref().is_some_and(is_known) {
            return Ok(0);
        }
        if has_ipsec().map_err(EbpfError::NoIpsec)? {
            return Err(EbpfError::Ipsec);
        }
        self.find(site)?;
        let Some(programs) = &mut self.programs else {
            self.left = Some(BTreeSet::new());
            return Ok(0);
        };
        let mut places = Places::look(want)?;
        let mut attached = places.attachments(want);
        let is_late = self.put.as_ref().is_some_and(|put| put.is_stale);
        let missing = programs.missing(&attached, is_late || self.put.is_none())?;
        let was_there = |(side, link): &(Side, u32)| {
            let put = self.put.as_ref();
            put.is_some_and(|put| put.attached.get(link) == Some(side))
        };
        // What somebody took off is put back at once.
        let (lost, left): (BTreeSet<_>, BTreeSet<_>) = missing.into_iter().partition(was_there);
        programs.attach(&lost)?;
        let without: BTreeSet<u32> = left.iter().map(|(_, link)| *link).collect();
        attached.retain(|link, _| !without.contains(link));
        places.leave_out(&without);
        let wanted = Rows::of(want, &places);
        let maps = programs.maps();
        let have = maps.rows()?;
        if let Some(put) = &self.put {
            // What we put there, is wanted still, and is there no more, or otherwise.
            let is_wanted = |step: &&Step| matches!(step, Step::Put(row) if wanted.has(row));
            self.put_back += put.rows.steps_from(&have).iter().filter(is_wanted).count();
            self.put_back += lost.len();
        }
        if is_late {
            flows::tend(maps, &have)?;
        }
        let steps = wanted.steps_from(&have);
        let (mut is_noted, mut has_led) = (false, false);
        for step in &steps {
            let is_pod = matches!(step, Step::Put(Row::Pod(..)));
            // Once more when all ranges are known, before anybody comes.
            if step.leads() && (!is_noted || (is_pod && has_led)) {
                flows::note(maps, &wanted)?;
                is_noted = true;
                has_led = false;
            }
            maps.run(step)?;
            has_led |= step.leads() && !is_pod;
        }
        take_off(maps, &have, &wanted, want)?;
        *self.watched.lock() = Some(Watched {
            links: places.indices(),
            qdiscs: places.qdiscs,
            underlay: places.underlay,
            last: None,
        });
        self.left_out.clear();
        self.left = Some(left).filter(|left| !left.is_empty());
        self.put = Some(Put {
            rows: wanted,
            attached,
            state: want.clone(),
            is_stale: false,
        });
        Ok(steps.len())
    }

    /// Has all packets take the stack again, and takes the programs off.
    pub(super) fn leave(&mut self, site: &Site) -> Result<(), EbpfError> {
        *self.watched.lock() = None;
        self.programs = None;
        self.put = None;
        self.left = None;
        self.left_out.clear();
        // What cannot be read any more can be removed all the same.
        let emptied = empty(site);
        programs::remove(site)?;
        emptied
    }

    pub(super) fn guard(&self) -> Guard {
        Guard(Arc::clone(&self.watched))
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
            put.is_stale = true;
        }
    }
}

/// Takes everybody off the path.
fn empty(site: &Site) -> Result<(), EbpfError> {
    let Some(mut maps) = Maps::present(site)? else {
        return Ok(());
    };
    let have = maps.rows()?;
    let mut steps = Rows::default().steps_from(&have).into_iter();
    steps.try_for_each(|step| maps.run(&step))?;
    flows::hand_over(&mut maps, |_| true)
}

/// Takes pods off the path by their addresses.
pub(super) fn let_go_of(site: &Site, addresses: &[IpAddr]) -> Result<(), EbpfError> {
    let Some(mut maps) = Maps::present(site)? else {
        return Ok(());
    };
    let mut addresses = addresses.iter().map(|address| Address::from(*address));
    addresses.try_for_each(|address| maps.remove_pod(address))
}

/// Has tracking know the connections of pods that are there still and have no row any more, and forgets those of pods that
/// are gone.
fn take_off(maps: &mut Maps, have: &Rows, wanted: &Rows, want: &NodeState) -> Result<(), EbpfError> {
    let gone = have
        .pods
        .keys()
        .filter(|address| !wanted.pods.contains_key(*address));
    let gone: BTreeSet<Address> = gone.copied().collect();
    if gone.is_empty() {
        return Ok(());
    }
    let there = want.links().flat_map(|(_, addresses)| addresses);
    let off: BTreeSet<Address> = there.map(|address| Address::from(*address)).collect();
    let off: BTreeSet<Address> = off.intersection(&gone).copied().collect();
    if !off.is_empty() {
        flows::hand_over(maps, |connection| {
            off.contains(&connection.source) || off.contains(&connection.destination)
        })?;
    }
    flows::forget(maps, wanted)
}

impl Step {
    /// Whether more packets may go past the stack after it.
    fn leads(&self) -> bool {
        match self {
            Step::Put(Row::Pod(..)) => true,
            Step::Put(Row::Way(_, way)) => way.link != 0,
            Step::Put(Row::Tunnel(_)) | Step::Remove(_) => false,
        }
    }
}
