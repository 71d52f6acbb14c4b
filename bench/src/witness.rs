//! What everybody who works on one lock saw: no two leases at a time, and tokens that rise.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

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
    last_token: u64,
    grants: u64,
}

#[derive(Debug)]
struct Holder {
    client: usize,
    ends: Instant,
}

impl Witness {
    /// A client has read at `now` that the lock is its own; what is wrong with that.
    pub fn granted(&self, client: usize, now: Instant, lease: Lease) -> Result<(), String> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.grants += 1;
        let before = seen.holder.replace(Holder { client, ends: lease.ends });
        if let Some(before) = before.filter(|before| before.ends > now) {
            let left = before.ends - now;
            return Err(format!(
                "TWO HOLDERS: client {client} has the lock while client {} has it for {left:?}",
                before.client
            ));
        }
        match lease.token {
            Some(token) if token <= seen.last_token => Err(format!("token {token} AFTER token {}", seen.last_token)),
            Some(token) => {
                seen.last_token = token;
                Ok(())
            }
            None => Ok(()),
        }
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(ends: Instant, token: u64) -> Lease {
        Lease { ends, token: Some(token) }
    }

    #[test]
    fn two_holders_at_a_time_are_found() {
        let (witness, now) = (Witness::default(), Instant::now());
        assert_eq!(witness.granted(1, now, lease(now + SECOND, 1)), Ok(()));
        assert!(witness.granted(2, now + SECOND / 2, lease(now + 2 * SECOND, 2)).unwrap_err().starts_with("TWO HOLDERS"));
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
        assert_eq!(witness.grants(), 3);
    }

    #[test]
    fn tokens_that_do_not_rise_are_found() {
        let (witness, now) = (Witness::default(), Instant::now());
        for (token, rises) in [(5, true), (5, false), (4, false), (6, true)] {
            assert_eq!(witness.granted(1, now, lease(now, token)).is_ok(), rises, "{token}");
        }
        assert_eq!(witness.granted(1, now, Lease { ends: now, token: None }), Ok(()));
    }
}
