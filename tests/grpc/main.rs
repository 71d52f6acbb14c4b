//! The contract of the RPCs, on real servers.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod forms;
mod leases;
mod lifecycle;
mod listing;
mod nodes;
mod proxies;
mod requests;
mod tokens;
