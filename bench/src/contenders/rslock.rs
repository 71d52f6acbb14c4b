//! The library rslock with the retries that it comes with: three tries, a random pause of up to 200 ms after each; then again.

use std::time::{Duration, Instant};

use rslock::{Lock, LockManager};

use super::WAIT;
use crate::line::Contender;
use crate::targets::TTL;
use crate::witness::Lease;

/// One client.
pub struct Retrying {
    manager: LockManager,
    key: String,
}

/// So many clients for one lock, that share a manager as those of [`crate::targets::rslock`] do.
pub fn clients(nodes: &[String], name: &str, count: usize) -> Vec<Retrying> {
    let manager = LockManager::new(nodes.to_vec());
    // Not where the proxy keeps its locks: what the library leaves behind is not the proxy's.
    (0..count).map(|_| Retrying { manager: manager.clone(), key: format!("rslock:{name}") }).collect()
}

impl Contender for Retrying {
    type Held = Lock;

    async fn take(&mut self) -> Result<(Lock, Lease), String> {
        let started = Instant::now();
        loop {
            match self.manager.lock(self.key.as_str(), TTL).await {
                Ok(lock) => {
                    let validity = Duration::from_millis(lock.validity_time as u64);
                    return Ok((lock, Lease { ends: Instant::now() + validity, token: None }));
                }
                Err(error) if started.elapsed() > WAIT => return Err(format!("lock: {error}")),
                Err(_) => {}
            }
        }
    }

    async fn give_back(&mut self, lock: Lock) -> Result<(), String> {
        // Has no result.
        lock.release().await;
        Ok(())
    }
}
