//! Every service by itself, and who claims what. Kept up with the services that change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::Place;
use super::owner::{Owner, owners};
use super::served::Served;
use super::settle::{Claimant, Others, problem, settle_address, settle_health_check, settle_node_port};
use super::{Frontend, HostAddress, HostPort, NodePort, ServiceState};
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
    addresses: BTreeSet<IpAddr>,
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
    /// The addresses among them that are in none of the ranges.
    outside: BTreeSet<IpAddr>,
    /// Those of them that are somebody else's, too.
    owners: BTreeMap<IpAddr, Owner>,
    /// How many services have an endpoint on this node.
    local: BTreeMap<IpAddr, usize>,
    /// The same of endpoints that are on no node in particular.
    unplaced: BTreeMap<IpAddr, usize>,
    /// The services of which something cannot be, whoever else there is.
    ailing: BTreeSet<Arc<ObjectName>>,
    /// Ports of this node that are somebody else's: programs' that listen on them, and pods'.
    busy: BTreeSet<NodePort>,
    /// The same of pods, with each address on which they have a port.
    opened: BTreeSet<Frontend>,
    /// Where the API server is: no service takes that away.
    api_server: BTreeSet<Frontend>,
    /// Host ports that cannot be.
    closed: Vec<Problem>,
    /// What cannot be because another has it.
    lost: BTreeMap<Claim, Vec<Problem>>,
    state: Arc<ServiceState>,
}

impl Ledger {
    /// Takes in what changed, and gives what a node has. `pods` is where its pods have their addresses from, `ranges`
    /// where services have theirs from.
    pub(crate) fn update(
        &mut self,
        cluster: &Cluster,
        me: &NodeName,
        (pods, ranges): (&BTreeSet<IpNet>, BTreeSet<IpNet>),
        changes: [Changes; 2],
    ) -> Arc<ServiceState> {
        let place = Place::of(cluster, me);
        let truncated = |ranges: &[IpNet]| ranges.iter().map(IpNet::trunc).collect();
        let terms = Terms {
            zone: place.zone.map(str::to_owned),
            addresses: place.addresses().collect(),
            ranges,
            node_port_addresses: cluster.config.node_port_addresses.as_deref().map(truncated),
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
        let busy = busy(cluster, &self.state);
        let moved = self.busy.symmetric_difference(&busy).copied();
        claims.extend(moved.map(Claim::NodePort));
        self.busy = busy;
        let host_ports = cluster.host_ports.keys();
        let opened = host_ports.flat_map(|host_port| host_port.places(&self.terms.addresses));
        let opened = opened.collect();
        let moved = self.opened.symmetric_difference(&opened);
        claims.extend(moved.map(|place| Claim::Address(place.address)));
        self.opened = opened;
        let api_server = cluster.api_server_frontends().collect();
        let moved = self.api_server.symmetric_difference(&api_server);
        claims.extend(moved.map(|place| Claim::Address(place.address)));
        self.api_server = api_server;
        self.find_owners(cluster, &mut claims);
        self.settle(claims, me);
        self.rest(cluster, pods, me);
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
        let lost = self.lost.values().flatten().chain(&self.closed);
        own.chain(lost.cloned())
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
            take(&mut self.local, &old.local);
            take(&mut self.unplaced, &old.unplaced);
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
        add(&mut self.local, &served.local);
        add(&mut self.unplaced, &served.unplaced);
        if !served.problems.is_empty() {
            self.ailing.insert(Arc::clone(&name));
        }
        self.served.insert(name, served);
    }

    /// Looks whose the addresses are that only services may have. What is others' now, or no more, is added to `touched`.
    fn find_owners(&mut self, cluster: &Cluster, touched: &mut BTreeSet<Claim>) {
        for claim in touched.iter() {
            let Claim::Address(address) = *claim else { continue };
            let is_claimed = self
                .claims
                .get(claim)
                .is_some_and(|claimants| !claimants.is_empty());
            if is_claimed && !self.terms.ranges.iter().any(|range| range.contains(&address)) {
                self.outside.insert(address);
            } else {
                self.outside.remove(&address);
            }
        }
        let before = std::mem::replace(&mut self.owners, owners(cluster, &self.outside));
        let moved = before.keys().chain(self.owners.keys());
        let moved = moved.filter(|address| before.get(address) != self.owners.get(address));
        touched.extend(moved.map(|address| Claim::Address(*address)));
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
                Claim::Address(address) => {
                    let others = Others {
                        me,
                        owner: self.owners.get(&address),
                        opened: &self.opened,
                        api_server: &self.api_server,
                    };
                    settle_address(changed, address, &others, &claimants)
                }
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

    /// What does not come from services alone. A host port on a cluster IP is nowhere: the address is the service's.
    fn rest(&mut self, cluster: &Cluster, pods: &BTreeSet<IpNet>, me: &NodeName) {
        let state = &self.state;
        let owner = |host_port: &HostPort| {
            let frontend = host_port.frontend()?;
            let is_for_services = state.cluster_ips.contains(&frontend.address)
                || state.ranges.iter().any(|range| range.contains(&frontend.address));
            match state.frontends.get(&frontend) {
                Some(entry) => Some(format!("of service {}", entry.port.service)),
                None => is_for_services.then(|| "for services alone".to_owned()),
            }
        };
        let closed = cluster.host_ports.keys().filter_map(|host_port| {
            let whose = owner(host_port)?;
            Some(Problem {
                object: ObjectRef::node(me),
                why: format!("a pod does not have its host port {host_port}: the address is {whose}"),
            })
        });
        self.closed = closed.collect();
        let open = cluster.host_ports.iter();
        let open = open.filter(|(host_port, _)| owner(host_port).is_none());
        let host_ports: BTreeMap<HostPort, SocketAddr> =
            open.map(|(port, target)| (*port, *target)).collect();
        let mut local: BTreeSet<IpAddr> = self.local.keys().copied().collect();
        local.extend(host_ports.values().map(SocketAddr::ip));
        for range in pods {
            let here = self.unplaced.range(range.network()..=range.broadcast());
            local.extend(here.map(|(address, _)| *address));
        }
        let state = &self.state;
        if state.pods == *pods && state.host_ports == host_ports && state.local_endpoints == local {
            return;
        }
        let state = Arc::make_mut(&mut self.state);
        state.pods.clone_from(pods);
        state.host_ports = host_ports;
        state.local_endpoints = local;
    }
}

/// Counts addresses.
fn add(counts: &mut BTreeMap<IpAddr, usize>, addresses: &BTreeSet<IpAddr>) {
    for address in addresses {
        *counts.entry(*address).or_default() += 1;
    }
}

/// Counts them no more.
fn take(counts: &mut BTreeMap<IpAddr, usize>, addresses: &BTreeSet<IpAddr>) {
    for address in addresses {
        let left = counts.get_mut(address).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            counts.remove(address);
        }
    }
}

/// A node port is the same on all addresses that have node ports: somebody who has it on one of them has it.
fn busy(cluster: &Cluster, state: &ServiceState) -> BTreeSet<NodePort> {
    let meets = |host_port: &&HostPort| match host_port.address {
        HostAddress::Any(_) => true,
        HostAddress::One(address) => state.has_node_ports_on(address),
    };
    let pods = cluster.host_ports.keys().filter(meets);
    let pods = pods.map(|host_port| NodePort {
        family: host_port.address.family(),
        protocol: host_port.protocol,
        port: host_port.port,
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
