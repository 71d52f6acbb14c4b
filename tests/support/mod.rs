//! Real servers and real proxies for tests: started on free loopback ports, ended when dropped, also when a test fails.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unsafe_code)]

use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::proto;
use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::granted::Fencing;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::operator_service_client::OperatorServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub mod clock;
pub mod gate;

/// Generous: nothing here depends on something being fast.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Ends the child with this thread, however that ends.
fn die_with_test(command: &mut Command) {
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        die_with_test(command);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// What it prints, if that was piped.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().unwrap()
    }

    /// What it reads, if that was piped.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.0.stdin.take().unwrap()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "process {} does not end", self.id());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A real Redis server.
pub struct Redis {
    process: Process,
    pub port: u16,
    program: PathBuf,
    options: Vec<String>,
    /// What it finds in its environment beside what is there anyway.
    environment: Vec<(String, String)>,
    directory: tempfile::TempDir,
    /// Options of redis-cli that reach it.
    client: Vec<String>,
}

impl Redis {
    pub fn start(options: &[&str]) -> Self {
        Self::start_with_client(options, &[])
    }

    /// With options that redis-cli needs, such as `-a PASSWORD`.
    pub fn start_with_client(options: &[&str], client: &[&str]) -> Self {
        Self::start_as(Path::new("redis-server"), options, client, Vec::new())
    }

    /// A server of another version or make.
    pub fn start_program(program: &Path, options: &[&str], client: &[&str]) -> Self {
        Self::start_as(program, options, client, Vec::new())
    }

    /// With more in its environment.
    pub fn start_in(options: &[&str], client: &[&str], environment: Vec<(String, String)>) -> Self {
        Self::start_as(Path::new("redis-server"), options, client, environment)
    }

    fn start_as(program: &Path, options: &[&str], client: &[&str], environment: Vec<(String, String)>) -> Self {
        let mut directory = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        loop {
            let port = free_port();
            let process = launch(program, port, directory.path(), &options, &environment);
            let client = client.iter().map(ToString::to_string).collect();
            let (program, options, environment) = (program.to_owned(), options.clone(), environment.clone());
            let mut redis = Self { process, port, program, options, environment, directory, client };
            if redis.comes_up() {
                return redis;
            }
            // Somebody else took the port.
            directory = redis.directory;
        }
    }

    fn comes_up(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.process.has_ended().is_some() {
                return false;
            }
            if self.try_cli(&["PING"]).is_some_and(|answer| answer == "PONG") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server on port {} does not answer", self.port);
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn try_cli(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--no-auth-warning"])
            .args(&self.client)
            .args(args)
            .output()
            .expect("redis-cli");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What redis-cli prints for a command.
    pub fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args).unwrap_or_else(|| panic!("redis-cli {args:?} fails on port {}", self.port))
    }

    /// Makes it a member of a cluster of so many nodes, as if it had been one since long.
    pub fn establish(&self, nodes: usize) {
        let info = self.cli(&["INFO", "server"]);
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim();
        let marker =
            format!("redlockd/1 run_id={run_id} max_ttl_ms=300000 counter=designated listed_ms=0 nodes={}", node_names(nodes));
        assert_eq!(self.cli(&["SET", "redlockd:member", &marker]), "OK");
    }

    /// The keys of locks that it holds.
    pub fn keys(&self) -> Vec<String> {
        self.cli(&["KEYS", "lock:*"]).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Milliseconds that a lock's key has left, if it is there.
    pub fn pttl(&self, name: &str) -> Option<i64> {
        let left: i64 = self.cli(&["PTTL", &format!("lock:{name}")]).parse().unwrap();
        (left != -2).then_some(left)
    }

    /// What a lock's key holds; empty if there is none.
    pub fn value(&self, name: &str) -> String {
        self.cli(&["GET", &format!("lock:{name}")])
    }

    /// How often it ran a command of this name (in lower case) since it was started, in scripts and outside of them.
    pub fn calls_of(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]);
        let head = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&head)?.split(',').next()?.parse().ok());
        calls.unwrap_or_default()
    }

    pub fn stop(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end, as an operator does, and waits until it has.
    pub async fn end(&mut self) {
        self.process.signal(Signal::SIGTERM);
        self.process.ended().await;
    }

    /// Starts it again on the same port, with what it has on disk.
    pub fn start_again(&mut self) {
        self.process.kill();
        let started = Instant::now();
        loop {
            self.process = launch(&self.program, self.port, self.directory.path(), &self.options, &self.environment);
            if self.comes_up() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "port {} stays taken", self.port);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts it again on the same port, with nothing.
    pub fn start_again_empty(&mut self) {
        self.process.kill();
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
        self.start_again();
    }
}

fn launch(program: &Path, port: u16, directory: &Path, options: &[String], environment: &[(String, String)]) -> Process {
    let mut command = Command::new(program);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.args(["--bind", "127.0.0.1", "--daemonize", "no", "--maxmemory-policy", "noeviction", "--dir"]).arg(directory);
    if !options.iter().any(|option| option == "--port") {
        command.args(["--port", &port.to_string()]);
    }
    if !options.iter().any(|option| option == "--appendonly") {
        command.args(["--save", "", "--appendonly", "no"]);
    }
    let port = port.to_string();
    command.args(options.iter().map(|option| option.replace("{port}", &port)));
    Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// Lock nodes and a designated server.
pub struct Cluster {
    pub nodes: Vec<Redis>,
    pub fence: Redis,
}

/// The designated server: every write is on disk before it is answered.
pub const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// What the nodes are called: tests reach them by addresses of all kinds.
fn node_names(count: usize) -> String {
    (1..=count).map(|number| format!("n{number}")).collect::<Vec<_>>().join(",")
}

impl Cluster {
    /// Nodes without persistence, which have been members since long.
    pub fn start(nodes: usize) -> Self {
        Self::of(nodes, &[])
    }

    /// Nodes that have everything again when they are started again, and vote at once.
    pub fn start_durable(nodes: usize) -> Self {
        Self::of(nodes, &DURABLE)
    }

    fn of(nodes: usize, options: &[&str]) -> Self {
        let cluster = Self { nodes: (0..nodes).map(|_| Redis::start(options)).collect(), fence: Redis::start(&DURABLE) };
        cluster.nodes.iter().for_each(|node| node.establish(nodes));
        cluster
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// Keys of locks on any of the nodes named.
    pub fn keys_on(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().flat_map(|node| self.nodes[*node].keys()).collect()
    }

    /// Waits until no node holds a lock's key.
    pub async fn no_key_left(&self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        until("no key on any node", || async { self.keys_on(&all).is_empty().then_some(()) }).await;
    }
}

/// The program under test.
pub fn redlockd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redlockd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("REDLOCK")) {
        command.env_remove(name);
    }
    command
}

/// A running proxy.
pub struct Proxy {
    pub process: Process,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// What it is started with, its addresses aside.
    args: Vec<String>,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

/// Starts the program as a proxy, at these addresses unless `args` name others. `None`: it ended at once, and its log says why.
async fn serve(args: &[String], [grpc, http]: [SocketAddr; 2], log: &Path) -> Option<(Process, SocketAddr, SocketAddr)> {
    let mut command = redlockd();
    command.arg("serve");
    for (flag, address) in [("--listen", grpc), ("--metrics-listen", http)] {
        if !args.iter().any(|arg| arg == flag) {
            command.args([flag, &address.to_string()]);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(log).unwrap());
    let mut process = Process::spawn(&mut command);
    let mut lines = BufReader::new(process.stdout()).lines();
    // Beside this thread: it may carry the gates through which the proxy looks at its nodes first.
    let line = tokio::task::spawn_blocking(move || lines.next()).await.unwrap()?.unwrap();
    let mut addresses = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some((process, addresses.next().unwrap(), addresses.next().unwrap()))
}

/// Long, as for every test that is not about time-outs.
const NODES_TIMEOUT: &str = "1s";

impl Proxy {
    /// In front of a cluster, ready to grant.
    pub async fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        let proxy = Self::start_unready(&cluster.urls(), &cluster.fence.url(), flags).await;
        proxy.ready().await;
        proxy
    }

    /// In front of a cluster all of whose nodes vote, for tests that look at single nodes: one that is not connected yet
    /// gets nothing of a grant.
    pub async fn start_whole(cluster: &Cluster, flags: &[&str]) -> Self {
        let proxy = Self::start(cluster, flags).await;
        let all = u32::try_from(cluster.nodes.len()).unwrap();
        until("every node to vote", || async { (proxy.nodes().await.voting == all).then_some(()) }).await;
        proxy
    }

    /// In front of whatever `urls` name.
    pub async fn start_unready(urls: &[String], fence: &str, flags: &[&str]) -> Self {
        Self::launch(urls, &[&["--fencing-url", fence], flags].concat()).await
    }

    /// Without a server for the counter: the flags say where tokens come from.
    pub async fn start_without_fence(urls: &[String], flags: &[&str]) -> Self {
        Self::launch(urls, flags).await
    }

    async fn launch(urls: &[String], flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let mut args = vec!["--nodes-urls".to_owned(), urls.join(",")];
        for (flag, value) in [
            ("--nodes-timeout", NODES_TIMEOUT),
            ("--fencing-timeout", NODES_TIMEOUT),
            ("--nodes-bootstrap", "now"),
            // What a test has in its cluster, it has on purpose.
            ("--allow-unsafe", "replica,cluster-mode,same-server"),
            ("--nodes-names", &node_names(urls.len())),
        ] {
            if !flags.contains(&flag) {
                args.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        args.extend(flags.iter().map(ToString::to_string));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let serving = serve(&args, [any, any], &log).await;
        let (process, grpc, http) = serving.unwrap_or_else(|| panic!("{}", std::fs::read_to_string(&log).unwrap()));
        Self { process, grpc, http, args, log, _directory: directory }
    }

    /// Starts it again at the same addresses, once it has ended; its log begins anew.
    pub async fn start_again(&mut self) {
        assert!(self.process.has_ended().is_some(), "the proxy at {} has not ended", self.grpc);
        let started = Instant::now();
        loop {
            if let Some((process, _, _)) = serve(&self.args, [self.grpc, self.http], &self.log).await {
                self.process = process;
                return;
            }
            // Somebody else's outgoing connection may have the port for a moment.
            assert!(started.elapsed() < PATIENCE, "it does not start again: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn ready(&self) {
        until("the proxy to be ready", || async { (self.http_get("/readyz").await.0 == 200).then_some(()) }).await;
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(self.url()).unwrap().connect().await.unwrap()
    }

    pub async fn client(&self) -> LockServiceClient<Channel> {
        LockServiceClient::new(self.channel().await)
    }

    pub async fn nodes(&self) -> proto::ListNodesResponse {
        let mut client = OperatorServiceClient::new(self.channel().await);
        client.list_nodes(proto::ListNodesRequest {}).await.unwrap().into_inner()
    }

    /// Status and body.
    pub async fn http_get(&self, path: &str) -> (u16, String) {
        let (address, request) = (self.http, format!("GET {path} HTTP/1.0\r\n\r\n"));
        let answer = tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        let answer = answer.await.unwrap().unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        (status, body.to_owned())
    }

    /// The value of a metric's series, 0 if there is none. `series` is its name with labels as they are printed.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.http_get("/metrics").await;
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Waits until nothing is being done.
    pub async fn idle(&self) {
        until("the proxy to be idle", || async {
            let busy = self.metric("redlock_tasks").await + self.metric("redlock_inflight_requests").await;
            let pending: u32 = self.nodes().await.nodes.iter().map(|node| node.queued + node.in_flight).sum();
            (busy == 0.0 && pending == 0).then_some(())
        })
        .await;
    }

    /// Adds up every series of a metric whose labels hold `label`.
    pub async fn metric_sum(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.http_get("/metrics").await;
        let series = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        series.filter(|line| line.contains(label)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// What a node looks like from here.
    pub async fn node(&self, index: usize) -> proto::NodeStatus {
        self.nodes().await.nodes.swap_remove(index)
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

pub fn seconds(seconds: u64) -> Option<prost_types::Duration> {
    millis(seconds * 1000)
}

pub fn millis(ms: u64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_millis(ms)).ok()
}

pub fn std_duration(duration: Option<prost_types::Duration>) -> Duration {
    duration.unwrap().try_into().unwrap()
}

/// A request for a name with a TTL of 10 s.
pub fn want(name: &str) -> proto::AcquireRequest {
    proto::AcquireRequest { name: name.to_owned(), ttl: seconds(10), owner: "test".to_owned(), ..Default::default() }
}

/// The outcome of an acquire.
pub async fn acquire(client: &mut LockServiceClient<Channel>, request: proto::AcquireRequest) -> Outcome {
    client.acquire(request).await.unwrap().into_inner().outcome.unwrap()
}

/// A grant, or a failed test.
pub async fn granted(client: &mut LockServiceClient<Channel>, request: proto::AcquireRequest) -> proto::Granted {
    match acquire(client, request).await {
        Outcome::Granted(granted) => granted,
        Outcome::Contended(contended) => panic!("contended: {contended:?}"),
    }
}

/// A refusal, or a failed test.
pub async fn contended(client: &mut LockServiceClient<Channel>, request: proto::AcquireRequest) -> proto::Contended {
    match acquire(client, request).await {
        Outcome::Contended(contended) => contended,
        Outcome::Granted(_) => panic!("granted"),
    }
}

pub fn token(granted: &proto::Granted) -> u64 {
    match granted.fencing {
        Some(Fencing::FencingToken(token)) => token,
        ref other => panic!("{other:?} in place of a token"),
    }
}

pub async fn release(client: &mut LockServiceClient<Channel>, lock_id: &str) -> proto::ReleaseOutcome {
    let request = proto::ReleaseRequest { lock_id: lock_id.to_owned() };
    client.release(request).await.unwrap().into_inner().outcome()
}

/// The refusal of an acquire that is answered with an error.
pub async fn acquire_error(client: &mut LockServiceClient<Channel>, request: proto::AcquireRequest) -> Status {
    match client.acquire(request).await {
        Err(status) => status,
        Ok(answer) => panic!("{:?} in place of an error", answer.into_inner()),
    }
}

pub async fn renew(
    client: &mut LockServiceClient<Channel>,
    lock_id: &str,
    ttl: Option<prost_types::Duration>,
) -> proto::renew_response::Outcome {
    let request = proto::RenewRequest { lock_id: lock_id.to_owned(), ttl };
    client.renew(request).await.unwrap().into_inner().outcome.unwrap()
}

pub async fn check(client: &mut LockServiceClient<Channel>, lock_id: &str) -> proto::check_response::Outcome {
    let request = proto::CheckRequest { lock_id: lock_id.to_owned() };
    client.check(request).await.unwrap().into_inner().outcome.unwrap()
}

pub async fn is_held(client: &mut LockServiceClient<Channel>, lock_id: &str) -> bool {
    matches!(check(client, lock_id).await, proto::check_response::Outcome::Held(_))
}

pub async fn get(client: &mut LockServiceClient<Channel>, name: &str) -> proto::GetResponse {
    client.get(proto::GetRequest { name: name.to_owned() }).await.unwrap().into_inner()
}

/// That a text holds every one of the facts.
#[track_caller]
pub fn says(text: &str, facts: &[&str]) {
    for fact in facts {
        assert!(text.contains(fact), "no {fact:?} in: {text}");
    }
}

/// That a call may be repeated, and when; and what its message says.
#[track_caller]
pub fn unavailable(status: &Status, facts: &[&str]) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!(delay.is_some_and(|delay| delay > Duration::ZERO), "no RetryInfo in {status:?}");
    says(status.message(), facts);
}

/// What a command line program did.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a client command against a proxy.
pub fn run(proxy: &Proxy, args: &[&str]) -> Ran {
    redlockd().args(args).args(["--server", &proxy.url()]).stdin(Stdio::null()).output().unwrap().into()
}
