//! The servers that everything is measured on: five lock nodes, the designated one, and a proxy in front of them. All of them
//! end with this process, however that ends.
//!
//! - [`proxy`]: the proxy, and more of them. [`etcd`]: what it is compared with. [`link`]: questions to a node itself.
//! - [`process`]: how programs and directories end with us.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::dev::{self, Cluster, Server};

use crate::Error;
use crate::cpu::Processes;

pub mod etcd;
pub mod link;
mod process;
pub mod proxy;

use link::Link;
use proxy::{Proxy, Recipe};

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
    recipe: Recipe,
}

impl Servers {
    /// Starts them. To be called from the main thread, see [`dev::start`].
    pub fn start(args: &ServersArgs) -> Result<Self, Error> {
        let program = match &args.redlockd {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("redlockd"),
        };
        let recipe = Recipe { program, serve: args.serve.clone() };
        let cluster = dev::start(NODES, !args.quorum_counter, args.redis_server.as_deref())?;
        let proxy = recipe.start(&cluster)?;
        Ok(Self { proxy, cluster, recipe })
    }

    /// Where the proxy listens.
    pub fn proxy(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// One more proxy, for as long as it is kept. To be called from the main thread.
    pub async fn another_proxy(&self) -> Result<Proxy, Error> {
        let proxy = self.recipe.start(&self.cluster)?;
        proxy.all_up().await?;
        Ok(proxy)
    }

    /// Connections to the lock nodes themselves.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let mut links = Vec::new();
        for node in &self.cluster.nodes {
            links.push(Link::open(node.address()).await?);
        }
        Ok(links)
    }

    /// The lock nodes' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.cluster.nodes.iter().map(Server::url).collect()
    }

    /// The processes whose CPU time counts.
    pub fn processes(&self) -> Processes {
        let redis = self.cluster.nodes.iter().chain(&self.cluster.fence).map(Server::pid).collect();
        Processes { proxy: self.proxy.pid(), redis }
    }

    /// Waits until the proxy uses every server, and nothing waits for one.
    pub async fn all_up(&self) -> Result<(), Error> {
        self.proxy.all_up().await
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
