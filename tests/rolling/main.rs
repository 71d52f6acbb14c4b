//! Rolling restarts: each of three proxies is drained and started again, then each node, one after another, while the Rust client
//! takes and releases locks at a steady pace. No call fails, no two leases overlap, tokens rise. `make prove-rolling` does it
//! again and again.
#![allow(clippy::unwrap_used)]

#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../support/mod.rs"]
mod support;

mod load;
mod record;

use std::time::Instant;

use load::Load;
use nix::sys::signal::Signal;
use oracle::history::Fault;
use oracle::{Assumptions, judge};
use record::Record;
use support::{Cluster, Proxy, Redis, until};

const NODES: usize = 5;
const PROXIES: usize = 3;

/// A node that has everything on disk before it answers, whatever else it does: it votes as soon as it is back.
const WHOLE: [&str; 6] = ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"];

/// So many pairs begin and end while a process is away, and again before the next one goes.
const MEANWHILE: usize = 50;

/// How often each proxy and each node is restarted, and pairs a second: seldom and few unless `ROLLS` says otherwise.
fn rolls_and_pace() -> (usize, u32) {
    match std::env::var("ROLLS").ok().filter(|text| !text.is_empty()) {
        Some(text) => (text.parse().unwrap_or_else(|_| panic!("ROLLS={text} is not a number")), 500),
        None => (1, 100),
    }
}

/// Three proxies in front of nodes that are restarted.
struct World {
    cluster: Cluster,
    proxies: Vec<Proxy>,
    record: Record,
}

impl World {
    async fn start(counter: Counter) -> Self {
        let nodes = (0..NODES).map(|_| Redis::start(&WHOLE)).collect();
        let cluster = Cluster { nodes, fence: Redis::start(&WHOLE) };
        let mut proxies = Vec::new();
        for _ in 0..PROXIES {
            proxies.push(match counter {
                Counter::Designated => Proxy::start(&cluster, &[]).await,
                Counter::Quorum => Proxy::start_without_fence(&cluster.urls(), &["--fencing-counter", "quorum"]).await,
            });
        }
        let world = Self { cluster, proxies, record: Record::default() };
        world.is_whole().await;
        world
    }

    /// Every proxy, asked anew, says that every node votes.
    async fn is_whole(&self) {
        for proxy in &self.proxies {
            proxy.ready().await;
            until("every node to vote", || async { (proxy.nodes().await.voting as usize == NODES).then_some(()) }).await;
        }
    }

    /// Waits until so many pairs have begun and ended since an instant.
    async fn goes_on(&self, since: Instant) {
        let what = format!("{MEANWHILE} pairs in full");
        until(&what, || async { (self.record.pairs_since(since) >= MEANWHILE).then_some(()) }).await;
    }

    async fn restart_proxy(&mut self, index: usize) {
        let began = Instant::now();
        self.proxies[index].process.signal(Signal::SIGTERM);
        assert_eq!(self.proxies[index].process.ended().await.code(), Some(0), "{}", self.proxies[index].log());
        self.goes_on(Instant::now()).await;
        self.proxies[index].start_again().await;
        self.is_over(format!("proxy {}", index + 1), began).await;
    }

    async fn restart_node(&mut self, index: usize) {
        let began = Instant::now();
        self.cluster.nodes[index].end().await;
        self.goes_on(Instant::now()).await;
        self.cluster.nodes[index].start_again();
        self.is_over(format!("node {}", index + 1), began).await;
    }

    /// All is as it was before, and has been so for some pairs.
    async fn is_over(&self, who: String, began: Instant) {
        self.is_whole().await;
        self.goes_on(Instant::now()).await;
        let made = self.record.pairs_since(began);
        println!("{who} restarted: {made} pairs begun and ended since, {:.1} s", began.elapsed().as_secs_f64());
        let (from, until) = (self.record.at(began), self.record.now());
        self.record.look().history.faults.push(Fault { what: "restart".to_owned(), to: who, from, until });
    }
}

/// Where tokens come from.
#[derive(Clone, Copy)]
enum Counter {
    Designated,
    Quorum,
}

async fn rolling_restarts(counter: Counter) {
    let (rolls, pace) = rolls_and_pace();
    let mut world = World::start(counter).await;
    let load = Load::start(&world.proxies, &world.record, pace).await;
    world.goes_on(Instant::now()).await;
    for _ in 0..rolls {
        for index in 0..PROXIES {
            world.restart_proxy(index).await;
        }
        for index in 0..NODES {
            world.restart_node(index).await;
            load.holds().await;
        }
    }
    load.end().await;
    world.cluster.no_key_left().await;

    let record = world.record.look();
    println!("{}", record.summary());
    assert!(record.failures.is_empty(), "{} calls failed: {:#?}", record.failures.len(), record.failures);
    let found = judge(&record.history, Assumptions::Hold);
    assert!(found.is_empty(), "{} promises broken: {found:#?}", found.len());
    // During each of them and after it, and no pair counts twice.
    let restarts = rolls * (PROXIES + NODES);
    assert_eq!(record.history.faults.len(), restarts);
    assert!(record.pairs.len() >= restarts * 2 * MEANWHILE, "{} pairs", record.pairs.len());
    assert!(record.waits() > 0, "nobody wanted what somebody else had");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_fail_no_call() {
    rolling_restarts(Counter::Designated).await;
}

/// The nodes count the tokens themselves: that of a lock may stand on three of them only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restarts_fail_no_call_where_the_nodes_count() {
    rolling_restarts(Counter::Quorum).await;
}
