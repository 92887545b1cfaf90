//! Services at connect time: programs at the sockets of the node and its pods, in front of the table.
//!
//! The table carries all services, for whoever's sockets no program sees: clients outside, raw sockets, pods in virtual
//! machines. What the programs lead past it is what needs nothing but a choice; [`rows`] says what that is. So nothing is
//! lost where the kernel cannot have them: then the table does it alone, and the agent says so.

mod pinned;
mod programs;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::MapError;
use parking_lot::Mutex;
use podnet_core::NodeState;
use podnet_core::cluster::NetnsCookie;
use podnet_ebpf_abi::Frontend;
use podnet_linux::ns;

use crate::services::{Sentinel, ServiceBackend, ServiceError, Services};
pub use pinned::{Endpoints, Led, Pinned, pinned};
use programs::{Hooks, Maps, Programs};
use rows::Rows;

/// Where a node's programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The group of cgroup v2 that all processes of the node and its pods are in; the machine's root where none is named.
    pub cgroup: Option<PathBuf>,
    /// Where a file system is mounted in which programs and maps are pinned.
    pub bpffs: PathBuf,
    /// How much room there is.
    pub sizes: Sizes,
}

/// How many rows the maps have room for. Rows that are not there take no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Services' ports, counted once for each of their addresses.
    pub services: u32,
    /// Their endpoints, counted once for each of these.
    pub endpoints: u32,
}

impl Default for Sizes {
    /// Five times the largest cluster that Kubernetes is made for, of two families.
    fn default() -> Self {
        Sizes {
            services: 1 << 18,
            endpoints: 1 << 21,
        }
    }
}

/// Why sockets are not led.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// Nobody said where the programs are.
    #[error("it is not known which control group the node's processes are in; this is a mistake in podnet")]
    Nowhere,
    /// Pins need their file system.
    #[error("{place} is no bpffs: mount one there (mount -t bpf bpf {place}), or name another place with --bpffs", place = .0.display())]
    NoPins(PathBuf),
    /// The hierarchy of control groups is nowhere.
    #[error("cgroup v2 is mounted nowhere: mount -t cgroup2 cgroup2 /sys/fs/cgroup")]
    NoGroups,
    /// What looks like the root is a part, as containers see it.
    #[error(
        "{} is not the root of this machine's control groups, so that pods' processes are in others: mount the host's, and \
         name it with --cgroup-root",
        .0.display()
    )]
    NotTheRoot(PathBuf),
    /// A file or directory.
    #[error("{}: {source}", path.display())]
    At {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot tell network namespaces apart.
    #[error("the number of the node's network namespace cannot be had (Linux 5.14 and later have one): {0}")]
    NoCookie(io::Error),
    /// The object as a whole.
    #[error("the kernel does not take the programs' maps: {}", chain(.0))]
    Load(Box<aya::EbpfError>),
    /// One of the programs.
    #[error("the kernel does not take the hook {hook}: {why}")]
    Hook {
        /// Its name.
        hook: &'static str,
        /// Why, with the end of what the verifier says.
        why: String,
    },
    /// The object has no such program.
    #[error("there is no program {0} in the object; this is a mistake in podnet")]
    NoProgram(&'static str),
    /// A map.
    #[error("the map {name}: {}", chain(source))]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map takes no more.
    #[error("the map {0} is full")]
    Full(&'static str),
}

impl EbpfError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| EbpfError::At { path, source }
    }

    fn hook(hook: &'static str, error: &dyn Error) -> Self {
        let why = chain(error);
        // The verifier tells all it has seen; the reason is at the end.
        let lines: Vec<&str> = why.lines().collect();
        let last = lines.len().saturating_sub(4);
        EbpfError::Hook {
            hook,
            why: lines[last..].join(" | "),
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// What is in the maps, and by which state.
struct Put {
    rows: Rows,
    /// None where not all that it asks for is there.
    state: Option<NodeState>,
}

/// The hooks that should be there, shared with who looks whether they are; none while there are none.
type Watched = Arc<Mutex<Option<Hooks>>>;

/// Looks whether the hooks are still there. Maps are looked over with everything else.
struct Guard(Watched);

impl Sentinel for Guard {
    fn is_disturbed(&mut self) -> bool {
        // Told once: whoever puts them back says again what there is.
        let mut hooks = self.0.lock();
        hooks.take_if(|hooks| !hooks.are_attached()).is_some()
    }
}

/// The programs of a node.
pub struct Ebpf {
    watched: Watched,
    site: Option<Site>,
    /// None until the kernel has told.
    node: Option<NetnsCookie>,
    /// The last application failed, and left nothing: the next that looks for what changed unseen tries again.
    failed: bool,
    programs: Option<Programs>,
    put: Option<Put>,
    left_out: Vec<String>,
    put_back: usize,
}

impl fmt::Debug for Ebpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ebpf")
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

impl Ebpf {
    /// For the network namespace of the thread that applies.
    pub(crate) fn new(site: Option<Site>) -> Self {
        Ebpf {
            watched: Watched::default(),
            site,
            node: None,
            failed: false,
            programs: None,
            put: None,
            left_out: Vec::new(),
            put_back: 0,
        }
    }

    /// What is removed now is not missed.
    fn let_go(&mut self) {
        *self.watched.lock() = None;
        self.programs = None;
        self.put = None;
    }

    fn site(&self) -> Result<&Site, EbpfError> {
        self.site.as_ref().ok_or(EbpfError::Nowhere)
    }

    /// Leads sockets to `want`'s services. Returns how many rows changed.
    fn lead(&mut self, want: &NodeState) -> Result<usize, EbpfError> {
        let node = match self.node {
            Some(node) => node,
            None => *self.node.insert(own_cookie()?),
        };
        let site = self.site.as_ref().ok_or(EbpfError::Nowhere)?;
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

impl ServiceBackend for Ebpf {
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        if self.failed {
            return Ok(0);
        }
        match self.lead(want) {
            Ok(changes) => Ok(changes),
            Err(error) => {
                // Nobody may be led to what was: the table alone knows what is. What stays is an error, and tried again.
                self.let_go();
                if let Some(site) = &self.site {
                    site.remove()?;
                }
                self.failed = true;
                self.left_out = vec![left_to_table("services", &error)];
                Ok(0)
            }
        }
    }

    fn is_in_front(&self) -> bool {
        true
    }

    /// The table has it all.
    fn dump(&mut self) -> Result<Services, ServiceError> {
        Ok(Services::default())
    }

    fn present(&mut self) -> Result<Vec<String>, ServiceError> {
        let present = self.site().ok().and_then(Site::present);
        Ok(present.iter().map(|directory| removed(directory)).collect())
    }

    fn clean(&mut self) -> Result<Vec<String>, ServiceError> {
        self.let_go();
        let directory = match self.site() {
            Ok(site) => site.remove()?,
            Err(_) => None,
        };
        Ok(directory.iter().map(|directory| removed(directory)).collect())
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        Some(Box::new(Guard(Arc::clone(&self.watched))))
    }

    fn take_put_back(&mut self) -> usize {
        std::mem::take(&mut self.put_back)
    }

    fn distrust(&mut self) {
        self.failed = false;
        if let Some(put) = &mut self.put {
            put.state = None;
        }
    }
}

fn removed(directory: &Path) -> String {
    format!("eBPF programs and maps at {}", directory.display())
}
