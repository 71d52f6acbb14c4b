//! `redlockd release`.

use clap::Args;
use serde_json::json;

use super::{CliError, ClientArgs, ExitCode, LockIdArg, PATIENCE, object, unexpected};
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::{ReleaseOutcome, ReleaseRequest};

/// Arguments.
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    #[command(flatten)]
    lock_id: LockIdArg,
    #[command(flatten)]
    client: ClientArgs,
}

/// Gives a lock back.
pub async fn run(args: ReleaseArgs) -> Result<ExitCode, CliError> {
    let request = ReleaseRequest { lock_id: args.lock_id.read()? };
    let channel = args.client.connect(PATIENCE).await?;
    let response = LockServiceClient::new(channel).release(request).await?.into_inner();
    let (word, text, code) = match response.outcome() {
        ReleaseOutcome::Released => ("released", "released", ExitCode::DONE),
        ReleaseOutcome::NotHeld => ("not_held", "not held: it had expired or was released before", ExitCode::CONFLICT),
        ReleaseOutcome::Unspecified => return Err(unexpected()),
    };
    args.client.print(object([("outcome", json!(word))]), || text.to_owned());
    Ok(code)
}
