//! Two workers and one job: one of them does it, and the other is told who is at it, or waits for its turn.
//!
//! ```sh
//! cargo run --example competition
//! ```

use std::time::Duration;

use redlockd::client::{AcquireError, Client, Lease};

mod stage;
use stage::{Error, Stage, ensure};

const JOB: &str = "jobs/report";

/// Of a vote that was split nobody has the lock. That is rare, and not twenty times in a row.
const TRIES: usize = 20;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let stage = Stage::set(1).await?;
    let ann = Client::builder(stage.proxies.clone()).owner("ann").connect().await?;
    let bob = Client::builder(stage.proxies.clone()).owner("bob").connect().await?;

    println!("ann and bob want {JOB} at the same time, and do not wait:");
    let first = only_one_gets_it(&ann, &bob).await?;
    println!("  it works");
    first.release().await?;

    println!("both want it again, and wait for it:");
    let (one, other) = tokio::join!(takes_its_turn(&ann, "ann"), takes_its_turn(&bob, "bob"));
    let (one, other) = (one?, other?);
    let is_apart = one.from >= other.to || other.from >= one.to;
    ensure(is_apart, "ann and bob worked at the same time")?;
    ensure((one.from < other.from) == (one.token < other.token), "whoever came later has the lower token")?;
    println!("one after the other, and whoever came later had the higher token");

    ann.shutdown().await;
    bob.shutdown().await;
    Ok(())
}

async fn only_one_gets_it(ann: &Client, bob: &Client) -> Result<Lease, Error> {
    for _ in 0..TRIES {
        let (ann, bob) = tokio::join!(ann.lock(JOB).acquire(), bob.lock(JOB).acquire());
        let (lease, winner, loser, refusal) = match (ann, bob) {
            (Ok(_), Ok(_)) => return Err("both have the lock".into()),
            (Ok(lease), Err(refusal)) => (lease, "ann", "bob", refusal),
            (Err(refusal), Ok(lease)) => (lease, "bob", "ann", refusal),
            (Err(_), Err(_)) => {
                println!("  the votes were split: nobody has it, and they try again");
                continue;
            }
        };
        let AcquireError::Contended(by) = refusal else { return Err(refusal.into()) };
        println!("  {winner} has it, with token {}", token(&lease)?);
        println!("  {loser} is told that {} has it", by.owner.as_deref().unwrap_or("somebody else"));
        return Ok(lease);
    }
    Err("nobody gets the lock".into())
}

/// Who worked from when to when.
struct Turn {
    token: u64,
    from: tokio::time::Instant,
    to: tokio::time::Instant,
}

async fn takes_its_turn(client: &Client, name: &str) -> Result<Turn, Error> {
    let lease = client.lock(JOB).wait(Duration::from_secs(60)).acquire().await?;
    let (token, from) = (token(&lease)?, tokio::time::Instant::now());
    println!("  {name} works, with token {token}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let to = tokio::time::Instant::now();
    println!("  {name} is done");
    lease.release().await?;
    Ok(Turn { token, from, to })
}

fn token(lease: &Lease) -> Result<u64, Error> {
    Ok(lease.token().ok_or("a lease without a token")?.get())
}
