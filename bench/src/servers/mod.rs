//! The servers that everything is measured on: lock nodes, the designated one, and proxies in front of them. Those that are
//! started here end with this process, however that ends.
//!
//! - [`proxy`]: a proxy. [`etcd`]: what it is compared with. [`link`]: questions to a node itself.
//! - [`named`]: servers of somebody else. [`process`]: how programs and directories end with us.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::dev::{self, Cluster, Server};

use crate::Error;
use crate::cpu::{Kind, Process};

pub mod etcd;
pub mod link;
pub mod named;
mod process;
pub mod proxy;

use link::{Counters, Link};
use named::NamedArgs;
use proxy::{Proxy, Recipe};

/// How many lock nodes there are, unless somebody wants more or fewer.
pub const NODES: u8 = 5;

/// How long the servers may take to be as they are awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long keys may take to go after their releases were answered: a quorum answers for all. Below their TTL, which would
/// remove them in any case.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Which programs are started, and how.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Servers that are started")]
pub struct ServersArgs {
    /// The program to measure [default: redlockd beside this program]
    #[arg(long, value_name = "PROGRAM")]
    redlockd: Option<PathBuf>,
    /// The server program [default: redis-server or valkey-server on PATH]
    #[arg(long, value_name = "PROGRAM")]
    redis_server: Option<PathBuf>,
    /// More arguments for `redlockd serve`, after `--`
    #[arg(last = true, value_name = "SERVE_ARGS")]
    pub serve: Vec<String>,
    /// Let the nodes count the tokens, without a designated server
    #[arg(long)]
    pub quorum_counter: bool,
}

impl ServersArgs {
    /// The program that is measured.
    pub fn program(&self) -> Result<PathBuf, Error> {
        match &self.redlockd {
            Some(program) => Ok(program.clone()),
            None => Ok(std::env::current_exe()?.with_file_name("redlockd")),
        }
    }
}

/// How many are started.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub nodes: u8,
    pub proxies: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: NODES, proxies: 1 }
    }
}

/// All of them.
pub struct Servers {
    /// Those that were started; the first to be dropped: they have nothing to complain about then.
    proxies: Vec<Proxy>,
    /// That was started.
    cluster: Option<Cluster>,
    /// Those that were named.
    named_proxies: Vec<String>,
    recipe: Recipe,
    key_prefix: String,
}

impl Servers {
    /// Starts all of them. To be called from the main thread, see [`dev::start`].
    pub fn start(args: &ServersArgs, shape: Shape) -> Result<Self, Error> {
        let cluster = dev::start(shape.nodes, !args.quorum_counter, args.redis_server.as_deref())?;
        let recipe = Recipe {
            program: args.program()?,
            nodes: cluster.nodes.iter().map(Server::url).collect(),
            fence: cluster.fence.as_ref().map(Server::url),
            serve: args.serve.clone(),
        };
        let proxies = (0..shape.proxies).map(|_| recipe.start()).collect::<Result<_, _>>()?;
        Ok(Self { proxies, cluster: Some(cluster), named_proxies: vec![], recipe, key_prefix: "lock:".to_owned() })
    }

    /// Those that were named, and a proxy in front of them if none was. To be called from the main thread.
    pub fn named(args: &ServersArgs, named: &NamedArgs) -> Result<Self, Error> {
        named.check(args.quorum_counter)?;
        let recipe = Recipe {
            program: args.program()?,
            nodes: named.nodes.clone(),
            fence: named.fencing_url.clone(),
            serve: [vec!["--nodes-key-prefix".to_owned(), named.key_prefix.clone()], args.serve.clone()].concat(),
        };
        let proxies = if named.server.is_empty() { vec![recipe.start()?] } else { vec![] };
        Ok(Self { proxies, cluster: None, named_proxies: named.server.clone(), recipe, key_prefix: named.key_prefix.clone() })
    }

    /// Where the first proxy listens.
    pub fn proxy(&self) -> String {
        self.proxies().swap_remove(0)
    }

    /// Where the proxies listen. There is at least one.
    pub fn proxies(&self) -> Vec<String> {
        let started = self.proxies.iter().map(|proxy| proxy.url().to_owned());
        self.named_proxies.iter().cloned().chain(started).collect()
    }

    /// One more proxy, for as long as it is kept. To be called from the main thread.
    pub async fn another_proxy(&self) -> Result<Proxy, Error> {
        let proxy = self.recipe.start()?;
        proxy::all_up(proxy.url()).await?;
        Ok(proxy)
    }

    /// What a proxy of these nodes is told.
    pub fn serve_arguments(&self) -> Vec<String> {
        self.recipe.arguments()
    }

    /// The lock nodes' URLs; none if nobody named them.
    pub fn urls(&self) -> Vec<String> {
        self.recipe.nodes.clone()
    }

    /// The lock nodes and the designated server.
    fn redis_urls(&self) -> impl Iterator<Item = &String> {
        self.recipe.nodes.iter().chain(&self.recipe.fence)
    }

    /// Connections to the lock nodes themselves.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        open(self.recipe.nodes.iter()).await
    }

    /// Connections to the lock nodes and the designated server.
    pub async fn redis_links(&self) -> Result<Vec<Link>, Error> {
        open(self.redis_urls()).await
    }

    /// The processes that were started here.
    pub fn processes(&self) -> Vec<Process> {
        let process = |name: String, kind, pid| Process { name, kind, pid };
        let proxies = self.proxies.iter().enumerate();
        let proxies = proxies.map(|(i, proxy)| process(format!("proxy {}", i + 1), Kind::Proxy, proxy.pid()));
        let cluster = self.cluster.iter();
        let nodes = cluster.clone().flat_map(|cluster| cluster.nodes.iter().enumerate());
        let nodes = nodes.map(|(i, node)| process(format!("node {}", i + 1), Kind::Redis, node.pid()));
        let fences = cluster.filter_map(|cluster| cluster.fence.as_ref());
        let fences = fences.map(|fence| process("fence".to_owned(), Kind::Redis, fence.pid()));
        proxies.chain(nodes).chain(fences).collect()
    }

    /// Waits until every proxy uses every server, and nothing waits for one.
    pub async fn all_up(&self) -> Result<(), Error> {
        for proxy in self.proxies() {
            proxy::all_up(&proxy).await?;
        }
        Ok(())
    }

    /// The processes of the first lock nodes. An error if they are not ours to do anything to.
    pub fn node_pids(&self, count: usize) -> Result<Vec<Pid>, Error> {
        let Some(cluster) = &self.cluster else {
            return Err("faults are for nodes that are started here: leave --server and --nodes away".into());
        };
        if count > cluster.nodes.len() {
            return Err(format!("there are {} nodes, and {count} should fail", cluster.nodes.len()).into());
        }
        let pids = cluster.nodes.iter().take(count).map(|node| Ok(Pid::from_raw(node.pid().try_into()?)));
        pids.collect()
    }

    /// What all Redis servers have done so far; nothing if one of them does not say.
    pub async fn counters(&self) -> Option<Counters> {
        let mut links = self.redis_links().await.ok()?;
        let mut sum: Option<Counters> = None;
        for link in &mut links {
            let counters = link.counters().await.ok()?;
            sum = Some(sum.map_or(counters, |sum| sum.plus(counters)));
        }
        sum
    }

    /// How many locks, whose names begin so, are still on any node that lives. All of them have been released.
    pub async fn left_behind(&self, prefix: &str) -> Result<u64, Error> {
        let pattern = format!("{}{prefix}*", self.key_prefix);
        let mut links = open(self.recipe.nodes.iter().filter(|url| !self.is_dead(url))).await?;
        let started = Instant::now();
        loop {
            let mut left = 0;
            for link in &mut links {
                left += link.count_keys(&pattern).await?;
            }
            if left == 0 || started.elapsed() > CLEAN_UP {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many nodes can be looked at.
    pub fn nodes_alive(&self) -> usize {
        self.recipe.nodes.iter().filter(|url| !self.is_dead(url)).count()
    }

    fn is_dead(&self, url: &str) -> bool {
        let nodes = self.cluster.iter().flat_map(|cluster| &cluster.nodes);
        let mut pids = nodes.filter(|node| node.url() == url).filter_map(|node| i32::try_from(node.pid()).ok());
        // A process that was killed is a zombie until its parent has asked for it, which happens when it is dropped.
        pids.any(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| is_zombie(&stat)))
    }
}

/// The third field of `/proc/PID/stat`.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

async fn open(urls: impl Iterator<Item = &String>) -> Result<Vec<Link>, Error> {
    let mut links = Vec::new();
    for url in urls {
        links.push(Link::open(url).await?);
    }
    Ok(links)
}

/// Processes that are stopped, as a machine that hangs would be; they go on when this is dropped.
pub struct Stopped {
    pids: Vec<Pid>,
}

impl Stopped {
    /// Stops them.
    pub fn new(pids: Vec<Pid>) -> Result<Self, Error> {
        let stopped = Self { pids };
        for pid in &stopped.pids {
            kill(*pid, Signal::SIGSTOP)?;
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.pids {
            // Fails only if it is gone.
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told_from_the_living() {
        assert!(is_zombie("7 (redis-server) Z 1 7") && is_zombie("") && !is_zombie("7 (a) Z (b) S 1 7"));
    }
}
