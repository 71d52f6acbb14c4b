//! `redlockd run` as a job of a shell on a terminal: a command that can not have the terminal does not hold its lock for ever.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::pty::openpty;
use nix::sys::signal::Signal;
use redlockd::proto::AcquireRequest;

use crate::run::{line_in, under_lock};
use crate::support::*;
use crate::{DONE, TEMPORARY};

/// Reads a line from the terminal, and writes it into a file.
const READER: &str = r#"read line && echo "$line" > "$1""#;

/// A shell on a terminal of its own, which runs the reader under a lock.
struct Shell {
    _process: Process,
    keyboard: File,
    directory: tempfile::TempDir,
}

impl Shell {
    /// `script` finds the command in `"$@"`, and a folder for its signs in `$SIGNS`.
    fn start(proxy: &Proxy, flags: &[&str], script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let read = directory.path().join("read");
        let run = under_lock(&[proxy], flags, &["sh", "-c", READER, "x", read.to_str().unwrap()]);
        // The leader of a session, with the terminal as its own.
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "bash", "--norc", "-m", "-c", script, "shell"]).arg(run.get_program()).args(run.get_args());
        shell.env("SIGNS", directory.path());
        let terminal = openpty(None, None).unwrap();
        let [input, output, errors] = [(); 3].map(|()| terminal.slave.try_clone().unwrap());
        shell.stdin(input).stdout(output).stderr(errors);
        Self { _process: Process::spawn(&mut shell), keyboard: terminal.master.into(), directory }
    }

    fn sign(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn says(&self, name: &str) -> i32 {
        line_in(&self.sign(name)).await.parse().unwrap()
    }
}

/// In the background, until the file `go` is there; then in the foreground.
const BACKGROUND: &str = r#"
"$@" &
wait %1
echo $? > "$SIGNS/stopped"
while [ ! -e "$SIGNS/go" ]; do sleep 0.05; done
fg %1
echo $? > "$SIGNS/end""#;

fn touch(path: &Path) {
    std::fs::write(path, "").unwrap();
}

#[tokio::test]
async fn a_job_in_the_background_that_reads_stops_and_goes_on_in_the_foreground() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut shell = Shell::start(&proxy, &["--ttl", "240s"], BACKGROUND);
    assert_eq!(shell.says("stopped").await, 128 + Signal::SIGTTIN as i32, "as a job of one group");
    contended(&mut proxy.client().await, want("orders/42")).await;
    touch(&shell.sign("go"));
    shell.keyboard.write_all(b"hello\n").unwrap();
    assert_eq!(line_in(&shell.sign("read")).await, "hello");
    assert_eq!(shell.says("end").await, DONE);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_job_that_is_stopped_for_longer_than_its_lease_never_goes_on() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut shell = Shell::start(&proxy, &["--ttl", "2s"], BACKGROUND);
    shell.says("stopped").await;
    let request = AcquireRequest { wait: seconds(60), ttl: seconds(240), ..want("orders/42") };
    granted(&mut proxy.client().await, request).await;
    touch(&shell.sign("go"));
    shell.keyboard.write_all(b"hello\n").unwrap();
    assert_eq!(shell.says("end").await, TEMPORARY);
    assert!(!shell.sign("read").exists());
}

#[tokio::test]
async fn a_command_that_nobody_can_give_the_terminal_is_ended() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    // Its shell is gone before it asks for the lock.
    let script = r#"(("$@" < /dev/tty; echo $? > "$SIGNS/end") & ); while :; do sleep 1; done"#;
    let shell = Shell::start(&proxy, &["--ttl", "240s"], script);
    assert_eq!(shell.says("end").await, 128 + Signal::SIGKILL as i32);
    cluster.no_key_left().await;
}

/// Where its output goes to a file, the command has the terminal when it wants it.
#[tokio::test]
async fn a_command_in_the_foreground_can_read_whatever_becomes_of_its_output() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let script = r#""$@" > /dev/null; echo $? > "$SIGNS/end""#;
    let mut shell = Shell::start(&proxy, &["--ttl", "240s"], script);
    shell.keyboard.write_all(b"hello\n").unwrap();
    assert_eq!(line_in(&shell.sign("read")).await, "hello");
    assert_eq!(shell.says("end").await, DONE);
}
