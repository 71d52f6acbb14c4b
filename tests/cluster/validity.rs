//! The validity that a client is told ends before the keys do. The keys' ends are read as instants (PEXPIRETIME) on the
//! machine's wall clock, which client and servers share here, so that the time of asking plays no part.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::Rng;
use tokio::time::sleep;

use super::*;

/// Relates the monotonic to the wall clock.
#[derive(Clone, Copy)]
struct Clocks {
    monotonic: Instant,
    wall_ms: f64,
}

impl Clocks {
    fn read() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self { monotonic: Instant::now(), wall_ms: wall.as_secs_f64() * 1e3 }
    }

    fn wall_ms(self, at: Instant) -> f64 {
        self.wall_ms + (at - self.monotonic).as_secs_f64() * 1e3
    }
}

struct Sample {
    key: String,
    /// By the wall clock, in milliseconds.
    lease_ends: f64,
    lock_id: String,
}

impl Sample {
    /// `t_send + served_for + validity`, as the contract says.
    fn new(
        name: &str,
        sent: Instant,
        served_for: Option<prost_types::Duration>,
        validity: Option<prost_types::Duration>,
        clocks: Clocks,
        lock_id: String,
    ) -> Self {
        let ends = sent + std_duration(served_for) + std_duration(validity);
        Self { key: format!("lock:{name}"), lease_ends: clocks.wall_ms(ends), lock_id }
    }
}

const ENDS: &str = "local ends = {} for i, key in ipairs(KEYS) do ends[i] = redis.call('PEXPIRETIME', key) end return ends";

/// By how many milliseconds the quorum's keys outlive each lease, the smallest first.
fn margins(cluster: &Cluster, samples: &[Sample]) -> Vec<f64> {
    let mut args = vec!["EVAL".to_owned(), ENDS.to_owned(), samples.len().to_string()];
    args.extend(samples.iter().map(|sample| sample.key.clone()));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ends: Vec<Vec<f64>> =
        cluster.nodes.iter().map(|node| node.cli(&args).lines().map(|line| line.parse().unwrap()).collect()).collect();
    let quorum = cluster.nodes.len() / 2 + 1;
    let mut margins: Vec<f64> = (0..samples.len())
        .map(|index| {
            // -2: not there.
            let mut on_nodes: Vec<f64> = ends.iter().map(|node| node[index]).collect();
            on_nodes.sort_by(|a, b| b.total_cmp(a));
            on_nodes[quorum - 1] - samples[index].lease_ends
        })
        .collect();
    margins.sort_by(f64::total_cmp);
    margins
}

fn tell(what: &str, margins: &[f64]) {
    let (least, median, most) = (margins[0], margins[margins.len() / 2], margins[margins.len() - 1]);
    println!(
        "{what}: keys outlive {} leases by {least:.2} ms at least, {median:.2} in the middle, {most:.2} at most",
        margins.len()
    );
    // A millisecond for the servers' rounding to whole ones is what the drift allowance covers twice.
    assert!(least >= 0.0, "a lease ends {} ms after its keys", -least);
}

#[tokio::test]
async fn leases_end_before_their_keys() {
    let mut rng = seeded();
    let cluster = Cluster::start(5);
    let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
    let proxy = proxy_behind(&gates, &cluster.fence.url(), &NO_TIMEOUTS).await;
    let mut client = proxy.client().await;
    let clocks = Clocks::read();

    // Gates before the nodes let the votes come late, so that there is something to be honest about.
    let (mut samples, mut held_back) = (Vec::new(), 0);
    for number in 0..300 {
        let (name, ttl) = (format!("orders/{number}"), rng.random_range(60_000..280_000));
        if rng.random_ratio(1, 3) {
            held_back += 1;
            let hold = if rng.random() { Gate::hold_requests } else { Gate::hold_replies };
            gates.iter().for_each(hold);
            let pause = Duration::from_micros(rng.random_range(0..20_000));
            let gates = gates.clone();
            tokio::spawn(async move {
                sleep(pause).await;
                gates.iter().for_each(Gate::open);
            });
        }
        let request = proto::AcquireRequest { ttl: millis(ttl), ..want(&name) };
        let sent = Instant::now();
        let grant = granted(&mut client, request).await;
        samples.push(Sample::new(&name, sent, grant.served_for, grant.validity, clocks, grant.lock_id));
    }
    assert!(held_back > 50);
    // The unsent SETs of the last grants are no part of any quorum that counted.
    tell("granted", &margins(&cluster, &samples));

    // What a check says is true of the same keys, and no later than what was granted.
    let mut checked = Vec::new();
    for sample in &samples {
        let sent = Instant::now();
        let answer = client.check(proto::CheckRequest { lock_id: sample.lock_id.clone() }).await.unwrap().into_inner();
        let Some(proto::check_response::Outcome::Held(held)) = answer.outcome else { panic!("{answer:?}") };
        let name = sample.key.strip_prefix("lock:").unwrap();
        checked.push(Sample::new(name, sent, held.served_for, held.validity, clocks, sample.lock_id.clone()));
    }
    tell("checked", &margins(&cluster, &checked));

    // And so it is after a renewal; one that asks for less leaves the keys as they are.
    let mut renewed = Vec::new();
    for sample in &samples {
        let sent = Instant::now();
        let ttl = rng.random_range(1_000..280_000);
        let request = proto::RenewRequest { lock_id: sample.lock_id.clone(), ttl: millis(ttl) };
        let answer = client.renew(request).await.unwrap().into_inner();
        let Some(proto::renew_response::Outcome::Renewed(lease)) = answer.outcome else { panic!("{answer:?}") };
        let name = sample.key.strip_prefix("lock:").unwrap();
        renewed.push(Sample::new(name, sent, lease.served_for, lease.validity, clocks, sample.lock_id.clone()));
    }
    tell("renewed", &margins(&cluster, &renewed));
    for (before, after) in samples.iter().zip(&renewed) {
        assert!(after.key == before.key);
    }
    for sample in samples {
        assert_eq!(release(&mut client, &sample.lock_id).await, ReleaseOutcome::Released);
    }
    cluster.no_key_left().await;
}

/// As somebody would look by hand: a key of which nobody can say when it ends is asked how long it has left, right after.
#[tokio::test]
async fn redis_cli_sees_keys_that_live_longer_than_their_leases() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start(&cluster, &NO_TIMEOUTS).await;
    warm_up(&proxy).await;
    let mut client = proxy.client().await;
    for number in 0..20 {
        let name = format!("orders/{number}");
        let sent = Instant::now();
        let grant = granted(&mut client, lasting(&name)).await;
        let ends = sent + std_duration(grant.served_for) + std_duration(grant.validity);
        let outlive = cluster.nodes.iter().filter(|node| {
            let left: i64 = node.cli(&["PTTL", &format!("lock:{name}")]).parse().unwrap();
            // The key had this left at some moment before now.
            u64::try_from(left).is_ok_and(|left| Instant::now() + Duration::from_millis(left) >= ends)
        });
        assert!(outlive.count() >= 2);
        assert_eq!(release(&mut client, &grant.lock_id).await, ReleaseOutcome::Released);
    }
}
