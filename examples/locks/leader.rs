//! Leader election by hand: what a program does on a session, without the Rust client.
//!
//! ```sh
//! cargo run --example leader
//! ```
//!
//! Three candidates ask for the same lock, and wait in line. The proxy renews the lease of the one that leads; all that the
//! leader does is to send signs of life, and to lead no more when its lease is over by its own clock. One leader resigns, the
//! next one is killed, and each time another takes over, with a higher token.
//!
//! A program in Rust has all of this, and other proxies to go to, from `redlockd::client`.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::session_granted::Fencing;
use redlockd::proto::session_request::Message as Say;
use redlockd::proto::session_response::Message as Told;
use redlockd::proto::{
    AcquireRequest, GetRequest, SessionAcquire, SessionKeepAlive, SessionRelease, SessionRequest, SessionResponse,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

mod stage;
use stage::{Error, Stage, ensure};

const LOCK: &str = "services/leader";
const TTL: Duration = Duration::from_secs(5);

/// How long a candidate waits in line at a time: at most an hour is allowed.
const WAIT: Duration = Duration::from_secs(3600);

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Error> {
    // Candidates are processes of their own, so that one can be killed.
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [name, proxy] => stand(name.clone(), proxy.clone()).await,
        _ => show().await,
    }
}

struct Candidate {
    name: String,
    requests: mpsc::UnboundedSender<SessionRequest>,
    seq: u64,
    /// When each message was sent: what is told of a lease counts from one of them.
    sent: BTreeMap<u64, Instant>,
    /// The message that asked for the lock, which is the number of the lease, too.
    asked: u64,
    leads_until: Option<Instant>,
}

/// Stands for election, until its session ends.
async fn stand(name: String, proxy: String) -> Result<(), Error> {
    let (requests, unsent) = mpsc::unbounded_channel();
    let mut candidate = Candidate { name, requests, seq: 0, sent: BTreeMap::new(), asked: 0, leads_until: None };
    candidate.ask()?;
    // If our side of the stream came to an end, that would be an orderly one: everything would be released.
    let unsent = futures::stream::unfold(unsent, async |mut unsent| Some((unsent.recv().await?, unsent)));
    let unsent = unsent.chain(futures::stream::pending());
    let mut responses = LockServiceClient::connect(proxy).await?.session(unsent).await?.into_inner();
    // The contract says: a message every sixth of the TTL at least.
    let mut signs_of_life = interval(TTL / 7);
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            told = responses.message() => candidate.hear(told?.ok_or("the proxy has ended the session")?)?,
            _ = signs_of_life.tick() => drop(candidate.say(Say::KeepAlive(SessionKeepAlive {}))?),
            () = until(candidate.leads_until) => candidate.lead_no_more("its lease is over by its own clock")?,
            Ok(Some(_)) = orders.next_line() => candidate.lead_no_more("it resigns")?,
        }
    }
}

impl Candidate {
    fn say(&mut self, message: Say) -> Result<u64, Error> {
        self.seq += 1;
        // Before it is on its way: all time on the network is charged to the lease.
        self.sent.insert(self.seq, Instant::now());
        // Nothing counts from older ones, but the grant.
        self.sent.retain(|seq, sent| *seq == self.asked || sent.elapsed() < 2 * TTL);
        self.requests.send(SessionRequest { seq: self.seq, message: Some(message) })?;
        Ok(self.seq)
    }

    /// Asks to lead, and waits in line.
    fn ask(&mut self) -> Result<(), Error> {
        let [ttl, wait] = [TTL, WAIT].map(|span| prost_types::Duration::try_from(span).ok());
        let request = AcquireRequest { name: LOCK.to_owned(), ttl, wait, owner: self.name.clone(), ..Default::default() };
        self.asked = self.say(Say::Acquire(SessionAcquire { request: Some(request), max_hold: None }))?;
        Ok(())
    }

    fn hear(&mut self, response: SessionResponse) -> Result<(), Error> {
        let sent = self.sent.get(&response.acked_seq).copied();
        let since = span(response.since_ack);
        let end = |validity| sent.map(|sent| sent + since + span(validity));
        match response.message.ok_or("an empty message")? {
            Told::Granted(granted) if granted.lease == self.asked => {
                let Some(Fencing::FencingToken(token)) = granted.fencing else { return Err("a grant without a token".into()) };
                println!("{} leads, with token {token}", self.name);
                self.leads_until = end(granted.validity);
            }
            // What is over is over.
            Told::Renewed(renewed) if self.leads_until.is_some() => self.leads_until = end(renewed.validity),
            Told::AtRisk(risk) => println!("{} may lose the lead: {}", self.name, risk.detail),
            Told::Lost(lost) if lost.lease == self.asked => {
                println!("{} leads no more: {}", self.name, lost.detail);
                self.leads_until = None;
                self.ask()?;
            }
            Told::Released(released) if released.lease == self.asked => self.ask()?,
            Told::Contended(_) => self.ask()?,
            Told::Failed(failed) if failed.request == self.asked => return Err(failed.message.into()),
            // Its leases could go on at another one: see SessionAdopt.
            Told::Draining(_) => return Err("the proxy shuts down".into()),
            _ => {}
        }
        Ok(())
    }

    fn lead_no_more(&mut self, why: &str) -> Result<(), Error> {
        if self.leads_until.take().is_some() {
            println!("{} leads no more: {why}", self.name);
            self.say(Say::Release(SessionRelease { lease: self.asked }))?;
        }
        Ok(())
    }
}

fn span(duration: Option<prost_types::Duration>) -> Duration {
    duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default()
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn show() -> Result<(), Error> {
    let stage = Stage::set(1).await?;
    let (lines, mut said) = mpsc::unbounded_channel();
    let mut candidates = BTreeMap::new();
    for name in ["ann", "bob", "cid"] {
        candidates.insert(name.to_owned(), start(name, &stage.proxies[0], lines.clone())?);
    }
    drop(lines);
    let (first, token) = next_leader(&mut said).await?;
    two_wait_in_line(&stage.proxies[0]).await?;

    println!("{first} is told to resign");
    let leader = candidates.get_mut(&first).ok_or("an unknown leader")?;
    leader.stdin.as_mut().ok_or("its input")?.write_all(b"resign\n").await?;
    let (second, higher) = next_leader(&mut said).await?;
    ensure(second != first && higher > token, "nobody else leads with a higher token")?;

    println!("{second} is killed: it releases nothing, and its lease lasts up to {TTL:?}");
    candidates.get_mut(&second).ok_or("an unknown leader")?.kill().await?;
    let killed = Instant::now();
    let (third, highest) = next_leader(&mut said).await?;
    println!("{third} leads {:.1?} later", killed.elapsed());
    ensure(third != second && highest > higher, "nobody else leads with a higher token")
}

/// Starts a candidate, and shows what it says.
fn start(name: &str, proxy: &str, said: mpsc::UnboundedSender<String>) -> Result<Child, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([name, proxy]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut candidate = command.spawn()?;
    let mut lines = BufReader::new(candidate.stdout.take().ok_or("its output")?).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            println!("  {line}");
            if said.send(line).is_err() {
                break;
            }
        }
    });
    Ok(candidate)
}

/// Who leads next, and with which token.
async fn next_leader(said: &mut mpsc::UnboundedReceiver<String>) -> Result<(String, u64), Error> {
    loop {
        let line = timeout(PATIENCE, said.recv()).await.map_err(|_| "nobody leads")?.ok_or("all candidates have ended")?;
        if let Some((name, token)) = line.split_once(" leads, with token ") {
            return Ok((name.to_owned(), token.parse()?));
        }
    }
}

async fn two_wait_in_line(proxy: &str) -> Result<(), Error> {
    let mut client = LockServiceClient::connect(proxy.to_owned()).await?;
    let began = Instant::now();
    while client.get(GetRequest { name: LOCK.to_owned() }).await?.into_inner().waiters < 2 {
        ensure(began.elapsed() < PATIENCE, "the others do not stand in line")?;
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
