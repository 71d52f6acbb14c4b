//! A coordinator over nodes in memory, and callers who take and release locks that nobody else wants.

use std::sync::Arc;
use std::time::Duration;

use redlockd::coordinator::attempt::AcquireSpec;
use redlockd::coordinator::ceiling::Ceilings;
use redlockd::coordinator::fence::Fence;
use redlockd::coordinator::observer::NodeObserver;
use redlockd::coordinator::question::Released;
use redlockd::coordinator::{Coordinator, Counter, Settings};
use redlockd::engine::lease::{LockName, Ttl};
use redlockd::engine::line::LineBounds;
use redlockd::engine::membership::{Charter, CounterKind};
use redlockd::engine::quorum::Quorum;
use redlockd::engine::validity::DriftFactor;
use redlockd::metrics::{Metrics, NodeMetrics, Registry};
use redlockd::node::env::Env;
use redlockd::node::link::{Link, Timing};
use redlockd::node::roster::{Roster, Seat};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::env::FixedEnv;
use crate::memory::MemoryNode;

/// As many as most have.
pub const NODES: usize = 5;

/// Of nodes and counter: nothing here comes near it.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The runtime that a proxy has by default, on a clock that moves only while there is nothing to do.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime needs nothing of the system")
}

fn ttl(ms: u64) -> Ttl {
    Ttl::from_millis(ms, Ttl::LONGEST).expect("a TTL that may be configured")
}

/// A name in `many`.
pub fn name(number: usize) -> LockName {
    LockName::new(&format!("orders/{number}")).expect("a good name")
}

/// A proxy without its gRPC side.
pub struct World {
    coordinator: Arc<Coordinator>,
}

impl World {
    /// Whose nodes all vote. Within [`runtime`].
    pub async fn start() -> Self {
        let env: Arc<dyn Env> = Arc::new(FixedEnv::default());
        let names: Vec<Arc<str>> = (1..=NODES).map(|number| format!("n{number}").into()).collect();
        let metrics = Arc::new(Registry::new().expect("our own buckets are good").metrics(&names, Some(&Arc::from("fence"))));
        let quorum = Quorum::of(NODES).expect("a number that may be configured");
        let roster = Roster::new(charter(&names), quorum, env.now());
        let links: Vec<Arc<Link>> =
            (0..NODES).map(|node| link(node, &names, &env, metrics.node(node), Some(Seat::new(&roster, node)))).collect();
        let counter = counter(&links, &names, &env, &metrics, roster, quorum);
        links.iter().for_each(run_link);
        let settings = Settings {
            quorum,
            key_prefix: "lock:".to_owned(),
            drift: DriftFactor::DEFAULT,
            max_inflight: 10_000,
            waiters: LineBounds { per_name: 1_000, in_all: 10_000 },
            handover_limit: 16,
        };
        let coordinator = Coordinator::new(settings, links, counter, env, metrics);
        while coordinator.voting() < NODES || coordinator.ready().is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        Self { coordinator }
    }

    /// Takes a lock and releases it, as an RPC does; gives its token.
    pub async fn pair(&self, name: &LockName) -> u64 {
        let spec = AcquireSpec {
            name: name.clone(),
            ttl: ttl(10_000),
            wait: Duration::ZERO,
            owner: None,
            token_required: true,
            request: None,
            min_validity_ms: 1,
            received: Instant::now(),
            deadline: None,
        };
        let grant = self.coordinator.acquire(spec).await.expect("nobody else wants it");
        let id = grant.lock_id();
        assert!(grant.answer().is_some(), "no time passes");
        grant.delivered();
        assert_eq!(self.coordinator.release(&id).await.ok(), Some(Released::Released));
        id.token.expect("a token is required").get()
    }
}

fn charter(names: &[Arc<str>]) -> Charter {
    let (counter, drift) = (CounterKind::Designated, DriftFactor::DEFAULT);
    Charter { nodes: names.to_vec(), counter, max_ttl: ttl(300_000), drift, bootstrap: false }
}

/// A node's, or with `seat: None` the counter's.
fn link(index: usize, names: &[Arc<str>], env: &Arc<dyn Env>, events: NodeMetrics, seat: Option<Seat>) -> Arc<Link> {
    let address = if seat.is_some() { names[index].clone() } else { "fence".into() };
    let node = Box::new(MemoryNode::new(&address, &names.join(",")));
    let timing = Timing::new(TIMEOUT, ttl(300_000).as_duration());
    Arc::new(Link::new(index, address, node, timing, env.clone(), Box::new(NodeObserver::new(events)), seat))
}

fn counter(
    links: &[Arc<Link>],
    names: &[Arc<str>],
    env: &Arc<dyn Env>,
    metrics: &Arc<Metrics>,
    roster: Arc<Roster>,
    quorum: Quorum,
) -> Counter {
    let fence = link(0, names, env, metrics.fence().expect("it has a label"), None);
    run_link(&fence);
    let ceilings = Ceilings::new(links.to_vec(), quorum, env.clone(), ttl(300_000).as_duration());
    Counter::Designated(Fence::new(fence, ceilings, roster, env.clone(), metrics.clone()))
}

fn run_link(link: &Arc<Link>) {
    let link = link.clone();
    tokio::spawn(async move { link.run().await });
}
