//! The oracle: what must be true of every history, whoever made it. One file an invariant, each with its source in
//! `protocol.md` (the promises of section 1, unless it says otherwise).
#![allow(dead_code)]

pub mod history;

use std::fmt;

use history::History;

mod exclusion;
mod fifo;
mod leftovers;
mod liveness;
mod ownership;
mod recovery;
mod register;
mod starvation;
mod tokens;
mod validity;
mod words;

#[cfg(test)]
mod tests;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// What happened, with names and times.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What may be expected of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assumptions {
    /// Nothing happened that the promises exclude: all of them hold.
    Hold,
    /// Nodes forgot or clocks were set, which quarantine and clock guard are for: leases may be lost early, but nobody else is
    /// granted what somebody may still rely on.
    Guarded,
    /// Nodes lost single keys behind our back: exclusion may fail, but the tokens still protect the resource.
    Broken,
}

/// Every broken promise of a run.
pub fn judge(history: &History, assumptions: Assumptions) -> Vec<Violation> {
    let mut found = Vec::new();
    found.extend(tokens::check(history));
    found.extend(register::check(history));
    found.extend(liveness::check(history));
    found.extend(recovery::check(history));
    found.extend(fifo::check(history));
    found.extend(starvation::check(history));
    found.extend(words::check(history));
    if assumptions != Assumptions::Broken {
        found.extend(exclusion::check(history));
    }
    if assumptions == Assumptions::Hold {
        found.extend(validity::check(history));
        found.extend(ownership::check(history));
        found.extend(leftovers::check(history));
    }
    found
}

/// How often the protected resource took the write of a holder whose lease another had followed.
pub fn stale_writes_taken(history: &History) -> usize {
    register::stale_writes_taken(history)
}

/// How often two clients could rely on the same lock at one instant.
pub fn overlaps(history: &History) -> usize {
    exclusion::check(history).len()
}
