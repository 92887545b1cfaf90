//! Random walks: a thousand clusters, edited at random. After every edit the kernel has what a fresh start would give it.

#[path = "../../../core/tests/clusters/mod.rs"]
mod clusters;
use podnet_core::Incremental;
use podnet_core::cluster::DataplaneName;
use podnet_dataplane::Dataplane;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::common::{BackEnd, Machine};
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

on_every_back_end!(random_clusters_after_every_edit_the_kernel_has_what_a_fresh_start_gives);

fn random_clusters_after_every_edit_the_kernel_has_what_a_fresh_start_gives(on: BackEnd) {
    // Beside the table a step costs a process or several, and in the virtual machine ten times as much.
    let cases = match on {
        BackEnd::Nftables => 1000,
        BackEnd::Ipvs => 8,
        _ => 60,
    };
    walks(on, cases);
}
