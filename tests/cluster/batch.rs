//! Operations of many callers travel in one call. What one of them meets is its own affair.

use tokio::task::JoinHandle;
use tonic::{Response, Status};
use tonic_types::StatusExt;

use super::*;

type Acquiring = JoinHandle<Result<Response<proto::AcquireResponse>, Status>>;
type Releasing = JoinHandle<Result<Response<proto::ReleaseResponse>, Status>>;

struct Scene {
    cluster: Cluster,
    gates: std::sync::Arc<Vec<Gate>>,
    proxy: Proxy,
}

impl Scene {
    async fn set_up() -> Self {
        let cluster = Cluster::start(5);
        let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
        let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
        Self { cluster, gates, proxy }
    }

    /// Calls to the nodes, and operations in them.
    async fn calls(&self) -> (f64, f64) {
        let calls = self.proxy.metric_sum("redlock_node_batch_size_count", &self.gates[0].address.to_string()).await;
        (calls, self.proxy.metric_sum("redlock_node_batch_size_sum", &self.gates[0].address.to_string()).await)
    }

    /// Lets `work` queue `count` operations behind one that is under way at every node, then lets them go as one call.
    async fn as_one_batch<T>(&self, count: u32, work: impl AsyncFnOnce() -> T) -> T {
        self.proxy.idle().await;
        let (calls, operations) = self.calls().await;
        self.gates.iter().for_each(Gate::hold_replies);
        let mut client = self.proxy.client().await;
        let plug = tokio::spawn(async move { client.acquire(lasting("plug")).await });
        until("the plug to be under way", || async {
            self.cluster.nodes.iter().all(|node| node.keys().contains(&"lock:plug".to_owned())).then_some(())
        })
        .await;
        let result = work().await;
        until("all operations to wait", || async {
            self.proxy.nodes().await.nodes[..5].iter().all(|node| node.queued == count).then_some(())
        })
        .await;
        self.gates.iter().for_each(Gate::open);
        let answer = plug.await.unwrap().unwrap().into_inner().outcome.unwrap();
        until("one call to have carried them", || async {
            let (calls_now, operations_now) = self.calls().await;
            (calls_now >= calls + 2.0 && operations_now >= operations + 1.0 + f64::from(count)).then_some(())
        })
        .await;
        let acquire_response::Outcome::Granted(grant) = answer else { panic!("{answer:?}") };
        let mut client = self.proxy.client().await;
        assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
        result
    }

    async fn acquiring(&self, name: &str) -> Acquiring {
        let (mut client, request) = (self.proxy.client().await, lasting(name));
        tokio::spawn(async move { client.acquire(request).await })
    }

    async fn releasing(&self, lock_id: &str) -> Releasing {
        let (mut client, request) = (self.proxy.client().await, proto::ReleaseRequest { lock_id: lock_id.to_owned() });
        tokio::spawn(async move { client.release(request).await })
    }

    async fn take(&self, names: impl Iterator<Item = String>) -> Vec<String> {
        let mut client = self.proxy.client().await;
        let mut leases = Vec::new();
        for name in names {
            leases.push(granted(&mut client, lasting(&name)).await.lock_id);
        }
        // The last nodes too.
        self.proxy.idle().await;
        until("the leases on every node", || async {
            self.cluster.nodes.iter().all(|node| node.keys().len() >= leases.len()).then_some(())
        })
        .await;
        leases
    }

    async fn release_all(&self, leases: Vec<String>) {
        let mut client = self.proxy.client().await;
        for lease in leases {
            assert_eq!(release(&mut client, &lease).await, ReleaseOutcome::Released);
        }
    }
}

async fn lease_of(acquiring: Acquiring) -> String {
    match acquiring.await.unwrap().unwrap().into_inner().outcome.unwrap() {
        acquire_response::Outcome::Granted(grant) => grant.lock_id,
        acquire_response::Outcome::Contended(contended) => panic!("{contended:?}"),
    }
}

async fn released(releasing: Releasing) {
    assert_eq!(releasing.await.unwrap().unwrap().into_inner().outcome(), ReleaseOutcome::Released);
}

#[tokio::test]
async fn a_key_of_another_type_spoils_no_other_operation() {
    let scene = Scene::set_up().await;
    let leases = scene.take((0..10).map(|number| format!("old/{number}"))).await;
    // On all nodes, on a quorum, on a minority.
    for (name, nodes) in [("bad/5", 5), ("bad/3", 3), ("bad/2", 2)] {
        for node in &scene.cluster.nodes[..nodes] {
            node.cli(&["RPUSH", &format!("lock:{name}"), "no lock"]);
        }
    }
    let (good, bad, releasing, looks) = scene
        .as_one_batch(10 + 3 + 10 + 3, async || {
            let (mut good, mut bad, mut releasing, mut looks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for (number, lease) in leases.iter().enumerate() {
                good.push(scene.acquiring(&format!("new/{number}")).await);
                if let Some(name) = ["bad/5", "bad/3", "bad/2"].get(number) {
                    bad.push(scene.acquiring(name).await);
                    let (mut client, name) = (scene.proxy.client().await, (*name).to_owned());
                    looks.push(tokio::spawn(async move { client.get(proto::GetRequest { name }).await }));
                }
                releasing.push(scene.releasing(lease).await);
            }
            (good, bad, releasing, looks)
        })
        .await;
    for releasing in releasing {
        released(releasing).await;
    }
    let mut taken = Vec::new();
    for acquiring in good {
        taken.push(lease_of(acquiring).await);
    }
    let mut bad = bad.into_iter();
    for _ in 0..2 {
        let outcome = bad.next().unwrap().await.unwrap().unwrap().into_inner().outcome.unwrap();
        let acquire_response::Outcome::Contended(contended) = outcome else { panic!("{outcome:?}") };
        assert_eq!(contended.owner, "");
    }
    // Three nodes do not mind; the bad key is no veto.
    taken.push(lease_of(bad.next().unwrap()).await);
    for look in looks {
        let votes = look.await.unwrap().unwrap().into_inner().votes;
        assert!(votes.iter().any(|vote| vote.state() == proto::NodeVoteState::Other), "{votes:?}");
    }
    scene.release_all(taken).await;
    scene.proxy.idle().await;
    for node in &scene.cluster.nodes {
        assert!(node.keys().iter().all(|key| node.cli(&["TYPE", key]) == "list"), "{:?}", node.keys());
        node.cli(&["DEL", "lock:bad/5", "lock:bad/3", "lock:bad/2"]);
    }
    scene.cluster.no_key_left().await;
}

fn limit_memory(nodes: &[Redis], bytes: &str) {
    nodes.iter().for_each(|node| assert_eq!(node.cli(&["CONFIG", "SET", "maxmemory", bytes]), "OK"));
}

#[tokio::test]
async fn full_nodes_grant_nothing_and_go_on_releasing() {
    let scene = Scene::set_up().await;
    let mut client = scene.proxy.client().await;
    let leases = scene.take((0..20).map(|number| format!("old/{number}"))).await;

    // A full minority is no harm.
    limit_memory(&scene.cluster.nodes[..2], "1");
    let grant = granted(&mut client, lasting("orders/42")).await;
    assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);

    limit_memory(&scene.cluster.nodes[..3], "1");
    for number in 0..10 {
        let status = client.acquire(lasting(&format!("new/{number}"))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let said = status.get_details_error_info().unwrap().metadata;
        assert!(scene.gates[..3].iter().all(|gate| said[&gate.address.to_string()].contains("OOM")), "{said:?}");
    }
    // Those that had room had said yes.
    until("what the others had taken to be gone", || async {
        scene.cluster.nodes.iter().all(|node| node.keys().iter().all(|key| key.starts_with("lock:old/"))).then_some(())
    })
    .await;
    let renewal = proto::RenewRequest { lock_id: leases[0].clone(), ttl: seconds(LASTING_SECONDS) };
    let renewed = client.renew(renewal).await.unwrap().into_inner().outcome.unwrap();
    assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
    scene.release_all(leases).await;
    limit_memory(&scene.cluster.nodes, "0");
    scene.proxy.idle().await;
    scene.cluster.no_key_left().await;
}

/// The same in one call. Its releases go first; what they make room for may be used.
#[tokio::test]
async fn operations_that_share_a_call_with_what_a_full_node_refuses_go_on() {
    let scene = Scene::set_up().await;
    let leases = scene.take((0..20).map(|number| format!("old/{number}"))).await;
    for with_others in [true, false] {
        let (releases, renewals) = if with_others { (10, 5) } else { (0, 0) };
        let (acquiring, releasing, renewing) = scene
            .as_one_batch(10 + releases + renewals, async || {
                limit_memory(&scene.cluster.nodes, "1");
                let (mut acquiring, mut releasing, mut renewing) = (Vec::new(), Vec::new(), Vec::new());
                for number in 0..10 {
                    acquiring.push(scene.acquiring(&format!("new/{with_others}/{number}")).await);
                    if with_others {
                        releasing.push(scene.releasing(&leases[number]).await);
                    }
                    if number < renewals as usize {
                        let mut client = scene.proxy.client().await;
                        let lock_id = leases[10 + number].clone();
                        let renewal = proto::RenewRequest { lock_id, ttl: seconds(LASTING_SECONDS) };
                        renewing.push(tokio::spawn(async move { client.renew(renewal).await }));
                    }
                }
                (acquiring, releasing, renewing)
            })
            .await;
        limit_memory(&scene.cluster.nodes, "0");
        for releasing in releasing {
            released(releasing).await;
        }
        for renewing in renewing {
            let renewed = renewing.await.unwrap().unwrap().into_inner().outcome.unwrap();
            assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
        }
        let (mut taken, mut refused) = (Vec::new(), 0);
        for acquiring in acquiring {
            match acquiring.await.unwrap() {
                Ok(answer) => match answer.into_inner().outcome.unwrap() {
                    acquire_response::Outcome::Granted(grant) => taken.push(grant.lock_id),
                    acquire_response::Outcome::Contended(contended) => panic!("{contended:?}"),
                },
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable);
                    assert!(status.message().contains("OOM"), "{}", status.message());
                    refused += 1;
                }
            }
        }
        println!("with others {with_others}: {} granted, {refused} refused", taken.len());
        // The server lets a script that has begun to write finish: releases and renewals open the door for what comes after
        // them in their call.
        assert!(with_others || refused == 10);
        scene.release_all(taken).await;
    }
    scene.release_all(leases[10..].to_vec()).await;
    scene.proxy.idle().await;
    scene.cluster.no_key_left().await;
}

/// An error of the whole call says nothing about its operations: what they may have left is cleaned up.
#[tokio::test]
async fn nodes_that_forbid_the_script_have_no_vote() {
    let scene = Scene::set_up().await;
    let mut client = scene.proxy.client().await;
    let allow = |yes: bool| {
        for node in &scene.cluster.nodes[..3] {
            let rules = if yes { ["+eval", "+evalsha"] } else { ["-eval", "-evalsha"] };
            assert_eq!(node.cli(&["ACL", "SETUSER", "default", rules[0], rules[1]]), "OK");
        }
    };
    let held = granted(&mut client, lasting("held")).await;
    allow(false);
    // The first script that is refused shows it; a plain SET needs none. The release waits until scripts run again.
    let status = client.release(proto::ReleaseRequest { lock_id: held.lock_id }).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    until("no vote of them", || async { (scene.proxy.nodes().await.voting == 2).then_some(()) }).await;
    for number in 0..5 {
        let status = client.acquire(lasting(&format!("orders/{number}"))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.message().matches("NOPERM").count(), 3, "{}", status.message());
    }
    allow(true);
    until("every node to be up", || async { (scene.proxy.nodes().await.voting == 5).then_some(()) }).await;
    scene.proxy.idle().await;
    scene.cluster.no_key_left().await;
    let grant = granted(&mut client, lasting("orders/0")).await;
    assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
    scene.cluster.no_key_left().await;
}
