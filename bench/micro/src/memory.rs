//! A node in memory, which does at once what a lock that nobody else wants needs: whatever is counted or timed is what stands
//! above it. It does not do what a real node does; `tests/memory` has one that does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use redlockd::engine::lease::LockValue;
use redlockd::engine::reply::{Reply, Stored};
use redlockd::node::{Connection, Course, Key, Listener, Node, NodeTime, Op, Probe, Replies, Settings, WireError};
use tokio::time::Instant;

use crate::env::WALL_CLOCK;

/// Far above what any run hands out.
const CEILING: u64 = 1 << 50;

/// Clones are the same node.
#[derive(Clone, Debug)]
pub struct MemoryNode(Arc<Server>);

#[derive(Debug)]
struct Server {
    run_id: Arc<str>,
    marker: Arc<str>,
    started: Instant,
    data: Mutex<Data>,
}

#[derive(Debug, Default)]
struct Data {
    locks: BTreeMap<Key, LockValue>,
    token: u64,
}

impl MemoryNode {
    /// A member of a cluster of `nodes` since long; has to be made within a runtime.
    pub fn new(run_id: &str, nodes: &str) -> Self {
        let marker = format!("redlockd/1 run_id={run_id} max_ttl_ms=300000 counter=designated listed_ms=0 nodes={nodes}");
        let data = Mutex::new(Data { token: 1_000, ..Data::default() });
        Self(Arc::new(Server { run_id: run_id.into(), marker: marker.into(), started: Instant::now(), data }))
    }

    fn run(&self, batch: &[&Op]) -> Replies {
        let mut data = self.0.data.lock().unwrap_or_else(PoisonError::into_inner);
        let replies = batch.iter().map(|op| data.run(op, &self.0.run_id)).collect();
        // As fast as the proxy's clock.
        let micros = (WALL_CLOCK + self.0.started.elapsed()).as_micros();
        let time = NodeTime { micros: u64::try_from(micros).unwrap_or(u64::MAX) };
        Replies { time, earlier: Vec::new(), marker: self.0.marker.clone(), replies }
    }
}

impl Data {
    fn run(&mut self, op: &Op, run_id: &Arc<str>) -> Reply {
        match op {
            Op::Acquire { key, value, bucket: None, .. } => match self.locks.get(key) {
                Some(stored) => Reply::Other(Stored { value: Some(stored.as_str().as_bytes().into()), left_ms: Some(10_000) }),
                None => {
                    self.locks.insert(key.clone(), value.clone());
                    Reply::Yes
                }
            },
            Op::Release { key, value, .. } if self.locks.get(key) == Some(value) => {
                self.locks.remove(key);
                Reply::Released { heard: Some(0) }
            }
            Op::Tokens { count, .. } => {
                self.token += *count as u64;
                Reply::Tokens { last: self.token, ceiling: CEILING, run_id: run_id.clone() }
            }
            _ => Reply::Absent,
        }
    }
}

impl Node for MemoryNode {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        Box::pin(async { Ok(Box::new(self.clone()) as Box<dyn Connection>) })
    }

    /// Nobody waits, so nobody listens.
    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(std::future::pending())
    }
}

impl Connection for MemoryNode {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        let probe = Probe {
            run_id: self.0.run_id.clone(),
            version: "memory".into(),
            uptime: self.0.started.elapsed(),
            role: "master".into(),
            cluster: false,
            loading: false,
            settings: Settings::durable(),
        };
        Box::pin(async { Ok(probe) })
    }

    fn call<'a>(&'a self, batch: &'a [&'a Op], _: Course) -> BoxFuture<'a, Result<Replies, WireError>> {
        Box::pin(async { Ok(self.run(batch)) })
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        Box::pin(std::future::pending())
    }
}
