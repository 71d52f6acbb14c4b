//! `redlockd acquire`.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{CliError, ClientArgs, ExitCode, PATIENCE, millis, object, people, proto_duration, unexpected};
use crate::proto;
use crate::proto::acquire_response::Outcome;
use crate::proto::granted::Fencing;
use crate::proto::lock_service_client::LockServiceClient;

/// Arguments.
#[derive(Args, Debug)]
pub struct AcquireArgs {
    /// What to lock: 1 to 512 bytes
    name: String,
    /// How long the lease lasts unless renewed, such as 10s [default: the proxy's limits.default_ttl]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// How long to wait for a lock that is held
    #[arg(short, long, value_parser = humantime::parse_duration, default_value = "0s", value_name = "DURATION")]
    wait: Duration,
    /// Public label of the holder [default: user@host:pid]
    #[arg(long)]
    owner: Option<String>,
    /// Take the lock even if the fencing counter can not be reached
    #[arg(long)]
    best_effort_token: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Takes a lock.
pub async fn run(args: AcquireArgs) -> Result<ExitCode, CliError> {
    let channel = args.client.connect(args.wait + PATIENCE).await?;
    let token = match args.best_effort_token {
        true => proto::TokenRequirement::BestEffort,
        false => proto::TokenRequirement::Required,
    };
    let request = proto::AcquireRequest {
        name: args.name.clone(),
        ttl: args.ttl.map(proto_duration).transpose()?,
        wait: Some(proto_duration(args.wait)?),
        owner: args.owner.unwrap_or_else(default_owner),
        token: token.into(),
        ..Default::default()
    };
    let response = LockServiceClient::new(channel).acquire(request).await?.into_inner();
    match response.outcome.ok_or_else(unexpected)? {
        Outcome::Granted(granted) => {
            args.client.print(granted_json(&args.name, &granted), || granted_text(&args.name, &granted));
            Ok(ExitCode::DONE)
        }
        Outcome::Contended(contended) => {
            let retry_after = millis(contended.retry_after);
            let mut fields = object([
                ("outcome", json!("contended")),
                ("name", json!(args.name)),
                ("owner", json!(contended.owner)),
                ("retry_after_ms", json!(retry_after)),
                ("place_in_line", json!(contended.place_in_line)),
            ]);
            if contended.expected_wait.is_some() {
                fields.insert("expected_wait_ms".to_owned(), json!(millis(contended.expected_wait)));
            }
            args.client.print(fields, || {
                let owner = if contended.owner.is_empty() { "somebody else" } else { &contended.owner };
                let line = match contended.place_in_line {
                    0 => String::new(),
                    before => format!("; {before} in line before you"),
                };
                format!(
                    "contended: {} is held by {owner}; free in {} unless it is renewed{line}",
                    args.name,
                    people(retry_after)
                )
            });
            Ok(ExitCode::CONFLICT)
        }
    }
}

fn granted_json(name: &str, granted: &proto::Granted) -> Map<String, Value> {
    let mut fields = object([("outcome", json!("granted")), ("name", json!(name)), ("lock_id", json!(granted.lock_id))]);
    match &granted.fencing {
        Some(Fencing::FencingToken(token)) => fields.insert("fencing_token".to_owned(), json!(token)),
        Some(Fencing::NoToken(why)) => fields.insert("no_token".to_owned(), json!({ "reason": why.reason })),
        None => None,
    };
    fields.insert("validity_ms".to_owned(), json!(millis(granted.validity)));
    fields.insert("served_for_ms".to_owned(), json!(millis(granted.served_for)));
    fields
}

fn granted_text(name: &str, granted: &proto::Granted) -> String {
    let token = match &granted.fencing {
        Some(Fencing::FencingToken(token)) => token.to_string(),
        Some(Fencing::NoToken(why)) => format!("none: {}", why.reason),
        None => "none".to_owned(),
    };
    format!(
        "granted: {name}\n  valid for      {}\n  fencing token  {token}\n  lock id        {}",
        people(millis(granted.validity)),
        granted.lock_id
    )
}

/// `user@host:pid`, within the bounds of a label.
pub(super) fn default_owner() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name);
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    let label = format!(
        "{}@{}:{}",
        user.unwrap_or_else(|| "unknown".to_owned()),
        host.unwrap_or_else(|| "unknown".to_owned()),
        std::process::id()
    );
    label
        .chars()
        .filter(|c| !c.is_control() && *c != ';')
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= 128).then_some(c)
        })
        .collect()
}
