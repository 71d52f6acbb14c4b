//! What a grant costs the nodes: a long line should cost no more than a short one.

use std::sync::Arc;
use std::time::Duration;

use super::Bench;
use super::report::{Aim, Figure, Table, number};
use crate::Error;
use crate::call::Caller;
use crate::line::{Line, TERMS};
use crate::servers::link::Link;
use crate::stats::median;
use crate::targets::unary;
use crate::witness::Witness;

/// The two lines.
const WAITERS: [usize; 2] = [10, 1000];

/// Until everybody stands in line.
const LINE_UP: Duration = Duration::from_millis(500);

/// How much longer clients work than is counted.
const REST: Duration = Duration::from_millis(100);

const HEAD: [&str; 4] = ["waiters", "grants/s", "commands on the nodes/s", "commands for a grant"];

/// What was counted in a window.
#[derive(Clone, Copy, Debug)]
struct Count {
    grants: f64,
    commands: f64,
}

impl Count {
    fn for_a_grant(self) -> f64 {
        self.commands / self.grants
    }
}

/// Measures the lines in turn.
pub async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    let mut links = bench.servers.links().await?;
    let proxies = bench.servers.proxies();
    let mut lines = Vec::new();
    for waiters in WAITERS {
        let clients = unary::clients::<Caller>(&proxies, waiters, TERMS).await?;
        lines.push((Line::new(&format!("contended/commands/{waiters}"), clients), Vec::new()));
    }
    for round in 1..=bench.rounds {
        for (line, counts) in &mut lines {
            let (window, witness) = (bench.window, line.witness());
            let (turns, count) = tokio::join!(bench.work(line, LINE_UP + window + REST), count(&mut links, witness, window));
            turns?;
            counts.push(count?);
        }
        let last = lines.iter().zip(WAITERS).map(|((_, counts), waiters)| {
            format!("{waiters} waiters: {}", number(counts.last().map_or(f64::NAN, |count: &Count| count.for_a_grant())))
        });
        eprintln!("round {round} of {}: commands for a grant: {}", bench.rounds, last.collect::<Vec<_>>().join(", "));
    }
    bench.nothing_left().await?;
    let counts = lines.into_iter().map(|(_, counts)| counts).collect::<Vec<_>>();
    let rows = counts.iter().zip(WAITERS).map(|(counts, waiters)| cells(waiters, counts, bench.window)).collect();
    let title = format!("Commands that the {} nodes carry out, those within scripts too", links.len());
    bench.report.add(Table { title, head: HEAD.to_vec(), rows }, [figure(&counts)]);
    Ok(())
}

/// Counts over a window of a line that is at work.
async fn count(links: &mut [Link], witness: Arc<Witness>, window: Duration) -> Result<Count, Error> {
    tokio::time::sleep(LINE_UP).await;
    let (grants, commands) = (witness.grants(), commands(links).await?);
    tokio::time::sleep(window).await;
    Ok(Count { grants: (witness.grants() - grants) as f64, commands: (self::commands(links).await? - commands) as f64 })
}

/// Of all nodes since they started.
async fn commands(links: &mut [Link]) -> Result<u64, Error> {
    let mut sum = 0;
    for link in links {
        sum += link.counters().await?.commands;
    }
    Ok(sum)
}

fn for_a_grant(counts: &[Count]) -> f64 {
    median(counts.iter().map(|count| count.for_a_grant()))
}

fn cells(waiters: usize, counts: &[Count], window: Duration) -> Vec<String> {
    let a_second = |figure: fn(&Count) -> f64| format!("{:.0}", median(counts.iter().map(figure)) / window.as_secs_f64());
    vec![waiters.to_string(), a_second(|count| count.grants), a_second(|count| count.commands), number(for_a_grant(counts))]
}

fn figure(counts: &[Vec<Count>]) -> Figure {
    let [short, long] = WAITERS;
    let [few, many] = [0, 1].map(|line| counts.get(line).map_or(f64::NAN, |counts| for_a_grant(counts)));
    let what = format!("commands for a grant, {long} / {short} waiters");
    Figure { what, aim: Aim::AtMost(1.3), measured: many / few }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_long_line_against_the_short_one() {
        let count = |commands| Count { grants: 100.0, commands };
        let counts = [vec![count(1000.0), count(2000.0), count(9000.0)], vec![count(3000.0)]];
        assert_eq!(figure(&counts).measured, 1.5);
        assert_eq!(cells(10, &counts[0], Duration::from_secs(2)), ["10", "50", "1000", "20.0"]);
    }
}
