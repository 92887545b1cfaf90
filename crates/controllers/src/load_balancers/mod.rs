//! Addresses for services of type LoadBalancer, from pools.
//!
//! Who has which address stands in the services' statuses alone. All of them are planned together, so that no address is
//! given to two services; and a service is written only in the version that was read.

mod claim;
mod object;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podnet_core::Cluster;
use podnet_core::cluster::{self, AddressFamily, ClusterConfig, NodeName, ObjectName};
use podnet_core::ipam::Standing;
use podnet_core::load_balancer::{Assigned, Claim, PoolUse, assign};
use serde_json::json;

use crate::action::{Action, Note, Part};
use crate::control::{Context, Controller, Plan};
use crate::endpoints::SERVICE_NAME;
use crate::ip_pools::pod_ranges;
use crate::resource::Key;
use crate::store::Delta;
use crate::world::{Change, Kind, World};

use claim::{claim, ingress, is_balanced, is_marked};
pub use object::LoadBalancerPool;

/// The condition of a Service that says whether it has all the addresses it is to have. Only we write it, and what has it
/// was ours.
pub const CONDITION: &str = "podnet.io/AddressAssigned";

/// The controller of load balancers' addresses.
#[derive(Debug)]
pub struct LoadBalancers {
    cluster_cidrs: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
}

impl LoadBalancers {
    /// Pools beside the ranges of pods' addresses and of cluster IPs.
    pub fn new(cluster_cidrs: Vec<IpNet>, service_cidrs: Vec<IpNet>) -> Self {
        LoadBalancers {
            cluster_cidrs,
            service_cidrs,
        }
    }
}

impl Controller for LoadBalancers {
    fn name(&self) -> &'static str {
        "load-balancers"
    }

    fn reads(&self) -> &'static [Kind] {
        &[
            Kind::LoadBalancerPool,
            Kind::Service,
            Kind::Namespace,
            Kind::Node,
            Kind::IPPool,
            Kind::ServiceCIDR,
            Kind::EndpointSlice,
        ]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let pools = !world.load_balancer_pools.is_empty();
        let matters = match change {
            Change::LoadBalancerPool(_) => true,
            Change::Service(delta) => {
                let ours = |service: &Service| (pools && is_balanced(service)) || is_marked(service);
                delta.old.as_deref().is_some_and(ours) || delta.new.as_deref().is_some_and(ours)
            }
            Change::IPPool(_) | Change::ServiceCIDR(_) => pools,
            Change::EndpointSlice(delta) => pools && delta.sides().any(|slice| is_of_api_server(slice)),
            Change::Namespace(delta) => pools && differs(delta, |n: &Namespace| n.metadata.labels.clone()),
            Change::Node(delta) => pools && differs(delta, |node| (addresses(node), pod_ranges(node))),
            _ => false,
        };
        if matters {
            keys.insert(Key::all());
        }
    }

    fn plan(&self, world: &World, _: &Key, context: &Context) -> Plan {
        let cluster = self.cluster(world);
        let ours = |address: IpAddr| {
            let mut pools = cluster.valid_load_balancer_pools();
            pools.any(|pool| pool.spec.as_ref().is_ok_and(|spec| spec.contains(address)))
        };
        let claims: Vec<Claim> = match world.load_balancer_pools.is_empty() {
            true => Vec::new(),
            false => world
                .services
                .iter()
                .filter_map(|service| claim(service, ours))
                .collect(),
        };
        let assignment = assign(&cluster, &claims);
        let services = world.services.iter().filter_map(|service| {
            let metadata = &service.metadata;
            let name = ObjectName::new(metadata.namespace.clone()?, metadata.name.clone()?);
            match assignment.services.get(&name) {
                Some(assigned) => settle(service, assigned, context.now),
                None => release(service),
            }
        });
        let pools = world.load_balancer_pools.iter().filter_map(|pool| {
            let used = assignment.pools.get(pool.metadata.name.as_deref()?)?;
            status(pool, used, context.now)
        });
        services.chain(pools).collect()
    }
}

impl LoadBalancers {
    fn cluster(&self, world: &World) -> Cluster {
        let mut cluster = Cluster::new(ClusterConfig {
            cluster_cidrs: self.cluster_cidrs.clone(),
            service_cidrs: self.service_cidrs.clone(),
            ..ClusterConfig::default()
        });
        for pool in world.load_balancer_pools.iter() {
            let pool = pool.parsed();
            cluster.load_balancer_pools.insert(pool.name.clone(), Ok(pool));
        }
        for pool in world.ip_pools.iter() {
            let pool = pool.parsed();
            cluster.ip_pools.insert(pool.name.clone(), Ok(pool));
        }
        for object in world.service_cidrs.iter() {
            let name = object.metadata.name.clone().unwrap_or_default();
            // One that cannot be read is reported by the agents.
            if let Ok(cidr) = service_cidr(object) {
                cluster.service_cidrs.insert(name, Ok(cidr));
            }
        }
        for object in world.nodes.iter() {
            if let Some(Ok(name)) = object.metadata.name.clone().map(NodeName::new) {
                let node = cluster::Node::new(name.clone(), &addresses(object), pod_ranges(object));
                cluster.nodes.insert(name, Ok(node));
            }
        }
        for object in world
            .endpoint_slices
            .iter()
            .filter(|slice| is_of_api_server(slice))
        {
            let name = object.metadata.name.clone().unwrap_or_default();
            let name = ObjectName::new(Cluster::api_server().namespace, name);
            // One that cannot be read is reported by the agents.
            if let Some(slice) = slice(object) {
                cluster.slices.insert(name, Ok(slice));
            }
        }
        for object in world.namespaces.iter() {
            let name = object.metadata.name.clone().unwrap_or_default();
            let labels = object.metadata.labels.clone().unwrap_or_default();
            cluster
                .namespaces
                .insert(name.clone(), cluster::Namespace::new(&name, labels));
        }
        cluster
    }
}

fn differs<K, T: PartialEq>(delta: &Delta<K>, seen: impl Fn(&K) -> T) -> bool {
    delta.old.as_deref().map(&seen) != delta.new.as_deref().map(&seen)
}

fn is_of_api_server(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.iter().flatten();
    let mut names = labels.filter(|(label, _)| *label == SERVICE_NAME);
    let api = Cluster::api_server();
    slice.metadata.namespace.as_ref() == Some(&api.namespace) && names.any(|(_, name)| *name == api.name)
}

/// The addresses of one; its ports are not of interest here.
fn slice(object: &EndpointSlice) -> Option<cluster::EndpointSlice> {
    let family = AddressFamily::named(&object.address_type)?;
    let endpoints = object.endpoints.iter().flatten();
    let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.filter_map(|address| address.parse().ok());
    let endpoints = addresses
        .map(|address| cluster::Endpoint::ready(address, None))
        .collect();
    cluster::EndpointSlice::new(Some(Cluster::api_server()), family, Vec::new(), endpoints).ok()
}

fn service_cidr(object: &ServiceCIDR) -> Result<cluster::ServiceCidr, String> {
    let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cluster::ServiceCidr::read(cidrs.map(String::as_str))
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.status.iter();
    let addresses = status.flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

/// What makes the service say what it has, and what it lacks.
fn settle(service: &Service, assigned: &Assigned, now: Timestamp) -> Option<Action> {
    let texts: Vec<String> = assigned.addresses.iter().map(ToString::to_string).collect();
    let (reason, message) = match assigned.lacks.first() {
        None => ("Assigned", texts.join(", ")),
        Some(lack) => {
            let lacks: Vec<String> = assigned.lacks.iter().map(ToString::to_string).collect();
            (lack.reason(), lacks.join("; "))
        }
    };
    let mut updated = service.clone();
    let status = updated.status.get_or_insert_default();
    if !ingress(service)
        .map(|ingress| ingress.ip.as_ref())
        .eq(texts.iter().map(Some))
    {
        let written = texts.iter().map(|text| LoadBalancerIngress {
            ip: Some(text.clone()),
            ip_mode: Some("VIP".into()),
            ..LoadBalancerIngress::default()
        });
        status.load_balancer = Some(LoadBalancerStatus {
            ingress: Some(written.collect()).filter(|written: &Vec<_>| !written.is_empty()),
        });
    }
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions
        .iter()
        .find(|condition| condition.type_ == CONDITION)
        .cloned();
    let verdict = if assigned.lacks.is_empty() {
        "True"
    } else {
        "False"
    };
    let since = before.as_ref().filter(|before| before.status == verdict);
    let condition = Condition {
        type_: CONDITION.into(),
        status: verdict.into(),
        reason: reason.into(),
        message: message.clone(),
        last_transition_time: since.map_or(Time(now), |before| before.last_transition_time.clone()),
        observed_generation: None,
    };
    let news =
        before.is_none_or(|before| (before.reason, before.message) != (reason.into(), message.clone()));
    conditions.retain(|condition| condition.type_ != CONDITION);
    conditions.push(condition);
    let action = Action::modify_exactly(Part::Status, service, &updated)?;
    Some(match (news, assigned.lacks.is_empty()) {
        (false, _) => action,
        (true, true) => action.telling(Note::normal(service, "AddressAssigned", message)),
        (true, false) => action.telling(Note::warning(service, reason, message)),
    })
}

/// What takes the addresses from a service that was ours and is not any more.
fn release(service: &Service) -> Option<Action> {
    if !is_marked(service) {
        return None;
    }
    let mut updated = service.clone();
    let status = updated.status.get_or_insert_default();
    status.load_balancer = Some(LoadBalancerStatus::default());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != CONDITION);
    let had: Vec<&str> = ingress(service)
        .filter_map(|ingress| ingress.ip.as_deref())
        .collect();
    let note = Note::normal(service, "AddressReleased", had.join(", "));
    let action = Action::modify_exactly(Part::Status, service, &updated)?;
    Some(if had.is_empty() {
        action
    } else {
        action.telling(note)
    })
}

/// What makes the pool say how it stands.
fn status(pool: &LoadBalancerPool, used: &PoolUse, now: Timestamp) -> Option<Action> {
    // As many as JSON can say exactly; nobody needs to know of more.
    let count = |count: u128| json!(count.min(1 << 53) as u64);
    let (ready, reason, message) = match &used.standing {
        Standing::Open => (true, "Serving", "addresses are given out of it".to_owned()),
        Standing::Closed(why) => (true, "Disabled", format!("{why}: nothing new is given out of it")),
        Standing::Wrong(why) => (false, "Invalid", format!("{why}; nothing is given out of it")),
    };
    let mut updated = pool.clone();
    updated.status = json!({
        "assignedIPv4": count(used.v4.assigned), "availableIPv4": count(used.v4.available),
        "assignedIPv6": count(used.v6.assigned), "availableIPv6": count(used.v6.available),
        "conditions": pool.ready_condition(ready, reason, &message, now),
    });
    let action = Action::modify_exactly(Part::Status, pool, &updated)?;
    Some(match !ready && pool.is_news(reason, &message) {
        true => action.telling(Note::warning(pool, reason, message)),
        false => action,
    })
}

#[cfg(test)]
mod tests;
