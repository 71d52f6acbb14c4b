//! Counts the instructions of the acquire path and compares them with those that are stored beside this program's source.

mod chance;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use redlockd_micro::counting;
use redlockd_micro::figures::{Comparison, Figures, advice};
use redlockd_micro::work::Work;

/// The compiler that built this.
const COMPILER: &str = env!("COMPILER");

/// The figures are not as they were.
const DIFFERS: u8 = 1;
/// Something that is needed is not there or does not work, as in sysexits.h.
const FAILED: u8 = 70;

/// How many instructions it takes redlockd to take and release a lock, without any server.
#[derive(Debug, Parser)]
#[command(name = "redlockd-micro", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count under valgrind, and compare with what is stored: exit code 1 where one differs by more than 5 %
    Check {
        /// Where they are stored
        #[arg(long, default_value_os_t = stored())]
        figures: PathBuf,
    },
    /// Count under valgrind, and store that
    Renew {
        /// Where they are stored
        #[arg(long, default_value_os_t = stored())]
        figures: PathBuf,
    },
    /// Do the work that is counted: what runs under valgrind
    Run {
        /// pair_alone, pair_in_a_crowd or codec
        work: Work,
        /// How often
        times: usize,
    },
}

fn stored() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml")
}

fn main() -> ExitCode {
    let ended = match Cli::parse().command {
        Command::Check { figures } => check(&figures),
        Command::Renew { figures } => renew(&figures).map(|()| true),
        Command::Run { work, times } => {
            work.run(times);
            Ok(true)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERS),
        Err(why) => {
            eprintln!("redlockd-micro: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn count(work: Work) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program's own file: {error}"))?;
    // Half an instruction is nothing.
    counting::per_time(&program, work).map(|count| count.round() as u64)
}

fn check(path: &Path) -> Result<bool, String> {
    let figures = Figures::read(path)?;
    let mut all_good = true;
    for work in Work::ALL {
        let stored = figures.instructions.get(work.name()).copied();
        let comparison = Comparison { work, counted: count(work)?, stored };
        println!("{comparison}");
        all_good &= comparison.is_good();
    }
    if !all_good {
        println!("\n{}", advice(&figures, COMPILER));
    }
    Ok(all_good)
}

fn renew(path: &Path) -> Result<(), String> {
    let mut figures = Figures { compiler: COMPILER.to_owned(), ..Figures::default() };
    for work in Work::ALL {
        let counted = count(work)?;
        println!("{counted:>8} instructions {}", work.unit());
        figures.instructions.insert(work.name().to_owned(), counted);
    }
    figures.write(path)
}
