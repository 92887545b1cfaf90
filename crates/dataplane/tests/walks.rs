//! Random walks: a thousand clusters, edited at random. After every edit the kernel has what a fresh start would give it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../core/tests/clusters/mod.rs"]
mod clusters;

use podnet_core::Incremental;
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::netlink::{Address, LinkChange, Netlink, NewLink, NewLinkKind};
use podnet_linux::ns::{Kind, Namespace};
use podnet_linux::sysctl;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use clusters::{Edit, cluster, edit, node_name};

/// The node's addresses, on a link to other nodes.
fn underlay() {
    // An address is there at once.
    sysctl::set("net/ipv6/conf/default/accept_dad", "0").unwrap();
    sysctl::set("net/ipv6/conf/all/accept_dad", "0").unwrap();
    let mut netlink = Netlink::open().unwrap();
    netlink.request(LinkChange::named("lo").up(true).apply()).unwrap();
    let eth0 = NewLink {
        up: true,
        ..NewLink::new("eth0", NewLinkKind::Bridge)
    };
    netlink.request(eth0.create()).unwrap();
    let index = netlink.link("eth0").unwrap().unwrap().index;
    for address in ["10.0.0.10/24", "fd00:ff::a/64"] {
        netlink
            .request(Address::new(index, address.parse().unwrap()).add())
            .unwrap();
    }
}

fn walk(begin: &[Edit], edits: &[Edit]) {
    let mut wanted = Incremental::new(cluster(begin), node_name(0));
    let mut kernel = Kernel::open(None).unwrap();
    kernel.apply(&wanted.compute()).unwrap();
    for edit in edits {
        edit.apply(&mut wanted.cluster);
        let state = wanted.compute();
        let applied = kernel.follow(&state).unwrap();
        assert!(applied.refused.is_empty(), "{edit:?}: {applied:?}");
        // By one that knows nothing, and reads all back.
        let again = Kernel::open(None).unwrap().apply(&state).unwrap();
        assert!(again.is_nothing(), "{edit:?}: {again:?}");
    }
}

#[test]
fn a_thousand_clusters_after_every_edit_the_kernel_has_what_a_fresh_start_gives() {
    let namespace = Namespace::create(Kind::Net).unwrap();
    namespace.run(underlay).unwrap();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let walks = (
        prop::collection::vec(edit(), 0..20),
        prop::collection::vec(edit(), 1..4),
    );
    // One kernel for all walks: each begins with what the last one left.
    let result = runner.run(&walks, |(begin, edits)| {
        namespace.run(|| walk(&begin, &edits)).unwrap();
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
