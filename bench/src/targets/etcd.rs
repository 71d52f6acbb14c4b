//! etcd by its lock service: unary calls too, and a line in the server.

use std::time::{Duration, Instant};

use super::unary::callers;
use crate::Error;
use crate::call::{Call, Caller};
use crate::client::{Client, Failure};
use crate::servers::etcd::Etcd;
use crate::servers::etcd::api::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::witness::Lease;

/// The time to live of the clients' leases. Not that of their locks, which are given back at once: long enough for every
/// measurement, so that nobody has to renew.
const LEASE: Duration = Duration::from_secs(86_400);

const LOCK: &str = "/v3lockpb.Lock/Lock";
const UNLOCK: &str = "/v3lockpb.Lock/Unlock";

/// One client.
pub struct Session {
    caller: Caller,
    lease: i64,
    ends: Instant,
}

/// So many clients, each with a lease of its own. Its locks wait for their turn, for as long as it takes: there is no other way.
pub async fn clients(etcd: &Etcd, count: usize) -> Result<Vec<Session>, Error> {
    let mut clients = Vec::new();
    for mut caller in callers::<Caller>(&etcd.url(), count).await? {
        let ends = Instant::now() + LEASE;
        clients.push(Session { lease: etcd.lease(&mut caller, LEASE).await?, caller, ends });
    }
    Ok(clients)
}

impl Client for Session {
    /// The key that stands for the lock while it is held.
    type Held = Vec<u8>;

    async fn take(&mut self, name: &str) -> Result<(Vec<u8>, Lease), Failure> {
        let response: Result<LockResponse, _> =
            self.caller.call(LOCK, LockRequest { name: name.into(), lease: self.lease }).await;
        let response = response.map_err(|status| Failure::status("lock", &status))?;
        // The revision of the store rises with every lock that is taken or given back.
        let revision = response.header.and_then(|header| u64::try_from(header.revision).ok());
        let revision = revision.ok_or_else(|| Failure::lie("lock: an answer without a revision"))?;
        Ok((response.key, Lease { ends: self.ends, token: Some(revision) }))
    }

    async fn give_back(&mut self, key: Vec<u8>) -> Result<(), Failure> {
        let response: Result<UnlockResponse, _> = self.caller.call(UNLOCK, UnlockRequest { key }).await;
        response.map(drop).map_err(|status| Failure::status("unlock", &status))
    }
}
