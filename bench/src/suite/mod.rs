//! `redlockd-bench suite`: the measurements that the project judges itself by, with the ratios that it aims at.
//!
//! - [`standard`]: what takes less than ten minutes. [`long`] and [`leases`]: what does not. [`aims`]: the ratios.

mod aims;
mod leases;
mod long;
mod standard;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};

use crate::Error;
use crate::bench::{Bench, Manner};
use crate::client::Terms;
use crate::load::{MOST_THREADS, finish, window_length};
use crate::names::Names;
use crate::servers::etcd::{Etcd, EtcdArgs};
use crate::servers::{Servers, ServersArgs};
use crate::targets::TTL;
use aims::Aims;

/// Clients of everything that is not a comparison of numbers of clients.
const CLIENTS: usize = 64;

/// A part of a window's length, before its clients are measured for the first time.
const WARM_UP: u32 = 4;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// All targets side by side
    Compare,
    /// A node of five that hangs for a minute
    Hung,
    /// Given rates, and the knee
    Rates,
    /// A million held locks against ten
    Held,
    /// 50,000 leases in sessions, and the proxy's memory
    Leases,
    /// 1 to 7 nodes
    Nodes,
    /// Three proxies on the same nodes
    Proxies,
    /// A node of five that hangs for ten minutes, and the proxy's memory
    LongHung,
}

/// Measure what the project has set itself, and print the ratios first
///
/// Everything runs on servers that are started on loopback for it and ended after it. The exit code is 1 if a promise was broken,
/// or anything failed while all nodes were well. A ratio that is missed is told, and fails nothing.
#[derive(Args, Debug)]
pub struct SuiteArgs {
    /// What takes longer: held, leases, nodes, proxies, long-hung, instead of compare, hung, rates
    #[arg(long)]
    long: bool,
    /// These parts only
    #[arg(long, value_delimiter = ',', value_name = "PARTS", conflicts_with = "long")]
    parts: Vec<Part>,
    /// Numbers of clients to compare targets with
    #[arg(long, value_delimiter = ',', value_name = "COUNTS", default_value = "1,64,256",
          value_parser = value_parser!(u16).range(1..=8192))]
    clients: Vec<u16>,
    /// Length of a window
    #[arg(long, value_parser = window_length, value_name = "DURATION", default_value = "2s")]
    window: Duration,
    /// Windows of each target
    #[arg(long, value_parser = value_parser!(u16).range(1..=1000), default_value_t = 5)]
    rounds: u16,
    /// How long a node hangs in the part hung; a quarter of it is measured before and after
    #[arg(long, value_parser = window_length, value_name = "DURATION", default_value = "60s")]
    hung: Duration,
    /// The same in the part long-hung
    #[arg(long, value_parser = window_length, value_name = "DURATION", default_value = "10m")]
    long_hung: Duration,
    /// Locks that are held in the part held
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    held: u64,
    /// Leases of sessions in the part leases
    #[arg(long, value_name = "COUNT", default_value_t = 50_000, value_parser = value_parser!(u64).range(1..=200_000))]
    session_leases: u64,
    /// Threads of this process that serve the clients; 1 is a runtime without threads of its own, which suits nearly all targets
    /// best where the servers need the other processors
    #[arg(long, value_parser = value_parser!(u8).range(1..=i64::from(MOST_THREADS)), default_value_t = 1)]
    pub threads: u8,
    /// Write the results as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    servers: ServersArgs,
}

impl SuiteArgs {
    fn parts(&self) -> Vec<Part> {
        match (self.parts.is_empty(), self.long) {
            (false, _) => self.parts.clone(),
            (true, false) => vec![Part::Compare, Part::Hung, Part::Rates],
            (true, true) => vec![Part::Held, Part::Leases, Part::Nodes, Part::Proxies, Part::LongHung],
        }
    }

    fn manner(&self) -> Manner {
        Manner {
            names: Names::Distinct,
            terms: Terms { ttl: TTL, wait: Duration::ZERO },
            hold: Duration::ZERO,
            window: self.window,
            rounds: self.rounds.into(),
            warm_up: self.window / WARM_UP,
            ramp: Duration::ZERO,
            interval: Duration::from_secs(1).min(self.window / 2),
        }
    }
}

/// A suite under way.
struct Suite<'a> {
    args: &'a SuiteArgs,
    bench: Bench,
    aims: Aims,
}

/// Measures, prints, and says how much is wrong. To be called from the main thread: it starts servers.
pub async fn run(args: &SuiteArgs) -> Result<u64, Error> {
    let (parts, bench) = (args.parts(), Bench::new(args.manner(), args.threads));
    let mut suite = Suite { args, bench, aims: Aims::default() };
    let standard = [Part::Compare, Part::Hung, Part::Rates, Part::LongHung];
    if parts.iter().any(|part| standard.contains(part)) {
        suite.on_one_cluster(&parts).await?;
    }
    if parts.contains(&Part::Held) {
        long::held(&mut suite).await?;
    }
    if parts.contains(&Part::Leases) {
        leases::memory(&mut suite).await?;
    }
    if parts.contains(&Part::Nodes) {
        long::nodes(&mut suite).await?;
    }
    if parts.contains(&Part::Proxies) {
        long::proxies(&mut suite).await?;
    }
    suite.bench.results.aims = suite.aims.list();
    finish(suite.bench, args.json.as_deref(), true)
}

impl Suite<'_> {
    /// Five nodes and a proxy, as most of it needs.
    async fn on_one_cluster(&mut self, parts: &[Part]) -> Result<(), Error> {
        let servers = Servers::start(&self.args.servers, Default::default())?;
        servers.all_up().await?;
        standard::idle(self, &servers).await;
        if parts.contains(&Part::Compare) {
            self.bench.etcd = Some(Etcd::start(&self.args.etcd).await?);
        }
        self.bench.note_versions(&self.args.servers, &self.args.etcd, &servers).await?;
        if parts.contains(&Part::Compare) {
            standard::compare(self, &servers).await?;
        }
        if parts.contains(&Part::Hung) {
            standard::hung(self, &servers).await?;
        }
        if parts.contains(&Part::Rates) {
            standard::rates(self, &servers).await?;
        }
        if parts.contains(&Part::LongHung) {
            long::hung(self, &servers).await?;
        }
        Ok(())
    }
}
