//! `redlockd nodes`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{CliError, ClientArgs, ExitCode, Output, PATIENCE, millis, object, people};
use crate::proto::operator_service_client::OperatorServiceClient;
use crate::proto::{ListNodesRequest, NodeRole, NodeState, NodeStatus};

/// Arguments.
#[derive(Args, Debug)]
pub struct NodesArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows the proxy's view of its nodes.
pub async fn run(args: NodesArgs) -> Result<ExitCode, CliError> {
    let channel = args.client.connect(PATIENCE).await?;
    let response = OperatorServiceClient::new(channel).list_nodes(ListNodesRequest {}).await?.into_inner();
    if args.client.output == Output::Json {
        response.nodes.iter().for_each(|node| println!("{}", Value::Object(fields(node))));
        return Ok(ExitCode::DONE);
    }
    println!(
        "{:<6} {:<24} {:<11} {:>10} {:>10} {:>12} {:>8} {:>6}  {:<14} DETAIL",
        "ROLE", "NODE", "STATE", "ROUND TRIP", "CLOCK", "UPTIME", "RESTARTS", "LOST", "VERSION"
    );
    response.nodes.iter().for_each(|node| println!("{}", line(node)));
    println!("{} nodes can vote, {} are a quorum", response.voting, response.quorum);
    Ok(ExitCode::DONE)
}

fn role(node: &NodeStatus) -> &'static str {
    match node.role() {
        NodeRole::Lock => "lock",
        NodeRole::Fence => "fence",
        NodeRole::Unspecified => "unknown",
    }
}

fn state(node: &NodeStatus) -> &'static str {
    match node.state() {
        NodeState::Up => "up",
        NodeState::Silent => "silent",
        NodeState::Down => "down",
        NodeState::Unfit => "unfit",
        NodeState::Suspended => "suspended",
        NodeState::Quarantined => "quarantined",
        NodeState::Unspecified => "unknown",
    }
}

fn micros(duration: Option<prost_types::Duration>) -> Option<u128> {
    std::time::Duration::try_from(duration?).ok().map(|duration| duration.as_micros())
}

/// With the time of day at which a quarantine ends.
fn detail(node: &NodeStatus) -> String {
    let Some(left) = node.quarantine_left.and_then(|left| std::time::Duration::try_from(left).ok()) else {
        return node.detail.clone();
    };
    let until = humantime::format_rfc3339_seconds(std::time::SystemTime::now() + left);
    format!("until {until}: {}", node.detail)
}

fn fields(node: &NodeStatus) -> Map<String, Value> {
    object([
        ("node", json!(node.node)),
        ("role", json!(role(node))),
        ("state", json!(state(node))),
        ("detail", json!(node.detail)),
        ("version", json!(node.version)),
        ("run_id", json!(node.run_id)),
        ("uptime_ms", json!(node.uptime.map(|_| millis(node.uptime)))),
        ("round_trip_ms", json!(micros(node.round_trip).map(|us| us as f64 / 1000.0))),
        ("queued", json!(node.queued)),
        ("in_flight", json!(node.in_flight)),
        ("restarts", json!(node.restarts)),
        ("quarantine_left_ms", json!(node.quarantine_left.map(|_| millis(node.quarantine_left)))),
        ("clock_offset_ms", json!(clock_ms(node))),
        ("clock_drift_ratio", json!(node.clock_drift_ratio)),
        ("votes_lost", json!(node.votes_lost)),
    ])
}

/// How far its clock is ahead.
fn clock_ms(node: &NodeStatus) -> Option<f64> {
    let offset = node.clock_offset?;
    Some(offset.seconds as f64 * 1e3 + f64::from(offset.nanos) / 1e6)
}

fn line(node: &NodeStatus) -> String {
    let clock = clock_ms(node).map(|ms| format!("{ms:+.1} ms")).unwrap_or_default();
    let round_trip = micros(node.round_trip).map(|us| format!("{us} us")).unwrap_or_default();
    let uptime = node.uptime.map(|_| people(millis(node.uptime))).unwrap_or_default();
    let line = format!(
        "{:<6} {:<24} {:<11} {round_trip:>10} {clock:>10} {uptime:>12} {:>8} {:>6}  {:<14} {}",
        role(node),
        node.node,
        state(node),
        node.restarts,
        node.votes_lost,
        node.version,
        detail(node)
    );
    line.trim_end().to_owned()
}
