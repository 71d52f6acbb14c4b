//! Which names are held: every node tells its locks in small steps, all nodes side by side, each asked for the next step when it
//! has answered the last. Between two steps it serves others, so a list keeps nobody waiting, however long it takes.
//!
//! All of it is one future: who drops it drops the scan, but for the steps that have been posted.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, LockValue, Owner, Ttl};
use crate::engine::listing::{Listed, Page, PageSpec, Shelf};
use crate::engine::quorum::NodeIndex;
use crate::engine::reply::{Reply, Stored, Why, WhyKind};
use crate::engine::validity::{self, Spent, Validity};
use crate::node::link::Link;
use crate::node::{Heard, Key, Op};

use super::asked::ask;
use super::{Coordinator, NoQuorum};

/// The most lists that a proxy makes at a time: each keeps every node busy with a step in each of its calls.
pub const MAX_LISTS: usize = 4;

/// A node that has begun to tell, and falls silent, is asked again for so long, if its connection stands: of thousands of steps one
/// takes too long now and then, and all that was told before would have been told in vain.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between these questions.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// A name that may be held, as anybody may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldName {
    /// The name.
    pub name: LockName,
    /// The holder's label.
    pub owner: Option<Owner>,
    /// For how long a quorum keeps it; where fewer nodes are known to hold it, these. Zero: it may have ended meanwhile.
    pub left: Duration,
    /// The token, if this proxy granted or renewed the lease.
    pub token: Option<Token>,
    /// How many wait for it at this proxy.
    pub waiters: usize,
    /// How many nodes are known to hold it.
    pub nodes: usize,
}

/// Some of the names that are held, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The names.
    pub held: Vec<HeldName>,
    /// After which name the next page begins; `None`: this is the last one.
    pub next_after: Option<LockName>,
}

/// Why there is no list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListFailure {
    /// This proxy makes [`MAX_LISTS`] already.
    TooMany,
    /// A quorum of the nodes has not told everything.
    NoQuorum(NoQuorum),
}

/// A part of what a node holds.
struct Step {
    /// Where it ends.
    next: Arc<str>,
    locks: Vec<(Arc<str>, Stored)>,
    heard: Heard,
}

impl Coordinator {
    /// A page of the names that are held.
    pub async fn list(&self, spec: &PageSpec) -> Result<Listing, ListFailure> {
        let _place = self.lists.try_acquire().map_err(|_| ListFailure::TooMany)?;
        self.page(spec).await.map_err(ListFailure::NoQuorum)
    }

    /// The same, whoever else makes a list.
    pub(super) async fn page(&self, spec: &PageSpec) -> Result<Listing, NoQuorum> {
        let started = self.env.now();
        let shelves = self.told_by_all(spec, started).await?;
        let page = Page::of(&shelves, spec.size, self.settings.quorum);
        let spent = Spent { elapsed: self.env.now() - started, ..Spent::default() };
        let held = page.listed.into_iter().map(|listed| self.held_name(listed, spent)).collect();
        Ok(Listing { held, next_after: page.next_after })
    }

    /// What those nodes hold that tell everything, if they are a quorum. Waits for each that may still do so.
    async fn told_by_all(&self, spec: &PageSpec, started: Instant) -> Result<Vec<Shelf>, NoQuorum> {
        let nodes = 0..self.links.len();
        let mut said = vec!["has not told everything yet".to_owned(); nodes.len()];
        let mut scans: FuturesUnordered<_> =
            nodes.map(|node| async move { (node, self.told_by(node, spec, started).await) }).collect();
        let (mut shelves, mut silent) = (Vec::new(), 0);
        while let Some((node, told)) = scans.next().await {
            match told {
                Ok(shelf) => {
                    "has told everything".clone_into(&mut said[node]);
                    shelves.push(shelf);
                }
                Err(why) => {
                    said[node] = why.to_string();
                    silent += 1;
                }
            }
            if self.settings.quorum.impossible(silent) {
                return Err(self.no_quorum(said));
            }
        }
        Ok(shelves)
    }

    async fn told_by(&self, node: NodeIndex, spec: &PageSpec, started: Instant) -> Result<Shelf, WhyKind> {
        let (link, key) = (&self.links[node], self.beginning(spec));
        let process = || link.status().probe.map(|probe| probe.run_id);
        let (scanned, mut shelf, mut from, mut patience) = (process(), Shelf::new(spec), Arc::from("0"), Duration::ZERO);
        loop {
            let step = self.step(link, Op::Scan { key: key.clone(), from }, self.env.now() + patience).await?;
            // Where a step ended says nothing to another process.
            if process() != scanned {
                return Err(WhyKind::ConnectionLost("it restarted while it was asked what it holds".into()));
            }
            if !step.heard.may_vote {
                shelf.may_have_forgotten();
            }
            // Rounded down, as the time that a node tells.
            let asked_ms = u64::try_from((step.heard.sent - started).as_millis()).unwrap_or(u64::MAX);
            for (key, stored) in step.locks {
                if let Some(name) = key.strip_prefix(&*self.settings.key_prefix) {
                    shelf.put(name, stored, asked_ms);
                }
            }
            if &*step.next == "0" {
                return Ok(shelf);
            }
            (from, patience) = (step.next, PATIENCE);
        }
    }

    /// Asks until there is an answer, or it is too late to ask again.
    async fn step(&self, link: &Link, op: Op, ask_until: Instant) -> Result<Step, WhyKind> {
        loop {
            match ask(link, op.clone(), &*self.env).await {
                (Reply::Scanned { next, locks }, Some(heard)) => return Ok(Step { next, locks, heard }),
                (Reply::Unknown(Why { kind: WhyKind::Timeout(_) | WhyKind::Silent, .. }), _) if self.env.now() < ask_until => {
                    self.env.sleep_until(self.env.now() + ASK_AGAIN).await;
                }
                (Reply::Unknown(Why { kind, .. }), _) => return Err(kind),
                _ => return Err(WhyKind::NotAwaited),
            }
        }
    }

    /// Of the keys.
    fn beginning(&self, spec: &PageSpec) -> Key {
        format!("{}{}", self.settings.key_prefix, spec.prefix.as_str()).into()
    }

    fn held_name(&self, listed: Listed, spent: Spent) -> HeldName {
        let Listed { name, value, ends_ms, nodes } = listed;
        let left = validity::remaining(ends_ms.unwrap_or(Ttl::LONGEST.as_millis()), spent, self.settings.drift);
        HeldName {
            owner: LockValue::public_label(&value),
            left: left.map(Validity::as_duration).unwrap_or_default(),
            token: self.ledger.token(&name, &value),
            waiters: self.waiters(&name),
            nodes,
            name,
        }
    }
}
