//! Where Lua meets Rust: how operations become the arguments of a script, and its reply becomes replies.

use std::sync::Arc;

use crate::engine::lease::Ttl;
use crate::engine::reply::{Reply, Stored, Why, WhyKind};

use super::{NodeTime, Op, Replies, channel_number};

/// A script as a server takes it.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its text, which also makes the server know it.
    pub text: &'static str,
    /// The hash of the text: short, and enough once the server knows it.
    pub hash: Arc<str>,
}

/// All that are sent to nodes.
#[derive(Clone, Debug)]
pub struct Scripts {
    /// Carries out operations of all kinds.
    pub batch: Script,
    /// Carries out releases.
    pub free: Script,
}

impl Scripts {
    /// With SHA-1.
    pub fn hashed_by(sha1: impl Fn(&str) -> String) -> Self {
        let texts = [BATCH, FREE];
        #[cfg(feature = "mutants")]
        let texts = crate::mutants::in_lua(texts);
        let [batch, free] = texts.map(|text| Script { text, hash: sha1(text).into() });
        Self { batch, free }
    }
}

const FREE: &str = concat!(
    include_str!("../../lua/listeners.lua"),
    include_str!("../../lua/free.lua"),
    include_str!("../../lua/events.lua"),
    include_str!("../../lua/free_end.lua"),
);

const BATCH: &str = concat!(
    include_str!("../../lua/listeners.lua"),
    include_str!("../../lua/batch.lua"),
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

/// What is asked of the batch script.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// To carry an operation out.
    Run(&'a Op),
    /// To tell those who watch of a grant that is made already.
    Tell(&'a Op),
}

impl<'a> Asked<'a> {
    fn op(self) -> &'a Op {
        match self {
            Self::Run(op) | Self::Tell(op) => op,
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Run(op) => letter(op),
            Self::Tell(_) => "E",
        }
    }
}

/// The keys of a call of the batch script.
pub fn keys<'a>(asked: &'a [Asked<'a>]) -> impl Iterator<Item = &'a str> + Clone {
    std::iter::once(MARKER_KEY).chain(asked.iter().map(|asked| &**asked.op().key()))
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
    /// The name of the channel for those who wait for a lock.
    Channel(u8),
}

/// The arguments of the batch script: the `run_id` that the connection was probed with, then for each run of operations of one kind
/// its letter, how many they are, and the arguments of each.
pub fn encode<'a>(run_id: &'a str, asked: &[Asked<'a>]) -> Vec<Arg<'a>> {
    let mut args = Vec::with_capacity(5 + 3 * asked.len());
    args.push(Arg::Text(run_id));
    for run in asked.chunk_by(|a, b| a.letter() == b.letter()) {
        args.extend([Arg::Text(run[0].letter()), Arg::Number(run.len() as u64)]);
        run.iter().for_each(|asked| encode_one(asked.op(), &mut args));
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

fn encode_one<'a>(op: &'a Op, args: &mut Vec<Arg<'a>>) {
    use Arg::{Number, Text};
    match op {
        Op::Release { value, wake, .. } => {
            args.push(Text(value.as_str()));
            args.extend(wake.as_ref().map(|wake| Text(&wake.sender)));
        }
        Op::Acquire { value, ttl, bucket: None, .. } | Op::Renew { value, ttl, .. } => {
            args.extend([Text(value.as_str()), Number(ttl.as_millis())]);
        }
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
    /// `OK`.
    Done,
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

/// A lock that may be free, as `events.lua` publishes it.
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

/// Reads the batch script's reply to what it was asked. `Err` if it has not the form that the script gives it.
pub fn decode(asked: &[Asked<'_>], reply: Vec<Raw>) -> Result<Replies, Arc<str>> {
    let mut entries = reply.into_iter();
    let Some(time) = time(&mut entries) else { return Err("the batch script's reply does not begin with a time".into()) };
    let Some(Raw::Bytes(marker)) = entries.next() else { return Err("the batch script's reply has no marker".into()) };
    if entries.len() != asked.len() {
        return Err(format!("{} replies to {} operations", entries.len(), asked.len()).into());
    }
    let replies = asked.iter().zip(entries).map(|(asked, raw)| entry(asked.op(), raw)).collect();
    Ok(Replies { time, earlier: Vec::new(), marker: String::from_utf8_lossy(&marker).into(), replies })
}

/// What `TIME` says.
pub fn time(words: &mut impl Iterator<Item = Raw>) -> Option<NodeTime> {
    let (seconds, micros) = (words.next().and_then(number)?, words.next().and_then(number)?);
    Some(NodeTime { micros: seconds.saturating_mul(1_000_000).saturating_add(micros) })
}

/// The arguments of the script that frees keys: first those that nobody waits for.
pub fn encode_free<'a>(releases: &[&'a Op], channels: bool) -> Vec<Arg<'a>> {
    let told = releases.iter().find_map(|op| sender(op));
    let silent = releases.iter().filter(|op| sender(op).is_none()).count();
    let mut args = Vec::with_capacity(2 + 2 * releases.len());
    args.extend([Arg::Text(told.unwrap_or_default()), Arg::Number(silent as u64)]);
    for op in releases {
        if let Op::Release { value, .. } = op {
            args.push(Arg::Text(value.as_str()));
        }
    }
    if channels {
        args.extend(releases[silent..].iter().map(|op| Arg::Channel(channel_number("", op.key()))));
    }
    args
}

/// Who tells of a release, if it is to be told.
pub fn sender(op: &Op) -> Option<&str> {
    match op {
        Op::Release { wake: Some(wake), .. } => Some(&wake.sender),
        _ => None,
    }
}

/// Reads the reply of the script that frees keys.
pub fn decode_free(releases: &[&Op], reply: Raw) -> Result<Vec<Reply>, Arc<str>> {
    let one = |(op, number): (&&Op, i64)| match (number, sender(op)) {
        (0, _) => Reply::Absent,
        (_, None) => Reply::Yes,
        // A refused one is -1.
        (number, Some(_)) => Reply::Released { heard: u32::try_from(number - 1).ok() },
    };
    let all = |numbers: Vec<i64>| Ok(releases.iter().zip(numbers).map(one).collect());
    match reply {
        Raw::Integer(1) => all(vec![1; releases.len()]),
        Raw::List(entries) if entries.len() == releases.len() => {
            let numbers = entries.into_iter().map(|entry| match entry {
                Raw::Integer(number) => Ok(number),
                other => Err(format!("a release of an unknown form: {other:?}").into()),
            });
            numbers.collect::<Result<_, Arc<str>>>().and_then(all)
        }
        other => Err(format!("an unknown reply to {} releases: {other:?}", releases.len()).into()),
    }
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

/// An error of one operation, which may have been carried out all the same.
pub fn server_error(what: String) -> Reply {
    Reply::Unknown(Why { kind: WhyKind::ServerError(what.into()), may_have_landed: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lease::LockValue;
    use crate::node::WakeUp;

    fn inspect() -> Op {
        Op::Inspect { key: "lock:x".into() }
    }

    fn reply(entries: Vec<Raw>) -> Vec<Raw> {
        let head = ["1700000000", "42", "a marker"].map(|text| Raw::Bytes(text.as_bytes().into()));
        head.into_iter().chain(entries).collect()
    }

    #[test]
    fn every_operation_answers_for_itself() {
        let tokens = Op::Tokens { key: "c".into(), count: 1, mark: "m".into() };
        let inspect = inspect();
        let batch = [&inspect, &inspect, &inspect, &tokens].map(Asked::Run);
        let numbers = Raw::List(vec![Raw::Integer(7), Raw::Integer(100), Raw::Bytes(b"run".as_slice().into())]);
        let error = Raw::Bytes(b"-OOM command not allowed\r\n".as_slice().into());
        let raw = vec![Raw::Integer(0), error, Raw::List(vec![Raw::Nil, Raw::Integer(-1)]), numbers];
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
    fn releases_are_answered_each_for_itself_and_told_of_if_they_are_leases() {
        let release = |wake: Option<&str>| Op::Release {
            key: "a".into(),
            value: LockValue::new(7, None, None),
            wake: wake.map(|sender| WakeUp { sender: sender.into() }),
        };
        let (silent, told) = (release(None), release(Some("me")));
        let releases = [&silent, &told];
        let args = encode_free(&releases, true);
        let value = LockValue::new(7, None, None);
        let value = || Arg::Text(value.as_str());
        let channel = Arg::Channel(channel_number("", "a"));
        assert_eq!(args, [Arg::Text("me"), Arg::Number(1), value(), value(), channel]);
        assert_eq!(encode_free(&[&silent], false), [Arg::Text(""), Arg::Number(1), value()]);
        let heard = |heard| Reply::Released { heard };
        let list = |of: [i64; 2]| Raw::List(of.map(Raw::Integer).to_vec());
        let decoded = |raw| decode_free(&releases, raw).unwrap();
        assert_eq!(decoded(Raw::Integer(1)), [Reply::Yes, heard(Some(0))]);
        assert_eq!(decoded(list([0, 3])), [Reply::Absent, heard(Some(2))]);
        assert_eq!(decoded(list([1, -1])), [Reply::Yes, heard(None)]);
        for bad in [Raw::Integer(0), Raw::Nil, Raw::List(vec![Raw::Integer(1)]), Raw::List(vec![Raw::Nil, Raw::Integer(1)])] {
            assert!(decode_free(&releases, bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_that_are_gone_or_no_text_are_left_out_of_a_scan() {
        let bytes = |bytes: &[u8]| Raw::Bytes(bytes.into());
        let lock = |key: &[u8], left| [bytes(key), bytes(b"v"), Raw::Integer(left)];
        let locks = [lock(b"lock:a", 5), lock(b"lock:gone", -2), lock(b"lock:\xff", 5), lock(b"lock:b", -1)].concat();
        let scan = Op::Scan { key: "lock:".into(), from: "0".into() };
        let decode_one = |raw| decode(&[Asked::Run(&scan)], reply(vec![raw])).unwrap().replies.remove(0);
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
        assert!(decode(&[Asked::Run(&inspect())], reply(vec![])).is_err());
        assert!(decode(&[], vec![]).is_err());
    }
}
