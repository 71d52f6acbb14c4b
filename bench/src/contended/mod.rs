//! `redlockd-bench contended`: many clients, one lock. What is measured, in which order.
//!
//! - [`targets`]: redlockd, etcd and rslock side by side. [`commands`]: what a long line costs the nodes. [`proxies`]: lines at
//!   several proxies. [`holder`]: a holder that dies. [`told`]: wake-ups. [`report`]: what is said of it.

mod commands;
mod holder;
mod proxies;
mod report;
mod targets;
mod told;

use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};

use crate::Error;
use crate::client::Client;
use crate::line::{Line, Turns};
use crate::load::{MOST_THREADS, window_length};
use crate::servers::etcd::{Etcd, EtcdArgs};
use crate::servers::{Servers, ServersArgs};
use report::Report;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// 64 waiters: redlockd, etcd and rslock in alternating windows
    Targets,
    /// Redis commands for each grant, with 1,000 waiters and with 10
    Commands,
    /// Three proxies with 32 waiters each
    Proxies,
    /// How long after the end of a dead holder's lease the next in line has it
    Holder,
    /// How long after a release at another proxy the next in line has it, told and not told
    Told,
}

/// Measure how a lock that many want goes from hand to hand, and compare it with etcd and the library rslock
///
/// Everything runs on loopback, on servers that are started for it and ended after it: five lock nodes, a designated server,
/// up to three proxies, one etcd. Every client waits for the same lock, gives it back as soon as it has it, and waits again.
/// All grants are watched: two holders at a time, a token that does not rise and every answer that is an error are failures,
/// and the exit code is 1. It does not depend on speed.
#[derive(Args, Debug)]
pub struct ContendedArgs {
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "targets,commands,proxies,holder,told", value_name = "PARTS")]
    parts: Vec<Part>,
    /// Length of a window [default: 3s; quick: 500ms]
    #[arg(long, value_parser = window_length)]
    window: Option<Duration>,
    /// Windows of everything that is measured
    #[arg(long, value_parser = value_parser!(u16).range(1..=1000), default_value_t = 5)]
    rounds: u16,
    /// Holders that die, for each place of the waiter, and releases, told and not told [default: 20; quick: 5]
    #[arg(long, value_parser = value_parser!(u16).range(1..=10_000), value_name = "COUNT")]
    trials: Option<u16>,
    /// Threads of this process that serve the clients; 1 is a runtime without threads of its own
    #[arg(long, value_parser = value_parser!(u8).range(1..=i64::from(MOST_THREADS)), default_value_t = 1)]
    pub threads: u8,
    /// A run of less than a minute: rough figures
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    pub servers: ServersArgs,
}

impl ContendedArgs {
    fn window(&self) -> Duration {
        self.window.unwrap_or(Duration::from_millis(if self.quick { 500 } else { 3000 }))
    }

    fn trials(&self) -> u16 {
        self.trials.unwrap_or(if self.quick { 5 } else { 20 })
    }
}

/// Measures, prints, and says how many turns failed. To be called from the main thread: it starts servers.
pub async fn run(args: &ContendedArgs, servers: &Servers) -> Result<u64, Error> {
    servers.all_up().await?;
    let mut bench = Bench { servers, window: args.window(), rounds: args.rounds, report: Report::default() };
    if args.parts.contains(&Part::Targets) {
        let etcd = Etcd::start(&args.etcd).await?;
        targets::measure(&mut bench, &etcd).await?;
    }
    if args.parts.contains(&Part::Commands) {
        commands::measure(&mut bench).await?;
    }
    if args.parts.contains(&Part::Proxies) {
        proxies::measure(&mut bench).await?;
    }
    if args.parts.contains(&Part::Holder) {
        holder::measure(&mut bench, args.trials()).await?;
    }
    if args.parts.contains(&Part::Told) {
        told::measure(&mut bench, args.trials()).await?;
    }
    print!("{}", bench.report.text());
    Ok(bench.report.failures)
}

/// What all parts need.
struct Bench<'a> {
    servers: &'a Servers,
    window: Duration,
    rounds: u16,
    report: Report,
}

impl Bench<'_> {
    /// A window of a line; its failures are counted.
    async fn work<C: Client>(&mut self, line: &mut Line<C>, time: Duration) -> Result<Turns, Error> {
        let turns = line.work(time).await?;
        self.report.count_failures(&turns);
        Ok(turns)
    }

    /// All locks have been released: what is still on a node is a failure.
    async fn nothing_left(&mut self) -> Result<(), Error> {
        let left = self.servers.left_behind("").await?;
        if left > 0 {
            self.report.failed(format!("{left} keys were left behind on the nodes"));
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
        args: ContendedArgs,
    }

    fn parse(args: &[&str]) -> Result<ContendedArgs, clap::Error> {
        Cli::try_parse_from([&["contended"], args].concat()).map(|cli| cli.args)
    }

    #[test]
    fn what_is_asked_for_goes_before_what_quick_means() {
        let full = parse(&[]).unwrap();
        assert_eq!((full.window(), full.rounds, full.trials(), full.parts.len()), (Duration::from_secs(3), 5, 20, 5));
        let quick = parse(&["--quick"]).unwrap();
        assert_eq!((quick.window(), quick.rounds, quick.trials()), (Duration::from_millis(500), 5, 5));
        let chosen = parse(&["--quick", "--window", "1s", "--trials", "7", "--parts", "holder,targets"]).unwrap();
        assert_eq!((chosen.window(), chosen.trials()), (Duration::from_secs(1), 7));
        assert_eq!(chosen.parts, [Part::Holder, Part::Targets]);
    }

    #[test]
    fn senseless_arguments_are_refused() {
        for args in [["--rounds", "0"], ["--trials", "0"], ["--window", "1ms"], ["--threads", "0"], ["--parts", "all"]] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }
}
