//! Carries the protocol out: fans operations out to the nodes, lets `engine` decide, fetches tokens, cleans up. The only
//! reader of the clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::lease::LockName;
use crate::engine::line::LineBounds;
use crate::engine::membership::Standing;
use crate::engine::quorum::Quorum;
use crate::engine::reply::WhyKind;
use crate::engine::validity::DriftFactor;
use crate::metrics::Metrics;
use crate::node::Key;
use crate::node::env::Env;
use crate::node::link::{Link, Status};
use crate::node::mailbox::Reach;

mod asked;
pub mod attempt;
pub mod buckets;
pub mod ceiling;
pub mod fence;
mod ledger;
pub mod listing;
pub mod lock_id;
pub mod observer;
pub mod question;
pub mod session;
mod standing;
pub mod waiting;
mod wake;
pub mod watch;

use attempt::{AcquireFailure, AcquireSpec, Grant};
use fence::Fence;
use ledger::Ledger;
use waiting::WaitingRoom;
use wake::Channels;
use watch::Watches;

/// What a coordinator has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configured nodes.
    pub quorum: Quorum,
    /// Stands before every name on the nodes.
    pub key_prefix: String,
    /// How differently clocks may run.
    pub drift: DriftFactor,
    /// The most requests at a time, those aside that wait for a lock.
    pub max_inflight: usize,
    /// How many may wait for a lock.
    pub waiters: LineBounds,
    /// So often in a row a lock is handed over within a line before waiters at other proxies get their turn.
    pub handover_limit: u32,
}

/// One proxy's view of the cluster. Cheap to share; keeps nothing of a lock that nobody is asking for.
pub struct Coordinator {
    settings: Settings,
    links: Vec<Arc<Link>>,
    counter: Counter,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
    renewals: question::Renewals,
    tasks: TaskTracker,
    draining: CancellationToken,
    ledger: Ledger,
    waiting: WaitingRoom,
    channels: Channels,
    watches: Watches,
    sessions: session::Sessions,
    /// Places for those who make lists.
    lists: Semaphore,
    /// Requests under way, and those of them that count for the bound.
    requests: AtomicUsize,
    inflight: AtomicUsize,
    tries: AtomicU64,
}

/// Where tokens come from.
pub enum Counter {
    /// A server of its own.
    Designated(Arc<Fence>),
    /// The nodes count with their votes.
    Quorum,
}

/// What a node said, for people: its address and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWord {
    /// `host:port` or a path.
    pub node: Arc<str>,
    /// One line.
    pub said: String,
}

/// A quorum of the nodes did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoQuorum {
    /// How many had to.
    pub needed: usize,
    /// What each node said.
    pub nodes: Vec<NodeWord>,
}

impl Coordinator {
    /// A coordinator over running links.
    pub fn new(
        settings: Settings,
        links: Vec<Arc<Link>>,
        counter: Counter,
        env: Arc<dyn Env>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        assert_eq!(links.len(), settings.quorum.nodes(), "a link for each configured node");
        // Rises over restarts of the proxy too, so that whoever looks at a node sees which try came last.
        let first_try = env.wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let waiting = WaitingRoom::new(settings.waiters, env.now());
        let channels = Channels::new(env.random());
        Arc::new(Self {
            waiting,
            channels,
            watches: Watches::default(),
            sessions: session::Sessions::new(env.now()),
            settings,
            links,
            counter,
            env,
            metrics,
            renewals: question::Renewals::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            ledger: Ledger::default(),
            lists: Semaphore::new(listing::MAX_LISTS),
            requests: AtomicUsize::new(0),
            inflight: AtomicUsize::new(0),
            tries: AtomicU64::new(u64::try_from(first_try).unwrap_or_default()),
        })
    }

    /// Takes a lock. The work goes on in a task of its own, so that dropping the future drops nothing half done: an attempt
    /// whose answer nobody awaits is given up.
    pub async fn acquire(self: &Arc<Self>, spec: AcquireSpec) -> Result<Grant, AcquireFailure> {
        if self.draining.is_cancelled() {
            return Err(AcquireFailure::Draining);
        }
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.tasks.spawn(attempt::run(self.clone(), spec, answer));
        answered.await.unwrap_or(Err(AcquireFailure::Draining))
    }

    /// Lets a request in, or not if too many are being served. One that waits for a lock has a bound of its own, so that
    /// waiters do not keep anybody from releasing.
    pub fn admit(self: &Arc<Self>, waits: bool) -> Option<Admission> {
        let admission = Admission { coordinator: self.clone(), waits };
        self.metrics.request_begins();
        self.requests.fetch_add(1, Ordering::Relaxed);
        (waits || self.inflight.fetch_add(1, Ordering::Relaxed) < self.settings.max_inflight).then_some(admission)
    }

    /// How many wait for a name at this proxy.
    pub fn waiters(&self, name: &LockName) -> usize {
        self.waiting.view(name).before
    }

    /// The cap on requests at a time.
    pub fn max_inflight(&self) -> usize {
        self.settings.max_inflight
    }

    /// The monotonic clock, for whoever notes when a request came.
    pub fn now(&self) -> Instant {
        self.env.now()
    }

    /// Ends at `deadline`; never if there is none.
    pub async fn deadline(&self, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => self.env.sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    /// The events of this proxy.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The nodes' addresses, in the order of the configuration.
    pub fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        self.links.iter().map(|link| link.address())
    }

    /// Every node, in the order of the configuration.
    pub fn nodes(&self) -> Vec<ServerView> {
        self.links.iter().map(ServerView::of).collect()
    }

    /// The fencing counter's server, if it has one of its own.
    pub fn fence(&self) -> Option<ServerView> {
        match &self.counter {
            Counter::Designated(fence) => Some(ServerView::of(fence.link())),
            Counter::Quorum => None,
        }
    }

    /// The quorum of the configured nodes.
    pub fn quorum(&self) -> Quorum {
        self.settings.quorum
    }

    /// Nodes that can vote now.
    pub fn voting(&self) -> usize {
        self.links.iter().filter(|link| link.may_vote()).count()
    }

    /// How long it takes until so many quarantines are over that a quorum can vote, if that is what it takes.
    pub fn votes_again_in(&self) -> Option<Duration> {
        let left = |link: &Arc<Link>| match link.status().standing? {
            _ if !link.is_up() => None,
            Standing::Quarantined { left, .. } => left,
            Standing::Votes => Some(Duration::ZERO),
            _ => None,
        };
        let mut lefts: Vec<Duration> = self.links.iter().filter_map(left).collect();
        lefts.sort_unstable();
        lefts.get(self.settings.quorum.size() - 1).copied().filter(|left| *left > Duration::ZERO)
    }

    /// Whether grants are possible: a quorum of voting nodes, the fencing counter, and no drain; else why not.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        let (voting, needed) = (self.voting(), self.settings.quorum.size());
        if voting < needed {
            let waits = match self.votes_again_in() {
                Some(left) => format!("; a quorum can vote again in {:.1} s", left.as_secs_f64()),
                None => String::new(),
            };
            reasons.push(format!("{voting} nodes can vote, {needed} are needed{waits}"));
        }
        if let Counter::Designated(fence) = &self.counter
            && !fence.link().is_up()
        {
            reasons.push(format!("the fencing counter at {} can not be reached", fence.link().address()));
        }
        if self.draining.is_cancelled() {
            reasons.push("shutting down".to_owned());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// Refreshes what is read at the time of a scrape.
    pub fn observe(&self) {
        // Both are at most MAX_NODES.
        let margin = self.voting() as i64 - self.settings.quorum.size() as i64;
        // Those of sessions stand for as long as their clients do.
        self.metrics.observe(margin, self.tasks.len().saturating_sub(self.sessions.count()));
        for (node, link) in self.links.iter().enumerate() {
            let clock = link.status().clock;
            self.metrics.node(node).clock(clock.offset, clock.rate);
        }
    }

    /// To be called now and then: forgets what has expired, and what nobody waits for any more.
    pub fn forget_expired(self: &Arc<Self>) {
        self.ledger.forget_expired(self.env.now());
        self.stop_listening();
        self.look_for_ends();
        self.review_watches();
    }

    /// From now on no attempt begins; who waits for a lock is told so.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Ends when this proxy begins to shut down.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Ends when no request is being served, the last attempt has ended, and every node that can be reached has done what it
    /// was told.
    pub async fn drained(&self) {
        self.tasks.wait().await;
        let busy = |link: &Arc<Link>| link.is_up() && !link.is_idle();
        while self.requests.load(Ordering::Relaxed) > 0 || self.links.iter().any(busy) {
            self.env.sleep_until(self.env.now() + Duration::from_millis(5)).await;
        }
    }

    /// How often this proxy's machine was found to have slept.
    fn sleeps(&self) -> u64 {
        self.links.first().map_or(0, |link| link.sleeps())
    }

    fn key(&self, name: &LockName) -> Key {
        let mut key = String::with_capacity(self.settings.key_prefix.len() + name.as_str().len());
        key.push_str(&self.settings.key_prefix);
        key.push_str(name.as_str());
        key.into()
    }

    fn words(&self, said: Vec<String>) -> Vec<NodeWord> {
        let nodes = self.addresses().cloned();
        nodes.zip(VecDeque::from(said)).map(|(node, said)| NodeWord { node, said }).collect()
    }

    fn no_quorum(&self, said: Vec<String>) -> NoQuorum {
        NoQuorum { needed: self.settings.quorum.size(), nodes: self.words(said) }
    }
}

/// A server as this proxy sees it now.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// `host:port` or a path.
    pub address: Arc<str>,
    /// How it is doing.
    pub status: Status,
}

/// How a server is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Connected and answering; a node also votes.
    Up,
    /// Connected and answering, but its votes do not count now.
    Quarantined,
    /// A call to it is overdue.
    Silent,
    /// Too many calls in a row were unanswered.
    Suspended,
    /// No connection.
    Down,
    /// Connected, and not to be used.
    Unfit,
}

impl ServerView {
    fn of(link: &Arc<Link>) -> Self {
        Self { address: link.address().clone(), status: link.status() }
    }

    /// How it is doing, and why; the reason is empty if it is up.
    pub fn condition(&self) -> (Condition, String) {
        match (&self.status.reach, &self.status.standing) {
            (Reach::Silent, _) => (Condition::Silent, "a call is overdue".to_owned()),
            (Reach::Suspended, _) => (Condition::Suspended, WhyKind::Suspended.to_string()),
            (Reach::Down(why), _) => (Condition::Down, why.to_string()),
            (Reach::Unfit(why), _) => (Condition::Unfit, why.to_string()),
            (Reach::Up, None | Some(Standing::Votes)) => (Condition::Up, String::new()),
            (Reach::Up, Some(standing @ Standing::Foreign(_))) => (Condition::Unfit, standing.to_string()),
            (Reach::Up, Some(standing)) => (Condition::Quarantined, standing.to_string()),
        }
    }
}

/// A request that is being served.
pub struct Admission {
    coordinator: Arc<Coordinator>,
    waits: bool,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let coordinator = &self.coordinator;
        coordinator.requests.fetch_sub(1, Ordering::Relaxed);
        if !self.waits {
            coordinator.inflight.fetch_sub(1, Ordering::Relaxed);
        }
        coordinator.metrics.request_ends();
    }
}
