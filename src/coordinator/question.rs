//! What is asked about an existing lease or a name: release, renewal, check, get. One operation on every node; the answer
//! wakes whoever asked, where the reply that decides arrives.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, LockValue, Owner, RequestKey, Ttl};
use crate::engine::line::Next;
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Stored};
use crate::engine::round::{LeaseRound, Occupancy, Survey, Verdict};
use crate::engine::validity::{self, Spent, Validity};
use crate::metrics::{LossReason, RenewalOutcome};
use crate::node::mailbox::{Nobody, ReplyTo};
use crate::node::{Channel, Heard, Key, NodeTime, Op};

use super::attempt::digest;
use super::lock_id::LockId;
use super::waiting::{Tidings, Waiter};
use super::{Coordinator, NoQuorum, attempt, waiting};

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// A quorum deleted the lease.
    Released,
    /// A quorum did not hold it.
    NotHeld,
}

/// What became of a renewal or a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whether a quorum holds it.
    pub held: bool,
    /// What is left of it at the instant of the answer; `None`: nothing.
    pub validity: Option<Validity>,
    /// From the receipt of the request to the same instant.
    pub served_for: Duration,
}

/// A lease that is to go on as another one.
pub struct Adoption {
    /// As it has been known.
    pub old: LockId,
    /// As it shall be known: the same name and token.
    pub new: LockId,
    /// How long it shall last from now on.
    pub ttl: Ttl,
}

/// Who holds a name.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The lease that a quorum holds.
    pub held: Option<Held>,
    /// One for each node.
    pub votes: Vec<(Arc<str>, Vote)>,
}

/// A lease as anybody may see it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The holder's label.
    pub owner: Option<Owner>,
    /// For how long a quorum keeps it.
    pub left: Duration,
    /// The token, if this proxy granted or renewed the lease.
    pub token: Option<Token>,
}

/// What one node said about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// It holds the lease that has the quorum.
    Holder(Stored),
    /// It holds something else.
    Other(Stored),
    /// It holds nothing.
    Free,
    /// It did not answer.
    Unknown(String),
}

/// A state machine that decides once.
trait Round: Send {
    type Answer: Send;
    fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Option<Self::Answer>;
}

impl Round for LeaseRound {
    type Answer = Verdict;
    fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Option<Verdict> {
        Self::on_reply(self, node, reply)
    }
}

impl Round for Survey {
    type Answer = Occupancy;
    fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Option<Occupancy> {
        Self::on_reply(self, node, reply)
    }
}

/// One question to all nodes.
struct Question<R: Round> {
    state: Mutex<Asked<R>>,
    decided: Notify,
}

struct Asked<R: Round> {
    round: R,
    answer: Option<R::Answer>,
}

impl<R: Round> Question<R> {
    fn with<T>(&self, work: impl FnOnce(&mut Asked<R>) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the answer is known with this reply.
    fn take(&self, node: NodeIndex, reply: Reply) -> bool {
        let decided = self.with(|asked| {
            let answer = asked.round.on_reply(node, reply);
            let decided = answer.is_some();
            if decided {
                asked.answer = answer;
            }
            decided
        });
        if decided {
            self.decided.notify_one();
        }
        decided
    }

    fn new(round: R) -> Self {
        Self { state: Mutex::new(Asked { round, answer: None }), decided: Notify::new() }
    }

    /// Every operation is answered, by its node or by a time-out; so this ends.
    async fn answer(&self) -> R::Answer {
        loop {
            self.decided.notified().await;
            if let Some(answer) = self.with(|asked| asked.answer.take()) {
                return answer;
            }
        }
    }
}

impl<R: Round> ReplyTo for Question<R> {
    fn on_reply(&self, node: NodeIndex, reply: Reply, _: Option<Heard>) {
        self.take(node, reply);
    }
}

/// A release, and who has its turn after it.
struct Releasing {
    question: Question<LeaseRound>,
    coordinator: Arc<Coordinator>,
    channel: Channel,
    state: Mutex<Yielding>,
}

#[derive(Default)]
struct Yielding {
    /// The head of the line here: it tries after others, if there are others.
    head: Option<Arc<Waiter>>,
    others_wait: bool,
}

impl Releasing {
    fn state(&self) -> MutexGuard<'_, Yielding> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody else than this proxy was told.
    fn told_others(&self, node: NodeIndex, reply: &Reply) -> bool {
        match reply {
            // Whoever is not there is not asked for.
            Reply::Released { heard: Some(0) } => false,
            Reply::Released { heard: Some(heard) } => {
                *heard > u32::from(self.coordinator.links[node].ear().hears(self.channel))
            }
            // Nobody was told, so nobody knows.
            Reply::Released { heard: None } => true,
            _ => false,
        }
    }
}

impl ReplyTo for Releasing {
    fn on_reply(&self, node: NodeIndex, reply: Reply, _: Option<Heard>) {
        if self.told_others(node, &reply) {
            self.state().others_wait = true;
        }
        if self.question.take(node, reply) {
            let Yielding { head, others_wait } = std::mem::take(&mut *self.state());
            let tidings = if others_wait { Tidings::Yield } else { Tidings::Released };
            if let Some(head) = head {
                head.wake(tidings);
            }
        }
    }
}

/// The renewals under way at this proxy, by lease: once it has been released, none of them may give a node its key back. A
/// slow node can say "lost" to a renewal after the others made it succeed and its client has released the lease; and in a
/// batch the release goes first. The key would then stay until its TTL has passed.
#[derive(Default)]
pub(super) struct Renewals(Mutex<BTreeMap<LockValue, UnderWay>>);

struct UnderWay {
    renewals: usize,
    released: bool,
}

impl Renewals {
    fn under_way(&self) -> MutexGuard<'_, BTreeMap<LockValue, UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, value: &LockValue) {
        self.under_way().entry(value.clone()).or_insert(UnderWay { renewals: 0, released: false }).renewals += 1;
    }

    fn end(&self, value: &LockValue) {
        let mut under_way = self.under_way();
        if let Some(lease) = under_way.get_mut(value) {
            lease.renewals -= 1;
            if lease.renewals == 0 {
                under_way.remove(value);
            }
        }
    }

    /// To be called before the release is posted.
    fn released(&self, value: &LockValue) {
        if let Some(lease) = self.under_way().get_mut(value) {
            lease.released = true;
        }
    }

    /// Posts a repair unless the lease has been released. Under the lock, so that it can not end up behind the release.
    fn unless_released(&self, value: &LockValue, post: impl FnOnce()) {
        let under_way = self.under_way();
        if under_way.get(value).is_some_and(|lease| !lease.released) {
            post();
        }
    }
}

/// A renewal gives nodes that lost the key (a restart) their key back, once it has succeeded. They do not count for it.
struct Renewal {
    question: Question<LeaseRound>,
    repair: Mutex<Repair>,
    coordinator: Arc<Coordinator>,
    key: Key,
    id: LockId,
    ttl: Ttl,
    posted: Instant,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.coordinator.renewals.end(&self.id.value);
    }
}

struct Repair {
    /// Nodes without the key, and when a lease that counts from their reply ends on their own clock.
    missing: Vec<(NodeIndex, NodeTime)>,
    renewed: bool,
}

impl Renewal {
    fn succeeded(&self) {
        let missing = {
            let mut repair = self.repair();
            repair.renewed = true;
            std::mem::take(&mut repair.missing)
        };
        missing.into_iter().for_each(|(node, ends_at)| self.post_repair(node, ends_at));
    }

    fn repair(&self) -> MutexGuard<'_, Repair> {
        self.repair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post_repair(&self, node: NodeIndex, ends_at: NodeTime) {
        let op = Op::Repair { key: self.key.clone(), value: self.id.value.clone(), ends_at };
        let link = &self.coordinator.links[node];
        self.coordinator.renewals.unless_released(&self.id.value, || link.post(op, Arc::new(Nobody), self.posted));
    }
}

impl ReplyTo for Renewal {
    fn on_reply(&self, node: NodeIndex, reply: Reply, heard: Option<Heard>) {
        if let (Reply::Absent, Some(heard)) = (&reply, heard) {
            let ends_at = heard.time.plus_millis(self.ttl.as_millis());
            let mut repair = self.repair();
            if repair.renewed {
                drop(repair);
                self.post_repair(node, ends_at);
            } else {
                repair.missing.push((node, ends_at));
            }
        }
        let healed = mutant!("renewal-counts-healed-nodes") && reply == Reply::Absent;
        let reply = if healed { Reply::Held { left_ms: self.ttl.as_millis() } } else { reply };
        self.question.take(node, reply);
    }
}

impl Coordinator {
    fn ask(&self, reply_to: &Arc<impl ReplyTo + 'static>, now: Instant, op: Op) {
        let op = Arc::new(op);
        for link in &self.links {
            link.post(op.clone(), reply_to.clone(), now);
        }
    }

    /// Deletes a lease everywhere, or hands the lock over to whoever waits for it at this proxy.
    pub async fn release(self: &Arc<Self>, id: &LockId) -> Result<Released, NoQuorum> {
        self.renewals.released(&id.value);
        let turns = self.turns(id);
        self.ledger.forget(id);
        let releasing = self.post_release(id, turns);
        match releasing.question.answer().await {
            Verdict::Held => {
                if let Ok(held) = self.env.wall_clock().duration_since(id.granted_at) {
                    self.metrics.released(held);
                }
                Ok(Released::Released)
            }
            Verdict::NotHeld => Ok(Released::NotHeld),
            Verdict::Unknown => Err(self.no_quorum(releasing.question.with(|asked| asked.round.report()))),
        }
    }

    /// How often in a row the lock was handed over until this lease. Where nobody remembers, chance lets others have their turns
    /// as often.
    fn turns(&self, id: &LockId) -> u32 {
        let limit = self.settings.handover_limit;
        let by_chance = || if self.env.random().is_multiple_of(u64::from(limit) + 1) { limit } else { 0 };
        self.ledger.turns(id).unwrap_or_else(by_chance)
    }

    fn post_release(self: &Arc<Self>, id: &LockId, turns: u32) -> Arc<Releasing> {
        let next = self.waiting.on_release(&id.name, turns >= self.settings.handover_limit);
        let head = if let Next::Yields(head) = &next { Some(head.clone()) } else { None };
        let releasing = Arc::new(Releasing {
            question: Question::new(LeaseRound::release(self.settings.quorum)),
            coordinator: self.clone(),
            channel: self.wake_channel(&id.name),
            state: Mutex::new(Yielding { head, others_wait: false }),
        });
        if let Next::Heir(heir) = next {
            waiting::hand(&heir, attempt::hand_over(self, &heir.spec, &id.value, turns + 1, &releasing));
            return releasing;
        }
        let (key, wake) = (self.key(&id.name), self.wake_up());
        let release = Op::Release { key, value: id.value.clone(), wake: Some(wake) };
        self.ask(&releasing, self.env.now(), release);
        // What the next in line sends comes after the release.
        if let Next::Trying(head) = next {
            head.wake(Tidings::Released);
        }
        releasing
    }

    /// Lets the TTL of a lease count from now.
    pub async fn renew(self: &Arc<Self>, id: &LockId, ttl: Ttl, received: Instant) -> Result<Lease, NoQuorum> {
        let key = self.key(&id.name);
        let op = Op::Renew { key, value: id.value.clone(), ttl };
        self.prolong(id, ttl, received, self.turns(id), op).await
    }

    /// Lets a lease go on as another one: what is done with the lock id that it had has no effect any more. Nothing is deleted
    /// if that fails: its holder keeps the validity that it had.
    pub async fn adopt(self: &Arc<Self>, adoption: &Adoption, received: Instant) -> Result<Lease, NoQuorum> {
        let Adoption { old, new, ttl } = adoption;
        let key = self.key(&new.name);
        let op = Op::Adopt { key, old: old.value.clone(), new: new.value.clone(), ttl: *ttl };
        self.prolong(new, *ttl, received, self.turns(old), op).await
    }

    /// What a lease shall be known by from now on. A retry has a higher `attempt`.
    pub fn adoption(&self, old: LockId, ttl: Ttl, attempt: u32) -> Adoption {
        let request =
            RequestKey { request: adoptions_of(&old.value), attempt, try_number: self.tries.fetch_add(1, Ordering::Relaxed) };
        let owner = LockValue::public_label(old.value.as_str().as_bytes());
        let value = LockValue::new(self.env.secret(), Some(request), owner.as_ref());
        let value = if mutant!("adoption-keeps-the-old-value") { old.value.clone() } else { value };
        Adoption { new: LockId { value, ..old.clone() }, old, ttl }
    }

    /// Has an operation on every node make the lease `id` last for `ttl` from now. Succeeds with a quorum that held it.
    async fn prolong(
        self: &Arc<Self>,
        id: &LockId,
        ttl: Ttl,
        received: Instant,
        turns: u32,
        op: Op,
    ) -> Result<Lease, NoQuorum> {
        let (started, sleeps) = (self.env.now(), self.sleeps());
        let key = self.key(&id.name);
        self.renewals.begin(&id.value);
        let renewal = Arc::new(Renewal {
            question: Question::new(LeaseRound::new(self.settings.quorum)),
            repair: Mutex::new(Repair { missing: Vec::new(), renewed: false }),
            coordinator: self.clone(),
            key: key.clone(),
            id: id.clone(),
            ttl,
            posted: started,
        });
        self.ask(&renewal, started, op);
        let verdict = renewal.question.answer().await;
        if self.sleeps() != sleeps {
            // Our clock stood still meanwhile: nobody knows for how long.
            self.metrics.renewal(RenewalOutcome::NoQuorum);
            let said =
                self.links.iter().map(|_| "its answer does not count: this proxy's machine was suspended meanwhile".to_owned());
            return Err(self.no_quorum(said.collect()));
        }
        if verdict == Verdict::Unknown {
            self.metrics.renewal(RenewalOutcome::NoQuorum);
            return Err(self.no_quorum(renewal.question.with(|asked| asked.round.report())));
        }
        let now = self.env.now();
        let spent = Spent::between(received, started, now);
        let validity = validity::validity(ttl, spent, self.settings.drift);
        let lease = |held, validity| Lease { held, validity, served_for: now - received };
        if verdict == Verdict::Held && validity.is_some() {
            renewal.succeeded();
            let ends = started + ttl.as_duration();
            // After a release nobody may be told that it is held.
            self.renewals.unless_released(&id.value, || self.ledger.note(id, started, ends, turns));
            self.metrics.renewal(RenewalOutcome::Renewed);
            return Ok(lease(true, validity));
        }
        if mutant!("renewal-deletes-when-lost") {
            self.ask(&Arc::new(Nobody), now, Op::Release { key, value: id.value.clone(), wake: None });
        }
        self.ledger.forget(id);
        self.metrics.renewal(RenewalOutcome::Lost);
        let adopted = renewal.question.with(|asked| asked.round.found(|value| is_adoption_of(&id.value, value)));
        self.metrics.lease_lost(match verdict {
            Verdict::Held => LossReason::TooLate,
            Verdict::NotHeld | Verdict::Unknown if adopted => LossReason::Adopted,
            Verdict::NotHeld | Verdict::Unknown => LossReason::NotHeldByQuorum,
        });
        let left_ms = renewal.question.with(|asked| asked.round.left_ms(ttl.as_millis()));
        Ok(lease(false, left_ms.and_then(|ms| validity::remaining(ms, spent, self.settings.drift))))
    }

    /// Whether a quorum still holds a lease.
    pub async fn check(&self, id: &LockId, received: Instant) -> Result<Lease, NoQuorum> {
        let started = self.env.now();
        let question = Arc::new(Question::new(LeaseRound::new(self.settings.quorum)));
        self.ask(&question, started, Op::Check { key: self.key(&id.name), value: id.value.clone() });
        let verdict = question.answer().await;
        if verdict == Verdict::Unknown {
            return Err(self.no_quorum(question.with(|asked| asked.round.report())));
        }
        let now = self.env.now();
        let left_ms = question.with(|asked| asked.round.left_ms(0)).filter(|_| verdict == Verdict::Held);
        let spent = Spent::between(received, started, now);
        let validity = left_ms.and_then(|ms| validity::remaining(ms, spent, self.settings.drift));
        Ok(Lease { held: validity.is_some(), validity, served_for: now - received })
    }

    /// Who holds a name, node by node.
    pub async fn get(&self, name: &LockName) -> Result<Holding, NoQuorum> {
        let started = self.env.now();
        let question = Arc::new(Question::new(Survey::new(self.settings.quorum)));
        let key = self.key(name);
        self.ask(&question, started, Op::Inspect { key });
        let occupancy = question.answer().await;
        let spent = Spent { elapsed: self.env.now() - started, ..Spent::default() };
        let (held, by) = match occupancy {
            Occupancy::Unknown => return Err(self.no_quorum(question.with(|asked| asked.round.report()))),
            Occupancy::Free => (None, Vec::new()),
            Occupancy::Held { value, left_ms, by } => {
                let left_ms = left_ms.unwrap_or(Ttl::LONGEST.as_millis());
                let left = validity::remaining(left_ms, spent, self.settings.drift);
                let held = Held {
                    owner: LockValue::public_label(&value),
                    left: left.map(Validity::as_duration).unwrap_or_default(),
                    token: self.ledger.token(name, &value),
                };
                (Some(held), by)
            }
        };
        let votes = question
            .with(|asked| asked.round.replies().enumerate().map(|(node, r)| vote(r, by.contains(&node))).collect::<Vec<_>>());
        Ok(Holding { held, votes: self.addresses().cloned().zip(votes).collect() })
    }
}

/// What the values have in common that take the place of one.
fn adoptions_of(value: &LockValue) -> u128 {
    digest([b"adopt", value.as_str().as_bytes()])
}

fn is_adoption_of(old: &LockValue, value: &[u8]) -> bool {
    std::str::from_utf8(value).ok().and_then(LockValue::parse).is_some_and(|value| value.is_of(adoptions_of(old)))
}

fn vote(reply: &Reply, holder: bool) -> Vote {
    match reply {
        Reply::Other(stored) if holder => Vote::Holder(stored.clone()),
        Reply::Other(stored) => Vote::Other(stored.clone()),
        Reply::Absent => Vote::Free,
        Reply::Unknown(why) => Vote::Unknown(why.kind.to_string()),
        _ => Vote::Unknown("a reply of the wrong kind".to_owned()),
    }
}
