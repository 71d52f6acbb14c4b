//! `redlockd check` on real servers that are set up to have each problem, and on good ones; and `serve`, which looks too.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::clock::Clock;
use support::gate::{self, Hold};
use support::*;

/// Three nodes that lose nothing, members of one cluster.
fn good() -> Cluster {
    Cluster::start_durable(3)
}

/// Checks the servers, with more flags.
fn check(urls: &[String], fence: &str, flags: &[&str]) -> Ran {
    let names = (1..=urls.len()).map(|number| format!("n{number}")).collect::<Vec<_>>().join(",");
    let mut command = redlockd();
    command.args(["check", "-o", "json", "--nodes-urls", &urls.join(","), "--fencing-url", fence]);
    for (flag, value) in [("--nodes-names", names.as_str()), ("--nodes-timeout", "1s")] {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(flags).stdin(Stdio::null()).output().unwrap().into()
}

/// Name, severity and node of each finding.
fn findings(ran: &Ran) -> Vec<(String, String, String)> {
    let lines = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{}", ran.stdout)));
    let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let found = lines.filter(|line| line.get("finding").is_some());
    found
        .map(|line| {
            assert!(!text(&line, "value").is_empty() && !text(&line, "advice").is_empty(), "{line}");
            (text(&line, "finding"), text(&line, "severity"), text(&line, "node"))
        })
        .collect()
}

/// That this is found of this node, and nothing else of anybody.
#[track_caller]
fn finds(ran: &Ran, name: &str, severity: &str, node: &str) {
    assert_eq!(findings(ran), [(name.to_owned(), severity.to_owned(), node.to_owned())], "{} {}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, 1);
}

/// The second node is changed by a command.
fn with_setting(setting: &[&str]) -> (Cluster, Ran) {
    let cluster = good();
    assert_eq!(cluster.nodes[1].cli(setting), "OK");
    let ran = check(&cluster.urls(), &cluster.fence.url(), &[]);
    (cluster, ran)
}

#[test]
fn a_good_set_is_clean() {
    let cluster = good();
    let ran = check(&cluster.urls(), &cluster.fence.url(), &[]);
    assert_eq!((ran.code, findings(&ran)), (0, vec![]), "{} {}", ran.stdout, ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 4, "a line for each server: {}", ran.stdout);
    // Servers that nobody has used yet are as good.
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start(&DURABLE)).collect();
    let urls: Vec<String> = nodes.iter().map(Redis::url).collect();
    let ran = check(&urls, &cluster.fence.url(), &[]);
    assert_eq!((ran.code, findings(&ran)), (0, vec![]), "{}", ran.stdout);
    let keys = |redis: &Redis| redis.cli(&["KEYS", "*"]);
    until_blocking(|| nodes.iter().all(|node| keys(node).is_empty()));
}

/// What a check has tried out ends within a second.
fn until_blocking(condition: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn people_get_a_table_and_sentences() {
    let (cluster, _) = with_setting(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let args = ["check", "--nodes-urls", &cluster.urls().join(","), "--fencing-url", &cluster.fence.url()];
    let ran: Ran = redlockd().args(args).args(["--nodes-names", "n1,n2,n3", "--nodes-timeout", "1s"]).output().unwrap().into();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let node = cluster.nodes[1].address();
    says(
        &ran.stdout,
        &["ROUND TRIP", "PERSISTENCE", &format!("unsafe eviction {node}: "), "allkeys-lru", "noeviction", "1 finding"],
    );
    let rows = ran.stdout.lines().filter(|line| line.starts_with("lock ") || line.starts_with("fence ")).count();
    assert_eq!(rows, 4, "{}", ran.stdout);
}

#[test]
fn one_server_listed_twice_is_found_through_different_addresses() {
    let cluster = good();
    let mut urls = cluster.urls();
    urls[2] = format!("redis://localhost:{}", cluster.nodes[0].port);
    let ran = check(&urls, &cluster.fence.url(), &[]);
    finds(&ran, "same-server", "unsafe", &format!("localhost:{}", cluster.nodes[0].port));
}

#[test]
fn a_replica_is_found() {
    let cluster = good();
    let master = Redis::start(&DURABLE);
    let replica = Redis::start(&[&DURABLE[..], &["--replicaof", "127.0.0.1", &master.port.to_string()]].concat());
    let urls = [&cluster.urls()[..2], &[replica.url()]].concat();
    let ran = check(&urls, &cluster.fence.url(), &[]);
    let found = findings(&ran);
    assert!(found.contains(&("replica".to_owned(), "unsafe".to_owned(), replica.address())), "{found:?}");
    assert_eq!(ran.code, 1);
}

#[test]
fn cluster_mode_is_found() {
    let cluster = good();
    let port = free_port().to_string();
    let odd = Redis::start(&[&DURABLE[..], &["--cluster-enabled", "yes", "--cluster-port", &port]].concat());
    let urls = [&cluster.urls()[..2], &[odd.url()]].concat();
    let found = findings(&check(&urls, &cluster.fence.url(), &[]));
    assert!(found.contains(&("cluster-mode".to_owned(), "unsafe".to_owned(), odd.address())), "{found:?}");
}

#[test]
fn eviction_is_found() {
    let (cluster, ran) = with_setting(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    finds(&ran, "eviction", "unsafe", &cluster.nodes[1].address());
}

#[test]
fn missing_persistence_and_fsync_are_found() {
    let (cluster, ran) = with_setting(&["CONFIG", "SET", "appendonly", "no"]);
    finds(&ran, "persistence", "warning", &cluster.nodes[1].address());
    let (cluster, ran) = with_setting(&["CONFIG", "SET", "appendfsync", "everysec"]);
    finds(&ran, "fsync", "warning", &cluster.nodes[1].address());
    let (cluster, ran) = with_setting(&["CONFIG", "SET", "no-appendfsync-on-rewrite", "yes"]);
    finds(&ran, "fsync", "warning", &cluster.nodes[1].address());
}

#[test]
fn an_even_number_of_nodes_is_found() {
    let cluster = Cluster::start_durable(4);
    finds(&check(&cluster.urls(), &cluster.fence.url(), &[]), "even", "warning", "");
}

#[test]
fn a_clock_that_is_off_is_found() {
    let cluster = good();
    let clock = Clock::new();
    let off = Redis::start_in(&DURABLE, &[], clock.environment());
    off.establish(3);
    clock.shift(40_000_000);
    let urls = [&cluster.urls()[..2], &[off.url()]].concat();
    finds(&check(&urls, &cluster.fence.url(), &[]), "clock-offset", "warning", &off.address());
}

#[tokio::test]
async fn a_slow_way_is_found() {
    let cluster = good();
    let gates = gate::before_all([cluster.nodes[2].port].into_iter()).await;
    gates[0].set(Hold { delay: Duration::from_millis(100), ..Hold::default() });
    let urls = [&cluster.urls()[..2], &[gates[0].url()]].concat();
    let fence = cluster.fence.url();
    // The others are far below their time-out also on a busy machine.
    let ran = tokio::task::spawn_blocking(move || check(&urls, &fence, &["--nodes-timeout", "150ms"])).await.unwrap();
    let found = findings(&ran);
    assert!(
        found.iter().any(|(name, severity, node)| name == "round-trip"
            && severity == "warning"
            && gates[0].url().ends_with(node.as_str())),
        "{found:?}"
    );
}

#[test]
fn a_missing_permission_is_found() {
    let cluster = good();
    let (node, fence) = (&cluster.nodes[1], &cluster.fence);
    node.cli(&["ACL", "SETUSER", "default", "-pexpire"]);
    finds(&check(&cluster.urls(), &fence.url(), &[]), "permission", "warning", &node.address());
    node.cli(&["ACL", "SETUSER", "default", "+pexpire", "-scan"]);
    finds(&check(&cluster.urls(), &fence.url(), &[]), "permission", "warning", &node.address());
    for (allowed, refused) in [("+scan", "-publish"), ("+publish", "-subscribe"), ("+subscribe", "-pubsub")] {
        node.cli(&["ACL", "SETUSER", "default", allowed, refused]);
        finds(&check(&cluster.urls(), &fence.url(), &[]), "permission", "warning", &node.address());
    }
    node.cli(&["ACL", "SETUSER", "default", "+pubsub", "-config"]);
    finds(&check(&cluster.urls(), &fence.url(), &[]), "settings", "warning", &node.address());
    node.cli(&["ACL", "SETUSER", "default", "+config"]);
    fence.cli(&["ACL", "SETUSER", "default", "-set"]);
    finds(&check(&cluster.urls(), &fence.url(), &[]), "permission", "warning", &fence.address());
}

#[test]
fn a_server_that_can_not_be_reached_is_named() {
    let mut cluster = good();
    cluster.nodes[1].kill();
    let ran = check(&cluster.urls(), &cluster.fence.url(), &[]);
    assert_eq!(ran.code, 69);
    assert_eq!(findings(&ran), [("unreachable".to_owned(), "unreachable".to_owned(), cluster.nodes[1].address())]);
}

#[test]
fn nodes_of_another_cluster_are_found() {
    let cluster = good();
    let found = || findings(&check(&cluster.urls(), &cluster.fence.url(), &[]));
    let foreign = |severity: &str, node: usize| ("foreign".to_owned(), severity.to_owned(), cluster.nodes[node].address());
    cluster.nodes[1].establish(9);
    assert_eq!(found(), [foreign("warning", 1)], "one that was left behind");
    cluster.nodes[2].cli(&["SET", "redlockd:member", "redlockd/7 what comes after us"]);
    assert_eq!(found(), [foreign("unsafe", 1), foreign("unsafe", 2)]);
}

#[test]
fn nodes_that_do_not_vote_are_found() {
    let mut cluster = Cluster::start(3);
    let nodes_without_disk = |name: &str| name == "persistence";
    let found = |cluster: &Cluster| -> Vec<(String, String)> {
        let found = findings(&check(&cluster.urls(), &cluster.fence.url(), &[]));
        found.into_iter().filter(|(name, ..)| !nodes_without_disk(name)).map(|(name, _, node)| (name, node)).collect()
    };
    cluster.nodes[1].start_again();
    assert_eq!(found(&cluster), [("no-marker".to_owned(), String::new())]);
    let copy = cluster.nodes[2].cli(&["GET", "redlockd:member"]);
    cluster.nodes[1].cli(&["SET", "redlockd:member", &copy]);
    assert_eq!(found(&cluster), [("quarantined".to_owned(), cluster.nodes[1].address())]);
}

#[tokio::test]
async fn a_proxy_does_not_start_where_locks_are_not_safe_unless_that_is_allowed() {
    let (cluster, _) = with_setting(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]);
    let serve = |flags: &[&str]| -> Ran {
        let mut command = redlockd();
        command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--nodes-names", "n1,n2,n3"]);
        command.args(["--nodes-urls", &cluster.urls().join(","), "--fencing-url", &cluster.fence.url()]).args(flags);
        command.stdin(Stdio::null()).output().unwrap().into()
    };
    let refused = serve(&[]);
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    says(&refused.stderr, &["eviction", &cluster.nodes[1].address(), "allkeys-random", "--allow-unsafe eviction"]);
    assert!(!refused.stdout.contains("listening"), "{}", refused.stdout);
    says(&serve(&["--allow-unsafe", "evictions"]).stderr, &["evictions", "eviction", "replica"]);
    // Another problem's name allows nothing.
    assert_eq!(serve(&["--allow-unsafe", "replica"]).code, 69);
    let proxy = Proxy::start(&cluster, &["--allow-unsafe", "eviction"]).await;
    says(&proxy.log(), &["eviction", "allkeys-random"]);
    granted(&mut proxy.client().await, want("a")).await;
}
