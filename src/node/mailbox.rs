//! The operations that wait for a node: bounded, in order, and answered at once when waiting is in vain.
//!
//! A place is taken by every operation, and by the release that a SET may need later, so that a full mailbox can refuse a
//! SET but never loses a release.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::{FxBuildHasher, FxHashSet};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::lease::LockValue;
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Why, WhyKind};

use super::talk::is_plain_set;
use super::{Heard, Op};

/// Releases of leases that are kept for a node that can not be reached: more would cost memory for as long as it is away,
/// and what they would delete expires by itself. The clean-up of attempts is always kept.
const KEPT_RELEASES: usize = 1_024;

/// Whoever waits for the reply to an operation. Called where replies arrive: it must be quick and must not block.
pub trait ReplyTo: Send + Sync {
    /// Asked right before the operation is sent; `false` takes it back.
    fn on_sending(&self, _node: NodeIndex) -> bool {
        true
    }

    /// Who wants to know of the release that is in a hand-over, if that is all that is left to be done of it.
    fn for_release(&self) -> Option<Arc<dyn ReplyTo>> {
        None
    }

    /// The reply. A second one may follow an unknown: the late reply that the time-out stood for. `heard` is what came with
    /// it; `None` if the operation is not known to have run.
    fn on_reply(&self, node: NodeIndex, reply: Reply, heard: Option<Heard>);
}

/// Nobody waits for the reply.
pub struct Nobody;

impl ReplyTo for Nobody {
    fn on_reply(&self, _: NodeIndex, _: Reply, _: Option<Heard>) {}
}

/// Whether operations have a chance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Connected and answering.
    Up,
    /// A call is overdue. What waits behind it is answered unknown at once, until the node answers.
    Silent,
    /// No connection; what the last try said.
    Down(Arc<str>),
    /// Connected to a server that must not be used.
    Unfit(Arc<str>),
    /// Call after call was unanswered: nothing is sent but probes.
    Suspended,
}

impl Reach {
    fn objection(&self) -> Option<WhyKind> {
        match self {
            Self::Up => None,
            Self::Silent => Some(WhyKind::Silent),
            Self::Down(what) => Some(WhyKind::Down(what.clone())),
            Self::Unfit(what) => Some(WhyKind::Unfit(what.clone())),
            Self::Suspended => Some(WhyKind::Suspended),
        }
    }
}

/// A place in a mailbox, given back when dropped.
#[derive(Debug)]
pub struct Place {
    /// The mailbox has one too, and counts them all.
    _taken: Arc<()>,
}

/// An operation on its way.
pub struct Entry {
    /// What to do: the same for all nodes that are asked for it.
    pub op: Arc<Op>,
    /// Who wants to know.
    pub reply_to: Arc<dyn ReplyTo>,
    posted_at: Instant,
    _place: Place,
}

impl Entry {
    /// What is left of it when nothing else can be done any more: its release, if there is one in it.
    pub fn into_release(mut self) -> Option<Self> {
        if mutant!("handover-loses-its-release") && !self.op.is_release() {
            return None;
        }
        if !self.op.is_release() {
            self.op = self.op.release_of()?.into();
            self.reply_to = self.reply_to.for_release().unwrap_or_else(|| Arc::new(Nobody));
        }
        Some(self)
    }
}

/// The operations of one node that are not sent yet.
pub struct Mailbox {
    node: NodeIndex,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    places_taken: Arc<()>,
    places: usize,
    /// A release is of no use after the longest time that a key can live.
    release_lives: Duration,
}

struct Waiting {
    queue: VecDeque<Entry>,
    reach: Reach,
    /// Whoever sends them sleeps until so many are there; `None`: it is awake.
    wake_at: Option<usize>,
}

impl Mailbox {
    /// A mailbox with room for `places` operations.
    pub fn new(node: NodeIndex, places: usize, release_lives: Duration) -> Self {
        let reach = Reach::Down("not connected yet".into());
        Self {
            node,
            waiting: Mutex::new(Waiting { queue: VecDeque::new(), reach, wake_at: None }),
            arrived: Notify::new(),
            places_taken: Arc::default(),
            places,
            release_lives,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can panic half way; a poisoned lock guards good data.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many threads as there are may find the same place free: so many more than `places` can be taken.
    fn take_place(&self, places: usize) -> Option<Place> {
        (self.places_taken() < places).then(|| Place { _taken: self.places_taken.clone() })
    }

    fn places_taken(&self) -> usize {
        Arc::strong_count(&self.places_taken) - 1
    }

    /// Whatever is asked for, a release finds room: there is as much again for releases only.
    fn places_for(&self, op: &Op) -> usize {
        if op.is_release() { 2 * self.places } else { self.places }
    }

    /// Queues an operation. If it can not be sent now, it is answered unknown at once; a release is kept all the same,
    /// for when the node can be reached, unless too many are.
    pub fn post(&self, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        let op = op.into();
        match self.take_place(self.places_for(&op)) {
            Some(place) => self.enqueue(op, reply_to, place, now, KEPT_RELEASES),
            None => self.refuse(&*reply_to, WhyKind::MailboxFull),
        }
    }

    /// Queues a SET or a hand-over together with the place of its release, which the caller keeps for [`Mailbox::post_in`].
    pub fn post_acquire(&self, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) -> Option<Place> {
        let op = op.into();
        let (Some(place), Some(reserved)) = (self.take_place(self.places), self.take_place(self.places)) else {
            self.refuse(&*reply_to, WhyKind::MailboxFull);
            // What is released is not kept because there is no room for whoever comes next.
            if let (Some(release), Some(to)) = (op.release_of(), reply_to.for_release()) {
                self.post(release, to, now);
            }
            return None;
        };
        self.enqueue(op, reply_to, place, now, KEPT_RELEASES);
        Some(reserved)
    }

    /// Queues an operation in a place that was reserved for it: never full.
    pub fn post_in(&self, place: Place, op: impl Into<Arc<Op>>, reply_to: Arc<dyn ReplyTo>, now: Instant) {
        self.enqueue(op.into(), reply_to, place, now, usize::MAX);
    }

    /// `keep`: how many may wait for a node that can not be reached for this release to join them.
    fn enqueue(&self, op: Arc<Op>, reply_to: Arc<dyn ReplyTo>, place: Place, now: Instant, keep: usize) {
        let mut waiting = self.waiting();
        let Some(objection) = waiting.reach.objection() else {
            waiting.queue.push_back(Entry { op, reply_to, posted_at: now, _place: place });
            // Not at each: whoever sends them would only count them and go back to sleep.
            let here = waiting.queue.len();
            let enough = waiting.wake_at.take_if(|count| here >= *count).is_some();
            drop(waiting);
            if enough {
                self.arrived.notify_one();
            }
            return;
        };
        if waiting.queue.len() < keep {
            let entry = Entry { op, reply_to: reply_to.clone(), posted_at: now, _place: place };
            waiting.queue.extend(entry.into_release());
        }
        drop(waiting);
        self.refuse(&*reply_to, objection);
    }

    fn refuse(&self, reply_to: &dyn ReplyTo, kind: WhyKind) {
        reply_to.on_reply(self.node, Reply::Unknown(Why { kind, may_have_landed: false }), None);
    }

    /// Sets whether operations have a chance. If not, everything that waits is answered so, and dropped unless it is a
    /// release.
    pub fn set_reach(&self, reach: Reach, now: Instant) {
        let objection = reach.objection();
        // Dropped when the lock is free again.
        let (unanswered, _dropped): (Vec<Arc<dyn ReplyTo>>, VecDeque<Entry>) = {
            let mut waiting = self.waiting();
            let before = std::mem::replace(&mut waiting.reach, reach);
            if objection.is_none() {
                Default::default()
            } else {
                let queue = std::mem::take(&mut waiting.queue);
                // What came while there was no chance was answered when it came.
                let answered = before.objection().is_some();
                let left_waiting = |entry: &Entry| mutant!("queued-release-is-not-answered") && entry.op.is_release();
                let waits = queue.iter().filter(|entry| !answered && !left_waiting(entry));
                let unanswered = waits.map(|entry| entry.reply_to.clone()).collect();
                let (kept, dropped): (VecDeque<Entry>, _) = queue
                    .into_iter()
                    .partition(|entry| entry.op.release_of().is_some() && now - entry.posted_at < self.release_lives);
                waiting.queue = kept.into_iter().filter_map(Entry::into_release).collect();
                (unanswered, dropped)
            }
        };
        match objection {
            None => self.arrived.notify_one(),
            Some(kind) => unanswered.iter().for_each(|reply_to| self.refuse(&**reply_to, kind.clone())),
        }
    }

    /// Puts releases whose connection broke back at the head: they are sent again after the next probe.
    pub fn put_back(&self, releases: Vec<Entry>) {
        let mut waiting = self.waiting();
        for entry in releases.into_iter().rev() {
            waiting.queue.push_front(entry);
        }
    }

    /// Until so many operations wait. Safe to cancel.
    pub async fn holds(&self, count: usize) {
        while !self.holds_or_wakes(count) {
            self.arrived.notified().await;
        }
    }

    /// Whether so many wait; if not, [`Mailbox::arrived`] tells when they do.
    fn holds_or_wakes(&self, count: usize) -> bool {
        let mut waiting = self.waiting();
        let holds = waiting.queue.len() >= count;
        waiting.wake_at = (!holds).then_some(count);
        holds
    }

    /// The next operations to send, at least one and at most `max`; releases first. Waits for them. Safe to cancel.
    pub async fn next_batch(&self, max: usize) -> Vec<Entry> {
        // Whoever was woken by the last replies has a turn first: what they post goes along, and the node is woken once for all.
        tokio::task::yield_now().await;
        loop {
            let batch = self.take(max);
            if !batch.is_empty() {
                return batch;
            }
            // All that was taken may have been taken back, with more behind it.
            self.holds(1).await;
        }
    }

    fn take(&self, max: usize) -> Vec<Entry> {
        let taken: Vec<Entry> = {
            let mut waiting = self.waiting();
            let count = waiting.queue.len().min(max);
            waiting.queue.drain(..count).collect()
        };
        let to_send = |entry: Entry| match entry.reply_to.on_sending(self.node) {
            true => Some(entry),
            false if entry.op.is_release() => None,
            // Taken back, but for the release in it.
            false => entry.into_release(),
        };
        in_order(taken.into_iter().filter_map(to_send).collect())
    }

    /// What [`Mailbox::set_reach`] set last.
    pub fn reach(&self) -> Reach {
        self.waiting().reach.clone()
    }

    /// Operations that wait.
    pub fn len(&self) -> usize {
        self.waiting().queue.len()
    }

    /// Whether nothing waits, nothing is under way, and nobody has reserved a place.
    pub fn is_idle(&self) -> bool {
        self.places_taken() == 0
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Releases go first: they free keys that others in the batch may want, and memory that a full server needs. Not those with
/// another operation on their value in the same batch, and so before them: a SET would outlive its release, and a renewal
/// would find the key missing and put it back.
///
/// SETs follow, for which a node has a command of its own (see [`super::talk`]). Not those with another operation on their key.
fn in_order(batch: Vec<Entry>) -> Vec<Entry> {
    let releases = batch.iter().filter(|entry| entry.op.is_release()).count();
    let sets = batch.iter().filter(|entry| is_plain_set(&entry.op)).count();
    if [releases, sets].contains(&batch.len()) || releases + sets == 0 {
        return batch;
    }
    let mut turns = turns(&batch).into_iter();
    let (mut first, mut second, mut rest) = (Vec::with_capacity(batch.len()), Vec::with_capacity(sets), Vec::new());
    for entry in batch {
        match turns.next() {
            Some(Turn::First) => first.push(entry),
            Some(Turn::Second) => second.push(entry),
            _ => rest.push(entry),
        }
    }
    first.append(&mut second);
    first.append(&mut rest);
    first
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    First,
    Second,
    Last,
}

/// Of each entry. Values are known by their tags: two with the same one cost a release its turn, and nothing else.
fn turns(batch: &[Entry]) -> Vec<Turn> {
    let mut in_use: FxHashSet<u64> = FxHashSet::with_capacity_and_hasher(batch.len(), FxBuildHasher);
    in_use.extend(batch.iter().flat_map(|entry| entry.op.goes_before_release_of()).map(LockValue::tag));
    let overtakes = mutant!("release-overtakes-its-set");
    let turn = |entry: &Entry| match &*entry.op {
        Op::Release { value, .. } if overtakes || !in_use.contains(&value.tag()) => Turn::First,
        op if is_plain_set(op) => Turn::Second,
        _ => Turn::Last,
    };
    let mut turns: Vec<Turn> = batch.iter().map(turn).collect();
    if !turns.contains(&Turn::Last) {
        return turns;
    }
    let last = batch.iter().zip(&turns).filter(|(_, turn)| **turn == Turn::Last);
    let in_last: FxHashSet<&str> = last.map(|(entry, _)| &**entry.op.key()).collect();
    for (entry, turn) in batch.iter().zip(&mut turns) {
        if *turn == Turn::Second && in_last.contains(&**entry.op.key()) {
            *turn = Turn::Last;
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lease::{RequestKey, Ttl};
    use crate::node::WakeUp;
    use std::sync::atomic::Ordering;

    #[derive(Default)]
    struct Log {
        replies: Mutex<Vec<Reply>>,
        taken_back: std::sync::atomic::AtomicBool,
    }

    impl ReplyTo for Log {
        fn on_sending(&self, _: NodeIndex) -> bool {
            !self.taken_back.load(Ordering::Relaxed)
        }
        fn on_reply(&self, _: NodeIndex, reply: Reply, _: Option<Heard>) {
            self.replies.lock().unwrap().push(reply);
        }
    }

    fn value(nonce: u128) -> LockValue {
        LockValue::new(nonce, None, None)
    }

    fn acquire(nonce: u128) -> Op {
        let ttl = Ttl::from_millis(1000, Ttl::LONGEST).unwrap();
        Op::Acquire { key: "k".into(), value: value(nonce), ttl, bucket: None }
    }

    fn wake() -> WakeUp {
        WakeUp { sender: "me.1".into() }
    }

    fn release(nonce: u128) -> Op {
        Op::Release { key: "k".into(), value: value(nonce), wake: None }
    }

    fn up(places: usize) -> Mailbox {
        let mailbox = Mailbox::new(0, places, Duration::from_secs(300));
        mailbox.set_reach(Reach::Up, Instant::now());
        mailbox
    }

    fn ops(batch: &[Entry]) -> Vec<Op> {
        batch.iter().map(|entry| (*entry.op).clone()).collect()
    }

    #[test]
    fn a_full_mailbox_refuses_a_set_but_never_its_release() {
        let (mailbox, log, now) = (up(4), Arc::new(Log::default()), Instant::now());
        let reserved = mailbox.post_acquire(acquire(1), log.clone(), now);
        let second = mailbox.post_acquire(acquire(2), log.clone(), now);
        assert!(second.is_some());
        assert!(mailbox.post_acquire(acquire(3), log.clone(), now).is_none());
        let full = Why { kind: WhyKind::MailboxFull, may_have_landed: false };
        assert_eq!(*log.replies.lock().unwrap(), [Reply::Unknown(full)]);
        mailbox.post_in(reserved.unwrap(), release(1), log.clone(), now);
        assert_eq!(mailbox.len(), 3);
        let under_way = mailbox.take(9);
        drop(second);
        assert!(mailbox.is_empty() && !mailbox.is_idle(), "what is under way keeps its place");
        drop(under_way);
        assert!(mailbox.is_idle(), "every place comes back");
    }

    #[test]
    fn a_release_does_not_overtake_what_was_asked_of_its_lease() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        let ttl = Ttl::from_millis(1000, Ttl::LONGEST).unwrap();
        let renewal = |nonce| Op::Renew { key: "k".into(), value: value(nonce), ttl };
        let check = |nonce| Op::Check { key: "k".into(), value: value(nonce) };
        let posted = [renewal(1), check(2), release(1), release(2), release(3)];
        for op in posted {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(3), renewal(1), check(2), release(1), release(2)]);
        let adoption = Op::Adopt { key: "k".into(), old: value(4), new: value(5), ttl };
        for op in [adoption.clone(), release(4), release(5), release(3)] {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(3), adoption, release(4), release(5)]);
    }

    /// Their tags are the same: it may be the value that is set.
    #[test]
    fn a_release_does_not_overtake_another_set_of_its_request() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        let of = |try_number| LockValue::new(3, Some(RequestKey { request: 5, attempt: 1, try_number }), None);
        let ttl = Ttl::from_millis(1000, Ttl::LONGEST).unwrap();
        let set = Op::Acquire { key: "k".into(), value: of(2), ttl, bucket: None };
        let earlier = Op::Release { key: "k".into(), value: of(1), wake: None };
        for op in [set.clone(), earlier.clone(), release(9)] {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(9), set, earlier]);
    }

    #[tokio::test]
    async fn whoever_sends_is_woken_when_enough_is_there() {
        let (mailbox, log, now) = (Arc::new(up(99)), Arc::new(Log::default()), Instant::now());
        for wanted in [3, 1] {
            let sender = mailbox.clone();
            let woken = tokio::spawn(async move { sender.holds(wanted).await });
            tokio::task::yield_now().await;
            for nonce in 0..wanted {
                assert!(!woken.is_finished());
                mailbox.post(release(nonce as u128), log.clone(), now);
                tokio::task::yield_now().await;
            }
            tokio::time::timeout(Duration::from_secs(10), woken).await.expect("woken").unwrap();
            mailbox.take(9);
        }
    }

    /// For these a node has a command of its own.
    #[test]
    fn sets_follow_the_releases_unless_more_is_asked_of_their_keys() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        let at = |key: &str, op: Op| match op {
            Op::Acquire { value, ttl, bucket, .. } => Op::Acquire { key: key.into(), value, ttl, bucket },
            Op::Release { value, wake, .. } => Op::Release { key: key.into(), value, wake },
            other => other,
        };
        let inspect = |key: &str| Op::Inspect { key: key.into() };
        let [one, two, three] = [("a", 1), ("b", 2), ("c", 3)].map(|(key, nonce)| at(key, acquire(nonce)));
        let counted = Op::Acquire { key: "d".into(), value: value(4), ttl: Ttl::LONGEST, bucket: Some(7) };
        // Inspected before, released after, nothing, with the quorum counter.
        let posted = [inspect("a"), counted.clone(), one.clone(), two.clone(), at("b", release(2)), three.clone(), release(9)];
        for op in posted {
            mailbox.post(op, log.clone(), now);
        }
        let order = [release(9), three.clone(), inspect("a"), counted, one, two, at("b", release(2))];
        assert_eq!(ops(&mailbox.take(9)), order);
        for op in [three.clone(), release(9)] {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(9), three]);
    }

    /// Whoever waits for a lock, with somebody who releases it.
    struct Heir {
        waits: Log,
        releases: Arc<Log>,
    }

    impl ReplyTo for Heir {
        fn for_release(&self) -> Option<Arc<dyn ReplyTo>> {
            Some(self.releases.clone())
        }
        fn on_reply(&self, node: NodeIndex, reply: Reply, heard: Option<Heard>) {
            self.waits.on_reply(node, reply, heard);
        }
    }

    fn hand_over(old: u128, new: u128) -> Op {
        let ttl = Ttl::from_millis(1000, Ttl::LONGEST).unwrap();
        Op::HandOver { key: "k".into(), old: value(old), new: value(new), ttl, bucket: None, wake: wake() }
    }

    #[test]
    fn a_full_mailbox_has_room_for_releases_and_for_that_of_a_hand_over() {
        let (mailbox, log, now) = (up(2), Arc::new(Log::default()), Instant::now());
        let _set = mailbox.post_acquire(acquire(1), log.clone(), now).unwrap();
        mailbox.post(release(5), log.clone(), now);
        assert!(log.replies.lock().unwrap().is_empty(), "not refused");
        let heir = Arc::new(Heir { waits: Log::default(), releases: Arc::default() });
        assert!(mailbox.post_acquire(hand_over(6, 7), heir.clone(), now).is_none());
        let full = Reply::Unknown(Why { kind: WhyKind::MailboxFull, may_have_landed: false });
        assert_eq!(*heir.waits.replies.lock().unwrap(), [full]);
        let of_the_handover = hand_over(6, 7).release_of().unwrap();
        assert_eq!(ops(&mailbox.take(9)), [release(5), of_the_handover, acquire(1)]);
    }

    #[test]
    fn a_repeated_release_does_not_overtake_the_hand_over_of_its_lease() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        for op in [hand_over(1, 2), release(1), release(2), release(3)] {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(3), hand_over(1, 2), release(1), release(2)]);
    }

    #[test]
    fn releases_go_first_but_not_before_their_own_set() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        for op in [acquire(1), release(9), acquire(2), release(2)] {
            mailbox.post(op, log.clone(), now);
        }
        assert_eq!(ops(&mailbox.take(9)), [release(9), acquire(1), acquire(2), release(2)]);
    }

    #[test]
    fn what_is_taken_back_is_not_sent() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        mailbox.post(acquire(1), log.clone(), now);
        log.taken_back.store(true, Ordering::Relaxed);
        assert!(mailbox.take(9).is_empty());
        assert!(mailbox.is_empty());
    }

    #[test]
    fn only_releases_outlive_the_connection() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        mailbox.post(acquire(1), log.clone(), now);
        mailbox.post(release(2), log.clone(), now);
        let answered = || log.replies.lock().unwrap().iter().filter(|reply| matches!(reply, Reply::Unknown(_))).count();
        mailbox.set_reach(Reach::Silent, now);
        assert_eq!(answered(), 2, "both are answered unknown: nobody waits for a node that may not come back");
        mailbox.post(acquire(3), log.clone(), now);
        assert_eq!(answered(), 3, "and so is a new one, at once");
        mailbox.post(release(4), log.clone(), now);
        assert_eq!(answered(), 4);
        mailbox.set_reach(Reach::Down("gone".into()), now);
        assert_eq!(answered(), 4, "nobody is told twice");
        assert_eq!(ops(&mailbox.take(9)), [release(2), release(4)]);
    }

    #[test]
    fn a_node_that_is_away_costs_bounded_memory_and_no_clean_up() {
        let (mailbox, log, now) = (up(9_999), Arc::new(Log::default()), Instant::now());
        let reserved = mailbox.post_acquire(acquire(1), log.clone(), now).unwrap();
        mailbox.set_reach(Reach::Silent, now);
        for nonce in 2..5_000 {
            mailbox.post(release(nonce), log.clone(), now);
        }
        assert_eq!(mailbox.len(), KEPT_RELEASES);
        mailbox.post_in(reserved, release(1), log.clone(), now);
        assert_eq!(mailbox.len(), KEPT_RELEASES + 1);
    }

    #[test]
    fn a_release_is_dropped_when_its_key_must_have_expired() {
        let (mailbox, log, now) = (up(99), Arc::new(Log::default()), Instant::now());
        mailbox.post(release(1), log.clone(), now);
        mailbox.set_reach(Reach::Silent, now + Duration::from_secs(301));
        assert!(mailbox.is_empty());
    }
}
