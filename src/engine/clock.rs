//! The clock guard: whether a node's wall clock only *runs*, or was set.
//!
//! Keys end by the wall clock of their node, so a clock that is set forward ends leases early, and one that is set at all
//! makes every end on that node doubtful (protocol section 6). A sample says what the node's clock showed at some instant
//! between the sending of a call and the receipt of its answer. So every sample bounds how far the clock is ahead of ours, and
//! between two samples these bounds may part by the drift only. The bounds of all samples are kept as one, so that a clock
//! can not creep away in small steps, and a slow network is never taken for a clock that was set.

use std::time::Duration;

use super::validity::DriftFactor;

/// Beyond the bounds: servers take the time once for a whole script, and round it.
const TOLERANCE_US: i128 = 2_000;

/// The rate of a clock is told from samples that are so far apart.
const RATE_WINDOW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// What a call told about its node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// On our monotonic clock, before the call was sent.
    pub sent: Duration,
    /// On our monotonic clock, after its answer was read.
    pub received: Duration,
    /// On the node's wall clock in between, in microseconds since 1970.
    pub node_us: u64,
}

impl Sample {
    /// Least and most microseconds that the node's clock is ahead of ours.
    fn bounds(self) -> (i128, i128) {
        let node_us = i128::from(self.node_us);
        (node_us - micros(self.received), node_us + 1 - micros(self.sent))
    }
}

fn micros(at: Duration) -> i128 {
    i128::try_from(at.as_micros()).unwrap_or(i128::MAX)
}

/// What a sample says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The clock runs.
    Runs,
    /// It was set, by about so many microseconds; forward if above 0.
    Stepped {
        /// Microseconds.
        by_us: i64,
    },
}

/// What is known of one node's clock.
#[derive(Clone, Debug)]
pub struct ClockGuard {
    drift: DriftFactor,
    bounds: Option<Bounds>,
    anchor: Option<(Duration, i128)>,
    rate: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    low_us: i128,
    high_us: i128,
    /// When they held.
    at: Duration,
}

impl ClockGuard {
    /// For a clock that may run apart from ours by `drift`.
    pub fn new(drift: DriftFactor) -> Self {
        Self { drift, bounds: None, anchor: None, rate: None }
    }

    /// Takes a sample in. After a step, the clock is known by this sample alone.
    pub fn take(&mut self, sample: Sample) -> Reading {
        let (low_us, high_us) = sample.bounds();
        let fresh = Bounds { low_us, high_us, at: sample.received };
        let Some(known) = self.bounds else {
            self.restart(fresh);
            return Reading::Runs;
        };
        let apart_us = self.drift_us(sample.received.saturating_sub(known.at));
        let expected = Bounds { low_us: known.low_us - apart_us, high_us: known.high_us + apart_us, at: sample.received };
        if low_us > expected.high_us + TOLERANCE_US || high_us < expected.low_us - TOLERANCE_US {
            let by_us = middle(fresh) - middle(expected);
            self.restart(fresh);
            return Reading::Stepped { by_us: i64::try_from(by_us).unwrap_or(if by_us > 0 { i64::MAX } else { i64::MIN }) };
        }
        let both = Bounds { low_us: low_us.max(expected.low_us), high_us: high_us.min(expected.high_us), at: sample.received };
        // Apart, but within the tolerance: what was known before stands.
        self.bounds = Some(if both.low_us <= both.high_us { both } else { expected });
        self.note_rate(fresh);
        Reading::Runs
    }

    fn restart(&mut self, fresh: Bounds) {
        (self.bounds, self.anchor, self.rate) = (Some(fresh), Some((fresh.at, middle(fresh))), None);
    }

    fn drift_us(&self, span: Duration) -> i128 {
        (micros(span) * i128::from(self.drift.millionths()) + 999_999) / 1_000_000
    }

    fn note_rate(&mut self, fresh: Bounds) {
        let Some((since, from_us)) = self.anchor else { return };
        let span = fresh.at.saturating_sub(since);
        if span >= RATE_WINDOW.0 {
            self.rate = Some((middle(fresh) - from_us) as f64 / micros(span) as f64);
        }
        if span >= RATE_WINDOW.1 {
            self.anchor = Some((fresh.at, middle(fresh)));
        }
    }

    /// How far the node's wall clock is ahead of our monotonic one, in microseconds; the middle of the bounds.
    pub fn offset_us(&self) -> Option<i128> {
        self.bounds.map(middle)
    }

    /// How much faster than ours the clock has run of late: 0.001 is a millisecond a second. `None` in the first seconds.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }
}

fn middle(bounds: Bounds) -> i128 {
    (bounds.low_us + bounds.high_us) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH_US: u64 = 1_700_000_000_000_000;

    fn sample(sent_us: u64, took_us: u64, node_us: u64) -> Sample {
        let sent = Duration::from_micros(sent_us);
        Sample { sent, received: sent + Duration::from_micros(took_us), node_us }
    }

    #[test]
    fn a_step_is_told_by_its_size_and_once() {
        let mut guard = ClockGuard::new(DriftFactor::DEFAULT);
        assert_eq!(guard.take(sample(0, 400, EPOCH_US + 200)), Reading::Runs);
        assert_eq!(guard.take(sample(1_000_000, 400, EPOCH_US + 1_000_200)), Reading::Runs);
        let Reading::Stepped { by_us } = guard.take(sample(2_000_000, 400, EPOCH_US + 42_000_200)) else { panic!("40 s") };
        assert!((by_us - 40_000_000).abs() < 3_000, "{by_us}");
        assert_eq!(guard.take(sample(3_000_000, 400, EPOCH_US + 43_000_200)), Reading::Runs);
        let Reading::Stepped { by_us } = guard.take(sample(4_000_000, 400, EPOCH_US + 4_000_200)) else { panic!("back") };
        assert!((by_us + 40_000_000).abs() < 3_000, "{by_us}");
    }

    #[test]
    fn a_clock_can_not_creep_away_in_small_steps() {
        let mut guard = ClockGuard::new(DriftFactor::DEFAULT);
        // A tenth of a millisecond in every millisecond: a clock that runs ten per cent fast.
        let stepped = (0..1_000_u64).find(|n| guard.take(sample(n * 1_000, 300, EPOCH_US + n * 1_100)) != Reading::Runs);
        assert!(stepped.is_some_and(|n| n < 40), "{stepped:?}");
    }

    #[test]
    fn the_rate_is_told() {
        let mut guard = ClockGuard::new(DriftFactor::DEFAULT);
        for n in 0..100_u64 {
            assert_eq!(guard.take(sample(n * 1_000_000, 400, EPOCH_US + n * 1_001_000)), Reading::Runs);
        }
        assert!((guard.rate().unwrap() - 0.001).abs() < 0.000_1, "{:?}", guard.rate());
    }

    proptest! {
        /// However long calls take, and however the clock runs within the drift, no step is seen where there is none; and one
        /// that is longer than the calls around it is seen.
        #[test]
        fn only_steps_are_seen(
            rate_ppm in -1_900_i64..1_900,
            calls in prop::collection::vec((0_u64..3_000_000, 0_u64..80_000, 0_u64..80_000), 1..60),
            step_us in 200_000_i64..60_000_000,
            back in any::<bool>(),
        ) {
            let mut guard = ClockGuard::new(DriftFactor::DEFAULT);
            let shows = |at_us: u64, step_us: i64| {
                let ran = i128::from(at_us) * i128::from(1_000_000 + rate_ppm) / 1_000_000;
                u64::try_from(i128::from(EPOCH_US) + ran + i128::from(step_us)).unwrap()
            };
            let mut now_us = 0;
            for (pause, there, back) in calls {
                now_us += pause;
                let reading = guard.take(sample(now_us, there + back, shows(now_us + there, 0)));
                prop_assert_eq!(reading, Reading::Runs);
                now_us += there + back;
            }
            let step_us = if back { -step_us } else { step_us };
            let reading = guard.take(sample(now_us, 1_000, shows(now_us + 500, step_us)));
            let seen = matches!(reading, Reading::Stepped { by_us } if (by_us > 0) == (step_us > 0));
            prop_assert!(seen, "{step_us}: {reading:?}");
        }
    }
}
