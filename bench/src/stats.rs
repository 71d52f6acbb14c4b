//! Numbers about numbers.

use std::time::Duration;

/// The middle of `values`, the mean of the two middle ones of an even count. NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The least and the greatest of `values`. NaN of nothing.
pub fn spread(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let sorted = sorted(values);
    (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN))
}

/// The median of the ratios of windows that lie side by side in time.
pub fn ratio<W>(windows: &[W], others: &[W], figure: impl Fn(&W) -> f64) -> f64 {
    median(windows.iter().zip(others).map(|(window, other)| figure(window) / figure(other)))
}

/// How many times the smallest of some shares the largest is; infinite if somebody got nothing. NaN of nothing.
pub fn inequality(shares: &[u64]) -> f64 {
    let (least, most) = spread(shares.iter().map(|share| *share as f64));
    most / least
}

/// Whole microseconds, for samples.
pub fn micros(duration: Duration) -> u32 {
    duration.as_micros().try_into().unwrap_or(u32::MAX)
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Some latencies, each of them kept: for few. Many are counted by [`crate::latency`].
#[derive(Debug, Default)]
pub struct Latencies {
    sorted_us: Vec<u32>,
}

impl Latencies {
    /// Of samples in microseconds, in any order.
    pub fn new(mut samples_us: Vec<u32>) -> Self {
        samples_us.sort_unstable();
        Self { sorted_us: samples_us }
    }

    /// The least sample that is not exceeded by `percent` of all samples, in milliseconds. NaN of nothing.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let rank = (self.sorted_us.len() * percent).div_ceil(100).max(1);
        self.sorted_us.get(rank - 1).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }

    /// The mean, in milliseconds. NaN of nothing.
    pub fn mean_ms(&self) -> f64 {
        let sum: u64 = self.sorted_us.iter().map(|us| u64::from(*us)).sum();
        sum as f64 / self.sorted_us.len() as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median([7.0]), 7.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn the_spread_goes_from_the_least_to_the_greatest() {
        assert_eq!(spread([2.0, -1.0, 9.0, 3.0]), (-1.0, 9.0));
        assert!(spread([]).0.is_nan());
    }

    #[test]
    fn ratios_are_taken_side_by_side() {
        // Medians of each: 200 and 400. But a noisy second window slowed both.
        assert_eq!(ratio(&[200.0, 20.0, 900.0], &[400.0, 40.0, 900.0], |rate| *rate), 0.5);
    }

    #[test]
    fn shares_are_as_unequal_as_the_largest_to_the_smallest() {
        assert_eq!(inequality(&[5, 4, 10]), 2.5);
        assert_eq!(inequality(&[7]), 1.0);
        assert_eq!(inequality(&[0, 7]), f64::INFINITY);
        assert!(inequality(&[]).is_nan() && inequality(&[0, 0]).is_nan());
    }

    #[test]
    fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
        let hundred = Latencies::new((1..=100).rev().map(|ms| ms * 1000).collect());
        assert_eq!(hundred.percentile_ms(50), 50.0);
        assert_eq!(hundred.percentile_ms(99), 99.0);
        assert_eq!(hundred.percentile_ms(100), 100.0);
        let few = Latencies::new(vec![3000, 1000, 2000]);
        assert_eq!(few.percentile_ms(50), 2.0);
        assert_eq!(few.percentile_ms(99), 3.0, "rounded up: never better than what was seen");
        assert_eq!(few.percentile_ms(0), 1.0);
        assert_eq!(few.mean_ms(), 2.0);
        assert!(Latencies::default().percentile_ms(50).is_nan() && Latencies::default().mean_ms().is_nan());
    }
}
