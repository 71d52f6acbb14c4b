//! Proxies keep nothing: every one of them serves every lock.

use redlockd::proto::check_response::Outcome as Checked;
use redlockd::proto::renew_response::Outcome as Renewed;
use redlockd::proto::still_held::Fencing;
use redlockd::proto::{AcquireRequest, ReleaseOutcome};

use crate::support::*;

#[tokio::test]
async fn two_proxies_exclude_each_other_and_tokens_rise_across_them() {
    let cluster = Cluster::start(5);
    let proxies = [Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await];
    let mut clients = [proxies[0].client().await, proxies[1].client().await];

    let mut last = 0;
    for round in 0..20 {
        let (taker, other) = (round % 2, (round + 1) % 2);
        let request = AcquireRequest { owner: format!("proxy {taker}"), wait: seconds(60), ..want("orders/42") };
        let held = granted(&mut clients[taker], request).await;
        assert!(token(&held) > last, "{} after {last}", token(&held));
        last = token(&held);
        let refused = contended(&mut clients[other], want("orders/42")).await;
        assert_eq!(refused.owner, format!("proxy {taker}"));
        assert_eq!(release(&mut clients[taker], &held.lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_lock_id_is_good_at_every_proxy() {
    let cluster = Cluster::start(5);
    let first = Proxy::start_whole(&cluster, &[]).await;
    let second = Proxy::start_whole(&cluster, &[]).await;
    let held = granted(&mut first.client().await, AcquireRequest { ttl: seconds(30), ..want("orders/42") }).await;
    // The one that granted it is not needed any more.
    drop(first);

    let mut client = second.client().await;
    match check(&mut client, &held.lock_id).await {
        Checked::Held(checked) => {
            assert_eq!(checked.name, "orders/42");
            assert_eq!(checked.fencing, Some(Fencing::FencingToken(token(&held))));
        }
        Checked::NotHeld(_) => panic!("not held"),
    }
    let outcome = renew(&mut client, &held.lock_id, seconds(60)).await;
    assert!(matches!(outcome, Renewed::Renewed(_)), "{outcome:?}");
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    assert!(!is_held(&mut client, &held.lock_id).await);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn of_many_callers_at_two_proxies_one_gets_the_lock() {
    let cluster = Cluster::start(5);
    let proxies = [Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await];
    let mut calls = tokio::task::JoinSet::new();
    for caller in 0..40 {
        let mut client = proxies[caller % 2].client().await;
        calls.spawn(async move {
            let request = AcquireRequest { ttl: seconds(120), wait: seconds(5), ..want("orders/42") };
            acquire(&mut client, request).await
        });
    }
    let outcomes = calls.join_all().await;
    let winners = outcomes.iter().filter(|outcome| matches!(outcome, redlockd::proto::acquire_response::Outcome::Granted(_)));
    assert_eq!(winners.count(), 1, "{outcomes:?}");
    proxies[0].idle().await;
    proxies[1].idle().await;
    until("the winner's value alone", || async {
        let values: Vec<String> = cluster.nodes.iter().map(|node| node.value("orders/42")).collect();
        let held: std::collections::BTreeSet<&String> = values.iter().filter(|value| !value.is_empty()).collect();
        (held.len() == 1).then_some(())
    })
    .await;
}
