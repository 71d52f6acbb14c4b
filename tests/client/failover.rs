//! Several proxies: leases outlive them, and are never held twice.

use std::time::Duration;

use nix::sys::signal::Signal;
use redlockd::client::{Client, Lease, LossReason, Released};
use redlockd::proto::{self, AcquireRequest};
use tokio::time::Instant;

use crate::support::*;
use crate::{LONG, client_of};

/// How many leases go from proxy to proxy: 100 unless `LEASES` says otherwise.
fn leases() -> usize {
    std::env::var("LEASES").ok().map_or(100, |leases| leases.parse().unwrap())
}

async fn two() -> (Cluster, Proxy, Proxy) {
    let cluster = Cluster::start(3);
    let first = Proxy::start_whole(&cluster, &[]).await;
    let second = Proxy::start_whole(&cluster, &[]).await;
    (cluster, first, second)
}

async fn held(client: &Client, ttl: Duration) -> Vec<Lease> {
    let mut taking = tokio::task::JoinSet::new();
    for index in 0..leases() {
        // A crowd may have to wait for a place at the proxy.
        taking.spawn(client.lock(format!("orders/{index}")).ttl(ttl).wait(Duration::from_secs(60)).acquire());
    }
    taking.join_all().await.into_iter().map(Result::unwrap).collect()
}

/// Whoever else wants one of the locks does not get it, all along.
async fn is_held_by_nobody_else(proxy: &Proxy, leases: &[Lease]) {
    let mut raw = proxy.client().await;
    for lease in leases.iter().step_by(leases.len().div_ceil(50)) {
        contended(&mut raw, want(lease.name())).await;
    }
}

/// All leases go on at `proxy`, with their tokens, and none was lost.
async fn go_on_at(proxy: &Proxy, leases: &[Lease]) {
    let all = leases.len() as f64;
    until("the leases at the other proxy", || async {
        is_held_by_nobody_else(proxy, leases).await;
        assert!(leases.iter().all(Lease::is_valid), "lost: {}", leases.iter().filter(|lease| !lease.is_valid()).count());
        (proxy.metric("redlock_session_leases").await == all).then_some(())
    })
    .await;
    // The word of the last adoption may still be on its way.
    let mut raw = proxy.client().await;
    for lease in leases {
        until("the new lock id", || {
            let mut raw = raw.clone();
            async move { is_held(&mut raw, lease.lock_id().as_str()).await.then_some(()) }
        })
        .await;
        let proto::check_response::Outcome::Held(held) = check(&mut raw, lease.lock_id().as_str()).await else {
            panic!("{} is not held", lease.name());
        };
        assert_eq!(held.fencing, Some(proto::still_held::Fencing::FencingToken(lease.token().unwrap().get())));
    }
}

#[tokio::test]
async fn no_lease_is_lost_when_a_proxy_dies() {
    let (cluster, mut first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let leases = held(&client, Duration::from_secs(10)).await;
    let ends: Vec<Instant> = leases.iter().map(Lease::valid_until).collect();
    first.process.kill();
    go_on_at(&second, &leases).await;
    // Beyond what they were promised at first.
    until("the end of all first promises", || async {
        assert!(leases.iter().all(Lease::is_valid));
        is_held_by_nobody_else(&second, &leases).await;
        ends.iter().all(|end| *end < Instant::now()).then_some(())
    })
    .await;
    drop(leases);
    client.shutdown().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn no_lease_is_lost_when_a_proxy_stops() {
    let (cluster, first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let leases = held(&client, Duration::from_secs(10)).await;
    first.process.signal(Signal::SIGSTOP);
    go_on_at(&second, &leases).await;
    // What it still had to do has no effect on what has left it.
    first.process.signal(Signal::SIGCONT);
    until("the first proxy to see its session end", || async { (first.metric("redlock_sessions").await == 0.0).then_some(()) })
        .await;
    first.idle().await;
    is_held_by_nobody_else(&second, &leases).await;
    assert!(leases.iter().all(Lease::is_valid));
    for lease in leases {
        assert_eq!(lease.release().await, Ok(Released::Freed));
    }
    client.shutdown().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn no_lease_is_lost_and_no_waiter_sent_away_when_a_proxy_shuts_down() {
    let (cluster, mut first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let leases = held(&client, LONG).await;
    let waiting = tokio::spawn(client.lock("orders/0").wait(LONG).acquire());
    until("the waiter", || async { (first.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    first.process.signal(Signal::SIGTERM);
    go_on_at(&second, &leases).await;
    until("the waiter", || async { (second.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    assert_eq!(first.process.ended().await.code(), Some(0));
    drop(leases);
    let next = waiting.await.unwrap().unwrap();
    assert!(next.is_valid());
    assert_eq!(next.release().await, Ok(Released::Freed));
    client.shutdown().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn whoever_waits_goes_on_at_another_proxy() {
    let (cluster, mut first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let mut raw = second.client().await;
    let held = granted(&mut raw, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    let waiting = tokio::spawn(client.lock("orders/42").ttl(LONG).wait(Duration::MAX).acquire());
    until("the waiter", || async { (first.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    first.process.kill();
    until("the waiter", || async { (second.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    release(&mut raw, &held.lock_id).await;
    let lease = waiting.await.unwrap().unwrap();
    assert!(lease.token().unwrap().get() > token(&held));
    drop(lease);
    client.shutdown().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn what_was_held_at_a_dead_proxy_is_released_through_another() {
    let (cluster, mut first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let leases = held(&client, LONG).await;
    first.process.kill();
    let releases = leases.into_iter().map(Lease::release);
    for released in futures::future::join_all(releases).await {
        assert!(released.is_ok(), "{released:?}");
    }
    client.shutdown().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn without_any_proxy_a_lease_is_lost_by_our_own_clock_before_it_ends() {
    let (cluster, first, second) = two().await;
    let client = client_of(&[&first, &second]).await;
    let request = client.lock("orders/42").ttl(Duration::from_secs(4)).notice(Duration::from_secs(1));
    let lease = request.acquire().await.unwrap();
    for proxy in [&first, &second] {
        proxy.process.signal(Signal::SIGSTOP);
    }
    let lost = lease.lost().await;
    let left = lease.valid_for();
    assert_eq!(lost.reason, LossReason::NotRenewed, "{lost}");
    // The nodes have it for longer than we were told.
    assert!(left == Duration::ZERO || cluster.nodes.iter().all(|node| node.pttl("orders/42").is_some()));
    for proxy in [&first, &second] {
        proxy.process.signal(Signal::SIGCONT);
    }
    assert!(!lease.is_valid(), "what is lost stays lost");
    drop(lease);
    client.shutdown().await;
    cluster.no_key_left().await;
}

/// Proxies die and come back one after the other while locks are taken and released: whoever has one is alone.
#[tokio::test]
async fn a_lock_has_one_holder_whatever_becomes_of_the_proxies() {
    let cluster = Cluster::start(3);
    let mut proxies = [Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await];
    let third = Proxy::start_whole(&cluster, &[]).await;
    let held_by = std::sync::Arc::new(std::sync::Mutex::new(None::<(usize, u64)>));
    let turns = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let mut urls = [proxies[0].url(), proxies[1].url(), third.url()];
        urls.rotate_left(worker % 3);
        let (held_by, turns) = (held_by.clone(), turns.clone());
        workers.spawn(async move {
            let client = Client::connect(urls).await.unwrap();
            while turns.load(std::sync::atomic::Ordering::SeqCst) < 300 {
                let request = client.lock("orders/42").ttl(Duration::from_secs(3)).wait(LONG);
                let Ok(lease) = request.acquire().await else { continue };
                let token = lease.token().unwrap().get();
                let before = held_by.lock().unwrap().replace((worker, token));
                assert!(before.is_none(), "{before:?} and {worker} at a time");
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..20))).await;
                let present = held_by.lock().unwrap().take();
                assert!(!lease.is_valid() || present == Some((worker, token)), "{present:?}, {worker}");
                turns.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                assert!(lease.release().await.is_ok());
            }
            client.shutdown().await;
        });
    }
    for proxy in &mut proxies {
        let at = turns.load(std::sync::atomic::Ordering::SeqCst);
        until("some turns", || async { (turns.load(std::sync::atomic::Ordering::SeqCst) >= at + 50).then_some(()) }).await;
        proxy.process.kill();
    }
    workers.join_all().await;
    cluster.no_key_left().await;
}
