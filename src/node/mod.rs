//! One Redis node: the wire ([`Node`], [`Connection`]), and all that stands above it, written once for real and simulated
//! nodes alike: the [`mailbox`] and the [`link`] that connects, probes, batches, times out and replaces connections.
//!
//! A connection is replaced, never revived: what was queued for one does not go to the next, except releases, and no
//! command is ever sent twice behind our back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::engine::lease::{LockValue, Ttl};
use crate::engine::membership::MarkerChange;
use crate::engine::reply::Reply;

pub mod address;
pub mod ear;
pub mod env;
pub mod link;
pub mod mailbox;
pub mod pipe;
pub mod redis;
pub mod resp;
pub mod roster;
pub mod script;
pub mod talk;
pub mod tls;

/// How often a call may go to the server and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Once, unless nothing was done: there is no time for more.
    OneTurn,
    /// A second time for what the first could not do, and a third for a script that the server does not know: cheaper for all else.
    Turns,
}

/// Where connections to one server come from.
pub trait Node: Send + Sync + 'static {
    /// Opens a new connection, authenticated and with its database selected.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>>;

    /// Opens a connection on which nothing is asked, for what is published.
    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>>;
}

/// One connection. What is sent on it arrives in order or not at all. Dropping it closes it.
pub trait Connection: Send + Sync {
    /// Asks the server who it is.
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>>;

    /// Runs operations in one call, in their order, by this course. Without time-out: whoever waits has a clock, and a late reply is worth reading.
    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>>;

    /// Ends when the connection does, and says why.
    fn closed(&self) -> BoxFuture<'static, Arc<str>>;
}

/// A connection for what others publish. Dropping it closes it.
pub trait Listener: Send + Sync {
    /// From the end of this call on, what is published on the channels comes, until it is unsubscribed or the connection ends.
    /// Repeated, it only shows that the server answers.
    fn subscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>>;

    /// The opposite.
    fn unsubscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>>;

    /// The next message. `Err` if there may have been some that are lost: then this connection is of no more use. Safe to
    /// cancel.
    fn next(&mut self) -> BoxFuture<'_, Result<Arc<str>, WireError>>;
}

/// A channel on which nodes publish. 256 of a kind are for the locks, many for each (protocol section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Releases, for those who wait.
    Wake(u8),
    /// All that becomes of locks, for those who watch.
    Watch(u8),
    /// Nothing is published here: who listens to it has others publish on the channels for those who watch.
    Watchers,
    /// Nor here: who listens to it has others publish releases.
    Waiters,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wake(number) => write!(f, "redlockd:wake:{number}"),
            Self::Watch(number) => write!(f, "redlockd:watch:{number}"),
            Self::Watchers => f.write_str(WATCHERS),
            Self::Waiters => f.write_str(WAITERS),
        }
    }
}

const WATCHERS: &str = "redlockd:watchers";
const WAITERS: &str = "redlockd:waiters";

/// Which of 256 channels is that of a key: the same in every proxy and version, and in `events.lua`.
pub fn channel_number(prefix: &str, name: &str) -> u8 {
    prefix.bytes().chain(name.bytes()).fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

/// How a release is told to other proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeUp {
    /// Which proxy says so: it knows already.
    pub sender: Arc<str>,
}

/// A lock's key on a node: prefix and name.
pub type Key = Arc<str>;

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set our value unless somebody else's is there.
    Acquire {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
        /// From now.
        ttl: Ttl,
        /// With the quorum counter: which of the node's buckets counts.
        bucket: Option<u16>,
    },
    /// Raise a bucket of the quorum counter while our value is there.
    RaiseBucket {
        /// The lock's.
        key: Key,
        /// Ours.
        value: LockValue,
        /// Which.
        bucket: u16,
        /// To this at least.
        token: u64,
    },
    /// Tell a part of the quorum counter.
    TellCounters {
        /// The counters' key.
        key: Key,
        /// Where the last part ended; `0` at first.
        from: Arc<str>,
    },
    /// Bring a part of the quorum counter up.
    LiftCounters {
        /// The counters' key.
        key: Key,
        /// What buckets that were never used stand at.
        base: u64,
        /// Buckets to these numbers at least: `bucket=number`, with commas between them.
        numbers: Arc<str>,
    },
    /// Delete our value.
    Release {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
        /// Who is told of it; nobody, if it was no lease.
        wake: Option<WakeUp>,
    },
    /// Give a lock that is being released to whoever waits for it. Carries the release: see [`Op::release_of`].
    HandOver {
        /// Where.
        key: Key,
        /// What is released.
        old: LockValue,
        /// The waiter's.
        new: LockValue,
        /// Of the waiter, from now.
        ttl: Ttl,
        /// With the quorum counter: which of the node's buckets counts.
        bucket: Option<u16>,
        /// Who is told if nothing but the release is left of it.
        wake: WakeUp,
    },
    /// Let the TTL of our value count from now.
    Renew {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
        /// From now.
        ttl: Ttl,
    },
    /// Let the lease of one value go on as another's.
    Adopt {
        /// Where.
        key: Key,
        /// What the lease has been known by.
        old: LockValue,
        /// What it is to be known by.
        new: LockValue,
        /// From now.
        ttl: Ttl,
    },
    /// Put our value back where it is missing.
    Repair {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
        /// When the lease ends, on this node's own clock.
        ends_at: NodeTime,
    },
    /// Look whether our value is there.
    Check {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
    },
    /// Look what is there.
    Inspect {
        /// Where.
        key: Key,
    },
    /// Tell a part of the locks whose keys begin alike.
    Scan {
        /// How they begin.
        key: Key,
        /// Where the last part ended; `0` at first.
        from: Arc<str>,
    },
    /// Take fencing tokens.
    Tokens {
        /// The counter's key.
        key: Key,
        /// How many; none only looks.
        count: usize,
        /// Random: left in place of a counter that is lost, for whoever starts it again.
        mark: Arc<str>,
    },
    /// Start a counter that was lost.
    StartCounter {
        /// The counter's key.
        key: Key,
        /// What was left in its place.
        mark: Arc<str>,
        /// Its numbers are above that.
        start: u64,
        /// And not above this.
        ceiling: u64,
    },
    /// Let the counter hand out more.
    AdvanceCounter {
        /// The counter's key.
        key: Key,
        /// Up to here.
        ceiling: u64,
    },
    /// Raise the ceiling that a node keeps.
    RaiseCeiling {
        /// Where.
        key: Key,
        /// To this, if it is lower.
        ceiling: u64,
        /// The process that counts.
        owner: Arc<str>,
        /// If it is started in place of another one: what the node was seen to hold.
        seen: Option<Arc<str>>,
    },
    /// Bring the ceiling of a node that comes back up to that of others.
    LiftCeiling {
        /// Where.
        key: Key,
        /// As another node holds it.
        ceiling: Arc<str>,
    },
    /// Change what a node keeps about itself.
    Marker {
        /// Where.
        key: Key,
        /// From what to what.
        change: MarkerChange,
    },
}

impl Op {
    /// Where it acts.
    pub fn key(&self) -> &Key {
        match self {
            Self::Acquire { key, .. }
            | Self::HandOver { key, .. }
            | Self::Release { key, .. }
            | Self::Renew { key, .. }
            | Self::Adopt { key, .. }
            | Self::Repair { key, .. }
            | Self::Check { key, .. }
            | Self::Inspect { key }
            | Self::Scan { key, .. }
            | Self::Tokens { key, .. }
            | Self::Marker { key, .. }
            | Self::StartCounter { key, .. }
            | Self::AdvanceCounter { key, .. }
            | Self::RaiseCeiling { key, .. }
            | Self::LiftCeiling { key, .. }
            | Self::RaiseBucket { key, .. }
            | Self::TellCounters { key, .. }
            | Self::LiftCounters { key, .. } => key,
        }
    }

    /// Whether it does nothing but free a key: goes first.
    pub fn is_release(&self) -> bool {
        matches!(self, Self::Release { .. })
    }

    /// The release in it, which survives the loss of a connection.
    pub fn release_of(&self) -> Option<Self> {
        match self {
            Self::Release { .. } => Some(self.clone()),
            Self::HandOver { key, old, wake, .. } => {
                Some(Self::Release { key: key.clone(), value: old.clone(), wake: Some(wake.clone()) })
            }
            _ => None,
        }
    }

    /// The values that have to be as they were when this was posted: a release of them must not be sent before.
    pub fn goes_before_release_of(&self) -> impl Iterator<Item = &LockValue> {
        let (one, other) = match self {
            Self::HandOver { old, new, .. } | Self::Adopt { old, new, .. } => (Some(new), Some(old)),
            Self::Acquire { value, .. }
            | Self::Repair { value, .. }
            | Self::Renew { value, .. }
            | Self::RaiseBucket { value, .. }
            | Self::Check { value, .. } => (Some(value), None),
            _ => (None, None),
        };
        one.into_iter().chain(other)
    }
}

/// An instant on a node's own wall clock, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeTime {
    /// Microseconds since 1970.
    pub micros: u64,
}

impl NodeTime {
    /// Later by whole milliseconds.
    pub fn plus_millis(self, ms: u64) -> Self {
        Self { micros: self.micros.saturating_add(ms.saturating_mul(1_000)) }
    }

    /// In milliseconds, rounded down.
    pub fn as_millis(self) -> u64 {
        self.micros / 1_000
    }
}

/// What one call brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replies {
    /// The node's clock while the batch ran, or the last part of it.
    pub time: NodeTime,
    /// While earlier parts of it ran.
    pub earlier: Vec<NodeTime>,
    /// What the node kept about itself before the batch ran; empty: nothing.
    pub marker: Arc<str>,
    /// One for each operation, in their order.
    pub replies: Vec<Reply>,
}

/// What came with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The node's clock when it had run the operation.
    pub time: NodeTime,
    /// On our clock, before the operation was sent.
    pub sent: Instant,
    /// Whether the node might vote then: what it stores is as good as that of any other.
    pub may_vote: bool,
}

/// Who a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// New with each start of the server.
    pub run_id: Arc<str>,
    /// Such as `redis 7.0.15`.
    pub version: Arc<str>,
    /// How long it has been up.
    pub uptime: Duration,
    /// `master` or `slave`.
    pub role: Arc<str>,
    /// Redis Cluster.
    pub cluster: bool,
    /// Still reading its data from disk.
    pub loading: bool,
    /// What it is set to.
    pub settings: Settings,
}

/// Settings of a server; `None` for one that it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `maxmemory-policy`.
    pub eviction: Option<Arc<str>>,
    /// `appendonly`.
    pub append_only: Option<Arc<str>>,
    /// `appendfsync`.
    pub fsync: Option<Arc<str>>,
    /// `no-appendfsync-on-rewrite`.
    pub no_fsync_on_rewrite: Option<Arc<str>>,
}

impl Settings {
    /// Of a server that writes every change to disk before it answers.
    pub fn durable() -> Self {
        let set = |text: &str| Some(Arc::from(text));
        Self { eviction: set("noeviction"), append_only: set("yes"), fsync: set("always"), no_fsync_on_rewrite: set("no") }
    }

    /// Whether every change is on disk before it is answered. A server that does not tell is not taken for durable.
    pub fn is_durable(&self) -> bool {
        let Self { append_only, fsync, no_fsync_on_rewrite, .. } = Self::durable();
        (&self.append_only, &self.fsync, &self.no_fsync_on_rewrite) == (&append_only, &fsync, &no_fsync_on_rewrite)
    }
}

impl Probe {
    /// Why this server can not be a node, if so.
    pub fn unfit(&self) -> Option<String> {
        if &*self.role != "master" {
            return Some(format!(
                "it is a replica (role {}): a replica forgets locks at a failover. Name N independent masters",
                self.role
            ));
        }
        if self.cluster {
            return Some(
                "it runs in cluster mode: a cluster is one system, not N independent nodes. Start it with \
                 `cluster-enabled no`"
                    .to_owned(),
            );
        }
        self.loading.then(|| "it is still loading its data from disk; it is asked again until it has finished".to_owned())
    }
}

/// What went wrong on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The server answered the whole call with an error; the connection still stands.
    Server(Arc<str>),
    /// The connection is gone, or was never there.
    Closed(Arc<str>),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(what) | Self::Closed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for WireError {}
