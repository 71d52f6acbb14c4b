//! The parts that every run is made of: targets side by side, rates until saturation, faults under load. What they measure
//! goes into the results.

use std::time::{Duration, Instant, SystemTime};

use crate::Error;
use crate::arrivals::{Rate, Rhythm};
use crate::call::{Caller, Tonic};
use crate::client::Terms;
use crate::cpu::{Kind, Process, proxy_resident_kib};
use crate::crew::{Crew, Habit, Work};
use crate::fault::FaultPlan;
use crate::knee::{Rule, Search};
use crate::names::Names;
use crate::progress::Progress;
use crate::results::{self, Fault, Knee, OpenLoop, Results, Setup, Step, Timeline, Version};
use crate::row::{RowOf, cpu_us_per_pair, step};
use crate::servers::etcd::{self, Etcd, EtcdArgs};
use crate::servers::proxy::version;
use crate::servers::{Servers, ServersArgs};
use crate::tables::setup;
use crate::targets::{Target, direct, rslock, stream, unary};
use crate::window::{Order, Stage, Window};
use crate::{machine, targets};

/// How clients behave, and for how long they are looked at.
#[derive(Clone, Debug)]
pub struct Manner {
    pub names: Names,
    pub terms: Terms,
    pub hold: Duration,
    pub window: Duration,
    pub rounds: u32,
    pub warm_up: Duration,
    /// Clients begin one after the other over this time; rates rise to the first one.
    pub ramp: Duration,
    /// Between two samples of a timeline.
    pub interval: Duration,
}

/// Rates to try.
#[derive(Clone, Debug, PartialEq)]
pub enum Rates {
    /// These, one after the other.
    Steps(Vec<f64>),
    /// Whatever is needed to find the knee, beginning with this one.
    Search(f64),
}

/// An open loop.
#[derive(Clone, Debug)]
pub struct Open {
    pub rates: Rates,
    pub rhythm: Rhythm,
    /// The most pairs under way at a time.
    pub clients: usize,
    pub rule: Rule,
}

/// A run under way.
pub struct Bench {
    pub manner: Manner,
    pub results: Results,
    progress: Progress,
    began: Instant,
    /// Tells the names of this run from those of another.
    run: String,
    crews: u32,
    pub etcd: Option<Etcd>,
}

/// One target of a comparison: a crew on servers.
pub struct Side<'a> {
    pub target: Target,
    pub servers: &'a Servers,
    pub setup: Setup,
    work: Box<dyn Work>,
    pub windows: Vec<Window>,
}

impl Bench {
    /// Begins now.
    pub fn new(manner: Manner, threads: u8) -> Self {
        let load = results::Load {
            names: manner.names.to_string(),
            ttl_ms: manner.terms.ttl.as_millis() as u64,
            hold_ms: manner.hold.as_secs_f64() * 1000.0,
            wait_ms: manner.terms.wait.as_millis() as u64,
            window_s: manner.window.as_secs_f64(),
            rounds: manner.rounds,
            warm_up_s: manner.warm_up.as_secs_f64(),
        };
        let run = results::Run {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            optimized: !cfg!(debug_assertions),
            threads: threads.into(),
            machine: machine::this(),
            load,
            ..results::Run::default()
        };
        Self {
            manner,
            results: Results { version: results::VERSION, run, ..Results::default() },
            progress: Progress::new(),
            began: Instant::now(),
            run: format!("{:08x}", rand::random::<u32>()),
            crews: 0,
            etcd: None,
        }
    }

    /// A line for people.
    pub fn say(&self, text: &str) {
        self.progress.line(text);
    }

    /// Notes what is measured with what.
    pub async fn note_versions(&mut self, args: &ServersArgs, etcd: &EtcdArgs, servers: &Servers) -> Result<(), Error> {
        let mut versions = Vec::new();
        let mut note = |name: &str, version: Option<String>| {
            versions.extend(version.map(|version| Version { name: name.to_owned(), version }));
        };
        note("redlockd", args.program().ok().and_then(|program| version(&program)));
        if let Some(link) = servers.links().await?.first_mut() {
            let (name, version) = link.version().await?;
            note(&name, Some(version));
        }
        note("rslock", machine::built_with("rslock"));
        if self.etcd.is_some() {
            note("etcd", etcd::version(etcd));
        }
        self.results.run.versions = versions;
        Ok(())
    }

    /// All processes whose work can be counted.
    pub fn processes(&self, servers: &Servers) -> Vec<Process> {
        let etcd = self.etcd.iter().map(|etcd| Process { name: "etcd".to_owned(), kind: Kind::Etcd, pid: etcd.pid() });
        servers.processes().into_iter().chain(etcd).collect()
    }

    /// Clients of a target.
    pub async fn side<'a>(&mut self, target: Target, servers: &'a Servers, clients: usize) -> Result<Side<'a>, Error> {
        self.side_at(target, servers, &servers.proxies(), clients).await
    }

    /// Clients of a target, at some of the proxies.
    pub async fn side_at<'a>(
        &mut self,
        target: Target,
        servers: &'a Servers,
        proxies: &[String],
        clients: usize,
    ) -> Result<Side<'a>, Error> {
        self.crews += 1;
        let prefix = format!("{}{}-{}", self.prefix(), target.name(), self.crews);
        let habit = Habit { names: self.manner.names, prefix, hold: self.manner.hold };
        let terms = self.manner.terms;
        let work: Box<dyn Work> = match target {
            Target::Unary => Box::new(Crew::new(unary::clients::<Caller>(proxies, clients, terms).await?, &habit)),
            Target::Tonic => Box::new(Crew::new(unary::clients::<Tonic>(proxies, clients, terms).await?, &habit)),
            Target::Stream => Box::new(Crew::new(stream::clients(proxies, clients, terms).await?, &habit)),
            Target::Direct => Box::new(Crew::new(direct::clients(&servers.serve_arguments(), clients, terms).await?, &habit)),
            Target::Rslock => Box::new(Crew::new(rslock::clients(&servers.urls(), clients, terms)?, &habit)),
            Target::Etcd => {
                let etcd = self.etcd.as_ref().ok_or("there is no etcd")?;
                Box::new(Crew::new(targets::etcd::clients(etcd, clients).await?, &habit))
            }
        };
        let setup = Setup {
            nodes: if target == Target::Etcd { 0 } else { servers.urls().len() as u32 },
            proxies: if target.needs_a_proxy() { proxies.len() as u32 } else { 0 },
            ..Setup::default()
        };
        Ok(Side { target, servers, setup, work, windows: vec![] })
    }

    /// Stands before the names of all locks of this run.
    pub fn prefix(&self) -> String {
        format!("bench/{}/", self.run)
    }

    fn order(&self, length: Duration) -> Order {
        Order {
            length,
            rate: None,
            seed: rand::random(),
            ramp: Duration::ZERO,
            interval: self.manner.interval,
            fault: None,
            wait: self.manner.terms.wait,
        }
    }

    async fn window(&self, side: &mut Side<'_>, order: &Order) -> Result<Window, Error> {
        let processes = self.processes(side.servers);
        let stage = Stage { servers: side.servers, processes: &processes, progress: &self.progress, began: self.began };
        stage.run(side.work.as_mut(), order).await
    }

    /// Before anything is measured.
    async fn warm_up(&self, side: &mut Side<'_>, what: &str) -> Result<(), Error> {
        let length = self.manner.warm_up.max(self.manner.ramp);
        if length.is_zero() {
            return Ok(());
        }
        self.progress.step(format!("{what}, warming up"));
        let order = Order { ramp: self.manner.ramp, ..self.order(length) };
        self.window(side, &order).await.map(drop)
    }

    /// Targets side by side: a window of each in turn, again and again. Returns the sides with their windows.
    pub async fn side_by_side<'a>(&mut self, mut sides: Vec<Side<'a>>, clients: usize) -> Result<Vec<Side<'a>>, Error> {
        for side in &mut sides {
            let what = format!("{} with {clients} clients", side.target.name());
            self.warm_up(side, &what).await?;
        }
        let rounds = self.manner.rounds;
        for round in 1..=rounds {
            for side in &mut sides {
                self.progress.step(format!("{clients} clients, round {round} of {rounds}: {}", side.label()));
                let window = self.window(side, &self.order(self.manner.window)).await?;
                side.windows.push(window);
            }
            let rate = |side: &Side| side.windows.last().map_or(f64::NAN, Window::pairs_per_s);
            let rates = sides.iter().map(|side| format!("{} {:.0}", side.label(), rate(side)));
            self.say(&format!(
                "{clients} clients, round {round} of {rounds}, pairs/s: {}",
                rates.collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(sides)
    }

    /// Rows and timelines of sides that are done with.
    pub fn add_rows(&mut self, sides: Vec<Side<'_>>, clients: usize, title: &str) {
        let rslock = sides.iter().position(|side| side.target == Target::Rslock);
        for side in &sides {
            let rslock = rslock.map_or(&[][..], |place| &sides[place].windows);
            let processes = self.processes(side.servers);
            let proxy_rss_kib = proxy_resident_kib(&processes);
            let (target, setup) = (side.target, &side.setup);
            let row =
                RowOf { target, clients, setup, windows: &side.windows, rslock, processes: &processes, proxy_rss_kib }.row();
            self.results.rows.push(row);
        }
        for side in sides {
            let samples = side.windows.iter().flat_map(|window| window.samples.iter().cloned()).collect();
            self.add_timeline(title, side.target, clients, samples, vec![]);
            self.dismiss(side);
        }
    }

    fn add_timeline(
        &mut self,
        title: &str,
        target: Target,
        clients: usize,
        samples: Vec<results::Sample>,
        marks: Vec<results::Mark>,
    ) {
        self.results.timelines.push(Timeline {
            title: title.to_owned(),
            target: target.name().to_owned(),
            clients: clients as u32,
            interval_s: self.manner.interval.as_secs_f64(),
            samples,
            marks,
        });
    }

    /// Keeps what was checked.
    pub fn dismiss(&mut self, side: Side<'_>) {
        self.results.checks.add(&side.work.watch().checks());
    }

    /// Compares targets with a number of clients.
    pub async fn compare(&mut self, targets: &[Target], servers: &Servers, clients: usize) -> Result<(), Error> {
        let mut sides = Vec::new();
        for target in targets {
            sides.push(self.side(*target, servers, clients).await?);
        }
        let sides = self.side_by_side(sides, clients).await?;
        self.add_rows(sides, clients, &format!("{clients} clients side by side"));
        self.nothing_left(servers).await
    }

    /// Given rates, of one target.
    pub async fn open_loop(&mut self, target: Target, servers: &Servers, open: &Open) -> Result<(), Error> {
        let mut side = self.side(target, servers, open.clients).await?;
        let (mut steps, mut samples) = (Vec::<Step>::new(), Vec::new());
        let mut search = match &open.rates {
            Rates::Search(first) => Some(Search::new(*first)),
            Rates::Steps(_) => None,
        };
        self.warm_up_to(&mut side, open).await?;
        loop {
            let rate = match (&search, &open.rates) {
                (Some(search), _) => search.next(),
                (None, Rates::Steps(rates)) => rates.get(steps.len()).copied(),
                (None, Rates::Search(_)) => None,
            };
            let Some(rate) = rate else { break };
            let (step, more) = self.one_rate(&mut side, open, rate).await?;
            samples.extend(more);
            if let Some(search) = &mut search {
                search.tried(rate, step.saturated.is_none());
            }
            steps.push(step);
        }
        let knee = search.and_then(|search| knee(&search, &steps, open.rule));
        steps.sort_by(|one, other| one.offered_per_s.total_cmp(&other.offered_per_s));
        let (arrivals, setup, clients) = (open.rhythm.name().to_owned(), side.setup.clone(), open.clients as u32);
        self.results.open_loop.push(OpenLoop { target: target.name().to_owned(), setup, arrivals, clients, steps, knee });
        self.add_timeline("given rates", target, open.clients, samples, vec![]);
        self.dismiss(side);
        self.nothing_left(servers).await
    }

    /// From nothing to the first rate.
    async fn warm_up_to(&self, side: &mut Side<'_>, open: &Open) -> Result<(), Error> {
        let length = self.manner.warm_up.max(self.manner.ramp);
        if length.is_zero() {
            return Ok(());
        }
        let to = match &open.rates {
            Rates::Steps(rates) => rates.first().copied().unwrap_or_default(),
            Rates::Search(first) => *first,
        };
        self.progress.step(format!("{}, up to {to:.0} pairs/s", side.target.name()));
        let order = Order { rate: Some((Rate { from: 0.0, to }, open.rhythm)), ..self.order(length) };
        self.window(side, &order).await.map(drop)
    }

    async fn one_rate(&self, side: &mut Side<'_>, open: &Open, rate: f64) -> Result<(Step, Vec<results::Sample>), Error> {
        self.progress.step(format!("{} at {rate:.0} pairs/s", side.target.name()));
        let order = Order { rate: Some((Rate::of(rate), open.rhythm)), ..self.order(self.manner.window) };
        let window = self.window(side, &order).await?;
        let cpu = cpu_us_per_pair(&window, side.target, &self.processes(side.servers));
        let mut step = step(rate, self.manner.window.as_secs_f64(), &window, cpu);
        let errors = window.tally.errors.count();
        step.saturated = open.rule.broken_by(&step, window.tally.pairs() + errors + window.backlog);
        let verdict = step.saturated.clone().unwrap_or_else(|| "carried".to_owned());
        let (target, p99) = (side.target.name(), step.acquire.p99_ms);
        self.say(&format!(
            "{target} at {rate:.0} pairs/s: {:.0} made, acquire p99 {p99:.2} ms; {verdict}",
            step.achieved_per_s
        ));
        Ok((step, window.samples))
    }

    /// A fault of some nodes under the load of one target.
    pub async fn fault(
        &mut self,
        target: Target,
        servers: &Servers,
        clients: usize,
        plan: &FaultPlan,
        rate: Option<(f64, Rhythm)>,
    ) -> Result<(), Error> {
        let mut side = self.side(target, servers, clients).await?;
        let what = plan.words(servers.urls().len());
        self.warm_up(&mut side, target.name()).await?;
        self.progress.step(format!("{} with {clients} clients, {what}", target.name()));
        let open = rate.map(|(rate, rhythm)| (Rate::of(rate), rhythm));
        let order = Order { rate: open, fault: Some(*plan), ..self.order(plan.length()) };
        let window = self.window(&mut side, &order).await?;
        let mut fault = Fault {
            kind: plan.kind,
            nodes: plan.nodes as u32,
            what: what.clone(),
            target: target.name().to_owned(),
            clients: clients as u32,
            setup: side.setup.clone(),
            offered_per_s: rate.map(|(rate, _)| rate),
            ..Fault::default()
        };
        if !fault.measured(&window) {
            return Err(format!("{what}: the load ended before the fault began").into());
        }
        self.say(&format!(
            "{}: {what}: throughput {:.2}, p99 of the acquire {:.2} of what it was",
            fault.target, fault.throughput_ratio, fault.p99_ratio
        ));
        self.results.faults.push(fault);
        self.add_timeline(&what, target, clients, window.samples, window.marks);
        self.dismiss(side);
        if plan.ends() {
            servers.all_up().await?;
        }
        self.nothing_left(servers).await
    }

    /// All locks have been given back: what is still on a node is a lie.
    pub async fn nothing_left(&mut self, servers: &Servers) -> Result<(), Error> {
        if servers.urls().is_empty() {
            return Ok(());
        }
        let left = servers.left_behind(&self.prefix()).await?;
        let checks = &mut self.results.checks;
        (checks.sweeps, checks.keys_left) = (checks.sweeps + 1, checks.keys_left + left);
        checks.servers_swept += servers.nodes_alive() as u64;
        if left > 0 {
            checks.lies.push(format!("{left} keys were left behind on the nodes"));
        }
        Ok(())
    }

    /// The end of the run.
    pub fn finish(mut self) -> Results {
        self.results.run.took_s = self.began.elapsed().as_secs_f64();
        self.results
    }
}

impl Side<'_> {
    /// Told apart from others of the same target.
    fn label(&self) -> String {
        format!("{}{}", self.target.name(), setup(&self.setup))
    }
}

fn knee(search: &Search, steps: &[Step], rule: Rule) -> Option<Knee> {
    let (carried, not_carried_per_s) = search.found();
    let pairs_per_s = carried?;
    // The last of that rate: one before may have been a miss.
    let step = steps.iter().rev().find(|step| step.offered_per_s == pairs_per_s)?;
    Some(Knee { pairs_per_s, not_carried_per_s, p99_ms: step.acquire.p99_ms, rule: rule.words() })
}
