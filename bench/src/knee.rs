//! The search for the highest rate that a target carries: rising steps until one is not carried, then halves of what is between.

use std::time::Duration;

use crate::results::Step;

/// Each step is so many times the last, until one is too many.
const GROWTH: f64 = 2.0;

/// The search ends when the lowest rate that was not carried is so close to the highest that was.
const CLOSE: f64 = 1.06;

/// Parts of the pairs that may be late or fail.
const TOLERANCE: f64 = 0.01;

/// When a rate counts as carried.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Of the acquire, from the due time.
    pub p99: Duration,
}

impl Rule {
    /// In words.
    pub fn words(self) -> String {
        let percent = TOLERANCE * 100.0;
        format!(
            "at the end of the window at most {percent} % of the pairs that were due had not begun, at most {percent} % failed, and the \
             p99 of the acquire from the due time is at most {:?}",
            self.p99
        )
    }

    /// Why a rate is not carried; nothing if it is. `due`: how many pairs should have been made.
    pub fn broken_by(self, step: &Step, due: u64) -> Option<String> {
        let failed: u64 = step.errors.iter().map(|error| error.count).sum();
        let part = |count: u64| count as f64 / due.max(1) as f64;
        if part(step.backlog) > TOLERANCE {
            return Some(format!("{} of {due} pairs that were due had not begun", step.backlog));
        }
        if part(failed) > TOLERANCE {
            return Some(format!("{failed} of {due} pairs failed"));
        }
        let bound_ms = self.p99.as_secs_f64() * 1000.0;
        (step.acquire.p99_ms > bound_ms).then(|| format!("p99 {:.1} ms", step.acquire.p99_ms))
    }
}

/// What is known so far.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    first: f64,
    carried: Option<f64>,
    not_carried: Option<f64>,
    /// One miss may be the machine's; two in a row are the target's.
    doubted: Option<f64>,
}

impl Search {
    /// Begins with a rate.
    pub fn new(first: f64) -> Self {
        Self { first, carried: None, not_carried: None, doubted: None }
    }

    /// The rate to try next; none when the knee is found, or there is none above 1.
    pub fn next(&self) -> Option<f64> {
        if let Some(doubted) = self.doubted {
            return Some(doubted);
        }
        match (self.carried, self.not_carried) {
            (None, None) => Some(self.first),
            (Some(carried), None) => Some(carried * GROWTH),
            (None, Some(not_carried)) => Some(not_carried / GROWTH).filter(|rate| *rate >= 1.0),
            (Some(carried), Some(not_carried)) => {
                (not_carried / carried > CLOSE).then(|| ((carried * not_carried).sqrt() / 10.0).round() * 10.0)
            }
        }
        .filter(|rate| Some(*rate) != self.carried && Some(*rate) != self.not_carried)
    }

    /// What came of it.
    pub fn tried(&mut self, rate: f64, carried: bool) {
        if carried {
            (self.carried, self.doubted) = (Some(rate), None);
        } else if self.doubted == Some(rate) {
            (self.not_carried, self.doubted) = (Some(rate), None);
        } else {
            self.doubted = Some(rate);
        }
    }

    /// The highest rate that was carried, and the lowest that was not.
    pub fn found(&self) -> (Option<f64>, Option<f64>) {
        (self.carried, self.not_carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{ErrorCount, Latency};

    fn search(first: f64, limit: f64) -> (Search, Vec<f64>) {
        let (mut search, mut tried) = (Search::new(first), Vec::new());
        while let Some(rate) = search.next() {
            tried.push(rate);
            search.tried(rate, rate <= limit);
            assert!(tried.len() < 50, "{tried:?}");
        }
        (search, tried)
    }

    #[test]
    fn the_knee_is_found_from_below_and_from_above() {
        for (first, limit) in [(1000.0, 15_200.0), (1000.0, 1000.0), (64_000.0, 900.0), (500.0, 501.0), (10.0, 25.0)] {
            let (search, tried) = search(first, limit);
            let (Some(carried), Some(not_carried)) = search.found() else { panic!("{tried:?}") };
            assert!(carried <= limit && limit < not_carried, "{carried} {not_carried}");
            assert!(not_carried / carried <= CLOSE || not_carried - carried <= 10.0, "{carried} {not_carried}: {tried:?}");
        }
    }

    #[test]
    fn one_miss_is_forgiven() {
        let mut search = Search::new(1000.0);
        search.tried(1000.0, false);
        assert_eq!(search.next(), Some(1000.0), "again");
        search.tried(1000.0, true);
        assert_eq!((search.next(), search.found()), (Some(2000.0), (Some(1000.0), None)));
        search.tried(2000.0, false);
        search.tried(2000.0, false);
        assert_eq!(search.found(), (Some(1000.0), Some(2000.0)));
    }

    #[test]
    fn a_target_that_carries_nothing_ends_the_search() {
        let (search, tried) = search(1000.0, 0.0);
        assert_eq!(search.found().0, None);
        assert!(tried.len() <= 22, "{tried:?}");
    }

    #[test]
    fn a_rate_is_not_carried_when_pairs_are_late_or_fail_or_wait_too_long() {
        let rule = Rule { p99: Duration::from_millis(100) };
        let good = Step { backlog: 10, acquire: Latency { p99_ms: 100.0, ..Latency::default() }, ..Step::default() };
        assert_eq!(rule.broken_by(&good, 1000), None);
        let late = Step { backlog: 11, ..good.clone() };
        assert!(rule.broken_by(&late, 1000).unwrap().contains("had not begun"));
        let failed = ErrorCount { count: 11, ..ErrorCount::default() };
        assert!(rule.broken_by(&Step { errors: vec![failed], ..good.clone() }, 1000).unwrap().contains("failed"));
        let slow = Step { acquire: Latency { p99_ms: 100.1, ..Latency::default() }, ..good };
        assert!(rule.broken_by(&slow, 1000).unwrap().contains("p99"));
    }
}
