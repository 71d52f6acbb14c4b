//! redlockd by unary calls, with a place in the proxy's line.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{AcquireRequest, ReleaseOutcome, ReleaseRequest};
use tonic::transport::Channel;

use super::WAIT;
use crate::Error;
use crate::line::Contender;
use crate::targets::TTL;
use crate::targets::proxy::{channels, granted};
use crate::witness::Lease;

/// One client.
pub struct Waiter {
    client: LockServiceClient<Channel>,
    request: AcquireRequest,
}

/// So many clients of a proxy for one lock, with their connections open.
pub async fn clients(proxy: SocketAddr, name: &str, count: usize) -> Result<Vec<Waiter>, Error> {
    Ok(channels(proxy, count).await?.into_iter().map(|channel| Waiter::new(channel, name, TTL)).collect())
}

impl Waiter {
    /// Of a proxy, for one lock. `ttl` is in whole milliseconds.
    pub fn new(channel: Channel, name: &str, ttl: Duration) -> Self {
        let [ttl, wait] =
            [ttl, WAIT].map(|time| prost_types::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 });
        let request = AcquireRequest { name: name.to_owned(), ttl: Some(ttl), wait: Some(wait), ..AcquireRequest::default() };
        Self { client: LockServiceClient::new(channel), request }
    }
}

impl Contender for Waiter {
    /// The lock id.
    type Held = String;

    async fn take(&mut self) -> Result<(String, Lease), String> {
        let sent = Instant::now();
        let response = self.client.acquire(self.request.clone()).await.map_err(|status| format!("acquire: {status}"))?;
        let grant = granted(response.into_inner().outcome)?;
        let lease = Lease { ends: sent + grant.served_for + grant.validity, token: Some(grant.token) };
        Ok((grant.lock_id, lease))
    }

    async fn give_back(&mut self, lock_id: String) -> Result<(), String> {
        let response = self.client.release(ReleaseRequest { lock_id }).await.map_err(|status| format!("release: {status}"))?;
        match response.into_inner().outcome() {
            ReleaseOutcome::Released => Ok(()),
            other => Err(format!("release: {other:?}")),
        }
    }
}
