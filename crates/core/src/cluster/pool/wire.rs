//! The object as the API has it. The kind is podnet's own, and two shells read it; so it is read here.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Block, IpPool, PoolSpec};
use crate::cluster::NodeName;
use crate::cluster::node::is_unroutable;
use crate::cluster::selector_object::{SelectorObject, selector};

/// Blocks of 64 addresses, where the pool does not say: enough for most nodes, and few routes.
const DEFAULT_BLOCKS: (u8, u8) = (26, 122);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecObject {
    #[serde(default)]
    ranges: Vec<String>,
    #[serde(default)]
    block_prefix_length: Lengths,
    namespace_selector: Option<SelectorObject>,
    node_selector: Option<SelectorObject>,
    #[serde(default)]
    reserved: Vec<String>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Deserialize, Default)]
struct Lengths {
    ipv4: Option<u8>,
    ipv6: Option<u8>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockObject {
    range: String,
    node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_gone_since: Option<String>,
}

impl IpPool {
    /// Reads an object's `spec` and `status`. What is wrong hurts that part only.
    pub fn read(name: impl Into<String>, created: i64, deleting: bool, spec: &Value, status: &Value) -> Self {
        let mut pool = IpPool {
            name: name.into(),
            created,
            deleting,
            spec: PoolSpec::read(spec),
            blocks: Vec::new(),
            torn: Vec::new(),
        };
        for value in status["blocks"].as_array().into_iter().flatten() {
            match block(value) {
                Ok(block) => pool.blocks.push(block),
                Err(why) => pool.torn.push(format!("status.blocks: {why}")),
            }
        }
        pool.blocks.sort();
        pool.blocks.dedup();
        pool
    }
}

impl Block {
    /// As the API has them.
    pub fn write(blocks: &[Block]) -> Value {
        let object = |block: &Block| {
            let object = BlockObject {
                range: block.range.to_string(),
                node: block.node.to_string(),
                node_gone_since: block.gone.clone(),
            };
            json!(object)
        };
        blocks.iter().map(object).collect()
    }
}

fn block(value: &Value) -> Result<Block, String> {
    let object: BlockObject = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let node = NodeName::new(object.node).map_err(|error| error.to_string())?;
    let range = range("range", &object.range)?;
    Ok(Block {
        range,
        node,
        gone: object.node_gone_since,
    })
}

impl PoolSpec {
    fn read(value: &Value) -> Result<Self, String> {
        let object: SpecObject = match value {
            Value::Null => SpecObject::default(),
            value => serde_json::from_value(value.clone()).map_err(|error| format!("spec: {error}"))?,
        };
        let ranges = ranges("spec.ranges", &object.ranges)?;
        if ranges.is_empty() {
            return Err("spec.ranges is empty: a pool needs a range such as 10.90.0.0/20".into());
        }
        Ok(PoolSpec {
            block_lengths: lengths(&object.block_prefix_length, &ranges)?,
            ranges,
            namespaces: selector("spec.namespaceSelector", object.namespace_selector)?,
            nodes: selector("spec.nodeSelector", object.node_selector)?,
            reserved: reserved(&object.reserved)?,
            disabled: object.disabled,
        })
    }
}

fn lengths(wanted: &Lengths, ranges: &[IpNet]) -> Result<(u8, u8), String> {
    let (v4, v6) = (
        wanted.ipv4.unwrap_or(DEFAULT_BLOCKS.0),
        wanted.ipv6.unwrap_or(DEFAULT_BLOCKS.1),
    );
    let wrong = |range: &&IpNet| {
        let (length, chosen) = match range {
            IpNet::V4(_) => (v4, wanted.ipv4),
            IpNet::V6(_) => (v6, wanted.ipv6),
        };
        length > range.max_prefix_len() || chosen.is_some_and(|chosen| chosen < range.prefix_len())
    };
    match ranges.iter().find(wrong) {
        None => Ok((v4, v6)),
        Some(range) => Err(format!(
            "spec.blockPrefixLength: blocks of that length cannot be cut from {range}: choose {} to {}",
            range.prefix_len(),
            range.max_prefix_len()
        )),
    }
}

fn range(field: &str, text: &str) -> Result<IpNet, String> {
    let range: IpNet = text
        .parse()
        .map_err(|_| format!("{field}: {text:?} is no range such as 10.90.0.0/20"))?;
    if range.addr() != range.network() {
        let clean = range.trunc();
        return Err(format!(
            "{field}: {range} has bits set beyond its prefix; write {clean}"
        ));
    }
    if is_unroutable(range.addr()) || range.prefix_len() == 0 {
        return Err(format!("{field}: {range} is no range for pods"));
    }
    Ok(range)
}

fn ranges(field: &str, texts: &[String]) -> Result<Vec<IpNet>, String> {
    let mut ranges: Vec<IpNet> = Vec::new();
    for text in texts {
        let range = range(field, text)?;
        if let Some(other) = ranges
            .iter()
            .find(|other| other.contains(&range) || range.contains(*other))
        {
            return Err(format!("{field}: {range} and {other} overlap"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// Single addresses or ranges.
fn reserved(texts: &[String]) -> Result<Vec<IpNet>, String> {
    let parse = |text: &String| {
        let net = text.parse::<IpNet>().map(|net| net.trunc());
        net.or_else(|_| text.parse().map(|address: std::net::IpAddr| address.into()))
            .map_err(|_| {
                format!("spec.reserved: {text:?} is no address such as 10.90.0.10 and no range such as 10.90.1.0/28")
            })
    };
    texts.iter().map(parse).collect()
}
