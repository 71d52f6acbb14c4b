//! `redlockd renew`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{CliError, ClientArgs, ExitCode, LockIdArg, PATIENCE, millis, object, people, proto_duration, unexpected};
use crate::proto::RenewRequest;
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::renew_response::Outcome;

/// Arguments.
#[derive(Args, Debug)]
pub struct RenewArgs {
    #[command(flatten)]
    lock_id: LockIdArg,
    /// The TTL from now on, such as 10s [default: the proxy's limits.default_ttl]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Lets the TTL count from now.
pub async fn run(args: RenewArgs) -> Result<ExitCode, CliError> {
    let request = RenewRequest { lock_id: args.lock_id.read()?, ttl: args.ttl.map(proto_duration).transpose()? };
    let channel = args.client.connect(PATIENCE).await?;
    let response = LockServiceClient::new(channel).renew(request).await?.into_inner();
    let (word, validity, served_for, code) = match response.outcome.ok_or_else(unexpected)? {
        Outcome::Renewed(renewed) => ("renewed", renewed.validity, renewed.served_for, ExitCode::DONE),
        Outcome::Lost(lost) => ("lost", lost.validity, lost.served_for, ExitCode::CONFLICT),
    };
    let fields = object([
        ("outcome", json!(word)),
        ("validity_ms", json!(millis(validity))),
        ("served_for_ms", json!(millis(served_for))),
    ]);
    args.client.print(fields, || format!("{word}: valid for {}", people(millis(validity))));
    Ok(code)
}
