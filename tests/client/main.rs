//! The Rust client on real proxies and servers: what its guards promise while proxies die, stop, drain and forget.
#![allow(clippy::unwrap_used)]

#[path = "../oracle/mod.rs"]
mod oracle;
#[path = "../support/mod.rs"]
mod support;
// What runs under faults record more.
#[allow(dead_code)]
#[path = "../faults/record.rs"]
mod record;

mod failover;
mod history;
mod leases;

use std::time::Duration;

use redlockd::client::Client;
use support::Proxy;

/// No test ends by it.
const LONG: Duration = Duration::from_secs(240);

async fn client_of(proxies: &[&Proxy]) -> Client {
    Client::connect(proxies.iter().map(|proxy| proxy.url())).await.unwrap()
}
