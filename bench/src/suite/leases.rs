//! What a lease that a session keeps costs the proxy in memory.

use std::time::Duration;

use tokio::task::JoinSet;

use super::Suite;
use super::aims::Key;
use super::long::{FOR_GOOD, TAKERS, patient};
use super::standard::SETTLE;
use crate::Error;
use crate::client::{Client, Failure, Terms};
use crate::cpu::proxy_resident_kib;
use crate::servers::{Servers, Shape};
use crate::targets::stream::{self, Streamed};

/// How many sessions share the leases.
const SESSIONS: u64 = 4;

/// What the aim means by many: with fewer, pages that are half empty count for too much.
const MANY: u64 = 50_000;

/// Takes locks in sessions once to give each back, after which the proxy has what it needs to serve so many at a time, and once
/// to keep them: what it then has beyond that is what they cost.
pub async fn memory(suite: &mut Suite<'_>) -> Result<(), Error> {
    let servers = Servers::start(&patient(&suite.args.servers), Shape::default())?;
    servers.all_up().await?;
    let count = suite.args.session_leases;
    suite.bench.say(&format!("taking {count} locks in {SESSIONS} sessions"));
    let takers = TAKERS.min(count);
    let sessions = vec![servers.proxy(); SESSIONS as usize];
    let clients = stream::clients(&sessions, takers as usize, Terms { ttl: FOR_GOOD, wait: Duration::ZERO }).await?;
    let clients = take_all(clients, count, Then::GiveBack).await?;
    let before = settled(&servers).await;
    // Their sessions stand until the memory has been read.
    let clients = take_all(clients, count, Then::Keep).await?;
    let after = settled(&servers).await;
    drop(clients);
    if count >= MANY
        && let (Some(before), Some(after)) = (before, after)
    {
        suite.aims.set_one(Key::LeaseMemory, Some(bytes_each(before, after, count)));
    }
    Ok(())
}

/// What becomes of a lock that was taken.
#[derive(Clone, Copy)]
enum Then {
    GiveBack,
    Keep,
}

/// Divides so many locks among the clients, which come back when all have been taken.
async fn take_all(clients: Vec<Streamed>, count: u64, then: Then) -> Result<Vec<Streamed>, Error> {
    let takers = clients.len();
    let mut at_work = JoinSet::new();
    for (first, mut client) in (0..).zip(clients) {
        at_work.spawn(async move {
            for number in (first..count).step_by(takers) {
                let (lease, _) = client.take(&format!("held/{number}")).await?;
                match then {
                    Then::GiveBack => client.give_back(lease).await?,
                    Then::Keep => {}
                }
            }
            Ok::<_, Failure>(client)
        });
    }
    let mut clients = Vec::with_capacity(takers);
    while let Some(done) = at_work.join_next().await {
        clients.push(done?.map_err(|failure| failure.what)?);
    }
    Ok(clients)
}

/// The proxy's memory once it has nothing to do.
async fn settled(servers: &Servers) -> Option<u64> {
    tokio::time::sleep(SETTLE).await;
    proxy_resident_kib(&servers.processes())
}

/// The growth for each lease.
fn bytes_each(before_kib: u64, after_kib: u64, count: u64) -> f64 {
    (after_kib as f64 - before_kib as f64) * 1024.0 / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_growth_is_divided_among_the_leases_and_may_be_none() {
        assert!((bytes_each(10_000, 30_000, 51_200) - 400.0).abs() < 1e-9);
        assert!(bytes_each(30_000, 29_900, 51_200) < 0.0);
    }
}
