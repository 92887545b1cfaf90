//! Routes to pods in the underlay: a pod that keeps its address on the way outside must be answered. On a real network
//! the routers know the nodes' ranges; here they are learnt from the Node objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector;
use kube::runtime::{WatchStreamExt, watcher};
use podnet_linux::netlink::{Netlink, NetlinkError, Route, RouteFilter};

/// By this protocol number our routes are known.
const PROTOCOL: u8 = 114;

/// Keeps the routes for as long as the process lives.
pub(super) async fn follow(client: kube::Client, mut netlink: Netlink) {
    let nodes = kube::Api::<Node>::all(client);
    let (store, writer) = reflector::store();
    let events = watcher(nodes, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(reflector::reflector(writer, events));
    let mut known = None;
    while let Some(event) = events.next().await {
        // Until the first list is whole the store has nothing.
        if event.is_err() || matches!(event, Ok(watcher::Event::Init | watcher::Event::InitApply(_))) {
            continue;
        }
        let want = store.state().iter().flat_map(|node| ranges(node)).collect();
        if known.as_ref() == Some(&want) {
            continue;
        }
        match apply(&mut netlink, &want) {
            Ok(()) => known = Some(want),
            Err(error) => tracing::warn!(%error, "cannot set the underlay's routes to pods"),
        }
    }
}

/// A node's ranges, and its address of the same family.
fn ranges(node: &Node) -> Vec<(IpNet, IpAddr)> {
    let spec = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    let ranges = spec
        .into_iter()
        .flatten()
        .filter_map(|range| range.parse::<IpNet>().ok());
    let status = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let addresses: Vec<IpAddr> = status
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect();
    ranges
        .filter_map(|range| {
            let family = |address: &&IpAddr| address.is_ipv4() == range.addr().is_ipv4();
            Some((range.trunc(), *addresses.iter().find(family)?))
        })
        .collect()
}

fn apply(netlink: &mut Netlink, want: &BTreeMap<IpNet, IpAddr>) -> Result<(), NetlinkError> {
    let ours = RouteFilter {
        protocol: Some(PROTOCOL),
        ..RouteFilter::default()
    };
    let stale = netlink.routes(ours)?.into_iter();
    let stale = stale.filter(|route| route.via != want.get(&route.destination).copied());
    let removals: Vec<_> = stale.map(|route| route.delete()).collect();
    let additions = want
        .iter()
        .map(|(range, node)| Route::via(*range, *node, None, PROTOCOL).replace());
    netlink.apply(removals.into_iter().chain(additions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_behind_the_nodes_address_of_its_family() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "node1"},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "nonsense"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "node1"},
                {"type": "InternalIP", "address": "172.30.0.11"},
                {"type": "InternalIP", "address": "fd30::b"},
            ]},
        }))
        .unwrap();
        let expected = [("10.244.1.0/24", "172.30.0.11"), ("fd00:1::/64", "fd30::b")];
        let expected = expected.map(|(range, via)| (range.parse().unwrap(), via.parse().unwrap()));
        assert_eq!(ranges(&node), expected);
        assert!(ranges(&Node::default()).is_empty());
    }
}
