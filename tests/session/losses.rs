//! Leases that are lost: their holders are told before the validity ends.

use redlockd::proto::session_request::Message as Ask;
use redlockd::proto::{SessionAcquire, SessionLossReason};
use tokio::time::Instant;

use crate::client::Session;
use crate::support::*;

#[tokio::test]
async fn a_key_that_is_deleted_behind_our_back_is_told_as_lost() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, _) = session.take("a", 10_000).await;
    proxy.idle().await;
    for node in &cluster.nodes[..3] {
        node.cli(&["DEL", "lock:a"]);
    }
    let lost = session.lost(held.lease).await;
    assert_eq!(lost.reason(), SessionLossReason::NotHeld);
    assert_eq!(proxy.metric(r#"redlock_leases_lost_total{reason="not_held_by_quorum"}"#).await, 1.0);
}

#[tokio::test]
async fn a_lease_whose_nodes_are_gone_is_at_risk_and_then_lost_before_its_end() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, end) = session.take("a", 10_000).await;
    for node in &cluster.nodes[..3] {
        node.stop();
    }
    let words = session.at_risk(held.lease).await;
    says(&words, &["too few nodes", &cluster.nodes[0].address()]);
    let at_risk = Instant::now();
    let (lost, told) = session.lost_at(held.lease).await;
    let now = Instant::now();
    assert_eq!(lost.reason(), SessionLossReason::NoQuorum);
    assert!(at_risk < now && now < end.0, "{:?} too late", now - end.0);
    // The drift is reckoned anew, from a later message.
    assert!(told.0 <= end.0 + std::time::Duration::from_millis(3), "{:?} later", told.0 - end.0);
}

#[tokio::test]
async fn a_lease_at_risk_whose_nodes_come_back_goes_on() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, end) = session.take("a", 20_000).await;
    for node in &cluster.nodes[..2] {
        node.stop();
    }
    session.at_risk(held.lease).await;
    for node in &cluster.nodes[..2] {
        node.resume();
    }
    assert!(session.renewed(held.lease).await.0 > end.0);
}

#[tokio::test]
async fn a_lease_is_held_for_as_long_as_was_asked_for_and_no_longer() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let began = Instant::now();
    let lease = session.send(Ask::Acquire(SessionAcquire {
        request: Some(redlockd::proto::AcquireRequest { ttl: seconds(3), ..want("a") }),
        max_hold: seconds(5),
    }));
    let (_, end) = session.granted(lease).await;
    let renewed = session.renewed(lease).await;
    assert!(renewed.0 > end.0);
    let lost = session.lost(lease).await;
    assert_eq!(lost.reason(), SessionLossReason::MaxHold);
    assert!(Instant::now() < began + PATIENCE);
    until("it to end", || async { cluster.nodes.iter().all(|node| node.keys().is_empty()).then_some(()) }).await;
    assert!(began.elapsed() > std::time::Duration::from_secs(4));
}

/// As if its machine had stopped: the stream stands, and nothing comes.
#[tokio::test]
async fn nothing_is_renewed_for_a_client_that_is_not_heard_of() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, _) = session.take("a", 3_000).await;
    until("the lease to end", || async { cluster.nodes.iter().all(|node| node.keys().is_empty()).then_some(()) }).await;
    let lost = session.lost(held.lease).await;
    assert_eq!(lost.reason(), SessionLossReason::NoKeepAlive, "{lost:?}");
    assert_eq!(proxy.metric(r#"redlock_leases_lost_total{reason="no_keep_alive"}"#).await, 1.0);
}
