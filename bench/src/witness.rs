//! What everybody who works on a lock saw: no two leases at a time, and tokens that rise.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A grant as its client understands it.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// When it ends for the client, if nobody gives it back before.
    pub ends: Instant,
    /// The fencing token, for targets that have them.
    pub token: Option<u64>,
}

/// The witness of one lock. It sees grants when their answers are read, and releases before they are sent: two leases that
/// overlap here did so in truth.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    holder: Option<Holder>,
    last_token: Option<u64>,
    grants: u64,
    /// Tokens that could be compared with one before.
    compared: u64,
}

#[derive(Debug)]
struct Holder {
    client: usize,
    ends: Instant,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Two valid leases at a time.
    Overlap { client: usize, holder: usize, left: Duration },
    /// A token that is not above the last one.
    Token { token: u64, last: u64 },
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { client, holder, left } => {
                write!(f, "TWO HOLDERS: client {client} has the lock while client {holder} has it for {left:?}")
            }
            Self::Token { token, last } => write!(f, "token {token} AFTER token {last}"),
        }
    }
}

impl Witness {
    /// A client has read at `now` that the lock is its own; what is wrong with that.
    pub fn granted(&self, client: usize, now: Instant, lease: Lease) -> Result<(), Lie> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.grants += 1;
        let before = seen.holder.replace(Holder { client, ends: lease.ends });
        let rises = seen.token(lease.token);
        if let Some(before) = before.filter(|before| before.ends > now) {
            return Err(Lie::Overlap { client, holder: before.client, left: before.ends - now });
        }
        rises
    }

    /// A client is about to release the lock.
    pub fn gives_back(&self, client: usize) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.holder.take_if(|holder| holder.client == client);
    }

    /// All grants so far.
    pub fn grants(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).grants
    }

    /// All tokens so far that were compared with one before.
    pub fn tokens_compared(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).compared
    }
}

impl Seen {
    fn token(&mut self, token: Option<u64>) -> Result<(), Lie> {
        let Some(token) = token else { return Ok(()) };
        let Some(last) = self.last_token else {
            self.last_token = Some(token);
            return Ok(());
        };
        self.compared += 1;
        if token <= last {
            return Err(Lie::Token { token, last });
        }
        self.last_token = Some(token);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(ends: Instant, token: u64) -> Lease {
        Lease { ends, token: Some(token) }
    }

    #[test]
    fn two_holders_at_a_time_are_found() {
        let (witness, now) = (Witness::default(), Instant::now());
        assert_eq!(witness.granted(1, now, lease(now + SECOND, 1)), Ok(()));
        let lie = witness.granted(2, now + SECOND / 2, lease(now + 2 * SECOND, 2)).unwrap_err();
        assert_eq!(lie, Lie::Overlap { client: 2, holder: 1, left: SECOND / 2 });
        assert!(lie.to_string().starts_with("TWO HOLDERS"));
        witness.gives_back(1);
        assert!(witness.granted(3, now + SECOND, lease(now + SECOND, 3)).is_err(), "client 1 can not give back what 2 has");
    }

    #[test]
    fn a_lease_that_was_given_back_or_has_ended_is_no_holder() {
        let (witness, now) = (Witness::default(), Instant::now());
        assert_eq!(witness.granted(1, now, lease(now + SECOND, 1)), Ok(()));
        witness.gives_back(1);
        assert_eq!(witness.granted(2, now, lease(now + SECOND, 2)), Ok(()));
        assert_eq!(witness.granted(3, now + SECOND, lease(now + 2 * SECOND, 3)), Ok(()));
        assert_eq!((witness.grants(), witness.tokens_compared()), (3, 2));
    }

    #[test]
    fn tokens_that_do_not_rise_are_found() {
        let (witness, now) = (Witness::default(), Instant::now());
        for (token, rises) in [(5, true), (5, false), (4, false), (6, true)] {
            assert_eq!(witness.granted(1, now, lease(now, token)).is_ok(), rises, "{token}");
        }
        assert_eq!(witness.granted(1, now, Lease { ends: now, token: None }), Ok(()));
        assert_eq!(witness.granted(1, now, lease(now, 6)), Err(Lie::Token { token: 6, last: 6 }), "remembered meanwhile");
    }

    #[test]
    fn the_first_token_of_a_lock_may_be_any() {
        let (witness, now) = (Witness::default(), Instant::now());
        assert_eq!(witness.granted(1, now, lease(now, 0)), Ok(()));
        assert_eq!(witness.tokens_compared(), 0);
    }

    #[test]
    fn a_token_is_remembered_of_an_overlap_too() {
        let (witness, now) = (Witness::default(), Instant::now());
        assert_eq!(witness.granted(1, now, lease(now + SECOND, 7)), Ok(()));
        assert!(witness.granted(2, now, lease(now, 9)).is_err());
        assert_eq!(witness.granted(3, now, lease(now, 8)), Err(Lie::Token { token: 8, last: 9 }));
    }
}
