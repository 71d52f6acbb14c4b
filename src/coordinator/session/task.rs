//! The task of a session, from its first message to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{BoxStream, FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use crate::coordinator::Coordinator;

use super::desk::{Desk, Note, UNREAD};
use super::{
    Alarm, Asked, BadField, Done, End, Estate, Event, Failure, Heir, Inbound, Message, Options, Phase, Request, Seq, Session,
    What,
};

impl Session {
    pub(super) fn new(coordinator: &Arc<Coordinator>, desk: Arc<Desk>, inbox: BoxStream<'static, Inbound>) -> Self {
        let (resign_to, resign) = mpsc::unbounded_channel();
        Self {
            coordinator: coordinator.clone(),
            desk,
            inbox,
            options: Options::default(),
            id: None,
            resign,
            resign_to,
            phase: Phase::Open,
            last_seq: 0,
            work: FuturesUnordered::new(),
            unanswered: 0,
            acquires: BTreeMap::new(),
            due: BTreeSet::new(),
            drain: Some(Box::pin(coordinator.draining.clone().cancelled_owned())),
            alarm: Alarm::default(),
            trouble: None,
            releases: false,
            stalled: None,
        }
    }

    pub(super) async fn run(mut self) {
        while !self.is_over() {
            match self.next().await {
                Event::Done(done) => self.on_done(done),
                Event::Inbound(Inbound::Message(message)) => self.on_message(message),
                Event::Inbound(Inbound::Ended) => self.close(),
                Event::Inbound(Inbound::Broken) => self.on_broken(),
                Event::Resign(heir) => self.resign(heir),
                Event::ReaderChanged if self.desk.state().reader_is_gone => self.on_broken(),
                Event::ReaderChanged => {}
                Event::Drain => self.on_drain(),
                Event::Time => self.alarm = Alarm::default(),
            }
            self.look_after_leases();
        }
        if let Phase::Ending(end) = self.phase {
            self.desk.end(end);
        }
    }

    /// Replies that have been received are counted before anything else is looked at.
    pub(super) async fn next(&mut self) -> Event {
        // Else a client that waits could neither keep what it has nor give it up.
        let has_room = self.desk.state().notes.len() < UNREAD;
        let is_open = self.phase == Phase::Open;
        self.set_alarm();
        tokio::select! {
            biased;
            Some(done) = self.work.next(), if !self.work.is_empty() => Event::Done(done),
            inbound = self.inbox.next(), if is_open && has_room => Event::Inbound(inbound.unwrap_or(Inbound::Broken)),
            Some(heir) = self.resign.recv() => Event::Resign(heir),
            () = self.desk.changed(), if is_open => Event::ReaderChanged,
            () = async { if let Some(drain) = &mut self.drain { drain.await } }, if self.drain.is_some() => Event::Drain,
            () = &mut self.alarm.timer => Event::Time,
        }
    }

    pub(super) fn set_alarm(&mut self) {
        let away = if let Phase::Away(until) = self.phase { Some(until) } else { None };
        let lease = self.stalled.or_else(|| self.first_due());
        let Some(at) = lease.into_iter().chain(away).min() else { return };
        if self.alarm.at.is_none_or(|set| at < set) {
            self.alarm = Alarm { at: Some(at), timer: self.coordinator.env.sleep_until(at) };
        }
    }

    pub(super) fn is_over(&mut self) -> bool {
        let has_leases = || !self.desk.state().leases.is_empty();
        match self.phase {
            Phase::Ending(_) => self.work.is_empty(),
            Phase::Open if self.drain.is_none() && self.work.is_empty() && !has_leases() => {
                self.phase = Phase::Ending(End::Draining);
                true
            }
            Phase::Away(until) if self.coordinator.now() >= until || self.drain.is_none() => {
                self.phase = Phase::Ending(End::Closed);
                self.forget_leases();
                self.work.is_empty()
            }
            Phase::Open | Phase::Away(_) => false,
        }
    }

    pub(super) fn tell(&self, what: What) {
        self.desk.tell(Note::Other(what));
    }

    pub(super) fn fail(&self, seq: Seq, failure: Failure) {
        self.tell(What::Failed(seq, failure));
    }

    pub(super) fn on_message(&mut self, Message { seq, received, request }: Message) {
        if seq <= self.last_seq {
            return self.end_in_disorder(seq, self.last_seq);
        }
        let is_first = std::mem::replace(&mut self.last_seq, seq) == 0;
        self.desk.state().acked = (seq, received);
        let asked = Asked { seq, received };
        match request {
            Request::Open(options) if is_first => self.open(seq, options),
            Request::Open(_) => {
                let problem = "is not the first message of its stream".to_owned();
                self.fail(seq, Failure::Invalid(BadField { field: "open", problem }));
            }
            Request::Acquire(spec, max_hold) => self.acquire(asked, spec, max_hold),
            Request::Adopt { id, ttl, attempt, max_hold } => self.adopt(asked, id, ttl, attempt, max_hold),
            Request::Release(lease) => self.release(lease, asked),
            Request::Renew(lease, ttl) => self.renew_now(lease, asked, ttl),
            Request::Cancel(acquire) => {
                if self.acquires.remove(&acquire).is_some() {
                    self.fail(acquire, Failure::Cancelled);
                }
            }
            Request::KeepAlive => {}
            Request::Close => self.close(),
            Request::Invalid(problem) => self.fail(seq, Failure::Invalid(problem)),
        }
    }

    pub(super) fn open(&mut self, seq: Seq, options: Options) {
        let wanted = options.session_id.clone();
        self.options = options;
        let heir = wanted.as_ref().and_then(|id| self.coordinator.sessions.registry().by_id.get(id).cloned());
        match (wanted, heir) {
            (Some(session_id), Some(session)) => {
                self.work.push(Box::pin(async move {
                    let (answer, estate) = oneshot::channel();
                    let estate = if session.send(Heir { seq, answer }).is_ok() { estate.await.ok() } else { None };
                    Done::Resigned { session_id, seq, estate }
                }));
            }
            _ => self.begin_anew(),
        }
    }

    pub(super) fn begin_anew(&mut self) {
        let session_id = (!self.options.reattach.is_zero()).then(|| format!("{:032x}", self.coordinator.env.secret()));
        self.opened(session_id, false);
    }

    pub(super) fn opened(&mut self, session_id: Option<String>, resumed: bool) {
        self.id.clone_from(&session_id);
        if let Some(id) = &session_id {
            self.coordinator.sessions.registry().by_id.insert(id.clone(), self.resign_to.clone());
        }
        self.desk.tell(Note::Opened { session_id, resumed, after: 0 });
    }

    /// Another stream goes on with what is here.
    pub(super) fn resign(&mut self, Heir { seq, answer }: Heir) {
        if matches!(self.phase, Phase::Ending(_)) {
            return;
        }
        if seq <= self.last_seq {
            // Nobody may be there any more to hear of it.
            drop(answer.send(Err(self.last_seq)));
            return;
        }
        self.give_up();
        self.due.clear();
        self.phase = Phase::Ending(End::Resumed);
        let leases = std::mem::take(&mut self.desk.state().leases);
        self.coordinator.metrics.session_leases(-(leases.len() as i64));
        // If that one is gone meanwhile, they end by themselves.
        drop(answer.send(Ok(Estate { leases })));
    }

    pub(super) fn on_resigned(&mut self, session_id: String, seq: Seq, estate: Option<Result<Estate, Seq>>) {
        let leases = match estate {
            None => return self.begin_anew(),
            Some(Err(last_seq)) => return self.end_in_disorder(seq, last_seq),
            Some(Ok(Estate { leases })) => leases,
        };
        let now = self.coordinator.sessions.since_epoch(self.coordinator.now());
        for (lease, mut kept) in leases {
            match self.phase {
                Phase::Ending(_) if self.releases => self.post_release(lease, kept, None),
                Phase::Ending(_) => {}
                Phase::Open | Phase::Away(_) => {
                    (kept.is_queued, kept.looks) = (false, None);
                    kept.tenure.begin_again(now);
                    self.keep(lease, kept);
                }
            }
        }
        self.opened(Some(session_id), true);
    }

    /// As if the stream had broken.
    pub(super) fn end_in_disorder(&mut self, seq: Seq, after: Seq) {
        self.on_broken();
        self.desk.end(End::Disorder { seq, after });
    }

    /// In an orderly way: everything is released.
    pub(super) fn close(&mut self) {
        if self.phase == Phase::Open {
            (self.phase, self.releases) = (Phase::Ending(End::Closed), true);
            self.acquires.clear();
            if mutant!("close-forgets") {
                self.forget_leases();
            }
            self.release_all();
        }
    }

    /// Its client may still be using what it was promised.
    pub(super) fn on_broken(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        self.give_up();
        // What is unread there would take room from the other streams of its connection.
        self.inbox = Box::pin(futures::stream::pending());
        if self.options.release_on_disconnect || mutant!("broken-stream-releases") {
            (self.phase, self.releases) = (Phase::Ending(End::Closed), true);
            self.release_all();
        } else if mutant!("broken-stream-is-renewed") {
            self.phase = Phase::Away(self.coordinator.now() + super::LONGEST_REATTACH);
        } else if self.options.reattach.is_zero() {
            self.phase = Phase::Ending(End::Closed);
            self.forget_leases();
        } else {
            self.phase = Phase::Away(self.coordinator.now() + self.options.reattach);
        }
    }

    pub(super) fn on_drain(&mut self) {
        self.drain = None;
        if self.phase == Phase::Open {
            self.tell(What::Draining);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // If it has an end already, that stands.
        self.desk.end(End::Draining);
        self.forget_leases();
        let registry = &mut *self.coordinator.sessions.registry();
        registry.count -= 1;
        self.coordinator.metrics.sessions(registry.count);
        // Unless another one goes on under it.
        if let Some(id) = &self.id
            && registry.by_id.get(id).is_some_and(|session| session.same_channel(&self.resign_to))
        {
            registry.by_id.remove(id);
        }
    }
}
