//! Whoever waits for a lock stands in line, and only the head of a line asks the nodes: a thousand waiters cost as much as
//! one. A lock that is released through this proxy is handed over to the head; else the head tries again when the holder's
//! keys end, and now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::lease::LockName;
use crate::engine::line::{Full, HowWon, LineBounds, Lines, Next, Ticket};

use super::Coordinator;
use super::attempt::{AcquireFailure, AcquireSpec, Ballot, Grant};

/// So many turns in a row, and waiters at other proxies get theirs.
const TURNS_IN_A_ROW: u32 = 16;

/// Those who wait for a lock at this proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineView {
    /// How many are in line before whoever asks.
    pub before: usize,
    /// How long it may have to wait, judged by the last turns; `None` if nobody in the line has had one.
    pub expected: Option<Duration>,
}

/// What the head of a line has learnt of the lock.
#[derive(Clone, Debug)]
pub(super) struct News {
    /// What whoever asks now would be told.
    pub failure: AcquireFailure,
    /// When.
    pub at: Instant,
}

impl News {
    /// The same at a later time.
    pub fn aged(mut self, now: Instant) -> AcquireFailure {
        if let AcquireFailure::Contended { retry_after, .. } = &mut self.failure {
            *retry_after = retry_after.saturating_sub(now - self.at);
        }
        self.failure
    }
}

/// Somebody in a line, as others reach it.
pub(super) struct Waiter {
    /// What it wants.
    pub spec: AcquireSpec,
    woken: Notify,
    call: Mutex<Call>,
}

/// What a waiter was woken for.
#[derive(Default)]
pub(super) enum Call {
    /// Nothing, or because it is the head now.
    #[default]
    None,
    /// The lock was released: it may be free.
    Released,
    /// The same, but others go first.
    Yield,
    /// The lock is being handed over to it.
    Handed(Arc<Ballot>),
    /// It has left.
    Gone,
}

impl Waiter {
    fn call(&self) -> MutexGuard<'_, Call> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes it, unless it has left, or has a call that is better.
    pub fn wake(&self, new: Call) {
        let mut call = self.call();
        if let Call::None | Call::Released | Call::Yield = *call {
            *call = new;
            self.woken.notify_one();
        }
    }
}

/// The lines of this proxy.
pub(super) struct WaitingRoom {
    lines: Mutex<Lines<Arc<Waiter>, News>>,
    epoch: Instant,
}

impl WaitingRoom {
    pub fn new(bounds: LineBounds, now: Instant) -> Self {
        Self { lines: Mutex::new(Lines::new(bounds)), epoch: now }
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Arc<Waiter>, News>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is to be released through this proxy: whose turn it is.
    pub fn on_release(&self, name: &LockName) -> Next<Arc<Waiter>> {
        self.lines().on_release(name, TURNS_IN_A_ROW)
    }

    /// What was granted to somebody who does not want it has been given up: the next in line tries.
    pub fn on_freed(&self, name: &LockName) {
        let head = self.lines().on_freed(name);
        head.iter().for_each(|head| head.wake(Call::Released));
    }

    /// The line for a name, as somebody finds it who is not in it.
    pub fn view(&self, name: &LockName) -> LineView {
        let lines = self.lines();
        let before = lines.len(name);
        LineView { before, expected: lines.expected(name, before) }
    }
}

/// Gives a ballot that hands the lock over to whom it is for; if it has left meanwhile, the ballot is given up, and the next
/// in line tries.
pub(super) fn hand(heir: &Waiter, ballot: Arc<Ballot>) {
    {
        let mut call = heir.call();
        if !matches!(*call, Call::Gone) {
            *call = Call::Handed(ballot);
            heir.woken.notify_one();
            return;
        }
    }
    ballot.abandon();
}

/// A place in line, until it is dropped.
pub(super) struct InLine {
    coordinator: Arc<Coordinator>,
    ticket: Ticket,
    waiter: Arc<Waiter>,
}

impl InLine {
    /// At the end of the line for what `spec` names.
    pub fn join(coordinator: &Arc<Coordinator>, spec: &AcquireSpec) -> Result<Self, Full> {
        let waiter = Arc::new(Waiter { spec: spec.clone(), woken: Notify::new(), call: Mutex::default() });
        let ticket = coordinator.waiting.lines().join(&spec.name, waiter.clone())?;
        Ok(Self { coordinator: coordinator.clone(), ticket, waiter })
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Arc<Waiter>, News>> {
        self.coordinator.waiting.lines()
    }

    fn name(&self) -> &LockName {
        &self.waiter.spec.name
    }

    /// How many are before it; 0: it may ask the nodes.
    pub fn place(&self) -> usize {
        self.lines().place(self.name(), self.ticket).unwrap_or_default()
    }

    /// The line, as it finds it.
    pub fn view(&self) -> LineView {
        let lines = self.lines();
        let before = lines.place(self.name(), self.ticket).unwrap_or_default();
        LineView { before, expected: lines.expected(self.name(), before) }
    }

    /// Ends when there is a call for it, or it has become the head.
    pub async fn woken(&self) {
        self.waiter.woken.notified().await;
    }

    /// What it was woken for.
    pub fn take_call(&self) -> Call {
        std::mem::take(&mut *self.waiter.call())
    }

    /// What is known of the lock, if nothing has happened since.
    pub fn news(&self) -> Option<News> {
        self.lines().news(self.name())
    }

    /// It is about to ask the nodes: nothing is handed over to it meanwhile. `false`: something is being handed over already.
    pub fn tries(&self) -> bool {
        self.lines().on_try(self.name())
    }

    /// It has asked in vain, or what was handed over did not arrive. What it was told is news for those behind it, unless it
    /// comes of what this one wanted.
    pub fn failed(&self, failure: &AcquireFailure) {
        let is_news = matches!(failure, AcquireFailure::Contended { .. } | AcquireFailure::NoQuorum(_));
        let news = is_news.then(|| News { failure: failure.clone(), at: self.coordinator.now() });
        self.lines().on_failure(self.name(), news);
    }

    /// It has got the lock: whoever is next need not ask whether it is free.
    pub fn granted(&self, grant: &Grant) {
        let (waiting, at) = (&self.coordinator.waiting, self.coordinator.now());
        let turn = if grant.inherits() { HowWon::HandedOver } else { HowWon::Free };
        self.lines().on_turn(self.name(), turn, News { failure: grant.held(), at }, at - waiting.epoch);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let next = self.lines().leave(self.name(), self.ticket);
        next.iter().for_each(|next| next.woken.notify_one());
        let call = std::mem::replace(&mut *self.waiter.call(), Call::Gone);
        if let Call::Handed(ballot) = call {
            ballot.abandon();
        }
    }
}
