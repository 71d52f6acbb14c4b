//! The simulated world: true time, servers that run the script that ships, wires that delay and lose, proxies that are the
//! real coordinator over real links, clients that write to a fenced register. One seed decides everything.

pub mod client;
pub mod clock;
pub mod env;
pub mod holder;
pub mod lineage;
pub mod net;
pub mod proxy;
pub mod register;
pub mod site;
pub mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redlockd::engine::lease::Ttl;
use redlockd::engine::membership::{Charter, CounterKind};
use redlockd::engine::validity::DriftFactor;

use crate::oracle::history::{At, Fault, History, LeaseId};
use clock::{MAX_RATE_PPM, Monotonic, TrueTime};
use lineage::Lineage;
use net::Line;
use proxy::Proxy;
use register::Register;
use site::Site;

/// How big it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub nodes: usize,
    pub proxies: usize,
    /// A node's time-out at every proxy.
    pub node_timeout: Duration,
    /// The longest usual time of a message between a proxy and a server.
    pub latency: Duration,
    /// The longest TTL that the proxies grant: nodes that may have forgotten leases stay out for so long.
    pub max_ttl: Ttl,
    /// The nodes are members since long; else the first proxies are told that the cluster is new.
    pub established: bool,
    /// Nodes write every change to disk before they answer, and lose nothing when they are killed.
    pub durable: bool,
    /// Where tokens come from.
    pub counter: CounterKind,
}

impl Size {
    /// What every proxy takes the cluster for.
    pub fn charter(&self, bootstrap: bool) -> Charter {
        Charter {
            nodes: (0..self.nodes).map(|node| format!("n{node}").into()).collect(),
            counter: self.counter,
            max_ttl: self.max_ttl,
            drift: DriftFactor::DEFAULT,
            bootstrap,
        }
    }
}

/// What all parts of the world share.
pub struct Shared {
    pub time: TrueTime,
    state: Mutex<State>,
}

pub struct State {
    rng: StdRng,
    pub history: History,
    /// The lock nodes, and after them the designated server.
    pub sites: Vec<Site>,
    /// From proxy to server.
    pub lines: Vec<Vec<Line>>,
    pub register: Register,
    /// When which value was set on a node.
    pub landed: BTreeMap<String, Vec<At>>,
    /// Values of leases that were granted and have not been given back for good.
    pub owned: BTreeSet<String>,
    /// Leases of sessions that their clients have begun to give back.
    pub returned: BTreeSet<LeaseId>,
    /// Which values stand for one lease.
    pub lineage: Lineage,
    /// How many streams there have been.
    pub streams: usize,
    /// Which proxy set which value.
    pub set_by: BTreeMap<String, usize>,
    /// Which proxies were asked to release which value.
    pub released: BTreeMap<String, BTreeSet<usize>>,
    /// By how much clocks have been set back, all in all: their keys live on for that much longer.
    pub set_back: Duration,
    /// Values that a fault may have left on a server: server, value.
    pub excused: BTreeMap<(usize, String), &'static str>,
}

impl State {
    /// Draws from the world's chance.
    pub fn chance<T>(&mut self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng)
    }
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    pub fn now(&self) -> At {
        self.time.now()
    }

    /// Draws from the world's chance.
    pub fn chance<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        self.state().chance(draw)
    }

    pub fn one_in(&self, n: u32) -> bool {
        self.chance(|rng| rng.random_ratio(1, n))
    }

    /// Up to `longest`, in steps of 50 microseconds.
    pub fn up_to(&self, longest: Duration) -> Duration {
        Duration::from_micros(50 * self.chance(|rng| rng.random_range(0..=longest.as_micros() as u64 / 50)))
    }

    /// Between `from` and `to` milliseconds, in steps of 50 microseconds.
    pub fn span(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_micros(50 * self.chance(|rng| rng.random_range(from_ms * 20..=to_ms * 20)))
    }

    pub async fn sleep(&self, span: Duration) {
        self.time.until(self.now() + span).await;
    }

    pub fn note(&self, what: fmt::Arguments<'_>) {
        let now = self.now();
        self.state().history.note(now, what);
    }

    /// Enters a fault that lasts for `span` from now, in the history.
    pub fn fault(&self, to: String, what: impl fmt::Display, span: Duration) -> At {
        let (from, until) = (self.now(), self.now() + span);
        self.note(format_args!("fault {to}: {what} for {span:?}"));
        self.state().history.faults.push(Fault { what: what.to_string(), to, from, until });
        until
    }
}

/// The world.
pub struct World {
    pub shared: Arc<Shared>,
    pub size: Size,
    pub proxies: Mutex<Vec<Arc<Proxy>>>,
}

impl World {
    /// A world of which `seed` decides everything.
    pub fn new(seed: u64, size: Size, verbose: bool) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let sites = (0..=size.nodes).map(|number| Site::new(number, &size, &mut rng)).collect();
        let state = State {
            rng,
            history: if verbose { History::verbose() } else { History::default() },
            sites,
            lines: vec![vec![Line::usual(size.latency); size.nodes + 1]; size.proxies],
            register: Register::default(),
            landed: BTreeMap::new(),
            owned: BTreeSet::new(),
            returned: BTreeSet::new(),
            lineage: Lineage::default(),
            streams: 0,
            set_by: BTreeMap::new(),
            released: BTreeMap::new(),
            set_back: Duration::ZERO,
            excused: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { time: TrueTime::begin(), state: Mutex::new(state) });
        let world = Arc::new(Self { shared, size, proxies: Mutex::default() });
        for number in 0..size.proxies {
            let proxy = Proxy::start(&world, number, !size.established);
            world.proxies.lock().expect("nobody panics with it").push(proxy);
        }
        world
    }

    pub fn proxy(&self, number: usize) -> Arc<Proxy> {
        self.proxies.lock().expect("nobody panics with it")[number].clone()
    }

    /// SIGKILL, and another process in its place after `span`.
    pub async fn replace_proxy(self: &Arc<Self>, number: usize, span: Duration) {
        self.shared.fault(format!("proxy {number}"), "killed", span);
        self.proxy(number).kill();
        self.shared.sleep(span).await;
        let proxy = Proxy::start(self, number, false);
        self.proxies.lock().expect("nobody panics with it")[number] = proxy;
    }

    /// A monotonic clock of somebody.
    pub fn monotonic(&self) -> Monotonic {
        Monotonic::new(self.shared.time, self.shared.chance(|rng| rng.random_range(-MAX_RATE_PPM..=MAX_RATE_PPM)))
    }
}
