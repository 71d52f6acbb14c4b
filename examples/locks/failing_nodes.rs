//! A service with three replicas, of which one at a time works, while the Redis servers below fail one after the other.
//!
//! ```sh
//! cargo run --example failing_nodes
//! ```
//!
//! The replicas raise a number that they share, and which takes only tokens that are not older than the newest it has seen. If
//! two of them worked at once, a step would be lost or refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use redlockd::client::{AcquireError, Client, Lease};
use redlockd::engine::fencing::Token;
use redlockd::fenced::FencedRegister;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod stage;
use stage::{Error, Stage, ensure};

const SERVICE: &str = "services/billing";
const REPLICAS: [&str; 3] = ["replica 1", "replica 2", "replica 3"];

/// So many steps a replica does in its turn.
const STEPS_A_TURN: usize = 5;

/// So many are done before something else happens to a node.
const STEPS_BETWEEN: usize = 30;

/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    /// Who works now.
    working: Mutex<Option<&'static str>>,
    /// Steps that were done.
    steps: AtomicUsize,
    /// Times that two worked at once, or that a step was refused as stale.
    faults: AtomicUsize,
    /// Turns of each replica.
    turns: [AtomicUsize; REPLICAS.len()],
    number: FencedRegister<usize>,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let stage = Stage::set(2).await?;
    let service = Arc::new(Service::new());
    let end = CancellationToken::new();
    let mut replicas = JoinSet::new();
    for (index, name) in REPLICAS.into_iter().enumerate() {
        let mut proxies = stage.proxies.clone();
        proxies.rotate_left(index % stage.proxies.len());
        replicas.spawn(replica(name, index, proxies, service.clone(), end.clone()));
    }

    service.goes_on("with five nodes").await?;
    for node in 0..5 {
        stage.signal(node, Signal::SIGSTOP)?;
        service.goes_on(&format!("while node {} is stopped", node + 1)).await?;
        stage.signal(node, Signal::SIGCONT)?;
    }
    for node in [1, 3] {
        stage.signal(node, Signal::SIGKILL)?;
        service.goes_on(&format!("after node {} has been killed", node + 1)).await?;
    }
    end.cancel();
    while let Some(replica) = replicas.join_next().await {
        replica??;
    }
    service.has_done_well()?;

    stage.signal(4, Signal::SIGKILL)?;
    let client = Client::connect(stage.proxies.clone()).await?;
    match client.lock(SERVICE).acquire().await {
        Err(AcquireError::Unavailable { .. }) => {
            println!("after a third node has been killed nothing is granted: two of five are no quorum")
        }
        other => return Err(format!("two of five nodes are no quorum, but: {other:?}").into()),
    }
    Ok(())
}

/// Waits for its turn, works for a while, and lets others have theirs, until the end.
async fn replica(
    name: &'static str,
    index: usize,
    proxies: Vec<String>,
    service: Arc<Service>,
    end: CancellationToken,
) -> Result<(), Error> {
    let client = Client::builder(proxies).owner(name).connect().await?;
    while !end.is_cancelled() {
        let request = client.lock(SERVICE).wait(PATIENCE);
        // The work is cancelled if the lease is lost, before another replica can have it.
        let turn = client.with_lock(request, async |lease| service.turn(name, lease).await).await;
        match turn {
            Ok(()) => count(&service.turns[index]),
            Err(error) => println!("  {name}: {error}; it asks again"),
        }
    }
    client.shutdown().await;
    Ok(())
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::SeqCst);
}

/// Says who works, until it is dropped.
struct Working<'a>(&'a Service);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.working() = None;
    }
}

impl Service {
    fn new() -> Self {
        let (working, steps, faults, turns) = Default::default();
        Self { working, steps, faults, turns, number: FencedRegister::new(0) }
    }

    fn working(&self) -> std::sync::MutexGuard<'_, Option<&'static str>> {
        self.working.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn turn(&self, name: &'static str, lease: &Lease) {
        if let Some(other) = self.working().replace(name) {
            println!("  {name} works while {other} does");
            count(&self.faults);
        }
        let _working = Working(self);
        // It was required.
        let Some(token) = lease.token().and_then(|token| Token::new(token.get())) else { return };
        for _ in 0..STEPS_A_TURN {
            let Ok(number) = self.number.read(token) else { return count(&self.faults) };
            tokio::time::sleep(Duration::from_millis(5)).await;
            match self.number.write(token, number + 1) {
                Ok(()) => count(&self.steps),
                Err(_) => count(&self.faults),
            }
        }
    }

    /// Waits until so much more has been done.
    async fn goes_on(&self, when: &str) -> Result<(), Error> {
        let before = self.steps.load(Ordering::SeqCst);
        let more = async {
            while self.steps.load(Ordering::SeqCst) < before + STEPS_BETWEEN {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.map_err(|_| format!("the work does not go on {when}"))?;
        println!("the work goes on {when}: {} steps so far", self.steps.load(Ordering::SeqCst));
        Ok(())
    }

    fn has_done_well(&self) -> Result<(), Error> {
        let (steps, faults, number) =
            (self.steps.load(Ordering::SeqCst), self.faults.load(Ordering::SeqCst), self.number.peek());
        let turns: Vec<usize> = self.turns.iter().map(|turns| turns.load(Ordering::SeqCst)).collect();
        ensure(faults == 0, format!("{faults} times two replicas worked at once"))?;
        ensure(number == steps, format!("{steps} steps were done, and the number is {number}"))?;
        ensure(turns.iter().all(|turns| *turns > 0), format!("a replica never had its turn: {turns:?}"))?;
        println!("{steps} steps in {turns:?} turns of the three replicas; the number is {number}: never did two work at once");
        Ok(())
    }
}
