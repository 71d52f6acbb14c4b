//! Keeps one connection to a node: connects, probes, sends batches one at a time, times out, and replaces what broke.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::engine::backoff::Backoff;
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Stored, Why, WhyKind};

use super::env::Env;
use super::mailbox::{Entry, Mailbox, Place, Reach, ReplyTo};
use super::script::MAX_BATCH;
use super::{Connection, Node, Op, Probe, Replies, ScriptBy, WireError};

/// Room in a mailbox: twice the requests that a proxy has in flight by default, and some.
const MAILBOX_PLACES: usize = 32_768;

/// A proxy that was stopped finds its timers and its sockets ready at once, and looks at the sockets for this long before it
/// takes a node for silent.
pub const STALL_GRACE: Duration = Duration::from_millis(10);

/// Between tries of a server that refuses whole calls.
const RETRY_REFUSED: Duration = Duration::from_millis(100);

/// Between tries to connect: a node that comes back is used within a second.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(800));

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
}

impl Timing {
    /// For a node's time-out and the longest TTL.
    pub fn new(call: Duration, longest_ttl: Duration) -> Self {
        let second = Duration::from_secs(1);
        Self { call, connect: second.max(2 * call), replace: second.max(4 * call), release_lives: longest_ttl }
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
}

/// The servers that are known under an index, so that one server listed twice is noticed: it would vote twice.
#[derive(Debug, Default)]
pub struct Identities(Mutex<BTreeMap<NodeIndex, Identity>>);

#[derive(Debug)]
struct Identity {
    address: Arc<str>,
    run_id: Arc<str>,
}

impl Identities {
    /// Enters what `node` is; the address of another node that is the same server, if there is one.
    ///
    /// An entry stands until its node shows another identity, also while it can not be reached.
    fn enter(&self, node: NodeIndex, address: &Arc<str>, run_id: &Arc<str>) -> Option<Arc<str>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&node);
        let twin = known.values().find(|known| known.run_id == *run_id).map(|known| known.address.clone());
        if twin.is_none() {
            known.insert(node, Identity { address: address.clone(), run_id: run_id.clone() });
        }
        twin
    }
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
}

#[derive(Debug, Default)]
struct Known {
    probe: Option<Probe>,
    round_trip: Option<Duration>,
    restarts: u64,
    in_flight: usize,
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
    identities: Arc<Identities>,
    known: Mutex<Known>,
}

impl Link {
    /// A link that does nothing until [`Link::run`].
    pub fn new(
        index: NodeIndex,
        address: Arc<str>,
        node: Box<dyn Node>,
        timing: Timing,
        env: Arc<dyn Env>,
        observer: Box<dyn Observer>,
        identities: Arc<Identities>,
    ) -> Self {
        let mailbox = Mailbox::new(index, MAILBOX_PLACES, timing.release_lives);
        Self { index, address, node, mailbox, timing, env, observer, identities, known: Mutex::default() }
    }

    /// `host:port` or a path, for people.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Queues an operation; see [`Mailbox::post`].
    pub fn post(&self, op: Op, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        self.mailbox.post(op, reply_to, now);
    }

    /// Queues a SET; see [`Mailbox::post_acquire`].
    pub fn post_acquire(&self, op: Op, reply_to: Arc<dyn ReplyTo>, now: Instant) -> Option<Place> {
        self.mailbox.post_acquire(op, reply_to, now)
    }

    /// Queues in a reserved place; see [`Mailbox::post_in`].
    pub fn post_in(&self, place: Place, op: Op, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        self.mailbox.post_in(place, op, reply_to, now);
    }

    /// What is known of the node now.
    pub fn status(&self) -> Status {
        let known = self.known();
        Status {
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_reach(&self, reach: Reach) {
        if self.mailbox.reach() != reach {
            self.observer.on_reach(&reach);
        }
        self.mailbox.set_reach(reach, self.env.now());
    }

    /// Connects, and goes on connecting, for ever.
    pub async fn run(&self) {
        let mut failures = 0;
        loop {
            match self.open().await {
                Ok(connection) => {
                    failures = 0;
                    self.set_reach(Reach::Up);
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
        match self.identities.enter(self.index, &self.address, &probe.run_id) {
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
        loop {
            let batch = tokio::select! {
                biased;
                why = &mut closed => return why,
                batch = self.mailbox.next_batch(MAX_BATCH) => batch,
            };
            if let Err(why) = self.exchange(connection, &mut closed, batch).await {
                return why;
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
        let ops: Vec<Op> = batch.iter().map(|entry| entry.op.clone()).collect();
        let sent_at = self.env.now();
        self.known().in_flight = ops.len();
        let outcome = self.await_call(connection, closed, &ops, &batch, sent_at).await;
        self.known().in_flight = 0;
        match outcome {
            Ok(replies) => {
                self.note_round_trip(ops.len(), self.env.now() - sent_at);
                self.deliver(&batch, replies);
                Ok(())
            }
            Err(WireError::Closed(why)) => {
                let kind = WhyKind::ConnectionLost(why.clone());
                self.answer_unknown(&batch, &kind, true);
                self.put_back_releases(batch);
                Err(why)
            }
            Err(error) => {
                // The script may have stopped half way, with what it had written in place.
                self.note_round_trip(ops.len(), self.env.now() - sent_at);
                if mutant!("error-is-refusal") {
                    let refusal = Reply::Other(Stored { value: None, left_ms: None });
                    batch.iter().for_each(|entry| entry.reply_to.on_reply(self.index, refusal.clone(), None));
                }
                self.answer_unknown(&batch, &WhyKind::ServerError(error.to_string().into()), true);
                self.after_refusal(connection, closed, batch).await
            }
        }
    }

    /// What frees keys is sent again: a release can be repeated.
    fn put_back_releases(&self, batch: Vec<Entry>) {
        if mutant!("release-is-not-sent-again") {
            return;
        }
        self.mailbox.put_back(batch.into_iter().filter(|entry| entry.op.is_release()).collect());
    }

    /// After a server refused a whole call. If it refuses the script without any operation too (busy with somebody's script,
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
        let mut releases = batch.into_iter().filter(|entry| entry.op.is_release());
        while let Some(release) = releases.next() {
            match self.bounded_call(connection, closed, std::slice::from_ref(&release.op)).await {
                Ok(replies) => self.deliver(&[release], replies),
                Err(WireError::Closed(why)) => {
                    self.put_back_releases(std::iter::once(release).chain(releases).collect());
                    return Err(why);
                }
                Err(refused) => self.observer.on_error(WhyKind::ServerError(refused.to_string().into()).label()),
            }
        }
        Ok(())
    }

    /// Tries the script without any operation until the server runs it again.
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
        ops: &[Op],
    ) -> Result<Replies, WireError> {
        let call = async {
            match connection.call(ops, ScriptBy::Hash).await {
                Err(WireError::NoScript) => connection.call(ops, ScriptBy::Text).await,
                outcome => outcome,
            }
        };
        tokio::select! {
            biased;
            outcome = call => outcome,
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
        ops: &[Op],
        batch: &[Entry],
        sent_at: Instant,
    ) -> Result<Replies, WireError> {
        let mut call = connection.call(ops, ScriptBy::Hash);
        let mut deadline = sent_at + self.timing.call;
        let mut stage = Stage::Fresh;
        loop {
            // Biased: a reply that is there counts, whatever the timers say.
            tokio::select! {
                biased;
                outcome = &mut call => match outcome {
                    Err(WireError::NoScript) => call = connection.call(ops, ScriptBy::Text),
                    outcome => {
                        if stage == Stage::Overdue && !matches!(outcome, Err(WireError::Closed(_))) {
                            self.set_reach(Reach::Up);
                        }
                        return outcome;
                    }
                },
                why = &mut *closed => return Err(WireError::Closed(why)),
                () = self.env.sleep_until(deadline) => match stage {
                    Stage::Fresh if self.env.now() > deadline + STALL_GRACE => {
                        (stage, deadline) = (Stage::Stalled, self.env.now() + STALL_GRACE);
                    }
                    Stage::Fresh | Stage::Stalled => {
                        self.answer_unknown(batch, &WhyKind::Timeout(self.timing.call), true);
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

    fn note_round_trip(&self, operations: usize, took: Duration) {
        self.observer.on_call(operations, took);
        self.known().round_trip = Some(took);
    }

    fn deliver(&self, batch: &[Entry], replies: Replies) {
        for (entry, reply) in batch.iter().zip(replies.replies) {
            if let Reply::Unknown(why) = &reply {
                self.observer.on_error(why.kind.label());
            }
            entry.reply_to.on_reply(self.index, reply, Some(replies.time));
        }
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
