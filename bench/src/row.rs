//! From windows to the figures of the results.

use std::time::Duration;

use crate::cpu::{Kind, Process};
use crate::results::{CpuSplit, Fairness, Fault, Phase, ProcessCpu, RedisWork, Row, Setup, Step};
use crate::stats::{median, spread};
use crate::tally::Tally;
use crate::targets::Target;
use crate::window::{Part, Window};

impl Target {
    /// The servers whose work is the target's.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Unary | Self::Tonic | Self::Stream => &[Kind::Proxy, Kind::Redis],
            Self::Direct | Self::Rslock => &[Kind::Redis],
            Self::Etcd => &[Kind::Etcd],
        }
    }
}

/// The median of the ratios of windows that lie side by side in time, with their extremes. Nothing of nothing.
pub fn ratio<W>(windows: &[W], others: &[W], figure: impl Fn(&W) -> Option<f64>) -> Option<[f64; 3]> {
    let pairs = windows.iter().zip(others);
    let ratios: Vec<f64> = pairs.filter_map(|(window, other)| Some(figure(window)? / figure(other)?)).collect();
    let (least, most) = spread(ratios.iter().copied());
    let middle = median(ratios);
    middle.is_finite().then_some([middle, least, most])
}

/// Processor time of all of a target's processes for a pair, in microseconds; nothing if some of them are not here.
pub fn cpu_us_per_pair(window: &Window, target: Target, processes: &[Process]) -> Option<f64> {
    let servers: Option<Duration> = target.kinds().iter().map(|kind| window.cpu.of_kind(*kind, processes)).sum();
    per_pair_us(servers? + window.cpu.client, window.tally.pairs())
}

fn per_pair_us(time: Duration, pairs: u64) -> Option<f64> {
    (pairs > 0).then(|| time.as_secs_f64() * 1e6 / pairs as f64)
}

/// What rows are made of.
pub struct RowOf<'a> {
    pub target: Target,
    pub clients: usize,
    pub setup: &'a Setup,
    pub windows: &'a [Window],
    /// Those beside them; empty if there are none.
    pub rslock: &'a [Window],
    pub processes: &'a [Process],
    pub proxy_rss_kib: Option<u64>,
}

impl RowOf<'_> {
    /// Medians of rates and ratios; everything else is of all windows together.
    pub fn row(&self) -> Row {
        let tally = sum(self.windows.iter().map(|window| &window.tally));
        let rates = || self.windows.iter().map(Window::pairs_per_s);
        let (least, most) = spread(rates());
        let ratio = ratio(self.windows, self.rslock, |window: &Window| Some(window.pairs_per_s()));
        let cpu = self.cpu();
        let kinds = self.target.kinds();
        let of = |kind, figure: Option<f64>| if kinds.contains(&kind) { Some(figure) } else { None };
        let parts = [
            of(Kind::Proxy, cpu.proxy_us_per_pair),
            of(Kind::Redis, cpu.redis_us_per_pair),
            of(Kind::Etcd, cpu.etcd_us_per_pair),
        ];
        let servers: Option<f64> = parts.into_iter().flatten().sum();
        Row {
            target: self.target.name().to_owned(),
            clients: self.clients as u32,
            setup: self.setup.clone(),
            windows: self.windows.len() as u32,
            pairs: tally.pairs(),
            pairs_per_s: median(rates()),
            pairs_per_s_least: least,
            pairs_per_s_most: most,
            ratio_to_rslock: ratio.map(|[middle, _, _]| middle),
            ratio_to_rslock_least: ratio.map(|[_, least, _]| least),
            ratio_to_rslock_most: ratio.map(|[_, _, most]| most),
            latency: tally.pair.summary(),
            acquire: tally.acquire.summary(),
            cpu_us_per_pair: servers.and_then(|servers| Some(servers + cpu.client_us_per_pair?)),
            cpu,
            redis: self.redis(tally.pairs()),
            proxy_rss_kib: self.proxy_rss_kib.filter(|_| self.target.needs_a_proxy()),
            fairness: fairness(self.windows),
            errors: tally.errors.by_kind(),
        }
    }

    fn cpu(&self) -> CpuSplit {
        let pairs = self.windows.iter().map(|window| window.tally.pairs()).sum();
        let of_kind = |kind| {
            let times: Option<Duration> = self.windows.iter().map(|window| window.cpu.of_kind(kind, self.processes)).sum();
            times.filter(|_| self.target.kinds().contains(&kind)).and_then(|time| per_pair_us(time, pairs))
        };
        let ours = self.processes.iter().enumerate().filter(|(_, process)| self.target.kinds().contains(&process.kind));
        let of_process = |(i, process): (usize, &Process)| {
            let times: Option<Duration> = self.windows.iter().map(|window| window.cpu.servers.get(i).copied().flatten()).sum();
            Some(ProcessCpu { name: process.name.clone(), us_per_pair: per_pair_us(times?, pairs)? })
        };
        CpuSplit {
            client_us_per_pair: per_pair_us(self.windows.iter().map(|window| window.cpu.client).sum(), pairs),
            proxy_us_per_pair: of_kind(Kind::Proxy),
            redis_us_per_pair: of_kind(Kind::Redis),
            etcd_us_per_pair: of_kind(Kind::Etcd),
            processes: ours.filter_map(of_process).collect(),
        }
    }

    /// Nothing of a target that does not use them, or if one window could not be counted.
    fn redis(&self, pairs: u64) -> Option<RedisWork> {
        if self.target == Target::Etcd || pairs == 0 {
            return None;
        }
        let counted: Vec<_> = self.windows.iter().map(|window| window.redis).collect::<Option<_>>()?;
        let sum = counted.into_iter().reduce(|sum, more| sum.plus(more))?;
        let per_pair = |count: u64| count as f64 / pairs as f64;
        Some(RedisWork {
            commands_per_pair: per_pair(sum.commands),
            script_calls_per_pair: per_pair(sum.scripts),
            bytes_in_per_pair: per_pair(sum.bytes_in),
            bytes_out_per_pair: per_pair(sum.bytes_out),
        })
    }
}

fn sum<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Tally {
    let mut sum = Tally::default();
    tallies.for_each(|tally| sum.add(tally));
    sum
}

/// Over all windows; the clients are the same in each. Nothing of a single client.
fn fairness(windows: &[Window]) -> Option<Fairness> {
    let clients = windows.first()?.shares.len();
    let shares: Vec<u64> =
        (0..clients).map(|client| windows.iter().filter_map(|window| window.shares.get(client)).sum()).collect();
    let (least_pairs, most_pairs) = (*shares.iter().min()?, *shares.iter().max()?);
    (clients > 1).then(|| Fairness { least_pairs, most_pairs, jain: jain(&shares) })
}

/// Jain's index: the square of the sum over n times the sum of the squares.
fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// A step of an open loop at a rate.
pub fn step(offered_per_s: f64, window_s: f64, window: &Window, cpu_us_per_pair: Option<f64>) -> Step {
    Step {
        offered_per_s,
        achieved_per_s: window.pairs_per_s(),
        window_s,
        latency: window.tally.all_pairs().summary(),
        acquire: window.tally.acquire.summary(),
        backlog: window.backlog,
        cpu_us_per_pair,
        saturated: None,
        errors: window.tally.errors.by_kind(),
    }
}

/// A part of the time around a fault.
fn phase(part: &Part) -> Phase {
    let seconds = part.took.as_secs_f64();
    Phase {
        seconds,
        pairs: part.tally.pairs(),
        pairs_per_s: part.tally.pairs() as f64 / seconds.max(f64::MIN_POSITIVE),
        latency: part.tally.all_pairs().summary(),
        acquire: part.tally.acquire.summary(),
        proxy_rss_kib: part.proxy_rss_kib,
        errors: part.tally.errors.by_kind(),
    }
}

impl Fault {
    /// Fills in what was measured before, during and after it. `false` if there was no during.
    pub fn measured(&mut self, window: &Window) -> bool {
        let mut parts = window.phases.iter();
        let (Some(before), Some(during)) = (parts.next(), parts.next()) else { return false };
        (self.before, self.during, self.after) = (phase(before), phase(during), parts.next().map(phase));
        self.began_s = during.began_s;
        self.ended_s = window.phases.get(2).map(|after| after.began_s);
        let healthy = |figure: fn(&Phase) -> f64| {
            let after = self.after.as_ref().map(figure);
            after.map_or(figure(&self.before), |after| f64::midpoint(figure(&self.before), after))
        };
        let ratio = |figure: fn(&Phase) -> f64| figure(&self.during) / healthy(figure);
        let (throughput, p99) = (ratio(|phase| phase.pairs_per_s), ratio(|phase| phase.acquire.p99_ms));
        (self.throughput_ratio, self.p99_ratio) = (throughput, p99);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuTime;
    use crate::servers::link::Counters;

    const MS: Duration = Duration::from_millis(1);

    fn processes() -> Vec<Process> {
        let process = |name: &str, kind| Process { name: name.to_owned(), kind, pid: 1 };
        vec![
            process("proxy 1", Kind::Proxy),
            process("node 1", Kind::Redis),
            process("fence", Kind::Redis),
            process("etcd", Kind::Etcd),
        ]
    }

    fn tally(pairs: u64, acquire: Duration) -> Tally {
        let mut tally = Tally::default();
        (0..pairs).for_each(|_| tally.pair.record(2 * acquire));
        (0..pairs).for_each(|_| tally.acquire.record(acquire));
        tally
    }

    fn window(pairs: u64) -> Window {
        Window {
            tally: tally(pairs, MS),
            took: Duration::from_secs(1),
            cpu: CpuTime { client: 10 * MS, servers: [20, 30, 40, 50].map(|ms| Some(ms * MS)).into() },
            redis: Some(Counters { commands: 1000, scripts: 100, bytes_in: 5000, bytes_out: 500 }),
            shares: vec![pairs / 4, 3 * pairs / 4],
            backlog: 0,
            phases: vec![],
            samples: vec![],
            marks: vec![],
        }
    }

    fn row(target: Target, windows: &[Window], rslock: &[Window]) -> Row {
        let (setup, processes) = (Setup::default(), processes());
        RowOf { target, clients: 2, setup: &setup, windows, rslock, processes: &processes, proxy_rss_kib: Some(7) }.row()
    }

    #[test]
    fn ratios_are_taken_side_by_side() {
        // Medians of each: 200 and 400. But a noisy second window slowed both.
        let (ours, theirs) = ([window(200), window(20), window(800)], [window(400), window(40), window(1000)]);
        let row = row(Target::Stream, &ours, &theirs);
        assert_eq!(
            (row.ratio_to_rslock, row.ratio_to_rslock_least, row.ratio_to_rslock_most),
            (Some(0.5), Some(0.5), Some(0.8))
        );
        assert_eq!((row.pairs_per_s, row.pairs_per_s_least, row.pairs_per_s_most), (200.0, 20.0, 800.0));
        assert_eq!(ratio(&ours, &[], |window: &Window| Some(window.pairs_per_s())), None);
    }

    #[test]
    fn processor_time_is_split_by_who_used_it() {
        let windows = [window(1000), window(1000)];
        let unary = row(Target::Unary, &windows, &[]);
        let cpu = &unary.cpu;
        assert_eq!(
            (cpu.client_us_per_pair, cpu.proxy_us_per_pair, cpu.redis_us_per_pair),
            (Some(10.0), Some(20.0), Some(70.0))
        );
        assert_eq!((unary.cpu_us_per_pair, cpu.etcd_us_per_pair, unary.proxy_rss_kib), (Some(100.0), None, Some(7)));
        let names: Vec<&str> = cpu.processes.iter().map(|process| process.name.as_str()).collect();
        assert_eq!((names, cpu.processes[2].us_per_pair), (vec!["proxy 1", "node 1", "fence"], 40.0));
        let etcd = row(Target::Etcd, &windows, &[]);
        assert_eq!(
            (etcd.cpu_us_per_pair, etcd.cpu.redis_us_per_pair, etcd.redis, etcd.proxy_rss_kib),
            (Some(60.0), None, None, None)
        );
        let ours = cpu_us_per_pair(&windows[0], Target::Direct, &processes());
        assert_eq!(ours, Some(80.0));
    }

    #[test]
    fn what_is_not_here_is_not_a_0() {
        let mut windows = [window(1000)];
        windows[0].cpu.servers[0] = None;
        windows[0].redis = None;
        let row = row(Target::Unary, &windows, &[]);
        assert_eq!((row.cpu_us_per_pair, row.cpu.proxy_us_per_pair, row.redis), (None, None, None));
        assert_eq!(row.cpu.redis_us_per_pair, Some(70.0));
    }

    #[test]
    fn redis_and_fairness_are_those_of_all_windows() {
        let row = row(Target::Unary, &[window(100), window(100)], &[]);
        let redis = row.redis.unwrap();
        assert_eq!((redis.commands_per_pair, redis.script_calls_per_pair, redis.bytes_in_per_pair), (10.0, 1.0, 50.0));
        let fairness = row.fairness.unwrap();
        assert_eq!((fairness.least_pairs, fairness.most_pairs, fairness.jain), (50, 150, 0.8));
        assert_eq!(jain(&[7, 7, 7]), 1.0);
        assert_eq!(jain(&[0, 9, 0]), 1.0 / 3.0);
    }

    #[test]
    fn a_fault_is_compared_with_what_is_around_it() {
        let part = |pairs, acquire, seconds: u64, began_s| Part {
            began_s,
            took: Duration::from_secs(seconds),
            tally: tally(pairs, acquire),
            proxy_rss_kib: None,
        };
        let phases = vec![part(1000, MS, 10, 5.0), part(1600, 3 * MS, 20, 15.0), part(3000, 2 * MS, 10, 35.0)];
        let mut fault = Fault::default();
        assert!(fault.measured(&Window { phases, ..window(1) }));
        assert_eq!((fault.throughput_ratio, fault.began_s, fault.ended_s), (0.4, 15.0, Some(35.0)));
        assert!((fault.p99_ratio - 2.0).abs() < 0.01, "{}", fault.p99_ratio);
        let for_good = vec![part(1000, MS, 10, 5.0), part(500, MS, 10, 15.0)];
        assert!(fault.measured(&Window { phases: for_good, ..window(1) }));
        assert_eq!((fault.throughput_ratio, fault.ended_s, fault.after.is_none()), (0.5, None, true));
        assert!(!fault.measured(&window(1)));
    }
}
