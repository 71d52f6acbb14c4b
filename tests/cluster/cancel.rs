//! Clients that go away in the middle of an acquire.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use tokio::time::{sleep, timeout};

use super::*;

/// One gate before each node, and one before the counter.
struct Gated {
    cluster: Cluster,
    nodes: std::sync::Arc<Vec<Gate>>,
    fence: Gate,
    proxy: Proxy,
}

impl Gated {
    async fn set_up() -> Self {
        let cluster = Cluster::start(5);
        let nodes = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
        let fence = Gate::before(cluster.fence.port).await;
        let proxy = proxy_behind(&nodes, &fence.url(), &NO_TIMEOUTS).await;
        Self { cluster, nodes, fence, proxy }
    }

    async fn abandoned(&self) -> f64 {
        self.proxy.metric("redlock_attempts_total{outcome=\"abandoned\"}").await
    }

    /// Waits until the proxy has seen every cancellation that was sent on `channel`.
    async fn cancellations_seen(&self, channel: &Channel) {
        // What was cancelled is reset before the second of these is sent, and frames arrive in order.
        let mut operator = proto::operator_service_client::OperatorServiceClient::new(channel.clone());
        for _ in 0..3 {
            operator.list_nodes(proto::ListNodesRequest {}).await.unwrap();
        }
        until("no request to be served", || async {
            (self.proxy.metric("redlock_inflight_requests").await == 0.0).then_some(())
        })
        .await;
    }

    fn names_left(&self) -> BTreeSet<String> {
        self.cluster.keys_on(&[0, 1, 2, 3, 4]).into_iter().collect()
    }
}

/// Closes what a grant needs: the requests or replies of a quorum, or those of the counter.
fn close_something(gated: &Gated, rng: &mut StdRng) {
    let hold = if rng.random() { Gate::hold_requests } else { Gate::hold_replies };
    if rng.random_ratio(1, 3) {
        hold(&gated.fence);
        return;
    }
    let mut nodes: Vec<usize> = (0..5).collect();
    nodes.shuffle(rng);
    nodes[..rng.random_range(3..=5)].iter().for_each(|node| hold(&gated.nodes[*node]));
}

/// A cancellation that crosses the finished answer on the network comes too late for any server, and its lease ends with its
/// TTL. So that this can not be what is seen here, every cancellation falls while something that a grant needs is held back,
/// and is known to have arrived before that is let through.
#[tokio::test]
async fn a_thousand_cancelled_acquires_leave_nothing() {
    let mut rng = seeded();
    let gated = Gated::set_up().await;
    let channel = gated.proxy.channel().await;
    let (mut rounds, mut calls, mut refused) = (0, 0, 0);
    while gated.abandoned().await < 1_000.0 {
        rounds += 1;
        assert!(rounds <= 500, "few cancellations fall in the middle of an attempt");
        close_something(&gated, &mut rng);
        let attempts: Vec<_> = (0..40)
            .map(|call| {
                // Some want the same name.
                let name = if rng.random_ratio(1, 4) { format!("shared/{}", call % 3) } else { format!("own/{rounds}/{call}") };
                let (start, patience) = (rng.random_range(0..10_000), rng.random_range(0..20_000));
                let mut client = LockServiceClient::new(channel.clone());
                tokio::spawn(async move {
                    sleep(Duration::from_micros(start)).await;
                    timeout(Duration::from_micros(patience), client.acquire(lasting(&name))).await
                })
            })
            .collect();
        for attempt in attempts {
            calls += 1;
            match attempt.await.unwrap() {
                // Dropped, and so cancelled.
                Err(_) => {}
                Ok(answer) => {
                    let outcome = answer.unwrap().into_inner().outcome.unwrap();
                    assert!(matches!(outcome, acquire_response::Outcome::Contended(_)), "{outcome:?}");
                    refused += 1;
                }
            }
        }
        gated.cancellations_seen(&channel).await;
        // Opened one by one, and sometimes the next round begins before all is cleaned up.
        let mut gates: Vec<&Gate> = gated.nodes.iter().chain([&gated.fence]).collect();
        gates.shuffle(&mut rng);
        for gate in gates {
            sleep(Duration::from_micros(rng.random_range(0..2_000))).await;
            gate.open();
        }
        if rng.random() {
            gated.proxy.idle().await;
        }
    }
    gated.proxy.idle().await;
    gated.cluster.no_key_left().await;
    assert_eq!(gated.proxy.metric("redlock_tasks").await, 0.0);
    let delivered = gated.proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"granted\"}").await;
    assert_eq!(delivered, 1.0, "only the warm-up was granted");
    println!(
        "{calls} acquires in {rounds} rounds: {} abandoned in the middle, {} requests cancelled, {refused} refused",
        gated.abandoned().await,
        gated.proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"cancelled\"}").await,
    );
}

/// Without that precaution: what stays is accounted for by grants that the proxy had answered and the client did not read.
#[tokio::test]
async fn what_cancellations_at_any_moment_leave_had_been_answered() {
    let mut rng = seeded();
    let gated = Gated::set_up().await;
    let channel = gated.proxy.channel().await;
    let mut client = LockServiceClient::new(channel.clone());
    let (mut received, mut cancelled) = (0, 0);
    for round in 0..100 {
        // Mostly something is held back for a moment.
        if rng.random_ratio(2, 3) {
            close_something(&gated, &mut rng);
        }
        let attempts: Vec<_> = (0..10)
            .map(|call| {
                let (mut client, patience) = (client.clone(), Duration::from_micros(rng.random_range(0..20_000)));
                let name = format!("orders/{round}/{call}");
                tokio::spawn(async move { timeout(patience, client.acquire(lasting(&name))).await })
            })
            .collect();
        sleep(Duration::from_micros(rng.random_range(0..10_000))).await;
        gated.nodes.iter().chain([&gated.fence]).for_each(Gate::open);
        for attempt in attempts {
            match attempt.await.unwrap() {
                Err(_) => cancelled += 1,
                Ok(answer) => {
                    let outcome = answer.unwrap().into_inner().outcome.unwrap();
                    let acquire_response::Outcome::Granted(grant) = outcome else { panic!("{outcome:?}") };
                    received += 1;
                    assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
                }
            }
        }
    }
    gated.cancellations_seen(&channel).await;
    gated.proxy.idle().await;
    // The warm-up was granted too.
    let answered = gated.proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"granted\"}").await as usize - 1;
    let crossed = answered - received;
    until("no more keys than grants that crossed their cancellation", || async {
        (gated.names_left().len() <= crossed).then_some(())
    })
    .await;
    println!(
        "{received} received, {cancelled} cancelled ({} in the middle), {crossed} of them after the answer, {} keys left of these",
        gated.abandoned().await,
        gated.names_left().len()
    );
    assert!(cancelled >= 100 && gated.abandoned().await > 0.0, "cancellations fell in the middle");
}

/// Whoever waits in vain and goes leaves neither a key nor a task, be it by cancelling or by losing the connection.
#[tokio::test]
async fn waiters_that_go_away_leave_nothing() {
    let mut rng = seeded();
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
    warm_up(&proxy).await;
    let mut holder = proxy.client().await;
    let held = granted(&mut holder, lasting("orders/42")).await;
    let (mut kept, mut waiters) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let channel = proxy.channel().await;
        for _ in 0..25 {
            let mut client = LockServiceClient::new(channel.clone());
            let patience = Duration::from_millis(rng.random_range(50..1_000));
            waiters.push(tokio::spawn(async move {
                let request = proto::AcquireRequest { wait: seconds(3_600), ..lasting("orders/42") };
                timeout(patience, client.acquire(request)).await.is_err()
            }));
        }
        kept.push(channel);
    }
    until("most of them to wait", || async { (proxy.metric("redlock_waiters").await >= 20.0).then_some(()) }).await;
    for waiter in waiters {
        assert!(waiter.await.unwrap(), "nobody is answered while it is held");
    }
    // These lose their connection, with the runtime that carries it.
    let url = proxy.url();
    let lost = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
            let waiters = (0..25).map(|_| {
                let mut client = LockServiceClient::new(channel.clone());
                let request = proto::AcquireRequest { wait: seconds(3_600), ..lasting("orders/42") };
                async move { timeout(Duration::from_millis(500), client.acquire(request)).await.is_err() }
            });
            // The time-out of the outer one comes first: the futures are not dropped before the runtime is.
            let waiting = futures::future::join_all(waiters);
            tokio::pin!(waiting);
            let _ = timeout(Duration::from_millis(200), &mut waiting).await;
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(move || lost.join().unwrap()).await.unwrap();
    until("nobody to wait", || async { (proxy.metric("redlock_waiters").await == 0.0).then_some(()) }).await;
    proxy.idle().await;
    drop(kept);
    assert_eq!(release(&mut holder, &held.lock_id).await, ReleaseOutcome::Released);
    proxy.idle().await;
    cluster.no_key_left().await;
    let requests = proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"cancelled\"}").await;
    assert!(requests >= 100.0, "{requests} were cancelled while they waited");
}
