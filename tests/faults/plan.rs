//! Which fault strikes whom, when and for how long: all of it decided by the seed before the run begins.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IteratorRandom, SliceRandom};

use crate::oracle::Assumptions;

pub const NODES: usize = 5;
pub const PROXIES: usize = 3;

/// Of a clock: more than a TTL.
pub const LONGEST_LEAP: Duration = Duration::from_secs(8);

const MAJORITY: usize = NODES / 2 + 1;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL, later started again with its data.
    Killed,
    /// SIGKILL, later started again with nothing.
    Emptied,
    /// SIGSTOP for less than a TTL.
    Paused,
    /// SIGSTOP for more than every TTL.
    StoppedLong,
    /// What proxies send is kept back.
    RequestsHeld,
    /// What it answers is kept back.
    RepliesHeld,
    /// Nothing passes in either direction.
    BlackHoled,
    /// Everything takes longer.
    Slow,
    /// Every connection is reset.
    Reset,
    /// The same, and new ones too.
    Refused,
    /// One reply is lost with its connection.
    ReplySwallowed,
    /// Its wall clock leaps ahead by more than a TTL, and back again at the end.
    ClockForward,
    /// Its wall clock falls back by more than a TTL, and leaps ahead again at the end.
    ClockBack,
}

impl What {
    fn is_of_connections(self) -> bool {
        use What::*;
        matches!(self, RequestsHeld | RepliesHeld | BlackHoled | Slow | Reset | Refused | ReplySwallowed)
    }
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// One node, while at most one other suffers.
    Node,
    /// As many nodes as it takes to lose the quorum, at once.
    Majority,
    /// The designated server.
    Counter,
    /// A proxy.
    Proxy,
}

/// One kind of fault.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub what: What,
    pub whom: Whom,
    /// Under what the promises have to hold: `Hold` means that they hold in spite of this fault.
    pub class: Assumptions,
    /// How often it is in the deck that is dealt again and again.
    weight: usize,
    /// Least and most milliseconds that it lasts.
    ms: (u64, u64),
}

const fn kind(what: What, whom: Whom, class: Assumptions, weight: usize, ms: (u64, u64)) -> Kind {
    Kind { what, whom, class, weight, ms }
}

/// All kinds. `Guarded`: leases may be lost early, but no two overlap.
pub const KINDS: &[Kind] = {
    use Assumptions::{Guarded, Hold};
    use What::*;
    use Whom::*;
    &[
        // They write every change to disk before they answer.
        kind(Killed, Node, Hold, 3, (100, 3_000)),
        kind(Paused, Node, Hold, 2, (50, 900)),
        kind(StoppedLong, Node, Hold, 1, (3_500, 5_500)),
        kind(RequestsHeld, Node, Hold, 2, (200, 4_000)),
        kind(RepliesHeld, Node, Hold, 2, (200, 4_000)),
        kind(BlackHoled, Node, Hold, 2, (200, 4_000)),
        kind(Slow, Node, Hold, 1, (500, 4_000)),
        kind(Reset, Node, Hold, 2, (100, 100)),
        kind(Refused, Node, Hold, 1, (200, 2_500)),
        kind(ReplySwallowed, Node, Hold, 3, (500, 500)),
        kind(Killed, Majority, Hold, 1, (100, 1_500)),
        kind(Paused, Majority, Hold, 1, (100, 900)),
        kind(RepliesHeld, Majority, Hold, 1, (100, 1_500)),
        kind(ReplySwallowed, Majority, Hold, 1, (300, 300)),
        kind(Killed, Counter, Hold, 1, (50, 1_000)),
        // Without any trace it starts again at the current microseconds, far above whatever it had counted to.
        kind(Emptied, Counter, Hold, 1, (50, 1_000)),
        kind(Paused, Counter, Hold, 1, (50, 900)),
        kind(RepliesHeld, Counter, Hold, 1, (100, 1_000)),
        kind(ReplySwallowed, Counter, Hold, 1, (300, 300)),
        kind(Killed, Proxy, Hold, 2, (50, 2_000)),
        kind(Paused, Proxy, Hold, 2, (50, 900)),
        kind(StoppedLong, Proxy, Hold, 1, (3_500, 5_500)),
        // It has forgotten its locks, and must not vote.
        kind(Emptied, Node, Guarded, 4, (50, 500)),
        // It ends leases early, and must not vote.
        kind(ClockForward, Node, Guarded, 3, (1_000, 4_000)),
        kind(ClockBack, Node, Guarded, 2, (1_000, 4_000)),
        kind(Emptied, Majority, Guarded, 1, (50, 300)),
        kind(ClockForward, Majority, Guarded, 1, (500, 2_000)),
    ]
};

impl Kind {
    /// For people.
    pub fn label(&self) -> String {
        format!("{:?} {:?}", self.whom, self.what)
    }
}

/// Who suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Node(usize),
    Counter,
    Proxy(usize),
}

impl Target {
    pub const ALL: [Self; NODES + 1 + PROXIES] = {
        use Target::*;
        [Node(0), Node(1), Node(2), Node(3), Node(4), Counter, Proxy(0), Proxy(1), Proxy(2)]
    };
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(index) => write!(f, "node {}", index + 1),
            Self::Counter => write!(f, "counter"),
            Self::Proxy(index) => write!(f, "proxy {}", index + 1),
        }
    }
}

/// One fault, with all that is to be known of it.
#[derive(Clone, Debug)]
pub struct Planned {
    pub kind: &'static Kind,
    pub targets: Vec<Target>,
    /// Faults of connections strike those of one proxy, or of all.
    pub between: Option<usize>,
    /// How much a slow connection adds.
    pub delay: Duration,
    /// How far a clock leaps.
    pub leap: Duration,
    pub from: Duration,
    pub until: Duration,
}

impl std::fmt::Display for Planned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind.label())?;
        match self.kind.what {
            What::ClockForward | What::ClockBack => write!(f, " by {:?}", self.leap),
            What::Slow => write!(f, " by {:?}", self.delay),
            _ => Ok(()),
        }?;
        match self.between.filter(|_| self.kind.what.is_of_connections()) {
            Some(proxy) => write!(f, " (proxy {} only)", proxy + 1),
            None => Ok(()),
        }
    }
}

/// Between two faults, and where nodes have to be left out for as long as a lease may last.
const PAUSE_MS: (u64, u64) = (200, 800);
const LONG_PAUSE_MS: (u64, u64) = (1_000, 3_000);

/// Faults for a run of this length: those under which the promises hold, or all.
pub fn plan(rng: &mut StdRng, length: Duration, assumptions: Assumptions) -> Vec<Planned> {
    let fits = |kind: &&Kind| assumptions == Assumptions::Guarded || kind.class == Assumptions::Hold;
    let mut planned: Vec<Planned> = Vec::new();
    let mut deck: Vec<&'static Kind> = Vec::new();
    let mut now = Duration::from_secs(1);
    loop {
        if deck.is_empty() {
            let weight = |kind: &Kind| if kind.class == assumptions { kind.weight } else { 1 };
            deck = KINDS.iter().filter(fits).flat_map(|kind| std::iter::repeat_n(kind, weight(kind))).collect();
            deck.shuffle(rng);
        }
        let kind = deck.pop().expect("a deck holds cards");
        let targets = loop {
            let suffering: Vec<&Planned> = planned.iter().filter(|fault| fault.until > now).collect();
            match targets(rng, kind.whom, &suffering) {
                Some(targets) => break targets,
                None => now = suffering.iter().map(|fault| fault.until).min().expect("somebody suffers"),
            }
        };
        let until = now + Duration::from_millis(rng.random_range(kind.ms.0..=kind.ms.1));
        if until > length {
            return planned;
        }
        planned.push(Planned {
            kind,
            targets,
            between: rng.random_bool(0.5).then(|| rng.random_range(0..PROXIES)),
            delay: Duration::from_millis(rng.random_range(10..200)),
            leap: rng.random_range(LONGEST_LEAP / 2..LONGEST_LEAP),
            from: now,
            until,
        });
        let pause = if assumptions == Assumptions::Guarded { LONG_PAUSE_MS } else { PAUSE_MS };
        now += Duration::from_millis(rng.random_range(pause.0..=pause.1));
    }
}

/// Whom it strikes; nobody suffers twice at a time.
fn targets(rng: &mut StdRng, whom: Whom, suffering: &[&Planned]) -> Option<Vec<Target>> {
    let busy: Vec<Target> = suffering.iter().flat_map(|fault| fault.targets.iter().copied()).collect();
    let of = |kind: fn(&Target) -> bool| {
        let (busy, free): (Vec<Target>, Vec<Target>) =
            Target::ALL.into_iter().filter(kind).partition(|target| busy.contains(target));
        (busy.len(), free)
    };
    let (busy_nodes, free_nodes) = of(|target| matches!(target, Target::Node(_)));
    let (busy_proxies, free_proxies) = of(|target| matches!(target, Target::Proxy(_)));
    let (_, free_counter) = of(|target| matches!(target, Target::Counter));
    let (count, free) = match whom {
        Whom::Node if busy_nodes + 1 < MAJORITY => (1, free_nodes),
        Whom::Majority => (MAJORITY, free_nodes),
        Whom::Counter => (1, free_counter),
        Whom::Proxy if busy_proxies + 1 < PROXIES => (1, free_proxies),
        _ => return None,
    };
    let chosen = free.into_iter().choose_multiple(rng, count);
    (chosen.len() == count).then_some(chosen)
}

/// What a run of this kind will have met, whatever the seed.
#[test]
fn plans_spare_nothing_and_overdo_nothing() {
    use rand::SeedableRng;
    for seed in 0..200 {
        for (assumptions, seconds) in [(Assumptions::Hold, 60), (Assumptions::Guarded, 30)] {
            let length = Duration::from_secs(seconds);
            let plan = plan(&mut StdRng::seed_from_u64(seed), length, assumptions);
            let dealt = |kind: &Kind| plan.iter().filter(|fault| fault.kind == kind).count();
            let guarded: usize = KINDS.iter().filter(|kind| kind.class == Assumptions::Guarded).map(dealt).sum();
            if assumptions == Assumptions::Hold {
                assert!(
                    guarded == 0 && KINDS.iter().all(|kind| kind.class == Assumptions::Guarded || dealt(kind) >= 1),
                    "{seed}"
                );
            } else {
                assert!(guarded >= 1, "{seed}: {guarded}");
            }
            for fault in &plan {
                assert!(fault.from < fault.until && fault.until <= length);
                let at_once = plan.iter().filter(|other| other.from <= fault.from && fault.from < other.until);
                let mut targets: Vec<Target> = at_once.flat_map(|other| other.targets.iter().copied()).collect();
                let all = targets.len();
                targets.sort();
                targets.dedup();
                assert_eq!(targets.len(), all, "{seed}: nobody suffers twice at a time");
            }
        }
    }
}
