//! What an attachment asks for, as slots to be filled.

use std::net::IpAddr;

use podnet_cni::{Attachment, PodReference};
use podnet_core::cluster::Family;
use podnet_core::ipam::{Addressing, Bounds, PoolId, Slot, Sources};

/// Who asks for addresses, and for which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<'a> {
    /// Which interface of which container.
    pub attachment: &'a Attachment,
    /// The CNI network.
    pub network: &'a str,
    /// The pod.
    pub pod: &'a PodReference,
    /// Addresses asked for by name.
    pub addresses: Vec<IpAddr>,
    /// One address out of each of these is asked for.
    pub within: Vec<Vec<Bounds>>,
    /// The number of its network namespace; 0 if that is not known.
    pub netns: u64,
    /// The cookie of the same; 0 if that is not known.
    pub netns_cookie: u64,
}

impl<'a> Ask<'a> {
    /// Asks for any addresses.
    pub fn any(attachment: &'a Attachment, network: &'a str, pod: &'a PodReference) -> Self {
        Ask {
            attachment,
            network,
            pod,
            addresses: Vec::new(),
            within: Vec::new(),
            netns: 0,
            netns_cookie: 0,
        }
    }

    /// What is asked for by name comes first; of every family that is left the pod gets any address.
    pub(super) fn slots(&self, sources: &Sources) -> Vec<Slot> {
        let mut slots: Vec<Slot> = Vec::new();
        let mut ids: Vec<PoolId> = sources.iter().flat_map(|(_, ids)| ids.clone()).collect();
        // By name a pod may have an address of the node's own range, whatever its pools are.
        ids.push(PoolId::Node);
        ids.sort();
        ids.dedup();
        for address in &self.addresses {
            slots.push(Slot::Exactly(*address, ids.clone()));
        }
        for bounds in &self.within {
            slots.push(Slot::Within(bounds.clone(), ids.clone()));
        }
        let served = |family: Family| {
            let named = self
                .addresses
                .iter()
                .any(|address| Family::of(*address) == family);
            let bounded = self.within.iter().flatten();
            named
                || bounded
                    .into_iter()
                    .any(|bounds| Family::of(bounds.first) == family)
        };
        slots.extend(any(sources).filter(|slot| match slot {
            Slot::Any { ipv4, .. } => !served(if *ipv4 { Family::V4 } else { Family::V6 }),
            _ => true,
        }));
        // The families in the order in which the node has them.
        let place = |slot: &Slot| {
            let ipv4 = match slot {
                Slot::Any { ipv4, .. } => *ipv4,
                Slot::Exactly(address, _) => address.is_ipv4(),
                Slot::Within(bounds, _) => bounds.first().is_some_and(Bounds::is_ipv4),
            };
            sources
                .iter()
                .position(|(family, _)| (*family == Family::V4) == ipv4)
        };
        slots.sort_by_key(|slot| place(slot).unwrap_or(usize::MAX));
        slots
    }
}

/// Any address of each family.
pub(super) fn any(sources: &Sources) -> impl Iterator<Item = Slot> + '_ {
    sources.iter().map(|(family, pools)| Slot::Any {
        ipv4: *family == Family::V4,
        pools: pools.clone(),
    })
}

/// Whether waiting for the cluster's controller may help: pools are at work here.
pub(super) fn has_pools(addressing: &Addressing) -> bool {
    let mut all = addressing.all_sources().flatten().flat_map(|(_, ids)| ids);
    all.any(|id| *id != PoolId::Node)
}
