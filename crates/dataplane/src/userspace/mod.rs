//! Services carried by a process, for kernels that have nothing else: `podnet proxy` accepts connections at services'
//! addresses and makes others to endpoints.
//!
//! The proxy does not end with the agent, unless whoever runs the agent ends all that it started. An agent that starts
//! finds it by its socket, and hands it its table; one that finds none, or one of another build, starts one, which takes
//! over from the other. What it cannot do: an endpoint sees the node's address, never the client's, `externalTrafficPolicy: Local`
//! or not; a connection is accepted before its endpoint is; SCTP is not carried.
//!
//! [`choice`], [`sessions`], [`filter`], [`table`] and [`wire`] are without sockets; [`proxy`] is the process, and what is
//! here is the agent's end.

pub mod choice;
mod claim;
mod conversation;
pub mod filter;
pub mod proxy;
mod recent;
pub mod sessions;
pub mod table;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podnet_core::NodeState;
use podnet_core::service::{NodePort, ServiceState};
use podnet_linux::netfilter::Netfilter;
use podnet_linux::netlink::NetlinkError;
use sha2::{Digest, Sha256};

use crate::conntrack;
use crate::services::{Retired, Sentinel, ServiceBackend, ServiceError, Services, Touched};
use claim::Claim;
use conversation::{Answer, Conversation};
use table::Table;

/// The name of the proxy's socket in the run directory.
pub const SOCKET: &str = "proxy.sock";
/// How long a proxy may take to start, and to end.
const START: Duration = Duration::from_secs(10);

/// Why services are not carried.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Nobody said where a proxy is.
    #[error("it is not known where the proxy's socket is to be; this is a mistake in podnet")]
    Nowhere,
    /// There is no proxy and none can be started.
    #[error("no proxy answers at {}: {source}; start `podnet proxy` by hand to see why", socket.display())]
    Absent {
        /// Where it should be.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is there and does not do as it is asked.
    #[error("the proxy at {} failed: {why}", socket.display())]
    Failed {
        /// Where it is.
        socket: PathBuf,
        /// The cause.
        why: String,
    },
    /// The link of one that is dead is in the way.
    #[error("cannot remove the link {link}: {0}", link = proxy::GATE_LINK)]
    Left(NetlinkError),
}

/// Starts a proxy that serves the socket it is given, in the network namespace of the calling thread.
pub type Starter = Arc<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// Says which build proxies are that are started, in a word.
pub type Identity = Arc<dyn Fn() -> String + Send + Sync>;

/// Which build the running executable is, in a word: the beginning of its SHA-256.
pub fn identity() -> io::Result<String> {
    let mut bytes = File::open("/proc/self/exe")?;
    let mut hasher = Sha256::new();
    io::copy(&mut bytes, &mut hasher)?;
    let digest = hasher.finalize();
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Where a node's proxy is, and how one comes to be there.
#[derive(Clone)]
pub struct Site {
    /// Its socket.
    pub socket: PathBuf,
    /// Says which build one that is started is, in a word. One of another build is replaced.
    pub identity: Identity,
    /// Starts one.
    pub start: Starter,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Site {
    fn is_served(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    fn failed(&self, why: impl fmt::Display) -> ProxyError {
        ProxyError::Failed {
            socket: self.socket.clone(),
            why: why.to_string(),
        }
    }

    fn converse(&self) -> io::Result<Conversation> {
        Conversation::begin(&self.socket)
    }

    fn converse_with(&self, identity: &str) -> io::Result<Conversation> {
        let conversation = self.converse()?;
        match conversation.is_with(identity) {
            true => Ok(conversation),
            false => Err(io::Error::other(
                "it is of another build, and another one does not replace it",
            )),
        }
    }

    /// Talks to the proxy that is there, or to one that is started.
    fn reach(&self) -> Result<Conversation, ProxyError> {
        let absent = |source| ProxyError::Absent {
            socket: self.socket.clone(),
            source,
        };
        let identity = (self.identity)();
        if let Ok(conversation) = self.converse_with(&identity) {
            return Ok(conversation);
        }
        (self.start)(&self.socket).map_err(absent)?;
        let until = Instant::now() + START;
        loop {
            match self.converse_with(&identity) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                other => return other.map_err(absent),
            }
        }
    }

    /// Says one word to the proxy. Says whether there was one.
    fn tell(&self, word: &str) -> Result<bool, ProxyError> {
        let Ok(mut conversation) = self.converse() else {
            return Ok(false);
        };
        let answer = conversation.ask(&[], word).map_err(|error| self.failed(error))?;
        answer.outcome.map_err(|why| self.failed(why))?;
        Ok(true)
    }

    /// Ends the proxy and every connection through it. Says whether there was one.
    fn stop(&self) -> Result<bool, ProxyError> {
        let conversation = self.converse();
        let was_there = conversation.is_ok();
        if let Ok(mut conversation) = conversation {
            let ended = conversation
                .ask(&[], "stop")
                .and_then(|_| conversation.wait_for_end());
            ended.map_err(|error| self.failed(format!("it does not end: {error}")))?;
        }
        let left = self.socket.exists() || self.socket.with_extension("lock").exists();
        if left {
            // What a proxy that died left behind. One that lives has the claim, and was started just now.
            let claim = Claim::take(&self.socket);
            claim.map(drop).map_err(|error| self.failed(error))?;
        }
        Ok(was_there || left)
    }

    /// The node ports that the proxy has, of whichever build it is.
    fn node_ports(&self) -> io::Result<BTreeSet<NodePort>> {
        self.converse()?.node_ports()
    }

    fn name(&self) -> String {
        format!("service proxy at {}", self.socket.display())
    }
}

/// The agent's end.
#[derive(Debug)]
pub struct Userspace {
    site: Option<Site>,
    /// The conversation, and what the proxy has by it.
    known: Option<Known>,
    /// What a proxy had that did not end by us and does not answer any more.
    lost: Option<Table>,
    /// How much of that another one was given, until somebody asks.
    proxied: usize,
    left_out: Vec<String>,
    touched: Touched,
    /// There should be a proxy.
    expected: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Known {
    conversation: Conversation,
    table: Table,
    services: Arc<ServiceState>,
}

impl Userspace {
    /// For the proxy at a site; without one there can be none.
    pub fn new(site: Option<Site>) -> Self {
        Userspace {
            site,
            known: None,
            lost: None,
            proxied: 0,
            left_out: Vec::new(),
            touched: Touched::default(),
            expected: Arc::default(),
        }
    }

    /// The node ports that a proxy has; one that cannot be asked has none for long.
    pub(crate) fn node_ports(&self) -> BTreeSet<NodePort> {
        let ports = self.site.as_ref().and_then(|site| site.node_ports().ok());
        ports.unwrap_or_default()
    }

    /// Hands over what changed to a proxy that is known. `None` for one that is not, or is not there any more.
    fn hand_over(
        &mut self,
        site: &Site,
        want: &Table,
        state: &NodeState,
    ) -> Result<Option<usize>, ProxyError> {
        let Some(mut known) = self.known.take() else {
            return Ok(None);
        };
        let edits = want.edits_from(&known.table);
        let Ok(answer) = known.conversation.ask(&edits, "apply") else {
            self.lost = Some(known.table);
            return Ok(None);
        };
        self.take(answer).map_err(|why| site.failed(why))?;
        self.touched.note_change(&known.services, &state.services);
        self.known = Some(Known {
            table: want.clone(),
            services: Arc::clone(&state.services),
            ..known
        });
        Ok(Some(edits.len()))
    }

    /// Hands over everything to whichever proxy is there, or is started.
    fn begin(&mut self, site: &Site, want: &Table, state: &NodeState) -> Result<usize, ProxyError> {
        let mut conversation = site.reach()?;
        let have = conversation.list().map_err(|error| site.failed(error))?;
        let changes = want.edits_from(&have).len();
        let answer = conversation.ask(&want.whole(), "apply");
        self.take(answer.map_err(|error| site.failed(error))?)
            .map_err(|why| site.failed(why))?;
        if let Some(lost) = self.lost.take() {
            // What was taken before the conversation broke off is not lost.
            self.proxied += lost.edits_from(&have).len().min(changes);
        }
        self.touched.note_found(&have.to_services(), &state.services);
        self.known = Some(Known {
            conversation,
            table: want.clone(),
            services: Arc::clone(&state.services),
        });
        Ok(changes)
    }

    fn take(&mut self, answer: Answer) -> Result<(), String> {
        self.left_out = answer.refused;
        answer.outcome
    }

    /// Flows that another back end translated go on by connection tracking, past the proxy: not for longer than their
    /// endpoints serve.
    fn forget_flows(&mut self, state: &NodeState) -> Result<(), ServiceError> {
        if conntrack::is_there() {
            self.touched.forget(&mut Netfilter::open()?, state)?;
        }
        Ok(())
    }
}

impl ServiceBackend for Userspace {
    fn apply(&mut self, state: &NodeState) -> Result<usize, ServiceError> {
        let site = self.site.clone().ok_or(ProxyError::Nowhere)?;
        let want = Table::of(state);
        let changes = match self.hand_over(&site, &want, state)? {
            Some(changes) => changes,
            None => self.begin(&site, &want, state)?,
        };
        self.expected.store(true, Ordering::Relaxed);
        self.forget_flows(state)?;
        Ok(changes)
    }

    fn take_put_back(&mut self) -> usize {
        0
    }

    fn take_proxied(&mut self) -> usize {
        std::mem::take(&mut self.proxied)
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn dump(&mut self) -> Result<Services, ServiceError> {
        let conversation = self.site.as_ref().map(|site| (site, site.converse()));
        let Some((site, Ok(mut conversation))) = conversation else {
            return Ok(Services::default());
        };
        let table = conversation.list().map_err(|error| site.failed(error))?;
        Ok(table.to_services())
    }

    fn present(&mut self) -> Result<Vec<String>, ServiceError> {
        let there = self.site.as_ref().filter(|site| site.is_served());
        let there = match there {
            Some(site) => Some(site.name()),
            None => proxy::left(false).map_err(ProxyError::Left)?,
        };
        Ok(there.into_iter().collect())
    }

    fn clean(&mut self) -> Result<Vec<String>, ServiceError> {
        (self.known, self.lost) = (None, None);
        self.expected.store(false, Ordering::Relaxed);
        let mut removed = Vec::new();
        if let Some(site) = &self.site
            && site.stop()?
        {
            removed.push(site.name());
        }
        removed.extend(proxy::left(true).map_err(ProxyError::Left)?);
        Ok(removed)
    }

    fn retire(&mut self) -> Result<Retired, ServiceError> {
        (self.known, self.lost) = (None, None);
        self.expected.store(false, Ordering::Relaxed);
        if let Some(site) = &self.site {
            site.tell("drain")?;
        }
        // It ends by itself.
        Ok(Retired::Gone)
    }

    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        let site = self.site.clone()?;
        let expected = Arc::clone(&self.expected);
        Some(Box::new(Lookout { site, expected }))
    }
}

/// Sees whether the proxy is there.
struct Lookout {
    site: Site,
    expected: Arc<AtomicBool>,
}

impl Sentinel for Lookout {
    fn is_disturbed(&mut self) -> bool {
        // Told once; the agent tries again by itself.
        let gone = self.expected.load(Ordering::Relaxed) && !self.site.is_served();
        gone && self.expected.swap(false, Ordering::Relaxed)
    }
}
