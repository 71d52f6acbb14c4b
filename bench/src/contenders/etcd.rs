//! etcd by its lock service: unary calls too, and a line in the server.

use std::time::{Duration, Instant};

use tonic::transport::Channel;

use crate::Error;
use crate::line::Contender;
use crate::servers::etcd::Etcd;
use crate::servers::etcd::api::{LockClient, LockRequest, UnlockRequest};
use crate::witness::Lease;

/// The time to live of the clients' leases. Not that of their locks, which are given back at once: long enough for every
/// measurement, so that nobody has to renew.
const LEASE: Duration = Duration::from_secs(86_400);

/// One client.
pub struct Session {
    client: LockClient<Channel>,
    request: LockRequest,
    ends: Instant,
}

/// So many clients for one lock that share a connection, each with a lease of its own.
pub async fn clients(etcd: &Etcd, name: &str, count: usize) -> Result<Vec<Session>, Error> {
    let channel = etcd.channel().await?;
    let mut clients = Vec::new();
    for _ in 0..count {
        let ends = Instant::now() + LEASE;
        let request = LockRequest { name: name.into(), lease: etcd.lease(&channel, LEASE).await? };
        clients.push(Session { client: LockClient::new(channel.clone()), request, ends });
    }
    Ok(clients)
}

impl Contender for Session {
    /// The key that stands for the lock while it is held.
    type Held = Vec<u8>;

    async fn take(&mut self) -> Result<(Vec<u8>, Lease), String> {
        let response = self.client.lock(self.request.clone()).await.map_err(|status| format!("lock: {status}"))?.into_inner();
        // The revision of the store rises with every lock that is taken or given back.
        let revision = response.header.and_then(|header| u64::try_from(header.revision).ok()).ok_or("lock: no revision")?;
        Ok((response.key, Lease { ends: self.ends, token: Some(revision) }))
    }

    async fn give_back(&mut self, key: Vec<u8>) -> Result<(), String> {
        self.client.unlock(UnlockRequest { key }).await.map(drop).map_err(|status| format!("unlock: {status}"))
    }
}
