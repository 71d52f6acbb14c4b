//! What a node can say to an operation.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::lease::{LockValue, Owner};
use super::membership::Standing;

/// One node's answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It did what was asked: our value is set, was deleted, or was put back.
    Yes,
    /// It holds our value, which had this long to live before the operation.
    Held {
        /// Milliseconds.
        left_ms: u64,
    },
    /// It holds another value: the refusal of an acquire, or what an inspection found.
    Other(Stored),
    /// It holds nothing of ours: the answer to a release or a renewal, or to an inspection of a name that is free.
    Absent,
    /// The last number of a block of tokens.
    Tokens {
        /// The highest of the block.
        last: u64,
        /// It hands out none above that.
        ceiling: u64,
        /// The process that counts.
        run_id: Arc<str>,
    },
    /// Our value is set, and the name's bucket of the quorum counter stands there now.
    Counted {
        /// The number.
        number: u64,
    },
    /// Our value was there and is gone, and others were told.
    Released {
        /// How many connections heard of it; `None` if the node did not let us tell anybody.
        heard: Option<u32>,
    },
    /// The released value is gone, and the waiter's is in its place.
    HandedOver {
        /// Whether that one was there; else nothing was.
        released: bool,
        /// With the quorum counter: where the name's bucket stands now.
        number: Option<u64>,
        /// Why it is no vote for the waiter: its value could not be set, or its node may not vote.
        no_vote: Option<WhyKind>,
    },
    /// A part of a node's quorum counter.
    Counters {
        /// What buckets stand at that were never used.
        base: u64,
        /// Where the next part begins; `0` after the last.
        next: Arc<str>,
        /// Some of the buckets that were ever used, and where they stand.
        numbers: Vec<(u16, u64)>,
    },
    /// A part of the locks whose keys begin alike.
    Scanned {
        /// Where the next part begins; `0` after the last.
        next: Arc<str>,
        /// Some of the keys, and what they hold. Long values are cut.
        locks: Vec<(Arc<str>, Stored)>,
    },
    /// The counter hands out no more until its ceiling is raised.
    AtCeiling {
        /// Where it stands.
        ceiling: u64,
        /// The process that counts.
        run_id: Arc<str>,
    },
    /// The counter has to be started again: its process does not know what was handed out.
    CounterLost {
        /// What stands in its place.
        mark: Arc<str>,
        /// The process.
        run_id: Arc<str>,
    },
    /// Anything else: the operation may have taken effect or not.
    Unknown(Why),
}

/// What a node holds under a name.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The value; `None` if the key is of another type. A secret of its holder.
    pub value: Option<Arc<[u8]>>,
    /// Milliseconds until it expires; `None` if it never does.
    pub left_ms: Option<u64>,
}

impl Stored {
    /// The label that may be shown.
    pub fn owner(&self) -> Option<Owner> {
        LockValue::public_label(self.value.as_deref()?)
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("owner", &self.owner())
            .field("wrong_type", &self.value.is_none())
            .field("left_ms", &self.left_ms)
            .finish()
    }
}

/// Why a node's vote is unknown, and whether the operation can have reached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// What happened.
    pub kind: WhyKind,
    /// `false` only if the operation was certainly never sent, so that there is nothing to clean up.
    pub may_have_landed: bool,
}

/// What kept a node from voting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyKind {
    /// No answer within the node's time-out.
    Timeout(Duration),
    /// An earlier call to it is overdue, so nothing more is sent to it until it answers.
    Silent,
    /// There is no connection; what the last try to connect said.
    Down(Arc<str>),
    /// The connection broke while the operation was under way.
    ConnectionLost(Arc<str>),
    /// It may not vote: a replica, another server than configured, and so on.
    Unfit(Arc<str>),
    /// It was asked, and its answer is no vote: it is quarantined, or its clock leapt.
    NoVote(Standing),
    /// Call after call was unanswered; a probe brings it back.
    Suspended,
    /// Too many operations wait for it in this proxy.
    MailboxFull,
    /// The server answered the operation with an error.
    ServerError(Arc<str>),
    /// The attempt ended before the operation was sent or answered.
    NotAwaited,
}

impl WhyKind {
    /// A short fixed word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Silent => "silent",
            Self::Down(_) => "down",
            Self::ConnectionLost(_) => "connection_lost",
            Self::Unfit(_) => "unfit",
            Self::NoVote(_) => "no_vote",
            Self::Suspended => "suspended",
            Self::MailboxFull => "mailbox_full",
            Self::ServerError(_) => "server_error",
            Self::NotAwaited => "not_awaited",
        }
    }
}

impl fmt::Display for WhyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(after) => write!(f, "timeout: no answer within {} ms", after.as_millis()),
            Self::Silent => write!(f, "timeout: an earlier call is still unanswered"),
            Self::Down(what) => write!(f, "down: {what}"),
            Self::ConnectionLost(what) => write!(f, "connection lost: {what}"),
            Self::Unfit(what) => write!(f, "not usable: {what}"),
            Self::NoVote(standing) => standing.fmt(f),
            Self::Suspended => {
                write!(f, "suspended: several calls in a row were unanswered; it is asked twice a second whether it answers")
            }
            Self::MailboxFull => write!(f, "too many operations wait for it in this proxy"),
            Self::ServerError(what) => write!(f, "error from the server: {what}"),
            Self::NotAwaited => write!(f, "no answer before the attempt ended"),
        }
    }
}
