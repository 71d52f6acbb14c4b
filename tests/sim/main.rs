//! What is promised, proved on thousands of runs of a simulated world: the real coordinator, mailboxes and links over servers
//! in memory, on a paused clock. One seed decides everything.
//!
//! `SIM_SEED=n` replays one seed and prints its history; `SIM_SEEDS=n` sets how many are run.
#![allow(clippy::unwrap_used)]

mod faults;
#[path = "../memory/mod.rs"]
mod memory;
#[path = "../oracle/mod.rs"]
mod oracle;
mod run;
mod scenarios;
mod seeds;
mod world;
