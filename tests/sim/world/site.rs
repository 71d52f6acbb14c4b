//! A Redis server and the machine that it runs on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use redlockd::engine::membership::{Charter, CounterKind, Marker, State as Standing};
use redlockd::node::resp::Answer;
use redlockd::node::script::{COUNTERS_KEY, MARKER_KEY, Raw};
use redlockd::node::{NodeTime, Op};
use tokio::sync::mpsc;

use crate::memory::{Change, Published, Server, Snapshot, commands};
use crate::oracle::history::{At, Removal};

use super::clock::{Clock, MAX_RATE_PPM};
use super::env::EPOCH;
use super::net::Wire;
use super::{Shared, Size, State};

/// A server, whether it runs, and what its wall clock shows.
pub struct Site {
    pub number: usize,
    pub server: Server,
    pub clock: Clock,
    /// Serving; else every connection is refused.
    pub up: bool,
    /// Stopped until then: it takes in what comes, and answers later.
    pub paused_until: At,
    /// How often it was started.
    pub starts: u64,
    /// Connections to its present process.
    pub wires: Vec<Arc<Wire>>,
    /// Who listens to its present process.
    pub ears: BTreeMap<u64, Ear>,
    /// An old copy of its data.
    pub snapshot: Option<Snapshot>,
}

impl Site {
    pub fn new(number: usize, size: &Size, rng: &mut StdRng) -> Self {
        // Wall clocks are seconds apart, and run at rates of their own.
        let (offset_us, rate_ppm) = (rng.random_range(0..5_000_000), rng.random_range(-MAX_RATE_PPM..=MAX_RATE_PPM));
        let mut server = Server::new(&run_id(number, 1));
        server.set_durable(size.durable);
        if size.established && number < size.nodes {
            let Charter { nodes, counter, max_ttl, .. } = size.charter(false);
            let (run_id, max_ttl_ms) = (run_id(number, 1).into(), max_ttl.as_millis());
            let marker = Marker { run_id, state: Standing::Member, max_ttl_ms, counter, listed_ms: 0, nodes };
            server.put(MARKER_KEY, marker.to_string().as_bytes(), None);
            if counter == CounterKind::Quorum {
                server.put_field(COUNTERS_KEY, "base", EPOCH.as_micros().to_string().as_bytes());
            }
        }
        Self {
            number,
            server,
            clock: Clock { offset_us, rate_ppm },
            up: true,
            paused_until: At::ZERO,
            starts: 1,
            wires: Vec::new(),
            ears: BTreeMap::new(),
            snapshot: None,
        }
    }

    /// What its wall clock shows.
    pub fn wall_clock(&self, at: At) -> NodeTime {
        let us = i128::try_from(EPOCH.as_micros()).expect("fits") + self.clock.reads_ns(at) / 1_000;
        NodeTime { micros: u64::try_from(us).expect("clocks do not go back behind 1970") }
    }

    /// When its wall clock, as it runs now, will show `ms` since 1970.
    pub fn when(&self, ms: u64) -> At {
        let since_ms = i128::from(ms) - i128::try_from(EPOCH.as_millis()).expect("fits");
        self.clock.when_ns(since_ms * 1_000_000)
    }

    /// Until when it keeps a value of ours under `key`; the beginning of time if it does not.
    pub fn keeps_until(&self, key: &str, is_ours: impl Fn(&str) -> bool, now: At) -> At {
        let held = self.server.keys(self.wall_clock(now)).into_iter().find(|(name, ..)| name == key);
        match held {
            Some((_, Some(bytes), ends)) if is_ours(&text(&bytes)) => ends.map_or(At::MAX, |ms| self.when(ms)),
            _ => At::ZERO,
        }
    }

    /// The process ends.
    pub fn crash(&mut self) -> Vec<Arc<Wire>> {
        self.up = false;
        self.ears.clear();
        std::mem::take(&mut self.wires)
    }

    /// A connection for what is published.
    pub fn open_ear(&mut self, ear: Ear) -> u64 {
        let number = self.ears.last_key_value().map_or(0, |(number, _)| number + 1);
        self.ears.insert(number, ear);
        number
    }

    /// Such connections end.
    pub fn close_ears(&mut self, which: impl Fn(u64, &Ear) -> bool) {
        let server = &mut self.server;
        self.ears.retain(|number, ear| {
            let ends = which(*number, ear);
            if ends {
                server.hang_up(*number);
            }
            !ends
        });
    }

    /// A new process, with the keys for which `keep` says so.
    pub fn restart(&mut self, keep: impl FnMut(&str) -> bool) {
        self.starts += 1;
        self.server.restart(&run_id(self.number, self.starts), keep);
        self.up = true;
    }
}

fn run_id(number: usize, start: u64) -> String {
    format!("server-{number}-{start}")
}

/// A connection for what is published, as its server sees it.
pub struct Ear {
    pub proxy: usize,
    pub messages: mpsc::UnboundedSender<(At, Arc<str>)>,
}

/// One in so many messages is lost, and nobody knows.
const LOST_MESSAGES: u32 = 20;

/// Sends what a call published on its way.
fn publish(state: &mut State, site: usize, now: At) {
    for Published { message, to } in state.sites[site].server.take_published() {
        for number in to {
            let lost = state.chance(|rng| rng.random_ratio(1, LOST_MESSAGES));
            let latency = state.chance(|rng| Duration::from_micros(50 * rng.random_range(0..60)));
            if let Some(ear) = state.sites[site].ears.get(&number).filter(|_| !lost) {
                let _ = ear.messages.send((now + latency, message.as_str().into()));
            }
        }
    }
}

/// Lets a server run commands that are sent for a batch, and writes down what it did.
pub fn execute(shared: &Shared, wire: &Wire, batch: &[Op], request: &[u8], breaks: bool) -> Vec<Answer> {
    let now = shared.now();
    let state = &mut *shared.state();
    let site = &mut state.sites[wire.site];
    let clock = site.wall_clock(now);
    let answers = if breaks { site.server.answer_half(clock, request) } else { site.server.answer(clock, request) };
    state.history.note(now, format_args!("{} {}", wire.label(), shown(request, &answers)));
    publish(state, wire.site, now);
    let site = &mut state.sites[wire.site];
    for change in site.server.take_changes() {
        let removed = match change {
            Change::Set { key, value, over, .. } if key.starts_with("lock:") => {
                let value = text(&value);
                state.set_by.insert(value.clone(), wire.proxy);
                state.landed.entry(value.clone()).or_default().push(now);
                if let Some(old) = adopted_by(batch, &value) {
                    state.lineage.adopt(old, &value);
                    // It stands for a lease, or for one that ends by itself.
                    state.owned.insert(value.clone());
                }
                if let Some(why) = excuse(state, wire, &value) {
                    state.excused.insert((wire.site, value.clone()), why);
                }
                let over = over.as_deref().map(text);
                over.map(|over| Removal { by: in_place_of(batch, &key, &over, &value), ..removal(wire, now, key, over) })
            }
            Change::Deleted { key, value } if key.starts_with("lock:") => {
                let value = text(&value);
                let by = by_whom(batch, &key, &value);
                Some(Removal { by, ..removal(wire, now, key, value) })
            }
            _ => None,
        };
        state.history.removals.extend(removed);
    }
    answers
}

/// Why nobody could prevent that `value`, which is set now, is left on its node until its TTL.
fn excuse(state: &State, wire: &Wire, value: &str) -> Option<&'static str> {
    if wire.is_abandoned() {
        return Some("set after its connection had been given up");
    }
    // Its own proxy would have sent the release behind it.
    let elsewhere = state.released.get(value).is_some_and(|by| !by.contains(&wire.proxy));
    elsewhere.then_some("was on its way while another proxy released the lease")
}

/// With the values, which the program itself never shows.
fn shown(request: &[u8], answers: &[Answer]) -> String {
    let one = |(words, answer): (Vec<Vec<u8>>, &Answer)| {
        let words: Vec<String> = words.iter().map(|word| text(word)).collect();
        let shown = match words[0].as_str() {
            // The numbers of keys, keys and arguments tell which script it is.
            "EVAL" | "EVALSHA" => format!("{} {}", words[0], words[2..].join(" ")),
            _ => words.join(" "),
        };
        let answer = match answer {
            Ok(raw) => spelt(raw),
            Err(error) => error.to_string(),
        };
        format!("[{shown}: {answer}]")
    };
    commands(request).into_iter().zip(answers).map(one).collect()
}

fn spelt(raw: &Raw) -> String {
    match raw {
        Raw::Integer(number) => number.to_string(),
        Raw::Bytes(bytes) => text(bytes),
        Raw::Done => "OK".to_owned(),
        Raw::Nil => "nil".to_owned(),
        Raw::List(entries) => format!("({})", entries.iter().map(spelt).collect::<Vec<_>>().join(" ")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn removal(wire: &Wire, at: At, key: String, stood: String) -> Removal {
    Removal { at, node: format!("node {}", wire.site), key, stood, by: String::new() }
}

/// The value of the release that deleted `stood`, or of another operation on the key.
fn by_whom(batch: &[Op], key: &str, stood: &str) -> String {
    let values: BTreeMap<String, ()> = batch
        .iter()
        .filter(|op| &**op.key() == key)
        .filter_map(|op| match op {
            Op::Release { value, .. } | Op::HandOver { old: value, .. } => Some((value.as_str().to_owned(), ())),
            _ => None,
        })
        .collect();
    if values.contains_key(stood) {
        return stood.to_owned();
    }
    values.into_keys().next().unwrap_or_else(|| "no release".to_owned())
}

/// The value that `new` takes over from, if the batch does that.
fn adopted_by<'a>(batch: &'a [Op], new: &str) -> Option<&'a str> {
    batch.iter().find_map(|op| match op {
        Op::Adopt { old, new: by, .. } if by.as_str() == new => Some(old.as_str()),
        _ => None,
    })
}

/// In whose name `value` takes the place of `stood`: of whoever releases it to hand it over or adopts it, if the batch does that.
fn in_place_of(batch: &[Op], key: &str, stood: &str, value: &str) -> String {
    let handed = batch.iter().find_map(|op| match op {
        Op::HandOver { old, new, .. } if &**op.key() == key && new.as_str() == value => Some(old.as_str().to_owned()),
        Op::Adopt { old, new, .. } if &**op.key() == key && new.as_str() == value && old.as_str() == stood => {
            Some(stood.to_owned())
        }
        _ => None,
    });
    handed.unwrap_or_else(|| superseding(stood, value))
}

/// In whose name `by` takes the place of `stood`: a value may do that to one of the same request with a lower attempt.
pub fn superseding(stood: &str, by: &str) -> String {
    let parts = |value: &str| -> Option<(String, u32)> {
        let mut parts = value.split('.');
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
    };
    match (parts(stood), parts(by)) {
        (Some((request, attempt)), Some((same, higher))) if request == same && attempt < higher => stood.to_owned(),
        _ => by.to_owned(),
    }
}
