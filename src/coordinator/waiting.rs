//! Whoever waits for a lock stands in line, and only the head of a line asks the nodes: a thousand waiters cost as much as
//! one. The head tries again when the lock is released through this proxy, when its holder's keys end, and now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::lease::LockName;
use crate::engine::line::{Full, LineBounds, Lines, Ticket};

use super::Coordinator;
use super::attempt::AcquireFailure;

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

/// What wakes a waiter.
#[derive(Default)]
pub(super) struct Waker {
    woken: Notify,
    /// The lock was released since it was looked at last: whatever the news say, it may be free.
    released: AtomicBool,
}

/// The lines of this proxy.
pub(super) struct WaitingRoom {
    lines: Mutex<Lines<Arc<Waker>, News>>,
    epoch: Instant,
}

impl WaitingRoom {
    pub fn new(bounds: LineBounds, now: Instant) -> Self {
        Self { lines: Mutex::new(Lines::new(bounds)), epoch: now }
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Arc<Waker>, News>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is being released through this proxy, after whatever was posted to the nodes before.
    pub fn on_release(&self, name: &LockName) {
        let head = self.lines().on_release(name, TURNS_IN_A_ROW);
        if let Some(head) = head {
            head.released.store(true, Ordering::Relaxed);
            head.woken.notify_one();
        }
    }

    /// The line for a name, as somebody finds it who is not in it.
    pub fn view(&self, name: &LockName) -> LineView {
        let lines = self.lines();
        let before = lines.len(name);
        LineView { before, expected: lines.expected(name, before) }
    }
}

/// A place in line, until it is dropped.
pub(super) struct InLine {
    coordinator: Arc<Coordinator>,
    name: LockName,
    ticket: Ticket,
    waker: Arc<Waker>,
}

impl InLine {
    /// At the end of the line for `name`.
    pub fn join(coordinator: &Arc<Coordinator>, name: &LockName) -> Result<Self, Full> {
        let waker = Arc::new(Waker::default());
        let ticket = coordinator.waiting.lines().join(name, waker.clone())?;
        Ok(Self { coordinator: coordinator.clone(), name: name.clone(), ticket, waker })
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Arc<Waker>, News>> {
        self.coordinator.waiting.lines()
    }

    /// How many are before it; 0: it may ask the nodes.
    pub fn place(&self) -> usize {
        self.lines().place(&self.name, self.ticket).unwrap_or_default()
    }

    /// The line, as it finds it.
    pub fn view(&self) -> LineView {
        let lines = self.lines();
        let before = lines.place(&self.name, self.ticket).unwrap_or_default();
        LineView { before, expected: lines.expected(&self.name, before) }
    }

    /// Ends when it has become the head, or, if it is the head, when the lock may be free.
    pub async fn woken(&self) {
        self.waker.woken.notified().await;
    }

    /// Whether the lock was released since this was asked last.
    pub fn take_released(&self) -> bool {
        self.waker.released.swap(false, Ordering::Relaxed)
    }

    /// What is known of the lock, if nothing has happened since.
    pub fn news(&self) -> Option<News> {
        self.lines().news(&self.name)
    }

    /// It has asked in vain.
    pub fn failed(&self, failure: &AcquireFailure) {
        let news = News { failure: failure.clone(), at: self.coordinator.now() };
        self.lines().on_failure(&self.name, news);
    }

    /// It has got the lock: whoever is next need not ask whether it is free.
    pub fn granted(&self, held: AcquireFailure) {
        let (waiting, at) = (&self.coordinator.waiting, self.coordinator.now());
        self.lines().on_turn(&self.name, News { failure: held, at }, at - waiting.epoch);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let next = self.lines().leave(&self.name, self.ticket);
        next.iter().for_each(|next| next.woken.notify_one());
    }
}
