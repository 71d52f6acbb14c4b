//! A renewal gives a node that lost the key its key back; never after the lease has been released.

use super::*;

/// A slow node gets renewal and release of a lease late: both wait there in one batch (`together`), or the renewal is under
/// way when the release is queued. The node has the key, or has lost it (`lost`).
async fn late_at_one_node(together: bool, lost: bool) {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
    let mut client = proxy.client().await;
    let (node, gate) = (&cluster.nodes[0], &gates[0]);
    let lease = granted(&mut client, lasting("orders/42")).await;
    until("the lease on node 0", || async { (node.keys() == ["lock:orders/42"]).then_some(()) }).await;
    proxy.idle().await;
    if lost {
        node.cli(&["DEL", "lock:orders/42"]);
    }
    let mut leases = Vec::new();
    gate.hold_replies();
    if together {
        leases.push(granted(&mut client, lasting("plug")).await);
        until("the plug on node 0", || async { node.keys().contains(&"lock:plug".to_owned()).then_some(()) }).await;
    }
    // The other four answer both.
    let reads = node.calls_of("get");
    let renewed = renew(&mut client, &lease.lock_id, seconds(LASTING_SECONDS)).await;
    assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
    if !together {
        until("the renewal to be run on node 0", || async { (node.calls_of("get") > reads).then_some(()) }).await;
    }
    assert_eq!(release(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
    let waiting = if together { 2 } else { 1 };
    until("them to wait for node 0", || async { (proxy.node(0).await.queued == waiting).then_some(()) }).await;
    gate.open();
    proxy.idle().await;
    // Something that comes after all of it.
    leases.push(granted(&mut client, lasting("sentinel")).await);
    until("the sentinel on node 0", || async { node.keys().contains(&"lock:sentinel".to_owned()).then_some(()) }).await;
    for lease in leases {
        assert_eq!(release(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_late_renewal_plants_nothing_after_the_release() {
    for together in [true, false] {
        for lost in [true, false] {
            println!("together {together}, lost {lost}");
            late_at_one_node(together, lost).await;
        }
    }
}
