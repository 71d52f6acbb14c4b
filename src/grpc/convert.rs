//! Messages to domain and back. Past this point no value is bad.

use std::time::Duration;

use prost_types::Duration as ProtoDuration;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::coordinator::attempt::{AcquireSpec, Grant};
use crate::coordinator::listing::{HeldName, Listing};
use crate::coordinator::lock_id::LockId;
use crate::coordinator::question::{Holding, Lease, Vote};
use crate::coordinator::session::BadField;
use crate::coordinator::waiting::LineView;
use crate::coordinator::watch::{Event, Scope};
use crate::coordinator::{Condition, ServerView};
use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, NamePrefix, Owner, Ttl, TtlBounds};
use crate::engine::listing::PageSpec;
use crate::engine::membership::Standing;
use crate::engine::reply::Stored;
use crate::engine::validity::Validity;
use crate::proto;

use super::page_token;

/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Names on a page for which no size is asked, and at most.
const PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1_000;

/// A field that is out of its bounds.
pub fn bad(field: &'static str, problem: impl Into<String>) -> BadField {
    BadField { field, problem: problem.into() }
}

/// An Acquire.
pub fn acquire(
    message: proto::AcquireRequest,
    bounds: &TtlBounds,
    received: Instant,
    deadline: Option<Instant>,
) -> Result<AcquireSpec, BadField> {
    let ttl = ttl(message.ttl, bounds)?;
    let request = request(&message)?;
    mode(message.mode)?;
    Ok(AcquireSpec {
        name: name(&message.name)?,
        ttl,
        wait: wait(message.wait)?,
        owner: Owner::new(&message.owner).map_err(|error| bad("owner", format!("{:?} {error}", shown(&message.owner))))?,
        token_required: token_required(message.token)?,
        request,
        min_validity_ms: min_validity(message.min_validity, ttl)?,
        received,
        deadline,
    })
}

/// A lock's name.
pub fn name(text: &str) -> Result<LockName, BadField> {
    LockName::new(text).map_err(|error| bad("name", format!("{:?} {error}", shown(text))))
}

/// A List.
pub fn page(message: &proto::ListRequest) -> Result<PageSpec, BadField> {
    let prefix = prefix(&message.prefix)?;
    let size = match message.page_size {
        0 => PAGE_SIZE,
        size => MAX_PAGE_SIZE.min(size as usize),
    };
    Ok(PageSpec { after: after(&message.page_token, &prefix)?, prefix, size })
}

fn after(token: &str, prefix: &NamePrefix) -> Result<Option<LockName>, BadField> {
    if token.is_empty() {
        return Ok(None);
    }
    let after = page_token::decode(token).map_err(|problem| bad("page_token", problem))?;
    if !after.as_str().starts_with(prefix.as_str()) {
        return Err(bad("page_token", format!("is of a list with another prefix than {:?}", shown(prefix.as_str()))));
    }
    Ok(Some(after))
}

/// The beginning of a text: enough to recognise it.
fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

/// What to watch.
pub fn scope(message: proto::WatchRequest) -> Result<Scope, BadField> {
    use proto::watch_request::Scope as Asked;
    match message.scope {
        Some(Asked::Name(text)) => Ok(Scope::Name(name(&text)?)),
        Some(Asked::Prefix(text)) => prefix(&text).map(Scope::Prefix),
        None => prefix("").map(Scope::Prefix),
    }
}

/// How names begin.
fn prefix(text: &str) -> Result<NamePrefix, BadField> {
    NamePrefix::new(text).map_err(|error| bad("prefix", format!("{:?} {error}", shown(text))))
}

/// An event for those who watch.
pub fn event(event: Event) -> proto::WatchResponse {
    use proto::WatchEventKind as Kind;
    let of = |kind: Kind, name: &LockName| proto::WatchResponse {
        kind: kind.into(),
        name: name.as_str().to_owned(),
        ..proto::WatchResponse::default()
    };
    let held = |kind, name: &LockName, owner: Option<Owner>, ttl| proto::WatchResponse {
        owner: label(owner.as_ref()),
        ttl: Some(proto_duration(ttl)),
        ..of(kind, name)
    };
    match event {
        Event::Complete => proto::WatchResponse { kind: Kind::Complete.into(), ..proto::WatchResponse::default() },
        Event::Gap(detail) => proto::WatchResponse { kind: Kind::Gap.into(), detail, ..proto::WatchResponse::default() },
        Event::Granted(name, owner, ttl) => held(Kind::Granted, &name, owner, ttl),
        Event::HandedOver(name, owner, ttl) => held(Kind::HandedOver, &name, owner, ttl),
        Event::Released(name) => of(Kind::Released, &name),
        Event::Expired(name) => of(Kind::Expired, &name),
    }
}

/// A lock id. Its text is a secret and never repeated.
pub fn lock_id(text: &str) -> Result<LockId, BadField> {
    if text.is_empty() {
        return Err(bad("lock_id", "is empty; pass on what Acquire answered"));
    }
    LockId::decode(text).map_err(|error| bad("lock_id", error.to_string()))
}

/// A TTL, or the default one.
pub fn ttl(field: Option<ProtoDuration>, bounds: &TtlBounds) -> Result<Ttl, BadField> {
    let Some(field) = field else { return Ok(bounds.default) };
    let duration = duration("ttl", field)?;
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ttl::from_millis(ms, bounds.longest).ok_or_else(|| {
        let longest = humantime::format_duration(bounds.longest.as_duration());
        bad("ttl", format!("is {duration:?}; {} ms to {longest} (limits.max_ttl) is allowed", Ttl::SHORTEST_MS))
    })
}

fn wait(field: Option<ProtoDuration>) -> Result<Duration, BadField> {
    let wait = field.map(|field| duration("wait", field)).transpose()?.unwrap_or_default();
    if wait > MAX_WAIT {
        return Err(bad("wait", format!("is {wait:?}; at most 1h is allowed")));
    }
    Ok(wait)
}

fn min_validity(field: Option<ProtoDuration>, ttl: Ttl) -> Result<u64, BadField> {
    let Some(field) = field else { return Ok(1) };
    let duration = duration("min_validity", field)?;
    let ms = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    if !(1..=ttl.as_millis()).contains(&ms) {
        return Err(bad("min_validity", format!("is {duration:?}; 1 ms to the TTL ({} ms) is allowed", ttl.as_millis())));
    }
    Ok(ms)
}

/// 0 or more.
pub fn duration(field: &'static str, duration: ProtoDuration) -> Result<Duration, BadField> {
    let (seconds, nanos) = (duration.seconds, duration.nanos);
    Duration::try_from(duration)
        .map_err(|_| bad(field, format!("is {seconds} s and {nanos} ns; a duration of 0 or more is expected")))
}

fn mode(field: i32) -> Result<(), BadField> {
    match proto::LockMode::try_from(field) {
        Ok(proto::LockMode::Unspecified | proto::LockMode::Exclusive) => Ok(()),
        Err(_) => Err(bad("mode", format!("is {field}; this proxy knows LOCK_MODE_EXCLUSIVE (1)"))),
    }
}

fn token_required(field: i32) -> Result<bool, BadField> {
    match proto::TokenRequirement::try_from(field) {
        Ok(proto::TokenRequirement::Unspecified | proto::TokenRequirement::Required) => Ok(true),
        Ok(proto::TokenRequirement::BestEffort) => Ok(false),
        Err(_) => Err(bad("token", format!("is {field}; TOKEN_REQUIREMENT_REQUIRED (1) or _BEST_EFFORT (2) is expected"))),
    }
}

fn request(message: &proto::AcquireRequest) -> Result<Option<(Vec<u8>, u32)>, BadField> {
    let (id, attempt) = (&message.request_id, message.attempt);
    if id.is_empty() {
        return match attempt {
            0 => Ok(None),
            _ => Err(bad("attempt", format!("is {attempt} without a request_id, which says what is tried again"))),
        };
    }
    if !(16..=64).contains(&id.len()) {
        return Err(bad(
            "request_id",
            format!("has {} bytes; 16 random bytes, or the text of a UUID, up to 64 are expected", id.len()),
        ));
    }
    Ok(Some((id.to_vec(), self::attempt(attempt)?)))
}

/// The number of a try.
pub fn attempt(number: u32) -> Result<u32, BadField> {
    match number {
        0 => Ok(1),
        1..=0x7fff_ffff => Ok(number),
        _ => Err(bad("attempt", format!("is {number}; 1 to 2147483647 is allowed"))),
    }
}

/// When the client stops listening, less a margin that lets our own answer arrive before the transport's. `None` if it named
/// no deadline.
pub fn deadline(metadata: &MetadataMap, received: Instant) -> Option<Instant> {
    let timeout = grpc_timeout(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    let margin = (timeout / 10).clamp(Duration::from_millis(1), Duration::from_millis(10));
    // A timeout of centuries is none.
    received.checked_add(timeout.saturating_sub(margin))
}

/// At most eight digits and a unit, as the gRPC specification says.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// A std duration as a message's.
pub fn proto_duration(duration: Duration) -> ProtoDuration {
    // Every duration here is below the message's bound of 10,000 years.
    ProtoDuration::try_from(duration).unwrap_or(ProtoDuration { seconds: i64::MAX, nanos: 0 })
}

/// Seconds that may be below 0.
fn signed_duration(seconds: f64) -> ProtoDuration {
    let span = proto_duration(Duration::try_from_secs_f64(seconds.abs()).unwrap_or(Duration::MAX));
    if seconds < 0.0 { ProtoDuration { seconds: -span.seconds, nanos: -span.nanos } } else { span }
}

/// A grant's answer.
pub fn granted(grant: &Grant, validity: Validity, served_for: Duration) -> proto::AcquireResponse {
    use proto::granted::Fencing;
    let fencing = match &grant.token {
        Ok(token) => Fencing::FencingToken(token.get()),
        Err(why) => Fencing::NoToken(proto::NoToken { reason: format!("the fencing counter: {why}") }),
    };
    proto::AcquireResponse {
        outcome: Some(proto::acquire_response::Outcome::Granted(proto::Granted {
            lock_id: grant.lock_id().encode(),
            fencing: Some(fencing),
            validity: Some(proto_duration(validity.as_duration())),
            served_for: Some(proto_duration(served_for)),
        })),
    }
}

/// The answer to whoever found the lock taken.
pub fn contended(owner: Option<Owner>, retry_after: Duration, line: LineView) -> proto::Contended {
    proto::Contended {
        owner: label(owner.as_ref()),
        retry_after: Some(proto_duration(retry_after)),
        place_in_line: count(line.before),
        expected_wait: line.expected.map(proto_duration),
    }
}

/// Of things that are bounded by a million.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn label(owner: Option<&Owner>) -> String {
    owner.map(|owner| owner.as_str().to_owned()).unwrap_or_default()
}

/// A renewal's answer.
pub fn renewed(lease: Lease) -> proto::RenewResponse {
    use proto::renew_response::Outcome;
    let validity = Some(proto_duration(lease.validity.map(Validity::as_duration).unwrap_or_default()));
    let served_for = Some(proto_duration(lease.served_for));
    let outcome = if lease.held {
        Outcome::Renewed(proto::Renewed { validity, served_for })
    } else {
        Outcome::Lost(proto::Lost { validity, served_for })
    };
    proto::RenewResponse { outcome: Some(outcome) }
}

/// A check's answer.
pub fn checked(lease: Lease, id: &LockId) -> proto::CheckResponse {
    use proto::check_response::Outcome;
    use proto::still_held::Fencing;
    let Some(validity) = lease.validity.filter(|_| lease.held) else {
        return proto::CheckResponse { outcome: Some(Outcome::NotHeld(proto::NotHeld {})) };
    };
    let fencing = match id.token.map(Token::get) {
        Some(token) => Fencing::FencingToken(token),
        None => Fencing::NoToken(granted_without_token()),
    };
    let held = proto::StillHeld {
        validity: Some(proto_duration(validity.as_duration())),
        served_for: Some(proto_duration(lease.served_for)),
        name: id.name.as_str().to_owned(),
        fencing: Some(fencing),
    };
    proto::CheckResponse { outcome: Some(Outcome::Held(held)) }
}

/// Why there is no token in an answer about a lease.
pub fn granted_without_token() -> proto::NoToken {
    proto::NoToken { reason: "the lock was granted without one".to_owned() }
}

/// The answer to who holds a name.
pub fn holding(holding: Holding, waiters: usize) -> proto::GetResponse {
    use proto::get_response::State;
    let state = match &holding.held {
        None => State::Free(proto::Free {}),
        Some(held) => State::Held(proto::Holder {
            owner: label(held.owner.as_ref()),
            time_left: Some(proto_duration(held.left)),
            fencing_token: held.token.map(Token::get),
        }),
    };
    let votes = holding.votes.into_iter().map(|(node, vote)| node_vote(&node, vote)).collect();
    proto::GetResponse { state: Some(state), votes, waiters: count(waiters) }
}

fn node_vote(node: &str, vote: Vote) -> proto::NodeVote {
    use proto::NodeVoteState;
    let (state, stored, detail) = match vote {
        Vote::Holder(stored) => (NodeVoteState::Holder, Some(stored), String::new()),
        Vote::Other(stored) => {
            let detail = if stored.value.is_none() { "wrong type: the key holds something that is no lock" } else { "" };
            (NodeVoteState::Other, Some(stored), detail.to_owned())
        }
        Vote::Free => (NodeVoteState::Free, None, String::new()),
        Vote::Unknown(why) => (NodeVoteState::Unknown, None, why),
    };
    proto::NodeVote {
        node: node.to_owned(),
        state: state.into(),
        owner: label(stored.as_ref().and_then(Stored::owner).as_ref()),
        time_left: stored.and_then(|stored| stored.left_ms).map(|ms| proto_duration(Duration::from_millis(ms))),
        detail,
    }
}

/// A page of a list.
pub fn listing(listing: Listing) -> proto::ListResponse {
    proto::ListResponse {
        next_page_token: listing.next_after.as_ref().map(page_token::encode).unwrap_or_default(),
        locks: listing.held.into_iter().map(held_lock).collect(),
    }
}

fn held_lock(held: HeldName) -> proto::HeldLock {
    proto::HeldLock {
        name: held.name.as_str().to_owned(),
        owner: label(held.owner.as_ref()),
        time_left: Some(proto_duration(held.left)),
        fencing_token: held.token.map(Token::get),
        waiters: count(held.waiters),
        nodes: count(held.nodes),
    }
}

/// A server's state.
pub fn node_status(server: ServerView, role: proto::NodeRole) -> proto::NodeStatus {
    let (condition, detail) = server.condition();
    let ServerView { address, status } = server;
    let state = match condition {
        Condition::Up => proto::NodeState::Up,
        Condition::Quarantined => proto::NodeState::Quarantined,
        Condition::Silent => proto::NodeState::Silent,
        Condition::Suspended => proto::NodeState::Suspended,
        Condition::Down => proto::NodeState::Down,
        Condition::Unfit => proto::NodeState::Unfit,
    };
    let quarantine_left = match status.standing {
        Some(Standing::Quarantined { left, .. }) => left.map(proto_duration),
        _ => None,
    };
    let probe = status.probe.as_ref();
    proto::NodeStatus {
        node: address.to_string(),
        role: role.into(),
        state: state.into(),
        detail,
        version: probe.map(|probe| probe.version.to_string()).unwrap_or_default(),
        run_id: probe.map(|probe| probe.run_id.to_string()).unwrap_or_default(),
        uptime: probe.map(|probe| proto_duration(probe.uptime)),
        round_trip: status.round_trip.map(proto_duration),
        queued: u32::try_from(status.queued).unwrap_or(u32::MAX),
        in_flight: u32::try_from(status.in_flight).unwrap_or(u32::MAX),
        restarts: status.restarts,
        quarantine_left,
        clock_offset: status.clock.offset.map(signed_duration),
        clock_drift_ratio: status.clock.rate,
        votes_lost: status.votes_lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_writes_them() {
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc_timeout("5u"), Some(Duration::from_micros(5)));
        for bad in ["", "m", "123456789m", "-1S", "1x", "1é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
