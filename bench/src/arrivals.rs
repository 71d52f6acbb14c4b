//! An open loop: pairs are due at instants that do not depend on how the earlier ones go.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp1};

/// How regularly pairs are due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rhythm {
    /// In equal intervals
    Steady,
    /// At random, as from many users who know nothing of each other
    #[default]
    Poisson,
}

impl Rhythm {
    /// For results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Poisson => "poisson",
        }
    }
}

/// Pairs a second: from the one to the other over the length of the window, in equal steps of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub from: f64,
    pub to: f64,
}

impl Rate {
    /// The same all the time.
    pub fn of(rate: f64) -> Self {
        Self { from: rate, to: rate }
    }

    /// When so many pairs are due, in seconds since the start: the time `t` at which
    /// `from t + (to - from) t^2 / 2 length` is `pairs`. None if they never are.
    fn when(self, pairs: f64, length_s: f64) -> Option<f64> {
        let bend = (self.to - self.from) / (2.0 * length_s);
        if bend.abs() < 1e-9 {
            return (self.from > 0.0).then(|| pairs / self.from);
        }
        let root = self.from.mul_add(self.from, 4.0 * bend * pairs);
        (root >= 0.0).then(|| (root.sqrt() - self.from) / (2.0 * bend))
    }
}

/// The pairs of one window. Clients that are free take the next one, wait until it is due, and begin; if all are busy, it
/// begins late, and its latency counts from when it was due.
#[derive(Debug)]
pub struct Arrivals(Mutex<Schedule>);

#[derive(Debug)]
struct Schedule {
    rate: Rate,
    rhythm: Rhythm,
    random: SmallRng,
    started: Instant,
    length: Duration,
    /// How many pairs are due before the next one; between two of them lies 1, or a random number of that mean.
    place: f64,
    taken: u64,
}

impl Arrivals {
    /// From now on.
    pub fn new(rate: Rate, rhythm: Rhythm, seed: u64, started: Instant, length: Duration) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self(Mutex::new(Schedule { rate, rhythm, random, started, length, place: 0.0, taken: 0 }))
    }

    /// When the next pair is due. None if the window is over, or will be before that.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let mut schedule = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= schedule.started + schedule.length {
            return None;
        }
        let due = schedule.next()?;
        schedule.taken += 1;
        Some(due)
    }

    /// When those pairs were due that nobody has begun. To be called after the window; takes them.
    pub fn not_begun(&self) -> Vec<Instant> {
        let mut schedule = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| schedule.next()).collect()
    }

    /// How many pairs were taken.
    #[cfg(test)]
    pub fn taken(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).taken
    }
}

impl Schedule {
    fn next(&mut self) -> Option<Instant> {
        self.place += match self.rhythm {
            Rhythm::Steady => 1.0,
            Rhythm::Poisson => exponential(&mut self.random),
        };
        let length_s = self.length.as_secs_f64();
        let due_s = self.rate.when(self.place, length_s).filter(|due_s| *due_s < length_s)?;
        Some(self.started + Duration::from_secs_f64(due_s))
    }
}

fn exponential(random: &mut impl Rng) -> f64 {
    Exp1.sample(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn due(rate: Rate, rhythm: Rhythm, length: Duration) -> Vec<f64> {
        let started = Instant::now();
        let arrivals = Arrivals::new(rate, rhythm, 7, started, length);
        std::iter::from_fn(|| arrivals.next(started)).map(|due| (due - started).as_secs_f64()).collect()
    }

    #[test]
    fn a_steady_rate_has_equal_intervals() {
        let due = due(Rate::of(4.0), Rhythm::Steady, 2 * SECOND);
        assert_eq!(due, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "the one at the end belongs to the next window");
    }

    #[test]
    fn a_ramp_has_half_of_its_pairs_after_most_of_the_time() {
        let due = due(Rate { from: 0.0, to: 1000.0 }, Rhythm::Steady, 2 * SECOND);
        assert!((998..=1000).contains(&due.len()), "{}", due.len());
        // t^2 / 2 * 500 = 500 at the square root of 2.
        assert!((due[499] - 2_f64.sqrt()).abs() < 0.001, "{}", due[499]);
        let down = super::tests::due(Rate { from: 1000.0, to: 0.0 }, Rhythm::Steady, 2 * SECOND);
        assert!((998..=1000).contains(&down.len()) && (down[499] - (2.0 - 2_f64.sqrt())).abs() < 0.001, "{}", down[499]);
        assert_eq!(super::tests::due(Rate::of(0.0), Rhythm::Steady, SECOND), [] as [f64; 0]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_but_no_rhythm() {
        let due = due(Rate::of(1000.0), Rhythm::Poisson, 20 * SECOND);
        assert!((19_000..21_000).contains(&due.len()), "{}", due.len());
        let gaps: Vec<f64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let short = gaps.iter().filter(|gap| **gap < mean).count() as f64 / gaps.len() as f64;
        // 1 - 1/e of exponential gaps are shorter than their mean.
        assert!((short - 0.632).abs() < 0.02, "{short}");
    }

    #[test]
    fn late_clients_get_pairs_that_were_due_long_ago() {
        let started = Instant::now();
        let arrivals = Arrivals::new(Rate::of(10.0), Rhythm::Steady, 1, started, SECOND);
        // Everybody was busy for half a second.
        let late = started + SECOND / 2;
        assert_eq!(arrivals.next(late), Some(started + SECOND / 10), "not from when somebody was free");
        assert_eq!(arrivals.next(late), Some(started + SECOND / 5));
        assert_eq!(arrivals.next(started + SECOND), None, "the window is over");
        let not_begun = arrivals.not_begun();
        assert_eq!((arrivals.taken(), not_begun.len()), (2, 7), "due at 0.3 to 0.9 s");
        assert_eq!(not_begun[0], started + 3 * SECOND / 10);
    }
}
