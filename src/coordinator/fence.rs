//! The designated fencing counter. All attempts that reach their quorum while one request for tokens is under way share the
//! next one, in the order in which they got there: one command a round trip, whatever the number of locks.
//!
//! The counter may lose its data: it is then started again at the ceiling that the lock nodes keep, see [`super::ceiling`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use crate::engine::fencing::{self, Token};
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Why, WhyKind};
use crate::metrics::Metrics;
use crate::node::env::Env;
use crate::node::link::Link;
use crate::node::mailbox::ReplyTo;
use crate::node::roster::Roster;
use crate::node::{Heard, Key, Op};

use super::asked::{Answer, ask};
use super::ceiling::{Ceilings, STEP};

/// Where the counter is kept.
const COUNTER_KEY: &str = "redlockd:fence:counter";

/// The most tokens in one block.
const MAX_BLOCK: usize = 4_096;

/// With fewer numbers left below the ceiling, it is raised.
const LOW: u64 = STEP / 2;

/// How often one block of tokens is asked for again, after the counter was started or its ceiling raised.
const TRIES: u32 = 4;

/// Between looks at the counter, which find it lost before anybody needs it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Until the counter is asked again, if it did not answer.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a mutant takes too much, for those who are not there yet.
const SPARE: usize = 8;

/// Whoever needs a token. Called where replies arrive.
pub trait TokenTo: Send + Sync {
    /// The token, or why there is none. Called once.
    fn on_token(&self, token: Result<Token, WhyKind>);
}

/// The counter as one proxy sees it.
pub struct Fence {
    link: Arc<Link>,
    ceilings: Ceilings,
    roster: Arc<Roster>,
    key: Key,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    advancing: AtomicBool,
    /// The highest token that this proxy has seen.
    highest: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<dyn TokenTo>>,
    asking: bool,
}

impl Fence {
    /// The counter behind `link`.
    pub fn new(
        link: Arc<Link>,
        ceilings: Ceilings,
        roster: Arc<Roster>,
        env: Arc<dyn Env>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            link,
            ceilings,
            roster,
            key: COUNTER_KEY.into(),
            env,
            metrics,
            queue: Mutex::default(),
            advancing: AtomicBool::new(false),
            highest: AtomicU64::new(0),
        })
    }

    /// The server of the counter.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    async fn ask_counter(&self, op: Op) -> Answer {
        ask(&self.link, op, &*self.env).await
    }

    fn tokens_op(&self, count: usize) -> Op {
        Op::Tokens { key: self.key.clone(), count, mark: format!("{:032x}", self.env.secret()).into() }
    }

    /// Keeps the counter for ever. `bootstrap`: first tells the roster whether it is new, before anybody leaves a mark there.
    pub async fn keep(self: Arc<Self>, bootstrap: bool) {
        if bootstrap {
            self.roster.on_counter(self.is_untouched().await);
        }
        self.watch().await;
    }

    /// Whether the counter's server holds no trace of it. Asks until it is answered.
    async fn is_untouched(&self) -> bool {
        loop {
            match self.ask_counter(Op::Inspect { key: self.key.clone() }).await.0 {
                Reply::Absent => return true,
                // A mark may have been left there, by whoever came first.
                Reply::Other(stored) => return stored.value.is_some_and(|value| value.starts_with(b"new ")),
                _ => self.env.sleep_until(self.env.now() + LOOK_AGAIN).await,
            }
        }
    }

    /// Looks at the counter for ever, and starts it again when it is lost. Says once what keeps it from that.
    async fn watch(self: Arc<Self>) {
        let mut said = None;
        loop {
            if let (reply, Some(heard)) = self.ask_counter(self.tokens_op(0)).await {
                if let Reply::Tokens { last, ceiling, run_id } = &reply {
                    self.note(*last, *ceiling, run_id);
                    self.roster.on_counter_ceiling(*ceiling, run_id, heard.sent);
                }
                let trouble = self.recover(&reply).await.err();
                if let Some(why) = trouble.as_ref().filter(|_| trouble != said) {
                    warn!(node = %self.link.address(), %why, "the fencing counter can not be used; it is tried again every second");
                }
                said = trouble;
            }
            self.env.sleep_until(self.env.now() + LOOK_EVERY).await;
        }
    }

    /// What the counter said of itself.
    fn note(self: &Arc<Self>, last: u64, ceiling: u64, run_id: &Arc<str>) {
        self.highest.fetch_max(last, Ordering::Relaxed);
        if ceiling.saturating_sub(last) < LOW && !self.advancing.swap(true, Ordering::Relaxed) {
            let (fence, run_id) = (self.clone(), run_id.clone());
            tokio::spawn(async move {
                if let Err(why) = fence.advance(&run_id, ceiling).await {
                    warn!(node = %fence.link.address(), %why, "the ceiling of the fencing counter could not be raised; it is tried again");
                }
                fence.advancing.store(false, Ordering::Relaxed);
            });
        }
    }

    /// Does what the counter's reply asks for, so that it can be asked again.
    async fn recover(&self, reply: &Reply) -> Result<(), WhyKind> {
        match reply {
            Reply::AtCeiling { run_id, ceiling } => self.advance(run_id, *ceiling).await,
            Reply::CounterLost { mark, run_id } => self.restart(mark, run_id).await,
            _ => Ok(()),
        }
    }

    async fn advance(&self, run_id: &Arc<str>, ceiling: u64) -> Result<(), WhyKind> {
        let ceiling = self.ceilings.advance(run_id, ceiling).await?;
        match self.ask_counter(Op::AdvanceCounter { key: self.key.clone(), ceiling }).await.0 {
            Reply::Unknown(Why { kind, .. }) => Err(kind),
            _ => Ok(()),
        }
    }

    /// Starts a counter that was lost above everything that it may have handed out. If somebody else is quicker, the mark is
    /// gone, and theirs counts.
    async fn restart(&self, mark: &Arc<str>, run_id: &Arc<str>) -> Result<(), WhyKind> {
        let (start, ceiling) = self.ceilings.take_over(run_id, self.highest.load(Ordering::Relaxed)).await?;
        let (start, mark) = (if mutant!("counter-begins-at-zero") { 0 } else { start }, mark.clone());
        let op = Op::StartCounter { key: self.key.clone(), mark, start, ceiling };
        match self.ask_counter(op).await.0 {
            Reply::Unknown(Why { kind, .. }) => Err(kind),
            reply => {
                if reply == Reply::Yes {
                    info!(node = %self.link.address(), start, ceiling, "the fencing counter was lost or new; it was started above all earlier tokens");
                }
                Ok(())
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a token. To be called only when the quorum has been reached: a token asked for earlier can be lower than that
    /// of an earlier grant.
    pub fn request(self: &Arc<Self>, needed_by: Arc<dyn TokenTo>) {
        {
            let mut queue = self.queue();
            queue.waiting.push_back(needed_by);
            if queue.asking {
                return;
            }
            queue.asking = true;
        }
        self.ask();
    }

    /// Asks for as many tokens as are needed now.
    fn ask(self: &Arc<Self>) {
        let block: Vec<Arc<dyn TokenTo>> = {
            let mut queue = self.queue();
            let count = queue.waiting.len().min(MAX_BLOCK);
            queue.asking = count > 0;
            queue.waiting.drain(..count).collect()
        };
        if !block.is_empty() {
            self.ask_for(block, TRIES);
        }
    }

    fn ask_for(self: &Arc<Self>, needed_by: Vec<Arc<dyn TokenTo>>, tries: u32) {
        let spare = if mutant!("token-before-quorum") { SPARE } else { 0 };
        let too_few = usize::from(mutant!("token-handed-out-twice"));
        let op = self.tokens_op(needed_by.len() + spare - too_few);
        let block = Block { fence: self.clone(), needed_by: Mutex::new(needed_by), tries };
        self.link.post(op, Arc::new(block), self.env.now());
    }

    /// Asks again when the counter counts again; what waits behind this block goes on waiting.
    fn ask_again(self: &Arc<Self>, reply: Reply, needed_by: Vec<Arc<dyn TokenTo>>, tries: u32) {
        let fence = self.clone();
        tokio::spawn(async move {
            match fence.recover(&reply).await {
                Ok(()) if tries > 1 => fence.ask_for(needed_by, tries - 1),
                Ok(()) => fence.fail(needed_by, &WhyKind::ServerError("the fencing counter is lost again and again".into())),
                Err(why) => fence.fail(needed_by, &why),
            }
        });
    }

    fn fail(self: &Arc<Self>, needed_by: Vec<Arc<dyn TokenTo>>, why: &WhyKind) {
        self.metrics.tokens_unavailable(needed_by.len());
        needed_by.iter().for_each(|to| to.on_token(Err(why.clone())));
        self.ask();
    }

    fn hand_out(self: &Arc<Self>, last: u64, mut needed_by: Vec<Arc<dyn TokenTo>>) {
        if mutant!("token-before-quorum") {
            let mut queue = self.queue();
            let late = queue.waiting.len().min(SPARE);
            needed_by.extend(queue.waiting.drain(..late));
        }
        let Some(tokens) = fencing::block(last, needed_by.len()) else {
            let why = format!("the counter stands at {last}, out of the range of tokens");
            return self.fail(needed_by, &WhyKind::ServerError(why.into()));
        };
        self.metrics.tokens(needed_by.len(), last);
        needed_by.iter().zip(tokens).for_each(|(to, token)| to.on_token(Ok(token)));
        self.ask();
    }
}

struct Block {
    fence: Arc<Fence>,
    /// In the order of their quorums; empty once answered.
    needed_by: Mutex<Vec<Arc<dyn TokenTo>>>,
    /// How often it may still be asked for.
    tries: u32,
}

impl ReplyTo for Block {
    fn on_reply(&self, _: NodeIndex, reply: Reply, _: Option<Heard>) {
        let needed_by = std::mem::take(&mut *self.needed_by.lock().unwrap_or_else(PoisonError::into_inner));
        if needed_by.is_empty() {
            // The late reply to a request that was given up: its numbers are lost, which harms nobody.
            return;
        }
        let fence = &self.fence;
        match reply {
            Reply::Tokens { last, ceiling, run_id } => {
                fence.note(last, ceiling, &run_id);
                fence.hand_out(last, needed_by);
            }
            reply @ (Reply::AtCeiling { .. } | Reply::CounterLost { .. }) => fence.ask_again(reply, needed_by, self.tries),
            Reply::Unknown(Why { kind, .. }) => fence.fail(needed_by, &kind),
            _ => fence.fail(needed_by, &WhyKind::ServerError("a reply of the wrong kind".into())),
        }
    }
}
