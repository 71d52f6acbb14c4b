//! `redlockd watch`.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{CliError, ClientArgs, ExitCode, Output, PATIENCE, millis, object, people, print_lines, unexpected};
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::watch_request::Scope;
use crate::proto::{WatchEventKind, WatchRequest, WatchResponse};

/// Arguments.
#[derive(Args, Debug)]
#[command(
    after_help = "The first line says from when on nothing is missing. Ends with Ctrl-C, or when the proxy does (exit code 69)."
)]
pub struct WatchArgs {
    /// The name of the lock [default: all locks]
    name: Option<String>,
    /// All locks whose names begin so
    #[arg(long, value_name = "PREFIX", conflicts_with = "name")]
    prefix: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows every event as it comes.
pub async fn run(args: WatchArgs) -> Result<ExitCode, CliError> {
    let scope = args.name.map(Scope::Name).or(args.prefix.map(Scope::Prefix));
    let mut client = LockServiceClient::new(args.client.connect(PATIENCE).await?);
    let mut events = client.watch(WatchRequest { scope }).await?.into_inner();
    while let Some(event) = events.message().await? {
        let line = match args.client.output {
            Output::Json => Value::Object(fields(&event)?).to_string(),
            Output::Text => text(&event)?,
        };
        if !print_lines(&[line])? {
            break;
        }
    }
    Ok(ExitCode::DONE)
}

/// As the proto has it, without its prefix and in small letters.
fn word(event: &WatchResponse) -> Result<&'static str, CliError> {
    match event.kind() {
        WatchEventKind::Complete => Ok("complete"),
        WatchEventKind::Gap => Ok("gap"),
        WatchEventKind::Granted => Ok("granted"),
        WatchEventKind::HandedOver => Ok("handed_over"),
        WatchEventKind::Released => Ok("released"),
        WatchEventKind::Expired => Ok("expired"),
        WatchEventKind::Unspecified => Err(unexpected()),
    }
}

fn fields(event: &WatchResponse) -> Result<Map<String, Value>, CliError> {
    let mut fields = object([("kind", json!(word(event)?))]);
    match event.kind() {
        WatchEventKind::Complete => {}
        WatchEventKind::Gap => drop(fields.insert("detail".to_owned(), json!(event.detail))),
        _ => drop(fields.insert("name".to_owned(), json!(event.name))),
    }
    if event.ttl.is_some() {
        fields.insert("owner".to_owned(), json!(event.owner));
        fields.insert("ttl_ms".to_owned(), json!(millis(event.ttl)));
    }
    Ok(fields)
}

fn text(event: &WatchResponse) -> Result<String, CliError> {
    let word = word(event)?.replace('_', " ");
    Ok(match event.kind() {
        WatchEventKind::Complete => format!("{word}: nothing is missing from here on"),
        WatchEventKind::Gap => format!("{word}: something may be missing: {}", event.detail),
        _ if event.ttl.is_some() => {
            let owner = if event.owner.is_empty() { "somebody" } else { &event.owner };
            format!("{word}: {} to {owner} for {}", event.name, people(millis(event.ttl)))
        }
        _ => format!("{word}: {}", event.name),
    })
}
