//! What takes less than ten minutes: targets side by side, a hung node, given rates.

use std::time::Duration;

use super::aims::Key;
use super::{CLIENTS, Suite};
use crate::Error;
use crate::arrivals::Rhythm;
use crate::bench::{Open, Rates, Side};
use crate::cpu::{Process, proxy_resident_kib};
use crate::fault::{FaultPlan, When};
use crate::knee::Rule;
use crate::results::FaultKind;
use crate::row::{cpu_us_per_pair, ratio};
use crate::servers::Servers;
use crate::targets::Target;
use crate::window::Window;

const TARGETS: [Target; 6] = [Target::Unary, Target::Tonic, Target::Stream, Target::Direct, Target::Rslock, Target::Etcd];

/// Until a proxy that has just started is idle.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The rate that has to be carried.
const RATE: f64 = 5000.0;

/// Where the search for the knee begins: no machine that is of use carries less.
const FIRST_RATE: f64 = 2000.0;

/// The most pairs under way at given rates.
const MOST_UNDER_WAY: usize = 1024;

/// The memory of a proxy that nobody has asked for anything.
pub async fn idle(suite: &mut Suite<'_>, servers: &Servers) {
    tokio::time::sleep(SETTLE).await;
    suite.aims.set_one(Key::IdleMemory, proxy_resident_kib(&servers.processes()).map(megabytes));
}

/// As the aims count them: a million bytes.
pub fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

/// All targets side by side.
pub async fn compare(suite: &mut Suite<'_>, servers: &Servers) -> Result<(), Error> {
    for clients in suite.args.clients.clone() {
        let clients = usize::from(clients);
        let mut sides = Vec::new();
        for target in TARGETS {
            sides.push(suite.bench.side(target, servers, clients).await?);
        }
        let sides = suite.bench.side_by_side(sides, clients).await?;
        set_aims(suite, &sides, clients, &suite.bench.processes(servers));
        suite.bench.add_rows(sides, clients, &format!("{clients} clients side by side"));
        suite.bench.nothing_left(servers).await?;
    }
    Ok(())
}

fn set_aims(suite: &mut Suite<'_>, sides: &[Side<'_>], clients: usize, processes: &[Process]) {
    let windows = |target| sides.iter().find(|side| side.target == target).map_or(&[][..], |side| &side.windows);
    let rate = |one, other| ratio(windows(one), windows(other), |window: &Window| Some(window.pairs_per_s()));
    let aims = &mut suite.aims;
    match clients {
        64 => {
            aims.set(Key::StreamRslock64, rate(Target::Stream, Target::Rslock));
            aims.set(Key::UnaryRslock64, rate(Target::Unary, Target::Rslock));
            aims.set(Key::StreamTonic64, rate(Target::Stream, Target::Tonic));
            aims.set(Key::UnaryEtcd64, rate(Target::Unary, Target::Etcd));
            aims.set(Key::StreamEtcd64, rate(Target::Stream, Target::Etcd));
            let cpu = |target| {
                let of_window = move |window: &Window| cpu_us_per_pair(window, target, processes);
                windows(target).iter().map(of_window).collect::<Option<Vec<f64>>>().unwrap_or_default()
            };
            for (other, key) in [(Target::Rslock, Key::StreamRslockCpu64), (Target::Tonic, Key::StreamTonicCpu64)] {
                aims.set(key, ratio(&cpu(Target::Stream), &cpu(other), |cpu| Some(*cpu)));
            }
        }
        256 => {
            aims.set(Key::StreamRslock256, rate(Target::Stream, Target::Rslock));
            aims.set(Key::UnaryRslock256, rate(Target::Unary, Target::Rslock));
        }
        _ => {}
    }
}

/// A node of five that hangs.
pub async fn hung(suite: &mut Suite<'_>, servers: &Servers) -> Result<(), Error> {
    let plan = hangs(suite.args.hung, suite.args.hung / 4);
    for (target, rate, p99) in
        [(Target::Unary, Key::HungRate, Key::HungP99), (Target::Stream, Key::HungStreamRate, Key::HungStreamP99)]
    {
        suite.bench.fault(target, servers, CLIENTS, &plan, None).await?;
        let fault = suite.bench.results.faults.last();
        let (throughput, latency) = (fault.map(|fault| fault.throughput_ratio), fault.map(|fault| fault.p99_ratio));
        suite.aims.set_one(rate, throughput);
        suite.aims.set_one(p99, latency);
    }
    Ok(())
}

/// One node, for so long, and so much before and after.
pub fn hangs(lasts: Duration, around: Duration) -> FaultPlan {
    FaultPlan { kind: FaultKind::Stop, nodes: 1, when: When { at: around, lasts }, delay: Duration::ZERO }
}

/// The rate that has to be carried, and the highest that is.
pub async fn rates(suite: &mut Suite<'_>, servers: &Servers) -> Result<(), Error> {
    let open = |rates| Open {
        rates,
        rhythm: Rhythm::Poisson,
        clients: MOST_UNDER_WAY,
        rule: Rule { p99: Duration::from_millis(100) },
    };
    // Long enough for a p99.9.
    let window = suite.bench.manner.window;
    suite.bench.manner.window = 4 * window;
    suite.bench.open_loop(Target::Unary, servers, &open(Rates::Steps(vec![RATE]))).await?;
    suite.bench.manner.window = window;
    let step = suite.bench.results.open_loop.last().and_then(|open| open.steps.first());
    suite.aims.set_one(Key::Rate5000, step.map(|step| step.acquire.p99_ms));
    for target in [Target::Unary, Target::Stream] {
        suite.bench.open_loop(target, servers, &open(Rates::Search(FIRST_RATE))).await?;
    }
    Ok(())
}
