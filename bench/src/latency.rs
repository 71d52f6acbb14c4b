//! Latencies by HdrHistogram: three significant digits from a microsecond to two minutes, in a few hundred kilobytes however
//! many there are.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::results::{Latency, Percentile};

/// More counts as this.
const LONGEST: Duration = Duration::from_secs(120);

const DIGITS: u8 = 3;

/// The points of a curve.
const CURVE: [f64; 16] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999, 100.0];

/// A number of latencies.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // Fails only for senseless bounds.
        Self(Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, DIGITS).expect("bounds of a histogram"))
    }
}

impl Latencies {
    /// One more.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// All of `other` too.
    pub fn add(&mut self, other: &Self) {
        // The bounds are the same.
        self.0.add(&other.0).expect("histograms with the same bounds");
    }

    /// As new, without giving memory back.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that `percent` of all do not exceed. Nothing of nothing.
    pub fn percentile_ms(&self, percent: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| ms(self.0.value_at_percentile(percent)))
    }

    /// For results.
    pub fn summary(&self) -> Latency {
        let at = |percent| self.percentile_ms(percent).unwrap_or_default();
        let point = |percentile: &f64| Some(Percentile { percentile: *percentile, ms: self.percentile_ms(*percentile)? });
        Latency {
            count: self.count(),
            mean_ms: self.0.mean() / 1000.0,
            p50_ms: at(50.0),
            p90_ms: at(90.0),
            p99_ms: at(99.0),
            p999_ms: at(99.9),
            p9999_ms: at(99.99),
            max_ms: ms(self.0.max()),
            curve: CURVE.iter().filter_map(point).collect(),
        }
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ms: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        ms.into_iter().for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies
    }

    /// Three digits.
    fn about(measured: f64, expected: f64) {
        assert!((measured - expected).abs() <= expected / 999.0, "{measured} for {expected}");
    }

    #[test]
    fn a_percentile_is_what_so_many_do_not_exceed() {
        let summary = of(1..=10_000).summary();
        let of_percents = [summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.p999_ms, summary.p9999_ms, summary.max_ms];
        for (measured, expected) in of_percents.into_iter().zip([5000.0, 9000.0, 9900.0, 9990.0, 9999.0, 10_000.0]) {
            about(measured, expected);
        }
        about(summary.mean_ms, 5000.5);
        assert_eq!((summary.count, summary.curve.len()), (10_000, CURVE.len()));
        assert!(summary.curve.windows(2).all(|points| points[0].ms <= points[1].ms));
    }

    #[test]
    fn one_slow_pair_of_a_hundred_is_seen_at_the_end_only() {
        let mut latencies = of([1; 99]);
        latencies.add(&of([500]));
        about(latencies.percentile_ms(99.0).unwrap(), 1.0);
        about(latencies.percentile_ms(99.5).unwrap(), 500.0);
        latencies.clear();
        assert_eq!((latencies.count(), latencies.percentile_ms(50.0)), (0, None));
    }

    #[test]
    fn the_extremes_are_kept_within_bounds() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(3600));
        let summary = latencies.summary();
        about(summary.max_ms, 120_000.0);
        assert_eq!((summary.count, summary.p50_ms), (2, 0.001));
        assert_eq!(Latencies::default().summary(), Latency::default());
    }
}
