//! The library rslock: plain Redlock from within the caller's process, without a fencing token.

use std::time::{Duration, Instant};

use rslock::LockManager;

use super::TTL;
use crate::load::Caller;

/// One caller of the library.
pub struct Rslock {
    manager: LockManager,
    key: String,
}

/// So many callers that share a manager, and so a connection a node, which is how the library is meant to be used.
pub fn callers(nodes: &[String], count: usize) -> Vec<Rslock> {
    let mut manager = LockManager::new(nodes.to_vec());
    // One try: a second one would hide that the first failed. Nobody else wants these locks.
    manager.set_retry(1, Duration::from_millis(1));
    (0..count).map(|i| Rslock { manager: manager.clone(), key: format!("lock:bench-rslock/{i}") }).collect()
}

impl Caller for Rslock {
    async fn pair(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        let lock = self.manager.lock(self.key.as_str(), TTL).await.map_err(|error| format!("lock: {error}"))?;
        let took = started.elapsed();
        if lock.validity_time == 0 {
            return Err("lock: a validity of 0 ms".to_owned());
        }
        // Has no result: what it leaves behind is found on the nodes.
        lock.release().await;
        Ok(took)
    }
}
