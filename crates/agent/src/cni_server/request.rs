//! The verbs.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podnet_cni::{
    AddResult, AgentReply, AgentRequest, Attachment, CniError, Code, Dns, Interface, IpConfig, RouteConfig,
    Verb,
};
use podnet_core::ipam::{PoolId, Refused};
use podnet_linux::ns::Namespace;

use super::{PodNetwork, Readiness, Server};
use crate::ipam::{Ask, Lease, LeaseError};
use crate::wiring::{self, GATEWAY_V4, GATEWAY_V6, PodLink, WiringError};

impl Server {
    pub(super) fn serve(
        &self,
        request: &AgentRequest,
        namespace: Option<&Namespace>,
    ) -> Result<AgentReply, CniError> {
        match &request.verb {
            Verb::Add { attachment, netns } => {
                let namespace = namespace.ok_or_else(|| {
                    CniError::new(Code::InvalidEnvironment, "no network namespace came with the ADD")
                        .with_details("the plugin and the agent are of different versions; restart the agent")
                })?;
                let begin = std::time::Instant::now();
                let result = self.add(request, attachment, netns, namespace)?;
                let took = begin.elapsed();
                tracing::debug!(%attachment, pod = request.pod.name, ?took, "added");
                Ok(AgentReply::Added(result))
            }
            Verb::Del { attachment } => self.del(attachment).map(|()| AgentReply::Done),
            Verb::Check { attachment, previous } => {
                self.check(attachment, previous).map(|()| AgentReply::Done)
            }
            Verb::Status => self.status().map(|()| AgentReply::Done),
            Verb::Gc { valid } => self.gc(&request.network, valid).map(|()| AgentReply::Done),
        }
    }

    fn network(&self, code: Code) -> Result<PodNetwork, CniError> {
        let network = match &*self.ready.borrow() {
            Readiness::Ready(network) => network.clone(),
            Readiness::NotReady(why) => {
                return Err(CniError::new(
                    code,
                    format!("the podnet agent of node {} is not ready yet", self.node),
                )
                .with_details(why.clone()));
            }
        };
        self.leases.set(&network.addressing);
        Ok(network)
    }

    fn add(
        &self,
        request: &AgentRequest,
        attachment: &Attachment,
        netns: &str,
        namespace: &Namespace,
    ) -> Result<AddResult, CniError> {
        let network = self.network(Code::TryAgainLater)?;
        let lease = self
            .leases
            .lease(&Ask::any(attachment, &request.network, &request.pod))
            .map_err(|error| lease_error(&error, Code::TryAgainLater))?;
        let pod = PodLink {
            attachment,
            addresses: &lease.addresses,
            mtu: network.mtu,
        };
        match wiring::attach(&pod, namespace) {
            Ok(()) => {
                self.leases.wired(&lease);
                Ok(result(&lease, &network, netns))
            }
            Err(error) => {
                if error.link_left {
                    self.leave_to_the_reaper(&lease);
                } else {
                    self.leases.give_up(&lease);
                }
                Err(wiring_error(&error.cause, attachment))
            }
        }
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

    fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let ended = self
            .leases
            .release(attachment)
            .map_err(|error| lease_error(&error, Code::TryAgainLater))?;
        match ended {
            Some(lease) => self.reaper.take(lease),
            // Most likely this is another DEL of the same. If there is a link, the file of its lease was lost.
            // It goes here and now: the reaper would meet the link of an ADD that comes next.
            None => wiring::remove(&[attachment.host_link()])
                .map_err(|error| wiring_error(&error.into(), attachment))?,
        }
        Ok(())
    }

    fn check(&self, attachment: &Attachment, previous: &AddResult) -> Result<(), CniError> {
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
        match lease.addresses.iter().find(|address| !had.contains(address)) {
            None => Ok(()),
            Some(address) => Err(failed(format!(
                "{attachment} has a lease on {address}, which prevResult lacks"
            ))),
        }
    }

    fn status(&self) -> Result<(), CniError> {
        self.network(Code::NotAvailable)?;
        self.leases
            .check()
            .map_err(|error| lease_error(&error, Code::NotAvailable))
    }

    /// Goes on after an error and reports all of them.
    fn gc(&self, network: &str, valid: &[Attachment]) -> Result<(), CniError> {
        let mut errors = Vec::new();
        for lease in self.leases.all() {
            // A lease whose file was repaired has lost the name of its network; it is ours in any case.
            let of_network = lease.network == network || lease.network.is_empty();
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
        LeaseError::Locked(_) => CniError::new(Code::Io, error.to_string()),
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
        WiringError::InterfaceExists(_) | WiringError::NotANamespace(_) | WiringError::NodeNamespace => {
            Code::InvalidEnvironment
        }
        WiringError::Netlink(_) | WiringError::Sysctl(_) => Code::Wiring,
    };
    CniError::new(code, format!("cannot wire {attachment}")).with_details(error.to_string())
}

/// What the runtime is told.
fn result(lease: &Lease, network: &PodNetwork, netns: &str) -> AddResult {
    let attachment = &lease.attachment;
    let interface = |name: String, mac: podnet_linux::MacAddr, sandbox| Interface {
        name,
        mac: Some(mac.to_string()),
        mtu: Some(network.mtu),
        sandbox,
    };
    let gateway = |address: &IpAddr| match address {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    };
    let ips = lease.addresses.iter().map(|address| IpConfig {
        interface: Some(1),
        address: IpNet::from(*address),
        gateway: Some(gateway(address)),
    });
    let routes = lease.addresses.iter().map(|address| RouteConfig {
        dst: match address {
            IpAddr::V4(_) => Ipv4Net::default().into(),
            IpAddr::V6(_) => Ipv6Net::default().into(),
        },
        gw: Some(gateway(address)),
    });
    AddResult {
        interfaces: vec![
            interface(attachment.host_link(), attachment.host_mac(), None),
            interface(
                attachment.ifname().to_owned(),
                attachment.pod_mac(),
                Some(netns.to_owned()),
            ),
        ],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: Dns {
            nameservers: network.dns.clone(),
        },
    }
}
