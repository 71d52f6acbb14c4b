//! `redlockd-bench compare`: which windows are measured, in which order.
//!
//! Windows of what is compared alternate, so that a noisy machine hits both alike; ratios are taken between neighbours. Only
//! one target works at a time, so that the CPU time of this process in a window belongs to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};

use crate::Error;
use crate::cpu::Processes;
use crate::load::{self, Caller, Until, Window};
use crate::report::{Memory, Report, Row, Side, StoppedReport, StreamReport, ratio};
use crate::servers::{NODES, Servers, ServersArgs};
use crate::targets::stream::Stream;
use crate::targets::{proxy, rslock};

/// As many as a quorum can do without.
const NODES_STOPPED: usize = (NODES as usize - 1) / 2;

/// A part of a window's length, before its callers are measured for the first time.
const WARM_UP: u32 = 4;

/// How long the acquires of the memory measurement may take.
const ACQUIRES_TIME: Duration = Duration::from_secs(300);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput, CPU time and latency of lock pairs: redlockd by unary calls and by a session against rslock
    Pairs,
    /// Throughput, latency and memory of redlockd with two of five nodes stopped against all of them
    Stopped,
}

/// More callers' threads than that measure nothing new.
pub const MOST_THREADS: u8 = 64;

/// Compare redlockd with the library rslock on the same five nodes, and with itself while two of them are stopped
///
/// Everything runs on loopback, on five lock nodes, a designated server and one proxy that are started for it and ended
/// after it. All figures are medians over the rounds. Every answer is checked; the exit code is 1 if anything failed.
///
/// CPU time is user and system time of all processes in a window over the pairs in it. `client` is this process with the
/// caller's side of the target: the library for rslock, a gRPC client for redlockd.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// What to compare
    #[arg(long, value_delimiter = ',', default_value = "pairs,stopped", value_name = "PARTS")]
    parts: Vec<Part>,
    /// Numbers of callers that take and release locks of their own [default: 1,16,64,256; quick: 1,64]
    #[arg(long, value_delimiter = ',', value_name = "COUNTS", value_parser = value_parser!(u16).range(1..=4096))]
    clients: Vec<u16>,
    /// Length of a window [default: 3s; quick: 1s]
    #[arg(long, value_parser = window_length)]
    window: Option<Duration>,
    /// Windows of each target
    #[arg(long, value_parser = value_parser!(u16).range(1..=1000), default_value_t = 3)]
    rounds: u16,
    /// Callers while nodes are stopped
    #[arg(long, value_parser = value_parser!(u16).range(1..=4096), default_value_t = 64, value_name = "COUNT")]
    stopped_clients: u16,
    /// Acquires with stopped nodes around which the proxy's memory is read [default: 100000; quick: 10000]
    #[arg(long, value_name = "COUNT")]
    stopped_acquires: Option<u64>,
    /// Threads of this process that serve the callers; 1 is a runtime without threads of its own [default: one for each
    /// processor, as a program with #[tokio::main] has]
    #[arg(long, value_parser = value_parser!(u8).range(1..=i64::from(MOST_THREADS)))]
    threads: Option<u8>,
    /// A run of about 20 seconds: rough figures
    #[arg(long)]
    quick: bool,
    /// Write the results as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    pub servers: ServersArgs,
}

/// A length that a window may have.
pub fn window_length(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
    if bounds.contains(&length) { Ok(length) } else { Err("a window lasts from 100ms to 10m".to_owned()) }
}

impl CompareArgs {
    fn clients(&self) -> Vec<usize> {
        match (self.clients.is_empty(), self.quick) {
            (false, _) => self.clients.iter().copied().map(usize::from).collect(),
            (true, false) => vec![1, 16, 64, 256],
            (true, true) => vec![1, 64],
        }
    }

    /// For `redlockd-bench stream`.
    pub fn of_streams(self) -> Self {
        let clients = if self.clients.is_empty() { vec![64] } else { self.clients };
        Self { parts: vec![Part::Pairs], clients, ..self }
    }

    /// Threads that serve the callers.
    pub fn threads(&self) -> u8 {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS.into()) as u8);
        self.threads.unwrap_or(processors)
    }

    fn window(&self) -> Duration {
        self.window.unwrap_or(Duration::from_secs(if self.quick { 1 } else { 3 }))
    }

    fn stopped_acquires(&self) -> u64 {
        self.stopped_acquires.unwrap_or(if self.quick { 10_000 } else { 100_000 })
    }
}

/// Measures, prints, and says how many operations failed.
pub async fn run(args: &CompareArgs, servers: &Servers) -> Result<u64, Error> {
    servers.all_up().await?;
    let mut bench = Bench {
        servers,
        processes: servers.processes(),
        window: args.window(),
        rounds: args.rounds,
        report: Report { threads: args.threads(), ..Report::default() },
    };
    if args.parts.contains(&Part::Pairs) {
        for clients in args.clients() {
            bench.pairs(clients).await?;
        }
    }
    if args.parts.contains(&Part::Stopped) {
        bench.stopped(args.stopped_clients.into(), args.stopped_acquires()).await?;
    }
    print!("{}", bench.report.text());
    if let Some(file) = &args.json {
        bench.report.write_json(file)?;
    }
    Ok(bench.report.failures)
}

struct Bench<'a> {
    servers: &'a Servers,
    processes: Processes,
    window: Duration,
    rounds: u16,
    report: Report,
}

impl Bench<'_> {
    /// redlockd, by calls and by a session, against rslock.
    async fn pairs(&mut self, clients: usize) -> Result<(), Error> {
        let mut ours = proxy::callers(self.servers.proxy(), clients).await?;
        let mut streamed = Stream::open(self.servers.proxy(), clients).await?;
        let mut theirs = rslock::callers(&self.servers.urls(), clients);
        let (warm_up, window) = (Until::Elapsed(self.window / WARM_UP), Until::Elapsed(self.window));
        self.measure(&mut ours, warm_up).await?;
        self.measure_driver(&mut streamed, warm_up).await?;
        self.measure(&mut theirs, warm_up).await?;
        let (mut unary, mut stream, mut rslock) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            unary.push(self.measure(&mut ours, window).await?);
            stream.push(self.measure_driver(&mut streamed, window).await?);
            rslock.push(self.measure(&mut theirs, window).await?);
            let rates = [&unary, &stream, &rslock].map(|windows| windows.last().map_or(0.0, Window::pairs_per_s));
            let [ours, streamed, theirs] = rates.map(|rate| format!("{rate:.0}"));
            let rounds = self.rounds;
            eprintln!("{clients} callers, round {round} of {rounds}: unary {ours} pairs/s, stream {streamed}, rslock {theirs}");
        }
        self.nothing_left()?;
        self.report.streams.push(StreamReport::new(clients, &stream, &unary));
        for (target, windows) in [("unary", &unary), ("stream", &stream), ("rslock", &rslock)] {
            self.report.rows.push(Row::new(target, clients, windows, &rslock));
        }
        Ok(())
    }

    /// redlockd with stopped nodes against itself.
    async fn stopped(&mut self, clients: usize, acquires: u64) -> Result<(), Error> {
        let mut callers = proxy::callers(self.servers.proxy(), clients).await?;
        // First, before anything that was kept for stopped nodes could have widened the proxy's memory.
        let memory = self.memory(&mut callers, acquires).await?;
        let (mut healthy, mut stopped) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            healthy.push(self.measure(&mut callers, Until::Elapsed(self.window)).await?);
            stopped.push(self.measure_stopped(&mut callers).await?);
            let p99 = [&healthy, &stopped].map(|windows| windows.last().map_or(0.0, |window| window.acquire.percentile_ms(99)));
            let (rounds, [all, some]) = (self.rounds, p99.map(|ms| format!("{ms:.2} ms")));
            eprintln!("{clients} callers, round {round} of {rounds}: acquire p99 {all}, with stopped nodes {some}");
        }
        self.nothing_left()?;
        self.report.stopped = Some(StoppedReport {
            clients,
            nodes_stopped: NODES_STOPPED,
            healthy: Side::new(&healthy),
            stopped: Side::new(&stopped),
            p99_ratio: ratio(&stopped, &healthy, |window| window.acquire.percentile_ms(99)),
            throughput_ratio: ratio(&stopped, &healthy, Window::pairs_per_s),
            memory,
        });
        Ok(())
    }

    /// A window that begins with the stop itself; after it all nodes are back.
    async fn measure_stopped<C: Caller>(&mut self, callers: &mut Vec<C>) -> Result<Window, Error> {
        let stopped = self.servers.stop(NODES_STOPPED)?;
        let window = self.measure(callers, Until::Elapsed(self.window)).await?;
        drop(stopped);
        self.servers.all_up().await?;
        Ok(window)
    }

    async fn memory<C: Caller>(&mut self, callers: &mut Vec<C>, acquires: u64) -> Result<Memory, Error> {
        eprintln!("{acquires} acquires with all nodes, then as many with {NODES_STOPPED} stopped");
        self.acquires(callers, acquires).await?;
        let before_kib = self.processes.proxy_resident_kib()?;
        let stopped = self.servers.stop(NODES_STOPPED)?;
        self.acquires(callers, acquires / 2).await?;
        let half_kib = self.processes.proxy_resident_kib()?;
        self.acquires(callers, acquires - acquires / 2).await?;
        let after_kib = self.processes.proxy_resident_kib()?;
        drop(stopped);
        self.servers.all_up().await?;
        self.nothing_left()?;
        Ok(Memory { acquires, before_kib, half_kib, after_kib, resumed_kib: self.processes.proxy_resident_kib()? })
    }

    async fn acquires<C: Caller>(&mut self, callers: &mut Vec<C>, count: u64) -> Result<(), Error> {
        let window = self.measure(callers, Until::Pairs(count, ACQUIRES_TIME)).await?;
        let made = window.pairs + window.failures;
        if made < count { Err(format!("only {made} of {count} acquires within {ACQUIRES_TIME:?}").into()) } else { Ok(()) }
    }

    async fn measure<C: Caller>(&mut self, callers: &mut Vec<C>, until: Until) -> Result<Window, Error> {
        let window = load::run(callers, until, &self.processes).await?;
        self.report.count_failures(window.failures, &window.failures_shown);
        Ok(window)
    }

    async fn measure_driver(&mut self, driver: &mut Stream, until: Until) -> Result<Window, Error> {
        let window = load::run_driver(driver, until, &self.processes).await?;
        self.report.count_failures(window.failures, &window.failures_shown);
        Ok(window)
    }

    /// All locks have been released: what is still on a node is a failure.
    fn nothing_left(&mut self) -> Result<(), Error> {
        let left = self.servers.left_behind()?;
        if left > 0 {
            self.report.count_failures(left as u64, &[format!("{left} keys were left behind on the nodes")]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn parse(args: &[&str]) -> Result<CompareArgs, clap::Error> {
        Cli::try_parse_from([&["compare"], args].concat()).map(|cli| cli.args)
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let full = parse(&[]).unwrap();
        assert_eq!((full.clients(), full.window()), (vec![1, 16, 64, 256], Duration::from_secs(3)));
        assert_eq!((full.parts.len(), full.stopped_acquires()), (2, 100_000));
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(usize::from(full.threads()), processors.min(MOST_THREADS.into()));
        assert_eq!(parse(&["--threads", "3"]).unwrap().threads(), 3);
        let quick = parse(&["--quick", "--clients", "8,9", "--parts", "pairs"]).unwrap();
        assert_eq!((quick.clients(), quick.window()), (vec![8, 9], Duration::from_secs(1)));
        assert_eq!((quick.parts, quick.stopped_acquires), (vec![Part::Pairs], None));
    }

    #[test]
    fn senseless_arguments_are_refused() {
        for args in [["--clients", "0"], ["--rounds", "0"], ["--window", "1ms"], ["--threads", "0"], ["--parts", "all"]] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }
}
