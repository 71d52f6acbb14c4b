//! Which names are held: in order, in pages, in small steps, without a secret.

use std::collections::BTreeSet;
use std::time::Duration;

use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{AcquireRequest, HeldLock, ListRequest, ListResponse, ReleaseOutcome};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::support::*;

type Client = LockServiceClient<Channel>;

async fn page(client: &mut Client, prefix: &str, page_size: u32, page_token: &str) -> ListResponse {
    let request = ListRequest { prefix: prefix.to_owned(), page_size, page_token: page_token.to_owned() };
    client.list(request).await.unwrap().into_inner()
}

/// Every page to the last, none of them with more than `most`.
async fn pages(client: &mut Client, prefix: &str, page_size: u32, most: usize) -> Vec<Vec<HeldLock>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let next = page(client, prefix, page_size, &token).await;
        assert!(next.locks.len() <= most, "{}", next.locks.len());
        all.push(next.locks);
        if next.next_page_token.is_empty() {
            return all;
        }
        token = next.next_page_token;
    }
}

fn names(locks: &[HeldLock]) -> Vec<&str> {
    locks.iter().map(|lock| lock.name.as_str()).collect()
}

async fn all(client: &mut Client, prefix: &str) -> Vec<String> {
    pages(client, prefix, 0, 100).await.concat().into_iter().map(|lock| lock.name).collect()
}

/// Locks that were taken through another proxy: `ann`'s, each with a secret of its own, for about ten minutes. It blocks its thread:
/// connections need others to answer the proxy's keep-alives.
fn plant(nodes: &[Redis], prefix: &str, count: u32) {
    let script =
        "for i = 1, ARGV[2] do redis.call('SET', ARGV[1] .. i, string.format('%032x;ann', 4096 + i), 'PX', 600000) end";
    for node in nodes {
        node.cli(&["EVAL", script, "0", &format!("lock:{prefix}"), &count.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_in_order_and_in_pages_with_all_but_the_secret() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    assert_eq!(page(&mut client, "", 0, "").await, ListResponse::default());

    plant(&cluster.nodes, "orders/", 1_100);
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders") }).await;
    until("the lock on every node", || async { cluster.nodes.iter().all(|node| node.pttl("orders").is_some()).then_some(()) })
        .await;
    granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("other") }).await;
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.acquire(AcquireRequest { wait: seconds(200), ..want("orders") }).await }
    });
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;

    let mut expected: Vec<String> = (1..=1_100).map(|number| format!("orders/{number}")).collect();
    expected.push("orders".to_owned());
    expected.sort();
    // None is the default, and more than the most is the most.
    for (size, most) in [(0, 100), (7, 7), (550, 550), (1_000, 1_000), (1_101, 1_000), (u32::MAX, 1_000)] {
        let pages = pages(&mut client, "orders", size, most).await;
        assert_eq!(pages.len(), 1_101_usize.div_ceil(most), "{size}");
        assert_eq!(names(&pages.concat()), expected, "{size}");
    }

    let first = page(&mut client, "orders", 2, "").await.locks;
    let HeldLock { owner, time_left, fencing_token, waiters, nodes, .. } = &first[0];
    assert_eq!((owner.as_str(), *fencing_token, *waiters, *nodes), ("test", Some(token(&held)), 1, 3));
    let left = std_duration(*time_left);
    assert!(left > Duration::from_secs(120) && left < Duration::from_secs(240), "{left:?}");
    // Granted by nobody that this proxy knows of.
    let HeldLock { owner, fencing_token, waiters, nodes, .. } = &first[1];
    assert_eq!((owner.as_str(), *fencing_token, *waiters, *nodes), ("ann", None, 0, 3));
    let shown = format!("{:?}", page(&mut client, "", 1_000, "").await);
    let values = cluster.nodes[0].value("orders") + &cluster.nodes[0].value("orders/1");
    for secret in values.split([';', '.']).filter(|part| part.len() >= 32) {
        assert!(!shown.contains(&secret[..32]) && !shown.contains(&held.lock_id[4..]), "{secret}");
    }
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_beginning_is_no_pattern() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let names = ["*", "**", "a*", "ab", "a?", "a[b]", "a\\", "a\\*", "ü", "a]"];
    for name in names {
        granted(&mut client, AcquireRequest { ttl: seconds(240), ..want(name) }).await;
    }
    for prefix in names.into_iter().chain(["", "a", "a[", "x"]) {
        let expected: BTreeSet<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(all(&mut client, prefix).await, Vec::from_iter(expected), "{prefix}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_and_what_is_no_lock_are_left_out() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let [one, two, three] = [0, 1, 2].map(|node| &cluster.nodes[node]);
    plant(&cluster.nodes[..2], "two", 1);
    plant(&cluster.nodes[1..], "leftover", 1);
    one.cli(&["SET", "lock:leftover1", "somebody else's", "PX", "600000"]);
    two.cli(&["DEL", "lock:leftover1"]);
    // Of another program, without an end.
    cluster.nodes.iter().for_each(|node| drop(node.cli(&["SET", "lock:foreign", "pass;word"])));
    for node in &cluster.nodes {
        node.cli(&["LPUSH", "lock:list", "x"]);
        node.cli(&["SET", "lock:", "x"]);
        node.cli(&["SET", "lock:two\nlines", "x"]);
        node.cli(&["SET", "elsewhere", "x"]);
    }
    let locks = page(&mut client, "", 0, "").await.locks;
    assert_eq!(names(&locks), ["foreign", "two1"]);
    assert_eq!((locks[0].owner.as_str(), locks[0].nodes), ("", 3));
    assert!(std_duration(locks[0].time_left) > Duration::from_secs(3_000), "{:?}", locks[0]);
    assert_eq!(locks[1].nodes, 2);

    // Where a node does not answer, it may hold what only one of the others does.
    one.stop();
    let locks = page(&mut client, "", 0, "").await.locks;
    assert_eq!(names(&locks), ["foreign", "leftover1", "two1"]);
    assert_eq!(locks.iter().map(|lock| lock.nodes).collect::<Vec<_>>(), [2, 1, 1]);
    let left = std_duration(locks[2].time_left);
    assert!(left > Duration::from_secs(60) && left < Duration::from_secs(600), "{left:?}");
    three.stop();
    let request = ListRequest::default();
    let status = client.list(request).await.unwrap_err();
    unavailable(&status, &["2 of 3", &one.address(), &three.address(), "timeout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_a_node_has_forgotten_is_listed() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    plant(&cluster.nodes[..2], "a", 1);
    // Its holder does not know, and relies on it.
    cluster.nodes[1].start_again_empty();
    until("the node without a vote", || async {
        let nodes = proxy.nodes().await;
        let connected = nodes.nodes[1].restarts == 1 && nodes.nodes[1].detail.contains("quarantined");
        (connected && nodes.voting == 2).then_some(())
    })
    .await;
    let locks = page(&mut client, "", 0, "").await.locks;
    assert_eq!(names(&locks), ["a1"]);
    assert_eq!(locks[0].nodes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_its_bounds_is_refused_by_its_field() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    plant(&cluster.nodes, "orders/", 3);
    let good = page(&mut client, "orders/", 1, "").await.next_page_token;
    assert_eq!(names(&page(&mut client, "orders/", 1, &good).await.locks), ["orders/2"]);
    let cases = [
        ("a\nb", String::new(), "prefix", "control"),
        (&"p".repeat(513), String::new(), "prefix", "513"),
        ("", good[1..].to_owned(), "page_token", "cut or changed"),
        ("", "?".to_owned(), "page_token", "cut or changed"),
        ("users/", good, "page_token", "\"users/\""),
    ];
    for (prefix, page_token, field, fact) in cases {
        let request = ListRequest { prefix: prefix.to_owned(), page_token, ..ListRequest::default() };
        let status = client.list(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.iter().map(|violation| violation.field.as_str()).collect::<Vec<_>>(), [field]);
        says(status.message(), &[field, fact]);
    }
    assert_eq!(all(&mut client, &"p".repeat(512)).await, Vec::<String>::new());
    assert_eq!(all(&mut client, "redlockd:").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_made_in_small_steps_between_which_others_are_served() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    plant(&cluster.nodes, "orders/", 20_000);
    let calls = || cluster.nodes.iter().map(|node| ["scan", "evalsha"].map(|command| node.calls_of(command)));
    let before: Vec<[u64; 2]> = calls().collect();
    assert_eq!(page(&mut client, "", 1_000, "").await.locks.len(), 1_000);
    for ([scans, calls], [scans_before, calls_before]) in calls().zip(before) {
        let (steps, calls) = (scans - scans_before, calls - calls_before);
        // Of 200 keys, and some more where a bucket of the server's table holds several.
        assert!((80..=110).contains(&steps), "{steps} steps");
        assert!(calls >= steps, "{steps} steps in {calls} calls");
    }

    let list = tokio::spawn({
        let mut client = client.clone();
        async move { page(&mut client, "", 1_000, "").await }
    });
    let mut taken = 0;
    while !list.is_finished() {
        taken += 1;
        // Names behind those of the page take no place in it.
        let held = granted(&mut client, want(&format!("users/{taken}"))).await;
        assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    }
    assert_eq!(list.await.unwrap().locks.len(), 1_000);
    assert!(taken > 5, "{taken} locks were taken while the list was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_some_lists_are_made_at_a_time() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &["--nodes-timeout", "60s"]).await;
    let client = proxy.client().await;
    plant(&cluster.nodes, "a", 1);
    cluster.nodes[..2].iter().for_each(Redis::stop);
    let inflight = |count: f64| {
        let proxy = &proxy;
        async move {
            let what = "the lists under way";
            until(what, || async { (proxy.metric("redlock_inflight_requests").await == count).then_some(()) }).await;
        }
    };
    let list = || {
        let mut client = client.clone();
        tokio::spawn(async move { page(&mut client, "", 0, "").await })
    };
    let lists = [list(), list(), list(), list()];
    inflight(4.0).await;
    let status = client.clone().list(ListRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    says(status.message(), &["4 lists"]);

    // Whoever goes away, or has a deadline, makes room.
    lists[0].abort();
    inflight(3.0).await;
    let mut request = Request::new(ListRequest::default());
    request.set_timeout(Duration::from_millis(300));
    let status = client.clone().list(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    inflight(3.0).await;
    let last = list();
    inflight(4.0).await;
    cluster.nodes[..2].iter().for_each(Redis::resume);
    assert_eq!(last.await.unwrap().locks.len(), 1);
    for list in lists.into_iter().skip(1) {
        assert_eq!(list.await.unwrap().locks.len(), 1);
    }
    assert_eq!(proxy.metric("redlock_requests_total{rpc=\"List\",outcome=\"ok\"}").await, 4.0);
    assert_eq!(proxy.metric("redlock_requests_total{rpc=\"List\",outcome=\"resource_exhausted\"}").await, 1.0);
}
