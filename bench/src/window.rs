//! A spell of work of one crew: what came of it, what it cost, how it went over the time, and what was done to the nodes
//! meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::Error;
use crate::arrivals::{Arrivals, Rate, Rhythm};
use crate::cpu::{CpuTime, Process, proxy_resident_kib};
use crate::crew::{Pace, Shift, Work};
use crate::fault::{Active, FaultPlan};
use crate::progress::Progress;
use crate::results::{Mark, MarkKind, Sample};
use crate::servers::Servers;
use crate::servers::link::Counters;
use crate::tally::Tally;

/// How long a pair that was begun within the window may take, beyond its wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Order {
    pub length: Duration,
    /// None: a closed loop.
    pub rate: Option<(Rate, Rhythm)>,
    /// For arrivals at random.
    pub seed: u64,
    /// Clients begin one after the other over this time.
    pub ramp: Duration,
    /// Between two samples.
    pub interval: Duration,
    pub fault: Option<FaultPlan>,
    /// How long a client may wait for a lock.
    pub wait: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Window {
    pub tally: Tally,
    /// From the start to the end of the last pair.
    pub took: Duration,
    pub cpu: CpuTime,
    /// Of all Redis servers, if all of them say.
    pub redis: Option<Counters>,
    /// Pairs of each client.
    pub shares: Vec<u64>,
    /// In an open loop: pairs that were due and not begun when it ended.
    pub backlog: u64,
    /// Before, during and after the fault; one, if there was none.
    pub phases: Vec<Part>,
    pub samples: Vec<Sample>,
    pub marks: Vec<Mark>,
}

/// A part of the time.
#[derive(Debug, Default)]
pub struct Part {
    /// Since the beginning of the run.
    pub began_s: f64,
    pub took: Duration,
    pub tally: Tally,
    pub proxy_rss_kib: Option<u64>,
}

impl Window {
    /// Pairs that were made in a second.
    pub fn pairs_per_s(&self) -> f64 {
        self.tally.pairs() as f64 / self.took.as_secs_f64()
    }
}

/// Where and for whom crews work.
pub struct Stage<'a> {
    pub servers: &'a Servers,
    pub processes: &'a [Process],
    pub progress: &'a Progress,
    /// The beginning of the run.
    pub began: Instant,
}

impl Stage<'_> {
    /// Lets a crew work.
    pub async fn run(&self, work: &mut dyn Work, order: &Order) -> Result<Window, Error> {
        let victims = match &order.fault {
            Some(fault) => self.servers.node_pids(fault.nodes)?,
            None => vec![],
        };
        let redis = self.servers.counters().await;
        let cpu = CpuTime::of(self.processes)?;
        let started = Instant::now();
        let arrivals =
            order.rate.map(|(rate, rhythm)| Arc::new(Arrivals::new(rate, rhythm, order.seed, started, order.length)));
        let pace = arrivals.clone().map_or(Pace::Closed, Pace::Open);
        work.begin(&Shift { pace, end: started + order.length, ramp: order.ramp });
        let mut account = Account::new(self, started, order.fault, victims);
        account.until_the_end(work, order).await?;

        let took = started.elapsed();
        let cpu = CpuTime::of(self.processes)?.since(&cpu);
        let redis = match redis {
            Some(before) => self.servers.counters().await.map(|after| after.since(before)),
            None => None,
        };
        let backlog = arrivals.map_or(0, |arrivals| account.never_begun(&arrivals, started + order.length));
        let mut tally = Tally::default();
        account.parts.iter().for_each(|part| tally.add(&part.tally));
        Ok(Window {
            tally,
            took,
            cpu,
            redis,
            shares: work.take_shares(),
            backlog,
            phases: account.parts,
            samples: account.samples,
            marks: account.marks,
        })
    }
}

/// What is written down while a crew works.
struct Account<'a> {
    stage: &'a Stage<'a>,
    started: Instant,
    fault: Option<FaultPlan>,
    victims: Vec<Pid>,
    active: Option<Active>,
    parts: Vec<Part>,
    samples: Vec<Sample>,
    marks: Vec<Mark>,
    /// Since the last sample.
    since: Instant,
    unsampled: Tally,
    /// Failures so far.
    errors: u64,
}

impl<'a> Account<'a> {
    fn new(stage: &'a Stage<'a>, started: Instant, fault: Option<FaultPlan>, victims: Vec<Pid>) -> Self {
        let first = Part { began_s: (started - stage.began).as_secs_f64(), ..Part::default() };
        Self {
            stage,
            started,
            fault,
            victims,
            active: None,
            parts: vec![first],
            samples: vec![],
            marks: vec![],
            since: started,
            unsampled: Tally::default(),
            errors: 0,
        }
    }

    async fn until_the_end(&mut self, work: &mut dyn Work, order: &Order) -> Result<(), Error> {
        let patience = self.started + order.length + order.wait + PATIENCE;
        let mut ticks = interval_at((self.started + order.interval).into(), order.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let change = self.next_change();
            tokio::select! {
                biased;
                ended = work.ended() => {
                    ended?;
                    break;
                }
                () = sleep_until(change.unwrap_or(patience).into()), if change.is_some() => self.change(work)?,
                _ = ticks.tick() => self.sample(work, order).await,
                () = sleep_until(patience.into()) => {
                    return Err(format!("a pair took longer than {:?}", order.wait + PATIENCE).into());
                }
            }
        }
        self.active = None;
        self.close_part(work);
        // A rest that is too short says nothing of a rate.
        if self.since.elapsed() > order.interval / 2 || self.samples.is_empty() {
            self.sample(work, order).await;
        }
        Ok(())
    }

    /// When the fault begins or ends.
    fn next_change(&self) -> Option<Instant> {
        let fault = self.fault?;
        match self.parts.len() {
            1 => Some(self.started + fault.when.at),
            2 if fault.ends() => Some(self.started + fault.when.at + fault.when.lasts),
            _ => None,
        }
    }

    fn change(&mut self, work: &dyn Work) -> Result<(), Error> {
        self.close_part(work);
        let Some(fault) = self.fault else { return Ok(()) };
        let kind = if self.active.is_none() { MarkKind::FaultBegins } else { MarkKind::FaultEnds };
        self.active = match self.active.take() {
            None => Some(fault.begin(self.victims.clone())?),
            Some(_over) => None,
        };
        let at_s = self.at_s();
        let what = match kind {
            MarkKind::FaultBegins => fault.words(self.stage.servers.urls().len()),
            MarkKind::FaultEnds => "over".to_owned(),
        };
        self.stage.progress.line(&format!("{at_s:.1} s: {what}"));
        self.marks.push(Mark { at_s, kind, what });
        self.parts.push(Part { began_s: at_s, ..Part::default() });
        Ok(())
    }

    fn at_s(&self) -> f64 {
        self.stage.began.elapsed().as_secs_f64()
    }

    /// Takes what was counted so far into the part of the time that is on.
    fn count(&mut self, work: &dyn Work) {
        let tally = work.recorder().drain();
        self.errors += tally.errors.count();
        self.unsampled.add(&tally);
        if let Some(part) = self.parts.last_mut() {
            part.tally.add(&tally);
        }
    }

    fn close_part(&mut self, work: &dyn Work) {
        self.count(work);
        let (at_s, rss) = (self.at_s(), proxy_resident_kib(self.stage.processes));
        if let Some(part) = self.parts.last_mut() {
            part.took = Duration::from_secs_f64((at_s - part.began_s).max(0.0));
            part.proxy_rss_kib = rss;
        }
    }

    async fn sample(&mut self, work: &mut dyn Work, order: &Order) {
        self.count(work);
        let (now, tally) = (Instant::now(), std::mem::take(&mut self.unsampled));
        let sample = Sample {
            at_s: self.at_s(),
            pairs_per_s: tally.pairs() as f64 / (now - self.since).as_secs_f64(),
            p50_ms: tally.pair.percentile_ms(50.0),
            p99_ms: tally.pair.percentile_ms(99.0),
            errors: tally.errors.count(),
            proxy_rss_kib: proxy_resident_kib(self.stage.processes),
        };
        self.since = now;
        self.stage.progress.tick(self.stage.servers, now - self.started, order.length, &sample, self.errors).await;
        self.samples.push(sample);
    }

    /// Pairs that nobody came to begin. They have waited until the end at least, which counts: left out, the worst would be hidden.
    fn never_begun(&mut self, arrivals: &Arrivals, end: Instant) -> u64 {
        let due = arrivals.not_begun();
        if let Some(part) = self.parts.last_mut() {
            for due in &due {
                let waited = end.saturating_duration_since(*due);
                part.tally.acquire.record(waited);
                part.tally.late.record(waited);
            }
        }
        due.len() as u64
    }
}
