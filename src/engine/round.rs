//! One operation on all nodes as a state machine: replies go in, the decision comes out.
//!
//! Each round decides once, with the first reply after which no later one could change the answer. Replies that come
//! later are still taken in: they say whether their node has to be cleaned up.

use std::sync::Arc;

use super::lease::Owner;
use super::quorum::{NodeIndex, Quorum};
use super::reply::{Reply, Stored, Why, WhyKind};

/// What to do after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer is open, or was given before.
    Wait,
    /// The node that was asked first does not stand in the way: the others have to be asked now.
    AskTheOthers,
    /// A quorum said yes.
    Grant,
    /// There will be no quorum.
    GiveUp(Loss),
}

/// Why an attempt did not get its quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A quorum of the nodes replied, but too few with yes: somebody else holds the lock, or the votes were split.
    Contended,
    /// Too few nodes replied.
    NoQuorum,
}

/// One node's vote, as far as it is known.
#[derive(Clone, Debug)]
enum Vote {
    /// It is asked once the first node has said yes.
    NotAsked,
    /// In the mailbox, not sent yet.
    Queued,
    /// Sent, no reply yet.
    Sent,
    /// Our value is there.
    Yes,
    /// Another one is: ours left no trace.
    No(Stored),
    /// No reply, or an error.
    Unknown(Why),
    /// Taken back before it was sent.
    Dropped,
}

/// How many of the votes are what.
#[derive(Default)]
struct Tally {
    not_asked: usize,
    yes: usize,
    /// With yes or no.
    replied: usize,
    /// Those that were not asked, too.
    pending: usize,
    silent: usize,
}

/// One attempt to set our value on a quorum of the nodes.
#[derive(Debug)]
pub struct AcquireRound {
    quorum: Quorum,
    votes: Vec<Vote>,
    decided: bool,
    given_up: bool,
    /// The node that is asked before the others, if there is one.
    first: Option<NodeIndex>,
    /// It refused, and no other was asked.
    lost_at_the_first: bool,
}

impl AcquireRound {
    /// An attempt on all nodes of `quorum`.
    pub fn new(quorum: Quorum) -> Self {
        let votes = vec![Vote::Queued; quorum.nodes()];
        Self { quorum, votes, decided: false, given_up: false, first: None, lost_at_the_first: false }
    }

    /// The same, but the others are asked once `first` has said yes: proxies that try the same node first do not split the votes
    /// (protocol section 3). If it does not answer, they are asked all the same.
    pub fn one_first(quorum: Quorum, first: NodeIndex) -> Self {
        let mut round = Self { first: Some(first), ..Self::new(quorum) };
        round.others().for_each(|node| round.votes[node] = Vote::NotAsked);
        round
    }

    /// The nodes that have to be asked after [`Step::AskTheOthers`].
    pub fn others(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        let first = self.first;
        (0..self.votes.len()).filter(move |node| Some(*node) != first)
    }

    /// Whether nobody wants it any more.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether a quorum said yes.
    pub fn has_quorum(&self) -> bool {
        self.quorum.reached(self.tally().yes)
    }

    /// Asked before the operation is sent to `node`: `false` if it shall not be sent any more. `true` counts it as sent.
    ///
    /// What a given-up attempt has not sent is dropped; the unsent rest of a granted one still goes out.
    pub fn on_sending(&mut self, node: NodeIndex) -> bool {
        if self.given_up && !mutant!("unsent-set-is-sent") {
            return false;
        }
        if matches!(self.votes[node], Vote::Queued) {
            self.votes[node] = Vote::Sent;
        }
        true
    }

    /// Takes a reply in. A late reply replaces the time-out that stood for it.
    pub fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Step {
        let vote = match reply {
            Reply::Yes | Reply::Counted { .. } | Reply::HandedOver { no_vote: None, .. } => Vote::Yes,
            Reply::HandedOver { no_vote: Some(kind), .. } => Vote::Unknown(Why { kind, may_have_landed: true }),
            Reply::Other(stored) => Vote::No(stored),
            Reply::Unknown(why) if mutant!("error-is-yes") && why.may_have_landed => Vote::Yes,
            Reply::Unknown(why) => Vote::Unknown(why),
            _ => Vote::Unknown(out_of_place()),
        };
        match (&self.votes[node], &vote) {
            // A yes or no stands: nothing that comes after it is about this SET.
            (Vote::Yes | Vote::No(_) | Vote::Dropped, _) => return Step::Wait,
            _ => self.votes[node] = vote,
        }
        self.decide()
    }

    /// The attempt's time for votes is over: whoever has not replied counts as unknown.
    pub fn on_timeout(&mut self) -> Step {
        // One that is still queued stays so: it is dropped when the caller gives up.
        for vote in self.votes.iter_mut().filter(|vote| matches!(vote, Vote::Sent)) {
            *vote = Vote::Unknown(Why { kind: WhyKind::NotAwaited, may_have_landed: true });
        }
        if self.decided {
            return Step::Wait;
        }
        self.decided = true;
        Step::GiveUp(if self.quorum.reached(self.tally().replied) { Loss::Contended } else { Loss::NoQuorum })
    }

    fn decide(&mut self) -> Step {
        if self.decided {
            return Step::Wait;
        }
        let Tally { not_asked, yes, replied, pending, silent } = self.tally();
        if not_asked > 0 {
            return self.decide_on_the_first();
        }
        let reachable = mutant!("quorum-of-the-reachable") && yes > (self.votes.len() - silent) / 2;
        let step = if self.quorum.reached(yes) || reachable {
            Step::Grant
        } else if self.quorum.reached(yes + pending) {
            Step::Wait
        } else if self.quorum.reached(replied) {
            Step::GiveUp(Loss::Contended)
        } else if self.quorum.reached(replied + pending) {
            // Lost, but a reply under way still decides whether it is the others or the silence that is to blame.
            Step::Wait
        } else {
            Step::GiveUp(Loss::NoQuorum)
        };
        self.decided = step != Step::Wait;
        step
    }

    fn decide_on_the_first(&mut self) -> Step {
        if self.refusals().next().is_some() {
            (self.decided, self.lost_at_the_first) = (true, true);
            return Step::GiveUp(Loss::Contended);
        }
        for vote in self.votes.iter_mut().filter(|vote| matches!(vote, Vote::NotAsked)) {
            *vote = Vote::Queued;
        }
        Step::AskTheOthers
    }

    /// Ends the attempt without a lease: which nodes need a release. They are all that did not refuse, the silent ones too,
    /// less those to which nothing was sent.
    pub fn give_up(&mut self) -> Vec<NodeIndex> {
        self.decided = true;
        self.given_up = true;
        for vote in &mut self.votes {
            if matches!(vote, Vote::NotAsked | Vote::Queued) {
                *vote = Vote::Dropped;
            }
        }
        (0..self.votes.len()).filter(|node| self.needs_release(*node)).collect()
    }

    /// Whether our value may be on `node`. A refusal that came late proves that it is not.
    pub fn needs_release(&self, node: NodeIndex) -> bool {
        match &self.votes[node] {
            Vote::NotAsked | Vote::Queued | Vote::Dropped | Vote::No(_) => false,
            Vote::Yes => true,
            Vote::Sent => !mutant!("clean-up-only-where-granted"),
            Vote::Unknown(why) => why.may_have_landed && !mutant!("clean-up-only-where-granted"),
        }
    }

    /// Counted at every reply.
    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for vote in &self.votes {
            match vote {
                Vote::NotAsked => (tally.not_asked, tally.pending) = (tally.not_asked + 1, tally.pending + 1),
                Vote::Queued | Vote::Sent => tally.pending += 1,
                Vote::Yes => (tally.yes, tally.replied) = (tally.yes + 1, tally.replied + 1),
                Vote::No(_) => tally.replied += 1,
                Vote::Unknown(_) => tally.silent += 1,
                Vote::Dropped => {}
            }
        }
        tally
    }

    /// The label of the value that most of the refusing nodes hold.
    pub fn holder(&self) -> Option<Owner> {
        let values: Vec<&Stored> = self.refusals().filter(|stored| stored.value.is_some()).collect();
        values.iter().max_by_key(|a| values.iter().filter(|b| a.value == b.value).count())?.owner()
    }

    /// Whether a quorum refused because of this value.
    pub fn is_refused_for(&self, value: &[u8]) -> bool {
        self.quorum.reached(self.refusals().filter(|stored| stored.value.as_deref() == Some(value)).count())
    }

    /// Whether a quorum refused because of one value: not all of them because the votes were split.
    pub fn is_settled(&self) -> bool {
        self.refusals().filter_map(|stored| stored.value.as_deref()).any(|value| self.is_refused_for(value))
    }

    /// Milliseconds until so many refusing keys have expired that a quorum could be free. `None` if only keys without an end
    /// stand in the way, or none.
    pub fn free_in_ms(&self) -> Option<u64> {
        if self.lost_at_the_first {
            return self.refusals().find_map(|stored| stored.left_ms);
        }
        let free_now = self.quorum.nodes() - self.refusals().count();
        let missing = self.quorum.size().checked_sub(free_now)?;
        let mut ends: Vec<u64> = self.refusals().filter_map(|stored| stored.left_ms).collect();
        ends.sort_unstable();
        ends.get(missing.checked_sub(1)?).copied()
    }

    fn refusals(&self) -> impl Iterator<Item = &Stored> {
        self.votes.iter().filter_map(|vote| match vote {
            Vote::No(stored) => Some(stored),
            _ => None,
        })
    }

    /// What each node said, for people.
    pub fn report(&self) -> Vec<String> {
        self.votes
            .iter()
            .map(|vote| match vote {
                Vote::NotAsked | Vote::Queued | Vote::Sent | Vote::Dropped => WhyKind::NotAwaited.to_string(),
                Vote::Yes => "yes".to_owned(),
                Vote::No(stored) => describe(stored),
                Vote::Unknown(why) => why.kind.to_string(),
            })
            .collect()
    }
}

fn describe(stored: &Stored) -> String {
    let left = match stored.left_ms {
        Some(ms) => format!("for another {ms} ms"),
        None => "without an end".to_owned(),
    };
    match (&stored.value, stored.owner()) {
        (None, _) => format!("refused: wrong type, the key holds something that is no lock, {left}"),
        (Some(_), Some(owner)) => format!("refused: held by {} {left}", owner.as_str()),
        (Some(_), None) => format!("refused: held {left}"),
    }
}

fn out_of_place() -> Why {
    Why { kind: WhyKind::ServerError("a reply of the wrong kind".into()), may_have_landed: true }
}

/// What a release, a renewal or a check found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A quorum held the lease (and has deleted or prolonged it).
    Held,
    /// So many nodes do not hold it that no quorum can.
    NotHeld,
    /// Neither can be proven: too many nodes did not answer.
    Unknown,
}

/// An operation on an existing lease: release, renewal or check.
#[derive(Debug)]
pub struct LeaseRound {
    quorum: Quorum,
    replies: Vec<Option<Reply>>,
    decided: bool,
    /// A release whose fate is unknown is sent again, and may find what it did itself.
    is_release: bool,
}

impl LeaseRound {
    /// A question to all nodes of `quorum`.
    pub fn new(quorum: Quorum) -> Self {
        let replies = std::iter::repeat_with(|| None).take(quorum.nodes()).collect();
        Self { quorum, replies, decided: false, is_release: false }
    }

    /// A release.
    pub fn release(quorum: Quorum) -> Self {
        Self { is_release: true, ..Self::new(quorum) }
    }

    /// Takes a reply in; `Some` once, when the answer is certain.
    pub fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Option<Verdict> {
        let stands = match &self.replies[node] {
            None => false,
            // "Not there" may be the work of the first time, and so it stays if the second is lost too.
            Some(Reply::Unknown(why)) => {
                self.is_release && why.may_have_landed && matches!(reply, Reply::Absent | Reply::Unknown(_))
            }
            Some(_) => true,
        };
        if !stands {
            self.replies[node] = Some(reply);
        }
        if self.decided {
            return None;
        }
        let (held, against, pending) = self.tally();
        let verdict = if self.quorum.reached(held) {
            Verdict::Held
        } else if self.quorum.impossible(against) {
            Verdict::NotHeld
        } else if self.quorum.reached(held + pending) || self.quorum.impossible(against + pending) {
            return None;
        } else {
            Verdict::Unknown
        };
        self.decided = true;
        Some(verdict)
    }

    /// How many hold it, do not hold it, and have not replied. Counted at every reply.
    fn tally(&self) -> (usize, usize, usize) {
        let (mut held, mut against, mut pending) = (0, 0, 0);
        for reply in &self.replies {
            match reply {
                None => pending += 1,
                Some(Reply::Yes | Reply::Held { .. } | Reply::Released { .. } | Reply::HandedOver { released: true, .. }) => {
                    held += 1;
                }
                Some(Reply::Absent | Reply::Other(_) | Reply::HandedOver { released: false, .. }) => against += 1,
                Some(_) => {}
            }
        }
        (held, against, pending)
    }

    /// Milliseconds for which a quorum keeps the lease: the quorum-th largest time left among the nodes that hold it, or
    /// `None` if they are fewer. `at_least_ms` is what a renewal has just given to each of them; 0 for a check.
    pub fn left_ms(&self, at_least_ms: u64) -> Option<u64> {
        let left = self.replies.iter().filter_map(|reply| match reply {
            Some(Reply::Held { left_ms }) => Some((*left_ms).max(at_least_ms)),
            _ => None,
        });
        self.quorum.reached_by_quorum(left.collect())
    }

    /// Whether a node holds another value, one that fits.
    pub fn found(&self, fits: impl Fn(&[u8]) -> bool) -> bool {
        let other = |reply: &Option<Reply>| match reply {
            Some(Reply::Other(stored)) => stored.value.as_deref().is_some_and(&fits),
            _ => false,
        };
        self.replies.iter().any(other)
    }

    /// Whether `node` has lost the key: after a successful renewal it gets it back.
    pub fn lost_the_key(&self, node: NodeIndex) -> bool {
        matches!(self.replies[node], Some(Reply::Absent))
    }

    /// What each node said, for people.
    pub fn report(&self) -> Vec<String> {
        self.replies.iter().map(describe_reply).collect()
    }
}

fn describe_reply(reply: &Option<Reply>) -> String {
    match reply {
        None => WhyKind::NotAwaited.to_string(),
        Some(Reply::Unknown(why)) => why.kind.to_string(),
        Some(Reply::Yes) => "yes".to_owned(),
        Some(Reply::Held { left_ms }) => format!("holds it for another {left_ms} ms"),
        Some(Reply::Released { .. } | Reply::HandedOver { released: true, .. }) => "has released it".to_owned(),
        Some(Reply::Absent | Reply::HandedOver { released: false, .. }) => "does not hold it".to_owned(),
        Some(Reply::Other(stored)) => describe(stored),
        Some(_) => out_of_place().kind.to_string(),
    }
}

/// Who holds a name.
#[derive(Clone, PartialEq, Eq)]
pub enum Occupancy {
    /// A quorum holds the same value; milliseconds for which a quorum keeps it, `None` if it has no end.
    Held {
        /// What they hold: a secret of the holder.
        value: Arc<[u8]>,
        /// Until the quorum is gone.
        left_ms: Option<u64>,
        /// Which nodes are part of it.
        by: Vec<NodeIndex>,
    },
    /// No value can have a quorum.
    Free,
    /// The silent nodes could tip the answer.
    Unknown,
}

/// A look at what all nodes hold under a name. It waits for every node, because people want to see every node.
#[derive(Debug)]
pub struct Survey {
    quorum: Quorum,
    replies: Vec<Option<Reply>>,
    decided: bool,
}

impl Survey {
    /// A question to all nodes of `quorum`.
    pub fn new(quorum: Quorum) -> Self {
        Self { quorum, replies: vec![None; quorum.nodes()], decided: false }
    }

    /// Takes a reply in; `Some` once, when every node has replied or timed out.
    pub fn on_reply(&mut self, node: NodeIndex, reply: Reply) -> Option<Occupancy> {
        if self.decided {
            return None;
        }
        self.replies[node] = Some(reply);
        self.decided = self.replies.iter().all(Option::is_some);
        self.decided.then(|| self.occupancy())
    }

    fn occupancy(&self) -> Occupancy {
        let holders = |value: &[u8]| -> Vec<NodeIndex> {
            let holds = |node: &NodeIndex| self.stored(*node).and_then(|s| s.value.as_deref()) == Some(value);
            (0..self.replies.len()).filter(holds).collect()
        };
        let most = (0..self.replies.len())
            .filter_map(|node| Some(holders(self.stored(node)?.value.as_deref()?)))
            .max_by_key(Vec::len)
            .unwrap_or_default();
        if self.quorum.reached(most.len()) {
            let stored = most.iter().filter_map(|node| self.stored(*node));
            let left: Vec<u64> = stored.clone().map(|s| s.left_ms.unwrap_or(u64::MAX)).collect();
            let left_ms = self.quorum.reached_by_quorum(left).filter(|ms| *ms != u64::MAX);
            if let Some(value) = stored.clone().find_map(|s| s.value.clone()) {
                return Occupancy::Held { value, left_ms, by: most };
            }
        }
        let silent = self.replies.iter().filter(|r| !matches!(r, Some(Reply::Other(_) | Reply::Absent))).count();
        if self.quorum.reached(most.len() + silent) { Occupancy::Unknown } else { Occupancy::Free }
    }

    fn stored(&self, node: NodeIndex) -> Option<&Stored> {
        match &self.replies[node] {
            Some(Reply::Other(stored)) => Some(stored),
            _ => None,
        }
    }

    /// What every node said; complete once the survey is decided.
    pub fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.replies.iter().flatten()
    }

    /// What each node said, for people.
    pub fn report(&self) -> Vec<String> {
        self.replies.iter().map(describe_reply).collect()
    }
}

#[cfg(test)]
#[path = "round_tests.rs"]
mod tests;
