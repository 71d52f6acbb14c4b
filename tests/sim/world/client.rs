//! A client: asks over a network that delays and loses, counts its lease by its own clock, writes to the register, and is
//! sometimes careless, slow or gone.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use redlockd::coordinator::question::Released;
use redlockd::engine::lease::{LockName, Ttl};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::oracle::history::{At, Denial, Held, Intrusion, Promise, Write};

use super::World;
use super::clock::Monotonic;
use super::proxy::{Cancel, Granted, Proxy, Want};

/// How the clients of a run behave.
#[derive(Clone, Debug)]
pub struct Habits {
    pub names: usize,
    /// In milliseconds.
    pub ttls: Vec<u64>,
    /// Between two locks, at most.
    pub rests_ms: u64,
    /// Before each use of a lock, at most.
    pub holds_ms: u64,
    /// Everybody waits for long, and has patience.
    pub crowd: bool,
    /// One in so many messages between clients and proxies is lost; 0: none is.
    pub loses_one_in: u32,
    /// No new lock is asked for after that, if there were enough grants.
    pub until: At,
}

/// A run with fewer grants proves little: it goes on.
const ENOUGH_GRANTS: usize = 15;

/// But not for ever: all locks may be held by clients that are gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lease in its client's hands.
#[derive(Clone, Debug)]
pub struct InHand {
    pub granted: Granted,
    pub ttl: Ttl,
    pub proxy: usize,
    /// When it ends, by the client's clock.
    pub ends: Instant,
}

pub struct Client {
    pub world: Arc<World>,
    pub label: String,
    pub clock: Monotonic,
    loses_one_in: u32,
}

/// What became of a request for a lock.
pub enum Outcome {
    Held(InHand),
    Refused,
    /// The client stopped waiting.
    NoAnswer,
}

impl Client {
    pub fn new(world: &Arc<World>, label: impl Into<String>, loses_one_in: u32) -> Self {
        let clock = world.monotonic();
        Self { world: world.clone(), label: label.into(), clock, loses_one_in }
    }

    pub fn want(&self, name: &str, ttl_ms: u64, wait: Duration) -> Want {
        let name = LockName::new(name).expect("a good name");
        let ttl = Ttl::from_millis(ttl_ms, Ttl::LONGEST).expect("a good TTL");
        Want { name, ttl, wait, request: None, client: self.label.clone() }
    }

    fn is_lost(&self) -> bool {
        self.loses_one_in > 0 && self.world.shared.one_in(self.loses_one_in)
    }

    /// One way of a message.
    async fn travel(&self) {
        let span = self.world.shared.span(0, 1);
        self.world.shared.sleep(span).await;
    }

    /// Asks for a lock, and stops waiting after `patience`. `reply_takes` is how long the answer travels, if it is special.
    pub async fn acquire(
        self: &Arc<Self>,
        proxy: usize,
        want: &Want,
        patience: Duration,
        reply_takes: Option<Duration>,
    ) -> Outcome {
        let shared = &self.world.shared;
        let sent = self.clock.now();
        shared.note(format_args!("{} asks proxy {proxy} for {} {:?}", self.label, want.name.as_str(), want.request));
        let (answer, answered) = oneshot::channel();
        let cancel = Arc::new(Cancel::default());
        let asked = Asked { client: self.clone(), proxy, want: want.clone(), sent, reply_takes, cancel: cancel.clone() };
        tokio::spawn(asked.deliver(answer));
        let answered = tokio::select! {
            biased;
            Ok(answered) = answered => answered,
            () = shared.sleep(patience) => {
                self.go_away(proxy, cancel);
                self.lost("no answer");
                return Outcome::NoAnswer;
            }
        };
        match answered {
            Ok(granted) => {
                let ends = sent + granted.served_for + granted.validity.as_duration();
                let held = Held { from: shared.now(), until: self.clock.when(ends) };
                shared.note(format_args!(
                    "{} holds {} from {:?} until {:?}",
                    self.label,
                    want.name.as_str(),
                    held.from,
                    held.until
                ));
                shared.state().history.leases[granted.lease].held = Some(held);
                Outcome::Held(InHand { granted, ttl: want.ttl, proxy, ends })
            }
            Err(why) => {
                self.lost(why);
                Outcome::Refused
            }
        }
    }

    pub fn lost(&self, why: &'static str) {
        self.world.shared.note(format_args!("{} gets {why}", self.label));
        *self.world.shared.state().history.losses.entry(why).or_default() += 1;
    }

    fn go_away(self: &Arc<Self>, proxy: usize, cancel: Arc<Cancel>) {
        let client = self.clone();
        tokio::spawn(async move {
            client.travel().await;
            client.world.proxy(proxy).gate.passes(client.world.shared.time).await;
            cancel.cancel();
        });
    }

    /// Reaches a proxy with a request; `None` if the request is lost, or nobody is there.
    pub async fn reach(&self, proxy: usize) -> Option<Arc<Proxy>> {
        self.travel().await;
        if self.is_lost() {
            return None;
        }
        let proxy = self.world.proxy(proxy);
        proxy.gate.passes(self.world.shared.time).await;
        Some(proxy)
    }

    /// A call that is not worth waiting for longer than `SHORT`.
    pub async fn ask<T>(&self, call: impl Future<Output = Option<T>>) -> Option<T> {
        const SHORT: Duration = Duration::from_secs(4);
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.world.shared.sleep(SHORT) => None,
        };
        self.travel().await;
        let lost = self.is_lost();
        answer.filter(|_| !lost)
    }

    /// Gives a lease back: from now on it does not rely on it.
    pub async fn release(&self, held: &InHand) -> Option<Released> {
        let shared = &self.world.shared;
        let now = shared.now();
        let again = shared.state().released.contains_key(held.granted.id.value.as_str());
        let mut promised = now;
        if let Some(span) = &mut shared.state().history.leases[held.granted.lease].held {
            promised = span.until;
            span.until = span.until.min(now);
        }
        let call = async {
            let proxy = self.reach(held.proxy).await?;
            proxy.release(&held.granted.id).await.ok()
        };
        let outcome = self.ask(call).await;
        if outcome == Some(Released::NotHeld) && !again && shared.now() < promised {
            let denial = Denial { at: shared.now(), lease: held.granted.lease, what: "release".to_owned() };
            shared.state().history.denials.push(denial);
        }
        shared.note(format_args!("{} releases {}: {outcome:?}", self.label, held.granted.id.name.as_str()));
        outcome
    }

    /// Renews a lease. A renewal that fails leaves it the validity that it had.
    pub async fn renew(&self, held: &mut InHand, ttl: Ttl) {
        let shared = &self.world.shared;
        let sent = self.clock.now();
        let call = async {
            let proxy = self.reach(held.proxy).await?;
            let lease = proxy.renew(&held.granted.id, ttl).await.ok()?;
            let ends = sent + lease.served_for + lease.validity?.as_duration();
            // Also what a renewal that failed says of the time that is left.
            self.note_promise(&proxy, held, ends);
            lease.held.then_some(ends)
        };
        let renewed = self.ask(call).await;
        shared.note(format_args!("{} renews {}: {}", self.label, held.granted.id.name.as_str(), renewed.is_some()));
        let Some(ends) = renewed else { return };
        held.ends = ends;
        let until = self.clock.when(ends);
        if let Some(span) = &mut shared.state().history.leases[held.granted.lease].held {
            span.until = until;
        }
    }

    /// Asks whether the lease is held still. What it is told is true, and changes nothing.
    async fn check(&self, held: &InHand) {
        let shared = &self.world.shared;
        let sent = self.clock.now();
        let call = async {
            let proxy = self.reach(held.proxy).await?;
            let lease = proxy.check(&held.granted.id).await.ok()?;
            if let Some(validity) = lease.validity {
                self.note_promise(&proxy, held, sent + lease.served_for + validity.as_duration());
            }
            Some(lease.held)
        };
        let answer = self.ask(call).await;
        let now = self.clock.now();
        // The proxy takes the time of the question off once more, and its drift.
        let clearly = now + (now - sent) + Duration::from_millis(10) < held.ends;
        if answer == Some(false) && clearly {
            let denial = Denial { at: shared.now(), lease: held.granted.lease, what: "check".to_owned() };
            shared.state().history.denials.push(denial);
        }
    }

    /// Whether it may still rely on the lease, by its own clock. If so, a quorum must still keep it for so long.
    pub fn may_use(&self, held: &InHand) -> bool {
        let may = self.clock.now() < held.ends;
        if may {
            self.note_promise(&self.world.proxy(held.proxy), held, held.ends);
        }
        may
    }

    /// What it relies on, and what the nodes keep of it now.
    fn note_promise(&self, proxy: &Proxy, held: &InHand, ends: Instant) {
        let (lease, until) = (held.granted.lease, self.clock.when(ends));
        let kept_until = proxy.kept_until(&held.granted.id);
        self.world.shared.state().history.promises.push(Promise { lease, until, kept_until });
    }

    /// Writes to the register, whatever the clock says.
    pub async fn write(&self, held: &InHand) -> bool {
        self.travel().await;
        let now = self.world.shared.now();
        let (name, token) = (held.granted.id.name.as_str(), held.granted.id.token.expect("it was required"));
        let state = &mut *self.world.shared.state();
        let accepted = state.register.write(name, token);
        state.history.note(now, format_args!("{} writes {name} with {token}: {accepted}", self.label));
        state.history.writes.push(Write {
            at: now,
            name: name.to_owned(),
            lease: held.granted.lease,
            token: token.get(),
            accepted,
        });
        accepted
    }

    /// Lives until the run is over.
    pub async fn live(self: Arc<Self>, habits: Habits) {
        let shared = self.world.shared.clone();
        while shared.now() < habits.until || self.wants_more() {
            shared.sleep(shared.span(0, habits.rests_ms)).await;
            let ttl_ms = shared.chance(|rng| *habits.ttls.choose(rng).expect("there are some"));
            let name = format!("name-{}", shared.chance(|rng| rng.random_range(0..habits.names)));
            let wait = if shared.one_in(3) { Duration::ZERO } else { shared.span(0, 3_000) };
            let wait = if habits.crowd { Duration::from_secs(30) } else { wait };
            let mut want = self.want(&name, ttl_ms, wait);
            if shared.one_in(2) {
                want.request = Some((shared.chance(|rng| rng.next_u64()).to_be_bytes().repeat(2), 1));
            }
            match self.try_hard(want, habits.crowd).await {
                None => {}
                Some(held) if habits.crowd => {
                    shared.sleep(shared.span(0, habits.holds_ms)).await;
                    self.write(&held).await;
                    self.release(&held).await;
                }
                Some(held) => self.use_it(held, habits.holds_ms).await,
            }
        }
    }

    pub fn wants_more(&self) -> bool {
        let shared = &self.world.shared;
        shared.now() < PATIENCE && shared.state().history.tally().grants < ENOUGH_GRANTS
    }

    /// With a request id, a request without an answer is made again through another proxy.
    async fn try_hard(self: &Arc<Self>, mut want: Want, patient: bool) -> Option<InHand> {
        let shared = &self.world.shared;
        for attempt in 1..=3 {
            let proxies = self.world.size.proxies;
            let any = shared.chance(|rng| rng.random_range(0..proxies));
            // In a crowd everybody comes back to the same line.
            let proxy = if patient { self.label.bytes().map(usize::from).sum::<usize>() % proxies } else { any };
            // Some have no patience at all, and go away at any moment.
            let patience = if shared.one_in(4) && !patient { shared.span(0, 40) } else { want.wait + shared.span(100, 2_000) };
            let request = want.request.as_mut();
            match request {
                // Some do not raise the number, as they should.
                Some((_, number)) if !shared.one_in(4) => *number = attempt,
                Some(_) => {}
                None if attempt > 1 => return None,
                None => {}
            }
            match self.acquire(proxy, &want, patience, None).await {
                Outcome::Held(held) => return Some(held),
                Outcome::Refused => return None,
                Outcome::NoAnswer => {}
            }
        }
        None
    }

    async fn use_it(&self, mut held: InHand, holds_ms: u64) {
        let shared = &self.world.shared;
        let ttl_ms = u64::try_from(held.ttl.as_duration().as_millis()).expect("it is short");
        for _ in 0..shared.chance(|rng| rng.random_range(0..5)) {
            shared.sleep(shared.span(0, (ttl_ms / 3).min(holds_ms))).await;
            if !self.may_use(&held) {
                break;
            }
            match shared.chance(|rng| rng.random_range(0..8)) {
                // A pause between the look at the clock and the write, as of a garbage collector.
                0 => shared.sleep(shared.span(0, 2 * ttl_ms.min(3_000))).await,
                1 => {
                    let again = held.ttl;
                    self.renew(&mut held, again).await;
                }
                2 => {
                    let less = Ttl::from_millis((ttl_ms / 2).max(10), Ttl::LONGEST).expect("less than a good one");
                    self.renew(&mut held, less).await;
                }
                3 => {
                    // So short that it may be over when the answer is there: then nothing is taken away.
                    let least = Ttl::from_millis(10, Ttl::LONGEST).expect("the least");
                    self.renew(&mut held, least).await;
                }
                4 => {
                    self.check(&held).await;
                }
                _ => {}
            }
            self.write(&held).await;
        }
        if shared.one_in(3) {
            // Another proxy serves the rest.
            held.proxy = shared.chance(|rng| rng.random_range(0..self.world.size.proxies));
        }
        if shared.one_in(5) {
            // It crashed: nobody gives the lease back. It comes back and does not know.
            if shared.one_in(2) {
                shared.sleep(shared.span(0, 2 * ttl_ms.min(3_000))).await;
                self.write(&held).await;
            }
            return;
        }
        if self.release(&held).await == Some(Released::Released) && shared.one_in(4) {
            self.intrude(held).await;
        }
    }

    /// Uses a lease that it has given back.
    async fn intrude(&self, held: InHand) {
        let shared = &self.world.shared;
        shared.sleep(shared.span(0, 500)).await;
        let renews = shared.one_in(2);
        let call = async {
            let proxy = self.reach(held.proxy).await?;
            if renews {
                Some(proxy.renew(&held.granted.id, held.ttl).await.ok()?.held)
            } else {
                Some(proxy.release(&held.granted.id).await.ok()? == Released::Released)
            }
        };
        let Some(worked) = self.ask(call).await else { return };
        let what = if renews { "renew" } else { "release" };
        let intrusion = Intrusion { at: shared.now(), lease: held.granted.lease, what: what.to_owned(), worked };
        shared.state().history.intrusions.push(intrusion);
    }
}

/// A request for a lock on its way.
struct Asked {
    client: Arc<Client>,
    proxy: usize,
    want: Want,
    sent: Instant,
    reply_takes: Option<Duration>,
    cancel: Arc<Cancel>,
}

impl Asked {
    async fn deliver(self, answer: oneshot::Sender<Result<Granted, &'static str>>) {
        let (client, shared) = (&self.client, &self.client.world.shared);
        let Some(proxy) = client.reach(self.proxy).await else { return };
        let valid_until = |served_for, validity: redlockd::engine::validity::Validity| {
            client.clock.when(self.sent + served_for + validity.as_duration())
        };
        let Some(outcome) = proxy.acquire(&self.want, &self.cancel, valid_until).await else { return };
        match self.reply_takes {
            Some(span) => shared.sleep(span).await,
            None => client.travel().await,
        }
        if !client.is_lost() {
            let _ = answer.send(outcome);
        }
    }
}
