//! `redlockd get`.

use clap::Args;
use serde_json::{Value, json};

use super::{CliError, ClientArgs, ExitCode, PATIENCE, millis, object, people, unexpected};
use crate::proto::get_response::State;
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::{GetRequest, GetResponse, NodeVote, NodeVoteState};

/// Arguments.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The name of the lock
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows who holds a name.
pub async fn run(args: GetArgs) -> Result<ExitCode, CliError> {
    let channel = args.client.connect(PATIENCE).await?;
    let request = GetRequest { name: args.name.clone() };
    let GetResponse { state, votes, waiters } = LockServiceClient::new(channel).get(request).await?.into_inner();
    let state = state.ok_or_else(unexpected)?;
    let mut fields = object([("outcome", json!("free")), ("name", json!(args.name))]);
    if let State::Held(holder) = &state {
        fields.insert("outcome".to_owned(), json!("held"));
        fields.insert("owner".to_owned(), json!(holder.owner));
        fields.insert("time_left_ms".to_owned(), json!(millis(holder.time_left)));
        if let Some(token) = holder.fencing_token {
            fields.insert("fencing_token".to_owned(), json!(token));
        }
    }
    fields.insert("waiters".to_owned(), json!(waiters));
    fields.insert("votes".to_owned(), votes.iter().map(vote_json).collect());
    args.client.print(fields, || {
        let head = match &state {
            State::Free(_) => format!("free: {}", args.name),
            State::Held(holder) => {
                let owner = if holder.owner.is_empty() { "somebody without a label" } else { &holder.owner };
                let token = holder.fencing_token.map(|token| format!(", token {token}")).unwrap_or_default();
                format!("held: {} by {owner} for another {}{token}", args.name, people(millis(holder.time_left)))
            }
        };
        let line = if waiters == 0 { String::new() } else { format!("; {waiters} in line at this proxy") };
        votes.iter().fold(head + &line, |text, vote| format!("{text}\n  {}", vote_text(vote)))
    });
    Ok(ExitCode::DONE)
}

fn word(vote: &NodeVote) -> &'static str {
    match vote.state() {
        NodeVoteState::Holder => "holder",
        NodeVoteState::Other => "other",
        NodeVoteState::Free => "free",
        NodeVoteState::Unknown | NodeVoteState::Unspecified => "unknown",
    }
}

fn vote_json(vote: &NodeVote) -> Value {
    let mut fields = object([("node", json!(vote.node)), ("state", json!(word(vote))), ("owner", json!(vote.owner))]);
    if vote.time_left.is_some() {
        fields.insert("time_left_ms".to_owned(), json!(millis(vote.time_left)));
    }
    if !vote.detail.is_empty() {
        fields.insert("detail".to_owned(), json!(vote.detail));
    }
    Value::Object(fields)
}

fn vote_text(vote: &NodeVote) -> String {
    let left = vote.time_left.map(|_| people(millis(vote.time_left))).unwrap_or_default();
    let line = format!("{:<24} {:<8} {:<24} {left} {}", vote.node, word(vote), vote.owner, vote.detail);
    line.trim_end().to_owned()
}
