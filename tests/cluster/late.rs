//! A SET whose reply comes late, or never: what it left is cleaned up all the same.

use super::*;

/// How often the connection to a node was lost, in the proxy's eyes.
async fn lost_connections(proxy: &Proxy, gate: &Gate) -> f64 {
    proxy.metric(&format!("redlock_node_errors_total{{node=\"{}\",kind=\"connection_lost\"}}", gate.address)).await
}

async fn wait_for_keys(cluster: &Cluster, nodes: &[usize]) {
    until("our key on the held nodes", || async { (cluster.keys_on(nodes).len() == nodes.len()).then_some(()) }).await;
}

/// Afterwards everything has to be as if nothing had been.
async fn all_is_well(cluster: &Cluster, proxy: &Proxy) {
    cluster.no_key_left().await;
    proxy.idle().await;
    until("every node to be up", || async { (proxy.nodes().await.voting == 5).then_some(()) }).await;
    let mut client = proxy.client().await;
    let grant = granted(&mut client, patient("orders/42")).await;
    assert_eq!(release_surely(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
    // Not before the last reply is in: a gate that closes now must not hold it back.
    proxy.idle().await;
}

/// The replies of three nodes are late: the attempt is lost for lack of a quorum, with its value on all five.
#[tokio::test]
async fn replies_that_come_after_the_time_out_are_cleaned_up() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &["--nodes-timeout", "2s"]).await;
    let client = proxy.client().await;
    let late = [0, 1, 2];
    for round in 0..3 {
        late.iter().for_each(|node| gates[*node].hold_replies());
        let status = client.clone().acquire(lasting(&format!("orders/{round}"))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        wait_for_keys(&cluster, &late).await;
        until("no key on the others", || async { cluster.keys_on(&[3, 4]).is_empty().then_some(()) }).await;
        gates.iter().for_each(Gate::open);
        all_is_well(&cluster, &proxy).await;
    }
}

/// The same for so long that the connections are given up: the clean-up goes over the next ones.
#[tokio::test]
async fn connections_that_are_replaced_hand_their_clean_up_on() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &["--nodes-timeout", "200ms"]).await;
    let mut client = proxy.client().await;
    let late = [0, 1, 2];
    // First the replies are kept back, then the SETs themselves, which arrive when nobody knows of them any more.
    for hold in [Gate::hold_replies, Gate::hold_requests] {
        let before: Vec<u64> = cluster.nodes.iter().map(|node| node.calls_of("set")).collect();
        late.iter().for_each(|node| hold(&gates[*node]));
        let status = client.acquire(lasting("orders/42")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        // They were up when the round began and can not come back while the gates are closed.
        until("the connections to be given up", || async {
            let nodes = proxy.nodes().await.nodes;
            late.iter().all(|node| nodes[*node].state() == proto::NodeState::Down).then_some(())
        })
        .await;
        gates.iter().for_each(Gate::open);
        until("the SETs to arrive", || async {
            late.iter().all(|node| cluster.nodes[*node].calls_of("set") > before[*node]).then_some(())
        })
        .await;
        all_is_well(&cluster, &proxy).await;
    }
}

/// A connection that breaks takes the reply along; what the SET left is found by the release on the next one.
#[tokio::test]
async fn connections_that_break_hand_their_clean_up_on() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
    let cut = [0, 1, 2];
    for round in 0..5 {
        cut.iter().for_each(|node| gates[*node].hold_replies());
        let mut client = proxy.client().await;
        let attempt = tokio::spawn(async move { client.acquire(lasting(&format!("orders/{round}"))).await });
        wait_for_keys(&cluster, &cut).await;
        cut.iter().for_each(|node| {
            gates[*node].cut();
            gates[*node].open();
        });
        let status = attempt.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("connection lost: "), "{}", status.message());
        all_is_well(&cluster, &proxy).await;
    }
    for node in cut {
        assert!(lost_connections(&proxy, &gates[node]).await >= 5.0);
    }
}

/// A SET that was lost on the way is not sent again, by nobody.
#[tokio::test]
async fn a_set_that_was_lost_with_its_connection_is_not_sent_again() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
    let mut client = proxy.client().await;
    let sets = cluster.nodes[0].calls_of("set");
    // Its SET on node 0 is lost; the others grant it, so nobody cleans up.
    gates[0].hold_requests();
    let grant = granted(&mut client, lasting("orders/42")).await;
    gates[0].cut();
    gates[0].open();
    until("node 0 to be reached again", || async {
        let lost = lost_connections(&proxy, &gates[0]).await;
        (lost >= 1.0 && proxy.node(0).await.state() == proto::NodeState::Up).then_some(())
    })
    .await;
    // One more operation on the new connection has been answered: whatever would have come before it is there.
    let other = granted(&mut client, lasting("orders/43")).await;
    until("the other key on node 0", || async { cluster.nodes[0].keys().contains(&"lock:orders/43".to_owned()).then_some(()) })
        .await;
    assert_eq!(cluster.nodes[0].keys(), ["lock:orders/43"]);
    assert_eq!(cluster.nodes[0].calls_of("set"), sets + 1);
    for lease in [grant, other] {
        assert_eq!(release(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
    }
    all_is_well(&cluster, &proxy).await;
}

/// Three nodes refuse, one says yes, and one is stopped with the SET in its socket: it runs it when it is continued.
#[tokio::test]
async fn a_stopped_node_that_runs_the_set_later_is_cleaned_up() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &["--nodes-timeout", "200ms"]).await;
    until("every node to be up", || async { (proxy.nodes().await.voting == 5).then_some(()) }).await;
    let mut client = proxy.client().await;
    let refusing = [1, 2, 3];
    // Continued at once, and after its connection was given up and several tries to connect again were.
    for (round, wait_for_replacement) in [(0, false), (1, true)] {
        let name = format!("orders/{round}");
        for node in refusing {
            cluster.nodes[node].cli(&["SET", &format!("lock:{name}"), "somebody else's", "PX", "280000"]);
        }
        let node = &cluster.nodes[0];
        let (sets, deletes) = (node.calls_of("set"), node.calls_of("del"));
        node.stop();
        // Lost by the refusals alone, without waiting for the stopped one; a busy machine may answer that too few replied.
        until("three refusals", || async {
            match client.clone().acquire(lasting(&name)).await {
                Ok(answer) => {
                    let outcome = answer.into_inner().outcome.unwrap();
                    assert!(matches!(outcome, acquire_response::Outcome::Contended(_)), "{outcome:?}");
                    Some(())
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    None
                }
            }
        })
        .await;
        if wait_for_replacement {
            let connects = format!("redlock_node_errors_total{{node=\"{}\",kind=\"connect\"}}", node.address());
            until("tries to connect again", || async { (proxy.metric(&connects).await >= 2.0).then_some(()) }).await;
        }
        node.resume();
        until("the SET to be run and to be undone", || async {
            (node.calls_of("set") > sets && node.calls_of("del") > deletes).then_some(())
        })
        .await;
        for node in refusing {
            assert_eq!(cluster.nodes[node].cli(&["GET", &format!("lock:{name}")]), "somebody else's");
            cluster.nodes[node].cli(&["DEL", &format!("lock:{name}")]);
        }
        all_is_well(&cluster, &proxy).await;
    }
    let grant = granted(&mut client, patient("orders/0")).await;
    release_surely(&mut client, &grant.lock_id).await;
}

/// Stopped for real after they got the SET and before their replies came through; then continued.
#[tokio::test]
async fn nodes_stopped_between_set_and_reply_are_cleaned_up() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &["--nodes-timeout", "500ms"]).await;
    let late = [2, 3, 4];
    for (round, cut) in [(0, false), (1, true)] {
        late.iter().for_each(|node| gates[*node].hold_replies());
        let mut client = proxy.client().await;
        let attempt = tokio::spawn(async move { client.acquire(lasting(&format!("orders/{round}"))).await });
        wait_for_keys(&cluster, &late).await;
        late.iter().for_each(|node| cluster.nodes[*node].stop());
        if cut {
            late.iter().for_each(|node| gates[*node].cut());
        }
        late.iter().for_each(|node| gates[*node].open());
        // With the gates open the replies are there, unless they were cut off: then nothing comes from a stopped server.
        match attempt.await.unwrap() {
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            Ok(answer) => {
                assert!(!cut, "{answer:?}");
                let Some(acquire_response::Outcome::Granted(grant)) = answer.into_inner().outcome else { panic!("contended") };
                late.iter().for_each(|node| cluster.nodes[*node].resume());
                release_surely(&mut proxy.client().await, &grant.lock_id).await;
            }
        }
        late.iter().for_each(|node| cluster.nodes[*node].resume());
        all_is_well(&cluster, &proxy).await;
    }
}
