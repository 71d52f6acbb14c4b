//! What only the simulated node has to do: no real server tells what it changed, or is put back to what it held.

use redlockd::engine::lease::{LockValue, RequestKey, Ttl};
use redlockd::engine::reply::Reply;
use redlockd::node::talk::Talk;
use redlockd::node::{Course, NodeTime, Op};

use crate::memory::{Change, Server, scripts};

const START: NodeTime = NodeTime { micros: 1_700_000_000_000_000 };

fn value(attempt: u32) -> LockValue {
    LockValue::new(u128::from(attempt), Some(RequestKey { request: 7, attempt, try_number: 1 }), None)
}

fn acquire(attempt: u32) -> Op {
    Op::Acquire {
        key: "lock:a".into(),
        value: value(attempt),
        ttl: Ttl::from_millis(1_000, Ttl::LONGEST).unwrap(),
        bucket: None,
    }
}

fn call(server: &mut Server, now: NodeTime, op: Op) -> Reply {
    server.call(now, &Talk::new(scripts()), &[&op], Course::Turns).unwrap().replies.remove(0)
}

#[test]
fn it_tells_what_was_changed() {
    let mut server = Server::new("one");
    let (key, end) = ("lock:a".to_owned(), START.as_millis() + 1_000);
    let [first, second] = [1, 2].map(|attempt| value(attempt).as_str().as_bytes().to_vec());
    call(&mut server, START, acquire(1));
    let set = Change::Set { key: key.clone(), value: first.clone(), ends_at_ms: Some(end), over: None };
    assert_eq!(server.take_changes(), [set]);
    call(&mut server, START, acquire(2));
    let over = Change::Set { key: key.clone(), value: second.clone(), ends_at_ms: Some(end), over: Some(first) };
    assert_eq!(server.take_changes(), [over]);
    call(&mut server, START, acquire(1));
    assert_eq!(server.take_changes(), []);
    let ttl = Ttl::from_millis(2_000, Ttl::LONGEST).unwrap();
    call(&mut server, START, Op::Renew { key: "lock:a".into(), value: value(2), ttl });
    let renewed = Change::Expiry { key: key.clone(), value: second.clone(), ends_at_ms: Some(end + 1_000) };
    assert_eq!(server.take_changes(), [renewed]);
    call(&mut server, START, Op::Release { key: "lock:a".into(), value: value(2), wake: None });
    assert_eq!(server.take_changes(), [Change::Deleted { key, value: second }]);
}

#[test]
fn a_restart_forgets_the_scripts_and_the_keys_that_were_not_kept() {
    let mut server = Server::new("one");
    server.put("lock:a", b"x", None);
    server.put("lock:b", b"x", None);
    let ping = format!("*3\r\n$7\r\nEVALSHA\r\n$40\r\n{}\r\n$1\r\n0\r\n", scripts().free.hash);
    let knows_script = |server: &mut Server| !format!("{:?}", server.answer(START, ping.as_bytes())).contains("NOSCRIPT");
    assert!(!knows_script(&mut server));
    call(&mut server, START, Op::Release { key: "lock:c".into(), value: value(1), wake: None });
    assert!(knows_script(&mut server));
    server.restart("two", |key| key == "lock:b");
    assert_eq!(&*server.probe().run_id, "two");
    assert_eq!(server.keys(START), [("lock:b".to_owned(), Some(b"x".to_vec()), None)]);
    assert!(!knows_script(&mut server));
}

#[test]
fn a_snapshot_brings_back_what_was_there() {
    let mut server = Server::new("one");
    server.put("lock:a", b"x", Some(START.as_millis() + 1_000));
    let snapshot = server.snapshot();
    server.delete("lock:a");
    server.put("lock:b", b"y", None);
    server.restore(snapshot);
    assert_eq!(server.keys(START), [("lock:a".to_owned(), Some(b"x".to_vec()), Some(START.as_millis() + 1_000))]);
    let later = START.plus_millis(1_001);
    assert_eq!(server.keys(later), []);
    assert_eq!(call(&mut server, later, Op::Inspect { key: "lock:a".into() }), Reply::Absent);
    assert_eq!(server.keys(START), [], "what a call found over does not come back with the clock");
}
