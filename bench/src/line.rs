//! Clients that all want the same lock: each takes it, gives it back at once and wants it again, until the time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::client::{Client, Terms};
use crate::stats::micros;
use crate::targets::TTL;
use crate::witness::Witness;

/// How long clients wait for their turn: for ever, as far as a measurement goes.
pub const WAIT: Duration = Duration::from_secs(60);

/// How they take locks.
pub const TERMS: Terms = Terms { ttl: TTL, wait: WAIT };

/// How long the last of a line may take beyond its wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// After a failure, so that a target that is down is not asked a million times.
const PAUSE: Duration = Duration::from_millis(10);

/// The failures of one client that are kept to be shown.
const SHOWN: usize = 3;

/// The clients of one lock.
pub struct Line<C> {
    name: Arc<str>,
    clients: Vec<C>,
    witness: Arc<Witness>,
}

/// What came of their work.
#[derive(Debug, Default)]
pub struct Turns {
    /// How long new waits were begun.
    pub time: Duration,
    /// Grants of each client within that time.
    pub grants: Vec<u64>,
    /// All waits that were begun within that time, whenever they ended: long ones must not get lost at the end.
    pub waits_us: Vec<u32>,
    /// Turns that failed, or broke a promise.
    pub failures: u64,
    /// Some of them in words.
    pub failures_shown: Vec<String>,
}

impl Turns {
    /// Grants in a second.
    pub fn grants_per_s(&self) -> f64 {
        self.grants.iter().sum::<u64>() as f64 / self.time.as_secs_f64()
    }
}

impl<C: Client> Line<C> {
    /// Of all who want one lock.
    pub fn new(name: &str, clients: Vec<C>) -> Self {
        Self { name: name.into(), clients, witness: Arc::default() }
    }

    /// Who watches over the lock.
    pub fn witness(&self) -> Arc<Witness> {
        self.witness.clone()
    }

    /// Lets them work. At the end all have given the lock back, and nobody waits.
    pub async fn work(&mut self, time: Duration) -> Result<Turns, Error> {
        let end = Instant::now() + time;
        let mut at_work = JoinSet::new();
        for (number, client) in self.clients.drain(..).enumerate() {
            at_work.spawn(work(client, self.name.clone(), number, self.witness.clone(), end));
        }
        let patience = WAIT + PATIENCE;
        let all = tokio::time::timeout_at((end + patience).into(), async {
            let mut done = Vec::new();
            while let Some(client) = at_work.join_next().await {
                done.push(client?);
            }
            Ok::<_, Error>(done)
        });
        let mut all = all.await.map_err(|_| format!("a turn took longer than {patience:?}"))??;
        all.sort_by_key(|(number, _, _)| *number);
        let mut sum = Turns { time, ..Turns::default() };
        for (_, client, turns) in all {
            self.clients.push(client);
            sum.add(turns);
        }
        Ok(sum)
    }
}

impl Turns {
    /// Takes in what one more client did.
    fn add(&mut self, one: Self) {
        self.grants.extend(one.grants);
        self.waits_us.extend(one.waits_us);
        self.failures += one.failures;
        self.failures_shown.extend(one.failures_shown);
    }
}

async fn work<C: Client>(
    mut client: C,
    name: Arc<str>,
    number: usize,
    witness: Arc<Witness>,
    end: Instant,
) -> (usize, C, Turns) {
    let (mut turns, mut grants) = (Turns::default(), 0);
    while Instant::now() < end {
        match turn(&mut client, &name, number, &witness, &mut turns.waits_us).await {
            Ok(granted) => grants += u64::from(granted < end),
            Err(what) => {
                turns.failures += 1;
                if turns.failures_shown.len() < SHOWN {
                    turns.failures_shown.push(what);
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    turns.grants.push(grants);
    (number, client, turns)
}

/// One turn at the lock; when it was granted.
async fn turn<C: Client>(
    client: &mut C,
    name: &str,
    number: usize,
    witness: &Witness,
    waits_us: &mut Vec<u32>,
) -> Result<Instant, String> {
    let started = Instant::now();
    let (held, lease) = client.take(name).await.map_err(|failure| failure.what)?;
    let granted = Instant::now();
    waits_us.push(micros(granted - started));
    let seen = witness.granted(number, granted, lease);
    witness.gives_back(number);
    // The lock goes back in any case.
    client.give_back(held).await.map_err(|failure| failure.what)?;
    seen.map(|()| granted).map_err(|lie| lie.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::{Mutex, OwnedMutexGuard};

    use super::*;
    use crate::client::Failure;
    use crate::witness::Lease;

    /// A fair lock in this process.
    struct Fair {
        lock: Arc<Mutex<()>>,
        token: Arc<AtomicU64>,
    }

    impl Client for Fair {
        type Held = OwnedMutexGuard<()>;

        async fn take(&mut self, _: &str) -> Result<(Self::Held, Lease), Failure> {
            let held = self.lock.clone().lock_owned().await;
            let token = Some(self.token.fetch_add(1, Ordering::SeqCst));
            Ok((held, Lease { ends: Instant::now() + WAIT, token }))
        }

        async fn give_back(&mut self, held: Self::Held) -> Result<(), Failure> {
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(held);
            Ok(())
        }
    }

    fn fair(clients: usize, first_token: u64) -> Line<Fair> {
        let (lock, token) = (Arc::default(), Arc::new(AtomicU64::new(first_token)));
        let client = |_| Fair { lock: Arc::clone(&lock), token: Arc::clone(&token) };
        Line::new("x", (0..clients).map(client).collect())
    }

    #[tokio::test]
    async fn every_wait_is_kept_and_grants_count_within_the_time() {
        let mut line = fair(4, 1);
        let turns = line.work(Duration::from_millis(100)).await.unwrap();
        assert_eq!((turns.failures, turns.grants.len()), (0, 4), "{turns:?}");
        let grants: u64 = turns.grants.iter().sum();
        // Those who still waited at the end had their turn after it.
        assert!(grants > 4 && turns.waits_us.len() as u64 > grants, "{turns:?}");
        assert_eq!(line.witness().grants(), turns.waits_us.len() as u64);
        assert_eq!(line.clients.len(), 4, "they come back for the next window");
    }

    #[tokio::test]
    async fn a_promise_that_is_broken_is_a_failure() {
        // Its second token is 0.
        let mut line = fair(1, u64::MAX);
        let mut failures = Vec::new();
        while line.witness().grants() < 2 {
            failures.extend(line.work(Duration::from_millis(20)).await.unwrap().failures_shown);
        }
        assert_eq!(failures[0], format!("token 0 AFTER token {}", u64::MAX));
    }
}
