//! What goes to a node in one call, and what comes back.

use std::sync::Arc;

use redlockd::engine::lease::{LockValue, Ttl};
use redlockd::node::script::{self, Arg, Raw};
use redlockd::node::{Key, Op, Replies, WakeUp};

/// What a busy proxy sends in one call: so many SETs, and as many releases.
pub fn batch(of_each: usize) -> Vec<Op> {
    let key = |number: usize| -> Key { format!("lock:orders/{number}").into() };
    let value = |number: usize| LockValue::new(number as u128, None, None);
    let ttl = Ttl::from_millis(10_000, Ttl::LONGEST).expect("a TTL that may be configured");
    let wake = Some(WakeUp { sender: "proxy".into() });
    let releases = (0..of_each).map(|number| Op::Release { key: key(number), value: value(number), wake: wake.clone() });
    let sets = (of_each..2 * of_each).map(|number| Op::Acquire { key: key(number), value: value(number), ttl, bucket: None });
    releases.chain(sets).collect()
}

/// What the script answers to [`batch`] where every operation does what it should.
pub fn reply(of_each: usize) -> Vec<Raw> {
    let marker = "redlockd/1 run_id=0123456789abcdef0123456789abcdef01234567 max_ttl_ms=300000 counter=designated listed_ms=0 \
                  nodes=10.0.0.1:6379,10.0.0.2:6379,10.0.0.3:6379,10.0.0.4:6379,10.0.0.5:6379";
    let head = ["1700000000", "123456", marker].map(|text| Raw::Bytes(text.as_bytes().into()));
    let released = (0..of_each).map(|_| Raw::Integer(1));
    let set = (0..of_each).map(|_| Raw::Integer(1));
    head.into_iter().chain(released).chain(set).collect()
}

/// What is said of a batch.
pub fn encode(batch: &[Op]) -> (Vec<Arg<'_>>, usize) {
    (script::encode("0123456789abcdef0123456789abcdef01234567", batch), script::keys(batch).map(str::len).sum())
}

/// What is understood of a reply.
pub fn decode(batch: &[Op], reply: Vec<Raw>) -> Result<Replies, Arc<str>> {
    script::decode(batch, reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redlockd::engine::reply::Reply;

    #[test]
    fn the_reply_answers_the_batch() {
        let batch = batch(3);
        let (args, keys) = encode(&batch);
        assert!(args.len() > 2 * batch.len() && keys > 0);
        let Replies { replies, .. } = decode(&batch, reply(3)).expect("a good reply");
        let (released, set) = (Reply::Released { heard: Some(0) }, Reply::Yes);
        assert_eq!(replies, [[released.clone(), released.clone(), released], [set.clone(), set.clone(), set]].concat());
    }
}
