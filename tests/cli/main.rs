//! What people type: the client commands, the configuration, `redlockd dev`.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod client;
mod config;
mod dev;
mod list;
mod run;
mod terminal;

use serde_json::Value;
use support::Ran;

/// Exit codes as they are documented.
const DONE: i32 = 0;
const CONFLICT: i32 = 1;
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const TEMPORARY: i32 = 75;

/// The objects of an answer with `-o json`, one a line.
fn objects(ran: &Ran) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
    ran.stdout.lines().map(parse).collect()
}

/// The fields of an object, in their order.
fn fields(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// A failure: its code, facts on stderr, nothing on stdout.
#[track_caller]
fn failed(ran: &Ran, code: i32, facts: &[&str]) {
    assert_eq!(ran.code, code, "stdout: {}\nstderr: {}", ran.stdout, ran.stderr);
    assert_eq!(ran.stdout, "", "an error goes to stderr");
    support::says(&ran.stderr, facts);
}
