//! Which nodes may vote: markers, quarantine, clocks that were set (protocol section 6).
//!
//! A node votes only while the marker that it keeps names the process that it is, its `run_id`. A process without such a
//! marker restarted, was replaced, or was emptied: it may have forgotten locks. It becomes *joining*, under a random mark that
//! the first proxy to see it leaves there, and votes again when everything that it may have forgotten has ended. The mark is
//! what a proxy counts from, and what its change of the marker rests on: whoever was held up, and finds another mark or none,
//! changes nothing.
//!
//! The marker and the node's clock come with every batch of votes, so there is no window between looking and voting. All of
//! this is one proxy's view; what it decides for all proxies it decides by writing a marker.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::clock::{ClockGuard, Reading, Sample};
use super::fencing::Ceiling;
use super::lease::Ttl;
use super::quorum::{NodeIndex, Quorum};
use super::validity::{DriftFactor, ceil_millis};

/// Where tokens come from: every proxy of a cluster has to agree about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// A Redis server of its own.
    Designated,
    /// The nodes themselves: the highest number of a quorum.
    Quorum,
}

impl CounterKind {
    /// As it is configured and written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Designated => "designated",
            Self::Quorum => "quorum",
        }
    }

    /// From its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Designated, Self::Quorum].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What a proxy takes the cluster for: all proxies need the same.
#[derive(Clone, Debug)]
pub struct Charter {
    /// The names of the configured nodes, in their order.
    pub nodes: Vec<Arc<str>>,
    /// Where tokens come from.
    pub counter: CounterKind,
    /// The longest lease that this proxy grants.
    pub max_ttl: Ttl,
    /// How differently clocks may run.
    pub drift: DriftFactor,
    /// People say that this cluster is new.
    pub bootstrap: bool,
}

/// Why a node is joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It had no marker: it lost its data, or another server stands in its place, or the cluster is new.
    Missing,
    /// Its marker named an earlier process.
    Restarted,
    /// Its clock was set.
    Clock,
}

impl Because {
    /// Each, as it is written.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Missing, "missing"), (Self::Restarted, "restarted"), (Self::Clock, "clock")];

    /// For markers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Restarted => "restarted",
            Self::Clock => "clock",
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => {
                "it had no marker: it restarted without its data, was emptied or replaced, or the cluster is new (if so, start \
                 one proxy with --nodes-bootstrap now)"
            }
            Self::Restarted => "it restarted, and does not write every change to disk: it may have forgotten locks",
            Self::Clock => "its clock was set: it may have ended leases early",
        })
    }
}

/// What a node keeps about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The process that it speaks of.
    pub run_id: Arc<str>,
    /// Whether that process may vote.
    pub state: State,
    /// The longest TTL ever served by the cluster, in milliseconds.
    pub max_ttl_ms: u64,
    /// Where tokens come from.
    pub counter: CounterKind,
    /// When the list of nodes was changed last, on this node's clock, in milliseconds since 1970; 0: never.
    pub listed_ms: u64,
    /// The configured nodes.
    pub nodes: Vec<Arc<str>>,
}

/// Whether a process may vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It may.
    Member,
    /// Not yet.
    Joining {
        /// Random: whoever ends this quarantine has to have seen it begin.
        mark: Arc<str>,
        /// Why.
        because: Because,
        /// On the node's clock, in milliseconds since 1970. For people only: a proxy counts from when it saw the mark.
        since_ms: u64,
    },
}

const HEAD: &str = "redlockd/1";

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD} run_id={}", self.run_id)?;
        if let State::Joining { mark, because, since_ms } = &self.state {
            write!(f, " joining={mark} because={} since_ms={since_ms}", because.as_str())?;
        }
        let (max_ttl_ms, counter, listed_ms) = (self.max_ttl_ms, self.counter.as_str(), self.listed_ms);
        // The names come last: only they may hold blanks.
        write!(f, " max_ttl_ms={max_ttl_ms} counter={counter} listed_ms={listed_ms} nodes={}", self.nodes.join(","))
    }
}

impl Marker {
    /// Nodes that are in one of the lists only.
    fn difference<'a>(&'a self, ours: &'a [Arc<str>]) -> Vec<&'a str> {
        let not_in = |list: &'a [Arc<str>]| move |name: &&'a Arc<str>| !list.contains(name);
        let differ = ours.iter().filter(not_in(&self.nodes)).chain(self.nodes.iter().filter(not_in(ours)));
        differ.map(|name| &**name).collect()
    }

    /// From what [`Marker`]'s `Display` wrote; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (fields, nodes) = text.split_once(" nodes=")?;
        let mut words = fields.split(' ');
        if words.next()? != HEAD {
            return None;
        }
        let field = |name: &str| words.clone().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let state = match (field("joining"), field("because")) {
            (None, None) => State::Member,
            (Some(mark), Some(because)) => {
                let (because, _) = Because::ALL.into_iter().find(|(_, word)| *word == because)?;
                State::Joining { mark: mark.into(), because, since_ms: field("since_ms")?.parse().ok()? }
            }
            _ => return None,
        };
        Some(Self {
            run_id: field("run_id")?.into(),
            state,
            max_ttl_ms: field("max_ttl_ms")?.parse().ok()?,
            counter: CounterKind::parse(field("counter")?)?,
            listed_ms: field("listed_ms")?.parse().ok()?,
            nodes: nodes.split(',').map(Arc::from).collect(),
        })
    }
}

/// Whether a node may vote now, and if not, why and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Votes,
    /// It has not been looked at since it was connected.
    Unread,
    /// It waits until what it may have forgotten has ended.
    Quarantined {
        /// Why.
        because: Because,
        /// For how long still; `None`: it has not begun.
        left: Option<Duration>,
    },
    /// Its clock leapt; whether it was the clock of this machine that stood still is being found out.
    Suspect,
    /// Its marker is being raised to our longest TTL.
    Raising,
    /// Its marker and our configuration do not fit.
    Foreign(Arc<str>),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Votes => f.write_str("votes"),
            Self::Unread => f.write_str("not looked at yet"),
            Self::Quarantined { because, left: Some(Duration::ZERO) } => {
                write!(f, "quarantined until the other nodes, or the counter, tell how far tokens have got: {because}")
            }
            Self::Quarantined { because, left: None } => write!(f, "quarantined from now on: {because}"),
            Self::Quarantined { because, left: Some(left) } => {
                write!(f, "quarantined for another {:.1} s: {because}", left.as_secs_f64())
            }
            Self::Suspect => {
                f.write_str("its clock leapt against ours; the other nodes are asked whether it or we stood still")
            }
            Self::Raising => f.write_str("its marker is being raised to the longest TTL of this proxy"),
            Self::Foreign(why) => f.write_str(why),
        }
    }
}

/// A change of a node's marker: `new` if it is `expected`, else nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerChange {
    /// What has to be there; empty: nothing.
    pub expected: Arc<str>,
    /// What is there afterwards.
    pub new: Arc<str>,
    /// The ceiling of the fencing counter that it has to hold before.
    pub lift: Option<Arc<str>>,
}

/// A node that votes as soon as its counters are as high as those of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantsCounters {
    /// Which.
    pub node: NodeIndex,
    /// Of its quarantine.
    pub mark: Arc<str>,
    /// The cluster is new: nobody has any.
    pub is_new: bool,
}

/// A quarantine that is over.
struct EndedQuarantine<'a> {
    mark: &'a Arc<str>,
    /// Since when.
    at: Duration,
    /// The cluster is new: it did not run its course.
    is_new: bool,
}

/// What was read as a node's marker.
#[derive(Clone, Debug)]
enum Read {
    Unread,
    Absent,
    Unreadable,
    Marker(Marker),
}

/// One node.
#[derive(Clone, Debug)]
struct Known {
    /// Of the present connection.
    run_id: Arc<str>,
    /// It writes every change to disk before it answers.
    durable: bool,
    reachable: bool,
    text: Arc<str>,
    read: Read,
    /// Whether what was read lets it vote.
    member: bool,
    /// The present quarantine: its mark, and when it was first read.
    since: Option<(Arc<str>, Duration)>,
    /// Its clock was set, and its marker does not say so yet.
    convicted: bool,
    /// Our list of nodes has been compared with its own.
    listed: bool,
    clock: ClockGuard,
    suspect: Option<Suspect>,
    /// When the last sample's call was sent.
    sampled: Option<Duration>,
    node_ms: u64,
    ceiling: Option<CeilingRead>,
    /// Whether it holds no counters of an earlier time; unknown until it was asked.
    untouched: Option<bool>,
    /// The quarantine for which its counters have been brought up, by its mark.
    counters_for: Option<Arc<str>>,
}

/// A ceiling of the fencing counter, as a node held it.
#[derive(Clone, Debug)]
struct CeilingRead {
    /// When it was asked for.
    sent: Duration,
    /// Whether the node might vote when it answered.
    voted: bool,
    ceiling: Option<Ceiling>,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    by_us: i64,
    since: Duration,
}

/// Two clocks that leapt because we slept differ by what calls take.
const SAME_LEAP_US: i64 = 250_000;

/// After that, nodes that have not answered are no witnesses any more.
const HEARING: Duration = Duration::from_secs(2);

/// Whether the cluster is new.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Newness {
    /// People say so; it has to be seen.
    Claimed,
    /// It was, with these marks: this quarantine of each node need not run its course.
    Seen(Vec<Arc<str>>),
    /// It is not, or not any more.
    No,
}

/// All nodes as one proxy sees them.
#[derive(Debug)]
pub struct Members {
    charter: Charter,
    quorum: Quorum,
    nodes: Vec<Known>,
    /// The longest TTL that any marker named.
    largest_ms: u64,
    /// Whether the counter holds no trace of an earlier time; unknown until it was asked.
    counter_untouched: Option<bool>,
    newness: Newness,
    /// The ceiling of a counter that runs, and when it was asked for.
    counter_ceiling: Option<(Duration, Ceiling)>,
    /// How often this proxy's machine was found to have slept.
    sleeps: u64,
    /// The last time: for how long, and when it was found out.
    slept: Option<Suspect>,
}

impl Members {
    /// Nothing is known yet.
    pub fn new(charter: Charter, quorum: Quorum) -> Self {
        let unknown = Known {
            run_id: "".into(),
            durable: false,
            reachable: false,
            text: "".into(),
            read: Read::Unread,
            member: false,
            since: None,
            convicted: false,
            listed: false,
            clock: ClockGuard::new(charter.drift),
            suspect: None,
            sampled: None,
            node_ms: 0,
            ceiling: None,
            untouched: None,
            counters_for: None,
        };
        let nodes = vec![unknown; quorum.nodes()];
        let largest_ms = charter.max_ttl.as_millis();
        let newness = if charter.bootstrap { Newness::Claimed } else { Newness::No };
        Self {
            charter,
            quorum,
            largest_ms,
            nodes,
            counter_untouched: None,
            newness,
            counter_ceiling: None,
            sleeps: 0,
            slept: None,
        }
    }

    /// A new connection to a process. `durable`: it says that every change is on disk before it answers, and has loaded what it
    /// had there.
    pub fn on_connected(&mut self, node: NodeIndex, run_id: Arc<str>, durable: bool) {
        let known = &mut self.nodes[node];
        if known.run_id != run_id {
            (known.since, known.ceiling, known.untouched) = (None, None, None);
        }
        (known.run_id, known.durable, known.reachable) = (run_id, durable, true);
        (known.read, known.member, known.text) = (Read::Unread, false, "".into());
    }

    /// Its connection is gone, or it does not answer.
    pub fn on_lost(&mut self, node: NodeIndex, now: Duration) {
        self.nodes[node].reachable = false;
        self.judge_clocks(now);
    }

    /// It answers again.
    pub fn on_back(&mut self, node: NodeIndex) {
        self.nodes[node].reachable = true;
    }

    /// What a batch told about its node: whether the votes in it count.
    pub fn on_batch(&mut self, node: NodeIndex, marker: &str, sample: Sample) -> bool {
        let now = sample.received;
        let known = &mut self.nodes[node];
        let before = known.sampled.replace(sample.sent);
        known.node_ms = sample.node_us / 1_000;
        if let Reading::Stepped { by_us } = known.clock.take(sample) {
            let earlier = known.suspect.map_or(0, |suspect| suspect.by_us);
            let since = known.suspect.map_or(now, |suspect| suspect.since);
            // Not heard since we slept: it only now tells of it.
            let late =
                |slept: Suspect| before.is_some_and(|sent| sent < slept.since) && (by_us - slept.by_us).abs() <= SAME_LEAP_US;
            if known.suspect.is_some() || !self.slept.is_some_and(late) {
                known.suspect = Some(Suspect { by_us: by_us.saturating_add(earlier), since });
            }
        }
        if matches!(known.read, Read::Unread) || *known.text != *marker {
            self.read(node, marker, now);
        }
        self.judge_clocks(now);
        let known = &self.nodes[node];
        (known.member || mutant!("quarantine-ignored")) && !self.clock_is_doubtful(node)
    }

    fn clock_is_doubtful(&self, node: NodeIndex) -> bool {
        let known = &self.nodes[node];
        (known.convicted || known.suspect.is_some()) && !mutant!("clock-guard-ignored")
    }

    fn read(&mut self, node: NodeIndex, text: &str, now: Duration) {
        let known = &mut self.nodes[node];
        known.text = text.into();
        known.read = match Marker::parse(text) {
            _ if text.is_empty() => Read::Absent,
            Some(marker) => Read::Marker(marker),
            None => Read::Unreadable,
        };
        if let Read::Marker(marker) = &known.read {
            self.largest_ms = self.largest_ms.max(marker.max_ttl_ms);
            known.listed |= marker.nodes == self.charter.nodes;
            if let State::Joining { mark, .. } = &marker.state {
                if known.since.as_ref().is_none_or(|(seen, _)| seen != mark) {
                    known.since = Some((mark.clone(), now));
                    // From now on the marker says it.
                    known.convicted = false;
                }
            } else {
                known.since = None;
            }
        }
        self.nodes[node].member = self.standing_of_marker(node) == Standing::Votes;
        self.look_for_newness();
    }

    /// A suspect is convicted, or found to have been wronged: if all clocks leapt ahead alike, it was ours that stood still.
    fn judge_clocks(&mut self, now: Duration) {
        let suspects = self.nodes.iter().filter_map(|known| known.suspect);
        let Some(began) = suspects.clone().map(|suspect| suspect.since).min() else { return };
        let leaps = suspects.map(|suspect| suspect.by_us);
        let (least, most) = leaps.fold((i64::MAX, i64::MIN), |(least, most), us| (least.min(us), most.max(us)));
        let heard = |known: &Known| known.suspect.is_some() || known.sampled.is_some_and(|sent| sent >= began);
        // Also those that can not be reached: where we slept, connections may have died of it.
        let mut witnesses = self.nodes.iter().filter(|known| known.sampled.is_some());
        if !witnesses.all(heard) && now.saturating_sub(began) < HEARING {
            return;
        }
        let all = self.nodes.iter().filter(|known| heard(known)).all(|known| known.suspect.is_some());
        let leapt = self.nodes.iter().filter(|known| known.suspect.is_some()).count();
        // One clock alone is no witness of its own.
        let we_slept = all && leapt > 1 && self.quorum.reached(leapt) && least > 0 && most - least <= SAME_LEAP_US;
        if we_slept {
            self.sleeps += 1;
            self.slept = Some(Suspect { by_us: least, since: now });
        }
        for known in self.nodes.iter_mut().filter(|known| known.suspect.is_some()) {
            known.suspect = None;
            known.convicted |= !we_slept;
        }
    }

    /// The counter was asked: whether it holds no trace of an earlier time.
    pub fn on_counter(&mut self, untouched: bool) {
        self.counter_untouched = Some(untouched);
        self.look_for_newness();
    }

    /// The counter runs on its own process, and hands out nothing above `ceiling`.
    pub fn on_counter_ceiling(&mut self, ceiling: u64, owner: &str, sent: Duration) {
        self.counter_ceiling = Some((sent, Ceiling { number: ceiling, owner: owner.into() }));
    }

    /// A node holds this as the ceiling of the counter; empty: none.
    pub fn on_ceiling(&mut self, node: NodeIndex, text: &str, sent: Duration, voted: bool) {
        self.nodes[node].ceiling = Some(CeilingRead { sent, voted, ceiling: Ceiling::parse(text) });
        self.look_for_newness();
    }

    /// Whether people say that the cluster is new, and it has still to be seen.
    pub fn may_be_new(&self) -> bool {
        self.newness == Newness::Claimed
    }

    /// A node was asked whether it holds counters of an earlier time.
    pub fn on_untouched(&mut self, node: NodeIndex, untouched: bool) {
        self.nodes[node].untouched = Some(untouched);
        self.look_for_newness();
    }

    /// The ceiling that a node has to hold before its first vote, as `Some(text)`, empty if there is none anywhere. Its own may
    /// be old or gone, and it may stand on a quorum less one of the others only. So it is read from so many others that vote
    /// that one of these is among them; not before the quarantine is over, because until then a raise may be under way that
    /// this node answered before it forgot. `None`: not known yet.
    fn ceiling_for(&self, node: NodeIndex, over: Duration) -> Option<Arc<str>> {
        let needed = self.nodes.len() - self.quorum.size() + 1;
        let reads = || self.nodes.iter().enumerate().filter_map(|(n, known)| Some((n, known.ceiling.as_ref()?)));
        let fresh = || reads().filter(|(_, read)| read.sent >= over);
        let voters = fresh().filter(|(n, read)| *n != node && read.voted && self.may_vote(*n)).count();
        // A majority restarted: whatever those know that can be reached is all that is known, or a counter that runs knows its own.
        // It may be too low. But a counter that has to be started again begins at the present time at least.
        let counter = self.counter_ceiling.as_ref().filter(|(sent, _)| *sent >= over);
        let have_told = fresh().filter(|(n, _)| self.nodes[*n].reachable).count();
        let reachable = self.nodes.iter().filter(|known| known.reachable).count();
        if voters < needed && have_told < reachable && counter.is_none() {
            return None;
        }
        let known = fresh().filter_map(|(_, read)| read.ceiling.as_ref()).chain(counter.map(|(_, ceiling)| ceiling));
        let highest = known.max_by_key(|ceiling| ceiling.number);
        Some(highest.map_or("".into(), |ceiling| ceiling.to_string().into()))
    }

    /// A cluster is new if all nodes answered, and none of them, nor the counter, holds a trace of an earlier time. This is
    /// found out once in a proxy's life: a cluster in which something votes is not new any more.
    fn look_for_newness(&mut self) {
        if self.newness != Newness::Claimed {
            return;
        }
        let mark = |known: &Known| match (&known.read, &known.since) {
            (Read::Marker(Marker { state: State::Joining { because: Because::Missing, .. }, run_id, .. }), Some((mark, _)))
                if *run_id == known.run_id && known.reachable =>
            {
                Some(mark.clone())
            }
            _ => None,
        };
        let marks: Option<Vec<Arc<str>>> = self.nodes.iter().map(mark).collect();
        let has_trace = |known: &Known| {
            let in_marker = match &known.read {
                Read::Unread | Read::Absent => false,
                Read::Unreadable => true,
                Read::Marker(_) => mark(known).is_none(),
            };
            in_marker || known.untouched == Some(false) || known.ceiling.as_ref().is_some_and(|read| read.ceiling.is_some())
        };
        let all_told = self.nodes.iter().all(|known| known.untouched.is_some() && known.ceiling.is_some());
        if self.counter_untouched == Some(false) || self.nodes.iter().any(has_trace) {
            self.newness = Newness::No;
        } else if let (Some(marks), Some(true), true) = (marks, self.counter_untouched, all_told) {
            self.newness = Newness::Seen(marks);
        }
    }

    /// How often this proxy's machine was found to have slept: what was under way then has to be given up.
    pub fn sleeps(&self) -> u64 {
        self.sleeps
    }

    /// Whether some clock is suspected: every node has to be asked at once.
    pub fn hearing(&self) -> bool {
        self.nodes.iter().any(|known| known.suspect.is_some())
    }

    /// How long a node that may have forgotten locks stays out: what it may have forgotten has then ended for every client.
    pub fn quarantine(&self) -> Duration {
        let ms = if mutant!("quarantine-ends-early") { self.largest_ms / 4 } else { self.largest_ms };
        Duration::from_millis(ms.saturating_add(self.charter.drift.drift_ms(ms)))
    }

    /// Whether the node may vote, for people and metrics.
    pub fn standing(&self, node: NodeIndex, now: Duration) -> Standing {
        let known = &self.nodes[node];
        if known.convicted {
            return Standing::Quarantined { because: Because::Clock, left: None };
        }
        if known.suspect.is_some() {
            return Standing::Suspect;
        }
        match self.standing_of_marker(node) {
            Standing::Quarantined { because, left: None } => {
                let left = known.since.as_ref().map(|(_, since)| (*since + self.quarantine()).saturating_sub(now));
                Standing::Quarantined { because, left }
            }
            standing => standing,
        }
    }

    /// Whether what it is known by may vote.
    pub fn may_vote(&self, node: NodeIndex) -> bool {
        self.nodes[node].member && !self.clock_is_doubtful(node)
    }

    fn standing_of_marker(&self, node: NodeIndex) -> Standing {
        let known = &self.nodes[node];
        let quarantined = |because| Standing::Quarantined { because, left: None };
        match &known.read {
            Read::Unread => Standing::Unread,
            Read::Absent => quarantined(Because::Missing),
            Read::Unreadable => Standing::Foreign(
                "not usable: its marker redlockd:member is of another version of redlockd; run one version, or delete the key to \
                 begin a quarantine"
                    .into(),
            ),
            Read::Marker(marker) => match &marker.state {
                State::Joining { because, .. } if marker.run_id == known.run_id => quarantined(*because),
                _ if marker.run_id != known.run_id => quarantined(Because::Restarted),
                _ => match self.objection(node, marker) {
                    Some(why) => Standing::Foreign(why.into()),
                    None if marker.max_ttl_ms < self.charter.max_ttl.as_millis() => Standing::Raising,
                    None => Standing::Votes,
                },
            },
        }
    }

    /// Why a marker and our configuration do not fit.
    fn objection(&self, node: NodeIndex, marker: &Marker) -> Option<String> {
        let theirs = &marker.nodes;
        if marker.counter != self.charter.counter {
            return Some(format!(
                "not usable: its marker says that tokens come from the {} counter, and this proxy is configured for the {} one. To \
                 change it, stop every proxy, delete the key redlockd:member on every node and redlockd:fence:counter on the \
                 designated server, and start them with the new counter",
                marker.counter.as_str(),
                self.charter.counter.as_str()
            ));
        }
        let differ = marker.difference(&self.charter.nodes);
        let since_ms = self.nodes[node].node_ms.saturating_sub(marker.listed_ms);
        let pace_ms = ceil_millis(self.quarantine());
        match differ.len() {
            0 => None,
            1 if self.nodes[node].listed || since_ms >= pace_ms => None,
            1 => Some(format!(
                "not usable: its list of nodes was changed {} s ago, and this proxy's differs in {}. One node at a time, {} s apart",
                since_ms / 1_000,
                differ[0],
                pace_ms.div_ceil(1_000)
            )),
            _ => Some(format!(
                "not usable: its marker lists the nodes {}, which differs in {} from this proxy's. Change one node at a time, {} s apart",
                theirs.join(", "),
                differ.join(", "),
                pace_ms.div_ceil(1_000)
            )),
        }
    }

    /// The change of the node's marker that is due, if any. `fresh` is a random mark.
    pub fn due_change(&self, node: NodeIndex, now: Duration, fresh: impl FnOnce() -> String) -> Option<MarkerChange> {
        let known = &self.nodes[node];
        // Asked after every batch, and nearly always so.
        if known.member && known.listed && !known.convicted {
            return None;
        }
        let mut lift = None;
        let new = match &known.read {
            Read::Unread | Read::Unreadable => return None,
            Read::Absent => self.joining(node, None, Because::Missing, fresh),
            Read::Marker(marker) => match &marker.state {
                State::Member if marker.run_id == known.run_id => self.change_of_member(node, marker, fresh)?,
                State::Member if self.keeps_all(node, marker) => self.member(node, Some(marker)),
                // Renewals count on what it holds now: what it loses while it is joining begins a quarantine of its own.
                State::Joining { .. } if marker.run_id == known.run_id && known.convicted => {
                    self.joining(node, Some(marker), Because::Clock, fresh)
                }
                State::Joining { .. } if marker.run_id == known.run_id => {
                    let ended = self.ended_quarantine(node, now)?;
                    match self.charter.counter {
                        CounterKind::Quorum if known.counters_for.as_ref() != Some(ended.mark) => return None,
                        CounterKind::Designated if !ended.is_new => {
                            lift = Some(self.ceiling_for(node, ended.at)?).filter(|text| !text.is_empty());
                        }
                        _ => {}
                    }
                    self.member(node, Some(marker))
                }
                State::Member | State::Joining { .. } => self.joining(node, Some(marker), Because::Restarted, fresh),
            },
        };
        let new: Arc<str> = new.to_string().into();
        (new != known.text).then(|| MarkerChange { expected: known.text.clone(), new, lift })
    }

    /// The quarantine of a node that is over, or need not run its course: what is left is to bring it up.
    fn ended_quarantine(&self, node: NodeIndex, now: Duration) -> Option<EndedQuarantine<'_>> {
        let known = &self.nodes[node];
        let (Read::Marker(marker), Some((mark, since))) = (&known.read, &known.since) else { return None };
        let is_joining = marker.run_id == known.run_id && marker.state != State::Member;
        let is_new = matches!(&self.newness, Newness::Seen(marks) if marks[node] == *mark);
        let at = *since + self.quarantine();
        let ended = is_new || (now >= at && self.has_read_quorum(*since));
        (is_joining && ended && !self.clock_is_doubtful(node)).then_some(EndedQuarantine { mark, at, is_new })
    }

    fn change_of_member(&self, node: NodeIndex, marker: &Marker, fresh: impl FnOnce() -> String) -> Option<Marker> {
        let known = &self.nodes[node];
        if known.convicted {
            return Some(self.joining(node, Some(marker), Because::Clock, fresh));
        }
        if self.objection(node, marker).is_some() {
            return None;
        }
        // Proxies that are still configured with the old list do not change it back.
        let relist = marker.nodes != self.charter.nodes && !known.listed;
        let raised = marker.max_ttl_ms < self.charter.max_ttl.as_millis();
        (relist || raised).then(|| self.member(node, Some(marker)))
    }

    /// Whether a process that comes after the one that the marker names has certainly forgotten nothing.
    fn keeps_all(&self, node: NodeIndex, marker: &Marker) -> bool {
        let known = &self.nodes[node];
        known.durable && !self.clock_is_doubtful(node) && self.objection(node, marker).is_none()
    }

    /// The longest TTL ever served has been read from a quorum since then.
    fn has_read_quorum(&self, since: Duration) -> bool {
        let read = self.nodes.iter().filter(|known| known.sampled.is_some_and(|sent| sent >= since));
        self.quorum.reached(read.count())
    }

    fn joining(&self, node: NodeIndex, before: Option<&Marker>, because: Because, fresh: impl FnOnce() -> String) -> Marker {
        let state = State::Joining { mark: fresh().into(), because, since_ms: self.nodes[node].node_ms };
        let (nodes, listed_ms) = before.map_or((self.charter.nodes.clone(), 0), |old| (old.nodes.clone(), old.listed_ms));
        Marker { state, nodes, listed_ms, ..self.member(node, before) }
    }

    fn member(&self, node: NodeIndex, before: Option<&Marker>) -> Marker {
        let known = &self.nodes[node];
        let (nodes, listed_ms) = match before {
            // Later by what may have passed since the clock was read.
            Some(old) if old.nodes != self.charter.nodes && !known.listed => {
                (self.charter.nodes.clone(), known.node_ms + 1_000)
            }
            Some(old) => (old.nodes.clone(), old.listed_ms),
            None => (self.charter.nodes.clone(), 0),
        };
        let (run_id, counter) = (known.run_id.clone(), self.charter.counter);
        Marker { run_id, state: State::Member, max_ttl_ms: self.largest_ms, counter, listed_ms, nodes }
    }

    /// When the node's quarantine will be over.
    pub fn due(&self, node: NodeIndex) -> Option<Duration> {
        let (_, since) = self.nodes[node].since.as_ref()?;
        Some(*since + self.quarantine())
    }

    /// The nodes whose quarantine is over but for their counters (quorum counter only).
    pub fn wants_counters(&self, now: Duration) -> Vec<WantsCounters> {
        if self.charter.counter != CounterKind::Quorum {
            return Vec::new();
        }
        let wants = |node: NodeIndex| {
            let (known, ended) = (&self.nodes[node], self.ended_quarantine(node, now)?);
            let wants = known.reachable && known.counters_for.as_ref() != Some(ended.mark);
            wants.then(|| WantsCounters { node, mark: ended.mark.clone(), is_new: ended.is_new })
        };
        (0..self.nodes.len()).filter_map(wants).collect()
    }

    /// The counters of a node have been brought up in the quarantine of this mark.
    pub fn on_counters(&mut self, node: NodeIndex, mark: Arc<str>) {
        self.nodes[node].counters_for = Some(mark);
    }

    /// The highest ceiling of a designated counter that any node told of: an earlier time's tokens end there.
    pub fn highest_ceiling(&self) -> u64 {
        let told = self.nodes.iter().filter_map(|known| known.ceiling.as_ref()?.ceiling.as_ref());
        told.map(|ceiling| ceiling.number).max().unwrap_or_default()
    }

    /// The clock of a node, for people and metrics.
    pub fn clock(&self, node: NodeIndex) -> &ClockGuard {
        &self.nodes[node].clock
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
