//! Releases through other proxies: told by the nodes, and found all the same if they are not.

use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::{AcquireRequest, Granted, ReleaseOutcome};
use tokio::task::JoinHandle;

use crate::support::*;

/// Longer than any test waits: nothing here is granted because a key expired.
const LASTING: u64 = 280;

struct Pair {
    cluster: Cluster,
    holds: Proxy,
    waits: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let cluster = Cluster::start(5);
        let (holds, waits) = (Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await);
        Self { cluster, holds, waits }
    }

    async fn take(&self) -> Granted {
        granted(&mut self.holds.client().await, AcquireRequest { ttl: seconds(LASTING), ..want("orders/42") }).await
    }

    /// Somebody waits through the other proxy.
    async fn wait(&self) -> JoinHandle<Granted> {
        let mut client = self.waits.client().await;
        let request = AcquireRequest { ttl: seconds(LASTING), wait: seconds(250), ..want("orders/42") };
        let waiter = tokio::spawn(async move { granted(&mut client, request).await });
        until("somebody to stand in line", || async { (self.waits.metric("redlock_waiters").await == 1.0).then_some(()) })
            .await;
        waiter
    }

    async fn release(&self, held: &Granted) {
        assert_eq!(release(&mut self.holds.client().await, &held.lock_id).await, ReleaseOutcome::Released);
    }

    async fn listening(&self) -> f64 {
        self.waits.metric_sum("redlock_node_listening", "").await
    }

    async fn until_listening(&self, nodes: f64) {
        until("the proxy to listen, or not", || async { (self.listening().await == nodes).then_some(()) }).await;
    }

    /// Looks of the head of the line, by cause.
    async fn looks(&self, cause: &str) -> f64 {
        self.waits.metric(&format!("redlock_wakeups_total{{cause=\"{cause}\"}}")).await
    }

    async fn until_somebody_is_told(&self) {
        until("a grant to somebody who was told", || async {
            let held = self.take().await;
            let waiter = self.wait().await;
            self.until_listening(5.0).await;
            let told = self.looks("told").await;
            self.release(&held).await;
            let next = waiter.await.unwrap();
            assert!(token(&next) > token(&held));
            release(&mut self.waits.client().await, &next.lock_id).await;
            // Who looks of its own accord at the same moment is as quick.
            (self.looks("told").await > told).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_wakes_whoever_waits_at_another_proxy() {
    let pair = Pair::start().await;
    assert_eq!(pair.listening().await, 0.0, "nobody is to be woken");
    pair.until_somebody_is_told().await;
    // One connection a node, for as long as there is somebody to wake.
    pair.until_listening(0.0).await;
    for node in &pair.cluster.nodes {
        until("nobody to listen", || async { (node.cli(&["PUBSUB", "CHANNELS"]).is_empty()).then_some(()) }).await;
    }
}

/// Whoever may not ask to which channels somebody listens publishes on all of them.
#[tokio::test]
async fn a_release_is_told_by_a_user_who_may_not_ask_for_whom() {
    let pair = Pair::start().await;
    let forbid = |node: &Redis| node.cli(&["ACL", "SETUSER", "default", "-pubsub"]);
    pair.cluster.nodes.iter().for_each(|node| assert_eq!(forbid(node), "OK"));
    pair.until_somebody_is_told().await;
}

/// Nobody may publish: whoever waits finds the lock free at its next look.
#[tokio::test]
async fn a_release_that_is_not_told_is_found() {
    let pair = Pair::start().await;
    pair.cluster.nodes.iter().for_each(|node| assert_eq!(node.cli(&["ACL", "SETUSER", "default", "-publish"]), "OK"));
    let held = pair.take().await;
    let waiter = pair.wait().await;
    pair.until_listening(5.0).await;
    pair.release(&held).await;
    waiter.await.unwrap();
    assert!(pair.looks("timer").await >= 1.0);
    let unpublished = pair.holds.metric_sum("redlock_node_errors_total", "kind=\"not_published\"").await;
    assert!(unpublished >= 3.0, "an operator can see why: {unpublished}");
}

/// Connections for messages break again and again, and are made again.
#[tokio::test]
async fn a_channel_that_is_cut_is_opened_again() {
    let pair = Pair::start().await;
    let held = pair.take().await;
    let waiter = pair.wait().await;
    pair.until_listening(5.0).await;
    let cut = |node: &Redis| node.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let killed: u32 = pair.cluster.nodes.iter().map(|node| cut(node).parse::<u32>().unwrap()).sum();
    assert_eq!(killed, 5);
    pair.until_listening(5.0).await;
    pair.release(&held).await;
    waiter.await.unwrap();
}

/// A server that refuses subscriptions costs nobody the lock.
#[tokio::test]
async fn whoever_can_not_listen_looks_more_often() {
    let pair = Pair::start().await;
    pair.cluster.nodes.iter().for_each(|node| assert_eq!(node.cli(&["ACL", "SETUSER", "default", "-subscribe"]), "OK"));
    let held = pair.take().await;
    let waiter = pair.wait().await;
    until("a few looks", || async { (pair.looks("timer").await >= 3.0).then_some(()) }).await;
    assert_eq!(pair.listening().await, 0.0);
    pair.release(&held).await;
    waiter.await.unwrap();
}

/// The holder is never heard of again. Its lease ends, and the head of the line has the lock, wherever it waits.
#[tokio::test]
async fn the_lock_of_a_holder_who_is_gone_goes_to_the_head_of_the_line() {
    let pair = Pair::start().await;
    for _ in 0..3 {
        let short = AcquireRequest { ttl: seconds(2), ..want("orders/42") };
        let gone = granted(&mut pair.holds.client().await, short).await;
        let next = pair.wait().await.await.unwrap();
        assert!(token(&next) > token(&gone));
        release(&mut pair.waits.client().await, &next.lock_id).await;
    }
}

/// Without the counter nobody gets a token: heads at two proxies that had a quorum each do not wake each other for ever.
#[tokio::test]
async fn those_who_get_no_token_do_not_hurry() {
    let mut pair = Pair::start().await;
    pair.cluster.fence.kill();
    let mut waiters = Vec::new();
    for proxy in [&pair.holds, &pair.waits] {
        let mut client = proxy.client().await;
        let request = AcquireRequest { ttl: seconds(LASTING), wait: seconds(4), ..want("orders/42") };
        waiters.push(tokio::spawn(async move { client.acquire(request).await }));
    }
    for waiter in waiters {
        let outcome = waiter.await.unwrap().map(|answer| answer.into_inner().outcome);
        assert!(!matches!(outcome, Ok(Some(Outcome::Granted(_)))), "there are no tokens: {outcome:?}");
    }
    let mut tries = 0.0;
    for proxy in [&pair.holds, &pair.waits] {
        tries += proxy.metric_sum("redlock_attempts_total", "").await;
    }
    // Twice five at first, and then four to eight a second each; a storm makes thousands.
    assert!((4.0..400.0).contains(&tries), "{tries}");
}
