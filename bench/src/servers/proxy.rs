//! A proxy in front of the lock nodes: the program that is measured, as it is shipped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use redlockd::dev::{Cluster, Server};
use redlockd::proto::operator_service_client::OperatorServiceClient;
use redlockd::proto::{ListNodesRequest, ListNodesResponse, NodeState};

use super::PATIENCE;
use super::process::Process;
use crate::Error;
use crate::targets::proxy::channel;

/// How a proxy is started.
pub struct Recipe {
    pub program: PathBuf,
    /// More arguments for `serve`.
    pub serve: Vec<String>,
}

/// A proxy that serves.
pub struct Proxy {
    process: Process,
    address: SocketAddr,
    /// Open, so that the proxy can go on writing.
    _stdout: BufReader<ChildStdout>,
}

impl Recipe {
    /// Starts one. To be called from the main thread, see [`Process::start`].
    pub fn start(&self, cluster: &Cluster) -> Result<Proxy, Error> {
        let mut process = Process::start(&mut self.command(cluster))?;
        let Some((address, stdout)) = listening(&mut process) else {
            return Err(format!("{} serve does not start", self.program.display()).into());
        };
        Ok(Proxy { process, address, _stdout: stdout })
    }

    fn command(&self, cluster: &Cluster) -> Command {
        let mut command = Command::new(&self.program);
        // What is measured is what everybody gets, unless it is asked for here.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDLOCKD_")) {
            command.env_remove(name);
        }
        let urls: Vec<String> = cluster.nodes.iter().map(Server::url).collect();
        command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-level", "error"]);
        command.args(["--nodes-urls", &urls.join(","), "--nodes-bootstrap", "now"]);
        match &cluster.fence {
            Some(fence) => command.args(["--fencing-url", &fence.url()]),
            None => command.args(["--fencing-counter", "quorum"]),
        };
        command.args(&self.serve).stdout(Stdio::piped());
        command
    }
}

impl Proxy {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it uses every server, and nothing waits for one.
    pub async fn all_up(&self) -> Result<(), Error> {
        let mut client = OperatorServiceClient::new(channel(self.address).await?);
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
}

fn states(nodes: &ListNodesResponse) -> String {
    let said = nodes.nodes.iter().map(|node| format!("{} {:?} {}", node.node, node.state(), node.detail));
    said.collect::<Vec<_>>().join(", ")
}

/// Where it says that it listens, in its first line.
fn listening(process: &mut Process) -> Option<(SocketAddr, BufReader<ChildStdout>)> {
    let mut stdout = BufReader::new(process.take_stdout()?);
    let mut line = String::new();
    stdout.read_line(&mut line).ok()?;
    let address = line.split_whitespace().find_map(|word| word.parse().ok())?;
    Some((address, stdout))
}
