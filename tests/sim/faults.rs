//! What goes wrong in a run, decided by its seed.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::oracle::Assumptions;
use crate::oracle::history::At;
use crate::world::{Shared, World};

/// What a server has after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Everything,
    Nothing,
    /// Each key with a chance of one half.
    Some,
    /// What it had at an earlier time.
    Snapshot,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL of a server, and a new process later.
    Crash {
        site: usize,
        down: Duration,
        keeps: Keeps,
    },
    /// SIGSTOP of a server, and SIGCONT later.
    Stop {
        site: usize,
        span: Duration,
    },
    /// A copy of a server's data is put aside, for [`Keeps::Snapshot`].
    Save {
        site: usize,
    },
    /// A way that swallows what is sent, until later.
    Hole {
        proxy: usize,
        site: usize,
        requests: bool,
        replies: bool,
        span: Duration,
    },
    Slow {
        proxy: usize,
        site: usize,
        by: Duration,
        span: Duration,
    },
    /// Somebody flushes a server's scripts, again and again.
    Flushes {
        site: usize,
        span: Duration,
    },
    /// Connections break before or after the server has run what was sent.
    Cuts {
        proxy: usize,
        site: usize,
        span: Duration,
    },
    /// Calls fail half way.
    Fails {
        proxy: usize,
        site: usize,
        span: Duration,
    },
    StopProxy {
        proxy: usize,
        span: Duration,
    },
    KillProxy {
        proxy: usize,
        span: Duration,
    },
    /// Somebody deletes every lock.
    Delete {
        site: usize,
    },
    /// A server's wall clock leaps.
    Leap {
        site: usize,
        by: Duration,
        back: bool,
    },
}

/// What befalls the nodes of a run beyond what all promises are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    Forgets,
    ForgetsSome,
    HasOldData,
    MajorityForgets,
    ClockAhead,
    ClockBack,
    MajorityAhead,
    LosesKeys,
    MajorityLosesKeys,
}

impl Breakage {
    /// Each, and what it is for people.
    pub const ALL: [(Self, &str); 9] = [
        (Self::Forgets, "a node restarts without its data"),
        (Self::ForgetsSome, "a node restarts with half of its keys"),
        (Self::HasOldData, "a node restarts with an old copy of its data"),
        (Self::MajorityForgets, "a majority restarts without its data"),
        (Self::ClockAhead, "a node's clock leaps ahead by 0.1 to 20 s"),
        (Self::ClockBack, "a node's clock leaps back by 0.1 to 20 s"),
        (Self::MajorityAhead, "the clocks of a majority leap ahead by 0.1 to 20 s"),
        (Self::LosesKeys, "somebody deletes the locks on a node"),
        (Self::MajorityLosesKeys, "somebody deletes the locks on a majority"),
    ];

    /// What has to hold all the same.
    pub fn assumptions(self) -> Assumptions {
        match self {
            Self::LosesKeys | Self::MajorityLosesKeys => Assumptions::Broken,
            _ => Assumptions::Guarded,
        }
    }
}

/// The faults of one run.
#[derive(Clone, Debug, Default)]
pub struct Plan(pub Vec<(At, Fault)>);

impl Plan {
    /// Between none and nine faults before `until`, and what breaks an assumption one to three times.
    pub fn draw(rng: &mut StdRng, nodes: usize, proxies: usize, until: At, breakage: Option<Breakage>) -> Self {
        let count = rng.random_range(0..10);
        let at = |rng: &mut StdRng| millis(rng, 100, until.as_millis() as u64);
        let mut plan: Vec<(At, Fault)> = Vec::new();
        for _ in 0..count {
            let (at, fault) = (at(rng), usual(rng, nodes, proxies));
            if let Fault::Crash { site, keeps: Keeps::Snapshot, .. } = fault {
                plan.push((at.saturating_sub(millis(rng, 50, 3_000)), Fault::Save { site }));
            }
            plan.push((at, fault));
            // The counter loses everything again and again: more often than the time could make up for.
            if matches!(fault, Fault::Crash { keeps: Keeps::Nothing, .. }) && rng.random_bool(0.5) {
                let down = Duration::from_millis(5);
                let again =
                    |n: u32| (at + n * Duration::from_millis(150), Fault::Crash { site: nodes, down, keeps: Keeps::Nothing });
                plan.extend((1..8).map(again));
                // And what the nodes shall store meanwhile reaches some of them only.
                for (proxy, site) in (0..proxies).flat_map(|proxy| (0..nodes).map(move |site| (proxy, site))) {
                    if rng.random_bool(0.5) {
                        plan.push((at, Fault::Cuts { proxy, site, span: Duration::from_millis(1_200) }));
                    }
                }
            }
            // A bad switch, a full disk array: the same befalls others at that instant.
            if rng.random_bool(0.2) {
                plan.extend((0..nodes).filter(|_| rng.random_bool(0.6)).map(|site| (at, fault.at(site))));
            }
        }
        if let Some(breakage) = breakage {
            for _ in 0..rng.random_range(1..4) {
                let happens = at(rng);
                // Old data is of half an hour ago in life, of a second here.
                let saved = happens.saturating_sub(millis(rng, 50, 1_000));
                plan.extend((0..nodes).map(|site| (saved, Fault::Save { site })));
                plan.extend(breakage.draw(rng, nodes).into_iter().map(|fault| (happens, fault)));
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        Self(plan)
    }

    /// From some of the proxies it is far to the designated server, behind the `nodes`, all the time.
    pub fn far_counter(&mut self, rng: &mut StdRng, nodes: usize, proxies: usize) {
        let far: Vec<usize> = (0..proxies).filter(|_| rng.random_bool(0.5)).collect();
        for proxy in far {
            let far = Fault::Slow { proxy, site: nodes, by: millis(rng, 5, 40), span: Duration::from_secs(60) };
            self.0.insert(0, (At::ZERO, far));
        }
    }

    /// Lets all of them happen, and ends when the last is over.
    pub async fn happen(self, world: Arc<World>) {
        let mut under_way = tokio::task::JoinSet::new();
        for (at, fault) in self.0 {
            let world = world.clone();
            under_way.spawn(async move {
                world.shared.time.until(at).await;
                fault.happen(&world).await;
            });
        }
        while under_way.join_next().await.is_some() {}
    }
}

fn millis(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_micros(rng.random_range(from * 1_000..=to * 1_000))
}

/// Nothing of this may break a promise.
fn usual(rng: &mut StdRng, nodes: usize, proxies: usize) -> Fault {
    let (site, proxy) = (rng.random_range(0..=nodes), rng.random_range(0..proxies));
    let span = if rng.random_bool(0.7) { millis(rng, 5, 400) } else { millis(rng, 400, 4_000) };
    match rng.random_range(0..12) {
        // Whatever the counter has lost, it is started above all that it handed out.
        0 if site == nodes && rng.random_bool(0.5) => Fault::Crash { site, down: span, keeps: Keeps::Nothing },
        0 if site == nodes => Fault::Crash { site, down: span, keeps: Keeps::Snapshot },
        0 | 1 => Fault::Crash { site, down: span, keeps: Keeps::Everything },
        2 | 3 => Fault::Stop { site, span },
        4 => Fault::Hole { proxy, site, requests: true, replies: rng.random_bool(0.5), span },
        5 => Fault::Hole { proxy, site, requests: false, replies: true, span },
        6 => Fault::Slow { proxy, site, by: millis(rng, 1, 120), span },
        7 => Fault::Cuts { proxy, site, span },
        11 => Fault::Flushes { site, span },
        8 => Fault::Fails { proxy, site: rng.random_range(0..nodes), span },
        9 => Fault::StopProxy { proxy, span },
        _ => Fault::KillProxy { proxy, span },
    }
}

impl Breakage {
    /// It happens to whom it happens to.
    fn draw(self, rng: &mut StdRng, nodes: usize) -> Vec<Fault> {
        let mut sites: Vec<usize> = (0..nodes).collect();
        sites.shuffle(rng);
        let crash = |rng: &mut StdRng, site, keeps| Fault::Crash { site, down: millis(rng, 1, 50), keeps };
        let leap = |rng: &mut StdRng, site, back| Fault::Leap { site, by: millis(rng, 100, 20_000), back };
        match self {
            Self::Forgets => vec![crash(rng, sites[0], Keeps::Nothing)],
            Self::ForgetsSome => vec![crash(rng, sites[0], Keeps::Some)],
            Self::HasOldData => vec![crash(rng, sites[0], Keeps::Snapshot)],
            Self::MajorityForgets => sites[..nodes / 2 + 1].iter().map(|site| crash(rng, *site, Keeps::Nothing)).collect(),
            Self::ClockAhead => vec![leap(rng, sites[0], false)],
            Self::ClockBack => vec![leap(rng, sites[0], true)],
            Self::MajorityAhead => sites[..nodes / 2 + 1].iter().map(|site| leap(rng, *site, false)).collect(),
            Self::LosesKeys => vec![Fault::Delete { site: sites[0] }],
            Self::MajorityLosesKeys => sites[..nodes / 2 + 1].iter().map(|site| Fault::Delete { site: *site }).collect(),
        }
    }
}

impl Fault {
    /// The same at a lock node, which may not forget.
    fn at(self, other: usize) -> Self {
        let mut fault = self;
        if let Self::Crash { keeps, .. } = &mut fault {
            *keeps = Keeps::Everything;
        }
        match &mut fault {
            Self::Crash { site, .. }
            | Self::Stop { site, .. }
            | Self::Save { site }
            | Self::Delete { site }
            | Self::Hole { site, .. }
            | Self::Slow { site, .. }
            | Self::Flushes { site, .. }
            | Self::Cuts { site, .. }
            | Self::Fails { site, .. }
            | Self::Leap { site, .. } => *site = other,
            Self::StopProxy { .. } | Self::KillProxy { .. } => {}
        }
        fault
    }

    /// Begins, lasts, and heals.
    pub async fn happen(self, world: &Arc<World>) {
        let shared = &world.shared;
        match self {
            Self::Crash { site, down, keeps } => crash(world, site, down, keeps).await,
            Self::Stop { site, span } => {
                let until = shared.fault(server(world, site), "stopped", span);
                shared.state().sites[site].paused_until = until;
                shared.sleep(span).await;
            }
            Self::Save { site } => {
                let mut state = shared.state();
                let copy = state.sites[site].server.snapshot();
                state.sites[site].snapshot = Some(copy);
            }
            Self::Delete { site } => {
                shared.fault(server(world, site), "locks are deleted", Duration::ZERO);
                let now = shared.now();
                let site = &mut shared.state().sites[site];
                for (key, ..) in site.server.keys(site.wall_clock(now)) {
                    if key.starts_with("lock:") {
                        site.server.delete(&key);
                    }
                }
            }
            Self::Hole { proxy, site, requests, replies, span } => {
                let until = shared.fault(way(world, proxy, site), format_args!("hole {requests} {replies}"), span);
                let line = &mut shared.state().lines[proxy][site];
                line.requests_held_until = if requests { until } else { line.requests_held_until };
                line.replies_held_until = if replies { until } else { line.replies_held_until };
            }
            Self::Slow { proxy, site, by, span } => {
                let until = shared.fault(way(world, proxy, site), format_args!("slower by {by:?}"), span);
                let line = &mut shared.state().lines[proxy][site];
                (line.slow, line.slow_until) = (by, until);
            }
            Self::Flushes { site, span } => {
                let until = shared.fault(server(world, site), "scripts are flushed", span);
                while shared.now() < until {
                    shared.state().sites[site].server.forget_scripts();
                    shared.sleep(shared.span(1, 20)).await;
                }
            }
            Self::Cuts { proxy, site, span } => {
                shared.fault(way(world, proxy, site), "cuts", span);
                shared.state().lines[proxy][site].cuts_one_in = 4;
                shared.sleep(span).await;
                shared.state().lines[proxy][site].cuts_one_in = 0;
            }
            Self::Fails { proxy, site, span } => {
                shared.fault(way(world, proxy, site), "calls fail half way", span);
                shared.state().lines[proxy][site].fails_one_in = 4;
                shared.sleep(span).await;
                shared.state().lines[proxy][site].fails_one_in = 0;
            }
            Self::StopProxy { proxy, span } => {
                world.proxy(proxy).pause(span);
                shared.sleep(span).await;
            }
            Self::KillProxy { proxy, span } => world.replace_proxy(proxy, span).await,
            Self::Leap { site, by, back } => {
                let us = i64::try_from(by.as_micros()).expect("short");
                shared.fault(server(world, site), format_args!("clock leaps by {us} us, back: {back}"), Duration::ZERO);
                let state = &mut *shared.state();
                state.sites[site].clock.offset_us += if back { -us } else { us };
                state.set_back += if back { by } else { Duration::ZERO };
            }
        }
    }
}

async fn crash(world: &Arc<World>, site: usize, down: Duration, keeps: Keeps) {
    let shared: &Arc<Shared> = &world.shared;
    if !shared.state().sites[site].up {
        return;
    }
    shared.fault(server(world, site), format_args!("killed, keeps {keeps:?}"), down);
    let wires = shared.state().sites[site].crash();
    for wire in wires {
        wire.cut(shared, &world.proxy(wire.proxy).gate, "connection reset by a server that died");
    }
    shared.sleep(down).await;
    // Drawn before the server is held: one of the two has to wait for the other.
    let luck: u64 = shared.chance(rand::RngCore::next_u64);
    let mut state = shared.state();
    let site = &mut state.sites[site];
    site.paused_until = At::ZERO;
    // Who loses something has not written everything down.
    if keeps != Keeps::Everything {
        site.server.set_durable(false);
    }
    let mut key = 0_u32;
    site.restart(|_| {
        key += 1;
        match keeps {
            Keeps::Everything | Keeps::Snapshot => true,
            Keeps::Nothing => false,
            Keeps::Some => luck >> (key % 64) & 1 == 1,
        }
    });
    if let Some(copy) = site.snapshot.take().filter(|_| keeps == Keeps::Snapshot) {
        site.server.restore(copy);
    }
}

fn server(world: &World, site: usize) -> String {
    if site == world.size.nodes { "counter".to_owned() } else { format!("node {site}") }
}

fn way(world: &World, proxy: usize, site: usize) -> String {
    format!("proxy {proxy} to {}", server(world, site))
}
