//! Others on the same servers and on the same port: a plain Redlock library, and a gRPC client without our proto files.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;

use redlockd::proto::{AcquireRequest, NodeVoteState, ReleaseOutcome, get_response};
use serde_json::{Value, json};
use support::*;

/// This repository, and the Python with what the tests take from PyPI.
fn python() -> (&'static Path, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/venv/bin/python");
    assert!(
        root.join("target/venv/ready").exists() && python.exists(),
        "target/venv is missing: this test takes libraries from PyPI. `make test` makes it, and so does `make target/venv/ready`"
    );
    (root, python)
}

/// A Python program that answers each line with a line.
struct Script {
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
    errors: tempfile::NamedTempFile,
    _process: Process,
}

impl Script {
    fn start(name: &str, args: &[String]) -> Self {
        let (root, python) = python();
        let errors = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(python);
        command.arg(root.join("tests/interop").join(name)).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command.stderr(errors.reopen().unwrap()));
        let lines = BufReader::new(process.stdout()).lines();
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { input: process.stdin(), answers, errors, _process: process }
    }

    fn ask(&mut self, line: &str) -> String {
        let sent = writeln!(self.input, "{line}");
        let answer = sent.ok().and_then(|()| self.answers.recv_timeout(PATIENCE).ok());
        answer.unwrap_or_else(|| panic!("no answer to {line}: {}", std::fs::read_to_string(self.errors.path()).unwrap()))
    }
}

/// Where pottery keeps its locks.
const POTTERY: &str = "redlock:";

/// Waits until no node holds any key, or every one holds one.
async fn keys_on_every_node(cluster: &Cluster, there: bool) {
    until("every node to have come so far", || async {
        cluster.nodes.iter().all(|node| node.cli(&["KEYS", "redlock:*"]).is_empty() != there).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pottery_and_redlockd_exclude_each_other() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &["--nodes-key-prefix", POTTERY]).await;
    let mut client = proxy.client().await;
    let ports = cluster.nodes.iter().map(|node| node.port.to_string());
    let mut pottery = Script::start("pottery_lock.py", &["orders/42".to_owned()].into_iter().chain(ports).collect::<Vec<_>>());

    // Theirs keeps us out.
    assert_eq!(pottery.ask("acquire"), "granted");
    keys_on_every_node(&cluster, true).await;
    let keys: Vec<String> = cluster.nodes.iter().map(|node| node.cli(&["KEYS", "redlock:*"])).collect();
    assert!(keys.iter().all(|key| key == "redlock:orders/42"), "{keys:?}");
    let refused = contended(&mut client, want("orders/42")).await;
    assert_eq!(refused.owner, "", "its value is its secret, and it has no label");
    assert!(std_duration(refused.retry_after).as_secs() > 60, "{refused:?}");
    let shown = get(&mut client, "orders/42").await;
    assert!(matches!(shown.state, Some(get_response::State::Held(_))), "{shown:?}");
    assert!(shown.votes.iter().all(|vote| vote.state() == NodeVoteState::Holder), "{shown:?}");
    proxy.idle().await;
    assert_eq!(pottery.ask("locked"), "held", "a refused acquire takes nothing away");

    // Released there, it is ours, and keeps them out. pottery returns with a quorum, and what it still does then goes wrong
    // if the lock is used again before.
    assert_eq!(pottery.ask("release"), "released");
    keys_on_every_node(&cluster, false).await;
    let ours = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    keys_on_every_node(&cluster, true).await;
    assert_eq!(pottery.ask("acquire"), "contended");
    assert_eq!(pottery.ask("locked"), "free");
    assert!(is_held(&mut client, &ours.lock_id).await);

    // And back again.
    assert_eq!(release(&mut client, &ours.lock_id).await, ReleaseOutcome::Released);
    keys_on_every_node(&cluster, false).await;
    assert_eq!(pottery.ask("acquire"), "granted");
    keys_on_every_node(&cluster, true).await;
    contended(&mut client, want("orders/42")).await;
    assert_eq!(pottery.ask("release"), "released");
    keys_on_every_node(&cluster, false).await;
}

#[tokio::test]
async fn a_generic_client_takes_and_releases_a_lock_by_reflection() {
    let cluster = Cluster::start(5);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut script = Script::start("reflection_client.py", &[proxy.grpc.to_string()]);
    let mut call = |line: &str| -> Value { serde_json::from_str(&script.ask(line)).unwrap() };

    let services = call("services");
    for service in ["redlock.v1.LockService", "redlock.v1.OperatorService", "grpc.health.v1.Health"] {
        assert!(services.as_array().unwrap().contains(&json!(service)), "{service} is not in {services}");
    }
    assert_eq!(call("grpc.health.v1.Health/Check {}"), json!({ "status": "SERVING" }));

    let acquire = r#"redlock.v1.LockService/Acquire {"name": "orders/42", "ttl": "120s", "owner": "ann"}"#;
    let granted = call(acquire)["granted"].clone();
    let lock_id = granted["lock_id"].as_str().expect("a lock id").to_owned();
    // In JSON a uint64 is a text.
    assert!(granted["fencing_token"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert!(granted["validity"].as_str().unwrap().ends_with('s'));
    assert!(cluster.keys_on(&[0, 1, 2, 3, 4]).len() >= 3);
    let refused = call(acquire);
    assert_eq!(refused["contended"]["owner"], "ann");

    let bad = call(r#"redlock.v1.LockService/Acquire {"name": ""}"#);
    assert_eq!(bad["code"], "INVALID_ARGUMENT");
    says(bad["message"].as_str().unwrap(), &["name", "empty"]);

    let release = format!(r#"redlock.v1.LockService/Release {{"lock_id": "{lock_id}"}}"#);
    assert_eq!(call(&release), json!({ "outcome": "RELEASE_OUTCOME_RELEASED" }));
    assert_eq!(call(&release), json!({ "outcome": "RELEASE_OUTCOME_NOT_HELD" }));
    cluster.no_key_left().await;
    let nodes = call("redlock.v1.OperatorService/ListNodes {}");
    assert_eq!((&nodes["quorum"], nodes["nodes"].as_array().map(Vec::len)), (&json!(3), Some(6)), "{nodes}");
}

#[tokio::test]
async fn the_example_in_python_takes_a_lock_keeps_one_in_a_session_and_leaves_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let (root, python) = python();
    let mut command = tokio::process::Command::new(python);
    command.arg(root.join("examples/python/locks.py")).arg(proxy.url().replace("http://", "")).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("an end").unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{text}{errors}");
    let lines: Vec<&str> = text.lines().collect();
    let token = |line: &str| -> u64 { line.split([' ', ',']).nth(2).unwrap().parse().unwrap() };
    assert!(lines[0].ends_with(", valid") && token(lines[2]) > token(lines[0]), "{text}");
    let rest = ["call: RELEASE_OUTCOME_RELEASED", "session: others find it contended", "session: released True"];
    assert_eq!([lines[1], lines[3], lines[4]], rest);
    cluster.no_key_left().await;
}
