//! Listens to what a node publishes, while somebody waits for it: one more connection, which is replaced like the other.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::backoff::Backoff;

use super::env::Env;
use super::{Channel, Listener, Node, WireError};

/// Between tries to connect. Without messages people wait longer, and that is all.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// So often a server on whose channels nothing happens is asked whether it is still there.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Whoever wants to know. Called where messages arrive: it must be quick and must not block.
pub trait Hearing: Send + Sync {
    /// A message came.
    fn on_message(&self, message: &str);

    /// From now on what is published on these channels comes; whatever was published before is lost.
    fn on_subscribed(&self, channels: &[Channel]);

    /// From now on nothing comes, because nothing is wanted.
    fn on_silence(&self);

    /// From now on nothing comes, though something is wanted; why.
    fn on_deaf(&self, why: &str);
}

/// What is wanted of a node's channels, and what is heard of them.
#[derive(Default)]
pub struct Ear {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    wanted: BTreeSet<Channel>,
    heard: BTreeSet<Channel>,
}

/// The bounds of one ear.
#[derive(Clone, Copy, Debug)]
pub struct EarTiming {
    /// Connecting may take this long.
    pub connect: Duration,
    /// An answer to a subscription may take this long.
    pub answer: Duration,
}

impl Ear {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a channel is wanted, or not any more. With any channel for wake-ups comes the one without which nobody
    /// publishes on it: in the same call, so that it is never the later one.
    pub fn want(&self, channel: Channel, wanted: bool) {
        let changed = {
            let wants = &mut self.state().wanted;
            let changed = if wanted { wants.insert(channel) } else { wants.remove(&channel) };
            if wants.iter().any(|channel| matches!(channel, Channel::Wake(_))) {
                wants.insert(Channel::Waiters);
            } else {
                wants.remove(&Channel::Waiters);
            }
            changed
        };
        if changed {
            self.changed.notify_one();
        }
    }

    /// The channels of which everything comes that is published.
    pub fn heard(&self) -> BTreeSet<Channel> {
        self.state().heard.clone()
    }

    /// Whether everything that is published on a channel comes.
    pub fn hears(&self, channel: Channel) -> bool {
        self.state().heard.contains(&channel)
    }

    /// Listens for as long as a channel is wanted, again and again, for ever.
    pub(super) async fn run(&self, node: &dyn Node, env: &dyn Env, timing: EarTiming, hearing: &dyn Hearing) {
        let mut failures = 0;
        loop {
            self.until_wanted().await;
            let Err(why) = self.listen(node, env, timing, hearing, &mut failures).await else {
                hearing.on_silence();
                continue;
            };
            self.state().heard.clear();
            hearing.on_deaf(&why.to_string());
            failures += 1;
            env.sleep_until(env.now() + RECONNECT.delay(failures, env.random())).await;
        }
    }

    async fn until_wanted(&self) {
        while self.state().wanted.is_empty() {
            self.changed.notified().await;
        }
    }

    /// `Ok` when nothing is wanted any more.
    async fn listen(
        &self,
        node: &dyn Node,
        env: &dyn Env,
        timing: EarTiming,
        hearing: &dyn Hearing,
        failures: &mut u32,
    ) -> Result<(), WireError> {
        let mut listener = within(timing.connect, env, node.listen()).await?;
        loop {
            self.follow(&*listener, env, timing, hearing).await?;
            if self.state().heard.is_empty() {
                return Ok(());
            }
            *failures = 0;
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                message = listener.next() => hearing.on_message(&message?),
                () = env.sleep_until(env.now() + HEARTBEAT) => {
                    let any: Vec<Channel> = self.state().heard.first().copied().into_iter().collect();
                    within(timing.answer, env, listener.subscribe(&any)).await?;
                }
            }
        }
    }

    /// Subscribes to what is wanted, and to nothing else.
    async fn follow(
        &self,
        listener: &dyn Listener,
        env: &dyn Env,
        timing: EarTiming,
        hearing: &dyn Hearing,
    ) -> Result<(), WireError> {
        let new: Vec<Channel> = {
            let State { wanted, heard } = &*self.state();
            wanted.difference(heard).copied().collect()
        };
        if !new.is_empty() {
            within(timing.answer, env, listener.subscribe(&new)).await?;
            self.state().heard.extend(&new);
            hearing.on_subscribed(&new);
        }
        // In one step: whoever comes to want it again finds it not heard.
        let old: Vec<Channel> = {
            let State { wanted, heard } = &mut *self.state();
            let old = heard.difference(wanted).copied().collect();
            heard.retain(|channel| wanted.contains(channel));
            old
        };
        if !old.is_empty() {
            within(timing.answer, env, listener.unsubscribe(&old)).await?;
        }
        Ok(())
    }
}

async fn within<T>(bound: Duration, env: &dyn Env, work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = env.sleep_until(env.now() + bound) => {
            Err(WireError::Closed(format!("no answer to a subscription within {} ms", bound.as_millis()).into()))
        }
    }
}
