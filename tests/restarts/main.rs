//! Nodes without persistence are killed and started again, empty, while clients lock all the time: nobody is granted what
//! somebody may still rely on, because a node that may have forgotten locks does not vote. `make prove-restarts` runs it for
//! 500 restarts, and once more with the quarantine off.
#![allow(clippy::unwrap_used)]

#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oracle::history::{Held, History, Lease};
use oracle::overlaps;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use redlockd::proto;
use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::lock_service_client::LockServiceClient;
use support::{Cluster, DURABLE, Proxy, Redis, millis, std_duration, token, until};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tonic::transport::Channel;

const NODES: usize = 5;
const NAMES: u32 = 150;
const CLIENTS: usize = 48;
const MAX_TTL: Duration = Duration::from_secs(2);
const FLAGS: [&str; 4] = ["--limits-max-ttl", "2s", "--limits-default-ttl", "2s"];

/// How long two nodes are away at once: what is granted then is on the other three only.
const AWAY: Duration = Duration::from_millis(300);
/// Then one of these three forgets.
const THIRD: Duration = Duration::from_millis(600);

/// How many restarts, if somebody says.
fn wanted_restarts() -> Option<usize> {
    let text = std::env::var("RESTARTS").ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("RESTARTS={text} is not a number")))
}

fn seed() -> u64 {
    match std::env::var("RESTARTS_SEED") {
        Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("RESTARTS_SEED={seed} is not a number")),
        Err(_) => rand::random(),
    }
}

/// What happened, by the clock of this machine.
struct Record {
    start: Instant,
    history: Mutex<History>,
    stopping: AtomicBool,
}

impl Record {
    fn grants(&self) -> usize {
        self.history.lock().unwrap().leases.len()
    }

    fn overlaps(&self) -> usize {
        overlaps(&self.history.lock().unwrap())
    }
}

/// Takes a lock, holds it for a moment or for as long as it may, and gives it back or does not.
async fn work(number: usize, mut rng: StdRng, mut proxies: Vec<LockServiceClient<Channel>>, record: Arc<Record>) {
    while !record.stopping.load(Ordering::Relaxed) {
        let name = format!("job/{}", rng.random_range(0..NAMES));
        let client = &mut proxies[rng.random_range(0..2)];
        let sent = Instant::now();
        let request = proto::AcquireRequest { name: name.clone(), ttl: millis(2_000), ..Default::default() };
        let answer = client.acquire(request).await.ok().and_then(|answer| answer.into_inner().outcome);
        let Some(Outcome::Granted(grant)) = answer else {
            // Held by somebody, or too few nodes vote just now.
            sleep(Duration::from_millis(rng.random_range(1..30))).await;
            continue;
        };
        let ends = sent + std_duration(grant.served_for) + std_duration(grant.validity);
        let (from, until) = (Instant::now(), ends);
        let index = {
            let mut history = record.history.lock().unwrap();
            let held = Held { from: from - record.start, until: until - record.start };
            let (granted_by, not_before) = (held.from, sent - record.start);
            let client = format!("client {number}");
            let token = Some(token(&grant));
            history.leases.push(Lease { name, client, token, not_before, granted_by, held: Some(held) });
            history.leases.len() - 1
        };
        if rng.random_ratio(1, 10) {
            // For as long as it lasts, and it is never given back.
            sleep(ends.saturating_duration_since(Instant::now())).await;
            continue;
        }
        sleep(Duration::from_millis(rng.random_range(0..20))).await;
        if let Some(held) = &mut record.history.lock().unwrap().leases[index].held {
            held.until = held.until.min(record.start.elapsed());
        }
        let _ = client.release(proto::ReleaseRequest { lock_id: grant.lock_id }).await;
    }
}

async fn kill(nodes: &[Arc<Mutex<Redis>>], which: usize) {
    let node = nodes[which].clone();
    spawn_blocking(move || node.lock().unwrap().kill()).await.unwrap();
}

async fn start(nodes: &[Arc<Mutex<Redis>>], which: usize) {
    let node = nodes[which].clone();
    spawn_blocking(move || node.lock().unwrap().start_again()).await.unwrap();
}

/// Two nodes go away for a moment and come back empty; then a third does. So three of five forget within the life of a lease.
async fn a_round_of_restarts(nodes: &[Arc<Mutex<Redis>>], rng: &mut StdRng) -> usize {
    let mut order: Vec<usize> = (0..NODES).collect();
    order.shuffle(rng);
    for node in &order[..2] {
        kill(nodes, *node).await;
    }
    sleep(AWAY).await;
    for node in &order[..2] {
        start(nodes, *node).await;
    }
    sleep(THIRD).await;
    kill(nodes, order[2]).await;
    start(nodes, order[2]).await;
    // Until all of them vote again, and some.
    sleep(MAX_TTL + Duration::from_millis(rng.random_range(200..500))).await;
    3
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_forget_do_not_vote() {
    let (wanted, seed) = (wanted_restarts(), seed());
    let quarantine_off = std::env::var("MUTANT").is_ok_and(|mutant| mutant == "quarantine-ignored");
    println!("RESTARTS_SEED={seed}, the quarantine is {}", if quarantine_off { "off" } else { "on" });
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Cluster { nodes: (0..NODES).map(|_| Redis::start(&[])).collect(), fence: Redis::start(&DURABLE) };
    let proxies = [Proxy::start(&cluster, &FLAGS).await, Proxy::start(&cluster, &FLAGS).await];
    let clients = vec![proxies[0].client().await, proxies[1].client().await];
    let nodes: Vec<Arc<Mutex<Redis>>> = cluster.nodes.into_iter().map(|node| Arc::new(Mutex::new(node))).collect();
    let record = Arc::new(Record { start: Instant::now(), history: Mutex::default(), stopping: AtomicBool::new(false) });
    let mut workers = JoinSet::new();
    for number in 0..CLIENTS {
        workers.spawn(work(number, StdRng::seed_from_u64(rng.random()), clients.clone(), record.clone()));
    }
    until("first grants", || async { (record.grants() > 20).then_some(()) }).await;

    let (mut restarts, mut told) = (0, Instant::now());
    let enough = |restarts| wanted.map_or(record.start.elapsed() > Duration::from_secs(30), |wanted| restarts >= wanted);
    while !enough(restarts) {
        let before = record.grants();
        restarts += a_round_of_restarts(&nodes, &mut rng).await;
        until("grants to go on", || async { (record.grants() > before).then_some(()) }).await;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let (grants, overlaps) = (record.grants(), record.overlaps());
            println!("{} s: {restarts} restarts, {grants} grants, {overlaps} overlaps", record.start.elapsed().as_secs());
        }
    }
    record.stopping.store(true, Ordering::Relaxed);
    workers.join_all().await;
    let (grants, overlaps) = (record.grants(), record.overlaps());
    println!("{restarts} restarts in {} s, {grants} grants, {overlaps} overlaps", record.start.elapsed().as_secs());
    let least = if wanted.is_some() { 40 } else { 10 };
    assert!(restarts >= 6 && grants >= least * restarts, "too little happened");
    if quarantine_off {
        assert!(overlaps > 0, "the quarantine was of no use");
    } else {
        assert_eq!(overlaps, 0);
    }
}
