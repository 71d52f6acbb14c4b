//! `results.json`: everything that a run has measured, for programs and for the report.
//!
//! Names end in their unit. A figure that was not measured is absent or `null`, never a made-up 0: the CPU time of a proxy on
//! another machine, a ratio to a target that did not run. Of several windows a rate is the median, and its `least` and `most`
//! are the extremes; everything else is of all windows together. A ratio is taken between windows that lie side by side in
//! time, and its median is that of the ratios.

use serde::{Deserialize, Deserializer, Serialize};

/// Raised when a reader of the old form would misread the new one. New fields do not raise it.
pub const VERSION: u32 = 1;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// What ran, where and when.
    pub run: Run,
    /// The ratios that the project has set itself, in the order in which they are shown. Empty for a run of one's own.
    #[serde(default)]
    pub aims: Vec<Aim>,
    /// A row for each target, number of clients and setup: closed loop.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Given rates: open loop.
    #[serde(default)]
    pub open_loop: Vec<OpenLoop>,
    /// What happened while something was wrong with a node.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// How it went, second by second.
    #[serde(default)]
    pub timelines: Vec<Timeline>,
    /// What was checked while it ran, and what was wrong.
    pub checks: Checks,
}

/// What ran, where and when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// As it was typed.
    pub command: String,
    /// RFC 3339, UTC: `2026-11-23T14:02:11Z`.
    pub started: String,
    /// From the first server's start to the last check.
    pub took_s: f64,
    /// How the load generator was built: `debug` figures mean nothing.
    pub optimized: bool,
    /// Threads of the load generator that serve the clients.
    pub threads: u32,
    pub machine: Machine,
    /// Programs and libraries, with their versions.
    pub versions: Vec<Version>,
    pub load: Load,
}

/// The machine of the load generator, and of all servers that it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cores: u32,
    /// Empty if the system does not say.
    pub cpu_model: String,
    pub memory_mib: u64,
    pub kernel: String,
    /// Other work of this machine when the run began: its load average over a minute.
    pub load_average: f64,
}

/// Of a program or library.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// `redlockd`, `redis`, `etcd`, `rslock`.
    pub name: String,
    pub version: String,
}

/// What every client does, unless a part of the results says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// In words: `distinct`, `one`, `zipf over 1000, exponent 1`.
    pub names: String,
    pub ttl_ms: u64,
    /// Between the grant and the release.
    pub hold_ms: f64,
    /// How long an acquire may wait in line; 0 is one try.
    pub wait_ms: u64,
    /// Of each window.
    pub window_s: f64,
    /// Windows of each row.
    pub rounds: u32,
    /// Before the first window of each row, not measured.
    pub warm_up_s: f64,
}

/// A figure with a bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// `stream over rslock at 64: pairs/s`
    pub what: String,
    /// Empty for ratios, otherwise `ms`, `us`, `MB`, ..
    #[serde(default)]
    pub unit: String,
    pub better: Better,
    /// What must be.
    pub floor: Option<f64>,
    /// What should be.
    pub aim: Option<f64>,
    /// `null`: not in this run.
    pub measured: Option<f64>,
    pub least: Option<f64>,
    pub most: Option<f64>,
}

/// Which side of a bound is the good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    #[default]
    Higher,
    Lower,
}

/// What an [`Aim`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    AimMet,
    FloorMet,
    Missed,
    NotMeasured,
}

impl Aim {
    /// Where `measured` stands.
    pub fn verdict(&self) -> Verdict {
        let Some(measured) = self.measured.filter(|measured| !measured.is_nan()) else { return Verdict::NotMeasured };
        let met = |bound: Option<f64>| {
            bound.is_some_and(|bound| match self.better {
                Better::Higher => measured >= bound,
                Better::Lower => measured <= bound,
            })
        };
        match (met(self.aim), met(self.floor)) {
            (true, _) => Verdict::AimMet,
            (false, true) => Verdict::FloorMet,
            (false, false) => Verdict::Missed,
        }
    }
}

/// What serves the locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Setup {
    /// Lock nodes; 0 if nobody named them, and of etcd.
    pub nodes: u32,
    /// Proxies; 0 of a target that uses none.
    pub proxies: u32,
    /// Other locks that are held meanwhile.
    pub held: u64,
    /// Callers that wait for another lock meanwhile, at each of the other proxies.
    #[serde(default)]
    pub waiters: u32,
}

/// One target with one number of clients; every client takes and releases a lock, again and again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `unary`, `tonic`, `stream`, `direct`, `rslock`, `etcd`.
    pub target: String,
    /// Pairs under way at a time.
    pub clients: u32,
    pub setup: Setup,
    pub windows: u32,
    pub pairs: u64,
    pub pairs_per_s: f64,
    pub pairs_per_s_least: f64,
    pub pairs_per_s_most: f64,
    /// Of the throughput, window by window with the one of rslock beside it.
    pub ratio_to_rslock: Option<f64>,
    pub ratio_to_rslock_least: Option<f64>,
    pub ratio_to_rslock_most: Option<f64>,
    /// Of the whole pair: acquire, hold and release.
    #[serde(flatten)]
    pub latency: Latency,
    /// Of the acquire alone.
    pub acquire: Latency,
    /// All of the processes of the target that are on this machine; `null` if a part of them is not.
    pub cpu_us_per_pair: Option<f64>,
    #[serde(flatten)]
    pub cpu: CpuSplit,
    /// Of all lock nodes and the designated server.
    pub redis: Option<RedisWork>,
    /// Resident memory of the proxy after the last window; of the largest, if there are several.
    pub proxy_rss_kib: Option<u64>,
    pub fairness: Option<Fairness>,
    pub errors: Vec<ErrorCount>,
}

/// Latencies by HdrHistogram, with three significant digits. All 0 if nothing was counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    #[serde(rename = "p99.9_ms")]
    pub p999_ms: f64,
    #[serde(rename = "p99.99_ms")]
    pub p9999_ms: f64,
    pub max_ms: f64,
    /// For a plot: from 0 to 100, closer towards 100.
    #[serde(default)]
    pub curve: Vec<Percentile>,
}

/// A point of a latency curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    pub percentile: f64,
    pub ms: f64,
}

/// User and system time of all processes of one kind in the windows, over the pairs in them. `null`: not on this machine, or
/// not a part of this target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSplit {
    /// The load generator with the client's side of the target.
    pub client_us_per_pair: Option<f64>,
    /// All proxies together.
    pub proxy_us_per_pair: Option<f64>,
    /// All Redis servers together.
    pub redis_us_per_pair: Option<f64>,
    pub etcd_us_per_pair: Option<f64>,
    /// Each server process.
    pub processes: Vec<ProcessCpu>,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessCpu {
    /// `proxy 1`, `node 1`, .., `fence`, `etcd`.
    pub name: String,
    pub us_per_pair: f64,
}

/// What the Redis servers did for a pair, by their own `INFO`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RedisWork {
    /// Those within scripts too.
    pub commands_per_pair: f64,
    /// Runs of a script that clients asked for: one carries a batch of operations.
    pub script_calls_per_pair: f64,
    pub bytes_in_per_pair: f64,
    pub bytes_out_per_pair: f64,
}

/// How pairs were divided among the clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fairness {
    pub least_pairs: u64,
    pub most_pairs: u64,
    /// Jain's index: 1 if all had the same, 1/n if one had all.
    pub jain: f64,
}

/// Operations that failed alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// `acquire: unavailable`, `acquire: contended`, `release: not held`, ..
    pub kind: String,
    pub count: u64,
    /// The first of them, in full.
    pub example: String,
}

/// Arrivals at given rates, whatever becomes of the earlier ones. Latencies count from the instant at which a pair was due, so
/// that waiting for a free client is in them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenLoop {
    pub target: String,
    pub setup: Setup,
    /// `steady` or `poisson`.
    pub arrivals: String,
    /// The most pairs under way at a time; later ones wait, and their latency counts.
    pub clients: u32,
    /// In rising order.
    pub steps: Vec<Step>,
    /// Only of a search.
    pub knee: Option<Knee>,
}

/// One rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub offered_per_s: f64,
    /// Pairs that ended in the window.
    pub achieved_per_s: f64,
    pub window_s: f64,
    /// Of pairs that were due within the window, from the due time to the end of the release.
    #[serde(flatten)]
    pub latency: Latency,
    /// From the due time to the grant.
    pub acquire: Latency,
    /// Pairs that were due and had not begun when the window ended.
    pub backlog: u64,
    pub cpu_us_per_pair: Option<f64>,
    /// Why the target can not carry this rate: `achieved 0.91 of the rate`; `null` if it can.
    pub saturated: Option<String>,
    pub errors: Vec<ErrorCount>,
}

/// The highest rate that was carried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Knee {
    pub pairs_per_s: f64,
    /// The lowest rate that was not.
    pub not_carried_per_s: Option<f64>,
    /// Of the acquire, at the knee.
    pub p99_ms: f64,
    /// What counts as carried, in words.
    pub rule: String,
}

/// A fault under load: before, during and after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub kind: FaultKind,
    /// How many at once.
    pub nodes: u32,
    /// In words: `1 node of 5 stopped (SIGSTOP)`.
    pub what: String,
    pub target: String,
    pub clients: u32,
    pub setup: Setup,
    /// Only in an open loop.
    pub offered_per_s: Option<f64>,
    /// Since the beginning of the run, as in the timelines.
    pub began_s: f64,
    /// `null`: for good.
    pub ended_s: Option<f64>,
    pub before: Phase,
    pub during: Phase,
    /// `null` if it did not end.
    pub after: Option<Phase>,
    /// During over the mean of before and after. NaN, and `null` in JSON, if nothing was made before and after.
    #[serde(deserialize_with = "null_is_nan")]
    pub throughput_ratio: f64,
    /// Of the acquire: during over the mean of before and after. NaN as above.
    #[serde(deserialize_with = "null_is_nan")]
    pub p99_ratio: f64,
}

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It hangs, and keeps its connections.
    #[default]
    Stop,
    /// It dies, and does not come back.
    Kill,
    /// All that it is sent and sends comes later.
    Slow,
}

/// A part of the time around a fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub seconds: f64,
    pub pairs: u64,
    pub pairs_per_s: f64,
    #[serde(flatten)]
    pub latency: Latency,
    pub acquire: Latency,
    pub proxy_rss_kib: Option<u64>,
    pub errors: Vec<ErrorCount>,
}

/// How one target did over the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// `compare, 64 clients`: timelines of one title belong into one plot.
    pub title: String,
    pub target: String,
    pub clients: u32,
    /// Between samples, while this target works: in a comparison the targets take turns.
    pub interval_s: f64,
    pub samples: Vec<Sample>,
    pub marks: Vec<Mark>,
}

/// What ended in one interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of the interval, since the beginning of the run.
    pub at_s: f64,
    pub pairs_per_s: f64,
    /// `null` if nothing ended.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub errors: u64,
    /// The proxy's resident memory, if it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_rss_kib: Option<u64>,
}

/// Something that was done to the servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    pub at_s: f64,
    pub kind: MarkKind,
    /// `node 1 stopped`
    pub what: String,
}

/// Whether a fault begins or ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    #[default]
    FaultBegins,
    FaultEnds,
}

/// What was checked while it ran: of every grant, whether it overlaps another valid lease of its name, and whether its token
/// is above the last one of its name; at the end, whether a key was left behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// Grants that were looked at.
    pub grants: u64,
    /// Different names among them.
    pub names: u64,
    /// Two valid leases at a time.
    pub overlaps: u64,
    /// Grants whose token was compared with an earlier one of the same name.
    pub tokens: u64,
    pub tokens_not_rising: u64,
    /// Answers that can not be right: no validity, or more than the TTL.
    pub senseless_answers: u64,
    /// Looks at the nodes after all was given back.
    pub sweeps: u64,
    /// Servers that were looked at, in all sweeps.
    pub servers_swept: u64,
    pub keys_left: u64,
    /// Some of what was wrong, in words.
    pub lies: Vec<String>,
}

impl Checks {
    /// How many promises were broken.
    pub fn broken(&self) -> u64 {
        self.overlaps + self.tokens_not_rising + self.senseless_answers + self.keys_left
    }

    /// All of `other` too.
    pub fn add(&mut self, other: &Self) {
        self.grants += other.grants;
        self.names += other.names;
        self.overlaps += other.overlaps;
        self.tokens += other.tokens;
        self.tokens_not_rising += other.tokens_not_rising;
        self.senseless_answers += other.senseless_answers;
        self.sweeps += other.sweeps;
        self.servers_swept += other.servers_swept;
        self.keys_left += other.keys_left;
        self.lies.extend(other.lies.iter().cloned());
    }
}

/// JSON has no NaN.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_can_be_read_and_written_again() {
        let text = include_str!("../tests/sample-results.json");
        let results: Results = serde_json::from_str(text).unwrap();
        assert_eq!(results.version, VERSION);
        let targets: Vec<&str> = results.rows.iter().map(|row| row.target.as_str()).collect();
        for target in ["unary", "stream", "direct", "rslock", "etcd"] {
            assert!(targets.contains(&target), "{target}");
        }
        let again = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&again).unwrap(), results);
    }

    #[test]
    fn a_row_has_its_figures_by_name() {
        let row = Row { target: "unary".to_owned(), ratio_to_rslock: Some(0.7), cpu_us_per_pair: Some(9.0), ..Row::default() };
        let value = serde_json::to_value(&row).unwrap();
        for figure in ["pairs_per_s", "cpu_us_per_pair", "p50_ms", "p99_ms", "p99.99_ms", "ratio_to_rslock"] {
            assert!(value[figure].is_number(), "{figure}: {value}");
        }
        assert_eq!(serde_json::from_value::<Row>(value).unwrap(), row);
    }

    #[test]
    fn a_ratio_of_nothing_can_be_read_again() {
        let fault = Fault { throughput_ratio: f64::NAN, p99_ratio: f64::INFINITY, ..Fault::default() };
        let read: Fault = serde_json::from_value(serde_json::to_value(&fault).unwrap()).unwrap();
        assert!(read.throughput_ratio.is_nan() && read.p99_ratio.is_nan());
    }

    #[test]
    fn a_verdict_goes_by_the_better_side() {
        let aim = |better, measured| Aim {
            better,
            floor: Some(2.0),
            aim: Some(if better == Better::Higher { 3.0 } else { 1.0 }),
            measured,
            ..Aim::default()
        };
        let verdicts =
            |better| [Some(0.9), Some(2.0), Some(3.1), Some(f64::NAN), None].map(|measured| aim(better, measured).verdict());
        use Verdict::{AimMet, FloorMet, Missed, NotMeasured};
        assert_eq!(verdicts(Better::Higher), [Missed, FloorMet, AimMet, NotMeasured, NotMeasured]);
        assert_eq!(verdicts(Better::Lower), [AimMet, FloorMet, Missed, NotMeasured, NotMeasured]);
    }
}
