//! What a Redis client library does wrong under faults if it is let: one test each. The table in `tests/README.md` names the
//! tests of the traps that are not here.
//!
//! Nothing here may pass because a key expired: leases last longer than any test waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redlockd::proto;
use redlockd::proto::ReleaseOutcome;
use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::lock_service_client::LockServiceClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::gate::{self, Gate};
use crate::support::*;

/// Longer than any test waits. Tried again for a while, so that a busy machine fails none.
fn lasting(name: &str) -> proto::AcquireRequest {
    proto::AcquireRequest { ttl: seconds(280), wait: seconds(50), ..want(name) }
}

async fn release_surely(client: &LockServiceClient<Channel>, lock_id: &str) -> ReleaseOutcome {
    until("a release to be answered by a quorum", || async {
        let answer = client.clone().release(proto::ReleaseRequest { lock_id: lock_id.to_owned() }).await;
        may_be_repeated(answer).map(|answer| answer.outcome())
    })
    .await
}

fn may_be_repeated<T>(answer: Result<tonic::Response<T>, Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) if status.code() == Code::Unavailable => None,
        Err(status) => panic!("{status:?}"),
    }
}

async fn all_up(proxy: &Proxy) {
    until("every node to be up", || async { (proxy.nodes().await.voting == 5).then_some(()) }).await;
}

/// Callers that take and release, a name each, until told to stop. No call may fail.
struct Load {
    stop: Arc<AtomicBool>,
    grants: Arc<AtomicUsize>,
    callers: JoinSet<()>,
}

impl Load {
    async fn on(proxy: &Proxy, callers: usize) -> Self {
        let mut load = Self { stop: Arc::default(), grants: Arc::default(), callers: JoinSet::new() };
        let client = proxy.client().await;
        for caller in 0..callers {
            let (client, stop, grants) = (client.clone(), load.stop.clone(), load.grants.clone());
            load.callers.spawn(async move {
                let name = format!("load/{caller}");
                while !stop.load(Ordering::Relaxed) {
                    let grant = granted(&mut client.clone(), lasting(&name)).await;
                    assert_eq!(release_surely(&client, &grant.lock_id).await, ReleaseOutcome::Released);
                    grants.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    fn grants(&self) -> usize {
        self.grants.load(Ordering::Relaxed)
    }

    async fn goes_on(&mut self) {
        let wanted = self.grants() + 50;
        until("more grants", || async { (self.grants() >= wanted).then_some(()) }).await;
        assert!(self.callers.try_join_next().is_none(), "a caller has ended");
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(caller) = self.callers.join_next().await {
            caller.unwrap();
        }
    }
}

/// A library that sends a SET again after the reply was lost finds its own value and says that somebody else has the lock.
#[tokio::test]
async fn a_set_whose_reply_is_swallowed_is_not_sent_again_and_not_taken_for_refused() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let urls: Vec<String> = gates.iter().map(Gate::url).collect();
    let proxy = Proxy::start_unready(&urls, &cluster.fence.url(), &["--nodes-timeout", "30s"]).await;
    all_up(&proxy).await;
    let client = proxy.client().await;
    // From now on every node knows the script: a call is one reply.
    let warm_up = granted(&mut client.clone(), lasting("warm-up")).await;
    assert_eq!(release_surely(&client, &warm_up.lock_id).await, ReleaseOutcome::Released);
    let (mut round, mut missed) = (0, 0);
    while round < 5 {
        proxy.idle().await;
        cluster.no_key_left().await;
        let sets: Vec<u64> = cluster.nodes.iter().map(|node| node.calls_of("set")).collect();
        let struck = [round % 5, (round + 1) % 5, (round + 2) % 5];
        struck.iter().for_each(|node| gates[*node].swallow_next_reply());
        let once = proto::AcquireRequest { wait: None, ..lasting("orders/42") };
        let answer = client.clone().acquire(once).await;
        let grant = match answer.as_ref().ok().and_then(|answer| answer.get_ref().outcome.as_ref()) {
            Some(Outcome::Granted(grant)) => Some(grant.lock_id.clone()),
            _ => None,
        };
        if grant.is_some() || !struck.iter().all(|node| cluster.nodes[*node].calls_of("set") > sets[*node]) {
            // Another reply was swallowed in place of a SET's: to one of the looks that the proxy takes every second, or to one who
            // no longer listens for whoever waited.
            missed += 1;
            assert!(missed < 20, "the SETs' replies are never hit");
            if let Some(lock_id) = grant {
                release_surely(&client, &lock_id).await;
            }
            all_up(&proxy).await;
            continue;
        }
        unavailable(&answer.unwrap_err(), &["connection lost: "]);
        for node in struck {
            assert!(!gates[node].is_hungry());
            assert_eq!(cluster.nodes[node].calls_of("set"), sets[node] + 1, "sent once");
        }
        cluster.no_key_left().await;
        all_up(&proxy).await;
        round += 1;
        for node in struck {
            assert_eq!(cluster.nodes[node].calls_of("set"), sets[node] + 1, "and not by the next connection either");
        }
        let grant = granted(&mut client.clone(), lasting("orders/42")).await;
        assert_eq!(release_surely(&client, &grant.lock_id).await, ReleaseOutcome::Released);
    }
}

/// A library whose check for dead connections starts anew with every command never finds one dead while there is traffic.
#[tokio::test]
async fn a_paused_node_is_given_up_under_load_and_comes_back_clean() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &["--nodes-timeout", "100ms"]).await;
    all_up(&proxy).await;
    let mut load = Load::on(&proxy, 8).await;
    for round in 0..2 {
        load.goes_on().await;
        let node = &cluster.nodes[round];
        let label = node.address();
        let errors =
            async |kind: &str| proxy.metric(&format!("redlock_node_errors_total{{node=\"{label}\",kind=\"{kind}\"}}")).await;
        let lost = errors("connection_lost").await;
        node.stop();
        // The connection that stood, and new ones in vain: the server's kernel takes them.
        until("its connection to be given up", || async {
            (errors("connection_lost").await > lost && errors("connect").await >= 2.0).then_some(())
        })
        .await;
        load.goes_on().await;
        assert_eq!(proxy.node(round).await.state(), proto::NodeState::Down);
        node.resume();
        all_up(&proxy).await;
        load.goes_on().await;
    }
    load.end().await;
    // What was in the sockets was run when the nodes were continued.
    cluster.no_key_left().await;
    proxy.idle().await;
}

/// Operations that wait for a paused node. Far from filling a mailbox: how that is bounded is tested where it is written.
const FLOOD: u32 = 1_000;

/// A library that writes on to a node that does not read fills buffers without a bound; one with a bound may die of it.
#[tokio::test]
async fn a_flood_at_a_paused_node_is_bounded_and_drains() {
    let cluster = Cluster::start(5);
    // So long that the node is waited for during all of the flood.
    let proxy = Proxy::start(&cluster, &["--nodes-timeout", "60s"]).await;
    all_up(&proxy).await;
    let mut load = Load::on(&proxy, 64).await;
    load.goes_on().await;
    let (node, before) = (&cluster.nodes[0], proxy.resident_kib());
    node.stop();
    until("a flood to wait for it", || async { (proxy.node(0).await.queued >= FLOOD).then_some(()) }).await;
    load.goes_on().await;
    let (queued, grown) = (proxy.node(0).await.queued, proxy.resident_kib().saturating_sub(before));
    println!("{} grants, {queued} operations queued, {grown} KiB more", load.grants());
    assert!(grown < 32 * 1024, "{grown} KiB more");
    load.end().await;
    node.resume();
    until("the flood to drain", || async { (proxy.node(0).await.queued == 0).then_some(()) }).await;
    proxy.idle().await;
    cluster.no_key_left().await;
    all_up(&proxy).await;
    // It votes: what is taken now is there too.
    let client = proxy.client().await;
    let grant = granted(&mut client.clone(), lasting("afterwards")).await;
    until("the key on the node", || async { (node.keys() == ["lock:afterwards"]).then_some(()) }).await;
    assert_eq!(release_surely(&client, &grant.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}
