//! A client of a session that does what it is told and nothing else, but for keep-alives when it is asked to.

use std::collections::BTreeMap;
use std::time::Duration;

use redlockd::proto::session_request::Message as Ask;
use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{
    AcquireRequest, SessionAcquire, SessionAdopt, SessionClose, SessionGranted, SessionKeepAlive, SessionLost, SessionOpen,
    SessionRelease, SessionRequest, SessionResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::support::*;

pub struct Session {
    seq: u64,
    requests: Option<mpsc::UnboundedSender<SessionRequest>>,
    responses: Streaming<SessionResponse>,
    sent: BTreeMap<u64, Instant>,
    /// What came while something else was awaited.
    unread: Vec<SessionResponse>,
}

/// When a lease ends by its client's own clock.
#[derive(Clone, Copy, Debug)]
pub struct End(pub Instant);

impl Session {
    /// Without options.
    pub async fn open(proxy: &Proxy) -> Self {
        Self::after(proxy, 0).await
    }

    /// The next message has a higher number than `seq`.
    pub async fn after(proxy: &Proxy, seq: u64) -> Self {
        let (requests, messages) = mpsc::unbounded_channel();
        let messages = futures::stream::unfold(messages, async |mut messages: mpsc::UnboundedReceiver<_>| {
            Some((messages.recv().await?, messages))
        });
        let responses = proxy.client().await.session(messages).await.unwrap().into_inner();
        Self { seq, requests: Some(requests), responses, sent: BTreeMap::new(), unread: Vec::new() }
    }

    pub async fn open_with(proxy: &Proxy, seq: u64, open: SessionOpen) -> (Self, redlockd::proto::SessionOpened) {
        let mut session = Self::after(proxy, seq).await;
        session.send(Ask::Open(open));
        let opened = session.find(|said| if let Said::Opened(opened) = said { Some(opened.clone()) } else { None }).await;
        (session, opened)
    }

    pub fn last_seq(&self) -> u64 {
        self.seq
    }

    pub fn send(&mut self, message: Ask) -> u64 {
        self.seq += 1;
        self.sent.insert(self.seq, Instant::now());
        self.send_raw(SessionRequest { seq: self.seq, message: Some(message) });
        self.seq
    }

    pub fn send_raw(&self, request: SessionRequest) {
        // Whoever has gone has its end read by the test.
        let _ = self.requests.as_ref().unwrap().send(request);
    }

    pub fn acquire(&mut self, request: AcquireRequest) -> u64 {
        self.send(Ask::Acquire(SessionAcquire { request: Some(request), max_hold: None }))
    }

    pub fn keep_alive(&mut self) {
        self.send(Ask::KeepAlive(SessionKeepAlive {}));
    }

    pub fn release(&mut self, lease: u64) -> u64 {
        self.send(Ask::Release(SessionRelease { lease }))
    }

    pub fn adopt(&mut self, lock_id: &str, attempt: u32) -> u64 {
        let ttl = seconds(10);
        self.send(Ask::Adopt(SessionAdopt { lock_id: lock_id.to_owned(), ttl, attempt, max_hold: None }))
    }

    pub fn close(&mut self) {
        self.send(Ask::Close(SessionClose {}));
    }

    /// Ends its own side in an orderly way.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next message; an error is the end of the stream, `None` an orderly one.
    pub async fn next(&mut self) -> Result<Option<SessionResponse>, Status> {
        if !self.unread.is_empty() {
            return Ok(Some(self.unread.remove(0)));
        }
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a message, or an end")
    }

    /// The first message that fits; others stay unread. Sends keep-alives meanwhile.
    pub async fn find_at<T>(&mut self, fits: impl Fn(&Said) -> Option<T>) -> (T, SessionResponse) {
        if let Some(at) = self.unread.iter().position(|said| fits(said.message.as_ref().unwrap()).is_some()) {
            let said = self.unread.remove(at);
            return (fits(said.message.as_ref().unwrap()).unwrap(), said);
        }
        let began = Instant::now();
        loop {
            let next = tokio::time::timeout(Duration::from_millis(100), self.responses.message()).await;
            assert!(began.elapsed() < PATIENCE, "it did not come; there were {:?}", self.unread);
            match next {
                Err(_) => self.keep_alive(),
                Ok(said) => {
                    let said = said.unwrap().expect("no end");
                    if let Some(found) = fits(said.message.as_ref().unwrap()) {
                        return (found, said);
                    }
                    self.unread.push(said);
                }
            }
        }
    }

    pub async fn find<T>(&mut self, fits: impl Fn(&Said) -> Option<T>) -> T {
        self.find_at(fits).await.0
    }

    /// The answer to an acquire or an adoption that has to be granted.
    pub async fn granted(&mut self, lease: u64) -> (SessionGranted, End) {
        let fits = |said: &Said| match said {
            Said::Granted(granted) if granted.lease == lease => Some(granted.clone()),
            Said::Contended(contended) if contended.acquire == lease => panic!("{contended:?}"),
            Said::Failed(failed) if failed.request == lease => panic!("{failed:?}"),
            Said::Lost(lost) if lost.lease == lease => panic!("{lost:?}"),
            _ => None,
        };
        let (granted, said) = self.find_at(fits).await;
        let end = self.end(&said, granted.validity);
        (granted, end)
    }

    /// By the rule of the proto.
    pub fn end(&self, said: &SessionResponse, validity: Option<prost_types::Duration>) -> End {
        End(self.sent[&said.acked_seq] + std_duration(said.since_ack) + std_duration(validity))
    }

    pub async fn take(&mut self, name: &str, ttl_ms: u64) -> (SessionGranted, End) {
        let lease = self.acquire(AcquireRequest { ttl: millis(ttl_ms), ..want(name) });
        self.granted(lease).await
    }

    pub async fn renewed(&mut self, lease: u64) -> End {
        let fits = |said: &Said| match said {
            Said::Renewed(renewed) if renewed.lease == lease => Some(renewed.validity),
            _ => None,
        };
        let (validity, said) = self.find_at(fits).await;
        self.end(&said, validity)
    }

    pub async fn lost(&mut self, lease: u64) -> SessionLost {
        self.lost_at(lease).await.0
    }

    /// And when it ends, as it is told.
    pub async fn lost_at(&mut self, lease: u64) -> (SessionLost, End) {
        let fits = |said: &Said| match said {
            Said::Lost(lost) if lost.lease == lease => Some(lost.clone()),
            _ => None,
        };
        let (lost, said) = self.find_at(fits).await;
        let end = self.end(&said, lost.validity);
        (lost, end)
    }

    pub async fn at_risk(&mut self, lease: u64) -> String {
        self.find(|said| match said {
            Said::AtRisk(risk) if risk.lease == lease => Some(risk.detail.clone()),
            _ => None,
        })
        .await
    }

    pub async fn released(&mut self, lease: u64) -> redlockd::proto::ReleaseOutcome {
        self.find(|said| match said {
            Said::Released(released) if released.lease == lease => Some(released.outcome()),
            Said::Failed(failed) => panic!("{failed:?}"),
            _ => None,
        })
        .await
    }

    /// The gRPC code and the words with which a message was refused.
    pub async fn failed(&mut self, seq: u64) -> (i32, String) {
        self.find(|said| match said {
            Said::Failed(failed) if failed.request == seq => Some((failed.code as i32, failed.message.clone())),
            _ => None,
        })
        .await
    }
}
