//! The library rslock: plain Redlock from within the client's process, without a fencing token.

use std::time::{Duration, Instant};

use redis::Client as Node;
use rslock::{Lock, LockManager};

use crate::Error;
use crate::client::{Client, Failure, Terms};
use crate::witness::Lease;

/// One client.
pub struct Rslock {
    manager: LockManager,
    terms: Terms,
}

/// So many clients that share a manager, and so a connection a node, which is how the library is meant to be used.
///
/// With a wait they have the retries that the library comes with: three tries, a random pause of up to 200 ms after each; then
/// again. Without one it is one try: a second one would hide that the first failed.
pub fn clients(nodes: &[String], count: usize, terms: Terms) -> Result<Vec<Rslock>, Error> {
    let nodes: Vec<Node> = nodes.iter().map(|url| Node::open(url.as_str())).collect::<Result<_, _>>()?;
    let mut manager = LockManager::from_clients(nodes);
    if terms.wait.is_zero() {
        manager.set_retry(1, Duration::from_millis(1));
    }
    Ok((0..count).map(|_| Rslock { manager: manager.clone(), terms }).collect())
}

impl Client for Rslock {
    type Held = Lock;

    async fn take(&mut self, name: &str) -> Result<(Lock, Lease), Failure> {
        // Not where the proxy keeps its locks: what the library leaves behind is not the proxy's.
        let (key, started) = (format!("rslock:{name}"), Instant::now());
        loop {
            match self.manager.lock(key.as_str(), self.terms.ttl).await {
                Ok(lock) if lock.validity_time == 0 => return Err(Failure::lie("lock: a validity of 0 ms")),
                Ok(lock) => {
                    let validity = Duration::from_millis(lock.validity_time as u64);
                    return Ok((lock, Lease { ends: Instant::now() + validity, token: None }));
                }
                Err(error) if started.elapsed() >= self.terms.wait => {
                    return Err(Failure::new("lock: not taken", format!("lock: {error}")));
                }
                Err(_) => {}
            }
        }
    }

    async fn give_back(&mut self, lock: Lock) -> Result<(), Failure> {
        // Has no result.
        lock.release().await;
        Ok(())
    }
}
