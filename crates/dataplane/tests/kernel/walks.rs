//! Random walks: a thousand clusters, edited at random. After every edit the kernel has what a fresh start would give it.

#[path = "../../../core/tests/clusters/mod.rs"]
mod clusters;
use podnet_core::Incremental;
use podnet_dataplane::{Dataplane, Kernel};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::common::Machine;
use clusters::{Edit, cluster, edit, node_name};

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
    let node = Machine::alone(&["10.0.0.10/24", "fd00:ff::a/64"]);
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
        node.run(|| walk(&begin, &edits));
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
