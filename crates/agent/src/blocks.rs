//! Gives blocks of pools back that this node does not need any more.
//!
//! Only the node itself knows that nothing lives in a block, so only it gives one back: first nothing is handed out of
//! it any more, then it goes out of the pool's status, with the version that was read. Until the watch has shown it gone
//! it stays closed, whatever came of the request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use podnet_core::NodeName;
use podnet_core::cluster::Block;
use podnet_core::ipam::{HeldRange, PoolId};
use serde_json::json;
use tokio::sync::watch;

use crate::cni_server::Readiness;
use crate::ipam::Leases;
use crate::parse;

/// How often to look.
const ROUND: Duration = Duration::from_secs(2);
/// How long nothing must have lived in a block. The pod that it was given for may not have come to its ADD yet.
const IDLE: Duration = Duration::from_secs(600);
/// The same for a block of one address: it follows its pod to another node, which waits for it.
const IDLE_SINGLE: Duration = Duration::from_secs(30);

/// Looks after this node's blocks until the sender goes.
pub async fn run(client: kube::Client, me: NodeName, leases: Arc<Leases>, ready: watch::Receiver<Readiness>) {
    let api: Api<DynamicObject> = Api::all_with(client, &parse::own_kind("IPPool", "ippools"));
    let mut empty_since: BTreeMap<IpNet, Instant> = BTreeMap::new();
    loop {
        let held = blocks(&ready.borrow());
        empty_since.retain(|range, _| held.iter().any(|(_, block)| block.range == *range));
        for (pool, block) in held {
            if !leases.is_empty(block.range) {
                empty_since.remove(&block.range);
                continue;
            }
            let since = *empty_since.entry(block.range).or_insert_with(Instant::now);
            if since.elapsed() < patience(&block) || !leases.close(block.range) {
                continue;
            }
            match give_back(&api, &pool, block.range, &me).await {
                Ok(()) => tracing::info!(pool, block = %block.range, "gave a block back"),
                // The next round tries again; a conflict means that another node was quicker with another block.
                Err(error) => {
                    tracing::debug!(pool, block = %block.range, %error, "a block is not given back yet")
                }
            }
        }
        tokio::time::sleep(ROUND).await;
        if ready.has_changed().is_err() {
            return;
        }
    }
}

fn blocks(readiness: &Readiness) -> Vec<(String, HeldRange)> {
    let Readiness::Ready(network) = readiness else {
        return Vec::new();
    };
    let ranges = network.addressing.ranges.iter();
    ranges
        .filter_map(|range| match &range.pool {
            PoolId::Pool(name) => Some((name.clone(), range.clone())),
            PoolId::Node => None,
        })
        .collect()
}

fn patience(block: &HeldRange) -> Duration {
    match block {
        HeldRange { open: false, .. } => Duration::ZERO,
        HeldRange { hosts, .. } if hosts.len() == 1 => IDLE_SINGLE,
        _ => IDLE,
    }
}

async fn give_back(api: &Api<DynamicObject>, pool: &str, range: IpNet, me: &NodeName) -> kube::Result<()> {
    let Some(object) = api.get_opt(pool).await? else {
        return Ok(());
    };
    let Some((_, Ok(parsed))) = parse::pool(&object) else {
        return Ok(());
    };
    let ours = |block: &Block| block.range == range && block.node == *me;
    if !parsed.blocks.iter().any(ours) {
        return Ok(());
    }
    let left: Vec<Block> = parsed
        .blocks
        .iter()
        .filter(|block| !ours(block))
        .cloned()
        .collect();
    let patch = json!({
        "metadata": {"resourceVersion": object.metadata.resource_version},
        "status": {"blocks": Block::write(&left)},
    });
    let params = PatchParams::default();
    api.patch_status(pool, &params, &Patch::Merge(patch))
        .await
        .map(drop)
}
