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

/// What a request has taken so far, on the proxy's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// From the receipt of the request to the start of the try that was granted: the client waited for its turn.
    pub waited: Duration,
    /// From the start of the try to now.
    pub elapsed: Duration,
}

impl Spent {
    /// At `now`, on a request of `received` whose operations began at `started`.
    pub fn between<I: Copy + std::ops::Sub<Output = Duration>>(received: I, started: I, now: I) -> Self {
        Self { waited: started - received, elapsed: now - started }
    }
}

/// `ttl - elapsed - drift`, or `None` if nothing is left.
pub fn validity(ttl: Ttl, spent: Spent, factor: DriftFactor) -> Option<Validity> {
    remaining(ttl.as_millis(), spent, factor)
}

/// What is left of keys that had `left_ms` to live on their nodes at some instant not before the operation began.
///
/// The drift is that of all the time that the client counts by its own clock: it adds `served_for`, the time waited
/// included, and a slow clock stretches that as it stretches the lease. (Charged for the TTL only, a lease that was waited
/// for outlives its keys: the simulation finds it.)
pub fn remaining(left_ms: u64, spent: Spent, factor: DriftFactor) -> Option<Validity> {
    let waited = if mutant!("drift-of-the-wait-ignored") { Duration::ZERO } else { spent.waited };
    let elapsed = if mutant!("elapsed-read-too-early") { Duration::ZERO } else { spent.elapsed };
    let counted_ms = left_ms.saturating_add(ceil_millis(waited));
    let drift_ms = if mutant!("drift-ignored") { 0 } else { factor.drift_ms(counted_ms) };
    let ms = left_ms.saturating_sub(ceil_millis(elapsed)).saturating_sub(drift_ms);
    let ms = if mutant!("too-late-is-granted") { ms.max(1) } else { ms };
    (ms > 0).then_some(Validity { ms })
}

/// After a longer wait the drift leaves a lease of `ttl` no more than `min_validity_ms` and a tenth of what is beyond that,
/// for the try itself: to go on would take the lock from others in vain. Zero where no lease at all can be so good.
pub fn longest_wait(ttl: Ttl, min_validity_ms: u64, factor: DriftFactor) -> Duration {
    let ms = ttl.as_millis();
    // The constant, and one for the rounding of the drift.
    let spare_ms = ms.saturating_sub(min_validity_ms.saturating_add(DRIFT_CONSTANT_MS + 1));
    let counted_ms = (u128::from(spare_ms - spare_ms.div_ceil(10)) * 1_000_000).checked_div(u128::from(factor.millionths));
    counted_ms
        .map_or(Duration::MAX, |counted| Duration::from_millis(u64::try_from(counted).unwrap_or(u64::MAX).saturating_sub(ms)))
}

/// How long an attempt waits for its votes at most (protocol section 2).
pub fn votes_within(ttl: Ttl) -> Duration {
    (ttl.as_duration() / 10).max(Duration::from_millis(5))
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

    /// Without a wait.
    fn after(elapsed: Duration) -> Spent {
        Spent { elapsed, ..Spent::default() }
    }

    #[test]
    fn time_waited_costs_drift_too() {
        let waited = |ms| Spent { waited: Duration::from_millis(ms), ..Spent::default() };
        let left = |spent| validity(ttl(1_000), spent, DriftFactor::DEFAULT).map(Validity::as_millis);
        assert_eq!(left(waited(0)), Some(996));
        assert_eq!(left(waited(1)), Some(995));
        assert_eq!(left(waited(60_000)), Some(876));
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
        let left = validity(ttl(10_000), after(Duration::from_nanos(1)), DriftFactor::DEFAULT);
        assert_eq!(left.map(Validity::as_millis), Some(9_977));
        let left = validity(ttl(10_000), after(Duration::from_micros(1_001)), DriftFactor::DEFAULT);
        assert_eq!(left.map(Validity::as_millis), Some(9_976));
    }

    #[test]
    fn nothing_left_is_none_and_never_zero() {
        assert_eq!(validity(ttl(10), after(Duration::from_millis(7)), DriftFactor::DEFAULT), None);
        assert_eq!(validity(ttl(10), after(Duration::from_millis(6)), DriftFactor::DEFAULT).map(Validity::as_millis), Some(1));
        assert_eq!(validity(ttl(10), after(Duration::MAX), DriftFactor::DEFAULT), None);
    }

    #[test]
    fn a_lease_that_must_be_nearly_as_long_as_its_ttl_can_be_waited_for() {
        let waited = |least| longest_wait(ttl(10_000), least, DriftFactor::DEFAULT).as_secs();
        assert_eq!(waited(1), 4_488);
        assert_eq!(waited(9_500), 213);
        assert_eq!(waited(9_980), 0, "the drift of the TTL itself is more than what is left");
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
            if let Some(validity) = validity(ttl(ms), after(elapsed), factor) {
                // On a clock that gains `f` a second, `ms` of its milliseconds are `ms / (1 + f)` of ours, and expiry
                // may strike a millisecond early at either end.
                let lives_ns = u128::from(ms) * 1_000_000 * 1_000_000 / (1_000_000 + u128::from(millionths));
                let ends_ns = elapsed.as_nanos() + validity.as_duration().as_nanos();
                prop_assert!(ends_ns + 2_000_000 <= lives_ns, "{ends_ns} + 2 ms > {lives_ns}");
            }
        }

        /// To a client whose clock runs slow by the whole drift factor, `served_for` and validity together do not outlast a
        /// key whose TTL began when the wait was over.
        #[test]
        fn a_wait_does_not_stretch_the_lease(
            ms in 10_u64..3_600_000,
            waited_ns in 0_u64..4_000_000_000_000,
            elapsed_ns in 0_u64..4_000_000_000_000,
            millionths in 0_u32..=100_000,
        ) {
            let factor = DriftFactor::from_millionths(millionths).unwrap();
            let spent = Spent { waited: Duration::from_nanos(waited_ns), elapsed: Duration::from_nanos(elapsed_ns) };
            if let Some(validity) = validity(ttl(ms), spent, factor) {
                let counted_ns = u128::from(waited_ns) + u128::from(elapsed_ns) + validity.as_duration().as_nanos();
                // A second of its clock is `1 / (1 - f)` of ours, rounded up.
                let lasts_ns = (counted_ns * 1_000_000).div_ceil(1_000_000 - u128::from(millionths));
                let key_ends_ns = u128::from(waited_ns) + u128::from(ms) * 1_000_000;
                // Dividing by 1 - f instead of multiplying by 1 + f is what clocks that differ by f itself may do at most.
                let second_order_ns = counted_ns * u128::from(millionths).pow(2) / (1_000_000_u128.pow(2) - 1_000_000 * u128::from(millionths)) + 1;
                prop_assert!(lasts_ns <= key_ends_ns + second_order_ns, "{lasts_ns} > {key_ends_ns}");
            }
        }

        /// A wait of that length still leaves what was asked for, and a second more of drift would not be for nothing.
        #[test]
        fn the_longest_wait_leaves_a_lease(ms in 10_u64..3_600_000, least in 1_u64..1_000, millionths in 1_u32..=100_000) {
            let factor = DriftFactor::from_millionths(millionths).unwrap();
            let waited = longest_wait(ttl(ms), least, factor);
            if waited > Duration::ZERO {
                let spare_ms = ms - least - DRIFT_CONSTANT_MS - 1;
                let spent = Spent { waited, elapsed: Duration::from_millis(spare_ms.div_ceil(10)) };
                let left = validity(ttl(ms), spent, factor).map_or(0, Validity::as_millis);
                prop_assert!(left >= least, "{left} after {waited:?}");
                let longer = Spent { waited: waited + Duration::from_millis(3_000_000 / u64::from(millionths)), ..spent };
                let left = validity(ttl(ms), longer, factor).map_or(0, Validity::as_millis);
                prop_assert!(left < least + 2, "{left} after {longer:?}: it could have waited longer");
            }
        }

        #[test]
        fn more_elapsed_never_leaves_more(ms in 10_u64..300_000, a in 0_u64..300_000_000, b in 0_u64..300_000_000) {
            let at = |us| validity(ttl(ms), after(Duration::from_micros(us)), DriftFactor::DEFAULT);
            prop_assert!(at(a.max(b)) <= at(a.min(b)));
        }
    }
}
