//! Packing endpoints into slices so that few slices change.
//!
//! Every consumer in the cluster gets every slice that changes. So an endpoint stays in its slice; new ones go first
//! into slices that change anyway, then into one with just enough room, then into new slices; and a slice is
//! rewritten rather than deleted beside one that is created.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::desired::{Family, Groups, Port};
use crate::selector::Labels;

/// Most endpoints in one slice.
pub(super) const MOST: usize = 100;

/// What slices are made for, and called after.
pub(super) struct Owner<'a> {
    pub(super) metadata: &'a ObjectMeta,
    pub(super) reference: OwnerReference,
    /// The labels of its slices.
    pub(super) labels: Labels,
}

/// What becomes of a service's slices.
#[derive(Default)]
pub(super) struct Packed<'a> {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<(&'a EndpointSlice, EndpointSlice)>,
    pub(super) delete: Vec<&'a EndpointSlice>,
}

/// Packs the desired endpoints into the existing slices.
pub(super) fn pack<'a>(owner: &Owner<'_>, desired: Groups, existing: Vec<&'a EndpointSlice>) -> Packed<'a> {
    let mut packed = Packed::default();
    let known = |slice: &&EndpointSlice| desired.keys().any(|family| family.name() == slice.address_type);
    let (known, strange): (Vec<_>, Vec<_>) = existing.into_iter().partition(known);
    packed.delete.extend(strange);
    for (family, groups) in desired {
        let slices = known
            .iter()
            .copied()
            .filter(|slice| slice.address_type == family.name());
        pack_family(owner, family, groups, slices.collect(), &mut packed);
    }
    packed
}

fn pack_family<'a>(
    owner: &Owner<'_>,
    family: Family,
    mut groups: BTreeMap<Vec<Port>, Vec<Endpoint>>,
    existing: Vec<&'a EndpointSlice>,
    packed: &mut Packed<'a>,
) {
    // A service without endpoints has one empty slice: it says that there are none, not that nobody looked yet.
    if groups.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    let mut spare = Vec::new();
    let mut by_ports: BTreeMap<Vec<Port>, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        let ports = ports_of(slice);
        let wanted = groups.contains_key(&ports) && slice.metadata.deletion_timestamp.is_none();
        if wanted {
            by_ports.entry(ports).or_default().push(slice)
        } else {
            spare.push(slice)
        }
    }
    let mut fresh = Vec::new();
    for (ports, endpoints) in groups {
        let mut drafts = keep(by_ports.remove(&ports).unwrap_or_default(), endpoints);
        let first_empty = drafts.iter().all(|draft| draft.endpoints.is_empty());
        for (index, draft) in drafts.drain(..).enumerate() {
            // The placeholder stays, other empty slices go.
            let placeholder = first_empty && index == 0 && ports.is_empty();
            match draft.slice {
                Some(slice) if draft.endpoints.is_empty() && !placeholder => spare.push(slice),
                Some(slice) => {
                    let new = slice_of(owner, family, &ports, draft.endpoints, Some(slice));
                    if new != *slice {
                        packed.update.push((slice, new));
                    }
                }
                None => fresh.push((ports.clone(), draft.endpoints)),
            }
        }
    }
    let mut spare = spare
        .into_iter()
        .filter(|slice| slice.metadata.deletion_timestamp.is_none());
    for (ports, endpoints) in fresh {
        match spare.next() {
            Some(slice) => {
                packed
                    .update
                    .push((slice, slice_of(owner, family, &ports, endpoints, Some(slice))));
            }
            None => packed
                .create
                .push(slice_of(owner, family, &ports, endpoints, None)),
        }
    }
    packed.delete.extend(spare);
}

/// A slice as it is to be: an existing one or a new one.
struct Draft<'a> {
    slice: Option<&'a EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

impl Draft<'_> {
    fn room(&self) -> usize {
        MOST.saturating_sub(self.endpoints.len())
    }
}

/// By what an endpoint is told from others: its pod and its address.
fn identity(endpoint: &Endpoint) -> (String, Vec<String>) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (uid.unwrap_or_default(), endpoint.addresses.clone())
}

fn keep<'a>(mut slices: Vec<&'a EndpointSlice>, desired: Vec<Endpoint>) -> Vec<Draft<'a>> {
    slices.sort_by_key(|slice| slice.metadata.name.clone());
    let mut missing: BTreeMap<_, Endpoint> = desired.into_iter().map(|e| (identity(&e), e)).collect();
    let mut drafts: Vec<Draft<'a>> = Vec::new();
    for slice in slices {
        let had = slice.endpoints.as_deref().unwrap_or_default();
        let endpoints: Vec<Endpoint> = had
            .iter()
            .filter_map(|e| missing.remove(&identity(e)))
            .take(MOST)
            .collect();
        let changed = endpoints != had;
        drafts.push(Draft {
            slice: Some(slice),
            endpoints,
            changed,
        });
    }
    place(&mut drafts, missing.into_values().collect());
    if drafts.is_empty() {
        drafts.push(Draft {
            slice: None,
            endpoints: Vec::new(),
            changed: true,
        });
    }
    drafts
}

fn place(drafts: &mut Vec<Draft<'_>>, mut missing: Vec<Endpoint>) {
    for draft in drafts
        .iter_mut()
        .filter(|draft| draft.changed && !draft.endpoints.is_empty())
    {
        let room = draft.room().min(missing.len());
        draft.endpoints.extend(missing.drain(..room));
    }
    while !missing.is_empty() {
        let fits = drafts.iter_mut().filter(|draft| draft.room() >= missing.len());
        if let Some(draft) = fits.min_by_key(|draft| draft.room()) {
            draft.endpoints.append(&mut missing);
        } else {
            let endpoints: Vec<Endpoint> = missing.drain(..MOST.min(missing.len())).collect();
            drafts.push(Draft {
                slice: None,
                endpoints,
                changed: true,
            });
        }
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(Port::of).collect();
    ports.sort();
    ports
}

fn slice_of(
    owner: &Owner<'_>,
    family: Family,
    ports: &[Port],
    endpoints: Vec<Endpoint>,
    base: Option<&EndpointSlice>,
) -> EndpointSlice {
    let mut metadata = match base {
        Some(slice) => slice.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{}-", owner.metadata.name.as_deref().unwrap_or_default())),
            namespace: owner.metadata.namespace.clone(),
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
    };
    metadata.labels = Some(owner.labels.clone());
    // The order of equal ports is the slice's own.
    let kept = base
        .filter(|slice| ports_of(slice) == ports)
        .map(|slice| slice.ports.clone());
    let ports = kept.unwrap_or_else(|| Some(ports.iter().cloned().map(Port::into_endpoint_port).collect()));
    // An empty list may have been stored as none.
    let same = base.is_some_and(|slice| slice.endpoints.as_deref().unwrap_or_default() == endpoints);
    let endpoints = base
        .filter(|_| same)
        .map_or(Some(endpoints), |slice| slice.endpoints.clone());
    EndpointSlice {
        address_type: family.name().into(),
        metadata,
        endpoints,
        ports,
    }
}
