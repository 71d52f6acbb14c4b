//! What becomes of the leases of a session that ends.

use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{AcquireRequest, ReleaseOutcome, SessionOpen};
use tonic::Code;

use crate::client::Session;
use crate::support::*;

async fn session_is_over(proxy: &Proxy) {
    until("the session to be over", || async { (proxy.metric("redlock_sessions").await == 0.0).then_some(()) }).await;
}

#[tokio::test]
async fn a_close_releases_everything_and_says_so() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let leases = [session.take("a", 10_000).await.0.lease, session.take("b", 10_000).await.0.lease];
    session.close();
    for lease in leases {
        assert_eq!(session.released(lease).await, ReleaseOutcome::Released);
    }
    while session.next().await.expect("an orderly end").is_some() {}
    cluster.no_key_left().await;
    session_is_over(&proxy).await;
    assert_eq!(proxy.metric(r#"redlock_requests_total{rpc="Session",outcome="ok"}"#).await, 1.0);
}

#[tokio::test]
async fn an_orderly_end_of_the_clients_side_releases_everything() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    session.take("a", 10_000).await;
    session.half_close();
    while session.next().await.expect("an orderly end").is_some() {}
    cluster.no_key_left().await;
}

/// tonic tells a server of a cancelled call as of an orderly end.
#[tokio::test]
async fn a_cancelled_call_releases_nothing_and_renews_nothing() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut session = Session::open(&proxy).await;
    let (held, _) = session.take("a", 5_000).await;
    let waits = session.acquire(AcquireRequest { wait: seconds(60), ..want("a") });
    until("somebody to wait", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    drop(session);
    session_is_over(&proxy).await;
    assert_eq!(proxy.metric("redlock_waiters").await, 0.0, "acquire {waits} is given up");
    assert!(is_held(&mut proxy.client().await, &held.lock_id).await, "its client may still be using it");
    assert_eq!(proxy.metric_sum("redlock_requests_total", "rpc=\"Release\"").await, 0.0);
    // Nobody renews it: it ends.
    until("the lease to end", || async { cluster.nodes.iter().all(|node| node.keys().is_empty()).then_some(()) }).await;
}

#[tokio::test]
async fn those_who_prefer_it_have_everything_released_when_the_stream_breaks() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let open = SessionOpen { release_on_disconnect: true, ..SessionOpen::default() };
    let (mut session, _) = Session::open_with(&proxy, 0, open).await;
    session.take("a", 280_000).await;
    drop(session);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_client_comes_back_to_what_it_held() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let open = SessionOpen { reattach: seconds(120), ..SessionOpen::default() };
    let (mut session, opened) = Session::open_with(&proxy, 0, open.clone()).await;
    assert!(!opened.resumed && !opened.session_id.is_empty());
    let (held, end) = session.take("a", 6_000).await;
    let last_seq = session.last_seq();
    drop(session);
    // It is renewed without its client, for longer than its TTL.
    tokio::time::sleep_until(end.0 + std::time::Duration::from_secs(1)).await;
    assert!(is_held(&mut proxy.client().await, &held.lock_id).await);

    let back = SessionOpen { session_id: opened.session_id.clone(), ..open.clone() };
    let (mut session, resumed) = Session::open_with(&proxy, last_seq, back.clone()).await;
    assert!(resumed.resumed);
    assert_eq!((&resumed.session_id, resumed.leases.len()), (&opened.session_id, 1));
    assert_eq!((resumed.leases[0].lease, &resumed.leases[0].lock_id), (held.lease, &held.lock_id));
    assert_eq!(resumed.leases[0].validity, None, "that is told when it has been renewed");
    session.renewed(held.lease).await;

    // A second stream takes it from the first.
    let (mut second, resumed) = Session::open_with(&proxy, session.last_seq() + 1_000, back).await;
    assert!(resumed.resumed);
    let status = loop {
        match session.next().await {
            Ok(message) => assert!(message.is_some(), "an orderly end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Aborted);
    second.release(held.lease);
    assert_eq!(second.released(held.lease).await, ReleaseOutcome::Released);

    // One that is not known is begun anew.
    let unknown = SessionOpen { session_id: "0".repeat(32), ..open };
    let (_, opened) = Session::open_with(&proxy, 0, unknown).await;
    assert!(!opened.resumed && opened.leases.is_empty() && opened.session_id != "0".repeat(32));
}

/// More than a message of the usual 4 MB could list.
#[tokio::test]
async fn a_client_comes_back_to_very_much() {
    const MANY: u64 = 6_000;
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let open = SessionOpen { reattach: seconds(120), ..SessionOpen::default() };
    let (mut session, opened) = Session::open_with(&proxy, 0, open.clone()).await;
    for first in (0..MANY).step_by(1_000) {
        let name = |number| format!("{number}{}", "x".repeat(500));
        let ask = |number| AcquireRequest { ttl: seconds(240), ..want(&name(number)) };
        let asked: Vec<u64> = (first..first + 1_000).map(|number| session.acquire(ask(number))).collect();
        for seq in asked {
            session.granted(seq).await;
        }
    }
    let last_seq = session.last_seq();
    drop(session);
    let back = SessionOpen { session_id: opened.session_id, ..open };
    let (mut session, mut resumed) = Session::open_with(&proxy, last_seq, back).await;
    let mut listed = resumed.leases.len();
    while resumed.more {
        let said = session.next().await.unwrap().unwrap();
        let Some(Said::Opened(opened)) = said.message else { panic!("{said:?} in between") };
        listed += opened.leases.len();
        resumed = opened;
    }
    assert_eq!(listed as u64, MANY);
    session.close();
    while session.next().await.expect("an orderly end").is_some() {}
}

#[tokio::test]
async fn a_session_to_which_nobody_comes_back_ends_with_its_time() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let (mut session, _) = Session::open_with(&proxy, 0, SessionOpen { reattach: millis(500), ..SessionOpen::default() }).await;
    session.take("a", 2_000).await;
    drop(session);
    session_is_over(&proxy).await;
    until("the lease to end", || async { cluster.nodes.iter().all(|node| node.keys().is_empty()).then_some(()) }).await;
}

#[tokio::test]
async fn a_proxy_that_shuts_down_says_so_and_goes_on_renewing_until_its_leases_have_moved() {
    let cluster = Cluster::start(5);
    let mut proxy = Proxy::start_whole(&cluster, &["--drain-timeout", "60s"]).await;
    let other = Proxy::start_whole(&cluster, &[]).await;
    let (mut session, mut elsewhere) = (Session::open(&proxy).await, Session::open(&other).await);
    let (held, _) = session.take("a", 10_000).await;
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    session.find(|said| matches!(said, Said::Draining(_)).then_some(())).await;
    let refused = session.acquire(want("b"));
    assert_eq!(session.failed(refused).await.0, Code::Unavailable as i32);
    session.renewed(held.lease).await;
    let adopted = elsewhere.adopt(&held.lock_id, 1);
    let (adopted, _) = elsewhere.granted(adopted).await;
    assert_ne!(adopted.lock_id, held.lock_id);
    // Nothing is left for it to do.
    let status = loop {
        match session.next().await {
            Ok(Some(_)) => session.keep_alive(),
            Ok(None) => panic!("as if it had been closed"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(proxy.process.ended().await.success());
    assert!(is_held(&mut other.client().await, &adopted.lock_id).await);
}
