//! What operators see: metrics, probes, logs.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;

use redlockd::coordinator::lock_id::LockId;
use redlockd::metrics::CATALOGUE;
use redlockd::proto;
use support::*;

/// One of every kind of request.
async fn use_it(proxy: &Proxy, name: &str) -> String {
    let mut client = proxy.client().await;
    let lock_id = granted(&mut client, want(name)).await.lock_id;
    contended(&mut client, want(name)).await;
    let waiting = proto::AcquireRequest { wait: millis(50), ..want(name) };
    contended(&mut client, waiting).await;
    client.renew(proto::RenewRequest { lock_id: lock_id.clone(), ttl: seconds(10) }).await.unwrap();
    client.check(proto::CheckRequest { lock_id: lock_id.clone() }).await.unwrap();
    client.get(proto::GetRequest { name: name.to_owned() }).await.unwrap();
    client.acquire(want("")).await.unwrap_err();
    release(&mut client, &lock_id).await;
    release(&mut client, &lock_id).await;
    lock_id
}

#[tokio::test]
async fn every_metric_is_there_and_counts() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start(&cluster, &[]).await;
    use_it(&proxy, "orders/42").await;
    proxy.idle().await;
    let requests = |rpc, outcome| format!("redlock_requests_total{{rpc=\"{rpc}\",outcome=\"{outcome}\"}}");
    for (rpc, outcome, expected) in [
        ("Acquire", "granted", 1.0),
        ("Acquire", "contended", 2.0),
        ("Acquire", "invalid_argument", 1.0),
        ("Renew", "renewed", 1.0),
        ("Check", "held", 1.0),
        ("Get", "held", 1.0),
        ("Release", "released", 1.0),
        ("Release", "not_held", 1.0),
    ] {
        assert_eq!(proxy.metric(&requests(rpc, outcome)).await, expected, "{rpc} {outcome}");
    }
    assert_eq!(proxy.metric("redlock_attempts_total{outcome=\"granted\"}").await, 1.0);
    assert!(proxy.metric("redlock_attempts_total{outcome=\"contended\"}").await >= 2.0);
    assert_eq!(proxy.metric("redlock_renewals_total{outcome=\"renewed\"}").await, 1.0);
    assert_eq!(proxy.metric("redlock_hold_duration_seconds_count").await, 1.0);
    assert_eq!(proxy.metric("redlock_wait_duration_seconds_count").await, 1.0);
    assert_eq!(proxy.metric("redlock_waiters").await, 0.0);
    assert_eq!(proxy.metric("redlock_validity_left_ratio_count").await, 1.0);
    assert_eq!(proxy.metric("redlock_fencing_tokens_total").await, 1.0);
    assert!(proxy.metric("redlock_fencing_last_token").await > 1e15);
    assert_eq!(proxy.metric("redlock_quorum_margin").await, 1.0);
    let node = cluster.nodes[0].address();
    assert_eq!(proxy.metric(&format!("redlock_node_up{{node=\"{node}\"}}")).await, 1.0);
    assert!(proxy.metric(&format!("redlock_node_batch_size_count{{node=\"{node}\"}}")).await >= 5.0);
    assert!(proxy.metric("process_resident_memory_bytes").await > 1e6);

    let (_, text) = proxy.http_get("/metrics").await;
    for (name, _, help) in CATALOGUE {
        assert!(text.contains(&format!("# HELP {name} {help}")), "{name}");
    }
    assert!(!text.contains("orders"), "lock names are never labels");
}

#[tokio::test]
async fn labels_are_a_fixed_set() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start(&cluster, &[]).await;
    let series = || async {
        let (_, text) = proxy.http_get("/metrics").await;
        let names = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        names.map(|(name, _)| name.to_owned()).collect::<BTreeSet<String>>()
    };
    for name in ["a", "b/1"] {
        use_it(&proxy, name).await;
    }
    let some = series().await;
    for number in 0..50 {
        use_it(&proxy, &format!("c/{number}")).await;
    }
    assert_eq!(series().await, some, "more names make no more series");
}

#[tokio::test]
async fn probes_say_whether_locks_can_be_granted() {
    let mut cluster = Cluster::start_durable(3);
    let proxy = Proxy::start(&cluster, &[]).await;
    assert_eq!(proxy.http_get("/livez").await.0, 200);
    let (status, text) = proxy.http_get("/readyz?verbose").await;
    assert_eq!(status, 200);
    for node in &cluster.nodes {
        assert!(text.contains(&format!("node {}: up", node.address())), "{text}");
    }
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let text = until("a lost quorum to show", || async {
        let (status, text) = proxy.http_get("/readyz?verbose").await;
        (status == 503).then_some(text)
    })
    .await;
    assert!(text.contains("1 nodes can vote, 2 are needed"), "{text}");
    assert!(text.contains(&format!("node {}: down", cluster.nodes[0].address())), "{text}");
    assert_eq!(proxy.http_get("/livez").await.0, 200, "the process turns all the same");
    assert_eq!(proxy.metric("redlock_quorum_margin").await, -1.0);
    cluster.nodes[0].start_again();
    proxy.ready().await;
    cluster.fence.kill();
    let text = until("the lost counter to show", || async {
        let (status, text) = proxy.http_get("/readyz").await;
        (status == 503).then_some(text)
    })
    .await;
    assert!(text.contains(&cluster.fence.address()) && text.contains("fencing"), "{text}");
}

#[tokio::test]
async fn a_lock_id_or_its_secret_is_never_logged_and_nothing_per_acquire_by_default() {
    let cluster = Cluster::start(3);
    for (level, format) in [("trace", "text"), ("trace", "json")] {
        let proxy = Proxy::start(&cluster, &["--log-level", level, "--log-format", format]).await;
        let lock_id = use_it(&proxy, "orders/42").await;
        let secret = LockId::decode(&lock_id).unwrap().value.as_str().to_owned();
        let log = proxy.log();
        assert!(log.len() > 1000, "{level} logs nothing");
        assert!(!log.contains(&lock_id) && !log.contains(&secret), "a secret is in the log");
        assert!(format == "text" || log.lines().all(|line| line.starts_with('{')), "{log}");
    }
    let proxy = Proxy::start(&cluster, &[]).await;
    let before = proxy.log();
    for number in 0..20 {
        use_it(&proxy, &number.to_string()).await;
    }
    assert_eq!(proxy.log(), before);
    assert!(before.contains(&cluster.nodes[0].address()), "{before}");
}
