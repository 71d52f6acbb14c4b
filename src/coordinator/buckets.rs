//! The quorum counter: brings the counters of a node up that comes back, before its first vote. The counting itself travels with
//! the votes, see [`super::attempt`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::engine::fencing::BUCKETS;
use crate::engine::membership::WantsCounters;
use crate::engine::quorum::{NodeIndex, Quorum};
use crate::engine::reply::{Reply, Why, WhyKind};
use crate::node::env::Env;
use crate::node::link::Link;
use crate::node::roster::Roster;
use crate::node::script::COUNTERS_KEY;
use crate::node::{Heard, Op};

use super::asked::ask;

/// Buckets that are brought up in one call: a server is kept busy for about a millisecond.
const PART: usize = 1_000;

/// Between looks for nodes that came back.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Which bucket counts for a name: the same in every proxy and version.
pub fn bucket(name: &str) -> u16 {
    // Below BUCKETS, which fits.
    (crc32fast::hash(name.as_bytes()) % u32::from(BUCKETS)) as u16
}

/// The nodes as keepers of the counters.
pub struct Buckets {
    links: Vec<Arc<Link>>,
    quorum: Quorum,
    roster: Arc<Roster>,
    env: Arc<dyn Env>,
}

/// All counters of a node, or the highest of several.
#[derive(Default)]
struct Counters {
    base: u64,
    numbers: BTreeMap<u16, u64>,
}

impl Buckets {
    /// Kept by `links`.
    pub fn new(links: Vec<Arc<Link>>, quorum: Quorum, roster: Arc<Roster>, env: Arc<dyn Env>) -> Self {
        Self { links, quorum, roster, env }
    }

    /// Brings nodes up for ever.
    pub async fn keep(self) {
        let mut said = vec![None; self.links.len()];
        loop {
            for wanted in self.roster.wants_counters(self.env.now()) {
                let node = self.links[wanted.node].address();
                match self.bring_up(&wanted).await {
                    Ok(()) => {
                        info!(%node, "its fencing counters are as high as those of the others");
                        said[wanted.node] = None;
                        self.roster.on_counters(wanted);
                    }
                    Err(why) => {
                        if said[wanted.node].as_ref() != Some(&why) {
                            warn!(%node, %why, "its fencing counters can not be brought up; it is tried again all the time");
                        }
                        said[wanted.node] = Some(why);
                    }
                }
            }
            self.env.sleep_until(self.env.now() + LOOK_EVERY).await;
        }
    }

    /// A grant's number may stand on a quorum less one of the other nodes only: so the highest of as many others that vote as it
    /// takes to meet one of these. Asked now, after the quarantine: a raise that was under way when the node forgot has ended.
    ///
    /// Where so many do not vote, a majority restarted, and the newest numbers may be gone on all of them: what the others know
    /// may be too low. Then the node begins at the present time, which is above all that was ever handed out.
    async fn bring_up(&self, wanted: &WantsCounters) -> Result<(), WhyKind> {
        let (mut highest, mut voters, mut now_us) = (Counters::default(), 0, 0);
        for node in 0..self.links.len() {
            let Ok((counters, heard)) = self.told_by(node).await else { continue };
            voters += usize::from(heard.may_vote && node != wanted.node);
            now_us = now_us.max(heard.time.micros);
            highest.join(&counters);
        }
        if mutant!("counters-are-not-brought-up") {
            highest.numbers.clear();
        } else if voters < self.links.len() - self.quorum.size() + 1 {
            highest.base = highest.base.max(now_us).max(self.roster.highest_ceiling());
        }
        self.give(wanted.node, &highest).await
    }

    async fn told_by(&self, node: NodeIndex) -> Result<(Counters, Heard), WhyKind> {
        let (mut all, mut from, mut voted) = (Counters::default(), Arc::from("0"), true);
        loop {
            let op = Op::TellCounters { key: COUNTERS_KEY.into(), from };
            match ask(&self.links[node], op, &*self.env).await {
                (Reply::Counters { base, next, numbers }, Some(heard)) => {
                    all.base = base;
                    all.numbers.extend(numbers);
                    voted &= heard.may_vote;
                    if &*next == "0" {
                        return Ok((all, Heard { may_vote: voted, ..heard }));
                    }
                    from = next;
                }
                (Reply::Unknown(Why { kind, .. }), _) => return Err(kind),
                _ => return Err(WhyKind::NotAwaited),
            }
        }
    }

    async fn give(&self, node: NodeIndex, counters: &Counters) -> Result<(), WhyKind> {
        let pairs: Vec<String> = counters.numbers.iter().map(|(bucket, number)| format!("{bucket}={number}")).collect();
        // The base goes along with each part, and alone if there is none.
        let parts = pairs.chunks(PART).chain(pairs.is_empty().then_some(&[][..]));
        for part in parts {
            let (key, base, numbers) = (COUNTERS_KEY.into(), counters.base, part.join(",").into());
            match ask(&self.links[node], Op::LiftCounters { key, base, numbers }, &*self.env).await.0 {
                Reply::Yes => {}
                Reply::Unknown(Why { kind, .. }) => return Err(kind),
                _ => return Err(WhyKind::NotAwaited),
            }
        }
        Ok(())
    }
}

impl Counters {
    fn join(&mut self, other: &Self) {
        self.base = self.base.max(other.base);
        for (bucket, number) in &other.numbers {
            let highest = self.numbers.entry(*bucket).or_default();
            *highest = (*highest).max(*number);
        }
    }
}
