//! Nodes that can not be used: they never vote, the others still make a quorum, and where they do not, the answer names each
//! of them with what it said.

use redlockd::proto::{self, AcquireRequest, NodeState, ReleaseOutcome};
use tonic_types::StatusExt;

use crate::support::*;

/// Waits until the proxy sees a node in `state` and says the facts of it.
async fn seen_as(proxy: &Proxy, node: &str, state: NodeState, facts: &[&str]) {
    until(&format!("{node} to be {state:?} because {facts:?}"), || async {
        let nodes = proxy.nodes().await.nodes;
        let node = nodes.into_iter().find(|status| status.node == node).expect("a configured node");
        (node.state() == state && facts.iter().all(|fact| node.detail.contains(fact))).then_some(())
    })
    .await;
}

async fn voting(proxy: &Proxy, count: u32) {
    until("the voting nodes", || async { (proxy.nodes().await.voting == count).then_some(()) }).await;
}

/// A redis-server in cluster mode, which takes a second port.
fn in_cluster_mode() -> Redis {
    Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()])
}

const PASSWORD: [&str; 2] = ["--requirepass", "open-sesame"];

#[tokio::test]
async fn one_server_under_two_addresses_votes_once() {
    let loopback = ["--bind", "127.0.0.1", "127.0.0.2"];
    for (alias, options) in [("localhost", &[] as &[&str]), ("127.0.0.2", &loopback)] {
        let mut nodes: Vec<Redis> = (0..3).map(|_| Redis::start(&[])).collect();
        nodes.push(Redis::start(options));
        nodes.iter().for_each(|node| node.establish(5));
        let fence = Redis::start(&DURABLE);
        let mut urls: Vec<String> = nodes.iter().map(Redis::url).collect();
        let twins = [nodes[3].address(), format!("{alias}:{}", nodes[3].port)];
        urls.push(format!("redis://{}", twins[1]));
        let proxy = Proxy::start_unready(&urls, &fence.url(), &[]).await;
        proxy.ready().await;
        voting(&proxy, 4).await;

        // Which of the two comes first is chance.
        let (out, detail) = until("one of the twins to be left out", || async {
            let statuses = proxy.nodes().await.nodes;
            let mut unfit = statuses.into_iter().filter(|node| node.state() == NodeState::Unfit);
            let out = unfit.next()?;
            assert!(unfit.next().is_none(), "both are left out");
            Some((out.node, out.detail))
        })
        .await;
        let kept = twins.iter().find(|twin| **twin != out).unwrap();
        assert!(twins.contains(&out), "{out}");
        says(&detail, &[kept, "twice", "once"]);

        let mut client = proxy.client().await;
        let held = granted(&mut client, want("orders/42")).await;
        assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);

        // With two of the three others gone, two servers are left: no quorum of five, though three addresses answer.
        nodes[0].kill();
        nodes[1].kill();
        for dead in &nodes[..2] {
            seen_as(&proxy, &dead.address(), NodeState::Down, &["refused"]).await;
        }
        let status = acquire_error(&mut client, want("orders/42")).await;
        unavailable(&status, &[&out, "same server", &nodes[0].address(), &nodes[1].address(), "refused"]);
        until("no key left", || async { (nodes[2].keys().is_empty() && nodes[3].keys().is_empty()).then_some(()) }).await;
    }
}

/// A proxy before `odd` and two good nodes grants, and says of `odd` what it has to.
async fn grants_without(odd: &Redis, url: &str, state: NodeState, facts: &[&str]) {
    let good = Cluster::start(2);
    let urls = [good.urls(), vec![url.to_owned()]].concat();
    let proxy = Proxy::start_unready(&urls, &good.fence.url(), &[]).await;
    proxy.ready().await;
    seen_as(&proxy, &odd.address(), state, facts).await;
    voting(&proxy, 2).await;
    let verbose = proxy.http_get("/readyz?verbose").await.1;
    says(verbose.lines().find(|line| line.contains(&odd.address())).unwrap(), facts);

    let mut client = proxy.client().await;
    let held = granted(&mut client, want("orders/42")).await;
    contended(&mut client, want("orders/42")).await;
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    good.no_key_left().await;
}

#[tokio::test]
async fn a_replica_is_left_out() {
    let master = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    grants_without(&replica, &replica.url(), NodeState::Unfit, &["replica", "masters"]).await;
}

#[tokio::test]
async fn a_server_in_cluster_mode_is_left_out() {
    let odd = in_cluster_mode();
    grants_without(&odd, &odd.url(), NodeState::Unfit, &["cluster", "cluster-enabled no"]).await;
}

#[tokio::test]
async fn a_server_that_wants_another_password_is_left_out() {
    let odd = Redis::start_with_client(&PASSWORD, &["-a", "open-sesame"]);
    grants_without(&odd, &odd.url(), NodeState::Down, &["auth"]).await;
    let wrong = format!("redis://:hush-hush@{}", odd.address());
    grants_without(&odd, &wrong, NodeState::Down, &["auth"]).await;
}

#[tokio::test]
async fn the_right_password_lets_a_node_vote() {
    let nodes = [(); 3].map(|()| Redis::start_with_client(&PASSWORD, &["-a", "open-sesame"]));
    let fence = Redis::start(&DURABLE);
    let urls = nodes.iter().map(|node| format!("redis://:open-sesame@{}", node.address()));
    let proxy = Proxy::start_unready(&urls.collect::<Vec<_>>(), &fence.url(), &[]).await;
    proxy.ready().await;
    voting(&proxy, 3).await;
    granted(&mut proxy.client().await, want("orders/42")).await;
    let shown = format!("{:?} {}", proxy.nodes().await, proxy.http_get("/metrics").await.1);
    assert!(!shown.contains("open-sesame") && !proxy.log().contains("open-sesame"));
}

#[tokio::test]
async fn a_key_of_another_type_is_one_refusal() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    cluster.nodes[0].cli(&["LPUSH", "lock:orders/42", "not a lock"]);

    let held = granted(&mut client, want("orders/42")).await;
    assert!(is_held(&mut client, &held.lock_id).await);
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    until("the lock to be gone", || async { cluster.keys_on(&[1, 2]).is_empty().then_some(()) }).await;
    assert_eq!(cluster.nodes[0].cli(&["LRANGE", "lock:orders/42", "0", "-1"]), "not a lock", "it is not ours to touch");

    // On a quorum of the nodes it stands in the way like a lock without an owner.
    cluster.nodes[1].cli(&["LPUSH", "lock:orders/42", "not a lock"]);
    let refused = contended(&mut client, want("orders/42")).await;
    assert_eq!(refused.owner, "");
    until("the lock to be gone", || async { cluster.keys_on(&[2]).is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn without_a_quorum_every_node_is_named_with_what_it_said() {
    let master = Redis::start(&[]);
    let (good, better) = (Redis::start(&[]), Redis::start(&[]));
    let typed = Redis::start(&[]);
    let hung = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let clustered = in_cluster_mode();
    let locked = Redis::start_with_client(&PASSWORD, &["-a", "open-sesame"]);
    let fence = Redis::start(&DURABLE);
    let nodes = [&good, &better, &typed, &hung, &replica, &clustered, &locked];
    let mut urls: Vec<String> = nodes.map(Redis::url).into();
    urls[6] = format!("redis://:hush-hush@{}", locked.address());
    let addresses = nodes.map(Redis::address);
    nodes[..4].iter().for_each(|node| node.establish(7));
    let proxy = Proxy::start_unready(&urls, &fence.url(), &["--nodes-timeout", "3s"]).await;
    voting(&proxy, 4).await;
    typed.cli(&["LPUSH", "lock:orders/42", "not a lock"]);
    for unfit in [&addresses[4], &addresses[5]] {
        seen_as(&proxy, unfit, NodeState::Unfit, &[]).await;
    }
    seen_as(&proxy, &addresses[6], NodeState::Down, &["auth"]).await;
    hung.stop();

    let mut client = proxy.client().await;
    let request = AcquireRequest { ttl: seconds(120), ..want("orders/42") };
    let status = acquire_error(&mut client, request.clone()).await;
    unavailable(&status, &["4 of 7"]);
    let said = [
        ("good", "yes"),
        ("better", "yes"),
        ("typed", "wrong type"),
        ("hung", "timeout"),
        ("replica", "replica"),
        ("clustered", "cluster-enabled no"),
        ("locked", "auth"),
    ];
    let details = status.get_details_error_info().expect("google.rpc.ErrorInfo").metadata;
    assert_eq!(details.len(), addresses.len());
    for (address, (node, fact)) in addresses.iter().zip(said) {
        let line = status.message().lines().find(|line| line.contains(address)).unwrap_or_else(|| panic!("no line for {node}"));
        says(line, &[fact]);
        says(&details[address], &[fact]);
    }
    let shown = format!("{status:?} {}", proxy.log());
    assert!(!shown.contains("hush-hush"), "{shown}");

    // It fails the same way, and at once, while the hung node is known to be silent.
    let status = acquire_error(&mut client, request).await;
    unavailable(&status, &[&addresses[3], "timeout"]);
    until("no key on the good nodes", || async { (good.keys().is_empty() && better.keys().is_empty()).then_some(()) }).await;
    hung.resume();
    until("no key on the hung node", || async { hung.keys().is_empty().then_some(()) }).await;
    seen_as(&proxy, &addresses[3], NodeState::Up, &[]).await;
}

#[tokio::test]
async fn a_master_that_becomes_a_replica_says_so_and_grants_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let master = Redis::start(&[]);
    let port = master.port.to_string();
    for node in &cluster.nodes[1..] {
        node.cli(&["REPLICAOF", "127.0.0.1", &port]);
    }
    let status = acquire_error(&mut client, want("orders/42")).await;
    unavailable(&status, &[&cluster.nodes[1].address(), &cluster.nodes[2].address(), "read only replica"]);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_proxy_starts_without_a_quorum_and_serves_when_there_is_one() {
    let mut cluster = Cluster::start_durable(5);
    for node in &mut cluster.nodes[2..] {
        node.kill();
    }
    let addresses: Vec<String> = cluster.nodes.iter().map(Redis::address).collect();
    let proxy = Proxy::start_unready(&cluster.urls(), &cluster.fence.url(), &[]).await;
    voting(&proxy, 2).await;
    for dead in &addresses[2..] {
        seen_as(&proxy, dead, NodeState::Down, &["refused"]).await;
    }
    let (code, text) = proxy.http_get("/readyz?verbose").await;
    assert_eq!(code, 503);
    says(&text, &["2 nodes", "3 are needed", &addresses[2], &addresses[3], &addresses[4], "refused"]);

    let mut client = proxy.client().await;
    let status = acquire_error(&mut client, want("orders/42")).await;
    unavailable(&status, &["3 of 5", &addresses[2], &addresses[3], &addresses[4], "refused"]);
    until("no key left", || async { cluster.keys_on(&[0, 1]).is_empty().then_some(()) }).await;

    cluster.nodes[2].start_again();
    let held = granted(&mut client, AcquireRequest { wait: seconds(120), ..want("orders/42") }).await;
    assert!(is_held(&mut client, &held.lock_id).await);
}

#[tokio::test]
async fn without_a_quorum_nothing_is_said_of_a_lease() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    until("the lock on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3).then_some(()) }).await;
    cluster.nodes[0].stop();
    cluster.nodes[1].stop();

    let lock_id = held.lock_id.clone();
    let check = client.check(proto::CheckRequest { lock_id: lock_id.clone() }).await.map(drop);
    let renew = client.renew(proto::RenewRequest { lock_id: lock_id.clone(), ttl: seconds(240) }).await.map(drop);
    let release = client.release(proto::ReleaseRequest { lock_id: lock_id.clone() }).await.map(drop);
    for status in [check, renew, release].map(Result::unwrap_err) {
        unavailable(&status, &[&cluster.nodes[0].address(), &cluster.nodes[1].address(), "timeout"]);
    }
    // A release that could not be proven is carried out all the same.
    cluster.nodes[0].resume();
    cluster.nodes[1].resume();
    cluster.no_key_left().await;
}
