//! Protected resources that check the fencing token, in real Redis, real PostgreSQL, and behind HTTP: a holder that was paused
//! over the end of its lease is refused.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

/// The example that ships: its routes are served here as they are.
#[path = "../../examples/fencing/fenced_http.rs"]
#[allow(dead_code)]
mod fenced_http;

mod concurrency;
mod law;
mod paused;
mod postgres;
mod resource;
