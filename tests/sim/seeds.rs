//! Many runs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use redlockd::engine::membership::CounterKind;

use crate::faults::Breakage;
use crate::oracle::history::{History, Said, Tally};
use crate::oracle::{Assumptions, Violation, overlaps, stale_writes_taken};
use crate::run::{self, Judged};

/// How many seeds are run if nobody says: `make test` and `make prove-sim` do, and build for speed.
// Without optimisation a seed takes ten times as long, and shows nothing that it does not show with it.
const SEEDS: u64 = if cfg!(debug_assertions) { 20 } else { 100 };

/// For so many runs in which all assumptions hold there is one for each that is broken.
const BROKEN_SHARE: u64 = 10;

/// Every seed is run with either.
const BOTH: [CounterKind; 2] = [CounterKind::Designated, CounterKind::Quorum];

/// What the environment says of `name`.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What many runs came to.
#[derive(Default)]
struct Sum {
    runs: u64,
    /// Runs with at least ten grants.
    busy: u64,
    tally: Tally,
    losses: BTreeMap<&'static str, usize>,
    faults: usize,
    /// What the clients of sessions were told.
    words: BTreeMap<Said, usize>,
    /// Writes of stale holders that the register took.
    stale_taken: usize,
    overlaps: usize,
    /// Runs with an overlap.
    overlapping: u64,
    failed: Vec<(u64, &'static str, String)>,
    /// What every seed came to: hash, grants, losses, refused stale writes, faults.
    seeds: BTreeMap<(u64, &'static str), String>,
}

impl Sum {
    fn add(&mut self, seed: u64, counter: CounterKind, judged: &Judged) {
        let tally = judged.history.tally();
        let faults = judged.history.faults.len();
        let Tally { grants, losses, refused_writes, .. } = tally;
        let kind = counter.as_str();
        let line = format!("{seed},{kind},{},{grants},{losses},{refused_writes},{faults}", judged.history.hash());
        self.seeds.insert((seed, kind), line);
        self.runs += 1;
        self.busy += u64::from(tally.grants >= 10);
        self.tally.grants += tally.grants;
        self.tally.losses += tally.losses;
        self.tally.writes += tally.writes;
        self.tally.refused_writes += tally.refused_writes;
        self.faults += faults;
        for (why, count) in &judged.history.losses {
            *self.losses.entry(why).or_default() += count;
        }
        for word in &judged.history.words {
            *self.words.entry(word.said).or_default() += 1;
        }
        self.stale_taken += stale_writes_taken(&judged.history);
        let overlaps = overlaps(&judged.history);
        self.overlaps += overlaps;
        self.overlapping += u64::from(overlaps > 0);
        if let Some(violation) = judged.violations.first() {
            self.failed.push((seed, kind, violation.to_string()));
        }
    }
}

/// Runs the seeds `from..=to` on all processors.
fn run_all(from: u64, to: u64, breakage: Option<Breakage>) -> Sum {
    let (next, sum) = (AtomicU64::new(from), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > to {
                        break;
                    }
                    for counter in BOTH {
                        let judged = run_one(seed, counter, breakage);
                        sum.lock().unwrap().add(seed, counter, &judged);
                    }
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

/// Runs a seed; a panic in it is a violation too.
fn run_one(seed: u64, counter: CounterKind, breakage: Option<Breakage>) -> Judged {
    std::panic::catch_unwind(|| run::random(seed, counter, breakage, false)).unwrap_or_else(|_| Judged {
        history: History::default(),
        violations: vec![Violation { invariant: "panic", what: "see above".to_owned() }],
    })
}

fn replay(seed: u64, breakage: Option<Breakage>) {
    let counter = match std::env::var("SIM_COUNTER") {
        Ok(kind) => CounterKind::parse(&kind).unwrap_or_else(|| panic!("SIM_COUNTER={kind}: it is designated or quorum")),
        Err(_) => CounterKind::Designated,
    };
    let judged = run::random(seed, counter, breakage, true);
    judged.history.lines().iter().for_each(|line| println!("{line}"));
    println!("SIM_SEED={seed} hash {} {:?}", judged.history.hash(), judged.history.tally());
    assert!(judged.violations.is_empty(), "SIM_SEED={seed}: {:#?}", judged.violations);
}

impl Sum {
    /// For people.
    fn text(&self) -> String {
        let Tally { grants, writes, refused_writes, .. } = self.tally;
        let losses: Vec<String> = self.losses.iter().map(|(why, count)| format!("{count} {why}")).collect();
        let words: Vec<String> = self.words.iter().map(|(said, count)| format!("{count} {said:?}")).collect();
        format!(
            "{} runs, {} with ten grants or more; {grants} leases, {} overlaps; {writes} writes, {refused_writes} stale ones \
             refused, {} taken; {} faults; attempts without a grant: {}; words of sessions: {}",
            self.runs,
            self.busy,
            self.overlaps,
            self.stale_taken,
            self.faults,
            losses.join(", "),
            words.join(", ")
        )
    }

    /// A line for each seed, in `target/sim`: the same program writes the same file again.
    fn write_down(&self, name: &str) -> std::path::PathBuf {
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("sim");
        std::fs::create_dir_all(&directory).unwrap();
        let head = "seed,counter,hash,grants,losses,refused_stale_writes,faults".to_owned();
        let lines: Vec<String> = std::iter::once(head).chain(self.seeds.values().cloned()).collect();
        let file = directory.join(format!("{name}.csv"));
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        file
    }

    /// Panics if a promise broke, and if nothing was proved: no victory is empty.
    fn must_be_sound(&self, breakage: Option<Breakage>) {
        if let Some((seed, kind, violation)) = self.failed.iter().min() {
            let replay = breakage.map_or_else(String::new, |breakage| format!(" SIM_BREAKS={breakage:?}"));
            panic!(
                "SIM_SEED={seed} SIM_COUNTER={kind}{replay}: {violation} ({} of {} runs failed)",
                self.failed.len(),
                self.runs
            );
        }
        assert!(self.busy * 100 >= self.runs * 95, "only {} of {} runs granted ten leases", self.busy, self.runs);
        assert!(self.tally.refused_writes > 0, "no seed refused a stale write");
        assert!(self.tally.losses > 0, "nobody ever lost");
        let told = |said| self.words.get(&said).is_some_and(|count| *count > 0);
        let lost = [Said::Lost { not_held: false }, Said::Lost { not_held: true }].map(told);
        let all = [Said::Granted, Said::Adopted, Said::Renewed, Said::AtRisk, Said::Released].map(told);
        assert!(lost.contains(&true) && !all.contains(&false), "sessions told too little: {:?}", self.words);
    }
}

fn wanted_seeds() -> u64 {
    number("SIM_SEEDS").unwrap_or(SEEDS)
}

#[test]
fn every_promise_holds_in_every_run() {
    match number("SIM_SEED") {
        Some(seed) if std::env::var_os("SIM_BREAKS").is_none() => replay(seed, None),
        Some(_) => {}
        None => {
            let sum = run_all(1, wanted_seeds(), None);
            println!("{}", sum.text());
            println!("every seed: {}", sum.write_down("hold").display());
            sum.must_be_sound(None);
            assert_eq!(sum.overlaps, 0);
        }
    }
}

/// Nodes forget, clocks are set: exclusion holds. Somebody deletes keys: it does not, and the tokens protect the register still.
#[test]
fn quarantine_and_tokens_protect_whom_they_are_for() {
    if let Some(seed) = number("SIM_SEED") {
        let breaks = std::env::var("SIM_BREAKS").unwrap_or_default();
        let wanted = Breakage::ALL.into_iter().find(|(breakage, _)| format!("{breakage:?}") == breaks);
        let wanted = wanted.map(|(breakage, _)| breakage);
        assert!(wanted.is_some() || breaks.is_empty(), "SIM_BREAKS={breaks}: it is one of {:?}", Breakage::ALL);
        return wanted.map_or((), |breakage| replay(seed, Some(breakage)));
    }
    let seeds = wanted_seeds().div_ceil(BROKEN_SHARE).max(SEEDS);
    println!(
        "| once to three times in a run | runs | with two holders at once | leases | overlaps | stale writes refused | taken |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut broken = 0;
    for (breakage, what) in Breakage::ALL {
        let sum = run_all(1, seeds, Some(breakage));
        let (grants, refused, taken) = (sum.tally.grants, sum.tally.refused_writes, sum.stale_taken);
        println!("| {what} | {} | {} | {grants} | {} | {refused} | {taken} |", sum.runs, sum.overlapping, sum.overlaps);
        sum.write_down(&format!("{breakage:?}"));
        sum.must_be_sound(Some(breakage));
        broken += if breakage.assumptions() == Assumptions::Broken { sum.overlaps } else { 0 };
    }
    assert!(broken > 0, "nothing was broken");
}

#[test]
fn one_seed_is_one_history() {
    let hashes = || -> Vec<String> {
        (1..=5).map(|seed| run::random(seed, BOTH[seed as usize % 2], None, false).history.hash()).collect()
    };
    let here = hashes();
    assert_eq!(here, hashes());
    // On a thread of its own, with another interpreter.
    assert_eq!(here, std::thread::spawn(hashes).join().unwrap());
    let different: std::collections::BTreeSet<&String> = here.iter().collect();
    assert_eq!(different.len(), here.len());
}

/// Every mutant is caught, and the program without one passes the same runs.
#[cfg(feature = "mutants")]
mod mutants {
    use redlockd::mutants::{ALL, choose};

    use super::*;

    /// A mutant that is not caught within so many seeds has survived.
    const MOST: u64 = 1_000;
    /// Of the program without a mutant.
    const UNMUTATED: u64 = 200;
    const AT_A_TIME: u64 = 10;

    /// The first seed that fails, and how. Every other block of runs has nodes that forget or clocks that are set.
    fn first_failure(most: u64) -> Option<(u64, &'static str, String)> {
        let guarded = Breakage::ALL.into_iter().filter(|(breakage, _)| breakage.assumptions() == Assumptions::Guarded);
        let mut guarded = guarded.map(|(breakage, _)| breakage).cycle();
        let starts = (0..most).step_by(AT_A_TIME as usize);
        let blocks = starts.flat_map(|start| [(start, None), (start, guarded.next())]);
        let failed = |(start, breakage)| run_all(start + 1, start + AT_A_TIME, breakage).failed.into_iter().min();
        blocks.filter_map(failed).next()
    }

    #[test]
    #[ignore = "make mutants runs it"]
    fn every_mutant_is_caught() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let only = std::env::var("MUTANT").ok();
        let chosen: Vec<&str> =
            ALL.iter().map(|(name, _)| *name).filter(|name| only.as_ref().is_none_or(|only| only == name)).collect();
        assert!(!chosen.is_empty(), "MUTANT={}: there is no such mutant", only.unwrap_or_default());
        let mut survivors = 0;
        for name in &chosen {
            choose(Some(name));
            match first_failure(MOST) {
                // A mistake of the test catches nothing: a mutant that fits no script any more, say.
                Some((seed, _, violation)) if violation.starts_with("panic") => {
                    survivors += 1;
                    println!("SURVIVED {name} seed {seed}    {violation}");
                }
                Some((seed, kind, violation)) => println!("caught {name} seed {seed} {kind}    {violation}"),
                None => {
                    survivors += 1;
                    println!("SURVIVED {name} seed {MOST}");
                }
            }
        }
        choose(None);
        let unmutated = if only.is_none() { first_failure(UNMUTATED) } else { None };
        std::panic::set_hook(hook);
        assert_eq!(unmutated, None, "the program without a mutant fails");
        println!("{}/{} caught", chosen.len() - survivors, chosen.len());
        assert_eq!(survivors, 0);
    }
}
