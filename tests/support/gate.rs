//! A TCP proxy before a server that can hold back, slow down or swallow what passes, and cut, reset or refuse connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What may pass, and how fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// What clients send is kept back.
    pub requests: bool,
    /// What the server answers is kept back.
    pub replies: bool,
    /// Everything passes this much later, in either direction.
    pub delay: Duration,
    /// New connections are reset at once.
    pub refuse: bool,
}

/// How connections end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cut {
    #[default]
    Close,
    Reset,
}

/// Passes everything until told otherwise. What is held back is not lost: it passes when the gate opens, also if the client
/// has gone in the meantime.
pub struct Gate {
    pub address: SocketAddr,
    hold: watch::Sender<Hold>,
    cuts: watch::Sender<Cut>,
    swallow: Arc<AtomicBool>,
    port: Arc<AtomicU16>,
    _tasks: JoinSet<()>,
}

impl Gate {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hold, watched) = watch::channel(Hold::default());
        let (cuts, cut) = watch::channel(Cut::default());
        let swallow = Arc::new(AtomicBool::new(false));
        let valve = Valve { hold: watched, cut, swallow: swallow.clone() };
        let port = Arc::new(AtomicU16::new(port));
        let leads_to = port.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                while pumps.try_join_next().is_some() {}
                if valve.hold.borrow().refuse {
                    let _ = client.set_zero_linger();
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", leads_to.load(Ordering::Relaxed))).await else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let mut valve = valve.clone();
                valve.cut.mark_unchanged();
                pumps.spawn(valve.carry(client, server));
            }
        });
        Self { address, hold, cuts, swallow, port, _tasks: tasks }
    }

    /// From now on it stands before another server; every connection to the old one is cut.
    pub fn lead_to(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
        self.cut();
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn set(&self, hold: Hold) {
        self.hold.send_replace(hold);
    }

    /// Lets everything pass again, replies that were to be swallowed too.
    pub fn open(&self) {
        self.swallow.store(false, Ordering::Relaxed);
        self.set(Hold::default());
    }

    pub fn hold_requests(&self) {
        self.set(Hold { requests: true, ..Hold::default() });
    }

    pub fn hold_replies(&self) {
        self.set(Hold { replies: true, ..Hold::default() });
    }

    /// Ends every connection that there is; what was held back on it is lost. New ones are let in.
    pub fn cut(&self) {
        self.cuts.send_replace(Cut::Close);
    }

    /// The same without a farewell: clients get a reset.
    pub fn reset(&self) {
        self.cuts.send_replace(Cut::Reset);
    }

    /// Resets every connection that there is and every new one until the gate is opened.
    pub fn refuse(&self) {
        self.set(Hold { refuse: true, ..Hold::default() });
        self.reset();
    }

    /// The next thing that the server answers, on whatever connection, is lost, and its connection ends.
    pub fn swallow_next_reply(&self) {
        self.swallow.store(true, Ordering::Relaxed);
    }

    /// Whether a reply is still to be swallowed.
    pub fn is_hungry(&self) -> bool {
        self.swallow.load(Ordering::Relaxed)
    }
}

/// What one connection has to obey.
#[derive(Clone)]
struct Valve {
    hold: watch::Receiver<Hold>,
    cut: watch::Receiver<Cut>,
    swallow: Arc<AtomicBool>,
}

/// The connection has to end now, in both directions.
struct Ended;

impl Valve {
    async fn carry(mut self, mut client: TcpStream, mut server: TcpStream) {
        let reset = {
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            let requests = pump(from_client, to_server, self.hold.clone(), |hold| hold.requests, None);
            let replies = pump(from_server, to_client, self.hold, |hold| hold.replies, Some(&self.swallow));
            tokio::select! {
                biased;
                _ = self.cut.changed() => *self.cut.borrow() == Cut::Reset,
                _ = async { tokio::try_join!(requests, replies) } => false,
            }
        };
        if reset {
            let _ = client.set_zero_linger();
        }
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut hold: watch::Receiver<Hold>,
    held: fn(&Hold) -> bool,
    swallow: Option<&AtomicBool>,
) -> Result<(), Ended> {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if swallow.is_some_and(|swallow| swallow.swap(false, Ordering::Relaxed)) {
            return Err(Ended);
        }
        let delay = hold.borrow().delay;
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        if hold.wait_for(|hold| !held(hold)).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    // An orderly end passes too, once the gate is open.
    if hold.wait_for(|hold| !held(hold)).await.is_ok() {
        let _ = to.shutdown().await;
    }
    Ok(())
}

/// One gate before each of `ports`.
pub async fn before_all(ports: impl IntoIterator<Item = u16>) -> Arc<Vec<Gate>> {
    let mut gates = Vec::new();
    for port in ports {
        gates.push(Gate::before(port).await);
    }
    Arc::new(gates)
}
