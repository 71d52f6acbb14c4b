//! A Redis server in memory that runs the scripts that ship: what the tests of redlockd simulate a node with.
//!
//! A state machine and nothing else: no clock, no chance, no tasks. Whoever calls it says what its wall clock shows. That it
//! behaves as real servers do is tested in `tests/contract`.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

mod data;
mod glob;
mod lua;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use redlockd::node::resp::{self, Answer};
use redlockd::node::script::{Raw, Scripts};
use redlockd::node::talk::{Talk, Wire};
use redlockd::node::{Channel, Course, NodeTime, Op, Probe, Replies, Settings, WireError};

pub use data::{Change, Published};
use data::{Content, Data, Entry, Keys};

/// A server. Costs nothing to make: the Lua interpreter belongs to the thread.
pub struct Server {
    run_id: String,
    durable: bool,
    /// The hashes of the scripts that it was sent.
    scripts: BTreeSet<String>,
    data: Data,
}

/// The scripts that ship, hashed once for all nodes of a thread.
pub fn scripts() -> Arc<Scripts> {
    lua::scripts()
}

/// What a server held at some time.
#[derive(Clone)]
pub struct Snapshot(Keys);

impl Server {
    pub fn new(run_id: &str) -> Self {
        Self { run_id: run_id.to_owned(), durable: false, scripts: BTreeSet::new(), data: Data::default() }
    }

    /// A fit one, up for no time at all: it has no clock of its own.
    pub fn probe(&self) -> Probe {
        Probe {
            run_id: self.run_id.as_str().into(),
            version: "memory".into(),
            uptime: Duration::ZERO,
            role: "master".into(),
            cluster: false,
            loading: false,
            settings: if self.durable { Settings::durable() } else { Settings::default() },
        }
    }

    /// Runs commands, as they come over a wire, while its wall clock shows `now`.
    ///
    /// Keys that are over are gone for good by then, also if the clock is put back later.
    pub fn answer(&mut self, now: NodeTime, request: &[u8]) -> Vec<Answer> {
        self.data.begin(now);
        commands(request).iter().map(|words| self.command(words)).collect()
    }

    /// The same, with scripts that end half way and leave what they have written.
    pub fn answer_half(&mut self, now: NodeTime, request: &[u8]) -> Vec<Answer> {
        self.data.breaks = true;
        let answers = self.answer(now, request);
        self.data.breaks = false;
        answers
    }

    /// Runs one call at once.
    pub fn call(&mut self, now: NodeTime, talk: &Talk, batch: &[&Op], course: Course) -> Result<Replies, WireError> {
        talk.call(&AtHand(Mutex::new((self, now))), batch, course).now_or_never().expect("all is answered at once")
    }

    fn command(&mut self, words: &[Vec<u8>]) -> Answer {
        let by_hash = words[0] == b"EVALSHA";
        if !by_hash && words[0] != b"EVAL" {
            return self.data.alone(words).map_err(Arc::from);
        }
        let name = String::from_utf8_lossy(&words[1]).into_owned();
        let keys: usize = String::from_utf8_lossy(&words[2]).parse().unwrap();
        let (keys, args) = words[3..].split_at(keys);
        let hash = if by_hash { name } else { lua::hash(&name) };
        if by_hash && !self.scripts.contains(&hash) {
            return Err("NOSCRIPT No matching script. Please use EVAL.".into());
        }
        self.scripts.insert(hash.clone());
        lua::run(&mut self.data, &hash, keys, args).map_err(Arc::from)
    }

    /// What a server answers to any script, with arguments and without keys. `Err` is an error.
    pub fn eval(&mut self, now: NodeTime, script: &str, args: &[&[u8]]) -> Result<Raw, String> {
        self.data.begin(now);
        lua::eval(&mut self.data, script, args)
    }

    /// What lives at `now`, in order of the keys: key, bytes (`None`: another type), end in ms since 1970 (`None`: no end).
    pub fn keys(&self, now: NodeTime) -> Vec<(String, Option<Vec<u8>>, Option<u64>)> {
        let live = self.data.keys.iter().filter(|(_, entry)| entry.lives_at(now));
        live.map(|(key, entry)| (key.clone(), entry.content.bytes(), entry.ends_at_ms)).collect()
    }

    /// What was changed since this was last asked, in order. A key whose time was up is no change.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.data.changes)
    }

    /// What was published since this was last asked, in order.
    pub fn take_published(&mut self) -> Vec<Published> {
        std::mem::take(&mut self.data.published)
    }

    /// `SUBSCRIBE` on the connection `who`.
    pub fn subscribe(&mut self, who: u64, channels: &[Channel]) {
        self.data.subscribers.entry(who).or_default().extend(channels.iter().map(Channel::to_string));
    }

    /// `UNSUBSCRIBE`.
    pub fn unsubscribe(&mut self, who: u64, channels: &[Channel]) {
        if let Some(subscribed) = self.data.subscribers.get_mut(&who) {
            subscribed.retain(|name| channels.iter().all(|channel| channel.to_string() != *name));
        }
    }

    /// A connection has ended.
    pub fn hang_up(&mut self, who: u64) {
        self.data.subscribers.remove(&who);
    }

    /// Comes back as another process that knows no scripts, with the keys for which `keep` says so.
    pub fn restart(&mut self, run_id: &str, mut keep: impl FnMut(&str) -> bool) {
        self.data.keys.retain(|key, _| keep(key));
        self.data.subscribers.clear();
        self.run_id = run_id.to_owned();
        self.scripts.clear();
    }

    /// Whether it says that every change is on disk before it is answered.
    pub fn set_durable(&mut self, durable: bool) {
        self.durable = durable;
    }

    /// `SCRIPT FLUSH`.
    pub fn forget_scripts(&mut self) {
        self.scripts.clear();
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.data.keys.clone())
    }

    /// Has again what it had then, and nothing else.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.data.keys = snapshot.0;
    }

    /// Whether `maxmemory` is reached: commands that need memory are refused.
    pub fn set_full(&mut self, full: bool) {
        self.data.full = full;
    }

    /// Whether the user may not publish.
    pub fn set_mute(&mut self, mute: bool) {
        self.data.mute = mute;
    }

    pub fn put(&mut self, key: &str, bytes: &[u8], ends_at_ms: Option<u64>) {
        self.data.keys.insert(key.to_owned(), Entry { content: Content::Text(bytes.to_vec()), ends_at_ms });
    }

    /// A hash with one field.
    pub fn put_field(&mut self, key: &str, field: &str, bytes: &[u8]) {
        let fields = [(field.as_bytes().to_vec(), bytes.to_vec())].into();
        self.data.keys.insert(key.to_owned(), Entry { content: Content::Hash(fields), ends_at_ms: None });
    }

    /// A key of another type than those of locks.
    pub fn put_list(&mut self, key: &str) {
        self.data.keys.insert(key.to_owned(), Entry { content: Content::List, ends_at_ms: None });
    }

    pub fn delete(&mut self, key: &str) {
        self.data.keys.remove(key);
    }
}

/// The way to a server that answers at once.
struct AtHand<'a>(Mutex<(&'a mut Server, NodeTime)>);

impl Wire for AtHand<'_> {
    async fn exchange(&self, _: usize, write: impl FnOnce(&mut Vec<u8>) + Send) -> Result<Vec<Answer>, WireError> {
        let mut request = Vec::new();
        write(&mut request);
        let (server, now) = &mut *self.0.lock().unwrap();
        Ok(server.answer(*now, &request))
    }
}

/// The words of each command.
pub fn commands(mut request: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut commands = Vec::new();
    while let Some((command, length)) = resp::read(request).unwrap() {
        let Ok(Raw::List(words)) = command else { panic!("a command is a list: {command:?}") };
        let word = |word: Raw| match word {
            Raw::Bytes(bytes) => bytes.to_vec(),
            other => panic!("a word is a text: {other:?}"),
        };
        commands.push(words.into_iter().map(word).collect());
        request = &request[length..];
    }
    assert!(request.is_empty(), "commands are sent whole");
    commands
}
