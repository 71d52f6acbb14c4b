//! The client commands against a proxy: outcomes, formats, exit codes, and where a lock id may come from.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::*;
use crate::{CONFLICT, DONE, TEMPORARY, UNAVAILABLE, USAGE, failed, fields, objects};

/// The one object of an answer, with its exit code checked.
#[track_caller]
fn answer(proxy: &Proxy, args: &[&str], code: i32) -> Value {
    let ran = run(proxy, &[args, &["-o", "json"]].concat());
    assert_eq!(ran.code, code, "{args:?}: {}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.stderr, "", "an answer is no error");
    let mut objects = objects(&ran);
    assert_eq!(objects.len(), 1, "{}", ran.stdout);
    objects.remove(0)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[tokio::test]
async fn every_outcome_has_its_fields_and_its_code() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let acquire = ["acquire", "orders/42", "--ttl", "2m", "--owner", "ann"];

    let granted = answer(&proxy, &acquire, DONE);
    assert_eq!(fields(&granted), ["outcome", "name", "lock_id", "fencing_token", "validity_ms", "served_for_ms"]);
    assert_eq!((&granted["outcome"], &granted["name"]), (&json!("granted"), &json!("orders/42")));
    assert!(granted["fencing_token"].as_u64().unwrap() > 0);
    let validity = granted["validity_ms"].as_u64().unwrap();
    assert!(validity > 60_000 && validity <= 119_758, "{validity}");
    let lock_id = text(&granted["lock_id"]);

    let contended = answer(&proxy, &acquire, CONFLICT);
    assert_eq!(fields(&contended), ["outcome", "name", "owner", "retry_after_ms", "place_in_line"]);
    assert_eq!((&contended["outcome"], &contended["owner"]), (&json!("contended"), &json!("ann")));
    assert!(contended["retry_after_ms"].as_u64().unwrap() > 0);

    until("the lock on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3).then_some(()) }).await;
    let held = answer(&proxy, &["get", "orders/42"], DONE);
    assert_eq!(fields(&held), ["outcome", "name", "owner", "time_left_ms", "fencing_token", "waiters", "votes"]);
    assert_eq!(held["fencing_token"], granted["fencing_token"]);
    assert_eq!((&held["outcome"], &held["owner"]), (&json!("held"), &json!("ann")));
    let votes = held["votes"].as_array().unwrap();
    for (vote, node) in votes.iter().zip(&cluster.nodes) {
        assert_eq!(fields(vote), ["node", "state", "owner", "time_left_ms"]);
        assert_eq!((&vote["node"], &vote["state"]), (&json!(node.address()), &json!("holder")));
    }
    assert_eq!(votes.len(), 3);

    let renewed = answer(&proxy, &["renew", lock_id, "--ttl", "4m"], DONE);
    assert_eq!(fields(&renewed), ["outcome", "validity_ms", "served_for_ms"]);
    assert_eq!(renewed["outcome"], "renewed");
    assert!(renewed["validity_ms"].as_u64().unwrap() > 120_000);

    let released = answer(&proxy, &["release", lock_id], DONE);
    assert_eq!(released, json!({ "outcome": "released" }));
    assert_eq!(answer(&proxy, &["release", lock_id], CONFLICT), json!({ "outcome": "not_held" }));
    let lost = answer(&proxy, &["renew", lock_id], CONFLICT);
    assert_eq!(fields(&lost), ["outcome", "validity_ms", "served_for_ms"]);
    assert_eq!((&lost["outcome"], &lost["validity_ms"]), (&json!("lost"), &json!(0)));

    cluster.no_key_left().await;
    let free = answer(&proxy, &["get", "orders/42"], DONE);
    assert_eq!(fields(&free), ["outcome", "name", "waiters", "votes"]);
    assert_eq!((&free["outcome"], &free["votes"][0]["state"]), (&json!("free"), &json!("free")));

    cluster.fence.kill();
    let without = answer(&proxy, &["acquire", "orders/43", "--best-effort-token"], DONE);
    assert_eq!(fields(&without), ["outcome", "name", "lock_id", "no_token", "validity_ms", "served_for_ms"]);
    assert_eq!(fields(&without["no_token"]), ["reason"]);
}

#[tokio::test]
async fn what_people_read_says_the_same() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let granted = run(&proxy, &["acquire", "orders/42", "--ttl", "2m"]);
    assert_eq!(granted.code, DONE, "{}", granted.stderr);
    let lock_id = granted.stdout.split_whitespace().find(|word| word.starts_with("rl1_")).expect("a lock id").to_owned();
    says(&granted.stdout, &["granted", "orders/42", "token"]);

    let contended = run(&proxy, &["acquire", "orders/42"]);
    assert_eq!(contended.code, CONFLICT);
    // The default label is user@host:pid.
    says(&contended.stdout, &["contended", "orders/42", "@", ":"]);
    let got = run(&proxy, &["get", "orders/42"]);
    says(&got.stdout, &["held", "orders/42", "@", &cluster.nodes[0].address()]);
    assert!(!got.stdout.contains(&lock_id[4..]), "{}", got.stdout);
    let released = run(&proxy, &["release", &lock_id]);
    assert_eq!((released.code, released.stdout.trim()), (DONE, "released"));
    let again = run(&proxy, &["release", &lock_id]);
    assert_eq!(again.code, CONFLICT);
    says(&again.stdout, &["not held"]);
}

#[tokio::test]
async fn a_lock_id_comes_from_the_argument_the_environment_or_standard_input() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let take = || text(&answer(&proxy, &["acquire", "orders/42", "--ttl", "2m"], DONE)["lock_id"]).to_owned();
    let piped = |args: &[&str], input: &str| -> Ran {
        let mut command = redlockd();
        command.args(args).args(["--server", &proxy.url()]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    };
    let with_variable = |args: &[&str], lock_id: &str| -> Ran {
        redlockd().args(args).args(["--server", &proxy.url()]).env("REDLOCK_LOCK_ID", lock_id).output().unwrap().into()
    };

    let lock_id = take();
    assert_eq!(run(&proxy, &["renew", &lock_id]).code, DONE);
    assert_eq!(with_variable(&["renew", "--ttl", "1m"], &lock_id).code, DONE);
    assert_eq!(piped(&["renew", "-"], &format!("{lock_id}\n")).code, DONE);
    assert_eq!(run(&proxy, &["release", &lock_id]).code, DONE);
    let lock_id = take();
    assert_eq!(with_variable(&["release"], &lock_id).code, DONE);
    let lock_id = take();
    assert_eq!(piped(&["release", "-"], &format!("{lock_id}\n")).code, DONE);
    cluster.no_key_left().await;

    // The argument goes before the variable.
    let (lock_id, stale) = (take(), lock_id);
    assert_eq!(with_variable(&["release", &lock_id], &stale).code, DONE);
    for command in ["release", "renew"] {
        failed(&run(&proxy, &[command]), USAGE, &["lock id", "REDLOCK_LOCK_ID", "-"]);
        failed(&piped(&[command, "-"], ""), USAGE, &["lock_id", "empty"]);
        // It shows in no message, whatever is wrong with it.
        let garbled = format!("{lock_id}x");
        let ran = run(&proxy, &[command, &garbled]);
        failed(&ran, USAGE, &["INVALID_ARGUMENT", "lock_id", "cut or changed"]);
        assert!(!ran.stderr.contains(&lock_id[4..]), "{}", ran.stderr);
    }
    let help = redlockd().args(["release", "--help"]).env("REDLOCK_LOCK_ID", &lock_id).output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(&lock_id), "the help shows the variable's value");
}

#[tokio::test]
async fn a_wrong_command_line_or_value_is_64() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let cases: [(&[&str], &[&str]); 9] = [
        (&["acquire", "orders/42", "--frobnicate"], &["--frobnicate"]),
        (&["frobnicate"], &["frobnicate"]),
        (&["acquire"], &["NAME"]),
        (&["acquire", "orders/42", "--ttl", "soon"], &["soon", "--ttl"]),
        (&["acquire", "orders/42", "-o", "xml"], &["xml", "json"]),
        (&["acquire", ""], &["INVALID_ARGUMENT", "name", "empty"]),
        (&["acquire", "orders/42", "--ttl", "9ms"], &["INVALID_ARGUMENT", "ttl", "9ms", "10 ms"]),
        (&["acquire", "orders/42", "--owner", "a;b"], &["INVALID_ARGUMENT", "owner", "a;b"]),
        (&["get", "redlockd:x"], &["INVALID_ARGUMENT", "name", "redlockd:x"]),
    ];
    for (args, facts) in cases {
        failed(&run(&proxy, args), USAGE, facts);
        failed(&run(&proxy, &[args, &["-o", "json"]].concat()), USAGE, &[]);
    }
    let nothing: Ran = redlockd().output().unwrap().into();
    failed(&nothing, USAGE, &["acquire", "serve"]);
    let bad_server: Ran = redlockd().args(["get", "x", "--server", "http://"]).output().unwrap().into();
    failed(&bad_server, USAGE, &["--server", "http://127.0.0.1:50051"]);
    for asked in ["--help", "--version"] {
        let ran: Ran = redlockd().arg(asked).output().unwrap().into();
        assert_eq!((ran.code, ran.stderr.as_str()), (DONE, ""), "{asked}");
        says(&ran.stdout, &["redlockd"]);
    }
}

#[tokio::test]
async fn no_server_and_no_quorum_are_69() {
    let server = format!("127.0.0.1:{}", free_port());
    for args in [
        &["acquire", "orders/42"][..],
        &["get", "orders/42"],
        &["list"],
        &["watch"],
        &["nodes"],
        &["release", "x"],
        &["renew", "x"],
    ] {
        let ran: Ran = redlockd().args(args).args(["--server", &server]).output().unwrap().into();
        failed(&ran, UNAVAILABLE, &[&server, "refused", "redlockd dev", "--server"]);
        // Also by its variable.
        let ran: Ran = redlockd().args(args).env("REDLOCKD_SERVER", format!("http://{server}")).output().unwrap().into();
        failed(&ran, UNAVAILABLE, &[&server]);
    }

    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    // One that answers is enough.
    let both = format!("{server},{}", proxy.url());
    let ran: Ran = redlockd().args(["get", "orders/42", "--server", &both]).output().unwrap().into();
    assert_eq!(ran.code, DONE, "{}", ran.stderr);
    cluster.nodes[0].kill();
    cluster.nodes[2].kill();
    let ran = run(&proxy, &["acquire", "orders/42", "-o", "json"]);
    failed(&ran, UNAVAILABLE, &["UNAVAILABLE", "2 of 3", &cluster.nodes[0].address(), &cluster.nodes[2].address()]);
}

#[tokio::test]
async fn an_overloaded_proxy_is_75() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &["--limits-max-waiters-per-name", "1"]).await;
    let mut client = proxy.client().await;
    granted(&mut client, redlockd::proto::AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    let mut waiting = redlockd();
    waiting.args(["acquire", "orders/42", "--wait", "1h", "--server", &proxy.url()]);
    let _waiting = Process::spawn(waiting.stdout(Stdio::null()).stderr(Stdio::null()));
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    let ran = run(&proxy, &["acquire", "orders/42", "--wait", "1h"]);
    failed(&ran, TEMPORARY, &["RESOURCE_EXHAUSTED", "max_waiters_per_name"]);
    assert_eq!(answer(&proxy, &["acquire", "orders/42"], CONFLICT)["place_in_line"], 1);
    assert_eq!(answer(&proxy, &["get", "orders/42"], DONE)["waiters"], 1);
}

#[tokio::test]
async fn acquire_waits_for_the_lock() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let first = answer(&proxy, &["acquire", "orders/42", "--ttl", "4m"], DONE);
    let mut second = redlockd();
    second.args(["acquire", "orders/42", "-w", "4m", "-o", "json", "--server", &proxy.url()]).stdout(Stdio::piped());
    let second = second.spawn().unwrap();
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    assert_eq!(run(&proxy, &["release", text(&first["lock_id"])]).code, DONE);
    let second = tokio::task::spawn_blocking(|| second.wait_with_output().unwrap()).await.unwrap();
    let second: Ran = second.into();
    assert_eq!(second.code, DONE, "{}", second.stderr);
    let second = &objects(&second)[0];
    assert_eq!(second["outcome"], "granted");
    assert!(second["fencing_token"].as_u64() > first["fencing_token"].as_u64());

    let tried = answer(&proxy, &["acquire", "orders/42", "--wait", "300ms"], CONFLICT);
    assert_eq!(tried["outcome"], "contended");
}

#[tokio::test]
async fn nodes_has_a_line_for_each_server() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    cluster.nodes[1].kill();
    until("a dead node", || async { proxy.nodes().await.nodes[1].detail.contains("refused").then_some(()) }).await;

    let ran = run(&proxy, &["nodes", "-o", "json"]);
    assert_eq!(ran.code, DONE, "{}", ran.stderr);
    let lines = objects(&ran);
    let servers: Vec<&Redis> = cluster.nodes.iter().chain([&cluster.fence]).collect();
    assert_eq!(lines.len(), servers.len());
    for (line, server) in lines.iter().zip(&servers) {
        let names = [
            "node",
            "role",
            "state",
            "detail",
            "version",
            "run_id",
            "uptime_ms",
            "round_trip_ms",
            "queued",
            "in_flight",
            "restarts",
            "quarantine_left_ms",
            "clock_offset_ms",
            "clock_drift_ratio",
            "votes_lost",
        ];
        assert_eq!(fields(line), names);
        assert_eq!(text(&line["node"]), server.address());
        says(text(&line["version"]), &["."]);
    }
    let column = |name: &str| lines.iter().map(|line| text(&line[name])).collect::<Vec<_>>();
    assert_eq!(column("role"), ["lock", "lock", "lock", "fence"]);
    assert_eq!(column("state"), ["up", "down", "up", "up"]);
    says(text(&lines[1]["detail"]), &["refused"]);

    let table = run(&proxy, &["nodes"]).stdout;
    for server in servers {
        assert!(table.lines().any(|line| line.contains(&server.address())), "{table}");
    }
    says(&table, &["down", "refused", "2 nodes can vote", "2 are a quorum"]);
}

/// Reads what a command prints while it runs.
fn lines_of(watch: &mut Process) -> std::io::Lines<std::io::BufReader<std::process::ChildStdout>> {
    std::io::BufRead::lines(std::io::BufReader::new(watch.stdout()))
}

#[tokio::test]
async fn what_becomes_of_locks_is_shown_as_it_happens() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let watch = |args: &[&str]| {
        let server = ["--server", &proxy.url()].map(str::to_owned);
        Process::spawn(redlockd().arg("watch").args(args).args(server).stdin(Stdio::null()).stdout(Stdio::piped()))
    };
    let (mut as_text, mut as_json) = (watch(&["orders/42"]), watch(&["--prefix", "orders/", "-o", "json"]));
    let (mut text_lines, mut json_lines) = (lines_of(&mut as_text), lines_of(&mut as_json));
    let mut next = || (text_lines.next().unwrap().unwrap(), json_lines.next().unwrap().unwrap());
    let json = |line: &str| serde_json::from_str::<Value>(line).unwrap();

    let (text, object) = next();
    assert_eq!((&*text, json(&object)), ("complete: nothing is missing from here on", json!({"kind": "complete"})));
    let granted = answer(&proxy, &["acquire", "orders/42", "--ttl", "1m", "--owner", "ann"], DONE);
    let (text, object) = next();
    assert_eq!(text, "granted: orders/42 to ann for 1m");
    assert_eq!(json(&object), json!({"kind": "granted", "name": "orders/42", "owner": "ann", "ttl_ms": 60_000}));
    answer(&proxy, &["release", granted["lock_id"].as_str().unwrap()], DONE);
    let (text, object) = next();
    assert_eq!((&*text, json(&object)), ("released: orders/42", json!({"kind": "released", "name": "orders/42"})));

    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(as_text.ended().await.code(), Some(UNAVAILABLE));
    failed(&run(&proxy, &["watch", "a", "--prefix", "b"]), USAGE, &["--prefix"]);
}
