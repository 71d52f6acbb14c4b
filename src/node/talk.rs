//! One call: how a batch of operations becomes commands, and their answers become replies. No sockets here, and no clock.
//!
//! Nearly all that a lock node is asked for are plain acquires and releases, and a script costs a server several times what a command
//! costs that it has itself. So a batch is sent in one go as up to three parts, in the order of its operations:
//!
//! 1. the releases at its head: one call of `free.lua`;
//! 2. the plain acquires that follow: a `SET key value NX PX ttl` each;
//! 3. the rest: one call of `batch.lua`;
//!
//! and behind the SETs what every vote needs, the marker and the node's `TIME` (protocol section 6), and how many connections want
//! to know of it. Most calls end there. A second turn asks the batch script for what the first could not do: a SET that was refused
//! may be a retry that replaces an earlier attempt, or has to say who holds the lock; somebody may have begun to watch since the last
//! call; a script may be unknown to the server.
//!
//! All of a batch waits for its second turn. So acquires are left to the script, which does all in one, where there is no time for
//! more ([`Course`]) and after a call in which one was refused: there will be more of these. And while somebody watches, for the
//! script tells of grants in the order in which things happen.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustc_hash::FxHashSet;

use crate::engine::reply::Reply;

use super::resp::{self, Answer};
use super::script::{self, Arg, Asked, MARKER_KEY, Raw, Script, Scripts, server_error};
use super::{Channel, Course, NodeTime, Op, Replies, WAITERS, WATCHERS, WireError};

/// What commands go over.
pub trait Wire: Sync {
    /// Sends so many commands at once, and awaits an answer to each.
    fn exchange(
        &self,
        commands: usize,
        write: impl FnOnce(&mut Vec<u8>) + Send,
    ) -> impl Future<Output = Result<Vec<Answer>, WireError>> + Send;
}

/// What is known at our end of a connection.
#[derive(Debug)]
pub struct Talk {
    scripts: Arc<Scripts>,
    /// Of the process at the other end, once it was probed.
    run_id: OnceLock<Arc<str>>,
    /// Whether somebody wanted to know of all locks when that was last asked.
    watched: AtomicBool,
    /// Of releases.
    awaited: AtomicBool,
    /// Whether an acquire was refused in the last call that had any.
    refused: AtomicBool,
    /// Whether the server is known to know the script that frees keys. It is sent as text until then: what stands behind the
    /// releases must not find the keys held because their script was not known.
    knows_free: AtomicBool,
}

impl Talk {
    /// At the beginning of a connection.
    pub fn new(scripts: Arc<Scripts>) -> Self {
        let [watched, awaited, refused, knows_free] = std::array::from_fn(|_| AtomicBool::new(false));
        Self { scripts, run_id: OnceLock::new(), watched, awaited, refused, knows_free }
    }

    /// A connection has one process at its other end: what it was at first it stays.
    pub fn meet(&self, run_id: Arc<str>) -> Arc<str> {
        self.run_id.get_or_init(|| run_id).clone()
    }

    /// Carries out a batch. `Err` if nothing is known of any of its operations.
    pub async fn call(&self, wire: &impl Wire, batch: &[&Op], course: Course) -> Result<Replies, WireError> {
        let replies = std::iter::repeat_with(|| None).take(batch.len()).collect();
        let turn = self.first_turn(batch, course);
        let mut call = Call { talk: self, batch, replies, look: None, earlier: Vec::new(), turn };
        while let commands @ 1.. = call.turn.commands() {
            let answers = wire.exchange(commands, |out| call.write(out)).await?;
            call.take(answers)?;
        }
        call.end()
    }

    fn first_turn(&self, batch: &[&Op], course: Course) -> Turn {
        let releases = batch.iter().take_while(|op| op.is_release()).count();
        let told = batch[..releases].iter().find_map(|op| script::sender(op));
        // One proxy has one name.
        let releases = batch[..releases].iter().take_while(|op| script::sender(op).is_none_or(|who| Some(who) == told)).count();
        let watched = self.watched.load(Ordering::Relaxed);
        let quiet = course == Course::Turns && !watched && !self.refused.load(Ordering::Relaxed);
        // A change of the marker has to be judged by the marker before it.
        let marked = batch.iter().any(|op| matches!(op, Op::Marker { .. }));
        let rest: FxHashSet<&str> = batch[releases..].iter().filter(|op| !is_plain_set(op)).map(|op| &**op.key()).collect();
        // One that is refused is asked for again behind all that stands in the batch: nothing of that may be about its key.
        let alone = |op: &&&Op| quiet && !marked && is_plain_set(op) && !rest.contains(&**op.key());
        let sets = releases..releases + batch[releases..].iter().take_while(alone).count();
        // Those that nobody waits for come first.
        let (silent, told) = (0..releases).partition::<Vec<_>, _>(|at| script::sender(batch[*at]).is_none());
        let by = if self.knows_free.load(Ordering::Relaxed) { By::Hash } else { By::Text };
        let free = if releases > 0 { vec![([silent, told].concat(), by)] } else { Vec::new() };
        let rest: Vec<Step> = (sets.end..batch.len()).map(Step::Run).collect();
        let look = !batch.is_empty() && !marked && (watched || !sets.is_empty() || rest.is_empty());
        Turn { free, script: (!rest.is_empty() || !look).then_some((rest, By::Hash)), sets, look }
    }
}

/// Whether a node has a command for it.
pub(super) fn is_plain_set(op: &Op) -> bool {
    matches!(op, Op::Acquire { bucket: None, .. })
}

/// How a script is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Hash,
    Text,
}

/// What the batch script is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To carry out this operation of the batch.
    Run(usize),
    /// To tell of this grant.
    Tell(usize),
}

/// What is sent at once, by the operations' places in the batch.
#[derive(Debug, Default)]
struct Turn {
    free: Vec<(Vec<usize>, By)>,
    sets: Range<usize>,
    script: Option<(Vec<Step>, By)>,
    /// The marker, the time, who listens.
    look: bool,
}

/// Commands of a look.
const LOOK: usize = 3;

impl Turn {
    fn commands(&self) -> usize {
        let look = if self.look { LOOK } else { 0 };
        self.free.len() + self.sets.len() + usize::from(self.script.is_some()) + look
    }
}

/// A call under way.
struct Call<'a> {
    talk: &'a Talk,
    batch: &'a [&'a Op],
    replies: Vec<Option<Reply>>,
    /// The marker, and when it was last seen.
    look: Option<(Arc<str>, NodeTime)>,
    /// The times before that.
    earlier: Vec<NodeTime>,
    turn: Turn,
}

impl<'a> Call<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        for (places, by) in &self.turn.free {
            let releases = self.ops(places);
            let args = script::encode_free(&releases, self.talk.awaited.load(Ordering::Relaxed));
            write_script(out, &self.talk.scripts.free, *by, releases.iter().map(|op| &**op.key()), &args);
        }
        write_sets(out, &self.batch[self.turn.sets.clone()]);
        if let Some((steps, by)) = &self.turn.script {
            let asked = self.asked(steps);
            let args = script::encode(self.talk.run_id.get().map_or("", |run_id| &**run_id), &asked);
            write_script(out, &self.talk.scripts.batch, *by, script::keys(&asked), &args);
        }
        if self.turn.look {
            resp::write_command(out, &["GET", MARKER_KEY]);
            resp::write_command(out, &["TIME"]);
            resp::write_command(out, &["PUBSUB", "NUMSUB", WATCHERS, WAITERS]);
        }
    }

    fn ops(&self, places: &[usize]) -> Vec<&'a Op> {
        places.iter().map(|place| self.batch[*place]).collect()
    }

    fn asked(&self, steps: &[Step]) -> Vec<Asked<'a>> {
        let asked = |step: &Step| match step {
            Step::Run(place) => Asked::Run(self.batch[*place]),
            Step::Tell(place) => Asked::Tell(self.batch[*place]),
        };
        steps.iter().map(asked).collect()
    }

    /// Reads what came back, and what is to be asked next.
    fn take(&mut self, answers: Vec<Answer>) -> Result<(), WireError> {
        let turn = std::mem::take(&mut self.turn);
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err("no answer".into()));
        let mut again = Vec::new();
        for (places, by) in turn.free {
            again.extend(self.take_freed(places, by, next())?);
        }
        again.extend(turn.sets.clone().filter_map(|place| self.take_set(place, next())));
        if let Some((steps, by)) = turn.script {
            again.extend(self.take_script(steps, by, next())?);
        }
        if turn.look {
            self.take_look([next(), next(), next()])?;
            // They came since the last call, maybe before the SETs.
            if self.talk.watched.load(Ordering::Relaxed) {
                again.extend(turn.sets.filter(|place| self.replies[*place] == Some(Reply::Yes)).map(Step::Tell));
            }
        }
        if !again.is_empty() {
            let by = self.turn.script.take().map_or(By::Hash, |(_, by)| by);
            self.turn.script = Some((again, by));
        }
        Ok(())
    }

    /// What is left to the batch script.
    fn take_freed(&mut self, places: Vec<usize>, by: By, answer: Answer) -> Result<Vec<Step>, WireError> {
        match answer {
            Ok(raw) => {
                self.talk.knows_free.store(true, Ordering::Relaxed);
                let replies = script::decode_free(&self.ops(&places), raw).map_err(WireError::Server)?;
                places.into_iter().zip(replies).for_each(|(place, reply)| self.replies[place] = Some(reply));
                Ok(Vec::new())
            }
            Err(error) if is_unknown(&error, by) => {
                self.talk.knows_free.store(false, Ordering::Relaxed);
                self.turn.free.push((places, By::Text));
                Ok(Vec::new())
            }
            // Keys are looked at before a script runs: one that this user may not touch spoils no other.
            Err(error) if error.starts_with("NOPERM") && error.contains("key") => {
                match places[..] {
                    [place] => self.replies[place] = Some(server_error(error.to_string())),
                    _ => self.turn.free.extend(places.into_iter().map(|place| (vec![place], by))),
                }
                Ok(Vec::new())
            }
            Err(error) if error.starts_with("UNCHANGED ") => Ok(places.into_iter().map(Step::Run).collect()),
            Err(error) => Err(WireError::Server(resp::worded(&error))),
        }
    }

    /// What is left to the batch script, if it was refused.
    fn take_set(&mut self, place: usize, answer: Answer) -> Option<Step> {
        self.replies[place] = Some(match answer {
            Ok(Raw::Done) => Reply::Yes,
            Ok(Raw::Nil) => return Some(Step::Run(place)),
            Ok(other) => server_error(format!("an unknown reply to SET: {other:?}")),
            Err(error) => server_error(error.trim_end().to_owned()),
        });
        None
    }

    /// What has to be asked once more, with the script's text.
    fn take_script(&mut self, steps: Vec<Step>, by: By, answer: Answer) -> Result<Vec<Step>, WireError> {
        match answer {
            Ok(Raw::List(entries)) => {
                let Replies { time, marker, replies, .. } =
                    script::decode(&self.asked(&steps), entries).map_err(WireError::Server)?;
                for (step, reply) in steps.into_iter().zip(replies) {
                    if let Step::Run(place) = step {
                        self.replies[place] = Some(reply);
                    }
                }
                self.see(marker, time)?;
                Ok(Vec::new())
            }
            Err(error) if is_unknown(&error, by) => {
                self.turn.script = Some((Vec::new(), By::Text));
                // Without any operation it is asked for what comes with all of them.
                Ok(steps)
            }
            Err(error) => Err(WireError::Server(resp::worded(&error))),
            Ok(_) => Err(WireError::Server("the batch script's reply is no list".into())),
        }
    }

    fn take_look(&mut self, [marker, time, listeners]: [Answer; LOOK]) -> Result<(), WireError> {
        let marker = match marker {
            Ok(Raw::Bytes(marker)) => String::from_utf8_lossy(&marker).into(),
            Ok(_) => "".into(),
            // A key of another type is no marker.
            Err(error) if error.starts_with("WRONGTYPE") => "".into(),
            Err(error) => return Err(WireError::Server(resp::worded(&error))),
        };
        let time = match time {
            Ok(Raw::List(words)) => script::time(&mut words.into_iter()),
            Ok(_) => None,
            Err(error) => return Err(WireError::Server(resp::worded(&error))),
        };
        self.see(marker, time.ok_or_else(|| WireError::Server("the node's TIME is no time".into()))?)?;
        // As in `listeners.lua`: who may not ask has nobody to tell but those who wait, and asks for their channels.
        let (watched, awaited) = match &listeners {
            Ok(Raw::List(list)) => match list[..] {
                [_, Raw::Integer(watchers), _, Raw::Integer(waiters)] => (watchers > 0, waiters > 0),
                _ => (false, true),
            },
            _ => (false, true),
        };
        self.talk.watched.store(watched, Ordering::Relaxed);
        self.talk.awaited.store(awaited, Ordering::Relaxed);
        Ok(())
    }

    /// The marker has to be the same all the time: a vote that was cast under another one does not count.
    fn see(&mut self, marker: Arc<str>, time: NodeTime) -> Result<(), WireError> {
        if self.look.as_ref().is_some_and(|(seen, _)| *seen != marker) {
            return Err(WireError::Server("the node's marker changed during the call".into()));
        }
        self.earlier.extend(self.look.replace((marker, time)).map(|(_, earlier)| earlier));
        Ok(())
    }

    fn end(self) -> Result<Replies, WireError> {
        let replies = self.replies.into_iter().collect::<Option<Vec<Reply>>>();
        let mut acquires = self.batch.iter().zip(replies.iter().flatten()).filter(|(op, _)| is_plain_set(op)).peekable();
        if acquires.peek().is_some() {
            let refused = acquires.any(|(_, reply)| matches!(reply, Reply::Other(_)));
            self.talk.refused.store(refused, Ordering::Relaxed);
        }
        match (self.look, replies) {
            (Some((marker, time)), Some(replies)) => Ok(Replies { time, earlier: self.earlier, marker, replies }),
            _ => Err(WireError::Server("not all operations of a call were answered".into())),
        }
    }
}

/// Whether the server does not know the script.
fn is_unknown(error: &str, by: By) -> bool {
    by == By::Hash && error.starts_with("NOSCRIPT")
}

/// One for each vote: what is the same in many of them is put together once.
fn write_sets(out: &mut Vec<u8>, sets: &[&Op]) {
    let over_anything = mutant!("set-over-whatever-is-there");
    let (mut tail, mut tail_is_for) = (Vec::new(), None);
    for op in sets {
        let Op::Acquire { key, value, ttl, .. } = op else { continue };
        if tail_is_for != Some(*ttl) {
            (tail, tail_is_for) = (Vec::new(), Some(*ttl));
            tail.extend_from_slice(if over_anything { b"" } else { b"$2\r\nNX\r\n" });
            resp::write_word(&mut tail, b"PX");
            resp::write_number(&mut tail, ttl.as_millis());
        }
        out.extend_from_slice(if over_anything { b"*5\r\n$3\r\nSET\r\n" } else { b"*6\r\n$3\r\nSET\r\n" });
        resp::write_word(out, key.as_bytes());
        resp::write_word(out, value.as_str().as_bytes());
        out.extend_from_slice(&tail);
    }
}

fn write_script<'k>(out: &mut Vec<u8>, script: &Script, by: By, keys: impl Iterator<Item = &'k str> + Clone, args: &[Arg<'_>]) {
    let (command, name) = match by {
        By::Hash => ("EVALSHA", &*script.hash),
        By::Text => ("EVAL", script.text),
    };
    let count = keys.clone().count();
    resp::write_head(out, 3 + count + args.len());
    resp::write_word(out, command.as_bytes());
    resp::write_word(out, name.as_bytes());
    resp::write_number(out, count as u64);
    keys.for_each(|key| resp::write_word(out, key.as_bytes()));
    for arg in args {
        match arg {
            Arg::Text(text) => resp::write_word(out, text.as_bytes()),
            Arg::Number(number) => resp::write_number(out, *number),
            Arg::Channel(number) => resp::write_word(out, Channel::Wake(*number).to_string().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use futures::FutureExt as _;

    use super::*;
    use crate::engine::lease::{LockValue, Ttl};
    use crate::engine::membership::MarkerChange;
    use crate::engine::reply::{Stored, WhyKind};

    /// A server that says what it is told to: the answers of each turn, as they come over the wire.
    struct Told(Mutex<(VecDeque<&'static str>, Vec<String>)>);

    impl Wire for Told {
        async fn exchange(&self, commands: usize, write: impl FnOnce(&mut Vec<u8>) + Send) -> Result<Vec<Answer>, WireError> {
            let mut request = Vec::new();
            write(&mut request);
            let (turns, sent) = &mut *self.0.lock().unwrap();
            sent.push(words(&request));
            let (mut rest, mut answers) = (turns.pop_front().expect("another turn").as_bytes(), Vec::new());
            while let Some((answer, length)) = resp::read(rest).unwrap() {
                answers.push(answer);
                rest = &rest[length..];
            }
            assert_eq!(answers.len(), commands, "{sent:?}");
            Ok(answers)
        }
    }

    /// The first words of commands, and of a script the letters and numbers in its arguments.
    fn words(mut request: &[u8]) -> String {
        let mut shown = Vec::new();
        while let Some((Ok(Raw::List(words)), length)) = resp::read(request).unwrap() {
            let word =
                |word: &Raw| if let Raw::Bytes(bytes) = word { String::from_utf8_lossy(bytes).into_owned() } else { panic!() };
            let words: Vec<String> = words.iter().map(word).collect();
            let name = if words[0] == "EVAL" { "text" } else { words.get(1).map_or("", |name| name) };
            let letters = words.iter().skip(2).filter(|word| word.len() == 1 && word.as_bytes()[0].is_ascii_uppercase());
            shown.push(match &*words[0] {
                "EVAL" | "EVALSHA" => format!("{name}:{}", letters.cloned().collect::<String>()),
                command => command.to_owned(),
            });
            request = &request[length..];
        }
        shown.join(" ")
    }

    fn talk() -> Talk {
        let name = |text: &str| if text.contains("UNCHANGED") { "free" } else { "batch" }.to_owned();
        let talk = Talk::new(Arc::new(Scripts::hashed_by(name)));
        talk.knows_free.store(true, Ordering::Relaxed);
        talk
    }

    /// What became of a batch, and what was sent in each turn.
    fn call(talk: &Talk, batch: &[Op], turns: &[&'static str]) -> (Result<Replies, WireError>, Vec<String>) {
        call_in(Course::Turns, talk, batch, turns)
    }

    fn call_in(course: Course, talk: &Talk, batch: &[Op], turns: &[&'static str]) -> (Result<Replies, WireError>, Vec<String>) {
        let wire = Told(Mutex::new((turns.iter().copied().collect(), Vec::new())));
        let batch: Vec<&Op> = batch.iter().collect();
        let outcome = talk.call(&wire, &batch, course).now_or_never().expect("it does not wait");
        let (left, sent) = wire.0.into_inner().unwrap();
        assert!(left.is_empty(), "not asked for: {left:?}; sent: {sent:?}");
        (outcome, sent)
    }

    fn value(number: u128) -> LockValue {
        LockValue::new(number, None, None)
    }

    fn acquire(key: &str) -> Op {
        Op::Acquire { key: key.into(), value: value(1), ttl: Ttl::from_millis(1_000, Ttl::LONGEST).unwrap(), bucket: None }
    }

    fn release(key: &str) -> Op {
        Op::Release { key: key.into(), value: value(1), wake: None }
    }

    fn inspect(key: &str) -> Op {
        Op::Inspect { key: key.into() }
    }

    /// The marker `m`, the second 7, and nobody who listens.
    const LOOK: &str = "$1\r\nm\r\n*2\r\n$1\r\n7\r\n$1\r\n0\r\n*4\r\n$1\r\nw\r\n:0\r\n$1\r\nw\r\n:0\r\n";

    fn look(watchers: u8) -> String {
        LOOK.replacen(":0", &format!(":{watchers}"), 1)
    }

    /// What the batch script says, of another second.
    fn script(marker: &str, entries: &[&str]) -> String {
        let head = format!("*{}\r\n$1\r\n9\r\n$1\r\n0\r\n${}\r\n{marker}\r\n", 3 + entries.len(), marker.len());
        [&head, &*entries.concat()].concat()
    }

    fn turn(parts: &[&str]) -> &'static str {
        parts.concat().leak()
    }

    #[test]
    fn plain_acquires_and_releases_take_one_turn_and_no_batch_script() {
        let all = [release("a"), release("b"), acquire("c"), acquire("d")];
        let (replies, sent) = call(&talk(), &all, &[turn(&["*2\r\n:1\r\n:0\r\n", "+OK\r\n+OK\r\n", LOOK])]);
        assert_eq!(sent, ["free: SET SET GET TIME PUBSUB"]);
        let replies = replies.unwrap();
        assert_eq!(replies.replies, [Reply::Yes, Reply::Absent, Reply::Yes, Reply::Yes]);
        assert_eq!((&*replies.marker, replies.time.micros), ("m", 7_000_000));
        let (_, sent) = call(&talk(), &[acquire("a")], &[turn(&["+OK\r\n", LOOK])]);
        assert_eq!(sent, ["SET GET TIME PUBSUB"]);
        let (_, sent) = call(&talk(), &[release("a")], &[turn(&[":1\r\n", LOOK])]);
        assert_eq!(sent, ["free: GET TIME PUBSUB"]);
    }

    /// Its own release must not find it gone, and it come back after.
    #[test]
    fn a_set_with_more_to_do_about_its_key_goes_through_the_script() {
        let all = [acquire("a"), acquire("b"), release("b"), acquire("c")];
        let answers = ["+OK\r\n", &script("m", &[":1\r\n", ":1\r\n", ":1\r\n"]), LOOK];
        let (_, sent) = call(&talk(), &all, &[turn(&answers)]);
        assert_eq!(sent, ["SET batch:ARA GET TIME PUBSUB"]);
    }

    /// What stands behind another operation is not moved before it.
    #[test]
    fn all_else_goes_through_the_batch_script_in_its_place() {
        let all = [release("a"), acquire("b"), inspect("c"), acquire("d"), release("e")];
        let answers = [":1\r\n+OK\r\n", &script("m", &[":0\r\n", ":1\r\n", ":1\r\n"]), LOOK];
        let (replies, sent) = call(&talk(), &all, &[turn(&answers)]);
        assert_eq!(sent, ["free: SET batch:IAR GET TIME PUBSUB"]);
        assert_eq!(replies.unwrap().replies, [Reply::Yes, Reply::Yes, Reply::Absent, Reply::Yes, Reply::Yes]);
        let (_, sent) = call(&talk(), &[], &[turn(&[&script("m", &[])])]);
        assert_eq!(sent, ["batch:"]);
        // With a change of the marker there must be no look behind it.
        let change = MarkerChange { expected: "m".into(), new: "n".into(), lift: None };
        let marker = Op::Marker { key: MARKER_KEY.into(), change };
        let (_, sent) =
            call(&talk(), &[release("a"), acquire("b"), marker], &[turn(&[":1\r\n", &script("m", &[":1\r\n", ":1\r\n"])])]);
        assert_eq!(sent, ["free: batch:AM"]);
    }

    #[test]
    fn a_refused_set_is_left_to_the_script_whose_time_counts() {
        let all = [acquire("a"), acquire("b"), acquire("c")];
        let other = "*2\r\n$1\r\nv\r\n:5\r\n";
        let turns = [turn(&["+OK\r\n$-1\r\n-OOM no\r\n", LOOK]), turn(&[&script("m", &[other])])];
        let (replies, sent) = call(&talk(), &all, &turns);
        assert_eq!(sent, ["SET SET SET GET TIME PUBSUB", "batch:A"]);
        let Replies { time, earlier, replies, .. } = replies.unwrap();
        let times = [time, earlier[0]].map(|time| time.micros);
        assert_eq!((times, earlier.len()), ([9_000_000, 7_000_000], 1), "a clock that was set meanwhile is seen");
        assert_eq!(replies[0], Reply::Yes);
        assert_eq!(replies[1], Reply::Other(Stored { value: Some(b"v".as_slice().into()), left_ms: Some(5) }));
        let Reply::Unknown(why) = &replies[2] else { panic!("an error is no refusal: {:?}", replies[2]) };
        assert_eq!((&why.kind, why.may_have_landed), (&WhyKind::ServerError("OOM no".into()), true));
    }

    /// Most of a second turn would be for refusals, and the whole batch waits for it.
    #[test]
    fn after_a_refusal_and_where_there_is_no_time_acquires_go_through_the_script() {
        let talk = talk();
        let other = "*2\r\n$1\r\nv\r\n:5\r\n";
        let sent = |batch: &[Op], turns: &[&'static str]| call(&talk, batch, turns).1;
        sent(&[acquire("a")], &[turn(&["$-1\r\n", LOOK]), turn(&[&script("m", &[other])])]);
        assert_eq!(sent(&[acquire("a")], &[turn(&[&script("m", &[other])])]), ["batch:A"]);
        let turns = [turn(&[":1\r\n", LOOK])];
        assert_eq!(sent(&[release("b")], &turns), ["free: GET TIME PUBSUB"]);
        assert_eq!(sent(&[acquire("a")], &[turn(&[&script("m", &[":1\r\n"])])]), ["batch:A"]);
        assert_eq!(sent(&[acquire("a")], &[turn(&["+OK\r\n", LOOK])]), ["SET GET TIME PUBSUB"], "none was refused");
        let turns = [turn(&[":1\r\n", &script("m", &[":1\r\n"])])];
        let (_, sent) = call_in(Course::OneTurn, &talk, &[release("b"), acquire("a")], &turns);
        assert_eq!(sent, ["free: batch:A"]);
    }

    /// It was emptied between the two: the first votes would not be there any more.
    #[test]
    fn another_marker_in_the_second_turn_fails_the_whole_call() {
        let turns = [turn(&["+OK\r\n$-1\r\n", LOOK]), turn(&[&script("", &[":1\r\n"])])];
        let (replies, _) = call(&talk(), &[acquire("a"), acquire("b")], &turns);
        assert!(matches!(&replies, Err(WireError::Server(what)) if what.contains("marker")), "{replies:?}");
        let turns = [turn(&[":1\r\n", "+OK\r\n", &script("n", &[":0\r\n"]), LOOK])];
        let (replies, _) = call(&talk(), &[release("a"), acquire("b"), inspect("c")], &turns);
        assert!(matches!(replies, Err(WireError::Server(_))), "{replies:?}");
    }

    #[test]
    fn those_who_begin_to_watch_are_told_and_then_all_goes_through_the_script() {
        let talk = talk();
        let turns = [turn(&["+OK\r\n-ERR no\r\n", &look(1)]), turn(&[&script("m", &[":1\r\n"])])];
        let (replies, sent) = call(&talk, &[acquire("a"), acquire("b")], &turns);
        assert_eq!(sent, ["SET SET GET TIME PUBSUB", "batch:E"], "of the grant, not of what failed");
        assert_eq!(replies.unwrap().replies[0], Reply::Yes);
        let turns = [turn(&[":1\r\n", &script("m", &[":1\r\n"]), &look(0)])];
        let (_, sent) = call(&talk, &[release("a"), acquire("a")], &turns);
        assert_eq!(sent, ["free: batch:A GET TIME PUBSUB"]);
        let (_, sent) = call(&talk, &[acquire("a")], &[turn(&["+OK\r\n", &look(1)]), turn(&[&script("m", &[":1\r\n"])])]);
        assert_eq!(sent, ["SET GET TIME PUBSUB", "batch:E"], "nobody watched any more");
        let (_, sent) = call(&talk, &[], &[turn(&[&script("m", &[])])]);
        assert_eq!(sent, ["batch:"], "it shows that scripts are run");
    }

    #[test]
    fn scripts_are_named_by_their_hash_and_sent_where_that_is_not_known() {
        let all = [release("a"), acquire("b"), inspect("c")];
        let first = turn(&["-NOSCRIPT no\r\n", "$-1\r\n", "-NOSCRIPT no\r\n", LOOK]);
        let turns = [first, turn(&[":1\r\n", &script("m", &[":1\r\n", ":0\r\n"])])];
        let (replies, sent) = call(&talk(), &all, &turns);
        assert_eq!(sent, ["free: SET batch:I GET TIME PUBSUB", "text: text:AI"]);
        assert_eq!(replies.unwrap().replies, [Reply::Yes, Reply::Yes, Reply::Absent]);
        let talk = Talk::new(talk().scripts);
        let sent = |reply: &str| call(&talk, &[release("a")], &[turn(&[reply, LOOK])]).1;
        assert_eq!(sent("-ERR killed\r\n"), ["text: GET TIME PUBSUB"], "nothing shows yet that it is known");
        assert_eq!(sent(":1\r\n"), ["text: GET TIME PUBSUB"]);
        assert_eq!(sent(":1\r\n"), ["free: GET TIME PUBSUB"]);
        let turns = [turn(&["$-1\r\n", LOOK]), "-NOSCRIPT no\r\n", turn(&[&script("m", &[":1\r\n"])])];
        let (_, sent) = call(&talk, &[acquire("b")], &turns);
        assert_eq!(sent, ["SET GET TIME PUBSUB", "batch:A", "text:A"]);
        let (replies, sent) = call(&talk, &[], &["-NOSCRIPT no\r\n", turn(&[&script("m", &[])])]);
        assert!(replies.is_ok() && sent == ["batch:", "text:"], "{sent:?}");
        let (replies, _) = call(&talk, &[], &["-NOSCRIPT no\r\n", "-NOSCRIPT no\r\n"]);
        assert!(matches!(replies, Err(WireError::Server(_))), "{replies:?}");
    }

    #[test]
    fn releases_that_can_not_be_done_together_are_left_to_the_script_only_if_nothing_was_done() {
        let turns = [turn(&["-UNCHANGED NOPERM\r\n", LOOK]), turn(&[&script("m", &["$6\r\nNOPERM\r\n", ":1\r\n"])])];
        let (replies, sent) = call(&talk(), &[release("a"), release("b")], &turns);
        assert_eq!(sent, ["free: GET TIME PUBSUB", "batch:R"]);
        assert!(matches!(&replies.unwrap().replies[..], [Reply::Unknown(_), Reply::Yes]));
        let turns = [turn(&["-NOPERM key\r\n", "+OK\r\n", LOOK]), ":1\r\n-NOPERM key\r\n"];
        let (replies, sent) = call(&talk(), &[release("a"), release("b"), acquire("c")], &turns);
        assert_eq!(sent, ["free: SET GET TIME PUBSUB", "free: free:"]);
        assert!(matches!(&replies.unwrap().replies[..], [Reply::Yes, Reply::Unknown(_), Reply::Yes]));
        // Whoever may run no script at all keeps the releases for later.
        let forbidden = "-NOPERM User default has no permissions to run the 'evalsha' command\r\n";
        for (answer, what) in
            [(forbidden, "evalsha"), ("-ERR killed\r\n", "ERR killed"), (":7\r\n", "unknown"), ("-NOAUTH\r\n", "auth: ")]
        {
            let (replies, _) = call(&talk(), &[release("a")], &[turn(&[answer, LOOK])]);
            assert!(matches!(&replies, Err(WireError::Server(said)) if said.contains(what)), "{replies:?}");
        }
    }

    /// Without it no vote counts.
    #[test]
    fn a_look_that_fails_fails_the_call() {
        let [marker, time, listeners] = ["$1\r\nm\r\n", "*2\r\n$1\r\n7\r\n$1\r\n0\r\n", "*0\r\n"];
        let outcome = |parts: [&str; 3]| call(&talk(), &[acquire("a")], &[turn(&["+OK\r\n", &parts.concat()])]).0;
        assert!(outcome(["-BUSY\r\n", time, listeners]).is_err());
        assert!(outcome([marker, "-BUSY\r\n", listeners]).is_err());
        assert!(outcome([marker, ":1\r\n", listeners]).is_err());
        assert_eq!(&*outcome(["-WRONGTYPE\r\n", time, listeners]).unwrap().marker, "");
        assert_eq!(&*outcome(["$-1\r\n", time, "-NOPERM\r\n"]).unwrap().marker, "", "who may not ask has nobody to tell");
    }
}
