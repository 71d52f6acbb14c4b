//! What takes longer than a coffee: many held locks, many nodes, many proxies, ten minutes of a hung node.

use std::time::Duration;

use tokio::task::JoinSet;

use super::aims::Key;
use super::standard::{hangs, megabytes};
use super::{CLIENTS, Suite};
use crate::Error;
use crate::bench::Side;
use crate::call::Caller;
use crate::client::{Client, Terms};
use crate::cpu::{Kind, proxy_resident_kib};
use crate::results::Sample;
use crate::row::{cpu_us_per_pair, ratio};
use crate::servers::{NODES, Servers, ServersArgs, Shape};
use crate::stats::{median, spread};
use crate::targets::{Target, unary};
use crate::window::Window;

const TARGETS: [Target; 2] = [Target::Unary, Target::Stream];

/// Longer than the suite.
pub const FOR_GOOD: Duration = Duration::from_secs(3600);

/// The few locks that are held on the one side.
const FEW: u64 = 10;

/// What the aims mean by many.
const MANY: u64 = 1_000_000;

/// How many are taken at a time.
pub const TAKERS: u64 = 256;

const NODE_COUNTS: [u8; 4] = [1, 3, 5, 7];

const PROXIES: usize = 3;

/// Around ten minutes of a hung node.
const AROUND: Duration = Duration::from_secs(60);

/// As they are, but locks may be held for as long as the suite takes.
pub fn patient(args: &ServersArgs) -> ServersArgs {
    let mut args = args.clone();
    args.serve.extend(["--limits-max-ttl".to_owned(), format!("{}s", FOR_GOOD.as_secs())]);
    args
}

/// A million held locks against ten, on servers of the same kind.
pub async fn held(suite: &mut Suite<'_>) -> Result<(), Error> {
    let args = patient(&suite.args.servers);
    let mut clusters = Vec::new();
    for held in [FEW, suite.args.held] {
        let servers = Servers::start(&args, Shape::default())?;
        servers.all_up().await?;
        suite.bench.say(&format!("taking {held} locks"));
        hold(&servers, held).await?;
        clusters.push((servers, held));
    }
    let mut sides = Vec::new();
    for target in TARGETS {
        for (servers, held) in &clusters {
            let mut side = suite.bench.side(target, servers, CLIENTS).await?;
            side.setup.held = *held;
            sides.push(side);
        }
    }
    let sides = suite.bench.side_by_side(sides, CLIENTS).await?;
    if suite.args.held >= MANY {
        for (pair, key) in sides.chunks(2).zip([Key::HeldUnary, Key::HeldStream]) {
            suite.aims.set(key, ratio(&pair[1].windows, &pair[0].windows, |window: &Window| Some(window.pairs_per_s())));
        }
        // Both have served the same pairs.
        let memory = |(servers, _): &(Servers, u64)| proxy_resident_kib(&servers.processes()).map(megabytes);
        if let [Some(few), Some(many)] = [memory(&clusters[0]), memory(&clusters[1])] {
            suite.aims.set_one(Key::HeldMemory, Some(many - few));
        }
    }
    suite.bench.add_rows(sides, CLIENTS, &format!("{} held locks against {FEW}", suite.args.held));
    for (servers, _) in &clusters {
        suite.bench.nothing_left(servers).await?;
    }
    Ok(())
}

/// Takes so many locks by unary calls, and keeps them.
async fn hold(servers: &Servers, count: u64) -> Result<(), Error> {
    let takers = TAKERS.min(count);
    let terms = Terms { ttl: FOR_GOOD, wait: Duration::ZERO };
    let clients = unary::clients::<Caller>(&servers.proxies(), takers as usize, terms).await?;
    let mut at_work = JoinSet::new();
    for (first, mut client) in (0..).zip(clients) {
        at_work.spawn(async move {
            for number in (first..count).step_by(takers as usize) {
                client.take(&format!("held/{number}")).await?;
            }
            Ok::<_, crate::client::Failure>(())
        });
    }
    while let Some(done) = at_work.join_next().await {
        done?.map_err(|failure| failure.what)?;
    }
    Ok(())
}

/// What each more node costs the proxy.
pub async fn nodes(suite: &mut Suite<'_>) -> Result<(), Error> {
    let mut clusters = Vec::new();
    for nodes in NODE_COUNTS {
        let servers = Servers::start(&suite.args.servers, Shape { nodes, proxies: 1 })?;
        servers.all_up().await?;
        clusters.push(servers);
    }
    let mut sides = Vec::new();
    for target in TARGETS {
        for servers in &clusters {
            sides.push(suite.bench.side(target, servers, CLIENTS).await?);
        }
    }
    let sides = suite.bench.side_by_side(sides, CLIENTS).await?;
    for (of_target, key) in sides.chunks(NODE_COUNTS.len()).zip([Key::NodesUnary, Key::NodesStream]) {
        suite.aims.set(key, for_each_more(of_target));
    }
    suite.bench.add_rows(sides, CLIENTS, "1 to 7 nodes");
    for servers in &clusters {
        suite.bench.nothing_left(servers).await?;
    }
    Ok(())
}

/// The slope of the proxy's processor time for a pair over the number of nodes, round by round.
fn for_each_more(sides: &[Side<'_>]) -> Option<[f64; 3]> {
    let rounds = sides.iter().map(|side| side.windows.len()).min()?;
    let point = |side: &Side<'_>, round: usize| {
        let window = &side.windows[round];
        let time = window.cpu.of_kind(Kind::Proxy, &side.servers.processes())?;
        Some((f64::from(side.setup.nodes), time.as_secs_f64() * 1e6 / window.tally.pairs() as f64))
    };
    let slope_of = |round| slope(&sides.iter().map(|side| point(side, round)).collect::<Option<Vec<_>>>()?);
    let slopes: Vec<f64> = (0..rounds).filter_map(slope_of).collect();
    let (least, most) = spread(slopes.iter().copied());
    let middle = median(slopes);
    middle.is_finite().then_some([middle, least, most])
}

/// Of the straight line with the least squares.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let (x, y) = (points.iter().map(|(x, _)| x).sum::<f64>() / count, points.iter().map(|(_, y)| y).sum::<f64>() / count);
    let above: f64 = points.iter().map(|(px, py)| (px - x) * (py - y)).sum();
    let below: f64 = points.iter().map(|(px, _)| (px - x).powi(2)).sum();
    (below > 0.0).then_some(above / below)
}

/// What it costs pairs that nobody is in the way of that somebody waits for another lock at other proxies: releases are
/// published then.
pub async fn proxies(suite: &mut Suite<'_>) -> Result<(), Error> {
    let args = patient(&suite.args.servers);
    let mut clusters = Vec::new();
    for (proxies, waiters) in [(1, 0), (PROXIES, 0), (PROXIES, 1)] {
        let servers = Servers::start(&args, Shape { nodes: NODES, proxies })?;
        servers.all_up().await?;
        clusters.push((servers, waiters));
    }
    let (_, waiting) = (hold(&clusters[2].0, 1).await?, wait_elsewhere(&clusters[2].0).await?);
    let mut sides = Vec::new();
    for (servers, waiters) in &clusters {
        // All clients are at the first one.
        let mut side = suite.bench.side_at(Target::Unary, servers, &[servers.proxy()], CLIENTS).await?;
        (side.setup.proxies, side.setup.waiters) = (servers.proxies().len() as u32, *waiters);
        sides.push(side);
    }
    let sides = suite.bench.side_by_side(sides, CLIENTS).await?;
    drop(waiting);
    let (without, with) = (&sides[1], &sides[2]);
    suite.aims.set(Key::ProxiesRate, ratio(&with.windows, &without.windows, |window: &Window| Some(window.pairs_per_s())));
    let cpu = |side: &Side<'_>| {
        let processes = side.servers.processes();
        let windows = side.windows.iter().map(|window| cpu_us_per_pair(window, Target::Unary, &processes));
        windows.collect::<Option<Vec<f64>>>().unwrap_or_default()
    };
    suite.aims.set(Key::ProxiesCpu, ratio(&cpu(with), &cpu(without), |cpu| Some(*cpu)));
    suite.bench.add_rows(sides, CLIENTS, "three proxies");
    for (servers, _) in &clusters {
        suite.bench.nothing_left(servers).await?;
    }
    Ok(())
}

/// A caller at each proxy but the first that waits for the lock that is held. They end when the set is dropped.
async fn wait_elsewhere(servers: &Servers) -> Result<JoinSet<()>, Error> {
    let mut waiting = JoinSet::new();
    for proxy in servers.proxies().split_off(1) {
        let terms = Terms { ttl: FOR_GOOD, wait: FOR_GOOD };
        for mut client in unary::clients::<Caller>(&[proxy], 1, terms).await? {
            waiting.spawn(async move {
                let _never = client.take("held/0").await;
            });
        }
    }
    Ok(waiting)
}

/// Ten minutes of a hung node.
pub async fn hung(suite: &mut Suite<'_>, servers: &Servers) -> Result<(), Error> {
    let lasts = suite.args.long_hung;
    let around = AROUND.min(lasts / 4);
    let plan = hangs(lasts, around);
    suite.bench.fault(Target::Unary, servers, CLIENTS, &plan, None).await?;
    let Some(fault) = suite.bench.results.faults.last() else { return Ok(()) };
    suite.aims.set_one(Key::HungRate, Some(fault.throughput_ratio));
    suite.aims.set_one(Key::HungP99, Some(fault.p99_ratio));
    let samples = suite.bench.results.timelines.last().map_or(&[][..], |timeline| &timeline.samples);
    let from_s = fault.began_s + around.as_secs_f64();
    if around == AROUND {
        suite.aims.set_one(Key::HungMemory, growth(samples, from_s, fault.ended_s.unwrap_or(f64::INFINITY)));
    }
    Ok(())
}

/// Of the proxy's memory between two times, in megabytes; less than nothing if it shrank.
fn growth(samples: &[Sample], from_s: f64, to_s: f64) -> Option<f64> {
    let mut within = samples.iter().filter(|sample| (from_s..=to_s).contains(&sample.at_s)).map(|sample| sample.proxy_rss_kib);
    let first = within.next()??;
    let last = within.next_back()??;
    Some(megabytes(last) - megabytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_what_each_more_costs() {
        let close = |measured: Option<f64>, expected: f64| assert!((measured.unwrap() - expected).abs() < 1e-9, "{measured:?}");
        close(slope(&[(1.0, 10.0), (3.0, 14.0), (5.0, 18.0)]), 2.0);
        close(slope(&[(1.0, 10.0), (3.0, 10.0), (5.0, 10.0)]), 0.0);
        close(slope(&[(1.0, 11.0), (3.0, 11.0), (5.0, 17.0)]), 1.5);
        assert_eq!(slope(&[(5.0, 1.0)]), None);
    }

    #[test]
    fn growth_is_that_of_the_time_that_was_asked_for() {
        let sample = |at_s, kib| Sample { at_s, proxy_rss_kib: kib, ..Sample::default() };
        let samples = [
            sample(1.0, Some(1000)),
            sample(2.0, Some(10_000)),
            sample(3.0, None),
            sample(4.0, Some(11_000)),
            sample(9.0, Some(1)),
        ];
        assert!((growth(&samples, 1.5, 5.0).unwrap() - 1.024).abs() < 1e-9);
        assert_eq!(growth(&samples, 5.0, 6.0), None);
    }
}
