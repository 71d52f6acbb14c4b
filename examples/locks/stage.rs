//! Where the examples play: five real Redis servers and one more for the tokens, on free loopback ports, and proxies in front of
//! them. All of it ends with the example.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redlockd::client::Client;
use redlockd::config::{Layers, Origin};
use redlockd::dev::{self, Cluster, Server};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How many lock nodes there are: three of them are a quorum.
const NODES: u8 = 5;

/// How long a proxy may take to begin.
const BEGINNING: Duration = Duration::from_secs(60);

pub struct Stage {
    /// Where the proxies listen.
    pub proxies: Vec<String>,
    cluster: Cluster,
}

#[allow(dead_code, reason = "not every example needs all of it")]
impl Stage {
    /// Starts the servers and so many proxies. To be called from the main thread: the servers die with the thread that started
    /// them.
    pub async fn set(proxies: usize) -> Result<Self, Error> {
        let cluster = dev::start(NODES, true, None)?;
        let mut stage = Self { proxies: Vec::new(), cluster };
        for number in 0..proxies {
            // The first one says that the nodes are new.
            let proxy = stage.start_proxy(number == 0).await?;
            // A first lock shows that it is ready.
            let client = Client::connect([proxy.clone()]).await?;
            client.lock("stage").wait(BEGINNING).acquire().await?.release().await?;
            client.shutdown().await;
            stage.proxies.push(proxy);
        }
        println!("{NODES} Redis servers, a sixth for the tokens, and {proxies} redlockd in front of them");
        Ok(stage)
    }

    /// What `redlockd serve` does, in this process.
    async fn start_proxy(&self, is_first: bool) -> Result<String, Error> {
        let mut layers = Layers::default();
        let urls: Vec<String> = self.cluster.nodes.iter().map(Server::url).collect();
        layers.set("nodes.urls", urls.join(","), Origin::Dev);
        layers.set("nodes.bootstrap", if is_first { "now" } else { "wait" }.to_owned(), Origin::Dev);
        // A busy machine is not taken for silent servers.
        layers.set("nodes.timeout", "500ms".to_owned(), Origin::Dev);
        layers.set("fencing.timeout", "500ms".to_owned(), Origin::Dev);
        if let Some(fence) = &self.cluster.fence {
            layers.set("fencing.url", fence.url(), Origin::Dev);
        }
        let config = layers.resolve().map_err(|errors| format!("{errors:?}"))?;
        let [grpc, http] = [TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?];
        let url = format!("http://{}", grpc.local_addr()?);
        tokio::spawn(async move {
            if let Err(error) = redlockd::run::run(config, grpc, http, CancellationToken::new()).await {
                eprintln!("a proxy has ended: {error}");
            }
        });
        Ok(url)
    }

    /// Sends a signal to a lock node: 0 is the first.
    pub fn signal(&self, node: usize, signal: Signal) -> Result<(), Error> {
        let server = self.cluster.nodes.get(node).ok_or("there is no such node")?;
        Ok(kill(Pid::from_raw(i32::try_from(server.pid())?), signal)?)
    }
}

/// The example has not shown what it is there to show, unless `holds`.
pub fn ensure(holds: bool, what: impl Into<String>) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(what.into().into()) }
}
