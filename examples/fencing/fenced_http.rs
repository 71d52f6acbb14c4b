//! A document behind HTTP that refuses a holder whose lock has had a later one.
//!
//! ```sh
//! cargo run --example fenced_http -- 127.0.0.1:8080
//! curl -X PUT -H 'Fencing-Token: 34' --data 'second holder' http://127.0.0.1:8080/document     # 204
//! curl -X PUT -H 'Fencing-Token: 33' --data 'first holder' http://127.0.0.1:8080/document      # 412
//! ```
//!
//! | request | answer |
//! | --- | --- |
//! | `PUT /document` with a token | 204; 412 if a higher token has been seen; 400 without a token, or with what is none |
//! | `GET /document` with a token | 200, and lower tokens are refused from now on; 412 and 400 as above |
//! | `GET /document` without one | 200, for those who hold no lock |
//!
//! Refusals are JSON: `{"error": .., "message": ..}`, for 412 also `"token"` and `"highest"` as numbers.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use redlockd::engine::fencing::Token;
use redlockd::fenced::{FencedRegister, StaleToken};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const FENCING_TOKEN: &str = "fencing-token";

type Document = Arc<FencedRegister<String>>;

/// The routes, around an empty document.
pub fn app() -> Router {
    let document = Document::new(FencedRegister::new(String::new()));
    Router::new().route("/document", get(read).put(write)).with_state(document)
}

async fn write(State(document): State<Document>, headers: HeaderMap, body: String) -> Result<StatusCode, Refusal> {
    let token = token_of(&headers)?.ok_or(Refusal::missing())?;
    document.write(token, body)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn read(State(document): State<Document>, headers: HeaderMap) -> Result<String, Refusal> {
    Ok(match token_of(&headers)? {
        Some(token) => document.read(token)?,
        None => document.peek(),
    })
}

/// The token of a request, if it has one. Two of them are as bad as one that is no number.
fn token_of(headers: &HeaderMap) -> Result<Option<Token>, Refusal> {
    let mut values = headers.get_all(FENCING_TOKEN).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().ok().and_then(parse).map(Some).ok_or(Refusal::bad()),
        (Some(_), Some(_)) => Err(Refusal::bad()),
    }
}

/// Digits only: `u64::from_str` also takes a plus sign.
fn parse(text: &str) -> Option<Token> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).and_then(Token::new)
}

/// What is answered in place of what was asked for.
pub struct Refusal {
    status: StatusCode,
    body: Value,
}

impl Refusal {
    fn missing() -> Self {
        let message = "a write needs the fencing token of its lock in the header Fencing-Token";
        Self { status: StatusCode::BAD_REQUEST, body: json!({"error": "missing_token", "message": message}) }
    }

    fn bad() -> Self {
        let message = "the header Fencing-Token is there once, and a whole number from 1 to 2^53 - 1";
        Self { status: StatusCode::BAD_REQUEST, body: json!({"error": "bad_token", "message": message}) }
    }
}

/// 412: the condition that came in a header does not hold. Sending the same again is of no use, which 409 leaves open.
impl From<StaleToken> for Refusal {
    fn from(stale: StaleToken) -> Self {
        let (token, highest) = (stale.token.get(), stale.highest.get());
        let body = json!({"error": "stale_token", "message": stale.to_string(), "token": token, "highest": highest});
        Self { status: StatusCode::PRECONDITION_FAILED, body }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "application/json")], format!("{}\n", self.body)).into_response()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(address) = std::env::args().nth(1).and_then(|text| text.parse::<SocketAddr>().ok()) else {
        eprintln!("usage: fenced_http ADDRESS:PORT");
        return ExitCode::from(64);
    };
    match serve(address).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fenced_http: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app()).await
}
