//! Keeps one connection to a node: connects, probes, sends batches one at a time, times out, and replaces what broke.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::engine::backoff::Backoff;
use crate::engine::membership::Standing;
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Stored, Why, WhyKind};
use crate::engine::validity::votes_within;

use super::ear::{Ear, EarTiming, Hearing};
use super::env::Env;
use super::mailbox::{Entry, Mailbox, Nobody, Place, Reach, ReplyTo};
use super::roster::{ClockView, Seat};
use super::script::{CEILING_KEY, COUNTERS_KEY, MARKER_KEY, MAX_BATCH};
use super::{Connection, Course, Heard, Node, Op, Probe, Replies, WireError};

/// Room in a mailbox: twice the requests that a proxy has in flight by default, and some.
const MAILBOX_PLACES: usize = 32_768;

/// A proxy that was stopped finds its timers and its sockets ready at once, and looks at the sockets for this long before it
/// takes a node for silent.
pub const STALL_GRACE: Duration = Duration::from_millis(10);

/// Between tries of a server that refuses whole calls.
const RETRY_REFUSED: Duration = Duration::from_millis(100);

/// Between tries to connect: a node that comes back is used within a second.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(800));

/// After so many unanswered calls in a row a node is suspended: it is sent nothing but probes, until one is answered in time.
const BREAKER: u32 = 3;

/// Between probes of a suspended node: one that comes back is used within a second.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// The most turns of a call: see [`Course`].
const MAX_TURNS: u32 = 3;

/// How long a node may be left idle for a larger batch. A timer's tick, a millisecond, comes on top.
const LINGER: Duration = Duration::from_millis(1);

/// When the next batch goes out. Whoever was answered by the last one is about to ask for the next thing; sent at once, the first
/// few of them would go alone, and the node would be woken several times for what it can do in one call.
struct Pace {
    /// So many operations need not wait for more.
    enough: usize,
    /// Nor does anything after this.
    until: Instant,
}

impl Pace {
    /// After a batch of so many operations: when three quarters of as many are there again, or after a moment.
    fn after(operations: usize, now: Instant) -> Self {
        Self { enough: operations * 3 / 4, until: now + LINGER }
    }
}

/// The time-outs of a link.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A call that takes longer counts as unanswered.
    pub call: Duration,
    /// Connecting and probing together may take this long.
    pub connect: Duration,
    /// A connection with a call that is overdue for this long is replaced.
    pub replace: Duration,
    /// A release is of no use after the longest time that a key can live.
    pub release_lives: Duration,
    /// A node is looked at so often: its marker, its clock, and whether it answers.
    pub look: Duration,
}

impl Timing {
    /// For a node's time-out and the longest TTL.
    pub fn new(call: Duration, longest_ttl: Duration) -> Self {
        let second = Duration::from_secs(1);
        Self { call, connect: second.max(2 * call), replace: second.max(4 * call), release_lives: longest_ttl, look: second }
    }
}

/// What a link tells about its node; wired to metrics and logs by whoever owns both.
pub trait Observer: Send + Sync + 'static {
    /// A call was answered (late ones too).
    fn on_call(&self, _operations: usize, _took: Duration) {}
    /// An operation, a call or a connection failed.
    fn on_error(&self, _kind: &'static str) {}
    /// Connected and probed.
    fn on_probe(&self, _probe: &Probe, _took: Duration, _restarted: bool) {}
    /// It can be used, or not and why.
    fn on_reach(&self, _reach: &Reach) {}
    /// Whether it may vote has changed.
    fn on_standing(&self, _standing: &Standing) {}
    /// A vote of it did not count.
    fn on_vote_lost(&self) {}
}

/// What is known of a node.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether it can be used.
    pub reach: Reach,
    /// What it said when it was last asked.
    pub probe: Option<Probe>,
    /// How long the newest answered call took.
    pub round_trip: Option<Duration>,
    /// Operations that wait to be sent.
    pub queued: usize,
    /// Operations that were sent and are not answered yet.
    pub in_flight: usize,
    /// How often it came back as another process.
    pub restarts: u64,
    /// Whether it may vote; `None` for a server that never does.
    pub standing: Option<Standing>,
    /// Its clock against ours.
    pub clock: ClockView,
    /// Its votes that did not count.
    pub votes_lost: u64,
}

#[derive(Debug, Default)]
struct Known {
    probe: Option<Probe>,
    round_trip: Option<Duration>,
    restarts: u64,
    in_flight: usize,
    /// Why its last batch did not count; `None` if it did.
    no_vote: Option<Standing>,
    votes_lost: u64,
}

/// One node and the connection to it.
pub struct Link {
    index: NodeIndex,
    address: Arc<str>,
    node: Box<dyn Node>,
    mailbox: Mailbox,
    timing: Timing,
    env: Arc<dyn Env>,
    observer: Box<dyn Observer>,
    seat: Option<Seat>,
    known: Mutex<Known>,
    ear: Ear,
    /// Calls in a row that were not answered in time.
    unanswered: AtomicU32,
    change: Arc<Change>,
}

/// A change of the node's marker: one at a time.
#[derive(Default)]
struct Change {
    under_way: AtomicBool,
    seat: Option<Seat>,
}

impl ReplyTo for Change {
    fn on_reply(&self, _: NodeIndex, reply: Reply, _: Option<Heard>) {
        self.under_way.store(false, Ordering::Relaxed);
        // What is there now comes with the next batch. After an error there is no hurry.
        if let Reply::Yes | Reply::Absent = reply {
            self.seat.iter().for_each(Seat::call);
        }
    }
}

/// A look: what comes with every batch, and the ceiling of the fencing counter.
struct Look(Seat);

impl ReplyTo for Look {
    fn on_reply(&self, _: NodeIndex, reply: Reply, heard: Option<Heard>) {
        if let (Reply::Absent | Reply::Other(_), Some(heard)) = (&reply, heard) {
            let text = if let Reply::Other(stored) = &reply { stored.value.as_deref() } else { None };
            self.0.on_ceiling(&String::from_utf8_lossy(text.unwrap_or_default()), heard);
        }
    }
}

/// A look for counters of an earlier time.
struct LookForTraces(Seat);

impl ReplyTo for LookForTraces {
    fn on_reply(&self, _: NodeIndex, reply: Reply, _: Option<Heard>) {
        if let Reply::Absent | Reply::Other(_) = reply {
            self.0.on_untouched(reply == Reply::Absent);
        }
    }
}

impl Link {
    /// A link that does nothing until [`Link::run`]. Without a seat, its server never votes.
    pub fn new(
        index: NodeIndex,
        address: Arc<str>,
        node: Box<dyn Node>,
        timing: Timing,
        env: Arc<dyn Env>,
        observer: Box<dyn Observer>,
        seat: Option<Seat>,
    ) -> Self {
        let mailbox = Mailbox::new(index, MAILBOX_PLACES, timing.release_lives);
        let change = Arc::new(Change { under_way: AtomicBool::new(false), seat: seat.clone() });
        let (known, ear, unanswered) = (Mutex::default(), Ear::default(), AtomicU32::new(0));
        Self { index, address, node, mailbox, timing, env, observer, seat, known, ear, unanswered, change }
    }

    /// What is heard of the node.
    pub fn ear(&self) -> &Ear {
        &self.ear
    }

    /// Listens to what the node publishes whenever somebody wants to know, for ever.
    pub async fn hear(&self, hearing: &dyn Hearing) {
        let timing = EarTiming { connect: self.timing.connect, answer: self.timing.replace };
        self.ear.run(&*self.node, &*self.env, timing, hearing).await;
    }

    /// `host:port` or a path, for people.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Queues an operation; see [`Mailbox::post`].
    pub fn post(&self, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        self.mailbox.post(op, reply_to, now);
    }

    /// Queues a SET; see [`Mailbox::post_acquire`].
    pub fn post_acquire(&self, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) -> Option<Place> {
        self.mailbox.post_acquire(op, reply_to, now)
    }

    /// Queues in a reserved place; see [`Mailbox::post_in`].
    pub fn post_in(&self, place: Place, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        self.mailbox.post_in(place, op, reply_to, now);
    }

    /// What is known of the node now.
    pub fn status(&self) -> Status {
        let now = self.env.now();
        let standing = self.seat.as_ref().map(|seat| seat.standing(now));
        let wall_us = self.env.wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let clock = self.seat.as_ref().map(|seat| seat.clock(now, wall_us)).unwrap_or_default();
        let known = self.known();
        Status {
            standing,
            clock,
            votes_lost: known.votes_lost,
            reach: self.mailbox.reach(),
            probe: known.probe.clone(),
            round_trip: known.round_trip,
            queued: self.mailbox.len(),
            in_flight: known.in_flight,
            restarts: known.restarts,
        }
    }

    /// Whether nothing waits or is under way.
    pub fn is_idle(&self) -> bool {
        self.mailbox.is_idle()
    }

    /// Whether operations have a chance now.
    pub fn is_up(&self) -> bool {
        self.mailbox.reach() == Reach::Up
    }

    /// Whether its votes count now.
    pub fn may_vote(&self) -> bool {
        self.is_up() && self.seat.as_ref().is_none_or(Seat::may_vote)
    }

    /// How often this proxy's machine was found to have slept.
    pub fn sleeps(&self) -> u64 {
        self.seat.as_ref().map_or(0, Seat::sleeps)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_reach(&self, reach: Reach) {
        let now = self.env.now();
        if self.mailbox.reach() != reach {
            self.observer.on_reach(&reach);
            self.seat.iter().for_each(|seat| seat.on_reach(reach == Reach::Up, now));
        }
        self.mailbox.set_reach(reach, now);
    }

    /// Connects, and goes on connecting, for ever.
    pub async fn run(&self) {
        let mut failures = 0;
        loop {
            match self.open().await {
                Ok(connection) => {
                    failures = 0;
                    let why = self.serve(&*connection).await;
                    self.observer.on_error("connection_lost");
                    self.set_reach(Reach::Down(why));
                }
                Err(reach) => {
                    self.observer.on_error("connect");
                    self.set_reach(reach);
                }
            }
            failures += 1;
            let pause = RECONNECT.delay(failures, self.env.random());
            self.env.sleep_until(self.env.now() + pause).await;
        }
    }

    /// A connection to a server that may be used, or why there is none.
    async fn open(&self) -> Result<Box<dyn Connection>, Reach> {
        let started = self.env.now();
        let opening = async {
            let connection = self.node.connect().await.map_err(|error| Reach::Down(error.to_string().into()))?;
            let probe = connection.probe().await.map_err(|error| Reach::Down(error.to_string().into()))?;
            Ok((connection, probe))
        };
        let (connection, probe) = tokio::select! {
            biased;
            opened = opening => opened?,
            () = self.env.sleep_until(started + self.timing.connect) => {
                let ms = self.timing.connect.as_millis();
                return Err(Reach::Down(format!("no answer to a new connection within {ms} ms").into()));
            }
        };
        self.admit(&probe, self.env.now() - started)?;
        Ok(connection)
    }

    fn admit(&self, probe: &Probe, took: Duration) -> Result<(), Reach> {
        let restarted = {
            let mut known = self.known();
            let restarted = known.probe.as_ref().is_some_and(|old| old.run_id != probe.run_id);
            known.restarts += u64::from(restarted);
            known.probe = Some(probe.clone());
            restarted
        };
        self.observer.on_probe(probe, took, restarted);
        if let Some(why) = probe.unfit() {
            return Err(Reach::Unfit(why.into()));
        }
        match self.seat.as_ref().and_then(|seat| seat.on_connected(&self.address, probe)) {
            Some(twin) => Err(Reach::Unfit(
                format!(
                    "it is the same server as {twin} (run_id {}) and would vote twice. Name each server once",
                    probe.run_id
                )
                .into(),
            )),
            None => Ok(()),
        }
    }

    /// Sends batches until the connection ends; why it did.
    async fn serve(&self, connection: &dyn Connection) -> Arc<str> {
        let mut closed = connection.closed();
        if self.is_suspended()
            && let Err(why) = self.await_prompt_answer(connection, &mut closed).await
        {
            return why;
        }
        self.set_reach(Reach::Up);
        let mut look = self.env.sleep_until(self.env.now());
        let mut pace = Pace::after(0, self.env.now());
        loop {
            let batch = tokio::select! {
                biased;
                why = &mut closed => return why,
                // Before the batches, or a node that is never idle is never looked at. A look only joins the next batch.
                () = &mut look => {
                    look = self.look();
                    continue;
                }
                () = self.called() => {
                    look = self.look();
                    continue;
                }
                batch = self.next_batch(&pace) => batch,
            };
            let operations = batch.len();
            if let Err(why) = self.exchange(connection, &mut closed, batch).await {
                return why;
            }
            pace = Pace::after(operations, self.env.now());
        }
    }

    /// What is to be sent next, as soon as it is worth a call. Safe to cancel.
    async fn next_batch(&self, pace: &Pace) -> Vec<Entry> {
        if pace.enough > 1 {
            tokio::select! {
                biased;
                () = self.mailbox.holds(pace.enough) => {}
                () = self.env.sleep_until(pace.until) => {}
            }
        }
        self.mailbox.next_batch(MAX_BATCH).await
    }

    async fn called(&self) {
        match &self.seat {
            Some(seat) => seat.called().await,
            None => std::future::pending().await,
        }
    }

    /// Has the node looked at; when the next look is due.
    fn look(&self) -> BoxFuture<'static, ()> {
        let Some(seat) = &self.seat else { return Box::pin(std::future::pending()) };
        let now = self.env.now();
        self.mailbox.post(Op::Inspect { key: CEILING_KEY.into() }, Arc::new(Look(seat.clone())), now);
        if seat.may_be_new() {
            self.mailbox.post(Op::Inspect { key: COUNTERS_KEY.into() }, Arc::new(LookForTraces(seat.clone())), now);
        }
        let next = now + self.timing.look;
        let due = seat.due().filter(|due| *due > now && *due < next);
        self.env.sleep_until(due.unwrap_or(next))
    }

    fn is_suspended(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= BREAKER
    }

    /// Nothing but probes, until one is answered in time.
    async fn await_prompt_answer(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
    ) -> Result<(), Arc<str>> {
        self.set_reach(Reach::Suspended);
        loop {
            let asked = self.env.now();
            match self.bounded_call(connection, closed, &[]).await {
                Err(WireError::Closed(why)) => return Err(why),
                // Whatever it says, it says it in time.
                _ if self.env.now() - asked <= self.timing.call => {
                    self.unanswered.store(0, Ordering::Relaxed);
                    return Ok(());
                }
                _ => self.env.sleep_until(asked + PROBE_EVERY).await,
            }
        }
    }

    /// One batch and its replies. `Err` if the connection can not be used any more.
    async fn exchange(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        batch: Vec<Entry>,
    ) -> Result<(), Arc<str>> {
        let ops: Vec<&Op> = batch.iter().map(|entry| &*entry.op).collect();
        let sent_at = self.env.now();
        self.known().in_flight = ops.len();
        let outcome = self.await_call(connection, closed, &ops, &batch, sent_at).await;
        self.known().in_flight = 0;
        match outcome {
            Ok(replies) => {
                self.note_round_trip(ops.len(), self.env.now() - sent_at);
                self.deliver(&batch, replies, sent_at);
            }
            Err(WireError::Closed(why)) => {
                let kind = WhyKind::ConnectionLost(why.clone());
                self.answer_unknown(&batch, &kind, true);
                self.put_back_releases(batch);
                return Err(why);
            }
            Err(error) => {
                // The script may have stopped half way, with what it had written in place.
                self.note_round_trip(ops.len(), self.env.now() - sent_at);
                if mutant!("error-is-refusal") {
                    let refusal = Reply::Other(Stored { value: None, left_ms: None });
                    batch.iter().for_each(|entry| entry.reply_to.on_reply(self.index, refusal.clone(), None));
                }
                self.answer_unknown(&batch, &WhyKind::ServerError(error.to_string().into()), true);
                self.after_refusal(connection, closed, batch).await?;
            }
        }
        // Too late too often, whatever it said.
        if self.is_suspended() {
            self.await_prompt_answer(connection, closed).await?;
            self.set_reach(Reach::Up);
        }
        Ok(())
    }

    /// What frees keys is sent again: a release can be repeated.
    fn put_back_releases(&self, batch: Vec<Entry>) {
        if mutant!("release-is-not-sent-again") {
            return;
        }
        self.mailbox.put_back(batch.into_iter().filter_map(Entry::into_release).collect());
    }

    /// After a server refused a whole call. If it refuses one without any operation too (busy with somebody's script,
    /// no permission), the releases wait until it runs again. If not, something in the batch was to blame (a key that the
    /// user may not touch), and must not stand in the way of the rest.
    async fn after_refusal(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        batch: Vec<Entry>,
    ) -> Result<(), Arc<str>> {
        match self.bounded_call(connection, closed, &[]).await {
            Ok(_) => self.release_one_by_one(connection, closed, batch).await,
            Err(error) => {
                self.put_back_releases(batch);
                match error {
                    WireError::Closed(why) => Err(why),
                    refused => self.await_recovery(connection, closed, refused).await,
                }
            }
        }
    }

    /// Each release in a call of its own; one that is refused alone can not be done, and its key ends with its TTL.
    async fn release_one_by_one(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        batch: Vec<Entry>,
    ) -> Result<(), Arc<str>> {
        let mut releases = batch.into_iter().filter_map(Entry::into_release);
        while let Some(release) = releases.next() {
            let sent_at = self.env.now();
            match self.bounded_call(connection, closed, &[&release.op]).await {
                Ok(replies) => self.deliver(&[release], replies, sent_at),
                Err(WireError::Closed(why)) => {
                    self.put_back_releases(std::iter::once(release).chain(releases).collect());
                    return Err(why);
                }
                Err(refused) => self.observer.on_error(WhyKind::ServerError(refused.to_string().into()).label()),
            }
        }
        Ok(())
    }

    /// Makes calls without any operation until the server answers one again.
    async fn await_recovery(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        mut refused: WireError,
    ) -> Result<(), Arc<str>> {
        loop {
            self.set_reach(Reach::Unfit(refused.to_string().into()));
            self.env.sleep_until(self.env.now() + RETRY_REFUSED).await;
            match self.bounded_call(connection, closed, &[]).await {
                Ok(_) => {
                    self.set_reach(Reach::Up);
                    return Ok(());
                }
                Err(WireError::Closed(why)) => return Err(why),
                Err(error) => refused = error,
            }
        }
    }

    /// A call outside of the usual course: unanswered for as long as a connection may be, it ends the connection.
    async fn bounded_call(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        ops: &[&Op],
    ) -> Result<Replies, WireError> {
        tokio::select! {
            biased;
            outcome = connection.call(ops, Course::OneTurn) => outcome,
            why = closed => Err(WireError::Closed(why)),
            () = self.env.sleep_until(self.env.now() + self.timing.replace) => {
                Err(WireError::Closed(format!("a call was unanswered for {} ms", self.timing.replace.as_millis()).into()))
            }
        }
    }

    async fn await_call(
        &self,
        connection: &dyn Connection,
        closed: &mut BoxFuture<'static, Arc<str>>,
        ops: &[&Op],
        batch: &[Entry],
        sent_at: Instant,
    ) -> Result<Replies, WireError> {
        let mut call = connection.call(ops, self.course(ops));
        let mut deadline = sent_at + self.timing.call;
        let mut stage = Stage::Fresh;
        loop {
            // Biased: a reply that is there counts, whatever the timers say.
            tokio::select! {
                biased;
                outcome = &mut call => {
                    if !matches!(outcome, Err(WireError::Closed(_))) {
                        self.note_answer(stage);
                    }
                    return outcome;
                }
                why = &mut *closed => return Err(WireError::Closed(why)),
                () = self.env.sleep_until(deadline) => match stage {
                    Stage::Fresh if self.env.now() > deadline + STALL_GRACE => {
                        (stage, deadline) = (Stage::Stalled, self.env.now() + STALL_GRACE);
                    }
                    Stage::Fresh | Stage::Stalled => {
                        self.answer_unknown(batch, &WhyKind::Timeout(self.timing.call), true);
                        self.unanswered.fetch_add(1, Ordering::Relaxed);
                        self.set_reach(Reach::Silent);
                        (stage, deadline) = (Stage::Overdue, sent_at + self.timing.replace);
                    }
                    Stage::Overdue => {
                        let ms = self.timing.replace.as_millis();
                        return Err(WireError::Closed(format!("a call was unanswered for {ms} ms").into()));
                    }
                },
            }
        }
    }

    /// More turns than one only where there is time for all that there may be, before the call is overdue or the votes are.
    fn course(&self, ops: &[&Op]) -> Course {
        let votes_within = ops.iter().filter_map(|op| match op {
            Op::Acquire { ttl, .. } => Some(votes_within(*ttl)),
            _ => None,
        });
        let time = votes_within.chain([self.timing.call]).min();
        match (self.known().round_trip, time) {
            (Some(turn), Some(time)) if MAX_TURNS * turn <= time => Course::Turns,
            _ => Course::OneTurn,
        }
    }

    fn note_answer(&self, stage: Stage) {
        if stage != Stage::Overdue {
            self.unanswered.store(0, Ordering::Relaxed);
        } else if !self.is_suspended() {
            self.set_reach(Reach::Up);
        }
    }

    fn note_round_trip(&self, operations: usize, took: Duration) {
        self.observer.on_call(operations, took);
        self.known().round_trip = Some(took);
    }

    fn deliver(&self, batch: &[Entry], replies: Replies, sent_at: Instant) {
        let no_vote = self.judge(&replies, sent_at);
        let heard = Heard { time: replies.time, sent: sent_at, may_vote: no_vote.is_none() };
        for (entry, mut reply) in batch.iter().zip(replies.replies) {
            if let (Op::Acquire { .. }, Reply::Yes | Reply::Counted { .. }, Some(standing)) = (&*entry.op, &reply, &no_vote) {
                reply = Reply::Unknown(Why { kind: WhyKind::NoVote(standing.clone()), may_have_landed: true });
                self.note_lost_vote();
            }
            if let (Reply::HandedOver { no_vote: vote, .. }, Some(standing)) = (&mut reply, &no_vote)
                && !mutant!("handover-counts-quarantined-nodes")
            {
                if vote.is_none() {
                    self.note_lost_vote();
                }
                *vote = Some(WhyKind::NoVote(standing.clone()));
            }
            // Where the marker does not know of our longest lease, a renewal must not outlast what it knows of.
            if let (
                Op::Renew { .. } | Op::Adopt { .. },
                Reply::Held { .. },
                Some(standing @ (Standing::Foreign(_) | Standing::Raising)),
            ) = (&*entry.op, &reply, &no_vote)
            {
                reply = Reply::Unknown(Why { kind: WhyKind::NoVote(standing.clone()), may_have_landed: true });
            }
            if let Reply::Unknown(why) = &reply {
                self.observer.on_error(why.kind.label());
            }
            if let Reply::Released { heard: None } = &reply {
                self.observer.on_error("not_published");
            }
            entry.reply_to.on_reply(self.index, reply, Some(heard));
        }
    }

    fn note_lost_vote(&self) {
        self.observer.on_vote_lost();
        self.known().votes_lost += 1;
    }

    /// Why the votes in a batch do not count, if they do not: its marker or its clock is not right. Has the marker changed
    /// where that is due.
    fn judge(&self, replies: &Replies, sent_at: Instant) -> Option<Standing> {
        let seat = self.seat.as_ref()?;
        let now = self.env.now();
        let mut no_vote = None;
        for time in replies.earlier.iter().chain([&replies.time]) {
            no_vote = seat.on_batch(&replies.marker, *time, sent_at, now).err().or(no_vote);
        }
        let changed = {
            let mut known = self.known();
            let same = match (&known.no_vote, &no_vote) {
                (Some(before), Some(after)) => std::mem::discriminant(before) == std::mem::discriminant(after),
                (before, after) => before.is_none() && after.is_none(),
            };
            known.no_vote.clone_from(&no_vote);
            !same
        };
        if changed {
            self.observer.on_standing(no_vote.as_ref().unwrap_or(&Standing::Votes));
        }
        if !self.change.under_way.load(Ordering::Relaxed)
            && let Some(change) = seat.due_change(now, || self.env.secret())
        {
            self.change.under_way.store(true, Ordering::Relaxed);
            if let Some(ceiling) = change.lift.clone() {
                self.mailbox.post(Op::LiftCeiling { key: CEILING_KEY.into(), ceiling }, Arc::new(Nobody), now);
            }
            self.mailbox.post(Op::Marker { key: MARKER_KEY.into(), change }, self.change.clone(), now);
        }
        no_vote
    }

    fn answer_unknown(&self, batch: &[Entry], kind: &WhyKind, may_have_landed: bool) {
        for entry in batch {
            self.observer.on_error(kind.label());
            let why = Why { kind: kind.clone(), may_have_landed };
            entry.reply_to.on_reply(self.index, Reply::Unknown(why), None);
        }
    }
}

/// How long a call has been out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Within its time-out.
    Fresh,
    /// The time-out was noticed late: this proxy was stopped, and the reply may be in the socket.
    Stalled,
    /// Past its time-out; the node counts as silent until it answers.
    Overdue,
}
