//! Callers at work: each takes and releases a lock of its own, again and again, until the window is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Error;
use crate::cpu::{CpuTime, Processes};
use crate::stats::{Latencies, micros};

/// How long a pair that was begun within the window may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// After a failure, so that a target that is down is not asked a million times.
const PAUSE: Duration = Duration::from_millis(10);

/// The failures of one caller that are kept to be shown.
const SHOWN: usize = 3;

/// One caller, with a name that no other caller has.
pub trait Caller: Send + 'static {
    /// Takes the lock, checks what it got, and releases it; how long the taking took, or what was wrong.
    fn pair(&mut self) -> impl Future<Output = Result<Duration, String>> + Send;
}

/// Something that keeps many pairs under way by itself.
pub trait Driver {
    /// Makes pairs for as long as `limit` says, and ends those that are under way.
    async fn drive(&mut self, limit: &Limit) -> Result<Tally, Error>;
}

/// When callers stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After so many pairs of all callers together, within this time.
    Pairs(u64, Duration),
}

/// What was measured in one window.
#[derive(Debug)]
pub struct Window {
    /// Pairs that succeeded.
    pub pairs: u64,
    /// From the start to the end of the last pair.
    pub took: Duration,
    /// What they cost.
    pub cpu: CpuTime,
    /// Of the whole pair.
    pub pair: Latencies,
    /// Of its first half.
    pub acquire: Latencies,
    /// Pairs that did not succeed.
    pub failures: u64,
    /// Some of the failures in words.
    pub failures_shown: Vec<String>,
}

impl Window {
    /// Pairs in a second.
    pub fn pairs_per_s(&self) -> f64 {
        self.pairs as f64 / self.took.as_secs_f64()
    }

    /// A part of `cpu` for each pair, in microseconds.
    pub fn us_per_pair(&self, part: Duration) -> f64 {
        part.as_secs_f64() * 1e6 / self.pairs as f64
    }
}

/// What one caller did.
#[derive(Debug, Default)]
pub struct Tally {
    pair_us: Vec<u32>,
    acquire_us: Vec<u32>,
    failures: u64,
    failures_shown: Vec<String>,
}

impl Tally {
    /// A pair succeeded.
    pub fn pair(&mut self, pair_us: u32, acquire_us: u32) {
        self.pair_us.push(pair_us);
        self.acquire_us.push(acquire_us);
    }

    /// One did not.
    pub fn failure(&mut self, what: String) {
        self.failures += 1;
        if self.failures_shown.len() < SHOWN {
            self.failures_shown.push(what);
        }
    }
}

/// How much is to be done still.
pub struct Limit {
    end: Instant,
    pairs_left: AtomicU64,
}

impl Limit {
    fn new(until: Until, now: Instant) -> Self {
        let (time, pairs) = match until {
            Until::Elapsed(time) => (time, u64::MAX),
            Until::Pairs(pairs, time) => (time, pairs),
        };
        Self { end: now + time, pairs_left: AtomicU64::new(pairs) }
    }

    /// Whether one more pair shall be made; counts it.
    pub fn one_more(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        Instant::now() < self.end && self.pairs_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Lets all callers work at the same time.
pub async fn run<C: Caller>(callers: &mut Vec<C>, until: Until, processes: &Processes) -> Result<Window, Error> {
    let mut at_work = JoinSet::new();
    let cpu_before = processes.cpu_time()?;
    let started = Instant::now();
    let limit = Arc::new(Limit::new(until, started));
    for caller in callers.drain(..) {
        at_work.spawn(work(caller, limit.clone()));
    }
    let mut tallies = Vec::new();
    let all = async {
        while let Some(done) = at_work.join_next().await {
            let (caller, tally) = done?;
            callers.push(caller);
            tallies.push(tally);
        }
        Ok::<(), Error>(())
    };
    let patience = (limit.end + PATIENCE).into();
    tokio::time::timeout_at(patience, all).await.map_err(|_| format!("a pair took longer than {PATIENCE:?}"))??;
    let took = started.elapsed();
    Ok(add_up(tallies, took, processes.cpu_time()? - cpu_before))
}

/// Lets a driver work.
pub async fn run_driver(driver: &mut impl Driver, until: Until, processes: &Processes) -> Result<Window, Error> {
    let cpu_before = processes.cpu_time()?;
    let started = Instant::now();
    let limit = Limit::new(until, started);
    let patience = (limit.end + PATIENCE).into();
    let tally = tokio::time::timeout_at(patience, driver.drive(&limit));
    let tally = tally.await.map_err(|_| format!("a pair took longer than {PATIENCE:?}"))??;
    let took = started.elapsed();
    Ok(add_up(vec![tally], took, processes.cpu_time()? - cpu_before))
}

async fn work<C: Caller>(mut caller: C, limit: Arc<Limit>) -> (C, Tally) {
    let mut tally = Tally::default();
    while limit.one_more() {
        let started = Instant::now();
        match caller.pair().await {
            Ok(acquire) => tally.pair(micros(started.elapsed()), micros(acquire)),
            Err(what) => {
                tally.failure(what);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    (caller, tally)
}

fn add_up(tallies: Vec<Tally>, took: Duration, cpu: CpuTime) -> Window {
    let mut sum = Tally::default();
    for tally in tallies {
        sum.pair_us.extend(tally.pair_us);
        sum.acquire_us.extend(tally.acquire_us);
        sum.failures += tally.failures;
        sum.failures_shown.extend(tally.failures_shown);
    }
    sum.failures_shown.truncate(SHOWN);
    Window {
        pairs: sum.pair_us.len() as u64,
        took,
        cpu,
        pair: Latencies::new(sum.pair_us),
        acquire: Latencies::new(sum.acquire_us),
        failures: sum.failures,
        failures_shown: sum.failures_shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every third pair fails.
    struct Counting(u64);

    impl Caller for Counting {
        async fn pair(&mut self) -> Result<Duration, String> {
            self.0 += 1;
            tokio::task::yield_now().await;
            if self.0.is_multiple_of(3) { Err(format!("the {}th", self.0)) } else { Ok(Duration::from_micros(7)) }
        }
    }

    fn ourselves() -> Processes {
        Processes { proxy: std::process::id(), redis: vec![] }
    }

    #[tokio::test]
    async fn pairs_and_failures_are_all_counted() {
        let mut callers = vec![Counting(0), Counting(0)];
        let window = run(&mut callers, Until::Pairs(60, PATIENCE), &ourselves()).await.unwrap();
        assert_eq!(callers.iter().map(|caller| caller.0).sum::<u64>(), 60);
        assert_eq!(window.pairs + window.failures, 60);
        assert!((18..=20).contains(&window.failures), "{window:?}");
        assert_eq!(window.failures_shown.len(), SHOWN);
        assert_eq!(window.acquire.percentile_ms(99), 0.007);
    }

    #[tokio::test]
    async fn a_window_ends_when_its_time_is_over() {
        let mut callers = vec![Counting(0)];
        let window = run(&mut callers, Until::Elapsed(Duration::from_millis(50)), &ourselves()).await.unwrap();
        assert!(window.pairs > 0 && window.took >= Duration::from_millis(50), "{window:?}");
        assert_eq!(callers.len(), 1, "they come back for the next window");
    }

    #[test]
    fn figures_are_for_each_pair_and_second() {
        let cpu = CpuTime { client: Duration::from_millis(30), proxy: Duration::from_millis(50), redis: Duration::ZERO };
        let tally = Tally { pair_us: vec![10; 1000], ..Tally::default() };
        let window = add_up(vec![tally], Duration::from_secs(2), cpu);
        assert_eq!(window.pairs_per_s(), 500.0);
        assert_eq!(window.us_per_pair(window.cpu.total()).round(), 80.0);
    }
}
