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
    include_str!("../../lua/acquire_all.lua"),
    include_str!("../../lua/release_all.lua"),
    include_str!("../../lua/tokens.lua"),
    include_str!("../../lua/seldom.lua"),
    include_str!("../../lua/events.lua"),
    include_str!("../../lua/acquire.lua"),
    include_str!("../../lua/release.lua"),
    include_str!("../../lua/renew.lua"),
    include_str!("../../lua/repair.lua"),
    include_str!("../../lua/inspect.lua"),
    include_str!("../../lua/scan.lua"),
    include_str!("../../lua/marker.lua"),
    include_str!("../../lua/fence.lua"),
    include_str!("../../lua/ceiling.lua"),
    include_str!("../../lua/buckets.lua"),
    include_str!("../../lua/handover.lua"),
    include_str!("../../lua/adopt.lua"),
    include_str!("../../lua/batch_end.lua"),
);

/// Where a node keeps what it is: see `engine::membership`.
pub const MARKER_KEY: &str = "redlockd:member";

/// Where a node keeps the ceiling of the designated counter.
pub const CEILING_KEY: &str = "redlockd:fence:ceiling";

/// Where a node keeps its part of the quorum counter.
pub const COUNTERS_KEY: &str = "redlockd:fence:buckets";

/// The keys of a batch.
pub fn keys(batch: &[Op]) -> impl Iterator<Item = &str> {
    std::iter::once(MARKER_KEY).chain(batch.iter().map(|op| &**op.key()))
}

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

/// The arguments of a batch: the `run_id` that the connection was probed with, then for each run of operations of one kind its
/// letter, how many they are, what is common to them, and the arguments of each.
pub fn encode<'a>(run_id: &'a str, batch: &'a [Op]) -> Vec<Arg<'a>> {
    let mut args = Vec::with_capacity(5 + 2 * batch.len());
    args.push(Arg::Text(run_id));
    for run in batch.chunk_by(|a, b| letter(a) == letter(b) && common(a) == common(b)) {
        args.extend([Arg::Text(letter(&run[0])), Arg::Number(run.len() as u64)]);
        args.extend(common(&run[0]));
        run.iter().for_each(|op| encode_one(op, &mut args));
    }
    args
}

fn letter(op: &Op) -> &'static str {
    match op {
        Op::Acquire { bucket: None, .. } => "A",
        Op::Acquire { bucket: Some(_), .. } => "Q",
        Op::HandOver { bucket: None, .. } => "X",
        Op::HandOver { bucket: Some(_), .. } => "Y",
        Op::RaiseBucket { .. } => "B",
        Op::TellCounters { .. } => "G",
        Op::LiftCounters { .. } => "V",
        Op::Release { wake: None, .. } => "R",
        Op::Release { wake: Some(_), .. } => "W",
        Op::Renew { .. } => "N",
        Op::Adopt { .. } => "D",
        Op::Repair { .. } => "H",
        Op::Check { .. } | Op::Inspect { .. } => "I",
        Op::Scan { .. } => "K",
        Op::Tokens { .. } => "T",
        Op::Marker { .. } => "M",
        Op::StartCounter { .. } => "S",
        Op::AdvanceCounter { .. } => "U",
        Op::RaiseCeiling { .. } => "C",
        Op::LiftCeiling { .. } => "L",
    }
}

/// What all operations of a run have in common, and so is sent once.
fn common(op: &Op) -> Option<Arg<'_>> {
    match op {
        Op::Acquire { ttl, bucket: None, .. } => Some(Arg::Number(ttl.as_millis())),
        Op::Release { wake: Some(wake), .. } => Some(Arg::Text(&wake.sender)),
        _ => None,
    }
}

fn encode_one<'a>(op: &'a Op, args: &mut Vec<Arg<'a>>) {
    use Arg::{Number, Text};
    match op {
        Op::Acquire { value, bucket: None, .. } | Op::Release { value, .. } => args.push(Text(value.as_str())),
        Op::Renew { value, ttl, .. } => args.extend([Text(value.as_str()), Number(ttl.as_millis())]),
        Op::Acquire { value, ttl, bucket: Some(bucket), .. } => {
            args.extend([Text(value.as_str()), Number(ttl.as_millis()), Number(u64::from(*bucket))]);
        }
        Op::Adopt { old, new, ttl, .. } => {
            args.extend([Text(new.as_str()), Number(ttl.as_millis()), Text(old.as_str())]);
        }
        Op::HandOver { old, new, ttl, bucket, .. } => {
            args.extend([Text(new.as_str()), Number(ttl.as_millis())]);
            args.extend(bucket.map(|bucket| Number(u64::from(bucket))));
            args.push(Text(old.as_str()));
        }
        Op::RaiseBucket { value, bucket, token, .. } => {
            args.extend([Text(value.as_str()), Number(u64::from(*bucket)), Number(*token)]);
        }
        Op::TellCounters { from, .. } | Op::Scan { from, .. } => args.push(Text(from)),
        Op::LiftCounters { base, numbers, .. } => args.extend([Number(*base), Text(numbers)]),
        Op::Repair { value, ends_at, .. } => args.extend([Text(value.as_str()), Number(ends_at.as_millis())]),
        Op::Tokens { count, mark, .. } => args.extend([Number(*count as u64), Text(mark)]),
        Op::StartCounter { mark, start, ceiling, .. } => args.extend([Text(mark), Number(*start), Number(*ceiling)]),
        Op::AdvanceCounter { ceiling, .. } => args.push(Number(*ceiling)),
        Op::RaiseCeiling { ceiling, owner, seen, .. } => {
            args.extend([Number(*ceiling), Text(owner), Text(seen.as_deref().unwrap_or("-"))]);
        }
        Op::LiftCeiling { ceiling, .. } => args.push(Text(ceiling)),
        Op::Marker { change, .. } => args.extend([Text(&change.expected), Text(&change.new)]),
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

/// What became of a lock, as `events.lua` publishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told<'a> {
    /// What happened.
    pub what: TellTale,
    /// Which lease: a hash of its secret.
    pub lease: &'a str,
    /// Its time, in milliseconds; 0 for one that was released.
    pub ms: u64,
    /// The owner's label.
    pub owner: &'a str,
    /// Prefix and name.
    pub key: &'a str,
}

/// What a node tells of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TellTale {
    /// A value was set.
    Granted,
    /// It took the place of one that was released.
    HandedOver,
    /// It was deleted.
    Released,
}

impl<'a> Told<'a> {
    /// Reads a message. `None` if no redlockd wrote it.
    pub fn read(message: &'a str) -> Option<Self> {
        let mut lines = message.splitn(5, '\n');
        let what = match lines.next()? {
            "granted" => TellTale::Granted,
            "handed_over" => TellTale::HandedOver,
            "released" => TellTale::Released,
            _ => return None,
        };
        Some(Self { what, lease: lines.next()?, ms: lines.next()?.parse().ok()?, owner: lines.next()?, key: lines.next()? })
    }
}

/// A lock that may be free, as `release.lua` publishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed<'a> {
    /// Which proxy says so.
    pub sender: &'a str,
    /// Prefix and name.
    pub key: &'a str,
}

impl<'a> Freed<'a> {
    /// Reads a message. `None` if no redlockd wrote it.
    pub fn read(message: &'a str) -> Option<Self> {
        let (sender, key) = message.split_once(' ')?;
        Some(Self { sender, key })
    }
}

/// Reads the script's reply to `batch`. `Err` if it has not the form that the script gives it.
pub fn decode(batch: &[Op], reply: Vec<Raw>) -> Result<Replies, Arc<str>> {
    let mut entries = reply.into_iter();
    let (Some(seconds), Some(micros)) = (entries.next().and_then(number), entries.next().and_then(number)) else {
        return Err("the batch script's reply does not begin with a time".into());
    };
    let marker = match entries.next() {
        Some(Raw::Bytes(marker)) => String::from_utf8_lossy(&marker).into(),
        _ => return Err("the batch script's reply has no marker".into()),
    };
    if entries.len() != batch.len() {
        return Err(format!("{} replies to {} operations", entries.len(), batch.len()).into());
    }
    let time = NodeTime { micros: seconds.saturating_mul(1_000_000).saturating_add(micros) };
    Ok(Replies { time, marker, replies: batch.iter().zip(entries).map(|(op, raw)| entry(op, raw)).collect() })
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
        (Op::Tokens { .. }, Raw::List(list)) => counter(&list),
        (Op::Acquire { bucket: Some(_), .. }, Raw::List(list)) if matches!(list[..], [Raw::Integer(_)]) => match list[..] {
            [Raw::Integer(number)] if number > 0 => Reply::Counted { number: number.unsigned_abs() },
            _ => server_error(format!("an unknown number: {list:?}")),
        },
        (Op::HandOver { .. }, Raw::List(list)) if matches!(list[..], [Raw::Integer(_), ..]) => handed_over(&list),
        (Op::TellCounters { .. }, Raw::List(list)) => counters(&list),
        (Op::Release { .. }, Raw::List(list)) => match list[..] {
            // A refused one is -1.
            [Raw::Integer(heard)] => Reply::Released { heard: heard.try_into().ok() },
            _ => server_error(format!("a release of an unknown form: {list:?}")),
        },
        (Op::Release { wake: Some(_), .. }, Raw::Integer(1)) => Reply::Released { heard: Some(0) },
        (Op::Scan { .. }, Raw::List(list)) => scanned(&list),
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

/// What was released is gone, and the waiter's value there, or not.
fn handed_over(list: &[Raw]) -> Reply {
    let of = |released, number, no_vote| Reply::HandedOver { released, number, no_vote };
    match list {
        [Raw::Integer(found @ (1 | 2))] => of(*found == 1, None, None),
        [Raw::Integer(found @ (1 | 2)), Raw::Integer(number)] => of(*found == 1, (*number).try_into().ok(), None),
        [Raw::Integer(found @ (3 | 4)), Raw::Bytes(error)] => {
            let error = String::from_utf8_lossy(error).trim_end().to_owned();
            of(*found == 3, None, Some(WhyKind::ServerError(error.into())))
        }
        _ => server_error(format!("a hand-over of an unknown form: {list:?}")),
    }
}

/// A part of the quorum counter.
fn counters(list: &[Raw]) -> Reply {
    let pair = |text: &str| -> Option<(u16, u64)> {
        let (bucket, number) = text.split_once('=')?;
        Some((bucket.parse().ok()?, number.parse().ok()?))
    };
    let told = |base: i64, next: &[u8], numbers: &[u8]| -> Option<Reply> {
        let numbers = std::str::from_utf8(numbers).ok()?.split(',').filter(|text| !text.is_empty()).map(pair);
        let next = std::str::from_utf8(next).ok()?.into();
        Some(Reply::Counters { base: base.try_into().ok()?, next, numbers: numbers.collect::<Option<_>>()? })
    };
    match list {
        [Raw::Integer(base), Raw::Bytes(next), Raw::Bytes(numbers)] => told(*base, next, numbers),
        _ => None,
    }
    .unwrap_or_else(|| server_error("counters of an unknown form".to_owned()))
}

/// A part of the locks.
fn scanned(list: &[Raw]) -> Reply {
    let [Raw::Bytes(next), Raw::List(locks)] = list else {
        return server_error("a part of a scan of an unknown form".to_owned());
    };
    let lock = |entry: &[Raw]| match entry {
        // Another end than "none" is of a key that has just gone. No name has bytes that are no text.
        [Raw::Bytes(key), Raw::Bytes(value), Raw::Integer(left @ -1..)] => {
            let stored = Stored { value: Some(value.clone()), left_ms: time_left(*left) };
            Some((std::str::from_utf8(key).ok()?.into(), stored))
        }
        _ => None,
    };
    Reply::Scanned { next: String::from_utf8_lossy(next).into(), locks: locks.chunks(3).filter_map(lock).collect() }
}

/// What the designated counter says.
fn counter(list: &[Raw]) -> Reply {
    let text = |bytes: &Arc<[u8]>| Arc::from(String::from_utf8_lossy(bytes));
    match list {
        [Raw::Integer(last), Raw::Integer(ceiling), Raw::Bytes(run_id), rest @ ..] => {
            let (Ok(last), Ok(ceiling)) = ((*last).try_into(), (*ceiling).try_into()) else {
                return server_error(format!("the counter stands at {last}, its ceiling at {ceiling}"));
            };
            let run_id = text(run_id);
            if rest.is_empty() { Reply::Tokens { last, ceiling, run_id } } else { Reply::AtCeiling { ceiling, run_id } }
        }
        [Raw::Bytes(mark), Raw::Bytes(run_id)] => Reply::CounterLost { mark: text(mark), run_id: text(run_id) },
        _ => server_error("a list of an unknown form".to_owned()),
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
        let head = ["1700000000", "42", "a marker"].map(|text| Raw::Bytes(text.as_bytes().into()));
        head.into_iter().chain(entries).collect()
    }

    #[test]
    fn every_operation_answers_for_itself() {
        let batch = [inspect(), inspect(), inspect(), Op::Tokens { key: "c".into(), count: 1, mark: "m".into() }];
        let tokens = Raw::List(vec![Raw::Integer(7), Raw::Integer(100), Raw::Bytes(b"run".as_slice().into())]);
        let error = Raw::Bytes(b"-OOM command not allowed\r\n".as_slice().into());
        let raw = vec![Raw::Integer(0), error, Raw::List(vec![Raw::Nil, Raw::Integer(-1)]), tokens];
        let decoded = decode(&batch, reply(raw)).unwrap();
        assert_eq!(decoded.time, NodeTime { micros: 1_700_000_000_000_042 });
        assert_eq!(&*decoded.marker, "a marker");
        assert_eq!(decoded.replies[0], Reply::Absent);
        let Reply::Unknown(why) = &decoded.replies[1] else { panic!("an error is no refusal") };
        assert_eq!(why.kind, WhyKind::ServerError("-OOM command not allowed".into()));
        assert!(why.may_have_landed);
        assert_eq!(decoded.replies[2], Reply::Other(Stored { value: None, left_ms: None }));
        assert_eq!(decoded.replies[3], Reply::Tokens { last: 7, ceiling: 100, run_id: "run".into() });
    }

    #[test]
    fn keys_that_are_gone_or_no_text_are_left_out_of_a_scan() {
        let bytes = |bytes: &[u8]| Raw::Bytes(bytes.into());
        let lock = |key: &[u8], left| [bytes(key), bytes(b"v"), Raw::Integer(left)];
        let locks = [lock(b"lock:a", 5), lock(b"lock:gone", -2), lock(b"lock:\xff", 5), lock(b"lock:b", -1)].concat();
        let scan = Op::Scan { key: "lock:".into(), from: "0".into() };
        let decode_one = |raw| decode(std::slice::from_ref(&scan), reply(vec![raw])).unwrap().replies.remove(0);
        let stored = |left_ms| Stored { value: Some(b"v".as_slice().into()), left_ms };
        let expected = vec![("lock:a".into(), stored(Some(5))), ("lock:b".into(), stored(None))];
        let told = decode_one(Raw::List(vec![bytes(b"17"), Raw::List(locks)]));
        assert_eq!(told, Reply::Scanned { next: "17".into(), locks: expected });
        for bad in [bytes(b"-NOPERM"), Raw::List(vec![bytes(b"0")]), Raw::Integer(2)] {
            assert!(matches!(decode_one(bad), Reply::Unknown(_)));
        }
    }

    #[test]
    fn replies_that_do_not_fit_the_batch_are_an_error() {
        assert!(decode(&[inspect()], reply(vec![])).is_err());
        assert!(decode(&[], vec![]).is_err());
    }
}
