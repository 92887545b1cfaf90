//! Rendered rules as judges of packets: what becomes of a connection's first packet, worked out without a kernel from what
//! each back end would put there, held against the oracle. Kernels judge the same in `tests/kernel`; here are more clusters
//! than they have time for, and every protocol.

#[path = "../../../core/tests/clusters/mod.rs"]
mod clusters;
mod iptables;
mod nftables;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use podnet_core::cluster::{Cluster, NodeName, Protocol};
use podnet_core::oracle::{Fate, connect, keeps_source};
use podnet_core::{NodeState, compute};
use proptest::prelude::*;

use clusters::{Edit, NODES, cluster, edit, node_name, v4, v6};

/// A connection's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    from: IpAddr,
    to: SocketAddr,
    protocol: Protocol,
}

/// What may become of it, where that is left to chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It goes where it is sent.
    Untouched,
    /// To an endpoint, which sees the client's own address or the node's.
    To {
        endpoint: SocketAddr,
        keeps: bool,
    },
    Refused,
    Dropped,
}

/// How a chain ended for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It came to its end, or was sent back.
    Through,
    /// The base chain or table is over.
    Accepted,
    Refused,
    Dropped,
}

/// A node, as far as its kernel looks at it.
struct Node<'a> {
    state: &'a NodeState,
    own: BTreeSet<IpAddr>,
}

impl Node<'_> {
    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.own.contains(&address)
    }
}

/// Who says what may become of packets on a node.
type Judge<'a> = Box<dyn Fn(Packet) -> BTreeSet<Outcome> + 'a>;

/// What the oracle says.
fn expected(cluster: &Cluster, me: &NodeName, packet: Packet) -> BTreeSet<Outcome> {
    let Packet { from, to, protocol } = packet;
    match connect(cluster, me, from, protocol, to) {
        Fate::NotAService => [Outcome::Untouched].into(),
        Fate::OneOf(all) => {
            let keeps = |endpoint: &SocketAddr| keeps_source(cluster, me, from, endpoint.ip());
            let to = |endpoint| Outcome::To {
                endpoint,
                keeps: keeps(&endpoint),
            };
            all.into_iter().map(to).collect()
        }
        Fate::Refused => [Outcome::Refused].into(),
        Fate::Dropped => [Outcome::Dropped].into(),
    }
}

/// The node itself, one of its pods, a pod of another node, and somebody outside, in both families.
fn clients() -> [IpAddr; 8] {
    [
        v4(0, 0, 10),
        v4(244, 0, 3),
        v4(244, 1, 3),
        v4(1, 2, 3),
        v6(0xff, 0, 10),
        v6(0x10, 0, 3),
        v6(0x10, 1, 3),
        v6(0x0001, 2, 3),
    ]
}

fn packets() -> Vec<Packet> {
    let mut addresses = Vec::new();
    for host in 0..8 {
        addresses.extend([v4(96, 0, host), v4(97, 0, host), v4(203, 0, host)]);
        addresses.extend([v6(0x96, 0, host), v6(0xcb, 0, host)]);
    }
    for node in 0..NODES {
        addresses.extend([v4(0, 0, 10 + node), v6(0xff, 0, 10 + node)]);
    }
    let ports = [80, 81, 82, 83, 30_000, 30_001, 30_002];
    let mut packets = Vec::new();
    for to in addresses {
        for port in ports {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let from = clients()
                    .into_iter()
                    .filter(|from| from.is_ipv4() == to.is_ipv4());
                packets.extend(from.map(|from| Packet {
                    from,
                    to: SocketAddr::new(to, port),
                    protocol,
                }));
            }
        }
    }
    packets
}

/// Renders a random cluster by one back end, and asks it of every packet.
fn judged(judge: for<'a> fn(&'a Node<'a>) -> Judge<'a>, edits: &[Edit]) -> Result<(), TestCaseError> {
    let cluster = cluster(edits);
    let me = node_name(0);
    let state = compute(&cluster, &me);
    let own = cluster
        .node(&me)
        .map(|node| node.all_addresses.iter().copied().collect());
    let node = Node {
        state: &state,
        own: own.unwrap_or_default(),
    };
    let judge = judge(&node);
    let knows_nobody = state.services.pods.is_empty();
    for packet in packets() {
        // Nobody asks from an address of a node that there is not.
        let is_nodes = clients().iter().step_by(4).any(|me| *me == packet.from);
        if is_nodes && !node.is_own(packet.from) {
            continue;
        }
        // A node asks from the address that the way has, be it the tunnel's; and one that does not know who its pods are
        // leaves everybody's as it is.
        let settled = |outcome| match outcome {
            Outcome::To { endpoint, .. } if node.is_own(packet.from) || knows_nobody => Outcome::To {
                endpoint,
                keeps: true,
            },
            outcome => outcome,
        };
        let said: BTreeSet<Outcome> = judge(packet).into_iter().map(settled).collect();
        let wanted = expected(&cluster, &me, packet).into_iter().map(settled).collect();
        // Host ports are no services, and the table's, whatever carries these.
        let is_host_port = |outcome: &Outcome| match outcome {
            Outcome::To { endpoint, .. } => cluster.host_ports.values().any(|target| target == endpoint),
            _ => false,
        };
        if wanted == BTreeSet::from([Outcome::Untouched]) && !said.is_empty() && said.iter().all(is_host_port)
        {
            continue;
        }
        prop_assert_eq!(said, wanted, "{:?}", packet);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nftables_gives_packets_the_fate_the_oracle_says(edits in prop::collection::vec(edit(), 0..40)) {
        judged(nftables::judge, &edits)?;
    }

    #[test]
    fn iptables_gives_packets_the_fate_the_oracle_says(edits in prop::collection::vec(edit(), 0..40)) {
        judged(iptables::judge, &edits)?;
    }

    #[test]
    fn ipvs_gives_packets_the_fate_the_oracle_says(edits in prop::collection::vec(edit(), 0..40)) {
        judged(iptables::judge_beside_ipvs, &edits)?;
    }
}
