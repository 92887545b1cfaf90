use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn read(spec: Value) -> Result<PoolSpec, String> {
    IpPool::read("p", 0, false, &spec, &Value::Null).spec
}

#[test]
fn a_pool_is_read_with_its_blocks() {
    let spec = json!({
        "ranges": ["10.90.0.0/20", "fd00:90::/108"],
        "blockPrefixLength": {"ipv4": 28},
        "namespaceSelector": {"matchLabels": {"team": "payments"}},
        "nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["b"]}]},
        "reserved": ["10.90.0.10", "10.90.1.0/28"],
    });
    let status = json!({"blocks": [
        {"range": "10.90.0.16/28", "node": "b"}, {"range": "10.90.0.0/28", "node": "a"}, {"range": "?", "node": "a"},
    ]});
    let pool = IpPool::read("p", 7, false, &spec, &status);
    let parsed = pool.spec.unwrap();
    assert_eq!(parsed.block_length(parsed.ranges[0]), 28);
    assert_eq!(parsed.block_length(parsed.ranges[1]), 122);
    assert_eq!(parsed.block_length("10.0.0.0/30".parse().unwrap()), 30);
    let labels =
        |text: &str| BTreeMap::from([text.split_once('=').map(|(k, v)| (k.into(), v.into())).unwrap()]);
    let (namespaces, nodes) = (parsed.namespaces.unwrap(), parsed.nodes.unwrap());
    assert!(namespaces.matches(&labels("team=payments")) && !namespaces.matches(&labels("team=web")));
    assert!(nodes.matches(&labels("zone=a")) && !nodes.matches(&labels("zone=b")));
    assert_eq!(pool.blocks[0].node.as_str(), "a");
    assert_eq!(pool.blocks.len(), 2, "a torn entry hurts itself only");
    assert_eq!(pool.torn.len(), 1);
}

#[test]
fn a_malformed_pool_says_what_is_wrong_and_keeps_its_blocks() {
    for (spec, why) in [
        (
            json!({}),
            "spec.ranges is empty: a pool needs a range such as 10.90.0.0/20",
        ),
        (
            json!({"ranges": 7}),
            "spec: invalid type: integer `7`, expected a sequence",
        ),
        (
            json!({"ranges": ["10.90.0.0"]}),
            "spec.ranges: \"10.90.0.0\" is no range such as 10.90.0.0/20",
        ),
        (
            json!({"ranges": ["10.90.0.1/20"]}),
            "spec.ranges: 10.90.0.1/20 has bits set beyond its prefix; write 10.90.0.0/20",
        ),
        (
            json!({"ranges": ["127.0.0.0/8"]}),
            "spec.ranges: 127.0.0.0/8 is no range for pods",
        ),
        (
            json!({"ranges": ["10.0.0.0/8", "10.1.0.0/16"]}),
            "spec.ranges: 10.1.0.0/16 and 10.0.0.0/8 overlap",
        ),
        (
            json!({"ranges": ["10.90.0.0/24"], "blockPrefixLength": {"ipv4": 20}}),
            "spec.blockPrefixLength: blocks of that length cannot be cut from 10.90.0.0/24: choose 24 to 32",
        ),
        (
            json!({"ranges": ["10.90.0.0/24"], "reserved": ["all"]}),
            "spec.reserved: \"all\" is no address such as 10.90.0.10 and no range such as 10.90.1.0/28",
        ),
        (
            json!({"ranges": ["10.90.0.0/24"], "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
            "spec.nodeSelector: operator \"Near\" is none of In, NotIn, Exists and DoesNotExist",
        ),
    ] {
        assert_eq!(read(spec).unwrap_err(), why);
    }
    let status = json!({"blocks": [{"range": "10.90.0.0/28", "node": "a"}]});
    let pool = IpPool::read("p", 0, false, &json!({"ranges": []}), &status);
    assert!(pool.spec.is_err());
    assert_eq!(pool.blocks.len(), 1);
    assert_eq!(Block::write(&pool.blocks), status["blocks"]);
}
