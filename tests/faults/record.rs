//! The history of a run as its clients saw it, in true time: they share one machine and its monotonic clock. And the resource
//! that the locks protect, because what arrives there is part of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::oracle::history::{At, Call, Fault, Held, History, Intrusion, Lease, LeaseId, Promise, Write};

/// Shared by all that take part.
#[derive(Clone)]
pub struct Record {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
}

pub struct Inner {
    pub history: History,
    /// The highest token that was written with, per name.
    register: BTreeMap<String, u64>,
    /// What else happened, for the figures.
    pub counts: BTreeMap<String, usize>,
    /// Faults that are over, by kind.
    pub faults: BTreeMap<String, usize>,
}

impl Record {
    pub fn new() -> Self {
        let (register, counts, faults) = Default::default();
        let inner = Inner { history: History::verbose(), register, counts, faults };
        Self { began: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }

    pub fn at(&self, instant: Instant) -> At {
        instant - self.began
    }

    pub fn now(&self) -> At {
        self.began.elapsed()
    }

    pub fn look(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn note(&self, what: fmt::Arguments<'_>) {
        self.look().history.note(self.now(), what);
    }

    pub fn count(&self, what: &str) {
        *self.look().counts.entry(what.to_owned()).or_default() += 1;
    }

    pub fn count_fault(&self, kind: &str) {
        *self.look().faults.entry(kind.to_owned()).or_default() += 1;
    }

    pub fn loss(&self, how: &'static str) {
        *self.look().history.losses.entry(how).or_default() += 1;
    }

    pub fn call(&self, call: Call) {
        self.look().history.calls.push(call);
    }

    pub fn lease(&self, lease: Lease) -> LeaseId {
        let mut inner = self.look();
        let id = inner.history.leases.len();
        inner.history.note(self.now(), format_args!("lease {id}: {lease:?}"));
        inner.history.leases.push(lease);
        id
    }

    /// The lease ends for its client at another instant than was thought.
    pub fn until(&self, lease: LeaseId, instant: Instant, why: &str) {
        let until = self.at(instant);
        let mut inner = self.look();
        inner.history.note(self.now(), format_args!("lease {lease}: until {until:?}, {why}"));
        if let Some(Held { until: held, .. }) = &mut inner.history.leases[lease].held {
            *held = until;
        }
    }

    /// The resource: takes a token that is not below the highest that it has seen.
    pub fn write(&self, lease: LeaseId, name: &str, token: u64) -> bool {
        let mut inner = self.look();
        let at = self.now();
        let highest = inner.register.entry(name.to_owned()).or_default();
        let accepted = token >= *highest;
        *highest = token.max(*highest);
        inner.history.note(at, format_args!("lease {lease}: write, accepted: {accepted}"));
        inner.history.writes.push(Write { at, name: name.to_owned(), lease, token, accepted });
        accepted
    }

    /// A client relies on a lease, and a quorum said that it keeps it until then.
    pub fn promise(&self, lease: LeaseId, until: Instant, kept_until: Instant) {
        let (until, kept_until) = (self.at(until), self.at(kept_until));
        self.look().history.promises.push(Promise { lease, until, kept_until });
    }

    pub fn intrusion(&self, lease: LeaseId, what: &str, worked: bool) {
        let at = self.now();
        self.note(format_args!("lease {lease}: {what} by a dead lock id, worked: {worked}"));
        self.look().history.intrusions.push(Intrusion { at, lease, what: what.to_owned(), worked });
    }

    pub fn fault(&self, fault: Fault) {
        self.note(format_args!("{}: {} since {:?} is over", fault.to, fault.what, fault.from));
        self.look().history.faults.push(fault);
    }
}
