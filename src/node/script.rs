//! Where Lua meets Rust: how operations become the arguments of the batch script, and its reply becomes replies.

use std::sync::Arc;

use crate::engine::lease::Ttl;
use crate::engine::reply::{Reply, Stored, Why, WhyKind};

use super::{NodeTime, Op, Replies};

/// The batch script with all operations.
pub fn text() -> &'static str {
    #[cfg(feature = "mutants")]
    return crate::mutants::in_lua(TEXT);
    #[cfg(not(feature = "mutants"))]
    TEXT
}

const TEXT: &str = concat!(
    include_str!("../../lua/batch.lua"),
    include_str!("../../lua/acquire.lua"),
    include_str!("../../lua/release.lua"),
    include_str!("../../lua/renew.lua"),
    include_str!("../../lua/repair.lua"),
    include_str!("../../lua/inspect.lua"),
    include_str!("../../lua/fence.lua"),
    include_str!("../../lua/batch_end.lua"),
);

/// The most operations in one call.
pub const MAX_BATCH: usize = 512;

/// An argument of the script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg<'a> {
    /// Text.
    Text(&'a str),
    /// A number.
    Number(u64),
}

/// The arguments of a batch: for each run of operations of one kind its letter, how many they are, and the arguments of each.
pub fn encode(batch: &[Op]) -> Vec<Arg<'_>> {
    let mut args = Vec::with_capacity(4 + 2 * batch.len());
    for run in batch.chunk_by(|a, b| letter(a) == letter(b)) {
        args.extend([Arg::Text(letter(&run[0])), Arg::Number(run.len() as u64)]);
        run.iter().for_each(|op| encode_one(op, &mut args));
    }
    args
}

fn letter(op: &Op) -> &'static str {
    match op {
        Op::Acquire { .. } => "A",
        Op::Release { .. } => "R",
        Op::Renew { .. } => "N",
        Op::Repair { .. } => "H",
        Op::Check { .. } | Op::Inspect { .. } => "I",
        Op::Tokens { .. } => "T",
    }
}

fn encode_one<'a>(op: &'a Op, args: &mut Vec<Arg<'a>>) {
    use Arg::{Number, Text};
    match op {
        Op::Acquire { value, ttl, .. } | Op::Renew { value, ttl, .. } => {
            args.extend([Text(value.as_str()), Number(ttl.as_millis())]);
        }
        Op::Repair { value, ends_at, .. } => args.extend([Text(value.as_str()), Number(ends_at.as_millis())]),
        Op::Release { value, .. } => args.push(Text(value.as_str())),
        Op::Tokens { count, .. } => args.push(Number(*count as u64)),
        Op::Check { .. } | Op::Inspect { .. } => {}
    }
}

/// A value in the script's reply, free of any client library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// An integer.
    Integer(i64),
    /// A string of any bytes.
    Bytes(Arc<[u8]>),
    /// Nothing.
    Nil,
    /// A list.
    List(Vec<Raw>),
}

/// Reads the script's reply to `batch`. `Err` if it has not the form that the script gives it.
pub fn decode(batch: &[Op], reply: Vec<Raw>) -> Result<Replies, Arc<str>> {
    let mut entries = reply.into_iter();
    let (Some(seconds), Some(micros)) = (entries.next().and_then(number), entries.next().and_then(number)) else {
        return Err("the batch script's reply does not begin with a time".into());
    };
    if entries.len() != batch.len() {
        return Err(format!("{} replies to {} operations", entries.len(), batch.len()).into());
    }
    let time = NodeTime { micros: seconds.saturating_mul(1_000_000).saturating_add(micros) };
    Ok(Replies { time, replies: batch.iter().zip(entries).map(|(op, raw)| entry(op, raw)).collect() })
}

fn number(raw: Raw) -> Option<u64> {
    match raw {
        Raw::Integer(number) => number.try_into().ok(),
        Raw::Bytes(digits) => std::str::from_utf8(&digits).ok()?.parse().ok(),
        _ => None,
    }
}

fn entry(op: &Op, raw: Raw) -> Reply {
    match (op, raw) {
        (Op::Tokens { .. }, Raw::Integer(last)) => match last.try_into() {
            Ok(last) => Reply::Tokens { last },
            Err(_) => server_error(format!("the counter stands at {last}")),
        },
        (_, Raw::Integer(1)) => Reply::Yes,
        (_, Raw::Integer(0)) => Reply::Absent,
        // Redis 6.2 ends some of its errors with a line end.
        (_, Raw::Bytes(error)) => server_error(String::from_utf8_lossy(&error).trim_end().to_owned()),
        (op, Raw::List(list)) => match list.as_slice() {
            [Raw::Integer(left)] => Reply::Held { left_ms: time_left(*left).unwrap_or(Ttl::LONGEST.as_millis()) },
            [value @ (Raw::Bytes(_) | Raw::Nil), Raw::Integer(left)] => found(op, value, time_left(*left)),
            _ => server_error("a list of an unknown form".to_owned()),
        },
        (_, raw) => server_error(format!("an unknown reply: {raw:?}")),
    }
}

fn found(op: &Op, value: &Raw, left_ms: Option<u64>) -> Reply {
    let value = match value {
        Raw::Bytes(value) => Some(value.clone()),
        _ => None,
    };
    match op {
        Op::Check { value: ours, .. } if value.as_deref() == Some(ours.as_str().as_bytes()) => {
            // A key of ours that somebody made persistent has the longest time there is.
            Reply::Held { left_ms: left_ms.unwrap_or(Ttl::LONGEST.as_millis()) }
        }
        _ => Reply::Other(Stored { value, left_ms }),
    }
}

fn time_left(pttl: i64) -> Option<u64> {
    pttl.try_into().ok()
}

fn server_error(what: String) -> Reply {
    Reply::Unknown(Why { kind: WhyKind::ServerError(what.into()), may_have_landed: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspect() -> Op {
        Op::Inspect { key: "lock:x".into() }
    }

    fn reply(entries: Vec<Raw>) -> Vec<Raw> {
        let time = [Raw::Bytes(b"1700000000".as_slice().into()), Raw::Bytes(b"42".as_slice().into())];
        time.into_iter().chain(entries).collect()
    }

    #[test]
    fn every_operation_answers_for_itself() {
        let batch = [inspect(), inspect(), inspect(), Op::Tokens { key: "c".into(), count: 1 }];
        let error = Raw::Bytes(b"-OOM command not allowed\r\n".as_slice().into());
        let raw = vec![Raw::Integer(0), error, Raw::List(vec![Raw::Nil, Raw::Integer(-1)]), Raw::Integer(1)];
        let decoded = decode(&batch, reply(raw)).unwrap();
        assert_eq!(decoded.time, NodeTime { micros: 1_700_000_000_000_042 });
        assert_eq!(decoded.replies[0], Reply::Absent);
        let Reply::Unknown(why) = &decoded.replies[1] else { panic!("an error is no refusal") };
        assert_eq!(why.kind, WhyKind::ServerError("-OOM command not allowed".into()));
        assert!(why.may_have_landed);
        assert_eq!(decoded.replies[2], Reply::Other(Stored { value: None, left_ms: None }));
        assert_eq!(decoded.replies[3], Reply::Tokens { last: 1 });
    }

    #[test]
    fn replies_that_do_not_fit_the_batch_are_an_error() {
        assert!(decode(&[inspect()], reply(vec![])).is_err());
        assert!(decode(&[], vec![]).is_err());
    }
}
