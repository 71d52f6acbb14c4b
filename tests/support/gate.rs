//! A TCP proxy before a server that can hold back what passes, in either direction, and cut the connections.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What may pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// What clients send is kept back.
    pub requests: bool,
    /// What the server answers is kept back.
    pub replies: bool,
}

/// Passes everything until told otherwise. What is held back is not lost: it passes when the gate opens, also if the client
/// has gone in the meantime.
pub struct Gate {
    pub address: SocketAddr,
    hold: watch::Sender<Hold>,
    cuts: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Gate {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hold, watched) = watch::channel(Hold::default());
        let (cuts, cut) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                let (mut cut, hold) = (cut.clone(), watched.clone());
                cut.mark_unchanged();
                pumps.spawn(async move {
                    let requests = pump(from_client, to_server, hold.clone(), |hold| hold.requests);
                    let replies = pump(from_server, to_client, hold, |hold| hold.replies);
                    tokio::select! {
                        biased;
                        _ = cut.changed() => {}
                        _ = async { tokio::join!(requests, replies) } => {}
                    }
                });
            }
        });
        Self { address, hold, cuts, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn set(&self, hold: Hold) {
        self.hold.send_replace(hold);
    }

    pub fn open(&self) {
        self.set(Hold::default());
    }

    pub fn hold_requests(&self) {
        self.set(Hold { requests: true, replies: false });
    }

    pub fn hold_replies(&self) {
        self.set(Hold { requests: false, replies: true });
    }

    /// Ends every connection that there is; what was held back on it is lost. New ones are let in.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hold: watch::Receiver<Hold>, held: fn(&Hold) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if hold.wait_for(|hold| !held(hold)).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    // An orderly end passes too, once the gate is open.
    if hold.wait_for(|hold| !held(hold)).await.is_ok() {
        let _ = to.shutdown().await;
    }
}

/// One gate before each of `ports`.
pub async fn before_all(ports: impl IntoIterator<Item = u16>) -> Arc<Vec<Gate>> {
    let mut gates = Vec::new();
    for port in ports {
        gates.push(Gate::before(port).await);
    }
    Arc::new(gates)
}
