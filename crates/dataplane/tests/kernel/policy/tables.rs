//! How policies stand in the kernel's table, and what comes of others' changes to it.

use std::net::IpAddr;

use podnet_core::cluster::{Family, NetworkPolicy, ObjectName};
use podnet_dataplane::Dataplane;
use podnet_dataplane::nftables::Nftables;

use super::{Who, World, block, pods, policy, rule, tcp};
use crate::common::BackEnd;

fn some() -> NetworkPolicy {
    NetworkPolicy {
        ingress: Some(vec![
            rule(
                vec![pods("app=y"), block("10.0.0.0/8", &["10.244.1.0/24"])],
                vec![tcp(80, 81)],
            ),
            rule(vec![pods("app=z")], vec![tcp(81, 9000)]),
            rule(vec![], vec![tcp(443, 443)]),
        ]),
        egress: Some(vec![rule(vec![block("0.0.0.0/0", &[])], vec![])]),
        ..policy("app=x")
    }
}

#[test]
fn what_the_kernel_has_is_what_was_put_there() {
    let mut world = World::of(&["a"], 3);
    world.set([("a", some())]);
    // Another data plane reads it back and finds nothing to do.
    for node in 0..2 {
        assert!(
            world.lab.apply(node).is_nothing(),
            "{}",
            world.lab.nodes[node].nft()
        );
    }
    world.set([]);
    let empty = world.lab.nodes[0].nft();
    assert!(!empty.contains("policy-"), "{empty}");
    assert!(world.lab.apply(0).is_nothing());
}

#[test]
fn a_pod_that_comes_or_goes_changes_elements_only() {
    let mut world = World::of(&["a", "b"], 3);
    world.set([("a", some())]);
    let before = world.lab.nodes[0]
        .command("nft -s list table inet podnet | grep -c chain")
        .trim()
        .to_owned();
    let applied = {
        world.add(ObjectName::new("a", "3"), "y");
        world.apply()
    };
    // In two sets of each family: of whom port 80 is for, and of whom port 81 is.
    // Programs get the pod's sockets, and its link at each of its addresses.
    let rows = match super::on() {
        BackEnd::Ebpf => 3,
        _ => 0,
    };
    assert_eq!(
        applied[0].service_changes,
        4 + rows,
        "{}",
        world.lab.nodes[0].nft()
    );
    let after = world.lab.nodes[0]
        .command("nft -s list table inet podnet | grep -c chain")
        .trim()
        .to_owned();
    assert_eq!(before, after);
    world.agrees();
}

#[test]
fn what_others_change_is_missed_by_a_check_and_put_back() {
    let mut world = World::of(&["a"], 3);
    world.set([("a", some())]);
    let state = world.lab.state(0);
    let addresses: Vec<IpAddr> = [Family::V4, Family::V6]
        .map(|family| world.address(Who::Pod(0), family))
        .into();
    let gap = |world: &World| {
        world.lab.nodes[0].run(|| {
            let mut table = Nftables::open().unwrap();
            table
                .policy_gap(&state.policy, &addresses)
                .unwrap()
                .map(|gap| gap.to_string())
        })
    };
    assert_eq!(gap(&world), None);
    let address = addresses[0];
    let chains = world.lab.nodes[0]
        .command("nft list chains inet | grep -o 'chain ingress-[0-9a-f]*' | grep -v 'ingress-$'");
    let chain = chains
        .lines()
        .find(|line| line.len() > 30)
        .unwrap()
        .trim_start_matches("chain ")
        .to_owned();
    let sets = world.lab.nodes[0].command("nft list sets inet | grep -o 'blocks4-[0-9a-f]*'");
    let blocks = sets.lines().next().unwrap().to_owned();
    let maps = world.lab.nodes[0].command("nft list maps inet | grep -o 'ports-[0-9a-f]*'");
    let ports = maps.lines().next().unwrap().to_owned();
    for edit in [
        format!("delete element inet podnet ingress4 {{ {address} }}"),
        format!("insert rule inet podnet {chain} accept"),
        "flush chain inet podnet policy-ingress".to_owned(),
        format!("flush set inet podnet {blocks}"),
        format!("add element inet podnet {ports} {{ 9999 : accept }}"),
        "delete chain inet podnet policy-unplaced".to_owned(),
    ] {
        world.lab.nodes[0].command(&format!("nft '{edit}'"));
        let missing = gap(&world).unwrap_or_else(|| panic!("{edit} is not seen"));
        println!("{edit}: {missing}");
        let lab = &world.lab;
        let kernel = &mut world.kernels[0];
        let applied = lab.nodes[0].run(|| kernel.apply(&state).unwrap());
        assert!(!applied.is_nothing(), "{edit}");
        assert_eq!(gap(&world), None, "{edit}");
    }
    // Another pod's gap is none of this one's.
    world.lab.nodes[0].command(
        "nft 'add element inet podnet policed4 { 10.244.0.99 }; add element inet podnet ingress4 { 10.244.0.99 : drop }'",
    );
    assert_eq!(gap(&world), None);
}
