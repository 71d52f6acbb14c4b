//! Pairs at a steady pace, whatever becomes of those before; and leases that are held all along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redlockd::client::{AcquireError, Client, Lease, LockId, Released};
use tokio::task::{JoinHandle, JoinSet};

use crate::oracle::history::{self, Call, Denial, Held, LeaseId};
use crate::record::Record;
use crate::support::{PATIENCE, Proxy};

/// More than that are not under way at a time: a machine that can not keep the pace makes fewer.
const MOST: usize = 2_000;

/// Two for each proxy, so that every one of them has sessions when its turn comes.
const CLIENTS: usize = 6;

/// One pair of so many goes for one of few names, so that some wait for others.
const HOT: (u32, usize) = (20, 3);
const NAMES: usize = 400;

/// Leases that each client holds all along.
const HELD: usize = 8;

/// The longest that a pair holds its lock, in milliseconds.
const HOLD_MS: u64 = 20;

pub struct Load {
    clients: Vec<Client>,
    record: Record,
    held: Vec<HeldLease>,
    stopping: Arc<AtomicBool>,
    pace: JoinHandle<()>,
}

/// A lease that is held all along.
struct HeldLease {
    lease: Lease,
    /// Its first lock id.
    lock_id: LockId,
    sent: Instant,
    got: Instant,
    by: usize,
}

impl Load {
    /// So many pairs a second, from now on.
    pub async fn start(proxies: &[Proxy], record: &Record, pace: u32) -> Self {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let mut urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
            urls.rotate_left(number % proxies.len());
            clients.push(Client::builder(urls).owner(format!("client {number}")).connect().await.unwrap());
        }
        let mut held = Vec::new();
        for (by, client) in clients.iter().enumerate() {
            for number in 0..HELD {
                let sent = Instant::now();
                let lease = client.lock(format!("leader/{by}/{number}")).acquire().await.unwrap();
                held.push(HeldLease { lock_id: lease.lock_id(), lease, sent, got: Instant::now(), by });
            }
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let pace = tokio::spawn(keep_pace(pace, clients.clone(), record.clone(), stopping.clone()));
        Self { clients, record: record.clone(), held, stopping, pace }
    }

    /// What is held all along is held still, by the word of its client and by that of others who ask for it.
    pub async fn holds(&self) {
        for HeldLease { lease, by, .. } in self.held.iter().step_by(HELD) {
            assert!(lease.is_valid(), "{} is lost", lease.name());
            let other = &self.clients[(by + 1) % CLIENTS];
            match other.lock(lease.name()).acquire().await {
                Err(AcquireError::Contended(_)) => {}
                got => panic!("{} is held, and somebody else got: {got:?}", lease.name()),
            }
        }
    }

    /// Ends the pace, waits for what is under way, gives back what was held, and ends the clients.
    pub async fn end(self) {
        self.holds().await;
        self.stopping.store(true, Ordering::Relaxed);
        self.pace.await.unwrap();
        for HeldLease { lease, lock_id, sent, got, by } in self.held {
            assert!(lease.lock_id() != lock_id, "{}: its proxy was drained, and it did not move", lease.name());
            let id = note_lease(&self.record, by, &lease, sent, got);
            give_back(&self.record, id, lease).await;
        }
        for client in self.clients {
            client.shutdown().await;
        }
    }
}

async fn keep_pace(pace: u32, clients: Vec<Client>, record: Record, stopping: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / pace);
    let mut pairs = JoinSet::new();
    while !stopping.load(Ordering::Relaxed) {
        // It catches up on ticks that it has missed.
        let due = ticks.tick().await.into_std();
        while let Some(ended) = pairs.try_join_next() {
            ended.unwrap();
        }
        record.look().due += 1;
        if pairs.len() >= MOST {
            record.look().left_out += 1;
            continue;
        }
        let by = rand::random_range(0..clients.len());
        pairs.spawn(pair(clients[by].clone(), by, record.clone(), due));
    }
    pairs.join_all().await;
}

fn a_name() -> String {
    match rand::random_ratio(1, HOT.0) {
        true => format!("hot/{}", rand::random_range(0..HOT.1)),
        false => format!("job/{}", rand::random_range(0..NAMES)),
    }
}

/// Takes a lock, holds it for a moment, and releases it.
async fn pair(client: Client, by: usize, record: Record, due: Instant) {
    let name = a_name();
    let sent = Instant::now();
    let got = client.lock(&name).wait(PATIENCE).acquire().await;
    let answered = Instant::now();
    note_call(&record, format!("client {by}: acquire {name}"), sent, answered, PATIENCE);
    let lease = match got {
        Ok(lease) => lease,
        Err(error) => return record.fail(format!("client {by}: acquire {name}: {error}")),
    };
    let id = note_lease(&record, by, &lease, sent, answered);
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..HOLD_MS))).await;
    if give_back(&record, id, lease).await {
        let ended = record.now();
        record.look().pairs.push((record.at(due), ended));
    }
}

fn note_call(record: &Record, what: String, sent: Instant, answered: Instant, wait: Duration) {
    let (sent, answered) = (record.at(sent), record.at(answered));
    record.look().history.calls.push(Call { what, sent, answered: Some(answered), due: sent + wait + PATIENCE });
}

/// What was granted; who holds it may rely on it for as long as it is valid now, or longer.
fn note_lease(record: &Record, by: usize, lease: &Lease, sent: Instant, got: Instant) -> LeaseId {
    let (not_before, granted_by) = (record.at(sent), record.at(got));
    let held = Held { from: granted_by, until: record.at(lease.valid_until().into_std()) };
    let lease = history::Lease {
        name: lease.name().to_owned(),
        client: format!("client {by}"),
        token: lease.token().map(|token| token.get()),
        not_before,
        granted_by,
        held: Some(held),
    };
    let leases = &mut record.look().history.leases;
    leases.push(lease);
    leases.len() - 1
}

/// Whether the lease was good until now, and is freed.
async fn give_back(record: &Record, id: LeaseId, lease: Lease) -> bool {
    let (was_valid, name) = (lease.is_valid(), lease.name().to_owned());
    let sent = Instant::now();
    let until = record.at(lease.valid_until().into_std().min(sent));
    if let Some(held) = &mut record.look().history.leases[id].held {
        held.until = until;
    }
    if !was_valid {
        record.fail(format!("{name} was lost while it was held"));
        return false;
    }
    let released = lease.release().await;
    note_call(record, format!("release {name}"), sent, Instant::now(), Duration::ZERO);
    if released == Ok(Released::NotHeld) {
        let denial = Denial { at: record.now(), lease: id, what: "release".to_owned() };
        record.look().history.denials.push(denial);
    }
    if released != Ok(Released::Freed) {
        record.fail(format!("release {name}: {released:?}"));
    }
    released == Ok(Released::Freed)
}
