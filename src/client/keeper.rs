//! What this client wants and holds, and what there is to say to the proxy of the moment. Pure: time comes in as an argument,
//! messages go in and out as values; the driver carries them.
//!
//! Each lock that somebody wants has one entry, from the wish to the release. An entry says in its phase what is under way for
//! it, and in its timer when to look at it again if nothing happens. A session that breaks changes phases, and nothing else:
//! what was asked for is asked for again, what was held is adopted, what was being given back is given back by a call.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::lease::{LockId, LossReason, Lost, ReleaseError, Released, Standing, Token};
use super::request::{AcquireError, Contended, Wish};
use super::sends::Sends;
use crate::proto;
use crate::proto::session_granted::Fencing;
use crate::proto::session_request::Message as Say;
use crate::proto::session_response::Message as Told;
use crate::proto::{ReleaseOutcome, SessionLossReason, SessionRequest, SessionResponse};

/// Codes of gRPC that a proxy sends by number.
const CANCELLED: u32 = 1;
const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNAVAILABLE: u32 = 14;

/// The longest wait that a proxy takes; whoever wants to wait longer asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// The shortest `max_hold` that a proxy takes.
const SHORTEST_HOLD: Duration = Duration::from_millis(10);

/// Bounds of the pause before something is tried again at the same proxy.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The most adoptions under way: a proxy carries out 8,192 messages of a session at a time, and acquires need a place too.
const MAX_ADOPTING: usize = 4_096;

/// With less than this part of its TTL left, a lease is not asked for again where there is no room for it.
const BUSY_FOR: u32 = 4;

/// A message is due when an eighth of the shortest TTL has passed since the last one: the contract says a sixth.
const SIGNS_PER_TTL: u32 = 8;

/// What is told to whoever wants a lock.
pub(super) type Answer = Result<Arc<Standing>, AcquireError>;

/// Whoever waits for a lock, and the places that it takes meanwhile.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) answer: oneshot::Sender<Answer>,
    pub(super) _call: OwnedSemaphorePermit,
}

/// How the client is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// For how long something is tried beyond what its caller asked for.
    pub(super) patience: Duration,
    /// Whether there are other proxies to go to.
    pub(super) has_others: bool,
}

/// The proxy said something that no proxy says: its session is not to be relied on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Wanted. Asked for at once, or not before an instant.
    Wanted { from: Option<Instant> },
    /// Asked for. `late`: when an answer should have come.
    Asked { seq: u64, sent: Instant, late: Option<Instant> },
    /// Held in this session, as lease number `lease`.
    Held { lease: u64, late: Option<Instant> },
    /// Held, and in no session.
    Adrift { from: Option<Instant> },
    /// Being adopted.
    Adopting { seq: u64, sent: Instant, late: Option<Instant> },
    /// Being given back in this session.
    Returning { lease: u64, seq: u64, late: Option<Instant> },
    /// To be given back by a call of its own.
    Elsewhere { from: Option<Instant> },
    /// The same, under way.
    Calling,
}

/// A claim that nobody wants any more.
#[derive(Debug)]
struct Leaving {
    until: Instant,
    /// It was good until its holder gave it back.
    was_valid: bool,
    /// A release was sent and not answered for certain: it may have been carried out.
    is_in_doubt: bool,
    answers: Vec<oneshot::Sender<Result<Released, ReleaseError>>>,
}

#[derive(Debug)]
struct Entry {
    wish: Wish,
    /// Of how many entries there may be.
    _place: OwnedSemaphorePermit,
    request_id: [u8; 16],
    attempt: u32,
    asker: Option<Asker>,
    /// Why there was no answer so far.
    trouble: Option<String>,
    phase: Phase,
    standing: Option<Arc<Standing>>,
    /// Tries to adopt the present lock id.
    adoptions: u32,
    leaving: Option<Leaving>,
    timer: Option<Instant>,
}

impl Entry {
    /// When its message of this number was sent, if that is not answered yet.
    fn sent(&self, number: u64) -> Option<Instant> {
        match self.phase {
            Phase::Asked { seq, sent, .. } | Phase::Adopting { seq, sent, .. } if seq == number => Some(sent),
            _ => None,
        }
    }

    /// When whoever wants the lock is answered at the latest.
    fn answer_by(&self, patience: Duration) -> Option<Instant> {
        self.wish.wait_ends?.checked_add(patience)
    }

    fn next_look(&self, patience: Duration) -> Option<Instant> {
        let by_phase = match self.phase {
            Phase::Wanted { from } | Phase::Adrift { from } | Phase::Elsewhere { from } => from,
            Phase::Asked { late, .. }
            | Phase::Held { late, .. }
            | Phase::Adopting { late, .. }
            | Phase::Returning { late, .. } => late,
            Phase::Calling => None,
        };
        let asked = self.asker.as_ref().and_then(|_| self.answer_by(patience));
        let held = self.standing.as_ref().filter(|_| self.leaving.is_none());
        // Lost already: its end is what is waited for.
        let ends = held.map(|standing| match standing.is_lost_already() {
            true => standing.valid_until(),
            false => standing.lost_at(),
        });
        [by_phase, asked, ends, self.leaving.as_ref().map(|leaving| leaving.until)].into_iter().flatten().min()
    }
}

/// Something to say, if it is still true when its turn comes.
#[derive(Clone, Copy, Debug)]
enum Out {
    Acquire(u64),
    Adopt(u64),
    Release(u64),
    /// An acquire that nobody waits for, by its seq.
    Cancel(u64),
    /// A lease that is of no use, by its number.
    Stray(u64),
}

impl Out {
    /// It frees what nobody else knows of, so it is said while there is still a session to say it in.
    fn gives_up(&self) -> bool {
        matches!(self, Self::Cancel(_) | Self::Stray(_))
    }
}

#[derive(Debug)]
struct Session {
    sends: Sends,
    last_sent: Instant,
    heard: Instant,
    is_draining: bool,
    /// Another one is ready to take its place: nothing new is asked in this one, and these entries wait for its last answers.
    left_by: Option<Vec<u64>>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Keeper {
    settings: Settings,
    seq: u64,
    entries: BTreeMap<u64, Entry>,
    timers: BTreeSet<(Instant, u64)>,
    ttls: BTreeMap<Duration, usize>,
    session: Option<Session>,
    /// Which entry a number of this session belongs to.
    numbers: BTreeMap<u64, u64>,
    outbox: VecDeque<Out>,
    /// Entries to be adopted, and the numbers of the adoptions under way.
    adrift: VecDeque<u64>,
    adopting: BTreeSet<u64>,
    calls: VecDeque<u64>,
    /// Entries for which this session does too little.
    late: BTreeSet<u64>,
    random: u64,
    is_closed: bool,
}

impl Keeper {
    pub(super) fn new(settings: Settings, random: u64) -> Self {
        Self {
            settings,
            seq: 0,
            entries: BTreeMap::new(),
            timers: BTreeSet::new(),
            ttls: BTreeMap::new(),
            session: None,
            numbers: BTreeMap::new(),
            outbox: VecDeque::new(),
            adrift: VecDeque::new(),
            adopting: BTreeSet::new(),
            calls: VecDeque::new(),
            late: BTreeSet::new(),
            random,
            is_closed: false,
        }
    }

    // What this program wants.

    pub(super) fn acquire(&mut self, id: u64, wish: Wish, request_id: [u8; 16], asker: Asker, place: OwnedSemaphorePermit) {
        if self.is_closed {
            let _ = asker.answer.send(Err(AcquireError::Closed));
            return;
        }
        *self.ttls.entry(wish.ttl).or_default() += 1;
        let entry = Entry {
            wish,
            _place: place,
            request_id,
            attempt: 1,
            asker: Some(asker),
            trouble: None,
            phase: Phase::Wanted { from: None },
            standing: None,
            adoptions: 0,
            leaving: None,
            timer: None,
        };
        self.entries.insert(id, entry);
        self.say(Out::Acquire(id));
        self.plan(id);
    }

    /// Nobody wants it any more, whatever has become of it by now.
    pub(super) fn give_back(&mut self, now: Instant, id: u64, answer: Option<oneshot::Sender<Result<Released, ReleaseError>>>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            if let Some(answer) = answer {
                let _ = answer.send(Ok(Released::NotHeld));
            }
            return;
        };
        entry.asker = None;
        let is_first = entry.leaving.is_none();
        // Soon after its end there is nothing left to release.
        let ends = entry.standing.as_ref().map(|standing| standing.valid_until().max(now) + self.settings.patience / 10);
        let until = ends.into_iter().fold(now + self.settings.patience, Instant::min);
        let was_valid = entry.standing.as_ref().is_some_and(|standing| !standing.is_lost(now));
        let leaving =
            entry.leaving.get_or_insert_with(|| Leaving { until, was_valid, is_in_doubt: false, answers: Vec::new() });
        leaving.answers.extend(answer);
        if is_first {
            self.begin_to_leave(id);
        }
    }

    fn begin_to_leave(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match entry.phase {
            Phase::Wanted { .. } => return self.finish(id, Ok(Released::NotHeld)),
            Phase::Asked { seq, .. } => self.say(Out::Cancel(seq)),
            Phase::Held { .. } => self.say(Out::Release(id)),
            // Where an adoption may have been carried out unheard, only another one learns the lock id.
            Phase::Adrift { .. } if entry.adoptions > 0 => {
                entry.phase = Phase::Adrift { from: None };
                self.say(Out::Adopt(id));
            }
            Phase::Adrift { .. } => self.call(id),
            Phase::Adopting { .. } | Phase::Returning { .. } | Phase::Elsewhere { .. } | Phase::Calling => {}
        }
        self.plan(id);
    }

    /// The client is about to end: nothing is asked for any more, and whoever holds a lease is told.
    pub(super) fn close(&mut self, now: Instant) {
        self.is_closed = true;
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if let Some(standing) = entry.standing.as_ref().filter(|_| entry.leaving.is_none()) {
                standing.lose(Lost { reason: LossReason::Closed, detail: "the client was shut down".to_owned() });
                self.plan(id);
            } else if let Some(asker) = entry.asker.take() {
                let _ = asker.answer.send(Err(AcquireError::Closed));
                self.give_back(now, id, None);
            }
        }
    }

    /// Whether everything that was given back is.
    pub(super) fn is_settled(&self) -> bool {
        self.entries.values().all(|entry| entry.standing.is_some() && entry.leaving.is_none())
            && (self.outbox.is_empty() || self.session.is_none())
    }

    /// Whether there is nothing that a session is needed for.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    // What there is to say.

    fn say(&mut self, out: Out) {
        match out {
            _ if self.session.is_none() => {}
            Out::Adopt(id) => self.adrift.push_back(id),
            out => self.outbox.push_back(out),
        }
    }

    /// What was adopted makes room for what is still to be.
    fn may_adopt(&self) -> bool {
        !self.adrift.is_empty() && self.adopting.len() < MAX_ADOPTING
    }

    /// Adoptions first: their leases end meanwhile.
    fn next_out(&mut self) -> Option<Out> {
        if self.is_being_left() {
            let at = self.outbox.iter().position(Out::gives_up)?;
            return self.outbox.remove(at);
        }
        let adopt = if self.may_adopt() { self.adrift.pop_front() } else { None };
        adopt.map(Out::Adopt).or_else(|| self.outbox.pop_front())
    }

    pub(super) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn is_being_left(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.left_by.is_some())
    }

    fn keep_alive_due(&self) -> Option<Instant> {
        let (ttl, _) = self.ttls.first_key_value()?;
        // Also in one that is being left: its proxy renews only while it hears of us.
        let session = self.session.as_ref()?;
        Some(session.last_sent + *ttl / SIGNS_PER_TTL)
    }

    pub(super) fn has_something_to_say(&self, now: Instant) -> bool {
        let has_news = match self.is_being_left() {
            true => self.outbox.iter().any(Out::gives_up),
            false => !self.outbox.is_empty() || self.may_adopt(),
        };
        has_news || self.keep_alive_due().is_some_and(|due| due <= now)
    }

    /// The next message, to be sent at once: its time counts from `now`.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<SessionRequest> {
        self.session.as_ref()?;
        while let Some(out) = self.next_out() {
            let seq = self.seq + 1;
            if let Some(say) = self.message(out, seq, now) {
                return Some(self.sent(say, now));
            }
        }
        let is_due = self.keep_alive_due().is_some_and(|due| due <= now);
        is_due.then(|| self.sent(Say::KeepAlive(proto::SessionKeepAlive {}), now))
    }

    /// The orderly end.
    pub(super) fn close_message(&mut self, now: Instant) -> SessionRequest {
        self.sent(Say::Close(proto::SessionClose {}), now)
    }

    fn sent(&mut self, say: Say, now: Instant) -> SessionRequest {
        let seq = self.next_seq();
        if let Some(session) = &mut self.session {
            session.sends.on_send(seq, now);
            session.last_sent = now;
        }
        SessionRequest { seq, message: Some(say) }
    }

    fn message(&mut self, out: Out, seq: u64, now: Instant) -> Option<Say> {
        match out {
            Out::Acquire(id) => self.acquire_message(id, seq, now),
            Out::Adopt(id) => self.adopt_message(id, seq, now),
            Out::Release(id) => self.release_message(id, seq, now),
            Out::Cancel(acquire) => {
                self.numbers.contains_key(&acquire).then_some(Say::Cancel(proto::SessionCancel { acquire }))
            }
            Out::Stray(lease) => Some(Say::Release(proto::SessionRelease { lease })),
        }
    }

    fn acquire_message(&mut self, id: u64, seq: u64, now: Instant) -> Option<Say> {
        if self.session.as_ref()?.is_draining {
            return None;
        }
        let entry = self.entries.get_mut(&id).filter(|entry| entry.phase == Phase::Wanted { from: None })?;
        let wish = &entry.wish;
        let wait = wish.wait_ends.map_or(LONGEST_WAIT, |ends| ends.saturating_duration_since(now).min(LONGEST_WAIT));
        let token = match wish.best_effort_token {
            true => proto::TokenRequirement::BestEffort,
            false => proto::TokenRequirement::Required,
        };
        let request = proto::AcquireRequest {
            name: wish.name.clone(),
            ttl: proto_duration(wish.ttl),
            wait: proto_duration(wait),
            owner: wish.owner.clone(),
            mode: proto::LockMode::Exclusive.into(),
            token: token.into(),
            request_id: entry.request_id.to_vec().into(),
            attempt: entry.attempt,
            // One that would be given up at once is of no use.
            min_validity: proto_duration((wish.notice + Duration::from_millis(1)).min(wish.ttl)),
        };
        let max_hold = wish.max_hold.and_then(proto_duration);
        entry.phase = Phase::Asked { seq, sent: now, late: Some(now + wait + self.settings.patience / 3) };
        self.numbers.insert(seq, id);
        self.plan(id);
        Some(Say::Acquire(proto::SessionAcquire { request: Some(request), max_hold }))
    }

    fn adopt_message(&mut self, id: u64, seq: u64, now: Instant) -> Option<Say> {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.phase == Phase::Adrift { from: None })?;
        let standing = entry.standing.as_ref()?;
        if standing.is_lost(now) && entry.leaving.is_none() {
            return None;
        }
        entry.adoptions += 1;
        entry.phase = Phase::Adopting { seq, sent: now, late: Some(half_way(now, standing.lost_at())) };
        let left = standing.hold_ends().map(|ends| ends.saturating_duration_since(now).max(SHORTEST_HOLD));
        let adopt = proto::SessionAdopt {
            lock_id: standing.lock_id().as_str().to_owned(),
            ttl: proto_duration(entry.wish.ttl),
            attempt: entry.adoptions,
            max_hold: left.and_then(proto_duration),
        };
        self.numbers.insert(seq, id);
        self.adopting.insert(seq);
        self.plan(id);
        Some(Say::Adopt(adopt))
    }

    fn release_message(&mut self, id: u64, seq: u64, now: Instant) -> Option<Say> {
        let entry = self.entries.get_mut(&id)?;
        let Phase::Held { lease, .. } = entry.phase else { return None };
        entry.phase = Phase::Returning { lease, seq, late: Some(now + self.settings.patience / 3) };
        self.numbers.insert(seq, id);
        self.plan(id);
        Some(Say::Release(proto::SessionRelease { lease }))
    }

    /// The next lease to be given back by a call of its own.
    pub(super) fn next_call(&mut self) -> Option<(u64, LockId)> {
        if self.is_being_left() {
            return None;
        }
        while let Some(id) = self.calls.pop_front() {
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.phase == Phase::Elsewhere { from: None }) else {
                continue;
            };
            let Some(standing) = &entry.standing else { continue };
            entry.phase = Phase::Calling;
            let lock_id = standing.lock_id();
            self.plan(id);
            return Some((id, lock_id));
        }
        None
    }

    pub(super) fn on_call_done(&mut self, now: Instant, id: u64, outcome: Option<ReleaseOutcome>) {
        match outcome {
            Some(outcome) => self.finish(id, released(outcome)),
            None => {
                self.doubt(id);
                let from = now + self.pause(None);
                self.change(id, Phase::Elsewhere { from: Some(from) });
            }
        }
    }

    /// A release of this entry may have been carried out, in whole or on some of the nodes.
    fn doubt(&mut self, id: u64) {
        if let Some(leaving) = self.entries.get_mut(&id).and_then(|entry| entry.leaving.as_mut()) {
            leaving.is_in_doubt = true;
        }
    }

    // Sessions.

    /// A session stands: everything that needs one is said in it.
    pub(super) fn on_session(&mut self, now: Instant, sends: Sends) {
        self.session = Some(Session { sends, last_sent: now, heard: now, is_draining: false, left_by: None });
        let mut adrift: Vec<(Instant, u64)> = Vec::new();
        let mut wanted = Vec::new();
        for (id, entry) in &mut self.entries {
            match (&mut entry.phase, &entry.standing) {
                (Phase::Adrift { from }, Some(standing)) => {
                    *from = None;
                    adrift.push((standing.lost_at(), *id));
                }
                (Phase::Wanted { from: None }, _) => wanted.push(*id),
                _ => {}
            }
        }
        adrift.sort_unstable();
        self.adrift.extend(adrift.iter().map(|(_, id)| id));
        self.outbox.extend(wanted.into_iter().map(Out::Acquire));
        adrift.into_iter().for_each(|(_, id)| self.plan(id));
    }

    /// Another session is ready to take the place of the one that stands.
    pub(super) fn leave(&mut self) {
        let under_way = self.entries.iter().filter(|(_, entry)| is_under_way(entry.phase)).map(|(id, _)| *id).collect();
        if let Some(session) = &mut self.session {
            session.left_by = Some(under_way);
        }
    }

    /// Whether the session that stands can be left for the other one now. From a proxy that shuts down in order the answers to
    /// what was said come first: without that of a release nobody could say whether the lease had been held to its end.
    pub(super) fn may_leave(&self) -> bool {
        let Some(session) = self.session.as_ref().filter(|session| session.is_draining && self.late.is_empty()) else {
            return true;
        };
        let waits = |id: &u64| self.entries.get(id).is_some_and(|entry| is_under_way(entry.phase));
        !self.outbox.iter().any(Out::gives_up) && !session.left_by.iter().flatten().any(waits)
    }

    /// The session is gone, and nothing can be known of what was under way in it.
    pub(super) fn on_break(&mut self) {
        self.session = None;
        self.numbers.clear();
        self.outbox.clear();
        self.adrift.clear();
        self.adopting.clear();
        self.late.clear();
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            self.cut(id);
        }
    }

    fn cut(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let is_wanted = entry.leaving.is_none();
        match entry.phase {
            // If it was granted, the lease ends with its TTL: nobody renews it.
            Phase::Asked { .. } if !is_wanted => return self.finish(id, Ok(Released::NotHeld)),
            Phase::Asked { .. } => {
                entry.attempt += 1;
                entry.trouble = Some("the session broke before the answer came".to_owned());
                entry.phase = Phase::Wanted { from: None };
            }
            Phase::Held { .. } if is_wanted => entry.phase = Phase::Adrift { from: None },
            Phase::Held { .. } => return self.call(id),
            Phase::Returning { .. } => {
                self.doubt(id);
                return self.call(id);
            }
            Phase::Adopting { .. } => entry.phase = Phase::Adrift { from: None },
            Phase::Wanted { .. } | Phase::Adrift { .. } | Phase::Elsewhere { .. } | Phase::Calling => {}
        }
        self.plan(id);
    }

    /// Whether another session is wanted beside the one that stands.
    pub(super) fn wants_another(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_draining || !self.late.is_empty())
    }

    /// How long the lease has that is given up first.
    pub(super) fn shortest_left(&self, now: Instant) -> Option<Duration> {
        let wanted = self.entries.values().filter(|entry| entry.leaving.is_none());
        let held = wanted.filter_map(|entry| entry.standing.as_ref()).filter(|standing| !standing.is_lost(now));
        held.map(|standing| standing.lost_at().saturating_duration_since(now)).min()
    }

    // What the proxy says.

    pub(super) fn on_message(&mut self, now: Instant, response: SessionResponse) -> Result<(), Fault> {
        let Some(session) = &mut self.session else { return Ok(()) };
        session.heard = now;
        let since_ack = duration(response.since_ack);
        let base = session.sends.base(response.acked_seq, since_ack, now);
        let end_of = |validity| base.and_then(|base| base.checked_add(duration(validity)));
        match response.message {
            Some(Told::Granted(granted)) => {
                // It may be of long ago: that of its own message is known as long as it is awaited.
                let sent = self.numbers.get(&granted.lease).and_then(|id| self.entries.get(id)?.sent(response.acked_seq));
                let end = match sent {
                    Some(sent) => (sent + since_ack).min(now).checked_add(duration(granted.validity)),
                    None => end_of(granted.validity),
                };
                let end = end.ok_or(Fault("a grant that counts from no message of ours"))?;
                self.on_granted(now, end, granted);
            }
            Some(Told::Renewed(renewed)) => {
                if let (Some(id), Some(end)) = (self.numbers.get(&renewed.lease), end_of(renewed.validity)) {
                    self.on_renewed(now, *id, end);
                }
            }
            Some(Told::AtRisk(risk)) => {
                if let Some(standing) = self.numbers.get(&risk.lease).and_then(|id| self.entries.get(id)?.standing.as_ref()) {
                    standing.risk(risk.detail);
                }
            }
            Some(Told::Lost(lost)) => self.on_lost(now, end_of(lost.validity).unwrap_or(now), &lost),
            Some(Told::Released(told)) => self.on_released(told.lease, told.outcome()),
            Some(Told::Contended(told)) => self.on_contended(now, told),
            Some(Told::Failed(failed)) => self.on_failed(now, &failed),
            Some(Told::Draining(_)) => session.is_draining = true,
            // The answer to the first message: see `session.rs`.
            Some(Told::Opened(_)) | None => {}
        }
        Ok(())
    }

    fn on_granted(&mut self, now: Instant, end: Instant, granted: proto::SessionGranted) {
        let entry = self.numbers.get(&granted.lease).and_then(|id| Some((*id, self.entries.get_mut(id)?)));
        match entry {
            Some((id, entry)) if matches!(entry.phase, Phase::Asked { seq, .. } if seq == granted.lease) => {
                self.on_first_grant(now, id, end, granted);
            }
            Some((id, entry)) if matches!(entry.phase, Phase::Adopting { seq, .. } if seq == granted.lease) => {
                if let Some(standing) = &entry.standing {
                    standing.rename(LockId::new(&granted.lock_id));
                }
                entry.adoptions = 0;
                entry.phase = Phase::Held { lease: granted.lease, late: None };
                self.adopting.remove(&granted.lease);
                let is_leaving = entry.leaving.is_some();
                self.on_renewed(now, id, end);
                if is_leaving {
                    self.say(Out::Release(id));
                }
            }
            Some(_) => {}
            None => self.say(Out::Stray(granted.lease)),
        }
    }

    fn on_first_grant(&mut self, now: Instant, id: u64, end: Instant, granted: proto::SessionGranted) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let token = match granted.fencing {
            Some(Fencing::FencingToken(number)) => Token::new(number),
            Some(Fencing::NoToken(_)) | None => None,
        };
        let hold_ends = entry.wish.max_hold.and_then(|max_hold| now.checked_add(max_hold));
        let lock_id = LockId::new(&granted.lock_id);
        let standing = Standing::new(entry.wish.name.clone(), token, entry.wish.notice, hold_ends, lock_id, end);
        let use_of_it = match entry.asker {
            // A cancellation that came too late.
            None => Err(None),
            Some(_) if token.is_none() && !entry.wish.best_effort_token => Err(Some("a grant without the token asked for")),
            Some(_) if standing.is_lost(now) => Err(Some("a grant that came too late to be of use")),
            Some(_) => Ok(()),
        };
        if let Err(why) = use_of_it {
            self.say(Out::Stray(granted.lease));
            self.numbers.remove(&granted.lease);
            return match why {
                None => self.finish(id, Ok(Released::Freed)),
                Some(why) => self.ask_again(now, id, AcquireError::unavailable(why.to_owned(), None), None),
            };
        }
        let standing = Arc::new(standing);
        entry.standing = Some(standing.clone());
        entry.phase = Phase::Held { lease: granted.lease, late: Some(late_at(now, &standing)) };
        self.late.remove(&id);
        if let Some(asker) = entry.asker.take() {
            // Whoever has stopped waiting meanwhile gives it back by its own guard.
            let _ = asker.answer.send(Ok(standing));
        }
        self.plan(id);
    }

    fn on_renewed(&mut self, now: Instant, id: u64, end: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(standing) = &entry.standing else { return };
        standing.prolong(now, end);
        if let Phase::Held { lease, .. } = entry.phase {
            entry.phase = Phase::Held { lease, late: Some(late_at(now, standing)) };
            self.late.remove(&id);
        }
        self.plan(id);
    }

    fn on_lost(&mut self, now: Instant, end: Instant, lost: &proto::SessionLost) {
        let Some(id) = self.numbers.get(&lost.lease).copied() else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(standing) = entry.standing.clone() else { return };
        standing.shorten(end);
        if matches!(entry.phase, Phase::Returning { .. }) {
            return match lost.reason() {
                SessionLossReason::NotHeld => self.finish(id, Ok(Released::NotHeld)),
                // Its keys may be there still.
                _ => self.call(id),
            };
        }
        let final_word = match lost.reason() {
            SessionLossReason::NotHeld | SessionLossReason::Unspecified => Some(LossReason::NotHeld),
            SessionLossReason::MaxHold => Some(LossReason::MaxHold),
            // Another try, or another proxy, may do better while there is time.
            SessionLossReason::NoQuorum | SessionLossReason::NoKeepAlive => None,
        };
        match final_word {
            Some(reason) => {
                standing.lose(Lost { reason, detail: lost.detail.clone() });
                self.change(id, Phase::Adrift { from: None });
                self.forget_adoptions(id);
            }
            None => {
                standing.risk(lost.detail.clone());
                self.adopt_again(now, id, None, false);
            }
        }
    }

    /// No adoption is under way or has been carried out: the lock id that we have is the one that there is.
    fn forget_adoptions(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.adoptions = 0;
        if entry.leaving.is_some() {
            self.call(id);
        }
    }

    /// In this session, or, unless it `stays`, in the next one if that comes first.
    fn adopt_again(&mut self, now: Instant, id: u64, after: Option<Duration>, stays: bool) {
        let from = Some(now + self.pause(after));
        self.change(id, Phase::Adrift { from });
        if self.settings.has_others && !stays {
            self.late.insert(id);
        }
    }

    fn on_released(&mut self, lease: u64, outcome: ReleaseOutcome) {
        let Some(id) = self.numbers.get(&lease).copied() else { return };
        let Some(entry) = self.entries.get(&id) else { return };
        match (&entry.phase, &entry.standing) {
            (Phase::Returning { .. }, _) => self.finish(id, released(outcome)),
            // Nobody asked for that.
            (Phase::Held { .. }, Some(standing)) => {
                standing.lose(Lost { reason: LossReason::NotHeld, detail: "the proxy released it".to_owned() });
                self.change(id, Phase::Adrift { from: None });
                self.forget_adoptions(id);
            }
            _ => {}
        }
    }

    fn on_contended(&mut self, now: Instant, told: proto::SessionContended) {
        let Some(id) = self.asked(told.acquire) else { return };
        let contended = Contended::from(told.contended.unwrap_or_default());
        let after = contended.retry_after;
        self.ask_again(now, id, AcquireError::Contended(contended), Some(after));
    }

    /// The entry that asked for a lock with message `seq`.
    fn asked(&self, seq: u64) -> Option<u64> {
        let id = self.numbers.get(&seq)?;
        matches!(self.entries.get(id)?.phase, Phase::Asked { seq: asked, .. } if asked == seq).then_some(*id)
    }

    fn on_failed(&mut self, now: Instant, failed: &proto::SessionFailed) {
        let after = failed.retry_after.map(|after| duration(Some(after)));
        if let Some(id) = self.asked(failed.request) {
            return self.on_acquire_failed(now, id, failed, after);
        }
        let Some(id) = self.numbers.get(&failed.request).copied() else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match entry.phase {
            Phase::Adopting { .. } if failed.code == INVALID_ARGUMENT => {
                if let Some(standing) = &entry.standing {
                    standing.lose(Lost { reason: LossReason::Refused, detail: failed.message.clone() });
                }
                self.change(id, Phase::Adrift { from: None });
                self.forget_adoptions(id);
            }
            Phase::Adopting { .. } => {
                let has_time = entry.standing.as_ref().is_some_and(|standing| {
                    standing.risk(failed.message.clone());
                    now + entry.wish.ttl / BUSY_FOR < standing.lost_at()
                });
                // A proxy that has too much to do is not left with all that it has, which another one would have to adopt at once.
                let stays = failed.code == RESOURCE_EXHAUSTED && has_time;
                self.adopt_again(now, id, after, stays);
            }
            Phase::Returning { .. } if failed.code == INVALID_ARGUMENT => {
                self.finish(id, Err(ReleaseError(failed.message.clone())));
            }
            Phase::Returning { .. } => {
                self.doubt(id);
                let from = now + self.pause(after);
                self.change(id, Phase::Elsewhere { from: Some(from) });
            }
            _ => {}
        }
    }

    fn on_acquire_failed(&mut self, now: Instant, id: u64, failed: &proto::SessionFailed, after: Option<Duration>) {
        let is_draining = self.session.as_ref().is_some_and(|session| session.is_draining);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let message = failed.message.clone();
        match failed.code {
            // As asked for, or because the proxy ends.
            CANCELLED | UNAVAILABLE if is_draining && entry.leaving.is_none() => {
                self.retry(id, None, message);
            }
            UNAVAILABLE | CANCELLED => self.ask_again(now, id, AcquireError::unavailable(message, after), after),
            RESOURCE_EXHAUSTED => self.ask_again(now, id, AcquireError::Busy { message, retry_after: after }, after),
            INVALID_ARGUMENT => self.refuse(id, AcquireError::Invalid(message)),
            code => self.refuse(id, AcquireError::Failed { code, message }),
        }
    }

    /// Asks again if there is time, else answers with `error`.
    fn ask_again(&mut self, now: Instant, id: u64, error: AcquireError, after: Option<Duration>) {
        let from = now + self.pause(after);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.leaving.is_some() || entry.wish.wait_ends.is_some_and(|ends| ends <= from) {
            return self.refuse(id, error);
        }
        self.retry(id, Some(from), error.to_string());
    }

    fn retry(&mut self, id: u64, from: Option<Instant>, trouble: String) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.attempt += 1;
        entry.trouble = Some(trouble);
        self.change(id, Phase::Wanted { from });
    }

    fn refuse(&mut self, id: u64, error: AcquireError) {
        if let Some(asker) = self.entries.get_mut(&id).and_then(|entry| entry.asker.take()) {
            let _ = asker.answer.send(Err(error));
        }
        self.finish(id, Ok(Released::NotHeld));
    }

    // Time.

    /// When to call [`Keeper::on_time`].
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(instant, _)| *instant)
    }

    /// The same, or when there is something to say.
    pub(super) fn next_look(&self) -> Option<Instant> {
        [self.next_timer(), self.keep_alive_due()].into_iter().flatten().min()
    }

    pub(super) fn on_time(&mut self, now: Instant) {
        while let Some((instant, id)) = self.timers.first().copied().filter(|(instant, _)| *instant <= now) {
            self.timers.remove(&(instant, id));
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.timer = None;
            }
            self.look(now, id);
        }
    }

    fn look(&mut self, now: Instant, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.leaving.as_ref().is_some_and(|leaving| leaving.until <= now) {
            return self.finish(id, Err(ReleaseError("no proxy answered in time".to_owned())));
        }
        if entry.asker.is_some() && entry.answer_by(self.settings.patience).is_some_and(|by| by <= now) {
            let trouble = entry.trouble.take().unwrap_or_else(|| "no proxy answered in time".to_owned());
            if let Some(asker) = entry.asker.take() {
                let _ = asker.answer.send(Err(AcquireError::unavailable(trouble, None)));
            }
            return self.give_back(now, id, None);
        }
        if let Some(standing) = entry.standing.as_ref().filter(|_| entry.leaving.is_none()) {
            // From its end on it can be given back whatever its holder still does.
            if standing.is_lost(now) && standing.valid_until() <= now {
                return self.give_back(now, id, None);
            }
        }
        self.look_at_phase(now, id);
        self.plan(id);
    }

    fn look_at_phase(&mut self, now: Instant, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let again = entry.standing.as_ref().map(|standing| half_way(now, standing.lost_at())).filter(|again| *again > now);
        let is_due = |instant: Option<Instant>| instant.is_some_and(|instant| instant <= now);
        match &mut entry.phase {
            Phase::Wanted { from } if is_due(*from) => {
                *from = None;
                self.say(Out::Acquire(id));
            }
            Phase::Adrift { from } if is_due(*from) => {
                *from = None;
                self.say(Out::Adopt(id));
            }
            Phase::Elsewhere { from } if is_due(*from) => self.call(id),
            Phase::Held { late, .. } | Phase::Adopting { late, .. } if is_due(*late) => {
                *late = again;
                self.on_late(now, id);
            }
            Phase::Asked { late, .. } | Phase::Returning { late, .. } if is_due(*late) => {
                *late = Some(now + self.settings.patience / 3);
                self.on_late(now, id);
            }
            _ => {}
        }
    }

    /// The session should have done something by now. If there is no other proxy, only a silent session is left for another one.
    fn on_late(&mut self, now: Instant, id: u64) {
        let Some(session) = &self.session else { return };
        let patience = self.entries.get(&id).map_or(Duration::ZERO, |entry| entry.wish.ttl / 2);
        if self.settings.has_others || now.saturating_duration_since(session.heard) >= patience {
            self.late.insert(id);
        }
    }

    // Entries.

    /// It is to be given back by a call of its own.
    fn call(&mut self, id: u64) {
        self.change(id, Phase::Elsewhere { from: None });
        self.calls.push_back(id);
    }

    /// What was under way for it is over.
    fn change(&mut self, id: u64, phase: Phase) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        for number in numbers(entry.phase) {
            self.numbers.remove(&number);
            self.adopting.remove(&number);
        }
        entry.phase = phase;
        self.late.remove(&id);
        if phase == (Phase::Wanted { from: None }) {
            self.say(Out::Acquire(id));
        }
        self.plan(id);
    }

    fn finish(&mut self, id: u64, outcome: Result<Released, ReleaseError>) {
        let Some(entry) = self.entries.remove(&id) else { return };
        for number in numbers(entry.phase) {
            self.numbers.remove(&number);
            self.adopting.remove(&number);
        }
        if let Some(instant) = entry.timer {
            self.timers.remove(&(instant, id));
        }
        self.late.remove(&id);
        if let Some(count) = self.ttls.get_mut(&entry.wish.ttl) {
            *count -= 1;
            if *count == 0 {
                self.ttls.remove(&entry.wish.ttl);
            }
        }
        let Some(leaving) = entry.leaving else { return };
        let outcome = match outcome {
            // The work of a release before this one: a lease that is valid can not be lost.
            Ok(Released::NotHeld) if leaving.was_valid && leaving.is_in_doubt => Ok(Released::Freed),
            outcome => outcome,
        };
        for answer in leaving.answers {
            let _ = answer.send(outcome.clone());
        }
    }

    /// Sets the timer of an entry by what it is waiting for.
    fn plan(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let next = entry.next_look(self.settings.patience);
        if next == entry.timer {
            return;
        }
        if let Some(old) = entry.timer {
            self.timers.remove(&(old, id));
        }
        entry.timer = next;
        self.timers.extend(next.map(|next| (next, id)));
    }

    /// As long as the proxy says, within bounds, drawn at random between half of that and the whole.
    fn pause(&mut self, after: Option<Duration>) -> Duration {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pause = after.unwrap_or(PAUSE.0 * 10).clamp(PAUSE.0, PAUSE.1);
        pause / 2 + pause.mul_f64((self.random >> 33) as f64 / f64::from(1_u32 << 31)) / 2
    }
}

/// Whether the proxy has been asked for something and has not answered.
fn is_under_way(phase: Phase) -> bool {
    match phase {
        Phase::Asked { .. } | Phase::Adopting { .. } | Phase::Returning { .. } | Phase::Calling => true,
        Phase::Wanted { .. } | Phase::Held { .. } | Phase::Adrift { .. } | Phase::Elsewhere { .. } => false,
    }
}

fn numbers(phase: Phase) -> Vec<u64> {
    match phase {
        Phase::Asked { seq, .. } | Phase::Adopting { seq, .. } => vec![seq],
        Phase::Held { lease, .. } => vec![lease],
        Phase::Returning { lease, seq, .. } => vec![lease, seq],
        Phase::Wanted { .. } | Phase::Adrift { .. } | Phase::Elsewhere { .. } | Phase::Calling => Vec::new(),
    }
}

/// When a lease should have been renewed: at half of its validity, and a little later, so that a proxy that can not renew it has
/// said so; and early enough for another proxy to try.
fn late_at(now: Instant, standing: &Standing) -> Instant {
    let validity = standing.valid_until().saturating_duration_since(now);
    let left = standing.lost_at().saturating_duration_since(now);
    now + (validity * 17 / 32).min(left * 3 / 4)
}

fn half_way(now: Instant, end: Instant) -> Instant {
    now + end.saturating_duration_since(now) / 2
}

fn released(outcome: ReleaseOutcome) -> Result<Released, ReleaseError> {
    match outcome {
        ReleaseOutcome::Released => Ok(Released::Freed),
        ReleaseOutcome::NotHeld => Ok(Released::NotHeld),
        ReleaseOutcome::Unspecified => Err(ReleaseError("the proxy did not say what it did".to_owned())),
    }
}

/// A duration of the proto; what is missing or negative is none at all.
pub(super) fn duration(duration: Option<prost_types::Duration>) -> Duration {
    duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default()
}

fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
