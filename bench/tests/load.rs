//! The load generator itself, on real servers: that it measures what it is asked to, and tells a lie when it sees one. Nothing
//! here depends on how fast anything is.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redlockd::dev::{self, Cluster, Server};
use results::{FaultKind, MarkKind, Results};

#[allow(dead_code)]
#[path = "../src/results.rs"]
mod results;

fn bench() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_redlockd-bench"))
}

/// The program that is measured, beside the load generator. Tests of this package alone do not build it.
fn redlockd() -> PathBuf {
    let program = bench().with_file_name("redlockd");
    if !program.exists() {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let arguments = ["build", "--locked", "--package", "redlockd", "--bin", "redlockd", "--profile", profile];
        assert!(Command::new(env!("CARGO")).args(arguments).status().unwrap().success());
    }
    program
}

/// What a run of `load` has come to, with its results if it wrote any.
struct Run {
    output: Output,
    results: Option<Results>,
}

fn load(args: &[&str]) -> Run {
    run("load", args)
}

fn run(command: &str, args: &[&str]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new").join("results.json");
    let program = redlockd();
    let output = Command::new(bench()).arg(command).args(args).arg("--json").arg(&file).arg("--redlockd").arg(program).output();
    let output = output.unwrap();
    let results = std::fs::read_to_string(&file).ok().map(|text| serde_json::from_str(&text).unwrap());
    Run { output, results }
}

impl Run {
    fn said(&self) -> String {
        let [out, err] = [&self.output.stdout, &self.output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        format!("{out}\n{err}")
    }

    /// All went well, and no promise was broken.
    fn good(self) -> Results {
        assert!(self.output.status.success(), "{}", self.said());
        let results = self.results.unwrap();
        assert_eq!((results.version, results.checks.broken()), (results::VERSION, 0), "{results:?}");
        results
    }

    /// It was refused before anything was done.
    fn refused(self) -> String {
        assert_eq!((self.output.status.code(), self.results.is_none()), (Some(1), true), "{}", self.said());
        self.said()
    }
}

#[test]
fn all_targets_are_measured_side_by_side() {
    let run = load(&["--clients", "2,4", "--window", "400ms", "--rounds", "2", "--interval", "200ms", "--strict"]);
    let said = run.said();
    let results = run.good();
    let rows: Vec<(&str, u32)> = results.rows.iter().map(|row| (row.target.as_str(), row.clients)).collect();
    let targets = ["unary", "tonic", "stream", "direct", "rslock", "etcd"];
    let expected: Vec<(&str, u32)> = [2, 4].into_iter().flat_map(|clients| targets.map(|target| (target, clients))).collect();
    assert_eq!(rows, expected);
    for row in &results.rows {
        assert!(row.pairs > 0 && row.windows == 2 && row.latency.count == row.pairs, "{row:?}");
        assert!(row.ratio_to_rslock.is_some() && row.cpu_us_per_pair.is_some() && row.fairness.is_some(), "{row:?}");
        let through_a_proxy = ["unary", "tonic", "stream"].contains(&row.target.as_str());
        assert_eq!(row.cpu.proxy_us_per_pair.is_some(), through_a_proxy, "{row:?}");
        assert_eq!(row.redis.is_none(), row.target == "etcd", "{row:?}");
        assert!(said.contains(&format!("| {} ", row.target)), "{said}");
    }
    // What warmed up was checked too.
    let pairs: u64 = results.rows.iter().map(|row| row.pairs).sum();
    let checks = &results.checks;
    assert!(checks.grants > pairs && checks.tokens > 0, "{checks:?}");
    assert_eq!((checks.names, checks.sweeps, checks.servers_swept), (6 * (2 + 4), 2, 10));
    assert!(results.timelines.len() == 12 && results.timelines.iter().all(|timeline| timeline.samples.len() >= 2));
    let versions: Vec<&str> = results.run.versions.iter().map(|version| version.name.as_str()).collect();
    assert!(["redlockd", "rslock", "etcd"].iter().all(|name| versions.contains(name)), "{versions:?}");
}

#[test]
fn what_happens_to_a_node_is_seen_before_during_and_after() {
    let results = load(&["--targets", "unary", "--clients", "4", "--stop-node", "1s+2s", "--interval", "250ms"]).good();
    let [fault] = &results.faults[..] else { panic!("{results:?}") };
    assert_eq!((fault.kind, fault.nodes, fault.target.as_str()), (FaultKind::Stop, 1, "unary"));
    let after = fault.after.as_ref().unwrap();
    for phase in [&fault.before, &fault.during, after] {
        assert!(phase.pairs > 0 && phase.seconds > 0.5, "{phase:?}");
    }
    assert!(fault.ended_s.unwrap() - fault.began_s >= 1.9, "{fault:?}");
    let [timeline] = &results.timelines[..] else { panic!("{results:?}") };
    assert_eq!(timeline.marks.iter().map(|mark| mark.kind).collect::<Vec<_>>(), [MarkKind::FaultBegins, MarkKind::FaultEnds]);
    assert!(timeline.samples.iter().any(|sample| sample.at_s > timeline.marks[1].at_s));

    let results = load(&["--targets", "stream", "--clients", "4", "--kill-node", "500ms+500ms"]).good();
    assert!(results.faults[0].kind == FaultKind::Kill && results.faults[0].during.pairs > 0, "{results:?}");
    assert_eq!((results.faults[0].ended_s, results.checks.servers_swept), (None, 4), "the dead one can not be looked at");
}

#[test]
fn given_rates_are_made_and_told() {
    let args = ["--targets", "stream", "--rate", "20,40", "--window", "1s", "--arrivals", "steady", "--p99", "60s"];
    let results = load(&args).good();
    let [open] = &results.open_loop[..] else { panic!("{results:?}") };
    let offered: Vec<f64> = open.steps.iter().map(|step| step.offered_per_s).collect();
    assert_eq!((offered, open.arrivals.as_str(), open.knee.is_none()), (vec![20.0, 40.0], "steady", true));
    for step in &open.steps {
        // Each pair that was due is there: made, failed, or never begun.
        let failed: u64 = step.errors.iter().map(|error| error.count).sum();
        assert_eq!((step.latency.count + failed) as f64, step.offered_per_s - 1.0, "{step:?}");
    }
}

#[test]
fn the_suite_tells_its_ratios_first_and_says_which_it_has_not_measured() {
    let args = ["--parts", "hung,held", "--hung", "1s", "--held", "20", "--window", "200ms", "--rounds", "1"];
    let run = run("suite", &args);
    let said = run.said();
    let results = run.good();
    assert!(said.find("| ratio ").unwrap() < said.find("| target ").unwrap(), "{said}");
    let measured: Vec<&str> = results.aims.iter().filter(|aim| aim.measured.is_some()).map(|aim| aim.what.as_str()).collect();
    assert!(measured.iter().filter(|what| what.starts_with("one hung node")).count() == 4, "{measured:?}");
    assert!(!measured.iter().any(|what| what.contains("million")), "20 are no million: {measured:?}");
    assert!(said.contains("not measured"), "{said}");
    let held: Vec<u64> = results.rows.iter().map(|row| row.setup.held).collect();
    assert_eq!((held, results.faults.len()), (vec![10, 20, 10, 20], 2));
}

/// Servers of somebody else, as far as the load generator knows.
struct Foreign(Cluster);

impl Foreign {
    fn start() -> Self {
        Self(dev::start(3, true, None).unwrap())
    }

    fn load(&self, args: &[&str]) -> Run {
        let nodes = self.0.nodes.iter().map(Server::url).collect::<Vec<_>>().join(",");
        let fence = self.0.fence.as_ref().unwrap().url();
        load(&[args, &["--nodes", &nodes, "--fencing-url", &fence]].concat())
    }
}

#[test]
fn servers_of_somebody_else_are_loaded_only_with_permission_and_in_bounds() {
    let foreign = Foreign::start();
    let short = ["--clients", "2", "--window", "300ms", "--rounds", "1"];
    assert!(foreign.load(&short).refused().contains("--yes-load 127.0.0.1"));
    let allowed = [&short[..], &["--yes-load", "127.0.0.1"]].concat();
    assert!(foreign.load(&[&allowed[..], &["--at-most", "1s"]].concat()).refused().contains("--at-most"));
    assert!(foreign.load(&[&allowed[..], &["--stop-node", "1s+1s"]].concat()).refused().contains("faults"));

    let results = foreign.load(&allowed).good();
    let targets: Vec<&str> = results.rows.iter().map(|row| row.target.as_str()).collect();
    assert_eq!(targets, ["unary", "tonic", "stream", "direct", "rslock"]);
    for row in &results.rows {
        assert!(row.pairs > 0 && row.redis.is_some(), "{row:?}");
        assert_eq!((row.setup.nodes, row.cpu_us_per_pair), (3, None), "their processes are not known");
    }
}

#[test]
fn two_holders_at_a_time_are_a_lie_and_the_exit_code_says_so() {
    let foreign = Foreign::start();
    let over = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        // Somebody deletes the locks on all nodes, again and again: whoever waits gets one that is still held.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                foreign.0.nodes.iter().for_each(delete_locks);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let args =
            ["--targets", "unary", "--names", "one", "--hold", "6s", "--wait", "60s", "--clients", "2", "--window", "7s"];
        let run = foreign.load(&[&args[..], &["--rounds", "1", "--warm-up", "0s", "--yes-load", "127.0.0.1"]].concat());
        over.store(true, Ordering::Relaxed);
        run
    });
    assert_eq!(run.output.status.code(), Some(1), "{}", run.said());
    assert!(run.said().contains("PROMISES WERE BROKEN") && run.said().contains("TWO HOLDERS"), "{}", run.said());
    assert!(run.results.unwrap().checks.overlaps > 0);
}

fn delete_locks(node: &Server) {
    let mut connection = redis::Client::open(node.url()).unwrap().get_connection().unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("lock:*").query(&mut connection).unwrap();
    for key in keys {
        redis::cmd("DEL").arg(key).exec(&mut connection).unwrap();
    }
}
