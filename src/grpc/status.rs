//! Failures to status codes, with details that programs can read.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::coordinator::attempt::AcquireFailure;
use crate::coordinator::listing::{ListFailure, MAX_LISTS};
use crate::coordinator::session::{BadField, MAX_SESSIONS};
use crate::coordinator::watch::MAX_WATCHES;
use crate::coordinator::{NoQuorum, NodeWord};
use crate::engine::line::Full;
use crate::metrics::Outcome;

/// The `domain` of every `google.rpc.ErrorInfo`.
const DOMAIN: &str = "redlockd";

/// Too many watch.
pub fn too_many_watch() -> Failure {
    exhausted(format!("{MAX_WATCHES} watch locks at this proxy"), RETRY_AFTER)
}

/// Too many sessions.
pub fn too_many_sessions() -> Failure {
    exhausted(
        format!("{MAX_SESSIONS} sessions stand at this proxy; use another one, or one session for many leases"),
        RETRY_AFTER,
    )
}

/// When a failed request may be sent again.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The same for a list: each takes some time.
const RETRY_LIST_AFTER: Duration = Duration::from_secs(1);

/// A failure with what is counted for it.
pub struct Failure {
    /// For the metric.
    pub outcome: Outcome,
    /// For the client.
    pub status: Status,
}

impl From<BadField> for Failure {
    fn from(BadField { field, problem }: BadField) -> Self {
        let message = format!("{field} {problem}");
        let details = ErrorDetails::with_bad_request_violation(field, problem);
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        Self { outcome: Outcome::InvalidArgument, status }
    }
}

impl From<NoQuorum> for Failure {
    fn from(NoQuorum { needed, nodes }: NoQuorum) -> Self {
        let head = format!("no quorum: {needed} of {} nodes have to answer", nodes.len());
        unavailable("NO_QUORUM", head, nodes)
    }
}

impl From<ListFailure> for Failure {
    fn from(failure: ListFailure) -> Self {
        match failure {
            ListFailure::NoQuorum(no_quorum) => no_quorum.into(),
            ListFailure::TooMany => {
                exhausted(format!("{MAX_LISTS} lists are being made at this proxy; nothing was done"), RETRY_LIST_AFTER)
            }
        }
    }
}

/// What an Acquire can fail with, contention aside.
pub fn acquire_failure(failure: AcquireFailure) -> Failure {
    match failure {
        AcquireFailure::NoQuorum(no_quorum) => no_quorum.into(),
        AcquireFailure::NoToken(word) => unavailable(
            "NO_FENCING_TOKEN",
            "no fencing token: the counter did not answer, and what was taken is being released. Ask for TOKEN_REQUIREMENT_BEST_EFFORT \
             if a lock without a token is of use"
                .to_owned(),
            vec![word],
        ),
        AcquireFailure::TooLate { elapsed, ttl } => unavailable(
            "TOO_LATE",
            format!(
                "too late: after {} ms the TTL of {} ms left less than the validity asked for, and what was taken is being released. \
                 Ask for a longer TTL",
                elapsed.as_millis(),
                ttl.as_millis()
            ),
            Vec::new(),
        ),
        AcquireFailure::Draining => {
            unavailable("SHUTTING_DOWN", "this proxy is shutting down; ask another one".to_owned(), Vec::new())
        }
        AcquireFailure::Deadline => deadline_exceeded(),
        AcquireFailure::LineFull(full) => line_full(full),
        // Not an error; the service answers it before it comes here.
        AcquireFailure::Contended { .. } => unavailable("CONTENDED", "held by somebody else".to_owned(), Vec::new()),
    }
}

/// The client's own deadline passed.
pub fn deadline_exceeded() -> Failure {
    let status = Status::deadline_exceeded(
        "the call's deadline passed; an Acquire leaves no lock behind, anything else can be repeated",
    );
    Failure { outcome: Outcome::DeadlineExceeded, status }
}

/// Too many requests in flight.
pub fn overloaded(max_inflight: usize) -> Failure {
    let message = format!("{max_inflight} requests are in flight at this proxy (limits.max_inflight); nothing was done");
    exhausted(message, RETRY_AFTER)
}

/// Too many wait.
fn line_full(full: Full) -> Failure {
    let (message, expected) = match full {
        Full::Line { waiters, expected } => (
            format!("{waiters} callers wait for this lock at this proxy (limits.max_waiters_per_name); nothing was done"),
            expected,
        ),
        Full::All { waiters } => {
            (format!("{waiters} callers wait for locks at this proxy (limits.max_waiters); nothing was done"), None)
        }
    };
    exhausted(message, expected.unwrap_or_default().max(RETRY_AFTER))
}

/// Too many of something.
pub fn exhausted(message: String, retry_after: Duration) -> Failure {
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(retry_after));
    let status = Status::with_error_details(Code::ResourceExhausted, message, details);
    Failure { outcome: Outcome::ResourceExhausted, status }
}

fn unavailable(reason: &str, head: String, words: Vec<NodeWord>) -> Failure {
    let lines: Vec<String> = words.iter().map(|NodeWord { node, said }| format!("\n  {node}: {said}")).collect();
    let said: HashMap<String, String> = words.into_iter().map(|word| (word.node.to_string(), word.said)).collect();
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(RETRY_AFTER)).set_error_info(reason, DOMAIN, said);
    let status = Status::with_error_details(Code::Unavailable, format!("{head}{}", lines.concat()), details);
    Failure { outcome: Outcome::Unavailable, status }
}
