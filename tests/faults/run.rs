//! One run: clients work while the planned faults begin and end, then all is healed, and the history is judged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redlockd::proto;
use redlockd::proto::acquire_response::Outcome;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::clients::{CLIENTS, Client, LONGEST_TTL_MS, NAMES};
use crate::oracle::history::{Fault, History, Leftover, Recovery};
use crate::oracle::{Assumptions, judge, overlaps};
use crate::plan::{LONGEST_LEAP, PROXIES, Planned, plan};
use crate::record::{Inner, Record};
use crate::report::Report;
use crate::support::millis;
use crate::world::{Clients, World};

/// When nobody wants anything any more, all keys have ended after the longest TTL, on a clock that leapt at the worst moment.
const QUIET: Duration = LONGEST_LEAP.saturating_add(Duration::from_millis(LONGEST_TTL_MS + 1_000));

/// Nothing here has to be fast.
const SLACK: Duration = Duration::from_secs(30);

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Less than this in a minute, and the run proves nothing. A tenth of what a machine with two busy cores does.
const GRANTS_A_MINUTE: f64 = 60.0;
const LOSSES_A_MINUTE: f64 = 80.0;
const REFUSED_WRITES_A_MINUTE: f64 = 5.0;

pub struct Run {
    name: &'static str,
    seed: u64,
    assumptions: Assumptions,
    length: Duration,
    record: Record,
    faults: Vec<Planned>,
}

impl Run {
    /// Faults for this long; panics if a promise is broken.
    pub async fn go(name: &'static str, assumptions: Assumptions, length: Duration) {
        let seed = match std::env::var("FAULTS_SEED") {
            Ok(seed) => seed.parse().unwrap_or_else(|_| panic!("FAULTS_SEED={seed} is not a number")),
            Err(_) => rand::random::<u64>(),
        };
        eprintln!("{name}: FAULTS_SEED={seed}, {} s of faults", length.as_secs());
        let mut rng = StdRng::seed_from_u64(seed);
        let faults = plan(&mut rng, length, assumptions);
        let mut world = World::start().await;
        let run = Self { name, seed, assumptions, length, record: Record::new(), faults };

        let stopping = Arc::new(AtomicBool::new(false));
        let clients = run.start_clients(&mut rng, &world.clients, &stopping);
        run.drive(&mut world).await;
        stopping.store(true, Ordering::Relaxed);
        clients.join_all().await;
        run.recover(&world.clients).await;
        run.find_leftovers(&world).await;
        run.conclude();
    }

    fn start_clients(&self, rng: &mut StdRng, proxies: &Clients, stopping: &Arc<AtomicBool>) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = Client {
                name: format!("client {number}"),
                rng: StdRng::seed_from_u64(rng.random()),
                proxies: proxies.clone(),
                record: self.record.clone(),
                stopping: stopping.clone(),
                graves: Vec::new(),
            };
            clients.spawn(client.run());
        }
        clients
    }

    /// Lets the faults begin and end when they are due. Stops early, and heals all, if a promise is broken.
    async fn drive(&self, world: &mut World) {
        let mut due: Vec<(Duration, bool, usize)> = Vec::new();
        for (index, fault) in self.faults.iter().enumerate() {
            due.extend([(fault.from, true, index), (fault.until, false, index)]);
        }
        due.sort();
        let (mut begun, mut progress, mut broken) = (BTreeMap::new(), PROGRESS_EVERY, false);
        for (when, begins, index) in due {
            while !broken && self.record.now() < when {
                sleep(when.min(progress).saturating_sub(self.record.now())).await;
                if self.record.now() >= progress {
                    progress += PROGRESS_EVERY;
                    broken = self.tell_progress(begun.len());
                }
            }
            let fault = &self.faults[index];
            if begins && !broken {
                begun.insert(index, self.record.now());
                self.record.note(format_args!("{fault:?}"));
                world.begin(fault);
            } else if let Some(from) = begun.remove(&index) {
                world.end(fault).await;
                self.record.count_fault(&fault.kind.label());
                for target in &fault.targets {
                    let (what, to) = (fault.to_string(), target.to_string());
                    self.record.fault(Fault { what, to, from, until: self.record.now() });
                }
            }
        }
    }

    /// Says how far it is; whether a promise is broken already.
    fn tell_progress(&self, active: usize) -> bool {
        let inner = self.record.look();
        let tally = inner.history.tally();
        let broken = judge(&inner.history, self.assumptions).len();
        eprintln!(
            "{}: {} of {} s: {} grants, {} losses, {} writes, {} refused; {} faults over, {active} active; {} overlaps, {broken} \
             promises broken",
            self.name,
            self.record.now().as_secs(),
            self.length.as_secs(),
            tally.grants,
            tally.losses,
            tally.writes,
            tally.refused_writes,
            inner.faults.values().sum::<usize>(),
            overlaps(&inner.history),
        );
        broken > 0
    }

    /// All is healed: every name has to be free within its TTL and some.
    async fn recover(&self, proxies: &Clients) {
        let asked = Instant::now();
        let due = asked + QUIET + SLACK;
        for (number, name) in NAMES.iter().enumerate() {
            let (ttl, wait) = (millis(LONGEST_TTL_MS), millis(5_000));
            let request = proto::AcquireRequest { name: (*name).to_owned(), ttl, wait, ..Default::default() };
            let mut granted = None;
            while granted.is_none() && Instant::now() < due {
                let mut client = { proxies.lock().unwrap()[number % PROXIES].clone() };
                let answer = client.acquire(request.clone()).await.ok().and_then(|answer| answer.into_inner().outcome);
                if matches!(answer, Some(Outcome::Granted(_))) {
                    granted = Some(self.record.now());
                }
            }
            let (asked, due) = (self.record.at(asked), self.record.at(due));
            self.record.look().history.recoveries.push(Recovery { name: (*name).to_owned(), asked, granted, due });
        }
    }

    /// Nobody wants anything any more: nothing may be left after the longest TTL.
    async fn find_leftovers(&self, world: &World) {
        world.settled().await;
        sleep(QUIET).await;
        for (node, key) in world.keys() {
            self.record.look().history.leftovers.push(Leftover { node: node.to_string(), key, excused: None });
        }
    }

    fn conclude(&self) {
        let inner = self.record.look();
        let violations = judge(&inner.history, self.assumptions);
        let title = format!("{}: {} s of faults, seed {}", self.name, self.length.as_secs(), self.seed);
        let figures = self.figures(&inner);
        for (caption, rows) in &figures {
            eprintln!("{}: {caption}: {rows:?}", self.name);
        }
        let report = Report { title, history: &inner.history, figures, violations: &violations };
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("faults");
        std::fs::create_dir_all(&directory).unwrap();
        let page = directory.join(if self.assumptions == Assumptions::Hold { "report.html" } else { "guarded.html" });
        std::fs::write(&page, report.html()).unwrap();
        std::fs::write(page.with_extension("log"), inner.history.lines().join("\n")).unwrap();
        eprintln!("{}: {}", self.name, page.display());
        for violation in &violations {
            eprintln!("{}: {violation}", self.name);
        }
        assert!(violations.is_empty(), "FAULTS_SEED={}: {} promises broken", self.seed, violations.len());
        self.is_no_empty_victory(&inner);
    }

    fn figures(&self, inner: &Inner) -> Vec<(&'static str, BTreeMap<String, String>)> {
        let (history, tally) = (&inner.history, inner.history.tally());
        let table = |rows: &[(&str, String)]| rows.iter().map(|(what, value)| ((*what).to_owned(), value.clone())).collect();
        let numbers = |counts: &BTreeMap<String, usize>| {
            counts.iter().map(|(what, count)| (what.clone(), count.to_string())).collect::<BTreeMap<_, _>>()
        };
        let waited = Waited::of(history);
        vec![
            (
                "Run",
                table(&[
                    ("grants", tally.grants.to_string()),
                    ("losses", tally.losses.to_string()),
                    ("writes accepted", tally.writes.to_string()),
                    ("stale writes refused", tally.refused_writes.to_string()),
                    ("calls", history.calls.len().to_string()),
                    ("dead lock ids used in vain", history.intrusions.len().to_string()),
                    ("faults", inner.faults.values().sum::<usize>().to_string()),
                    ("overlapping leases", overlaps(history).to_string()),
                    ("acquire to grant, median", format!("{:.0} ms", waited.median)),
                    ("acquire to grant, p99", format!("{:.0} ms", waited.p99)),
                    ("acquire to grant, longest", format!("{:.0} ms", waited.longest)),
                ]),
            ),
            ("Losses", history.losses.iter().map(|(how, count)| ((*how).to_owned(), count.to_string())).collect()),
            ("Clients", numbers(&inner.counts)),
            ("Faults", numbers(&inner.faults)),
        ]
    }

    fn is_no_empty_victory(&self, inner: &Inner) {
        let (tally, minutes) = (inner.history.tally(), self.length.as_secs_f64() / 60.0);
        // Nothing is granted while a majority is left out.
        let share = if self.assumptions == Assumptions::Hold { 1.0 } else { 0.1 };
        let few = |count: usize, a_minute: f64| (count as f64) < a_minute * minutes * share;
        assert!(!few(tally.grants, GRANTS_A_MINUTE), "{tally:?}");
        assert!(!few(tally.losses, LOSSES_A_MINUTE), "{tally:?}");
        assert!(!few(tally.refused_writes, REFUSED_WRITES_A_MINUTE), "{tally:?}");
        assert!(!inner.history.intrusions.is_empty(), "nobody used a dead lock id");
        let planned = self.faults.iter().map(|fault| fault.kind.label());
        let missing: Vec<String> = planned.filter(|kind| !inner.faults.contains_key(kind)).collect();
        assert!(missing.is_empty(), "planned and not done: {missing:?}");
    }
}

/// How long it took to be granted a lock, in ms, waiting for it included.
struct Waited {
    median: f64,
    p99: f64,
    longest: f64,
}

impl Waited {
    fn of(history: &History) -> Self {
        let leases = history.leases.iter();
        let mut waited: Vec<f64> = leases.map(|lease| (lease.granted_by - lease.not_before).as_secs_f64() * 1_000.0).collect();
        waited.sort_by(f64::total_cmp);
        let part = |part: f64| waited.get((waited.len() as f64 * part) as usize).copied().unwrap_or_default();
        Self { median: part(0.5), p99: part(0.99), longest: waited.last().copied().unwrap_or_default() }
    }
}

/// How long faults go on in the run under which all promises hold.
fn duration() -> Duration {
    let written = std::env::var("DURATION").ok().filter(|text| !text.is_empty());
    written.map_or(Duration::from_secs(60), |text| humantime::parse_duration(&text).expect("DURATION, such as 30m"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_promise_holds_under_the_faults_that_are_allowed() {
    Run::go("hold", Assumptions::Hold, duration()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_leases_overlap_where_nodes_forget_and_clocks_are_set() {
    Run::go("guarded", Assumptions::Guarded, duration() / 2).await;
}
