//! A holder is paused over the end of its lease and writes when it wakes up.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use nix::sys::signal::Signal;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{AcquireRequest, Granted};
use tonic::transport::Channel;

use crate::resource::{Answer, Guard, Resource, Resources};
use crate::support::*;

/// The name of the lock.
const LOCK: &str = "orders/42";

/// What begins the lines of the holder, between those of the test harness.
const SAYS: &str = "holder says: ";

/// The first holder: a process of its own, which runs [`holder`] and is told what to do by lines.
struct Holder {
    process: Process,
    lines: Receiver<String>,
}

impl Holder {
    fn start(proxy: &Proxy, resources: &Resources, guard: Guard) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "paused::holder", "--ignored", "--nocapture"]);
        command.env("HOLDER_SERVER", proxy.url()).env("HOLDER_CHECKS", (guard == Guard::Token).to_string());
        command.env("HOLDER_RESOURCES", resources.all().map(|resource| resource.to_string()).join("\n"));
        let mut process = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (said, lines) = channel();
        let output = BufReader::new(process.stdout());
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.filter_map(|line| line.strip_prefix(SAYS).map(str::to_owned)).try_for_each(|line| said.send(line))
        });
        Self { process, lines }
    }

    /// The next line that it says.
    fn said(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the holder says something")
    }

    /// Stops it, wherever it is.
    async fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
        let status = format!("/proc/{}/status", self.process.id());
        until("the holder to stop", || async {
            fs::read_to_string(&status).unwrap().lines().any(|line| line.starts_with("State:\tT")).then_some(())
        })
        .await;
    }

    /// Lets it go on, with its write. What became of that, by resource.
    async fn wake_up(mut self, resources: usize) -> Vec<String> {
        // There before it wakes up.
        self.process.stdin().write_all(b"write\n").unwrap();
        self.process.signal(Signal::SIGCONT);
        let answers = (0..resources).map(|_| self.said()).collect();
        assert!(self.process.ended().await.success());
        answers
    }
}

/// Not a test of its own: the first holder. Does nothing where no test has started it.
#[tokio::test]
#[ignore = "the process that the other tests pause"]
async fn holder() {
    let Ok(server) = env::var("HOLDER_SERVER") else { return };
    let guard = if env::var("HOLDER_CHECKS").unwrap() == "true" { Guard::Token } else { Guard::None };
    let resources = env::var("HOLDER_RESOURCES").unwrap();
    let resources: Vec<Resource> = resources.lines().map(|line| line.parse().unwrap()).collect();
    let grant = valid_lease(&mut LockServiceClient::connect(server).await.unwrap()).await;
    let token = token(&grant);
    println!("\n{SAYS}{token} {}", grant.lock_id);
    // It has looked at its clock, and is about to write: the pause comes here.
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    assert_eq!(line, "write\n");
    for resource in resources {
        println!("{SAYS}{:?}", resource.write(guard, &token.to_string(), "first holder"));
    }
}

/// A lease that is not over yet by this process's own clock. Short: its end is what the test waits for.
async fn valid_lease(client: &mut LockServiceClient<Channel>) -> Granted {
    loop {
        let sent = Instant::now();
        let grant = granted(client, AcquireRequest { ttl: seconds(1), wait: seconds(60), ..want(LOCK) }).await;
        if Instant::now() < sent + std_duration(grant.served_for) + std_duration(grant.validity) {
            return grant;
        }
    }
}

/// Tells the story; what the late write was answered, and what the resource holds in the end, for each of them.
async fn story(guard: Guard) -> [(Resource, String, String); 3] {
    let (cluster, resources) = (Cluster::start(5), Resources::start().await);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;

    let first = Holder::start(&proxy, &resources, guard);
    let said = first.said();
    let (first_token, first_lock_id) = said.split_once(' ').unwrap();
    first.pause().await;

    // Granted once the lease is over, and no earlier.
    let longest = seconds(300);
    let second = granted(&mut client, AcquireRequest { ttl: longest, wait: seconds(60), ..want(LOCK) }).await;
    assert!(token(&second) > first_token.parse().unwrap(), "{} after {first_token}", token(&second));
    assert!(!is_held(&mut client, first_lock_id).await);
    for resource in resources.all() {
        // Without the check too: the row has to be there.
        assert_eq!(resource.write(Guard::Token, &token(&second).to_string(), "second holder"), Answer::Done, "{resource}");
        if guard == Guard::None {
            assert_eq!(resource.write(guard, &token(&second).to_string(), "second holder"), Answer::Done, "{resource}");
        }
        assert_eq!(resource.value(guard), "second holder", "{resource}");
    }

    let answers = first.wake_up(resources.all().len()).await;
    assert!(is_held(&mut client, &second.lock_id).await, "the second holder has it all the while");
    let mut answers = answers.into_iter();
    resources.all().map(|resource| {
        let value = resource.value(guard);
        (resource, answers.next().unwrap(), value)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_late_write_of_a_paused_holder_is_refused() {
    for (resource, answer, value) in story(Guard::Token).await {
        assert_eq!((answer.as_str(), value.as_str()), ("Refused", "second holder"), "{resource}");
    }
}

/// That the story is dangerous: the same without the check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_check_the_late_write_destroys_the_data_of_the_second_holder() {
    for (resource, answer, value) in story(Guard::None).await {
        assert_eq!((answer.as_str(), value.as_str()), ("Done", "first holder"), "{resource}");
    }
}
