//! Counts the instructions of one run of this program under valgrind's callgrind.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::work::{COUNTED, Work};

/// So often the work is done: whole rounds of every kind of it.
const TIMES: u32 = 4_096;

/// What the C library is not to use, so that it copies memory by the same instructions on every machine.
const SAME_EVERYWHERE: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM,-BMI2,-RTM,-MOVBE";

/// Why there is no count.
pub type Failure = String;

/// Instructions that doing the work once takes.
pub fn per_time(program: &Path, work: Work) -> Result<f64, Failure> {
    let folder = tempfile::tempdir().map_err(|error| format!("a folder for the count could not be made: {error}"))?;
    let out = folder.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--error-exitcode=99"]).arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(format!("--toggle-collect={COUNTED}")).arg(program).args(["run", work.name(), &TIMES.to_string()]);
    // Its size moves the stack.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("GLIBC_TUNABLES", SAME_EVERYWHERE);
    let ran = command.output().map_err(|error| {
        format!("valgrind could not be started: {error}; `make micro` installs it, or install your system's package `valgrind`")
    })?;
    if !ran.status.success() {
        return Err(format!("{} under valgrind: {}: {}", work.name(), ran.status, String::from_utf8_lossy(&ran.stderr)));
    }
    let text = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    match instructions(&text) {
        Some(count) if count > u64::from(TIMES) => Ok(count as f64 / f64::from(TIMES)),
        Some(count) => {
            Err(format!("{}: {count} instructions are none: is {COUNTED} still the name of a function?", work.name()))
        }
        None => Err(format!("{}: callgrind's file has no line `totals: NUMBER`", out.display())),
    }
}

/// The total in a file of callgrind.
fn instructions(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        assert_eq!(instructions("version: 1\nevents: Ir\nfn=(1) main\n4 5\n\ntotals: 123456\n"), Some(123_456));
        assert_eq!(instructions("events: Ir\n"), None);
    }
}
