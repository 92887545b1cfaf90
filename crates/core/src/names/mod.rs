//! From Services and EndpointSlices to the names that clients look up: what the Kubernetes DNS specification 1.1.0
//! asks for, as a table that questions are answered from.
//!
//! The table is made wholesale. It holds what cannot be read off a question: a service costs an entry of some hundred
//! bytes, an endpoint some 40, and names that are made of other names or of addresses cost nothing.

mod dashed;
mod service;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::domain::append_label;
use crate::cluster::{
    Cluster, DnsConfig, EndpointSlice, ObjectName, ObjectRef, PodRecords, Resolution, Service,
};
use crate::state::Problem;

pub use dashed::{Dashed, parse as address_of};
pub use service::{EndpointLabel, NamedEndpoint, NamedService, PortOf};

/// The names of a cluster.
///
/// Keys are lower case and as they travel: each label behind its length, without a zero at the end. So the key of
/// service `web` of namespace `default` is `\x03web\x07default`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    config: DnsConfig,
    /// By namespace and name.
    services: Vec<NamedService>,
    by_key: HashMap<Arc<[u8]>, u32>,
    namespaces: BTreeSet<Arc<[u8]>>,
    /// By address.
    reverse: Vec<Reverse>,
    /// By address; only those asked for.
    pods: BTreeSet<(IpAddr, Arc<[u8]>)>,
}

/// What is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reverse {
    address: IpAddr,
    service: u32,
    /// The endpoint; `None` for the service itself.
    endpoint: Option<u32>,
}

/// What an address is the address of.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// The service.
    pub service: &'a NamedService,
    /// Its endpoint; `None` for the service itself.
    pub endpoint: Option<&'a NamedEndpoint>,
}

/// The names part of [`crate::compute`]. Without DNS to serve there are none.
pub(crate) fn compute(cluster: &Cluster, problems: &mut Vec<Problem>) -> Option<Names> {
    let mut config = cluster.config.dns.clone()?;
    config.zone = config.zone.to_lower();
    let mut names = Names {
        config,
        ..Names::default()
    };
    let mut taken = HashSet::new();
    for (name, service) in cluster.valid_services() {
        let Some(key) = key(name) else {
            let why = "its name or its namespace's is no DNS label; it has no records".into();
            problems.push(Problem {
                object: ObjectRef::service(name),
                why,
            });
            continue;
        };
        let slices: Vec<_> = cluster.slices.of(name).collect();
        let service = NamedService::new(key, service, &slices);
        names.add(service, &mut taken);
    }
    names.reverse.sort_unstable();
    names.add_pods(cluster);
    Some(names)
}

/// The names of a cluster by themselves; `None` without DNS to serve.
pub fn of(cluster: &Cluster) -> Option<Names> {
    compute(cluster, &mut Vec::new())
}

/// Kubernetes' names are lower case already.
fn key(name: &ObjectName) -> Option<Arc<[u8]>> {
    let mut key = Vec::with_capacity(name.name.len() + name.namespace.len() + 2);
    append_label(&mut key, name.name.as_bytes())?;
    append_label(&mut key, name.namespace.as_bytes())?;
    Some(key.into())
}

impl Names {
    fn add(&mut self, service: NamedService, taken: &mut HashSet<IpAddr>) {
        let index = u32::try_from(self.services.len()).unwrap_or(u32::MAX);
        for &address in service.cluster_ips() {
            // Of two services with one address the first by name has it.
            if taken.insert(address) {
                self.reverse.push(Reverse {
                    address,
                    service: index,
                    endpoint: None,
                });
            }
        }
        if service.is_headless() {
            self.reverse
                .extend(service.distinct_endpoints().map(|(endpoint, at)| Reverse {
                    address: at.address,
                    service: index,
                    endpoint: Some(endpoint),
                }));
        }
        if !self.namespaces.contains(service.namespace()) {
            self.namespaces.insert(service.namespace().into());
        }
        self.by_key.insert(service.key().clone(), index);
        self.services.push(service);
    }

    fn add_pods(&mut self, cluster: &Cluster) {
        if self.config.pods != PodRecords::Verified {
            return;
        }
        for (name, pod) in &cluster.pods {
            let Ok(pod) = pod else { continue };
            let mut namespace = Vec::new();
            if append_label(&mut namespace, name.namespace.as_bytes()).is_none() {
                continue;
            }
            let namespace: Arc<[u8]> = namespace.into();
            // Pods of the node's network have the node's address, and no name of their own.
            let addresses = pod.addresses.iter().filter(|_| pod.has_own_network());
            self.pods
                .extend(addresses.map(|&address| (address, namespace.clone())));
            self.namespaces.insert(namespace);
        }
    }

    /// The settings; the zone is in lower case.
    pub fn config(&self) -> &DnsConfig {
        &self.config
    }

    /// How many services have names.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether no service has a name.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The service of a key, if it is there and has something to say: the name of a headless service without endpoints
    /// does not exist (section 2.4.1).
    pub fn service(&self, key: &[u8]) -> Option<&NamedService> {
        let service = self.services.get(usize::try_from(*self.by_key.get(key)?).ok()?)?;
        (!service.is_silent()).then_some(service)
    }

    /// Whether something in the namespace of that label (behind its length) has a name.
    pub fn has_namespace(&self, label: &[u8]) -> bool {
        self.namespaces.contains(label)
    }

    /// Whether a pod of the namespace of that label (behind its length) is known to have the address.
    pub fn has_pod(&self, address: IpAddr, namespace: &[u8]) -> bool {
        let at_address = self.pods.range((address, Arc::from([]))..);
        at_address
            .take_while(|(at, _)| *at == address)
            .any(|(_, of)| &**of == namespace)
    }

    /// What has an address: at most one service by its cluster IP, and endpoints of headless ones.
    pub fn at(&self, address: IpAddr) -> impl ExactSizeIterator<Item = Holder<'_>> + Clone {
        let first = self.reverse.partition_point(|entry| entry.address < address);
        let end = first + self.reverse[first..].partition_point(|entry| entry.address == address);
        self.reverse[first..end].iter().map(|entry| {
            let service = &self.services[entry.service as usize];
            Holder {
                service,
                endpoint: entry.endpoint.map(|index| &service.endpoints()[index as usize]),
            }
        })
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "zone {}", self.config.zone)?;
        self.services
            .iter()
            .try_for_each(|service| write!(f, "{service}"))?;
        for (address, namespace) in &self.pods {
            let namespace = String::from_utf8_lossy(&namespace[1..]);
            writeln!(f, "pod {address} {namespace}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
