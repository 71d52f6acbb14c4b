//! A holder that is never heard of again: how long after the end of its lease the next in line has the lock.

use std::time::{Duration, Instant};

use super::Bench;
use super::report::{Aim, Figure, Table, number};
use crate::Error;
use crate::call::{Call, Caller};
use crate::client::{Client, Failure, Terms};
use crate::line::{TERMS, WAIT};
use crate::servers::link::Link;
use crate::stats::{Latencies, micros};
use crate::targets::unary::Unary;
use crate::witness::Witness;

/// Of the holder's lease.
const TTL: Duration = Duration::from_millis(300);

/// How often the nodes are asked for the holder's keys, until all of them have one: the last may be on its way still.
const LOOKS: usize = 5;

/// Where the waiter waits.
const PLACES: [&str; 2] = ["the same proxy", "another proxy"];

const HEAD: [&str; 5] = ["waiter at", "trials", "median ms", "max ms", "longest wait ms"];

/// What came of the trials of one place, in microseconds.
#[derive(Debug, Default)]
struct Trials {
    delays_us: Vec<u32>,
    waits_us: Vec<u32>,
}

/// Who takes part.
struct Scene {
    name: String,
    links: Vec<Link>,
    /// Of all trials.
    witness: Witness,
}

/// Measures all places in turn.
pub async fn measure(bench: &mut Bench<'_>, trials: u16) -> Result<(), Error> {
    let servers = bench.servers;
    let other = servers.another_proxy().await?;
    let ways = [Caller::connect(&servers.proxy()).await?, Caller::connect(other.url()).await?];
    let name = "contended/holder".to_owned();
    let mut scene = Scene { name, links: servers.links().await?, witness: Witness::default() };
    let mut places = PLACES.map(|_| Trials::default());
    eprintln!("{trials} holders that die for a waiter at {}, and {trials} for one at {}", PLACES[0], PLACES[1]);
    for _ in 0..trials {
        for (way, place) in ways.iter().zip(&mut places) {
            // Its connection is its own, and goes with it.
            let holder = Caller::connect(&servers.proxy()).await?;
            if let Err(what) = scene.trial(holder, way.clone(), place).await {
                bench.report.failed(what);
            }
        }
    }
    bench.nothing_left().await?;
    let title = format!("From the end of a dead holder's lease of {TTL:?} on a quorum of the nodes to the next grant");
    let rows = PLACES.iter().zip(&places).map(|(place, trials)| trials.cells(place)).collect();
    let figures: Vec<Figure> = PLACES.iter().zip(&places).map(|(place, trials)| trials.figure(place)).collect();
    bench.report.add(Table { title, head: HEAD.to_vec(), rows }, figures);
    Ok(())
}

impl Scene {
    /// One holder and its heir.
    async fn trial(&mut self, holder: Caller, way: Caller, trials: &mut Trials) -> Result<(), String> {
        let words = |failure: Failure| failure.what;
        let mut holder = Unary::new(holder, Terms { ttl: TTL, wait: WAIT });
        let (_never_given_back, lease) = holder.take(&self.name).await.map_err(words)?;
        self.witness.granted(0, Instant::now(), lease).map_err(|lie| lie.to_string())?;
        let free = self.free_at().await.map_err(|error| error.to_string())?;
        drop(holder);
        let mut waiter = Unary::new(way, TERMS);
        let started = Instant::now();
        let (held, lease) = waiter.take(&self.name).await.map_err(words)?;
        let granted = Instant::now();
        let seen = self.witness.granted(1, granted, lease);
        trials.waits_us.push(micros(granted - started));
        trials.delays_us.push(micros(granted.saturating_duration_since(free)));
        self.witness.gives_back(1);
        waiter.give_back(held).await.map_err(words)?;
        seen.map_err(|lie| lie.to_string())
    }

    /// When a quorum of the nodes will not hold the holder's keys any more. Up to a millisecond too early, never too late: the figure
    /// is never better than the truth.
    async fn free_at(&mut self) -> Result<Instant, Error> {
        let key = format!("lock:{}", self.name);
        let mut ends = Vec::new();
        for look in 1..=LOOKS {
            ends.clear();
            let mut all_hold = true;
            for link in &mut self.links {
                let asked = Instant::now();
                let left = link.time_left_ms(&key).await?;
                all_hold &= left.is_some();
                ends.push(asked + Duration::from_millis(left.unwrap_or(0)));
            }
            if all_hold || look == LOOKS {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        quorum_end(ends).ok_or_else(|| "there are no nodes".into())
    }
}

/// When a quorum of the ends has come.
fn quorum_end(mut ends: Vec<Instant>) -> Option<Instant> {
    ends.sort_unstable();
    // The quorum of n nodes is n / 2 + 1.
    ends.get(ends.len() / 2).copied()
}

impl Trials {
    fn cells(&self, place: &str) -> Vec<String> {
        let (delays, waits) = (Latencies::new(self.delays_us.clone()), Latencies::new(self.waits_us.clone()));
        let [median, max] = [50, 100].map(|percent| number(delays.percentile_ms(percent)));
        vec![place.to_owned(), self.delays_us.len().to_string(), median, max, number(waits.percentile_ms(100))]
    }

    fn figure(&self, place: &str) -> Figure {
        let measured = Latencies::new(self.delays_us.clone()).percentile_ms(50);
        let what = format!("from the end of a dead holder's lease to the grant of a waiter at {place}, median ms");
        Figure { what, aim: Aim::Below(100.0), measured }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_when_the_third_of_five_has_ended() {
        let now = Instant::now();
        let at = |ms: [u64; 5]| ms.map(|ms| now + Duration::from_millis(ms)).to_vec();
        assert_eq!(quorum_end(at([5, 1, 4, 2, 3])), Some(now + Duration::from_millis(3)));
        assert_eq!(quorum_end(vec![]), None);
    }

    #[test]
    fn a_place_is_judged_by_its_median() {
        let trials = Trials { delays_us: vec![90_000, 30_000, 500_000], waits_us: vec![300_000; 3] };
        assert_eq!(trials.cells("X"), ["X", "3", "90.0", "500.0", "300.0"]);
        assert_eq!(trials.figure("X").measured, 90.0);
    }
}
