//! Who has which address: of services that claim the same, the first by name. Kept up with the services that change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::Place;
use super::served::Served;
use super::{Entry, Frontend, HostAddress, NodePort, ServiceState};
use crate::cluster::{Changes, Cluster, NodeName, ObjectName, ObjectRef};
use crate::state::Problem;

/// What only one service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// An address, of whichever kind. Of one that is no cluster IP each port may be another service's.
    Address(IpAddr),
    /// A port of the node.
    NodePort(NodePort),
    /// A port where load balancers ask for the node's health.
    HealthCheck(NonZeroU16),
}

/// What the rest depends on, for all services alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Terms {
    zone: Option<String>,
    ranges: BTreeSet<IpNet>,
    node_port_addresses: Option<BTreeSet<IpNet>>,
}

/// Every service by itself, and what comes of all of them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    terms: Terms,
    served: BTreeMap<Arc<ObjectName>, Served>,
    /// Who claims what, by name.
    claims: BTreeMap<Claim, Vec<Arc<ObjectName>>>,
    /// How many services have an endpoint on this node.
    local: BTreeMap<IpAddr, usize>,
    /// The services of which something cannot be, whoever else there is.
    ailing: BTreeSet<Arc<ObjectName>>,
    /// Ports of this node that are somebody else's: programs' that listen on them, and pods'.
    busy: BTreeSet<NodePort>,
    /// What cannot be because another has it.
    lost: BTreeMap<Claim, Vec<Problem>>,
    state: Arc<ServiceState>,
}

impl Ledger {
    /// Takes in what changed, and gives what a node has. `pods` is where its pods have their addresses from.
    pub(crate) fn update(
        &mut self,
        cluster: &Cluster,
        me: &NodeName,
        pods: &BTreeSet<IpNet>,
        changes: [Changes; 2],
    ) -> Arc<ServiceState> {
        let place = Place::of(cluster, me);
        let ranges = |ranges: &[IpNet]| ranges.iter().map(IpNet::trunc).collect();
        let terms = Terms {
            zone: place.zone.map(str::to_owned),
            ranges: ranges(&cluster.config.service_cidrs),
            node_port_addresses: cluster.config.node_port_addresses.as_deref().map(ranges),
        };
        let changed = match changes {
            [Changes::Of(mut services), Changes::Of(more)] if terms == self.terms => {
                services.extend(more);
                services
            }
            _ => {
                *self = Ledger::under(terms);
                cluster.services.keys().cloned().collect()
            }
        };
        let mut claims = BTreeSet::new();
        for name in changed {
            self.serve(cluster, place, name, &mut claims);
        }
        let busy = busy(cluster);
        let moved = self.busy.symmetric_difference(&busy).copied();
        claims.extend(moved.map(Claim::NodePort));
        self.busy = busy;
        self.settle(claims, me);
        self.rest(cluster, pods);
        Arc::clone(&self.state)
    }

    /// What of services could not be.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Problem> {
        let own = self.ailing.iter().flat_map(|name| {
            let problems = self
                .served
                .get(name)
                .into_iter()
                .flat_map(|served| &served.problems);
            problems.map(|why| problem(name, why.clone()))
        });
        own.chain(self.lost.values().flatten().cloned())
    }

    fn under(terms: Terms) -> Self {
        let state = ServiceState {
            ranges: terms.ranges.clone(),
            node_port_addresses: terms.node_port_addresses.clone(),
            ..ServiceState::default()
        };
        Ledger {
            terms,
            state: Arc::new(state),
            ..Ledger::default()
        }
    }

    /// Looks at one service anew. What it claimed and what it claims is added to `touched`.
    fn serve(
        &mut self,
        cluster: &Cluster,
        place: Place<'_>,
        name: ObjectName,
        touched: &mut BTreeSet<Claim>,
    ) {
        let name = Arc::new(name);
        if let Some(old) = self.served.remove(&name) {
            self.ailing.remove(&name);
            for claim in claims_of(&old) {
                touched.insert(claim);
                if let Some(claimants) = self.claims.get_mut(&claim) {
                    claimants.retain(|claimant| *claimant != name);
                }
            }
            for address in &old.local {
                let left = self.local.get_mut(address).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    self.local.remove(address);
                }
            }
        }
        let service = cluster
            .services
            .get(&*name)
            .and_then(|service| service.as_ref().ok());
        let Some(service) = service.filter(|service| service.is_carried()) else {
            return;
        };
        let slices: Vec<_> = cluster.slices.of(&name).collect();
        let served = Served::of(&name, service, &slices, place);
        for claim in claims_of(&served) {
            touched.insert(claim);
            let claimants = self.claims.entry(claim).or_default();
            if let Err(at) = claimants.binary_search(&name) {
                claimants.insert(at, Arc::clone(&name));
            }
        }
        for address in &served.local {
            *self.local.entry(*address).or_default() += 1;
        }
        if !served.problems.is_empty() {
            self.ailing.insert(Arc::clone(&name));
        }
        self.served.insert(name, served);
    }

    /// Decides who has what of `claims`.
    fn settle(&mut self, claims: BTreeSet<Claim>, me: &NodeName) {
        if claims.is_empty() {
            return;
        }
        let mut state = std::mem::take(&mut self.state);
        let changed = Arc::make_mut(&mut state);
        for claim in claims {
            let claimants = self.claims.get(&claim).map_or(&[][..], Vec::as_slice);
            let claimants: Vec<Claimant<'_>> = claimants
                .iter()
                .filter_map(|name| Some((&**name, self.served.get(name)?)))
                .collect();
            let lost = match claim {
                Claim::Address(address) => settle_address(changed, address, &claimants),
                Claim::NodePort(node_port) if self.busy.contains(&node_port) => {
                    changed.node_ports.remove(&node_port);
                    claimants
                        .iter()
                        .map(|(name, _)| taken(me, node_port, name))
                        .collect()
                }
                Claim::NodePort(node_port) => settle_node_port(changed, node_port, &claimants),
                Claim::HealthCheck(port) => settle_health_check(changed, port, &claimants),
            };
            let nobody = claimants.is_empty();
            if lost.is_empty() {
                self.lost.remove(&claim);
            } else {
                self.lost.insert(claim, lost);
            }
            if nobody {
                self.claims.remove(&claim);
            }
        }
        self.state = state;
    }

    /// What does not come from services alone.
    fn rest(&mut self, cluster: &Cluster, pods: &BTreeSet<IpNet>) {
        let host_ports = &cluster.host_ports;
        let mut local: BTreeSet<IpAddr> = self.local.keys().copied().collect();
        local.extend(host_ports.values().map(SocketAddr::ip));
        let state = &self.state;
        if state.pods == *pods && state.host_ports == *host_ports && state.local_endpoints == local {
            return;
        }
        let state = Arc::make_mut(&mut self.state);
        state.pods.clone_from(pods);
        state.host_ports.clone_from(host_ports);
        state.local_endpoints = local;
    }
}

/// A host port of one address only leaves the others to the service.
fn busy(cluster: &Cluster) -> BTreeSet<NodePort> {
    let pods = cluster
        .host_ports
        .keys()
        .filter_map(|host_port| match host_port.address {
            HostAddress::One(_) => None,
            HostAddress::Any(family) => Some(NodePort {
                family,
                protocol: host_port.protocol,
                port: host_port.port,
            }),
        });
    pods.chain(cluster.local.busy_ports.iter().copied()).collect()
}

/// It is this node's matter: on others the port may be free.
fn taken(me: &NodeName, port: NodePort, service: &ObjectName) -> Problem {
    Problem {
        object: ObjectRef::node(me),
        why: format!(
            "{port} is not served for service {service}, whose node port it is: a program or a pod of the node has that \
             port"
        ),
    }
}

/// A service that claims something.
type Claimant<'a> = (&'a ObjectName, &'a Served);

fn claims_of(served: &Served) -> impl Iterator<Item = Claim> {
    let external = served.external.iter().map(|(frontend, _)| frontend.address);
    let addresses = served.cluster_ips.iter().copied().chain(external);
    let node_ports = served.node_ports.iter().map(|(node_port, _)| *node_port);
    let health_check = served.health_check.iter().map(|(port, _)| *port);
    addresses
        .map(Claim::Address)
        .chain(node_ports.map(Claim::NodePort))
        .chain(health_check.map(Claim::HealthCheck))
}

fn problem(name: &ObjectName, why: String) -> Problem {
    Problem {
        object: ObjectRef::service(name),
        why,
    }
}

/// No other address of a service can take a cluster IP away.
fn settle_address(state: &mut ServiceState, address: IpAddr, claimants: &[Claimant<'_>]) -> Vec<Problem> {
    let mut lost = Vec::new();
    let mut had: BTreeMap<Frontend, Arc<Entry>> = BTreeMap::new();
    let has_it = |served: &Served| served.cluster_ips.contains(&address);
    let owner = claimants.iter().find(|(_, served)| has_it(served));
    for (name, served) in claimants.iter().filter(|(_, served)| has_it(served)) {
        match owner {
            Some((owner, _)) if owner != name => {
                let why = format!("its cluster IP {address} belongs to service {owner}; it is not served");
                lost.push(problem(name, why));
            }
            _ => {
                let its = served
                    .internal
                    .iter()
                    .filter(|(frontend, _)| frontend.address == address);
                had.extend(its.cloned());
            }
        }
    }
    let external = claimants.iter().flat_map(|(name, served)| {
        served
            .external
            .iter()
            .map(move |(frontend, entry)| (name, frontend, entry))
    });
    for (name, frontend, entry) in external.filter(|(_, frontend, _)| frontend.address == address) {
        let why = if let Some((owner, _)) = owner {
            format!("its address {address} is the cluster IP of service {owner}; it is not served")
        } else if let Some(range) = state.ranges.iter().find(|range| range.contains(&address)) {
            format!(
                "its address {address} is in the range {range}, which is for cluster IPs; it is not served"
            )
        } else if let Some(other) = had.get(frontend) {
            // A service may have one address in both ways.
            if other.port.service == **name {
                continue;
            }
            format!(
                "{frontend} belongs to service {}; it is not served",
                other.port.service
            )
        } else {
            had.insert(*frontend, Arc::clone(entry));
            continue;
        };
        lost.push(problem(name, why));
    }
    if owner.is_some() {
        state.cluster_ips.insert(address);
    } else {
        state.cluster_ips.remove(&address);
    }
    let gone: Vec<Frontend> = state
        .frontends
        .range(&Frontend::first_of(address))
        .map(|(frontend, _)| *frontend)
        .take_while(|frontend| frontend.address == address)
        .filter(|frontend| !had.contains_key(frontend))
        .collect();
    for frontend in &gone {
        state.frontends.remove(frontend);
    }
    state.frontends.extend(had);
    lost
}

fn settle_node_port(state: &mut ServiceState, port: NodePort, claimants: &[Claimant<'_>]) -> Vec<Problem> {
    let all = claimants.iter().flat_map(|(name, served)| {
        served
            .node_ports
            .iter()
            .map(move |(node_port, entry)| (name, node_port, entry))
    });
    let mut all = all.filter(|(_, node_port, _)| **node_port == port);
    let Some((_, _, entry)) = all.next() else {
        state.node_ports.remove(&port);
        return Vec::new();
    };
    state.node_ports.insert(port, Arc::clone(entry));
    let owner = &entry.port.service;
    let lost = all.map(|(name, node_port, _)| {
        let (protocol, port) = (node_port.protocol, node_port.port);
        let why = format!("its node port {protocol} {port} belongs to service {owner}; it is not served");
        problem(name, why)
    });
    lost.collect()
}

fn settle_health_check(
    state: &mut ServiceState,
    port: NonZeroU16,
    claimants: &[Claimant<'_>],
) -> Vec<Problem> {
    let mut all = claimants
        .iter()
        .filter_map(|(name, served)| Some((name, served.health_check.as_ref()?)));
    let Some((owner, (_, check))) = all.next() else {
        state.health_checks.remove(port);
        return Vec::new();
    };
    state.health_checks.insert(port, check.clone());
    let lost = all.map(|(name, _)| {
        let why = format!("its health check node port {port} belongs to service {owner}; it is not answered");
        problem(name, why)
    });
    lost.collect()
}
