//! The servers that everything is measured on: five lock nodes, the designated one, and a proxy in front of them. All of them
//! end with this process, however that ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::dev::{self, Cluster, Server};
use redlockd::proto::operator_service_client::OperatorServiceClient;
use redlockd::proto::{ListNodesRequest, ListNodesResponse, NodeState};

use crate::Error;
use crate::cpu::Processes;
use crate::targets::proxy::channel;

/// How many lock nodes there are.
pub const NODES: u8 = 5;

/// How long the servers may take to be as they are awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long keys may take to go after their releases were answered: a quorum answers for all. Far below their TTL, which would
/// remove them in any case.
const CLEAN_UP: Duration = Duration::from_secs(2);

/// Which programs are started, and how.
#[derive(Args, Debug)]
pub struct ServersArgs {
    /// The program to measure [default: redlockd beside this program]
    #[arg(long, value_name = "PROGRAM")]
    redlockd: Option<PathBuf>,
    /// The server program [default: redis-server or valkey-server on PATH]
    #[arg(long, value_name = "PROGRAM")]
    redis_server: Option<PathBuf>,
    /// More arguments for `redlockd serve`, after `--`
    #[arg(last = true, value_name = "SERVE_ARGS")]
    serve: Vec<String>,
    /// Let the nodes count the tokens, without a designated server
    #[arg(long)]
    quorum_counter: bool,
}

/// All of them.
pub struct Servers {
    /// The first to be dropped: it has nothing to complain about then.
    proxy: Proxy,
    cluster: Cluster,
}

/// A child process that is killed when dropped.
struct Proxy {
    child: Child,
    address: SocketAddr,
    /// Open, so that the proxy can go on writing.
    _stdout: BufReader<ChildStdout>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only if it is gone already.
    let _ = child.kill();
    let _ = child.wait();
}

impl Servers {
    /// Starts them. To be called from the main thread, see [`dev::start`].
    pub fn start(args: &ServersArgs) -> Result<Self, Error> {
        let program = match &args.redlockd {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("redlockd"),
        };
        let cluster = dev::start(NODES, !args.quorum_counter, args.redis_server.as_deref())?;
        let proxy = start_proxy(&program, &cluster, &args.serve)?;
        Ok(Self { proxy, cluster })
    }

    /// Where the proxy listens.
    pub fn proxy(&self) -> SocketAddr {
        self.proxy.address
    }

    /// The lock nodes' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.cluster.nodes.iter().map(Server::url).collect()
    }

    /// The processes whose CPU time counts.
    pub fn processes(&self) -> Processes {
        let redis = self.cluster.nodes.iter().chain(&self.cluster.fence).map(Server::pid).collect();
        Processes { proxy: self.proxy.child.id(), redis }
    }

    /// Waits until the proxy uses every server, and nothing waits for one.
    pub async fn all_up(&self) -> Result<(), Error> {
        let mut client = OperatorServiceClient::new(channel(self.proxy.address).await?);
        let started = Instant::now();
        loop {
            let nodes = client.list_nodes(ListNodesRequest {}).await?.into_inner();
            if nodes.nodes.iter().all(|node| node.state() == NodeState::Up && node.queued == 0) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("after {PATIENCE:?} the proxy still does not use all nodes: {}", states(&nodes)).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops some lock nodes, as a machine that hangs would.
    pub fn stop(&self, count: usize) -> Result<Stopped, Error> {
        let pids: Vec<Pid> = self.cluster.nodes.iter().take(count).map(pid).collect::<Result<_, _>>()?;
        let stopped = Stopped { pids };
        for pid in &stopped.pids {
            kill(*pid, Signal::SIGSTOP)?;
        }
        Ok(stopped)
    }

    /// How many locks are still on any node. All of them have been released.
    pub fn left_behind(&self) -> Result<usize, Error> {
        let started = Instant::now();
        loop {
            let keys: Vec<usize> = self.cluster.nodes.iter().map(|node| locks_on(node.address())).collect::<Result<_, _>>()?;
            let left = keys.iter().sum();
            if left == 0 || started.elapsed() > CLEAN_UP {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn pid(server: &Server) -> Result<Pid, Error> {
    Ok(Pid::from_raw(server.pid().try_into()?))
}

/// Nodes that are stopped; they go on when this is dropped.
pub struct Stopped {
    pids: Vec<Pid>,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.pids {
            // Fails only if it is gone.
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

fn states(nodes: &ListNodesResponse) -> String {
    let said = nodes.nodes.iter().map(|node| format!("{} {:?} {}", node.node, node.state(), node.detail));
    said.collect::<Vec<_>>().join(", ")
}

fn start_proxy(program: &Path, cluster: &Cluster, more: &[String]) -> Result<Proxy, Error> {
    let mut command = Command::new(program);
    // What is measured is what everybody gets, unless it is asked for here.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDLOCKD_")) {
        command.env_remove(name);
    }
    let urls: Vec<String> = cluster.nodes.iter().map(Server::url).collect();
    command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-level", "error"]).args([
        "--nodes-urls",
        &urls.join(","),
        "--nodes-bootstrap",
        "now",
    ]);
    match &cluster.fence {
        Some(fence) => command.args(["--fencing-url", &fence.url()]),
        None => command.args(["--fencing-counter", "quorum"]),
    };
    command
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A Ctrl-C is for us.
        .process_group(0);
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(|error| format!("{} can not be started: {error}", program.display()))?;
    match listening(&mut child) {
        Some((address, stdout)) => Ok(Proxy { child, address, _stdout: stdout }),
        None => {
            end(&mut child);
            Err(format!("{} serve does not start", program.display()).into())
        }
    }
}

/// Where it says that it listens, in its first line.
fn listening(child: &mut Child) -> Option<(SocketAddr, BufReader<ChildStdout>)> {
    let mut stdout = BufReader::new(child.stdout.take()?);
    let mut line = String::new();
    stdout.read_line(&mut line).ok()?;
    let address = line.split_whitespace().find_map(|word| word.parse().ok())?;
    Some((address, stdout))
}

/// Has the system kill the child when this thread ends, however it ends.
fn die_with_parent(command: &mut Command) {
    // SAFETY: one system call between fork and exec, which is allowed there: nothing is allocated or locked.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// The number of locks' keys on a node.
fn locks_on(node: SocketAddr) -> Result<usize, Error> {
    let mut stream = TcpStream::connect_timeout(&node, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // An inline command and its end: the server closes the connection after the reply.
    stream.write_all(b"KEYS lock:*\r\nQUIT\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    list_length(&reply).ok_or_else(|| format!("{node}: an unknown reply to KEYS: {reply:?}").into())
}

/// The length of a list that begins a reply.
fn list_length(reply: &str) -> Option<usize> {
    reply.strip_prefix('*')?.split_once("\r\n")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_list_stands_at_its_head() {
        assert_eq!(list_length("*0\r\n+OK\r\n"), Some(0));
        assert_eq!(list_length("*2\r\n$1\r\na\r\n$1\r\nb\r\n+OK\r\n"), Some(2));
        assert_eq!(list_length("-NOAUTH Authentication required.\r\n"), None);
        assert_eq!(list_length(""), None);
    }
}
