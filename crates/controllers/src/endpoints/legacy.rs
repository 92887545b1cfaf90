//! The Endpoints object of a service: what EndpointSlices say, in the older form, of the service's first family.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::{Port, families, hostname, pods, ports, publishes_all, target_ref};
use super::{HEADLESS, endpoints_affected, is_headless, selector};
use crate::action::{Action, Part};
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::world::{Change, Kind, World};

/// Most addresses in one object.
const MOST: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The Endpoints controller.
#[derive(Debug)]
pub struct LegacyEndpoints;

impl Controller for LegacyEndpoints {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn component(&self) -> &'static str {
        "endpoint-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Service, Kind::Pod, Kind::Endpoints]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::Endpoints(delta) => drop(keys.insert(delta.key())),
            other => endpoints_affected(world, other, keys),
        }
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let current = world.endpoints.get(key);
        let service = world
            .services
            .get(key)
            .filter(|s| s.metadata.deletion_timestamp.is_none());
        let Some(service) = service else {
            return current
                .filter(|e| ours(e))
                .map(|e| Action::delete(&**e))
                .into_iter()
                .collect();
        };
        if selector(service).is_none() {
            return Plan::nothing();
        }
        let action = match current {
            None => Some(Action::create(&endpoints(world, service, None))),
            Some(current) => {
                let wanted = endpoints(world, service, Some(current));
                Action::modify(Part::Main, &**current, &wanted)
            }
        };
        action.into_iter().collect()
    }
}

fn ours(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(MANAGED_BY))
        .is_some_and(|m| m == MANAGER)
}

fn endpoints(world: &World, service: &Service, base: Option<&Endpoints>) -> Endpoints {
    let (subsets, truncated) = subsets(world, service);
    let mut metadata = base.map_or_else(
        || ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        |base| base.metadata.clone(),
    );
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    metadata.labels = Some(labels);
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    metadata.annotations = Some(annotations).filter(|a| !a.is_empty());
    Endpoints {
        metadata,
        subsets: Some(subsets).filter(|s| !s.is_empty()),
    }
}

#[derive(Default)]
struct Subset {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

fn subsets(world: &World, service: &Service) -> (Vec<EndpointSubset>, bool) {
    let Some(family) = families(service).into_iter().next() else {
        return (Vec::new(), false);
    };
    let mut by_ports: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    for pod in pods(world, service) {
        // Endpoints do not know terminating addresses; they are left out unless all are wanted.
        let shown = !pod::terminating(pod) || publishes_all(service);
        let Some(ip) = pod::addresses(pod)
            .into_iter()
            .find(|a| family.has(a))
            .filter(|_| shown)
        else {
            continue;
        };
        let ports = ports(service, pod);
        let portless = service
            .spec
            .as_ref()
            .and_then(|s| s.ports.as_ref())
            .is_none_or(Vec::is_empty);
        if ports.is_empty() && !portless {
            continue;
        }
        let subset = by_ports.entry(ports).or_default();
        let ready = pod::ready(pod) || publishes_all(service);
        let side = if ready {
            &mut subset.ready
        } else {
            &mut subset.not_ready
        };
        side.push(address(service, pod, ip));
    }
    let truncated = truncate(&mut by_ports);
    let subsets = by_ports
        .into_iter()
        .filter(|(_, s)| !s.ready.is_empty() || !s.not_ready.is_empty());
    (
        subsets.map(|(ports, subset)| subset_of(ports, subset)).collect(),
        truncated,
    )
}

fn address(service: &Service, pod: &Pod, ip: &str) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: hostname(service, pod),
        node_name: pod::node(pod).map(str::to_owned),
        target_ref: Some(target_ref(pod)),
    }
}

/// Leaves at most [`MOST`] addresses, of those the ready ones first.
fn truncate(subsets: &mut BTreeMap<Vec<Port>, Subset>) -> bool {
    let mut room = MOST;
    let mut truncated = false;
    let mut take = |list: &mut Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        truncated |= list.len() > room;
        list.truncate(room);
        room -= list.len();
    };
    subsets.values_mut().for_each(|subset| take(&mut subset.ready));
    subsets
        .values_mut()
        .for_each(|subset| take(&mut subset.not_ready));
    truncated
}

fn subset_of(ports: Vec<Port>, subset: Subset) -> EndpointSubset {
    let some = |list: Vec<EndpointAddress>| Some(list).filter(|l| !l.is_empty());
    let ports: Vec<EndpointPort> = ports
        .into_iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name).filter(|n| !n.is_empty()),
                protocol: Some(port.protocol),
                port: port.number?,
                app_protocol: port.app,
            })
        })
        .collect();
    EndpointSubset {
        addresses: some(subset.ready),
        not_ready_addresses: some(subset.not_ready),
        ports: Some(ports).filter(|p| !p.is_empty()),
    }
}
