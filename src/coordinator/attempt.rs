//! Taking a lock: one task for each caller, one ballot for each try.
//!
//! A try reads the start instant, posts a SET to every node, and sleeps. Votes are counted where the replies arrive; the one
//! that makes the quorum also asks for the token, so that the task is woken once, when all is known. Whatever happens after
//! that, the try ends in one of two ways: its [`Grant`] is delivered, or the ballot is given up and cleaned up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::engine::fencing::{Count, Counts, Token};
use crate::engine::lease::{LockName, LockValue, Owner, RequestKey, Ttl};
use crate::engine::line::Full;
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, WhyKind};
use crate::engine::round::{AcquireRound, Loss, Step};
use crate::engine::validity::{self, Spent, Validity, votes_within};
use crate::metrics::AttemptOutcome;
use crate::node::link::{Link, STALL_GRACE};
use crate::node::mailbox::{Place, ReplyTo};
use crate::node::{Heard, Op};

use super::buckets::bucket;
use super::fence::TokenTo;
use super::lock_id::LockId;
use super::standing::{self, RETRY};
use super::waiting::LineView;
use super::{Coordinator, Counter, NoQuorum, NodeWord};

/// What a caller wants; every field is within its bounds.
#[derive(Clone, Debug)]
pub struct AcquireSpec {
    /// What to lock.
    pub name: LockName,
    /// For how long.
    pub ttl: Ttl,
    /// How long to wait for it.
    pub wait: Duration,
    /// The public label.
    pub owner: Option<Owner>,
    /// Whether a grant without a token is of no use.
    pub token_required: bool,
    /// The client's request id and its number of the try.
    pub request: Option<(Vec<u8>, u32)>,
    /// The least validity that is of use, in milliseconds.
    pub min_validity_ms: u64,
    /// When the request came.
    pub received: Instant,
    /// When the client stops listening.
    pub deadline: Option<Instant>,
}

/// Why a lock was not taken. Nothing of ours stays on the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireFailure {
    /// Somebody else has it.
    Contended {
        /// The holder's label.
        owner: Option<Owner>,
        /// When it may be free.
        retry_after: Duration,
        /// A quorum of the nodes has named the same holder: it keeps the lock until it gives it back, or its lease ends.
        settled: bool,
        /// Those who wait for it at this proxy.
        line: LineView,
    },
    /// Too many wait already.
    LineFull(Full),
    /// Too few nodes replied.
    NoQuorum(NoQuorum),
    /// The fencing counter did not answer.
    NoToken(NodeWord),
    /// The votes or the token came so late that too little was left of the TTL.
    TooLate {
        /// From the start of the try to the last reply.
        elapsed: Duration,
        /// What the lease would have lasted.
        ttl: Ttl,
    },
    /// The client's deadline passed.
    Deadline,
    /// The proxy is shutting down.
    Draining,
}

/// A lease that has been granted, until its answer has been delivered. Dropped before that, it is released.
pub struct Grant {
    ballot: Arc<Ballot>,
    /// The token, or why there is none.
    pub token: Result<Token, WhyKind>,
    delivered: bool,
}

impl Grant {
    /// What is left of the lease now, and the time since the receipt of the request; `None` if it is too little.
    pub fn answer(&self) -> Option<(Validity, Duration)> {
        let now = self.ballot.coordinator.env.now();
        let left = self.ballot.validity(now)?;
        Some((left, now - self.ballot.received))
    }

    /// The lease as its holder shall know it.
    pub fn lock_id(&self) -> LockId {
        LockId {
            name: self.ballot.name.clone(),
            value: self.ballot.value.clone(),
            token: self.token.as_ref().ok().copied(),
            granted_at: self.ballot.coordinator.env.wall_clock(),
        }
    }

    /// When the operations began that it stands by.
    pub(super) fn started(&self) -> Instant {
        self.ballot.started
    }

    /// What others are told meanwhile.
    pub(super) fn held(&self) -> AcquireFailure {
        let ends = self.ballot.started + self.ballot.ttl.as_duration();
        let retry_after = ends.saturating_duration_since(self.ballot.coordinator.env.now());
        AcquireFailure::Contended { owner: self.ballot.owner.clone(), retry_after, settled: true, line: LineView::default() }
    }

    /// The answer has been written: from now on the lease is the client's.
    pub fn delivered(mut self) {
        self.delivered = true;
        self.ballot.lock().places.fill_with(|| None);
        let (coordinator, started) = (&self.ballot.coordinator, self.ballot.started);
        let ends = started + self.ballot.ttl.as_duration();
        coordinator.ledger.note(&self.lock_id(), started, ends, self.ballot.turns);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.delivered {
            self.ballot.abandon();
        }
    }
}

/// Where the votes of one try are counted.
pub(super) struct Ballot {
    name: LockName,
    owner: Option<Owner>,
    value: LockValue,
    ttl: Ttl,
    min_validity_ms: u64,
    received: Instant,
    started: Instant,
    /// How often our machine had slept by then.
    sleeps: u64,
    /// How often in a row the lock was handed over within its line, this time included; 0: it is taken from nobody.
    turns: u32,
    /// With the quorum counter: what counts for its name.
    bucket: Option<u16>,
    coordinator: Arc<Coordinator>,
    this: Weak<Self>,
    state: Mutex<BallotState>,
    decided: Notify,
}

struct BallotState {
    round: AcquireRound,
    /// With the quorum counter: what the nodes counted.
    counts: Option<Counts>,
    /// Reserved in each mailbox for the release that may be needed.
    places: Vec<Option<Place>>,
    result: Option<VoteResult>,
}

/// How a vote ended.
#[derive(Clone, Debug)]
enum VoteResult {
    Lost(Loss),
    /// A quorum, and then the token or why there is none.
    Quorum(Result<Token, WhyKind>),
}

impl Ballot {
    fn lock(&self) -> MutexGuard<'_, BallotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it came with the release of the holder before.
    pub fn inherits(&self) -> bool {
        self.turns > 0
    }

    /// Posts the SETs for these nodes.
    fn ask(self: &Arc<Self>, nodes: impl IntoIterator<Item = NodeIndex>) {
        let (links, key) = (&self.coordinator.links, self.coordinator.key(&self.name));
        let op = Arc::new(Op::Acquire { key, value: self.value.clone(), ttl: self.ttl, bucket: self.bucket });
        let post = |node: NodeIndex| (node, links[node].post_acquire(op.clone(), self.clone(), self.started));
        self.keep_places(nodes.into_iter().map(post).collect());
    }

    /// Keeps the places of releases, for as long as they may be needed.
    fn keep_places(&self, places: Vec<(NodeIndex, Option<Place>)>) {
        let state = &mut *self.lock();
        if !state.round.is_given_up() {
            places.into_iter().for_each(|(node, place)| state.places[node] = place);
        }
    }

    fn advance(&self, step: Step) {
        match step {
            Step::Wait => {}
            // The ballot is alive: whoever calls this holds it.
            Step::AskTheOthers => {
                let others = self.lock().round.others();
                if let Some(this) = self.this.upgrade() {
                    this.ask(others);
                }
            }
            Step::GiveUp(loss) => self.conclude(VoteResult::Lost(loss)),
            // The ballot is alive: whoever calls this holds it.
            Step::Grant => match (&self.coordinator.counter, self.this.upgrade()) {
                (Counter::Designated(fence), Some(this)) => fence.request(this),
                (Counter::Quorum, Some(this)) => {
                    let count = self.lock().counts.as_mut().map(Counts::on_quorum);
                    count.into_iter().for_each(|count| this.count(count));
                }
                (_, None) => {}
            },
        }
    }

    /// Goes on to the token, with the quorum counter.
    fn count(self: &Arc<Self>, count: Count) {
        match count {
            Count::Token(number) => {
                let out_of_range =
                    || WhyKind::ServerError(format!("the counter stands at {number}, out of the range of tokens").into());
                self.coordinator.metrics.tokens(1, number);
                self.conclude(VoteResult::Quorum(Token::new(number).ok_or_else(out_of_range)));
            }
            Count::Failed => {
                self.coordinator.metrics.tokens_unavailable(1);
                let why = "a quorum granted, but could not be brought to one number before some of it was lost";
                self.conclude(VoteResult::Quorum(Err(WhyKind::ServerError(why.into()))));
            }
            Count::Raise(nodes) => {
                let (now, bucket) = (self.coordinator.env.now(), bucket(self.name.as_str()));
                for (node, token) in nodes {
                    let (key, value) = (self.coordinator.key(&self.name), self.value.clone());
                    let op = Op::RaiseBucket { key, value, bucket, token };
                    self.coordinator.links[node].post(op, Arc::new(Raise(self.clone())), now);
                }
            }
        }
    }

    fn conclude(&self, result: VoteResult) {
        self.lock().result = Some(result);
        self.decided.notify_one();
    }

    /// What is left of the lease, if it is enough.
    fn validity(&self, now: Instant) -> Option<Validity> {
        // Our clock stood still meanwhile: nobody knows for how long.
        if self.coordinator.sleeps() != self.sleeps {
            return None;
        }
        let spent = Spent::between(self.received, self.started, now);
        let left = validity::validity(self.ttl, spent, self.coordinator.settings.drift)?;
        (left.as_millis() >= self.min_validity_ms).then_some(left)
    }

    /// Nobody wants it any more: given up, and the next in line has its turn.
    pub fn abandon(self: &Arc<Self>) {
        self.coordinator.metrics.attempt(AttemptOutcome::Abandoned);
        if mutant!("grant-without-receiver-is-left") {
            return;
        }
        self.give_up();
        self.coordinator.waiting.on_freed(&self.name);
    }

    /// Releases every node that may hold the value; takes back what has not been sent.
    fn give_up(self: &Arc<Self>) {
        let coordinator = &self.coordinator;
        let (releases, tells): (Vec<(NodeIndex, Option<Place>)>, bool) = {
            let state = &mut *self.lock();
            let nodes = state.round.give_up();
            let releases = nodes.into_iter().map(|node| (node, state.places[node].take())).collect();
            state.places.fill_with(|| None);
            // Only what others can have seen as held is told as released: losers that wake each other never end.
            let tells = self.inherits() || state.round.has_quorum();
            (releases, tells)
        };
        if releases.is_empty() {
            return;
        }
        let now = coordinator.env.now();
        let wake = tells.then(|| coordinator.wake_up());
        let op = Arc::new(Op::Release { key: coordinator.key(&self.name), value: self.value.clone(), wake });
        let cleanup = Arc::new(Cleanup(self.clone()));
        for (node, place) in releases {
            let (link, op, cleanup) = (&coordinator.links[node], op.clone(), cleanup.clone());
            match place {
                Some(place) => link.post_in(place, op, cleanup, now),
                None => link.post(op, cleanup, now),
            }
        }
    }
}

impl ReplyTo for Ballot {
    fn on_sending(&self, node: NodeIndex) -> bool {
        self.lock().round.on_sending(node)
    }

    fn on_reply(&self, node: NodeIndex, reply: Reply, _: Option<Heard>) {
        let step = {
            let state = &mut *self.lock();
            if let Reply::Counted { number } | Reply::HandedOver { number: Some(number), no_vote: None, .. } = reply {
                state.counts.iter_mut().for_each(|counts| counts.on_yes(node, number));
            }
            state.round.on_reply(node, reply)
        };
        self.advance(step);
    }
}

/// A node of the quorum that stands lower than the token is raised to it.
struct Raise(Arc<Ballot>);

impl ReplyTo for Raise {
    fn on_reply(&self, node: NodeIndex, reply: Reply, _: Option<Heard>) {
        let count = self.0.lock().counts.as_mut().and_then(|counts| counts.on_raised(node, reply == Reply::Yes));
        if let Some(count) = count {
            self.0.count(count);
        }
    }
}

impl TokenTo for Ballot {
    fn on_token(&self, token: Result<Token, WhyKind>) {
        self.conclude(VoteResult::Quorum(token));
    }
}

/// A lock on its way from whoever releases it to whoever waits for it: one operation on each node is the end of the one
/// lease, and a vote for the other.
struct HandOver {
    ballot: Arc<Ballot>,
    release: Arc<dyn ReplyTo>,
}

impl ReplyTo for HandOver {
    fn on_sending(&self, node: NodeIndex) -> bool {
        self.ballot.on_sending(node)
    }

    fn for_release(&self) -> Option<Arc<dyn ReplyTo>> {
        Some(self.release.clone())
    }

    fn on_reply(&self, node: NodeIndex, reply: Reply, heard: Option<Heard>) {
        self.release.on_reply(node, reply.clone(), heard);
        self.ballot.on_reply(node, reply, heard);
    }
}

/// The release of a ballot that was given up. A refusal that arrives before it is sent makes it needless.
struct Cleanup(Arc<Ballot>);

impl ReplyTo for Cleanup {
    fn on_sending(&self, node: NodeIndex) -> bool {
        self.0.lock().round.needs_release(node)
    }

    fn on_reply(&self, _: NodeIndex, _: Reply, _: Option<Heard>) {}
}

/// In which order the nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// In parallel.
    AllAtOnce,
    /// One, and the others if that one does not refuse.
    OneFirst,
}

/// How a try ended.
pub(super) enum Tried {
    /// Here it is.
    Granted(Grant),
    /// Why not.
    Failed(AcquireFailure),
    /// Nobody waits for the answer any more.
    Abandoned,
}

impl Tried {
    fn outcome(self) -> Option<Result<Grant, AcquireFailure>> {
        match self {
            Self::Granted(grant) => Some(Ok(grant)),
            Self::Failed(failure) => Some(Err(failure)),
            Self::Abandoned => None,
        }
    }
}

/// Tries until the lock is granted, the wait is over, or nobody waits any more.
pub(super) async fn run(
    coordinator: Arc<Coordinator>,
    spec: AcquireSpec,
    mut answer: oneshot::Sender<Result<Grant, AcquireFailure>>,
) {
    let outcome = if spec.wait.is_zero() {
        let mut outcome = match hint(&coordinator, &spec) {
            Some(held) => Some(Err(held)),
            None => one_try(&coordinator, &spec, &mut answer).await.outcome(),
        };
        if let Some(Err(AcquireFailure::Contended { line, .. })) = &mut outcome {
            *line = coordinator.waiting.view(&spec.name);
        }
        outcome
    } else {
        standing::wait(&coordinator, &spec, &mut answer).await
    };
    if let Some(outcome) = outcome {
        // A grant that comes back because nobody awaits it is dropped here, and so released.
        drop(answer.send(outcome));
    }
}

/// What a try is told without asking the nodes, which were asked a moment ago.
fn hint(coordinator: &Coordinator, spec: &AcquireSpec) -> Option<AcquireFailure> {
    let now = coordinator.env.now();
    let (value, ends) = coordinator.ledger.hint(&spec.name, now)?;
    // The retry of a request takes the place of its first attempt.
    if request_hash(spec).is_some_and(|request| value.is_of(request)) {
        return None;
    }
    let left = u64::try_from((ends - now).as_millis()).unwrap_or(u64::MAX);
    validity::remaining(left, Spent::default(), coordinator.settings.drift)?;
    coordinator.metrics.hint();
    let owner = LockValue::public_label(value.as_str().as_bytes());
    Some(AcquireFailure::Contended { owner, retry_after: ends - now, settled: true, line: LineView::default() })
}

async fn one_try(
    coordinator: &Arc<Coordinator>,
    spec: &AcquireSpec,
    answer: &mut oneshot::Sender<Result<Grant, AcquireFailure>>,
) -> Tried {
    finish(coordinator, spec, open(coordinator, spec, Manner::AllAtOnce), answer).await
}

/// Awaits the votes of a ballot, and judges them.
pub(super) async fn finish(
    coordinator: &Arc<Coordinator>,
    spec: &AcquireSpec,
    ballot: Arc<Ballot>,
    answer: &mut oneshot::Sender<Result<Grant, AcquireFailure>>,
) -> Tried {
    let tried = match await_votes(coordinator, spec, &ballot, answer).await {
        Awaited::Decided(result) => judge(coordinator, spec, &ballot, result),
        Awaited::Deadline => Tried::Failed(AcquireFailure::Deadline),
        Awaited::Abandoned => Tried::Abandoned,
    };
    let outcome = match &tried {
        Tried::Granted(_) => AttemptOutcome::Granted,
        Tried::Failed(AcquireFailure::Contended { .. }) => AttemptOutcome::Contended,
        Tried::Failed(AcquireFailure::NoQuorum(_) | AcquireFailure::NoToken(_)) => AttemptOutcome::NoQuorum,
        Tried::Failed(AcquireFailure::TooLate { .. }) => AttemptOutcome::TooLate,
        // Whoever found the line full tries nothing.
        Tried::Failed(AcquireFailure::Deadline | AcquireFailure::Draining | AcquireFailure::LineFull(_)) | Tried::Abandoned => {
            AttemptOutcome::Abandoned
        }
    };
    coordinator.metrics.attempt(outcome);
    if ballot.inherits() && matches!(tried, Tried::Granted(_)) {
        coordinator.metrics.handed_over();
    }
    let left = mutant!("lost-attempt-is-left") && matches!(tried, Tried::Failed(_));
    if !matches!(tried, Tried::Granted(_)) && !left {
        let was_held = ballot.lock().round.has_quorum();
        ballot.give_up();
        // Those who wait took it for held; one who waits itself looks again of its own accord.
        if was_held && spec.wait.is_zero() {
            coordinator.waiting.on_freed(&spec.name);
        }
    }
    tried
}

/// Starts the clock, then posts the SETs.
pub(super) fn open(coordinator: &Arc<Coordinator>, spec: &AcquireSpec, manner: Manner) -> Arc<Ballot> {
    match manner {
        Manner::AllAtOnce => {
            let ballot = prepare(coordinator, spec, AcquireRound::new(coordinator.settings.quorum), 0);
            ballot.ask(0..coordinator.links.len());
            ballot
        }
        Manner::OneFirst => {
            let first = coordinator.first_node(&spec.name);
            let ballot = prepare(coordinator, spec, AcquireRound::one_first(coordinator.settings.quorum, first), 0);
            ballot.ask([first]);
            ballot
        }
    }
}

/// The same for a lock that is being released: posts what both ends the lease of `old` and is a vote for whoever waits, the
/// `turns`th time in a row. The replies go to `release` too.
pub(super) fn hand_over(
    coordinator: &Arc<Coordinator>,
    spec: &AcquireSpec,
    old: &LockValue,
    turns: u32,
    release: &Arc<impl ReplyTo + 'static>,
) -> Arc<Ballot> {
    let ballot = prepare(coordinator, spec, AcquireRound::new(coordinator.settings.quorum), turns);
    let (key, wake) = (coordinator.key(&spec.name), coordinator.wake_up());
    let (old, new) = (old.clone(), ballot.value.clone());
    let op = Arc::new(Op::HandOver { key, old, new, ttl: spec.ttl, bucket: ballot.bucket, wake });
    let reply_to = Arc::new(HandOver { ballot: ballot.clone(), release: release.clone() });
    let post = |link: &Arc<Link>| link.post_acquire(op.clone(), reply_to.clone(), ballot.started);
    ballot.keep_places(coordinator.links.iter().map(post).enumerate().collect());
    ballot
}

/// A ballot whose clock runs, before anything is posted.
fn prepare(coordinator: &Arc<Coordinator>, spec: &AcquireSpec, round: AcquireRound, turns: u32) -> Arc<Ballot> {
    let bucket = matches!(coordinator.counter, Counter::Quorum).then(|| bucket(spec.name.as_str()));
    let no_places = || std::iter::repeat_with(|| None).take(coordinator.links.len()).collect();
    Arc::new_cyclic(|this| Ballot {
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        value: LockValue::new(coordinator.env.secret(), request_key(coordinator, spec), spec.owner.as_ref()),
        ttl: spec.ttl,
        min_validity_ms: spec.min_validity_ms,
        received: spec.received,
        // Before the operation enters any mailbox: all the time that it waits there is charged to the lease.
        started: coordinator.env.now(),
        sleeps: coordinator.sleeps(),
        turns,
        bucket,
        coordinator: coordinator.clone(),
        this: this.clone(),
        state: Mutex::new(BallotState {
            round,
            counts: bucket.map(|_| Counts::new(coordinator.settings.quorum)),
            places: no_places(),
            result: None,
        }),
        decided: Notify::new(),
    })
}

fn request_key(coordinator: &Coordinator, spec: &AcquireSpec) -> Option<RequestKey> {
    use std::sync::atomic::Ordering;
    let (request, attempt) = (request_hash(spec)?, spec.request.as_ref()?.1);
    let try_number = coordinator.tries.fetch_add(1, Ordering::Relaxed);
    Some(RequestKey { request, attempt, try_number })
}

/// Of the name and the request id.
fn request_hash(spec: &AcquireSpec) -> Option<u128> {
    let (request_id, _) = spec.request.as_ref()?;
    Some(digest([spec.name.as_str().as_bytes(), request_id]))
}

/// Of two parts that are not taken for two others.
pub(super) fn digest([first, second]: [&[u8]; 2]) -> u128 {
    let digest = Sha256::new().chain_update((first.len() as u64).to_be_bytes()).chain_update(first).chain_update(second);
    digest.finalize().iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte))
}

enum Awaited {
    Decided(VoteResult),
    Deadline,
    Abandoned,
}

async fn await_votes(
    coordinator: &Coordinator,
    spec: &AcquireSpec,
    ballot: &Ballot,
    answer: &mut oneshot::Sender<Result<Grant, AcquireFailure>>,
) -> Awaited {
    let votes_end = ballot.started + votes_within(spec.ttl);
    let mut votes_timer = coordinator.env.sleep_until(votes_end);
    let mut deadline = Box::pin(coordinator.deadline(spec.deadline));
    let mut stage = VoteStage::Open;
    loop {
        // Biased: what has been received counts before any timer is looked at.
        tokio::select! {
            biased;
            () = ballot.decided.notified() => {
                if let Some(result) = ballot.lock().result.take() {
                    return Awaited::Decided(result);
                }
            }
            () = answer.closed() => return Awaited::Abandoned,
            () = &mut votes_timer, if stage != VoteStage::Closed => {
                let now = coordinator.env.now();
                if stage == VoteStage::Open && now > votes_end + STALL_GRACE {
                    // This proxy was stopped: the replies may be in the sockets.
                    stage = VoteStage::Stalled;
                    votes_timer = coordinator.env.sleep_until(now + STALL_GRACE);
                } else {
                    stage = VoteStage::Closed;
                    let step = ballot.lock().round.on_timeout();
                    ballot.advance(step);
                }
            }
            () = &mut deadline => return Awaited::Deadline,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum VoteStage {
    /// Votes are awaited.
    Open,
    /// The end came late; a moment is left for replies that are there but unread.
    Stalled,
    /// Only the token can still be under way: it has its own time-out.
    Closed,
}

fn judge(coordinator: &Arc<Coordinator>, spec: &AcquireSpec, ballot: &Arc<Ballot>, result: VoteResult) -> Tried {
    let token = match result {
        VoteResult::Lost(loss) => return Tried::Failed(lost(coordinator, ballot, loss)),
        VoteResult::Quorum(Err(why)) if spec.token_required => {
            let node = match &coordinator.counter {
                Counter::Designated(fence) => fence.link().address().clone(),
                Counter::Quorum => "quorum counter".into(),
            };
            return Tried::Failed(AcquireFailure::NoToken(NodeWord { node, said: why.to_string() }));
        }
        VoteResult::Quorum(token) => token,
    };
    // Read after the last reply that the grant needs, the token's included.
    let now = coordinator.env.now();
    match ballot.validity(now) {
        None => Tried::Failed(AcquireFailure::TooLate { elapsed: now - ballot.started, ttl: spec.ttl }),
        Some(left) => {
            coordinator.metrics.granted(left.as_duration(), spec.ttl.as_duration());
            Tried::Granted(Grant { ballot: ballot.clone(), token, delivered: false })
        }
    }
}

fn lost(coordinator: &Coordinator, ballot: &Ballot, loss: Loss) -> AcquireFailure {
    let state = ballot.lock();
    match loss {
        Loss::NoQuorum => AcquireFailure::NoQuorum(coordinator.no_quorum(state.round.report())),
        Loss::Contended => {
            // Keys without an end, or a split vote: nothing tells when to come back.
            let retry_after = match state.round.free_in_ms() {
                Some(ms) => Duration::from_millis(ms),
                None => RETRY.delay(1, coordinator.env.random()),
            };
            coordinator.ledger.saw(&ballot.name, ballot.started, |value| state.round.is_refused_for(value));
            let settled = state.round.is_settled();
            AcquireFailure::Contended { owner: state.round.holder(), retry_after, settled, line: LineView::default() }
        }
    }
}
