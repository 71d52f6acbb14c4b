//! Real servers and real proxies under real faults: what the clients saw goes through the same oracle as every simulated run.
//!
//! `FAULTS_SEED=7 cargo test --test faults` plans the faults of an earlier run again; what they meet is never quite the same.
//! `make soak DURATION=30m` takes longer and shows how it gets on.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../oracle/mod.rs"]
mod oracle;

mod clients;
mod plan;
mod record;
mod report;
mod run;
mod traps;
mod world;
