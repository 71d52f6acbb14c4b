//! The wires between proxies and servers: what is sent on one arrives in order or not at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::Rng as _;
use redlockd::node::resp::{self, Answer};
use redlockd::node::talk::{self, Talk};
use redlockd::node::{Channel, Connection, Course, Listener, Node, Op, Probe, Replies, WireError};
use tokio::sync::{mpsc, oneshot};

use crate::memory::{self, Server};
use crate::oracle::history::At;

use super::Shared;
use super::clock::Gate;
use super::site::{self, Ear, Site};

/// The way from one proxy to one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// The longest usual time of a message.
    usual: Duration,
    /// Nothing reaches the server until then.
    pub requests_held_until: At,
    /// Nothing comes back until then.
    pub replies_held_until: At,
    /// Everything takes so much longer until then.
    pub slow: Duration,
    pub slow_until: At,
    /// One in so many calls loses its connection, before or after the server has run it; 0: none does.
    pub cuts_one_in: u32,
    /// One in so many calls fails half way, with what it had written in place; 0: none does.
    pub fails_one_in: u32,
}

impl Line {
    /// One on which nothing goes wrong.
    pub fn usual(longest: Duration) -> Self {
        Self { usual: longest, ..Self::default() }
    }
}

/// One end of a connection as its server sees it.
pub struct Wire {
    pub proxy: usize,
    pub site: usize,
    number: u64,
    starts: u64,
    /// The proxy has given it up.
    abandoned: AtomicBool,
    cut: AtomicBool,
    /// What has been sent when it is cut or given up still arrives.
    lands_late: bool,
    closer: Mutex<Option<oneshot::Sender<Arc<str>>>>,
}

impl Wire {
    pub fn label(&self) -> String {
        format!("proxy {} node {} wire {}", self.proxy, self.site, self.number)
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed) || self.cut.load(Ordering::Relaxed)
    }

    /// Breaks it: the proxy gets to know a moment later.
    pub fn cut(&self, shared: &Arc<Shared>, gate: &Gate, why: &'static str) {
        self.cut.store(true, Ordering::Relaxed);
        let Some(closer) = self.closer.lock().expect("nobody panics with it").take() else { return };
        let (shared, gate, delay) = (shared.clone(), gate.clone(), shared.span(0, 2));
        tokio::spawn(async move {
            shared.sleep(delay).await;
            gate.passes(shared.time).await;
            let _ = closer.send(why.into());
        });
    }
}

enum Work {
    Probe(oneshot::Sender<Result<Probe, WireError>>),
    Commands(Commands, oneshot::Sender<Result<Vec<Answer>, WireError>>),
}

/// What is sent at once.
struct Commands {
    request: Vec<u8>,
    /// What it is sent for.
    batch: Arc<Vec<Op>>,
}

struct Request {
    arrives: At,
    work: Work,
}

struct Reply {
    arrives: At,
    send: Box<dyn FnOnce() + Send>,
}

/// A server as one proxy reaches it.
pub struct SimNode {
    pub shared: Arc<Shared>,
    pub proxy: usize,
    pub site: usize,
    pub gate: Gate,
}

impl Node for SimNode {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        Box::pin(async move {
            let shared = &self.shared;
            shared.sleep(self.delay()).await;
            self.requests_pass().await;
            let end = self.accept();
            shared.sleep(self.delay()).await;
            self.replies_pass().await;
            self.gate.passes(shared.time).await;
            end.map(|end| Box::new(end) as Box<dyn Connection>).ok_or_else(|| WireError::Closed("connection refused".into()))
        })
    }

    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(async move {
            let (ear, messages) = mpsc::unbounded_channel();
            let mut accepted = None;
            self.there_and_back(|site| {
                if site.up {
                    let number = site.open_ear(Ear { proxy: self.proxy, messages: ear });
                    accepted = Some((number, site.starts));
                }
            })
            .await;
            let (number, starts) = accepted.ok_or_else(|| WireError::Closed("connection refused".into()))?;
            let node = Self { shared: self.shared.clone(), gate: self.gate.clone(), ..*self };
            Ok(Box::new(EarEnd { node, number, starts, messages, next: None }) as Box<dyn Listener>)
        })
    }
}

/// The proxy's end of a connection for what is published.
struct EarEnd {
    node: SimNode,
    number: u64,
    starts: u64,
    messages: mpsc::UnboundedReceiver<(At, Arc<str>)>,
    /// Received, and not there yet.
    next: Option<(At, Arc<str>)>,
}

impl EarEnd {
    async fn tell(&self, change: impl FnOnce(&mut Server) + Send) -> Result<(), WireError> {
        let mut is_open = false;
        self.node
            .there_and_back(|site| {
                is_open = site.starts == self.starts && site.ears.contains_key(&self.number);
                if is_open {
                    change(&mut site.server);
                }
            })
            .await;
        is_open.then_some(()).ok_or_else(|| WireError::Closed("connection reset".into()))
    }
}

impl Listener for EarEnd {
    fn subscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        Box::pin(self.tell(|server| server.subscribe(self.number, channels)))
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        Box::pin(self.tell(|server| server.unsubscribe(self.number, channels)))
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Arc<str>, WireError>> {
        Box::pin(async {
            if self.next.is_none() {
                self.next = self.messages.recv().await;
            }
            let Some((arrives, message)) = self.next.clone() else {
                return Err(WireError::Closed("closed by the server".into()));
            };
            self.node.shared.time.until(arrives).await;
            self.node.replies_pass().await;
            self.node.gate.passes(self.node.shared.time).await;
            self.next = None;
            Ok(message)
        })
    }
}

impl Drop for EarEnd {
    fn drop(&mut self) {
        let (number, starts) = (self.number, self.starts);
        let site = &mut self.node.shared.state().sites[self.node.site];
        if site.starts == starts {
            site.close_ears(|open, _| open == number);
        }
    }
}

impl SimNode {
    fn line(&self) -> Line {
        self.shared.state().lines[self.proxy][self.site]
    }

    fn delay(&self) -> Duration {
        delay(&self.shared, self.line())
    }

    async fn requests_pass(&self) {
        hold(&self.shared, || self.line().requests_held_until).await;
    }

    async fn replies_pass(&self) {
        hold(&self.shared, || self.line().replies_held_until).await;
    }

    /// Reaches the server with a request, and waits for its answer.
    async fn there_and_back(&self, work: impl FnOnce(&mut Site) + Send) {
        let shared = &self.shared;
        shared.sleep(self.delay()).await;
        self.requests_pass().await;
        hold(shared, || shared.state().sites[self.site].paused_until).await;
        work(&mut shared.state().sites[self.site]);
        shared.sleep(self.delay()).await;
        self.replies_pass().await;
        self.gate.passes(shared.time).await;
    }

    fn accept(&self) -> Option<End> {
        let lands_late = self.shared.one_in(2);
        let (closer, closed) = oneshot::channel();
        let (requests, inbox) = mpsc::unbounded_channel();
        let wire = {
            let site = &mut self.shared.state().sites[self.site];
            if !site.up {
                return None;
            }
            let wire = Arc::new(Wire {
                proxy: self.proxy,
                site: self.site,
                number: site.wires.len() as u64,
                starts: site.starts,
                abandoned: AtomicBool::new(false),
                cut: AtomicBool::new(false),
                lands_late,
                closer: Mutex::new(Some(closer)),
            });
            site.wires.push(wire.clone());
            wire
        };
        let (replies, outbox) = mpsc::unbounded_channel();
        let node = Self { shared: self.shared.clone(), gate: self.gate.clone(), ..*self };
        tokio::spawn(bring_back(Self { shared: self.shared.clone(), gate: self.gate.clone(), ..*self }, wire.clone(), outbox));
        tokio::spawn(serve(node, wire.clone(), inbox, replies));
        let (shared, gate, talk) = (self.shared.clone(), self.gate.clone(), Talk::new(memory::scripts()));
        Some(End { shared, gate, wire, requests, closed: Mutex::new(Some(closed)), talk })
    }
}

fn delay(shared: &Shared, line: Line) -> Duration {
    let usual = if shared.one_in(50) { shared.span(1, 20) } else { shared.up_to(line.usual) };
    if line.slow_until > shared.now() { usual + line.slow } else { usual }
}

/// Waits until `until` has passed, also if it moves in the meantime.
async fn hold(shared: &Shared, until: impl Fn() -> At) {
    while until() > shared.now() {
        shared.time.until(until()).await;
    }
}

/// The server's end: takes requests in, in order.
async fn serve(
    node: SimNode,
    wire: Arc<Wire>,
    mut inbox: mpsc::UnboundedReceiver<Request>,
    replies: mpsc::UnboundedSender<Reply>,
) {
    let shared = &node.shared;
    while let Some(request) = inbox.recv().await {
        shared.time.until(request.arrives).await;
        node.requests_pass().await;
        hold(shared, || shared.state().sites[wire.site].paused_until).await;
        let cuts = node.line().cuts_one_in;
        if cuts > 0 && shared.one_in(cuts) {
            wire.cut(shared, &node.gate, "connection reset on the way there");
        }
        if !is_alive(shared, &wire) || (wire.is_abandoned() && !wire.lands_late) {
            wire.cut(shared, &node.gate, "connection reset by the server");
            return;
        }
        let send: Box<dyn FnOnce() + Send> = match request.work {
            Work::Probe(answer) => {
                let probe = shared.state().sites[wire.site].server.probe();
                Box::new(move || drop(answer.send(Ok(probe))))
            }
            Work::Commands(Commands { request, batch }, answer) => {
                let fails = node.line().fails_one_in;
                // As of a script that was killed, or met what no pcall catches.
                let breaks = fails > 0 && shared.one_in(fails);
                // Between two commands a server serves others.
                let (first, rest) = if shared.one_in(4) { apart(shared, &request) } else { (&request[..], &[][..]) };
                let mut answers = site::execute(shared, &wire, &batch, first, breaks);
                if !rest.is_empty() {
                    shared.sleep(shared.up_to(node.line().usual)).await;
                    hold(shared, || shared.state().sites[wire.site].paused_until).await;
                    if !is_alive(shared, &wire) {
                        wire.cut(shared, &node.gate, "connection reset by the server");
                        return;
                    }
                    answers.extend(site::execute(shared, &wire, &batch, rest, breaks));
                }
                Box::new(move || drop(answer.send(Ok(answers))))
            }
        };
        if cuts > 0 && shared.one_in(cuts) {
            wire.cut(shared, &node.gate, "connection reset on the way back");
        }
        let _ = replies.send(Reply { arrives: shared.now() + node.delay(), send });
    }
}

/// Whether the process is there to which a connection was made.
fn is_alive(shared: &Shared, wire: &Wire) -> bool {
    let site = &shared.state().sites[wire.site];
    site.up && site.starts == wire.starts
}

/// The commands of a request up to one of them, and the others.
fn apart<'a>(shared: &Shared, request: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let mut ends = Vec::new();
    let mut end = 0;
    while let Some((_, length)) = resp::read(&request[end..]).expect("commands are sent whole") {
        end += length;
        ends.push(end);
    }
    request.split_at(ends[shared.state().chance(|rng| rng.random_range(0..ends.len()))])
}

/// The way back, in order.
async fn bring_back(node: SimNode, wire: Arc<Wire>, mut outbox: mpsc::UnboundedReceiver<Reply>) {
    while let Some(reply) = outbox.recv().await {
        node.shared.time.until(reply.arrives).await;
        node.replies_pass().await;
        node.gate.passes(node.shared.time).await;
        if !wire.cut.load(Ordering::Relaxed) {
            (reply.send)();
        }
    }
}

/// The proxy's end.
struct End {
    shared: Arc<Shared>,
    gate: Gate,
    wire: Arc<Wire>,
    requests: mpsc::UnboundedSender<Request>,
    closed: Mutex<Option<oneshot::Receiver<Arc<str>>>>,
    talk: Talk,
}

impl End {
    /// An answer that never comes leaves its call without an end.
    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, WireError>>) -> Work,
    ) -> BoxFuture<'static, Result<T, WireError>> {
        let (answer, answered) = oneshot::channel();
        if !self.gate.is_dead() && !self.wire.cut.load(Ordering::Relaxed) {
            let line = self.shared.state().lines[self.wire.proxy][self.wire.site];
            let arrives = self.shared.now() + delay(&self.shared, line);
            let _ = self.requests.send(Request { arrives, work: work(answer) });
        }
        Box::pin(async move {
            match answered.await {
                Ok(outcome) => outcome,
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl Connection for End {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        let answered = self.send(Work::Probe);
        Box::pin(async {
            let probe = answered.await?;
            self.talk.meet(probe.run_id.clone());
            Ok(probe)
        })
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        Box::pin(async move {
            let owned = batch.iter().map(|op| (*op).clone()).collect();
            self.talk.call(&Turns { end: self, batch: Arc::new(owned) }, batch, course).await
        })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        let closed = self.closed.lock().expect("nobody panics with it").take();
        Box::pin(async move {
            match closed {
                Some(closed) => match closed.await {
                    Ok(why) => why,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        })
    }
}

/// What becomes of one call: each of its turns is a message of its own.
struct Turns<'a> {
    end: &'a End,
    batch: Arc<Vec<Op>>,
}

impl talk::Wire for Turns<'_> {
    async fn exchange(&self, _: usize, write: impl FnOnce(&mut Vec<u8>) + Send) -> Result<Vec<Answer>, WireError> {
        let mut request = Vec::new();
        write(&mut request);
        let batch = self.batch.clone();
        self.end.send(move |answer| Work::Commands(Commands { request, batch }, answer)).await
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.wire.abandoned.store(true, Ordering::Relaxed);
    }
}
