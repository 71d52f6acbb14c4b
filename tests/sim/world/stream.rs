//! The stream of a session between a client and a proxy: what is sent on it arrives in order, and some time later, until it
//! breaks. The proxy's end does what the gRPC service does.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use redlockd::coordinator::lock_id::LockId;
use redlockd::coordinator::question::Released;
use redlockd::coordinator::session::{
    Failure, Inbound, LeaseNumber, LeaseView, Message, Options, Outbox, Request, Seq, Told, What,
};
use redlockd::engine::lease::Ttl;
use redlockd::engine::tenure::Hindrance;
use redlockd::engine::validity::Validity;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::oracle::history::{At, LeaseId, Promise};

use super::World;
use super::clock::Monotonic;
use super::proxy::{Proxy, SLACK, Want};

/// So many words may be on their way: then the proxy has to wait until the client reads.
const UNREAD: usize = 4;

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum Ask {
    Open(Options),
    Acquire(Want, Option<Duration>),
    Adopt { lease: LeaseId, id: LockId, ttl: Ttl, attempt: u32, max_hold: Option<Duration> },
    Release(LeaseNumber),
    Renew(LeaseNumber, Option<Ttl>),
    Cancel(Seq),
    KeepAlive,
    Close,
}

/// What a client hears.
#[derive(Debug)]
pub enum Heard {
    Opened { session_id: Option<String>, resumed: bool },
    Granted { number: LeaseNumber, lease: LeaseId, id: LockId, validity: Validity, term: Term },
    Renewed(LeaseNumber, Term),
    AtRisk(LeaseNumber),
    Lost(LeaseNumber, Hindrance),
    Released(LeaseNumber, Released),
    Contended(Seq),
    Failed(Seq, &'static str),
    Draining,
}

/// How long a lease lasts, by its client's clock: from the message from which it counts.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    pub counts_from: Instant,
    pub ends: Instant,
}

enum Sent {
    Message(Seq, Ask),
    Ended,
    Broken,
}

/// What has to be done, as far as a client can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Wish,
    Renewal,
    Release,
    /// Of one lease, because the session was closed.
    ReleaseAtTheEnd,
}

/// What has not been done yet.
#[derive(Debug)]
struct Open {
    work: Work,
    /// Of the message.
    seq: Seq,
    lease: LeaseNumber,
    /// Its number in the history.
    call: usize,
}

/// What both ends know of what was sent.
#[derive(Debug, Default)]
struct Book {
    /// By the client's clock.
    sends: BTreeMap<Seq, Instant>,
    asked: BTreeMap<Seq, Ask>,
    leases: BTreeMap<LeaseNumber, (LeaseId, LockId)>,
    open: Vec<Open>,
    /// The client does not read until then.
    deaf_until: At,
    /// It does nothing any more.
    is_hung: bool,
}

/// The client's end.
pub struct Stream {
    world: Arc<World>,
    clock: Monotonic,
    /// All of the run counted.
    pub number: usize,
    /// The number of its proxy.
    pub proxy: usize,
    seq: Seq,
    last_arrival: At,
    to_proxy: mpsc::UnboundedSender<(At, Sent)>,
    words: mpsc::Receiver<(At, Heard)>,
    /// Received, and not there yet.
    next: Option<(At, Heard)>,
    book: Arc<Mutex<Book>>,
}

impl Stream {
    /// A new one to a proxy, which goes on with the numbers of another one.
    pub fn open(world: &Arc<World>, clock: Monotonic, proxy: usize, before: Option<&Self>) -> Self {
        let book = before.map_or_else(Book::default, |before| {
            let book = before.book.lock().expect("nobody panics with it");
            Book { sends: book.sends.clone(), leases: book.leases.clone(), ..Book::default() }
        });
        let book = Arc::new(Mutex::new(book));
        let number = {
            let state = &mut *world.shared.state();
            state.streams += 1;
            state.streams
        };
        let (to_proxy, inbox) = mpsc::unbounded_channel();
        let (tell, words) = mpsc::channel(UNREAD);
        let end = ProxyEnd { proxy: world.proxy(proxy), clock, book: book.clone(), cut: CancellationToken::new() };
        end.proxy.streams.lock().expect("nobody panics with it").push(end.cut.clone());
        if !end.proxy.gate.is_dead() {
            let outbox = end.proxy.coordinator.open_session(end.clone().inbound(inbox)).expect("fewer sessions than that");
            tokio::spawn(end.tell(outbox, tell));
        }
        let seq = before.map_or(0, |before| before.seq);
        Self { world: world.clone(), clock, number, proxy, seq, last_arrival: At::ZERO, to_proxy, words, next: None, book }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with it")
    }

    fn post(&mut self, sent: Sent) {
        let shared = &self.world.shared;
        self.last_arrival = self.last_arrival.max(shared.now() + shared.span(0, 1));
        let _ = self.to_proxy.send((self.last_arrival, sent));
    }

    /// The number of the message.
    pub fn ask(&mut self, ask: Ask) -> Seq {
        self.seq += 1;
        let now = self.clock.now();
        self.book().sends.insert(self.seq, now);
        self.book().asked.insert(self.seq, ask.clone());
        self.post(Sent::Message(self.seq, ask));
        self.seq
    }

    /// An orderly end without a word.
    pub fn half_close(&mut self) {
        self.post(Sent::Ended);
    }

    /// When a message was last sent.
    pub fn last_sent(&self) -> Instant {
        self.book().sends.last_key_value().map_or_else(|| self.clock.now(), |(_, sent)| *sent)
    }

    /// The client reads nothing until `until`: nobody can answer it before.
    pub fn is_deaf_until(&self, until: At) {
        let now = self.world.shared.now();
        let book = &mut *self.book();
        let (before, until) = (book.deaf_until.max(now), until.max(now));
        book.deaf_until = until;
        let calls = &mut self.world.shared.state().history.calls;
        book.open.iter().for_each(|open| calls[open.call].due = calls[open.call].due + until - before);
    }

    /// The client is gone.
    pub fn break_off(&mut self) {
        self.post(Sent::Broken);
    }

    /// The client says nothing any more, and takes no notice of what it is told: nobody can answer it.
    pub fn hang(mut self) {
        let proxy = self.world.proxy(self.proxy);
        let open = {
            let book = &mut *self.book();
            book.is_hung = true;
            std::mem::take(&mut book.open)
        };
        open.into_iter().for_each(|open| proxy.close_call(open.call));
        tokio::spawn(async move { while self.next().await.is_some() {} });
    }

    /// The next word; `None` when the stream has ended, in whatever way.
    pub async fn next(&mut self) -> Option<Heard> {
        if self.next.is_none() {
            self.next = self.words.recv().await;
        }
        let (arrives, _) = self.next.as_ref()?;
        self.world.shared.time.until(*arrives).await;
        self.next.take().map(|(_, heard)| heard)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.break_off();
    }
}

/// The proxy's end.
#[derive(Clone)]
struct ProxyEnd {
    proxy: Arc<Proxy>,
    /// The client's.
    clock: Monotonic,
    book: Arc<Mutex<Book>>,
    /// Nothing more comes out.
    cut: CancellationToken,
}

impl ProxyEnd {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with it")
    }

    fn inbound(self, inbox: mpsc::UnboundedReceiver<(At, Sent)>) -> BoxStream<'static, Inbound> {
        let next = |(end, mut inbox): (Self, mpsc::UnboundedReceiver<(At, Sent)>)| async move {
            let (arrives, sent) = inbox.recv().await?;
            end.proxy.shared.time.until(arrives).await;
            end.proxy.gate.passes(end.proxy.shared.time).await;
            let inbound = match sent {
                Sent::Message(seq, ask) => Inbound::Message(end.arrives(seq, ask)),
                Sent::Ended => {
                    end.closes();
                    Inbound::Ended
                }
                Sent::Broken => {
                    end.cut.cancel();
                    Inbound::Broken
                }
            };
            Some((inbound, (end, inbox)))
        };
        stream::unfold((self, inbox), next).boxed()
    }

    fn arrives(&self, seq: Seq, ask: Ask) -> Message {
        let received = self.proxy.coordinator.now();
        let request = match ask {
            Ask::Open(options) => Request::Open(options),
            Ask::Acquire(want, max_hold) => {
                self.begins(Work::Wish, seq, seq, format!("acquire {} by {}", want.name.as_str(), want.client), want.wait);
                Request::Acquire(want.spec(received), max_hold)
            }
            Ask::Adopt { id, ttl, attempt, max_hold, .. } => {
                self.begins(Work::Wish, seq, seq, format!("adopt {}", id.name.as_str()), Duration::ZERO);
                Request::Adopt { id, ttl, attempt, max_hold }
            }
            Ask::Release(lease) => {
                self.begins(Work::Release, seq, lease, format!("release lease {lease}"), Duration::ZERO);
                self.is_asked_to_release(Some(lease));
                Request::Release(lease)
            }
            Ask::Renew(lease, ttl) => {
                self.begins(Work::Renewal, seq, lease, format!("renew lease {lease}"), Duration::ZERO);
                Request::Renew(lease, ttl)
            }
            Ask::Cancel(acquire) => Request::Cancel(acquire),
            Ask::KeepAlive => Request::KeepAlive,
            Ask::Close => {
                self.closes();
                Request::Close
            }
        };
        Message { seq, received, request }
    }

    /// Everything that its client was told of is to be released.
    fn closes(&self) {
        self.is_asked_to_release(None);
        let leases: Vec<LeaseNumber> = self.book().leases.keys().copied().collect();
        for lease in leases {
            self.begins(Work::ReleaseAtTheEnd, lease, lease, format!("release lease {lease} at the end"), Duration::ZERO);
        }
    }

    /// One of the leases, or all.
    fn is_asked_to_release(&self, lease: Option<LeaseNumber>) {
        let book = self.book();
        let values = book.leases.iter().filter(|(number, _)| lease.is_none_or(|lease| lease == **number));
        let state = &mut *self.proxy.shared.state();
        for (_, (_, id)) in values {
            state.released.entry(id.value.as_str().to_owned()).or_default().insert(self.proxy.number);
        }
    }

    fn begins(&self, work: Work, seq: Seq, lease: LeaseNumber, what: String, wait: Duration) {
        if self.book().is_hung {
            return;
        }
        let deaf = self.book().deaf_until.saturating_sub(self.proxy.shared.now());
        let call = self.proxy.open_call(what, wait + deaf + SLACK);
        self.book().open.push(Open { work, seq, lease, call });
    }

    fn is_done(&self, fits: impl Fn(&Open) -> bool) {
        let done = self.book().open.extract_if(.., |open| fits(open)).collect::<Vec<_>>();
        done.into_iter().for_each(|open| self.proxy.close_call(open.call));
    }

    /// What was asked in that message.
    fn is_answered(&self, seq: Seq) {
        self.is_done(|open| open.seq == seq);
    }

    /// Reads what the session has to say while there is room for it on the way.
    async fn tell(self, mut outbox: Outbox, tell: mpsc::Sender<(At, Heard)>) {
        let shared = &self.proxy.shared;
        let mut last_arrival = At::ZERO;
        loop {
            let told = tokio::select! {
                biased;
                () = self.cut.cancelled() => None,
                told = async {
                    let room = tell.reserve().await.ok()?;
                    self.proxy.gate.passes(shared.time).await;
                    Some((room, poll_fn(|context| outbox.poll_next(context)).await))
                } => told,
            };
            match told {
                Some((room, Some(Ok(told)))) => {
                    let heard = self.hear(told);
                    last_arrival = last_arrival.max(shared.now() + shared.span(0, 1));
                    room.send((last_arrival, heard));
                }
                // In an orderly way: all that was to be released should have been.
                Some((_, None)) => return self.is_done(|open| open.work != Work::ReleaseAtTheEnd),
                _ => return self.is_done(|_| true),
            }
        }
    }

    /// What the client makes of a word.
    fn hear(&self, Told { acked, since, what }: Told) -> Heard {
        let base = self.book().sends.get(&acked).copied();
        // Before the first message there is no word of a lease.
        let term = |validity: Validity| {
            let counts_from = base.expect("it names a message that was sent");
            Term { counts_from, ends: counts_from + since + validity.as_duration() }
        };
        match what {
            What::Opened { session_id, resumed, leases, .. } => {
                self.goes_on_with(&leases);
                Heard::Opened { session_id, resumed }
            }
            What::Granted(view) => {
                self.is_answered(view.lease);
                let validity = view.validity.expect("a grant has one");
                self.granted(view, validity, term(validity))
            }
            What::Renewed(number, validity) => {
                self.is_done(|open| open.lease == number && open.work == Work::Renewal);
                self.promise(number, term(validity));
                Heard::Renewed(number, term(validity))
            }
            What::AtRisk(number, validity, _) => {
                validity.into_iter().for_each(|validity| self.promise(number, term(validity)));
                Heard::AtRisk(number)
            }
            What::Lost(number, validity, why, _) => {
                self.is_done(|open| open.seq == number || (open.lease == number && open.work == Work::Renewal));
                validity.into_iter().for_each(|validity| self.promise(number, term(validity)));
                self.book().leases.remove(&number);
                Heard::Lost(number, why)
            }
            What::Released(number, released) => {
                self.is_done(|open| open.lease == number);
                if let Some((_, id)) = self.book().leases.remove(&number).filter(|_| released == Released::Released) {
                    self.proxy.shared.state().owned.remove(id.value.as_str());
                }
                Heard::Released(number, released)
            }
            What::Contended { acquire, .. } => {
                self.is_answered(acquire);
                Heard::Contended(acquire)
            }
            What::Failed(seq, failure) => {
                self.could_not_give_back(seq);
                self.is_answered(seq);
                Heard::Failed(seq, label(&failure))
            }
            What::Draining => Heard::Draining,
        }
    }

    /// A lease whose release in message `seq` failed is the session's no more all the same.
    fn could_not_give_back(&self, seq: Seq) {
        let given_back = |open: &&Open| open.seq == seq && open.work == Work::Release;
        let Some(lease) = self.book().open.iter().find(given_back).map(|open| open.lease) else { return };
        self.book().leases.remove(&lease);
        self.is_done(|open| open.lease == lease);
    }

    /// Whatever else its client had once is not the session's any more. Here they all fit into one message.
    fn goes_on_with(&self, leases: &[LeaseView]) {
        let is_kept = |number: LeaseNumber| leases.iter().any(|view| view.lease == number);
        self.book().leases.retain(|number, _| is_kept(*number));
        self.is_done(|open| open.work == Work::ReleaseAtTheEnd && !is_kept(open.lease));
    }

    fn granted(&self, view: LeaseView, validity: Validity, term: Term) -> Heard {
        let LeaseView { lease: number, id, .. } = view;
        let (until, asked) = (self.clock.when(term.ends), self.book().asked.get(&number).cloned());
        let lease = match asked {
            Some(Ask::Acquire(want, _)) => self.proxy.granted(&want, &id, until),
            Some(Ask::Adopt { lease, .. }) => {
                self.proxy.adopted(lease, &id, until);
                lease
            }
            asked => panic!("granted in answer to {asked:?}"),
        };
        self.book().leases.insert(number, (lease, id.clone()));
        Heard::Granted { number, lease, id, validity, term }
    }

    /// What the client is told to rely on, and what the nodes keep of it now.
    fn promise(&self, number: LeaseNumber, term: Term) {
        let Some((lease, id)) = self.book().leases.get(&number).cloned() else { return };
        // Adopted elsewhere and given back there: this proxy can not know.
        if self.proxy.shared.state().returned.contains(&lease) {
            return;
        }
        let promise = Promise { lease, until: self.clock.when(term.ends), kept_until: self.proxy.kept_until(&id) };
        self.proxy.shared.state().history.promises.push(promise);
    }
}

fn label(failure: &Failure) -> &'static str {
    match failure {
        Failure::Acquire(failure) => super::proxy::label(failure),
        Failure::NoQuorum(_) => "no quorum",
        Failure::Cancelled => "cancelled",
        Failure::Invalid(_) => "invalid",
        Failure::NoSuchLease(_) => "no such lease",
        Failure::Hindered(_) => "hindered",
        Failure::TooManyLeases | Failure::TooManyUnanswered | Failure::Overloaded { .. } => "exhausted",
    }
}
