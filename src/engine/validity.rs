//! Time: elapsed and drift round up, validity rounds down, all in whole milliseconds.

use std::fmt;
use std::time::Duration;

use super::lease::Ttl;

/// Added to the proportional drift: the resolution of Redis's expiry (1 ms) on both ends.
const DRIFT_CONSTANT_MS: u64 = 2;

/// How much the clock of a node may run faster than ours, in millionths: 2000 is 0.002, two milliseconds a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriftFactor {
    millionths: u32,
}

impl DriftFactor {
    /// The default: 0.002.
    pub const DEFAULT: Self = Self { millionths: 2_000 };

    /// From millionths: 0 to 100,000 (a tenth), or `None`.
    pub fn from_millionths(millionths: u32) -> Option<Self> {
        (millionths <= 100_000).then_some(Self { millionths })
    }

    /// In millionths.
    pub fn millionths(self) -> u32 {
        self.millionths
    }

    /// `ceil(ms * factor) + 2 ms`: what a lease of `ms` milliseconds loses to clocks that run differently.
    pub fn drift_ms(self, ms: u64) -> u64 {
        let proportional = (u128::from(ms) * u128::from(self.millionths)).div_ceil(1_000_000);
        u64::try_from(proportional).unwrap_or(u64::MAX).saturating_add(DRIFT_CONSTANT_MS)
    }
}

impl fmt::Display for DriftFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.millionths) / 1e6)
    }
}

/// How long a lease can be relied on: whole milliseconds, at least 1, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Validity {
    ms: u64,
}

impl Validity {
    /// In milliseconds.
    pub fn as_millis(self) -> u64 {
        self.ms
    }

    /// As a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

/// `ttl - elapsed - drift`, or `None` if nothing is left.
pub fn validity(ttl: Ttl, elapsed: Duration, factor: DriftFactor) -> Option<Validity> {
    remaining(ttl.as_millis(), elapsed, factor)
}

/// What is left of keys that had `left_ms` to live on their nodes at some instant not before `elapsed` ago.
pub fn remaining(left_ms: u64, elapsed: Duration, factor: DriftFactor) -> Option<Validity> {
    let ms = left_ms.checked_sub(ceil_millis(elapsed))?.checked_sub(factor.drift_ms(left_ms))?;
    (ms > 0).then_some(Validity { ms })
}

/// Whole milliseconds, rounded up.
pub fn ceil_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ttl(ms: u64) -> Ttl {
        Ttl::from_millis(ms, Ttl::LONGEST).unwrap()
    }

    #[test]
    fn drift_is_two_per_thousand_and_two_milliseconds_rounded_up() {
        assert_eq!(DriftFactor::DEFAULT.drift_ms(10_000), 22);
        assert_eq!(DriftFactor::DEFAULT.drift_ms(10_001), 23);
        assert_eq!(DriftFactor::DEFAULT.drift_ms(10), 3);
        assert_eq!(DriftFactor::from_millionths(10_000).unwrap().drift_ms(10_000), 102);
    }

    #[test]
    fn elapsed_is_rounded_up_and_validity_down() {
        let left = validity(ttl(10_000), Duration::from_nanos(1), DriftFactor::DEFAULT);
        assert_eq!(left.map(Validity::as_millis), Some(9_977));
        let left = validity(ttl(10_000), Duration::from_micros(1_001), DriftFactor::DEFAULT);
        assert_eq!(left.map(Validity::as_millis), Some(9_976));
    }

    #[test]
    fn nothing_left_is_none_and_never_zero() {
        assert_eq!(validity(ttl(10), Duration::from_millis(7), DriftFactor::DEFAULT), None);
        assert_eq!(validity(ttl(10), Duration::from_millis(6), DriftFactor::DEFAULT).map(Validity::as_millis), Some(1));
        assert_eq!(validity(ttl(10), Duration::MAX, DriftFactor::DEFAULT), None);
    }

    proptest! {
        /// On a node whose clock runs fast by the whole drift factor, the key outlives the validity.
        #[test]
        fn validity_is_never_overstated(
            ms in 10_u64..3_600_000,
            elapsed_ns in 0_u64..4_000_000_000_000,
            millionths in 0_u32..=100_000,
        ) {
            let factor = DriftFactor::from_millionths(millionths).unwrap();
            let elapsed = Duration::from_nanos(elapsed_ns);
            if let Some(validity) = validity(ttl(ms), elapsed, factor) {
                // On a clock that gains `f` a second, `ms` of its milliseconds are `ms / (1 + f)` of ours, and expiry
                // may strike a millisecond early at either end.
                let lives_ns = u128::from(ms) * 1_000_000 * 1_000_000 / (1_000_000 + u128::from(millionths));
                let ends_ns = elapsed.as_nanos() + validity.as_duration().as_nanos();
                prop_assert!(ends_ns + 2_000_000 <= lives_ns, "{ends_ns} + 2 ms > {lives_ns}");
            }
        }

        #[test]
        fn more_elapsed_never_leaves_more(ms in 10_u64..300_000, a in 0_u64..300_000_000, b in 0_u64..300_000_000) {
            let at = |us| validity(ttl(ms), Duration::from_micros(us), DriftFactor::DEFAULT);
            prop_assert!(at(a.max(b)) <= at(a.min(b)));
        }
    }
}
