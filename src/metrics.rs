//! What can be watched: names, help texts, buckets, and one typed function an event.
//!
//! Handles are resolved once; an event is an atomic addition. Lock names are never labels.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const SECONDS: [f64; 16] =
    [0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const LONG_SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
const RATIO: [f64; 9] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 1.0];
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The registry of one proxy: events go in through [`Metrics`], text comes out.
pub struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

impl Registry {
    /// An empty registry with its buckets.
    pub fn new() -> Result<Self, BuildError> {
        let full = |name: &str| Matcher::Full(name.to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets(&SECONDS)?
            .set_buckets_for_metric(full("redlock_hold_duration_seconds"), &LONG_SECONDS)?
            .set_buckets_for_metric(full("redlock_wait_duration_seconds"), &LONG_SECONDS)?
            .set_buckets_for_metric(full("redlock_validity_left_ratio"), &RATIO)?
            .set_buckets_for_metric(full("redlock_node_batch_size"), &SIZES)?
            .set_buckets_for_metric(full("redlock_fencing_batch_size"), &SIZES)?
            .build_recorder();
        let handle = recorder.handle();
        let registry = Self { recorder, handle, process: metrics_process::Collector::default() };
        registry.within(|| {
            registry.process.describe();
            describe();
        });
        Ok(registry)
    }

    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, work)
    }

    /// The proxy's handles. `nodes` and `fence`, the designated counter's server, are addresses without credentials.
    pub fn metrics(&self, nodes: &[Arc<str>], fence: Option<&Arc<str>>) -> Metrics {
        self.within(|| Metrics::new(nodes, fence))
    }

    /// Everything, in Prometheus's text format.
    pub fn render(&self) -> String {
        self.within(|| self.process.collect());
        self.handle.render()
    }

    /// To be called every second at least: moves samples into their buckets, or memory grows.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

macro_rules! label_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $label:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $(#[doc = $label] $(#[$vmeta])* $variant),+ }

        impl $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $label)),+];
        }
    };
}

label_enum!(
    /// A remote procedure.
    Rpc {
        Acquire => "Acquire",
        Release => "Release",
        Renew => "Renew",
        Adopt => "Adopt",
        Session => "Session",
        Check => "Check",
        Get => "Get",
        List => "List",
        Watch => "Watch",
        ListNodes => "ListNodes",
    }
);

label_enum!(
    /// How a request ended.
    Outcome {
        Granted => "granted",
        Contended => "contended",
        Released => "released",
        NotHeld => "not_held",
        Renewed => "renewed",
        Lost => "lost",
        Held => "held",
        Free => "free",
        Ok => "ok",
        InvalidArgument => "invalid_argument",
        Unavailable => "unavailable",
        ResourceExhausted => "resource_exhausted",
        DeadlineExceeded => "deadline_exceeded",
        Cancelled => "cancelled",
    }
);

label_enum!(
    /// How one try to take a lock ended.
    AttemptOutcome {
        Granted => "granted",
        Contended => "contended",
        NoQuorum => "no_quorum",
        TooLate => "too_late",
        Abandoned => "abandoned",
    }
);

label_enum!(
    /// Why the head of a line looked again.
    WakeCause { Released => "released", Told => "told", Listening => "listening", Timer => "timer" }
);

label_enum!(
    /// How a renewal ended.
    RenewalOutcome { Renewed => "renewed", Lost => "lost", NoQuorum => "no_quorum" }
);

label_enum!(
    /// Why a lease was lost.
    LossReason {
        NotHeldByQuorum => "not_held_by_quorum",
        Adopted => "adopted",
        TooLate => "too_late",
        NoQuorum => "no_quorum",
        NoKeepAlive => "no_keep_alive",
        MaxHold => "max_hold",
    }
);

/// Which outcomes a procedure has.
fn outcomes(rpc: Rpc) -> &'static [Outcome] {
    use Outcome::{Contended, Free, Granted, Held, Lost, NotHeld, Ok, Released, Renewed};
    match rpc {
        Rpc::Acquire => &[Granted, Contended],
        Rpc::Release => &[Released, NotHeld],
        Rpc::Renew => &[Renewed, Lost],
        Rpc::Adopt => &[Granted, Lost],
        Rpc::Check => &[Held, NotHeld],
        Rpc::Get => &[Held, Free],
        Rpc::List | Rpc::ListNodes | Rpc::Watch | Rpc::Session => &[Ok],
    }
}

const FAILURES: [Outcome; 5] =
    [Outcome::InvalidArgument, Outcome::Unavailable, Outcome::ResourceExhausted, Outcome::DeadlineExceeded, Outcome::Cancelled];

fn one_per<L: Copy, T>(all: &[(L, &'static str)], make: impl Fn(&'static str) -> T) -> Vec<T> {
    all.iter().map(|(_, label)| make(label)).collect()
}

/// The handles of one proxy.
pub struct Metrics {
    requests: Vec<Vec<Option<Counter>>>,
    acquire_seconds: Vec<Option<Histogram>>,
    attempts: Vec<Counter>,
    validity_left: Histogram,
    hold_seconds: Histogram,
    wait_seconds: Histogram,
    waiters: Gauge,
    handovers: Counter,
    wakeups: Vec<Counter>,
    hints: Counter,
    watchers: Gauge,
    sessions: Gauge,
    session_leases: Gauge,
    renewals: Vec<Counter>,
    leases_lost: Vec<Counter>,
    quorum_margin: Gauge,
    tasks: Gauge,
    inflight: Gauge,
    tokens: Counter,
    last_token: Gauge,
    token_batch: Histogram,
    tokens_unavailable: Counter,
    nodes: Vec<NodeMetrics>,
    fence: Option<NodeMetrics>,
}

impl Metrics {
    fn new(nodes: &[Arc<str>], fence: Option<&Arc<str>>) -> Self {
        gauge!("redlock_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let requests = Rpc::ALL
            .iter()
            .map(|(rpc, rpc_label)| {
                let has = |outcome: &Outcome| outcomes(*rpc).contains(outcome) || FAILURES.contains(outcome);
                let series = |(outcome, label): &(Outcome, &'static str)| {
                    has(outcome).then(|| counter!("redlock_requests_total", "rpc" => *rpc_label, "outcome" => *label))
                };
                Outcome::ALL.iter().map(series).collect()
            })
            .collect();
        let acquire_outcome = |(outcome, label): &(Outcome, &'static str)| {
            let has = outcomes(Rpc::Acquire).contains(outcome) || FAILURES.contains(outcome);
            has.then(|| histogram!("redlock_acquire_duration_seconds", "outcome" => *label))
        };
        Self {
            requests,
            acquire_seconds: Outcome::ALL.iter().map(acquire_outcome).collect(),
            attempts: one_per(AttemptOutcome::ALL, |label| counter!("redlock_attempts_total", "outcome" => label)),
            validity_left: histogram!("redlock_validity_left_ratio"),
            hold_seconds: histogram!("redlock_hold_duration_seconds"),
            wait_seconds: histogram!("redlock_wait_duration_seconds"),
            waiters: gauge!("redlock_waiters"),
            handovers: counter!("redlock_handovers_total"),
            wakeups: one_per(WakeCause::ALL, |label| counter!("redlock_wakeups_total", "cause" => label)),
            hints: counter!("redlock_hints_total"),
            watchers: gauge!("redlock_watchers"),
            sessions: gauge!("redlock_sessions"),
            session_leases: gauge!("redlock_session_leases"),
            renewals: one_per(RenewalOutcome::ALL, |label| counter!("redlock_renewals_total", "outcome" => label)),
            leases_lost: one_per(LossReason::ALL, |label| counter!("redlock_leases_lost_total", "reason" => label)),
            quorum_margin: gauge!("redlock_quorum_margin"),
            tasks: gauge!("redlock_tasks"),
            inflight: gauge!("redlock_inflight_requests"),
            tokens: counter!("redlock_fencing_tokens_total"),
            last_token: gauge!("redlock_fencing_last_token"),
            token_batch: histogram!("redlock_fencing_batch_size"),
            tokens_unavailable: counter!("redlock_fencing_unavailable_total"),
            nodes: nodes.iter().map(NodeMetrics::new).collect(),
            fence: fence.map(NodeMetrics::new),
        }
    }

    /// A request was answered.
    pub fn request(&self, rpc: Rpc, outcome: Outcome, took: Duration) {
        if let Some(counter) = &self.requests[rpc as usize][outcome as usize] {
            counter.increment(1);
        }
        if let (Rpc::Acquire, Some(histogram)) = (rpc, &self.acquire_seconds[outcome as usize]) {
            histogram.record(took);
        }
    }

    /// One try to take a lock ended.
    pub fn attempt(&self, outcome: AttemptOutcome) {
        self.attempts[outcome as usize].increment(1);
    }

    /// A lease was granted with this part of its TTL left.
    pub fn granted(&self, validity: Duration, ttl: Duration) {
        self.validity_left.record(validity.as_secs_f64() / ttl.as_secs_f64());
    }

    /// A lease was released after this long.
    pub fn released(&self, held: Duration) {
        self.hold_seconds.record(held);
    }

    /// A caller begins to wait for a lock.
    pub fn wait_begins(&self) {
        self.waiters.increment(1.0);
    }

    /// A lock went from its holder to the next in line.
    pub fn handed_over(&self) {
        self.handovers.increment(1);
    }

    /// The head of a line looks again.
    pub fn woken(&self, cause: WakeCause) {
        self.wakeups[cause as usize].increment(1);
    }

    /// A try was answered from memory.
    pub fn hint(&self) {
        self.hints.increment(1);
    }

    /// So many watch locks.
    pub fn watchers(&self, count: usize) {
        self.watchers.set(count as f64);
    }

    /// So many sessions stand.
    pub fn sessions(&self, count: usize) {
        self.sessions.set(count as f64);
    }

    /// So many more leases, or fewer, are kept for sessions.
    pub fn session_leases(&self, more: i64) {
        self.session_leases.increment(more as f64);
    }

    /// A caller has stopped waiting, with or without the lock.
    pub fn wait_ends(&self, waited: Duration) {
        self.waiters.decrement(1.0);
        self.wait_seconds.record(waited);
    }

    /// A renewal ended.
    pub fn renewal(&self, outcome: RenewalOutcome) {
        self.renewals[outcome as usize].increment(1);
    }

    /// A lease was found lost.
    pub fn lease_lost(&self, reason: LossReason) {
        self.leases_lost[reason as usize].increment(1);
    }

    /// A request came in.
    pub fn request_begins(&self) {
        self.inflight.increment(1.0);
    }

    /// A request is over.
    pub fn request_ends(&self) {
        self.inflight.decrement(1.0);
    }

    /// A block of tokens was handed out.
    pub fn tokens(&self, count: usize, last: u64) {
        self.tokens.increment(count as u64);
        self.last_token.set(last as f64);
        self.token_batch.record(count as f64);
    }

    /// Attempts that got no token.
    pub fn tokens_unavailable(&self, count: usize) {
        self.tokens_unavailable.increment(count as u64);
    }

    /// What is read at the time of a scrape: voting nodes beyond the quorum (negative: too few), tasks that run.
    pub fn observe(&self, quorum_margin: i64, tasks: usize) {
        self.quorum_margin.set(quorum_margin as f64);
        self.tasks.set(tasks as f64);
    }

    /// The handles of a lock node.
    pub fn node(&self, index: usize) -> NodeMetrics {
        self.nodes[index].clone()
    }

    /// The handles of the designated counter's server, if there is one.
    pub fn fence(&self) -> Option<NodeMetrics> {
        self.fence.clone()
    }
}

/// The handles of one server.
#[derive(Clone)]
pub struct NodeMetrics {
    address: Arc<str>,
    batch_seconds: Histogram,
    connect_seconds: Histogram,
    batch_size: Histogram,
    errors: Vec<(&'static str, Counter)>,
    up: Gauge,
    restarts: Counter,
    quarantined: Vec<(&'static str, Gauge)>,
    votes_lost: Counter,
    clock_offset: Gauge,
    clock_drift: Gauge,
    listening: Gauge,
}

/// Why the votes of a node do not count.
const NO_VOTE_REASONS: [&str; 6] = ["missing", "restarted", "clock", "suspect", "joining", "foreign"];

/// The kinds of errors that a node can meet.
const NODE_ERRORS: [&str; 12] = [
    "timeout",
    "silent",
    "down",
    "connection_lost",
    "unfit",
    "no_vote",
    "suspended",
    "mailbox_full",
    "server_error",
    "not_awaited",
    "not_published",
    "connect",
];

impl NodeMetrics {
    fn new(address: &Arc<str>) -> Self {
        let label = || Label::new("node", address.to_string());
        let error = |kind: &'static str| {
            (kind, counter!("redlock_node_errors_total", vec![label(), Label::from_static_parts("kind", kind)]))
        };
        let seconds = |op: &'static str| {
            histogram!("redlock_node_request_duration_seconds", vec![label(), Label::from_static_parts("op", op)])
        };
        let quarantined = |reason: &'static str| {
            (reason, gauge!("redlock_node_quarantined", vec![label(), Label::from_static_parts("reason", reason)]))
        };
        Self {
            address: address.clone(),
            batch_seconds: seconds("batch"),
            connect_seconds: seconds("connect"),
            batch_size: histogram!("redlock_node_batch_size", vec![label()]),
            errors: NODE_ERRORS.into_iter().map(error).collect(),
            up: gauge!("redlock_node_up", vec![label()]),
            restarts: counter!("redlock_node_restarts_total", vec![label()]),
            quarantined: NO_VOTE_REASONS.into_iter().map(quarantined).collect(),
            votes_lost: counter!("redlock_node_votes_lost_total", vec![label()]),
            clock_offset: gauge!("redlock_node_clock_offset_seconds", vec![label()]),
            clock_drift: gauge!("redlock_node_clock_drift_ratio", vec![label()]),
            listening: gauge!("redlock_node_listening", vec![label()]),
        }
    }

    /// Its address without credentials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A call was answered.
    pub fn call(&self, operations: usize, took: Duration) {
        self.batch_seconds.record(took);
        self.batch_size.record(operations as f64);
    }

    /// A connection was made and its server asked who it is.
    pub fn connected(&self, took: Duration, restarted: bool) {
        self.connect_seconds.record(took);
        self.restarts.increment(u64::from(restarted));
    }

    /// Something failed.
    pub fn error(&self, kind: &'static str) {
        if let Some((_, counter)) = self.errors.iter().find(|(known, _)| *known == kind) {
            counter.increment(1);
        }
    }

    /// Whether its votes count has changed; the word for why not, if they do not.
    pub fn no_vote(&self, reason: Option<&'static str>) {
        for (known, gauge) in &self.quarantined {
            gauge.set(f64::from(u8::from(Some(*known) == reason)));
        }
    }

    /// A vote did not count.
    pub fn vote_lost(&self) {
        self.votes_lost.increment(1);
    }

    /// What is read at the time of a scrape: its clock against ours, in seconds and seconds a second, as far as it is known.
    pub fn clock(&self, offset: Option<f64>, drift: Option<f64>) {
        offset.iter().for_each(|seconds| self.clock_offset.set(*seconds));
        drift.iter().for_each(|ratio| self.clock_drift.set(*ratio));
    }

    /// Whether it is listened to for releases through other proxies.
    pub fn listens(&self, listens: bool) {
        self.listening.set(f64::from(u8::from(listens)));
    }

    /// Whether it can be used.
    pub fn up(&self, up: bool) {
        self.up.set(f64::from(u8::from(up)));
    }
}

/// Name, unit and meaning of every metric, as the README lists them.
pub const CATALOGUE: &[(&str, Kind, &str)] = &[
    ("redlock_requests_total", Kind::Counter, "Requests answered, by procedure and outcome."),
    ("redlock_attempts_total", Kind::Counter, "Tries to take a lock, by outcome; an Acquire that waits makes several."),
    ("redlock_acquire_duration_seconds", Kind::Seconds, "Time from the receipt of an Acquire to its answer, by outcome."),
    ("redlock_validity_left_ratio", Kind::Ratio, "Validity at the grant as a part of the TTL."),
    ("redlock_hold_duration_seconds", Kind::Seconds, "Time from grant to release, by the wall clocks of the proxies."),
    ("redlock_waiters", Kind::Gauge, "Callers that stand in line for a lock."),
    ("redlock_handovers_total", Kind::Counter, "Grants that came with the release of the holder before, in one round trip."),
    (
        "redlock_wakeups_total",
        Kind::Counter,
        "Looks of those at the head of a line, by cause: `released` here, `told` by another proxy, `listening` from now on, or a \
         `timer`: the holder's time was over, or nobody had told anything for long.",
    ),
    (
        "redlock_hints_total",
        Kind::Counter,
        "Tries that were answered as contended from memory, within 20 ms of a look at the nodes.",
    ),
    ("redlock_watchers", Kind::Gauge, "Callers that watch locks."),
    ("redlock_sessions", Kind::Gauge, "Sessions that stand, those included that wait for their clients to come back."),
    ("redlock_session_leases", Kind::Gauge, "Leases that are renewed for sessions."),
    ("redlock_wait_duration_seconds", Kind::Seconds, "Time that callers with a wait spent on it, with or without success."),
    ("redlock_renewals_total", Kind::Counter, "Renewals and adoptions, by outcome."),
    (
        "redlock_leases_lost_total",
        Kind::Counter,
        "Leases found lost at a renewal, or that a session lost, by reason; `adopted`: it goes on elsewhere.",
    ),
    ("redlock_quorum_margin", Kind::Gauge, "Nodes that can vote beyond the quorum; below 0 nothing can be granted."),
    ("redlock_tasks", Kind::Gauge, "Tasks that work on attempts and their clean-up."),
    ("redlock_inflight_requests", Kind::Gauge, "Requests that are being served."),
    ("redlock_fencing_tokens_total", Kind::Counter, "Fencing tokens handed out."),
    ("redlock_fencing_last_token", Kind::Gauge, "The highest fencing token that this proxy has handed out."),
    ("redlock_fencing_batch_size", Kind::Size, "Tokens fetched with one command."),
    ("redlock_fencing_unavailable_total", Kind::Counter, "Attempts that got no token because the counter did not answer."),
    ("redlock_node_request_duration_seconds", Kind::Seconds, "Round trips to a node, by kind."),
    ("redlock_node_batch_size", Kind::Size, "Operations in one call to a node."),
    ("redlock_node_errors_total", Kind::Counter, "Operations, calls and connections that failed, by kind."),
    ("redlock_node_up", Kind::Gauge, "1 if the node is connected, answering and fit to vote."),
    (
        "redlock_node_quarantined",
        Kind::Gauge,
        "1 if the votes of a node do not count, by reason: it may have forgotten locks, or its clock was set.",
    ),
    (
        "redlock_node_votes_lost_total",
        Kind::Counter,
        "Yes votes that did not count, because of the node's marker or its clock.",
    ),
    ("redlock_node_clock_offset_seconds", Kind::Gauge, "How far a node's wall clock is ahead of the proxy's."),
    (
        "redlock_node_clock_drift_ratio",
        Kind::Gauge,
        "How much faster than the proxy's clock a node's has run of late; 0.001 is a millisecond a second.",
    ),
    (
        "redlock_node_listening",
        Kind::Gauge,
        "1 while the proxy listens to a node for releases through other proxies, which it does only while somebody waits.",
    ),
    ("redlock_node_restarts_total", Kind::Counter, "Times that a node came back as another process."),
    ("redlock_build_info", Kind::Gauge, "Always 1; the version is its label."),
];

/// What kind of metric, and its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only rises.
    Counter,
    /// A number.
    Gauge,
    /// A histogram of seconds.
    Seconds,
    /// A histogram of parts of one.
    Ratio,
    /// A histogram of counts.
    Size,
}

fn describe() {
    for (name, kind, help) in CATALOGUE {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Seconds => describe_histogram!(*name, Unit::Seconds, *help),
            Kind::Ratio | Kind::Size => describe_histogram!(*name, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_help_text_and_buckets_where_it_has_a_distribution() {
        let registry = Registry::new().unwrap();
        let metrics = registry.metrics(&["n1:1".into()], Some(&"f:1".into()));
        metrics.request(Rpc::Acquire, Outcome::Granted, Duration::from_millis(2));
        metrics.granted(Duration::from_secs(9), Duration::from_secs(10));
        metrics.released(Duration::from_secs(1));
        metrics.wait_begins();
        metrics.wait_ends(Duration::from_secs(1));
        metrics.tokens(3, 17);
        metrics.node(0).call(3, Duration::from_micros(300));
        let text = registry.render();
        for (name, kind, help) in CATALOGUE {
            assert!(text.contains(&format!("# HELP {name} {help}")), "{name} has no help text in\n{text}");
            if matches!(kind, Kind::Seconds | Kind::Ratio | Kind::Size) {
                assert!(text.contains(&format!("{name}_bucket")), "{name} is a summary");
            }
        }
        assert!(text.contains("redlock_requests_total{rpc=\"Acquire\",outcome=\"granted\"} 1"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn every_error_that_a_node_can_report_has_a_series() {
        use crate::engine::reply::WhyKind;
        let text = || "x".into();
        for kind in [
            WhyKind::Timeout(Duration::ZERO),
            WhyKind::Silent,
            WhyKind::Down(text()),
            WhyKind::ConnectionLost(text()),
            WhyKind::Unfit(text()),
            WhyKind::NoVote(crate::engine::membership::Standing::Unread),
            WhyKind::Suspended,
            WhyKind::MailboxFull,
            WhyKind::ServerError(text()),
            WhyKind::NotAwaited,
        ] {
            assert!(NODE_ERRORS.contains(&kind.label()), "{kind:?}");
        }
    }
}
