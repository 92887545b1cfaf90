//! Random walks: a thousand clusters, edited at random. After every edit the kernel has what a fresh start would give it.

#[path = "../../../core/tests/clusters/mod.rs"]
mod clusters;
use podnet_core::Incremental;
use podnet_core::cluster::{DataplaneName, Family, Routing};
use podnet_dataplane::Dataplane;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::common::{BackEnd, Lab, Machine};
use clusters::{Edit, cluster, edit, node_name};

fn walk(node: &Machine, name: DataplaneName, begin: &[Edit], edits: &[Edit]) {
    let mut wanted = Incremental::new(cluster(begin), node_name(0));
    let mut kernel = node.kernel(name);
    kernel.apply(&wanted.compute()).unwrap();
    for edit in edits {
        edit.apply(&mut wanted.cluster);
        let state = wanted.compute();
        let applied = kernel.follow(&state).unwrap();
        assert!(applied.refused.is_empty(), "{edit:?}: {applied:?}");
        // By one that knows nothing, and reads all back.
        let again = node.kernel(name).apply(&state).unwrap();
        assert!(again.is_nothing(), "{edit:?}: {again:?}");
    }
}

fn walks(on: BackEnd, cases: u32) {
    let node = Machine::alone(&["10.0.0.10/24", "fd00:ff::a/64"]);
    on.prime(&node);
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let walks = (
        prop::collection::vec(edit(), 0..20),
        prop::collection::vec(edit(), 1..4),
    );
    // One kernel for all walks: each begins with what the last one left.
    let result = runner.run(&walks, |(begin, edits)| {
        node.run(|| walk(&node, on.name(), &begin, &edits));
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

on_every_back_end!(
    random_clusters_after_every_edit_the_kernel_has_what_a_fresh_start_gives,
    an_endpoints_change_is_as_much_among_many_services_as_among_few,
);

fn random_clusters_after_every_edit_the_kernel_has_what_a_fresh_start_gives(on: BackEnd) {
    // Beside the table a step costs a process or several, and in the virtual machine ten times as much.
    let cases = match on {
        BackEnd::Nftables => 1000,
        BackEnd::Ipvs => 8,
        _ => 60,
    };
    walks(on, cases);
}

/// Counted in what the kernel, or the proxy, is told.
fn an_endpoints_change_is_as_much_among_many_services_as_among_few(on: BackEnd) {
    let told = [2, 200].map(|services| {
        let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(on);
        for host in 1..=services {
            lab.exposed(host, &[(0, 2), (0, 3)], |_| {});
        }
        let mut wanted = Incremental::new(lab.cluster.clone(), node_name(0));
        let node = &lab.nodes[0];
        let all = wanted.compute();
        let mut kernel = node.run(|| {
            let mut kernel = node.kernel(on.name());
            assert!(kernel.apply(&all).unwrap().service_changes > usize::from(services));
            kernel
        });
        lab.endpoints(1, &[(0, 2), (0, 4)], &[]);
        wanted.cluster.slices = lab.cluster.slices.clone();
        let changed = wanted.compute();
        lab.nodes[0].run(|| kernel.follow(&changed).unwrap().service_changes)
    });
    assert!(told[0] > 0);
    assert_eq!(told[0], told[1]);
}
