//! Clocks that are set while their servers run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::support::clock::Clock;

/// A lease stands on nodes 0, 1 and 2 only. The clocks of so many of them are set ahead by more than it lasts, so its keys end
/// there; nodes 3 and 4 are free. Were it for votes, anybody could have the lock.
async fn clocks_are_set(stepped: usize) {
    let clocks: Vec<Clock> = (0..5).map(|_| Clock::new()).collect();
    let nodes = clocks.iter().map(|clock| Redis::start_in(&[], &[], clock.environment())).collect();
    let cluster = Cluster { nodes, fence: Redis::start(&[]) };
    let flags = short("30s");
    let (holder, rival) = (Proxy::start(&cluster, &flags).await, Proxy::start(&cluster, &flags).await);
    voting(&holder, 5).await;
    voting(&rival, 5).await;

    cluster.nodes[3].stop();
    cluster.nodes[4].stop();
    let sent = Instant::now();
    let request = || proto::AcquireRequest { ttl: seconds(30), ..want("orders/42") };
    let held = granted(&mut holder.client().await, request()).await;
    let ends = sent + std_duration(held.served_for) + std_duration(held.validity);
    // Where it was not set in time it shall not be set later.
    for node in [3, 4] {
        cluster.nodes[node].resume();
    }
    until("all nodes to answer", || async {
        let up =
            |nodes: proto::ListNodesResponse| nodes.nodes.iter().filter(|node| node.state() == proto::NodeState::Up).count();
        (up(holder.nodes().await) == 6 && up(rival.nodes().await) == 6).then_some(())
    })
    .await;
    holder.idle().await;
    for node in [3, 4] {
        cluster.nodes[node].cli(&["DEL", "lock:orders/42"]);
    }

    let load = Load::on(&rival).await;
    load.goes_on().await;
    for clock in &clocks[..stepped] {
        clock.shift(40_000_000);
    }
    for node in &cluster.nodes[..stepped] {
        assert_eq!(node.pttl("orders/42"), None, "its key has ended before its time");
    }
    let mut tries = 0;
    let mut client = rival.client().await;
    while Instant::now() + std::time::Duration::from_secs(2) < ends && tries < 400 {
        let answer = client.acquire(request()).await.map(|answer| answer.into_inner().outcome);
        assert!(!matches!(answer, Ok(Some(proto::acquire_response::Outcome::Granted(_)))), "two hold it, after {tries} tries");
        tries += 1;
    }
    assert!(tries > 20, "{tries} tries only");
    for node in 0..stepped {
        for proxy in [&holder, &rival] {
            let status = quarantined(proxy, node).await;
            says(&status.detail, &["clock was set"]);
        }
        assert!(rival.node(node).await.votes_lost > 0, "it was asked, and did not count");
    }
    load.goes_on().await;
    println!("{stepped} clocks set: {tries} tries in vain while {} other grants went on", load.end().await);
    assert_eq!(rival.nodes().await.voting as usize, 5 - stepped);
}

/// Takes and releases other locks all the time.
struct Load {
    stop: Arc<AtomicBool>,
    grants: Arc<AtomicUsize>,
    worker: tokio::task::JoinHandle<()>,
}

impl Load {
    async fn on(proxy: &Proxy) -> Self {
        let (stop, grants, mut client) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), proxy.client().await);
        let (stopped, counted) = (stop.clone(), grants.clone());
        let worker = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(answer) = client.acquire(want("load")).await else { continue };
                if let Some(proto::acquire_response::Outcome::Granted(grant)) = answer.into_inner().outcome {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = client.release(proto::ReleaseRequest { lock_id: grant.lock_id }).await;
                }
            }
        });
        Self { stop, grants, worker }
    }

    async fn goes_on(&self) {
        let before = self.grants.load(Ordering::Relaxed);
        until("grants to go on", || async { (self.grants.load(Ordering::Relaxed) > before + 20).then_some(()) }).await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.await.unwrap();
        self.grants.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_node_whose_clock_was_set_does_not_vote() {
    clocks_are_set(1).await;
}

#[tokio::test]
async fn two_nodes_whose_clocks_were_set_alike_do_not_vote() {
    clocks_are_set(2).await;
}
