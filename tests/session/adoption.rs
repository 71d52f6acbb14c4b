//! A lease goes on at another proxy.

use redlockd::proto::session_granted::Fencing;
use redlockd::proto::{AcquireRequest, ReleaseOutcome, SessionLossReason};
use tonic::Code;

use crate::client::Session;
use crate::support::*;

/// Two proxies over five nodes, and a session at each.
async fn two() -> (Cluster, [Proxy; 2], [Session; 2]) {
    let cluster = Cluster::start(5);
    let proxies = [Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await];
    let sessions = [Session::open(&proxies[0]).await, Session::open(&proxies[1]).await];
    (cluster, proxies, sessions)
}

#[tokio::test]
async fn an_adopted_lease_keeps_its_token_and_is_out_of_reach_of_the_stream_that_it_left() {
    let (cluster, proxies, [mut old, mut new]) = two().await;
    let (held, _) = old.take("a", 10_000).await;
    let adopted = new.adopt(&held.lock_id, 1);
    let (adopted, end) = new.granted(adopted).await;
    assert!(matches!(held.fencing, Some(Fencing::FencingToken(_))));
    assert_eq!(adopted.fencing, held.fencing);
    assert_ne!(adopted.lock_id, held.lock_id);
    assert!(end.0 > tokio::time::Instant::now());
    // The close of the old stream frees nothing.
    old.close();
    assert_eq!(old.released(held.lease).await, ReleaseOutcome::NotHeld);
    let mut client = proxies[0].client().await;
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::NotHeld);
    contended(&mut client, want("a")).await;
    assert!(is_held(&mut client, &adopted.lock_id).await && !is_held(&mut client, &held.lock_id).await);
    assert!(cluster.nodes.iter().all(|node| node.keys().len() == 1));
    new.renewed(adopted.lease).await;
    new.release(adopted.lease);
    assert_eq!(new.released(adopted.lease).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn the_old_stream_is_told_that_it_has_lost_it() {
    let (_cluster, _proxies, [mut old, mut new]) = two().await;
    let (held, _) = old.take("a", 10_000).await;
    let adopted = new.adopt(&held.lock_id, 1);
    new.granted(adopted).await;
    let lost = old.lost(held.lease).await;
    assert_eq!(lost.reason(), SessionLossReason::NotHeld, "{lost:?}");
}

#[tokio::test]
async fn a_lease_from_a_call_of_its_own_can_be_adopted_and_its_label_stays() {
    let (_cluster, proxies, [_, mut new]) = two().await;
    let mut client = proxies[0].client().await;
    let held = granted(&mut client, AcquireRequest { owner: "me".to_owned(), ..want("a") }).await;
    let adopted = new.adopt(&held.lock_id, 1);
    new.granted(adopted).await;
    let holder = contended(&mut proxies[1].client().await, want("a")).await;
    assert_eq!(holder.owner, "me");
}

#[tokio::test]
async fn what_is_not_held_can_not_be_adopted() {
    let (cluster, proxies, [_, mut new]) = two().await;
    let mut client = proxies[0].client().await;
    let held = granted(&mut client, want("a")).await;
    release(&mut client, &held.lock_id).await;
    let adopted = new.adopt(&held.lock_id, 1);
    assert_eq!(new.lost(adopted).await.reason(), SessionLossReason::NotHeld);
    cluster.no_key_left().await;
    // Nor with the help of nodes that have lost it.
    let held = granted(&mut client, want("a")).await;
    proxies[0].idle().await;
    for node in &cluster.nodes[..3] {
        node.cli(&["DEL", "lock:a"]);
    }
    let adopted = new.adopt(&held.lock_id, 1);
    assert_eq!(new.lost(adopted).await.reason(), SessionLossReason::NotHeld);
}

/// The first try reached a minority of the nodes, and its answer nobody.
#[tokio::test]
async fn an_adoption_that_came_half_way_can_be_tried_again_with_a_higher_attempt_only() {
    let (cluster, proxies, [mut old, mut new]) = two().await;
    let (held, _) = old.take("a", 10_000).await;
    proxies[0].idle().await;
    for node in &cluster.nodes[..3] {
        node.stop();
    }
    let first = new.adopt(&held.lock_id, 1);
    assert_eq!(new.failed(first).await.0, Code::Unavailable as i32);
    for node in &cluster.nodes[..3] {
        node.resume();
    }
    until("all nodes to answer", || async { (proxies[1].nodes().await.voting == 5).then_some(()) }).await;
    let second = new.adopt(&held.lock_id, 2);
    let (adopted, _) = new.granted(second).await;
    let again = new.adopt(&held.lock_id, 2);
    assert_eq!(new.lost(again).await.reason(), SessionLossReason::NotHeld, "not twice by the same number");
    assert!(is_held(&mut proxies[0].client().await, &adopted.lock_id).await);
    assert_eq!(cluster.keys_on(&[0, 1, 2, 3, 4]).len(), 5);
}
