//! The Rust client: locks that renew themselves, move from proxy to proxy, and are never held longer than they are good for.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use redlockd::client::{AcquireError, Client};
//!
//! let client = Client::connect(["http://proxy-1:50051", "http://proxy-2:50051"]).await?;
//! match client.lock("orders/42").wait(Duration::from_secs(5)).acquire().await {
//!     Ok(lease) => {
//!         tokio::select! {
//!             () = work(lease.token()) => {}
//!             lost = lease.lost() => eprintln!("stopped: {lost}"),
//!         }
//!         lease.release().await?;
//!     }
//!     Err(AcquireError::Contended(by)) => println!("held by {:?}", by.owner),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! # async fn work(_token: Option<redlockd::client::Token>) {}
//! ```
//!
//! # What it does
//!
//! One task keeps a session with one of the proxies. When that breaks, is told to leave, or does not renew a lease in half of
//! its time, the task opens one at another proxy and adopts every lease there; their guards notice nothing but a new lock id.
//! A proxy that shuts down answers what it was asked before it is left, so that no release is of unknown end.
//!
//! A lease ends by this machine's monotonic clock, counted from before a message was sent that the proxy had received when it
//! answered. Whatever happens to proxies, nodes and network, [`Lease::lost`] comes true before the lock can be somebody else's,
//! if this program gets to run. What may happen to a program that does not (a pause, a suspended machine) only the fencing
//! token can make good: give [`Lease::token`] to the protected resource.
//!
//! # Reading order
//!
//! `request` (what is asked for), `lease` (what is had), `keeper` (all decisions, without network or clock), `sends` (from
//! where validity counts), `session` (one connection), `driver` (the task).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Endpoint;

mod driver;
mod keeper;
mod lease;
mod request;
mod sends;
mod session;

use driver::{Command, Driver, Proxies};
use keeper::{Asker, Keeper, Settings};
use lease::Hold;
use session::Session;

pub use lease::{Lease, LockId, LossReason, Lost, ReleaseError, Released, Token};
pub use request::{AcquireError, Contended, LockRequest, WithLockError};

const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// The shortest TTL, and the shortest hold, that proxies serve.
const SHORTEST_TTL: Duration = Duration::from_millis(10);

/// A century.
const LONGEST_PATIENCE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How a client is set up.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    proxies: Vec<String>,
    owner: String,
    patience: Duration,
    open_timeout: Duration,
    max_calls: usize,
    max_leases: usize,
}

impl ClientBuilder {
    /// Public label of the holder of every lock, unless the request names one: at most 128 bytes without control characters
    /// and `;`. Default: none.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// For how long a request is tried beyond its own `wait` when proxies do not answer; also a release. Default: 10 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        // Longer is for ever, and an instant has to be left beyond it.
        self.patience = patience.min(LONGEST_PATIENCE);
        self
    }

    /// How long one proxy may take to open a session before the next is tried, and one that shuts down to answer what it was
    /// asked before it is left; less while a lease is about to end. Default: 2 s.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout;
        self
    }

    /// How many requests may be under way or in line at a time, 1 or more; others wait. Default: 1,024.
    pub fn max_calls(mut self, max: usize) -> Self {
        self.max_calls = max;
        self
    }

    /// How many locks may be held, wanted or being released at a time, 1 or more; others wait. Default: 100,000.
    pub fn max_leases(mut self, max: usize) -> Self {
        self.max_leases = max;
        self
    }

    /// Opens a session with the first proxy that answers.
    ///
    /// Has to be called within a tokio runtime, on which the client's task lives.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let endpoints = self.proxies.iter().map(|url| endpoint(url)).collect::<Result<Vec<_>, _>>()?;
        let settings = Settings { patience: self.patience, has_others: endpoints.len() > 1 };
        let mut keeper = Keeper::new(settings, rand::random());
        let mut failures = Vec::new();
        for (current, proxy) in endpoints.iter().enumerate() {
            match Session::open(proxy.clone(), keeper.next_seq(), self.open_timeout).await {
                Err(reason) => failures.push(format!("{}: {reason}", proxy.uri())),
                Ok((session, sends)) => {
                    keeper.on_session(Instant::now(), sends);
                    let proxies = Proxies {
                        endpoints,
                        tried: current,
                        current: Some(current),
                        tries: 0,
                        open_timeout: self.open_timeout,
                    };
                    return Ok(self.start(keeper, proxies, session));
                }
            }
        }
        Err(ConnectError::Unreachable(failures.join("; ")))
    }

    fn start(self, keeper: Keeper, proxies: Proxies, session: Session) -> Client {
        let (sender, commands) = mpsc::unbounded_channel();
        let driver = Driver {
            keeper,
            commands,
            has_callers: true,
            proxies,
            session: Some(session),
            opening: None,
            successor: None,
            calls: JoinSet::new(),
            ends: None,
        };
        tokio::spawn(driver.run());
        let bound = |max: usize| Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
        Client(Arc::new(Shared {
            commands: sender,
            calls: bound(self.max_calls),
            places: bound(self.max_leases),
            holds: Holds::default(),
            next_id: AtomicU64::new(1),
            owner: self.owner,
            patience: self.patience,
        }))
    }
}

fn endpoint(url: &str) -> Result<Endpoint, ConnectError> {
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let wrong = |why: &str| ConnectError::Invalid(format!("{url}: {why}; a URL such as http://127.0.0.1:50051 is expected"));
    let endpoint = Endpoint::from_shared(full).map_err(|error| wrong(&error.to_string()))?;
    match (endpoint.uri().scheme_str(), endpoint.uri().host()) {
        (Some("http"), Some(host)) if !host.is_empty() => Ok(endpoint),
        (Some("http"), _) => Err(wrong("there is no host")),
        _ => Err(wrong("only http is spoken")),
    }
}

/// Why no session was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// An address is wrong, or there is none.
    Invalid(String),
    /// No proxy answered; what became of each.
    Unreachable(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) => f.write_str(text),
            Self::Unreachable(text) if text.is_empty() => f.write_str("no proxy is named"),
            Self::Unreachable(text) => write!(f, "no redlockd answers: {text}"),
        }
    }
}

impl std::error::Error for ConnectError {}

type Commands = mpsc::UnboundedSender<Command>;

/// What this client holds, by name.
#[derive(Clone, Debug, Default)]
struct Holds(Arc<Mutex<HoldsByName>>);

type HoldsByName = HashMap<String, (u64, Weak<Hold>)>;

impl Holds {
    fn map(&self) -> MutexGuard<'_, HoldsByName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str, now: Instant) -> Option<Arc<Hold>> {
        // The lock is let go before a hold may be: dropping one takes it.
        let hold = self.map().get(name)?.1.upgrade()?;
        (!hold.standing.is_lost(now)).then_some(hold)
    }

    fn insert(&self, name: &str, hold: &Arc<Hold>) {
        self.map().insert(name.to_owned(), (hold.id, Arc::downgrade(hold)));
    }

    fn forget(&self, name: &str, id: u64) {
        let mut map = self.map();
        if map.get(name).is_some_and(|(present, _)| *present == id) {
            map.remove(name);
        }
    }
}

#[derive(Debug)]
struct Shared {
    /// Unbounded, because guards must not wait when they are dropped; what they send is bounded by what there is of them.
    commands: Commands,
    calls: Arc<Semaphore>,
    places: Arc<Semaphore>,
    holds: Holds,
    next_id: AtomicU64,
    owner: String,
    patience: Duration,
}

/// A client of one or more proxies. Clones share its session. When the last clone and the last [`Lease`] are gone, its task
/// releases what is left to release and ends; [`Client::shutdown`] waits for that.
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

impl Client {
    /// A client with the defaults of [`ClientBuilder`]. The URLs are those of proxies in front of the same nodes, tried in
    /// this order.
    pub async fn connect<U: Into<String>>(proxies: impl IntoIterator<Item = U>) -> Result<Self, ConnectError> {
        Self::builder(proxies).connect().await
    }

    /// A client to be set up first.
    pub fn builder<U: Into<String>>(proxies: impl IntoIterator<Item = U>) -> ClientBuilder {
        ClientBuilder {
            proxies: proxies.into_iter().map(Into::into).collect(),
            owner: String::new(),
            patience: Duration::from_secs(10),
            open_timeout: Duration::from_secs(2),
            max_calls: 1_024,
            max_leases: 100_000,
        }
    }

    /// A lock to take: 1 to 512 bytes of UTF-8 without control characters, not beginning with `redlockd:`.
    pub fn lock(&self, name: impl Into<String>) -> LockRequest {
        LockRequest::new(self.clone(), name.into())
    }

    /// Takes a lock, does the work, and releases the lock. When the lease is lost meanwhile, the work is cancelled (its future
    /// is dropped) before the lock can be somebody else's, and the answer is [`WithLockError::Lost`].
    pub async fn with_lock<T>(&self, request: LockRequest, work: impl AsyncFnOnce(&Lease) -> T) -> Result<T, WithLockError> {
        let lease = request.acquire().await.map_err(WithLockError::Acquire)?;
        let done = tokio::select! {
            biased;
            lost = lease.lost() => Err(WithLockError::Lost(lost)),
            done = work(&lease) => Ok(done),
        };
        // If it can not be proven, the TTL ends the lease.
        let _ = lease.release().await;
        done
    }

    /// Ends the client in order: waits until everything that was given back is released, and closes the session.
    ///
    /// Whatever is still being asked for is answered with [`AcquireError::Closed`]. A lease that is still held is lost
    /// ([`LossReason::Closed`]); it is not released but ends with its TTL, since it may still be in use.
    pub async fn shutdown(self) {
        let (done, is_done) = oneshot::channel();
        if self.0.commands.send(Command::Close { done }).is_ok() {
            // Fails if the task has ended already.
            let _ = is_done.await;
        }
    }

    async fn acquire(self, request: LockRequest) -> Result<Lease, AcquireError> {
        let (shared, now) = (self.0, Instant::now());
        if request.is_reentrant
            && let Some(hold) = shared.holds.find(&request.name, now)
        {
            return Ok(Lease::new(hold));
        }
        if request.ttl < SHORTEST_TTL || request.max_hold.is_some_and(|max_hold| max_hold < SHORTEST_TTL) {
            return Err(AcquireError::Invalid(format!("ttl and max_hold have to be {SHORTEST_TTL:?} or more")));
        }
        let wish = request.to_wish(now, &shared.owner);
        let patience = wish.wait_ends.and_then(|ends| ends.checked_add(shared.patience));
        let place = permit(&shared.places, patience, "max_leases").await?;
        let call = permit(&shared.calls, patience, "max_calls").await?;
        let (answer, answered) = oneshot::channel();
        let mut pending =
            Pending { id: shared.next_id.fetch_add(1, Ordering::Relaxed), commands: shared.commands.clone(), is_done: false };
        let asker = Asker { answer, _call: call };
        let command = Command::Acquire { id: pending.id, wish, request_id: rand::random(), asker, place };
        shared.commands.send(command).map_err(|_| AcquireError::Closed)?;
        let answer = answered.await.unwrap_or(Err(AcquireError::Closed));
        pending.is_done = true;
        let hold = Hold { id: pending.id, standing: answer?, commands: shared.commands.clone(), holds: shared.holds.clone() };
        let hold = Arc::new(hold);
        shared.holds.insert(&request.name, &hold);
        Ok(Lease::new(hold))
    }
}

/// A place for one more, by `until` at the latest.
async fn permit(places: &Arc<Semaphore>, until: Option<Instant>, bound: &str) -> Result<OwnedSemaphorePermit, AcquireError> {
    let permit = places.clone().acquire_owned();
    let permit = match until {
        None => permit.await,
        Some(until) => timeout_at(until, permit)
            .await
            .map_err(|_| AcquireError::Busy { message: format!("{bound} of this client is reached"), retry_after: None })?,
    };
    // Never closed.
    permit.map_err(|_| AcquireError::Closed)
}

/// An acquire that somebody waits for; gives it up when dropped.
struct Pending {
    id: u64,
    commands: Commands,
    is_done: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = self.commands.send(Command::GiveBack { id: self.id, answer: None });
        }
    }
}

/// An error with what caused it.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts.dedup();
    texts.join(": ")
}
