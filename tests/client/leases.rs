//! One proxy: what is taken, kept, lost and given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redlockd::client::{AcquireError, Client, LossReason, Released, WithLockError};
use redlockd::proto::AcquireRequest;
use tokio::time::Instant;

use crate::support::*;
use crate::{LONG, client_of};

async fn one() -> (Cluster, Proxy, Client) {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let client = client_of(&[&proxy]).await;
    (cluster, proxy, client)
}

#[tokio::test]
async fn a_lock_is_taken_renewed_and_released() {
    let (cluster, proxy, client) = one().await;
    let sent = Instant::now();
    let lease = client.lock("orders/42").owner("ann").acquire().await.unwrap();
    let first_end = lease.valid_until();
    assert!(first_end > Instant::now() && first_end < Instant::now() + Duration::from_secs(10));
    assert!(first_end <= sent + Duration::from_secs(10));
    assert!(lease.is_valid() && lease.valid_for() > Duration::ZERO && lease.name() == "orders/42");
    assert_eq!(format!("{:?}", lease.lock_id()), "LockId(..)");
    assert!(!format!("{lease:?}").contains(&lease.lock_id().as_str()[4..]), "{lease:?}");
    let mut raw = proxy.client().await;
    assert!(is_held(&mut raw, lease.lock_id().as_str()).await);

    let Err(AcquireError::Contended(by)) = client.lock("orders/42").acquire().await else { panic!("not contended") };
    assert_eq!(by.owner.as_deref(), Some("ann"));
    until("a renewal", || async { (lease.valid_until() > first_end + Duration::from_secs(2)).then_some(()) }).await;
    assert!(lease.valid_until() <= Instant::now() + Duration::from_secs(10));

    let token = lease.token().unwrap();
    assert_eq!(lease.release().await, Ok(Released::Freed));
    let next = client.lock("orders/42").acquire().await.unwrap();
    assert!(next.token().unwrap() > token);
    assert_eq!(next.release().await, Ok(Released::Freed));
    cluster.no_key_left().await;
    client.shutdown().await;
}

#[tokio::test]
async fn wrong_requests_and_addresses_are_told_apart() {
    let (_cluster, _proxy, client) = one().await;
    for request in [client.lock("redlockd:x"), client.lock("x").ttl(Duration::from_secs(3_000)), client.lock("x").owner("a;b")]
    {
        assert!(matches!(request.acquire().await, Err(AcquireError::Invalid(_))));
    }
    for request in [client.lock("x").ttl(Duration::ZERO), client.lock("x").max_hold(Duration::ZERO)] {
        assert!(matches!(request.acquire().await, Err(AcquireError::Invalid(_))));
    }
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let error = Client::connect([nobody.clone()]).await.unwrap_err().to_string();
    says(&error, &[&nobody, "refused"]);
    assert!(Client::connect(["http://"]).await.is_err() && Client::connect(Vec::<String>::new()).await.is_err());
}

#[tokio::test]
async fn what_is_dropped_is_released_and_the_end_of_the_client_waits_for_it() {
    let (cluster, proxy, client) = one().await;
    let mut leases = Vec::new();
    for index in 0..50 {
        leases.push(client.lock(format!("orders/{index}")).ttl(LONG).acquire().await.unwrap());
    }
    drop(leases);
    client.shutdown().await;
    // Proven on a quorum by now.
    let mut raw = proxy.client().await;
    for index in 0..50 {
        granted(&mut raw, AcquireRequest { ttl: seconds(240), ..want(&format!("orders/{index}")) }).await;
    }
    until("the end of the session", || async { (proxy.metric("redlock_sessions").await == 0.0).then_some(()) }).await;
    drop(cluster);
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_nothing() {
    let (cluster, proxy, client) = one().await;
    let held = client.lock("orders/42").ttl(LONG).acquire().await.unwrap();
    let waiting = tokio::spawn(client.lock("orders/42").ttl(LONG).wait(Duration::MAX).acquire());
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    waiting.abort();
    until("no waiter", || async { (proxy.metric("redlock_waiters").await == 0.0).then_some(()) }).await;
    assert_eq!(held.release().await, Ok(Released::Freed));
    cluster.no_key_left().await;

    // At any instant of a request that is granted at once.
    for index in 0..200 {
        let request = client.lock(format!("orders/{index}")).ttl(LONG);
        let patience = Duration::from_micros(rand::random_range(0..3_000));
        drop(tokio::time::timeout(patience, request.acquire()).await);
    }
    proxy.idle().await;
    cluster.no_key_left().await;
    client.shutdown().await;
}

#[tokio::test]
async fn a_lease_whose_keys_are_deleted_is_lost_before_its_end() {
    let (cluster, _proxy, client) = one().await;
    let lease = client.lock("orders/42").acquire().await.unwrap();
    let lost = lease.lost();
    cluster.nodes.iter().for_each(|node| drop(node.cli(&["DEL", "lock:orders/42"])));
    let told_end = lease.valid_until();
    let lost = lost.await;
    assert_eq!(lost.reason, LossReason::NotHeld, "{lost}");
    assert!(!lease.is_valid() && Instant::now() < told_end);
    assert_eq!(lease.lost().await, lost, "for ever");
    assert_eq!(lease.release().await, Ok(Released::NotHeld));
}

/// Says when it is dropped.
struct Sign(Arc<AtomicBool>);

impl Drop for Sign {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn work_under_a_lock_is_cancelled_when_the_lease_is_lost() {
    let (cluster, proxy, client) = one().await;
    let in_a_task = tokio::spawn({
        let client = client.clone();
        async move {
            let request = client.lock("orders/42").ttl(LONG);
            client.with_lock(request, async |lease| lease.token().map(redlockd::client::Token::get)).await
        }
    });
    assert!(in_a_task.await.unwrap().unwrap() > Some(0));
    cluster.no_key_left().await;

    let is_dropped = Arc::new(AtomicBool::new(false));
    let sign = Sign(is_dropped.clone());
    let request = client.lock("orders/42");
    let work = client.with_lock(request, async move |lease| {
        let _sign = sign;
        cluster.nodes.iter().for_each(|node| drop(node.cli(&["DEL", "lock:orders/42"])));
        let name = lease.name().to_owned();
        std::future::pending::<()>().await;
        name
    });
    let error = work.await.unwrap_err();
    assert!(matches!(error, WithLockError::Lost(lost) if lost.reason == LossReason::NotHeld));
    assert!(is_dropped.load(Ordering::SeqCst));
    drop(proxy);
}

#[tokio::test]
async fn a_lease_is_shared_only_with_whoever_asks_for_that() {
    let (cluster, _proxy, client) = one().await;
    let first = client.lock("orders/42").ttl(LONG).acquire().await.unwrap();
    assert!(matches!(client.lock("orders/42").acquire().await, Err(AcquireError::Contended(_))));
    let second = client.clone().lock("orders/42").reentrant().acquire().await.unwrap();
    assert_eq!((second.token(), second.lock_id()), (first.token(), first.lock_id()));
    assert_eq!(first.release().await, Ok(Released::Shared));
    assert!(second.is_valid() && !cluster.keys_on(&[0, 1, 2]).is_empty());
    let third = client.lock("orders/42").reentrant().acquire().await.unwrap();
    drop(second);
    assert_eq!(third.release().await, Ok(Released::Freed));
    cluster.no_key_left().await;
    let anew = client.lock("orders/42").reentrant().acquire().await.unwrap();
    assert!(anew.is_valid());
}

#[tokio::test]
async fn a_lease_without_a_token_has_to_be_asked_for() {
    let (mut cluster, _proxy, client) = one().await;
    cluster.fence.kill();
    let error = client.lock("orders/42").acquire().await.unwrap_err();
    assert!(matches!(&error, AcquireError::Unavailable { message, .. } if message.contains("token")), "{error}");
    let lease = client.lock("orders/42").best_effort_token().wait(LONG).acquire().await.unwrap();
    assert_eq!(lease.token(), None);
}

#[tokio::test]
async fn a_lease_that_can_not_be_renewed_is_at_risk_and_then_lost_in_time() {
    let (mut cluster, _proxy, client) = one().await;
    let lease = client.lock("orders/42").ttl(Duration::from_secs(3)).acquire().await.unwrap();
    cluster.nodes.truncate(1);
    let risk = lease.at_risk().await;
    assert!(!risk.is_empty());
    let lost = lease.lost().await;
    assert_eq!(lost.reason, LossReason::NotRenewed, "{lost}");
    says(&lost.detail, &["nodes"]);
    assert_eq!(lease.at_risk().await, lost.detail);
}

#[tokio::test]
async fn the_end_of_the_client_tells_who_holds_a_lease_and_releases_nothing_that_is_in_use() {
    let (cluster, proxy, client) = one().await;
    let lease = client.lock("orders/42").ttl(LONG).acquire().await.unwrap();
    until("the lock on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3).then_some(()) }).await;
    let waiting = tokio::spawn(client.lock("orders/42").wait(Duration::MAX).acquire());
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    client.clone().shutdown().await;
    assert_eq!(lease.lost().await.reason, LossReason::Closed);
    assert_eq!(waiting.await.unwrap().unwrap_err(), AcquireError::Closed);
    assert_eq!(client.lock("x").acquire().await.unwrap_err(), AcquireError::Closed);
    until("the end of the session", || async { (proxy.metric("redlock_sessions").await == 0.0).then_some(()) }).await;
    proxy.idle().await;
    assert_eq!(cluster.keys_on(&[0, 1, 2]).len(), 3);
    assert!(is_held(&mut proxy.client().await, lease.lock_id().as_str()).await);
}

/// The end of the program's runtime must not look like an orderly end of the session: that would release everything.
#[tokio::test]
async fn the_end_of_a_runtime_releases_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    for _ in 0..10 {
        let url = proxy.url();
        let lease = tokio::task::spawn_blocking(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let client = Client::connect([url]).await.unwrap();
                client.lock("orders/42").ttl(LONG).acquire().await.unwrap()
            })
        });
        let lease = lease.await.unwrap();
        until("the end of the session", || async { (proxy.metric("redlock_sessions").await == 0.0).then_some(()) }).await;
        proxy.idle().await;
        let mut raw = proxy.client().await;
        assert!(lease.is_valid() && is_held(&mut raw, lease.lock_id().as_str()).await);
        release(&mut raw, lease.lock_id().as_str()).await;
    }
}

#[tokio::test]
async fn more_requests_than_may_be_under_way_wait_for_each_other() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let client = Client::builder([proxy.url()]).max_calls(2).max_leases(3).connect().await.unwrap();
    let held = client.lock("orders/42").ttl(LONG).acquire().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(tokio::spawn(client.lock("orders/42").ttl(LONG).wait(LONG).acquire()));
    }
    until("two waiters", || async { (proxy.metric("redlock_waiters").await == 2.0).then_some(()) }).await;
    assert_eq!(held.release().await, Ok(Released::Freed));
    for waiter in waiting {
        drop(waiter.await.unwrap().unwrap());
    }
    client.shutdown().await;
    cluster.no_key_left().await;
}
