//! Waiting on real servers: who is woken by whom, who is not lost, who sees it, and what is left behind by those who go away.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod leaving;
mod wakeups;
mod watching;
