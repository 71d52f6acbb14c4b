//! `redlockd dev`: real servers that live exactly as long as it does.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;
use crate::{DONE, UNAVAILABLE, USAGE, failed, objects};

/// A server as `dev` prints it.
#[derive(Debug)]
struct Listed {
    fence: bool,
    address: String,
    pid: u32,
}

impl Listed {
    fn cli(&self, args: &[&str]) -> String {
        let (host, port) = self.address.split_once(':').unwrap();
        let output = Command::new("redis-cli").args(["-h", host, "-p", port]).args(args).output().unwrap();
        assert!(output.status.success(), "{self:?} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A running `redlockd dev` with a directory for temporary files of its own.
struct Dev {
    process: Process,
    servers: Vec<Listed>,
    url: String,
    temporary: tempfile::TempDir,
    // Its output stays open as long as it runs.
    _lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

/// No flag takes a fixed port, and temporary files go to `temporary`.
fn dev(temporary: &Path) -> Command {
    let mut command = redlockd();
    command.arg("dev").env("TMPDIR", temporary).stdin(Stdio::null());
    command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    command
}

impl Dev {
    fn start(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut process = Process::spawn(dev(temporary.path()).args(args).stdout(Stdio::piped()).stderr(Stdio::null()));
        let mut lines = BufReader::new(process.stdout()).lines();
        let (mut servers, mut url) = (Vec::new(), None);
        while url.is_none() {
            let line = lines.next().expect("the line with what to type next").unwrap();
            match line.split(' ').collect::<Vec<_>>()[..] {
                [role @ ("node" | "fence"), address, "pid", pid] => {
                    servers.push(Listed { fence: role == "fence", address: address.to_owned(), pid: pid.parse().unwrap() });
                }
                // What to type next names the proxy, as its port was not the default one.
                ["try:", "redlockd", .., address] => url = Some(address.to_owned()),
                _ => says(&line, &["listening"]),
            }
        }
        Self { process, servers, url: url.unwrap(), temporary, _lines: lines }
    }

    fn run(&self, args: &[&str]) -> Ran {
        redlockd().args(args).args(["--server", &self.url, "-o", "json"]).output().unwrap().into()
    }

    fn nodes(&self) -> Vec<&Listed> {
        self.servers.iter().filter(|server| !server.fence).collect()
    }

    /// Waits until nothing of it is left: no server, no helper, no file.
    async fn left_nothing_behind(&self) {
        until("the servers to be gone", || async { self.servers.iter().all(|server| !is_alive(server.pid)).then_some(()) })
            .await;
        nothing_in(self.temporary.path()).await;
    }
}

/// Waits until the directory is empty and no process names it.
async fn nothing_in(temporary: &Path) {
    until("the temporary directory to be gone", || async {
        std::fs::read_dir(temporary).unwrap().next().is_none().then_some(())
    })
    .await;
    until("the helpers to be gone", || async { processes_naming(temporary).is_empty().then_some(()) }).await;
}

/// A process that has ended and waits to be reaped is not alive.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn processes_naming(path: &Path) -> Vec<u32> {
    let path = path.to_str().unwrap();
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let names = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(path))
    };
    pids.filter(names).collect()
}

#[tokio::test]
async fn it_starts_real_servers_and_a_proxy_in_front_of_them() {
    let dev = Dev::start(&["--nodes", "3"]);
    assert_eq!(dev.servers.iter().map(|server| server.fence).collect::<Vec<_>>(), [false, false, false, true]);
    let mut identities = BTreeSet::new();
    for server in &dev.servers {
        let info = server.cli(&["INFO", "server"]);
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        assert_eq!(field("process_id:"), server.pid.to_string(), "{info}");
        identities.insert(field("run_id:"));
        assert!(server.address.starts_with("127.0.0.1:"), "{server:?}");
        says(&server.cli(&["CONFIG", "GET", "maxmemory-policy"]), &["noeviction"]);
    }
    assert_eq!(identities.len(), 4);

    let is_up = |ran: &Ran| objects(ran).iter().all(|server| server["state"] == "up");
    until("every server to be up", || async { is_up(&dev.run(&["nodes"])).then_some(()) }).await;
    let granted = dev.run(&["acquire", "orders/42", "--ttl", "2m"]);
    assert_eq!(granted.code, DONE, "{}", granted.stderr);
    let holding = || dev.nodes().iter().filter(|node| node.cli(&["EXISTS", "lock:orders/42"]).trim() == "1").count();
    until("the lock on every node", || async { (holding() == 3).then_some(()) }).await;
    let lines = objects(&dev.run(&["nodes"]));
    let seen: Vec<&str> = lines.iter().map(|line| line["node"].as_str().unwrap()).collect();
    assert_eq!(seen, dev.servers.iter().map(|server| server.address.as_str()).collect::<Vec<_>>());
}

#[tokio::test]
async fn five_nodes_are_the_default_and_one_may_die() {
    let mut dev = Dev::start(&[]);
    assert_eq!(dev.nodes().len(), 5);
    let first = dev.run(&["acquire", "orders/42", "--ttl", "2m", "--wait", "1m"]);
    assert_eq!(first.code, DONE, "{}", first.stderr);

    let victim = dev.nodes()[2].pid;
    kill(Pid::from_raw(i32::try_from(victim).unwrap()), Signal::SIGKILL).unwrap();
    until("the dead server to be noticed", || async {
        let state = &objects(&dev.run(&["nodes"]))[2]["state"];
        (state == "down").then_some(())
    })
    .await;
    assert!(!is_alive(victim));
    let second = dev.run(&["acquire", "orders/43", "--wait", "1m"]);
    assert_eq!(second.code, DONE, "{}", second.stderr);
    assert!(objects(&second)[0]["fencing_token"].as_u64() > objects(&first)[0]["fencing_token"].as_u64());
    assert_eq!(dev.process.has_ended(), None, "it survives the death of a server");
    assert_eq!(objects(&dev.run(&["nodes"]))[2]["state"], "down", "it is not started again");
}

#[tokio::test]
async fn killed_hard_it_leaves_nothing_behind() {
    let mut dev = Dev::start(&["--nodes", "3"]);
    assert!(dev.servers.iter().all(|server| is_alive(server.pid)));
    assert!(std::fs::read_dir(dev.temporary.path()).unwrap().next().is_some());
    dev.process.kill();
    dev.left_nothing_behind().await;
}

#[tokio::test]
async fn ended_in_order_it_leaves_nothing_behind() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut dev = Dev::start(&["--nodes", "1"]);
        dev.process.signal(signal);
        assert_eq!(dev.process.ended().await.code(), Some(DONE));
        assert!(dev.servers.iter().all(|server| !is_alive(server.pid)), "the servers end before it does");
        dev.left_nothing_behind().await;
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let temporary = tempfile::tempdir().unwrap();
    let mut command = redlockd();
    command.args(["dev", "--nodes", "1", "--listen", &address, "--metrics-listen", "127.0.0.1:0"]);
    let ran: Ran = command.env("TMPDIR", temporary.path()).output().unwrap().into();
    assert_eq!(ran.code, UNAVAILABLE, "{}", ran.stderr);
    says(&ran.stderr, &[&address, "--listen", "in use"]);
    let pids = ran.stdout.lines().filter_map(|line| line.rsplit_once(" pid ")?.1.parse().ok());
    let pids: Vec<u32> = pids.collect();
    assert_eq!(pids.len(), 2, "{}", ran.stdout);
    assert!(!pids.into_iter().any(is_alive));
    nothing_in(temporary.path()).await;
}

#[tokio::test]
async fn without_a_server_program_it_says_how_to_get_one() {
    let temporary = tempfile::tempdir().unwrap();
    let ran: Ran = dev(temporary.path()).env("PATH", temporary.path()).output().unwrap().into();
    failed(&ran, UNAVAILABLE, &["redis-server", "valkey-server", "PATH", "apt-get install redis-server", "--redis-server"]);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);

    let missing: Ran = dev(temporary.path()).args(["--redis-server", "/nonexistent/server"]).output().unwrap().into();
    failed(&missing, UNAVAILABLE, &["--redis-server", "/nonexistent/server"]);
    // A program that is no server is named too, and does not keep anybody waiting.
    let other: Ran = dev(temporary.path()).args(["--redis-server", "/bin/false"]).output().unwrap().into();
    failed(&other, UNAVAILABLE, &["/bin/false", "does not start"]);
    nothing_in(temporary.path()).await;
}

#[test]
fn a_wrong_flag_starts_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--nodes", "0"], &["--nodes", "0"]),
        (&["--nodes", "10"], &["--nodes", "10"]),
        (&["--nodes-urls", "redis://r1"], &["--nodes-urls"]),
        (&["--threads", "many"], &["threads", "many", "1 to 64"]),
    ];
    for (args, facts) in cases {
        let ran: Ran = dev(temporary.path()).args(args).output().unwrap().into();
        failed(&ran, USAGE, facts);
    }
    assert!(std::fs::read_dir(temporary.path()).unwrap().next().is_none());
}
