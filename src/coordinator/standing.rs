//! Standing in line: what somebody does who waits for a lock, until it has it or waits no longer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::engine::backoff::Backoff;
use crate::engine::validity;
use crate::metrics::WakeCause;

use super::Coordinator;
use super::attempt::{self, AcquireFailure, AcquireSpec, Ballot, Grant, Manner, Tried};
use super::waiting::{InLine, LineView, Tidings};

/// Between the tries of whoever does not hear of releases at other proxies, and after failures that nobody tells the end of.
pub(super) const RETRY: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(250));

/// Between the tries of whoever does hear of them: for messages that are lost.
const FALLBACK: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(2));

/// What the head of a line waits for others to have their turn.
const YIELD: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(20));

/// After one node has told of a release, the others follow. Not the same for all proxies, which have all been told.
const SETTLE: Backoff = Backoff::new(Duration::from_millis(3), Duration::from_millis(3));

/// So often in a row one node is asked before the others. A key that was left behind on it is no veto.
const ONE_FIRST_IN_A_ROW: u32 = 2;

/// Waits for the lock; `None`: nobody awaits the answer any more.
pub(super) async fn wait(
    coordinator: &Arc<Coordinator>,
    spec: &AcquireSpec,
    answer: &mut oneshot::Sender<Result<Grant, AcquireFailure>>,
) -> Option<Result<Grant, AcquireFailure>> {
    let line = match InLine::join(coordinator, spec) {
        Ok(line) => line,
        Err(full) => return Some(Err(AcquireFailure::LineFull(full))),
    };
    coordinator.metrics.wait_begins();
    let mut outcome = stand_in_line(coordinator, spec, &line, answer).await;
    if let Some(Err(AcquireFailure::Contended { line: view, .. })) = &mut outcome {
        *view = line.view();
    }
    coordinator.metrics.wait_ends(coordinator.env.now() - spec.received);
    outcome
}

/// Waits for its turn, and then tries whenever the lock may be free.
async fn stand_in_line(
    coordinator: &Arc<Coordinator>,
    spec: &AcquireSpec,
    line: &InLine,
    answer: &mut oneshot::Sender<Result<Grant, AcquireFailure>>,
) -> Option<Result<Grant, AcquireFailure>> {
    let useful = validity::longest_wait(spec.ttl, spec.min_validity_ms, coordinator.settings.drift);
    let mut patience = Patience::until(spec.received + spec.wait.min(useful));
    loop {
        let until = match turn(coordinator, spec, line, &mut patience) {
            Turn::Wait(until) => until,
            Turn::Over(failure) => return Some(Err(failure)),
            Turn::Try(ballot) => {
                let inherits = ballot.inherits();
                let failure = match attempt::finish(coordinator, spec, ballot, answer).await {
                    Tried::Granted(grant) => {
                        line.granted(&grant);
                        return Some(Ok(grant));
                    }
                    Tried::Abandoned => return None,
                    Tried::Failed(failure) => failure,
                };
                line.failed(&failure);
                // What was known before says nothing of how long to wait now.
                if inherits {
                    patience.failures = 0;
                }
                if matches!(failure, AcquireFailure::Deadline | AcquireFailure::Draining) || patience.is_over(coordinator) {
                    return Some(Err(failure));
                }
                patience.after(&failure, coordinator, spec);
                // Something may have happened meanwhile.
                continue;
            }
        };
        let deadline = spec.deadline.filter(|at| until.is_none_or(|until| *at <= until));
        tokio::select! {
            biased;
            () = answer.closed() => return None,
            () = coordinator.draining.cancelled() => return Some(Err(AcquireFailure::Draining)),
            () = coordinator.deadline(deadline) => return Some(Err(AcquireFailure::Deadline)),
            () = line.woken() => {}
            () = coordinator.deadline(until) => {}
        }
    }
}

/// How long somebody in line waits, and for what.
struct Patience {
    wait_ends: Instant,
    /// In a row.
    failures: u32,
    /// In a row, at one node.
    one_first: u32,
    /// Known once it is the head.
    next_try: Option<Instant>,
    /// What made it look, if not the time.
    cause: Option<WakeCause>,
    /// After a failure that no release can mend, nothing makes it try sooner: heads that had a quorum each, and no token, would
    /// wake each other for ever.
    not_before: Option<Instant>,
}

impl Patience {
    fn until(wait_ends: Instant) -> Self {
        Self { wait_ends, failures: 0, one_first: 0, next_try: None, cause: None, not_before: None }
    }

    fn is_over(&self, coordinator: &Coordinator) -> bool {
        coordinator.env.now() >= self.wait_ends
    }

    /// The lock could not be had.
    fn after(&mut self, failure: &AcquireFailure, coordinator: &Coordinator, spec: &AcquireSpec) {
        self.failures += 1;
        let failures = if self.one_first == 0 { self.failures } else { self.one_first };
        self.not_before = None;
        self.look_in(pause(failure, failures, coordinator.hears(&spec.name), coordinator.env.random()), coordinator);
        if !matches!(failure, AcquireFailure::Contended { .. }) {
            self.not_before = self.next_try;
        }
    }

    fn look_in(&mut self, delay: Duration, coordinator: &Coordinator) {
        let at = (coordinator.env.now() + delay).min(self.wait_ends);
        self.next_try = Some(self.not_before.map_or(at, |not_before| not_before.max(at)));
    }

    /// No later than that.
    fn look_within(&mut self, delay: Duration, coordinator: &Coordinator) {
        let before = self.next_try;
        self.look_in(delay, coordinator);
        self.next_try = self.next_try.min(before.or(self.next_try));
    }

    /// Once it is known that others want the lock too, one node is asked before the others (protocol section 3).
    fn manner(&mut self) -> Manner {
        self.one_first = if self.failures == 0 { 0 } else { (self.one_first + 1) % (ONE_FIRST_IN_A_ROW + 1) };
        if self.one_first == 0 { Manner::AllAtOnce } else { Manner::OneFirst }
    }
}

/// How long to pause before the next try: not longer than the holder's keys live. `hears`: the release will be told.
fn pause(failure: &AcquireFailure, failures: u32, hears: bool, random: u64) -> Duration {
    match failure {
        AcquireFailure::Contended { retry_after, settled, .. } => {
            // What one node holds says little of the others, and where the votes were split nobody releases anything.
            let delay = if *settled && hears { FALLBACK } else { RETRY }.delay(failures, random);
            delay.min(*retry_after + Duration::from_millis(1))
        }
        _ => RETRY.delay(failures, random),
    }
}

/// What somebody in line does next.
enum Turn {
    /// Wait for a call, or until then.
    Wait(Option<Instant>),
    /// Await the votes of a ballot.
    Try(Arc<Ballot>),
    /// Wait no longer.
    Over(AcquireFailure),
}

fn turn(coordinator: &Arc<Coordinator>, spec: &AcquireSpec, line: &InLine, patience: &mut Patience) -> Turn {
    if let Some(ballot) = line.take_handed() {
        return Turn::Try(ballot);
    }
    if line.place() > 0 && !mutant!("everybody-in-line-tries") {
        // Those before it have not got it either.
        let over = patience.is_over(coordinator);
        return if over { Turn::Over(unasked(coordinator, line)) } else { Turn::Wait(Some(patience.wait_ends)) };
    }
    let random = || coordinator.env.random();
    let (cause, manner) = match line.take_tidings() {
        // What it sends comes behind the release, on every node.
        Tidings::Released => {
            patience.look_in(Duration::ZERO, coordinator);
            (Some(WakeCause::Released), Some(Manner::AllAtOnce))
        }
        Tidings::Yield => {
            patience.failures = 0;
            patience.look_in(YIELD.delay(1, random()), coordinator);
            (None, None)
        }
        Tidings::Told { at_the_first, after_others } => {
            let at_once = at_the_first && !after_others;
            let delay = if at_once { Duration::ZERO } else { SETTLE.delay(1, random()) };
            patience.failures = patience.failures.max(1);
            patience.look_within(delay, coordinator);
            (Some(WakeCause::Told), None)
        }
        // What has not been refused yet has missed nothing.
        Tidings::Listening if patience.failures > 0 => {
            patience.look_within(Duration::ZERO, coordinator);
            (Some(WakeCause::Listening), None)
        }
        Tidings::Listening | Tidings::None => {
            learn(coordinator, spec, line, patience);
            (None, None)
        }
    };
    let now = coordinator.env.now();
    // Kept until it looks: a pause may come first.
    patience.cause = cause.or(patience.cause);
    if patience.next_try.is_some_and(|at| at > now) {
        return Turn::Wait(patience.next_try);
    }
    if !line.tries() && !mutant!("everybody-in-line-tries") {
        // The lock is being handed over to it.
        return Turn::Wait(None);
    }
    let cause = patience.cause.take();
    if patience.next_try.is_some() {
        coordinator.metrics.woken(cause.unwrap_or(WakeCause::Timer));
    }
    let manner = manner.unwrap_or_else(|| patience.manner());
    Turn::Try(attempt::open(coordinator, spec, manner))
}

/// A new head knows what the one before it knew.
fn learn(coordinator: &Coordinator, spec: &AcquireSpec, line: &InLine, patience: &mut Patience) {
    if patience.next_try.is_none()
        && !patience.is_over(coordinator)
        && let Some(news) = line.news()
    {
        patience.after(&news.aged(coordinator.env.now()), coordinator, spec);
    }
}

/// What somebody is told who has not asked the nodes: what the head of the line knows.
fn unasked(coordinator: &Coordinator, line: &InLine) -> AcquireFailure {
    match line.news() {
        Some(news) => news.aged(coordinator.env.now()),
        None => {
            let retry_after = RETRY.delay(1, coordinator.env.random());
            AcquireFailure::Contended { owner: None, retry_after, settled: false, line: LineView::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contended(settled: bool, retry_after: Duration) -> AcquireFailure {
        AcquireFailure::Contended { owner: None, retry_after, settled, line: LineView::default() }
    }

    #[test]
    fn only_whoever_knows_the_holder_and_will_be_told_can_wait_for_long() {
        let (long, ms) = (Duration::from_secs(60), Duration::from_millis);
        for random in [0, u64::MAX / 2, u64::MAX] {
            assert!(pause(&contended(true, long), 1, true, random) >= ms(250));
            assert!(pause(&contended(true, long), 9, true, random) <= Duration::from_secs(2));
            // The votes were split, or one node was asked: nobody may tell of anything.
            assert!(pause(&contended(false, long), 1, true, random) <= ms(10));
            assert!(pause(&contended(true, long), 1, false, random) <= ms(10));
            assert_eq!(pause(&contended(true, ms(3)), 9, true, random), ms(4), "the lease ends");
            assert!(pause(&AcquireFailure::Draining, 9, true, random) <= ms(250));
        }
    }
}
