//! `redlockd list`.

use std::time::Duration;

use clap::{Args, value_parser};
use serde_json::{Map, Value, json};

use super::{CliError, ClientArgs, ExitCode, Output, millis, object, people, print_lines};
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::{HeldLock, ListRequest};

/// A page takes as long as the nodes take to look at all their keys.
const PATIENCE: Duration = Duration::from_secs(300);

/// Arguments.
#[derive(Args, Debug)]
#[command(
    after_help = "A lock that is taken or released while the list is made may or may not be in it. One that fewer nodes \
                        hold than a quorum is in it only while others do not answer, or may have forgotten it."
)]
pub struct ListArgs {
    /// How the names begin [default: all names]
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Locks to ask for at a time, 1 to 1000: the nodes look at all their keys each time
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000))]
    page_size: u32,
    /// The most locks to list [default: all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows which names are held, each page as it comes.
pub async fn run(args: ListArgs) -> Result<ExitCode, CliError> {
    let mut client = LockServiceClient::new(args.client.connect(PATIENCE).await?);
    let page_size = args.page_size.min(args.limit.unwrap_or(u32::MAX));
    let mut request = ListRequest { prefix: args.prefix, page_size, page_token: String::new() };
    let (mut listed, limit) = (0, args.limit.map_or(usize::MAX, |limit| limit as usize));
    let is_table = args.client.output == Output::Text;
    let mut lines = if is_table { vec![head()] } else { Vec::new() };
    loop {
        let page = client.list(request.clone()).await?.into_inner();
        let line = |lock: &HeldLock| if is_table { row(lock) } else { Value::Object(fields(lock)).to_string() };
        lines.extend(page.locks.iter().take(limit - listed).map(line));
        listed = limit.min(listed + page.locks.len());
        let is_last = page.next_page_token.is_empty() || listed == limit;
        if is_table && is_last {
            let (locks, more) =
                (if listed == 1 { "lock" } else { "locks" }, if listed == limit { ", and maybe more" } else { "" });
            lines.push(format!("{listed} {locks}{more}"));
        }
        if !print_lines(&lines)? || is_last {
            return Ok(ExitCode::DONE);
        }
        lines.clear();
        request.page_token = page.next_page_token;
    }
}

fn fields(lock: &HeldLock) -> Map<String, Value> {
    let mut fields =
        object([("name", json!(lock.name)), ("owner", json!(lock.owner)), ("time_left_ms", json!(millis(lock.time_left)))]);
    if let Some(token) = lock.fencing_token {
        fields.insert("fencing_token".to_owned(), json!(token));
    }
    fields.insert("waiters".to_owned(), json!(lock.waiters));
    fields.insert("nodes".to_owned(), json!(lock.nodes));
    fields
}

fn head() -> String {
    table_line("NAME", "OWNER", "TIME LEFT", "TOKEN", "NODES", "WAITERS")
}

fn row(lock: &HeldLock) -> String {
    let (left, token) = (people(millis(lock.time_left)), lock.fencing_token.map(|token| token.to_string()));
    let (nodes, waiters) = (lock.nodes.to_string(), lock.waiters.to_string());
    table_line(&lock.name, &lock.owner, &left, token.as_deref().unwrap_or("-"), &nodes, &waiters)
}

fn table_line(name: &str, owner: &str, left: &str, token: &str, nodes: &str, waiters: &str) -> String {
    format!("{name:<32} {owner:<24} {left:>14} {token:>17} {nodes:>5} {waiters:>7}")
}
