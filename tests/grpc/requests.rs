//! Waiting, deadlines, retries and the cap on requests.

use std::time::{Duration, Instant};

use redlockd::proto::{self, AcquireRequest, ReleaseOutcome};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::support::*;

/// An acquire that runs by itself.
fn call(
    client: &redlockd::proto::lock_service_client::LockServiceClient<Channel>,
    request: AcquireRequest,
) -> tokio::task::JoinHandle<Result<proto::acquire_response::Outcome, Status>> {
    let mut client = client.clone();
    tokio::spawn(async move { client.acquire(request).await.map(|answer| answer.into_inner().outcome.unwrap()) })
}

/// Waits until `count` callers wait for a lock.
async fn waiters(proxy: &Proxy, count: usize) {
    until("the waiters", || async { (proxy.metric("redlock_waiters").await == count as f64).then_some(()) }).await;
}

#[tokio::test]
async fn who_waits_gets_the_lock_when_it_is_released() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let first = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    let waiting = call(&client, AcquireRequest { wait: seconds(200), ..want("orders/42") });
    waiters(&proxy, 1).await;
    assert!(!waiting.is_finished());

    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);
    match waiting.await.unwrap().unwrap() {
        proto::acquire_response::Outcome::Granted(second) => {
            assert!(token(&second) > token(&first));
            assert!(is_held(&mut client, &second.lock_id).await);
        }
        proto::acquire_response::Outcome::Contended(contended) => panic!("{contended:?}"),
    }
    waiters(&proxy, 0).await;
}

#[tokio::test]
async fn a_wait_that_runs_out_is_answered_with_the_holder() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    granted(&mut client, AcquireRequest { ttl: seconds(240), owner: "ann".to_owned(), ..want("orders/42") }).await;
    let started = Instant::now();
    let refused = contended(&mut client, AcquireRequest { wait: millis(700), ..want("orders/42") }).await;
    assert!(started.elapsed() >= Duration::from_millis(700), "{:?}", started.elapsed());
    assert_eq!(refused.owner, "ann");
    assert!(std_duration(refused.retry_after) > Duration::from_secs(60));
}

#[tokio::test]
async fn the_clients_own_deadline_is_answered_by_us_and_leaves_no_lock() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let first = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;

    // The client ends the call by itself when our answer is held up on its way, as it may be on a busy machine.
    let status = until("an answer to a deadline", || {
        let mut client = client.clone();
        async move {
            let mut request = Request::new(AcquireRequest { wait: seconds(200), ..want("orders/42") });
            request.set_timeout(Duration::from_millis(400));
            let status = client.acquire(request).await.unwrap_err();
            (status.code() != Code::Cancelled).then_some(status)
        }
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    says(status.message(), &["deadline"]);
    let counted = proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"deadline_exceeded\"}").await;
    assert!(counted >= 1.0);

    waiters(&proxy, 0).await;
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_deadline_in_the_middle_of_the_votes_leaves_no_key() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &["--nodes-timeout", "30s"]).await;
    let client = proxy.client().await;
    // One node votes, two are silent for longer than the deadline.
    cluster.nodes[1].stop();
    cluster.nodes[2].stop();
    let mut request = Request::new(AcquireRequest { ttl: seconds(300), ..want("orders/42") });
    request.set_timeout(Duration::from_millis(600));
    let status = client.clone().acquire(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    until("the answer to be counted", || async {
        let counted = proxy.metric("redlock_requests_total{rpc=\"Acquire\",outcome=\"deadline_exceeded\"}").await;
        (counted == 1.0).then_some(())
    })
    .await;
    // What they were sent before is still in their sockets: they carry it out, and then the release.
    cluster.nodes[1].resume();
    cluster.nodes[2].resume();
    proxy.idle().await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_retry_with_a_higher_attempt_replaces_the_lock_and_no_other_does() {
    let cluster = Cluster::start(5);
    let proxies = [Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await];
    let (mut client, mut elsewhere) = (proxies[0].client().await, proxies[1].client().await);
    let request = |attempt| AcquireRequest {
        request_id: b"0f8fad5b-d9cb-469f-a165-70867728950e".to_vec().into(),
        attempt,
        ttl: seconds(120),
        ..want("orders/42")
    };

    // 0 counts as 1.
    let first = granted(&mut client, request(0)).await;
    for attempt in [0, 1] {
        contended(&mut client, request(attempt)).await;
        contended(&mut elsewhere, request(attempt)).await;
    }
    assert!(is_held(&mut client, &first.lock_id).await, "an equal attempt has taken the lock");

    let third = granted(&mut elsewhere, request(3)).await;
    assert_ne!(third.lock_id, first.lock_id);
    assert!(token(&third) > token(&first));
    assert!(!is_held(&mut client, &first.lock_id).await);
    assert!(is_held(&mut client, &third.lock_id).await);
    for attempt in [1, 2, 3] {
        contended(&mut client, request(attempt)).await;
    }
    // Another request, and the same request for another name, are somebody else's.
    let other = AcquireRequest { request_id: vec![7; 16].into(), ..request(9) };
    contended(&mut client, other).await;
    let other_name = AcquireRequest { name: "orders/43".to_owned(), ..request(1) };
    let other_name = granted(&mut client, other_name).await;

    // What was replaced can free nothing.
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::NotHeld);
    assert!(is_held(&mut client, &third.lock_id).await);

    // A repeat after a release is a new acquire, whatever its number.
    for lock_id in [&third.lock_id, &other_name.lock_id] {
        assert_eq!(release(&mut client, lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
    let again = granted(&mut client, request(1)).await;
    assert!(token(&again) > token(&third));
}

#[tokio::test]
async fn a_retry_does_not_shorten_the_keys() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let request =
        |attempt, ttl| AcquireRequest { request_id: vec![1; 16].into(), attempt, ttl: seconds(ttl), ..want("orders/42") };
    granted(&mut client, request(1, 240)).await;
    until("the lock on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3).then_some(()) }).await;
    let second = granted(&mut client, request(2, 20)).await;
    assert!(std_duration(second.validity) < Duration::from_secs(20));
    proxy.idle().await;
    for node in &cluster.nodes {
        assert!(node.pttl("orders/42").unwrap() > 60_000);
    }
}

fn is_exhausted(status: &Status, words: &[&str]) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(delay.is_some_and(|delay| delay > Duration::ZERO), "{status:?}");
    says(status.message(), words);
}

#[tokio::test]
async fn too_many_requests_are_refused_and_served_again_later() {
    let cluster = Cluster::start(3);
    let other = Proxy::start_whole(&cluster, &[]).await;
    let proxy = Proxy::start_whole(&cluster, &["--limits-max-inflight", "1", "--nodes-timeout", "30s"]).await;
    let held = granted(&mut other.client().await, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;

    let mut client = proxy.client().await;
    // Waits for votes a tenth of its TTL.
    cluster.nodes[..2].iter().for_each(Redis::stop);
    let slow = call(&client, AcquireRequest { ttl: seconds(280), ..want("orders/44") });
    until("a request", || async { (proxy.metric("redlock_inflight_requests").await == 1.0).then_some(()) }).await;
    let acquired = client.acquire(want("orders/43")).await.map(drop);
    let released = client.release(proto::ReleaseRequest { lock_id: held.lock_id.clone() }).await.map(drop);
    for status in [acquired, released].map(Result::unwrap_err) {
        is_exhausted(&status, &["1", "max_inflight"]);
    }
    cluster.nodes[..2].iter().for_each(Redis::resume);
    let proto::acquire_response::Outcome::Granted(taken) = slow.await.unwrap().unwrap() else { panic!("contended") };
    until("the other proxy to see the nodes", || async { (other.nodes().await.voting == 3).then_some(()) }).await;
    assert!(is_held(&mut other.client().await, &held.lock_id).await, "a refused release does nothing");
    // The slot is free again as soon as its request is over.
    until("a free slot", || async { (proxy.metric("redlock_inflight_requests").await == 0.0).then_some(()) }).await;
    for lease in [taken, held] {
        assert_eq!(release(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
}

/// Whoever waits keeps nobody from releasing, and a line has an end.
#[tokio::test]
async fn a_line_is_first_in_first_out_and_bounded() {
    let cluster = Cluster::start(3);
    let flags = ["--limits-max-inflight", "2", "--limits-max-waiters-per-name", "5", "--limits-max-waiters", "6"];
    let proxy = Proxy::start_whole(&cluster, &flags).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    let mut line = Vec::new();
    for number in 1..=5 {
        line.push(call(&client, AcquireRequest { wait: seconds(200), ttl: seconds(240), ..want("orders/42") }));
        waiters(&proxy, number).await;
    }
    let patient = |name: &str| AcquireRequest { wait: seconds(200), ..want(name) };
    is_exhausted(&client.acquire(patient("orders/42")).await.unwrap_err(), &["5", "max_waiters_per_name"]);
    let get = client.get(proto::GetRequest { name: "orders/42".to_owned() }).await.unwrap().into_inner();
    assert_eq!(get.waiters, 5);
    let elsewhere = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/43") }).await;
    let sixth = call(&client, patient("orders/43"));
    waiters(&proxy, 6).await;
    is_exhausted(&client.acquire(patient("orders/44")).await.unwrap_err(), &["6", "max_waiters)"]);

    let mut holder = held;
    for (place, next) in line.into_iter().enumerate() {
        let request = want("orders/42");
        let response = client.acquire(request).await.unwrap().into_inner().outcome.unwrap();
        let proto::acquire_response::Outcome::Contended(contended) = response else { panic!("{response:?}") };
        assert_eq!(contended.place_in_line as usize, 5 - place);
        assert_eq!(release(&mut client, &holder.lock_id).await, ReleaseOutcome::Released);
        let next = next.await.unwrap().unwrap();
        let proto::acquire_response::Outcome::Granted(next) = next else { panic!("{next:?}") };
        assert!(token(&next) > token(&holder), "{next:?} after {holder:?}");
        holder = next;
    }
    assert_eq!(proxy.metric("redlock_handovers_total").await, 5.0);
    assert_eq!(release(&mut client, &holder.lock_id).await, ReleaseOutcome::Released);
    assert_eq!(release(&mut client, &elsewhere.lock_id).await, ReleaseOutcome::Released);
    let proto::acquire_response::Outcome::Granted(sixth) = sixth.await.unwrap().unwrap() else { panic!("contended") };
    assert_eq!(release(&mut client, &sixth.lock_id).await, ReleaseOutcome::Released);
    waiters(&proxy, 0).await;
    cluster.no_key_left().await;
}
