//! The node that a test looks at, and what goes on behind its back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use redlockd::engine::reply::Reply;
use redlockd::node::script::Raw;
use redlockd::node::talk::Talk;
use redlockd::node::{Channel, Connection, Course, Listener, Node, NodeTime, Op, Probe, Replies, WireError};
use tokio::sync::mpsc;

use crate::memory::{self, Published, Server};
use crate::real::{Real, RealServer};
use crate::support::PATIENCE;

/// A key: name, bytes (`None`: another type), milliseconds left (`None`: no end).
pub type Found = (String, Option<Vec<u8>>, Option<u64>);

/// What others do to the server, and what can be seen there.
pub trait Backstage {
    fn put(&mut self, key: &str, bytes: &[u8], left_ms: Option<u64>);
    fn put_list(&mut self, key: &str);
    fn delete(&mut self, key: &str);
    /// What it answers to a script.
    fn eval(&mut self, script: &str, args: &[&[u8]]) -> Result<Raw, String>;
    /// In their order.
    fn keys(&mut self) -> Vec<Found>;
    /// `SCRIPT FLUSH`.
    fn forget_scripts(&mut self);
    /// No more memory, or enough of it.
    fn set_full(&mut self, full: bool);
    /// Another process with nothing in memory.
    fn restart(&mut self);
    /// Time passes on the server's clock.
    fn pause(&mut self, micros: u64);
    fn now(&mut self) -> NodeTime;
}

/// What the machine's wall clock shows.
pub fn wall_clock() -> NodeTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    NodeTime { micros: since.as_micros().try_into().unwrap() }
}

/// A node with one connection to it.
pub struct Subject {
    pub backstage: Box<dyn Backstage>,
    pub run_id: Arc<str>,
    pub connection: Box<dyn Connection>,
    pub course: Course,
    node: Box<dyn Node>,
}

impl Subject {
    pub async fn simulated() -> Self {
        let simulated = Simulated::new();
        Self::of(Box::new(simulated.clone()), Box::new(simulated)).await
    }

    pub async fn real(server: &RealServer) -> Self {
        let real = Real::start(server);
        Self::of(Box::new(real.node()), Box::new(real)).await
    }

    async fn of(node: Box<dyn Node>, backstage: Box<dyn Backstage>) -> Self {
        let (connection, run_id) = connect(&*node).await;
        Self { backstage, connection, course: Course::Turns, run_id, node }
    }

    /// Runs operations in one call.
    pub async fn call(&self, batch: &[Op]) -> Replies {
        self.connection.call(&batch.iter().collect::<Vec<_>>(), self.course).await.unwrap()
    }

    /// Runs one operation.
    pub async fn one(&self, op: Op) -> Reply {
        self.call(&[op]).await.replies.remove(0)
    }

    /// Runs one operation again and again until its reply is `expected`; gives the node's time at that.
    pub async fn until(&mut self, op: Op, expected: &Reply) -> NodeTime {
        let start = self.backstage.now();
        loop {
            let replies = self.call(std::slice::from_ref(&op)).await;
            if replies.replies[0] == *expected {
                return replies.time;
            }
            let waited = replies.time.micros.saturating_sub(start.micros);
            assert!(Duration::from_micros(waited) < PATIENCE, "still {:?}", replies.replies[0]);
            self.backstage.pause(1_000);
        }
    }

    /// A connection for what is published.
    pub async fn listen(&self) -> Box<dyn Listener> {
        self.node.listen().await.unwrap()
    }

    /// Restarts the server and connects again.
    pub async fn restart(&mut self) {
        self.backstage.restart();
        (self.connection, self.run_id) = connect(&*self.node).await;
    }

    /// A counter that runs on this process.
    pub fn run(&self, last: u64, ceiling: u64) -> Vec<u8> {
        format!("run {} {last} {ceiling}", self.run_id).into_bytes()
    }
}

/// A connection that knows at whose end it is.
async fn connect(node: &dyn Node) -> (Box<dyn Connection>, Arc<str>) {
    let connection = node.connect().await.unwrap();
    let run_id = connection.probe().await.unwrap().run_id;
    (connection, run_id)
}

/// A server in memory with a clock that stands still unless it is moved, and was set right when it was made.
#[derive(Clone)]
pub struct Simulated {
    server: Arc<Mutex<(Server, NodeTime)>>,
    ears: Arc<Mutex<BTreeMap<u64, mpsc::UnboundedSender<Arc<str>>>>>,
}

impl Simulated {
    fn new() -> Self {
        let server = Server::new("run-1");
        Self { server: Arc::new(Mutex::new((server, wall_clock()))), ears: Arc::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Server, &mut NodeTime) -> T) -> T {
        let (server, now) = &mut *self.server.lock().unwrap();
        work(server, now)
    }
}

impl Node for Simulated {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        let connection = SimulatedConnection { node: self.clone(), talk: Talk::new(memory::scripts()) };
        Box::pin(async { Ok(Box::new(connection) as Box<dyn Connection>) })
    }

    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(async {
            let (ear, messages) = mpsc::unbounded_channel();
            let mut ears = self.ears.lock().unwrap();
            let number = ears.last_key_value().map_or(0, |(number, _)| number + 1);
            ears.insert(number, ear);
            Ok(Box::new(SimulatedEar { node: self.clone(), number, messages }) as Box<dyn Listener>)
        })
    }
}

/// A connection for what the server in memory publishes.
struct SimulatedEar {
    node: Simulated,
    number: u64,
    messages: mpsc::UnboundedReceiver<Arc<str>>,
}

impl Listener for SimulatedEar {
    fn subscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        self.node.with(|server, _| server.subscribe(self.number, channels));
        Box::pin(async { Ok(()) })
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        self.node.with(|server, _| server.unsubscribe(self.number, channels));
        Box::pin(async { Ok(()) })
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Arc<str>, WireError>> {
        Box::pin(async { self.messages.recv().await.ok_or(WireError::Closed("the server has ended".into())) })
    }
}

impl Drop for SimulatedEar {
    fn drop(&mut self) {
        self.node.with(|server, _| server.hang_up(self.number));
    }
}

/// A connection to the server in memory.
struct SimulatedConnection {
    node: Simulated,
    talk: Talk,
}

impl Connection for SimulatedConnection {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        let probe = self.node.with(|server, _| server.probe());
        self.talk.meet(probe.run_id.clone());
        Box::pin(async { Ok(probe) })
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], course: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        Box::pin(async move {
            let call = |server: &mut Server, now: &mut NodeTime| {
                (server.call(*now, &self.talk, batch, course), server.take_published())
            };
            let (outcome, published) = self.node.with(call);
            let ears = self.node.ears.lock().unwrap();
            for Published { message, to } in published {
                to.iter().for_each(|ear| drop(ears[ear].send(message.as_str().into())));
            }
            outcome
        })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        Box::pin(std::future::pending())
    }
}

impl Backstage for Simulated {
    fn put(&mut self, key: &str, bytes: &[u8], left_ms: Option<u64>) {
        self.with(|server, now| server.put(key, bytes, left_ms.map(|ms| now.as_millis() + ms)));
    }

    fn put_list(&mut self, key: &str) {
        self.with(|server, _| server.put_list(key));
    }

    fn delete(&mut self, key: &str) {
        self.with(|server, _| server.delete(key));
    }

    fn eval(&mut self, script: &str, args: &[&[u8]]) -> Result<Raw, String> {
        self.with(|server, now| server.eval(*now, script, args))
    }

    fn keys(&mut self) -> Vec<Found> {
        self.with(|server, now| {
            let keys = server.keys(*now).into_iter();
            keys.map(|(key, bytes, ends_at_ms)| (key, bytes, ends_at_ms.map(|end| end - now.as_millis()))).collect()
        })
    }

    fn forget_scripts(&mut self) {
        self.with(|server, _| server.forget_scripts());
    }

    fn set_full(&mut self, full: bool) {
        self.with(|server, _| server.set_full(full));
    }

    fn restart(&mut self) {
        self.with(|server, now| server.restart(&format!("run-{}", now.micros), |_| false));
        self.ears.lock().unwrap().clear();
        self.pause(1_000);
    }

    fn pause(&mut self, micros: u64) {
        self.with(|_, now| now.micros += micros);
    }

    fn now(&mut self) -> NodeTime {
        self.with(|_, now| *now)
    }
}
