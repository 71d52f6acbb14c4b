//! When messages were sent: from there the validity that a proxy tells is counted.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The most instants that are kept, of messages that may be named as long ago as the longest wait.
const MAX_KEPT: usize = 4_096;

/// The instants of the messages from which a proxy may count, read before each was sent. A renewal counts from one that came
/// before it began, so that it may be older than what another answer named before.
#[derive(Debug, Default)]
pub(super) struct Sends {
    kept: VecDeque<(u64, Instant)>,
    last: u64,
}

impl Sends {
    /// Message `seq` is about to be sent.
    pub(super) fn on_send(&mut self, seq: u64, now: Instant) {
        if self.kept.len() >= MAX_KEPT {
            self.thin();
        }
        self.kept.push_back((seq, now));
        self.last = seq;
    }

    /// Forgets every second one: of one that is forgotten, the one before it stands in, which is earlier.
    fn thin(&mut self) {
        let mut keep = false;
        self.kept.retain(|_| {
            keep = !keep;
            keep
        });
    }

    /// The instant from which validity counts in an answer that was written `since_ack` after the proxy received message
    /// `acked`, never later than `now`. `None`: it names a message that was never sent.
    pub(super) fn base(&self, acked: u64, since_ack: Duration, now: Instant) -> Option<Instant> {
        if acked > self.last {
            return None;
        }
        let not_later = self.kept.partition_point(|(seq, _)| *seq <= acked);
        let (_, sent) = *self.kept.get(not_later.checked_sub(1)?)?;
        Some(sent.checked_add(since_ack).map_or(now, |base| base.min(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn validity_counts_from_the_message_that_was_received() {
        let (mut sends, start) = (Sends::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        sends.on_send(3, at(0));
        sends.on_send(7, at(100));
        assert_eq!(sends.base(3, Duration::from_millis(20), at(150)), Some(at(20)));
        assert_eq!(sends.base(7, Duration::ZERO, at(150)), Some(at(100)));
        assert_eq!(sends.base(7, Duration::from_millis(30), at(150)), Some(at(130)));
        assert_eq!(sends.base(7, Duration::from_secs(9), at(150)), Some(at(150)), "not later than now");
        assert_eq!(sends.base(8, Duration::ZERO, at(150)), None, "never sent");
        assert_eq!(sends.base(3, Duration::ZERO, at(150)), Some(at(0)), "older than one before");
        assert_eq!(sends.base(5, Duration::ZERO, at(150)), Some(at(0)), "the one before it stands in");
        assert_eq!(sends.base(0, Duration::ZERO, at(150)), None, "none received");
    }

    proptest! {
        /// Whatever is forgotten, the instant is never later than that of the message itself, and memory is bounded.
        #[test]
        fn the_base_is_never_later_than_the_sending(
            steps in proptest::collection::vec((1_u64..5, 0_u64..50, prop::option::weighted(0.01, 0_u64..9_000)), 1..6_000)
        ) {
            let (mut sends, start) = (Sends::default(), Instant::now());
            let (mut all, mut seq, mut now) = (Vec::new(), 0, start);
            for (step, wait, back) in steps {
                seq += step;
                now += Duration::from_millis(wait);
                sends.on_send(seq, now);
                all.push((seq, now));
                prop_assert!(sends.kept.len() <= MAX_KEPT);
                let Some(back) = back else { continue };
                let acked = seq.saturating_sub(back);
                let Some((_, sent)) = all.iter().rev().find(|(seq, _)| *seq <= acked) else { continue };
                let base = sends.base(acked, Duration::ZERO, now);
                prop_assert!(base.is_some_and(|base| base <= *sent));
            }
        }
    }
}
