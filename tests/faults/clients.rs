//! Clients that want few names and use their leases well and badly: they write, renew, check, pause past the end and write all
//! the same, crash, lose answers and ask again elsewhere, and use lock ids that are not theirs any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use redlockd::proto;
use redlockd::proto::acquire_response::Outcome;
use redlockd::proto::check_response::Outcome as Checked;
use redlockd::proto::granted::Fencing;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::renew_response::Outcome as Renewed;
use redlockd::proto::{ReleaseOutcome, TokenRequirement};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::oracle::history::{Call, Fault, Held, LeaseId};
use crate::record::Record;
use crate::support::{millis, std_duration};
use crate::world::Clients;

pub const CLIENTS: usize = 24;
pub const NAMES: [&str; 6] = ["orders/1", "orders/2", "orders/3", "mail", "cron", "ledger"];

/// No lease is asked for longer than this.
pub const LONGEST_TTL_MS: u64 = 3_000;

/// What the proxies subtract from the longest TTL for clocks that run apart, and some.
const DRIFT: Duration = Duration::from_millis(10);

/// Nothing here has to be fast: an answer that takes this much longer than was asked for hangs.
const SLACK: Duration = Duration::from_secs(30);

/// Tries of one request, each at another proxy.
const ATTEMPTS: u32 = 3;

/// Lock ids that are known to be dead, kept for later.
const GRAVES: usize = 20;

pub struct Client {
    pub name: String,
    pub rng: StdRng,
    pub proxies: Clients,
    pub record: Record,
    pub stopping: Arc<AtomicBool>,
    pub graves: Vec<(LeaseId, String)>,
}

/// A lease in use.
struct Lease {
    id: LeaseId,
    lock_id: String,
    name: String,
    token: Option<u64>,
    until: Instant,
    /// What was asked for.
    request: proto::AcquireRequest,
}

/// How long a client waits for an answer.
#[derive(Clone, Copy)]
enum Patience {
    /// For as long as it takes.
    Endless,
    /// Then it drops the call.
    Drops(Duration),
    /// Then its deadline has passed, of which the proxy knows.
    Deadline(Duration),
}

impl Client {
    pub async fn run(mut self) {
        while !self.stopping.load(Ordering::Relaxed) {
            let name = NAMES.iter().choose(&mut self.rng).expect("there are names");
            let request = self.wanting(name);
            match self.acquire(request).await {
                Some(lease) => self.hold(lease).await,
                None => self.rest(5..100).await,
            }
            if self.rng.random_bool(0.2) {
                self.intrude().await;
            }
        }
    }

    async fn rest(&mut self, ms: std::ops::Range<u64>) {
        let pause = self.rng.random_range(ms);
        sleep(Duration::from_millis(pause)).await;
    }

    fn wanting(&mut self, name: &str) -> proto::AcquireRequest {
        let rng = &mut self.rng;
        let id = rng.random_bool(0.7).then(|| rng.random::<[u8; 16]>().to_vec());
        let token = if rng.random_bool(0.95) { TokenRequirement::Required } else { TokenRequirement::BestEffort };
        proto::AcquireRequest {
            name: name.to_owned(),
            ttl: millis(a_ttl(rng)),
            wait: millis(if rng.random_bool(0.3) { 0 } else { rng.random_range(100..3_000) }),
            owner: self.name.clone(),
            token: token.into(),
            attempt: u32::from(id.is_some()),
            request_id: id.unwrap_or_default().into(),
            ..Default::default()
        }
    }

    /// One of the proxies, another than `but`.
    fn a_proxy(&mut self, but: Option<usize>) -> (usize, LockServiceClient<Channel>) {
        let proxies = self.proxies.lock().unwrap();
        let index = (0..proxies.len()).filter(|index| Some(*index) != but).choose(&mut self.rng).expect("another proxy");
        (index, proxies[index].clone())
    }

    fn patience(&mut self) -> Patience {
        let patience = Duration::from_millis(self.rng.random_range(20..4_000));
        match self.rng.random_range(0..4) {
            0 => Patience::Drops(patience),
            1 => Patience::Deadline(patience),
            _ => Patience::Endless,
        }
    }

    /// Takes a lock, asking one proxy after the other as long as there is no answer.
    async fn acquire(&mut self, mut request: proto::AcquireRequest) -> Option<Lease> {
        let mut asked = None;
        loop {
            let (proxy, mut client) = self.a_proxy(asked);
            asked = Some(proxy);
            let what = format!("acquire {} at proxy {}", request.name, proxy + 1);
            let (patience, message) = (self.patience(), Request::new(request.clone()));
            let wait = std_duration(request.wait);
            let sent = Instant::now();
            match self.call(what, wait, patience, message, async |message| client.acquire(message).await).await {
                Ok(answer) => match answer.outcome.expect("an outcome") {
                    Outcome::Granted(granted) => return Some(self.granted(request, granted, sent)),
                    Outcome::Contended(_) => {
                        self.record.loss("contended");
                        return None;
                    }
                },
                Err(loss) => self.record.loss(loss),
            }
            // Without an id a repeat could find its own lock held.
            if request.request_id.is_empty() || request.attempt >= ATTEMPTS {
                return None;
            }
            request.attempt += 1;
            self.record.count("retries at another proxy");
        }
    }

    fn granted(&mut self, request: proto::AcquireRequest, granted: proto::Granted, sent: Instant) -> Lease {
        let until = sent + std_duration(granted.served_for) + std_duration(granted.validity);
        let token = match granted.fencing {
            Some(Fencing::FencingToken(token)) => Some(token),
            _ => None,
        };
        let record = &self.record;
        let held = Held { from: record.now(), until: record.at(until) };
        let id = record.lease(crate::oracle::history::Lease {
            name: request.name.clone(),
            client: self.name.clone(),
            token,
            not_before: record.at(sent),
            granted_by: held.from,
            held: Some(held),
        });
        Lease { id, lock_id: granted.lock_id, name: request.name.clone(), token, until, request }
    }

    /// Works under a lease for a while, then leaves it in one of many ways.
    async fn hold(&mut self, mut lease: Lease) {
        for _ in 0..self.rng.random_range(1..6) {
            self.write(&lease);
            self.rest(2..60).await;
            if Instant::now() >= lease.until {
                self.record.count("leases that ended during the work");
                break;
            }
            match self.rng.random_range(0..10) {
                0 | 1 => self.renew(&mut lease).await,
                2 => self.check(&lease).await,
                _ => {}
            }
        }
        match self.rng.random_range(0..100) {
            0..4 => self.record.count("crashes of clients"),
            4..14 => self.pause_past_the_end(lease).await,
            14..19 if !lease.request.request_id.is_empty() => self.ask_again(lease).await,
            _ => self.release(lease).await,
        }
    }

    fn write(&mut self, lease: &Lease) {
        let Some(token) = lease.token else { return };
        // A refusal is the proof that somebody else was granted the lock since.
        if !self.record.write(lease.id, &lease.name, token) {
            self.bury(lease);
        }
    }

    /// Remembers a lease that is over for certain.
    fn bury(&mut self, lease: &Lease) {
        if self.graves.len() == GRAVES {
            self.graves.remove(0);
        }
        self.graves.push((lease.id, lease.lock_id.clone()));
    }

    async fn renew(&mut self, lease: &mut Lease) {
        let (ttl, sent) = (a_ttl(&mut self.rng), Instant::now());
        match self.try_renew(lease.id, &lease.lock_id, ttl).await {
            Ok(Renewed::Renewed(renewed)) => {
                self.record.count("renewed");
                let until = sent + std_duration(renewed.served_for) + std_duration(renewed.validity);
                // No renewal takes anything away.
                lease.until = lease.until.max(until);
                self.record.until(lease.id, lease.until, "renewed");
            }
            // One that took as long as its TTL is lost for that alone.
            Ok(Renewed::Lost(_)) if sent.elapsed() + DRIFT >= Duration::from_millis(ttl) => {
                self.record.count("renewals that were too late");
            }
            Ok(Renewed::Lost(_)) => self.found_lost(lease, "renewals that found the lease lost", Duration::ZERO),
            Err(_) => self.record.count("renewals without an answer"),
        }
    }

    async fn try_renew(&mut self, id: LeaseId, lock_id: &str, ttl_ms: u64) -> Result<Renewed, &'static str> {
        let message = Request::new(proto::RenewRequest { lock_id: lock_id.to_owned(), ttl: millis(ttl_ms) });
        let (proxy, mut client) = self.a_proxy(None);
        let (what, patience) = (format!("renew lease {id} at proxy {}", proxy + 1), self.patience());
        let answer = self.call(what, Duration::ZERO, patience, message, async |message| client.renew(message).await).await?;
        Ok(answer.outcome.expect("an outcome"))
    }

    async fn check(&mut self, lease: &Lease) {
        let message = Request::new(proto::CheckRequest { lock_id: lease.lock_id.clone() });
        let (proxy, mut client) = self.a_proxy(None);
        let (what, patience) = (format!("check lease {} at proxy {}", lease.id, proxy + 1), self.patience());
        let sent = Instant::now();
        let answer = self.call(what, Duration::ZERO, patience, message, async |message| client.check(message).await).await;
        match answer.map(|answer| answer.outcome.expect("an outcome")) {
            Ok(Checked::Held(_)) => self.record.count("checks that found the lease held"),
            // It answers so too if its own time and the drift are all that is left.
            Ok(Checked::NotHeld(_)) => self.found_lost(lease, "checks that found the lease gone", sent.elapsed() + DRIFT),
            Err(_) => self.record.count("checks without an answer"),
        }
    }

    /// A quorum does not hold the lease, or does so for less than `doubt`: it must not have promised more.
    fn found_lost(&mut self, lease: &Lease, what: &str, doubt: Duration) {
        self.record.count(what);
        self.record.note(format_args!("lease {}: {what}, doubt {doubt:?}", lease.id));
        let kept = Instant::now() + doubt;
        if kept < lease.until {
            self.record.promise(lease.id, lease.until, kept);
        }
    }

    async fn pause_past_the_end(&mut self, lease: Lease) {
        let from = self.record.now();
        let end = lease.until + Duration::from_millis(self.rng.random_range(50..1_200));
        tokio::time::sleep_until(end.into()).await;
        let (what, to) = (format!("{} Paused", self.name), "clients".to_owned());
        self.record.fault(Fault { what, to, from, until: self.record.now() });
        self.record.count("pauses of clients past the end of their lease");
        self.write(&lease);
        if self.rng.random_bool(0.5) {
            self.release(lease).await;
        }
    }

    /// As if the answer had been lost: the same request again, at another proxy. The new lease takes the place of the old one.
    async fn ask_again(&mut self, lease: Lease) {
        self.record.until(lease.id, lease.until.min(Instant::now()), "asked for again");
        self.record.count("granted requests that were asked again");
        let request = proto::AcquireRequest { attempt: lease.request.attempt + 1, ..lease.request.clone() };
        if let Some(newer) = self.acquire(request).await {
            self.bury(&lease);
            self.write(&newer);
            self.release(newer).await;
        }
    }

    async fn release(&mut self, lease: Lease) {
        self.record.until(lease.id, lease.until.min(Instant::now()), "released");
        for attempt in 1..=ATTEMPTS {
            match self.try_release(lease.id, &lease.lock_id).await {
                Ok(ReleaseOutcome::Released) => {
                    self.record.count("released");
                    return self.bury(&lease);
                }
                // A repeat may find what the first has done.
                Ok(_) if attempt == 1 => {
                    return self.found_lost(&lease, "releases that found the lease gone", Duration::ZERO);
                }
                Ok(_) => return self.record.count("repeated releases that found nothing"),
                Err(_) => self.record.count("releases without an answer"),
            }
        }
    }

    async fn try_release(&mut self, id: LeaseId, lock_id: &str) -> Result<ReleaseOutcome, &'static str> {
        let message = Request::new(proto::ReleaseRequest { lock_id: lock_id.to_owned() });
        let (proxy, mut client) = self.a_proxy(None);
        let (what, patience) = (format!("release lease {id} at proxy {}", proxy + 1), self.patience());
        let answer = self.call(what, Duration::ZERO, patience, message, async |message| client.release(message).await).await?;
        Ok(answer.outcome())
    }

    /// Uses the lock id of a lease that is over.
    async fn intrude(&mut self) {
        let Some((id, lock_id)) = self.graves.iter().choose(&mut self.rng).cloned() else { return };
        if self.rng.random_bool(0.5) {
            if let Ok(outcome) = self.try_release(id, &lock_id).await {
                self.record.intrusion(id, "release", outcome == ReleaseOutcome::Released);
            }
        } else if let Ok(outcome) = self.try_renew(id, &lock_id, LONGEST_TTL_MS).await {
            self.record.intrusion(id, "renew", matches!(outcome, Renewed::Renewed(_)));
        }
    }

    /// A call, and what came of it. It has to be answered within `wait`, or given up when the client's patience ends.
    async fn call<M, T>(
        &self,
        what: String,
        wait: Duration,
        patience: Patience,
        mut message: Request<M>,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, &'static str> {
        let sent = Instant::now();
        let (limit, due) = match patience {
            Patience::Endless => (wait + SLACK, wait + SLACK),
            Patience::Drops(patience) => (patience, patience + SLACK),
            Patience::Deadline(deadline) => {
                message.set_timeout(deadline);
                (deadline + SLACK, deadline + SLACK)
            }
        };
        let outcome = timeout(limit, call(message)).await;
        let hangs = outcome.is_err() && !matches!(patience, Patience::Drops(_));
        let answered = (!hangs).then(|| self.record.now());
        self.record.call(Call {
            what: format!("{}: {what}", self.name),
            sent: self.record.at(sent),
            answered,
            due: self.record.at(sent + due),
        });
        match outcome {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(word(&status)),
            Err(_) => Err("given up by the client"),
        }
    }
}

/// Mostly short, so that a lock whose holder crashed is soon of use again.
fn a_ttl(rng: &mut StdRng) -> u64 {
    let mut any = || rng.random_range(300..=LONGEST_TTL_MS);
    any().min(any())
}

/// What a status counts as.
fn word(status: &Status) -> &'static str {
    match status.code() {
        Code::Unavailable if status.message().is_empty() || status.details().is_empty() => "connection lost",
        Code::Unavailable => "UNAVAILABLE",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Cancelled => "CANCELLED",
        Code::Unknown | Code::Internal => "connection lost",
        _ => panic!("no client asks for this: {status:?}"),
    }
}
