//! Preflight: looks at the configured servers themselves, before anybody is served. `redlockd check` prints it; `serve` does the
//! same, and does not start where locks would not be safe.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::engine::clock::Sample;
use crate::engine::lease::{LockValue, Ttl};
use crate::engine::membership::{Charter, Marker, Members, Standing, State};
use crate::engine::preflight::{self, Facts, Finding, MarkerState, Server, Severity};
use crate::engine::quorum::Quorum;
use crate::engine::reply::Reply;
use crate::node::address::Address;
use crate::node::env::{Env, SystemEnv};
use crate::node::redis::RedisNode;
use crate::node::script::Told;
use crate::node::{Channel, Connection, Course, Key, Node, Op, Probe, Replies, WakeUp, WireError, channel_number};

/// Connecting and all questions together.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the preflight came to.
#[derive(Debug)]
pub struct Report {
    servers: Vec<Facts>,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table and sentences.
    Text,
    /// One object a line.
    Json,
}

impl Report {
    /// Asks all configured servers.
    pub async fn of(config: &Config) -> Result<Self, crate::node::tls::TlsError> {
        let tls = config.tls()?;
        let charter = config.charter();
        let nodes = config.nodes.addresses.iter().map(|address| (address, true));
        let look = |(address, votes): (&Address, bool)| {
            let node = RedisNode::new(address, tls.clone(), PATIENCE);
            let (address, charter) = (Arc::from(address.label()), charter.clone());
            async move {
                let server = match timeout(PATIENCE, look_at(&node, config, &charter, votes)).await {
                    Ok(server) => server.map_err(|error| error.to_string().into()),
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs()).into()),
                };
                Facts { address, votes, server }
            }
        };
        let servers = join_all(nodes.chain(config.fencing.address.iter().map(|address| (address, false))).map(look)).await;
        let quarantine = Members::new(charter, config.nodes.quorum).quarantine();
        let findings = preflight::findings(&servers, config.nodes.timeout, quarantine);
        Ok(Self { servers, findings })
    }

    /// 0 clean, 1 findings, 69 a server unreachable.
    pub fn exit_code(&self) -> u8 {
        match self.findings.iter().map(|finding| finding.severity).max() {
            None => 0,
            Some(Severity::Unreachable) => 69,
            Some(_) => 1,
        }
    }

    /// Prints it.
    pub fn print(&self, format: Format) {
        match format {
            Format::Json => {
                self.servers.iter().for_each(|facts| println!("{}", server_json(facts)));
                self.findings.iter().for_each(|finding| println!("{}", finding_json(finding)));
            }
            Format::Text => {
                self.print_table();
                self.findings.iter().for_each(|finding| println!("{finding}"));
                println!("{}", self.summary());
            }
        }
    }

    fn print_table(&self) {
        println!(
            "{:<6} {:<24} {:<14} {:>10} {:>11} {:<12} {:<12} MARKER",
            "ROLE", "NODE", "VERSION", "ROUND TRIP", "CLOCK", "EVICTION", "PERSISTENCE"
        );
        for facts in &self.servers {
            let line = match &facts.server {
                Err(why) => format!("{:<6} {:<24} unreachable: {why}", role(facts), facts.address),
                Ok(server) => format!(
                    "{:<6} {:<24} {:<14} {:>7} us {:>8.1} ms {:<12} {:<12} {}",
                    role(facts),
                    facts.address,
                    server.version,
                    server.round_trip.as_micros(),
                    server.clock_offset_us as f64 / 1e3,
                    server.eviction.as_deref().unwrap_or("unknown"),
                    persistence(server),
                    if facts.votes { marker_text(&server.marker) } else { "" },
                ),
            };
            println!("{}", line.trim_end());
        }
    }

    fn summary(&self) -> String {
        let new = self.servers.iter().filter(|facts| facts.votes).all(|facts| {
            let marker = facts.server.as_ref().map(|server| &server.marker);
            marker.is_ok_and(|marker| *marker == MarkerState::None)
        });
        let mut text = match self.findings.len() {
            0 => "no findings".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        };
        if new {
            text.push_str(
                "; no node has a marker: the cluster is new, or lost everything. If it is new, start one proxy with \
                 --nodes-bootstrap now",
            );
        }
        text
    }
}

/// What a node tells comes right behind its answer.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

async fn look_at(node: &RedisNode, config: &Config, charter: &Charter, votes: bool) -> Result<Server, WireError> {
    let connection = node.connect().await?;
    let probe = connection.probe().await?;
    // Whoever is no node at all is not asked for more: a cluster would send us elsewhere.
    let is_node = &*probe.role == "master" && !probe.cluster;
    let mut refused = if is_node { try_out(&*connection, config, votes).await? } else { Vec::new() };
    // One refusal often is the reason of another.
    if is_node && votes && refused.is_empty() {
        match untold(node, &*connection, config).await {
            Ok(None) => {}
            Ok(Some(problem)) => refused.push(problem.to_owned()),
            Err(why) => refused.push(format!("nothing can be told to those who wait or watch: {why}")),
        }
    }
    let (sent, mut round_trip) = (Instant::now(), Duration::ZERO);
    let (mut clock_offset_us, mut marker) = (0, MarkerState::None);
    if is_node && let Ok(replies) = call(&*connection, &[]).await {
        round_trip = sent.elapsed();
        let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let between =
            i128::try_from(wall_us).unwrap_or_default() - i128::try_from(round_trip.as_micros() / 2).unwrap_or_default();
        clock_offset_us = i64::try_from(i128::from(replies.time.micros) - between).unwrap_or(i64::MAX);
        marker = marker_state(&replies, &probe, charter);
    }
    let Probe { run_id, version, role, cluster, settings, .. } = probe;
    Ok(Server {
        run_id,
        version,
        role,
        cluster,
        eviction: settings.eviction,
        append_only: settings.append_only,
        fsync: settings.fsync,
        no_fsync_on_rewrite: settings.no_fsync_on_rewrite,
        clock_offset_us,
        round_trip,
        refused,
        marker,
    })
}

async fn call(connection: &dyn Connection, batch: &[Op]) -> Result<Replies, WireError> {
    connection.call(&batch.iter().collect::<Vec<_>>(), Course::OneTurn).await
}

/// A connection that listens takes megabytes, and an idle proxy would keep for long what all nodes at once had taken.
static LISTENS: Semaphore = Semaphore::const_new(1);

/// What those who wait or watch are not told of, if anything.
async fn untold(node: &RedisNode, connection: &dyn Connection, config: &Config) -> Result<Option<&'static str>, WireError> {
    let (prefix, nonce) = (&*config.nodes.key_prefix, SystemEnv.secret());
    let (name, value) = (format!("redlockd:check:{nonce:032x}"), LockValue::new(nonce, None, None));
    let _turn = LISTENS.acquire().await;
    let mut listener = node.listen().await?;
    let watch = Channel::Watch(channel_number(prefix, &name));
    let channels = [Channel::Wake(0), Channel::Waiters, watch, Channel::Watchers];
    listener.subscribe(&channels).await?;
    let key: Key = format!("{prefix}{name}").into();
    let ttl = Ttl::from_millis(1_000, Ttl::LONGEST).unwrap_or(Ttl::LONGEST);
    let acquire = Op::Acquire { key: key.clone(), value: value.clone(), ttl, bucket: None };
    let wake = Some(WakeUp { sender: "check".into() });
    let replies = call(connection, &[acquire, Op::Release { key: key.clone(), value, wake }]).await?.replies;
    if let [_, Reply::Released { heard: None }] = replies[..] {
        return Ok(Some("PUBLISH is refused: others who wait are not told of releases"));
    }
    let told = async {
        loop {
            // Others may take locks meanwhile.
            match listener.next().await {
                Ok(message) if Told::read(&message).is_some_and(|told| *told.key == *key) => return Ok(None),
                Ok(_) => {}
                Err(why) => return Err(why),
            }
        }
    };
    let nothing = "PUBSUB NUMSUB is refused: those who watch are told of nothing";
    timeout(TOLD_WITHIN, told).await.unwrap_or(Ok(Some(nothing)))
}

/// Does everything that a proxy does, to keys that nobody else uses and that end by themselves; what was refused.
async fn try_out(connection: &dyn Connection, config: &Config, votes: bool) -> Result<Vec<String>, WireError> {
    let nonce = SystemEnv.secret();
    let value = LockValue::new(nonce, None, None);
    // A second is enough for a few calls, and not long for what a lost connection leaves behind.
    let ttl = Ttl::from_millis(1_000, Ttl::LONGEST).unwrap_or(Ttl::LONGEST);
    let acquire = |key: &str| Op::Acquire { key: key.into(), value: value.clone(), ttl, bucket: None };
    let release = |key: &str| Op::Release { key: key.into(), value: value.clone(), wake: None };
    let own = format!("redlockd:check:{nonce:032x}");
    let mut batch = vec![acquire(&own), release(&own)];
    if votes {
        let lock = format!("{}{own}", config.nodes.key_prefix);
        // To more than it has, or nothing would be done.
        let longer = Ttl::from_millis(1_500, Ttl::LONGEST).unwrap_or(Ttl::LONGEST);
        let renew = Op::Renew { key: lock.as_str().into(), value: value.clone(), ttl: longer };
        // Refused by a value, it is asked how long the other one lasts.
        let other = Op::Acquire { key: lock.as_str().into(), value: LockValue::new(!nonce, None, None), ttl, bucket: None };
        let scan = Op::Scan { key: lock.as_str().into(), from: "0".into() };
        batch.extend([acquire(&lock), renew, other, release(&lock), scan]);
    }
    match call(connection, &batch).await {
        Ok(replies) => {
            let refused = |reply: Reply| match reply {
                Reply::Unknown(why) => Some(why.kind.to_string()),
                _ => None,
            };
            let mut refused: Vec<String> = replies.replies.into_iter().filter_map(refused).collect();
            refused.dedup();
            Ok(refused)
        }
        Err(WireError::Closed(why)) => Err(WireError::Closed(why)),
        Err(error) => Ok(vec![error.to_string()]),
    }
}

/// What a marker says to a proxy of this configuration: as that proxy would judge it.
fn marker_state(replies: &Replies, probe: &Probe, charter: &Charter) -> MarkerState {
    let (charter, sample) =
        (charter.clone(), Sample { sent: Duration::ZERO, received: Duration::ZERO, node_us: replies.time.micros });
    let mut members = Members::new(charter, Quorum::of(1).expect("one node is enough to look at one"));
    let (node, durable) = (0, probe.settings.is_durable());
    members.on_connected(node, probe.run_id.clone(), durable);
    members.on_batch(node, &replies.marker, sample);
    match (members.standing(node, Duration::ZERO), Marker::parse(&replies.marker)) {
        (Standing::Foreign(why), _) => MarkerState::Foreign(why.to_string()),
        (Standing::Quarantined { because, .. }, Some(Marker { state: State::Joining { since_ms, .. }, run_id, .. }))
            if run_id == probe.run_id =>
        {
            let passed = Duration::from_millis(replies.time.as_millis().saturating_sub(since_ms));
            let left = members.quarantine().saturating_sub(passed).as_secs_f64();
            MarkerState::Joining(format!("for about {left:.0} s still: {because}"))
        }
        (Standing::Quarantined { .. }, Some(_)) if durable => {
            MarkerState::Joining("it restarted with its data; the next proxy that sees it lets it vote".to_owned())
        }
        (Standing::Quarantined { .. }, Some(_)) => {
            MarkerState::Joining("it restarted; the next proxy that sees it begins its quarantine".to_owned())
        }
        (Standing::Quarantined { .. }, None) => MarkerState::None,
        _ => MarkerState::Member,
    }
}

fn role(facts: &Facts) -> &'static str {
    if facts.votes { "lock" } else { "fence" }
}

fn persistence(server: &Server) -> &str {
    match (server.append_only.as_deref(), server.fsync.as_deref()) {
        (Some("yes"), Some(fsync)) => fsync,
        (Some("no"), _) => "none",
        _ => "unknown",
    }
}

fn marker_text(marker: &MarkerState) -> &str {
    match marker {
        MarkerState::None => "none",
        MarkerState::Member => "votes",
        MarkerState::Joining(_) => "quarantined",
        MarkerState::Foreign(_) => "foreign",
    }
}

fn server_json(facts: &Facts) -> Value {
    match &facts.server {
        Err(why) => json!({ "node": *facts.address, "role": role(facts), "unreachable": **why }),
        Ok(server) => json!({
            "node": *facts.address,
            "role": role(facts),
            "version": *server.version,
            "run_id": *server.run_id,
            "round_trip_ms": server.round_trip.as_micros() as f64 / 1e3,
            "clock_offset_ms": server.clock_offset_us as f64 / 1e3,
            "eviction": server.eviction.as_deref(),
            "appendonly": server.append_only.as_deref(),
            "appendfsync": server.fsync.as_deref(),
            "marker": if facts.votes { marker_text(&server.marker) } else { "" },
        }),
    }
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "finding": finding.name,
        "severity": finding.severity.as_str(),
        "node": *finding.node,
        "value": finding.value,
        "advice": finding.advice,
    })
}
