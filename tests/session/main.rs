//! Sessions on real servers: what is kept, what is told, and what is left behind by each way to end (protocol section 8).
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod adoption;
mod client;
mod endings;
mod forced;
mod keeping;
mod losses;
