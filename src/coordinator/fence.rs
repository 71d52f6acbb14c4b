//! The designated fencing counter. All attempts that reach their quorum while one request for tokens is under way share the
//! next one, in the order in which they got there: one command a round trip, whatever the number of locks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::fencing::{self, Token};
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Why, WhyKind};
use crate::metrics::Metrics;
use crate::node::env::Env;
use crate::node::link::Link;
use crate::node::mailbox::ReplyTo;
use crate::node::{Key, NodeTime, Op};

/// Where the counter is kept.
const COUNTER_KEY: &str = "redlockd:fence:counter";

/// The most tokens in one block.
const MAX_BLOCK: usize = 4_096;

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
    key: Key,
    env: Arc<dyn Env>,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<dyn TokenTo>>,
    asking: bool,
}

impl Fence {
    /// The counter behind `link`.
    pub fn new(link: Arc<Link>, env: Arc<dyn Env>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { link, key: COUNTER_KEY.into(), env, metrics, queue: Mutex::default() })
    }

    /// The server of the counter.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
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
        if block.is_empty() {
            return;
        }
        let spare = if mutant!("token-before-quorum") { SPARE } else { 0 };
        let too_few = usize::from(mutant!("token-handed-out-twice"));
        let count = block.len() + spare - too_few;
        let op = Op::Tokens { key: self.key.clone(), count };
        let block = Block { fence: self.clone(), needed_by: Mutex::new(block) };
        self.link.post(op, Arc::new(block), self.env.now());
    }
}

struct Block {
    fence: Arc<Fence>,
    /// In the order of their quorums; empty once answered.
    needed_by: Mutex<Vec<Arc<dyn TokenTo>>>,
}

impl ReplyTo for Block {
    fn on_reply(&self, _: NodeIndex, reply: Reply, _: Option<NodeTime>) {
        let mut needed_by = std::mem::take(&mut *self.needed_by.lock().unwrap_or_else(PoisonError::into_inner));
        if needed_by.is_empty() {
            // The late reply to a request that was given up: its numbers are lost, which harms nobody.
            return;
        }
        if mutant!("token-before-quorum") {
            let mut queue = self.fence.queue();
            let late = queue.waiting.len().min(SPARE);
            needed_by.extend(queue.waiting.drain(..late));
        }
        match tokens(reply, needed_by.len()) {
            Ok((last, tokens)) => {
                self.fence.metrics.tokens(needed_by.len(), last);
                needed_by.iter().zip(tokens).for_each(|(to, token)| to.on_token(Ok(token)));
            }
            Err(why) => {
                self.fence.metrics.tokens_unavailable(needed_by.len());
                needed_by.iter().for_each(|to| to.on_token(Err(why.clone())));
            }
        }
        self.fence.ask();
    }
}

fn tokens(reply: Reply, count: usize) -> Result<(u64, impl Iterator<Item = Token>), WhyKind> {
    match reply {
        Reply::Tokens { last } => match fencing::block(last, count) {
            Some(tokens) => Ok((last, tokens)),
            None => Err(WhyKind::ServerError(format!("the counter stands at {last}, out of the range of tokens").into())),
        },
        Reply::Unknown(Why { kind, .. }) => Err(kind),
        _ => Err(WhyKind::ServerError("a reply of the wrong kind".into())),
    }
}
