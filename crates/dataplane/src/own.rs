//! What this node has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_linux::netlink::Netlink;

/// The addresses of this node, whether the API knows them or not; at least those that are `known`.
pub(crate) fn addresses(known: impl IntoIterator<Item = IpAddr>) -> BTreeSet<IpAddr> {
    let found = Netlink::open().and_then(|mut netlink| netlink.addresses(None));
    let found = found.into_iter().flatten().map(|address| address.net.addr());
    found.chain(known).collect()
}
