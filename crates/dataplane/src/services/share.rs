//! How IPVS and nat share services between them where IPVS carries them.
//!
//! IPVS gives every answer but these, which are nat's. Clients that stay: what IPVS knows of them is of one address, not
//! of a service, or leads to the port that was asked for rather than to the endpoint's. What is hashed so that every node
//! chooses the same: IPVS' table depends on the order in which endpoints came. Clients inside where those outside get
//! other endpoints: IPVS asks nobody where he comes from. Node ports where loopback addresses have them: from there IPVS
//! sends nothing on.

use std::num::NonZeroU16;

use podnet_core::cluster::{Affinity, Algorithm, Family, Protocol};
use podnet_core::service::{Backend, Entry, NodePort, ServiceState};

/// This bit of a packet's mark has it delivered to IPVS, and of a connection's mark says that IPVS has it.
pub(crate) const MARK: u32 = 0x10;

/// Whose connections IPVS has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Everybody's.
    Everybody,
    /// Those of clients that are neither the node nor one of its pods.
    Outside,
}

/// What IPVS gives of an address' entry, if anything.
pub(crate) fn of_ipvs(entry: &Entry) -> Option<(Audience, &Backend)> {
    let (inside, outside) = (entry.inside.as_ref(), entry.outside.as_deref());
    let balances = |backend: &Backend| matches!(backend, Backend::Balance { .. });
    let is_plain = (entry.affinity, entry.algorithm) == (Affinity::None, Algorithm::Random);
    if !is_plain || !balances(inside) {
        return None;
    }
    match outside {
        None => Some((Audience::Everybody, inside)),
        Some(outside) => balances(outside).then_some((Audience::Outside, outside)),
    }
}

/// The same of a node port's.
pub(crate) fn of_ipvs_port<'a>(services: &ServiceState, entry: &'a Entry) -> Option<(Audience, &'a Backend)> {
    of_ipvs(entry).filter(|_| !services.has_node_ports_on_loopback())
}

/// Whether nat gives something of an entry, beside what IPVS does.
pub(crate) fn is_of_nat(entry: &Entry, by_ipvs: Option<Audience>) -> bool {
    match by_ipvs {
        Some(Audience::Everybody) => false,
        Some(Audience::Outside) => true,
        None => [&entry.inside, entry.outside()]
            .into_iter()
            .any(|backend| !backend.endpoints().is_empty()),
    }
}

const PROTOCOLS: [(Protocol, u32); 3] = [(Protocol::Tcp, 1), (Protocol::Udp, 2), (Protocol::Sctp, 3)];

/// The mark of first packets for a node port, by which IPVS knows them. It keeps clear of the marks of kubelet and
/// kube-proxy (0x4000, 0x8000) and of those most used.
pub(crate) fn mark(node_port: &NodePort) -> u32 {
    let number = PROTOCOLS
        .iter()
        .find(|(protocol, _)| *protocol == node_port.protocol);
    let number = number.map_or(0, |(_, number)| *number);
    u32::from(node_port.port.get()) << 16 | number << 12 | MARK
}

/// The node port that a mark stands for.
pub(crate) fn node_port(family: Family, mark: u32) -> Option<NodePort> {
    let protocol = PROTOCOLS
        .iter()
        .find(|(_, number)| mark & 0xffff == number << 12 | MARK);
    Some(NodePort {
        family,
        protocol: protocol?.0,
        port: NonZeroU16::new(u16::try_from(mark >> 16).ok()?)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mark_is_read_back_and_is_nothing_of_kubernetes(port in 1..=u16::MAX, which in 0..3_usize) {
            let wanted = NodePort {
                family: Family::V4,
                protocol: PROTOCOLS[which].0,
                port: NonZeroU16::new(port).unwrap(),
            };
            prop_assert_eq!(node_port(Family::V4, mark(&wanted)), Some(wanted));
            prop_assert_eq!(mark(&wanted) & 0xc000, 0);
        }

        #[test]
        fn what_is_no_mark_of_ours_is_no_node_port(number in any::<u32>()) {
            if let Some(found) = node_port(Family::V6, number) {
                prop_assert_eq!(mark(&found), number);
            }
        }
    }
}
