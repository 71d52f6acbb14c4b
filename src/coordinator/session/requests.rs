//! What a session's client asks for: each message becomes a future of the session's own task, and its end an answer.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::coordinator::attempt::{self, AcquireFailure, AcquireSpec};
use crate::coordinator::lock_id::LockId;
use crate::coordinator::question::{Lease, Released};
use crate::coordinator::{Admission, NoQuorum};
use crate::engine::lease::Ttl;
use crate::engine::tenure::Hindrance;
use crate::metrics::{Outcome, Rpc};

use super::desk::{Kept, Note};
use super::{Adopted, Asked, Done, Failure, LeaseNumber, MAX_LEASES, Phase, Renewal, Seq, Session, UNANSWERED, What};

impl Session {
    pub(super) fn has_lease_to_spare(&self) -> bool {
        self.desk.state().leases.len() + self.acquires.len() < MAX_LEASES
    }

    /// Whether no lease can be asked for now; says why.
    pub(super) fn can_not_begin(&self, seq: Seq) -> bool {
        let why = if self.coordinator.draining.is_cancelled() {
            Failure::Acquire(AcquireFailure::Draining)
        } else if !self.has_lease_to_spare() {
            Failure::TooManyLeases
        } else if self.unanswered >= UNANSWERED {
            Failure::TooManyUnanswered
        } else {
            return false;
        };
        self.fail(seq, why);
        true
    }

    /// A place for a request, or the answer that there is none.
    pub(super) fn admit(&self, asked: Asked, waits: bool) -> Option<Admission> {
        let admission = self.coordinator.admit(waits);
        if admission.is_none() {
            self.fail(asked.seq, Failure::Overloaded { cap: self.coordinator.max_inflight() });
        }
        admission
    }

    pub(super) fn acquire(&mut self, Asked { seq, received }: Asked, spec: AcquireSpec, max_hold: Option<Duration>) {
        let spec = AcquireSpec { ttl: no_longer_than(spec.ttl, max_hold), ..spec };
        if self.can_not_begin(seq) {
            return;
        }
        let Some(admission) = self.admit(Asked { seq, received }, !spec.wait.is_zero()) else { return };
        let (answer, answered) = oneshot::channel();
        self.acquires.insert(seq, answered);
        self.unanswered += 1;
        let (coordinator, ttl) = (self.coordinator.clone(), spec.ttl);
        self.work.push(Box::pin(async move {
            attempt::run(coordinator, spec, answer).await;
            drop(admission);
            Done::Acquired { seq, received, ttl, max_hold }
        }));
    }

    pub(super) fn adopt(&mut self, asked: Asked, id: LockId, ttl: Ttl, attempt: u32, max_hold: Option<Duration>) {
        let ttl = no_longer_than(ttl, max_hold);
        if self.can_not_begin(asked.seq) {
            return;
        }
        let Some(admission) = self.admit(asked, false) else { return };
        self.unanswered += 1;
        let (coordinator, started, sleeps) = (self.coordinator.clone(), self.coordinator.now(), self.coordinator.sleeps());
        self.work.push(Box::pin(async move {
            let adoption = coordinator.adoption(id, ttl, attempt);
            let answer = coordinator.adopt(&adoption, asked.received).await;
            drop(admission);
            Done::Adopted(Adopted { asked, started, id: adoption.new, ttl, max_hold, sleeps }, answer)
        }));
    }

    /// Never refused: it makes room.
    pub(super) fn release(&mut self, lease: LeaseNumber, asked: Asked) {
        match self.let_go(lease) {
            Some(kept) => self.post_release(lease, kept, Some(asked)),
            None => self.fail(asked.seq, Failure::NoSuchLease(lease)),
        }
    }

    pub(super) fn post_release(&mut self, lease: LeaseNumber, kept: Box<Kept>, asked: Option<Asked>) {
        if kept.grant.is_some() {
            // Nobody has been told of it: dropped, it is given up.
            return self.tell(What::Released(lease, Released::Released));
        }
        self.unanswered += usize::from(asked.is_some());
        let coordinator = self.coordinator.clone();
        self.work.push(Box::pin(async move {
            let answer = coordinator.release(&kept.id).await;
            Done::Released { lease, asked, answer }
        }));
    }

    pub(super) fn renew_now(&mut self, lease: LeaseNumber, asked: Asked, ttl: Option<Ttl>) {
        if self.unanswered >= UNANSWERED {
            return self.fail(asked.seq, Failure::TooManyUnanswered);
        }
        let sessions = &self.coordinator.sessions;
        let (now, heard) = (sessions.since_epoch(self.coordinator.now()), sessions.since_epoch(asked.received));
        let longest = self.desk.state().leases.get_mut(&lease).map(|kept| kept.tenure.asked(ttl, now, heard));
        match longest {
            None => self.fail(asked.seq, Failure::NoSuchLease(lease)),
            Some(Err(hindrance)) => self.fail(asked.seq, Failure::Hindered(hindrance)),
            Some(Ok(ttl)) => {
                self.unanswered += 1;
                self.post_renewal(lease, Some(asked), ttl);
            }
        }
    }

    pub(super) fn post_renewal(&mut self, lease: LeaseNumber, asked: Option<Asked>, ttl: Ttl) {
        let Some(id) = self.desk.state().leases.get(&lease).map(|kept| kept.id.clone()) else { return };
        let (coordinator, started, sleeps) = (self.coordinator.clone(), self.coordinator.now(), self.coordinator.sleeps());
        let heard = self.desk.state().acked;
        self.work.push(Box::pin(async move {
            let answer = coordinator.renew(&id, ttl, heard.1).await;
            Done::Renewed(Renewal { lease, asked, heard, started, ttl, sleeps }, answer)
        }));
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Acquired { seq, received, ttl, max_hold } => self.on_acquired(seq, received, ttl, max_hold),
            Done::Adopted(adopted, answer) => self.on_adopted(adopted, answer),
            Done::Renewed(renewal, answer) => {
                let asked = renewal.asked;
                let outcome = self.on_renewed(renewal, answer);
                if let Some(asked) = asked {
                    self.unanswered -= 1;
                    self.count(Rpc::Renew, outcome, asked.received);
                }
            }
            Done::Released { lease, asked, answer } => {
                let outcome = match &answer {
                    Ok(Released::Released) => Outcome::Released,
                    Ok(Released::NotHeld) => Outcome::NotHeld,
                    Err(_) => Outcome::Unavailable,
                };
                match answer {
                    Ok(released) => self.tell(What::Released(lease, released)),
                    Err(no_quorum) => self.fail(asked.map_or(lease, |asked| asked.seq), Failure::NoQuorum(no_quorum)),
                }
                if let Some(asked) = asked {
                    self.unanswered -= 1;
                    self.count(Rpc::Release, outcome, asked.received);
                }
            }
            Done::Resigned { session_id, seq, estate } => self.on_resigned(session_id, seq, estate),
        }
    }

    pub(super) fn on_adopted(&mut self, adopted: Adopted, answer: Result<Lease, NoQuorum>) {
        let Adopted { asked: Asked { seq, received }, started, id, ttl, max_hold, sleeps } = adopted;
        self.unanswered -= 1;
        let outcome = match answer {
            Ok(lease) if lease.held => {
                let (tenure, heard) = (self.tenure(ttl, started, max_hold), (seq, received));
                let kept = Kept { id, no_token: None, tenure, heard, sleeps, grant: None, is_queued: false, looks: None };
                let kept = Box::new(kept);
                match self.phase {
                    // Its client closed the session meanwhile, or is gone.
                    Phase::Ending(_) if self.releases => self.post_release(seq, kept, None),
                    Phase::Ending(_) => {}
                    Phase::Open | Phase::Away(_) => {
                        self.keep(seq, kept);
                        self.desk.tell(Note::Granted(seq));
                    }
                }
                Outcome::Granted
            }
            Ok(left) => {
                self.tell_not_held(seq, &left);
                Outcome::Lost
            }
            Err(no_quorum) => {
                self.fail(seq, Failure::NoQuorum(no_quorum));
                Outcome::Unavailable
            }
        };
        self.count(Rpc::Adopt, outcome, received);
    }

    pub(super) fn on_acquired(&mut self, seq: Seq, received: Instant, ttl: Ttl, max_hold: Option<Duration>) {
        self.unanswered -= 1;
        // Else it was given up.
        let answer = self.acquires.remove(&seq).map(|mut answered| answered.try_recv());
        let outcome = match answer {
            Some(Ok(Ok(grant))) => {
                let tenure = self.tenure(ttl, grant.started(), max_hold);
                let (id, sleeps, heard) = (grant.lock_id(), self.coordinator.sleeps(), (seq, received));
                let no_token = grant.token.as_ref().err().cloned().map(Box::new);
                let grant = Some(Box::new(grant));
                self.keep(seq, Box::new(Kept { id, no_token, tenure, heard, sleeps, grant, is_queued: false, looks: None }));
                self.desk.tell(Note::Granted(seq));
                Outcome::Granted
            }
            Some(Ok(Err(AcquireFailure::Contended { owner, retry_after, line, .. }))) => {
                self.tell(What::Contended { acquire: seq, owner, retry_after, line });
                Outcome::Contended
            }
            Some(Ok(Err(failure))) => {
                let outcome = outcome_of(&failure);
                self.fail(seq, Failure::Acquire(failure));
                outcome
            }
            Some(Err(_)) => {
                self.fail(seq, Failure::Acquire(AcquireFailure::Draining));
                Outcome::Unavailable
            }
            None => Outcome::Cancelled,
        };
        self.count(Rpc::Acquire, outcome, received);
    }

    pub(super) fn on_renewed(&mut self, renewal: Renewal, answer: Result<Lease, NoQuorum>) -> Outcome {
        let Renewal { lease, asked, heard, started, ttl, sleeps } = renewal;
        let sessions = &self.coordinator.sessions;
        let (since_epoch, now) = (sessions.since_epoch(started), sessions.since_epoch(self.coordinator.now()));
        let kept = |work: &dyn Fn(&mut Kept)| self.desk.state().leases.get_mut(&lease).map(|kept| work(kept)).is_some();
        match answer {
            _ if mutant!("failed-renewal-counts") && answer.is_err() => {
                kept(&|kept| kept.tenure.renewed(since_epoch, ttl));
                self.schedule(lease);
                Outcome::Renewed
            }
            Ok(renewed) if renewed.held => {
                let is_kept = kept(&|kept| {
                    kept.tenure.renewed(since_epoch, ttl);
                    (kept.heard, kept.sleeps) = (heard, sleeps);
                });
                if is_kept {
                    self.desk.tell_renewed(lease);
                }
                self.schedule(lease);
                Outcome::Renewed
            }
            Ok(left) if mutant!("lost-lease-is-still-told") => {
                self.tell_not_held(lease, &left);
                Outcome::Lost
            }
            Ok(left) => {
                if self.let_go(lease).is_some() {
                    self.tell_not_held(lease, &left);
                }
                Outcome::Lost
            }
            Err(no_quorum) => {
                kept(&|kept| kept.tenure.not_renewed(now, Hindrance::NoQuorum));
                self.schedule(lease);
                match asked {
                    Some(asked) => self.fail(asked.seq, Failure::NoQuorum(no_quorum)),
                    None => self.trouble = Some(no_quorum),
                }
                Outcome::Unavailable
            }
        }
    }

    pub(super) fn count(&self, rpc: Rpc, outcome: Outcome, received: Instant) {
        self.coordinator.metrics.request(rpc, outcome, self.coordinator.now() - received);
    }
}

fn no_longer_than(ttl: Ttl, max_hold: Option<Duration>) -> Ttl {
    if mutant!("grant-outlasts-max-hold") {
        return ttl;
    }
    let ms = max_hold.map_or(u64::MAX, |hold| u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
    Ttl::from_millis(ms, ttl).unwrap_or(ttl)
}

fn outcome_of(failure: &AcquireFailure) -> Outcome {
    match failure {
        AcquireFailure::Contended { .. } => Outcome::Contended,
        AcquireFailure::LineFull(_) => Outcome::ResourceExhausted,
        AcquireFailure::Deadline => Outcome::DeadlineExceeded,
        AcquireFailure::NoQuorum(_)
        | AcquireFailure::NoToken(_)
        | AcquireFailure::TooLate { .. }
        | AcquireFailure::Draining => Outcome::Unavailable,
    }
}
