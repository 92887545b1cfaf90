//! EndpointSlices, and the older Endpoints, of services that select pods.

mod desired;
mod legacy;
mod mirrored;
mod packing;
mod trigger;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::action::{Action, Part, controller_reference};
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::selector::{Labels, has_all};
use crate::store::Delta;
use crate::world::{Change, Kind, World};

pub use legacy::LegacyEndpoints;
pub use mirrored::MirroredEndpoints;

/// Label of a slice with the service it belongs to.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a slice with who takes care of it.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Label of the endpoints of services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The EndpointSlice controller.
#[derive(Debug)]
pub struct EndpointSlices;

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice"
    }

    fn component(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Service, Kind::Pod, Kind::EndpointSlice, Kind::Node]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::EndpointSlice(delta) => {
                keys.extend(delta.sides().filter_map(|slice| service_of(slice, MANAGER)));
            }
            Change::Node(delta) if zone_changed(delta) => {
                keys.extend(world.services.iter().map(|service| Key::of(&service.metadata)));
            }
            other => endpoints_affected(world, other, keys),
        }
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let Some(service) = world.services.get(key) else {
            return Plan::nothing();
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Plan::nothing();
        }
        let slices = world.endpoint_slices.within(&key.namespace);
        let ours: Vec<&EndpointSlice> = slices
            .map(|slice| &**slice)
            .filter(|slice| service_of(slice, MANAGER).as_ref() == Some(key))
            .collect();
        let Some(desired) = desired::groups(world, service) else {
            return unselected(service, &ours);
        };
        let owner = packing::Owner {
            metadata: &service.metadata,
            reference: controller_reference(&**service),
            labels: labels(service),
        };
        let mut packed = packing::pack(&owner, desired, ours);
        trigger::stamp(world, service, &mut packed);
        plan_of(&packed)
    }
}

fn plan_of(packed: &packing::Packed<'_>) -> Plan {
    let created = packed.create.iter().map(Action::create);
    let updated = packed
        .update
        .iter()
        .filter_map(|(old, new)| Action::modify(Part::Main, *old, new));
    let deleted = packed.delete.iter().map(|slice| Action::delete(*slice));
    created.chain(updated).chain(deleted).collect()
}

/// A slice has its service's labels and those by which it is found.
fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(
        SERVICE_NAME.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// A service without a selector has its slices made by others; but one that is now just a name for another host
/// has no endpoints.
fn unselected(service: &Service, slices: &[&EndpointSlice]) -> Plan {
    if is_external_name(service) {
        slices.iter().map(|slice| Action::delete(*slice)).collect()
    } else {
        Plan::nothing()
    }
}

fn is_external_name(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName")
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The service whose slice this is, if that manager takes care of it.
fn service_of(slice: &EndpointSlice, manager: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|found| found == manager);
    let name = labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(Key::new(
        slice.metadata.namespace.clone().unwrap_or_default(),
        name,
    ))
}

/// The services whose endpoints may be others after a change of a service or pod.
fn endpoints_affected(world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
    match change {
        Change::Service(delta) => drop(keys.insert(delta.key())),
        Change::Pod(delta) if endpoint_changed(delta) => {
            for side in delta.sides() {
                let namespace = side.metadata.namespace.as_deref().unwrap_or_default();
                let selecting = world
                    .services
                    .within(namespace)
                    .filter(|s| selects(s, &side.metadata.labels));
                keys.extend(selecting.map(|service| Key::of(&service.metadata)));
            }
        }
        _ => {}
    }
}

fn selects(service: &Service, labels: &Option<Labels>) -> bool {
    selector(service).is_some_and(|selector| has_all(selector, labels.as_ref()))
}

/// The selector of a service that has endpoints by selection. An empty one selects nothing.
fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty() && !is_external_name(service))
}

/// Whether a pod changed in what an endpoint shows of it.
fn endpoint_changed(delta: &Delta<Pod>) -> bool {
    let (Some(old), Some(new)) = (&delta.old, &delta.new) else {
        return true;
    };
    let spec = |pod: &Pod| {
        pod.spec
            .as_ref()
            .map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone()))
    };
    old.metadata.labels != new.metadata.labels
        || pod::addresses(old) != pod::addresses(new)
        || pod::ready(old) != pod::ready(new)
        || pod::terminating(old) != pod::terminating(new)
        || pod::ended(old) != pod::ended(new)
        || spec(old) != spec(new)
}

/// Label of a node with its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

fn zone_changed(delta: &Delta<Node>) -> bool {
    let zone = |node: Option<&std::sync::Arc<Node>>| {
        node.and_then(|node| node.metadata.labels.as_ref())
            .and_then(|labels| labels.get(ZONE))
            .cloned()
    };
    zone(delta.old.as_ref()) != zone(delta.new.as_ref())
}

#[cfg(test)]
mod tests;
