//! Whoever waits for a lock stands in line, and only the head of a line asks the nodes: a thousand waiters cost as much as
//! one. A lock that is released through this proxy is handed over to the head; else the head tries again when others tell that
//! they have released it, when the holder's keys end, and now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::lease::LockName;
use crate::engine::line::{Full, LineBounds, Lines, Next, Ticket};

use super::Coordinator;
use super::attempt::{AcquireFailure, AcquireSpec, Ballot, Grant};

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
    calls: Mutex<Calls>,
}

/// What a waiter is to know when it wakes.
#[derive(Default)]
struct Calls {
    tidings: Tidings,
    /// The lock is being handed over to it.
    handed: Option<Arc<Ballot>>,
    /// What other proxies told of.
    heard: Heard,
    /// It has left.
    gone: bool,
}

/// The releases at other proxies since this line had its last turn.
#[derive(Default)]
struct Heard {
    /// Every node tells of it.
    last: Option<Arc<str>>,
    releases: u32,
    /// The last two proxies that told of any.
    proxies: [Option<Arc<str>>; 2],
}

impl Heard {
    /// Whether it is a new one.
    fn enter(&mut self, release: &str) -> bool {
        if self.last.as_deref() == Some(release) {
            return false;
        }
        self.last = Some(release.into());
        self.releases += 1;
        let proxy = release.split_once('.').map_or(release, |(proxy, _)| proxy);
        if self.proxies[0].as_deref() != Some(proxy) {
            self.proxies.swap(0, 1);
            self.proxies[0] = Some(proxy.into());
        }
        true
    }

    /// Of three proxies or more, those that were passed over before go first.
    fn lets_others_go_first(&self) -> bool {
        self.releases < 2 && self.proxies[1].is_some()
    }
}

/// Why the head of a line should look again. Of several the last in this order counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tidings {
    /// There is no reason.
    #[default]
    None,
    /// From now on releases at other proxies are heard; one may have been missed.
    Listening,
    /// Another proxy has released the lock.
    Told {
        /// At the node that is asked first.
        at_the_first: bool,
        /// This line had its turn a moment ago, and another one waits for longer.
        after_others: bool,
    },
    /// It was released here, and others go first.
    Yield,
    /// It was released here.
    Released,
}

impl Waiter {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes it, unless it has left.
    pub fn wake(&self, new: Tidings) -> bool {
        let mut calls = self.calls();
        if !calls.gone {
            calls.tidings = calls.tidings.max(new);
            self.woken.notify_one();
        }
        !calls.gone
    }

    /// Another proxy tells of `release`, through one of the nodes. The others will tell of it too.
    fn hear(&self, release: &str, at_the_first: bool) -> bool {
        let (is_new, after_others) = {
            let heard = &mut self.calls().heard;
            (heard.enter(release), heard.lets_others_go_first())
        };
        if is_new || at_the_first { self.wake(Tidings::Told { at_the_first, after_others }) } else { !self.calls().gone }
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

    /// The lock is to be released through this proxy: whose turn it is. `has_had_enough`: after so many turns in a row, waiters
    /// at other proxies get theirs.
    pub fn on_release(&self, name: &LockName, has_had_enough: bool) -> Next<Arc<Waiter>> {
        self.lines().on_release(name, has_had_enough && !mutant!("handovers-without-limit"))
    }

    /// Whether somebody waits for a name.
    pub fn has_line(&self, name: &LockName) -> bool {
        self.lines().len(name) > 0
    }

    /// What somebody had got has been given up: the next in line tries.
    pub fn on_freed(&self, name: &LockName) {
        self.wake_head(name, |head| head.wake(Tidings::Released));
    }

    /// Another proxy tells of a release, through one of the nodes.
    pub fn on_told(&self, name: &LockName, release: &str, at_the_first: bool) {
        self.wake_head(name, |head| head.hear(release, at_the_first));
    }

    /// What was known of the lock is so no longer: wakes the head of its line. `wake` fails if that one has just left.
    fn wake_head(&self, name: &LockName, wake: impl Fn(&Waiter) -> bool) {
        while let Some(head) = self.freed(name) {
            if wake(&head) {
                return;
            }
        }
    }

    fn freed(&self, name: &LockName) -> Option<Arc<Waiter>> {
        self.lines().on_freed(name)
    }

    /// From now on releases of this name at other proxies are heard.
    pub fn on_listening(&self, name: &LockName) {
        let head = self.lines().head(name);
        if let Some(head) = head {
            head.wake(Tidings::Listening);
        }
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
        let mut calls = heir.calls();
        if !calls.gone {
            calls.handed = Some(ballot);
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
        let waiter = Arc::new(Waiter { spec: spec.clone(), woken: Notify::new(), calls: Mutex::default() });
        let (ticket, is_first) = {
            let mut lines = coordinator.waiting.lines();
            let ticket = lines.join(&spec.name, waiter.clone())?;
            (ticket, lines.len(&spec.name) == 1)
        };
        if is_first {
            coordinator.listen_for(&spec.name);
        }
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

    /// The lock, if it is being handed over to it.
    pub fn take_handed(&self) -> Option<Arc<Ballot>> {
        self.waiter.calls().handed.take()
    }

    /// What it was woken for.
    pub fn take_tidings(&self) -> Tidings {
        std::mem::take(&mut self.waiter.calls().tidings)
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
        self.lines().on_turn(self.name(), News { failure: grant.held(), at }, at - waiting.epoch);
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let (next, is_empty) = {
            let mut lines = self.lines();
            (lines.leave(self.name(), self.ticket), lines.len(self.name()) == 0)
        };
        if is_empty {
            self.coordinator.stop_listening_for(self.name());
        }
        let left = Calls { gone: true, ..Calls::default() };
        let Calls { tidings, handed, heard, .. } = std::mem::replace(&mut *self.waiter.calls(), left);
        // What this one has not read is for the next.
        if let Some(next) = next {
            next.calls().heard.proxies = heard.proxies;
            next.wake(tidings);
        }
        if let Some(ballot) = handed {
            ballot.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_three_proxies_those_that_were_passed_over_go_first() {
        let mut heard = Heard::default();
        assert!(heard.enter("b.1") && !heard.enter("b.1"), "every node tells of it");
        assert!(!heard.lets_others_go_first(), "there is one other");
        let mut heard = Heard { proxies: heard.proxies, ..Heard::default() };
        assert!(heard.enter("c.1") && heard.lets_others_go_first(), "b waits for longer");
        assert!(heard.enter("b.2") && !heard.lets_others_go_first(), "it was passed over");
        let mut heard = Heard { proxies: heard.proxies, ..Heard::default() };
        assert!(heard.enter("b.3") && heard.lets_others_go_first(), "known from earlier turns");
    }
}
