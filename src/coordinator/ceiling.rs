//! The ceiling of the designated counter: what a quorum of the lock nodes stores, so that the counter may lose its data.
//!
//! The counter hands out no number above the ceiling that it knows, and it is told of a ceiling only after a quorum stores it.
//! So whoever finds the counter lost reads the ceiling from a quorum and is above everything that was ever handed out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::engine::fencing::HighestCeiling;
use crate::engine::quorum::{NodeIndex, Quorum};
use crate::engine::reply::{Reply, WhyKind};
use crate::node::env::Env;
use crate::node::link::Link;
use crate::node::mailbox::ReplyTo;
use crate::node::script::CEILING_KEY;
use crate::node::{Heard, Op};

/// So many numbers at a time: a million, so that a raise is rare; a restart of the counter costs that many at most.
pub const STEP: u64 = 1_000_000;

/// Proxies that raise it at the same time get in each other's way.
const TRIES: u32 = 5;

/// The lock nodes as the keepers of the ceiling.
pub struct Ceilings {
    links: Vec<Arc<Link>>,
    quorum: Quorum,
    env: Arc<dyn Env>,
    /// A raise that takes longer is void: a node that answered it may have forgotten it and vote again.
    void_after: Duration,
}

/// What all nodes said.
type Answers = Vec<Option<(Reply, Option<Heard>)>>;

impl Ceilings {
    /// Kept by `links`. `longest_ttl` is how long a node that forgot stays out at least.
    pub fn new(links: Vec<Arc<Link>>, quorum: Quorum, env: Arc<dyn Env>, longest_ttl: Duration) -> Self {
        Self { links, quorum, env, void_after: longest_ttl }
    }

    /// Raises the ceiling of a counter that runs on `owner`, and knows of `ceiling`: the new one.
    pub async fn advance(&self, owner: &Arc<str>, ceiling: u64) -> Result<u64, WhyKind> {
        let mut tried = 0;
        loop {
            let (seen, _) = self.read().await?;
            // They may have lost it all; the counter has not. Or one of them has a left-over of another counter.
            let ceiling = seen.highest().map_or(0, |highest| highest.number).max(ceiling) + STEP;
            tried += 1;
            match self.raise(ceiling, owner, |_| Some(None)).await {
                Err(_) if tried < TRIES => self.pause(tried).await,
                Err(why) => {
                    let foreign = seen.highest().filter(|highest| highest.owner != *owner);
                    return Err(foreign.map_or(why, |highest| other_counter(&highest.owner, owner)));
                }
                Ok(()) => return Ok(ceiling),
            }
        }
    }

    /// For a counter that has to be started on `owner`: where from, and up to where.
    pub async fn take_over(&self, owner: &Arc<str>, at_least: u64) -> Result<(u64, u64), WhyKind> {
        let mut tried = 0;
        loop {
            let (seen, now_us) = self.read().await?;
            // Without any trace, the time is above all earlier tokens: nobody takes a million a second for as long as that.
            let start = seen.highest().map_or(0, |highest| highest.number).max(now_us).max(at_least);
            let ceiling = start + STEP;
            tried += 1;
            match self.raise(ceiling, owner, |node| seen.text(node).map(Some)).await {
                Err(_) if tried < TRIES => self.pause(tried).await,
                outcome => return outcome.map(|()| (start, ceiling)),
            }
        }
    }

    async fn pause(&self, tried: u32) {
        let pause = Duration::from_micros(self.env.random() % (2_000 << tried));
        self.env.sleep_until(self.env.now() + pause).await;
    }

    /// What the nodes hold, once a quorum of those that may vote have told; and the latest of their clocks, in microseconds.
    async fn read(&self) -> Result<(HighestCeiling, u64), WhyKind> {
        let answers = self.ask_all(|_| Some(Op::Inspect { key: CEILING_KEY.into() })).await;
        let (mut seen, mut now_us, mut voters) = (HighestCeiling::new(answers.len()), 0, 0);
        for (node, answer) in answers.iter().enumerate() {
            let Some((Reply::Absent | Reply::Other(_), Some(heard))) = answer else { continue };
            let stored = match answer {
                Some((Reply::Other(stored), _)) => stored.value.as_deref(),
                _ => None,
            };
            let text = String::from_utf8_lossy(stored.unwrap_or_default());
            seen.note(node, &text);
            now_us = now_us.max(heard.time.micros);
            voters += usize::from(heard.may_vote);
        }
        if self.quorum.reached(voters) { Ok((seen, now_us)) } else { Err(self.no_quorum("read", voters)) }
    }

    /// A quorum of the nodes that may vote has to take it. `seen`: what a node has to hold, `Some(None)`: a ceiling of the same
    /// counter; `None`: it is not asked.
    async fn raise(
        &self,
        ceiling: u64,
        owner: &Arc<str>,
        seen: impl Fn(NodeIndex) -> Option<Option<Arc<str>>>,
    ) -> Result<(), WhyKind> {
        let began = self.env.now();
        let op = |node| {
            let (key, owner, seen) = (CEILING_KEY.into(), owner.clone(), seen(node)?);
            Some(Op::RaiseCeiling { key, ceiling, owner, seen })
        };
        let answers = self.ask_all(op).await;
        let took =
            |answer: &&Option<(Reply, Option<Heard>)>| matches!(answer, Some((Reply::Yes, Some(heard))) if heard.may_vote);
        let taken = answers.iter().filter(took).count();
        if self.env.now() - began > self.void_after {
            return Err(WhyKind::ServerError(
                "raising the ceiling of the fencing counter took longer than the longest lease".into(),
            ));
        }
        if self.quorum.reached(taken) { Ok(()) } else { Err(self.no_quorum("raised", taken)) }
    }

    fn no_quorum(&self, what: &str, by: usize) -> WhyKind {
        let (needed, nodes) = (self.quorum.size(), self.links.len());
        let text =
            format!("the counter's ceiling could not be {what}: {by} of {nodes} lock nodes took part, {needed} are needed");
        WhyKind::Down(text.into())
    }

    async fn ask_all(&self, op: impl Fn(NodeIndex) -> Option<Op>) -> Answers {
        let poll = Arc::new(Poll { answers: Mutex::new(vec![None; self.links.len()]), arrived: Notify::new() });
        let mut asked = 0;
        for (node, link) in self.links.iter().enumerate() {
            if let Some(op) = op(node) {
                asked += 1;
                link.post(op, poll.clone(), self.env.now());
            }
        }
        loop {
            let arrived = poll.arrived.notified();
            if poll.answers().iter().flatten().count() >= asked {
                return std::mem::take(&mut *poll.answers());
            }
            arrived.await;
        }
    }
}

fn other_counter(owner: &str, ours: &str) -> WhyKind {
    WhyKind::ServerError(
        format!(
            "the ceiling on the lock nodes belongs to another counter (run_id {owner}, this one is {ours}): are two designated \
             servers configured?"
        )
        .into(),
    )
}

/// One question to all nodes; each answers, or is answered for when its time is over.
struct Poll {
    answers: Mutex<Answers>,
    arrived: Notify,
}

impl Poll {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplyTo for Poll {
    fn on_reply(&self, node: NodeIndex, reply: Reply, heard: Option<Heard>) {
        if let Some(answer) = self.answers().get_mut(node) {
            answer.get_or_insert((reply, heard));
        }
        self.arrived.notify_one();
    }
}
