//! What nothing tells of: that somebody else changed IPVS, and that the last connection of a destination has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podnet_core::service::ServiceState;
use podnet_linux::ipvs::{Ipvs, IpvsError, Scheduling, Virtual};
use podnet_linux::netlink::Netlink;

use super::change::{Holding, reap};
use super::render::{is_ours, wanted};
use super::way;
use crate::services::Sentinel;

/// Virtual services whose destinations are looked at each time.
const AT_A_TIME: usize = 128;

/// What we put there.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) services: Arc<ServiceState>,
    pub(super) holding: Holding,
    /// What others have at our services' addresses: packets lead there, so it is missed when it goes.
    pub(super) foreign: BTreeSet<Virtual>,
    /// Endpoints that the kernel takes for none, such as a broadcast address of a link of the node.
    pub(super) refused: BTreeSet<(Virtual, SocketAddr)>,
    /// Virtual services that have something waiting for its connections to end.
    pub(super) waiting: BTreeSet<Virtual>,
}

/// Shared with the sentinel; none while nobody knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Option<Known>>>);

impl Shared {
    /// The sentinel does nothing while this is held.
    pub(super) fn hold(&self) -> MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Guard {
    pub(super) shared: Shared,
    pub(super) rules: Option<Box<dyn Sentinel>>,
    pub(super) socket: Ipvs,
    pub(super) netlink: Netlink,
    pub(super) scheduling: Scheduling,
    /// Where the next look at destinations begins.
    pub(super) next: Option<Virtual>,
}

impl Guard {
    /// Whether something is not as it was left. What cannot be asked is not known to be so.
    fn look(&mut self) -> Result<bool, IpvsError> {
        let shared = self.shared.clone();
        // While we change something ourselves there is nothing to compare with.
        let Ok(mut known) = shared.0.try_lock() else {
            return Ok(false);
        };
        let Some(known) = &mut *known else {
            return Ok(false);
        };
        self.reap(known)?;
        Ok(self.is_service_changed(known)? || self.is_destination_changed(known)?)
    }

    fn reap(&mut self, known: &mut Known) -> Result<(), IpvsError> {
        for key in known.waiting.clone() {
            let is_wanted = wanted(&known.services, key).is_some();
            if reap(
                &mut self.socket,
                &self.scheduling,
                &mut known.holding,
                key,
                is_wanted,
            )? {
                known.waiting.remove(&key);
            }
        }
        Ok(())
    }

    fn is_service_changed(&mut self, known: &Known) -> Result<bool, IpvsError> {
        // Listing takes long where there are many, and once is enough where nothing is missing.
        let found = self.socket.glance()?;
        if !differs(known, &found, &self.scheduling) {
            return Ok(false);
        }
        Ok(differs(known, &self.socket.services()?, &self.scheduling))
    }

    /// All of them would be too much for one look.
    fn is_destination_changed(&mut self, known: &Known) -> Result<bool, IpvsError> {
        let from = self.next.map_or(Bound::Unbounded, Bound::Excluded);
        let some = known.holding.range((from, Bound::Unbounded)).take(AT_A_TIME);
        self.next = None;
        for (key, held) in some {
            let found = self.socket.destinations(*key)?.into_iter();
            let weights = found.map(|found| (found.socket, found.weight)).collect();
            if held.weights != weights {
                return Ok(true);
            }
            self.next = Some(*key);
        }
        Ok(false)
    }
}

/// Whether virtual services are not as they were left.
fn differs(known: &Known, found: &BTreeMap<Virtual, Scheduling>, scheduling: &Scheduling) -> bool {
    let ours = found.iter().filter(|(_, scheduling)| is_ours(scheduling));
    // One that waits for the end of its connections may choose as was wanted before: it chooses no more.
    let as_left = ours.clone().all(|(key, found)| {
        let held = known.holding.get(key);
        held.is_some_and(|held| held.is_scheduled == (found == scheduling))
    });
    let as_theirs = known.foreign.iter().all(|key| found.contains_key(key));
    !as_left || !as_theirs || ours.count() != known.holding.len()
}

impl Sentinel for Guard {
    fn is_disturbed(&mut self) -> bool {
        // Each is asked: whoever is asked knows what it saw.
        let rules = self.rules.as_mut().is_some_and(|rules| rules.is_disturbed());
        let is_known = self.shared.0.try_lock().is_ok_and(|known| known.is_some());
        let way = is_known && way::is_whole(&mut self.netlink).is_ok_and(|is_whole| !is_whole);
        // What went while it was listed is a change, too.
        let services = self.look().unwrap_or_else(|error| error.is_not_found());
        rules || way || services
    }

    fn knows_nftables(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.knows_nftables())
    }
}
