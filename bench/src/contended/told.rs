//! A release through another proxy than the waiter's: how long until the waiter has the lock when it is told, and when nobody is.

use std::time::{Duration, Instant};

use super::Bench;
use super::report::{Aim, Figure, Table, number};
use crate::Error;
use crate::call::{Call, Caller};
use crate::client::{Client, Failure};
use crate::line::TERMS;
use crate::servers::link::Link;
use crate::stats::{Latencies, micros};
use crate::targets::unary::Unary;
use crate::witness::{Lie, Witness};

/// The longest time between two looks of somebody who is not told, and one more round trip.
const FALLBACK_MS: f64 = 2_100.0;

/// The holder keeps the lock for so long: whoever waits has looked, and waits for a word.
const HOLD: Duration = Duration::from_millis(700);

const NAME: &str = "contended/told";

const HEAD: [&str; 4] = ["the nodes", "trials", "median ms", "max ms"];

/// Measures both in turn.
pub async fn measure(bench: &mut Bench<'_>, trials: u16) -> Result<(), Error> {
    let servers = bench.servers;
    let other = servers.another_proxy().await?;
    let mut links = servers.links().await?;
    let (holder, waiter) = (Caller::connect(&servers.proxy()).await?, Caller::connect(other.url()).await?);
    let mut pair = [holder, waiter].map(|way| Unary::new(way, TERMS));
    eprintln!("{trials} releases at another proxy that are told, and {trials} that are not");
    let (witness, mut rows, mut delays) = (Witness::default(), Vec::new(), Vec::new());
    for (what, rule) in [("tell of releases", "+publish"), ("may not publish", "-publish")] {
        allow(&mut links, rule).await?;
        let mut delays_us = Vec::new();
        for _ in 0..trials {
            match trial(&mut pair, &witness).await {
                Ok(delay_us) => delays_us.push(delay_us),
                Err(what) => bench.report.failed(what),
            }
        }
        let times = Latencies::new(delays_us);
        let [median, max] = [50, 100].map(|percent| times.percentile_ms(percent));
        rows.push(vec![what.to_owned(), trials.to_string(), number(median), number(max)]);
        delays.push((median, max));
    }
    allow(&mut links, "+publish").await?;
    bench.nothing_left().await?;
    let figure = |what: &str, aim, measured| Figure { what: what.to_owned(), aim, measured };
    let figures = vec![
        figure("from a release at another proxy to the grant, when it is told, median ms", Aim::Below(100.0), delays[0].0),
        figure("the same when it is not told: within the fallback poll, max ms", Aim::Below(FALLBACK_MS), delays[1].1),
    ];
    let title = format!("From a release at another proxy, after {HOLD:?}, to the grant of whoever waits");
    bench.report.add(Table { title, head: HEAD.to_vec(), rows }, figures);
    Ok(())
}

/// What clients may do on the nodes.
async fn allow(links: &mut [Link], rule: &str) -> Result<(), Error> {
    for link in links {
        link.allow(rule).await?;
    }
    Ok(())
}

/// The time from the release to the grant, in microseconds.
async fn trial([holder, waiter]: &mut [Unary; 2], witness: &Witness) -> Result<u32, String> {
    let (words, lie) = (|failure: Failure| failure.what, |lie: Lie| lie.to_string());
    let (held, lease) = holder.take(NAME).await.map_err(words)?;
    witness.granted(0, Instant::now(), lease).map_err(lie)?;
    let gives_back = async {
        tokio::time::sleep(HOLD).await;
        let at = Instant::now();
        holder.give_back(held).await.map(|()| at)
    };
    let waits = async { waiter.take(NAME).await.map(|granted| (granted, Instant::now())) };
    let (released, granted) = tokio::join!(gives_back, waits);
    let ((next, lease), at) = granted.map_err(words)?;
    witness.gives_back(0);
    witness.granted(1, at, lease).map_err(lie)?;
    witness.gives_back(1);
    waiter.give_back(next).await.map_err(words)?;
    Ok(micros(at.saturating_duration_since(released.map_err(words)?)))
}
