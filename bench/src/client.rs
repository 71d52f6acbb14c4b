//! What is the same for all targets: a client takes a lock and gives it back.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use crate::witness::Lease;

/// How locks are taken.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Whole milliseconds.
    pub ttl: Duration,
    /// How long a client waits for its turn; zero is one try.
    pub wait: Duration,
}

/// A client of a target. One pair at a time.
pub trait Client: Send + 'static {
    /// What it needs to give the lock back.
    type Held: Send;

    /// Takes the lock, and checks what it got.
    fn take(&mut self, name: &str) -> impl Future<Output = Result<(Self::Held, Lease), Failure>> + Send;

    /// Gives it back; an error if it was not its own any more.
    fn give_back(&mut self, held: Self::Held) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// An operation that did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Few different ones: `acquire: unavailable`.
    pub kind: Cow<'static, str>,
    /// All that is known.
    pub what: String,
    /// The answer can not be true: a promise is broken.
    pub is_lie: bool,
}

impl Failure {
    /// Something went wrong.
    pub fn new(kind: impl Into<Cow<'static, str>>, what: impl Into<String>) -> Self {
        Self { kind: kind.into(), what: what.into(), is_lie: false }
    }

    /// An answer that can not be true.
    pub fn lie(what: impl Into<String>) -> Self {
        Self { kind: "senseless answer".into(), what: what.into(), is_lie: true }
    }

    /// An error of gRPC; `operation` is what was asked for.
    pub fn status(operation: &'static str, status: &Status) -> Self {
        Self::code(operation, status.code(), status.message())
    }

    /// The same by its parts.
    pub fn code(operation: &'static str, code: Code, message: &str) -> Self {
        Self::new(format!("{operation}: {}", words(code)), format!("{operation}: {}: {message}", words(code)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// As gRPC calls it, in small letters.
fn words(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid argument",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::PermissionDenied => "permission denied",
        Code::ResourceExhausted => "resource exhausted",
        Code::FailedPrecondition => "failed precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out of range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// For messages of gRPC.
pub fn proto_duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_a_kind_and_all_that_is_known() {
        let failure = Failure::status("acquire", &Status::unavailable("2 of 5 nodes"));
        assert_eq!((failure.kind.as_ref(), failure.is_lie), ("acquire: unavailable", false));
        assert_eq!(failure.to_string(), "acquire: unavailable: 2 of 5 nodes");
        assert!(Failure::lie("no validity").is_lie);
    }
}
