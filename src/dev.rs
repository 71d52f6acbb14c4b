//! `redlockd dev`: real Redis servers as child processes on free loopback ports. Never a fake one.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(30);

/// Tries to find a port that nobody takes before the server does.
const PORT_TRIES: usize = 10;

/// Why servers could not be started.
#[derive(Debug)]
pub struct DevError(String);

impl fmt::Display for DevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DevError {}

fn failed(what: impl Into<String>) -> DevError {
    DevError(what.into())
}

/// A server process. Killed when dropped, and by the system when this process dies.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    reported: bool,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Whether it has died since the last question; reaps it.
    pub fn has_just_died(&mut self) -> bool {
        let died = !self.reported && matches!(self.child.try_wait(), Ok(Some(_)));
        self.reported |= died;
        died
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lock nodes, the designated server, and their directory.
#[derive(Debug)]
pub struct Cluster {
    /// The lock nodes: without persistence.
    pub nodes: Vec<Server>,
    /// Keeps the fencing counter: what it loses, the nodes' ceiling makes up for.
    pub fence: Option<Server>,
    _directory: Directory,
}

/// Starts `count` lock nodes and, if wanted, the designated server. To be called from the main thread: the servers die with the *thread*
/// that started them.
pub fn start(count: u8, designated: bool, program: Option<&Path>) -> Result<Cluster, DevError> {
    let program = find_program(program)?;
    let directory = Directory::create()?;
    let server = |name: &str| start_server(&program, &directory.0, name, &["--save", "", "--appendonly", "no"]);
    let nodes = (1..=count).map(|i| server(&format!("node-{i}"))).collect::<Result<_, _>>()?;
    let fence = designated.then(|| server("fence")).transpose()?;
    Ok(Cluster { nodes, fence, _directory: directory })
}

fn find_program(given: Option<&Path>) -> Result<PathBuf, DevError> {
    if let Some(program) = given {
        return match program.components().count() > 1 && !program.exists() {
            true => Err(failed(format!("--redis-server {}: there is no such file", program.display()))),
            false => Ok(program.to_owned()),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = ["redis-server", "valkey-server"];
    let found =
        candidates.iter().find_map(|name| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()));
    found.ok_or_else(|| {
        failed(
            "neither redis-server nor valkey-server is on PATH. Get one with `apt-get install redis-server` (Debian, Ubuntu) or \
             `brew install redis` (macOS), or name it with --redis-server",
        )
    })
}

fn start_server(program: &Path, directory: &Path, name: &str, options: &[&str]) -> Result<Server, DevError> {
    let home = directory.join(name);
    std::fs::create_dir(&home).map_err(|error| failed(format!("{}: {error}", home.display())))?;
    for _ in 0..PORT_TRIES {
        let address = free_address()?;
        let mut server = spawn(program, &home, address, options)?;
        if answers(&mut server)? {
            return Ok(server);
        }
    }
    let log = std::fs::read_to_string(home.join("log")).unwrap_or_default();
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it logged nothing");
    Err(failed(format!("{} does not start: {last}", program.display())))
}

fn free_address() -> Result<SocketAddr, DevError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map_err(|error| failed(format!("no free loopback port: {error}")))
}

fn spawn(program: &Path, home: &Path, address: SocketAddr, options: &[&str]) -> Result<Server, DevError> {
    let mut command = Command::new(program);
    command
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--maxmemory-policy", "noeviction", "--daemonize", "no"])
        .arg("--dir")
        .arg(home)
        .arg("--logfile")
        .arg(home.join("log"))
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C is for us: the servers are ended after the proxy has drained.
        .process_group(0);
    die_with_parent(&mut command);
    let child = command.spawn().map_err(|error| failed(format!("{} can not be started: {error}", program.display())))?;
    Ok(Server { child, address, reported: false })
}

/// Has the system kill the child when this thread ends, however it ends.
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only two system calls are made, which is allowed there: nothing is allocated or locked.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        });
    }
}

/// Waits until the server answers; `false` if it ended instead, as it does when somebody else took the port.
fn answers(server: &mut Server) -> Result<bool, DevError> {
    let started = Instant::now();
    loop {
        if matches!(server.child.try_wait(), Ok(Some(_))) {
            return Ok(false);
        }
        if ping(server.address).is_some() {
            return Ok(true);
        }
        if started.elapsed() > START {
            return Err(failed(format!("the server at {} does not answer", server.address)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ping(address: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"PING\r\n").ok()?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).ok()?;
    (answer == *b"+PONG").then_some(())
}

/// A directory that goes away with this process, however that ends: a shell waits for the end of a pipe that only we hold.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self, DevError> {
        static CLUSTERS: AtomicU32 = AtomicU32::new(1);
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("redlockd-dev-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        let directory = Self(path);
        let keeper = Command::new("sh")
            .args(["-c", "cat > /dev/null; sleep 1; rm -rf -- \"$0\""])
            .arg(&directory.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed(format!("sh can not be started: {error}")))?;
        // Open until the process ends.
        std::mem::forget(keeper.stdin);
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
