//! What redlockd expects of a node, on the simulated node and on real servers alike, so that the simulated one can not lie.
//!
//! Debian's Redis and the oldest and the newest server that are known to work always run; with `CONTRACT=all`
//! (`make test-matrix`) all servers do, and each says its version.
#![allow(clippy::unwrap_used)]

#[path = "../memory/mod.rs"]
mod memory;
#[path = "../support/mod.rs"]
mod support;

mod calls;
mod lua;
mod operations;
mod random;
mod real;
mod scan;
mod simulated;
mod subject;
mod wakeups;
mod watching;

use redlockd::engine::lease::{LockValue, Owner, RequestKey, Ttl};
use redlockd::engine::reply::{Reply, Stored};
use redlockd::node::{Course, NodeTime, Op, WakeUp};
use subject::Subject;

/// Runs the body of a test on the simulated node, then on each of the real servers.
async fn on_every_node(mut body: impl AsyncFnMut(&mut Subject)) {
    println!("on the simulated node");
    body(&mut Subject::simulated().await).await;
    for server in real::servers() {
        println!("on {}", server.name);
        body(&mut Subject::real(&server).await).await;
    }
}

/// An hour, so that nothing ends while a test runs.
const LONG: Ttl = Ttl::LONGEST;
const LONG_MS: u64 = 3_600_000;
const HALF: u64 = LONG_MS / 2;
/// What a slow machine may take away from a time that is left: no test takes so long.
const SLACK_MS: u64 = 10 * 60 * 1_000;

fn ttl(ms: u64) -> Ttl {
    Ttl::from_millis(ms, LONG).unwrap()
}

/// A value that belongs to no request.
fn value(number: u128) -> LockValue {
    LockValue::new(number, None, None)
}

/// A value of a request, with a label.
fn of_request(request: u128, attempt: u32, try_number: u64) -> LockValue {
    let owner = Owner::new("somebody").unwrap();
    LockValue::new(request + u128::from(attempt), Some(RequestKey { request, attempt, try_number }), owner.as_ref())
}

fn acquire(key: &str, value: &LockValue, ttl: Ttl) -> Op {
    Op::Acquire { key: key.into(), value: value.clone(), ttl, bucket: None }
}

fn release(key: &str, value: &LockValue) -> Op {
    Op::Release { key: key.into(), value: value.clone(), wake: None }
}

fn hand_over(key: &str, old: &LockValue, new: &LockValue, ttl: Ttl) -> Op {
    let wake = WakeUp { sender: "me".into() };
    Op::HandOver { key: key.into(), old: old.clone(), new: new.clone(), ttl, bucket: None, wake }
}

fn renew(key: &str, value: &LockValue, ttl: Ttl) -> Op {
    Op::Renew { key: key.into(), value: value.clone(), ttl }
}

fn adopt(key: &str, old: &LockValue, new: &LockValue, ttl: Ttl) -> Op {
    Op::Adopt { key: key.into(), old: old.clone(), new: new.clone(), ttl }
}

fn repair(key: &str, value: &LockValue, ends_at: NodeTime) -> Op {
    Op::Repair { key: key.into(), value: value.clone(), ends_at }
}

fn check(key: &str, value: &LockValue) -> Op {
    Op::Check { key: key.into(), value: value.clone() }
}

fn inspect(key: &str) -> Op {
    Op::Inspect { key: key.into() }
}

/// What is left in place of a counter that is lost.
const MARK: &str = "0badcafe";

fn tokens(key: &str, count: usize) -> Op {
    Op::Tokens { key: key.into(), count, mark: MARK.into() }
}

/// Our value was there, with about this time left (`None`: no end, for which the longest time stands).
#[track_caller]
fn is_held(reply: &Reply, left_ms: Option<u64>) {
    let Reply::Held { left_ms: found } = reply else { panic!("{reply:?}") };
    match left_ms {
        Some(left_ms) => assert!((left_ms - SLACK_MS..=left_ms).contains(found), "{found} ms, not about {left_ms}"),
        None => assert_eq!(*found, LONG_MS),
    }
}

/// This value is there (`None`: another type), with about this time left (`None`: no end).
#[track_caller]
fn is_other(reply: &Reply, value: Option<&[u8]>, left_ms: Option<u64>) {
    let Reply::Other(Stored { value: found, left_ms: found_left }) = reply else { panic!("{reply:?}") };
    assert_eq!(found.as_deref(), value);
    is_about(*found_left, left_ms);
}

#[track_caller]
fn is_about(found: Option<u64>, expected: Option<u64>) {
    match (found, expected) {
        (Some(found), Some(expected)) => {
            assert!((expected - SLACK_MS..=expected).contains(&found), "{found} ms, not about {expected}");
        }
        _ => assert_eq!(found, expected),
    }
}

/// The operation met an error whose text holds `what`.
#[track_caller]
fn is_error(reply: &Reply, what: &str) {
    let Reply::Unknown(why) = reply else { panic!("{reply:?}") };
    assert!(why.kind.to_string().contains(what) && why.may_have_landed, "{why:?}");
}
