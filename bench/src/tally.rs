//! What came of the pairs: counted where it happens, taken away from time to time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::client::Failure;
use crate::latency::Latencies;
use crate::results::ErrorCount;

/// Clients on different threads seldom meet at the same one.
const SHARDS: usize = 8;

/// What came of a number of pairs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Of pairs that were made, from the beginning or the due time to the end of the release.
    pub pair: Latencies,
    /// Of locks that were taken.
    pub acquire: Latencies,
    /// Of pairs of an open loop that were never begun: from the due time to the end of the window.
    pub late: Latencies,
    pub errors: Errors,
}

impl Tally {
    /// Pairs that were made.
    pub fn pairs(&self) -> u64 {
        self.pair.count()
    }

    /// Of all pairs, also of those that were never begun.
    pub fn all_pairs(&self) -> Latencies {
        let mut all = self.pair.clone();
        all.add(&self.late);
        all
    }

    /// All of `other` too.
    pub fn add(&mut self, other: &Self) {
        self.pair.add(&other.pair);
        self.acquire.add(&other.acquire);
        self.late.add(&other.late);
        self.errors.add(&other.errors);
    }

    fn clear(&mut self) {
        self.pair.clear();
        self.acquire.clear();
        self.errors.0.clear();
    }
}

/// Failures by their kind: how many, and the first.
#[derive(Clone, Debug, Default)]
pub struct Errors(BTreeMap<String, (u64, String)>);

impl Errors {
    fn record(&mut self, failure: &Failure) {
        match self.0.get_mut(failure.kind.as_ref()) {
            Some((count, _)) => *count += 1,
            None => drop(self.0.insert(failure.kind.to_string(), (1, failure.what.clone()))),
        }
    }

    fn add(&mut self, other: &Self) {
        for (kind, (count, example)) in &other.0 {
            self.0.entry(kind.clone()).or_insert_with(|| (0, example.clone())).0 += count;
        }
    }

    /// Of all kinds.
    pub fn count(&self) -> u64 {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// For results: the most frequent first.
    pub fn by_kind(&self) -> Vec<ErrorCount> {
        let count = |(kind, (count, example)): (&String, &(u64, String))| ErrorCount {
            kind: kind.clone(),
            count: *count,
            example: example.clone(),
        };
        let mut counts: Vec<ErrorCount> = self.0.iter().map(count).collect();
        counts.sort_by_key(|error| std::cmp::Reverse(error.count));
        counts
    }
}

/// Where clients count.
#[derive(Debug, Default)]
pub struct Recorder([Mutex<Tally>; SHARDS]);

impl Recorder {
    fn with(&self, client: usize, what: impl FnOnce(&mut Tally)) {
        what(&mut self.0[client % SHARDS].lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A lock was taken.
    pub fn taken(&self, client: usize, latency: Duration) {
        self.with(client, |tally| tally.acquire.record(latency));
    }

    /// A pair is complete.
    pub fn pair(&self, client: usize, latency: Duration) {
        self.with(client, |tally| tally.pair.record(latency));
    }

    /// Something failed.
    pub fn failure(&self, client: usize, failure: &Failure) {
        self.with(client, |tally| tally.errors.record(failure));
    }

    /// All that was counted since the last time.
    pub fn drain(&self) -> Tally {
        let mut sum = Tally::default();
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            if shard.pair.count() > 0 || shard.acquire.count() > 0 || shard.errors.count() > 0 {
                sum.add(&shard);
                shard.clear();
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_count_is_taken_away_once() {
        let recorder = Recorder::default();
        for client in 0..20 {
            recorder.taken(client, Duration::from_millis(1));
            recorder.pair(client, Duration::from_millis(2));
        }
        recorder.failure(3, &Failure::new("acquire: unavailable", "the first"));
        recorder.failure(3, &Failure::new("acquire: unavailable", "the second"));
        recorder.failure(4, &Failure::new("release: not held", "another"));
        let mut tally = recorder.drain();
        assert_eq!((tally.pairs(), tally.acquire.count(), tally.errors.count()), (20, 20, 3));
        assert_eq!(recorder.drain().pairs(), 0);
        recorder.failure(5, &Failure::new("release: not held", "again"));
        tally.add(&recorder.drain());
        let errors: Vec<_> = tally.errors.by_kind().into_iter().map(|error| (error.kind, error.count, error.example)).collect();
        let expected = [("acquire: unavailable", 2, "the first"), ("release: not held", 2, "another")];
        assert_eq!(errors, expected.map(|(kind, count, example)| (kind.to_owned(), count, example.to_owned())));
    }
}
