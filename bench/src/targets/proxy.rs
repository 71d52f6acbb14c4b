//! redlockd by unary calls, fencing token included.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::granted::Fencing;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{AcquireRequest, Granted, ReleaseOutcome, ReleaseRequest};
use tonic::transport::{Channel, Endpoint};

use super::TTL;
use crate::Error;
use crate::load::Caller;

/// Callers that share an HTTP/2 connection, as the callers of one client process would.
const CALLERS_PER_CHANNEL: usize = 64;

/// One caller of the proxy.
pub struct Unary {
    client: LockServiceClient<Channel>,
    name: String,
    last_token: u64,
}

/// So many callers, with their connections open.
pub async fn callers(proxy: SocketAddr, count: usize) -> Result<Vec<Unary>, Error> {
    let caller = |(i, channel)| Unary { client: LockServiceClient::new(channel), name: format!("bench/{i}"), last_token: 0 };
    Ok(channels(proxy, count).await?.into_iter().enumerate().map(caller).collect())
}

/// The connections of so many callers, one for each of them.
pub async fn channels(proxy: SocketAddr, callers: usize) -> Result<Vec<Channel>, Error> {
    let mut channels = Vec::new();
    while channels.len() < callers {
        let shared = channel(proxy).await?;
        channels.resize(callers.min(channels.len() + CALLERS_PER_CHANNEL), shared);
    }
    Ok(channels)
}

/// An open connection to the proxy.
pub async fn channel(proxy: SocketAddr) -> Result<Channel, Error> {
    Ok(Endpoint::from_shared(format!("http://{proxy}"))?.connect().await?)
}

impl Caller for Unary {
    async fn pair(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        let ttl = prost_types::Duration { seconds: TTL.as_secs() as i64, nanos: 0 };
        let request = AcquireRequest { name: self.name.clone(), ttl: Some(ttl), ..AcquireRequest::default() };
        let response = self.client.acquire(request).await.map_err(|status| format!("acquire: {status}"))?;
        let took = started.elapsed();
        let lock_id = self.check(response.into_inner().outcome)?;
        let response = self.client.release(ReleaseRequest { lock_id }).await.map_err(|status| format!("release: {status}"))?;
        match response.into_inner().outcome() {
            ReleaseOutcome::Released => Ok(took),
            other => Err(format!("release: {other:?}")),
        }
    }
}

impl Unary {
    /// The lock id of a grant that keeps its promises.
    fn check(&mut self, outcome: Option<Outcome>) -> Result<String, String> {
        let grant = granted(outcome)?;
        if grant.token <= self.last_token {
            return Err(format!("acquire: token {} after token {}", grant.token, self.last_token));
        }
        self.last_token = grant.token;
        if grant.validity > TTL {
            return Err(format!("acquire: a validity of {:?}", grant.validity));
        }
        Ok(grant.lock_id)
    }
}

/// A grant that has all that belongs to one.
#[derive(Debug)]
pub struct Grant {
    pub lock_id: String,
    pub token: u64,
    pub validity: Duration,
    pub served_for: Duration,
}

/// What was granted.
pub fn granted(outcome: Option<Outcome>) -> Result<Grant, String> {
    let Some(Outcome::Granted(Granted { lock_id, fencing, validity, served_for })) = outcome else {
        return Err(format!("acquire: {outcome:?}"));
    };
    let Some(Fencing::FencingToken(token)) = fencing else {
        return Err(format!("acquire: {fencing:?} for a token"));
    };
    let [validity, served_for] = [validity, served_for].map(|time| time.and_then(|time| Duration::try_from(time).ok()));
    match (validity, served_for) {
        (Some(validity), Some(served_for)) if validity > Duration::ZERO => Ok(Grant { lock_id, token, validity, served_for }),
        times => Err(format!("acquire: validity and time of service are {times:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Unary {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        Unary { client: LockServiceClient::new(channel), name: "x".to_owned(), last_token: 0 }
    }

    fn grant(token: u64, validity_ms: i32) -> Option<Outcome> {
        Some(Outcome::Granted(Granted {
            lock_id: "id".to_owned(),
            fencing: Some(Fencing::FencingToken(token)),
            validity: Some(prost_types::Duration {
                seconds: i64::from(validity_ms) / 1000,
                nanos: validity_ms % 1000 * 1_000_000,
            }),
            served_for: Some(prost_types::Duration { seconds: 0, nanos: 1000 }),
        }))
    }

    #[tokio::test]
    async fn a_grant_counts_only_with_a_rising_token_and_some_validity() {
        let mut caller = caller();
        assert_eq!(caller.check(grant(5, 900)), Ok("id".to_owned()));
        assert!(caller.check(grant(5, 900)).is_err(), "the same token again");
        assert!(caller.check(grant(4, 900)).is_err(), "a lower one");
        assert!(caller.check(grant(6, 0)).is_err(), "no validity");
        assert!(caller.check(grant(7, 1)).is_ok());
        let longer = TTL.as_millis() as i32 + 1;
        assert!(caller.check(grant(8, longer)).is_err(), "more validity than the lock may have");
        assert!(caller.check(Some(Outcome::Contended(Default::default()))).is_err());
        assert!(caller.check(None).is_err());
        assert!(caller.check(grant(9, 1)).is_ok());
    }
}
