//! What a session does for its client while it stands.

use redlockd::proto::session_request::Message as Ask;
use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{
    AcquireRequest, ReleaseOutcome, SessionAcquire, SessionCancel, SessionOpen, SessionRenew, SessionRequest,
};
use tonic::Code;

use crate::client::Session;
use crate::support::*;

#[tokio::test]
async fn a_lease_is_renewed_without_a_call_for_longer_than_its_ttl() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (lease, mut end) = session.take("a", 6_000).await;
    assert_eq!(proxy.metric("redlock_sessions").await, 1.0);
    assert_eq!(proxy.metric("redlock_session_leases").await, 1.0);
    let first_end = end;
    while end.0 < first_end.0 + std::time::Duration::from_secs(6) {
        let next = session.renewed(lease.lease).await;
        assert!(next.0 > end.0, "{next:?} after {end:?}");
        end = next;
    }
    let mut other = proxy.client().await;
    contended(&mut other, want("a")).await;
    assert!(is_held(&mut other, &lease.lock_id).await, "the lock id is that of any other lease");
    session.release(lease.lease);
    assert_eq!(session.released(lease.lease).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
    assert_eq!(proxy.metric("redlock_session_leases").await, 0.0);
}

#[tokio::test]
async fn many_acquires_and_releases_travel_on_one_stream() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let acquires: Vec<u64> = (0..500).map(|n| session.acquire(want(&format!("n{n}")))).collect();
    let mut tokens = Vec::new();
    for seq in acquires {
        let (granted, _) = session.granted(seq).await;
        let redlockd::proto::session_granted::Fencing::FencingToken(token) = granted.fencing.unwrap() else {
            panic!("no token")
        };
        tokens.push(token);
        session.release(granted.lease);
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 500);
    for lease in 1..=500 {
        assert_eq!(session.released(lease).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
    assert_eq!(proxy.metric(r#"redlock_requests_total{rpc="Acquire",outcome="granted"}"#).await, 500.0);
    assert_eq!(proxy.metric(r#"redlock_requests_total{rpc="Release",outcome="released"}"#).await, 500.0);
}

#[tokio::test]
async fn what_is_held_is_contended_and_whoever_waits_has_its_turn() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let (mut one, mut other) = (Session::open(&proxy).await, Session::open(&proxy).await);
    let (held, _) = one.take("a", 10_000).await;
    let refused = other.acquire(want("a"));
    other
        .find(|said| match said {
            Said::Contended(contended) if contended.acquire == refused => Some(()),
            _ => None,
        })
        .await;
    let waits = other.acquire(AcquireRequest { wait: seconds(60), ..want("a") });
    until("somebody to wait", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    one.release(held.lease);
    let (granted, _) = other.granted(waits).await;
    assert_eq!(granted.lease, waits);
}

#[tokio::test]
async fn an_acquire_that_is_given_up_leaves_the_line_and_nothing_behind() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, _) = session.take("a", 10_000).await;
    let waits = session.acquire(AcquireRequest { wait: seconds(60), ..want("a") });
    until("somebody to wait", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    session.send(Ask::Cancel(SessionCancel { acquire: waits }));
    assert_eq!(session.failed(waits).await.0, Code::Cancelled as i32);
    until("nobody to wait", || async { (proxy.metric("redlock_waiters").await == 0.0).then_some(()) }).await;
    session.release(held.lease);
    session.released(held.lease).await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn bad_messages_get_an_answer_each_and_the_stream_goes_on() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let invalid = Code::InvalidArgument as i32;
    let seq = session.acquire(AcquireRequest { name: "a\nb".to_owned(), ..want("a") });
    let (code, words) = session.failed(seq).await;
    assert_eq!(code, invalid);
    says(&words, &["name", "'\\n' at byte 1"]);
    let seq = session.send(Ask::Acquire(SessionAcquire { request: Some(want("a")), max_hold: millis(9) }));
    says(&session.failed(seq).await.1, &["max_hold", "9ms", "10ms"]);
    let seq = session.send(Ask::Open(SessionOpen::default()));
    says(&session.failed(seq).await.1, &["open", "first message"]);
    let seq = session.send(Ask::Renew(SessionRenew { lease: 77, ttl: None }));
    assert_eq!(session.failed(seq).await.0, Code::NotFound as i32);
    let seq = session.adopt("nonsense", 1);
    says(&session.failed(seq).await.1, &["lock_id"]);
    session.send_raw(SessionRequest { seq: seq + 1, message: None });
    assert_eq!(session.failed(seq + 1).await.0, invalid);
}

#[tokio::test]
async fn a_number_that_does_not_rise_ends_the_stream_and_releases_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, _) = session.take("a", 10_000).await;
    session.send_raw(SessionRequest { seq: held.lease, message: None });
    let status = loop {
        match session.next().await {
            Ok(message) => assert!(message.is_some(), "an orderly end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    says(status.message(), &["seq"]);
    assert!(is_held(&mut proxy.client().await, &held.lock_id).await);
}

#[tokio::test]
async fn a_renewal_that_is_asked_for_changes_the_ttl_of_those_after_it() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, end) = session.take("a", 10_000).await;
    session.send(Ask::Renew(SessionRenew { lease: held.lease, ttl: seconds(60) }));
    let renewed = session.renewed(held.lease).await;
    assert!(renewed.0 > end.0 + std::time::Duration::from_secs(40));
    assert!(cluster.nodes[0].pttl("a").unwrap() > 40_000);
}
