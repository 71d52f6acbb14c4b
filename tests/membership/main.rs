//! Which nodes may vote, on real servers: replaced ones, new clusters, clusters that lost power, clocks that were set. And tokens
//! over every loss of their counter.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod counter;
mod quarantine;
mod quorum;

use redlockd::proto;
use support::*;

/// Servers without persistence that nobody has used yet.
fn fresh(nodes: usize) -> Cluster {
    Cluster { nodes: (0..nodes).map(|_| Redis::start(&[])).collect(), fence: Redis::start(&[]) }
}

/// Leases of at most so many seconds, and nodes that stay out as long.
fn short(max_ttl: &'static str) -> [&'static str; 4] {
    ["--limits-max-ttl", max_ttl, "--limits-default-ttl", max_ttl]
}

async fn voting(proxy: &Proxy, count: u32) {
    until("the nodes to vote", || async { (proxy.nodes().await.voting == count).then_some(()) }).await;
}

async fn quarantined(proxy: &Proxy, node: usize) -> proto::NodeStatus {
    until("a node to be quarantined", || async {
        let node = proxy.node(node).await;
        (node.state() == proto::NodeState::Quarantined && node.quarantine_left.is_some()).then_some(node)
    })
    .await
}
