//! Many runs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::oracle::history::{History, Tally};
use crate::oracle::{Assumptions, Violation, overlaps};
use crate::run::{self, Judged};

/// How many seeds are run if nobody says: `make test` and `make prove-sim` do, and build for speed.
const SEEDS: u64 = 100;

/// Runs in which assumptions are broken on purpose, for each of the others.
const BROKEN_SHARE: u64 = 10;

/// What the environment says of `name`.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What many runs came to.
#[derive(Debug, Default)]
struct Sum {
    runs: u64,
    /// Runs with at least ten grants.
    busy: u64,
    tally: Tally,
    losses: BTreeMap<&'static str, usize>,
    faults: usize,
    overlaps: usize,
    /// Runs with an overlap.
    overlapping: u64,
    failed: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, judged: &Judged) {
        let tally = judged.history.tally();
        self.runs += 1;
        self.busy += u64::from(tally.grants >= 10);
        self.tally.grants += tally.grants;
        self.tally.losses += tally.losses;
        self.tally.writes += tally.writes;
        self.tally.refused_writes += tally.refused_writes;
        self.faults += judged.history.faults.len();
        for (why, count) in &judged.history.losses {
            *self.losses.entry(why).or_default() += count;
        }
        let overlaps = overlaps(&judged.history);
        self.overlaps += overlaps;
        self.overlapping += u64::from(overlaps > 0);
        if let Some(violation) = judged.violations.first() {
            self.failed.push((seed, violation.to_string()));
        }
    }
}

/// Runs the seeds `from..=to` on all processors.
fn run_all(from: u64, to: u64, assumptions: Assumptions) -> Sum {
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
                    let judged = run_one(seed, assumptions);
                    sum.lock().unwrap().add(seed, &judged);
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

/// Runs a seed; a panic in it is a violation too.
fn run_one(seed: u64, assumptions: Assumptions) -> Judged {
    std::panic::catch_unwind(|| run::random(seed, assumptions, false)).unwrap_or_else(|_| Judged {
        history: History::default(),
        violations: vec![Violation { invariant: "panic", what: "see above".to_owned() }],
    })
}

fn replay(seed: u64, assumptions: Assumptions) {
    let judged = run::random(seed, assumptions, true);
    judged.history.lines().iter().for_each(|line| println!("{line}"));
    println!("SIM_SEED={seed} {assumptions:?} hash {} {:?}", judged.history.hash(), judged.history.tally());
    assert!(judged.violations.is_empty(), "SIM_SEED={seed}: {:#?}", judged.violations);
}

fn prove(assumptions: Assumptions, seeds: u64) -> Sum {
    let sum = run_all(1, seeds, assumptions);
    println!("{assumptions:?}: {sum:#?}");
    if let Some((seed, violation)) = sum.failed.iter().min() {
        panic!("SIM_SEED={seed}: {violation} ({} of {} seeds failed)", sum.failed.len(), sum.runs);
    }
    // No victory is empty.
    assert!(sum.busy * 100 >= sum.runs * 95, "only {} of {} seeds granted ten leases", sum.busy, sum.runs);
    assert!(sum.tally.refused_writes > 0, "no seed refused a stale write");
    assert!(sum.tally.losses > 0, "nobody ever lost");
    sum
}

fn wanted_seeds() -> u64 {
    number("SIM_SEEDS").unwrap_or(SEEDS)
}

#[test]
fn every_promise_holds_in_every_run() {
    match number("SIM_SEED") {
        Some(seed) => replay(seed, Assumptions::Hold),
        None => assert_eq!(prove(Assumptions::Hold, wanted_seeds()).overlaps, 0),
    }
}

/// Nodes forget, clocks leap: exclusion alone fails, and the tokens protect the register still.
#[test]
fn tokens_protect_the_register_when_assumptions_are_broken() {
    match number("SIM_SEED") {
        Some(seed) => replay(seed, Assumptions::Broken),
        None => {
            let sum = prove(Assumptions::Broken, wanted_seeds().div_ceil(BROKEN_SHARE).max(SEEDS));
            assert!(sum.overlaps > 0, "nothing was broken");
        }
    }
}

#[test]
fn one_seed_is_one_history() {
    let hashes = || -> Vec<String> { (1..=5).map(|seed| run::random(seed, Assumptions::Hold, false).history.hash()).collect() };
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
    const MOST: u64 = 2_000;
    const AT_A_TIME: u64 = 40;

    fn caught() -> Option<(u64, String)> {
        let starts = (0..MOST).step_by(AT_A_TIME as usize);
        starts
            .map(|start| run_all(start + 1, start + AT_A_TIME, Assumptions::Hold))
            .find_map(|sum| sum.failed.into_iter().min())
    }

    #[test]
    #[ignore = "make mutants runs it"]
    fn every_mutant_is_caught() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let only = std::env::var("MUTANT").ok();
        let chosen: Vec<&str> =
            ALL.iter().map(|(name, _)| *name).filter(|name| only.as_ref().is_none_or(|only| only == name)).collect();
        let mut survivors = 0;
        for name in &chosen {
            choose(Some(name));
            match caught() {
                Some((seed, violation)) => println!("caught {name} seed {seed}    {violation}"),
                None => {
                    survivors += 1;
                    println!("SURVIVED {name} seed {MOST}");
                }
            }
        }
        choose(None);
        let unmutated = if only.is_none() { caught() } else { None };
        std::panic::set_hook(hook);
        assert_eq!(unmutated, None, "the program without a mutant fails");
        println!("{}/{} caught", chosen.len() - survivors, chosen.len());
        assert_eq!(survivors, 0);
    }
}
