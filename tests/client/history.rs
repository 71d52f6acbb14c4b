//! The history of a fail-over as a client and its rivals saw it, for the oracle: grants, what the client relied on, adoptions,
//! losses, releases; and what the nodes kept of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redlockd::client::{Lease, LockRequest, Released};
use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::{self, AcquireRequest};
use tonic::transport::Channel;

use crate::oracle::history::{Denial, Held, History, LeaseId};
use crate::oracle::{Assumptions, judge};
use crate::record::Record;
use crate::support::*;

type RawClient = proto::lock_service_client::LockServiceClient<Channel>;

/// A lease with its place in the history.
pub struct Watched {
    pub lease: Lease,
    id: LeaseId,
    lock_id: Mutex<String>,
    record: Record,
}

impl Watched {
    /// Takes a lock, and writes down that it has it.
    pub async fn take(record: &Record, client: &str, request: LockRequest) -> Result<Self, redlockd::client::AcquireError> {
        let sent = Instant::now();
        let lease = request.acquire().await?;
        let now = record.now();
        let id = record.lease(crate::oracle::history::Lease {
            name: lease.name().to_owned(),
            client: client.to_owned(),
            token: lease.token().map(redlockd::client::Token::get),
            not_before: record.at(sent),
            granted_by: now,
            held: Some(Held { from: now, until: record.at(lease.valid_until().into_std()) }),
        });
        let lock_id = Mutex::new(lease.lock_id().as_str().to_owned());
        Ok(Self { lease, id, lock_id, record: record.clone() })
    }

    /// Writes down until when the client relies on it now, and whether it has another lock id.
    pub fn look(&self) {
        let known = self.lease.lock_id().as_str().to_owned();
        if std::mem::replace(&mut *self.lock_id.lock().unwrap(), known.clone()) != known {
            self.record.count("adoptions");
            self.record.note(format_args!("lease {}: adopted", self.id));
        }
        let until = self.lease.valid_until().into_std();
        if self.lease.is_valid() {
            self.record.until(self.id, until, "seen");
        } else {
            self.record.count("looks at what was lost");
            self.record.until(self.id, until.min(Instant::now()), "lost");
        }
    }

    /// What it relies on, against what a quorum of the nodes keeps at least. Whoever the key belongs to: if it is not the
    /// client, then somebody else was granted the lock, which is another violation.
    pub fn check_promise(&self, cluster: &Cluster) {
        let until = self.lease.valid_until().into_std();
        if !self.lease.is_valid() {
            return;
        }
        let kept = |node: &Redis| {
            let left = node.pttl(self.lease.name()).map_or(0, |left| u64::try_from(left).unwrap());
            // At most: the answer was on its way.
            Instant::now() + Duration::from_millis(left + 1)
        };
        let mut kept: Vec<Instant> = cluster.nodes.iter().map(kept).collect();
        kept.sort_unstable_by(|one, other| other.cmp(one));
        self.record.promise(self.id, until, kept[cluster.nodes.len() / 2]);
    }

    /// Gives it back: from now on the client does not rely on it.
    pub async fn release(self) -> Result<Released, redlockd::client::ReleaseError> {
        let (id, record) = (self.id, self.record.clone());
        let (until, was_valid) = (self.lease.valid_until().into_std(), self.lease.is_valid());
        record.until(id, until.min(Instant::now()), "released");
        let released = self.lease.release().await;
        // One whose answer was lost with its proxy is repeated, and finds its own work.
        if released == Ok(Released::NotHeld) && was_valid && record.now() < record.at(until) {
            record.count("releases that found nothing");
        }
        released
    }

    /// The same, and it has to be found held: no release of it can have been lost.
    pub async fn release_held(self) {
        let (id, record) = (self.id, self.record.clone());
        let released = self.release().await;
        if released != Ok(Released::Freed) {
            let (at, what) = (record.now(), format!("release ({released:?})"));
            record.look().history.denials.push(Denial { at, lease: id, what });
        }
    }
}

/// Somebody else, who wants the locks all along.
pub struct Rival {
    record: Record,
    raw: RawClient,
    has: Vec<(LeaseId, proto::Granted)>,
}

impl Rival {
    pub async fn at(record: &Record, proxy: &Proxy) -> Self {
        Self { record: record.clone(), raw: proxy.client().await, has: Vec::new() }
    }

    /// A try, whose grant becomes part of the history.
    pub async fn tries(&mut self, name: &str) {
        let sent = Instant::now();
        match acquire(&mut self.raw, AcquireRequest { owner: "rival".into(), ..want(name) }).await {
            Outcome::Contended(_) => self.record.loss("contended"),
            Outcome::Granted(granted) => {
                let now = self.record.now();
                let until = sent + std_duration(granted.served_for) + std_duration(granted.validity);
                let id = self.record.lease(crate::oracle::history::Lease {
                    name: name.to_owned(),
                    client: "rival".to_owned(),
                    token: Some(token(&granted)),
                    not_before: self.record.at(sent),
                    granted_by: now,
                    held: Some(Held { from: now, until: self.record.at(until) }),
                });
                self.has.push((id, granted));
            }
        }
    }

    /// Gives back all that it has got; how many locks that is.
    pub async fn give_back(&mut self) -> usize {
        for (id, granted) in &self.has {
            self.record.until(*id, Instant::now(), "released");
            release(&mut self.raw, &granted.lock_id).await;
        }
        std::mem::take(&mut self.has).len()
    }
}

/// The verdict on a run in which all assumptions held: no promise is broken. Says what there was to judge.
pub fn must_be_sound(record: &Record, what: &str) -> Arc<History> {
    let inner = record.look();
    let history = Arc::new(inner.history.clone());
    let violations = judge(&history, Assumptions::Hold);
    let counts: Vec<String> = inner.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!(
        "{what}: {} leases, {} promises, {} tries of rivals in vain, {}; {} violations",
        history.leases.len(),
        history.promises.len(),
        history.losses.get("contended").copied().unwrap_or_default(),
        counts.join(", "),
        violations.len()
    );
    assert!(violations.is_empty(), "{what}: {violations:#?}");
    history
}
