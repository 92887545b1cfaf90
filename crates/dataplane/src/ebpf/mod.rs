//! Programs in the kernel, in front of the table: at the sockets of the node and its pods, and at pods' links.
//!
//! The table carries all services, for whoever's sockets no program sees: clients outside, raw sockets, pods in virtual
//! machines. What the programs lead past it is what needs nothing but a choice ([`connect`]). Packets between pods go past
//! the host's stack where nothing is to be decided about them ([`path`]). So nothing is lost where the kernel cannot have
//! them: then the table and the stack do it alone, and the agent says so.

mod connect;
mod costs;
mod path;
mod pinned;
mod pins;
mod site;

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use podnet_core::NodeState;
use podnet_linux::netfilter::NetfilterError;
use podnet_linux::netlink::NetlinkError;

use crate::services::{Sentinel, ServiceBackend, ServiceError, Services};
use connect::Sockets;
pub use costs::{Cost, Costs, costs};
use path::PodPath;
pub use pinned::{Endpoints, Led, Past, Pinned, pinned};

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

/// Why the programs do not do their part.
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
    /// Programs at links that are attached as ours are.
    #[error("the kernel has no tcx, which is of Linux 6.6")]
    NoTcx,
    /// The stack would encrypt what goes past it, or drop it.
    #[error("this node has IPsec policies (ip xfrm policy)")]
    Ipsec,
    /// How many of these there are.
    #[error("it cannot be told whether this node has IPsec policies: {0}")]
    NoIpsec(io::Error),
    /// What programs cost.
    #[error("the kernel does not count what programs cost: {0}")]
    Uncounted(io::Error),
    /// Links, routes and neighbours.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Connection tracking.
    #[error(transparent)]
    Netfilter(#[from] NetfilterError),
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

/// Looks for what nobody announces. Maps are looked over with everything else.
struct Guard {
    sockets: connect::Guard,
    path: path::Guard,
}

impl Sentinel for Guard {
    fn is_disturbed(&mut self) -> bool {
        // Each is asked, so that each says it once.
        let (sockets, path) = (self.sockets.is_disturbed(), self.path.is_disturbed());
        sockets || path
    }
}

/// The programs of a node.
pub struct Ebpf {
    site: Option<Site>,
    sockets: Sockets,
    path: PodPath,
    left_out: Vec<String>,
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
            site,
            sockets: Sockets::default(),
            path: PodPath::default(),
            left_out: Vec::new(),
        }
    }

    fn gather_left_out(&mut self) {
        let left_out = self.sockets.left_out.iter().chain(self.path.left_out());
        self.left_out = left_out.cloned().collect();
    }

    fn site(&self) -> Result<&Site, EbpfError> {
        self.site.as_ref().ok_or(EbpfError::Nowhere)
    }
}

impl ServiceBackend for Ebpf {
    fn make_way(&mut self, want: &NodeState) -> Result<(), ServiceError> {
        match &self.site {
            Some(site) => Ok(self.path.make_way(site, want)?),
            None => Ok(()),
        }
    }

    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        let site = self.site.as_ref().ok_or(EbpfError::Nowhere)?;
        // Either is done whatever becomes of the other. Sockets come first: they are refused until their endpoints are
        // known, while packets take the stack until the path is there.
        let (sockets, path) = (self.sockets.apply(site, want), self.path.apply(site, want));
        self.gather_left_out();
        Ok(path + sockets?)
    }

    fn has_rest(&self) -> bool {
        self.path.has_rest()
    }

    fn go_on(&mut self, want: &NodeState) -> usize {
        let Some(site) = &self.site else { return 0 };
        let changes = self.path.go_on(site, want);
        self.gather_left_out();
        changes
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
        self.sockets.let_go();
        let Some(site) = &self.site else {
            return Ok(Vec::new());
        };
        let left = self.path.leave(site);
        let directory = site.remove()?;
        left?;
        Ok(directory.iter().map(|directory| removed(directory)).collect())
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        Some(Box::new(Guard {
            sockets: self.sockets.guard(),
            path: self.path.guard(),
        }))
    }

    fn take_put_back(&mut self) -> usize {
        self.sockets.take_put_back() + self.path.take_put_back()
    }

    fn distrust(&mut self) {
        self.sockets.distrust();
        self.path.distrust();
    }
}

/// Has the programs at `site`, if there are any, know no pod by these addresses.
pub fn let_go_of(site: &Site, addresses: &[IpAddr]) -> Result<(), EbpfError> {
    path::let_go_of(site, addresses)
}

fn removed(directory: &Path) -> String {
    format!("eBPF programs and maps at {}", directory.display())
}
