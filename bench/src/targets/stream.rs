//! redlockd by a session: one program keeps as many pairs under way on one stream, fencing token included.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::session_granted::Fencing;
use redlockd::proto::session_request::Message as Ask;
use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{
    AcquireRequest, ReleaseOutcome, SessionAcquire, SessionGranted, SessionRelease, SessionRequest, SessionResponse,
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::TTL;
use super::proxy::channel;
use crate::Error;
use crate::load::{Driver, Limit, Tally};
use crate::stats::micros;

/// One stream, and what is under way on it.
pub struct Stream {
    requests: mpsc::UnboundedSender<SessionRequest>,
    responses: Streaming<SessionResponse>,
    seq: u64,
    /// The highest token of each name.
    tokens: Vec<u64>,
    /// By the number of the message that began it.
    pairs: BTreeMap<u64, Pair>,
}

struct Pair {
    name: usize,
    started: Instant,
    acquire: Duration,
    /// The message that is not answered yet.
    asked: u64,
}

impl Stream {
    /// A session with that many names.
    pub async fn open(proxy: SocketAddr, names: usize) -> Result<Self, Error> {
        let (requests, messages) = mpsc::unbounded_channel();
        let next = async |mut messages: mpsc::UnboundedReceiver<_>| Some((messages.recv().await?, messages));
        let messages = futures::stream::unfold(messages, next);
        let responses = LockServiceClient::new(channel(proxy).await?).session(messages).await?.into_inner();
        Ok(Self { requests, responses, seq: 0, tokens: vec![0; names], pairs: BTreeMap::new() })
    }

    fn send(&mut self, message: Ask) -> u64 {
        self.seq += 1;
        // If the stream has ended, its other side says so.
        drop(self.requests.send(SessionRequest { seq: self.seq, message: Some(message) }));
        self.seq
    }

    fn acquire(&mut self, name: usize) {
        let ttl = Some(prost_types::Duration { seconds: TTL.as_secs() as i64, nanos: 0 });
        let request = AcquireRequest { name: format!("bench/{name}"), ttl, ..AcquireRequest::default() };
        let started = Instant::now();
        let asked = self.send(Ask::Acquire(SessionAcquire { request: Some(request), max_hold: None }));
        self.pairs.insert(asked, Pair { name, started, acquire: Duration::ZERO, asked });
    }

    /// What an answer means for the pair that it is of: whether it is over, and how.
    fn on_answer(&mut self, said: Said) -> Option<Result<Pair, (usize, String)>> {
        match said {
            Said::Granted(granted) => {
                let lease = granted.lease;
                match self.check(&granted) {
                    Ok(()) => {
                        let asked = self.send(Ask::Release(SessionRelease { lease }));
                        let pair = self.pairs.get_mut(&lease)?;
                        (pair.acquire, pair.asked) = (pair.started.elapsed(), asked);
                        None
                    }
                    Err(what) => self.pairs.remove(&lease).map(|pair| Err((pair.name, what))),
                }
            }
            Said::Released(released) if released.outcome() == ReleaseOutcome::Released => {
                self.pairs.remove(&released.lease).map(Ok)
            }
            Said::Released(released) => self.failed(released.lease, "release: it was not held".to_owned()),
            Said::Contended(contended) => self.failed(contended.acquire, format!("acquire: {contended:?}")),
            Said::Lost(lost) => self.failed(lost.lease, format!("{lost:?}")),
            Said::Failed(failed) => {
                let lease = self.pairs.iter().find(|(_, pair)| pair.asked == failed.request).map(|(lease, _)| *lease);
                self.failed(lease?, format!("{failed:?}"))
            }
            Said::Opened(_) | Said::Renewed(_) | Said::AtRisk(_) | Said::Draining(_) => None,
        }
    }

    fn failed(&mut self, lease: u64, what: String) -> Option<Result<Pair, (usize, String)>> {
        self.pairs.remove(&lease).map(|pair| Err((pair.name, what)))
    }

    /// Whether a grant keeps its promises.
    fn check(&mut self, granted: &SessionGranted) -> Result<(), String> {
        let Some(Fencing::FencingToken(token)) = granted.fencing else {
            return Err(format!("acquire: {:?} for a token", granted.fencing));
        };
        let last = self.pairs.get(&granted.lease).and_then(|pair| self.tokens.get_mut(pair.name));
        let Some(last) = last else { return Err(format!("acquire: lease {} was not asked for", granted.lease)) };
        if token <= *last {
            return Err(format!("acquire: token {token} after token {last}"));
        }
        *last = token;
        match granted.validity.and_then(|time| Duration::try_from(time).ok()) {
            Some(validity) if validity > Duration::ZERO && validity <= TTL => Ok(()),
            validity => Err(format!("acquire: a validity of {validity:?}")),
        }
    }
}

impl Driver for Stream {
    async fn drive(&mut self, limit: &Limit) -> Result<Tally, Error> {
        let mut tally = Tally::default();
        for name in 0..self.tokens.len() {
            if limit.one_more() {
                self.acquire(name);
            }
        }
        while !self.pairs.is_empty() {
            let said = self.responses.message().await?.and_then(|response| response.message).ok_or("the stream has ended")?;
            let name = match self.on_answer(said) {
                None => continue,
                Some(Ok(pair)) => {
                    tally.pair(micros(pair.started.elapsed()), micros(pair.acquire));
                    pair.name
                }
                Some(Err((name, what))) => {
                    tally.failure(what);
                    name
                }
            };
            if limit.one_more() {
                self.acquire(name);
            }
        }
        Ok(tally)
    }
}
