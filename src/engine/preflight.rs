//! What can be wrong with the servers before anybody is served: distinct processes, masters, no eviction, and so on (protocol
//! section 6). Facts go in, findings come out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::quorum::Quorum;

/// What was found out about one server.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `host:port` or a path.
    pub address: Arc<str>,
    /// A lock node; else the designated counter's server.
    pub votes: bool,
    /// `None`: it could not be asked, and why.
    pub server: Result<Server, Arc<str>>,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Its process.
    pub run_id: Arc<str>,
    /// Such as `redis 7.0.15`.
    pub version: Arc<str>,
    /// `master` or `slave`.
    pub role: Arc<str>,
    /// Redis Cluster.
    pub cluster: bool,
    /// `maxmemory-policy`.
    pub eviction: Option<Arc<str>>,
    /// `appendonly`.
    pub append_only: Option<Arc<str>>,
    /// `appendfsync`.
    pub fsync: Option<Arc<str>>,
    /// `no-appendfsync-on-rewrite`.
    pub no_fsync_on_rewrite: Option<Arc<str>>,
    /// How far its wall clock is ahead of ours, in microseconds.
    pub clock_offset_us: i64,
    /// Of one call.
    pub round_trip: Duration,
    /// What it refused us, of all that we need.
    pub refused: Vec<String>,
    /// What its marker says against its voting, or against our configuration.
    pub marker: MarkerState,
}

/// What a node's marker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MarkerState {
    /// There is none.
    #[default]
    None,
    /// It votes.
    Member,
    /// It does not vote yet: why, and for about how long still.
    Joining(String),
    /// It is configured for another cluster: another list of nodes, or another kind of counter.
    Foreign(String),
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a thought.
    Warning,
    /// Two holders of one lock may come of it.
    Unsafe,
    /// It could not be asked.
    Unreachable,
}

impl Severity {
    /// For people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Unsafe => "unsafe",
            Self::Unreachable => "unreachable",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A fixed word: what `--allow-unsafe` takes.
    pub name: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Of which server; empty: of all together.
    pub node: Arc<str>,
    /// What was found.
    pub value: String,
    /// And what to do.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = if self.node.is_empty() { String::new() } else { format!(" {}", self.node) };
        write!(f, "{} {}{node}: {}. {}", self.severity.as_str(), self.name, self.value, self.advice)
    }
}

/// The names of the findings that are unsafe.
pub const UNSAFE: [&str; 6] = ["same-server", "replica", "cluster-mode", "eviction", "version", "foreign"];

/// Scripts use `SET .. PXAT`.
const OLDEST: [u64; 2] = [6, 2];

/// Beyond that, somebody should look at the machine's time service.
const CLOCK_US: i64 = 1_000_000;

/// What is wrong with the servers. `timeout` is that of calls to a node; `quarantine` how long a node stays out that may have
/// forgotten locks.
pub fn findings(servers: &[Facts], timeout: Duration, quarantine: Duration) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, facts) in servers.iter().enumerate() {
        match &facts.server {
            Err(why) => found.push(Finding {
                name: "unreachable",
                severity: Severity::Unreachable,
                node: facts.address.clone(),
                value: why.to_string(),
                advice: "Start it, or correct its URL or password".to_owned(),
            }),
            Ok(server) => of_server(&mut Of { found: &mut found, node: &facts.address }, facts, server, timeout, quarantine),
        }
        found.extend(twin(servers, index));
    }
    if quorum_fits(servers) {
        found.iter_mut().filter(|finding| finding.name == "foreign").for_each(left_behind);
    }
    found.extend(of_all(servers));
    found
}

/// Whether the markers of a quorum let their nodes vote for a proxy of this configuration.
fn quorum_fits(servers: &[Facts]) -> bool {
    let is_member = |facts: &&Facts| facts.server.as_ref().is_ok_and(|server| server.marker == MarkerState::Member);
    let nodes: Vec<&Facts> = servers.iter().filter(|facts| facts.votes).collect();
    let fit = nodes.iter().copied().filter(is_member).count();
    Quorum::of(nodes.len()).is_some_and(|quorum| quorum.reached(fit))
}

/// Not the configuration is wrong, but a node that was away while it was changed. It has no vote: the others go on.
fn left_behind(finding: &mut Finding) {
    finding.severity = Severity::Warning;
    finding.advice = "The other nodes know this configuration: delete its key redlockd:member, and it joins anew".to_owned();
}

struct Of<'a> {
    found: &'a mut Vec<Finding>,
    node: &'a Arc<str>,
}

impl Of<'_> {
    fn is(&mut self, name: &'static str, value: impl Into<String>, advice: impl Into<String>) {
        let severity = if UNSAFE.contains(&name) { Severity::Unsafe } else { Severity::Warning };
        self.found.push(Finding { name, severity, node: self.node.clone(), value: value.into(), advice: advice.into() });
    }
}

fn of_server(of: &mut Of<'_>, facts: &Facts, server: &Server, timeout: Duration, quarantine: Duration) {
    if &*server.role != "master" {
        of.is(
            "replica",
            format!("its role is {}", server.role),
            "Name the master, or an independent server: a replica forgets at a failover",
        );
    }
    if server.cluster {
        of.is(
            "cluster-mode",
            "cluster-enabled is yes",
            "Start it with `cluster-enabled no`: a cluster is one system, not N nodes",
        );
    }
    if too_old(&server.version) {
        let [major, minor] = OLDEST;
        of.is("version", format!("it is {}", server.version), format!("Use Redis {major}.{minor} or newer, or Valkey"));
    }
    if server.clock_offset_us.abs() > CLOCK_US {
        let seconds = server.clock_offset_us as f64 / 1e6;
        of.is(
            "clock-offset",
            format!("its clock is {seconds:+.1} s from ours"),
            "Let both machines run a time service (chrony, ntpd)",
        );
    }
    if server.round_trip * 2 > timeout {
        let (took, bound) = (server.round_trip.as_secs_f64() * 1e3, timeout.as_millis());
        of.is(
            "round-trip",
            format!("a call took {took:.1} ms, the time-out is {bound} ms"),
            "Move the proxy nearer, or raise the time-out",
        );
    }
    for refused in &server.refused {
        of.is("permission", refused.clone(), "Allow it: the README lists what the ACL user needs");
    }
    if facts.votes {
        of_node(of, server, quarantine);
    }
}

fn of_node(of: &mut Of<'_>, server: &Server, quarantine: Duration) {
    let out = quarantine.as_secs_f64().ceil();
    match server.eviction.as_deref() {
        None => of.is(
            "settings",
            "CONFIG GET is refused, so eviction and persistence are unknown",
            "Allow +config|get, or look yourself",
        ),
        Some("noeviction") => {}
        Some(policy) => of.is(
            "eviction",
            format!("maxmemory-policy is {policy}"),
            "Set it to noeviction: an evicted key is a lock that is lost without a word",
        ),
    }
    let advice = format!("Without `appendonly yes` and `appendfsync always` it stays out for {out} s after a restart");
    match (server.append_only.as_deref(), server.fsync.as_deref(), server.no_fsync_on_rewrite.as_deref()) {
        (None, ..) => {}
        (Some("yes"), Some("always"), Some("no")) => {}
        (Some("yes"), Some("always"), rewrite) => of.is(
            "fsync",
            format!("no-appendfsync-on-rewrite is {}", rewrite.unwrap_or("unknown")),
            format!("Set it to no. {advice}"),
        ),
        (Some("yes"), fsync, _) => of.is("fsync", format!("appendfsync is {}", fsync.unwrap_or("unknown")), advice),
        (Some(append_only), ..) => of.is("persistence", format!("appendonly is {append_only}"), advice),
    }
    match &server.marker {
        MarkerState::None | MarkerState::Member => {}
        MarkerState::Joining(why) => of.is("quarantined", why.clone(), "Wait, or read there what ends it"),
        MarkerState::Foreign(why) => of.is("foreign", why.clone(), "Correct the configuration of this proxy"),
    }
}

/// One server that is listed twice votes twice.
fn twin(servers: &[Facts], index: usize) -> Option<Finding> {
    let server = servers[index].server.as_ref().ok().filter(|_| servers[index].votes)?;
    let same = |other: &&Facts| other.votes && other.server.as_ref().is_ok_and(|other| other.run_id == server.run_id);
    let first = servers[..index].iter().find(same)?;
    Some(Finding {
        name: "same-server",
        severity: Severity::Unsafe,
        node: servers[index].address.clone(),
        value: format!("it is the same server as {} (run_id {})", first.address, server.run_id),
        advice: "Name each server once, or it votes twice".to_owned(),
    })
}

fn of_all(servers: &[Facts]) -> Vec<Finding> {
    let mut found = Vec::new();
    let nodes: Vec<&Facts> = servers.iter().filter(|facts| facts.votes).collect();
    let mut is = |name, value: String, advice: &str| {
        found.push(Finding { name, severity: Severity::Warning, node: "".into(), value, advice: advice.to_owned() });
    };
    if nodes.len().is_multiple_of(2) {
        let (count, fewer) = (nodes.len(), nodes.len() - 1);
        is(
            "even",
            format!("{count} nodes are configured"),
            &format!("They tolerate no more failures than {fewer}: add one or remove one"),
        );
    }
    let has = |wanted: fn(&MarkerState) -> bool| {
        let held = |facts: &&&Facts| facts.server.as_ref().is_ok_and(|server| wanted(&server.marker));
        nodes.iter().filter(held).count()
    };
    let (none, some) = (has(|marker| *marker == MarkerState::None), has(|marker| *marker != MarkerState::None));
    if none > 0 && some > 0 {
        let value = format!("{none} of {} nodes have no marker redlockd:member", nodes.len());
        is("no-marker", value, "They lost their data or are new, and stay out until what they may have forgotten has ended");
    }
    found
}

/// Whether a version such as `redis 6.0.16` is older than what the scripts need.
fn too_old(version: &str) -> bool {
    let Some(numbers) = version.strip_prefix("redis ") else { return false };
    let mut parts = numbers.split('.').map_while(|part| part.parse().ok());
    let version: [u64; 2] = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()];
    version < OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(run_id: &str) -> Server {
        Server {
            run_id: run_id.into(),
            version: "redis 7.0.15".into(),
            role: "master".into(),
            eviction: Some("noeviction".into()),
            append_only: Some("yes".into()),
            fsync: Some("always".into()),
            no_fsync_on_rewrite: Some("no".into()),
            round_trip: Duration::from_micros(300),
            ..Server::default()
        }
    }

    fn facts(change: impl Fn(usize, &mut Server)) -> Vec<Facts> {
        let of = |index: usize| {
            let mut server = server(&format!("run-{index}"));
            change(index, &mut server);
            Facts { address: format!("n{index}").into(), votes: index < 3, server: Ok(server) }
        };
        (0..4).map(of).collect()
    }

    fn names(facts: &[Facts]) -> Vec<(&'static str, Severity)> {
        let found = findings(facts, Duration::from_millis(50), Duration::from_secs(300));
        found.iter().map(|finding| (finding.name, finding.severity)).collect()
    }

    /// What one changed server is found guilty of.
    fn found(change: impl Fn(&mut Server)) -> Vec<(&'static str, Severity)> {
        names(&facts(|index, server| {
            if index == 1 {
                change(server);
            }
        }))
    }

    #[test]
    fn a_good_set_has_no_findings() {
        assert_eq!(names(&facts(|_, _| {})), []);
    }

    #[test]
    fn each_problem_is_found_and_only_it() {
        use Severity::{Unsafe, Warning};
        assert_eq!(found(|server| server.role = "slave".into()), [("replica", Unsafe)]);
        assert_eq!(found(|server| server.cluster = true), [("cluster-mode", Unsafe)]);
        assert_eq!(found(|server| server.run_id = "run-0".into()), [("same-server", Unsafe)]);
        assert_eq!(found(|server| server.eviction = Some("allkeys-lru".into())), [("eviction", Unsafe)]);
        assert_eq!(found(|server| server.version = "redis 6.0.16".into()), [("version", Unsafe)]);
        assert_eq!(found(|server| server.append_only = Some("no".into())), [("persistence", Warning)]);
        assert_eq!(found(|server| server.fsync = Some("everysec".into())), [("fsync", Warning)]);
        assert_eq!(found(|server| server.no_fsync_on_rewrite = Some("yes".into())), [("fsync", Warning)]);
        assert_eq!(found(|server| server.clock_offset_us = -2_000_000), [("clock-offset", Warning)]);
        assert_eq!(found(|server| server.round_trip = Duration::from_millis(30)), [("round-trip", Warning)]);
        assert_eq!(found(|server| server.refused.push("x".into())), [("permission", Warning)]);
        assert_eq!(found(|server| server.eviction = None), [("settings", Warning)]);
        assert_eq!(
            found(|server| server.marker = MarkerState::Joining("x".into())),
            [("quarantined", Warning), ("no-marker", Warning)]
        );
        assert_eq!(names(&facts(|_, _| {})[..2]), [("even", Warning)]);
    }

    /// One that was left behind has no vote; where it is not the only one, it may be this proxy that is configured wrongly.
    #[test]
    fn markers_of_another_configuration_refuse_to_start_unless_a_quorum_fits() {
        let foreign = |nodes: &'static [usize]| {
            names(&facts(|index, server| {
                server.marker = if nodes.contains(&index) { MarkerState::Foreign("x".into()) } else { MarkerState::Member };
            }))
        };
        assert_eq!(foreign(&[1]), [("foreign", Severity::Warning)]);
        assert_eq!(foreign(&[1, 2]), [("foreign", Severity::Unsafe); 2]);
        assert_eq!(foreign(&[0, 1, 2]), [("foreign", Severity::Unsafe); 3]);
    }

    #[test]
    fn the_counters_server_needs_no_disk_and_may_be_a_node_too() {
        let mut facts = facts(|_, _| {});
        let Ok(fence) = &mut facts[3].server else { panic!() };
        (fence.append_only, fence.run_id) = (Some("no".into()), "run-0".into());
        assert_eq!(names(&facts), []);
        facts[3].server = Err("refused".into());
        assert_eq!(names(&facts), [("unreachable", Severity::Unreachable)]);
    }

    #[test]
    fn newer_versions_and_other_makes_are_good() {
        for version in ["redis 6.2.0", "redis 7.0.15", "redis 10.1", "valkey 8.1.0", "memory"] {
            assert!(!too_old(version), "{version}");
        }
        assert!(too_old("redis 5.0.14") && too_old("redis 6.0.20"));
    }
}
