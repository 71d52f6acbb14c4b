//! Which of the nodes may vote, as this proxy sees it: what the links of one cluster share. The decisions are in
//! `engine::membership`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::clock::Sample;
use crate::engine::membership::{Charter, MarkerChange, Members, Standing, WantsCounters};
use crate::engine::quorum::{NodeIndex, Quorum};

use super::{Heard, NodeTime, Probe};

/// All nodes of a cluster.
pub struct Roster {
    members: Mutex<Members>,
    identities: Mutex<BTreeMap<NodeIndex, Identity>>,
    epoch: Instant,
    /// How often this proxy's machine was found to have slept: every attempt asks.
    sleeps: AtomicU64,
    /// Has a node looked at soon.
    calls: Vec<Notify>,
}

struct Identity {
    address: Arc<str>,
    run_id: Arc<str>,
}

/// A node's clock against ours.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClockView {
    /// How far the node's wall clock is ahead of this proxy's, in seconds. For people only.
    pub offset: Option<f64>,
    /// How much faster than ours it has run of late: 0.001 is a millisecond a second.
    pub rate: Option<f64>,
}

impl Roster {
    /// Nothing is known yet.
    pub fn new(charter: Charter, quorum: Quorum, now: Instant) -> Arc<Self> {
        let calls = std::iter::repeat_with(Notify::new).take(quorum.nodes()).collect();
        let members = Mutex::new(Members::new(charter, quorum));
        Arc::new(Self { members, identities: Mutex::default(), epoch: now, sleeps: AtomicU64::new(0), calls })
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// The counter was asked whether it holds a trace of an earlier time.
    pub fn on_counter(&self, untouched: bool) {
        self.and_call_all_if_known(|members| members.on_counter(untouched));
    }

    /// What has been told may be what all nodes have waited for: whether the cluster is new.
    fn and_call_all_if_known(&self, enter: impl FnOnce(&mut Members)) {
        let mut members = self.members();
        let waited = members.may_be_new();
        enter(&mut members);
        if waited && !members.may_be_new() {
            self.call_all();
        }
    }

    /// The counter runs on a process of its own, and hands out nothing above `ceiling`.
    pub fn on_counter_ceiling(&self, ceiling: u64, owner: &str, sent: Instant) {
        self.members().on_counter_ceiling(ceiling, owner, self.since_epoch(sent));
    }

    /// The nodes that only lack their part of the quorum counter.
    pub fn wants_counters(&self, now: Instant) -> Vec<WantsCounters> {
        self.members().wants_counters(self.since_epoch(now))
    }

    /// A node has its part of the quorum counter again.
    pub fn on_counters(&self, wanted: WantsCounters) {
        self.members().on_counters(wanted.node, wanted.mark);
        self.calls[wanted.node].notify_one();
    }

    /// The highest ceiling of a designated counter that any node told of.
    pub fn highest_ceiling(&self) -> u64 {
        self.members().highest_ceiling()
    }

    /// Enters what `node` is; the address of another node that is the same server, if there is one: it would vote twice.
    ///
    /// An entry stands until its node shows another identity, also while it can not be reached.
    fn identify(&self, node: NodeIndex, address: &Arc<str>, run_id: &Arc<str>) -> Option<Arc<str>> {
        let mut known = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&node);
        let twin = known.values().find(|known| known.run_id == *run_id).map(|known| known.address.clone());
        if twin.is_none() {
            known.insert(node, Identity { address: address.clone(), run_id: run_id.clone() });
        }
        twin
    }

    fn call_all(&self) {
        self.calls.iter().for_each(Notify::notify_one);
    }
}

/// One node's place among the others.
#[derive(Clone)]
pub struct Seat {
    roster: Arc<Roster>,
    node: NodeIndex,
}

impl Seat {
    /// The place of `node`.
    pub fn new(roster: &Arc<Roster>, node: NodeIndex) -> Self {
        Self { roster: roster.clone(), node }
    }

    /// Connected to a process; the address of another node that is the same one, if there is any.
    pub fn on_connected(&self, address: &Arc<str>, probe: &Probe) -> Option<Arc<str>> {
        let twin = self.roster.identify(self.node, address, &probe.run_id);
        if twin.is_none() {
            self.roster.members().on_connected(self.node, probe.run_id.clone(), probe.settings.is_durable());
        }
        twin
    }

    /// It does, or does not, answer.
    pub fn on_reach(&self, answers: bool, now: Instant) {
        let mut members = self.roster.members();
        if answers {
            members.on_back(self.node);
        } else {
            members.on_lost(self.node, self.roster.since_epoch(now));
            self.roster.sleeps.store(members.sleeps(), Ordering::Relaxed);
        }
    }

    /// What a batch told about its node. `Err` if the votes in it do not count, and why.
    pub fn on_batch(&self, marker: &str, time: NodeTime, sent: Instant, received: Instant) -> Result<(), Standing> {
        let roster = &*self.roster;
        let (sent, received) = (roster.since_epoch(sent), roster.since_epoch(received));
        let mut members = roster.members();
        let heard_before = members.hearing();
        let counts = members.on_batch(self.node, marker, Sample { sent, received, node_us: time.micros });
        roster.sleeps.store(members.sleeps(), Ordering::Relaxed);
        if members.hearing() && !heard_before {
            roster.call_all();
        }
        if counts { Ok(()) } else { Err(members.standing(self.node, received)) }
    }

    /// Whether it has to be asked for counters of an earlier time.
    pub fn may_be_new(&self) -> bool {
        self.roster.members().may_be_new()
    }

    /// It was asked for them.
    pub fn on_untouched(&self, untouched: bool) {
        self.roster.and_call_all_if_known(|members| members.on_untouched(self.node, untouched));
    }

    /// The ceiling that it holds; empty: none.
    pub fn on_ceiling(&self, text: &str, heard: Heard) {
        let sent = self.roster.since_epoch(heard.sent);
        self.roster.and_call_all_if_known(|members| members.on_ceiling(self.node, text, sent, heard.may_vote));
    }

    /// The change of its marker that is due. `fresh` is random.
    pub fn due_change(&self, now: Instant, fresh: impl FnOnce() -> u128) -> Option<MarkerChange> {
        let fresh = || format!("{:032x}", fresh());
        self.roster.members().due_change(self.node, self.roster.since_epoch(now), fresh)
    }

    /// How often this proxy's machine was found to have slept.
    pub fn sleeps(&self) -> u64 {
        self.roster.sleeps.load(Ordering::Relaxed)
    }

    /// When its quarantine will be over, if it is in one.
    pub fn due(&self) -> Option<Instant> {
        Some(self.roster.epoch + self.roster.members().due(self.node)?)
    }

    /// Has it looked at soon.
    pub fn call(&self) {
        self.roster.calls[self.node].notify_one();
    }

    /// Ends when it has to be looked at.
    pub async fn called(&self) {
        self.roster.calls[self.node].notified().await;
    }

    /// Whether it may vote, as far as is known.
    pub fn may_vote(&self) -> bool {
        self.roster.members().may_vote(self.node)
    }

    /// The same for people.
    pub fn standing(&self, now: Instant) -> Standing {
        self.roster.members().standing(self.node, self.roster.since_epoch(now))
    }

    /// Its clock. `wall_us` is what our wall clock shows `now`, in microseconds since 1970.
    pub fn clock(&self, now: Instant, wall_us: u128) -> ClockView {
        let members = self.roster.members();
        let clock = members.clock(self.node);
        let epoch_us = i128::try_from(wall_us).unwrap_or(i128::MAX)
            - i128::try_from(self.roster.since_epoch(now).as_micros()).unwrap_or_default();
        ClockView { offset: clock.offset_us().map(|us| (us - epoch_us) as f64 / 1e6), rate: clock.rate() }
    }
}
