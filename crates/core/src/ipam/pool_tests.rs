use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::*;
use crate::cluster::{Block, Cluster, ClusterConfig, IpPool, Namespace, Node, NodeName, PodRanges, Routing};
use crate::route::Hop;
use crate::state::NodeState;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Nodes n1 to n3 with ranges 10.244.N.0/24 and fd00:N::/64, labelled zone=aN; namespaces pay (team=payments) and web.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig {
        cluster_cidrs: vec![net("10.244.0.0/16")],
        routing: Routing::Direct,
        ..ClusterConfig::default()
    });
    for n in 1..=3 {
        let ranges =
            PodRanges::new([net(&format!("10.244.{n}.0/24")), net(&format!("fd00:{n}::/64"))]).unwrap();
        let internal = [
            format!("172.30.0.{n}").parse().unwrap(),
            format!("fd30::{n}").parse().unwrap(),
        ];
        let mut node = Node::new(name(&format!("n{n}")), &internal, ranges);
        node.labels = BTreeMap::from([("zone".into(), format!("a{n}"))]);
        cluster.nodes.insert(node.name.clone(), Ok(node));
    }
    let labels = BTreeMap::from([("team".to_owned(), "payments".to_owned())]);
    cluster
        .namespaces
        .insert("pay".into(), Namespace::new("pay", labels));
    cluster
        .namespaces
        .insert("web".into(), Namespace::new("web", BTreeMap::new()));
    cluster
}

fn add(cluster: &mut Cluster, pool: &str, created: i64, spec: Value) {
    let pool = IpPool::read(pool, created, false, &spec, &Value::Null);
    cluster.ip_pools.insert(pool.name.clone(), Ok(pool));
}

fn payments(ranges: Value) -> Value {
    json!({
        "ranges": ranges, "blockPrefixLength": {"ipv4": 30, "ipv6": 126},
        "namespaceSelector": {"matchLabels": {"team": "payments"}},
    })
}

fn claims(list: &[(&str, &str, usize)]) -> Vec<Claim> {
    let one = |(node, namespace, count): &(&str, &str, usize)| {
        let claim = Claim {
            node: name(node),
            namespace: (*namespace).into(),
            addresses: Vec::new(),
        };
        vec![claim; *count]
    };
    list.iter().flat_map(one).collect()
}

/// Grants, and puts the outcome into the cluster as the controller does.
fn settle(cluster: &mut Cluster, claims: &[Claim]) -> Vec<Grant> {
    let grants = grant(cluster, claims, "now", |since| since == "long ago");
    for grant in &grants {
        if let Some(Ok(pool)) = cluster.ip_pools.get_mut(&grant.pool) {
            pool.blocks.clone_from(&grant.blocks);
        }
    }
    grants
}

fn blocks(cluster: &Cluster, pool: &str) -> Vec<String> {
    let pool = cluster.ip_pools[pool].as_ref().unwrap();
    let text = |block: &Block| format!("{} {}", block.range, block.node);
    pool.blocks.iter().map(text).collect()
}

fn state(cluster: &Cluster, node: &str) -> NodeState {
    crate::compute(cluster, &name(node))
}

#[test]
fn a_node_gets_as_many_blocks_as_its_pods_need() {
    let mut cluster = cluster();
    add(&mut cluster, "pay", 1, payments(json!(["10.90.0.0/24"])));
    settle(&mut cluster, &claims(&[("n1", "web", 5)]));
    assert_eq!(
        blocks(&cluster, "pay"),
        [""; 0],
        "web is none of the pool's namespaces"
    );
    let wanted = claims(&[("n1", "pay", 5), ("n2", "pay", 1)]);
    settle(&mut cluster, &wanted);
    // Of the first block two addresses are the range's network and gateway.
    let expected = ["10.90.0.0/30 n1", "10.90.0.4/30 n1", "10.90.0.8/30 n2"];
    assert_eq!(blocks(&cluster, "pay"), expected);
    let again = settle(&mut cluster, &wanted);
    assert_eq!(blocks(&cluster, "pay"), expected, "nothing moves");
    assert!(again[0].wanting.is_empty());
    settle(&mut cluster, &[]);
    assert_eq!(
        blocks(&cluster, "pay"),
        expected,
        "only the node itself gives a block back"
    );
}

#[test]
fn pools_are_chosen_by_namespace_and_node_selector() {
    let mut cluster = cluster();
    add(
        &mut cluster,
        "all",
        1,
        json!({"ranges": ["10.91.0.0/24"], "nodeSelector": {"matchLabels": {"zone": "a2"}}}),
    );
    add(&mut cluster, "pay", 2, payments(json!(["10.90.0.0/24"])));
    let chosen = |node: &str, namespace: &str| {
        let state = state(&cluster, node);
        let sources = state.addressing.sources(namespace).unwrap();
        let ids = sources
            .iter()
            .map(|(_, ids)| ids.iter().map(PoolId::to_string).collect::<Vec<_>>().join(">"));
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen("n1", "web"), "node node");
    assert_eq!(chosen("n1", "pay"), "pay node", "the pool has no IPv6");
    assert_eq!(chosen("n2", "web"), "all node");
    assert_eq!(
        chosen("n2", "pay"),
        "pay>all node",
        "what chooses the namespace comes first"
    );
    assert_eq!(chosen("n2", ""), "all node", "a container of no namespace");
    assert!(
        state(&cluster, "n1").addressing.sources("new").is_none(),
        "not known yet"
    );
    cluster.ip_pools.remove("pay");
    assert!(
        state(&cluster, "n1").addressing.sources("new").is_some(),
        "and no matter"
    );
}

#[test]
fn other_nodes_have_routes_to_the_blocks() {
    let mut cluster = cluster();
    add(
        &mut cluster,
        "pay",
        1,
        payments(json!(["10.90.0.0/24", "fd00:90::/120"])),
    );
    settle(&mut cluster, &claims(&[("n1", "pay", 1)]));
    assert_eq!(blocks(&cluster, "pay"), ["10.90.0.0/30 n1", "fd00:90::/126 n1"]);
    let routes = state(&cluster, "n2").routing.routes;
    let via = |text: &str| Some(Hop::Via(text.parse::<IpAddr>().unwrap()));
    assert_eq!(routes.get(&net("10.90.0.0/30")).copied(), via("172.30.0.1"));
    assert_eq!(routes.get(&net("fd00:90::/126")).copied(), via("fd30::1"));
    assert_eq!(routes.get(&net("10.90.0.0/24")), Some(&Hop::Unreachable));
    let own = state(&cluster, "n1");
    assert_eq!(
        own.routing.routes.get(&net("10.90.0.0/30")),
        Some(&Hop::Unreachable)
    );
    assert_eq!(
        own.addressing.to_string(),
        "block 10.90.0.0/30 of pool pay\nblock fd00:90::/126 of pool pay\n"
    );
    cluster.config.routing = Routing::default();
    let tunnelled = state(&cluster, "n2").routing.routes;
    assert_eq!(
        tunnelled.get(&net("10.90.0.0/30")),
        tunnelled.get(&net("10.244.1.0/24"))
    );
}

#[test]
fn pods_of_a_pool_leave_the_cluster_with_their_nodes_address_and_reach_pods_with_their_own() {
    let mut cluster = cluster();
    cluster.config.masquerade = Some(Default::default());
    add(&mut cluster, "pay", 1, payments(json!(["10.90.0.0/24"])));
    let masquerade = state(&cluster, "n1").masquerade.unwrap();
    assert!(
        masquerade.pods.contains(&net("10.90.0.0/24")) && masquerade.except.contains(&net("10.90.0.0/24"))
    );
}

#[test]
fn a_pool_that_is_in_the_way_is_told_and_hurts_itself_only() {
    let mut cluster = cluster();
    add(&mut cluster, "old", 1, json!({"ranges": ["10.90.0.0/24"]}));
    add(&mut cluster, "a-new", 2, json!({"ranges": ["10.90.0.128/25"]}));
    add(&mut cluster, "nodes", 3, json!({"ranges": ["10.244.1.0/24"]}));
    add(&mut cluster, "bad", 4, json!({"ranges": ["x"]}));
    let problems: Vec<String> = state(&cluster, "n1")
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        problems,
        [
            "IPPool a-new: spec.ranges: 10.90.0.128/25 overlaps 10.90.0.0/24, a range of the older pool old",
            "IPPool bad: spec.ranges: \"x\" is no range such as 10.90.0.0/20",
            "IPPool nodes: spec.ranges: 10.244.1.0/24 overlaps 10.244.0.0/16, the cluster's range",
        ]
    );
    settle(&mut cluster, &claims(&[("n1", "web", 1)]));
    assert_eq!(blocks(&cluster, "old"), ["10.90.0.0/26 n1"]);
    assert!(blocks(&cluster, "a-new").is_empty() && blocks(&cluster, "bad").is_empty());
}

#[test]
fn a_pool_that_is_closed_keeps_its_blocks_and_routes_but_gives_nothing() {
    let mut cluster = cluster();
    add(&mut cluster, "pay", 1, payments(json!(["10.90.0.0/24"])));
    settle(&mut cluster, &claims(&[("n1", "pay", 1)]));
    let Some(Ok(pool)) = cluster.ip_pools.get_mut("pay") else {
        panic!()
    };
    let open = pool.clone();
    let disabled = |pool: &mut IpPool| pool.spec.as_mut().unwrap().disabled = true;
    let deleting = |pool: &mut IpPool| pool.deleting = true;
    let broken = |pool: &mut IpPool| pool.spec = Err("broken".into());
    let moved = |pool: &mut IpPool| pool.spec.as_mut().unwrap().ranges = vec![net("10.91.0.0/24")];
    for change in [disabled, deleting, broken, moved] {
        let mut pool = open.clone();
        change(&mut pool);
        cluster.ip_pools.insert("pay".into(), Ok(pool));
        let state = state(&cluster, "n1");
        let block = state
            .addressing
            .ranges
            .iter()
            .find(|range| range.range == net("10.90.0.0/30"))
            .unwrap();
        assert!(!block.open);
        assert!(
            crate::compute(&cluster, &name("n2"))
                .routing
                .routes
                .contains_key(&net("10.90.0.0/30"))
        );
        settle(&mut cluster, &claims(&[("n2", "pay", 1)]));
        assert_eq!(blocks(&cluster, "pay")[0], "10.90.0.0/30 n1");
    }
}

#[test]
fn blocks_of_a_node_that_is_gone_come_back_after_a_grace_period() {
    let mut cluster = cluster();
    add(&mut cluster, "pay", 1, payments(json!(["10.90.0.0/29"])));
    settle(&mut cluster, &claims(&[("n1", "pay", 2), ("n2", "pay", 3)]));
    assert_eq!(blocks(&cluster, "pay"), ["10.90.0.0/30 n1", "10.90.0.4/30 n2"]);
    let node = cluster.nodes.remove(&name("n1")).unwrap();
    let waiting = claims(&[("n3", "pay", 1)]);
    let grants = settle(&mut cluster, &waiting);
    assert_eq!(grants[0].wanting, [name("n3")], "the block rests");
    assert_eq!(grants[0].blocks[0].gone.as_deref(), Some("now"));
    cluster.nodes.insert(name("n1"), node.clone());
    let grants = settle(&mut cluster, &waiting);
    assert_eq!(
        grants[0].blocks[0].gone, None,
        "a node that comes back has it again"
    );
    cluster.nodes.remove(&name("n1"));
    if let Some(Ok(pool)) = cluster.ip_pools.get_mut("pay") {
        pool.blocks[0].gone = Some("long ago".into());
    }
    settle(&mut cluster, &waiting);
    assert_eq!(blocks(&cluster, "pay"), ["10.90.0.0/30 n3", "10.90.0.4/30 n2"]);
}

#[test]
fn what_one_pool_lacks_the_next_one_gives() {
    let mut cluster = cluster();
    add(&mut cluster, "small", 1, payments(json!(["10.90.0.0/30"])));
    add(
        &mut cluster,
        "all",
        2,
        json!({"ranges": ["10.91.0.0/24"], "blockPrefixLength": {"ipv4": 28}}),
    );
    let grants = settle(&mut cluster, &claims(&[("n1", "pay", 4), ("n1", "web", 11)]));
    assert_eq!(blocks(&cluster, "small"), ["10.90.0.0/30 n1"]);
    // 3 of pay and 11 of web need 14: the first block has 14.
    assert_eq!(blocks(&cluster, "all"), ["10.91.0.0/28 n1"]);
    assert!(grants.iter().all(|grant| grant.wanting.is_empty()));
}

#[test]
fn a_static_address_of_a_pool_takes_its_block_to_the_pods_node() {
    let mut cluster = cluster();
    let spec =
        json!({"ranges": ["10.90.0.0/24"], "blockPrefixLength": {"ipv4": 32}, "reserved": ["10.90.0.2"]});
    add(&mut cluster, "names", 1, spec);
    let mut claim = claims(&[("n2", "web", 1)]);
    claim[0].addresses = vec!["10.90.0.77".parse().unwrap()];
    settle(&mut cluster, &claim);
    assert_eq!(blocks(&cluster, "names"), ["10.90.0.77/32 n2"]);
    claim[0].node = name("n1");
    settle(&mut cluster, &claim);
    assert_eq!(
        blocks(&cluster, "names"),
        ["10.90.0.77/32 n2"],
        "not before n2 has given it back"
    );
    settle(&mut cluster, &claims(&[("n3", "web", 1)]));
    let expected = ["10.90.0.3/32 n3", "10.90.0.77/32 n2"];
    assert_eq!(
        blocks(&cluster, "names"),
        expected,
        "a block without a usable address is not given"
    );
}

mod any_order {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever nodes come, go and want: no two blocks overlap, and none moves from one node to another.
        #[test]
        fn blocks_never_overlap_and_never_move(
            rounds in prop::collection::vec((prop::collection::vec((1u8..=3, any::<bool>()), 0..12), 0u8..=3), 1..8),
        ) {
            let mut cluster = cluster();
            let nodes = cluster.nodes.clone();
            add(&mut cluster, "pay", 1, payments(json!(["10.90.0.0/27"])));
            add(&mut cluster, "all", 2, json!({"ranges": ["10.91.0.0/28"], "blockPrefixLength": {"ipv4": 31}}));
            for (wants, missing) in rounds {
                cluster.nodes = nodes.clone();
                cluster.nodes.remove(&name(&format!("n{}", missing.max(1))));
                let before: Vec<Block> =
                    cluster.valid_ip_pools().flat_map(|pool| pool.blocks.clone()).collect();
                let list: Vec<_> = wants.iter().map(|(n, pay)| (format!("n{n}"), if *pay { "pay" } else { "web" })).collect();
                let list: Vec<_> = list.iter().map(|(node, namespace)| (node.as_str(), *namespace, 1)).collect();
                settle(&mut cluster, &claims(&list));
                let mut seen = NetSet::default();
                let after: Vec<Block> = cluster.valid_ip_pools().flat_map(|pool| pool.blocks.clone()).collect();
                for block in &after {
                    prop_assert!(seen.insert(block.range, ()), "{block:?} overlaps");
                }
                for block in before {
                    prop_assert!(after.iter().any(|other| other.range == block.range && other.node == block.node));
                }
            }
        }
    }
}
