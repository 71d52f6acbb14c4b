//! The load generator of redlockd. Wires only: arguments, servers, runtime, measurement, report, exit code.
//!
//! - [`load`], [`suite`], [`contended`]: what is measured. [`mod@bench`]: the parts that runs are made of.
//! - [`servers`]: the servers that it is measured on. [`fault`]: what is done to them. [`machine`]: where they run.
//! - [`client`], [`targets`]: what a client of each target does. [`mod@line`]: clients that want the same lock.
//! - [`crew`]: clients at work. [`names`], [`arrivals`]: which lock they take next, and when. [`window`]: a spell of their work, and
//!   what it cost by [`cpu`]. [`witness`]: whether what they got was true. [`knee`]: the most that is carried.
//! - [`tally`], [`latency`], [`stats`], [`row`]: what is made of it. [`results`], [`tables`], [`html`], [`progress`]: what is
//!   told.

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

mod arrivals;
mod bench;
mod call;
mod client;
mod contended;
mod cpu;
mod crew;
mod fault;
mod html;
mod knee;
mod latency;
mod line;
mod load;
mod machine;
mod names;
mod progress;
mod results;
mod row;
mod servers;
mod stats;
mod suite;
mod tables;
mod tally;
mod targets;
mod window;
mod witness;

use contended::ContendedArgs;
use html::ReportArgs;
use load::LoadArgs;
use servers::{Servers, Shape};
use suite::SuiteArgs;

/// The same for every target that runs in this process, and the one that redlockd has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why there is no result.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// An operation failed, or the measurement itself.
const FAILED: u8 = 1;
/// Usage errors, as in sysexits.h.
const USAGE: u8 = 64;
/// Ended by a signal, as shells count it.
const INTERRUPTED: u8 = 130;

/// Measures redlockd, and what it is compared with, on servers that it starts and ends itself, or on yours.
#[derive(Debug, Parser)]
#[command(name = "redlockd-bench", version, max_term_width = 100)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Load(Box<LoadArgs>),
    Suite(SuiteArgs),
    Contended(ContendedArgs),
    Report(ReportArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with code 0.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked_for { 0 } else { USAGE });
        }
    };
    match cli.command {
        Command::Load(args) => measure(args.threads, || args.start(), async |servers| load::run(&args, servers).await),
        // It starts its servers itself: different ones for each of its parts.
        Command::Suite(args) => measure(args.threads, || Ok(()), async |()| suite::run(&args).await),
        Command::Contended(args) => {
            let start = || Servers::start(&args.servers, Shape::default());
            measure(args.threads, start, async |servers| contended::run(&args, servers).await)
        }
        Command::Report(args) => args.run().map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS),
    }
}

/// Starts the servers, and measures on them, on the main thread. `what` says how much is wrong.
fn measure<S>(
    threads: u8,
    start: impl FnOnce() -> Result<S, Error>,
    what: impl AsyncFnOnce(&S) -> Result<u64, Error>,
) -> ExitCode {
    // From the main thread and before there are others: the servers end with the thread that started them.
    let servers = match start() {
        Ok(servers) => servers,
        Err(error) => return failed(&error),
    };
    let runtime = match runtime(threads) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            result = what(&servers) => Some(result),
            () = asked_to_end() => None,
        }
    });
    drop((runtime, servers));
    match outcome {
        Some(Ok(0)) => ExitCode::SUCCESS,
        Some(Ok(wrong)) => failed(&format!("{wrong} things are wrong: see above")),
        Some(Err(error)) => failed(&error),
        None => ExitCode::from(INTERRUPTED),
    }
}

fn failed(why: &dyn Display) -> ExitCode {
    eprintln!("redlockd-bench: {why}");
    ExitCode::from(FAILED)
}

fn runtime(threads: u8) -> std::io::Result<Runtime> {
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(threads.into()).enable_all().build()
}

/// Returns on SIGINT or SIGTERM.
async fn asked_to_end() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        // Then the signals end this process in their own way, and the system ends the servers.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
