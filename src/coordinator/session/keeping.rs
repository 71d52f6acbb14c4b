//! The leases of a session: kept for as long as [`Tenure`] says, and told of when it says so.

use std::time::Duration;

use tokio::time::Instant;

use crate::coordinator::attempt::AcquireFailure;
use crate::coordinator::question::Lease;
use crate::engine::lease::Ttl;
use crate::engine::tenure::{Due, Hindrance, Moment, Tenure};
use crate::engine::validity::Validity;
use crate::metrics::LossReason;
use crate::node::link::STALL_GRACE;

use super::desk::{Kept, Note};
use super::{Failure, LeaseNumber, Phase, Seq, Session};

impl Session {
    pub(super) fn tenure(&self, ttl: Ttl, started: Instant, max_hold: Option<Duration>) -> Tenure {
        Tenure::new(ttl, self.coordinator.sessions.since_epoch(started), max_hold, self.coordinator.settings.drift)
    }

    /// From now on this session looks after a lease.
    pub(super) fn keep(&mut self, lease: LeaseNumber, kept: Box<Kept>) {
        self.desk.state().leases.insert(lease, kept);
        self.coordinator.metrics.session_leases(1);
        self.schedule(lease);
    }

    /// The opposite.
    pub(super) fn let_go(&mut self, lease: LeaseNumber) -> Option<Box<Kept>> {
        let kept = self.desk.state().leases.remove(&lease)?;
        self.coordinator.metrics.session_leases(-1);
        if let Some(at) = kept.looks {
            self.due.remove(&(at, lease));
        }
        Some(kept)
    }

    pub(super) fn schedule(&mut self, lease: LeaseNumber) {
        let state = &mut *self.desk.state();
        let Some(kept) = state.leases.get_mut(&lease) else { return };
        let next = Moment::at(kept.tenure.next());
        if let Some(before) = kept.looks.replace(next).filter(|before| *before != next) {
            self.due.remove(&(before, lease));
        }
        self.due.insert((next, lease));
    }

    /// When something may be due next for a lease.
    pub(super) fn first_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| self.coordinator.sessions.instant(at.since_beginning()))
    }

    /// When its client was last heard of.
    pub(super) fn heard(&self) -> Instant {
        match self.phase {
            _ if mutant!("silent-client-is-renewed") => self.coordinator.now(),
            Phase::Away(until) => until.min(self.coordinator.now()),
            _ => self.desk.state().acked.1,
        }
    }

    /// Does what is due. If that is late, this proxy was stopped: answers may be there that nobody has read yet.
    pub(super) fn look_after_leases(&mut self) {
        let now = self.coordinator.now();
        let is_late = self.first_due().is_some_and(|at| now > at + STALL_GRACE);
        let until = *self.stalled.get_or_insert(now + STALL_GRACE);
        if is_late && now < until {
            return;
        }
        self.stalled = None;
        let due = Moment::at(self.coordinator.sessions.since_epoch(now));
        while let Some((at, lease)) = self.due.first().copied()
            && at <= due
        {
            self.due.pop_first();
            self.look_after(lease, now);
            self.schedule(lease);
        }
    }

    pub(super) fn look_after(&mut self, lease: LeaseNumber, now: Instant) {
        let sessions = &self.coordinator.sessions;
        let (since_epoch, heard) = (sessions.since_epoch(now), sessions.since_epoch(self.heard()));
        loop {
            let due = {
                let state = &mut *self.desk.state();
                let Some(kept) = state.leases.get_mut(&lease) else { return };
                let due = kept.tenure.due(since_epoch, heard);
                if kept.grant.is_some() && matches!(due, Some(Due::Renew(_))) {
                    // Its client does not know of it yet.
                    kept.tenure.not_renewed(since_epoch, Hindrance::NoKeepAlive);
                    continue;
                }
                due
            };
            match due {
                None => return,
                Some(Due::Renew(ttl)) => self.post_renewal(lease, None, ttl),
                Some(Due::AtRisk(hindrance)) => self.desk.tell(Note::AtRisk(lease, self.words(hindrance))),
                Some(Due::Lost(hindrance)) => return self.lose(lease, hindrance),
            }
        }
    }

    pub(super) fn lose(&mut self, lease: LeaseNumber, hindrance: Hindrance) {
        let Some(kept) = self.let_go(lease) else { return };
        let reason = match hindrance {
            Hindrance::NotHeld => LossReason::NotHeldByQuorum,
            Hindrance::NoQuorum => LossReason::NoQuorum,
            Hindrance::NoKeepAlive => LossReason::NoKeepAlive,
            Hindrance::MaxHold => LossReason::MaxHold,
        };
        self.coordinator.metrics.lease_lost(reason);
        let (started, lasts) = (self.coordinator.sessions.instant(kept.tenure.started()), kept.tenure.lasts());
        if kept.grant.is_some() {
            // Its client has not been told of it: dropped, it is released.
            let elapsed = self.coordinator.now() - started;
            return self.fail(lease, Failure::Acquire(AcquireFailure::TooLate { elapsed, ttl: lasts }));
        }
        // If our clock stood still since, nobody knows how much is left.
        let left_ms = if kept.sleeps == self.coordinator.sleeps() { lasts.as_millis() } else { 0 };
        self.tell_lost(lease, kept.heard, started, left_ms, hindrance);
    }

    pub(super) fn tell_not_held(&self, lease: LeaseNumber, left: &Lease) {
        let left_ms = left.validity.map_or(0, Validity::as_millis);
        let newest = self.desk.state().acked;
        self.tell_lost(lease, newest, self.coordinator.now(), left_ms, Hindrance::NotHeld);
    }

    pub(super) fn tell_lost(
        &self,
        lease: LeaseNumber,
        heard: (Seq, Instant),
        started: Instant,
        left_ms: u64,
        reason: Hindrance,
    ) {
        self.desk.tell(Note::Lost { lease, heard, started, left_ms, reason, detail: self.words(reason) });
    }

    /// For people.
    pub(super) fn words(&self, hindrance: Hindrance) -> String {
        let mut words = match hindrance {
            Hindrance::NotHeld => {
                "a quorum of the nodes does not hold it (any more): it has ended, or it was released, deleted or adopted elsewhere"
            }
            Hindrance::NoQuorum => "too few nodes answer, or answer in time, for it to be renewed",
            Hindrance::NoKeepAlive => "nothing was heard of its client, which is to send something every sixth of the TTL",
            Hindrance::MaxHold => "it has been held for as long as was asked for (max_hold)",
        }
        .to_owned();
        if let (Hindrance::NoQuorum, Some(trouble)) = (hindrance, &self.trouble) {
            words.extend(trouble.nodes.iter().map(|word| format!("\n  {}: {}", word.node, word.said)));
        }
        words
    }

    /// Nobody waits for answers any more; what was granted and not told of is released.
    pub(super) fn give_up(&mut self) {
        self.acquires.clear();
        let unread = {
            let state = &mut *self.desk.state();
            state.notes.clear();
            let untold = |kept: &Kept| kept.grant.is_some();
            state.leases.iter().filter(|(_, kept)| untold(kept)).map(|(lease, _)| *lease).collect::<Vec<_>>()
        };
        unread.into_iter().for_each(|lease| drop(self.let_go(lease)));
    }

    pub(super) fn forget_leases(&mut self) {
        self.due.clear();
        let leases = std::mem::take(&mut self.desk.state().leases);
        self.coordinator.metrics.session_leases(-(leases.len() as i64));
    }

    pub(super) fn release_all(&mut self) {
        self.due.clear();
        let leases = std::mem::take(&mut self.desk.state().leases);
        self.coordinator.metrics.session_leases(-(leases.len() as i64));
        leases.into_iter().for_each(|(lease, kept)| self.post_release(lease, kept, None));
    }
}
