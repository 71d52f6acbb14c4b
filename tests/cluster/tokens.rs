//! Fencing tokens while the server that counts them is killed and started again with its data, and proxies are killed and
//! replaced.
//!
//! The short form runs with all other tests. The full form is `GRANTS=50000 cargo test --release --test cluster tokens --
//! --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proto::TokenRequirement;
use proto::granted::Fencing;
use rand::Rng;
use tokio::time::sleep;

use super::*;

const PROXIES: usize = 4;
const CALLERS: usize = 24;
const NAMES: usize = 100;

/// What a killed proxy had taken stays for this long; it bounds the wait for its names.
const TTL_MS: u64 = 4_000;

/// What has been granted, in the order in which callers received it.
#[derive(Default)]
struct History {
    tokens: BTreeSet<u64>,
    /// The highest token received so far, of all names.
    highest: u64,
    newest: BTreeMap<usize, u64>,
    without_token: usize,
    unavailable: usize,
    contended: usize,
    /// Answers lost with their proxy.
    lost: usize,
}

impl History {
    fn grants(&self) -> usize {
        self.tokens.len() + self.without_token
    }

    /// `before` is the highest token that any caller had received before this one asked: a token is fetched after the quorum,
    /// so it has to be higher.
    fn granted(&mut self, name: usize, token: u64, before: u64, still_valid: bool) {
        assert!(self.tokens.insert(token), "token {token} was handed out twice");
        assert!(token > before, "token {token} for a request that was sent when {before} had been received");
        self.highest = self.highest.max(token);
        // An answer that was on its way for longer than its lease may be received after a later grant; its holder can see
        // that it is of no use.
        if still_valid {
            let newest = self.newest.insert(name, token).unwrap_or_default();
            assert!(token > newest, "{name}: token {token} was granted after {newest}");
        }
    }
}

/// The proxies' current addresses.
type Clients = Arc<Mutex<Vec<LockServiceClient<Channel>>>>;

/// Until its proxy is replaced, a caller's connection to it may be down.
fn lazy_client(proxy: &Proxy) -> LockServiceClient<Channel> {
    LockServiceClient::new(Channel::from_shared(proxy.url()).unwrap().connect_lazy())
}

async fn one_grant(rng: &mut StdRng, clients: &Clients, history: &Mutex<History>) {
    let name = rng.random_range(0..NAMES);
    let mut client = clients.lock().unwrap()[rng.random_range(0..PROXIES)].clone();
    let required = rng.random_ratio(7, 8);
    let token = if required { TokenRequirement::Required } else { TokenRequirement::BestEffort };
    let request = proto::AcquireRequest { ttl: millis(TTL_MS), token: token.into(), ..want(&format!("orders/{name}")) };
    let before = history.lock().unwrap().highest;
    let sent = Instant::now();
    let answer = client.acquire(request).await;
    let grant = match answer {
        Ok(answer) => match answer.into_inner().outcome.unwrap() {
            acquire_response::Outcome::Granted(grant) => grant,
            acquire_response::Outcome::Contended(_) => {
                history.lock().unwrap().contended += 1;
                sleep(Duration::from_millis(rng.random_range(1..5))).await;
                return;
            }
        },
        Err(status) => {
            let told = status.message().contains("fencing token") || status.message().contains("quorum");
            {
                let mut history = history.lock().unwrap();
                // The proxy says it, or there is no proxy to say anything.
                *if status.code() == Code::Unavailable && told { &mut history.unavailable } else { &mut history.lost } += 1;
            }
            sleep(Duration::from_millis(rng.random_range(1..20))).await;
            return;
        }
    };
    let ends = sent + std_duration(grant.served_for) + std_duration(grant.validity);
    {
        let mut history = history.lock().unwrap();
        match grant.fencing.as_ref().unwrap() {
            Fencing::FencingToken(token) => history.granted(name, *token, before, ends > Instant::now()),
            Fencing::NoToken(why) => {
                assert!(!required, "granted without a token ({}) where one was required", why.reason);
                history.without_token += 1;
            }
        }
    }
    // Some are left to expire.
    if rng.random_ratio(199, 200) {
        let request = proto::ReleaseRequest { lock_id: grant.lock_id };
        // Through any proxy. One that is not there is no matter: the lease expires.
        let mut client = clients.lock().unwrap()[rng.random_range(0..PROXIES)].clone();
        let _ = client.release(request).await;
    }
}

/// Ends a proxy, hard or in order, and starts another one in its place.
async fn replace_proxy(rng: &mut StdRng, cluster: &Cluster, proxies: &mut [Proxy], clients: &Clients) {
    let index = rng.random_range(0..PROXIES);
    if rng.random() {
        proxies[index].process.signal(Signal::SIGTERM);
        assert!(proxies[index].process.ended().await.success());
    } else {
        proxies[index].process.kill();
    }
    proxies[index] = Proxy::start(cluster, &[]).await;
    clients.lock().unwrap()[index] = lazy_client(&proxies[index]);
}

/// Kills the counter's server, and starts it again with its data after a moment.
async fn restart_counter(rng: &mut StdRng, cluster: &mut Cluster) {
    cluster.fence.kill();
    sleep(Duration::from_millis(rng.random_range(0..400))).await;
    // Blocks this thread; the callers have their own.
    cluster.fence.start_again();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_over_restarts_of_their_counter_and_of_proxies() {
    let wanted: usize = std::env::var("GRANTS").ok().map_or(5_000, |grants| grants.parse().unwrap());
    let mut rng = seeded();
    let mut cluster = Cluster::start(5);
    let mut proxies = Vec::new();
    for _ in 0..PROXIES {
        proxies.push(Proxy::start(&cluster, &[]).await);
    }
    let clients: Clients = Arc::new(Mutex::new(proxies.iter().map(lazy_client).collect()));
    let history = Arc::new(Mutex::new(History::default()));
    let started = Instant::now();

    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (clients, history, mut rng) = (clients.clone(), history.clone(), StdRng::seed_from_u64(rng.random()));
            tokio::spawn(async move {
                while history.lock().unwrap().grants() < wanted {
                    one_grant(&mut rng, &clients, &history).await;
                }
            })
        })
        .collect();

    // Spread over the whole run: each follows when there has been some progress since the last one.
    let events = (wanted / 500).clamp(16, 100);
    let (mut counter_restarts, mut proxy_restarts) = (0, 0);
    for event in 1..events {
        until("progress", || async {
            let failed = callers.iter().any(|caller| caller.is_finished() && history.lock().unwrap().grants() < wanted);
            (failed || history.lock().unwrap().grants() >= wanted * event / events).then_some(())
        })
        .await;
        if event % 2 == 0 {
            restart_counter(&mut rng, &mut cluster).await;
            counter_restarts += 1;
        } else {
            replace_proxy(&mut rng, &cluster, &mut proxies, &clients).await;
            proxy_restarts += 1;
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let history = std::mem::take(&mut *history.lock().unwrap());
    println!(
        "{} grants in {:.1?}, {} of them without a token on request; {counter_restarts} restarts of the counter, {proxy_restarts} \
         of proxies; {} unavailable, {} lost with their proxy, {} contended; highest token {}",
        history.grants(),
        started.elapsed(),
        history.without_token,
        history.unavailable,
        history.lost,
        history.contended,
        history.highest,
    );
    assert!(history.grants() >= wanted);
    assert!(history.unavailable > 0, "the counter was missed");
    assert!(history.newest.len() > NAMES / 2);
    // The last word of the counter itself.
    let stored = cluster.fence.cli(&["GET", "redlockd:fence:counter"]);
    let counter: u64 = stored.split(' ').nth(2).and_then(|last| last.parse().ok()).unwrap_or_else(|| panic!("{stored}"));
    assert!(counter >= history.highest, "the counter stands at {counter}");
}
