//! EndpointSlices of services whose endpoints somebody writes as an Endpoints object: what reads slices only, as
//! everything that carries services does, sees them too.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::desired::{Family, Groups, Port};
use super::{SERVICE_NAME, is_external_name, packing, plan_of, selector, service_of};
use crate::action::{Action, controller_reference};
use crate::control::{Context, Controller, Plan};
use crate::resource::Key;
use crate::world::{Change, Kind, World};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that nobody is to mirror, such as those of the API server's own service.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that are a lock, not endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Most addresses of a subset that are mirrored, the ready ones first.
const MOST: usize = 1000;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The EndpointSliceMirroring controller.
#[derive(Debug)]
pub struct MirroredEndpoints;

impl Controller for MirroredEndpoints {
    fn name(&self) -> &'static str {
        "endpointslice-mirroring"
    }

    fn component(&self) -> &'static str {
        "endpoint-slice-mirroring-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Service, Kind::Endpoints, Kind::EndpointSlice]
    }

    fn affected(&self, _: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::Endpoints(delta) => _ = keys.insert(delta.key()),
            Change::Service(delta) => _ = keys.insert(delta.key()),
            Change::EndpointSlice(delta) => {
                keys.extend(delta.sides().filter_map(|slice| service_of(slice, MANAGER)));
            }
            _ => {}
        }
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let slices = world.endpoint_slices.within(&key.namespace);
        let ours: Vec<&EndpointSlice> = slices
            .map(|slice| &**slice)
            .filter(|slice| service_of(slice, MANAGER).as_ref() == Some(key))
            .collect();
        let Some(endpoints) = mirrored(world, key) else {
            return ours.into_iter().map(Action::delete).collect();
        };
        let owner = packing::Owner {
            metadata: &endpoints.metadata,
            reference: controller_reference(endpoints),
            labels: labels(endpoints),
        };
        plan_of(&packing::pack(&owner, groups(endpoints), ours))
    }
}

/// The Endpoints of a service that has no selector, unless they are not meant for it.
fn mirrored<'a>(world: &'a World, key: &Key) -> Option<&'a Endpoints> {
    let service = world.services.get(key)?;
    if selector(service).is_some()
        || is_external_name(service)
        || service.metadata.deletion_timestamp.is_some()
    {
        return None;
    }
    let endpoints = &**world.endpoints.get(key)?;
    let metadata = &endpoints.metadata;
    let skipped = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP))
        .is_some_and(|skip| skip == "true");
    let is_lock = metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(LEADER));
    (!skipped && !is_lock && metadata.deletion_timestamp.is_none()).then_some(endpoints)
}

fn labels(endpoints: &Endpoints) -> crate::selector::Labels {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name);
    labels.insert(super::MANAGED_BY.into(), MANAGER.into());
    labels
}

fn groups(endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
        ports.sort();
        let mirrored = of_subset(subset);
        for family in FAMILIES {
            let of_family = mirrored.iter().filter(|(address, _)| family.has(address));
            let of_family: Vec<Endpoint> = of_family
                .map(|(address, (found, ready))| endpoint(address, found, *ready))
                .collect();
            if !of_family.is_empty() {
                let group = groups.entry(family).or_default();
                group.entry(ports.clone()).or_default().extend(of_family);
            }
        }
    }
    groups
}

/// The addresses of a subset, and whether they are ready. One that is in both lists is.
fn of_subset(subset: &EndpointSubset) -> BTreeMap<&str, (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let others = subset
        .not_ready_addresses
        .iter()
        .flatten()
        .map(|address| (address, false));
    let mut mirrored = BTreeMap::new();
    for (address, is_ready) in ready.chain(others).take(MOST) {
        mirrored.entry(address.ip.as_str()).or_insert((address, is_ready));
    }
    mirrored
}

fn endpoint(address: &str, found: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: found.hostname.clone(),
        node_name: found.node_name.clone(),
        target_ref: found.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn port(port: &EndpointPort) -> Port {
    Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        number: Some(port.port),
        app: port.app_protocol.clone(),
    }
}
