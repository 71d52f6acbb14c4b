//! One Redis node: the wire ([`Node`], [`Connection`]), and all that stands above it, written once for real and simulated
//! nodes alike: the [`mailbox`] and the [`link`] that connects, probes, batches, times out and replaces connections.
//!
//! A connection is replaced, never revived: what was queued for one does not go to the next, except releases, and no
//! command is ever sent twice behind our back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::engine::lease::{LockValue, Ttl};
use crate::engine::reply::Reply;

pub mod address;
pub mod env;
pub mod link;
pub mod mailbox;
pub mod redis;
pub mod script;
pub mod tls;

/// Where connections to one server come from.
pub trait Node: Send + Sync + 'static {
    /// Opens a new connection, authenticated and with its database selected.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>>;
}

/// One connection. What is sent on it arrives in order or not at all. Dropping it closes it.
pub trait Connection: Send + Sync {
    /// Asks the server who it is.
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>>;

    /// Runs operations in one call. Without time-out: whoever waits has a clock, and a late reply is worth reading.
    fn call<'a>(&'a self, batch: &'a [Op], script: ScriptBy) -> BoxFuture<'a, Result<Replies, WireError>>;

    /// Ends when the connection does, and says why.
    fn closed(&self) -> BoxFuture<'static, Arc<str>>;
}

/// How the batch script is named in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptBy {
    /// By its hash: short, and enough once the server knows it.
    Hash,
    /// By its text, which also makes the server know it.
    Text,
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
    },
    /// Delete our value.
    Release {
        /// Where.
        key: Key,
        /// Ours.
        value: LockValue,
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
    /// Take fencing tokens.
    Tokens {
        /// The counter's key.
        key: Key,
        /// How many.
        count: usize,
    },
}

impl Op {
    /// Where it acts.
    pub fn key(&self) -> &Key {
        match self {
            Self::Acquire { key, .. }
            | Self::Release { key, .. }
            | Self::Renew { key, .. }
            | Self::Repair { key, .. }
            | Self::Check { key, .. }
            | Self::Inspect { key }
            | Self::Tokens { key, .. } => key,
        }
    }

    /// Whether it frees a key: goes first, and survives the loss of a connection.
    pub fn is_release(&self) -> bool {
        matches!(self, Self::Release { .. })
    }

    /// The value that has to be as it was when this was posted: a release of it must not be sent before.
    pub fn goes_before_release_of(&self) -> Option<&LockValue> {
        match self {
            Self::Acquire { value, .. }
            | Self::Repair { value, .. }
            | Self::Renew { value, .. }
            | Self::Check { value, .. } => Some(value),
            Self::Release { .. } | Self::Inspect { .. } | Self::Tokens { .. } => None,
        }
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
    /// The node's clock while the batch ran.
    pub time: NodeTime,
    /// One for each operation, in their order.
    pub replies: Vec<Reply>,
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
    /// The server does not know the script: nothing was run.
    NoScript,
    /// The server answered the whole call with an error; the connection still stands.
    Server(Arc<str>),
    /// The connection is gone, or was never there.
    Closed(Arc<str>),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoScript => f.write_str("NOSCRIPT the server does not know our script"),
            Self::Server(what) | Self::Closed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for WireError {}
