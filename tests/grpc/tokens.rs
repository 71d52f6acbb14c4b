//! Fencing tokens when the server that counts them is gone before, during and after an acquire.

use redlockd::proto;
use redlockd::proto::check_response::Outcome as Checked;
use redlockd::proto::granted::Fencing;
use redlockd::proto::renew_response::Outcome as Renewed;
use redlockd::proto::{AcquireRequest, ReleaseOutcome, TokenRequirement};
use tonic_types::StatusExt;

use crate::support::*;

fn best_effort(name: &str) -> AcquireRequest {
    AcquireRequest { token: TokenRequirement::BestEffort.into(), ..want(name) }
}

/// Why a grant has no token.
fn no_token(granted: &proto::Granted) -> &str {
    match &granted.fencing {
        Some(Fencing::NoToken(why)) => &why.reason,
        other => panic!("{other:?} in place of no token"),
    }
}

#[tokio::test]
async fn before_an_acquire() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let first = granted(&mut client, want("first")).await;
    cluster.fence.kill();
    let fence = cluster.fence.address();
    until("the proxy to notice", || async {
        let (code, text) = proxy.http_get("/readyz?verbose").await;
        (code == 503 && text.contains(&fence) && text.contains("refused")).then_some(())
    })
    .await;

    let status = acquire_error(&mut client, want("orders/42")).await;
    unavailable(&status, &[&fence, "refused", "BEST_EFFORT"]);
    let info = status.get_details_error_info().expect("google.rpc.ErrorInfo");
    assert!(info.metadata.contains_key(&fence), "{info:?}");
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;

    let without = granted(&mut client, best_effort("orders/42")).await;
    assert!(!no_token(&without).is_empty());
    match check(&mut client, &without.lock_id).await {
        Checked::Held(held) => assert!(matches!(held.fencing, Some(proto::still_held::Fencing::NoToken(_))), "{held:?}"),
        Checked::NotHeld(_) => panic!("not held"),
    }
    assert_eq!(release(&mut client, &without.lock_id).await, ReleaseOutcome::Released);

    // With its data back, it goes on above what it had handed out.
    cluster.fence.start_again();
    proxy.ready().await;
    let second = granted(&mut client, want("orders/42")).await;
    assert!(token(&second) > token(&first));
    let best = granted(&mut client, best_effort("orders/43")).await;
    assert!(token(&best) > token(&second), "best effort is a token wherever there is one");
}

#[tokio::test]
async fn during_an_acquire() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let first = granted(&mut client, want("first")).await;
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);

    cluster.fence.stop();
    // The first call finds out by its time-out, later ones know.
    for _ in 0..2 {
        let status = acquire_error(&mut client, AcquireRequest { ttl: seconds(60), ..want("orders/42") }).await;
        unavailable(&status, &[&cluster.fence.address(), "timeout"]);
    }
    cluster.no_key_left().await;
    let without = granted(&mut client, AcquireRequest { ttl: seconds(60), ..best_effort("orders/42") }).await;
    says(no_token(&without), &["timeout"]);
    assert_eq!(release(&mut client, &without.lock_id).await, ReleaseOutcome::Released);

    cluster.fence.resume();
    let second = granted(&mut client, AcquireRequest { wait: seconds(60), ..want("orders/42") }).await;
    assert!(token(&second) > token(&first));
}

#[tokio::test]
async fn after_an_acquire() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(30), ..want("orders/42") }).await;
    cluster.fence.kill();

    match check(&mut client, &held.lock_id).await {
        Checked::Held(checked) => {
            assert_eq!(checked.fencing, Some(proto::still_held::Fencing::FencingToken(token(&held))), "it is in the lock id");
        }
        Checked::NotHeld(_) => panic!("not held"),
    }
    let outcome = renew(&mut client, &held.lock_id, seconds(60)).await;
    assert!(matches!(outcome, Renewed::Renewed(_)), "{outcome:?}");
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_wait_outlasts_the_loss_of_the_counter() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let first = granted(&mut client, want("first")).await;
    cluster.fence.kill();
    let mut waiting = client.clone();
    let call =
        tokio::spawn(async move { granted(&mut waiting, AcquireRequest { wait: seconds(600), ..want("orders/42") }).await });
    until("a try without a token", || async { (proxy.metric("redlock_fencing_unavailable_total").await > 0.0).then_some(()) })
        .await;
    assert!(!call.is_finished());
    cluster.fence.start_again();
    assert!(token(&call.await.unwrap()) > token(&first));
}
