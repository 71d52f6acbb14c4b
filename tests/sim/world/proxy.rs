//! A proxy: the real coordinator over real links, with a front that does what the gRPC service does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redlockd::coordinator::attempt::{AcquireFailure, AcquireSpec};
use redlockd::coordinator::buckets::Buckets;
use redlockd::coordinator::ceiling::Ceilings;
use redlockd::coordinator::fence::Fence;
use redlockd::coordinator::lock_id::LockId;
use redlockd::coordinator::question::{Lease, Released};
use redlockd::coordinator::{Coordinator, Counter, Settings};
use redlockd::engine::lease::{LockName, Ttl};
use redlockd::engine::line::LineBounds;
use redlockd::engine::membership::CounterKind;
use redlockd::engine::quorum::Quorum;
use redlockd::engine::validity::{DriftFactor, Validity};
use redlockd::metrics::Registry;
use redlockd::node::env::Env;
use redlockd::node::link::{Link, Observer, Timing};
use redlockd::node::roster::{Roster, Seat};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::oracle::history::{At, Call, LeaseId, Promise, Wait};

use super::clock::Gate;
use super::env::SimEnv;
use super::net::SimNode;
use super::site::{Site, superseding};
use super::{Shared, World};

/// A call to the designated server may take this long.
const FENCE_TIMEOUT: Duration = Duration::from_millis(100);

/// Beyond what a caller asked for: the votes of the last try, its token, for which the counter may have to be started again while
/// others do the same, and a release that waits for time-outs.
pub const SLACK: Duration = Duration::from_secs(2);

struct Quiet;
impl Observer for Quiet {}

/// As the program does beside its work.
async fn keep_house(coordinator: Arc<Coordinator>, shared: Arc<Shared>, gate: Gate) {
    while !gate.is_dead() {
        shared.sleep(Duration::from_millis(250)).await;
        gate.passes(shared.time).await;
        coordinator.forget_expired();
    }
}

fn run_link(link: &Arc<Link>) {
    let link = link.clone();
    tokio::spawn(async move { link.run().await });
}

/// One process.
pub struct Proxy {
    pub number: usize,
    pub gate: Gate,
    pub coordinator: Arc<Coordinator>,
    links: Vec<Arc<Link>>,
    pub shared: Arc<Shared>,
    quorum: Quorum,
    /// Calls that it has not answered, by their number in the history.
    open: Mutex<BTreeSet<usize>>,
    /// To end the streams of its sessions with it.
    pub streams: Mutex<Vec<CancellationToken>>,
}

/// What a client gets of a grant.
#[derive(Clone, Debug)]
pub struct Granted {
    pub lease: LeaseId,
    pub id: LockId,
    pub validity: Validity,
    pub served_for: Duration,
}

/// What a client wants.
#[derive(Clone, Debug)]
pub struct Want {
    pub name: LockName,
    pub ttl: Ttl,
    pub wait: Duration,
    pub request: Option<(Vec<u8>, u32)>,
    pub client: String,
}

impl Want {
    /// As the proxy knows it that received it then.
    pub fn spec(&self, received: Instant) -> AcquireSpec {
        AcquireSpec {
            name: self.name.clone(),
            ttl: self.ttl,
            wait: self.wait,
            owner: None,
            token_required: true,
            request: self.request.clone(),
            min_validity_ms: 1,
            received,
            deadline: None,
        }
    }
}

/// The client has gone away.
#[derive(Default)]
pub struct Cancel {
    gone: AtomicBool,
    notify: Notify,
}

impl Cancel {
    pub fn cancel(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    async fn cancelled(&self) {
        while !self.gone.load(Ordering::Relaxed) {
            self.notify.notified().await;
        }
    }
}

impl Proxy {
    /// A new process at the place `number`.
    pub fn start(world: &Arc<World>, number: usize, bootstrap: bool) -> Arc<Self> {
        let (shared, gate, clock) = (world.shared.clone(), Gate::default(), world.monotonic());
        let env: Arc<dyn Env> = Arc::new(SimEnv { shared: shared.clone(), clock, gate: gate.clone() });
        let nodes = world.size.nodes;
        let labels: Vec<Arc<str>> = (0..nodes).map(|node| format!("n{node}").into()).collect();
        let metrics = Arc::new(Registry::new().expect("our own buckets").metrics(&labels, Some(&"fence".into())));
        let quorum = Quorum::of(nodes).expect("a number of nodes that can be configured");
        let roster = Roster::new(world.size.charter(bootstrap), quorum, env.now());
        let link = |index: usize, site: usize, timeout, seat: Option<Seat>| {
            let timing = Timing::new(timeout, Ttl::LONGEST.as_duration());
            let node = Box::new(SimNode { shared: shared.clone(), proxy: number, site, gate: gate.clone() });
            let address = format!("n{site}").into();
            Arc::new(Link::new(index, address, node, timing, env.clone(), Box::new(Quiet), seat))
        };
        let links: Vec<Arc<Link>> =
            (0..nodes).map(|node| link(node, node, world.size.node_timeout, Some(Seat::new(&roster, node)))).collect();
        let waiters = LineBounds { per_name: 100, in_all: 1_000 };
        let (key_prefix, drift) = ("lock:".to_owned(), DriftFactor::DEFAULT);
        let settings = Settings { quorum, key_prefix, drift, max_inflight: 1_000, waiters, handover_limit: 4 };
        let counter = match world.size.counter {
            CounterKind::Designated => {
                let fence = link(0, nodes, FENCE_TIMEOUT, None);
                run_link(&fence);
                let ceilings = Ceilings::new(links.clone(), quorum, env.clone(), world.size.max_ttl.as_duration());
                let fence = Fence::new(fence, ceilings, roster, env.clone(), metrics.clone());
                tokio::spawn(fence.clone().keep(bootstrap));
                Counter::Designated(fence)
            }
            CounterKind::Quorum => {
                roster.on_counter(true);
                tokio::spawn(Buckets::new(links.clone(), quorum, roster, env.clone()).keep());
                Counter::Quorum
            }
        };
        links.iter().for_each(run_link);
        let coordinator = Coordinator::new(settings, links.clone(), counter, env, metrics);
        (0..nodes).for_each(|node| drop(tokio::spawn(coordinator.clone().hear(node))));
        tokio::spawn(keep_house(coordinator.clone(), shared.clone(), gate.clone()));
        Arc::new(Self { number, gate, coordinator, links, shared, quorum, open: Mutex::default(), streams: Mutex::default() })
    }

    /// SIGSTOP, and SIGCONT after `span`: its clients have to wait for so much longer.
    pub fn pause(&self, span: Duration) {
        let until = self.shared.fault(format!("proxy {}", self.number), "stopped", span);
        self.gate.pause(until);
        let calls = &mut self.shared.state().history.calls;
        self.open.lock().expect("nobody panics with it").iter().for_each(|call| calls[*call].due += span);
    }

    /// SIGKILL: its clients see their connections end.
    pub fn kill(&self) {
        self.gate.kill();
        self.streams.lock().expect("nobody panics with it").iter().for_each(CancellationToken::cancel);
        let open = std::mem::take(&mut *self.open.lock().expect("nobody panics with it"));
        let now = self.shared.now();
        open.into_iter().for_each(|call| self.shared.state().history.calls[call].answered = Some(now));
        let sites: Vec<_> = self.shared.state().sites.iter().map(|site| site.wires.clone()).collect();
        for wire in sites.iter().flatten().filter(|wire| wire.proxy == self.number) {
            wire.cut(&self.shared, &self.gate, "the proxy was killed");
        }
        let hang_up = |site: &mut Site| site.close_ears(|_, ear| ear.proxy == self.number);
        self.shared.state().sites.iter_mut().for_each(hang_up);
        self.excuse_what_it_owed();
    }

    /// The releases that it had not sent die with it.
    fn excuse_what_it_owed(&self) {
        let now = self.shared.now();
        let state = &mut *self.shared.state();
        for site in &state.sites {
            for (_, value, _) in site.server.keys(site.wall_clock(now)) {
                let value = String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
                let was_asked = state.released.get(&value).is_some_and(|by| by.contains(&self.number));
                let owed = was_asked || state.set_by.get(&value) == Some(&self.number);
                if owed && !state.owned.contains(&value) {
                    state.excused.insert((site.number, value), "its release died with its proxy");
                }
            }
        }
    }

    /// Whether nothing is under way or waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.links.iter().all(|link| link.is_up() && link.is_idle())
    }

    /// `Acquire`, from the receipt of the request to the answer. `valid_until` says when the client will think that the
    /// lease ends, in true time.
    pub async fn acquire(
        &self,
        want: &Want,
        cancel: &Cancel,
        valid_until: impl FnOnce(Duration, Validity) -> At,
    ) -> Option<Result<Granted, &'static str>> {
        let received = self.coordinator.now();
        let entered = self.enter(format!("acquire {} by {}", want.name.as_str(), want.client), want.wait + SLACK);
        let spec = want.spec(received);
        let _admission = self.coordinator.admit(!want.wait.is_zero()).expect("fewer clients than that");
        let mut waits = (!want.wait.is_zero()).then(|| self.stand_in_line(want));
        let outcome = tokio::select! {
            biased;
            outcome = self.coordinator.acquire(spec) => outcome,
            () = cancel.cancelled() => {
                drop(entered);
                return None;
            }
        };
        drop(entered);
        waits.iter_mut().filter(|_| outcome.is_ok()).for_each(Waits::got);
        drop(waits);
        let grant = match outcome {
            Ok(grant) => grant,
            Err(failure) => return Some(Err(label(&failure))),
        };
        // The client may go away when the grant is there and its answer is not written yet.
        tokio::select! {
            biased;
            () = cancel.cancelled() => return None,
            () = self.shared.sleep(self.shared.span(0, 1)) => {}
        }
        self.gate.passes(self.shared.time).await;
        let Some((validity, served_for)) = grant.answer() else { return Some(Err("too late")) };
        let id = grant.lock_id();
        let lease = self.granted(want, &id, valid_until(served_for, validity));
        grant.delivered();
        Some(Ok(Granted { lease, id, validity, served_for }))
    }

    pub fn granted(&self, want: &Want, id: &LockId, until: At) -> LeaseId {
        let now = self.shared.now();
        let value = id.value.as_str();
        let token = id.token.map(redlockd::engine::fencing::Token::get);
        self.shared.note(format_args!("grant {} to {} {value} token {token:?}", want.name.as_str(), want.client));
        let kept_until = self.kept_until(id);
        let state = &mut *self.shared.state();
        let mut landed = state.landed.get(value).cloned().unwrap_or_default();
        landed.sort_unstable();
        let lease = state.history.leases.len();
        state.owned.insert(value.to_owned());
        // Between its quorum and its answer a higher attempt of the same request may have taken its place. The client has
        // given it up: the highest attempt is the one that counts.
        if !is_superseded(&state.landed, value) {
            state.history.promises.push(Promise { lease, until, kept_until });
        }
        state.history.leases.push(crate::oracle::history::Lease {
            name: want.name.as_str().to_owned(),
            client: want.client.clone(),
            token,
            // If no quorum ever set it, it could be granted at any time: then its promise is broken.
            not_before: landed.get(self.quorum.size() - 1).copied().unwrap_or(now),
            granted_by: now,
            held: None,
        });
        lease
    }

    /// From now on `id` stands for a lease.
    pub fn adopted(&self, lease: LeaseId, id: &LockId, until: At) {
        self.shared.note(format_args!("lease {lease} is adopted as {}", id.value.as_str()));
        let kept_until = self.kept_until(id);
        self.shared.state().history.promises.push(Promise { lease, until, kept_until });
    }

    /// Until when a quorum of the nodes keeps a lease, under whatever value.
    pub fn kept_until(&self, id: &LockId) -> At {
        let (now, key) = (self.shared.now(), format!("lock:{}", id.name.as_str()));
        let state = self.shared.state();
        let nodes = &state.sites[..self.quorum.nodes()];
        let first = state.lineage.first(id.value.as_str());
        let is_ours = |value: &str| state.lineage.first(value) == first;
        let mut ends: Vec<At> = nodes.iter().map(|site| site.keeps_until(&key, is_ours, now)).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends[self.quorum.size() - 1]
    }

    /// `Release`.
    pub async fn release(&self, id: &LockId) -> Result<Released, &'static str> {
        let entered = self.enter(format!("release {}", id.name.as_str()), SLACK);
        self.shared.state().released.entry(id.value.as_str().to_owned()).or_default().insert(self.number);
        let _admission = self.coordinator.admit(false).expect("fewer clients than that");
        let outcome = self.coordinator.release(id).await.map_err(|_| "no quorum");
        drop(entered);
        if outcome == Ok(Released::Released) {
            self.shared.state().owned.remove(id.value.as_str());
        }
        outcome
    }

    /// `Renew`.
    pub async fn renew(&self, id: &LockId, ttl: Ttl) -> Result<Lease, &'static str> {
        let received = self.coordinator.now();
        let entered = self.enter(format!("renew {}", id.name.as_str()), SLACK);
        let _admission = self.coordinator.admit(false).expect("fewer clients than that");
        let outcome = self.coordinator.renew(id, ttl, received).await.map_err(|_| "no quorum");
        drop(entered);
        outcome
    }

    /// `Check`.
    pub async fn check(&self, id: &LockId) -> Result<Lease, &'static str> {
        let received: Instant = self.coordinator.now();
        let entered = self.enter(format!("check {}", id.name.as_str()), SLACK);
        let _admission = self.coordinator.admit(false).expect("fewer clients than that");
        let outcome = self.coordinator.check(id, received).await.map_err(|_| "no quorum");
        drop(entered);
        outcome
    }

    fn stand_in_line(&self, want: &Want) -> Waits<'_> {
        let name = want.name.as_str();
        // A proxy that is started again is another one.
        let line = format!("{name} at proxy {} of {:p}", self.number, Arc::as_ptr(&self.coordinator));
        let waits = &mut self.shared.state().history.waits;
        waits.push(Wait {
            name: name.to_owned(),
            line,
            client: want.client.clone(),
            joined: self.shared.now(),
            got: None,
            left: None,
        });
        Waits { shared: &self.shared, number: waits.len() - 1 }
    }

    fn enter(&self, what: String, bound: Duration) -> Entered<'_> {
        Entered { proxy: self, call: self.open_call(what, bound) }
    }

    /// A call that has to be answered within `bound`: its number in the history.
    pub fn open_call(&self, what: String, bound: Duration) -> usize {
        let sent = self.shared.now();
        let mut state = self.shared.state();
        state.history.calls.push(Call {
            what: format!("{what} at proxy {}", self.number),
            sent,
            answered: None,
            due: sent + bound,
        });
        let call = state.history.calls.len() - 1;
        self.open.lock().expect("nobody panics with it").insert(call);
        call
    }

    /// It is answered.
    pub fn close_call(&self, call: usize) {
        if self.open.lock().expect("nobody panics with it").remove(&call) {
            let now = self.shared.now();
            // The history is gone when what is left of a run is dropped.
            if let Some(call) = self.shared.state().history.calls.get_mut(call) {
                call.answered = Some(now);
            }
        }
    }
}

/// Somebody in line, until it is dropped.
struct Waits<'a> {
    shared: &'a Shared,
    number: usize,
}

impl Waits<'_> {
    fn got(&mut self) {
        let now = self.shared.now();
        self.shared.state().history.waits[self.number].got = Some(now);
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let now = self.shared.now();
        // The history is gone when what is left of a run is dropped.
        if let Some(wait) = self.shared.state().history.waits.get_mut(self.number) {
            wait.left = Some(now);
        }
    }
}

/// A call under way. Over when it is answered, and when its client has gone away and nobody works on it any more.
struct Entered<'a> {
    proxy: &'a Proxy,
    call: usize,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.proxy.close_call(self.call);
    }
}

/// Whether a value of the same request with a higher attempt was set somewhere.
fn is_superseded(landed: &BTreeMap<String, Vec<At>>, value: &str) -> bool {
    let request = value.split('.').next().unwrap_or(value);
    let same = landed.range(request.to_owned()..).map(|(other, _)| other).take_while(|other| other.starts_with(request));
    same.filter(|other| *other != value).any(|other| superseding(value, other) == value)
}

pub fn label(failure: &AcquireFailure) -> &'static str {
    match failure {
        AcquireFailure::Contended { .. } => "contended",
        AcquireFailure::LineFull(_) => "line full",
        AcquireFailure::NoQuorum(_) => "no quorum",
        AcquireFailure::NoToken(_) => "no token",
        AcquireFailure::TooLate { .. } => "too late",
        AcquireFailure::Deadline => "deadline",
        AcquireFailure::Draining => "draining",
    }
}
