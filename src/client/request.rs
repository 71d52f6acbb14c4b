//! What is asked for, and how it can fail.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::keeper::duration;
use super::lease::{Lease, Lost};
use super::{Client, DEFAULT_TTL};
use crate::proto;

/// What somebody wants, with its times on the clock.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) ttl: Duration,
    /// `None`: never.
    pub(super) wait_ends: Option<Instant>,
    pub(super) max_hold: Option<Duration>,
    pub(super) best_effort_token: bool,
    pub(super) owner: String,
    pub(super) notice: Duration,
}

/// A lock to take: made by [`Client::lock`], taken by [`LockRequest::acquire`] or [`Client::with_lock`].
#[derive(Clone, Debug)]
#[must_use = "nothing is locked until `acquire` is awaited"]
pub struct LockRequest {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) ttl: Duration,
    pub(super) wait: Duration,
    pub(super) max_hold: Option<Duration>,
    pub(super) best_effort_token: bool,
    pub(super) owner: Option<String>,
    pub(super) notice: Option<Duration>,
    pub(super) is_reentrant: bool,
}

impl LockRequest {
    pub(super) fn new(client: Client, name: String) -> Self {
        Self {
            client,
            name,
            ttl: DEFAULT_TTL,
            wait: Duration::ZERO,
            max_hold: None,
            best_effort_token: false,
            owner: None,
            notice: None,
            is_reentrant: false,
        }
    }

    /// How long the lease lasts without a renewal: 10 ms to the proxy's `limits.max_ttl` (5 minutes unless configured).
    /// Default: 10 s. It is renewed in the background: the TTL says how soon the lock of a program that died is free, and how
    /// long an outage a lease survives.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long to wait in line if somebody else holds the lock. Default: 0, try once. `Duration::MAX`: for ever.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// For how long the lock is held at most, 10 ms or more: then it is lost. Default: for as long as it is wanted.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// Takes the lock also if no fencing token can be had. Default: without a token there is no grant.
    pub fn best_effort_token(mut self) -> Self {
        self.best_effort_token = true;
        self
    }

    /// Public label of the holder, for whoever finds the lock taken: at most 128 bytes without control characters and `;`.
    /// Default: that of the client.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// How long before its validity ends a lease that could not be renewed is given up ([`Lease::lost`]): the time that its
    /// holder has to stop. At most half of the TTL counts. Default: a twentieth of the TTL, 500 ms at most.
    pub fn notice(mut self, notice: Duration) -> Self {
        self.notice = Some(notice);
        self
    }

    /// If this client (or a clone of it) holds the lock already, joins that lease: same token, same TTL, released when the
    /// last of its guards is gone. What else this request says does not count then. So tasks that shall exclude each other
    /// must not ask for this with the same client.
    pub fn reentrant(mut self) -> Self {
        self.is_reentrant = true;
        self
    }

    /// Takes the lock. A broken connection is made up for by other proxies: a retry is safe, and never finds this client's
    /// own first try.
    ///
    /// Dropping the future gives the request up: a lock that is granted all the same is released.
    pub async fn acquire(self) -> Result<Lease, AcquireError> {
        self.client.clone().acquire(self).await
    }

    pub(super) fn to_wish(&self, now: Instant, default_owner: &str) -> Wish {
        let notice = self.notice.unwrap_or_else(|| (self.ttl / 20).min(Duration::from_millis(500)));
        Wish {
            name: self.name.clone(),
            ttl: self.ttl,
            wait_ends: now.checked_add(self.wait),
            max_hold: self.max_hold,
            best_effort_token: self.best_effort_token,
            owner: self.owner.clone().unwrap_or_else(|| default_owner.to_owned()),
            notice: notice.min(self.ttl / 2),
        }
    }
}

/// Somebody else holds the lock, and the wait is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contended {
    /// The public label of the holder, as far as one is known.
    pub owner: Option<String>,
    /// When the lock may be free at the earliest if its holder does nothing.
    pub retry_after: Duration,
    /// How many stand in line at the proxy that was asked.
    pub place_in_line: u32,
    /// How long somebody in that place may have to wait, if that can be told.
    pub expected_wait: Option<Duration>,
}

impl From<proto::Contended> for Contended {
    fn from(contended: proto::Contended) -> Self {
        Self {
            owner: Some(contended.owner).filter(|owner| !owner.is_empty()),
            retry_after: duration(contended.retry_after),
            place_in_line: contended.place_in_line,
            expected_wait: contended.expected_wait.map(|wait| duration(Some(wait))),
        }
    }
}

/// Why a lock was not taken. Nothing is held, except that a lock whose answer was lost with its proxy stays taken until its
/// TTL at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcquireError {
    /// Somebody else has it.
    Contended(Contended),
    /// The request is wrong: the same one will be refused again.
    Invalid(String),
    /// No proxy, too few nodes, or no fencing token, until the wait was over. Trying again may help.
    Unavailable {
        /// What each node said, or what became of the connection.
        message: String,
        /// When to try again, if that was said.
        retry_after: Option<Duration>,
    },
    /// The proxy has too much to do. Trying again later may help.
    Busy {
        /// Which bound was met.
        message: String,
        /// When to try again, if that was said.
        retry_after: Option<Duration>,
    },
    /// The client was shut down.
    Closed,
    /// The proxy refused for another reason.
    Failed {
        /// A status code of gRPC.
        code: u32,
        /// What the proxy said.
        message: String,
    },
}

impl AcquireError {
    pub(super) fn unavailable(message: String, retry_after: Option<Duration>) -> Self {
        Self::Unavailable { message, retry_after }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contended(contended) => {
                let owner = contended.owner.as_deref().unwrap_or("somebody else");
                write!(f, "contended: {owner} holds the lock")
            }
            Self::Invalid(message) => write!(f, "INVALID_ARGUMENT: {message}"),
            Self::Unavailable { message, .. } => write!(f, "UNAVAILABLE: {message}"),
            Self::Busy { message, .. } => write!(f, "RESOURCE_EXHAUSTED: {message}"),
            Self::Closed => write!(f, "the client was shut down"),
            Self::Failed { code, message } => write!(f, "the proxy answered with code {code}: {message}"),
        }
    }
}

impl std::error::Error for AcquireError {}

/// Why work under a lock was not done to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WithLockError {
    /// It was not begun.
    Acquire(AcquireError),
    /// It was cancelled, before the lock could be somebody else's.
    Lost(Lost),
}

impl fmt::Display for WithLockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire(error) => error.fmt(f),
            Self::Lost(lost) => lost.fmt(f),
        }
    }
}

impl std::error::Error for WithLockError {}
