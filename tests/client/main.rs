//! The Rust client on real proxies and servers: what its guards promise while proxies die, stop, drain and forget.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod failover;
mod leases;

use std::time::Duration;

use redlockd::client::Client;
use support::Proxy;

/// No test ends by it.
const LONG: Duration = Duration::from_secs(240);

async fn client_of(proxies: &[&Proxy]) -> Client {
    Client::connect(proxies.iter().map(|proxy| proxy.url())).await.unwrap()
}
