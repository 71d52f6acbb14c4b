//! redlockd by unary calls, fencing token included.

use std::time::{Duration, Instant};

use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::granted::Fencing;
use redlockd::proto::{AcquireRequest, AcquireResponse, Granted, ReleaseOutcome, ReleaseRequest, ReleaseResponse};

use crate::Error;
use crate::call::{Call, Caller};
use crate::client::{Client, Failure, Terms, proto_duration};
use crate::witness::Lease;

/// Clients that share an HTTP/2 connection, as the callers of one client process would.
const CLIENTS_PER_CONNECTION: usize = 64;

const ACQUIRE: &str = "/redlock.v1.LockService/Acquire";
const RELEASE: &str = "/redlock.v1.LockService/Release";

/// One client.
pub struct Unary<C = Caller> {
    caller: C,
    terms: Terms,
}

/// So many clients, divided among the proxies, with their connections open.
pub async fn clients<C: Call>(proxies: &[String], count: usize, terms: Terms) -> Result<Vec<Unary<C>>, Error> {
    let mut ways = Vec::new();
    for proxy in proxies {
        ways.push(callers(proxy, count.div_ceil(proxies.len())).await?.into_iter());
    }
    let way = |i: usize| ways[i % proxies.len()].next();
    Ok((0..count).filter_map(way).map(|caller| Unary::new(caller, terms)).collect())
}

/// So many callers of one server.
pub async fn callers<C: Call>(url: &str, clients: usize) -> Result<Vec<C>, Error> {
    let mut callers = Vec::new();
    while callers.len() < clients {
        let shared = C::connect(url).await?;
        callers.resize(clients.min(callers.len() + CLIENTS_PER_CONNECTION), shared);
    }
    Ok(callers)
}

impl<C> Unary<C> {
    /// Of a proxy.
    pub fn new(caller: C, terms: Terms) -> Self {
        Self { caller, terms }
    }
}

/// The request for a lock, in both ways to ask for it.
pub fn request(name: &str, terms: Terms) -> AcquireRequest {
    let wait = (!terms.wait.is_zero()).then(|| proto_duration(terms.wait));
    AcquireRequest { name: name.to_owned(), ttl: Some(proto_duration(terms.ttl)), wait, ..AcquireRequest::default() }
}

impl<C: Call> Client for Unary<C> {
    /// The lock id.
    type Held = String;

    async fn take(&mut self, name: &str) -> Result<(String, Lease), Failure> {
        let sent = Instant::now();
        let response: Result<AcquireResponse, _> = self.caller.call(ACQUIRE, request(name, self.terms)).await;
        let response = response.map_err(|status| Failure::status("acquire", &status))?;
        let grant = granted(response.outcome, self.terms)?;
        Ok((grant.lock_id, Lease { ends: sent + grant.served_for + grant.validity, token: Some(grant.token) }))
    }

    async fn give_back(&mut self, lock_id: String) -> Result<(), Failure> {
        let response: Result<ReleaseResponse, _> = self.caller.call(RELEASE, ReleaseRequest { lock_id }).await;
        let response = response.map_err(|status| Failure::status("release", &status))?;
        released(response.outcome())
    }
}

/// A grant that has all that belongs to one.
#[derive(Debug, PartialEq)]
struct Grant {
    lock_id: String,
    token: u64,
    validity: Duration,
    served_for: Duration,
}

/// What was granted.
fn granted(outcome: Option<Outcome>, terms: Terms) -> Result<Grant, Failure> {
    let granted = match outcome {
        Some(Outcome::Granted(granted)) => granted,
        Some(Outcome::Contended(contended)) => {
            return Err(Failure::new("acquire: contended", format!("acquire: {contended:?}")));
        }
        None => return Err(Failure::lie("acquire: an answer without an outcome")),
    };
    let Granted { lock_id, fencing, validity, served_for } = granted;
    let Some(Fencing::FencingToken(token)) = fencing else {
        return Err(Failure::lie(format!("acquire: {fencing:?} for a token")));
    };
    let validity = validity_within(validity, terms)?;
    match served_for.and_then(|time| Duration::try_from(time).ok()) {
        Some(served_for) => Ok(Grant { lock_id, token, validity, served_for }),
        None => Err(Failure::lie("acquire: no time of service")),
    }
}

/// Some, and not more than was asked for.
pub fn validity_within(validity: Option<prost_types::Duration>, terms: Terms) -> Result<Duration, Failure> {
    match validity.and_then(|time| Duration::try_from(time).ok()) {
        Some(validity) if validity > Duration::ZERO && validity <= terms.ttl => Ok(validity),
        validity => Err(Failure::lie(format!("acquire: a validity of {validity:?} with a TTL of {:?}", terms.ttl))),
    }
}

/// Whether it was still held.
pub fn released(outcome: ReleaseOutcome) -> Result<(), Failure> {
    match outcome {
        ReleaseOutcome::Released => Ok(()),
        ReleaseOutcome::NotHeld => Err(Failure::new("release: not held", "release: the lease had ended before")),
        ReleaseOutcome::Unspecified => Err(Failure::lie("release: an answer without an outcome")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { ttl: Duration::from_secs(1), wait: Duration::ZERO };

    fn grant(validity_ms: u64, fencing: Option<Fencing>) -> Option<Outcome> {
        let [validity, served_for] = [validity_ms, 1].map(|ms| Some(proto_duration(Duration::from_millis(ms))));
        Some(Outcome::Granted(Granted { lock_id: "id".to_owned(), fencing, validity, served_for }))
    }

    #[test]
    fn a_grant_counts_only_with_a_token_and_some_validity() {
        let token = Some(Fencing::FencingToken(5));
        let good = granted(grant(900, token.clone()), TERMS).unwrap();
        assert_eq!((good.token, good.validity), (5, Duration::from_millis(900)));
        assert!(granted(grant(1000, token.clone()), TERMS).is_ok());
        for bad in [grant(0, token.clone()), grant(1001, token), grant(900, None), None] {
            assert!(granted(bad.clone(), TERMS).unwrap_err().is_lie, "{bad:?}");
        }
    }

    #[test]
    fn a_lock_that_is_held_is_no_lie() {
        let failure = granted(Some(Outcome::Contended(Default::default())), TERMS).unwrap_err();
        assert_eq!((failure.kind.as_ref(), failure.is_lie), ("acquire: contended", false));
        assert_eq!(released(ReleaseOutcome::NotHeld).unwrap_err().kind, "release: not held");
        assert!(released(ReleaseOutcome::Released).is_ok());
    }
}
