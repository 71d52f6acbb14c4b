//! Those who wait and go away: nothing of them stays.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use redlockd::proto::AcquireRequest;
use redlockd::proto::lock_service_client::LockServiceClient;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::support::gate::{Gate, Hold};
use crate::support::*;

const LASTING: u64 = 280;

fn waiting(name: &str) -> AcquireRequest {
    AcquireRequest { ttl: seconds(LASTING), wait: seconds(250), ..want(name) }
}

async fn until_waiting(proxy: &Proxy, count: f64) {
    until("so many to stand in line", || async { (proxy.metric("redlock_waiters").await == count).then_some(()) }).await;
}

/// What a proxy has to show when all is over.
async fn back_to_the_start(cluster: &Cluster, proxy: &Proxy) {
    until_waiting(proxy, 0.0).await;
    proxy.idle().await;
    cluster.no_key_left().await;
    for gauge in ["redlock_tasks", "redlock_inflight_requests"] {
        until("no work to be left", || async { (proxy.metric(gauge).await == 0.0).then_some(()) }).await;
    }
    until("nobody to be listened to", || async { (proxy.metric_sum("redlock_node_listening", "").await == 0.0).then_some(()) })
        .await;
}

/// Some want the same name, some have one of their own.
fn name(number: usize) -> String {
    if number.is_multiple_of(2) { format!("shared/{}", number % 20) } else { format!("own/{number}") }
}

/// Five thousand callers wait for locks that others hold, and all cancel, at any moment.
#[tokio::test]
async fn waiters_who_cancel_leave_nothing() {
    const WAITERS: usize = 5_000;
    const CONNECTIONS: usize = 10;
    let mut rng = StdRng::seed_from_u64(rand::random());
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut holder = proxy.client().await;
    let mut held = Vec::new();
    for name in (0..WAITERS).map(name).collect::<std::collections::BTreeSet<_>>() {
        held.push(granted(&mut holder, AcquireRequest { ttl: seconds(LASTING), ..want(&name) }).await.lock_id);
    }
    let round = async |rng: &mut StdRng| {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(proxy.channel().await);
        }
        let waiters: Vec<_> = (0..WAITERS)
            .map(|number| {
                let mut client = LockServiceClient::new(channels[number % CONNECTIONS].clone());
                let patience = rng.random_range(0..3_000);
                let request = waiting(&name(number));
                tokio::spawn(async move { timeout(Duration::from_millis(patience), client.acquire(request)).await })
            })
            .collect();
        for waiter in waiters {
            let answer = waiter.await.unwrap();
            assert!(answer.is_err(), "the lock is held, and the connection stands: {answer:?}");
        }
        until_waiting(&proxy, 0.0).await;
    };
    // What is taken once and kept is used again; what is lost is lost every time.
    let mut memory: Vec<u64> = Vec::new();
    let has_grown = |memory: &[u64]| match memory {
        // By more than a twentieth.
        [before @ .., last] => before.iter().all(|before| 20 * last > 21 * before),
        [] => true,
    };
    while has_grown(&memory) {
        assert!(memory.len() < 6, "it grows and grows: {memory:?} KiB");
        round(&mut rng).await;
        memory.push(proxy.resident_kib());
    }
    println!("memory after {WAITERS} waiters, and as many again: {memory:?} KiB");
    for lock_id in held {
        release(&mut holder, &lock_id).await;
    }
    back_to_the_start(&cluster, &proxy).await;
}

/// Machines that vanish without a word: their connections stay open, and nothing comes on them any more.
#[tokio::test]
async fn waiters_whose_machines_vanish_leave_nothing() {
    const MACHINES: usize = 20;
    const WAITERS: usize = 50;
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut holder = proxy.client().await;
    let held = granted(&mut holder, AcquireRequest { ttl: seconds(LASTING), ..want("orders/42") }).await;
    let port = proxy.url().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut machines = Vec::new();
    for _ in 0..MACHINES {
        let gate = Gate::before(port).await;
        let channel: Channel = Endpoint::from_shared(format!("http://{}", gate.address)).unwrap().connect().await.unwrap();
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| {
                let mut client = LockServiceClient::new(channel.clone());
                tokio::spawn(async move { client.acquire(waiting("orders/42")).await })
            })
            .collect();
        machines.push((gate, waiters));
    }
    let all = (MACHINES * WAITERS) as f64;
    until_waiting(&proxy, all).await;
    for (gate, _) in &machines {
        gate.set(Hold { requests: true, replies: true, ..Hold::default() });
    }
    // The first in line are gone when the lock is free, and so it is not theirs for long.
    let mut alive = proxy.client().await;
    let last = tokio::spawn(async move { granted(&mut alive, waiting("orders/42")).await });
    until_waiting(&proxy, all + 1.0).await;
    until_waiting(&proxy, 1.0).await;
    release(&mut holder, &held.lock_id).await;
    let last = last.await.unwrap();
    release(&mut holder, &last.lock_id).await;
    machines.iter().flat_map(|(_, waiters)| waiters).for_each(|waiter| waiter.abort());
    drop(machines);
    back_to_the_start(&cluster, &proxy).await;
}
