//! The load generator of redlockd. Wires only: arguments, servers, runtime, measurement, report, exit code.
//!
//! - [`compare`]: what is measured, in which order.
//! - [`servers`]: the servers that it is measured on. [`targets`]: what a caller of each target does.
//! - [`load`]: callers at work for a window. [`cpu`]: what it cost. [`stats`], [`report`]: what is made of it.

use std::fmt::Display;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

mod compare;
mod cpu;
mod load;
mod report;
mod servers;
mod stats;
mod targets;

use compare::CompareArgs;
use servers::Servers;

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
        Command::Compare(args) => run_compare(&args),
    }
}

fn run_compare(args: &CompareArgs) -> ExitCode {
    // From the main thread and before there are others: the servers end with the thread that started them.
    let servers = match Servers::start(&args.servers) {
        Ok(servers) => servers,
        Err(error) => return failed(&error),
    };
    let runtime = match runtime(args.threads()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            result = compare::run(args, &servers) => Some(result),
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
