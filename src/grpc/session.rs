//! Sessions: the messages of the stream to what the coordinator knows, and back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::coordinator::Coordinator;
use crate::coordinator::attempt::AcquireFailure;
use crate::coordinator::question::Released;
use crate::coordinator::session::{
    BadField, End, Failure as SessionFailure, Inbound, LONGEST_REATTACH, LeaseView, MAX_LEASES, Message, Options, Outbox,
    Request, Told, UNANSWERED, What,
};
use crate::engine::fencing::Token;
use crate::engine::lease::{Ttl, TtlBounds};
use crate::engine::tenure::Hindrance;
use crate::engine::validity::Validity;
use crate::metrics::Outcome;
use crate::proto;
use crate::proto::session_request::Message as Asked;
use crate::proto::session_response::Message as Answer;

use super::convert::{self, bad, proto_duration};
use super::ending::Ending;
use super::service::Counted;
use super::status::{self, Failure, acquire_failure};

/// What the client sends, as the coordinator knows it. `ending` tells how its side of the stream ended.
pub fn inbound(
    messages: Streaming<proto::SessionRequest>,
    ending: Option<Ending>,
    ttls: TtlBounds,
    coordinator: Arc<Coordinator>,
) -> BoxStream<'static, Inbound> {
    let take = move |message: Result<proto::SessionRequest, Status>| match message {
        Ok(message) => Inbound::Message(read(message, &ttls, coordinator.now())),
        Err(_) => Inbound::Broken,
    };
    let is_orderly = move || ending.as_ref().is_some_and(Ending::is_orderly);
    let end = stream::once(async move { if is_orderly() { Inbound::Ended } else { Inbound::Broken } });
    messages.map(take).chain(end).boxed()
}

fn read(message: proto::SessionRequest, ttls: &TtlBounds, received: Instant) -> Message {
    let request = request(message.message, ttls, received).unwrap_or_else(Request::Invalid);
    Message { seq: message.seq, received, request }
}

fn request(message: Option<Asked>, ttls: &TtlBounds, received: Instant) -> Result<Request, BadField> {
    Ok(match message {
        None => return Err(bad("message", "is not set, or is of a kind that this proxy does not know")),
        Some(Asked::Open(open)) => Request::Open(options(open)?),
        Some(Asked::Acquire(acquire)) => {
            let asked = acquire.request.ok_or_else(|| bad("request", "is not set"))?;
            Request::Acquire(convert::acquire(asked, ttls, received, None)?, max_hold(acquire.max_hold)?)
        }
        Some(Asked::Adopt(adopt)) => Request::Adopt {
            id: convert::lock_id(&adopt.lock_id)?,
            ttl: convert::ttl(adopt.ttl, ttls)?,
            attempt: convert::attempt(adopt.attempt)?,
            max_hold: max_hold(adopt.max_hold)?,
        },
        Some(Asked::Release(release)) => Request::Release(release.lease),
        Some(Asked::Renew(renew)) => {
            let ttl = renew.ttl.map(|ttl| convert::ttl(Some(ttl), ttls)).transpose()?;
            Request::Renew(renew.lease, ttl)
        }
        Some(Asked::Cancel(cancel)) => Request::Cancel(cancel.acquire),
        Some(Asked::KeepAlive(_)) => Request::KeepAlive,
        Some(Asked::Close(_)) => Request::Close,
    })
}

fn options(open: proto::SessionOpen) -> Result<Options, BadField> {
    let reattach = open.reattach.map(|reattach| convert::duration("reattach", reattach)).transpose()?.unwrap_or_default();
    if reattach > LONGEST_REATTACH {
        return Err(bad("reattach", format!("is {reattach:?}; at most {LONGEST_REATTACH:?} is allowed")));
    }
    if open.release_on_disconnect && !reattach.is_zero() {
        return Err(bad("release_on_disconnect", "is set together with `reattach`: what was released can not be come back to"));
    }
    let session_id = (!open.session_id.is_empty()).then_some(open.session_id);
    Ok(Options { reattach, release_on_disconnect: open.release_on_disconnect, session_id })
}

fn max_hold(max_hold: Option<prost_types::Duration>) -> Result<Option<Duration>, BadField> {
    let shortest = Duration::from_millis(Ttl::SHORTEST_MS);
    match max_hold.map(|hold| convert::duration("max_hold", hold)).transpose()? {
        Some(hold) if hold < shortest => Err(bad("max_hold", format!("is {hold:?}; at least {shortest:?} is expected"))),
        hold => Ok(hold),
    }
}

/// What the client is told.
pub struct Responses {
    outbox: Outbox,
    deadline: BoxFuture<'static, ()>,
    /// `None` when all has been said.
    counted: Option<Counted>,
}

impl Responses {
    /// Until `deadline`.
    pub fn new(outbox: Outbox, deadline: BoxFuture<'static, ()>, counted: Counted) -> Self {
        Self { outbox, deadline, counted: Some(counted) }
    }

    fn end(&mut self, failure: Option<Failure>) -> Poll<Option<Result<proto::SessionResponse, Status>>> {
        if let Some(mut counted) = self.counted.take() {
            counted.outcome = failure.as_ref().map_or(Outcome::Ok, |failure| failure.outcome);
        }
        Poll::Ready(failure.map(|failure| Err(failure.status)))
    }
}

impl Stream for Responses {
    type Item = Result<proto::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.counted.is_none() {
            return Poll::Ready(None);
        }
        if self.deadline.as_mut().poll(context).is_ready() {
            return self.end(Some(status::deadline_exceeded()));
        }
        match self.outbox.poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(told))) => Poll::Ready(Some(Ok(write(told)))),
            Poll::Ready(Some(Err(end))) => self.end(Some(ended(end))),
            Poll::Ready(None) => self.end(None),
        }
    }
}

fn write(Told { acked, since, what }: Told) -> proto::SessionResponse {
    let validity = |validity: Option<Validity>| Some(proto_duration(validity.map(Validity::as_duration).unwrap_or_default()));
    let answer = match what {
        What::Opened { session_id, resumed, leases, more } => Answer::Opened(proto::SessionOpened {
            session_id: session_id.unwrap_or_default(),
            resumed,
            leases: leases.into_iter().map(granted).collect(),
            more,
        }),
        What::Granted(lease) => Answer::Granted(granted(lease)),
        What::Contended { acquire, owner, retry_after, line } => Answer::Contended(proto::SessionContended {
            acquire,
            contended: Some(convert::contended(owner, retry_after, line)),
        }),
        What::Renewed(lease, left) => Answer::Renewed(proto::SessionRenewed { lease, validity: validity(Some(left)) }),
        What::AtRisk(lease, left, detail) => Answer::AtRisk(proto::SessionAtRisk { lease, validity: validity(left), detail }),
        What::Lost(lease, left, reason, detail) => {
            Answer::Lost(proto::SessionLost { lease, validity: validity(left), reason: loss_reason(reason).into(), detail })
        }
        What::Released(lease, released) => {
            Answer::Released(proto::SessionReleased { lease, outcome: release_outcome(released).into() })
        }
        What::Failed(request, why) => Answer::Failed(failed(request, why)),
        What::Draining => Answer::Draining(proto::SessionDraining {}),
    };
    proto::SessionResponse { acked_seq: acked, since_ack: Some(proto_duration(since)), message: Some(answer) }
}

fn granted(LeaseView { lease, id, no_token, validity }: LeaseView) -> proto::SessionGranted {
    use proto::session_granted::Fencing;
    let fencing = match (id.token.map(Token::get), no_token) {
        (Some(token), _) => Fencing::FencingToken(token),
        (None, Some(why)) => Fencing::NoToken(proto::NoToken { reason: format!("the fencing counter: {why}") }),
        (None, None) => Fencing::NoToken(convert::granted_without_token()),
    };
    let validity = validity.map(|validity| proto_duration(validity.as_duration()));
    proto::SessionGranted { lease, lock_id: id.encode(), fencing: Some(fencing), validity }
}

fn loss_reason(reason: Hindrance) -> proto::SessionLossReason {
    match reason {
        Hindrance::NotHeld => proto::SessionLossReason::NotHeld,
        Hindrance::NoQuorum => proto::SessionLossReason::NoQuorum,
        Hindrance::NoKeepAlive => proto::SessionLossReason::NoKeepAlive,
        Hindrance::MaxHold => proto::SessionLossReason::MaxHold,
    }
}

/// As Release answers it.
pub fn release_outcome(released: Released) -> proto::ReleaseOutcome {
    match released {
        Released::Released => proto::ReleaseOutcome::Released,
        Released::NotHeld => proto::ReleaseOutcome::NotHeld,
    }
}

fn failed(request: u64, why: SessionFailure) -> proto::SessionFailed {
    let status = match why {
        SessionFailure::Acquire(failure) => acquire_failure(failure).status,
        SessionFailure::NoQuorum(no_quorum) => Failure::from(no_quorum).status,
        SessionFailure::Cancelled => Status::cancelled("given up by the client; no lock is left behind"),
        SessionFailure::Invalid(bad_field) => Failure::from(bad_field).status,
        SessionFailure::NoSuchLease(lease) => Status::not_found(format!(
            "{lease} is no lease of this session (any more): it was lost, released, or never granted"
        )),
        SessionFailure::Hindered(Hindrance::MaxHold) => {
            Status::failed_precondition("it has been held for as long as was asked for (max_hold)")
        }
        SessionFailure::Hindered(_) => Status::failed_precondition(format!(
            "too little of its TTL is left for a renewal since its client was heard of; ask for a TTL of {} ms more at least",
            Ttl::SHORTEST_MS
        )),
        SessionFailure::TooManyLeases => {
            status::exhausted(
                format!("{MAX_LEASES} leases are held or wanted in this session; nothing was done"),
                status::RETRY_AFTER,
            )
            .status
        }
        SessionFailure::TooManyUnanswered => {
            let message = format!("{UNANSWERED} messages of this session are being carried out; nothing was done");
            status::exhausted(message, status::RETRY_AFTER).status
        }
        SessionFailure::Overloaded { cap } => status::overloaded(cap).status,
    };
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay).map(proto_duration);
    // Codes of gRPC are small numbers, 0 to 16.
    proto::SessionFailed { request, code: i32::from(status.code()) as u32, message: status.message().to_owned(), retry_after }
}

fn ended(end: End) -> Failure {
    match end {
        End::Draining | End::Closed => acquire_failure(AcquireFailure::Draining),
        End::Disorder { seq, after } => Failure::from(bad(
            "seq",
            format!("{seq} comes after {after}; each message needs a higher number than the one before"),
        )),
        End::Resumed => {
            let status = Status::new(Code::Aborted, "the session goes on on another stream, which came back to it");
            Failure { outcome: Outcome::Cancelled, status }
        }
    }
}
