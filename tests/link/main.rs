//! One link and its mailbox on a paused clock, over a connection on which the test answers every call by hand: what is sent,
//! what is told to whom, and what becomes of both when replies are late and connections break.
#![allow(clippy::unwrap_used)]

mod random;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use redlockd::engine::lease::{LockValue, Ttl};
use redlockd::engine::membership::{Charter, CounterKind};
use redlockd::engine::quorum::Quorum;
use redlockd::engine::reply::{Reply, Why, WhyKind};
use redlockd::engine::validity::DriftFactor;
use redlockd::node::env::SystemEnv;
use redlockd::node::link::{Link, Observer, STALL_GRACE, Timing};
use redlockd::node::mailbox::{Mailbox, Reach, ReplyTo};
use redlockd::node::roster::{Roster, Seat};
use redlockd::node::script::MAX_BATCH;
use redlockd::node::{Connection, Course, Heard, Listener, Node, NodeTime, Op, Probe, Replies, Settings, WakeUp, WireError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, advance, sleep};

const CALL: Duration = Duration::from_millis(100);

fn timing() -> Timing {
    Timing::new(CALL, Duration::from_secs(300))
}

/// A call that waits for the test to answer it.
struct Call {
    /// The number of its connection, from 1.
    connection: usize,
    ops: Vec<Op>,
    course: Course,
    answer: oneshot::Sender<Result<Replies, WireError>>,
}

impl Call {
    fn answer(self, replies: Vec<Reply>) {
        self.answer_marked("", replies);
    }

    fn all_yes(self) {
        let replies = vec![Reply::Yes; self.ops.len()];
        self.answer(replies);
    }

    /// The same, from a node with that marker.
    fn answer_marked(self, marker: &str, replies: Vec<Reply>) {
        assert_eq!(replies.len(), self.ops.len());
        self.end(Ok(Replies { time: NodeTime { micros: 42 }, earlier: Vec::new(), marker: marker.into(), replies }));
    }

    fn end(self, outcome: Result<Replies, WireError>) {
        // Nobody may be left to read it.
        let _ = self.answer.send(outcome);
    }
}

/// A server in the test's hands.
#[derive(Clone)]
struct Server(Arc<ServerState>);

struct ServerState {
    calls: mpsc::UnboundedSender<Call>,
    /// What the next connections find; the last one stays.
    probes: Mutex<VecDeque<Probe>>,
    /// Connections are neither made nor refused.
    hangs: AtomicBool,
    connects: AtomicUsize,
    open: AtomicUsize,
    closers: Mutex<Vec<oneshot::Sender<Arc<str>>>>,
}

impl Server {
    fn break_connection(&self) {
        self.0.closers.lock().unwrap().drain(..).for_each(|closer| drop(closer.send("broken".into())));
    }

    fn find(&self, probes: impl IntoIterator<Item = Probe>) {
        *self.0.probes.lock().unwrap() = probes.into_iter().collect();
    }

    fn connects(&self) -> usize {
        self.0.connects.load(Ordering::Relaxed)
    }

    fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }
}

fn probe(run_id: &str) -> Probe {
    Probe {
        run_id: run_id.into(),
        version: "memory".into(),
        uptime: Duration::ZERO,
        role: "master".into(),
        cluster: false,
        loading: false,
        settings: Settings::default(),
    }
}

struct Wire {
    number: usize,
    server: Server,
    closed: Mutex<Option<oneshot::Receiver<Arc<str>>>>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.server.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Node for Server {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        let number = self.0.connects.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(async move {
            if self.0.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let (closer, closed) = oneshot::channel();
            self.0.closers.lock().unwrap().push(closer);
            self.0.open.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Wire { number, server: self.clone(), closed: Mutex::new(Some(closed)) }) as Box<dyn Connection>)
        })
    }

    /// Nobody listens in these tests.
    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(std::future::pending())
    }
}

impl Connection for Wire {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        let mut probes = self.server.0.probes.lock().unwrap();
        let probe = if probes.len() > 1 { probes.pop_front() } else { probes.front().cloned() };
        Box::pin(async move { Ok(probe.unwrap()) })
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        let (answer, answered) = oneshot::channel();
        let ops = batch.iter().map(|op| (*op).clone()).collect();
        self.server.0.calls.send(Call { connection: self.number, ops, course, answer }).unwrap();
        Box::pin(async move {
            match answered.await {
                Ok(outcome) => outcome,
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        let closed = self.closed.lock().unwrap().take().unwrap();
        Box::pin(async move {
            match closed.await {
                Ok(why) => why,
                Err(_) => std::future::pending().await,
            }
        })
    }
}

struct Silent;
impl Observer for Silent {}

/// Whoever asked for an operation.
#[derive(Default)]
struct Caller {
    replies: Mutex<Vec<Reply>>,
    withdrawn: AtomicBool,
}

impl Caller {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn replies(&self) -> Vec<Reply> {
        self.replies.lock().unwrap().clone()
    }

    /// The kind of the only reply so far, and whether the operation may have landed.
    fn only_unknown(&self) -> (WhyKind, bool) {
        match &self.replies()[..] {
            [Reply::Unknown(Why { kind, may_have_landed })] => (kind.clone(), *may_have_landed),
            other => panic!("{other:?} in place of one unknown"),
        }
    }
}

impl ReplyTo for Caller {
    fn on_sending(&self, _: usize) -> bool {
        !self.withdrawn.load(Ordering::Relaxed)
    }

    fn on_reply(&self, _: usize, reply: Reply, _: Option<Heard>) {
        self.replies.lock().unwrap().push(reply);
    }
}

fn value(number: u128) -> LockValue {
    LockValue::new(number, None, None)
}

fn set(number: u128) -> Op {
    let ttl = Ttl::from_millis(10_000, Ttl::LONGEST).unwrap();
    Op::Acquire { key: format!("lock:{number}").into(), value: value(number), ttl, bucket: None }
}

fn release(number: u128) -> Op {
    Op::Release { key: format!("lock:{number}").into(), value: value(number), wake: None }
}

/// Lets every task do what it can do now, without moving the clock.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

struct Scene {
    link: Arc<Link>,
    server: Server,
    calls: mpsc::UnboundedReceiver<Call>,
}

impl Scene {
    /// A link that has not connected yet.
    fn new() -> Self {
        Self::at(0, None)
    }

    fn at(index: usize, seat: Option<Seat>) -> Self {
        let (sender, calls) = mpsc::unbounded_channel();
        let server = Server(Arc::new(ServerState {
            calls: sender,
            probes: Mutex::new([probe("first")].into()),
            hangs: AtomicBool::default(),
            connects: AtomicUsize::default(),
            open: AtomicUsize::default(),
            closers: Mutex::default(),
        }));
        let (node, env) = (Box::new(server.clone()), Arc::new(SystemEnv));
        let address = format!("n{index}").into();
        let link = Link::new(index, address, node, timing(), env, Box::new(Silent), seat);
        Self { link: Arc::new(link), server, calls }
    }

    fn run(&self) {
        let link = self.link.clone();
        tokio::spawn(async move { link.run().await });
    }

    async fn up() -> Self {
        let scene = Self::new();
        scene.run();
        settle().await;
        assert!(scene.link.is_up());
        scene
    }

    fn post(&self, op: Op) -> Arc<Caller> {
        let caller = Caller::new();
        self.link.post(op, caller.clone(), Instant::now());
        caller
    }

    /// The next call, which may need the clock to go on.
    async fn call(&mut self) -> Call {
        tokio::time::timeout(Duration::from_secs(3_600), self.calls.recv()).await.expect("a call within an hour").unwrap()
    }

    /// Nothing is sent now.
    async fn no_call(&mut self) {
        settle().await;
        assert!(self.calls.try_recv().is_err(), "nothing was to be sent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_delivered_after_the_time_out_that_stood_for_it() {
    let mut scene = Scene::up().await;
    let caller = scene.post(set(1));
    let call = scene.call().await;
    let sent = Instant::now();
    sleep(CALL - Duration::from_millis(2)).await;
    assert_eq!(caller.replies(), []);
    sleep(Duration::from_millis(4)).await;
    assert_eq!(caller.only_unknown(), (WhyKind::Timeout(CALL), true));
    assert_eq!(scene.link.status().reach, Reach::Silent);

    call.all_yes();
    settle().await;
    assert_eq!(caller.replies().len(), 2);
    assert_eq!(caller.replies()[1], Reply::Yes);
    assert_eq!(scene.link.status().reach, Reach::Up);
    assert_eq!(scene.link.status().round_trip, Some(sent.elapsed()));
    assert!(scene.link.is_idle());
}

/// A batch of eight, and its answer.
async fn eight(scene: &mut Scene) {
    (1..=8).for_each(|number| drop(scene.post(set(number))));
    let call = scene.call().await;
    assert_eq!(call.ops.len(), 8);
    call.all_yes();
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_until_nearly_as_many_are_there_as_in_the_last_one() {
    let mut scene = Scene::up().await;
    eight(&mut scene).await;
    (11..=15).for_each(|number| drop(scene.post(set(number))));
    scene.no_call().await;
    scene.post(release(1));
    // Six of eight: without the clock.
    settle().await;
    assert_eq!(scene.calls.try_recv().expect("a call at once").ops.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_a_batch_to_fill() {
    let mut scene = Scene::up().await;
    eight(&mut scene).await;
    let answered = Instant::now();
    scene.post(set(9));
    scene.no_call().await;
    let call = scene.call().await;
    assert_eq!(call.ops.len(), 1);
    assert!(answered.elapsed() <= Duration::from_millis(2), "{:?}", answered.elapsed());
    call.all_yes();
    settle().await;

    // Nor for others to come back who have long been gone.
    eight(&mut scene).await;
    sleep(Duration::from_millis(5)).await;
    scene.post(set(10));
    settle().await;
    assert_eq!(scene.calls.try_recv().expect("a call at once").ops.len(), 1);
}

/// A caller who is alone is never held up.
#[tokio::test(start_paused = true)]
async fn after_a_batch_of_one_the_next_goes_at_once() {
    let mut scene = Scene::up().await;
    for number in 1..=20 {
        scene.post(set(number));
        settle().await;
        scene.calls.try_recv().expect("a call at once").all_yes();
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_sent_nothing_and_its_releases_wait() {
    let mut scene = Scene::up().await;
    scene.post(set(1));
    let call = scene.call().await;
    let queued = scene.post(set(2));
    let waiting = scene.post(release(1));
    sleep(CALL + Duration::from_millis(1)).await;
    assert_eq!(queued.only_unknown(), (WhyKind::Silent, false), "what waited behind the overdue call");
    let later = scene.post(set(3));
    assert_eq!(later.only_unknown(), (WhyKind::Silent, false), "at once");
    let also_waiting = scene.post(release(9));
    scene.no_call().await;

    // Its release goes after the SET on the connection that carried that.
    let connection = call.connection;
    call.all_yes();
    let call = scene.call().await;
    assert_eq!((call.connection, &call.ops[..]), (connection, &[release(1), release(9)][..]));
    call.answer(vec![Reply::Yes, Reply::Absent]);
    settle().await;
    assert_eq!(waiting.replies().last(), Some(&Reply::Yes));
    assert_eq!(also_waiting.replies().last(), Some(&Reply::Absent));
    assert_eq!(scene.server.connects(), 1);
    assert!(scene.link.is_idle());
}

/// The clock jumps: this process was stopped, and finds its timers due before it has read what had arrived.
#[tokio::test(start_paused = true)]
async fn a_reply_that_was_there_when_the_proxy_woke_up_counts() {
    for unread_for in [0, 5, 9] {
        let mut scene = Scene::up().await;
        let caller = scene.post(set(1));
        let call = scene.call().await;
        advance(CALL + Duration::from_secs(20)).await;
        settle().await;
        sleep(Duration::from_millis(unread_for)).await;
        call.all_yes();
        settle().await;
        assert_eq!(caller.replies(), [Reply::Yes], "read {unread_for} ms after waking up");
        assert_eq!(scene.link.status().reach, Reach::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn the_grace_after_a_stall_ends() {
    let mut scene = Scene::up().await;
    let caller = scene.post(set(1));
    let _call = scene.call().await;
    advance(CALL + STALL_GRACE + Duration::from_millis(5)).await;
    settle().await;
    assert_eq!(caller.replies(), []);
    sleep(STALL_GRACE + Duration::from_millis(1)).await;
    assert_eq!(caller.only_unknown(), (WhyKind::Timeout(CALL), true));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_is_replaced_and_keeps_only_its_releases() {
    let mut scene = Scene::up().await;
    let lost = scene.post(set(1));
    let lost_release = scene.post(release(8));
    let call = scene.call().await;
    assert_eq!(call.ops, [release(8), set(1)], "releases first");
    let queued_release = scene.post(release(1));
    let queued = scene.post(set(2));
    // The first connection is silent for `replace`; then there is another one, with the releases and nothing else.
    let second = scene.call().await;
    assert!(call.answer.is_closed());
    assert_eq!(second.connection, 2);
    assert_eq!(second.ops, [release(8), release(1)], "in their order: the ones under way first");
    assert_eq!(scene.server.open(), 1, "the old connection is closed");
    let kinds: Vec<bool> =
        lost.replies().iter().map(|reply| matches!(reply, Reply::Unknown(why) if why.may_have_landed)).collect();
    assert_eq!(kinds, [true, true], "a time-out, then the loss: {:?}", lost.replies());
    assert_eq!(queued.only_unknown(), (WhyKind::Silent, false));
    second.answer(vec![Reply::Absent, Reply::Yes]);
    settle().await;
    assert_eq!(lost_release.replies().last(), Some(&Reply::Absent));
    assert_eq!(queued_release.replies().last(), Some(&Reply::Yes));
    assert_eq!(scene.link.status().restarts, 0);
    assert!(scene.link.is_idle());
    scene.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_takes_its_sets_along() {
    let mut scene = Scene::up().await;
    let lost = scene.post(set(1));
    let call = scene.call().await;
    let queued = scene.post(set(2));
    let waiting = scene.post(release(1));
    // Another process answers at that address the next time.
    scene.server.find([probe("second")]);
    scene.server.break_connection();
    let next = scene.call().await;
    assert_eq!((next.connection, &next.ops[..]), (2, &[release(1)][..]));
    assert!(matches!(lost.only_unknown(), (WhyKind::ConnectionLost(_), true)));
    assert!(matches!(queued.only_unknown(), (WhyKind::Down(_), false)));
    assert_eq!(scene.link.status().restarts, 1);
    next.all_yes();
    settle().await;
    assert_eq!(waiting.replies().last(), Some(&Reply::Yes));
    drop(call);
    scene.no_call().await;
    assert!(scene.link.is_idle());
}

/// Again and again: releases under way are sent again until one gets its answer.
#[tokio::test(start_paused = true)]
async fn releases_are_sent_until_they_are_answered() {
    let mut scene = Scene::up().await;
    let callers: Vec<_> = (0..3).map(|number| scene.post(release(number))).collect();
    for connection in 1..=5 {
        let call = scene.call().await;
        assert_eq!((call.connection, &call.ops[..]), (connection, &[release(0), release(1), release(2)][..]));
        scene.server.break_connection();
    }
    scene.call().await.all_yes();
    settle().await;
    assert!(callers.iter().all(|caller| caller.replies().last() == Some(&Reply::Yes)));
    assert!(scene.link.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_more_turns_only_where_there_is_time_for_all_of_them() {
    let mut scene = Scene::up().await;
    let ms = Duration::from_millis;
    let short = |number| match set(number) {
        Op::Acquire { key, value, bucket, .. } => {
            Op::Acquire { key, value, bucket, ttl: Ttl::from_millis(50, Ttl::LONGEST).unwrap() }
        }
        _ => unreachable!(),
    };
    // What is asked for, how long it takes, and how it is to be carried out.
    let calls = [
        (set(1), CALL / 3 + ms(1), Course::OneTurn),
        (release(1), CALL / 4, Course::OneTurn),
        (set(2), ms(2), Course::Turns),
        (short(3), ms(2), Course::OneTurn),
        (set(4), ms(1), Course::Turns),
        (short(5), ms(1), Course::Turns),
        (release(6), ms(0), Course::Turns),
    ];
    for (op, takes, course) in calls {
        scene.post(op.clone());
        let call = scene.call().await;
        assert_eq!(call.course, course, "{op:?}");
        sleep(takes).await;
        call.all_yes();
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_whole_call_may_have_landed_and_leaves_the_connection_and_its_releases() {
    let mut scene = Scene::up().await;
    let (first, second) = (scene.post(set(1)), scene.post(set(2)));
    scene.post(release(9));
    let refused = || Err(WireError::Server("BUSY".into()));
    scene.call().await.end(refused());
    let trial = scene.call().await;
    assert_eq!(trial.ops, []);
    trial.end(refused());
    settle().await;
    for caller in [first, second] {
        assert_eq!(caller.only_unknown(), (WhyKind::ServerError("BUSY".into()), true));
    }
    // Nothing but trials is sent until the script runs again; who asks is told why.
    for _ in 0..3 {
        let meanwhile = scene.post(set(3));
        assert_eq!(meanwhile.only_unknown(), (WhyKind::Unfit("BUSY".into()), false));
        let trial = scene.call().await;
        assert_eq!(trial.ops, []);
        trial.end(refused());
        settle().await;
    }
    scene.call().await.all_yes();
    let call = scene.call().await;
    assert_eq!((call.connection, &call.ops[..]), (1, &[release(9)][..]), "the release is sent again");
    call.all_yes();
    settle().await;
    assert!(scene.link.is_up());
}

/// A key that the user may not touch spoils its own call, and nothing after it.
#[tokio::test(start_paused = true)]
async fn what_a_server_refuses_for_one_key_does_not_stand_in_the_way() {
    let mut scene = Scene::up().await;
    scene.post(release(1));
    scene.post(release(2));
    let refused = || Err(WireError::Server("NOPERM".into()));
    scene.call().await.end(refused());
    scene.call().await.all_yes();
    let first = scene.call().await;
    assert_eq!(first.ops, [release(1)]);
    first.end(refused());
    let second = scene.call().await;
    assert_eq!(second.ops, [release(2)]);
    second.all_yes();
    settle().await;
    assert!(scene.link.is_up());
    scene.post(set(3));
    assert_eq!(scene.call().await.ops, [set(3)], "the refused release is not tried for ever");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_fit_is_sent_nothing_until_it_is() {
    let mut scene = Scene::new();
    let before = scene.post(set(1));
    assert!(matches!(before.only_unknown(), (WhyKind::Down(_), false)), "not connected yet");
    let waiting = scene.post(release(1));
    let replica = Probe { role: "slave".into(), ..probe("first") };
    let loading = Probe { loading: true, ..probe("first") };
    scene.server.find([replica.clone(), replica, loading, probe("first")]);
    scene.run();
    settle().await;
    assert!(matches!(scene.link.status().reach, Reach::Unfit(_)));
    let refused = scene.post(set(2));
    assert!(matches!(refused.only_unknown(), (WhyKind::Unfit(_), false)));
    scene.no_call().await;
    let call = scene.call().await;
    assert_eq!((call.connection, &call.ops[..]), (4, &[release(1)][..]));
    assert_eq!(scene.server.open(), 1, "the unfit ones' connections are closed");
    call.all_yes();
    settle().await;
    assert_eq!(waiting.replies().last(), Some(&Reply::Yes));
}

#[tokio::test(start_paused = true)]
async fn one_server_under_two_names_votes_once() {
    let charter = Charter {
        nodes: vec!["n0".into(), "n1".into()],
        counter: CounterKind::Designated,
        max_ttl: Ttl::from_millis(10_000, Ttl::LONGEST).unwrap(),
        drift: DriftFactor::DEFAULT,
        bootstrap: false,
    };
    let roster = Roster::new(charter, Quorum::of(2).unwrap(), Instant::now());
    let [first, second] = [0, 1].map(|index| Scene::at(index, Some(Seat::new(&roster, index))));
    first.run();
    settle().await;
    second.run();
    settle().await;
    let Reach::Unfit(why) = second.link.status().reach else { panic!("{:?}", second.link.status()) };
    assert!(why.contains("n0"), "{why}");
    // Once the first one turns out to be somebody else, the second may vote.
    first.server.find([probe("other")]);
    first.server.break_connection();
    sleep(Duration::from_secs(5)).await;
    let unfit = |scene: &Scene| matches!(scene.link.status().reach, Reach::Unfit(_));
    assert!(!unfit(&first) && !unfit(&second));
}

/// It has answered late three times, the last time with an error: a probe brings it back as after any other answer.
#[tokio::test(start_paused = true)]
async fn a_node_whose_third_late_answer_is_an_error_comes_back() {
    let mut scene = Scene::up().await;
    for number in 1..=3 {
        scene.post(set(number));
        let call = scene.call().await;
        sleep(CALL + Duration::from_millis(1)).await;
        match number {
            3 => call.end(Err(WireError::Server("the node's marker changed during the call".into()))),
            _ => call.all_yes(),
        }
        settle().await;
    }
    let trial = scene.call().await;
    assert_eq!(trial.ops, [], "whether it answers at all");
    trial.answer(vec![]);
    settle().await;
    assert_eq!(scene.link.status().reach, Reach::Suspended);
    scene.call().await.answer(vec![]);
    settle().await;
    assert_eq!(scene.link.status().reach, Reach::Up);
    scene.post(set(4));
    assert_eq!(scene.call().await.ops, [set(4)]);
}

/// Protocol section 6: nothing waits for a node that keeps timing out, and a probe brings it back.
#[tokio::test(start_paused = true)]
async fn a_node_that_times_out_three_times_in_a_row_is_sent_probes_only() {
    let mut scene = Scene::up().await;
    for number in 1..=3 {
        assert_eq!(scene.link.status().reach, Reach::Up, "after {} of three", number - 1);
        let caller = scene.post(set(number));
        let call = scene.call().await;
        sleep(CALL + Duration::from_millis(1)).await;
        assert_eq!(caller.only_unknown(), (WhyKind::Timeout(CALL), true));
        call.all_yes();
        settle().await;
    }
    assert_eq!(scene.link.status().reach, Reach::Suspended);
    let refused = scene.post(set(4));
    assert_eq!(refused.only_unknown(), (WhyKind::Suspended, false), "at once");
    let waiting = scene.post(release(1));
    for _ in 0..3 {
        let probe = scene.call().await;
        assert_eq!(probe.ops, []);
        sleep(CALL + Duration::from_millis(1)).await;
        probe.answer(vec![]);
        settle().await;
        assert_eq!(scene.link.status().reach, Reach::Suspended, "that was too late");
    }
    scene.call().await.answer(vec![]);
    let call = scene.call().await;
    assert_eq!(call.ops, [release(1)]);
    call.all_yes();
    settle().await;
    assert_eq!(waiting.replies().last(), Some(&Reply::Yes));
    assert_eq!(scene.link.status().reach, Reach::Up);
    assert_eq!(scene.server.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_answer_makes_up_for_the_time_outs_before_it() {
    let mut scene = Scene::up().await;
    for number in 0..6 {
        scene.post(set(number));
        let call = scene.call().await;
        let late = number % 3 != 2;
        if late {
            sleep(CALL + Duration::from_millis(1)).await;
        }
        call.all_yes();
        settle().await;
        assert_eq!(scene.link.status().reach, Reach::Up, "after call {number}");
    }
}

/// The others know of our longest TTL and may be asked; a node whose marker does not could forget a lease before it ends.
#[tokio::test(start_paused = true)]
async fn renewals_do_not_count_where_the_marker_does_not_know_of_our_longest_lease() {
    let marker = |state: &str, ttl: u64, nodes: &str| {
        format!("redlockd/1 run_id=first{state} max_ttl_ms={ttl} counter=designated listed_ms=0 nodes={nodes}")
    };
    let cases = [
        (marker("", 300_000, "n0,n1,n2"), true),
        // It may have forgotten other locks, but this one it holds.
        (marker(" joining=aa because=restarted since_ms=0", 300_000, "n0,n1,n2"), true),
        (marker("", 10_000, "n0,n1,n2"), false),
        (marker("", 300_000, "n0,x,y"), false),
    ];
    for (marker, counts) in cases {
        let charter = Charter {
            nodes: ["n0", "n1", "n2"].map(Arc::from).to_vec(),
            counter: CounterKind::Designated,
            max_ttl: Ttl::from_millis(300_000, Ttl::LONGEST).unwrap(),
            drift: DriftFactor::DEFAULT,
            bootstrap: false,
        };
        let roster = Roster::new(charter, Quorum::of(3).unwrap(), Instant::now());
        let mut scene = Scene::at(0, Some(Seat::new(&roster, 0)));
        scene.run();
        settle().await;
        let look = scene.call().await;
        look.answer_marked(&marker, vec![Reply::Absent]);
        settle().await;
        let ttl = Ttl::from_millis(300_000, Ttl::LONGEST).unwrap();
        let renewal = scene.post(Op::Renew { key: "lock:1".into(), value: value(1), ttl });
        let adoption = scene.post(Op::Adopt { key: "lock:2".into(), old: value(2), new: value(3), ttl });
        loop {
            let call = scene.call().await;
            let answer = |op: &Op| match op {
                Op::Renew { .. } | Op::Adopt { .. } => Reply::Held { left_ms: 300_000 },
                // Nothing changes here.
                _ => Reply::Absent,
            };
            let replies = call.ops.iter().map(answer).collect();
            call.answer_marked(&marker, replies);
            settle().await;
            if [&renewal, &adoption].iter().all(|caller| !caller.replies().is_empty()) {
                break;
            }
        }
        for caller in [renewal, adoption] {
            match (&caller.replies()[..], counts) {
                ([Reply::Held { left_ms: 300_000 }], true) => {}
                ([Reply::Unknown(Why { kind: WhyKind::NoVote(_), may_have_landed: true })], false) => {}
                (replies, _) => panic!("{replies:?} from a node with the marker {marker}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_tried_again_with_pauses() {
    let scene = Scene::new();
    scene.server.0.hangs.store(true, Ordering::Relaxed);
    scene.run();
    sleep(Duration::from_secs(60)).await;
    assert!(matches!(scene.link.status().reach, Reach::Down(_)));
    // A second for each try, and 0.4 to 0.8 s between them once they have grown.
    let tries = scene.server.connects();
    assert!((30..=50).contains(&tries), "{tries} tries in a minute");
    scene.server.0.hangs.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(3)).await;
    assert!(scene.link.is_up());
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_back_in_the_mailbox_is_never_sent() {
    let mut scene = Scene::up().await;
    scene.post(set(1));
    let call = scene.call().await;
    let (kept, dropped) = (scene.post(set(2)), scene.post(set(3)));
    dropped.withdrawn.store(true, Ordering::Relaxed);
    call.all_yes();
    let call = scene.call().await;
    assert_eq!(call.ops, [set(2)]);
    call.all_yes();
    settle().await;
    assert_eq!((kept.replies(), dropped.replies()), (vec![Reply::Yes], vec![]));
    assert!(scene.link.is_idle());
}

/// More than a batch of operations in a row that were all taken back must not hide what waits behind them.
#[tokio::test(start_paused = true)]
async fn what_waits_behind_many_that_were_taken_back_is_sent() {
    for batches in 1..=4 {
        let mut scene = Scene::up().await;
        scene.post(set(1));
        let call = scene.call().await;
        for number in 0..batches * MAX_BATCH as u128 {
            scene.post(set(100 + number)).withdrawn.store(true, Ordering::Relaxed);
        }
        let behind = scene.post(release(1));
        call.all_yes();
        settle().await;
        let next = scene.calls.try_recv().unwrap_or_else(|_| panic!("nothing is sent after {batches} batches taken back"));
        assert_eq!(next.ops, [release(1)]);
        next.all_yes();
        settle().await;
        assert_eq!(behind.replies(), [Reply::Yes]);
    }
}

#[test]
fn a_mailbox_s_places_all_come_back() {
    let mailbox = Mailbox::new(0, 8, Duration::from_secs(300));
    let now = Instant::now();
    mailbox.set_reach(Reach::Up, now);
    let caller = Caller::new();
    let places: Vec<_> = (0..10).map(|number| mailbox.post_acquire(set(number), caller.clone(), now)).collect();
    assert_eq!(places.iter().flatten().count(), 4, "two places each");
    let full = Reply::Unknown(Why { kind: WhyKind::MailboxFull, may_have_landed: false });
    assert_eq!(caller.replies(), vec![full; 6]);
    for (number, place) in places.into_iter().enumerate().filter_map(|(number, place)| Some((number, place?))) {
        mailbox.post_in(place, release(number as u128), caller.clone(), now);
    }
    assert_eq!(mailbox.len(), 8);
    mailbox.set_reach(Reach::Down("gone".into()), now + Duration::from_secs(301));
    assert!(mailbox.is_idle());
}

/// Who releases, and who waits: both want to know.
#[derive(Default)]
struct Heir {
    waiter: Caller,
    releaser: Arc<Caller>,
}

impl ReplyTo for Heir {
    fn on_sending(&self, node: usize) -> bool {
        self.waiter.on_sending(node)
    }

    fn for_release(&self) -> Option<Arc<dyn ReplyTo>> {
        Some(self.releaser.clone())
    }

    fn on_reply(&self, node: usize, reply: Reply, heard: Option<Heard>) {
        self.waiter.on_reply(node, reply, heard);
    }
}

fn hand_over(old: u128, new: u128) -> Op {
    let ttl = Ttl::from_millis(10_000, Ttl::LONGEST).unwrap();
    let wake = WakeUp { sender: "me".into() };
    Op::HandOver { key: format!("lock:{old}").into(), old: value(old), new: value(new), ttl, bucket: None, wake }
}

/// Protocol section 5: it carries the release, which is never dropped.
#[tokio::test(start_paused = true)]
async fn a_hand_over_that_is_not_sent_becomes_a_release() {
    let mut scene = Scene::up().await;
    scene.post(set(1));
    let call = scene.call().await;
    // One waits behind a call that becomes overdue, one is posted after that, one to a connection that breaks.
    let heirs: Vec<Arc<Heir>> = (0..3).map(|_| Arc::default()).collect();
    scene.link.post_acquire(hand_over(2, 12), heirs[0].clone(), Instant::now());
    sleep(CALL + Duration::from_millis(1)).await;
    scene.link.post_acquire(hand_over(3, 13), heirs[1].clone(), Instant::now());
    for heir in &heirs[..2] {
        assert_eq!(heir.waiter.only_unknown(), (WhyKind::Silent, false), "no vote, at once");
    }
    call.all_yes();
    let call = scene.call().await;
    assert_eq!(call.ops, [hand_over(2, 12), hand_over(3, 13)].map(|op| op.release_of().unwrap()));
    call.all_yes();
    settle().await;
    for heir in &heirs[..2] {
        assert_eq!(heir.releaser.replies(), [Reply::Yes]);
        assert_eq!(heir.waiter.replies().len(), 1);
    }
    let connection = scene.server.connects();
    scene.link.post_acquire(hand_over(4, 14), heirs[2].clone(), Instant::now());
    assert_eq!(scene.call().await.ops, [hand_over(4, 14)]);
    scene.server.break_connection();
    let call = scene.call().await;
    assert_eq!(
        (call.connection, &call.ops[..]),
        (connection + 1, &[hand_over(4, 14).release_of().unwrap()][..]),
        "never sent twice"
    );
    assert!(matches!(heirs[2].waiter.only_unknown(), (WhyKind::ConnectionLost(_), true)));
    call.all_yes();
    settle().await;
    assert_eq!(heirs[2].releaser.replies().last(), Some(&Reply::Yes));
    assert_eq!(heirs[2].waiter.replies().len(), 1);
    assert!(scene.link.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_is_taken_back_leaves_its_release() {
    let mut scene = Scene::up().await;
    let plug = scene.post(set(1));
    let call = scene.call().await;
    let heir: Arc<Heir> = Arc::default();
    scene.link.post_acquire(hand_over(2, 12), heir.clone(), Instant::now());
    heir.waiter.withdrawn.store(true, Ordering::Relaxed);
    call.all_yes();
    let call = scene.call().await;
    assert_eq!(call.ops, [hand_over(2, 12).release_of().unwrap()]);
    call.all_yes();
    settle().await;
    assert_eq!((plug.replies().len(), heir.waiter.replies(), heir.releaser.replies()), (1, vec![], vec![Reply::Yes]));
}

/// The charter of a cluster of one node.
fn alone() -> Charter {
    Charter {
        nodes: vec!["n0".into()],
        counter: CounterKind::Designated,
        max_ttl: Ttl::from_millis(10_000, Ttl::LONGEST).unwrap(),
        drift: DriftFactor::DEFAULT,
        bootstrap: false,
    }
}

/// A clock that is wrong while a key is set and right again at the end of the call: the key may end too early.
#[tokio::test(start_paused = true)]
async fn a_vote_needs_a_clock_that_was_right_in_every_turn_of_its_call() {
    let marker = "redlockd/1 run_id=first max_ttl_ms=10000 counter=designated listed_ms=0 nodes=n0";
    for (earlier, votes) in [(42, true), (42 + 5_000_000, false)] {
        let roster = Roster::new(alone(), Quorum::of(1).unwrap(), Instant::now());
        let mut scene = Scene::at(0, Some(Seat::new(&roster, 0)));
        scene.run();
        settle().await;
        scene.call().await.answer_marked(marker, vec![Reply::Absent]);
        settle().await;
        let caller = scene.post(set(1));
        let call = scene.call().await;
        assert_eq!(call.ops[0], set(1));
        let mut replies = vec![Reply::Absent; call.ops.len()];
        replies[0] = Reply::Yes;
        let [time, earlier] = [42, earlier].map(|micros| NodeTime { micros });
        call.end(Ok(Replies { time, earlier: vec![earlier], marker: marker.into(), replies }));
        settle().await;
        assert_eq!(caller.replies() == [Reply::Yes], votes, "{:?}", caller.replies());
        assert_eq!(scene.link.status().votes_lost, u64::from(!votes));
    }
}

/// It holds the waiter's value and may have forgotten others: no vote.
#[tokio::test(start_paused = true)]
async fn a_hand_over_is_no_vote_where_the_node_may_not_vote() {
    for (state, votes) in [("", true), (" joining=aa because=restarted since_ms=0", false)] {
        let marker = format!("redlockd/1 run_id=first{state} max_ttl_ms=10000 counter=designated listed_ms=0 nodes=n0");
        let roster = Roster::new(alone(), Quorum::of(1).unwrap(), Instant::now());
        let mut scene = Scene::at(0, Some(Seat::new(&roster, 0)));
        scene.run();
        settle().await;
        scene.call().await.answer_marked(&marker, vec![Reply::Absent]);
        settle().await;
        let heir: Arc<Heir> = Arc::default();
        scene.link.post_acquire(hand_over(1, 2), heir.clone(), Instant::now());
        let call = scene.call().await;
        assert_eq!(call.ops[0], hand_over(1, 2));
        let handed = Reply::HandedOver { released: true, number: None, no_vote: None };
        let mut replies = vec![Reply::Absent; call.ops.len()];
        replies[0] = handed.clone();
        call.answer_marked(&marker, replies);
        settle().await;
        match &heir.waiter.replies()[..] {
            [reply] if *reply == handed => assert!(votes),
            [Reply::HandedOver { released: true, no_vote: Some(_), .. }] => {
                assert!(!votes);
                assert_eq!(scene.link.status().votes_lost, 1);
            }
            other => panic!("{other:?}"),
        }
    }
}
