//! Replaced servers, new clusters, power that was lost.

use std::time::{Duration, Instant};

use super::*;
use crate::support::clock::Clock;

/// A balancer leads to another, empty server that has been up for days: its uptime says nothing.
#[tokio::test]
async fn an_empty_server_in_place_of_a_node_waits_its_time_however_long_it_has_been_up() {
    let cluster = fresh(3);
    let clock = Clock::new();
    clock.shift(-3 * 86_400_000_000);
    let stranger = Redis::start_in(&[], &[], clock.environment());
    clock.shift(0);
    until("days of uptime", || async {
        let info = stranger.cli(&["INFO", "server"]);
        info.contains("uptime_in_days:3").then_some(())
    })
    .await;
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let urls: Vec<String> = gates.iter().map(gate::Gate::url).collect();
    let proxy = Proxy::start_unready(&urls, &cluster.fence.url(), &short("15s")).await;
    voting(&proxy, 3).await;
    let mut client = proxy.client().await;
    // Held by the two nodes that stay, and by the one that goes.
    let request = || proto::AcquireRequest { ttl: seconds(15), ..want("orders/42") };
    let held = granted(&mut client, request()).await;

    let began = Instant::now();
    gates[0].lead_to(stranger.port);
    let status = quarantined(&proxy, 0).await;
    says(&status.detail, &["had no marker", "--nodes-bootstrap now"]);
    assert!(status.uptime.unwrap().seconds >= 86_400, "{status:?}");
    assert_eq!(proxy.metric_sum("redlock_node_quarantined", "reason=\"missing\"").await, 1.0);
    says(&proxy.http_get("/readyz?verbose").await.1, &["quarantined for another"]);
    let table = run(&proxy, &["nodes"]).stdout;
    says(&table, &["quarantined", "until 20"]);

    // The other two go on.
    let other = granted(&mut client, proto::AcquireRequest { ttl: seconds(15), ..want("orders/43") }).await;
    assert_eq!(release(&mut client, &other.lock_id).await, proto::ReleaseOutcome::Released);
    // One of them away, and there is no quorum, although two answer.
    cluster.nodes[2].stop();
    let mut refused = 0;
    let status = loop {
        match client.acquire(request()).await {
            Err(status) => {
                refused += 1;
                if status.message().contains("quarantined for another") {
                    break status;
                }
            }
            Ok(answer) => panic!("granted to two: {answer:?}, held: {held:?}"),
        }
        assert!(refused < 500, "nobody says why");
    };
    unavailable(&status, &["no quorum", "had no marker"]);
    cluster.nodes[2].resume();

    voting(&proxy, 3).await;
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(15), "it voted after {waited:?}");
    println!("it votes again after {waited:?}");
    let lost = proxy.node(0).await.votes_lost;
    assert_eq!(proxy.metric_sum("redlock_node_votes_lost_total", "").await, lost as f64);
}

#[tokio::test]
async fn a_new_cluster_works_at_once_if_people_say_that_it_is_new() {
    let cluster = fresh(5);
    let proxy = Proxy::start(&cluster, &[]).await;
    voting(&proxy, 5).await;
    let first = granted(&mut proxy.client().await, want("a")).await;
    // Once is enough: the next proxy knows as much.
    let second = Proxy::start(&cluster, &["--nodes-bootstrap", "wait"]).await;
    voting(&second, 5).await;
    contended(&mut second.client().await, want("a")).await;
    assert!(token(&granted(&mut second.client().await, want("b")).await) > token(&first));
    // A node that loses its data later on is not new.
    cluster.nodes[1].cli(&["FLUSHALL"]);
    for proxy in [&proxy, &second] {
        quarantined(proxy, 1).await;
    }
}

#[tokio::test]
async fn without_a_word_a_new_cluster_is_taken_for_one_that_lost_everything() {
    let cluster = fresh(3);
    let flags = [&short("10s")[..], &["--nodes-bootstrap", "wait"]].concat();
    let began = Instant::now();
    let proxy = Proxy::start_unready(&cluster.urls(), &cluster.fence.url(), &flags).await;
    let status = until("a refusal that says why", || async {
        let refused = proxy.client().await.acquire(proto::AcquireRequest { ttl: seconds(10), ..want("a") }).await.err()?;
        refused.message().contains("quarantined for another").then_some(refused)
    })
    .await;
    unavailable(&status, &["--nodes-bootstrap now"]);
    proxy.ready().await;
    assert!(began.elapsed() > Duration::from_secs(10));
    granted(&mut proxy.client().await, proto::AcquireRequest { ttl: seconds(10), ..want("a") }).await;
}

#[tokio::test]
async fn a_cluster_that_lost_power_says_for_how_long_still() {
    let mut cluster = fresh(3);
    let proxy = Proxy::start(&cluster, &[]).await;
    voting(&proxy, 3).await;
    granted(&mut proxy.client().await, want("a")).await;
    drop(proxy);
    for node in &mut cluster.nodes {
        node.start_again();
    }
    // Nobody may take it for new: the counter remembers.
    let proxy = Proxy::start_unready(&cluster.urls(), &cluster.fence.url(), &["--nodes-bootstrap", "now"]).await;
    for node in 0..3 {
        quarantined(&proxy, node).await;
    }
    let status = acquire_error(&mut proxy.client().await, want("a")).await;
    unavailable(&status, &["no quorum"]);
    let lines: Vec<&str> = status.message().lines().filter(|line| line.contains("quarantined for another")).collect();
    assert!(lines.len() >= 2, "as many as it takes to know: {}", status.message());
    let (code, text) = proxy.http_get("/readyz?verbose").await;
    assert_eq!(code, 503);
    says(&text, &["0 nodes can vote, 2 are needed; a quorum can vote again in", "quarantined for another"]);
    let args = ["check", "--nodes-names", "n1,n2,n3", "--nodes-urls", &cluster.urls().join(",")];
    let checked: Ran = redlockd().args(args).args(["--fencing-url", &cluster.fence.url()]).output().unwrap().into();
    assert_eq!(checked.code, 1);
    says(&checked.stdout, &["quarantined", "for about", "s still"]);
}
