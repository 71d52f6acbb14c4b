//! Wake-ups across proxies (protocol section 5): every node has 256 channels, a release is published on that of its name, and
//! a proxy listens to those in which it has somebody to wake. A message that is lost costs a wait until the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use crate::engine::lease::LockName;
use crate::engine::quorum::NodeIndex;
use crate::node::ear::Hearing;
use crate::node::script::{Freed, Told};
use crate::node::{Channel, WakeUp, channel_number};

use super::Coordinator;

/// A channel in which nobody waits any more is listened to for a while: somebody else may come.
const LINGER: Duration = Duration::from_secs(1);

/// What this proxy listens to, and how it signs what it tells.
pub(super) struct Channels {
    wanted: Mutex<BTreeMap<Channel, Wanted>>,
    /// Random, of this process.
    me: Arc<str>,
}

/// One channel.
#[derive(Default)]
struct Wanted {
    /// That somebody waits for.
    names: BTreeSet<LockName>,
    /// Who watches.
    watchers: usize,
    /// Since when nobody does.
    idle_since: Option<Instant>,
    /// So many nodes are heard that no release goes unheard.
    covered: bool,
}

impl Channels {
    /// Listens to nothing; signs with `random`.
    pub fn new(random: u64) -> Self {
        Self { wanted: Mutex::default(), me: format!("{random:016x}").into() }
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<Channel, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel is wanted by one more; `listen` if it was not before.
    fn add(&self, channel: Channel, who: impl FnOnce(&mut Wanted), listen: impl FnOnce()) {
        let mut wanted = self.wanted();
        if !wanted.contains_key(&channel) {
            listen();
        }
        let entry = wanted.entry(channel).or_default();
        who(entry);
        entry.idle_since = None;
    }

    /// By one less.
    fn remove(&self, channel: Channel, now: Instant, who: impl FnOnce(&mut Wanted)) {
        if let Some(entry) = self.wanted().get_mut(&channel) {
            who(entry);
            if entry.names.is_empty() && entry.watchers == 0 {
                entry.idle_since = Some(now);
            }
        }
    }

    fn is_mine(&self, sender: &str) -> bool {
        sender.split_once('.').is_some_and(|(who, _)| who == &*self.me)
    }
}

impl Coordinator {
    /// Which of the channels is that of a name.
    pub(super) fn channel_number(&self, name: &LockName) -> u8 {
        channel_number(&self.settings.key_prefix, name.as_str())
    }

    /// The channel on which releases of it are told.
    pub(super) fn wake_channel(&self, name: &LockName) -> Channel {
        Channel::Wake(self.channel_number(name))
    }

    /// How a release is told.
    pub(super) fn wake_up(&self) -> WakeUp {
        WakeUp { sender: self.channels.me.clone() }
    }

    /// Somebody waits for a name.
    pub(super) fn listen_for(&self, name: &LockName) {
        let channel = self.wake_channel(name);
        self.channels.add(channel, |wanted| wanted.names.extend([name.clone()]), || self.want(channel));
    }

    fn want(&self, channel: Channel) {
        self.links.iter().for_each(|link| link.ear().want(channel, true));
    }

    /// Nobody waits for it any more.
    pub(super) fn stop_listening_for(&self, name: &LockName) {
        let channel = self.wake_channel(name);
        self.channels.remove(channel, self.env.now(), |wanted| {
            // Unless somebody has come meanwhile.
            if !self.waiting.has_line(name) {
                wanted.names.remove(name);
            }
        });
    }

    /// Somebody watches.
    pub(super) fn start_watching(&self, channels: &[Channel]) {
        for channel in channels {
            self.channels.add(*channel, |wanted| wanted.watchers += 1, || self.want(*channel));
        }
    }

    /// Nobody does any more.
    pub(super) fn stop_watching(&self, channels: &[Channel]) {
        let now = self.env.now();
        channels.iter().for_each(|channel| self.channels.remove(*channel, now, |wanted| wanted.watchers -= 1));
    }

    /// To be called now and then: what nobody has waited for of late is not listened to any more.
    pub(super) fn stop_listening(&self) {
        let now = self.env.now();
        let mut wanted = self.channels.wanted();
        wanted.retain(|channel, entry| {
            let is_over = entry.idle_since.is_some_and(|since| now - since >= LINGER);
            if is_over {
                self.links.iter().for_each(|link| link.ear().want(*channel, false));
            }
            !is_over
        });
    }

    /// Whether no release of a name goes unheard: of any quorum that deletes it, one node at least tells us.
    pub(super) fn hears(&self, name: &LockName) -> bool {
        self.hearing(self.wake_channel(name)) >= self.needed_ears()
    }

    fn hearing(&self, channel: Channel) -> usize {
        self.links.iter().filter(|link| link.ear().hears(channel)).count()
    }

    fn needed_ears(&self) -> usize {
        self.settings.quorum.nodes() - self.settings.quorum.size() + 1
    }

    /// The node that is asked first for a name that many want: the same for all proxies that see the same nodes up.
    pub(super) fn first_node(&self, name: &LockName) -> NodeIndex {
        let nodes = self.links.len();
        let start = crc32fast::hash(name.as_str().as_bytes()) as usize % nodes;
        let in_order = || (start..start + nodes).map(|node| node % nodes);
        in_order().find(|node| self.links[*node].may_vote()).unwrap_or(start)
    }

    /// Listens to one node, for ever.
    pub async fn hear(self: Arc<Self>, node: NodeIndex) {
        let hears = Hears { coordinator: self.clone(), node };
        self.links[node].hear(&hears).await;
    }
}

/// What comes from one node.
struct Hears {
    coordinator: Arc<Coordinator>,
    node: NodeIndex,
}

impl Hearing for Hears {
    fn on_message(&self, message: &str) {
        let coordinator = &self.coordinator;
        if let Some(told) = Told::read(message) {
            coordinator.on_told(self.node, &told);
            return;
        }
        let Some(freed) = Freed::read(message).filter(|freed| !coordinator.channels.is_mine(freed.sender)) else { return };
        let name = freed.key.strip_prefix(&*coordinator.settings.key_prefix).map(LockName::new);
        // What is no name of ours is a lock of somebody else.
        if let Some(Ok(name)) = name {
            let at_the_first = coordinator.first_node(&name) == self.node;
            coordinator.waiting.on_told(&name, freed.sender, at_the_first);
        }
    }

    fn on_subscribed(&self, channels: &[Channel]) {
        let coordinator = &self.coordinator;
        coordinator.metrics.node(self.node).listens(true);
        debug!(node = &**coordinator.links[self.node].address(), channels = channels.len(), "listens");
        // What was released before was not heard.
        let mut names: Vec<LockName> = Vec::new();
        {
            let mut wanted = coordinator.channels.wanted();
            for channel in channels {
                let enough = coordinator.hearing(*channel) >= coordinator.needed_ears();
                if let Some(entry) = wanted.get_mut(channel).filter(|_| enough)
                    && !std::mem::replace(&mut entry.covered, true)
                {
                    names.extend(entry.names.iter().cloned());
                }
            }
        }
        names.iter().for_each(|name| coordinator.waiting.on_listening(name));
        coordinator.review_watches();
    }

    fn on_silence(&self) {
        self.coordinator.metrics.node(self.node).listens(false);
    }

    fn on_deaf(&self, why: &str) {
        let node = &**self.coordinator.links[self.node].address();
        info!(node, why, "can not listen to releases through other proxies; whoever waits looks more often");
        for (channel, wanted) in self.coordinator.channels.wanted().iter_mut() {
            wanted.covered &= self.coordinator.hearing(*channel) >= self.coordinator.needed_ears();
        }
        self.coordinator.review_watches();
        self.coordinator.metrics.node(self.node).listens(false);
    }
}
