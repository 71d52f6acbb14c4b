//! `redlockd-bench load`: any load on any of the targets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, value_parser};

use crate::Error;
use crate::arrivals::Rhythm;
use crate::bench::{Bench, Manner, Open, Rates};
use crate::client::Terms;
use crate::fault::{FaultPlan, When};
use crate::knee::Rule;
use crate::names::Names;
use crate::results::{FaultKind, Results};
use crate::servers::etcd::{Etcd, EtcdArgs};
use crate::servers::named::NamedArgs;
use crate::servers::{NODES, Servers, ServersArgs, Shape};
use crate::tables;
use crate::targets::Target;

/// More clients' threads than that measure nothing new.
pub const MOST_THREADS: u8 = 64;

/// Where a search for the knee begins unless it is told.
const FIRST_RATE: f64 = 1000.0;

/// A part of a window's length, before its clients are measured for the first time.
const WARM_UP: u32 = 4;

/// Load redlockd and what it is compared with, and check every answer
///
/// Every client takes a lock, gives it back, and begins again: a pair. Targets work in windows that alternate, A B C A B C, so that
/// a noisy machine hits all alike; ratios are taken between neighbours. With --rate pairs are due at instants of their own, and
/// latencies count from then on: waiting for a slow answer to another pair is not hidden. (Up to a millisecond of them is the
/// timer's.) With --stop-node, --kill-node or --slow-node there is one long window, and figures of before, during and after.
///
/// Everything runs on servers that are started on loopback for it and ended after it, unless --server or --nodes name others.
///
/// Every grant is checked: two valid leases of a name at a time, a token that does not rise, an answer that can not be true, and a
/// key that is left behind at the end are lies, and the exit code is 1. It is 1 also if a target made no pair at all, and with
/// --strict if anything failed while all nodes were well. It never depends on speed.
///
/// CPU time is user and system time of all processes in a window over the pairs in it. `client` is this process with the
/// client's side of the target: the library for rslock, the coordinator for direct, tonic's client for tonic and stream, and HTTP/2
/// without a gRPC library for unary and etcd.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("fault").args(["stop_node", "kill_node", "slow_node"])))]
pub struct LoadArgs {
    /// What to load [default: all; on servers of your own those that they can serve, without etcd]
    #[arg(short, long, value_delimiter = ',', value_name = "TARGETS")]
    pub targets: Vec<Target>,
    /// Numbers of clients, each measured by itself: pairs under way at a time. With --rate the most that may be: pairs that are due
    /// wait for a client that is free [default: 64; with --rate 1024]
    #[arg(short, long, value_delimiter = ',', value_name = "COUNTS", value_parser = value_parser!(u16).range(1..=8192))]
    pub clients: Vec<u16>,
    /// Pairs a second that are due, whatever becomes of them: one number or several, each for a window; or `find`, or
    /// `find:FIRST`, for rising rates until one is not carried, and the knee [default: none: a closed loop]
    #[arg(short, long, value_name = "RATES", value_parser = rates)]
    pub rate: Option<Rates>,
    /// How regularly pairs are due with --rate
    #[arg(long, value_enum, default_value = "poisson", requires = "rate")]
    pub arrivals: Rhythm,
    /// A rate is carried if the p99 of the acquire, from the due time, is at most this
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub p99: Duration,
    /// Which locks: `distinct` (each client one of its own), `one` for all, `uniform:COUNT`, `zipf:COUNT` or `zipf:COUNT:EXPONENT`
    #[arg(long, default_value = "distinct")]
    pub names: Names,
    /// How long a client has a lock before it gives it back
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub hold: Duration,
    /// Time to live of the locks
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = ttl)]
    pub ttl: Duration,
    /// How long a client waits for a lock that another has; 0s is one try
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = wait)]
    pub wait: Duration,
    /// Length of a window [default: 3s; with --rate 5s; with --quick 1s]
    #[arg(short, long, value_name = "DURATION", value_parser = window_length)]
    pub window: Option<Duration>,
    /// Windows of each target
    #[arg(long, value_parser = value_parser!(u16).range(1..=1000), default_value_t = 3)]
    pub rounds: u16,
    /// Work before the first window, not measured [default: a quarter of a window]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub warm_up: Option<Duration>,
    /// The warm-up lasts so long at least, and its clients begin one after the other, or its rate rises from 0
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub ramp: Duration,
    /// Between two points of a timeline
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = window_length)]
    pub interval: Duration,
    /// Let a node hang (SIGSTOP) from a time on, for so long: 15s+60s
    #[arg(long, value_name = "AT+LENGTH", help_heading = "Faults of nodes that are started")]
    pub stop_node: Option<When>,
    /// Kill a node at a time, and go on for so long
    #[arg(long, value_name = "AT+LENGTH", help_heading = "Faults of nodes that are started")]
    pub kill_node: Option<When>,
    /// Let a node run for 2 ms at a time only, and stop it for --slow-by in between
    #[arg(long, value_name = "AT+LENGTH", help_heading = "Faults of nodes that are started")]
    pub slow_node: Option<When>,
    /// Up to so much later a slow node answers
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = humantime::parse_duration,
          help_heading = "Faults of nodes that are started")]
    pub slow_by: Duration,
    /// How many nodes have the fault
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "Faults of nodes that are started")]
    pub fault_nodes: u8,
    /// Lock nodes to start
    #[arg(long, value_name = "COUNT", default_value_t = NODES, value_parser = value_parser!(u8).range(1..=9),
          conflicts_with_all = ["server", "nodes"], help_heading = "Servers that are started")]
    pub start_nodes: u8,
    /// Proxies to start; the clients are divided among them
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u8).range(1..=9),
          conflicts_with_all = ["server", "nodes"], help_heading = "Servers that are started")]
    pub start_proxies: u8,
    /// Threads of this process that serve the clients; 1 is a runtime without threads of its own, which suits nearly all targets
    /// best where the servers need the other processors
    #[arg(long, value_parser = value_parser!(u8).range(1..=i64::from(MOST_THREADS)), default_value_t = 1)]
    pub threads: u8,
    /// Windows of a second: rough figures
    #[arg(long)]
    pub quick: bool,
    /// Anything that fails while all nodes are well makes the exit code 1 too
    #[arg(long)]
    pub strict: bool,
    /// Write the results as JSON too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub named: NamedArgs,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    #[command(flatten)]
    pub servers: ServersArgs,
}

/// A length that a window may have.
pub fn window_length(text: &str) -> Result<Duration, String> {
    between(text, "a window", Duration::from_millis(100), Duration::from_secs(86_400))
}

fn ttl(text: &str) -> Result<Duration, String> {
    between(text, "a TTL", Duration::from_millis(10), Duration::from_secs(3600))
}

fn wait(text: &str) -> Result<Duration, String> {
    between(text, "a wait", Duration::ZERO, Duration::from_secs(3600))
}

fn between(text: &str, what: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let [from, to] = [least, most].map(humantime::format_duration);
    if (least..=most).contains(&length) { Ok(length) } else { Err(format!("{what} lasts from {from} to {to}")) }
}

fn rates(text: &str) -> Result<Rates, String> {
    let rate = |text: &str| {
        let rate = text.parse().ok().filter(|rate| (1.0..=10_000_000.0).contains(rate));
        rate.ok_or_else(|| format!("{text:?}: a rate is from 1 to 10000000 pairs a second, or `find`, or `find:FIRST`"))
    };
    match text.strip_prefix("find") {
        Some("") => Ok(Rates::Search(FIRST_RATE)),
        Some(first) => Ok(Rates::Search(rate(first.strip_prefix(':').unwrap_or(first))?)),
        None => Ok(Rates::Steps(text.split(',').map(rate).collect::<Result<_, _>>()?)),
    }
}

impl LoadArgs {
    fn window(&self) -> Duration {
        let usual = Duration::from_secs(if self.quick { 1 } else { 3 });
        let open = Duration::from_secs(5);
        self.window.unwrap_or(if self.rate.is_some() && !self.quick { open } else { usual })
    }

    fn clients(&self) -> Vec<usize> {
        match (self.clients.is_empty(), &self.rate) {
            (false, _) => self.clients.iter().copied().map(usize::from).collect(),
            (true, None) => vec![64],
            (true, Some(_)) => vec![1024],
        }
    }

    fn manner(&self) -> Manner {
        let window = self.window();
        Manner {
            names: self.names,
            terms: Terms { ttl: self.ttl, wait: self.wait },
            hold: self.hold,
            window,
            rounds: self.rounds.into(),
            warm_up: self.warm_up.unwrap_or(window / WARM_UP),
            ramp: self.ramp,
            interval: self.interval,
        }
    }

    fn targets(&self) -> Vec<Target> {
        if !self.targets.is_empty() {
            return self.targets.clone();
        }
        let mut targets = vec![Target::Unary, Target::Tonic, Target::Stream];
        if !self.named.any() || !self.named.nodes.is_empty() {
            targets.extend([Target::Direct, Target::Rslock]);
        }
        if !self.named.any() && !self.has_to_try() {
            targets.push(Target::Etcd);
        }
        targets
    }

    /// One try for a lock that another may have: etcd's lock API has none.
    fn has_to_try(&self) -> bool {
        self.names.contended() && self.wait.is_zero()
    }

    fn fault(&self) -> Option<FaultPlan> {
        let kinds = [(FaultKind::Stop, self.stop_node), (FaultKind::Kill, self.kill_node), (FaultKind::Slow, self.slow_node)];
        let (kind, when) = kinds.into_iter().find_map(|(kind, when)| Some((kind, when?)))?;
        Some(FaultPlan { kind, nodes: self.fault_nodes.into(), when, delay: self.slow_by })
    }

    /// How long it takes at least, without servers that are slow to start; none if nobody knows before.
    fn length(&self) -> Option<Duration> {
        let manner = self.manner();
        let (targets, warm_up) = (self.targets().len() as u32, manner.warm_up.max(manner.ramp));
        let of_target = match (self.fault(), &self.rate) {
            (Some(fault), _) => (fault.length() + warm_up) * self.clients().len() as u32,
            (None, Some(Rates::Steps(rates))) => manner.window * rates.len() as u32 + warm_up,
            (None, Some(Rates::Search(_))) => return None,
            (None, None) => (manner.window * manner.rounds + warm_up) * self.clients().len() as u32,
        };
        Some(of_target * targets)
    }

    /// What makes no sense together.
    fn check(&self) -> Result<(), Error> {
        for target in self.targets() {
            if target.needs_the_nodes() && self.named.any() && self.named.nodes.is_empty() {
                return Err(format!("the target {} needs the nodes themselves: name them with --nodes", target.name()).into());
            }
            if target == Target::Etcd && self.has_to_try() {
                return Err("etcd's lock API has no single try: give --wait, or leave the target etcd away".into());
            }
        }
        if self.fault().is_some() && self.named.any() {
            return Err("faults are for nodes that are started here: leave --server and --nodes away".into());
        }
        if matches!((&self.rate, self.fault()), (Some(Rates::Search(_)), Some(_))) {
            return Err("a fault needs a given rate: no search".into());
        }
        if !self.named.any() {
            return Ok(());
        }
        self.named.check(self.servers.quorum_counter)?;
        match self.length().filter(|length| *length > self.named.at_most) {
            Some(length) => Err(format!(
                "this takes {length:.0?}, longer than servers of your own are loaded without your word: --at-most {:.0?}",
                length + Duration::from_secs(10)
            )
            .into()),
            None => Ok(()),
        }
    }

    /// The servers that are loaded. To be called from the main thread.
    pub fn start(&self) -> Result<Servers, Error> {
        self.check()?;
        let shape = Shape { nodes: self.start_nodes, proxies: self.start_proxies.into() };
        if self.named.any() { Servers::named(&self.servers, &self.named) } else { Servers::start(&self.servers, shape) }
    }
}

/// Measures, prints, and says what is wrong. To be called from the main thread: it may start servers.
pub async fn run(args: &LoadArgs, servers: &Servers) -> Result<u64, Error> {
    if !args.named.any() {
        return measure(args, servers).await;
    }
    let at_most = args.named.at_most;
    let bounded = tokio::time::timeout(at_most, measure(args, servers)).await;
    bounded.map_err(|_| format!("ended after {at_most:?}: --at-most says how long servers of your own are loaded"))?
}

async fn measure(args: &LoadArgs, servers: &Servers) -> Result<u64, Error> {
    servers.all_up().await?;
    let mut bench = Bench::new(args.manner(), args.threads);
    let targets = args.targets();
    if targets.contains(&Target::Etcd) {
        bench.etcd = Some(Etcd::start(&args.etcd).await?);
    }
    bench.note_versions(&args.servers, &args.etcd, servers).await?;
    match (args.fault(), &args.rate) {
        (Some(plan), rate) => {
            let rate = match rate {
                Some(Rates::Steps(rates)) => rates.first().map(|rate| (*rate, args.arrivals)),
                _ => None,
            };
            for clients in args.clients() {
                for target in &targets {
                    bench.fault(*target, servers, clients, &plan, rate).await?;
                }
            }
        }
        (None, Some(rates)) => {
            let clients = args.clients().into_iter().max().unwrap_or_default();
            let open = Open { rates: rates.clone(), rhythm: args.arrivals, clients, rule: Rule { p99: args.p99 } };
            for target in &targets {
                bench.open_loop(*target, servers, &open).await?;
            }
        }
        (None, None) => {
            for clients in args.clients() {
                bench.compare(&targets, servers, clients).await?;
            }
        }
    }
    finish(bench, args.json.as_deref(), args.strict)
}

/// Prints and writes the results; how much is wrong with them.
pub fn finish(bench: Bench, json: Option<&Path>, strict: bool) -> Result<u64, Error> {
    let results = bench.finish();
    print!("{}", tables::text(&results));
    if let Some(file) = json {
        write(&results, file)?;
    }
    Ok(wrong(&results, strict))
}

/// Writes them as JSON.
fn write(results: &Results, file: &Path) -> Result<(), Error> {
    let named = |error: std::io::Error| format!("{}: {error}", file.display());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(named)?;
    }
    Ok(std::fs::write(file, serde_json::to_string_pretty(results)? + "\n").map_err(named)?)
}

/// Lies, rows without a pair, and, if that is asked for, what failed while all nodes were well.
fn wrong(results: &Results, strict: bool) -> u64 {
    let idle = results.rows.iter().filter(|row| row.pairs == 0).count()
        + results.open_loop.iter().filter(|open| open.steps.iter().all(|step| step.latency.count == 0)).count()
        + results.faults.iter().filter(|fault| fault.before.pairs == 0).count();
    let rows = results.rows.iter().flat_map(|row| &row.errors);
    let before = results.faults.iter().flat_map(|fault| &fault.before.errors);
    let failed: u64 = if strict { rows.chain(before).map(|error| error.count).sum() } else { 0 };
    results.checks.broken() + idle as u64 + failed
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::results::{Checks, ErrorCount, Fault, Phase, Row};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: LoadArgs,
    }

    fn parse(args: &[&str]) -> Result<LoadArgs, clap::Error> {
        Cli::try_parse_from([&["load"], args].concat()).map(|cli| cli.args)
    }

    #[test]
    fn what_is_asked_for_goes_before_what_is_usual() {
        let usual = parse(&[]).unwrap();
        assert_eq!((usual.window(), usual.clients(), usual.targets().len()), (Duration::from_secs(3), vec![64], 6));
        assert_eq!(usual.length(), Some(Duration::from_secs(54) + 6 * Duration::from_millis(750)));
        let quick = parse(&["--quick", "--clients", "8,9", "--targets", "unary"]).unwrap();
        assert_eq!((quick.window(), quick.clients()), (Duration::from_secs(1), vec![8, 9]));
        assert_eq!(quick.length(), Some(Duration::from_millis(6500)));
        let open = parse(&["--rate", "100,200", "--targets", "unary", "--warm-up", "1s"]).unwrap();
        assert_eq!((open.rate.clone(), open.length()), (Some(Rates::Steps(vec![100.0, 200.0])), Some(Duration::from_secs(11))));
        assert_eq!(open.clients(), [1024]);
        assert_eq!(parse(&["--rate", "find:500"]).unwrap().rate, Some(Rates::Search(500.0)));
    }

    #[test]
    fn a_fault_is_read_with_its_time() {
        let args = parse(&["--slow-node", "2s+3s", "--slow-by", "7ms", "--fault-nodes", "2", "--targets", "unary"]).unwrap();
        let when = When { at: Duration::from_secs(2), lasts: Duration::from_secs(3) };
        assert_eq!(args.fault(), Some(FaultPlan { kind: FaultKind::Slow, nodes: 2, when, delay: Duration::from_millis(7) }));
        assert!(parse(&["--slow-node", "2s+3s", "--kill-node", "2s+3s"]).is_err(), "one at a time");
    }

    #[test]
    fn senseless_arguments_are_refused() {
        for args in [
            &["--clients", "0"][..],
            &["--rounds", "0"],
            &["--window", "1ms"],
            &["--threads", "0"],
            &["--targets", "all"],
            &["--rate", "0"],
            &["--rate", "fast"],
            &["--arrivals", "steady"],
            &["--names", "many"],
            &["--ttl", "1ms"],
            &["--start-nodes", "3", "--nodes", "redis://r1"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
        for args in [
            &["--server", "http://h:1"][..],
            &["--server", "http://h:1", "--yes-load", "h", "--targets", "rslock"],
            &["--server", "http://h:1", "--yes-load", "h", "--stop-node", "1s+1s"],
            &["--server", "http://h:1", "--yes-load", "h", "--window", "1h"],
            &["--names", "one", "--targets", "etcd"],
            &["--rate", "find", "--kill-node", "1s+1s"],
        ] {
            assert!(parse(args).unwrap().check().is_err(), "{args:?}");
        }
        assert!(parse(&["--server", "http://h:1", "--yes-load", "h"]).unwrap().check().is_ok());
    }

    #[test]
    fn servers_of_ones_own_are_loaded_with_what_they_can_serve() {
        let args = parse(&["--server", "http://h:1", "--yes-load", "h"]).unwrap();
        assert_eq!(args.targets(), [Target::Unary, Target::Tonic, Target::Stream]);
        let args = parse(&["--nodes", "redis://h:1", "--yes-load", "h", "--quorum-counter"]).unwrap();
        assert_eq!(args.targets(), [Target::Unary, Target::Tonic, Target::Stream, Target::Direct, Target::Rslock]);
        let refused = parse(&["--server", "http://h:1", "--yes-load", "h", "--rounds", "50"]).unwrap().check().unwrap_err();
        assert!(refused.to_string().contains("--at-most"), "{refused}");
    }

    #[test]
    fn lies_and_idle_targets_are_wrong_and_failures_if_that_is_asked_for() {
        let worked = Row { pairs: 7, ..Row::default() };
        let failed = Row { errors: vec![ErrorCount { count: 2, ..ErrorCount::default() }], ..worked.clone() };
        let fault = Fault { before: Phase { pairs: 1, ..Phase::default() }, ..Fault::default() };
        let good = Results { rows: vec![worked, failed], faults: vec![fault], ..Results::default() };
        assert_eq!((wrong(&good, false), wrong(&good, true)), (0, 2));
        let idle = Results { rows: vec![Row::default()], ..good.clone() };
        assert_eq!(wrong(&idle, false), 1);
        let lie = Results { checks: Checks { overlaps: 1, ..Checks::default() }, ..good };
        assert_eq!(wrong(&lie, false), 1);
    }
}
