//! Serves the CNI plugin: leases addresses and wires pods, on threads of its own.
//!
//! The async runtime only accepts connections. Every request runs on a thread of its own, since it waits for the
//! kernel and visits other network namespaces. One more thread, the reaper, takes links away: the kernel needs
//! 20 to 40 ms for that, which nobody should wait for.

mod install;
mod reaper;
mod request;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podnet_cni::{AgentReply, AgentRequest, CniError, WiringName};
use podnet_core::ipam::Addressing;
use podnet_dataplane::{Settings, ebpf};
use podnet_linux::netlink::NetlinkError;
use podnet_linux::ns::Namespace;
use podnet_linux::{bootid, fdpass};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::host_ports::HostPorts;
use crate::ipam::{Lease, LeaseError, Leases};
use crate::pod_policies::PodPolicies;
use crate::sysctls::AllowedSysctl;
use crate::wiring;

pub use install::{PLUGIN, install, install_from, installed, uninstall};
use reaper::Reaper;

/// Enough for a request; the default of 2 MiB times a hundred pods at once is worth saving.
const STACK: usize = 512 * 1024;
/// Most requests at work at once. Those that come on top wait in the socket's queue, and their plugins with them: a
/// node full of pods that restart must not become a node full of threads.
const MOST_AT_ONCE: usize = 64;

/// What pods of this node get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// Where their addresses come from.
    pub addressing: Arc<Addressing>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Where pods look up names.
    pub dns: Vec<IpAddr>,
}

/// Whether pods can be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not now, and why.
    NotReady(String),
    /// They can.
    ///
    /// The node forwards by then: the data plane has been applied.
    Ready(PodNetwork),
    /// They can, but not everything that they should reach can be reached, and why.
    Limited(PodNetwork, String),
}

impl Readiness {
    /// What pods get, if they can be connected.
    pub fn network(&self) -> Option<&PodNetwork> {
        match self {
            Readiness::NotReady(_) => None,
            Readiness::Ready(network) | Readiness::Limited(network, _) => Some(network),
        }
    }
}

/// Where the server is found, and where it keeps its state.
#[derive(Debug, Clone)]
pub struct CniServerConfig {
    /// The unix socket.
    pub socket: PathBuf,
    /// The directory of the leases.
    pub state_dir: PathBuf,
    /// The node's name, for messages.
    pub node: String,
    /// How pods are wired whose network does not say.
    pub wiring: WiringName,
    /// Kernel settings that pods may ask for beside the safe ones.
    pub allowed_sysctls: Vec<AllowedSysctl>,
    /// The node's, which some wirings change.
    pub settings: Settings,
    /// Where programs know pods' links, where the data plane has any.
    pub programs: Option<ebpf::Site>,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CniServerError {
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The leases cannot be read.
    #[error(transparent)]
    Leases(#[from] LeaseError),
    /// The kernel cannot be asked for the pods' links.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The machine has no boot ID.
    #[error("cannot read the boot ID: {0}")]
    BootId(io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// What every request sees.
struct Server {
    leases: Arc<Leases>,
    host_ports: Arc<HostPorts>,
    pod_policies: Arc<PodPolicies>,
    wiring: WiringName,
    allowed_sysctls: Vec<AllowedSysctl>,
    settings: Settings,
    programs: Option<ebpf::Site>,
    reaper: Reaper,
    ready: watch::Receiver<Readiness>,
    node: String,
}

/// Ends leases that nobody else will end.
#[derive(Clone)]
pub struct Reclaimer {
    server: Arc<Server>,
}

impl Reclaimer {
    /// All leases that have not ended.
    pub fn leases(&self) -> Vec<Lease> {
        self.server.leases.all()
    }

    /// Ends a lease as a DEL does, unless it has ended meanwhile.
    pub fn free(&self, lease: &Lease) -> Result<(), CniError> {
        match self.server.leases.get(&lease.attachment) {
            Some(now) if now.sequence == lease.sequence => self.server.del(&lease.attachment),
            _ => Ok(()),
        }
    }
}

/// A server that listens: a plugin that connects now waits for its answer.
pub struct CniServer {
    server: Arc<Server>,
    listener: UnixListener,
}

/// Opens the leases, then the socket. The plugin's configuration, which tells the runtime that it can add pods, is to
/// be installed after that.
///
/// To be called in the node's network namespace.
pub async fn bind(
    config: CniServerConfig,
    ready: watch::Receiver<Readiness>,
    (host_ports, pod_policies): (Arc<HostPorts>, Arc<PodPolicies>),
) -> Result<CniServer, CniServerError> {
    let socket = config.socket.clone();
    let start = tokio::task::spawn_blocking(move || Server::start(&config, ready, host_ports, pod_policies));
    let server = Arc::new(
        start
            .await
            .map_err(|error| CniServerError::Thread(error.into()))??,
    );
    let listener = listen(&socket).map_err(|source| CniServerError::Socket {
        path: socket.clone(),
        source,
    })?;
    tracing::info!(socket = %socket.display(), leases = server.leases.all().len(), "serving the CNI plugin");
    Ok(CniServer { server, listener })
}

impl CniServer {
    /// The leases that it keeps.
    pub fn leases(&self) -> Arc<Leases> {
        Arc::clone(&self.server.leases)
    }

    /// What ends leases that nobody else will end.
    pub fn reclaimer(&self) -> Reclaimer {
        Reclaimer {
            server: Arc::clone(&self.server),
        }
    }

    /// Answers, until it is dropped.
    pub async fn run(self) {
        tokio::join!(self.feed(), self.accept());
    }

    /// Tells the leases at once what there is to hand out: ADDs may be waiting for just that.
    async fn feed(&self) {
        let mut ready = self.server.ready.clone();
        while ready.changed().await.is_ok() {
            if let Some(network) = ready.borrow_and_update().network() {
                self.server.leases.set(&network.addressing);
            }
        }
    }

    async fn accept(&self) {
        let slots = Arc::new(Semaphore::new(MOST_AT_ONCE));
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let slot = slots.clone().acquire_owned().await.ok();
                    if let Err(error) = answer_on_a_thread(&self.server, stream, slot) {
                        tracing::error!(%error, "a CNI request gets no answer");
                    }
                }
                Err(error) => {
                    // Out of descriptors, most likely; some come back when requests end.
                    tracing::error!(%error, "cannot accept a CNI request");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Server {
    fn start(
        config: &CniServerConfig,
        ready: watch::Receiver<Readiness>,
        host_ports: Arc<HostPorts>,
        pod_policies: Arc<PodPolicies>,
    ) -> Result<Self, CniServerError> {
        let boot_id = bootid::boot_id().map_err(CniServerError::BootId)?;
        let leases = Arc::new(Leases::open(&config.state_dir, &boot_id, &wiring::in_kernel()?)?);
        for lease in leases.all() {
            if let Err(clash) = host_ports.claim(&lease) {
                tracing::error!(attachment = %lease.attachment, "{clash}; delete one of the pods");
            }
        }
        for lease in leases.all().into_iter().chain(leases.ended()) {
            pod_policies.claim(&lease);
            pod_policies.wired(&lease.attachment);
        }
        let reaper = Reaper::start(
            Arc::clone(&leases),
            Arc::clone(&host_ports),
            Arc::clone(&pod_policies),
        );
        let reaper = reaper.map_err(CniServerError::Thread)?;
        Ok(Server {
            leases,
            host_ports,
            pod_policies,
            wiring: config.wiring,
            allowed_sysctls: config.allowed_sysctls.clone(),
            settings: config.settings.clone(),
            programs: config.programs.clone(),
            reaper,
            ready,
            node: config.node.clone(),
        })
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // We hold the lock of the leases, so whoever made the socket is gone.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The slot is free again when the thread ends.
fn answer_on_a_thread(
    server: &Arc<Server>,
    stream: tokio::net::UnixStream,
    slot: Option<OwnedSemaphorePermit>,
) -> io::Result<()> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let server = Arc::clone(server);
    std::thread::Builder::new()
        .name("cni".into())
        .stack_size(STACK)
        .spawn(move || {
            let _slot = slot;
            if let Err(error) = answer(&server, &stream) {
                tracing::warn!(%error, "a CNI request was broken off");
            }
        })
        .map(drop)
}

fn answer(server: &Server, stream: &UnixStream) -> io::Result<()> {
    // A plugin that was killed before it asked anything closes, or says nothing.
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    let Some(message) = fdpass::receive(stream)? else {
        return Ok(());
    };
    let request: AgentRequest = serde_json::from_slice(&message.bytes)?;
    let namespace = message.descriptors.into_iter().next().map(Namespace::from);
    let reply = server
        .serve(&request, namespace.as_ref())
        .unwrap_or_else(AgentReply::Refused);
    fdpass::send(stream, &serde_json::to_vec(&reply)?, &[])
}
