//! `redlockd run`: what becomes of the command, and that nothing of it is left when the lock can be somebody else's.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::proto::AcquireRequest;

use crate::support::*;
use crate::{CONFLICT, DONE, TEMPORARY, UNAVAILABLE, USAGE, failed};

/// `redlockd run FLAGS orders/42 -- COMMAND` at these proxies.
pub fn under_lock(proxies: &[&Proxy], flags: &[&str], command: &[&str]) -> Command {
    let servers: Vec<String> = proxies.iter().map(|proxy| proxy.url()).collect();
    // Whoever runs the tests in the background has some signals ignored, which would stay so.
    let (program, mut run) = (redlockd(), Command::new("env"));
    for (name, _) in program.get_envs() {
        run.env_remove(name);
    }
    run.arg("--default-signal")
        .arg(program.get_program())
        .arg("run")
        .args(flags)
        .args(["--server", &servers.join(","), "orders/42", "--"])
        .args(command)
        .stdin(Stdio::null());
    run
}

fn ran(proxy: &Proxy, flags: &[&str], command: &[&str]) -> Ran {
    under_lock(&[proxy], flags, command).output().unwrap().into()
}

/// Running beside the test.
fn started(proxies: &[&Proxy], flags: &[&str], command: &[&str]) -> Process {
    Process::spawn(under_lock(proxies, flags, command).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// Waits for a file, and for a line in it.
pub async fn line_in(path: &Path) -> String {
    until("a line in a file", || async {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_once('\n').map(|(line, _)| line.to_owned())
    })
    .await
}

/// Whether a process runs: one that nobody has reaped does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn no_longer_runs(pid: &str) {
    until("a process to end", || async { (!runs(pid)).then_some(()) }).await;
}

/// A script that writes its process id into `$1`, does not end when it is asked to, and has a child that does not either.
const STUBBORN: &str = r#"trap "" TERM; sh -c 'trap "" TERM; echo $$ > "$1.child"; while :; do sleep 0.05; done' x "$1" & echo $$ > "$1"; while :; do sleep 0.05; done"#;

#[tokio::test]
async fn the_exit_code_is_that_of_the_command() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["no-such-program-anywhere"], 127),
        (&[plain.to_str().unwrap()], 126),
    ];
    for (command, code) in cases {
        let ran = ran(&proxy, &[], command);
        assert_eq!(ran.code, code, "{command:?}: {}", ran.stderr);
        assert_eq!((ran.stdout.as_str(), ran.stderr.is_empty()), ("", !(126..128).contains(&code)), "{}", ran.stderr);
    }
    // Each of them found the lock free: it was released.
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_wrong_command_line_is_64_and_no_proxy_is_69() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--ttl", "9ms"], &["ttl", "10ms"]),
        (&["--grace", "9s"], &["--grace 9s", "4s 800ms"]),
        (&["-n", "-w", "1s"], &["--wait"]),
        (&["--on-lost", "NONE"], &["NONE", "TERM"]),
        (&["--owner", "a;b"], &["INVALID_ARGUMENT", "owner", "a;b"]),
    ];
    for (flags, facts) in cases {
        failed(&ran(&proxy, flags, &["true"]), USAGE, facts);
    }
    failed(&redlockd().args(["run", "orders/42"]).output().unwrap().into(), USAGE, &["CMD"]);
    let nobody = format!("127.0.0.1:{}", free_port());
    let away =
        |server: &str| -> Ran { redlockd().args(["run", "x", "--server", server, "--", "true"]).output().unwrap().into() };
    failed(&away(&nobody), UNAVAILABLE, &[&nobody, "refused", "redlockd dev", "--server"]);
    failed(&away("https://localhost"), USAGE, &["--server", "https://localhost", "http"]);
    // Any of the proxies will do.
    let both = format!("{nobody},{}", proxy.url());
    assert_eq!(away(&both).code, DONE);
}

#[tokio::test]
async fn the_command_has_its_lease_in_its_environment_and_our_standard_input() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let script = r#"cat; echo "$REDLOCK_NAME $REDLOCK_FENCING_TOKEN $REDLOCK_LOCK_ID""#;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let mut command = under_lock(&[&proxy], &[], &["sh", "-c", script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!(ran.code, DONE, "{}", ran.stderr);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        let words: Vec<&str> = lines[1].split(' ').collect();
        assert_eq!((lines[0], words[0]), ("hello", "orders/42"));
        tokens.push(words[1].parse::<u64>().unwrap());
        let mut client = proxy.client().await;
        assert!(!is_held(&mut client, words[2]).await, "released when the command has ended");
    }
    assert!(tokens[0] > 0 && tokens[1] > tokens[0], "{tokens:?}");
}

#[tokio::test]
async fn a_lock_that_is_held_is_tried_or_waited_for() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let sign = directory.path().join("sign");
    let touch = ["touch", sign.to_str().unwrap()];
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), owner: "ann".into(), ..want("orders/42") }).await;
    for (flags, code) in [(&["-n"][..], CONFLICT), (&["--try", "-E", "9"], 9), (&["-w", "300ms", "-E", "0"], 0)] {
        let ran = ran(&proxy, flags, &touch);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
        says(&ran.stderr, &["orders/42", "ann"]);
    }
    assert!(!sign.exists(), "the command ran without the lock");

    let mut waiting = started(&[&proxy], &[], &touch);
    until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
    assert!(!sign.exists() && waiting.has_ended().is_none());
    release(&mut client, &held.lock_id).await;
    assert_eq!(waiting.ended().await.code(), Some(DONE));
    assert!(sign.exists());
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_signal_while_it_waits_leaves_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut waiting = started(&[&proxy], &[], &["true"]);
        until("the waiter", || async { (proxy.metric("redlock_waiters").await == 1.0).then_some(()) }).await;
        waiting.signal(signal);
        assert_eq!(waiting.ended().await.code(), Some(128 + signal as i32));
        until("no waiter", || async { (proxy.metric("redlock_waiters").await == 0.0).then_some(()) }).await;
    }
    release(&mut client, &held.lock_id).await;
    cluster.no_key_left().await;
}

#[tokio::test]
async fn signals_go_to_the_command() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    for name in ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"] {
        let ready = directory.path().join(name);
        let script = format!("trap 'exit 5' {name}; echo ready > $1; while :; do sleep 0.02; done");
        let mut process = started(&[&proxy], &[], &["sh", "-c", &script, "x", ready.to_str().unwrap()]);
        line_in(&ready).await;
        process.signal(format!("SIG{name}").parse().unwrap());
        assert_eq!(process.ended().await.code(), Some(5), "{name}");
    }
    let ready = directory.path().join("plain");
    let mut process = started(&[&proxy], &[], &["sh", "-c", "echo ready > $1; exec sleep 600", "x", ready.to_str().unwrap()]);
    line_in(&ready).await;
    process.signal(Signal::SIGINT);
    assert_eq!(process.ended().await.code(), Some(128 + 2));
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_lost_lease_ends_the_command_with_all_that_it_started() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let command = ["sh", "-c", STUBBORN, "x", file.to_str().unwrap()];
    let flags = ["--ttl", "3s", "--grace", "300ms"];
    let process = under_lock(&[&proxy], &flags, &command).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let pids = [line_in(&file).await, line_in(&directory.path().join("pid.child")).await];
    assert!(pids.iter().all(|pid| runs(pid)));
    cluster.nodes.iter().for_each(|node| assert_eq!(node.cli(&["DEL", "lock:orders/42"]), "1"));
    let ran: Ran = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap().into();
    assert_eq!(ran.code, TEMPORARY, "{}", ran.stderr);
    says(&ran.stderr, &["orders/42", "lost"]);
    assert!(pids.iter().all(|pid| !runs(pid)), "{pids:?}");
}

#[tokio::test]
async fn a_command_whose_lease_is_lost_is_asked_first() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let script = "trap 'echo asked >> $1.end; exit 0' USR1; echo ready > $1; while :; do sleep 0.02; done";
    let command = ["sh", "-c", script, "x", file.to_str().unwrap()];
    let mut process = started(&[&proxy], &["--max-hold", "8s", "--grace", "4s", "--on-lost", "usr1"], &command);
    line_in(&file).await;
    assert_eq!(process.ended().await.code(), Some(TEMPORARY), "whatever its own code is");
    assert_eq!(line_in(&directory.path().join("file.end")).await, "asked");
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_before_the_lock_is_released() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = r#"sh -c 'trap "" TERM; echo $$ > "$1"; while :; do sleep 0.05; done' x "$1" & while [ ! -s "$1" ]; do sleep 0.01; done; exit 3"#;
    let ran = ran(&proxy, &["--grace", "200ms"], &["sh", "-c", script, "x", file.to_str().unwrap()]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(!runs(&line_in(&file).await));
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_hold_has_its_longest_time() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    for (flags, least_ms) in [(["--max-hold", "2s", "--grace", "100ms"], 1_000), (["--no-renew", "--ttl", "2s", "-n"], 500)] {
        let started = Instant::now();
        let ran = ran(&proxy, &flags, &["sleep", "600"]);
        assert_eq!(ran.code, TEMPORARY, "{}", ran.stderr);
        assert!(started.elapsed() > Duration::from_millis(least_ms), "{flags:?}: {:?}", started.elapsed());
        says(&ran.stderr, &["orders/42", "lost", "max_hold"]);
        cluster.no_key_left().await;
    }
}

#[tokio::test]
async fn the_command_dies_with_run() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = "echo $$ > $1; exec sleep 600";
    let mut process = started(&[&proxy], &[], &["sh", "-c", script, "x", file.to_str().unwrap()]);
    let pid = line_in(&file).await;
    assert!(runs(&pid));
    process.kill();
    no_longer_runs(&pid).await;
}

/// Seconds since the machine was started, in hundredths: for scripts and tests alike.
fn uptime() -> f64 {
    std::fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_proxy_that_stops_leaves_no_command_behind_when_the_lock_is_free() {
    let cluster = Cluster::start(3);
    let (proxy, other) = (Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await);
    let directory = tempfile::tempdir().unwrap();
    let script = r#"trap "" TERM; while :; do cut -d' ' -f1 /proc/uptime >> "$1"; done"#;
    let trials: usize = std::env::var("TRIALS").ok().map_or(5, |trials| trials.parse().unwrap());
    for trial in 0..trials {
        let file = directory.path().join(format!("{trial}"));
        let command = ["sh", "-c", script, "x", file.to_str().unwrap()];
        let mut process = started(&[&proxy], &["--ttl", "2s", "--grace", "200ms"], &command);
        line_in(&file).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1_500))).await;
        assert!(process.has_ended().is_none(), "the lease is renewed");
        proxy.process.signal(Signal::SIGSTOP);
        let mut client = other.client().await;
        let next = granted(&mut client, AcquireRequest { wait: seconds(60), ..want("orders/42") }).await;
        // The attempt that took it began no later than this.
        let spent = Duration::from_secs(10).saturating_sub(std_duration(next.validity));
        let taken = uptime() - spent.as_secs_f64();
        let text = std::fs::read_to_string(&file).unwrap();
        let last: f64 = text.lines().last().unwrap().parse().unwrap();
        assert!(last < taken + 0.02, "trial {trial}: alive at {last}, taken at {taken}");
        assert_eq!(process.ended().await.code(), Some(TEMPORARY));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it wrote on after the lock was taken");
        println!("trial {trial}: the command was gone {:.2} s before the lock was somebody else's", taken - last);
        proxy.process.signal(Signal::SIGCONT);
        release(&mut client, &next.lock_id).await;
        cluster.no_key_left().await;
    }
}

#[tokio::test]
async fn a_command_outlives_its_proxy_if_there_is_another() {
    let cluster = Cluster::start(3);
    let (mut first, second) = (Proxy::start_whole(&cluster, &[]).await, Proxy::start_whole(&cluster, &[]).await);
    let directory = tempfile::tempdir().unwrap();
    let [file, end] = ["ready", "end"].map(|name| directory.path().join(name));
    let script = r#"echo ready > "$1"; while [ ! -e "$2" ]; do sleep 0.02; done"#;
    let command = ["sh", "-c", script, "x", file.to_str().unwrap(), end.to_str().unwrap()];
    let mut process = started(&[&first, &second], &[], &command);
    line_in(&file).await;
    first.process.kill();
    until("the lease at the other proxy", || async { (second.metric("redlock_session_leases").await == 1.0).then_some(()) })
        .await;
    assert!(process.has_ended().is_none());
    std::fs::write(&end, "").unwrap();
    assert_eq!(process.ended().await.code(), Some(DONE));
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_command_that_ignores_a_hangup_is_not_hung_up() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let run = under_lock(&[&proxy], &[], &["sh", "-c", "echo $$ > $1; exec sleep 600", "x", file.to_str().unwrap()]);
    let mut nohup = Command::new("nohup");
    // Without what sets the signals back.
    nohup.args(run.get_args().skip(1)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process::spawn(&mut nohup);
    let pid = line_in(&file).await;
    process.signal(Signal::SIGHUP);
    process.signal(Signal::SIGUSR1);
    assert_eq!(process.ended().await.code(), Some(128 + Signal::SIGUSR1 as i32));
    assert!(kill(Pid::from_raw(pid.parse().unwrap()), None).is_err());
}
