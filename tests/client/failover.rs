//! Several proxies: leases outlive them, and are never held twice. The oracle judges what the client and its rivals saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use redlockd::client::{Client, LossReason, Released};
use redlockd::proto::{self, AcquireRequest};
use tokio::time::Instant;

use crate::history::{Rival, Watched, must_be_sound};
use crate::record::Record;
use crate::support::*;
use crate::{LONG, client_of};

/// How many leases go from proxy to proxy: 100 unless `LEASES` says otherwise.
fn leases() -> usize {
    std::env::var("LEASES").ok().map_or(100, |leases| leases.parse().unwrap())
}

/// Of so many of them the nodes are asked what they keep.
const LOOKED_AT: usize = 20;

async fn two() -> (Cluster, Proxy, Proxy) {
    let cluster = Cluster::start(3);
    let first = Proxy::start_whole(&cluster, &[]).await;
    let second = Proxy::start_whole(&cluster, &[]).await;
    (cluster, first, second)
}

async fn held(record: &Record, client: &Client, ttl: Duration) -> Vec<Watched> {
    let mut taking = tokio::task::JoinSet::new();
    for index in 0..leases() {
        // A crowd may have to wait for a place at the proxy.
        let request = client.lock(format!("orders/{index}")).ttl(ttl).wait(Duration::from_secs(60));
        let record = record.clone();
        taking.spawn(async move { Watched::take(&record, "the client", request).await });
    }
    taking.join_all().await.into_iter().map(Result::unwrap).collect()
}

/// Somebody else tries to get some of the locks, and the nodes are asked what they keep. The oracle says what that means.
async fn is_contested(cluster: &Cluster, rival: &mut Rival, leases: &[Watched]) {
    for watched in leases.iter().step_by(leases.len().div_ceil(50)) {
        rival.tries(watched.lease.name()).await;
    }
    for watched in leases.iter().step_by(leases.len().div_ceil(LOOKED_AT)) {
        watched.check_promise(cluster);
    }
    leases.iter().for_each(Watched::look);
}

/// All leases go on at `proxy`, with their tokens, and none was lost.
async fn go_on_at(cluster: &Cluster, proxy: &Proxy, rival: &mut Rival, leases: &[Watched]) {
    let all = leases.len() as f64;
    let started = Instant::now();
    while proxy.metric("redlock_session_leases").await != all {
        is_contested(cluster, rival, leases).await;
        let lost = leases.iter().filter(|watched| !watched.lease.is_valid()).count();
        assert!(lost == 0 && started.elapsed() < PATIENCE, "after {:?} {lost} are lost", started.elapsed());
    }
    // The word of the last adoption may still be on its way.
    let mut raw = proxy.client().await;
    for Watched { lease, .. } in leases {
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
    leases.iter().for_each(Watched::look);
}

/// Gives all of them back, and lets somebody else have them: with higher tokens.
async fn come_to_their_end(rival: &mut Rival, leases: Vec<Watched>) {
    let names: Vec<String> = leases.iter().map(|watched| watched.lease.name().to_owned()).collect();
    for watched in leases {
        watched.release_held().await;
    }
    for name in &names {
        rival.tries(name).await;
    }
    assert_eq!(rival.give_back().await, names.len(), "what was released is free");
}

#[tokio::test]
async fn no_lease_is_lost_when_a_proxy_dies() {
    let (cluster, mut first, second) = two().await;
    let record = Record::new();
    let client = client_of(&[&first, &second]).await;
    let mut rival = Rival::at(&record, &second).await;
    let leases = held(&record, &client, Duration::from_secs(10)).await;
    let ends: Vec<Instant> = leases.iter().map(|watched| watched.lease.valid_until()).collect();
    first.process.kill();
    go_on_at(&cluster, &second, &mut rival, &leases).await;
    // Beyond what they were promised at first.
    while ends.iter().any(|end| *end >= Instant::now()) {
        is_contested(&cluster, &mut rival, &leases).await;
        assert!(leases.iter().all(|watched| watched.lease.is_valid()));
    }
    come_to_their_end(&mut rival, leases).await;
    client.shutdown().await;
    cluster.no_key_left().await;
    must_be_sound(&record, "a proxy dies");
}

#[tokio::test]
async fn no_lease_is_lost_when_a_proxy_stops() {
    let (cluster, first, second) = two().await;
    let record = Record::new();
    let client = client_of(&[&first, &second]).await;
    let mut rival = Rival::at(&record, &second).await;
    let leases = held(&record, &client, Duration::from_secs(10)).await;
    first.process.signal(Signal::SIGSTOP);
    go_on_at(&cluster, &second, &mut rival, &leases).await;
    // What it still had to do has no effect on what has left it.
    first.process.signal(Signal::SIGCONT);
    until("the first proxy to see its session end", || async { (first.metric("redlock_sessions").await == 0.0).then_some(()) })
        .await;
    first.idle().await;
    is_contested(&cluster, &mut rival, &leases).await;
    assert!(leases.iter().all(|watched| watched.lease.is_valid()));
    come_to_their_end(&mut rival, leases).await;
    client.shutdown().await;
    cluster.no_key_left().await;
    must_be_sound(&record, "a proxy stops");
}

#[tokio::test]
async fn no_lease_is_lost_and_no_waiter_sent_away_when_a_proxy_shuts_down() {
    let (cluster, mut first, second) = two().await;
    let record = Record::new();
    let client = client_of(&[&first, &second]).await;
    let mut rival = Rival::at(&record, &second).await;
    let mut leases = held(&record, &client, LONG).await;
    let request = client.lock("orders/0").wait(LONG);
    let waiting = tokio::spawn({
        let record = record.clone();
        async move { Watched::take(&record, "the waiter", request).await }
    });
    until("the waiter", || async { (first.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    first.process.signal(Signal::SIGTERM);
    go_on_at(&cluster, &second, &mut rival, &leases).await;
    until("the waiter", || async { (second.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    assert_eq!(first.process.ended().await.code(), Some(0));
    let wanted = leases.iter().position(|watched| watched.lease.name() == "orders/0").unwrap();
    leases.swap_remove(wanted).release_held().await;
    let next = waiting.await.unwrap().unwrap();
    assert!(next.lease.is_valid());
    next.release_held().await;
    come_to_their_end(&mut rival, leases).await;
    client.shutdown().await;
    cluster.no_key_left().await;
    must_be_sound(&record, "a proxy shuts down");
}

/// The proxy that shuts down carries it out, and says so before it is left: asked again, another one would find nothing.
#[tokio::test]
async fn a_release_under_way_at_a_proxy_that_shuts_down_is_told_freed() {
    let cluster = Cluster::start(3);
    let flags = ["--nodes-timeout", "60s", "--drain-timeout", "60s"];
    let mut first = Proxy::start_whole(&cluster, &flags).await;
    let second = Proxy::start_whole(&cluster, &flags).await;
    let client = Client::builder([first.url(), second.url()]).open_timeout(LONG).patience(LONG).connect().await.unwrap();
    let lease = client.lock("orders/42").ttl(LONG).acquire().await.unwrap();
    first.idle().await;
    cluster.nodes.iter().for_each(Redis::stop);
    let releasing = tokio::spawn(lease.release());
    until("the release on its way to every node", || async {
        first.nodes().await.nodes.iter().all(|node| node.queued + node.in_flight > 0).then_some(())
    })
    .await;
    first.process.signal(Signal::SIGTERM);
    until("a session at the other proxy", || async { (second.metric("redlock_sessions").await == 1.0).then_some(()) }).await;
    cluster.nodes.iter().for_each(Redis::resume);
    assert_eq!(releasing.await.unwrap(), Ok(Released::Freed));
    assert_eq!(first.process.ended().await.code(), Some(0));
    let next = client.lock("orders/42").wait(LONG).acquire().await.unwrap();
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
    let record = Record::new();
    let leases = held(&record, &client, LONG).await;
    first.process.kill();
    let releases = leases.into_iter().map(Watched::release);
    for released in futures::future::join_all(releases).await {
        assert!(released.is_ok(), "{released:?}");
    }
    client.shutdown().await;
    cluster.no_key_left().await;
    must_be_sound(&record, "releases through another proxy");
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
    let record = Record::new();
    let turns = Arc::new(AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let mut urls = [proxies[0].url(), proxies[1].url(), third.url()];
        urls.rotate_left(worker % 3);
        let (record, turns) = (record.clone(), turns.clone());
        workers.spawn(async move {
            let client = Client::connect(urls).await.unwrap();
            while turns.load(Ordering::SeqCst) < 300 {
                let request = client.lock("orders/42").ttl(Duration::from_secs(3)).wait(LONG);
                let Ok(watched) = Watched::take(&record, &format!("worker {worker}"), request).await else { continue };
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..20))).await;
                watched.look();
                turns.fetch_add(1, Ordering::SeqCst);
                assert!(watched.release().await.is_ok());
            }
            client.shutdown().await;
        });
    }
    for proxy in &mut proxies {
        let at = turns.load(Ordering::SeqCst);
        until("some turns", || async { (turns.load(Ordering::SeqCst) >= at + 50).then_some(()) }).await;
        proxy.process.kill();
    }
    workers.join_all().await;
    cluster.no_key_left().await;
    let history = must_be_sound(&record, "one lock, and proxies that die");
    assert!(history.leases.len() >= 300);
}
