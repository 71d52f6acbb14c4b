//! Five nodes and the counter, three proxies, a gate on every way between them; and what can be done to them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use redlockd::proto::lock_service_client::LockServiceClient;
use tonic::transport::Channel;

use crate::plan::{NODES, PROXIES, Planned, Target, What};
use crate::support::clock::Clock;
use crate::support::gate::{self, Gate, Hold};
use crate::support::{Cluster, DURABLE, Proxy, Redis};

/// Short, so that a node that suffers is noticed while it does.
const FLAGS: [&str; 8] =
    ["--nodes-timeout", "150ms", "--fencing-timeout", "200ms", "--limits-max-ttl", "5s", "--limits-default-ttl", "5s"];

/// How clients reach each proxy; the address of one that is started again is new.
pub type Clients = Arc<Mutex<Vec<LockServiceClient<Channel>>>>;

pub struct World {
    cluster: Cluster,
    clocks: Vec<Clock>,
    /// For every proxy a gate before every node, and one before the counter.
    gates: Vec<Arc<Vec<Gate>>>,
    proxies: Vec<Proxy>,
    pub clients: Clients,
}

impl World {
    pub async fn start() -> Self {
        let clocks: Vec<Clock> = (0..NODES).map(|_| Clock::new()).collect();
        let nodes = clocks.iter().map(|clock| Redis::start_in(&DURABLE, &[], clock.environment())).collect();
        let cluster = Cluster { nodes, fence: Redis::start(&DURABLE) };
        let (mut gates, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..PROXIES {
            let servers = cluster.nodes.iter().chain([&cluster.fence]);
            let before = gate::before_all(servers.map(|server| server.port)).await;
            proxies.push(start_proxy(&before).await);
            gates.push(before);
        }
        let clients = Arc::new(Mutex::new(proxies.iter().map(client).collect()));
        let world = Self { cluster, clocks, gates, proxies, clients };
        world.settled().await;
        world
    }

    /// Waits until every proxy can grant and none does anything.
    pub async fn settled(&self) {
        for proxy in &self.proxies {
            proxy.ready().await;
            proxy.idle().await;
        }
    }

    /// Every lock's key on every node.
    pub fn keys(&self) -> Vec<(Target, String)> {
        let nodes = self.cluster.nodes.iter().enumerate();
        nodes.flat_map(|(index, node)| node.keys().into_iter().map(move |key| (Target::Node(index), key))).collect()
    }

    pub fn begin(&mut self, fault: &Planned) {
        for target in &fault.targets {
            match (fault.kind.what, *target) {
                (What::Killed, Target::Proxy(index)) => self.proxies[index].process.kill(),
                (What::Paused | What::StoppedLong, Target::Proxy(index)) => self.signal(index, Signal::SIGSTOP),
                (_, Target::Proxy(_)) => unreachable!("{fault:?}"),
                (What::Killed | What::Emptied, server) => self.server(server).kill(),
                (What::Paused | What::StoppedLong, server) => self.server(server).stop(),
                (What::ClockForward, Target::Node(index)) => self.clocks[index].shift(micros(fault.leap)),
                (What::ClockBack, Target::Node(index)) => self.clocks[index].shift(-micros(fault.leap)),
                (_, server) => self.gates_of(server, fault).for_each(|gate| close(gate, fault)),
            }
        }
    }

    pub async fn end(&mut self, fault: &Planned) {
        for target in &fault.targets {
            match (fault.kind.what, *target) {
                (What::Killed, Target::Proxy(index)) => {
                    self.proxies[index] = start_proxy(&self.gates[index]).await;
                    self.clients.lock().unwrap()[index] = client(&self.proxies[index]);
                }
                (_, Target::Proxy(index)) => self.signal(index, Signal::SIGCONT),
                (What::Killed, server) => self.server(server).start_again(),
                (What::Emptied, server) => self.server(server).start_again_empty(),
                (What::Paused | What::StoppedLong, server) => self.server(server).resume(),
                (What::ClockForward | What::ClockBack, Target::Node(index)) => self.clocks[index].shift(0),
                (_, server) => self.gates_of(server, fault).for_each(Gate::open),
            }
        }
    }

    fn signal(&self, proxy: usize, signal: Signal) {
        self.proxies[proxy].process.signal(signal);
    }

    fn server(&mut self, target: Target) -> &mut Redis {
        match target {
            Target::Node(index) => &mut self.cluster.nodes[index],
            Target::Counter => &mut self.cluster.fence,
            Target::Proxy(_) => unreachable!("a proxy is no Redis server"),
        }
    }

    fn gates_of(&self, target: Target, fault: &Planned) -> impl Iterator<Item = &Gate> {
        let server = if let Target::Node(index) = target { index } else { NODES };
        let struck = fault.between;
        let of_proxies = self.gates.iter().enumerate().filter(move |(proxy, _)| struck.is_none_or(|struck| struck == *proxy));
        of_proxies.map(move |(_, gates)| &gates[server])
    }
}

fn close(gate: &Gate, fault: &Planned) {
    match fault.kind.what {
        What::RequestsHeld => gate.hold_requests(),
        What::RepliesHeld => gate.hold_replies(),
        What::BlackHoled => gate.set(Hold { requests: true, replies: true, ..Hold::default() }),
        What::Slow => gate.set(Hold { delay: fault.delay, ..Hold::default() }),
        What::Reset => gate.reset(),
        What::Refused => gate.refuse(),
        What::ReplySwallowed => gate.swallow_next_reply(),
        other => unreachable!("{other:?} is no fault of a connection"),
    }
}

async fn start_proxy(gates: &[Gate]) -> Proxy {
    let urls: Vec<String> = gates.iter().map(Gate::url).collect();
    Proxy::start_unready(&urls[..NODES], &urls[NODES], &FLAGS).await
}

fn client(proxy: &Proxy) -> LockServiceClient<Channel> {
    LockServiceClient::new(Channel::from_shared(proxy.url()).unwrap().connect_lazy())
}

fn micros(leap: Duration) -> i64 {
    leap.as_micros() as i64
}

/// A step of the clock is seen by a server that runs, and a key ends by it.
#[tokio::test]
async fn a_clock_can_be_set_while_its_server_runs() {
    let clock = Clock::new();
    let node = Redis::start_in(&[], &[], clock.environment());
    let second = |node: &Redis| node.cli(&["TIME"]).lines().next().unwrap().parse::<i64>().unwrap();
    let before = second(&node);
    node.cli(&["SET", "lock:a", "x", "PX", "3600000"]);
    clock.shift(3_000_000_000);
    assert!((before + 3_000..before + 3_300).contains(&second(&node)));
    assert!((1..=600_000).contains(&node.pttl("a").unwrap()));
    clock.shift(-3_000_000_000);
    assert!(second(&node) < before - 2_000);
    assert!(node.pttl("a").unwrap() > 6_000_000);
    clock.shift(7_200_000_000);
    assert_eq!(node.pttl("a"), None);
}
