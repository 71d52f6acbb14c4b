//! Lines for the same lock at several proxies: each should have its share, and nobody should wait much longer than others.

use super::Bench;
use super::report::{Aim, Figure, Table, number};
use crate::Error;
use crate::call::Caller;
use crate::line::{Line, TERMS, Turns};
use crate::stats::{Latencies, inequality};
use crate::targets::unary;

const PROXIES: usize = 3;

/// Waiters at each proxy.
const WAITERS: usize = 32;

const HEAD: [&str; 6] = ["grants/s", "of each proxy", "wait p50 ms", "p99 ms", "max ms", "mean ms"];

/// Measures one window as long as all of the others together: what matters is how the shares develop.
pub async fn measure(bench: &mut Bench<'_>) -> Result<(), Error> {
    let mut others = Vec::new();
    let mut clients = unary::clients::<Caller>(&[bench.servers.proxy()], WAITERS, TERMS).await?;
    for _ in 1..PROXIES {
        let proxy = bench.servers.another_proxy().await?;
        clients.extend(unary::clients::<Caller>(&[proxy.url().to_owned()], WAITERS, TERMS).await?);
        others.push(proxy);
    }
    let time = bench.window * bench.rounds.into();
    eprintln!("{PROXIES} proxies with {WAITERS} waiters each, for {time:?}");
    let turns = bench.work(&mut Line::new("contended/proxies", clients), time).await?;
    bench.nothing_left().await?;
    let title =
        format!("{PROXIES} proxies with {WAITERS} waiters each for one lock that everybody gives back at once, {time:?}");
    bench.report.add(Table { title, head: HEAD.to_vec(), rows: vec![cells(&turns)] }, figures(&turns));
    Ok(())
}

/// Of each proxy; the clients of one stand together.
fn grants(turns: &Turns) -> Vec<u64> {
    turns.grants.chunks(WAITERS).map(|clients| clients.iter().sum()).collect()
}

fn cells(turns: &Turns) -> Vec<String> {
    let shares = grants(turns).iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let waits = Latencies::new(turns.waits_us.clone());
    let [p50, p99, max] = [50, 99, 100].map(|percent| number(waits.percentile_ms(percent)));
    vec![format!("{:.0}", turns.grants_per_s()), shares, p50, p99, max, number(waits.mean_ms())]
}

fn figures(turns: &Turns) -> [Figure; 2] {
    let waits = Latencies::new(turns.waits_us.clone());
    let longest = waits.percentile_ms(100) / waits.mean_ms();
    let figure = |what: &str, aim, measured| Figure { what: format!("{PROXIES} proxies: {what}"), aim, measured };
    [
        figure("largest / smallest share of a proxy", Aim::AtMost(1.5), inequality(&grants(turns))),
        figure("longest / mean wait of all clients", Aim::AtMost(5.0), longest),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_are_those_of_proxies_and_waits_those_of_clients() {
        let of = |grants| vec![grants; WAITERS];
        let grants = [of(1), of(3), of(2)].concat();
        let waits_us = vec![1000, 2000, 9000];
        let turns = Turns { time: Duration::from_secs(2), grants, waits_us, ..Turns::default() };
        let [shares, waits] = figures(&turns);
        assert_eq!((shares.measured, waits.measured), (3.0, 2.25));
        assert_eq!(cells(&turns), ["96", "32, 96, 64", "2.00", "9.00", "9.00", "4.00"]);
    }
}
