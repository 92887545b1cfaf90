//! Which endpoints a client of a service may get, and why not the others.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::{Candidates, Place, Scope};
use super::served::sources;
use super::{Backend, Frontend, Ledger, NodePort, PortName, ServiceState, Unchosen};
use crate::cluster::{
    AddressFamily, Affinity, Algorithm, Changes, Cluster, EndpointSlice, ExternalPolicy, Family,
    InternalPolicy, NodeName, ObjectName, Service, ServicePort,
};
use crate::state::Problem;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A pod of the node, or the node itself.
    Inside,
    /// Anywhere else.
    Outside,
}

/// What the clients of one service port get in one family, by some of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The service's port.
    pub port: PortName,
    /// What they ask for, as `ADDRESS:PORT`; a node port stands with the unspecified address.
    pub asked: Vec<String>,
    /// The endpoints there are.
    pub endpoints: Vec<Explained>,
    /// What becomes of a connection.
    pub verdict: Verdict,
    /// Whether a client stays with its endpoint.
    pub affinity: Affinity,
    /// How one of the chosen is found for a connection.
    pub algorithm: Algorithm,
    /// Which of the addresses only some clients may come to; all may come to all where there is nothing.
    pub guarded: Option<Guarded>,
}

/// Addresses that only some clients may come to (`loadBalancerSourceRanges`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Those of the addresses asked for that are the load balancer's.
    pub addresses: Vec<String>,
    /// Who may come: clients with addresses in these ranges; nobody, if there is none.
    pub sources: BTreeSet<IpNet>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Where it is.
    pub address: SocketAddr,
    /// Its node, if it has one.
    pub node: Option<NodeName>,
    /// Nothing if it is chosen.
    pub unchosen: Option<Unchosen>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It gets one of the endpoints that are chosen.
    Balanced,
    /// It is refused: nobody serves it anywhere.
    Refused(Refusal),
    /// It is dropped: there are endpoints, but not on this node, and the policy is `Local`.
    Dropped,
}

/// Why nobody serves it anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The service has no endpoint of that family.
    NoEndpoint,
    /// It has some, and none has the port.
    NoPort,
    /// None of those is ready.
    NoneReady,
}

impl Explanation {
    /// How many endpoints are chosen; each is as likely as the others.
    pub fn chosen(&self) -> usize {
        let endpoints = self.endpoints.iter();
        endpoints.filter(|endpoint| endpoint.unchosen.is_none()).count()
    }
}

/// What clients at a node get of a service that is carried, by those of its addresses that are served there. It is worked
/// out as [`crate::compute`] does it, from the same judgement of endpoints; `served` is what [`served`] says.
pub fn explain(
    cluster: &Cluster,
    node: &NodeName,
    name: &ObjectName,
    service: &Service,
    client: Client,
    served: &ServiceState,
) -> Vec<Explanation> {
    let place = Place::of(cluster, node);
    let slices: Vec<_> = cluster.slices.of(name).collect();
    let mut explanations = Vec::new();
    for address in service.cluster_ips() {
        let family = Family::of(*address);
        for port in service.ports() {
            let candidates = Candidates::of(&slices, family, port);
            let refusal = refusal(&slices, family, &candidates);
            let own = Frontends { served, name, port };
            let mut explain = |asked: Vec<String>, scope, algorithm, guarded| {
                let judged = candidates.judge(scope, place);
                let mut endpoints: Vec<Explained> = judged
                    .map(|(address, endpoint, unchosen)| Explained {
                        address,
                        node: endpoint.node.clone(),
                        unchosen,
                    })
                    .collect();
                // One address may stand in several slices; where it is chosen in one, it is.
                endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.unchosen));
                endpoints.dedup_by_key(|endpoint| endpoint.address);
                endpoints.sort_by_key(|endpoint| (endpoint.unchosen, endpoint.address));
                let verdict = match candidates.choose(scope, place) {
                    Backend::Balance { .. } => Verdict::Balanced,
                    Backend::Refuse => Verdict::Refused(refusal),
                    Backend::Drop => Verdict::Dropped,
                };
                explanations.push(Explanation {
                    port: PortName {
                        service: name.clone(),
                        protocol: port.protocol,
                        port: port.port,
                    },
                    asked,
                    endpoints,
                    verdict,
                    affinity: service.affinity,
                    algorithm,
                    guarded,
                });
            };
            // By its cluster IP from outside: as by a route to a node.
            let internal = match service.internal_policy {
                InternalPolicy::Cluster => Scope::Cluster,
                InternalPolicy::Local => Scope::Local,
            };
            if own.is_at(*address) {
                let asked = SocketAddr::new(*address, port.port.get()).to_string();
                explain(vec![asked], internal, Algorithm::Random, None);
            }
            let asked = own.external(service, family);
            if !asked.is_empty() {
                let scope = match (service.external.policy, client) {
                    (ExternalPolicy::Local, Client::Outside) => Scope::Local,
                    _ => Scope::Cluster,
                };
                let algorithm = service.external.algorithm;
                explain(asked, scope, algorithm, own.guarded(service, family, place));
            }
        }
    }
    explanations
}

/// What [`explain`] asks for: services as a node has them, and what is wrong with them. Who is a pod of the node is left
/// open.
pub fn served(cluster: &Cluster, node: &NodeName) -> (Arc<ServiceState>, Vec<Problem>) {
    let mut problems = Vec::new();
    let ranges = super::ranges::compute(cluster, &mut problems);
    let mut ledger = Ledger::default();
    let state = ledger.update(
        cluster,
        node,
        (&BTreeSet::new(), ranges),
        [Changes::All, Changes::All],
    );
    problems.extend(ledger.problems());
    (state, problems)
}

/// Leaves of all services those that claim something which this one claims, too. Others take nothing away from it, and
/// there may be thousands, where [`served`] is asked for many nodes.
pub fn keep_rivals(cluster: &mut Cluster, service: &Service) {
    let (addresses, ports) = claims(service);
    let is_rival = |other: &Service| {
        let (its_addresses, its_ports) = claims(other);
        !its_addresses.is_disjoint(&addresses) || !its_ports.is_disjoint(&ports)
    };
    let others = cluster.services.iter();
    let others = others.filter(|(_, other)| !other.as_ref().is_ok_and(is_rival));
    let others: Vec<ObjectName> = others.map(|(name, _)| name.clone()).collect();
    for name in others {
        cluster.services.remove(&name);
    }
}

/// What no two services have: addresses, and ports of nodes.
fn claims(service: &Service) -> (BTreeSet<IpAddr>, BTreeSet<NonZeroU16>) {
    let external = &service.external;
    let addresses = service.cluster_ips().iter();
    let addresses = addresses.chain(&external.load_balancer).chain(&external.ips);
    let ports = service.ports().iter().filter_map(|port| port.node_port);
    (
        addresses.copied().collect(),
        ports.chain(external.health_check).collect(),
    )
}

fn refusal(slices: &[&EndpointSlice], family: Family, candidates: &Candidates<'_>) -> Refusal {
    let mut of_family = slices
        .iter()
        .filter(|slice| slice.family() == AddressFamily::Ip(family));
    if !candidates.is_empty() {
        Refusal::NoneReady
    } else if of_family.any(|slice| !slice.endpoints().is_empty()) {
        Refusal::NoPort
    } else {
        Refusal::NoEndpoint
    }
}

/// Where a port of a service is served: others may have the same address, and come first.
struct Frontends<'a> {
    served: &'a ServiceState,
    name: &'a ObjectName,
    port: &'a ServicePort,
}

impl Frontends<'_> {
    fn is_at(&self, address: IpAddr) -> bool {
        let frontend = Frontend {
            address,
            protocol: self.port.protocol,
            port: self.port.port,
        };
        let entry = self.served.frontends.get(&frontend);
        entry.is_some_and(|entry| entry.port.service == *self.name)
    }

    fn node_port(&self, family: Family) -> Option<NonZeroU16> {
        let node_port = NodePort {
            family,
            protocol: self.port.protocol,
            port: self.port.node_port?,
        };
        let entry = self.served.node_ports.get(&node_port)?;
        (entry.port.service == *self.name).then_some(node_port.port)
    }

    fn at(&self, addresses: &[IpAddr], family: Family) -> impl Iterator<Item = String> {
        let addresses = addresses
            .iter()
            .filter(move |address| Family::of(**address) == family);
        let own = addresses.filter(|address| self.is_at(**address));
        own.map(|address| SocketAddr::new(*address, self.port.port.get()).to_string())
    }

    fn guarded(&self, service: &Service, family: Family, place: Place<'_>) -> Option<Guarded> {
        let sources = sources(service, family, place)?;
        let addresses: Vec<String> = self.at(&service.external.load_balancer, family).collect();
        (!addresses.is_empty()).then_some(Guarded { addresses, sources })
    }

    fn external(&self, service: &Service, family: Family) -> Vec<String> {
        let external = &service.external;
        let addresses = self
            .at(&external.load_balancer, family)
            .chain(self.at(&external.ips, family));
        let mut asked: Vec<String> = addresses.collect();
        asked.sort();
        asked.dedup();
        let any = match family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "[::]",
        };
        asked.extend(self.node_port(family).map(|number| format!("{any}:{number}")));
        asked
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NoEndpoint => {
                "it has no endpoint of this family: does its selector match pods that run? (kubectl get endpointslices)"
            }
            Refusal::NoPort => {
                "no EndpointSlice of it has this port: does targetPort name one that its pods' containers have?"
            }
            Refusal::NoneReady => "none of its endpoints is ready",
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} by {}", self.port, self.asked.join(", "))?;
        if let Some(Guarded { addresses, sources }) = &self.guarded {
            write!(f, "  by {} only clients from", addresses.join(", "))?;
            sources.iter().try_for_each(|range| write!(f, " {range}"))?;
            writeln!(f, "{}", if sources.is_empty() { " nowhere" } else { "" })?;
        }
        let chosen = self.chosen();
        for endpoint in &self.endpoints {
            let node = endpoint.node.as_ref().map_or("no node", NodeName::as_str);
            match endpoint.unchosen {
                None => writeln!(f, "  {} on {node}: one in {chosen}", endpoint.address)?,
                Some(why) => writeln!(f, "  {} on {node}: not chosen: {why}", endpoint.address)?,
            }
        }
        match self.verdict {
            Verdict::Balanced => {}
            Verdict::Refused(why) => writeln!(f, "  refused: {why}")?,
            Verdict::Dropped => {
                writeln!(
                    f,
                    "  dropped: no endpoint on this node is ready, and the traffic policy is Local"
                )?;
            }
        }
        if self.algorithm == Algorithm::Maglev && chosen > 1 {
            writeln!(
                f,
                "  by Maglev hashing of the client: every node chooses the same"
            )?;
        }
        match self.affinity {
            Affinity::ClientIp { seconds } if chosen > 1 => {
                writeln!(
                    f,
                    "  a client stays with its endpoint until it was idle for {seconds} s"
                )
            }
            _ => Ok(()),
        }
    }
}
