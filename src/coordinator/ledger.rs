//! The newest leases that this proxy has granted or renewed: their tokens, which nodes do not store, for people who ask who holds
//! a name; how often their lines had had them, so that others get their turns; and for a moment that they are held, for those who
//! ask again and again. Never used to grant, bounded, and forgotten with the lease.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, LockValue};

use super::lock_id::LockId;

/// The most leases that are remembered: less than a megabyte. Lines and hints need those of the last moments only.
const MAX_ENTRIES: NonZeroUsize = NonZeroUsize::new(4_096).expect("is not 0");

/// For so long after a look at the nodes whoever tries a lock is told what it showed.
const HINT: Duration = Duration::from_millis(20);

/// In the order in which they were noted, which no look changes. A hash without a secret lets every run of a simulation be
/// repeated; whoever makes names collide can make others search through so many of them at most.
type Entries = LruCache<LockName, Entry, FxBuildHasher>;

pub(super) struct Ledger(Mutex<Entries>);

struct Entry {
    value: LockValue,
    token: Option<Token>,
    ends: Instant,
    /// When the nodes were last known to hold it.
    seen: Instant,
    /// How often in a row the lock was handed over within its line until then.
    turns: u32,
}

impl Default for Ledger {
    fn default() -> Self {
        // Bounded from the beginning it would have the memory for all of them at once.
        let mut entries = Entries::unbounded_with_hasher(FxBuildHasher);
        entries.resize(MAX_ENTRIES);
        Self(Mutex::new(entries))
    }
}

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease was `seen` on a quorum, and is known to last until `ends`. It came after so many `turns` of its line. If there are
    /// too many, the one that was noted before all others is forgotten.
    pub(super) fn note(&self, id: &LockId, seen: Instant, ends: Instant, turns: u32) {
        let entry = Entry { value: id.value.clone(), token: id.token, ends, seen, turns };
        self.entries().put(id.name.clone(), entry);
    }

    /// How often in a row the lock was handed over until this lease, if it is remembered.
    pub(super) fn turns(&self, id: &LockId) -> Option<u32> {
        let entries = self.entries();
        entries.peek(&id.name).filter(|entry| entry.value == id.value).map(|entry| entry.turns)
    }

    /// Somebody looked at the nodes for a name; whether a quorum of them holds a value.
    pub(super) fn saw(&self, name: &LockName, seen: Instant, holds: impl FnOnce(&[u8]) -> bool) {
        if let Some(entry) = self.entries().peek_mut(name)
            && holds(entry.value.as_str().as_bytes())
        {
            entry.seen = entry.seen.max(seen);
        }
    }

    /// The lease of a name that the nodes were seen to hold a moment ago, and its end.
    pub(super) fn hint(&self, name: &LockName, now: Instant) -> Option<(LockValue, Instant)> {
        let entries = self.entries();
        let entry = entries.peek(name).filter(|entry| now < entry.ends && now - entry.seen <= HINT)?;
        Some((entry.value.clone(), entry.ends))
    }

    /// A lease has ended.
    pub(super) fn forget(&self, id: &LockId) {
        let mut entries = self.entries();
        if entries.peek(&id.name).is_some_and(|entry| entry.value == id.value) {
            entries.pop(&id.name);
        }
    }

    /// The token of the lease that stores `value` under `name`.
    pub(super) fn token(&self, name: &LockName, value: &[u8]) -> Option<Token> {
        let entries = self.entries();
        let entry = entries.peek(name).filter(|entry| entry.value.as_str().as_bytes() == value)?;
        entry.token
    }

    /// A look at each: there are few enough for nobody to wait for long meanwhile.
    pub(super) fn forget_expired(&self, now: Instant) {
        self.entries().retain(|_, entry| entry.ends > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

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
        ledger.note(&old, now, now, 0);
        ledger.note(&new, now, now + Duration::from_secs(1), 3);
        assert_eq!([ledger.turns(&old), ledger.turns(&new)], [None, Some(3)]);
        assert_eq!(ledger.token(&new.name, new.value.as_str().as_bytes()), Token::new(8));
        assert_eq!(ledger.token(&old.name, old.value.as_str().as_bytes()), None);
        ledger.forget(&old);
        assert!(ledger.token(&new.name, new.value.as_str().as_bytes()).is_some(), "not its own entry");
        ledger.forget_expired(now + Duration::from_secs(1));
        assert!(ledger.entries().is_empty());
    }

    #[test]
    fn a_hint_is_for_a_moment_after_a_look_and_not_for_what_was_given_back() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        let (lease, ms) = (id("a", 1, 7), Duration::from_millis);
        ledger.note(&lease, now, now + ms(1_000), 0);
        let hinted = |at| ledger.hint(&lease.name, at).is_some();
        assert!(hinted(now) && hinted(now + HINT) && !hinted(now + HINT + ms(1)));
        ledger.saw(&lease.name, now + ms(50), |value| value != lease.value.as_str().as_bytes());
        assert!(!hinted(now + ms(60)), "they hold something else");
        ledger.saw(&lease.name, now + ms(50), |value| value == lease.value.as_str().as_bytes());
        assert!(hinted(now + ms(60)));
        ledger.saw(&lease.name, now + ms(999), |_| true);
        assert!(hinted(now + ms(999)) && !hinted(now + ms(1_000)), "nothing is left of it");
        ledger.forget(&lease);
        assert!(!hinted(now + ms(60)));
    }

    #[test]
    fn only_the_newest_are_remembered_whatever_was_looked_at() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        let (bound, ends) = (MAX_ENTRIES.get(), now + Duration::from_secs(1));
        let leases: Vec<LockId> = (0..bound + 3).map(|n| id(&n.to_string(), n as u128, n as u64 + 1)).collect();
        let is_remembered = |lease: &LockId| {
            let token = ledger.token(&lease.name, lease.value.as_str().as_bytes());
            assert!(token.is_none() || token == lease.token);
            token.is_some()
        };
        leases[..bound].iter().for_each(|lease| ledger.note(lease, now, ends, 0));
        assert!(leases[..bound].iter().all(is_remembered), "so many have room");
        // The first is renewed; the second is only looked at, in all ways.
        ledger.note(&leases[0], now, ends, 0);
        ledger.saw(&leases[1].name, now, |_| true);
        assert!(ledger.hint(&leases[1].name, now).is_some() && ledger.turns(&leases[1]) == Some(0));
        leases[bound..].iter().for_each(|lease| ledger.note(lease, now, ends, 0));
        let forgotten: Vec<usize> = (0..leases.len()).filter(|n| !is_remembered(&leases[*n])).collect();
        assert_eq!(forgotten, [1, 2, 3]);
        assert_eq!(ledger.entries().len(), bound);
    }

    #[test]
    fn what_has_not_expired_stays_in_its_order() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        let leases: Vec<LockId> = (0..6).map(|n| id(&n.to_string(), n, 1)).collect();
        for (n, lease) in (0..).zip(&leases) {
            ledger.note(lease, now, now + Duration::from_secs(if n % 2 == 0 { 1 } else { 9 }), 0);
        }
        ledger.forget_expired(now + Duration::from_secs(1));
        let left: Vec<LockName> = ledger.entries().iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(left, [5, 3, 1].map(|n: usize| leases[n].name.clone()), "newest first");
    }
}
