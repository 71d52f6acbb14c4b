//! redlockd by unary calls, fencing token included.

use std::time::{Duration, Instant};

use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::granted::Fencing;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{AcquireRequest, Granted, ReleaseOutcome, ReleaseRequest};
use tonic::transport::{Channel, Endpoint};

use crate::Error;
use crate::client::{Client, Failure, Terms, proto_duration};
use crate::witness::Lease;

/// Clients that share an HTTP/2 connection, as the callers of one client process would.
const CLIENTS_PER_CHANNEL: usize = 64;

/// One client.
pub struct Unary {
    client: LockServiceClient<Channel>,
    terms: Terms,
}

/// So many clients, divided among the proxies, with their connections open.
pub async fn clients(proxies: &[String], count: usize, terms: Terms) -> Result<Vec<Unary>, Error> {
    let mut ways = Vec::new();
    for proxy in proxies {
        ways.push(channels(proxy, count.div_ceil(proxies.len())).await?.into_iter());
    }
    let way = |i: usize| ways[i % proxies.len()].next();
    Ok((0..count).filter_map(way).map(|channel| Unary::new(channel, terms)).collect())
}

/// The connections of so many clients, one for each of them.
pub async fn channels(url: &str, clients: usize) -> Result<Vec<Channel>, Error> {
    let mut channels = Vec::new();
    while channels.len() < clients {
        let shared = channel(url).await?;
        channels.resize(clients.min(channels.len() + CLIENTS_PER_CHANNEL), shared);
    }
    Ok(channels)
}

/// An open connection.
pub async fn channel(url: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| format!("{url}: {error}"))?;
    endpoint.connect().await.map_err(|error| format!("{url}: no connection: {}", causes(&error)).into())
}

/// tonic's own words say only that the transport failed.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Unary {
    /// Of a proxy.
    pub fn new(channel: Channel, terms: Terms) -> Self {
        Self { client: LockServiceClient::new(channel), terms }
    }
}

/// The request for a lock, in both ways to ask for it.
pub fn request(name: &str, terms: Terms) -> AcquireRequest {
    let wait = (!terms.wait.is_zero()).then(|| proto_duration(terms.wait));
    AcquireRequest { name: name.to_owned(), ttl: Some(proto_duration(terms.ttl)), wait, ..AcquireRequest::default() }
}

impl Client for Unary {
    /// The lock id.
    type Held = String;

    async fn take(&mut self, name: &str) -> Result<(String, Lease), Failure> {
        let sent = Instant::now();
        let response = self.client.acquire(request(name, self.terms)).await;
        let response = response.map_err(|status| Failure::status("acquire", &status))?;
        let grant = granted(response.into_inner().outcome, self.terms)?;
        Ok((grant.lock_id, Lease { ends: sent + grant.served_for + grant.validity, token: Some(grant.token) }))
    }

    async fn give_back(&mut self, lock_id: String) -> Result<(), Failure> {
        let response = self.client.release(ReleaseRequest { lock_id }).await;
        let response = response.map_err(|status| Failure::status("release", &status))?;
        released(response.into_inner().outcome())
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
