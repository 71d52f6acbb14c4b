//! A proxy in front of the lock nodes: the program that is measured, as it is shipped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use redlockd::proto::{ListNodesRequest, ListNodesResponse, NodeState};

use super::PATIENCE;
use super::process::Process;
use crate::Error;
use crate::call::{Call, Caller};

const LIST_NODES: &str = "/redlock.v1.OperatorService/ListNodes";

/// How a proxy is started.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub program: PathBuf,
    /// The lock nodes' URLs.
    pub nodes: Vec<String>,
    /// That of the designated server; without it the nodes count the tokens.
    pub fence: Option<String>,
    /// More arguments for `serve`.
    pub serve: Vec<String>,
}

/// A proxy that serves.
pub struct Proxy {
    process: Process,
    url: String,
    /// Open, so that the proxy can go on writing.
    _stdout: BufReader<ChildStdout>,
}

impl Recipe {
    /// Starts one. To be called from the main thread, see [`Process::start`].
    pub fn start(&self) -> Result<Proxy, Error> {
        let mut process = Process::start(&mut self.command())?;
        let Some((url, stdout)) = listening(&mut process) else {
            return Err(format!("{} serve does not start; it says why above", self.program.display()).into());
        };
        Ok(Proxy { process, url, _stdout: stdout })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // What is measured is what everybody gets, unless it is asked for here.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDLOCKD_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-level", "error"]);
        command.args(self.arguments()).stdout(Stdio::piped());
        command
    }

    /// What makes it a proxy of these nodes; the same for a coordinator within this process.
    pub fn arguments(&self) -> Vec<String> {
        let counter = match &self.fence {
            Some(url) => ["--fencing-url", url],
            None => ["--fencing-counter", "quorum"],
        };
        let nodes = ["--nodes-urls", &self.nodes.join(","), "--nodes-bootstrap", "now"].map(str::to_owned);
        nodes.into_iter().chain(counter.map(str::to_owned)).chain(self.serve.iter().cloned()).collect()
    }
}

impl Proxy {
    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// Waits until a proxy uses every server, and nothing waits for one.
pub async fn all_up(url: &str) -> Result<(), Error> {
    let mut caller = Caller::connect(url).await?;
    let started = Instant::now();
    loop {
        let nodes: ListNodesResponse = caller.call(LIST_NODES, ListNodesRequest {}).await?;
        if nodes.nodes.iter().all(|node| node.state() == NodeState::Up && node.queued == 0) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{url}: after {PATIENCE:?} the proxy still does not use all nodes: {}", states(&nodes)).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many of its servers a proxy uses now, and how many there are. Nothing if it does not answer.
pub async fn nodes_up(url: &str) -> Option<(usize, usize)> {
    let mut caller = Caller::connect(url).await.ok()?;
    let ListNodesResponse { nodes, .. } = caller.call(LIST_NODES, ListNodesRequest {}).await.ok()?;
    Some((nodes.iter().filter(|node| node.state() == NodeState::Up).count(), nodes.len()))
}

fn states(nodes: &ListNodesResponse) -> String {
    let said = nodes.nodes.iter().map(|node| format!("{} {:?} {}", node.node, node.state(), node.detail));
    said.collect::<Vec<_>>().join(", ")
}

/// Where it says that it listens, in its first line.
fn listening(process: &mut Process) -> Option<(String, BufReader<ChildStdout>)> {
    let mut stdout = BufReader::new(process.take_stdout()?);
    let mut line = String::new();
    stdout.read_line(&mut line).ok()?;
    let address: std::net::SocketAddr = line.split_whitespace().find_map(|word| word.parse().ok())?;
    Some((format!("http://{address}"), stdout))
}

/// What the program says of its version.
pub fn version(program: &Path) -> Option<String> {
    let said = Command::new(program).arg("--version").output().ok()?;
    String::from_utf8(said.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
}
