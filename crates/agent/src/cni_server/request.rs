//! The verbs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podnet_cni::{
    AddResult, AgentReply, AgentRequest, Attachment, Capability, CniError, Code, Dns, Interface, IpConfig,
    IpRange, PodSettings, RouteConfig, RuntimeConfig, SYSCTLS_ANNOTATION, Verb, WiringName,
};
use podnet_core::ipam::{Bounds, PoolId, Refused, hosts, static_addresses};
use podnet_core::service::HostPort;
use podnet_dataplane::ebpf;
use podnet_dataplane::nftables::{Gap, NetfilterError, Nftables};
use podnet_linux::ns::Namespace;
use serde_json::Map;

use super::install::NETWORK;
use super::{PodNetwork, Readiness, Server};
use crate::host_ports::{self, Clash};
use crate::ipam::{Ask, Lease, LeaseError};
use crate::pod_policies::NotInForce;
use crate::sysctls;
use crate::wiring::{self, Mode, Pair, PodLink, WiringError};

/// What the agent does for a pod when it is asked, as the network's configuration declares it.
pub(super) const ENFORCED: &[Capability] = &[
    Capability::Ips,
    Capability::IpRanges,
    Capability::Mac,
    Capability::Dns,
    Capability::PortMappings,
    Capability::Bandwidth,
    Capability::Annotations,
];

/// How long an ADD waits for its host ports to be in the kernel.
const HOST_PORTS: Duration = Duration::from_secs(20);
/// How long an ADD waits until the pod's policies are in the kernel. The runtime tries again, so it need not be long.
const POLICIES: Duration = Duration::from_secs(5);
/// So often CHECK looks again: policies may be changing just now.
const CHECKS: usize = 5;

/// A pod that got less than it wished would be worse than none.
fn refuse_what_is_not_enforced(wishes: &RuntimeConfig) -> Result<(), CniError> {
    let wishes = wishes.wishes();
    let Some(wish) = wishes.iter().find(|wish| !ENFORCED.contains(wish)) else {
        return Ok(());
    };
    let msg = format!("this version of podnet does not support {wish}");
    Err(CniError::new(Code::UnsupportedField, msg)
        .with_details("take it out of the pod, or chain a plugin that does it behind podnet"))
}

/// What an ADD is for.
struct Target<'a> {
    attachment: &'a Attachment,
    /// The namespace, by the runtime's path and open.
    netns: &'a str,
    namespace: &'a Namespace,
    wishes: &'a RuntimeConfig,
    settings: &'a PodSettings,
}

impl Server {
    pub(super) fn serve(
        &self,
        request: &AgentRequest,
        namespace: Option<&Namespace>,
    ) -> Result<AgentReply, CniError> {
        match &request.verb {
            Verb::Add {
                attachment,
                netns,
                runtime_config,
                pod_settings,
            } => {
                refuse_what_is_not_enforced(runtime_config)?;
                let namespace = namespace.ok_or_else(|| {
                    CniError::new(Code::InvalidEnvironment, "no network namespace came with the ADD")
                        .with_details("the plugin and the agent are of different versions; restart the agent")
                })?;
                let begin = std::time::Instant::now();
                let target = Target {
                    attachment,
                    netns,
                    namespace,
                    wishes: runtime_config,
                    settings: pod_settings,
                };
                let result = self.add(request, &target)?;
                let took = begin.elapsed();
                tracing::debug!(%attachment, pod = request.pod.name, ?took, "added");
                Ok(AgentReply::Added(Box::new(result)))
            }
            Verb::Del { attachment } => self.del(attachment).map(|()| AgentReply::Done),
            Verb::Check {
                attachment, previous, ..
            } => {
                self.check(attachment, previous, namespace)?;
                Ok(AgentReply::Done)
            }
            Verb::Status => self.status().map(|()| AgentReply::Done),
            Verb::Gc { valid } => self.gc(&request.network, valid).map(|()| AgentReply::Done),
        }
    }

    fn network(&self, code: Code) -> Result<PodNetwork, CniError> {
        let network = match &*self.ready.borrow() {
            Readiness::NotReady(why) => {
                return Err(CniError::new(
                    code,
                    format!("the podnet agent of node {} is not ready yet", self.node),
                )
                .with_details(why.clone()));
            }
            Readiness::Ready(network) | Readiness::Limited(network, _) => network.clone(),
        };
        self.leases.set(&network.addressing);
        Ok(network)
    }

    fn add(&self, request: &AgentRequest, target: &Target<'_>) -> Result<AddResult, CniError> {
        let attachment = target.attachment;
        let network = self.network(Code::TryAgainLater)?;
        let sysctls = self.sysctls(target)?;
        let mut lease = self
            .leases
            .lease(&ask(request, target)?)
            .map_err(|error| lease_error(&error, Code::TryAgainLater))?;
        let claimed = self.claim(&mut lease, target.wishes);
        let claimed = claimed.inspect_err(|_| self.give_up(&lease))?;
        // Before there is a link: not one packet goes unjudged.
        self.have_policies(&lease).inspect_err(|_| self.give_up(&lease))?;
        let mode = mode(target.settings.wiring.unwrap_or(self.wiring), &network);
        let routes = target.settings.routes.iter().map(|route| (route.dst, route.gw));
        let pod = PodLink {
            attachment,
            addresses: &lease.addresses,
            mtu: network.mtu,
            mac: target.wishes.mac.unwrap_or(attachment.pod_mac()),
            mode: &mode,
            bandwidth: lease.bandwidth,
            on_loopback: host_ports::is_on_loopback(&lease),
            routes: &routes.collect::<Vec<_>>(),
            sysctls: &sysctls,
            settings: &self.settings,
        };
        self.let_go_of(&lease.addresses);
        if let Err(error) = wiring::attach(&pod, target.namespace) {
            if error.link_left {
                self.leave_to_the_reaper(&lease);
            } else {
                self.give_up(&lease);
            }
            return Err(wiring_error(&error.cause, attachment));
        }
        if claimed.is_some_and(|version| !self.host_ports.wait(version, HOST_PORTS)) {
            self.leave_to_the_reaper(&lease);
            let msg = format!("the host ports of {attachment} are not in the kernel yet");
            return Err(CniError::new(Code::TryAgainLater, msg)
                .with_details("the agent could not change nftables; see its log for the cause"));
        }
        self.leases.wired(&lease);
        self.pod_policies.wired(&lease.attachment);
        Ok(result(&pod, &network, target))
    }

    /// The kernel settings of a pod: the network's, and over them those that its annotation asks for and may.
    fn sysctls(&self, target: &Target<'_>) -> Result<BTreeMap<String, String>, CniError> {
        let ifname = target.attachment.ifname();
        let own = PodSettings::default()
            .and(&target.wishes.sysctls)
            .sysctls_of(ifname);
        let refused = own
            .keys()
            .find(|path| !sysctls::may_set(path, &self.allowed_sysctls));
        if let Some(path) = refused {
            let name = path.replace('/', ".");
            let msg = format!("the pod's annotation {SYSCTLS_ANNOTATION} sets {name}, which pods may not");
            return Err(CniError::new(Code::InvalidConfig, msg).with_details(format!(
                "start the node's agent with --allowed-unsafe-sysctls {name}, or set it for all pods of the network with \
                 \"sysctl\" in its configuration"
            )));
        }
        let mut all = target.settings.sysctls_of(ifname);
        all.extend(own);
        Ok(all)
    }

    /// Notes what is to be done for the pod beside its link, and has its host ports opened meanwhile.
    fn claim(
        &self,
        lease: &mut Lease,
        wishes: &RuntimeConfig,
    ) -> Result<Option<host_ports::Version>, CniError> {
        self.leases
            .equip(lease, &wishes.port_mappings, wishes.bandwidth)
            .map_err(|error| lease_error(&error, Code::TryAgainLater))?;
        self.host_ports
            .claim(lease)
            .map_err(|clash| clash_error(&clash, lease))
    }

    /// Has the policies of a pod in force.
    fn have_policies(&self, lease: &Lease) -> Result<(), CniError> {
        let Some(version) = self.pod_policies.claim(lease) else {
            return Ok(());
        };
        let waited = self.pod_policies.wait(version, &lease.addresses, POLICIES);
        waited.map_err(|why| {
            let msg = format!(
                "pod {}/{} must not begin without its network policies: {why}",
                lease.pod.namespace, lease.pod.name
            );
            CniError::new(Code::TryAgainLater, msg).with_details(match why {
                NotInForce::NotApplied => {
                    "the agent could not change nftables, or waits for the API server; `podnet status` says which"
                }
                NotInForce::UnknownPod => "the API server is away or slow; see the agent's log",
            })
        })
    }

    /// Has programs know no pod by these addresses. Whoever had them is gone, but the loop may not have come to that.
    fn let_go_of(&self, addresses: &[IpAddr]) {
        if let Some(site) = &self.programs
            && let Err(error) = ebpf::let_go_of(site, addresses)
        {
            tracing::warn!("programs may still know the pod that had {addresses:?} before: {error}");
        }
    }

    /// What of a pod's policies is not in the kernel.
    fn missing_policy(&self, lease: &Lease) -> Result<Option<Gap>, NetfilterError> {
        let mut table = Nftables::open()?;
        let mut gap = None;
        for _ in 0..CHECKS {
            let policy = self.pod_policies.policy();
            if policy.is_open() {
                return Ok(None);
            }
            gap = table.policy_gap(&policy, &lease.addresses)?;
            // What changed while we looked is another state's.
            if gap.is_none() || std::sync::Arc::ptr_eq(&policy, &self.pod_policies.policy()) {
                break;
            }
        }
        Ok(gap)
    }

    /// After an ADD that failed and left no link.
    fn give_up(&self, lease: &Lease) {
        self.host_ports.release(&lease.attachment);
        self.pod_policies.release(&lease.attachment);
        self.leases.give_up(lease);
    }

    /// The addresses of a link that could not be deleted are not free before it is gone.
    fn leave_to_the_reaper(&self, lease: &Lease) {
        // Only what is not being wired can be released.
        self.leases.wired(lease);
        match self.leases.release(&lease.attachment) {
            Ok(Some(ended)) => self.reaper.take(ended),
            // A DEL was quicker.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, attachment = %lease.attachment, "the lease of a failed ADD stays until its DEL");
            }
        }
    }

    pub(super) fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let ended = self
            .leases
            .release(attachment)
            .map_err(|error| lease_error(&error, Code::TryAgainLater))?;
        self.host_ports.release(attachment);
        match ended {
            Some(lease) => self.reaper.take(lease),
            // Most likely this is another DEL of the same. If there is a link, the file of its lease was lost.
            // It goes here and now: the reaper would meet the link of an ADD that comes next.
            None => wiring::remove(&[attachment.host_link()])
                .map_err(|error| wiring_error(&error.into(), attachment))?,
        }
        Ok(())
    }

    /// What the plugin cannot see: whether the leases and the node's routes agree with the container.
    fn check(
        &self,
        attachment: &Attachment,
        previous: &AddResult,
        namespace: Option<&Namespace>,
    ) -> Result<(), CniError> {
        let failed = |msg: String| {
            CniError::new(Code::CheckFailed, msg).with_details(
                "the agent's leases and the container disagree; delete the pod to have it wired anew",
            )
        };
        let lease = self
            .leases
            .get(attachment)
            .ok_or_else(|| failed(format!("{attachment} has no lease")))?;
        let had: Vec<IpAddr> = previous.ips.iter().map(|ip| ip.address.addr()).collect();
        if let Some(address) = lease.addresses.iter().find(|address| !had.contains(address)) {
            return Err(failed(format!(
                "{attachment} has a lease on {address}, which prevResult lacks"
            )));
        }
        let in_kernel = wiring::in_kernel().map_err(|error| wiring_error(&error.into(), attachment))?;
        let routed = in_kernel.get(&attachment.host_link());
        let missing = lease
            .addresses
            .iter()
            .find(|address| routed.is_none_or(|routed| !routed.contains(address)));
        if let Some(address) = missing {
            return Err(failed(format!(
                "the node has no route to {address} of {attachment}"
            )));
        }
        let limits = wiring::check_limits(attachment, &lease.bandwidth, namespace);
        if let Err(direction) = limits.map_err(|error| wiring_error(&error, attachment))? {
            return Err(failed(format!(
                "the {direction} limit of {attachment} is not in force"
            )));
        }
        if let Some(port) = closed(&lease)? {
            return Err(failed(format!("host port {port} of {attachment} is not open")));
        }
        let gap = self.missing_policy(&lease).map_err(|error| {
            CniError::new(Code::Io, "cannot read the policies from nftables").with_details(error.to_string())
        })?;
        match gap {
            None => Ok(()),
            Some(gap) => {
                let msg = format!("the network policies of {attachment} are not in force: {gap}");
                Err(CniError::new(Code::CheckFailed, msg).with_details(
                    "somebody else changed nftables' table inet podnet; the agent puts it back, and its log says so",
                ))
            }
        }
    }

    fn status(&self) -> Result<(), CniError> {
        self.network(Code::NotAvailable)?;
        self.leases
            .check()
            .map_err(|error| lease_error(&error, Code::NotAvailable))?;
        match &*self.ready.borrow() {
            Readiness::Limited(_, why) => {
                let msg = format!("pods of node {} would have limited connectivity", self.node);
                Err(CniError::new(Code::LimitedConnectivity, msg).with_details(why.clone()))
            }
            Readiness::Ready(_) | Readiness::NotReady(_) => Ok(()),
        }
    }

    /// Goes on after an error and reports all of them.
    fn gc(&self, network: &str, valid: &[Attachment]) -> Result<(), CniError> {
        let mut errors = Vec::new();
        for lease in self.leases.all() {
            // A lease whose file was repaired has lost the name of its network: it counts as of the one that the
            // agent itself configures, since no other network's collection may take it.
            let of_network = match lease.network.as_str() {
                "" => network == NETWORK,
                name => name == network,
            };
            if of_network && !valid.contains(&lease.attachment) {
                tracing::info!(attachment = %lease.attachment, "freed by garbage collection");
                errors.extend(self.del(&lease.attachment).err().map(|error| error.to_string()));
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::Io, "some attachments could not be freed").with_details(errors.join("; ")))
    }
}

/// A host port of a lease that the kernel does not have.
fn closed(lease: &Lease) -> Result<Option<HostPort>, CniError> {
    let mut wanted = host_ports::of_lease(lease).peekable();
    if wanted.peek().is_none() {
        return Ok(None);
    }
    let dump = Nftables::open().and_then(|mut nftables| nftables.dump());
    let dump = dump.map_err(|error| {
        CniError::new(Code::Io, "cannot read the host ports from nftables").with_details(error.to_string())
    })?;
    Ok(wanted
        .find(|(port, target)| !dump.leads(port, *target))
        .map(|(port, _)| port))
}

fn clash_error(clash: &Clash, lease: &Lease) -> CniError {
    CniError::new(
        Code::TryAgainLater,
        format!("cannot open the host ports of {}", lease.attachment),
    )
    .with_details(format!(
        "{clash}; delete that pod, or give one of the two another hostPort or hostIP"
    ))
}

fn lease_error(error: &LeaseError, code: Code) -> CniError {
    match error {
        LeaseError::Held(_) => CniError::new(Code::InvalidEnvironment, error.to_string())
            .with_details("an attachment is added once; DEL comes before another ADD"),
        LeaseError::Busy(_) => CniError::new(Code::TryAgainLater, error.to_string())
            .with_details("see the agent's log for what the kernel refuses"),
        LeaseError::Refused { refused, .. } => refusal(refused, error, code),
        LeaseError::UnknownNamespace(_) => CniError::new(code, error.to_string())
            .with_details("the API server is away or slow; see the agent's log"),
        LeaseError::NoRange => CniError::new(code, error.to_string()).with_details(
            "Node.spec.podCIDRs is empty: the controller that gives nodes their ranges is not running",
        ),
        LeaseError::Disk { .. } => CniError::new(Code::Io, error.to_string())
            .with_details("see that the state directory is writable and its file system not full"),
        LeaseError::Locked(_) => CniError::new(Code::Io, error.to_string())
            .with_details("one agent keeps a state directory: end the other one"),
    }
}

/// What can be right another time has the verb's code; what is wrong in the pod or the network's configuration has 7.
fn refusal(refused: &Refused, error: &LeaseError, code: Code) -> CniError {
    let node = "delete pods on this node, or give the cluster's nodes larger ranges";
    let (code, help) = match refused {
        Refused::Exhausted {
            pool: PoolId::Node, ..
        } => (code, node),
        Refused::Exhausted { .. } => (
            code,
            "delete pods on this node, or give the pool another range; see its status for who holds its blocks",
        ),
        Refused::NoBlock(_) => (
            code,
            "`podnet controller` cuts pools into blocks: see that it runs, and in the pool's status what is left",
        ),
        Refused::Taken(_) => (code, "delete that pod first, or choose another address"),
        Refused::Elsewhere { .. } => (
            Code::InvalidConfig,
            "choose an address of these ranges, or make an IPPool of single-address blocks that follow their pods",
        ),
        Refused::Reserved(_) | Refused::Disjoint(_) => (Code::InvalidConfig, "choose others"),
    };
    CniError::new(code, error.to_string()).with_details(help)
}

fn wiring_error(error: &WiringError, attachment: &Attachment) -> CniError {
    let code = match error {
        WiringError::InterfaceExists(_) => Code::InvalidEnvironment,
        WiringError::NotANamespace(_) | WiringError::NodeNamespace => Code::InvalidNetns,
        WiringError::NotReady(_) => Code::TryAgainLater,
        WiringError::Netlink(_)
        | WiringError::Sysctl(_)
        | WiringError::NodeSetting(_)
        | WiringError::ForeignBridge
        | WiringError::NoBridgeNetfilter
        | WiringError::NoNetkit
        | WiringError::NoRoomForGateway(_)
        | WiringError::NotOnBridge(_) => Code::Wiring,
    };
    CniError::new(code, format!("cannot wire {attachment}")).with_details(error.to_string())
}

/// The addresses that a pod wishes: by capability, which is nearest to the pod, else by annotation.
fn ask<'a>(request: &'a AgentRequest, target: &Target<'a>) -> Result<Ask<'a>, CniError> {
    let wishes = target.wishes;
    let addresses = match &wishes.ips[..] {
        [] => static_addresses(&wishes.annotations).map_err(|why| {
            CniError::new(Code::InvalidConfig, why)
                .with_details("correct the annotation, and make the pod anew")
        })?,
        ips => ips.to_vec(),
    };
    let bounds = |range: &IpRange| {
        let hosts = hosts(range.subnet);
        Bounds {
            first: range.first.unwrap_or(hosts.first),
            last: range.last.unwrap_or(hosts.last),
        }
    };
    let sets = wishes.ip_ranges.iter();
    Ok(Ask {
        addresses,
        within: sets.map(|set| set.iter().map(bounds).collect()).collect(),
        netns: target.namespace.inode().unwrap_or_default(),
        netns_cookie: target.namespace.cookie().unwrap_or_default(),
        ..Ask::any(target.attachment, &request.network, &request.pod)
    })
}

fn mode(name: WiringName, network: &PodNetwork) -> Mode {
    match name {
        WiringName::Auto => Mode::Routed(Pair::probe()),
        WiringName::Ptp => Mode::Routed(Pair::Veth),
        WiringName::Netkit => Mode::Routed(Pair::Netkit),
        WiringName::Bridge => Mode::Bridged(network.addressing.node_ranges()),
    }
}

/// What the runtime is told.
fn result(pod: &PodLink<'_>, network: &PodNetwork, target: &Target<'_>) -> AddResult {
    let attachment = pod.attachment;
    let interface = |name: String, mac: podnet_linux::MacAddr, sandbox| Interface {
        name,
        mac: Some(mac.to_string()),
        mtu: Some(pod.mtu),
        sandbox,
        more: Map::new(),
    };
    let ips = pod.addresses.iter().map(|address| IpConfig {
        interface: Some(1),
        // Wired, it has a place.
        address: pod.own(*address).unwrap_or_else(|_| IpNet::from(*address)),
        gateway: Some(pod.gateway(*address)),
        more: Map::new(),
    });
    let routes = pod.addresses.iter().map(|address| RouteConfig {
        dst: match address {
            IpAddr::V4(_) => Ipv4Net::default().into(),
            IpAddr::V6(_) => Ipv6Net::default().into(),
        },
        gw: Some(pod.gateway(*address)),
        more: Map::new(),
    });
    let extra = pod.routes.iter().map(|(dst, gw)| RouteConfig {
        dst: *dst,
        gw: *gw,
        more: Map::new(),
    });
    let dns = target.wishes.dns.clone();
    AddResult {
        interfaces: vec![
            interface(attachment.host_link(), attachment.host_mac(), None),
            interface(
                attachment.ifname().to_owned(),
                pod.mac,
                Some(target.netns.to_owned()),
            ),
        ],
        ips: ips.collect(),
        routes: routes.chain(extra).collect(),
        dns: dns.unwrap_or_else(|| Dns::of(network.dns.iter().copied())),
        more: Map::new(),
    }
}
