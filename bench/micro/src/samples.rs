//! What goes to a node in one call, and what comes back.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use redlockd::engine::lease::{LockValue, Ttl};
use redlockd::node::resp::{self, Answer};
use redlockd::node::script::Scripts;
use redlockd::node::talk::{Talk, Wire};
use redlockd::node::{Course, Key, Op, Replies, WakeUp, WireError};

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

/// What a node sends back to [`batch`] where every operation does what it should.
fn reply(of_each: usize) -> Vec<u8> {
    let marker = "redlockd/1 run_id=0123456789abcdef0123456789abcdef01234567 max_ttl_ms=300000 counter=designated listed_ms=0 \
                  nodes=10.0.0.1:6379,10.0.0.2:6379,10.0.0.3:6379,10.0.0.4:6379,10.0.0.5:6379";
    let released = ":1\r\n".to_owned();
    let look = format!("${}\r\n{marker}\r\n*2\r\n$10\r\n1700000000\r\n$6\r\n123456\r\n", marker.len());
    let listeners = "*4\r\n$17\r\nredlockd:watchers\r\n:0\r\n$16\r\nredlockd:waiters\r\n:0\r\n";
    [&released, &*"+OK\r\n".repeat(of_each), &look, listeners].concat().into_bytes()
}

/// A connection on which every call is answered alike.
pub struct Exchange {
    talk: Talk,
    reply: Vec<u8>,
    outgoing: Mutex<Vec<u8>>,
}

impl Exchange {
    /// Answers [`batch`] of so many.
    pub fn of(of_each: usize) -> Self {
        let talk = Talk::new(Arc::new(Scripts::hashed_by(|_| "0123456789abcdef0123456789abcdef01234567".to_owned())));
        Self { talk, reply: reply(of_each), outgoing: Mutex::default() }
    }

    /// A batch into bytes, and the reply's bytes into replies.
    pub fn call(&self, batch: &[&Op]) -> Result<Replies, WireError> {
        self.talk.call(self, batch, Course::Turns).now_or_never().unwrap_or_else(|| Err(WireError::Closed("it waits".into())))
    }
}

impl Wire for Exchange {
    async fn exchange(&self, commands: usize, write: impl FnOnce(&mut Vec<u8>) + Send) -> Result<Vec<Answer>, WireError> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.clear();
        write(&mut outgoing);
        let (mut answers, mut rest) = (Vec::with_capacity(commands), &*self.reply);
        while let Some((answer, length)) = resp::read(rest).map_err(WireError::Closed)? {
            answers.push(answer);
            rest = &rest[length..];
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redlockd::engine::reply::Reply;

    #[test]
    fn the_reply_answers_the_batch() {
        let batch = batch(3);
        let exchange = Exchange::of(3);
        // The first one sends the script's text.
        assert!(exchange.call(&batch.iter().collect::<Vec<_>>()).is_ok());
        let Replies { replies, .. } = exchange.call(&batch.iter().collect::<Vec<_>>()).expect("a good reply");
        let (released, set) = (Reply::Released { heard: Some(0) }, Reply::Yes);
        assert_eq!(replies, [[released.clone(), released.clone(), released], [set.clone(), set.clone(), set]].concat());
        let sent = String::from_utf8(exchange.outgoing.into_inner().expect("nobody panics with it")).expect("a text");
        assert_eq!((sent.matches("EVALSHA").count(), sent.matches("SET\r\n").count()), (1, 3), "{sent}");
    }
}
