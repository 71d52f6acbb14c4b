//! The coordinator's own rules (sections 2 to 4 of the protocol) on a paused clock: what is measured when, what is asked in
//! which order, and what is cleaned up. The nodes are simulated.
#![allow(clippy::unwrap_used)]

#[path = "../memory/mod.rs"]
mod memory;

mod listing;
mod sessions;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use redlockd::coordinator::attempt::{AcquireFailure, AcquireSpec, Grant};
use redlockd::coordinator::ceiling::Ceilings;
use redlockd::coordinator::fence::Fence;
use redlockd::coordinator::lock_id::LockId;
use redlockd::coordinator::question::Released;
use redlockd::coordinator::{Coordinator, Counter, Settings};
use redlockd::engine::lease::{LockName, LockValue, Owner, Ttl};
use redlockd::engine::line::{Full, LineBounds};
use redlockd::engine::membership::{Charter, CounterKind};
use redlockd::engine::quorum::Quorum;
use redlockd::engine::validity::{DriftFactor, Validity};
use redlockd::metrics::Registry;
use redlockd::node::env::{Env, SystemEnv};
use redlockd::node::link::{Link, Observer, Timing};
use redlockd::node::roster::Roster;
use redlockd::node::talk::Talk;
use redlockd::node::{Channel, Connection, Course, Listener, Node, NodeTime, Op, Probe, Replies, WireError, channel_number};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use memory::Server;

/// A simulated node: every operation takes effect at once and is answered after `delay`.
#[derive(Clone)]
struct Handle(Arc<Mutex<State>>);

struct State {
    server: Server,
    delay: Duration,
    asked_for_tokens_at: Vec<Instant>,
    /// How many SETs came.
    sets: usize,
    /// How many steps of a scan.
    scans: usize,
    /// Ends its connection.
    broken: Arc<Notify>,
}

/// The clocks of the nodes stand still: no key ends by itself, so what is left behind is seen.
const NODES_NOW: NodeTime = NodeTime { micros: 1_700_000_000_000_000 };

impl Handle {
    fn new(name: &str) -> Self {
        let server = Server::new(name);
        let (delay, asked_for_tokens_at, broken) = (Duration::ZERO, Vec::new(), Arc::default());
        let state = State { server, delay, asked_for_tokens_at, sets: 0, scans: 0, broken };
        Self(Arc::new(Mutex::new(state)))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    fn set_delay(&self, ms: u64) {
        self.with(|state| state.delay = Duration::from_millis(ms));
    }

    /// Somebody else holds the lock, with half a second left.
    fn hold(&self, name: &str) {
        let owner = Owner::new("somebody").unwrap();
        let value = LockValue::new(1, None, owner.as_ref());
        let ends_at_ms = Some(NODES_NOW.as_millis() + 500);
        self.with(|state| state.server.put(&format!("lock:{name}"), value.as_str().as_bytes(), ends_at_ms));
    }

    /// It is another process with the same keys, and its connection is gone.
    fn restart(&self, run_id: &str) {
        self.with(|state| {
            state.server.restart(run_id, |_| true);
            state.broken.notify_one();
        });
    }

    /// It loses the lock.
    fn forget(&self, name: &str) {
        self.with(|state| state.server.delete(&format!("lock:{name}")));
    }

    fn is_empty(&self) -> bool {
        self.with(|state| state.server.keys(NODES_NOW).iter().all(|(key, ..)| !key.starts_with("lock:")))
    }
}

impl Node for Handle {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        let line = Line { node: self.clone(), talk: Talk::new(memory::scripts()) };
        Box::pin(async { Ok(Box::new(line) as Box<dyn Connection>) })
    }

    /// Nobody listens in these tests.
    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(std::future::pending())
    }
}

/// A connection. All of a call is one round trip.
struct Line {
    node: Handle,
    talk: Talk,
}

impl Connection for Line {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        let probe = self.node.with(|state| state.server.probe());
        self.talk.meet(probe.run_id.clone());
        Box::pin(async { Ok(probe) })
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        let (outcome, delay) = self.node.with(|state| {
            if batch.iter().any(|op| matches!(op, Op::Tokens { .. })) {
                state.asked_for_tokens_at.push(Instant::now());
            }
            state.scans += batch.iter().filter(|op| matches!(op, Op::Scan { .. })).count();
            state.sets += batch.iter().filter(|op| matches!(op, Op::Acquire { .. })).count();
            (state.server.call(NODES_NOW, &self.talk, batch, course), state.delay)
        });
        Box::pin(async move {
            sleep(delay).await;
            outcome
        })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        let broken = self.node.with(|state| state.broken.clone());
        Box::pin(async move {
            broken.notified().await;
            "broken".into()
        })
    }
}

struct Silent;
impl Observer for Silent {}

struct World {
    nodes: Vec<Handle>,
    fence: Handle,
    ceilings: Ceilings,
    coordinator: Arc<Coordinator>,
}

/// Nodes that time out after a second, and a counter that does after ten.
async fn world(count: usize) -> World {
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    let nodes: Vec<Handle> = (0..count).map(|i| Handle::new(&format!("n{i}"))).collect();
    let fence = Handle::new("f");
    // It has been counting since long.
    fence.with(|state| state.server.put("redlockd:fence:counter", b"run f 1000 1000000000", None));
    let link = |index, node: &Handle, timeout| {
        let timing = Timing::new(Duration::from_secs(timeout), Duration::from_secs(300));
        let node = Box::new(node.clone());
        let address = format!("n{index}").into();
        Arc::new(Link::new(index, address, node, timing, env.clone(), Box::new(Silent), None))
    };
    let links: Vec<Arc<Link>> = nodes.iter().enumerate().map(|(i, node)| link(i, node, 1)).collect();
    let fence_link = link(0, &fence, 10);
    for link in links.iter().chain([&fence_link]).map(Arc::clone) {
        tokio::spawn(async move { link.run().await });
    }
    while !links.iter().chain([&fence_link]).all(|link| link.is_up()) {
        sleep(Duration::from_millis(1)).await;
    }
    let labels: Vec<Arc<str>> = (0..count).map(|i| format!("n{i}").into()).collect();
    let metrics = Arc::new(Registry::new().unwrap().metrics(&labels, Some(&"f".into())));
    let settings = Settings {
        quorum: Quorum::of(count).unwrap(),
        key_prefix: "lock:".to_owned(),
        drift: DriftFactor::DEFAULT,
        max_inflight: 100,
        waiters: LineBounds { per_name: 100, in_all: 1_000 },
        handover_limit: 16,
    };
    // Nobody has a seat in it: here every node votes.
    let charter = Charter {
        nodes: Vec::new(),
        counter: CounterKind::Designated,
        max_ttl: Ttl::LONGEST,
        drift: DriftFactor::DEFAULT,
        bootstrap: false,
    };
    let roster = Roster::new(charter, settings.quorum, env.now());
    let ceilings = || Ceilings::new(links.clone(), settings.quorum, env.clone(), Duration::from_secs(300));
    let counter = Counter::Designated(Fence::new(fence_link, ceilings(), roster, env.clone(), metrics.clone()));
    let ceilings = ceilings();
    World { nodes, fence, ceilings, coordinator: Coordinator::new(settings, links, counter, env, metrics) }
}

impl World {
    fn set_delays(&self, ms: &[u64]) {
        self.nodes.iter().zip(ms).for_each(|(node, ms)| node.set_delay(*ms));
    }

    /// Waits until everything that was sent has been answered, and says which nodes still hold something.
    async fn leftovers(&self) -> Vec<usize> {
        sleep(Duration::from_secs(30)).await;
        (0..self.nodes.len()).filter(|i| !self.nodes[*i].is_empty()).collect()
    }

    async fn acquire(&self, spec: AcquireSpec) -> Result<Grant, AcquireFailure> {
        self.coordinator.acquire(spec).await
    }
}

fn spec(ttl_ms: u64) -> AcquireSpec {
    AcquireSpec {
        name: LockName::new("a").unwrap(),
        ttl: Ttl::from_millis(ttl_ms, Ttl::LONGEST).unwrap(),
        wait: Duration::ZERO,
        owner: None,
        token_required: true,
        request: None,
        min_validity_ms: 1,
        received: Instant::now(),
        deadline: None,
    }
}

fn ms_since(start: Instant) -> u128 {
    start.elapsed().as_millis()
}

fn validity_ms(grant: &Grant) -> Option<u64> {
    grant.answer().map(|(validity, _)| Validity::as_millis(validity))
}

#[tokio::test(start_paused = true)]
async fn the_answer_comes_with_the_quorum_and_not_with_the_slowest_node() {
    let world = world(5).await;
    world.set_delays(&[10, 30, 20, 900, 900]);
    let start = Instant::now();
    let grant = world.acquire(spec(10_000)).await.ok().unwrap();
    assert_eq!(ms_since(start), 30);
    // 10,000 - 30 - (20 + 2)
    assert_eq!(validity_ms(&grant), Some(9_948));
}

#[tokio::test(start_paused = true)]
async fn the_token_is_asked_for_after_the_quorum_and_its_time_is_charged_to_the_lease() {
    let world = world(3).await;
    world.set_delays(&[10, 20, 30]);
    world.fence.set_delay(400);
    let start = Instant::now();
    let grant = world.acquire(spec(10_000)).await.ok().unwrap();
    let asked = world.fence.with(|state| state.asked_for_tokens_at.clone());
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].duration_since(start).as_millis(), 20, "with the second of three votes, not before");
    assert_eq!(ms_since(start), 420);
    assert_eq!(validity_ms(&grant), Some(10_000 - 420 - 22));
}

/// Drift is charged for the wait: after three seconds it has eaten a lease of ten milliseconds, and nobody tries in vain.
#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_no_lease_could_be_left() {
    let world = world(3).await;
    let held = world.acquire(spec(60_000)).await.ok().unwrap();
    let start = Instant::now();
    let failure = world.acquire(AcquireSpec { wait: Duration::from_secs(60), ..spec(10) }).await.err().unwrap();
    assert!(matches!(failure, AcquireFailure::Contended { .. }), "{failure:?}");
    assert!(ms_since(start) > 1_000 && ms_since(start) < 3_500, "{} ms", ms_since(start));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn validity_is_computed_again_when_the_answer_is_written() {
    let world = world(3).await;
    let grant = world.acquire(spec(1_000)).await.ok().unwrap();
    sleep(Duration::from_millis(100)).await;
    let (validity, served_for) = grant.answer().unwrap();
    assert_eq!((validity.as_millis(), served_for.as_millis()), (1_000 - 100 - 4, 100));
    sleep(Duration::from_millis(900)).await;
    assert!(grant.answer().is_none(), "nothing is left, so nothing is granted");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_too_late_grants_nothing_and_leaves_nothing() {
    let world = world(3).await;
    world.fence.set_delay(997);
    let failure = world.acquire(spec(1_000)).await.err().unwrap();
    assert!(matches!(failure, AcquireFailure::TooLate { .. }), "{failure:?}");
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn less_validity_than_asked_for_is_no_grant() {
    let world = world(3).await;
    world.set_delays(&[50, 50, 50]);
    let wanted = |min_validity_ms| AcquireSpec { min_validity_ms, ..spec(1_000) };
    assert!(world.acquire(wanted(1_000 - 50 - 4)).await.is_ok());
    sleep(Duration::from_secs(1)).await;
    let failure = world.acquire(wanted(1_000 - 50 - 3)).await.err().unwrap();
    assert!(matches!(failure, AcquireFailure::TooLate { .. }), "{failure:?}");
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn a_quorum_of_refusals_ends_it_and_every_other_node_is_cleaned_up() {
    let world = world(5).await;
    world.set_delays(&[10, 10, 20, 500, 500]);
    world.nodes[..3].iter().for_each(|node| node.hold("a"));
    let start = Instant::now();
    let failure = world.acquire(spec(10_000)).await.err().unwrap();
    assert_eq!(ms_since(start), 20, "not with the slow ones");
    let AcquireFailure::Contended { owner, retry_after, .. } = failure else { panic!("{failure:?}") };
    assert_eq!(owner, Owner::new("somebody").unwrap());
    assert_eq!(retry_after, Duration::from_millis(500));
    assert!(!world.nodes[3].is_empty() && !world.nodes[4].is_empty(), "the SETs of the slow ones have landed");
    assert_eq!(world.leftovers().await, [0, 1, 2], "only what somebody else holds stays");
}

#[tokio::test(start_paused = true)]
async fn silent_nodes_are_no_refusals_and_are_cleaned_up_when_they_answer() {
    let world = world(5).await;
    world.set_delays(&[10, 10, 5_000, 5_000, 5_000]);
    let start = Instant::now();
    let failure = world.acquire(spec(300_000)).await.err().unwrap();
    assert_eq!(ms_since(start), 1_000, "the nodes' time-out");
    let AcquireFailure::NoQuorum(no_quorum) = failure else { panic!("{failure:?}") };
    assert_eq!(no_quorum.needed, 3);
    assert_eq!(no_quorum.nodes.iter().filter(|word| word.said.contains("timeout")).count(), 3, "{no_quorum:?}");
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_waits_for_its_votes_a_tenth_of_its_ttl() {
    let world = world(3).await;
    world.set_delays(&[1, 900, 900]);
    let start = Instant::now();
    let failure = world.acquire(spec(1_000)).await.err().unwrap();
    assert_eq!(ms_since(start), 100);
    assert!(matches!(failure, AcquireFailure::NoQuorum(_)), "{failure:?}");
    let start = Instant::now();
    sleep(Duration::from_secs(10)).await;
    world.acquire(spec(10)).await.err().unwrap();
    assert_eq!(ms_since(start), 10_005, "but 5 ms at least");
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_leaves_nothing_at_any_moment() {
    let world = world(3).await;
    world.set_delays(&[10, 20, 30]);
    world.fence.set_delay(10);
    let mut granted = 0;
    for ms in 0..45 {
        let impatient = tokio::time::timeout(Duration::from_millis(ms), world.acquire(spec(10_000))).await;
        granted += usize::from(matches!(impatient, Ok(Ok(_))));
        drop(impatient);
        assert_eq!(world.leftovers().await, Vec::<usize>::new(), "after {ms} ms");
    }
    assert!((5..45).contains(&granted), "{granted} grants: both outcomes were seen");
}

#[tokio::test(start_paused = true)]
async fn no_token_is_no_grant_unless_it_was_asked_for_with_best_effort() {
    let world = world(3).await;
    world.fence.set_delay(20_000);
    let failure = world.acquire(spec(300_000)).await.err().unwrap();
    let AcquireFailure::NoToken(word) = failure else { panic!("{failure:?}") };
    assert!(word.said.contains("timeout"), "{word:?}");
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
    world.fence.set_delay(20_000);
    let grant = world.acquire(AcquireSpec { token_required: false, ..spec(300_000) }).await.ok().unwrap();
    assert!(grant.token.is_err());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_reach_their_quorum_together_share_one_request_for_tokens() {
    let world = world(3).await;
    world.fence.set_delay(50);
    let attempts = (0..100).map(|i| {
        let name = LockName::new(&format!("n{i}")).unwrap();
        world.acquire(AcquireSpec { name, ..spec(10_000) })
    });
    let grants: Vec<Grant> = futures::future::join_all(attempts).await.into_iter().map(|grant| grant.ok().unwrap()).collect();
    let mut tokens: Vec<u64> = grants.iter().map(|grant| grant.token.clone().unwrap().get()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 100, "every grant has its own");
    let requests = world.fence.with(|state| state.asked_for_tokens_at.len());
    assert!(requests <= 4, "{requests} requests for 100 tokens");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_the_lock_when_it_is_released_and_an_answer_when_it_is_not() {
    let world = world(3).await;
    let first = world.acquire(spec(300_000)).await.ok().unwrap();
    let waiting = AcquireSpec { wait: Duration::from_secs(2), ..spec(300_000) };
    let start = Instant::now();
    let failure = world.acquire(AcquireSpec { received: start, ..waiting.clone() }).await.err().unwrap();
    assert!(matches!(failure, AcquireFailure::Contended { .. }), "{failure:?}");
    assert_eq!(ms_since(start), 2_000);
    let start = Instant::now();
    let waiter = world.acquire(AcquireSpec { received: start, ..waiting });
    let releaser = async {
        sleep(Duration::from_millis(700)).await;
        drop(first);
    };
    let (second, ()) = tokio::join!(waiter, releaser);
    assert!(second.is_ok());
    assert!((700..1_100).contains(&ms_since(start)), "{}", ms_since(start));
}

/// Protocol section 4: whoever finds the counter lost reads a quorum, so a quorum has to store what it is told of.
#[tokio::test(start_paused = true)]
async fn a_ceiling_is_read_from_a_quorum_and_stored_on_one() {
    let world = world(3).await;
    let owner: Arc<str> = "f".into();
    let full = |full| world.nodes[..2].iter().for_each(|node| node.with(|state| state.server.set_full(full)));
    full(true);
    let why = world.ceilings.take_over(&owner, 0).await.unwrap_err().to_string();
    assert!(why.contains("could not be raised: 1 of 3 lock nodes took part, 2 are needed"), "{why}");
    full(false);
    // What one node has stored in the meantime is no obstacle, and no lower bound is given up.
    let (start, ceiling) = world.ceilings.take_over(&owner, 0).await.unwrap();
    assert!(start > NODES_NOW.micros && ceiling > start, "{start} {ceiling}");
    world.set_delays(&[0, 5_000, 5_000]);
    let why = world.ceilings.advance(&owner, ceiling).await.unwrap_err().to_string();
    assert!(why.contains("could not be read: 1 of 3 lock nodes took part, 2 are needed"), "{why}");
    sleep(Duration::from_secs(30)).await;
    world.set_delays(&[0, 0, 5_000]);
    let raised = world.ceilings.advance(&owner, ceiling).await.unwrap();
    assert!(raised > ceiling);
    let stored = world.nodes[..2].iter().all(|node| {
        let keys = node.with(|state| state.server.keys(NODES_NOW));
        let text = keys.into_iter().find_map(|(key, bytes, _)| bytes.filter(|_| key == "redlockd:fence:ceiling"));
        text.unwrap() == format!("{raised} f").into_bytes()
    });
    assert!(stored);
}

/// Wants to wait in line for a lease that outlasts the test.
fn waiting() -> AcquireSpec {
    AcquireSpec { wait: Duration::from_secs(3_000), received: Instant::now(), ..spec(300_000) }
}

/// Who of those in line was answered, and what.
type Answered = Vec<(usize, Result<Grant, AcquireFailure>)>;

/// Callers in line, one after the other; what each got, in the order in which they got it.
struct Queue {
    done: Arc<Mutex<Answered>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Queue {
    async fn of(world: &World, count: usize) -> Self {
        let done: Arc<Mutex<Answered>> = Arc::default();
        let mut tasks = Vec::new();
        for number in 0..count {
            let (coordinator, done, spec) = (world.coordinator.clone(), done.clone(), waiting());
            tasks.push(tokio::spawn(async move {
                let outcome = coordinator.acquire(spec).await;
                done.lock().unwrap().push((number, outcome));
            }));
            while world.coordinator.waiters(&waiting().name) <= number {
                tokio::task::yield_now().await;
            }
        }
        Self { done, tasks }
    }

    fn order(&self) -> Vec<usize> {
        self.done.lock().unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// Whoever got the lock last.
    fn pop(&self) -> Option<Grant> {
        self.done.lock().unwrap().iter_mut().last().and_then(|(_, outcome)| {
            let taken = std::mem::replace(outcome, Err(AcquireFailure::Deadline));
            taken.ok()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_cost_the_nodes_as_much_as_one() {
    let mut sets = Vec::new();
    for waiters in [1, 90] {
        let world = world(3).await;
        let held = world.acquire(spec(300_000)).await.ok().unwrap();
        let before = world.nodes[0].with(|state| state.sets);
        let queue = Queue::of(&world, waiters).await;
        sleep(Duration::from_secs(20)).await;
        sets.push(world.nodes[0].with(|state| state.sets) - before);
        assert!(queue.order().is_empty());
        drop(held);
    }
    println!("SETs at a node in 20 s: {sets:?}");
    assert!(sets[0] > 10 && sets[1] <= 2 * sets[0], "{sets:?}");
}

#[tokio::test(start_paused = true)]
async fn the_lock_goes_through_the_line_in_order_as_soon_as_it_is_released() {
    let world = world(3).await;
    world.set_delays(&[1, 1, 1]);
    world.fence.set_delay(1);
    let held = world.acquire(spec(300_000)).await.ok().unwrap();
    let queue = Queue::of(&world, 12).await;
    let mut released = Instant::now();
    drop(held);
    for turn in 0..12 {
        while queue.order().len() <= turn {
            sleep(Duration::from_micros(100)).await;
        }
        // The clean-up, the SET behind it, and the token.
        assert!(released.elapsed() <= Duration::from_millis(5), "turn {turn} after {:?}", released.elapsed());
        let grant = queue.pop().unwrap();
        // Nobody asks for what is held.
        sleep(Duration::from_millis(3)).await;
        released = Instant::now();
        drop(grant);
    }
    assert_eq!(queue.order(), (0..12).collect::<Vec<_>>());
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_line_makes_room_for_the_next_one() {
    let world = world(3).await;
    let held = world.acquire(spec(300_000)).await.ok().unwrap();
    let queue = Queue::of(&world, 6).await;
    let name = waiting().name;
    // The head, one in the middle, and the last one.
    for (gone, left) in [(0, 5), (3, 4), (5, 3)] {
        queue.tasks[gone].abort();
        while world.coordinator.waiters(&name) > left {
            sleep(Duration::from_millis(1)).await;
        }
    }
    drop(held);
    for _ in 0..3 {
        let grant = loop {
            match queue.pop() {
                Some(grant) => break grant,
                None => sleep(Duration::from_millis(1)).await,
            }
        };
        drop(grant);
    }
    assert_eq!(queue.order(), [1, 2, 4]);
    assert_eq!(world.coordinator.waiters(&name), 0);
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_behind_others_says_who_holds_the_lock_and_how_many_are_before() {
    let world = world(3).await;
    let mine = AcquireSpec { owner: Owner::new("the holder").unwrap(), ..spec(300_000) };
    let held = world.acquire(mine).await.ok().unwrap();
    let _queue = Queue::of(&world, 7).await;
    let brief = AcquireSpec { wait: Duration::from_secs(1), ..waiting() };
    let start = Instant::now();
    for brief in [brief, AcquireSpec { wait: Duration::ZERO, ..waiting() }] {
        let failure = world.acquire(brief).await.err().unwrap();
        let AcquireFailure::Contended { owner, retry_after, line, .. } = failure else { panic!("{failure:?}") };
        assert_eq!(owner, Owner::new("the holder").unwrap());
        assert!(retry_after > Duration::from_millis(400), "{retry_after:?}");
        assert_eq!((line.before, line.expected), (7, None));
    }
    assert_eq!(start.elapsed().as_secs(), 1);
    drop(held);
}

/// It comes of what the head wanted, or of nothing but its own patience.
#[tokio::test(start_paused = true)]
async fn what_the_head_of_a_line_was_told_for_itself_is_no_answer_to_those_behind_it() {
    let world = world(3).await;
    world.fence.set_delay(60_000);
    let head = AcquireSpec { wait: Duration::from_secs(1_000), ..waiting() };
    let head = tokio::spawn({
        let coordinator = world.coordinator.clone();
        async move { coordinator.acquire(head).await.is_ok() }
    });
    // It has tried in vain at least once: there is no token.
    sleep(Duration::from_secs(25)).await;
    let content = AcquireSpec { token_required: false, wait: Duration::from_millis(100), ..waiting() };
    let failure = world.acquire(content).await.err().unwrap();
    assert!(matches!(failure, AcquireFailure::Contended { .. }), "{failure:?}");
    head.abort();
}

#[tokio::test(start_paused = true)]
async fn a_full_line_refuses_at_once() {
    let world = world(3).await;
    let held = world.acquire(spec(300_000)).await.ok().unwrap();
    let _queue = Queue::of(&world, 100).await;
    let start = Instant::now();
    let failure = world.acquire(waiting()).await.err().unwrap();
    assert_eq!(failure, AcquireFailure::LineFull(Full::Line { waiters: 100, expected: None }));
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Another name has a line of its own, and a try stands in none.
    let other = AcquireSpec { name: LockName::new("b").unwrap(), ..waiting() };
    assert!(world.acquire(other).await.is_ok());
    assert!(matches!(world.acquire(spec(1_000)).await, Err(AcquireFailure::Contended { .. })));
    drop(held);
}

/// Takes the lock for good: its answer has been delivered.
async fn hold(world: &World, spec: AcquireSpec) -> LockId {
    let grant = world.acquire(spec).await.ok().unwrap();
    let id = grant.lock_id();
    grant.delivered();
    id
}

/// Waits until somebody in the queue has got the lock; from when to when.
async fn next_turn(queue: &Queue, turns: usize) -> Grant {
    while queue.order().len() < turns {
        sleep(Duration::from_micros(100)).await;
    }
    queue.pop().unwrap()
}

/// Protocol section 5: one round trip frees and grants.
#[tokio::test(start_paused = true)]
async fn a_release_hands_the_lock_to_the_next_in_line_in_one_round_trip() {
    let world = world(3).await;
    let held = hold(&world, spec(300_000)).await;
    let queue = Queue::of(&world, 2).await;
    world.set_delays(&[10, 20, 30]);
    world.fence.set_delay(15);
    let (start, sets) = (Instant::now(), world.nodes[0].with(|state| state.sets));
    let released = world.coordinator.release(&held).await.unwrap();
    assert_eq!((released, ms_since(start)), (Released::Released, 20));
    let grant = next_turn(&queue, 1).await;
    assert!((35..=36).contains(&ms_since(start)), "the votes of a quorum, and the token: {}", ms_since(start));
    assert!(grant.token.clone().unwrap() > held.token.unwrap());
    // The waiter's TTL, from the start of the hand-over.
    let (validity, _) = grant.answer().unwrap();
    assert!(validity.as_millis() <= 300_000 - 35 - 602, "{validity:?}");
    assert_eq!(world.nodes[0].with(|state| state.sets), sets, "nobody asked the nodes for it");
    sleep(Duration::from_millis(50)).await;
    assert!((0..3).all(|node| !world.nodes[node].is_empty()));
    // The next one by the same way.
    let second = grant.lock_id();
    grant.delivered();
    world.coordinator.release(&second).await.unwrap();
    let last = next_turn(&queue, 2).await;
    assert!(last.token.clone().unwrap() > second.token.unwrap());
    drop(last);
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

/// The lease had ended, and nothing or somebody else's value stands in its place.
#[tokio::test(start_paused = true)]
async fn a_lease_that_has_ended_is_not_handed_over() {
    let world = world(3).await;
    let held = hold(&world, spec(300_000)).await;
    let queue = Queue::of(&world, 1).await;
    // Nothing on two of three nodes: the waiter may have it.
    world.nodes[1..].iter().for_each(|node| node.forget("a"));
    assert_eq!(world.coordinator.release(&held).await, Ok(Released::NotHeld));
    let grant = next_turn(&queue, 1).await;
    let mine = grant.lock_id();
    grant.delivered();
    // Somebody else's: neither.
    let queue = Queue::of(&world, 1).await;
    world.nodes[1..].iter().for_each(|node| node.hold("a"));
    assert_eq!(world.coordinator.release(&mine).await, Ok(Released::NotHeld));
    sleep(Duration::from_millis(5)).await;
    assert!(queue.order().is_empty());
    assert_eq!(world.coordinator.waiters(&waiting().name), 1, "it still waits");
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_to_somebody_who_leaves_goes_to_the_next() {
    let world = world(3).await;
    let held = hold(&world, spec(300_000)).await;
    let queue = Queue::of(&world, 2).await;
    world.set_delays(&[10, 10, 10]);
    let release = world.coordinator.release(&held);
    let leave = async {
        sleep(Duration::from_millis(5)).await;
        queue.tasks[0].abort();
    };
    let (released, ()) = tokio::join!(release, leave);
    assert_eq!(released, Ok(Released::Released));
    drop(next_turn(&queue, 1).await);
    assert_eq!(queue.order(), [1]);
    assert_eq!(world.leftovers().await, Vec::<usize>::new());
}

/// A line that has had many turns in a row pauses if somebody waits elsewhere, so that they can have one; else it goes on at
/// once.
#[tokio::test(start_paused = true)]
async fn a_line_lets_others_go_first_now_and_then() {
    let channel = Channel::Wake(channel_number("lock:", waiting().name.as_str()));
    let everywhere = |world: &World, change: &dyn Fn(&mut Server)| {
        world.nodes.iter().for_each(|node| node.with(|state| change(&mut state.server)));
    };
    let told = world(3).await;
    everywhere(&told, &|server| server.subscribe(1, &[channel, Channel::Waiters]));
    forty_turns(&told, true).await;
    // Nobody may tell those who wait.
    let mute = world(3).await;
    everywhere(&mute, &|server| {
        server.subscribe(1, &[channel, Channel::Waiters]);
        server.set_mute(true);
    });
    forty_turns(&mute, true).await;
    forty_turns(&world(3).await, false).await;
}

/// Two callers who hand a lock to each other are a line too, though it is empty in between.
#[tokio::test(start_paused = true)]
async fn two_callers_in_turn_let_others_go_first_too() {
    let world = world(3).await;
    let mut held = hold(&world, spec(300_000)).await;
    let mut handed_over = 0;
    for _ in 0..40 {
        let queue = Queue::of(&world, 1).await;
        // So long that it does not try itself at that moment.
        sleep(Duration::from_millis(1)).await;
        let sets = world.nodes[0].with(|state| state.sets);
        world.coordinator.release(&held).await.unwrap();
        let grant = next_turn(&queue, 1).await;
        held = grant.lock_id();
        grant.delivered();
        handed_over += usize::from(world.nodes[0].with(|state| state.sets) == sets);
    }
    assert_eq!(handed_over, 38, "every seventeenth is released");
}

async fn forty_turns(world: &World, others_wait: bool) {
    let mut held = hold(world, spec(300_000)).await;
    let queue = Queue::of(world, 40).await;
    let mut released = 0;
    for turn in 1..=40 {
        let start = Instant::now();
        world.coordinator.release(&held).await.unwrap();
        let free = (0..3).all(|node| world.nodes[node].is_empty());
        let grant = next_turn(&queue, turn).await;
        let paused = start.elapsed() >= Duration::from_millis(9);
        assert_eq!(paused, free && others_wait, "{:?}", start.elapsed());
        held = grant.lock_id();
        grant.delivered();
        // So long that the next in line looks at it, in vain.
        sleep(Duration::from_millis(50)).await;
        released += u32::from(free);
    }
    assert_eq!(released, 2, "every seventeenth");
    assert_eq!(queue.order(), (0..40).collect::<Vec<_>>());
}

/// That a quorum had the released value does not prove that nobody had the lock in between: a SET of that value may have come
/// late, to a node that a second release of it then finds. So the token is taken after the votes.
#[tokio::test(start_paused = true)]
async fn the_token_of_a_hand_over_is_above_all_that_were_taken_before_its_quorum() {
    let world = world(3).await;
    let held = hold(&world, spec(300_000)).await;
    let queue = Queue::of(&world, 1).await;
    // It was released through another proxy, and somebody else has the lock: on the second node, and on the third, which is busy.
    world.nodes[1].hold("a");
    world.nodes[2].forget("a");
    world.set_delays(&[0, 0, 400]);
    let busy = tokio::spawn({
        let coordinator = world.coordinator.clone();
        async move { drop(coordinator.get(&LockName::new("x").unwrap()).await) }
    });
    sleep(Duration::from_millis(5)).await;
    let release = tokio::spawn({
        let (coordinator, held) = (world.coordinator.clone(), held.clone());
        async move { drop(coordinator.release(&held).await) }
    });
    sleep(Duration::from_millis(50)).await;
    // Their token.
    let theirs = world.acquire(AcquireSpec { name: LockName::new("b").unwrap(), ..spec(300_000) }).await.ok().unwrap();
    // They release the third node, and the SET that was on its way to it arrives.
    world.nodes[2].with(|state| state.server.put("lock:a", held.value.as_str().as_bytes(), None));
    let ours = next_turn(&queue, 1).await;
    assert!(ours.token.clone().unwrap() > theirs.token.clone().unwrap());
    for task in [busy, release] {
        task.await.unwrap();
    }
}

/// Protocol section 3: once it is known that others want the lock, one node is asked before the others, twice in a row at most, so
/// that a key that was left on it is no veto.
#[tokio::test(start_paused = true)]
async fn whoever_waits_asks_one_node_before_the_others() {
    let world = world(3).await;
    world.nodes.iter().for_each(|node| node.hold("a"));
    let queue = Queue::of(&world, 1).await;
    let sets = || world.nodes.iter().map(|node| node.with(|state| state.sets)).collect::<Vec<_>>();
    let mut seen = vec![sets()];
    while seen.len() < 7 {
        sleep(Duration::from_micros(100)).await;
        if seen.last() != Some(&sets()) {
            seen.push(sets());
        }
    }
    let tries: Vec<Vec<usize>> =
        seen.windows(2).map(|pair| (0..3).filter(|node| pair[1][*node] > pair[0][*node]).collect()).collect();
    let first = (0..3).find(|node| tries.iter().all(|asked| asked.contains(node))).unwrap();
    assert_eq!(tries[..6], [vec![first], vec![first], vec![0, 1, 2], vec![first], vec![first], vec![0, 1, 2]]);
    // It is free on all nodes but that one.
    (0..3).filter(|node| *node != first).for_each(|node| world.nodes[node].forget("a"));
    let start = Instant::now();
    next_turn(&queue, 1).await.delivered();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// From memory, for a moment, and only while the lease is out.
#[tokio::test(start_paused = true)]
async fn a_try_is_told_from_memory_what_was_seen_a_moment_ago() {
    let world = world(3).await;
    let request = |attempt| Some((b"a request id of 16+ bytes".to_vec(), attempt));
    let holder = AcquireSpec { owner: Owner::new("holder").unwrap(), request: request(1), ..spec(10_000) };
    let held = hold(&world, holder.clone()).await;
    let asked = || world.nodes[0].with(|state| state.sets);
    let refused = async |expected: u64| {
        let Err(AcquireFailure::Contended { owner, retry_after, .. }) = world.acquire(spec(10_000)).await else {
            panic!("not contended")
        };
        assert_eq!(owner, Owner::new("holder").unwrap());
        assert!(retry_after.as_millis().abs_diff(u128::from(expected)) <= 1, "{retry_after:?}");
    };
    let before = asked();
    sleep(Duration::from_millis(19)).await;
    refused(10_000 - 19).await;
    assert_eq!(asked(), before, "nobody was asked");
    sleep(Duration::from_millis(2)).await;
    // The clocks of these nodes stand still.
    refused(10_000).await;
    assert_eq!(asked(), before + 1);
    sleep(Duration::from_millis(19)).await;
    refused(10_000 - 40).await;
    assert_eq!(asked(), before + 1, "what the nodes said last counts");

    // Whoever repeats the request takes the place of its own first attempt.
    let retry = AcquireSpec { request: request(2), received: Instant::now(), ..holder };
    let held_again = hold(&world, retry).await;
    assert_ne!(held.value, held_again.value);
    world.coordinator.release(&held_again).await.unwrap();
    assert!(world.acquire(spec(10_000)).await.is_ok(), "it was given back");
}
