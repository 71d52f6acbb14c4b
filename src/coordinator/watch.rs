//! Watching locks: what the nodes tell of them, counted until a quorum has told the same.
//!
//! Nodes tell what they do while they do it, and keep nothing. So a stream of events begins with a marker that says from when on
//! nothing is missing, and has another one wherever something may be: a node could not be heard, or the reader was too slow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::engine::lease::{LockName, NamePrefix, Owner};
use crate::engine::listing::PageSpec;
use crate::engine::quorum::NodeIndex;
use crate::node::Channel;
use crate::node::script::{TellTale, Told};

use super::Coordinator;

/// The most who watch at a proxy.
pub const MAX_WATCHES: usize = 1_000;

/// Events that a slow reader has not taken yet; it is told that it has missed the next ones.
const UNREAD_EVENTS: usize = 1_024;

/// The most leases of which is known when they end, and the most that were told by fewer nodes than a quorum.
const MAX_ENTRIES: usize = 65_536;

/// What a quorum has not told by then it will not.
const COUNTED_FOR: Duration = Duration::from_secs(10);

/// Whoever begins to watch is told after so long that not all nodes can be heard.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between looks whether a lease has ended, if the nodes can not be asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// So many leases at a time are looked at whether they have ended: more wait for the next time.
const ENDS_AT_A_TIME: usize = 64;

/// A lease that ends so soon has ended when somebody else has the lock.
const ABOUT_NOW: Duration = Duration::from_secs(1);

/// How many names of a page are looked at when somebody begins to watch, and how many pages.
const STOCK: (usize, usize) = (1_000, 10);

/// Which locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Name(LockName),
    /// Those whose names begin so.
    Prefix(NamePrefix),
}

impl Scope {
    fn covers(&self, name: &LockName) -> bool {
        match self {
            Self::Name(watched) => watched == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
        }
    }
}

/// What somebody who watches is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// From here on nothing is missing.
    Complete,
    /// Something may be missing, until the next [`Event::Complete`]; why.
    Gap(String),
    /// A quorum of the nodes has set a lease.
    Granted(LockName, Option<Owner>, Duration),
    /// The same, in place of one that was released.
    HandedOver(LockName, Option<Owner>, Duration),
    /// A quorum has deleted a lease.
    Released(LockName),
    /// A lease has ended, and nobody had given it back.
    Expired(LockName),
}

/// Who is told what.
#[derive(Default)]
pub(super) struct Watches(Mutex<State>);

#[derive(Default)]
struct State {
    watchers: BTreeMap<u64, Watcher>,
    next: u64,
    tallies: BTreeMap<(LockName, TellTale, Arc<str>), Tally>,
    /// Leases in the scope of somebody, and when they end.
    leases: BTreeMap<LockName, Lease>,
    /// Where leases have to be looked for that began before somebody watched, one scope after the other.
    to_look_at: VecDeque<Scope>,
    takes_stock: bool,
    /// Of which something was told meanwhile.
    touched: BTreeSet<LockName>,
}

struct Watcher {
    scope: Scope,
    events: mpsc::Sender<Event>,
    since: Instant,
    /// Whether all nodes could be heard when it was last told so.
    complete: Option<bool>,
    /// It has missed something, and does not know.
    lags: bool,
}

/// Which nodes have told the same.
struct Tally {
    nodes: BTreeSet<NodeIndex>,
    since: Instant,
}

struct Lease {
    /// `None`: it began before anybody watched, or was renewed.
    id: Option<Arc<str>>,
    ends: Instant,
    /// When the nodes are asked whether it has ended.
    asks: Instant,
    /// They have said so once. What was told before may still be on its way.
    is_gone: bool,
}

impl Lease {
    fn new(id: Option<Arc<str>>, ends: Instant) -> Self {
        Self { id, ends, asks: ends, is_gone: false }
    }
}

impl Watcher {
    fn tell(&mut self, event: &Event) {
        self.catch_up();
        self.lags |= self.events.try_send(event.clone()).is_err();
    }

    /// Says that it has missed something, as soon as there is room.
    fn catch_up(&mut self) {
        if self.lags && self.events.capacity() >= 2 {
            let why = "events were not read as fast as they came".to_owned();
            let told = self.events.try_send(Event::Gap(why)).is_ok();
            // What is missing is all before this.
            let complete = self.complete != Some(true) || self.events.try_send(Event::Complete).is_ok();
            self.lags = !(told && complete);
        }
    }
}

impl State {
    fn is_watched(&self, name: &LockName) -> bool {
        self.watchers.values().any(|watcher| watcher.scope.covers(name))
    }

    fn tell(&mut self, name: &LockName, event: &Event) {
        let watchers = self.watchers.values_mut().filter(|watcher| watcher.scope.covers(name));
        watchers.for_each(|watcher| watcher.tell(event));
    }

    fn expect(&mut self, name: &LockName, lease: Lease) {
        if self.leases.len() < MAX_ENTRIES || self.leases.contains_key(name) {
            self.leases.insert(name.clone(), lease);
        }
    }

    /// A quorum has told the same.
    fn on_told(&mut self, told: &Told<'_>, name: LockName, now: Instant) {
        if self.takes_stock && self.touched.len() < MAX_ENTRIES {
            self.touched.insert(name.clone());
        }
        let (owner, ttl) = (Owner::new(told.owner).ok().flatten(), Duration::from_millis(told.ms));
        let before = self.leases.get(&name).filter(|lease| lease.id.as_deref() != Some(told.lease));
        let lease = || Lease::new(Some(told.lease.into()), now + ttl);
        let event = match told.what {
            TellTale::Granted => Event::Granted(name.clone(), owner, ttl),
            TellTale::HandedOver => Event::HandedOver(name.clone(), owner, ttl),
            TellTale::Released => Event::Released(name.clone()),
        };
        match (told.what, before.map(|lease| (lease.id.is_some(), lease.ends))) {
            // That of the lease before, from nodes that were late: it was told when somebody else had the lock.
            (TellTale::Released, Some((true, _))) => return,
            (TellTale::Released, _) => drop(self.leases.remove(&name)),
            (TellTale::HandedOver, _) | (TellTale::Granted, None) => self.expect(&name, lease()),
            // It was found before it was told: a SET that did not know yet that somebody watches.
            (TellTale::Granted, Some((false, ends)))
                if ends + ABOUT_NOW + ttl / 100 >= now + ttl && ends <= now + ttl + ABOUT_NOW =>
            {
                self.expect(&name, lease())
            }
            (TellTale::Granted, Some((_, ends))) => {
                let ended = if ends <= now + ABOUT_NOW { Event::Expired } else { Event::Released };
                self.tell(&name, &ended(name.clone()));
                self.expect(&name, lease());
            }
        }
        self.tell(&name, &event);
    }
}

impl Watches {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who watches, until it is dropped.
pub struct Watch {
    coordinator: Arc<Coordinator>,
    number: u64,
    channels: Vec<Channel>,
    events: mpsc::Receiver<Event>,
}

impl Watch {
    /// The next event. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let count = {
            let state = &mut *self.coordinator.watches.state();
            state.watchers.remove(&self.number);
            if state.watchers.is_empty() {
                (state.tallies, state.leases, state.to_look_at, state.touched) = Default::default();
            }
            state.watchers.len()
        };
        self.coordinator.metrics.watchers(count);
        self.coordinator.stop_watching(&self.channels);
    }
}

impl Coordinator {
    /// Begins to watch. `None`: too many do.
    pub fn watch(self: &Arc<Self>, scope: Scope) -> Option<Watch> {
        let (events, received) = mpsc::channel(UNREAD_EVENTS);
        let channels = self.channels_of(&scope);
        let (number, count) = {
            let state = &mut *self.watches.state();
            if state.watchers.len() >= MAX_WATCHES {
                return None;
            }
            state.next += 1;
            let watcher = Watcher { scope, events, since: self.env.now(), complete: None, lags: false };
            state.watchers.insert(state.next, watcher);
            (state.next, state.watchers.len())
        };
        self.metrics.watchers(count);
        self.start_watching(&channels);
        self.review_watches();
        Some(Watch { coordinator: self.clone(), number, channels, events: received })
    }

    fn channels_of(&self, scope: &Scope) -> Vec<Channel> {
        match scope {
            Scope::Name(name) => vec![Channel::Watch(self.channel_number(name)), Channel::Watchers],
            // Some of the names are on each.
            Scope::Prefix(_) => Self::all_channels(),
        }
    }

    /// A node tells something.
    pub(super) fn on_told(&self, node: NodeIndex, told: &Told<'_>) {
        let name = told.key.strip_prefix(&*self.settings.key_prefix).map(LockName::new);
        // What is no name of ours is a lock of somebody else.
        let Some(Ok(name)) = name else { return };
        let (now, state) = (self.env.now(), &mut *self.watches.state());
        if !state.is_watched(&name) {
            return;
        }
        if state.tallies.len() >= MAX_ENTRIES {
            state.tallies.clear();
            // What was half counted is lost; the next review goes on from there.
            for watcher in state.watchers.values_mut() {
                watcher.complete = Some(false);
                watcher.tell(&Event::Gap("too much happens at a time".to_owned()));
            }
        }
        let key = (name.clone(), told.what, Arc::from(told.lease));
        let tally = state.tallies.entry(key.clone()).or_insert_with(|| Tally { nodes: BTreeSet::new(), since: now });
        let is_new = tally.nodes.insert(node);
        let count = tally.nodes.len();
        if count == self.links.len() {
            state.tallies.remove(&key);
        }
        // Once, with the node that makes the quorum.
        if is_new && count == self.settings.quorum.size() {
            state.on_told(told, name, now);
        }
    }

    /// To be called when nodes can be heard again, or not any more, and now and then: tells everybody who watches since when
    /// nothing is missing.
    pub(super) fn review_watches(self: &Arc<Self>) {
        let now = self.env.now();
        let heard: Vec<BTreeSet<Channel>> = self.links.iter().map(|link| link.ear().heard()).collect();
        let all = self.not_heard(&heard, &Self::all_channels());
        let begins = {
            let state = &mut *self.watches.state();
            for watcher in state.watchers.values_mut() {
                watcher.catch_up();
                let deaf = match &watcher.scope {
                    Scope::Name(_) => self.not_heard(&heard, &self.channels_of(&watcher.scope)),
                    Scope::Prefix(_) => all.clone(),
                };
                let is_late = now - watcher.since >= PATIENCE;
                match (watcher.complete, deaf) {
                    (Some(true), None) | (Some(false), Some(_)) => {}
                    (None, Some(_)) if !is_late => {}
                    (_, None) => {
                        watcher.complete = Some(true);
                        watcher.tell(&Event::Complete);
                        if !state.to_look_at.contains(&watcher.scope) {
                            state.to_look_at.push_back(watcher.scope.clone());
                        }
                    }
                    (_, Some(node)) => {
                        watcher.complete = Some(false);
                        watcher.tell(&Event::Gap(format!("{node} can not be heard")));
                    }
                }
            }
            !state.to_look_at.is_empty() && !std::mem::replace(&mut state.takes_stock, true)
        };
        if begins {
            let coordinator = self.clone();
            self.tasks.spawn(async move { coordinator.take_stocks().await });
        }
    }

    fn all_channels() -> Vec<Channel> {
        (0..=u8::MAX).map(Channel::Watch).chain([Channel::Watchers]).collect()
    }

    /// A node of which not all of these channels are heard.
    fn not_heard(&self, heard: &[BTreeSet<Channel>], channels: &[Channel]) -> Option<Arc<str>> {
        let is_deaf = |heard: &BTreeSet<Channel>| !channels.iter().all(|channel| heard.contains(channel));
        let deaf = heard.iter().position(is_deaf)?;
        Some(self.links[deaf].address().clone())
    }

    /// One scope after the other, until there is none left, or this proxy shuts down.
    async fn take_stocks(&self) {
        loop {
            let scope = {
                let state = &mut *self.watches.state();
                let next = state.to_look_at.pop_front().filter(|_| !self.draining.is_cancelled());
                if next.is_none() {
                    state.takes_stock = false;
                    state.touched.clear();
                }
                next
            };
            let Some(scope) = scope else { return };
            tokio::select! {
                biased;
                () = self.draining.cancelled() => {}
                () = self.take_stock(&scope) => {}
            }
        }
    }

    /// Leases that began before somebody watched end too.
    async fn take_stock(&self, scope: &Scope) {
        let found = match scope {
            Scope::Name(name) => match self.get(name).await {
                Ok(holding) => holding.held.map(|held| (name.clone(), held.left)).into_iter().collect(),
                Err(_) => Vec::new(),
            },
            Scope::Prefix(prefix) => self.first_pages(prefix).await,
        };
        let (now, state) = (self.env.now(), &mut *self.watches.state());
        if state.touched.len() >= MAX_ENTRIES {
            // Nobody knows which of them were told of meanwhile.
            return;
        }
        for (name, left) in found {
            if state.is_watched(&name) && !state.touched.contains(&name) && !state.leases.contains_key(&name) {
                state.expect(&name, Lease::new(None, now + left));
            }
        }
    }

    async fn first_pages(&self, prefix: &NamePrefix) -> Vec<(LockName, Duration)> {
        let (mut found, mut after) = (Vec::new(), None);
        for _ in 0..STOCK.1 {
            let Ok(page) = self.page(&PageSpec { after, prefix: prefix.clone(), size: STOCK.0 }).await else { break };
            found.extend(page.held.into_iter().map(|held| (held.name, held.left)));
            after = page.next_after;
            if after.is_none() {
                break;
            }
        }
        found
    }

    /// To be called now and then: leases whose time is over have ended, or were renewed.
    pub(super) fn look_for_ends(self: &Arc<Self>) {
        let now = self.env.now();
        let over: Vec<LockName> = {
            let state = &mut *self.watches.state();
            state.tallies.retain(|_, tally| now - tally.since < COUNTED_FOR);
            let over = state.leases.iter_mut().filter(|(_, lease)| lease.asks <= now);
            // Not again while the nodes are asked.
            over.take(ENDS_AT_A_TIME)
                .map(|(name, lease)| {
                    lease.asks = now + ASK_AGAIN;
                    name.clone()
                })
                .collect()
        };
        for name in over {
            let coordinator = self.clone();
            self.tasks.spawn(async move { coordinator.look_for_end(name).await });
        }
    }

    async fn look_for_end(&self, name: LockName) {
        let id = |state: &State| state.leases.get(&name).map(|lease| lease.id.clone());
        let Some(before) = id(&self.watches.state()) else { return };
        let Ok(holding) = self.get(&name).await else { return };
        let (now, state) = (self.env.now(), &mut *self.watches.state());
        if id(state).as_ref() != Some(&before) {
            // Something was told meanwhile.
            return;
        }
        match holding.held {
            Some(held) => state.expect(&name, Lease::new(before, now + held.left)),
            None if state.leases.get(&name).is_some_and(|lease| lease.is_gone) => {
                state.leases.remove(&name);
                state.tell(&name, &Event::Expired(name.clone()));
            }
            None => {
                if let Some(lease) = state.leases.get_mut(&name) {
                    (lease.is_gone, lease.asks) = (true, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(number: usize) -> Event {
        Event::Released(LockName::new(&number.to_string()).unwrap())
    }

    #[test]
    fn a_slow_reader_is_told_that_it_has_missed_something_and_from_when_on_it_has_not() {
        let (events, mut received) = mpsc::channel(4);
        let scope = Scope::Prefix(NamePrefix::new("").unwrap());
        let mut watcher = Watcher { scope, events, since: Instant::now(), complete: Some(true), lags: false };
        (0..6).for_each(|number| watcher.tell(&released(number)));
        (0..4).for_each(|number| assert_eq!(received.try_recv().unwrap(), released(number)));
        watcher.tell(&released(6));
        assert!(matches!(received.try_recv().unwrap(), Event::Gap(_)), "4 and 5 are missing");
        assert_eq!(received.try_recv().unwrap(), Event::Complete);
        assert_eq!(received.try_recv().unwrap(), released(6));
        watcher.tell(&released(7));
        assert_eq!(received.try_recv().unwrap(), released(7));
        assert!(received.try_recv().is_err());

        // Where a node can not be heard, it is not complete after that either.
        watcher.complete = Some(false);
        (0..5).for_each(|number| watcher.tell(&released(number)));
        (0..4).for_each(|number| assert_eq!(received.try_recv().unwrap(), released(number)));
        watcher.catch_up();
        assert!(matches!(received.try_recv().unwrap(), Event::Gap(_)));
        assert!(received.try_recv().is_err());
    }

    fn told(what: TellTale, lease: &str) -> Told<'_> {
        Told { what, lease, ms: 10_000, owner: "", key: "lock:a" }
    }

    /// What was told of a lock by quorums, at these seconds.
    fn story(steps: &[(TellTale, &str, u64)]) -> Vec<Event> {
        story_of(None, steps)
    }

    /// The same of one that was found held, with so many seconds left.
    fn story_of(left: Option<u64>, steps: &[(TellTale, &str, u64)]) -> Vec<Event> {
        let (events, mut received) = mpsc::channel(99);
        let (scope, begin) = (Scope::Prefix(NamePrefix::new("").unwrap()), Instant::now());
        let mut state = State::default();
        let watcher = Watcher { scope, events, since: begin, complete: Some(true), lags: false };
        state.watchers.insert(0, watcher);
        if let Some(left) = left {
            state.expect(&LockName::new("a").unwrap(), Lease::new(None, begin + Duration::from_secs(left)));
        }
        for (what, lease, second) in steps {
            state.on_told(&told(*what, lease), LockName::new("a").unwrap(), begin + Duration::from_secs(*second));
        }
        std::iter::from_fn(|| received.try_recv().ok()).collect()
    }

    #[test]
    fn every_lease_has_one_end() {
        use TellTale::{Granted, HandedOver, Released};
        let name = || LockName::new("a").unwrap();
        let granted = || Event::Granted(name(), None, Duration::from_secs(10));
        let (released, expired) = (|| Event::Released(name()), || Event::Expired(name()));
        assert_eq!(story(&[(Granted, "1", 0), (Released, "1", 5)]), [granted(), released()]);
        assert_eq!(story(&[(Granted, "1", 0), (Granted, "2", 10)]), [granted(), expired(), granted()]);
        // Nodes that were late: the release is told after what it made possible.
        let late = [(Granted, "1", 0), (Granted, "2", 5), (Released, "1", 5)];
        assert_eq!(story(&late), [granted(), released(), granted()]);
        let handed = Event::HandedOver(name(), None, Duration::from_secs(10));
        assert_eq!(story(&[(Granted, "1", 0), (HandedOver, "2", 5), (Released, "2", 6)]), [granted(), handed, released()]);
        assert_eq!(story(&[(Released, "0", 0)]), [released()], "it began before");
        assert_eq!(story_of(Some(8), &[(Granted, "1", 0)]), [released(), granted()]);
        assert_eq!(story_of(Some(8), &[(Granted, "1", 8)]), [expired(), granted()]);
        assert_eq!(story_of(Some(10), &[(Granted, "1", 1)]), [granted()], "it was found before it was told");
        assert_eq!(story_of(Some(50), &[(Granted, "1", 1)]), [released(), granted()], "that was another one");
    }
}
