//! `redlockd serve`: what is wrong with its configuration is said at once and completely.

use std::net::TcpListener;

use crate::support::*;
use crate::{DONE, UNAVAILABLE, USAGE, failed};

const MINIMAL: [&str; 4] = ["--nodes-urls", "redis://r1,redis://r2,redis://r3", "--fencing-url", "redis://fence"];

fn serve(args: &[&str]) -> Ran {
    redlockd().arg("serve").args(args).output().unwrap().into()
}

#[test]
fn five_errors_are_printed_as_five() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "lsten = \"127.0.0.1:1\"\n[limits]\nmax_ttl = \"9h\"\n").unwrap();
    let path = file.path().display().to_string();
    let args = [&MINIMAL[..], &["--config", &path, "--check-config", "--threads", "many", "--log-format", "xml"]].concat();
    let ran: Ran = redlockd().arg("serve").args(args).env("REDLOCKD_NODES_TIMEOUT", "fast").output().unwrap().into();
    // Each with its key, its value, where it was written, and what is expected.
    let expected: [&[&str]; 5] = [
        &["lsten", &path, "listen"],
        &["limits.max_ttl", "9h", &path, "10ms", "1h"],
        &["threads", "many", "--threads", "1 to 64"],
        &["log.format", "xml", "--log-format", "text or json"],
        &["nodes.timeout", "fast", "REDLOCKD_NODES_TIMEOUT", "250ms"],
    ];
    failed(&ran, USAGE, &["5 errors"]);
    for facts in expected {
        let lines: Vec<&str> = ran.stderr.lines().filter(|line| facts.iter().all(|fact| line.contains(fact))).collect();
        assert_eq!(lines.len(), 1, "one line with {facts:?} in {}", ran.stderr);
    }
    assert_eq!(ran.stderr.lines().count(), 6, "five errors and their number: {}", ran.stderr);

    // Without --check-config it does not start either.
    failed(&serve(&["--threads", "many"]), USAGE, &["threads", "nodes.urls", "fencing.url", "3 errors"]);
}

#[test]
fn a_good_configuration_is_called_good() {
    let ran = serve(&[&MINIMAL[..], &["--check-config"]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (DONE, ""));
    assert!(!ran.stdout.is_empty());
}

#[test]
fn unknown_flags_and_secrets_on_the_command_line_are_64() {
    failed(&serve(&["--nodes-timeuot", "1s"]), USAGE, &["--nodes-timeuot", "--nodes-timeout"]);
    // Arguments show in `ps`.
    failed(&serve(&["--nodes-password", "hush"]), USAGE, &["--nodes-password"]);
    failed(&serve(&["--config", "/nonexistent.toml"]), USAGE, &["/nonexistent.toml"]);
}

#[test]
fn print_config_shows_every_key_with_its_origin_and_no_secret() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text =
        "[nodes]\nurls = [\"redis://ann:hush@r1\", \"redis://r2\"]\npassword = \"hush\"\n[fencing]\nurl = \"redis://f\"\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().display().to_string();
    let mut command = redlockd();
    command.args(["serve", "--print-config", "--config", &path, "--fencing-timeout", "7ms"]);
    let ran: Ran = command.env("REDLOCKD_NODES_TIMEOUT", "77ms").output().unwrap().into();
    assert_eq!((ran.code, ran.stderr.as_str()), (DONE, ""));
    assert!(!ran.stdout.contains("hush"), "{}", ran.stdout);

    let line = |start: &str, facts: &[&str]| {
        let found = ran.stdout.lines().any(|line| line.starts_with(start) && facts.iter().all(|fact| line.contains(fact)));
        assert!(found, "no line {start:?} with {facts:?} in {}", ran.stdout);
    };
    line("listen", &["127.0.0.1:50051", "default"]);
    line("timeout", &["77ms", "environment REDLOCKD_NODES_TIMEOUT"]);
    line("timeout", &["7ms", "flag --fencing-timeout"]);
    line("urls", &["redis://ann:***@r1", "redis://r2", &path]);
    line("password", &["***", &path]);
    for key in redlockd::config::KEYS {
        let name = key.path.rsplit('.').next().unwrap();
        let known = |line: &str| line.trim_start_matches(['#', ' ']).starts_with(&format!("{name} ="));
        assert!(ran.stdout.lines().any(known), "{} is not in {}", key.path, ran.stdout);
    }

    // What it prints can be loaded.
    std::fs::write(file.path(), &ran.stdout).unwrap();
    let again = redlockd().args(["serve", "--check-config", "--config", &path]).output().unwrap();
    assert_eq!(Ran::from(again).code, DONE);
    // A configuration that can not be used is printed all the same, and its errors after it.
    let broken: Ran = redlockd().args(["serve", "--print-config", "--threads", "many"]).output().unwrap().into();
    assert_eq!(broken.code, USAGE);
    says(&broken.stdout, &["many", "listen"]);
    says(&broken.stderr, &["threads", "many"]);
}

#[test]
fn a_port_in_use_names_address_and_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--listen", "--metrics-listen"), ("--metrics-listen", "--listen")] {
        let ran = serve(&[&MINIMAL[..], &[flag, &address, other, "127.0.0.1:0"]].concat());
        failed(&ran, UNAVAILABLE, &[&address, flag, "in use"]);
    }
}

#[tokio::test]
async fn listening_off_loopback_is_warned_about() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &["--listen", "0.0.0.0:0"]).await;
    let warnings = |proxy: &Proxy| -> Vec<String> {
        let log = proxy.log();
        log.lines().filter(|line| line.contains("WARN") && line.contains("authentication")).map(str::to_owned).collect()
    };
    // It has served, so it has said what it had to.
    assert_eq!(warnings(&proxy).len(), 1, "{}", proxy.log());
    says(&warnings(&proxy)[0], &[&proxy.grpc.to_string()]);

    let quiet = Proxy::start_whole(&cluster, &[]).await;
    assert_eq!(warnings(&quiet), Vec::<String>::new());
}
