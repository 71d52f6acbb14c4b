//! What happened, by the clock of this machine, as the callers saw it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::oracle::history::{At, History};

/// Shared by all that take part.
#[derive(Clone)]
pub struct Record {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl Default for Record {
    fn default() -> Self {
        Self { began: Instant::now(), inner: Arc::default() }
    }
}

#[derive(Default)]
pub struct Inner {
    pub history: History,
    /// What was wrong with calls: the client made up for nothing of that.
    pub failures: Vec<String>,
    /// Pairs that were due by the pace.
    pub due: usize,
    /// Of these, those that were not begun, because too many were under way.
    pub left_out: usize,
    /// Pairs in full: begun, ended. In the order of their ends.
    pub pairs: Vec<(At, At)>,
}

impl Record {
    pub fn at(&self, instant: Instant) -> At {
        instant.saturating_duration_since(self.began)
    }

    pub fn now(&self) -> At {
        self.began.elapsed()
    }

    pub fn look(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn fail(&self, what: String) {
        let now = self.now();
        println!("{now:?}: {what}");
        self.look().failures.push(format!("{now:?}: {what}"));
    }

    /// How many pairs both began and ended after an instant.
    pub fn pairs_since(&self, instant: Instant) -> usize {
        let since = self.at(instant);
        let inner = self.look();
        let ended = inner.pairs.iter().rev().take_while(|(_, ended)| *ended >= since);
        ended.filter(|(begun, _)| *begun >= since).count()
    }
}

impl Inner {
    /// How many locks somebody else had when they were asked for.
    pub fn waits(&self) -> usize {
        let mut ends: BTreeMap<&str, At> = BTreeMap::new();
        let mut waits = 0;
        for lease in &self.history.leases {
            let end = lease.held.map_or(lease.granted_by, |held| held.until);
            waits += usize::from(ends.insert(&lease.name, end).is_some_and(|end| lease.not_before < end));
        }
        waits
    }

    pub fn summary(&self) -> String {
        let mut times: Vec<Duration> = self.pairs.iter().map(|(begun, ended)| *ended - *begun).collect();
        times.sort_unstable();
        let of = |part: f64| times.get((times.len() as f64 * part) as usize).or(times.last()).copied().unwrap_or_default();
        let span = self.pairs.last().map_or(0.0, |(_, ended)| ended.as_secs_f64());
        format!(
            "{} restarts in {span:.0} s: {} pairs of {} that were due, {} calls failed; {} waited for somebody else; from due to \
             released: p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
            self.history.faults.len(),
            self.pairs.len(),
            self.due,
            self.failures.len(),
            self.waits(),
            of(0.5),
            of(0.99),
            of(1.0),
        )
    }
}
