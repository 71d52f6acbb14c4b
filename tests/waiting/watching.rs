//! Watching locks: what is done through one proxy is told at another.

use std::time::Duration;

use nix::sys::signal::Signal;
use redlockd::proto::watch_request::Scope;
use redlockd::proto::{AcquireRequest, WatchEventKind as Kind, WatchRequest, WatchResponse};
use tonic::{Code, Streaming};

use crate::support::*;

const LASTING: u64 = 280;

struct Watched {
    cluster: Cluster,
    /// Locks are taken through this one,
    acts: Proxy,
    /// and watched at this one.
    watches: Proxy,
}

impl Watched {
    async fn start() -> Self {
        let cluster = Cluster::start(5);
        let (acts, watches) = (Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await);
        Self { cluster, acts, watches }
    }

    /// From when nothing is missing.
    async fn watch(&self, scope: Option<Scope>) -> Events {
        let stream = self.watches.client().await.watch(WatchRequest { scope }).await.unwrap().into_inner();
        let mut events = Events(stream);
        // All nodes could not be heard within a second, on a machine that is busy.
        while events.next().await.kind() != Kind::Complete {}
        events
    }

    async fn take(&self, name: &str, ttl: u64) -> String {
        let request = AcquireRequest { ttl: seconds(ttl), owner: "somebody".to_owned(), ..want(name) };
        granted(&mut self.acts.client().await, request).await.lock_id
    }

    async fn give_back(&self, lock_id: &str) {
        release(&mut self.acts.client().await, lock_id).await;
    }
}

struct Events(Streaming<WatchResponse>);

impl Events {
    async fn next(&mut self) -> WatchResponse {
        tokio::time::timeout(PATIENCE, self.0.message()).await.expect("an event").unwrap().expect("no end")
    }

    async fn must_be(&mut self, kind: Kind, name: &str) -> WatchResponse {
        let event = self.next().await;
        assert_eq!((event.kind(), &*event.name), (kind, name), "{event:?}");
        event
    }
}

fn name(name: &str) -> Option<Scope> {
    Some(Scope::Name(name.to_owned()))
}

#[tokio::test]
async fn what_becomes_of_a_lock_is_told() {
    let watched = Watched::start().await;
    let mut events = watched.watch(name("orders/42")).await;
    watched.take("another", LASTING).await;
    let held = watched.take("orders/42", LASTING).await;
    let event = events.must_be(Kind::Granted, "orders/42").await;
    assert_eq!((&*event.owner, std_duration(event.ttl)), ("somebody", Duration::from_secs(LASTING)));

    let mut client = watched.acts.client().await;
    let waits = AcquireRequest { ttl: seconds(LASTING), wait: seconds(60), owner: "heir".to_owned(), ..want("orders/42") };
    let heir = tokio::spawn(async move { granted(&mut client, waits).await });
    until("somebody to wait", || async { (watched.acts.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    watched.give_back(&held).await;
    let heir = heir.await.unwrap();
    assert_eq!(events.must_be(Kind::HandedOver, "orders/42").await.owner, "heir");
    watched.give_back(&heir.lock_id).await;
    events.must_be(Kind::Released, "orders/42").await;

    watched.take("orders/42", 1).await;
    events.must_be(Kind::Granted, "orders/42").await;
    events.must_be(Kind::Expired, "orders/42").await;

    // Also when somebody else waits for it.
    watched.take("orders/42", 1).await;
    events.must_be(Kind::Granted, "orders/42").await;
    let waits = AcquireRequest { ttl: seconds(LASTING), wait: seconds(60), ..want("orders/42") };
    granted(&mut watched.acts.client().await, waits).await;
    events.must_be(Kind::Expired, "orders/42").await;
    events.must_be(Kind::Granted, "orders/42").await;
    assert_eq!(watched.watches.metric("redlock_watchers").await, 1.0);
    drop(events);
    until("nobody to watch", || async { (watched.watches.metric("redlock_watchers").await == 0.0).then_some(()) }).await;
    until("nobody to be listened to", || async {
        (watched.watches.metric_sum("redlock_node_listening", "").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn names_that_begin_alike_are_watched_together() {
    let watched = Watched::start().await;
    let mut some = watched.watch(Some(Scope::Prefix("orders/".to_owned()))).await;
    let mut all = watched.watch(None).await;
    for lock in ["orders/1", "invoices/1", "orders/2"] {
        watched.take(lock, LASTING).await;
    }
    for lock in ["orders/1", "orders/2"] {
        some.must_be(Kind::Granted, lock).await;
    }
    for lock in ["orders/1", "invoices/1", "orders/2"] {
        all.must_be(Kind::Granted, lock).await;
    }
}

/// A minority of the nodes had set it for a moment.
#[tokio::test]
async fn an_attempt_that_lost_is_not_told() {
    let watched = Watched::start().await;
    let mut events = watched.watch(None).await;
    watched.cluster.nodes[..3].iter().for_each(|node| assert_eq!(node.cli(&["SET", "lock:lost", "somebody's"]), "OK"));
    contended(&mut watched.acts.client().await, want("lost")).await;
    watched.acts.idle().await;
    watched.take("won", LASTING).await;
    events.must_be(Kind::Granted, "won").await;
}

#[tokio::test]
async fn a_lease_that_began_before_ends_too_and_one_that_is_renewed_does_not() {
    let watched = Watched::start().await;
    let renewed = watched.take("renewed", 3).await;
    watched.take("ends", 3).await;
    let mut events = watched.watch(None).await;
    let outcome = renew(&mut watched.acts.client().await, &renewed, seconds(LASTING)).await;
    assert!(matches!(outcome, redlockd::proto::renew_response::Outcome::Renewed(_)), "{outcome:?}");
    events.must_be(Kind::Expired, "ends").await;
    watched.give_back(&renewed).await;
    events.must_be(Kind::Released, "renewed").await;
}

#[tokio::test]
async fn a_node_that_can_not_be_heard_is_a_gap() {
    let watched = Watched::start().await;
    let mut events = watched.watch(name("orders/42")).await;
    assert_eq!(watched.cluster.nodes[0].cli(&["CLIENT", "KILL", "TYPE", "pubsub"]), "1");
    let gap = events.next().await;
    assert_eq!(gap.kind(), Kind::Gap);
    assert!(gap.detail.contains(&watched.cluster.nodes[0].address()), "{gap:?}");
    assert_eq!(events.next().await.kind(), Kind::Complete);
    watched.take("orders/42", LASTING).await;
    events.must_be(Kind::Granted, "orders/42").await;
}

#[tokio::test]
async fn bad_input_and_the_end_of_the_proxy_are_said() {
    let watched = Watched::start().await;
    let mut client = watched.watches.client().await;
    let status = client.watch(WatchRequest { scope: name("") }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let mut events = watched.watch(None).await;
    watched.watches.process.signal(Signal::SIGTERM);
    let end = tokio::time::timeout(PATIENCE, events.0.message()).await.expect("an end").unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}
