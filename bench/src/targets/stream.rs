//! redlockd by a session: all clients of one process take and release their locks on one stream, fencing token included.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::session_granted::Fencing;
use redlockd::proto::session_request::Message as Ask;
use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{
    SessionAcquire, SessionFailed, SessionGranted, SessionKeepAlive, SessionRelease, SessionRequest, SessionResponse,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Streaming};

use super::unary::{released, request, validity_within};
use crate::Error;
use crate::call::channel;
use crate::client::{Client, Failure, Terms};
use crate::witness::Lease;

/// A session keeps its leases if it hears of its client every sixth of the TTL.
const KEEP_ALIVES_PER_TTL: u32 = 7;

/// One client of a session.
pub struct Streamed {
    session: Arc<Session>,
    terms: Terms,
}

/// So many clients, divided among the proxies, with a session at each.
pub async fn clients(proxies: &[String], count: usize, terms: Terms) -> Result<Vec<Streamed>, Error> {
    let mut sessions = Vec::new();
    for proxy in proxies {
        sessions.push(Session::open(proxy, terms).await?);
    }
    Ok((0..count).map(|i| Streamed { session: sessions[i % sessions.len()].clone(), terms }).collect())
}

/// A stream. It ends in order when nobody uses it any more.
struct Session(Mutex<State>);

struct State {
    requests: mpsc::UnboundedSender<SessionRequest>,
    seq: u64,
    /// By the number of the lease.
    waiting: HashMap<u64, Waiting>,
    /// Leases that were lost while they were held, and why.
    lost: HashMap<u64, Failure>,
    /// Why it has ended.
    ended: Option<Failure>,
}

/// Who waits for an answer, to which message.
struct Waiting {
    seq: u64,
    answer: oneshot::Sender<SessionResponse>,
}

impl Session {
    async fn open(proxy: &str, terms: Terms) -> Result<Arc<Self>, Error> {
        let (requests, messages) = mpsc::unbounded_channel();
        let next = async |mut messages: mpsc::UnboundedReceiver<_>| Some((messages.recv().await?, messages));
        let messages = futures::stream::unfold(messages, next);
        let responses = LockServiceClient::new(channel(proxy).await?).session(messages).await?.into_inner();
        let state = State { requests, seq: 0, waiting: HashMap::new(), lost: HashMap::new(), ended: None };
        let session = Arc::new(Self(Mutex::new(state)));
        tokio::spawn(read(responses, Arc::downgrade(&session)));
        tokio::spawn(keep_alive(Arc::downgrade(&session), terms.ttl / KEEP_ALIVES_PER_TTL));
        Ok(session)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lock; the number of the lease comes with the answer.
    async fn acquire(&self, acquire: SessionAcquire) -> Result<(u64, SessionResponse), Failure> {
        let (lease, answer) = {
            let mut state = self.lock();
            let lease = state.send(Ask::Acquire(acquire))?;
            (lease, state.await_answer(lease, lease))
        };
        answer.await.map(|answer| (lease, answer)).map_err(|_| self.why_ended())
    }

    async fn release(&self, lease: u64) -> Result<SessionResponse, Failure> {
        let answer = {
            let mut state = self.lock();
            if let Some(lost) = state.lost.remove(&lease) {
                return Err(lost);
            }
            let seq = state.send(Ask::Release(SessionRelease { lease }))?;
            state.await_answer(lease, seq)
        };
        answer.await.map_err(|_| self.why_ended())
    }

    fn why_ended(&self) -> Failure {
        self.lock().ended.clone().unwrap_or_else(|| Failure::new("session: ended", "session: it was ended"))
    }
}

impl State {
    fn send(&mut self, message: Ask) -> Result<u64, Failure> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        self.seq += 1;
        // If the stream has ended, its other side says so.
        drop(self.requests.send(SessionRequest { seq: self.seq, message: Some(message) }));
        Ok(self.seq)
    }

    fn await_answer(&mut self, lease: u64, seq: u64) -> oneshot::Receiver<SessionResponse> {
        let (answer, answered) = oneshot::channel();
        self.waiting.insert(lease, Waiting { seq, answer });
        answered
    }

    /// Gives what was said to whoever waits for it.
    fn hear(&mut self, response: SessionResponse) {
        let lease = match &response.message {
            Some(Said::Granted(granted)) => granted.lease,
            Some(Said::Contended(contended)) => contended.acquire,
            Some(Said::Released(released)) => released.lease,
            Some(Said::Failed(failed)) => match self.asked(failed.request) {
                Some(lease) => lease,
                None => return,
            },
            Some(Said::Lost(lost)) => {
                if !self.waiting.contains_key(&lost.lease) {
                    let failure = Failure::new("lease: lost", format!("lease: lost: {}", lost.detail));
                    self.lost.insert(lost.lease, failure);
                    return;
                }
                lost.lease
            }
            Some(Said::Opened(_) | Said::Renewed(_) | Said::AtRisk(_) | Said::Draining(_)) | None => return,
        };
        if let Some(waiting) = self.waiting.remove(&lease) {
            // Fails only if nobody waits any more.
            drop(waiting.answer.send(response));
        }
    }

    /// The lease that a message was about.
    fn asked(&self, seq: u64) -> Option<u64> {
        self.waiting.iter().find(|(_, waiting)| waiting.seq == seq).map(|(lease, _)| *lease)
    }
}

async fn read(mut responses: Streaming<SessionResponse>, session: Weak<Session>) {
    loop {
        let heard = responses.message().await;
        let Some(session) = session.upgrade() else { return };
        let mut state = session.lock();
        let failure = match heard {
            Ok(Some(response)) => {
                state.hear(response);
                continue;
            }
            Ok(None) => Failure::new("session: ended", "session: the proxy has ended it"),
            Err(status) => Failure::status("session", &status),
        };
        state.ended = Some(failure);
        state.waiting.clear();
        return;
    }
}

async fn keep_alive(session: Weak<Session>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(session) = session.upgrade() else { return };
        if session.lock().send(Ask::KeepAlive(SessionKeepAlive {})).is_err() {
            return;
        }
    }
}

impl Client for Streamed {
    /// The number of the lease.
    type Held = u64;

    async fn take(&mut self, name: &str) -> Result<(u64, Lease), Failure> {
        let sent = Instant::now();
        let acquire = SessionAcquire { request: Some(request(name, self.terms)), max_hold: None };
        let (lease, answer) = self.session.acquire(acquire).await?;
        let served_for = answer.since_ack.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default();
        match answer.message {
            Some(Said::Granted(granted)) => {
                let (token, validity) = granted_with(&granted, self.terms)?;
                Ok((lease, Lease { ends: sent + served_for + validity, token: Some(token) }))
            }
            other => Err(refused("acquire", other)),
        }
    }

    async fn give_back(&mut self, lease: u64) -> Result<(), Failure> {
        match self.session.release(lease).await?.message {
            Some(Said::Released(outcome)) => released(outcome.outcome()),
            other => Err(refused("release", other)),
        }
    }
}

fn granted_with(granted: &SessionGranted, terms: Terms) -> Result<(u64, Duration), Failure> {
    let Some(Fencing::FencingToken(token)) = granted.fencing else {
        return Err(Failure::lie(format!("acquire: {:?} for a token", granted.fencing)));
    };
    Ok((token, validity_within(granted.validity, terms)?))
}

fn refused(operation: &'static str, said: Option<Said>) -> Failure {
    match said {
        Some(Said::Contended(contended)) => Failure::new("acquire: contended", format!("acquire: {contended:?}")),
        Some(Said::Lost(lost)) => Failure::new("lease: lost", format!("lease: lost: {}", lost.detail)),
        Some(Said::Failed(SessionFailed { code, message, .. })) => {
            Failure::code(operation, Code::from_i32(code as i32), &message)
        }
        other => Failure::lie(format!("{operation}: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use redlockd::proto::{ReleaseOutcome, SessionLost, SessionReleased};

    use super::*;

    fn state() -> (State, mpsc::UnboundedReceiver<SessionRequest>) {
        let (requests, sent) = mpsc::unbounded_channel();
        (State { requests, seq: 0, waiting: HashMap::new(), lost: HashMap::new(), ended: None }, sent)
    }

    fn says(message: Said) -> SessionResponse {
        SessionResponse { message: Some(message), ..SessionResponse::default() }
    }

    #[test]
    fn answers_find_those_who_asked() {
        let (mut state, mut sent) = state();
        let [first, second] = [1, 2].map(|_| {
            let lease = state.send(Ask::Acquire(SessionAcquire::default())).unwrap();
            (lease, state.await_answer(lease, lease))
        });
        assert_eq!((sent.try_recv().unwrap().seq, sent.try_recv().unwrap().seq), (1, 2), "numbers rise");
        state.hear(says(Said::Granted(SessionGranted { lease: second.0, ..SessionGranted::default() })));
        let (mut first_answer, mut second_answer) = (first.1, second.1);
        assert!(matches!(second_answer.try_recv().unwrap().message, Some(Said::Granted(_))));
        state.hear(says(Said::Failed(SessionFailed { request: first.0, ..SessionFailed::default() })));
        assert!(matches!(first_answer.try_recv().unwrap().message, Some(Said::Failed(_))));

        let seq = state.send(Ask::Release(SessionRelease { lease: second.0 })).unwrap();
        let mut answer = state.await_answer(second.0, seq);
        let released = SessionReleased { lease: second.0, outcome: ReleaseOutcome::Released.into() };
        state.hear(says(Said::Released(released)));
        assert!(matches!(answer.try_recv().unwrap().message, Some(Said::Released(_))));
        assert!(state.waiting.is_empty());
    }

    #[test]
    fn a_release_that_failed_is_named_by_its_own_number() {
        let (mut state, _sent) = state();
        let lease = state.send(Ask::Acquire(SessionAcquire::default())).unwrap();
        let seq = state.send(Ask::Release(SessionRelease { lease })).unwrap();
        let mut answer = state.await_answer(lease, seq);
        state.hear(says(Said::Failed(SessionFailed { request: seq, code: 14, ..SessionFailed::default() })));
        let failure = refused("release", answer.try_recv().unwrap().message);
        assert_eq!(failure.kind, "release: unavailable");
    }

    #[test]
    fn a_lease_that_is_lost_while_it_is_held_is_told_at_its_release() {
        let (mut state, _sent) = state();
        state.hear(says(Said::Lost(SessionLost { lease: 5, detail: "no quorum".to_owned(), ..SessionLost::default() })));
        assert_eq!(state.lost.remove(&5).unwrap().kind, "lease: lost");
    }
}
