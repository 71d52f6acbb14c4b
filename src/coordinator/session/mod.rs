//! Sessions (protocol section 8): one task for each, which holds any number of leases for its client. It renews them, tells
//! what becomes of them, and carries out what comes on the stream, without a task for each message.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::engine::lease::Ttl;
use crate::engine::tenure::{Hindrance, Moment};

use super::attempt::{AcquireFailure, AcquireSpec, Grant};
use super::lock_id::LockId;
use super::question::{Lease, Released};
use super::{Coordinator, NoQuorum};

mod desk;
mod keeping;
mod requests;
mod task;

use desk::{Desk, Leases};
pub use desk::{End, LeaseView, Outbox, Told, What};

/// The most sessions at a proxy.
pub const MAX_SESSIONS: usize = 10_000;

/// The most leases of a session.
pub const MAX_LEASES: usize = 100_000;

/// The most leases of a session that one message lists: with the longest names they are about a megabyte, and clients take 4.
pub const LISTED: usize = 1_000;

/// The most acquires, adoptions and renewals of a client that are being carried out.
pub const UNANSWERED: usize = 8_192;

/// The longest time for which a session waits for its client to come back.
pub const LONGEST_REATTACH: Duration = Duration::from_secs(300);

/// The client's number of a message.
pub type Seq = u64;

/// The number of a lease within its session: that of the message which asked for it.
pub type LeaseNumber = Seq;

/// What a client says.
pub struct Message {
    /// Its number.
    pub seq: Seq,
    /// When it came.
    pub received: Instant,
    /// What it wants.
    pub request: Request,
}

/// What a client wants.
pub enum Request {
    /// Set the session up.
    Open(Options),
    /// Take a lock, and hold it for so long at most.
    Acquire(AcquireSpec, Option<Duration>),
    /// Take a lease over.
    Adopt {
        /// As it has been known.
        id: LockId,
        /// How long it shall last from now on.
        ttl: Ttl,
        /// The number of the try.
        attempt: u32,
        /// To be held for so long at most.
        max_hold: Option<Duration>,
    },
    /// Give a lease back.
    Release(LeaseNumber),
    /// Renew it.
    Renew(LeaseNumber, Option<Ttl>),
    /// Give an acquire up.
    Cancel(Seq),
    /// Nothing.
    KeepAlive,
    /// Release everything.
    Close,
    /// Something that can not be.
    Invalid(BadField),
}

/// How a session shall be.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For how long it waits for its client to come back.
    pub reattach: Duration,
    /// Whether everything is released when the stream breaks.
    pub release_on_disconnect: bool,
    /// Which one to come back to.
    pub session_id: Option<String>,
}

/// A field out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    /// As in the proto file.
    pub field: &'static str,
    /// The value as far as it may be shown, and the bound.
    pub problem: String,
}

/// Why a message was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// An acquire, for any reason but contention.
    Acquire(AcquireFailure),
    /// Too few nodes replied.
    NoQuorum(NoQuorum),
    /// The client gave it up.
    Cancelled,
    /// A field is out of its bounds.
    Invalid(BadField),
    /// There is no such lease in this session.
    NoSuchLease(LeaseNumber),
    /// It may not be renewed.
    Hindered(Hindrance),
    /// The session has as many as it may have.
    TooManyLeases,
    /// Too many of its messages are being carried out.
    TooManyUnanswered,
    /// Too many requests are being served.
    Overloaded {
        /// How many are.
        cap: usize,
    },
}

/// What comes from the client.
pub enum Inbound {
    /// A message.
    Message(Message),
    /// It has ended its side in an orderly way.
    Ended,
    /// The stream is broken.
    Broken,
}

/// The sessions of a proxy.
pub(super) struct Sessions {
    registry: Mutex<Registry>,
    /// What their leases count from.
    epoch: Instant,
}

#[derive(Default)]
struct Registry {
    count: usize,
    /// Those that can be come back to, and who is asked for what is theirs.
    by_id: BTreeMap<String, mpsc::UnboundedSender<Heir>>,
}

impl Sessions {
    pub fn new(now: Instant) -> Self {
        Self { registry: Mutex::default(), epoch: now }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many stand.
    pub fn count(&self) -> usize {
        self.registry().count
    }

    fn since_epoch(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.epoch)
    }

    fn instant(&self, since_epoch: Duration) -> Instant {
        self.epoch + since_epoch
    }
}

/// What a session leaves to the one that goes on with it.
struct Estate {
    leases: Leases,
}

/// An adoption.
struct Adopted {
    asked: Asked,
    started: Instant,
    /// As the lease is known from now on.
    id: LockId,
    ttl: Ttl,
    max_hold: Option<Duration>,
    sleeps: u64,
}

/// A renewal.
struct Renewal {
    lease: LeaseNumber,
    asked: Option<Asked>,
    /// The newest message that had come by then.
    heard: (Seq, Instant),
    started: Instant,
    ttl: Ttl,
    sleeps: u64,
}

/// Whoever asks a session for what is its.
struct Heir {
    /// The number of the message that asks.
    seq: Seq,
    /// What is left, or the number of the last message, if that is not lower.
    answer: oneshot::Sender<Result<Estate, Seq>>,
}

/// What was done.
enum Done {
    Acquired { seq: Seq, received: Instant, ttl: Ttl, max_hold: Option<Duration> },
    Adopted(Adopted, Result<Lease, NoQuorum>),
    Renewed(Renewal, Result<Lease, NoQuorum>),
    Released { lease: LeaseNumber, asked: Option<Asked>, answer: Result<Released, NoQuorum> },
    Resigned { session_id: String, seq: Seq, estate: Option<Result<Estate, Seq>> },
}

/// A message that a client waits for the answer to.
#[derive(Clone, Copy)]
struct Asked {
    seq: Seq,
    received: Instant,
}

/// What happens next.
enum Event {
    Done(Done),
    Inbound(Inbound),
    Resign(Heir),
    ReaderChanged,
    Drain,
    Time,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The client is there.
    Open,
    /// It may come back until then, and counts as heard of until then.
    Away(Instant),
    /// Nothing new begins; what is under way ends.
    Ending(End),
}

struct Session {
    coordinator: Arc<Coordinator>,
    desk: Arc<Desk>,
    inbox: BoxStream<'static, Inbound>,
    options: Options,
    /// To come back with.
    id: Option<String>,
    resign: mpsc::UnboundedReceiver<Heir>,
    resign_to: mpsc::UnboundedSender<Heir>,
    phase: Phase,
    last_seq: Seq,
    /// What is under way, and how much of it a client waits for.
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    unanswered: usize,
    /// The acquires under way: to drop one gives it up.
    acquires: BTreeMap<Seq, oneshot::Receiver<Result<Grant, AcquireFailure>>>,
    /// When something may be due for a lease.
    due: BTreeSet<(Moment, LeaseNumber)>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    alarm: Alarm,
    /// Why a renewal last failed.
    trouble: Option<NoQuorum>,
    /// It ends by releasing everything.
    releases: bool,
    /// Something was due long ago: until then it is seen whether answers are there but unread.
    stalled: Option<Instant>,
}

/// A timer that is set anew only where that is needed.
struct Alarm {
    at: Option<Instant>,
    timer: BoxFuture<'static, ()>,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { at: None, timer: Box::pin(std::future::pending()) }
    }
}

impl Coordinator {
    /// Begins a session over what comes from its client. `None`: there are too many.
    pub fn open_session(self: &Arc<Self>, inbox: BoxStream<'static, Inbound>) -> Option<Outbox> {
        {
            let registry = &mut *self.sessions.registry();
            if registry.count == MAX_SESSIONS {
                return None;
            }
            registry.count += 1;
            self.metrics.sessions(registry.count);
        }
        let desk = Desk::new(self);
        self.tasks.spawn(Session::new(self, desk.clone(), inbox).run());
        Some(Outbox(desk))
    }
}
