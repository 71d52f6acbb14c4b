//! A retry of the same request through another proxy, while the first try is still on its way to the nodes.

use super::*;

/// Where the first try is held up when the second one comes.
#[derive(Clone, Copy, Debug)]
enum HeldUp {
    /// No SET of it has arrived.
    BeforeAll,
    /// Its SETs have been run, but it does not know.
    AfterAll,
    /// Two nodes have run it, three have not got it.
    BetweenTwoAndThree,
}

struct Scene {
    cluster: Cluster,
    gates: std::sync::Arc<Vec<Gate>>,
    /// Behind the gates.
    first: Proxy,
    second: Proxy,
}

impl Scene {
    async fn set_up() -> Self {
        let cluster = Cluster::start(5);
        let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
        let first = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
        let second = Proxy::start(&cluster, &NO_TIMEOUTS).await;
        warm_up(&second).await;
        Self { cluster, gates, first, second }
    }

    fn values(&self, key: &str) -> Vec<String> {
        self.cluster.nodes.iter().map(|node| node.cli(&["GET", key])).collect()
    }

    fn sets(&self) -> Vec<u64> {
        self.cluster.nodes.iter().map(|node| node.calls_of("set")).collect()
    }

    /// Cancels the first try where it is held up, lets the second one be granted, then lets the first one and its clean-up
    /// through.
    async fn play(&self, held_up: HeldUp, name: &str, request_id: &[u8]) {
        let try_number = |attempt| proto::AcquireRequest { request_id: request_id.to_owned().into(), attempt, ..lasting(name) };
        let key = format!("lock:{name}");
        let before = self.sets();
        let holds_request = |node: usize| match held_up {
            HeldUp::BeforeAll => true,
            HeldUp::AfterAll => false,
            HeldUp::BetweenTwoAndThree => node >= 2,
        };
        for (node, gate) in self.gates.iter().enumerate() {
            if holds_request(node) { gate.hold_requests() } else { gate.hold_replies() }
        }
        let mut client = self.first.client().await;
        let request = try_number(1);
        let attempt = tokio::spawn(async move { client.acquire(request).await });
        until("the first try to be where it shall be held up", || async {
            let requests = self.first.metric("redlock_tasks").await;
            let arrived =
                self.sets().iter().zip(&before).enumerate().all(|(node, (now, then))| holds_request(node) || now > then);
            // Begun, and nothing of it waits in a mailbox, from which it would be taken back.
            let queued: u32 = self.first.nodes().await.nodes.iter().map(|node| node.queued).sum();
            (requests > 0.0 && arrived && queued == 0).then_some(())
        })
        .await;
        let abandoned = self.first.metric("redlock_attempts_total{outcome=\"abandoned\"}").await;
        attempt.abort();
        until("the first try to be abandoned", || async {
            let now = self.first.metric("redlock_attempts_total{outcome=\"abandoned\"}").await;
            (now > abandoned && self.first.metric("redlock_tasks").await == 0.0).then_some(())
        })
        .await;

        let mut client = self.second.client().await;
        let grant = granted(&mut client, try_number(2)).await;
        until("the lease on every node", || async { self.values(&key).iter().all(|value| !value.is_empty()).then_some(()) })
            .await;
        let values = self.values(&key);
        let value = &values[0];
        assert!(values.iter().all(|other| other == value) && value.contains(".2."), "{values:?}");
        // Until now the first try has left a trace only where its SET was let through.
        let sets = self.sets();
        let gets: Vec<u64> = self.cluster.nodes.iter().map(|node| node.calls_of("get")).collect();

        self.gates.iter().for_each(Gate::open);
        until("the first try and its clean-up to arrive", || async {
            let arrived = |(node, redis): (usize, &Redis)| match holds_request(node) {
                true => redis.calls_of("set") > sets[node],
                // The values are compared, and found to be another's.
                false => redis.calls_of("get") > gets[node],
            };
            self.cluster.nodes.iter().enumerate().all(arrived).then_some(())
        })
        .await;
        self.first.idle().await;

        assert_eq!(self.values(&key), values, "the late try changed nothing");
        let check = proto::CheckRequest { lock_id: grant.lock_id.clone() };
        for proxy in [&self.first, &self.second] {
            let answer = proxy.client().await.check(check.clone()).await.unwrap().into_inner().outcome.unwrap();
            assert!(matches!(answer, proto::check_response::Outcome::Held(_)), "{answer:?}");
        }
        // Nor do further repeats of what is no newer, or anybody else.
        let mut other = self.first.client().await;
        contended(&mut other, try_number(1)).await;
        contended(&mut other, lasting(name)).await;
        assert_eq!(self.values(&key), values);
        let renewal = proto::RenewRequest { lock_id: grant.lock_id.clone(), ttl: seconds(LASTING_SECONDS) };
        let renewed = client.renew(renewal).await.unwrap().into_inner().outcome.unwrap();
        assert!(matches!(renewed, proto::renew_response::Outcome::Renewed(_)), "{renewed:?}");
        assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
        self.cluster.no_key_left().await;
    }
}

#[tokio::test]
async fn a_retry_elsewhere_stands_against_the_late_first_try() {
    let scene = Scene::set_up().await;
    for round in 0..4_u8 {
        for held_up in [HeldUp::BeforeAll, HeldUp::AfterAll, HeldUp::BetweenTwoAndThree] {
            scene.play(held_up, &format!("orders/{held_up:?}/{round}"), &[round; 16]).await;
        }
    }
}

/// A higher number takes over, and the older lease is gone; a lower one is refused, and so is another request.
#[tokio::test]
async fn the_newest_grant_of_a_request_counts() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
    warm_up(&proxy).await;
    let mut client = proxy.client().await;
    let request = |attempt| proto::AcquireRequest { request_id: vec![7; 16].into(), attempt, ..lasting("orders/42") };
    let mut leases = Vec::new();
    for attempt in 1..=5 {
        leases.push(granted(&mut client, request(attempt)).await);
    }
    let newest = leases.pop().unwrap();
    for (older, newer) in leases.iter().zip(leases.iter().skip(1).chain([&newest])) {
        assert!(token(newer) > token(older));
        assert_eq!(release(&mut client, &older.lock_id).await, ReleaseOutcome::NotHeld);
    }
    contended(&mut client, proto::AcquireRequest { request_id: vec![8; 16].into(), attempt: 9, ..lasting("orders/42") }).await;
    contended(&mut client, request(4)).await;
    assert_eq!(release(&mut client, &newest.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}
