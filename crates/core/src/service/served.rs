//! One service by itself: what it would have if no other claimed the same.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::{Candidates, Place, Scope};
use super::{Backend, Entry, Frontend, HealthCheck, NodePort, PortName};
use crate::cluster::{
    Algorithm, EndpointSlice, ExternalPolicy, Family, InternalPolicy, ObjectName, Service, ServicePort,
};

/// What one service has on one node.
#[derive(Debug)]
pub(super) struct Served {
    /// Its cluster IPs.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Behind its cluster IPs.
    pub(super) internal: Vec<(Frontend, Arc<Entry>)>,
    /// Behind its external IPs and its load balancer's addresses.
    pub(super) external: Vec<(Frontend, Arc<Entry>)>,
    /// Behind its node ports.
    pub(super) node_ports: Vec<(NodePort, Arc<Entry>)>,
    /// Its endpoints on this node.
    pub(super) local: BTreeSet<IpAddr>,
    /// Its endpoints of which it is not said where they are, as in slices that somebody wrote by hand.
    pub(super) unplaced: BTreeSet<IpAddr>,
    /// What its load balancer is told.
    pub(super) health_check: Option<(NonZeroU16, HealthCheck)>,
    /// What of it cannot be.
    pub(super) problems: Vec<String>,
}

impl Served {
    pub(super) fn of(
        name: &ObjectName,
        service: &Service,
        slices: &[&EndpointSlice],
        place: Place<'_>,
    ) -> Self {
        let mut served = Served {
            cluster_ips: service.cluster_ips().to_vec(),
            internal: Vec::new(),
            external: Vec::new(),
            node_ports: Vec::new(),
            local: BTreeSet::new(),
            unplaced: BTreeSet::new(),
            health_check: None,
            problems: service.external.unread.clone(),
        };
        let mut ready_here = BTreeSet::new();
        for &address in service.cluster_ips() {
            let family = Family::of(address);
            let outer = Outer::of(service, family, place);
            for port in service.ports() {
                let candidates = Candidates::of(slices, family, port);
                let backends = Backends::of(&candidates, service, place);
                ready_here.extend(candidates.ready_on(place.node));
                for backend in backends.all() {
                    served.local.extend(candidates.on(Some(place.node), backend));
                    served.unplaced.extend(candidates.on(None, backend));
                }
                let name = Arc::new(PortName {
                    service: name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                });
                served.add(address, service, port, &outer, backends, name);
            }
        }
        served.mismatched_families(service);
        if let Some(port) = service.external.health_check
            && service.external.policy == ExternalPolicy::Local
        {
            // An endpoint with addresses of two families is one.
            let family = service.cluster_ips().first().map(|address| Family::of(*address));
            let local_endpoints = ready_here
                .iter()
                .filter(|address| Some(Family::of(**address)) == family);
            let check = HealthCheck {
                service: name.clone(),
                local_endpoints: local_endpoints.count(),
            };
            served.health_check = Some((port, check));
        }
        served
    }

    /// One port in one family.
    fn add(
        &mut self,
        cluster_ip: IpAddr,
        service: &Service,
        port: &ServicePort,
        outer: &Outer,
        backends: Backends,
        name: Arc<PortName>,
    ) {
        let affinity = service.affinity;
        let frontend = |address| Frontend {
            address,
            protocol: port.protocol,
            port: port.port,
        };
        let internal = Arc::new(Entry {
            port: name.clone(),
            inside: backends.internal,
            outside: None,
            sources: None,
            affinity,
            algorithm: Algorithm::Random,
        });
        let external = Arc::new(Entry {
            port: name,
            inside: backends.inside,
            outside: backends.outside,
            sources: None,
            affinity,
            algorithm: service.external.algorithm,
        });
        let guarded = match &outer.sources {
            None => external.clone(),
            Some(sources) => Arc::new(Entry {
                sources: Some(sources.clone()),
                ..(*external).clone()
            }),
        };
        self.internal.push((frontend(cluster_ip), internal));
        // The load balancer's first: an address that is in both lists stays guarded.
        let load_balancer = outer.load_balancer.iter();
        self.external
            .extend(load_balancer.map(|address| (frontend(*address), guarded.clone())));
        self.external.extend(
            outer
                .ips
                .iter()
                .map(|address| (frontend(*address), external.clone())),
        );
        if let Some(number) = port.node_port {
            let node_port = NodePort {
                family: Family::of(cluster_ip),
                protocol: port.protocol,
                port: number,
            };
            self.node_ports.push((node_port, external));
        }
    }

    fn mismatched_families(&mut self, service: &Service) {
        let families: BTreeSet<Family> = service
            .cluster_ips()
            .iter()
            .map(|address| Family::of(*address))
            .collect();
        let external = &service.external;
        for address in external.ips.iter().chain(&external.load_balancer) {
            if !families.contains(&Family::of(*address)) {
                self.problems.push(format!(
                    "its address {address} is of a family that the service does not have (spec.ipFamilies); it is not served"
                ));
            }
        }
        for address in &external.load_balancer {
            let sources = external.sources_of(Family::of(*address));
            if sources.is_some_and(|sources| sources.is_empty()) {
                self.problems.push(format!(
                    "spec.loadBalancerSourceRanges has no range of the family of {address}: nobody can come to it"
                ));
            }
        }
    }
}

/// How a service is reached from outside, in one family.
struct Outer {
    ips: Vec<IpAddr>,
    load_balancer: Vec<IpAddr>,
    sources: Option<Arc<BTreeSet<IpNet>>>,
}

impl Outer {
    fn of(service: &Service, family: Family, place: Place<'_>) -> Self {
        let external = &service.external;
        let of_family = |addresses: &[IpAddr]| {
            let addresses = addresses.iter().copied();
            addresses
                .filter(|address| Family::of(*address) == family)
                .collect()
        };
        let load_balancer: Vec<IpAddr> = of_family(&external.load_balancer);
        Outer {
            ips: of_family(&external.ips),
            sources: sources(service, family, place).map(Arc::new),
            load_balancer,
        }
    }
}

/// Who may come to the load balancer's addresses of a family, by this node.
pub(super) fn sources(service: &Service, family: Family, place: Place<'_>) -> Option<BTreeSet<IpNet>> {
    let mut sources = service.external.sources_of(family)?;
    let of_node = place
        .addresses()
        .any(|own| sources.iter().any(|range| range.contains(&own)));
    if of_node {
        // A node that has the load balancer's address itself asks from it.
        let load_balancer = service.external.load_balancer.iter();
        let load_balancer = load_balancer.filter(|address| Family::of(**address) == family);
        sources.extend(load_balancer.map(|address| IpNet::from(*address)));
    }
    Some(sources)
}

/// What the clients of one service port get, in one family.
struct Backends {
    /// By the cluster IP.
    internal: Arc<Backend>,
    /// By all other addresses, from this node.
    inside: Arc<Backend>,
    /// By all other addresses from elsewhere, where that differs.
    outside: Option<Arc<Backend>>,
}

impl Backends {
    fn of(candidates: &Candidates<'_>, service: &Service, place: Place<'_>) -> Self {
        let everywhere = Arc::new(candidates.choose(Scope::Cluster, place));
        let here = match (service.internal_policy, service.external.policy) {
            (InternalPolicy::Cluster, ExternalPolicy::Cluster) => everywhere.clone(),
            _ => Arc::new(candidates.choose(Scope::Local, place)),
        };
        let internal = match service.internal_policy {
            InternalPolicy::Cluster => everywhere.clone(),
            InternalPolicy::Local => here.clone(),
        };
        let outside = match service.external.policy {
            ExternalPolicy::Cluster => None,
            ExternalPolicy::Local => (here != everywhere).then_some(here),
        };
        Backends {
            internal,
            inside: everywhere,
            outside,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Backend> {
        [&self.internal, &self.inside]
            .into_iter()
            .chain(&self.outside)
            .map(Arc::as_ref)
    }
}
