//! Some of five nodes are stopped (they take connections and bytes, and answer nothing) or killed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};

use tonic::Status;
use tonic_types::StatusExt;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Stopped,
    Killed,
}

impl Fault {
    fn strike(self, cluster: &mut Cluster, nodes: &[usize]) {
        for node in nodes {
            match self {
                Self::Stopped => cluster.nodes[*node].stop(),
                Self::Killed => cluster.nodes[*node].kill(),
            }
        }
    }

    fn end(self, cluster: &mut Cluster, nodes: &[usize]) {
        for node in nodes {
            match self {
                Self::Stopped => cluster.nodes[*node].resume(),
                Self::Killed => cluster.nodes[*node].start_again(),
            }
        }
    }
}

async fn all_up(proxy: &Proxy) {
    until("every node to be up", || async { (proxy.nodes().await.voting == 5).then_some(()) }).await;
}

/// Takes and releases, eight callers with a name each; how many grants there were. Tokens have to rise.
async fn work(proxy: &Proxy, rounds: usize) -> usize {
    let client = proxy.client().await;
    let callers = (0..8).map(|caller| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let mut newest = 0;
            for _ in 0..rounds {
                let grant = granted(&mut client, patient(&format!("orders/{caller}"))).await;
                assert!(token(&grant) > newest, "{} after {newest}", token(&grant));
                newest = token(&grant);
                release_surely(&mut client, &grant.lock_id).await;
            }
            rounds
        })
    });
    let mut grants = 0;
    for caller in callers.collect::<Vec<_>>() {
        grants += caller.await.unwrap();
    }
    grants
}

async fn a_minority_changes_nothing(fault: Fault) {
    let mut cluster = Cluster::start_durable(5);
    let proxy = Proxy::start(&cluster, &[]).await;
    all_up(&proxy).await;
    let mut client = proxy.client().await;
    let before = granted(&mut client, lasting("held over the fault")).await;

    fault.strike(&mut cluster, &[1, 3]);
    assert_eq!(work(&proxy, 40).await, 320);
    let lost = proxy.metric_sum("redlock_attempts_total", "no_quorum").await;
    println!("{fault:?}: 320 grants, {lost} tries without a quorum");
    for node in [1, 3] {
        until("the fault to be seen", || async { (proxy.node(node).await.state() != proto::NodeState::Up).then_some(()) })
            .await;
    }
    let nodes = proxy.nodes().await;
    assert_eq!((nodes.voting, nodes.quorum), (3, 3));
    assert!(nodes.nodes.iter().all(|node| node.detail.is_empty() == (node.state() == proto::NodeState::Up)), "{nodes:?}");

    // What was granted before is prolonged, and what is granted now lasts beyond the fault.
    client.renew(proto::RenewRequest { lock_id: before.lock_id.clone(), ttl: seconds(LASTING_SECONDS) }).await.unwrap();
    let during = granted(&mut client, patient("taken during the fault")).await;
    fault.end(&mut cluster, &[1, 3]);
    all_up(&proxy).await;
    contended(&mut client, lasting("taken during the fault")).await;
    contended(&mut client, lasting("held over the fault")).await;
    let restarts: Vec<u64> = proxy.nodes().await.nodes.iter().map(|node| node.restarts).collect();
    let again = u64::from(fault == Fault::Killed);
    assert_eq!(restarts, [0, again, 0, again, 0, 0]);

    assert_eq!(work(&proxy, 5).await, 40);
    for lease in [before, during] {
        assert_eq!(release_surely(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
    proxy.idle().await;
}

#[tokio::test]
async fn two_of_five_stopped_change_nothing() {
    a_minority_changes_nothing(Fault::Stopped).await;
}

#[tokio::test]
async fn two_of_five_killed_change_nothing() {
    a_minority_changes_nothing(Fault::Killed).await;
}

/// What each node said, from the details of a status. The message has to hold the same, a line a node.
fn words(status: &Status) -> HashMap<String, String> {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NO_QUORUM", "redlockd"));
    assert!(status.get_details_retry_info().is_some());
    for (node, said) in &info.metadata {
        assert!(status.message().lines().any(|line| line.trim() == format!("{node}: {said}")), "{}", status.message());
    }
    info.metadata
}

async fn a_majority_is_missed(fault: Fault) {
    let mut cluster = Cluster::start_durable(5);
    let proxy = Proxy::start(&cluster, &["--nodes-timeout", "500ms"]).await;
    all_up(&proxy).await;
    let client = proxy.client().await;
    let addresses: Vec<String> = cluster.nodes.iter().map(Redis::address).collect();
    let (dead, living) = ([0, 2, 4], [1, 3]);

    fault.strike(&mut cluster, &dead);
    // From the first call, which finds connections that stood a moment ago, until all of them have been replaced in vain.
    let (refused, counted_yes) = (Cell::new(0), Cell::new(0));
    let seen = RefCell::new(BTreeSet::new());
    until("every dead node to be down", || async {
        let status = client.clone().acquire(lasting(&format!("orders/{}", refused.get()))).await.unwrap_err();
        refused.set(refused.get() + 1);
        let words = words(&status);
        assert_eq!(words.len(), 5);
        for node in dead {
            let said = &words[&addresses[node]];
            let told = ["timeout: ", "down: ", "connection lost: "].iter().any(|kind| said.starts_with(kind));
            assert!(told, "{said}");
            seen.borrow_mut().insert(said.split(':').next().unwrap().to_owned());
        }
        // With a majority known to be down there is nothing to wait for: the living ones need not have been asked.
        let living_words = living.map(|node| words[&addresses[node]].as_str());
        for said in living_words {
            let told = ["yes", "no answer before the attempt ended", "timeout: "].iter().any(|word| said.starts_with(word));
            assert!(told, "{said}");
        }
        counted_yes.set(counted_yes.get() + living_words.iter().filter(|said| **said == "yes").count());
        let all_down = dead.iter().all(|node| words[&addresses[*node]].starts_with("down: "));
        (all_down && refused.get() >= 20).then_some(())
    })
    .await;
    println!("{fault:?}: {} times UNAVAILABLE; the dead nodes' words began with {:?}", refused.get(), seen.borrow());
    assert_eq!(proxy.metric_sum("redlock_attempts_total", "\"granted\"").await, 0.0);
    until("no key on the living", || async { cluster.keys_on(&living).is_empty().then_some(()) }).await;
    let cleaned: u64 = living.iter().map(|node| cluster.nodes[*node].calls_of("del")).sum();
    if fault == Fault::Stopped {
        assert!(counted_yes.get() > 0 && cleaned > 0, "while the others were waited for, the living had said yes");
    }
    assert_eq!(proxy.http_get("/readyz").await.0, 503);

    fault.end(&mut cluster, &dead);
    all_up(&proxy).await;
    cluster.no_key_left().await;
    assert_eq!(work(&proxy, 5).await, 40);
    cluster.no_key_left().await;
    proxy.idle().await;
}

#[tokio::test]
async fn without_a_quorum_nothing_is_granted_and_nothing_stays_stopped() {
    a_majority_is_missed(Fault::Stopped).await;
}

#[tokio::test]
async fn without_a_quorum_nothing_is_granted_and_nothing_stays_killed() {
    a_majority_is_missed(Fault::Killed).await;
}

/// A node that is stopped for long is connected to again and again; none of these connections may stay behind.
#[tokio::test]
async fn tries_to_reach_a_stopped_node_leave_no_connections_behind() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start(&cluster, &["--nodes-timeout", "100ms"]).await;
    until("every node to be up", || async { (proxy.nodes().await.voting == 3).then_some(()) }).await;
    let mut client = proxy.client().await;
    let grant = granted(&mut client, patient("orders/42")).await;
    let before = proxy.descriptors();

    cluster.nodes[0].stop();
    release_surely(&mut client, &grant.lock_id).await;
    let connects = format!("redlock_node_errors_total{{node=\"{}\",kind=\"connect\"}}", cluster.nodes[0].address());
    until("eight tries in vain", || async { (proxy.metric(&connects).await >= 8.0).then_some(()) }).await;
    // One may be under way, and this test has connections of its own.
    let during = proxy.descriptors();
    assert!(during <= before + 5, "{before} descriptors before, {during} after eight tries");

    cluster.nodes[0].resume();
    until("every node to be up", || async { (proxy.nodes().await.voting == 3).then_some(()) }).await;
    cluster.no_key_left().await;
    until("one connection of the proxy, and redis-cli's own", || async {
        (cluster.nodes[0].cli(&["CLIENT", "LIST"]).lines().count() == 2).then_some(())
    })
    .await;
}
