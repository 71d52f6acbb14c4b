//! The same line at redlockd, at etcd and with rslock, in windows that alternate: a noisy machine hits all three alike.

use super::Bench;
use super::report::{Aim, Figure, Table, number};
use crate::Error;
use crate::call::Caller;
use crate::client::Client;
use crate::line::{Line, TERMS, Turns};
use crate::servers::etcd::Etcd;
use crate::stats::{Latencies, inequality, median, ratio, spread};
use crate::targets::{etcd, rslock, unary};

/// Waiters of each target.
const WAITERS: usize = 64;

/// A part of a window's length, for which its clients work before they are measured.
const WARM_UP: u32 = 4;

const NAME: &str = "contended/targets";

const HEAD: [&str; 7] =
    ["target", "hand-overs/s", "least..most", "wait p50 ms", "p99 ms", "max ms", "largest / smallest share"];

/// What one target did.
struct Target {
    name: &'static str,
    rounds: Vec<Turns>,
}

/// Measures all three.
pub async fn measure(bench: &mut Bench<'_>, server: &Etcd) -> Result<(), Error> {
    let mut redlockd = Line::new(NAME, unary::clients::<Caller>(&[bench.servers.proxy()], WAITERS, TERMS).await?);
    let mut etcd = Line::new(NAME, etcd::clients(server, WAITERS).await?);
    let mut rslock = Line::new(NAME, rslock::clients(&bench.servers.urls(), WAITERS, TERMS)?);
    let mut targets = ["redlockd", "etcd", "rslock"].map(|name| Target { name, rounds: vec![] });
    for round in 0..=bench.rounds {
        let [ours, etcds, rslocks] = &mut targets;
        ours.window(bench, &mut redlockd, round).await?;
        etcds.window(bench, &mut etcd, round).await?;
        rslocks.window(bench, &mut rslock, round).await?;
        if round > 0 {
            let rates: Vec<String> = targets.iter().map(Target::last).collect();
            eprintln!("{WAITERS} waiters, round {round} of {}: hand-overs/s: {}", bench.rounds, rates.join(", "));
        }
    }
    bench.nothing_left().await?;
    let title = format!(
        "{WAITERS} waiters for one lock that everybody gives back at once; {} windows of {:?}",
        bench.rounds, bench.window
    );
    let rows = targets.iter().map(Target::cells).collect();
    bench.report.add(Table { title, head: HEAD.to_vec(), rows }, figures(&targets));
    Ok(())
}

fn figures([redlockd, etcd, rslock]: &[Target; 3]) -> [Figure; 3] {
    let figure = |what: &str, aim, measured| Figure { what: format!("{WAITERS} waiters: {what}"), aim, measured };
    let rates = ratio(&redlockd.rounds, &etcd.rounds, Turns::grants_per_s);
    let p99 = redlockd.waits().percentile_ms(99) / rslock.waits().percentile_ms(99);
    [
        figure("hand-overs per second, redlockd / etcd", Aim::AtLeast(3.0), rates),
        figure("p99 of the wait, redlockd / rslock", Aim::AtMost(0.1), p99),
        figure("largest / smallest share of a client of redlockd", Aim::AtMost(1.1), inequality(&redlockd.grants())),
    ]
}

impl Target {
    /// One more of its windows; the first is the warm-up, which is not kept.
    async fn window<C: Client>(&mut self, bench: &mut Bench<'_>, line: &mut Line<C>, round: u16) -> Result<(), Error> {
        if round == 0 {
            return bench.work(line, bench.window / WARM_UP).await.map(drop);
        }
        self.rounds.push(bench.work(line, bench.window).await?);
        Ok(())
    }

    fn last(&self) -> String {
        format!("{} {:.0}", self.name, self.rounds.last().map_or(f64::NAN, Turns::grants_per_s))
    }

    /// Those of all windows.
    fn waits(&self) -> Latencies {
        Latencies::new(self.rounds.iter().flat_map(|turns| &turns.waits_us).copied().collect())
    }

    /// Of each client in all windows.
    fn grants(&self) -> Vec<u64> {
        (0..WAITERS).map(|client| self.rounds.iter().filter_map(|turns| turns.grants.get(client)).sum()).collect()
    }

    fn cells(&self) -> Vec<String> {
        let rates = || self.rounds.iter().map(Turns::grants_per_s);
        let ((least, most), waits) = (spread(rates()), self.waits());
        let [p50, p99, max] = [50, 99, 100].map(|percent| number(waits.percentile_ms(percent)));
        let (name, range) = (self.name.to_owned(), format!("{least:.0}..{most:.0}"));
        vec![name, format!("{:.0}", median(rates())), range, p50, p99, max, number(inequality(&self.grants()))]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(name: &'static str, grants: [u64; 2], wait_us: u32) -> Target {
        let turns = |grants| Turns {
            time: Duration::from_secs(1),
            grants: vec![grants; WAITERS],
            waits_us: vec![wait_us; 100],
            ..Turns::default()
        };
        Target { name, rounds: grants.map(turns).into() }
    }

    #[test]
    fn ratios_are_of_neighbours_and_of_all_waits() {
        // A noisy second window slowed both.
        let mut redlockd = target("redlockd", [40, 4], 1000);
        redlockd.rounds[0].grants[3] = 51;
        let figures = figures(&[redlockd, target("etcd", [10, 1], 7000), target("rslock", [50, 50], 20_000)]);
        let measured: Vec<String> = figures.iter().map(|figure| number(figure.measured)).collect();
        assert_eq!(measured, ["4.01", "0.050", "1.25"]);
    }

    #[test]
    fn a_row_is_the_median_of_the_windows_and_all_waits() {
        let cells = target("etcd", [10, 20], 1500).cells();
        assert_eq!(cells, ["etcd", "960", "640..1280", "1.50", "1.50", "1.50", "1.00"]);
    }
}
