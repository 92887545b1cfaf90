//! Programs at sockets: a service is resolved when a socket connects.

mod programs;
pub(super) mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;

use parking_lot::Mutex;
use podnet_core::NodeState;
use podnet_core::cluster::NetnsCookie;
use podnet_ebpf_abi::Frontend;
use podnet_linux::ns;

use super::{EbpfError, Site};
use programs::{Hooks, Programs};
pub(super) use programs::{Maps, pins};
use rows::Rows;

/// What is in the maps, and by which state.
struct Put {
    rows: Rows,
    /// None where not all that it asks for is there.
    state: Option<NodeState>,
}

/// The hooks that should be there, shared with who looks whether they are; none while there are none.
type Watched = Arc<Mutex<Option<Hooks>>>;

/// Looks whether the hooks are still there.
pub(super) struct Guard(Watched);

impl Guard {
    pub(super) fn is_disturbed(&mut self) -> bool {
        // Told once: whoever puts them back says again what there is.
        let mut hooks = self.0.lock();
        hooks.take_if(|hooks| !hooks.are_attached()).is_some()
    }
}

/// The programs at a node's sockets.
#[derive(Default)]
pub(super) struct Sockets {
    watched: Watched,
    /// None until the kernel has told.
    node: Option<NetnsCookie>,
    /// The last application failed, and left nothing: the next that looks for what changed unseen tries again.
    failed: bool,
    programs: Option<Programs>,
    put: Option<Put>,
    pub(super) left_out: Vec<String>,
    put_back: usize,
}

impl Sockets {
    /// What is removed now is not missed.
    pub(super) fn let_go(&mut self) {
        *self.watched.lock() = None;
        self.programs = None;
        self.put = None;
    }

    /// Leads sockets to `want`'s services, or leaves them to the table. Returns how many rows changed.
    pub(super) fn apply(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        if self.failed {
            return Ok(0);
        }
        self.lead(site, want).or_else(|error| {
            // Nobody may be led to what was: the table alone knows what is. What stays is an error, and tried again.
            self.let_go();
            programs::remove(site)?;
            self.failed = true;
            self.left_out = vec![left_to_table("services", &error)];
            Ok(0)
        })
    }

    pub(super) fn guard(&self) -> Guard {
        Guard(Arc::clone(&self.watched))
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

    /// Leads sockets to `want`'s services. Returns how many rows changed.
    fn lead(&mut self, site: &Site, want: &NodeState) -> Result<usize, EbpfError> {
        let node = match self.node {
            Some(node) => node,
            None => *self.node.insert(own_cookie()?),
        };
        let programs = match &mut self.programs {
            Some(programs) if programs.hooks().are_attached() => programs,
            before => {
                // The hooks are gone, and perhaps the maps with them.
                self.put = None;
                let found = Programs::open(site)?;
                self.put_back += usize::from(before.is_some());
                before.insert(found)
            }
        };
        *self.watched.lock() = Some(programs.hooks().clone());
        let before = self.put.take();
        let (wanted, have, mut rows) = match before {
            Some(Put {
                rows,
                state: Some(state),
            }) => {
                let changed = Rows::changed(&state, want);
                (Rows::of_some(want, node, &changed), rows.some(&changed), rows)
            }
            Some(Put {
                rows: put,
                state: None,
            }) => {
                let found = programs.maps().rows()?;
                // What we put there and is there no more, or otherwise.
                self.put_back += put.steps_from(&found).len();
                (Rows::of(want, node), found.clone(), found)
            }
            None => {
                let found = programs.maps().rows()?;
                (Rows::of(want, node), found.clone(), found)
            }
        };
        let (changes, full) = run(programs.maps(), &wanted, have, &mut rows)?;
        let state = full.is_empty().then(|| want.clone());
        self.left_out = full
            .iter()
            .map(|(frontend, why)| left_to_table(&rows::shown(frontend), why))
            .collect();
        self.put = Some(Put { rows, state });
        Ok(changes)
    }
}

/// The cookie of the calling thread's network namespace.
fn own_cookie() -> Result<NetnsCookie, EbpfError> {
    let cookie = ns::net_cookie().map_err(EbpfError::NoCookie)?;
    let cookie =
        NonZeroU64::new(cookie).ok_or_else(|| EbpfError::NoCookie(io::ErrorKind::Unsupported.into()))?;
    Ok(NetnsCookie(cookie))
}

/// Makes `have` what is `wanted`, and keeps account in `rows`. A service for which there is no room is not led at all, so
/// that the table carries it; returns these, too.
fn run(
    maps: &mut Maps,
    wanted: &Rows,
    mut have: Rows,
    rows: &mut Rows,
) -> Result<(usize, BTreeMap<Frontend, EbpfError>), EbpfError> {
    let (mut changes, mut full) = (0, BTreeMap::new());
    let mut wanted = wanted.clone();
    loop {
        let mut found = BTreeMap::new();
        for step in wanted.steps_from(&have) {
            let frontend = step.row().frontend();
            // The next pass takes out what there is of it.
            if frontend.is_some_and(|frontend| found.contains_key(&frontend)) {
                continue;
            }
            match (maps.run(&step), frontend) {
                (Ok(()), _) => {}
                (Err(error @ EbpfError::Full(_)), Some(frontend)) => {
                    found.insert(frontend, error);
                    continue;
                }
                (Err(error), _) => return Err(error),
            }
            changes += 1;
            have.take(&step);
            rows.take(&step);
        }
        if found.is_empty() {
            return Ok((changes, full));
        }
        wanted.forget(&found.keys().copied().collect());
        full.append(&mut found);
    }
}

fn left_to_table(what: &str, why: &EbpfError) -> String {
    format!(
        "sockets are not led to {what} when they connect: {why}; nftables translates every connection's first packet instead"
    )
}
