//! The keys of a server in memory, and the commands that are given to them.

use std::collections::{BTreeMap, BTreeSet};

use redlockd::node::NodeTime;
use redlockd::node::script::Raw;

use super::glob;

/// Of a hash.
pub type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text(Vec<u8>),
    Hash(Fields),
    /// Stands for every other type.
    List,
}

impl Content {
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(bytes) => Some(bytes.clone()),
            Self::Hash(_) | Self::List => None,
        }
    }
}

/// A key's content and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub content: Content,
    pub ends_at_ms: Option<u64>,
}

impl Entry {
    /// As in Redis, a key still lives in the millisecond of its end.
    pub fn lives_at(&self, now: NodeTime) -> bool {
        self.ends_at_ms.is_none_or(|end| now.as_millis() <= end)
    }
}

pub type Keys = BTreeMap<String, Entry>;

/// What a call did to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It holds `value` now; before, it held `over`, if it was there. (A list's value reads as empty.)
    Set { key: String, value: Vec<u8>, ends_at_ms: Option<u64>, over: Option<Vec<u8>> },
    /// It is gone.
    Deleted { key: String, value: Vec<u8> },
    /// It holds what it held, and ends at another time.
    Expiry { key: String, value: Vec<u8>, ends_at_ms: Option<u64> },
}

/// What a call published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub message: String,
    /// Who had subscribed.
    pub to: Vec<u64>,
}

/// A server's answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nil,
    Status(&'static str),
    Integer(i64),
    Bulk(Vec<u8>),
    Array(Vec<Vec<u8>>),
    /// Texts, or nothing, one for each key.
    Texts(Vec<Option<Vec<u8>>>),
    /// Names, and a number for each.
    Counts(Vec<(Vec<u8>, i64)>),
    /// A part of a scan, and where the next one begins.
    Scanned(usize, Vec<Vec<u8>>),
}

type Outcome = Result<Answer, String>;

/// A command: its name, the least and the most words, whether it writes, whether it may need memory, and what it does.
type Command = (&'static str, [usize; 2], bool, bool, fn(&mut Data, &[Vec<u8>]) -> Outcome);

const COMMANDS: [Command; 16] = [
    ("DEL", [2, usize::MAX], true, false, Data::del),
    ("EXISTS", [2, usize::MAX], false, false, Data::exists),
    ("GET", [2, 2], false, false, Data::get),
    ("HGET", [3, 3], false, false, Data::hget),
    ("HINCRBY", [4, 4], true, true, Data::hincrby),
    ("HSCAN", [3, 5], false, false, Data::hscan),
    ("HSET", [4, 4], true, true, Data::hset),
    ("INCRBY", [3, 3], true, true, Data::incrby),
    ("MGET", [2, usize::MAX], false, false, Data::mget),
    ("PEXPIRE", [3, 3], true, false, Data::pexpire),
    ("PTTL", [2, 2], false, false, Data::pttl),
    ("PUBLISH", [3, 3], false, false, Data::publish),
    ("PUBSUB", [3, usize::MAX], false, false, Data::pubsub),
    ("SCAN", [2, 6], false, false, Data::scan),
    ("SET", [3, usize::MAX], true, true, Data::set),
    ("TIME", [1, 1], false, false, Data::time),
];

/// All that a server holds, and what has to be known while a script runs.
pub struct Data {
    pub keys: Keys,
    pub changes: Vec<Change>,
    /// Who has subscribed to which channels.
    pub subscribers: BTreeMap<u64, BTreeSet<String>>,
    pub published: Vec<Published>,
    /// Whether `maxmemory` is reached.
    pub full: bool,
    /// Nobody may publish.
    pub mute: bool,
    /// Stands still while a script runs.
    now: NodeTime,
    /// Whether the script has written: from then on it is not stopped for want of memory.
    has_written: bool,
    /// Scripts end half way.
    pub breaks: bool,
    /// So many commands more can a script give, if it ends half way.
    left: Option<usize>,
}

impl Default for Data {
    fn default() -> Self {
        let now = NodeTime { micros: 0 };
        Self {
            keys: Keys::new(),
            changes: Vec::new(),
            subscribers: BTreeMap::new(),
            published: Vec::new(),
            full: false,
            mute: false,
            now,
            has_written: false,
            breaks: false,
            left: None,
        }
    }
}

impl Data {
    /// Before anything runs.
    pub fn begin(&mut self, now: NodeTime) {
        self.keys.retain(|_, entry| entry.lives_at(now));
        self.now = now;
    }

    /// Before a script runs, which gives so many commands if it ends half way.
    pub fn begin_script(&mut self, half: usize) {
        self.has_written = false;
        self.left = self.breaks.then_some(half);
    }

    /// Whether it ended half way.
    pub fn end_script(&mut self) -> bool {
        self.left.take().is_some()
    }

    /// Runs a command that no script gives.
    pub fn alone(&mut self, words: &[Vec<u8>]) -> Result<Raw, String> {
        self.has_written = false;
        self.command(words).map(raw)
    }

    /// Runs a command: its name and its arguments.
    pub fn command(&mut self, words: &[Vec<u8>]) -> Outcome {
        // Nothing that a killed script does after its end has an effect, whatever it catches.
        match &mut self.left {
            Some(0) => return Err("ERR killed".to_owned()),
            Some(left) => *left -= 1,
            None => {}
        }
        let known = COMMANDS.iter().find(|(name, ..)| words[0].eq_ignore_ascii_case(name.as_bytes()));
        let Some((_, [least, most], writes, needs_memory, run)) = known else {
            return Err("ERR Unknown Redis command called from script".to_owned());
        };
        if !(*least..=*most).contains(&words.len()) {
            return Err("ERR Wrong number of args calling Redis command from script".to_owned());
        }
        if self.full && *needs_memory && !self.has_written {
            return Err("OOM command not allowed when used memory > 'maxmemory'.".to_owned());
        }
        self.has_written |= *writes;
        run(self, &words[1..])
    }

    fn live(&mut self, key: &str) -> Option<&mut Entry> {
        let now = self.now;
        self.keys.get_mut(key).filter(|entry| entry.lives_at(now))
    }

    fn text(&mut self, key: &str) -> Result<Option<Vec<u8>>, String> {
        match self.live(key).map(|entry| &entry.content) {
            None => Ok(None),
            Some(Content::Text(bytes)) => Ok(Some(bytes.clone())),
            Some(Content::Hash(_) | Content::List) => {
                Err("WRONGTYPE Operation against a key holding the wrong kind of value".to_owned())
            }
        }
    }

    fn write(&mut self, key: String, value: Vec<u8>, ends_at_ms: Option<u64>) {
        let over = self.live(&key).map(|entry| entry.content.bytes().unwrap_or_default());
        let entry = Entry { content: Content::Text(value.clone()), ends_at_ms };
        if entry.lives_at(self.now) {
            self.keys.insert(key.clone(), entry);
            self.changes.push(Change::Set { key, value, ends_at_ms, over });
        } else {
            self.remove(&key);
        }
    }

    /// Whether it was there.
    fn remove(&mut self, key: &str) -> bool {
        let was_live = self.live(key).is_some();
        if let Some(entry) = self.keys.remove(key).filter(|_| was_live) {
            self.changes.push(Change::Deleted { key: key.to_owned(), value: entry.content.bytes().unwrap_or_default() });
        }
        was_live
    }

    fn time(&mut self, _: &[Vec<u8>]) -> Outcome {
        let (seconds, micros) = (self.now.micros / 1_000_000, self.now.micros % 1_000_000);
        Ok(Answer::Array([seconds, micros].map(|number| number.to_string().into_bytes()).to_vec()))
    }

    fn publish(&mut self, words: &[Vec<u8>]) -> Outcome {
        if self.mute {
            return Err("NOPERM this user has no permissions to run the 'publish' command".to_owned());
        }
        let channel = text(&words[0]);
        let hears = |(who, channels): (&u64, &BTreeSet<String>)| channels.contains(&channel).then_some(*who);
        let to: Vec<u64> = self.subscribers.iter().filter_map(hears).collect();
        let heard = count(to.len());
        self.published.push(Published { message: text(&words[1]), to });
        Ok(heard)
    }

    /// `NUMSUB` only.
    fn pubsub(&mut self, words: &[Vec<u8>]) -> Outcome {
        if !words[0].eq_ignore_ascii_case(b"NUMSUB") {
            return Err("ERR unknown subcommand".to_owned());
        }
        let hears = |channel: &str| self.subscribers.values().filter(|channels| channels.contains(channel)).count();
        let counts = words[1..].iter().map(|channel| (channel.clone(), i64::try_from(hears(&text(channel))).unwrap()));
        Ok(Answer::Counts(counts.collect()))
    }

    fn get(&mut self, words: &[Vec<u8>]) -> Outcome {
        Ok(self.text(&text(&words[0]))?.map_or(Answer::Nil, Answer::Bulk))
    }

    /// A key of another type reads as nothing.
    fn mget(&mut self, words: &[Vec<u8>]) -> Outcome {
        Ok(Answer::Texts(words.iter().map(|key| self.text(&text(key)).unwrap_or_default()).collect()))
    }

    fn set(&mut self, words: &[Vec<u8>]) -> Outcome {
        let (key, value) = (text(&words[0]), words[1].clone());
        let options = SetOptions::read(&words[2..], self.now)?;
        let exists = self.live(&key).is_some();
        if (options.only_new && exists) || (options.only_known && !exists) {
            return Ok(Answer::Nil);
        }
        let kept = self.live(&key).and_then(|entry| entry.ends_at_ms).filter(|_| options.keep_ttl);
        self.write(key, value, options.ends_at_ms.or(kept));
        Ok(Answer::Status("OK"))
    }

    fn del(&mut self, words: &[Vec<u8>]) -> Outcome {
        Ok(count(words.iter().filter(|key| self.remove(&text(key))).count()))
    }

    fn exists(&mut self, words: &[Vec<u8>]) -> Outcome {
        Ok(count(words.iter().filter(|key| self.live(&text(key)).is_some()).count()))
    }

    fn pttl(&mut self, words: &[Vec<u8>]) -> Outcome {
        let now_ms = self.now.as_millis();
        Ok(Answer::Integer(match self.live(&text(&words[0])).map(|entry| entry.ends_at_ms) {
            None => -2,
            Some(None) => -1,
            Some(Some(end)) => i64::try_from(end - now_ms).unwrap(),
        }))
    }

    fn pexpire(&mut self, words: &[Vec<u8>]) -> Outcome {
        let key = text(&words[0]);
        let end = i64::try_from(self.now.as_millis()).unwrap().checked_add(integer(&words[1])?);
        let end = end.ok_or("ERR invalid expire time in 'pexpire' command")?;
        let now = self.now;
        let Some(entry) = self.live(&key) else { return Ok(Answer::Integer(0)) };
        match u64::try_from(end).ok().filter(|end| *end > now.as_millis()) {
            None => {
                self.remove(&key);
            }
            Some(end) => {
                entry.ends_at_ms = Some(end);
                let value = entry.content.bytes().unwrap_or_default();
                self.changes.push(Change::Expiry { key, value, ends_at_ms: Some(end) });
            }
        }
        Ok(Answer::Integer(1))
    }

    /// The fields of a hash; of an empty one that `create` makes, if the key is not there.
    fn hash(&mut self, key: &str, create: bool) -> Result<Option<&mut Fields>, String> {
        if self.live(key).is_none() && create {
            self.keys.insert(key.to_owned(), Entry { content: Content::Hash(BTreeMap::new()), ends_at_ms: None });
        }
        match self.live(key).map(|entry| &mut entry.content) {
            None => Ok(None),
            Some(Content::Hash(fields)) => Ok(Some(fields)),
            Some(_) => Err("WRONGTYPE Operation against a key holding the wrong kind of value".to_owned()),
        }
    }

    fn hget(&mut self, words: &[Vec<u8>]) -> Outcome {
        let fields = self.hash(&text(&words[0]), false)?;
        Ok(fields.and_then(|fields| fields.get(&words[1]).cloned()).map_or(Answer::Nil, Answer::Bulk))
    }

    /// In order and in parts, none of which any script may rely on.
    fn hscan(&mut self, words: &[Vec<u8>]) -> Outcome {
        let from = usize::try_from(integer(&words[1])?).map_err(|_| "ERR invalid cursor")?;
        let count = words.get(3).map_or(Ok(10), |count| integer(count))?;
        let count = usize::try_from(count).map_err(|_| "ERR syntax error")?;
        let fields = self.hash(&text(&words[0]), false)?.cloned().unwrap_or_default();
        let next = if from + count < fields.len() { from + count } else { 0 };
        let part = fields.into_iter().skip(from).take(count).flat_map(|(field, value)| [field, value]).collect();
        Ok(Answer::Scanned(next, part))
    }

    /// In order of the keys' hashes, so that keys that stay are told whatever comes and goes meanwhile.
    fn scan(&mut self, words: &[Vec<u8>]) -> Outcome {
        let from = usize::try_from(integer(&words[0])?).map_err(|_| "ERR invalid cursor")?;
        let (pattern, count) = scan_options(&words[1..])?;
        let live = self.keys.iter().filter(|(_, entry)| entry.lives_at(self.now)).map(|(key, _)| key.as_bytes());
        let mut open: Vec<(usize, &[u8])> = live.map(|key| (bucket(key), key)).filter(|(bucket, _)| *bucket >= from).collect();
        open.sort_unstable();
        // Keys of one bucket are not told apart by the cursor.
        let next = open.get(count - 1).map_or(0, |(last, _)| last + 1);
        let next = if open.last().is_some_and(|(bucket, _)| *bucket >= next) { next } else { 0 };
        let part = open.iter().filter(|(bucket, _)| next == 0 || *bucket < next);
        Ok(Answer::Scanned(next, part.map(|(_, key)| key.to_vec()).filter(|key| glob::matches(&pattern, key)).collect()))
    }

    fn hset(&mut self, words: &[Vec<u8>]) -> Outcome {
        let fields = self.hash(&text(&words[0]), true)?.expect("it was created");
        let is_new = fields.insert(words[1].clone(), words[2].clone()).is_none();
        Ok(count(usize::from(is_new)))
    }

    fn hincrby(&mut self, words: &[Vec<u8>]) -> Outcome {
        let step = integer(&words[2])?;
        let fields = self.hash(&text(&words[0]), true)?.expect("it was created");
        let old =
            fields.get(&words[1]).map_or(Ok(0), |digits| integer(digits).map_err(|_| "ERR hash value is not an integer"))?;
        let new = old.checked_add(step).ok_or("ERR increment or decrement would overflow")?;
        fields.insert(words[1].clone(), new.to_string().into_bytes());
        Ok(Answer::Integer(new))
    }

    fn incrby(&mut self, words: &[Vec<u8>]) -> Outcome {
        let (key, step) = (text(&words[0]), integer(&words[1])?);
        let old = self.text(&key)?.map_or(Ok(0), |digits| integer(&digits))?;
        let new = old.checked_add(step).ok_or("ERR increment or decrement would overflow")?;
        let ends_at_ms = self.live(&key).and_then(|entry| entry.ends_at_ms);
        self.write(key, new.to_string().into_bytes(), ends_at_ms);
        Ok(Answer::Integer(new))
    }
}

/// As it goes over the wire.
fn raw(answer: Answer) -> Raw {
    let bytes = |bytes: Vec<u8>| Raw::Bytes(bytes.into());
    match answer {
        Answer::Nil => Raw::Nil,
        Answer::Status(_) => Raw::Done,
        Answer::Integer(number) => Raw::Integer(number),
        Answer::Bulk(text) => bytes(text),
        Answer::Array(entries) => Raw::List(entries.into_iter().map(bytes).collect()),
        Answer::Texts(texts) => Raw::List(texts.into_iter().map(|text| text.map_or(Raw::Nil, bytes)).collect()),
        Answer::Counts(counts) => {
            Raw::List(counts.into_iter().flat_map(|(name, number)| [bytes(name), Raw::Integer(number)]).collect())
        }
        Answer::Scanned(next, entries) => {
            let entries = entries.into_iter().map(bytes).collect();
            Raw::List(vec![bytes(next.to_string().into_bytes()), Raw::List(entries)])
        }
    }
}

/// Where a key stands in a scan.
fn bucket(key: &[u8]) -> usize {
    crc32fast::hash(key) as usize % 65_536
}

/// The pattern and the count of a scan.
fn scan_options(words: &[Vec<u8>]) -> Result<(Vec<u8>, usize), String> {
    let (mut pattern, mut count) = (b"*".to_vec(), 10);
    for option in words.chunks(2) {
        match option {
            [name, value] if name.eq_ignore_ascii_case(b"MATCH") => pattern.clone_from(value),
            [name, value] if name.eq_ignore_ascii_case(b"COUNT") => {
                count = usize::try_from(integer(value)?).ok().filter(|count| *count > 0).ok_or("ERR syntax error")?;
            }
            _ => return Err("ERR syntax error".to_owned()),
        }
    }
    Ok((pattern, count))
}

/// What follows key and value in a SET.
#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_known: bool,
    keep_ttl: bool,
    ends_at_ms: Option<u64>,
}

impl SetOptions {
    fn read(words: &[Vec<u8>], now: NodeTime) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match text(word).to_ascii_uppercase().as_str() {
                "NX" => options.only_new = true,
                "XX" => options.only_known = true,
                "KEEPTTL" => options.keep_ttl = true,
                "PX" => options.set_end(words.next(), now.as_millis())?,
                "PXAT" => options.set_end(words.next(), 0)?,
                _ => return Err("ERR syntax error".to_owned()),
            }
        }
        match options {
            Self { only_new: true, only_known: true, .. } | Self { keep_ttl: true, ends_at_ms: Some(_), .. } => {
                Err("ERR syntax error".to_owned())
            }
            options => Ok(options),
        }
    }

    /// The end, `word` milliseconds after `start_ms`.
    fn set_end(&mut self, word: Option<&Vec<u8>>, start_ms: u64) -> Result<(), String> {
        let ms = match word {
            Some(word) if self.ends_at_ms.is_none() => integer(word)?,
            _ => return Err("ERR syntax error".to_owned()),
        };
        let ms = u64::try_from(ms).ok().filter(|ms| *ms > 0);
        let end = ms.and_then(|ms| start_ms.checked_add(ms)).filter(|end| i64::try_from(*end).is_ok());
        self.ends_at_ms = Some(end.ok_or("ERR invalid expire time in 'set' command")?);
        Ok(())
    }
}

/// Keys and options are UTF-8 all the way from the test.
fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

/// As strict as Redis: no sign but a minus, no zeros in front, no blanks.
fn integer(word: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(word).ok().and_then(|digits| digits.parse::<i64>().ok());
    let number = number.filter(|number| number.to_string().as_bytes() == word);
    number.ok_or_else(|| "ERR value is not an integer or out of range".to_owned())
}

fn count(number: usize) -> Answer {
    Answer::Integer(i64::try_from(number).unwrap())
}
