//! The load generator of redlockd. Wires only: arguments, servers, runtime, measurement, report, exit code.
//!
//! - [`compare`], [`contended`]: what is measured, in which order.
//! - [`servers`]: the servers that it is measured on.
//! - [`targets`]: what a caller of each target does that has a lock of its own. [`load`]: such callers at work for a window.
//! - [`contenders`]: what a client of each target does that wants a lock which others want. [`mod@line`]: such clients at work.
//!   [`witness`]: whether what they got was true.
//! - [`cpu`]: what it cost. [`stats`], [`report`]: what is made of it.

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

mod compare;
mod contended;
mod contenders;
mod cpu;
mod line;
mod load;
mod report;
// Written by the commands to come, read by the report.
#[allow(dead_code)]
mod results;
mod servers;
mod stats;
mod targets;
mod witness;

use compare::CompareArgs;
use contended::ContendedArgs;
use servers::{Servers, ServersArgs};

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

/// Measures redlockd, and what it is compared with, on servers that it starts and ends itself.
#[derive(Debug, Parser)]
#[command(name = "redlockd-bench", version, max_term_width = 100)]
struct Cli {
    /// What to measure.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(CompareArgs),
    /// Compare a session with unary calls, and with rslock: `compare` of the pairs only, with 64 in flight
    Stream(CompareArgs),
    Contended(ContendedArgs),
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
        Command::Compare(args) => measure(&args.servers, args.threads(), async |servers| compare::run(&args, servers).await),
        Command::Stream(args) => {
            let args = args.of_streams();
            measure(&args.servers, args.threads(), async |servers| compare::run(&args, servers).await)
        }
        Command::Contended(args) => measure(&args.servers, args.threads, async |servers| contended::run(&args, servers).await),
    }
}

/// Starts the servers, and measures on them, on the main thread. `what` says how many operations failed.
fn measure(args: &ServersArgs, threads: u8, what: impl AsyncFnOnce(&Servers) -> Result<u64, Error>) -> ExitCode {
    // From the main thread and before there are others: the servers end with the thread that started them.
    let servers = match Servers::start(args) {
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
        Some(Ok(failures)) => failed(&format!("{failures} operations failed")),
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
