//! What a session's task and the reader of its stream share: the leases, and what has not been read yet. Whatever is told of a
//! lease is computed when it is read, so that nothing grows old in a queue, and a lease is queued once, however often it is renewed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::coordinator::Coordinator;
use crate::coordinator::attempt::{AcquireFailure, Grant};
use crate::coordinator::lock_id::LockId;
use crate::coordinator::question::Released;
use crate::coordinator::waiting::LineView;
use crate::engine::lease::{Owner, Ttl};
use crate::engine::reply::WhyKind;
use crate::engine::tenure::{Hindrance, Moment, Tenure};
use crate::engine::validity::{self, Spent, Validity};

use super::{Failure, LISTED, LeaseNumber, Seq};

/// A message for the client.
#[derive(Debug)]
pub struct Told {
    /// The message from which it counts: of a lease, one that came before the operations began that it stands by; else the newest.
    pub acked: Seq,
    /// The time since its receipt.
    pub since: Duration,
    /// What.
    pub what: What,
}

/// What a client is told.
#[derive(Debug)]
pub enum What {
    /// The session stands.
    Opened {
        /// To come back with.
        session_id: Option<String>,
        /// Whether it is the one that was asked for.
        resumed: bool,
        /// Its leases, or so many of them as a message may list.
        leases: Vec<LeaseView>,
        /// Others follow.
        more: bool,
    },
    /// A lease.
    Granted(LeaseView),
    /// Somebody else has the lock.
    Contended {
        /// Which acquire.
        acquire: Seq,
        /// The holder's label.
        owner: Option<Owner>,
        /// When it may be free.
        retry_after: Duration,
        /// Those who wait for it.
        line: LineView,
    },
    /// A lease goes on.
    Renewed(LeaseNumber, Validity),
    /// It may not.
    AtRisk(LeaseNumber, Option<Validity>, String),
    /// It does not.
    Lost(LeaseNumber, Option<Validity>, Hindrance, String),
    /// It was given back.
    Released(LeaseNumber, Released),
    /// A message could not be carried out.
    Failed(Seq, Failure),
    /// This proxy is shutting down.
    Draining,
}

/// A lease, for its holder.
#[derive(Debug)]
pub struct LeaseView {
    /// Its number.
    pub lease: LeaseNumber,
    /// A secret.
    pub id: LockId,
    /// Why there is no token.
    pub no_token: Option<WhyKind>,
    /// What is left of it, if that is known.
    pub validity: Option<Validity>,
}

/// Why a session's stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed it, and all has been released.
    Closed,
    /// This proxy is shutting down.
    Draining,
    /// The numbers of its messages do not rise.
    Disorder {
        /// The number.
        seq: Seq,
        /// The one before.
        after: Seq,
    },
    /// It goes on on another stream.
    Resumed,
}

/// A lease of a session. There may be very many, and most of them are only renewed now and then: what few of them have, and
/// for a short time, is put elsewhere.
pub(super) struct Kept {
    pub id: LockId,
    pub no_token: Option<Box<WhyKind>>,
    pub tenure: Tenure,
    /// The newest message that had come when the operations began that it stands by, and when. The client counts from there:
    /// of a later one nobody knows whether our machine was suspended in between.
    pub heard: (Seq, Instant),
    /// How often our machine had slept when it was granted or renewed.
    pub sleeps: u64,
    /// Until its client has been told of it.
    pub grant: Option<Box<Grant>>,
    /// Its client is to be told that it was renewed, and has not been yet.
    pub is_queued: bool,
    /// When something may be due for it.
    pub looks: Option<Moment>,
}

/// Something to tell; of a lease, only that there is something.
pub(super) enum Note {
    Opened {
        session_id: Option<String>,
        resumed: bool,
        /// The leases up to that one have been listed.
        after: LeaseNumber,
    },
    Granted(LeaseNumber),
    Renewed(LeaseNumber),
    AtRisk(LeaseNumber, String),
    Lost {
        lease: LeaseNumber,
        heard: (Seq, Instant),
        started: Instant,
        left_ms: u64,
        reason: Hindrance,
        detail: String,
    },
    Other(What),
}

/// See the module.
pub(super) struct Desk {
    coordinator: Arc<Coordinator>,
    state: Mutex<DeskState>,
    /// The reader has gone, or there is room again.
    changed: Notify,
}

/// Boxed, because the nodes of a map are half empty, or little less so.
pub(super) type Leases = BTreeMap<LeaseNumber, Box<Kept>>;

pub(super) struct DeskState {
    pub leases: Leases,
    pub notes: VecDeque<Note>,
    pub acked: (Seq, Instant),
    pub reader_is_gone: bool,
    reader: Option<Waker>,
    end: Option<End>,
}

/// With more to read than that, nothing more is taken from the client.
pub(super) const UNREAD: usize = 1_024;

impl Desk {
    pub fn new(coordinator: &Arc<Coordinator>) -> Arc<Self> {
        let now = coordinator.now();
        let state = DeskState {
            leases: Leases::new(),
            notes: VecDeque::new(),
            acked: (0, now),
            reader_is_gone: false,
            reader: None,
            end: None,
        };
        Arc::new(Self { coordinator: coordinator.clone(), state: Mutex::new(state), changed: Notify::new() })
    }

    pub fn state(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the reader has gone, or there is room again.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has the reader read.
    pub fn tell(&self, note: Note) {
        let reader = {
            let state = &mut *self.state();
            state.notes.push_back(note);
            state.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    /// A lease has been renewed.
    pub fn tell_renewed(&self, lease: LeaseNumber) {
        let is_new = self.state().leases.get_mut(&lease).is_some_and(|kept| !std::mem::replace(&mut kept.is_queued, true));
        if is_new {
            self.tell(Note::Renewed(lease));
        }
    }

    /// Nothing comes after what is there.
    pub fn end(&self, end: End) {
        let reader = {
            let state = &mut *self.state();
            state.end.get_or_insert(end);
            state.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Option<Result<Told, End>>> {
        loop {
            let (note, has_room) = {
                let state = &mut *self.state();
                match (state.notes.pop_front(), state.end) {
                    (Some(note), _) => (note, state.notes.len() + 1 == UNREAD),
                    (None, Some(End::Closed)) => return Poll::Ready(None),
                    (None, Some(end)) => return Poll::Ready(Some(Err(end))),
                    (None, None) => {
                        state.reader = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            if has_room {
                self.changed.notify_one();
            }
            if let Some(told) = self.read(note) {
                return Poll::Ready(Some(Ok(told)));
            }
        }
    }

    /// What there is to say now. `None` if it is no longer true.
    fn read(&self, note: Note) -> Option<Told> {
        let newest = self.state().acked;
        let now = self.coordinator.now();
        let ((acked, received), what) = match note {
            Note::Other(what) => (newest, what),
            Note::Opened { session_id, resumed, after } => (newest, self.list(session_id, resumed, after)),
            Note::Granted(lease) => self.deliver(lease, now)?,
            Note::Renewed(lease) => {
                let state = &mut *self.state();
                let kept = state.leases.get_mut(&lease)?;
                kept.is_queued = false;
                (kept.heard, What::Renewed(lease, self.validity(kept, now)?))
            }
            Note::AtRisk(lease, detail) => {
                let state = self.state();
                let kept = state.leases.get(&lease).filter(|kept| kept.tenure.is_at_risk())?;
                (kept.heard, What::AtRisk(lease, self.validity(kept, now), detail))
            }
            Note::Lost { lease, heard, started, left_ms, reason, detail } => {
                let spent = Spent::between(heard.1, started, now);
                let left = validity::remaining(left_ms, spent, self.coordinator.settings.drift);
                (heard, What::Lost(lease, left, reason, detail))
            }
        };
        Some(Told { acked, since: now.saturating_duration_since(received), what })
    }

    /// What is left of a lease for a client that counts from when it sent what had been heard.
    fn validity(&self, kept: &Kept, now: Instant) -> Option<Validity> {
        // Our clock stood still since: nobody knows for how long. It is being renewed.
        if kept.sleeps != self.coordinator.sleeps() {
            return None;
        }
        let started = self.coordinator.sessions.instant(kept.tenure.started());
        let spent = Spent::between(kept.heard.1, started, now);
        validity::validity(kept.tenure.lasts(), spent, self.coordinator.settings.drift)
    }

    /// The leases that its client is known to have been told of, and if they are many, the rest next. How long they last it is
    /// told when they have been renewed.
    fn list(&self, session_id: Option<String>, resumed: bool, after: LeaseNumber) -> What {
        let state = &mut *self.state();
        let told = state.leases.range(after + 1..).filter(|(_, kept)| kept.grant.is_none());
        let mut leases: Vec<LeaseView> = told.take(LISTED + 1).map(|(lease, kept)| view(*lease, kept, None)).collect();
        let more = leases.len() > LISTED;
        leases.truncate(LISTED);
        if let Some(last) = leases.last().filter(|_| more) {
            state.notes.push_front(Note::Opened { session_id: session_id.clone(), resumed, after: last.lease });
        }
        What::Opened { session_id, resumed, leases, more }
    }

    /// From now on the lease is the client's, if there is enough of it left.
    fn deliver(&self, lease: LeaseNumber, now: Instant) -> Option<((Seq, Instant), What)> {
        let (view, grant, heard, ttl) = {
            let state = &mut *self.state();
            let kept = state.leases.get_mut(&lease)?;
            let (grant, heard, ttl) = (kept.grant.take(), kept.heard, kept.tenure.ttl());
            let is_enough = grant.as_ref().is_none_or(|grant| grant.answer().is_some());
            let validity = self.validity(kept, now).filter(|_| is_enough);
            let view = validity.map(|validity| view(lease, kept, Some(validity)));
            if view.is_none() {
                state.leases.remove(&lease);
                self.coordinator.metrics.session_leases(-1);
            }
            (view, grant, heard, ttl)
        };
        match (view, grant) {
            (Some(view), grant) => {
                if let Some(grant) = grant {
                    grant.delivered();
                }
                Some((heard, What::Granted(view)))
            }
            (None, grant) => Some((heard, What::Failed(lease, too_late(grant, ttl, now)))),
        }
    }
}

fn view(lease: LeaseNumber, kept: &Kept, validity: Option<Validity>) -> LeaseView {
    LeaseView { lease, id: kept.id.clone(), no_token: kept.no_token.as_deref().cloned(), validity }
}

/// A grant that nobody can use is released.
fn too_late(grant: Option<Box<Grant>>, ttl: Ttl, now: Instant) -> Failure {
    let elapsed = grant.map_or(ttl.as_duration(), |grant| now.saturating_duration_since(grant.started()));
    Failure::Acquire(AcquireFailure::TooLate { elapsed, ttl })
}

/// The reading end of a session.
pub struct Outbox(pub(super) Arc<Desk>);

impl Outbox {
    /// The next message; `None` after an orderly end.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Result<Told, End>>> {
        self.0.poll(context)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.state().reader_is_gone = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;

    /// With its name, its value, and the room that maps and the allocator waste, that is less than 400 bytes.
    #[test]
    fn a_lease_takes_little_room() {
        assert!(size_of::<Kept>() <= 160, "{}", size_of::<Kept>());
        assert_eq!(size_of::<(LeaseNumber, Box<Kept>)>(), 16, "what the map holds of each");
        assert_eq!(size_of::<(Moment, LeaseNumber)>(), 16, "and the set of what is due");
    }
}
