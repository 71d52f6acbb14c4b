//! Carries what the keeper has to say to a proxy, and what the proxy says to the keeper: one task for each client.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Endpoint;

use super::keeper::{Asker, Keeper};
use super::lease::{ReleaseError, Released};
use super::request::Wish;
use super::sends::Sends;
use super::session::{self, Session};
use crate::proto::{ReleaseOutcome, SessionResponse};

/// Releases by calls of their own at a time.
const MAX_CALLS: usize = 32;

/// Answers that are read before the clock is looked at: a stall of this program is not taken for a silent proxy.
const READ_AT_ONCE: usize = 1_024;

/// How long the end of a session may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The pause after every proxy has been tried in vain: it doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The least time that a proxy is given to open a session.
const SHORTEST_OPENING: Duration = Duration::from_millis(50);

/// What the rest of the client asks of its driver.
#[derive(Debug)]
pub(super) enum Command {
    Acquire { id: u64, wish: Wish, request_id: [u8; 16], asker: Asker, place: OwnedSemaphorePermit },
    GiveBack { id: u64, answer: Option<oneshot::Sender<Result<Released, ReleaseError>>> },
    Close { done: oneshot::Sender<()> },
}

type Opening = BoxFuture<'static, Result<(Session, Sends), String>>;

pub(super) struct Driver {
    pub(super) keeper: Keeper,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) has_callers: bool,
    pub(super) proxies: Proxies,
    pub(super) session: Option<Session>,
    pub(super) opening: Option<Opening>,
    pub(super) successor: Option<Successor>,
    pub(super) calls: JoinSet<(u64, Option<ReleaseOutcome>)>,
    /// Who waits for the end.
    pub(super) ends: Option<Vec<oneshot::Sender<()>>>,
}

/// A session that takes the place of the one that stands as soon as that one has given its last answers.
#[derive(Debug)]
pub(super) struct Successor {
    session: Session,
    sends: Sends,
    proxy: usize,
    /// It waits no longer.
    by: Instant,
}

/// Where sessions can be opened, one after the other.
#[derive(Debug)]
pub(super) struct Proxies {
    pub(super) endpoints: Vec<Endpoint>,
    /// The one that was tried last.
    pub(super) tried: usize,
    /// The one that the session is with.
    pub(super) current: Option<usize>,
    /// Sessions tried since one did its work.
    pub(super) tries: u32,
    pub(super) open_timeout: Duration,
}

impl Proxies {
    /// The next one, how long to pause before it is tried, and how long it has to open a session.
    fn next(&mut self, shortest_left: Option<Duration>) -> (Endpoint, Duration, Duration) {
        self.tried = (self.tried + 1) % self.endpoints.len();
        if Some(self.tried) == self.current {
            self.tried = (self.tried + 1) % self.endpoints.len();
        }
        let rounds = self.tries / u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        self.tries = self.tries.saturating_add(1);
        let pause = match rounds {
            0 => Duration::ZERO,
            _ => (PAUSE.0 * 2_u32.pow(rounds.min(8) - 1)).min(PAUSE.1).mul_f64(rand::random_range(0.5..=1.0)),
        };
        let left = shortest_left.unwrap_or(Duration::MAX) / 4;
        (self.endpoints[self.tried].clone(), pause.min(left), self.patience(shortest_left))
    }

    /// For how long one proxy is waited for: others have to get their turn before a lease ends.
    fn patience(&self, shortest_left: Option<Duration>) -> Duration {
        let left = shortest_left.unwrap_or(Duration::MAX) / 4;
        self.open_timeout.min(left.max(SHORTEST_OPENING))
    }
}

/// What can happen.
enum Event {
    Command(Option<Command>),
    Heard(Result<SessionResponse, String>),
    Opened(Result<(Session, Sends), String>),
    Room(Option<mpsc::OwnedPermit<crate::proto::SessionRequest>>),
    CallDone(Option<(u64, Option<ReleaseOutcome>)>),
    Time,
}

impl Driver {
    /// Until the client is shut down, or nobody holds a part of it any more.
    pub(super) async fn run(mut self) {
        while !self.is_over() {
            self.move_on();
            self.begin_opening();
            self.begin_calls();
            match self.next_event().await {
                Event::Command(command) => self.on_command(command),
                Event::Heard(heard) => self.on_heard(heard),
                Event::Opened(opened) => self.on_opened(opened),
                Event::Room(room) => self.on_room(room),
                Event::CallDone(Some((id, outcome))) => self.keeper.on_call_done(Instant::now(), id, outcome),
                Event::CallDone(None) => {}
                Event::Time => self.on_time(),
            }
        }
        self.end().await;
    }

    fn is_over(&self) -> bool {
        self.ends.is_some() && self.keeper.is_settled()
    }

    async fn next_event(&mut self) -> Event {
        let has_to_say = self.session.is_some() && self.keeper.has_something_to_say(Instant::now());
        let outbound = self.session.as_ref().filter(|_| has_to_say).map(Session::outbound);
        let looks = if has_to_say { self.keeper.next_timer() } else { self.keeper.next_look() };
        let looks = looks.into_iter().chain(self.successor.as_ref().map(|successor| successor.by)).min();
        tokio::select! {
            command = self.commands.recv(), if self.has_callers => Event::Command(command),
            heard = next_of(&mut self.session) => Event::Heard(heard),
            opened = opened_of(&mut self.opening) => Event::Opened(opened),
            room = room_in(outbound), if has_to_say => Event::Room(room),
            Some(done) = self.calls.join_next() => Event::CallDone(done.ok()),
            () = time_of(looks) => Event::Time,
        }
    }

    /// A session is wanted if there is something to do and none stands, or if the one that stands does too little.
    fn begin_opening(&mut self) {
        let is_wanted = match self.session {
            _ if self.successor.is_some() => false,
            None => !self.keeper.is_idle(),
            Some(_) => self.keeper.wants_another(),
        };
        if !is_wanted {
            self.opening = None;
        } else if self.opening.is_none() {
            let seq = self.keeper.next_seq();
            let (proxy, pause, patience) = self.proxies.next(self.keeper.shortest_left(Instant::now()));
            self.opening = Some(
                async move {
                    sleep(pause).await;
                    Session::open(proxy, seq, patience).await
                }
                .boxed(),
            );
        }
    }

    fn begin_calls(&mut self) {
        let Some(session) = &self.session else { return };
        while self.calls.len() < MAX_CALLS {
            let Some((id, lock_id)) = self.keeper.next_call() else { return };
            let call = session::release(session.channel(), lock_id.as_str().to_owned(), self.proxies.open_timeout);
            self.calls.spawn(async move { (id, call.await) });
        }
    }

    fn on_command(&mut self, command: Option<Command>) {
        let now = Instant::now();
        match command {
            Some(Command::Acquire { id, wish, request_id, asker, place }) => {
                self.keeper.acquire(id, wish, request_id, asker, place);
            }
            Some(Command::GiveBack { id, answer }) => self.keeper.give_back(now, id, answer),
            Some(Command::Close { done }) => {
                self.ends.get_or_insert_default().push(done);
                self.keeper.close(now);
            }
            // No client and no lease is left: what they gave back before is still to be done.
            None => {
                self.has_callers = false;
                self.ends.get_or_insert_default();
                self.keeper.close(now);
            }
        }
    }

    fn on_heard(&mut self, heard: Result<SessionResponse, String>) {
        let now = Instant::now();
        let is_good = match heard {
            Ok(response) => self.keeper.on_message(now, response).is_ok(),
            Err(_) => false,
        };
        if !is_good {
            self.session = None;
            self.proxies.current = None;
            self.keeper.on_break();
        } else if !self.keeper.wants_another() {
            self.proxies.tries = 0;
        }
    }

    fn on_opened(&mut self, opened: Result<(Session, Sends), String>) {
        self.opening = None;
        if let Ok((session, sends)) = opened {
            let now = Instant::now();
            let by = now + self.proxies.patience(self.keeper.shortest_left(now));
            self.keeper.leave();
            self.successor = Some(Successor { session, sends, proxy: self.proxies.tried, by });
        }
    }

    /// The session that stood until now is left: it breaks, which releases nothing, and the new one adopts what it held.
    fn move_on(&mut self) {
        let now = Instant::now();
        let may_leave = self.session.is_none() || self.keeper.may_leave();
        let Some(Successor { session, sends, proxy, .. }) = self.successor.take_if(|next| may_leave || next.by <= now) else {
            return;
        };
        self.keeper.on_break();
        self.session = Some(session);
        self.proxies.current = Some(proxy);
        self.keeper.on_session(now, sends);
    }

    fn on_room(&mut self, room: Option<mpsc::OwnedPermit<crate::proto::SessionRequest>>) {
        let Some(room) = room else { return self.on_heard(Err("the connection has ended".to_owned())) };
        // The clock is read before the message is on its way.
        if let Some(message) = self.keeper.next_message(Instant::now()) {
            room.send(message);
        }
    }

    fn on_time(&mut self) {
        for _ in 0..READ_AT_ONCE {
            let Some(heard) = self.session.as_mut().and_then(|session| session.next().now_or_never()) else { break };
            self.on_heard(heard);
        }
        self.keeper.on_time(Instant::now());
    }

    /// Where leases are still in use, nothing is released: they end with their TTL.
    async fn end(mut self) {
        if let Some(session) = self.session.take().filter(|_| self.keeper.is_idle()) {
            let last = self.keeper.close_message(Instant::now());
            let _ = timeout(LAST_WORDS, session.close(last)).await;
        }
        for done in self.ends.take().into_iter().flatten() {
            let _ = done.send(());
        }
    }
}

async fn next_of(session: &mut Option<Session>) -> Result<SessionResponse, String> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

async fn opened_of(opening: &mut Option<Opening>) -> Result<(Session, Sends), String> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

async fn room_in(
    outbound: Option<mpsc::Sender<crate::proto::SessionRequest>>,
) -> Option<mpsc::OwnedPermit<crate::proto::SessionRequest>> {
    match outbound {
        Some(outbound) => outbound.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

async fn time_of(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
