//! Take, renew, check, get and give back.

use std::time::Duration;

use redlockd::proto;
use redlockd::proto::check_response::Outcome as Checked;
use redlockd::proto::get_response::State;
use redlockd::proto::renew_response::Outcome as Renewed;
use redlockd::proto::still_held::Fencing;
use redlockd::proto::{AcquireRequest, NodeVoteState, ReleaseOutcome};

use crate::support::gate::{Gate, Hold};
use crate::support::*;

const ALL: [usize; 5] = [0, 1, 2, 3, 4];

/// Waits until every node holds the lock: a grant does not wait for the slowest.
async fn on_every_node(cluster: &Cluster, name: &str) {
    until("the lock on every node", || async { cluster.nodes.iter().all(|node| node.pttl(name).is_some()).then_some(()) })
        .await;
}

fn delete(cluster: &Cluster, nodes: &[usize], name: &str) {
    for node in nodes {
        assert_eq!(cluster.nodes[*node].cli(&["DEL", &format!("lock:{name}")]), "1");
    }
}

#[tokio::test]
async fn a_lock_is_taken_refused_and_given_back() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;

    let first = granted(&mut client, want("orders/42")).await;
    let validity = std_duration(first.validity);
    // 2 per thousand and 2 ms are for clocks that run apart.
    assert!(validity > Duration::from_secs(5) && validity <= Duration::from_millis(9_978), "{validity:?}");
    let refused = contended(&mut client, AcquireRequest { owner: "other".to_owned(), ..want("orders/42") }).await;
    assert_eq!(refused.owner, "test");
    let retry_after = std_duration(refused.retry_after);
    assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(10), "{retry_after:?}");

    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::Released);
    assert_eq!(release(&mut client, &first.lock_id).await, ReleaseOutcome::NotHeld);
    cluster.no_key_left().await;

    let second = granted(&mut client, want("orders/42")).await;
    assert!(token(&second) > token(&first));
}

#[tokio::test]
async fn a_lease_ends_with_its_ttl_and_its_lock_id_harms_nobody_after() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;

    // A short TTL leaves little time for the votes: on a busy machine it takes more than one try.
    let short = AcquireRequest { ttl: seconds(1), wait: seconds(60), ..want("orders/42") };
    let expired = granted(&mut client, short).await;
    cluster.no_key_left().await;
    let other = granted(&mut client, AcquireRequest { owner: "other".to_owned(), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;
    let before: Vec<String> = cluster.nodes.iter().map(|node| node.value("orders/42")).collect();

    assert_eq!(release(&mut client, &expired.lock_id).await, ReleaseOutcome::NotHeld);
    match renew(&mut client, &expired.lock_id, seconds(10)).await {
        Renewed::Lost(lost) => assert_eq!(std_duration(lost.validity), Duration::ZERO),
        Renewed::Renewed(renewed) => panic!("{renewed:?}"),
    }
    assert!(!is_held(&mut client, &expired.lock_id).await);

    proxy.idle().await;
    let after: Vec<String> = cluster.nodes.iter().map(|node| node.value("orders/42")).collect();
    assert_eq!(after, before, "the other holder's keys");
    assert!(is_held(&mut client, &other.lock_id).await);
    assert!(token(&other) > token(&expired));
}

#[tokio::test]
async fn a_renewal_prolongs_the_keys_and_never_shortens_them() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(30), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;

    match renew(&mut client, &held.lock_id, seconds(240)).await {
        Renewed::Renewed(renewed) => {
            let validity = std_duration(renewed.validity);
            assert!(validity > Duration::from_secs(120) && validity <= Duration::from_millis(239_518), "{validity:?}");
            assert!(renewed.served_for.is_some());
        }
        Renewed::Lost(lost) => panic!("{lost:?}"),
    }
    until("the longer time on every node", || async {
        cluster.nodes.iter().all(|node| node.pttl("orders/42").unwrap() > 120_000).then_some(())
    })
    .await;

    match renew(&mut client, &held.lock_id, seconds(20)).await {
        Renewed::Renewed(renewed) => {
            let validity = std_duration(renewed.validity);
            assert!(validity > Duration::ZERO && validity <= Duration::from_millis(19_958), "{validity:?}");
        }
        Renewed::Lost(lost) => panic!("{lost:?}"),
    }
    proxy.idle().await;
    for node in &cluster.nodes {
        assert!(node.pttl("orders/42").unwrap() > 60_000, "a renewal has shortened a key");
    }

    // Without a TTL the proxy's default counts.
    match renew(&mut client, &held.lock_id, None).await {
        Renewed::Renewed(renewed) => assert!(std_duration(renewed.validity) <= Duration::from_millis(9_978)),
        Renewed::Lost(lost) => panic!("{lost:?}"),
    }
}

#[tokio::test]
async fn nodes_that_lost_the_key_get_it_back_by_a_renewal() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(60), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;
    let value = cluster.nodes[2].value("orders/42");

    delete(&cluster, &[0, 4], "orders/42");
    let outcome = renew(&mut client, &held.lock_id, seconds(60)).await;
    assert!(matches!(outcome, Renewed::Renewed(_)), "three of five still held it: {outcome:?}");
    on_every_node(&cluster, "orders/42").await;
    for node in &cluster.nodes {
        assert_eq!(node.value("orders/42"), value);
        let left = node.pttl("orders/42").unwrap();
        // Put back with an end, and not for longer than the renewal.
        assert!(left > 0 && left <= 60_000, "{left} ms");
    }
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_renewal_without_a_quorum_is_lost_and_takes_nothing_away() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(60), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;
    let value = cluster.nodes[4].value("orders/42");

    delete(&cluster, &[0, 1, 2], "orders/42");
    match renew(&mut client, &held.lock_id, seconds(60)).await {
        Renewed::Lost(lost) => assert_eq!(std_duration(lost.validity), Duration::ZERO, "no quorum holds it"),
        Renewed::Renewed(renewed) => panic!("nodes that lost the key were counted: {renewed:?}"),
    }
    assert!(!is_held(&mut client, &held.lock_id).await);
    proxy.idle().await;
    assert_eq!(cluster.keys_on(&[0, 1, 2]), Vec::<String>::new(), "a failed renewal has planted keys");
    for node in &cluster.nodes[3..] {
        assert_eq!(node.value("orders/42"), value, "a failed renewal has deleted a key");
    }
}

#[tokio::test]
async fn check_says_for_how_long_and_with_which_token() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(60), ..want("orders/42") }).await;

    match check(&mut client, &held.lock_id).await {
        Checked::Held(checked) => {
            assert_eq!(checked.name, "orders/42");
            assert_eq!(checked.fencing, Some(Fencing::FencingToken(token(&held))));
            let validity = std_duration(checked.validity);
            assert!(validity > Duration::ZERO && validity < Duration::from_secs(60), "{validity:?}");
        }
        Checked::NotHeld(_) => panic!("not held"),
    }
    on_every_node(&cluster, "orders/42").await;
    delete(&cluster, &[0, 1], "orders/42");
    assert!(is_held(&mut client, &held.lock_id).await, "three of five hold it");
    delete(&cluster, &[2], "orders/42");
    assert!(!is_held(&mut client, &held.lock_id).await, "two of five hold it");
    assert_eq!(cluster.keys_on(&ALL).len(), 2, "a check only reads");
}

#[tokio::test]
async fn get_shows_the_holder_and_every_nodes_vote_but_no_secret() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let addresses: Vec<String> = cluster.nodes.iter().map(Redis::address).collect();

    let free = get(&mut client, "orders/42").await;
    assert!(matches!(free.state, Some(State::Free(_))), "{free:?}");
    assert_eq!(free.votes.iter().map(|vote| vote.node.clone()).collect::<Vec<_>>(), addresses);
    assert!(free.votes.iter().all(|vote| vote.state() == NodeVoteState::Free), "{free:?}");

    let request = AcquireRequest { owner: "ann@host:7".to_owned(), ttl: seconds(60), ..want("orders/42") };
    let held = granted(&mut client, request).await;
    on_every_node(&cluster, "orders/42").await;
    let answer = get(&mut client, "orders/42").await;
    let Some(State::Held(holder)) = &answer.state else { panic!("{answer:?}") };
    assert_eq!(holder.owner, "ann@host:7");
    let left = std_duration(holder.time_left);
    assert!(left > Duration::ZERO && left <= Duration::from_secs(60), "{left:?}");
    assert_eq!(answer.votes.len(), 5);
    for vote in &answer.votes {
        assert_eq!((vote.state(), vote.owner.as_str()), (NodeVoteState::Holder, "ann@host:7"), "{vote:?}");
        assert!(vote.time_left.is_some(), "{vote:?}");
    }
    let value = cluster.nodes[0].value("orders/42");
    let (secret, _) = value.split_once(';').unwrap();
    let shown = format!("{answer:?}");
    assert!(secret.len() >= 32 && !shown.contains(secret) && !shown.contains(&held.lock_id[4..]), "{shown}");

    // Another program's value is a secret as a whole, and a key of another type is named.
    cluster.nodes[0].cli(&["SET", "lock:orders/42", "other;program", "PX", "60000"]);
    cluster.nodes[1].cli(&["DEL", "lock:orders/42"]);
    cluster.nodes[1].cli(&["LPUSH", "lock:orders/42", "x"]);
    let answer = get(&mut client, "orders/42").await;
    assert!(matches!(&answer.state, Some(State::Held(holder)) if holder.owner == "ann@host:7"), "{answer:?}");
    let states: Vec<NodeVoteState> = answer.votes.iter().map(proto::NodeVote::state).collect();
    let (other, holder) = (NodeVoteState::Other, NodeVoteState::Holder);
    assert_eq!(states, [other, other, holder, holder, holder]);
    assert_eq!(answer.votes[0].owner, "", "{answer:?}");
    assert!(!format!("{answer:?}").contains("program"), "{answer:?}");
    says(&answer.votes[1].detail, &["wrong type"]);
    assert_eq!(answer.votes[1].time_left, None, "a list without an end");

    // Leftovers on a minority are no holder.
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    until("only the others' keys left", || async { (cluster.keys_on(&ALL).len() == 2).then_some(()) }).await;
    let answer = get(&mut client, "orders/42").await;
    assert!(matches!(answer.state, Some(State::Free(_))), "{answer:?}");
    assert_eq!(answer.votes[0].state(), NodeVoteState::Other);
}

#[tokio::test]
async fn get_says_which_node_did_not_answer() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    granted(&mut client, AcquireRequest { ttl: seconds(60), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;

    cluster.nodes[1].stop();
    let answer = get(&mut client, "orders/42").await;
    assert!(matches!(answer.state, Some(State::Held(_))), "two of three answered: {answer:?}");
    assert_eq!(answer.votes[1].state(), NodeVoteState::Unknown, "{answer:?}");
    says(&answer.votes[1].detail, &["timeout"]);
    cluster.nodes[2].stop();
    let status = client.get(proto::GetRequest { name: "orders/42".to_owned() }).await.unwrap_err();
    unavailable(&status, &[&cluster.nodes[1].address(), &cluster.nodes[2].address(), "timeout"]);
}

#[tokio::test]
async fn a_release_does_not_overtake_a_renewal_of_its_lease_on_a_slow_node() {
    let cluster = Cluster::start(3);
    let slow = Gate::before(cluster.nodes[2].port).await;
    let urls = [cluster.nodes[0].url(), cluster.nodes[1].url(), slow.url()];
    let proxy = Proxy::start_unready(&urls, &cluster.fence.url(), &["--nodes-timeout", "60s"]).await;
    proxy.ready().await;
    until("every node to vote", || async { (proxy.nodes().await.voting == 3).then_some(()) }).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    on_every_node(&cluster, "orders/42").await;

    // A call that is under way keeps what follows in the mailbox, so that it goes out together.
    slow.set(Hold { replies: true, ..Hold::default() });
    assert!(is_held(&mut client, &held.lock_id).await);
    let outcome = renew(&mut client, &held.lock_id, seconds(240)).await;
    assert!(matches!(outcome, Renewed::Renewed(_)), "{outcome:?}");
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    slow.open();

    // In the other order the renewal finds the key missing there, and puts it back after the release.
    proxy.idle().await;
    cluster.no_key_left().await;
}
