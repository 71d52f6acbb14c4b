//! How long to wait between tries.

use std::time::Duration;

/// Grows by doubling from `base` to `cap`, drawn at random between half of that and the whole: callers that failed
/// together do not come back together, and none comes back at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// `base` for the first delay, `cap` for the longest.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The delay after `failures` (from 1), with a `random` number drawn by the caller.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doubled = self.base.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let ceiling = doubled.min(self.cap).max(Duration::from_nanos(2));
        let half = ceiling / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1);
        half + Duration::from_nanos(random % (span + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_stay_between_half_and_the_whole(failures in 0_u32..100, random: u64) {
            let (base, cap) = (Duration::from_millis(10), Duration::from_millis(250));
            let delay = Backoff::new(base, cap).delay(failures, random);
            let ceiling = (base * 2_u32.pow(failures.saturating_sub(1).min(10))).min(cap);
            prop_assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?} for {ceiling:?}");
        }
    }
}
