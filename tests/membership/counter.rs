//! The designated counter loses everything, or comes back with what it had some time ago, or with nothing, while tokens are
//! handed out: none repeats or falls. `make prove-counter` takes it to 100,000 tokens.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;
use redlockd::proto::lock_service_client::LockServiceClient;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::transport::Channel;

use super::*;

const CALLERS: usize = 32;

fn wanted_tokens() -> usize {
    let text = std::env::var("TOKENS").ok().filter(|text| !text.is_empty());
    text.map_or(4_000, |text| text.parse().unwrap_or_else(|_| panic!("TOKENS={text} is not a number")))
}

#[derive(Default)]
struct Handed {
    tokens: BTreeSet<u64>,
    highest: u64,
    failed: usize,
}

/// Takes and releases locks; every token has to be above all that anybody had received before it was asked for.
async fn work(caller: usize, mut proxies: Vec<LockServiceClient<Channel>>, handed: Arc<Mutex<Handed>>, stop: Arc<AtomicBool>) {
    let mut turn = caller;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let client = &mut proxies[turn % 2];
        let before = handed.lock().unwrap().highest;
        let answer = client.acquire(want(&format!("job/{caller}"))).await;
        let granted = match answer.map(|answer| answer.into_inner().outcome) {
            Ok(Some(proto::acquire_response::Outcome::Granted(granted))) => granted,
            _ => {
                handed.lock().unwrap().failed += 1;
                sleep(Duration::from_millis(2)).await;
                continue;
            }
        };
        let number = token(&granted);
        {
            let mut handed = handed.lock().unwrap();
            assert!(number > before, "token {number}, asked for when {before} had been received");
            assert!(handed.tokens.insert(number), "token {number} was handed out twice");
            handed.highest = handed.highest.max(number);
        }
        let _ = client.release(proto::ReleaseRequest { lock_id: granted.lock_id }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_loss_of_the_counter_lets_a_token_repeat_or_fall() {
    let wanted = wanted_tokens();
    let mut cluster = fresh(5);
    let proxies = [Proxy::start(&cluster, &[]).await, Proxy::start(&cluster, &[]).await];
    let clients = vec![proxies[0].client().await, proxies[1].client().await];
    let (handed, stop) = (Arc::new(Mutex::new(Handed::default())), Arc::new(AtomicBool::new(false)));
    let mut workers = JoinSet::new();
    for caller in 0..CALLERS {
        workers.spawn(work(caller, clients.clone(), handed.clone(), stop.clone()));
    }
    let count = || handed.lock().unwrap().tokens.len();
    // So many more, and workers that fail fail the test.
    let more = |tokens: usize| {
        let goal = count() + tokens;
        let handed = handed.clone();
        async move { until("more tokens", || async { (handed.lock().unwrap().tokens.len() >= goal).then_some(()) }).await }
    };
    let step = wanted / 20;
    more(step).await;
    let dump = cluster.fence.directory().join("dump.rdb");
    let old = cluster.fence.directory().join("old.rdb");
    let mut losses = 0;
    let mut rng = rand::rng();
    while count() < wanted {
        // A snapshot, which is old by the time that it is used.
        assert_eq!(cluster.fence.cli(&["SAVE"]), "OK");
        std::fs::rename(&dump, &old).unwrap();
        cluster.fence.cli(&["FLUSHALL"]);
        more(step).await;
        if wanted >= 100_000 {
            sleep(Duration::from_secs(10)).await;
        }
        cluster.fence.kill();
        std::fs::copy(&old, &dump).unwrap();
        cluster.fence.start_again();
        more(step).await;
        cluster.fence.start_again_empty();
        more(step).await;
        // Two recover, and one of them is stopped somewhere in between.
        cluster.fence.cli(&["FLUSHALL"]);
        sleep(Duration::from_micros(rng.random_range(0..5_000))).await;
        proxies[losses % 2].process.signal(Signal::SIGSTOP);
        sleep(Duration::from_millis(300)).await;
        cluster.fence.cli(&["FLUSHALL"]);
        sleep(Duration::from_millis(100)).await;
        proxies[losses % 2].process.signal(Signal::SIGCONT);
        more(step).await;
        losses += 1;
    }
    stop.store(true, Ordering::Relaxed);
    workers.join_all().await;
    let handed = handed.lock().unwrap();
    println!(
        "{} tokens over {} losses of the counter, none repeated, none fell; {} tries without one; highest {}",
        handed.tokens.len(),
        5 * losses,
        handed.failed,
        handed.highest
    );
    assert!(losses > 0 && handed.tokens.len() >= wanted);
}

/// Two addresses left by mistake are noticed, and tell.
#[tokio::test]
async fn two_designated_servers_are_noticed() {
    let cluster = fresh(3);
    let other = Redis::start(&[]);
    let first = Proxy::start(&cluster, &[]).await;
    let low = token(&granted(&mut first.client().await, want("a")).await);
    let second = Proxy::start_unready(&cluster.urls(), &other.url(), &[]).await;
    second.ready().await;
    let high = until("a token of the second counter", || async {
        let answer = second.client().await.acquire(want("b")).await.ok()?.into_inner().outcome?;
        match answer {
            proto::acquire_response::Outcome::Granted(granted) => Some(token(&granted)),
            proto::acquire_response::Outcome::Contended(_) => None,
        }
    })
    .await;
    assert!(high > low + 900_000, "above everything that the first may hand out: {low} {high}");
    // The first goes on to its ceiling; a raise is refused.
    let stored = cluster.fence.cli(&["GET", "redlockd:fence:counter"]);
    let words: Vec<&str> = stored.split(' ').collect();
    let ceiling: u64 = words[3].parse().unwrap();
    cluster.fence.cli(&["SET", "redlockd:fence:counter", &format!("run {} {} {ceiling}", words[1], ceiling - 1)]);
    let last = granted(&mut first.client().await, want("c")).await;
    assert_eq!(token(&last), ceiling);
    let status = acquire_error(&mut first.client().await, want("d")).await;
    unavailable(&status, &["no fencing token", "belongs to another counter", "two designated servers"]);
}
