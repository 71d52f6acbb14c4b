//! Nodes that forget: the script, or everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rand::Rng;

use super::*;

/// Callers that take and release until told to stop. No call may fail.
struct Load {
    stop: Arc<AtomicBool>,
    grants: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn on(proxy: &Proxy) -> Self {
        let (stop, grants) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut callers = Vec::new();
        for caller in 0..8 {
            let (mut client, stop, grants) = (proxy.client().await, stop.clone(), grants.clone());
            callers.push(tokio::spawn(async move {
                let name = format!("load/{caller}");
                while !stop.load(Ordering::Relaxed) {
                    let grant = granted(&mut client, lasting(&name)).await;
                    let renewal = proto::RenewRequest { lock_id: grant.lock_id.clone(), ttl: seconds(LASTING_SECONDS) };
                    let renewed = client.renew(renewal).await.unwrap().into_inner().outcome.unwrap();
                    assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
                    assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
                    grants.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, grants, callers }
    }

    fn grants(&self) -> usize {
        self.grants.load(Ordering::Relaxed)
    }

    async fn grants_reach(&self, wanted: usize) {
        until("more grants", || async {
            let failed = self.callers.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || self.grants() >= wanted).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.grants.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn servers_that_forget_the_script_fail_no_call() {
    let mut rng = seeded();
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
    warm_up(&proxy).await;
    let servers: Vec<&Redis> = cluster.nodes.iter().chain([&cluster.fence]).collect();
    let texts_before: u64 = servers.iter().map(|server| server.calls_of("eval")).sum();
    let load = Load::on(&proxy).await;
    for _ in 0..60 {
        let enough = load.grants() + 5;
        // All at once every now and then.
        if rng.random_ratio(1, 5) {
            servers.iter().for_each(|server| drop(server.cli(&["SCRIPT", "FLUSH"])));
        } else {
            servers[rng.random_range(0..servers.len())].cli(&["SCRIPT", "FLUSH"]);
        }
        load.grants_reach(enough).await;
    }
    let grants = load.end().await;
    let texts: u64 = servers.iter().map(|server| server.calls_of("eval")).sum::<u64>() - texts_before;
    println!("{grants} grants; the script was sent {texts} times");
    assert!(texts >= 30, "the script was forgotten {texts} times");
    for kind in ["server_error", "connection_lost", "timeout"] {
        assert_eq!(proxy.metric_sum("redlock_node_errors_total", &format!("\"{kind}\"")).await, 0.0, "{kind}");
    }
    cluster.no_key_left().await;
    proxy.idle().await;
}

#[tokio::test]
async fn a_node_that_restarts_empty_is_seen_and_gets_its_leases_back() {
    let mut cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
    warm_up(&proxy).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, lasting("held")).await;
    until("the lease on every node", || async { (cluster.keys_on(&[0, 1, 2, 3, 4]).len() == 5).then_some(()) }).await;
    let before = proxy.nodes().await.nodes;
    assert!(before.iter().all(|node| node.restarts == 0));

    for round in 1..=3 {
        let load = Load::on(&proxy).await;
        load.grants_reach(20).await;
        // Replies under way are lost; the other four are a quorum, so nobody notices.
        cluster.nodes[0].start_again();
        until("the restart to be seen", || async {
            let node = proxy.node(0).await;
            (node.state() == proto::NodeState::Quarantined && node.restarts == round).then_some(())
        })
        .await;
        load.grants_reach(load.grants() + 20).await;
        println!("{} grants around restart {round}", load.end().await);
        let now = proxy.nodes().await.nodes;
        assert_ne!(now[0].run_id, before[0].run_id);
        assert!((1..6).all(|node| now[node].run_id == before[node].run_id && now[node].restarts == 0));
        assert_eq!(proxy.metric_sum("redlock_node_restarts_total", &cluster.nodes[0].address()).await, round as f64);

        // It has forgotten the lease; the others have not. A renewal gives it back.
        let key = "lock:held".to_owned();
        assert!(!cluster.nodes[0].keys().contains(&key));
        let check = client.check(proto::CheckRequest { lock_id: held.lock_id.clone() }).await.unwrap().into_inner();
        assert!(matches!(check.outcome, Some(proto::check_response::Outcome::Held(_))), "{check:?}");
        contended(&mut client, lasting("held")).await;
        let renewal = proto::RenewRequest { lock_id: held.lock_id.clone(), ttl: seconds(LASTING_SECONDS) };
        let renewed = client.renew(renewal).await.unwrap().into_inner().outcome.unwrap();
        assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
        until("the key to be back", || async { cluster.nodes[0].keys().contains(&key).then_some(()) }).await;
        let values: Vec<String> = cluster.nodes.iter().map(|node| node.cli(&["GET", &key])).collect();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        let left: i64 = cluster.nodes[0].cli(&["PTTL", &key]).parse().unwrap();
        assert!((1..=LASTING_SECONDS as i64 * 1_000).contains(&left), "{left}");
    }
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
    proxy.idle().await;
}

/// What waits for a connection does not go to the one that replaces it, except releases.
#[tokio::test]
async fn only_releases_go_to_the_connection_that_replaces_a_broken_one() {
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
    let mut client = proxy.client().await;
    let node = &cluster.nodes[0];
    for round in 0..3 {
        let old = granted(&mut client, lasting("old")).await;
        until("the old lease on node 0", || async { (node.keys() == ["lock:old"]).then_some(()) }).await;
        let sets = node.calls_of("set");
        // One call under way, and behind it three SETs and a release. The other nodes grant and release.
        gates[0].hold_replies();
        let plug = granted(&mut client, lasting("plug")).await;
        until("the plug on node 0", || async { node.keys().contains(&"lock:plug".to_owned()).then_some(()) }).await;
        let mut leases = vec![plug];
        for number in 0..3 {
            leases.push(granted(&mut client, lasting(&format!("new/{number}"))).await);
        }
        assert_eq!(release(&mut client, &old.lock_id).await, ReleaseOutcome::Released);
        until("three SETs and a release to wait", || async { (proxy.node(0).await.queued == 4).then_some(()) }).await;
        assert!(node.keys().contains(&"lock:old".to_owned()));

        gates[0].cut();
        gates[0].open();
        until("the release to come over the new connection", || async { (node.keys() == ["lock:plug"]).then_some(()) }).await;
        until("node 0 to be up with nothing waiting", || async {
            let status = proxy.node(0).await;
            (status.state() == proto::NodeState::Up && status.queued == 0).then_some(())
        })
        .await;
        let sentinel = granted(&mut client, lasting("sentinel")).await;
        until("an operation after that", || async { node.keys().contains(&"lock:sentinel".to_owned()).then_some(()) }).await;
        assert_eq!(node.calls_of("set"), sets + 2, "the plug's and the sentinel's in round {round}");
        assert_eq!(cluster.nodes[1].keys().len(), 5);
        leases.push(sentinel);
        for lease in leases {
            assert_eq!(release(&mut client, &lease.lock_id).await, ReleaseOutcome::Released);
        }
        cluster.no_key_left().await;
        assert_eq!(proxy.node(0).await.restarts, 0, "a new connection to the same server is no restart");
    }
    proxy.idle().await;
}
