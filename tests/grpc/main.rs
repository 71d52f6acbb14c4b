//! The contract of the RPCs, on real servers.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use redlockd::proto;
use redlockd::proto::ReleaseOutcome;
use support::*;

#[tokio::test]
async fn a_lock_is_taken_refused_and_given_back() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut client = proxy.client().await;

    let first = granted(&mut client, want("orders/42")).await;
    assert!(std_duration(first.validity).as_millis() > 5_000);
    let refused = contended(&mut client, proto::AcquireRequest { owner: "other".to_owned(), ..want("orders/42") }).await;
    assert_eq!(refused.owner, "test");
    assert!(std_duration(refused.retry_after).as_millis() > 0);

    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::NotHeld);
    cluster.no_key_left().await;

    let second = granted(&mut client, want("orders/42")).await;
    assert!(token(&second) > token(&first));
}
