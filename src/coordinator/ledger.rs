//! The tokens of the leases that this proxy has granted or renewed, for people who ask who holds a name: nodes do not store
//! them. Never used to grant, bounded, and forgotten with the lease.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, LockValue};

use super::lock_id::LockId;

/// The most leases that are remembered.
const MAX_ENTRIES: usize = 65_536;

#[derive(Default)]
pub(super) struct Ledger(Mutex<BTreeMap<LockName, Entry>>);

struct Entry {
    value: LockValue,
    token: Token,
    ends: Instant,
}

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<LockName, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease is known to last until `ends`.
    pub(super) fn note(&self, id: &LockId, ends: Instant) {
        let Some(token) = id.token else { return };
        let mut entries = self.entries();
        if entries.len() < MAX_ENTRIES || entries.contains_key(&id.name) {
            entries.insert(id.name.clone(), Entry { value: id.value.clone(), token, ends });
        }
    }

    /// A lease has ended.
    pub(super) fn forget(&self, id: &LockId) {
        let mut entries = self.entries();
        if entries.get(&id.name).is_some_and(|entry| entry.value == id.value) {
            entries.remove(&id.name);
        }
    }

    /// The token of the lease that stores `value` under `name`.
    pub(super) fn token(&self, name: &LockName, value: &[u8]) -> Option<Token> {
        let entries = self.entries();
        let entry = entries.get(name).filter(|entry| entry.value.as_str().as_bytes() == value)?;
        Some(entry.token)
    }

    pub(super) fn forget_expired(&self, now: Instant) {
        self.entries().retain(|_, entry| entry.ends > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn id(name: &str, nonce: u128, token: u64) -> LockId {
        LockId {
            name: LockName::new(name).unwrap(),
            value: LockValue::new(nonce, None, None),
            token: Token::new(token),
            granted_at: UNIX_EPOCH,
        }
    }

    #[test]
    fn only_the_lease_that_is_stored_has_its_token_and_nothing_stays() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        let (old, new) = (id("a", 1, 7), id("a", 2, 8));
        ledger.note(&old, now);
        ledger.note(&new, now + Duration::from_secs(1));
        assert_eq!(ledger.token(&new.name, new.value.as_str().as_bytes()), Token::new(8));
        assert_eq!(ledger.token(&old.name, old.value.as_str().as_bytes()), None);
        ledger.forget(&old);
        assert!(ledger.token(&new.name, new.value.as_str().as_bytes()).is_some(), "not its own entry");
        ledger.forget_expired(now + Duration::from_secs(1));
        assert!(ledger.entries().is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        for n in 0..MAX_ENTRIES + 10 {
            ledger.note(&id(&n.to_string(), 1, 1), now);
        }
        assert_eq!(ledger.entries().len(), MAX_ENTRIES);
    }
}
