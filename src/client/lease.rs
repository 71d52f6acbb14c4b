//! A lease as its holder sees it: how long it is good for, and what becomes of it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::driver::Command;
use super::{Commands, Holds};

/// A fencing token: above that of every earlier grant of the same name. Give it to the protected resource with every write,
/// and let the resource refuse one that is lower than the highest it has seen. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(NonZeroU64);

impl Token {
    pub(super) fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number: 1 to 2^53 - 1.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What any proxy needs to check, adopt or release a lease. A secret, which `Debug` does not show: whoever has it can release
/// the lock.
#[derive(Clone, PartialEq, Eq)]
pub struct LockId(Arc<str>);

impl LockId {
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockId(..)")
    }
}

/// Why a lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossReason {
    /// A quorum of the nodes does not hold it any more.
    NotHeld,
    /// It could not be renewed in time, by this client's own clock: no proxy could be reached, or too few nodes.
    NotRenewed,
    /// Its `max_hold` is over.
    MaxHold,
    /// The proxies refuse it.
    Refused,
    /// The client was shut down.
    Closed,
}

/// The end of a lease that nobody released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Why.
    pub reason: LossReason,
    /// The same for people.
    pub detail: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lease is lost: {}", self.detail)
    }
}

impl std::error::Error for Lost {}

/// What a release did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// A quorum of the nodes held the lease and deleted it. Also where that had to be asked for again, because a proxy or a node
    /// went away meanwhile, if nothing was left then of a lease that was valid when it was given back.
    Freed,
    /// It had ended before: somebody else may have had the lock at the same time.
    NotHeld,
    /// Another guard of the same lease still holds it (see [`super::LockRequest::reentrant`]).
    Shared,
}

/// A release that could not be proven: the lock becomes free with its TTL at the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseError(pub(super) String);

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the release could not be proven, the lock becomes free with its TTL: {}", self.0)
    }
}

impl std::error::Error for ReleaseError {}

/// What is told of a lease.
#[derive(Clone, Debug)]
struct State {
    lock_id: LockId,
    valid_until: Instant,
    risk: Option<String>,
    /// Final: nothing makes a lost lease good again.
    lost: Option<Lost>,
}

/// A lease: written by the keeper, read by its guards. All of them see that its time is over by themselves, whether the
/// keeper has come to look or not.
#[derive(Debug)]
pub(super) struct Standing {
    name: String,
    token: Option<Token>,
    /// So long before its end it is given up, so that its holder has time to stop.
    notice: Duration,
    /// The end of `max_hold`.
    hold_ends: Option<Instant>,
    state: watch::Sender<State>,
}

impl Standing {
    pub(super) fn new(
        name: String,
        token: Option<Token>,
        notice: Duration,
        hold_ends: Option<Instant>,
        lock_id: LockId,
        end: Instant,
    ) -> Self {
        let valid_until = hold_ends.map_or(end, |hold_ends| hold_ends.min(end));
        let state = watch::Sender::new(State { lock_id, valid_until, risk: None, lost: None });
        Self { name, token, notice, hold_ends, state }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn lock_id(&self) -> LockId {
        self.state.borrow().lock_id.clone()
    }

    pub(super) fn valid_until(&self) -> Instant {
        self.state.borrow().valid_until
    }

    pub(super) fn hold_ends(&self) -> Option<Instant> {
        self.hold_ends
    }

    /// When it is given up unless it is prolonged.
    pub(super) fn lost_at(&self) -> Instant {
        self.lost_at_of(self.valid_until())
    }

    fn lost_at_of(&self, valid_until: Instant) -> Instant {
        valid_until.checked_sub(self.notice).unwrap_or(valid_until)
    }

    /// Whether it is lost; finds it lost when its time is over.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        self.state.send_if_modified(|state| {
            let over = state.lost.is_none() && now >= self.lost_at_of(state.valid_until);
            if over {
                state.lost = Some(self.time_is_over(state));
            }
            over
        });
        self.state.borrow().lost.is_some()
    }

    /// Whether it was found lost, at whatever instant.
    pub(super) fn is_lost_already(&self) -> bool {
        self.state.borrow().lost.is_some()
    }

    fn time_is_over(&self, state: &State) -> Lost {
        if self.hold_ends.is_some_and(|hold_ends| hold_ends <= state.valid_until) {
            return Lost { reason: LossReason::MaxHold, detail: "its max_hold is over".to_owned() };
        }
        let detail = state.risk.clone().unwrap_or_else(|| "no proxy renewed it in time".to_owned());
        Lost { reason: LossReason::NotRenewed, detail }
    }

    /// It goes on until `end` at least, unless it was lost before that was known.
    pub(super) fn prolong(&self, now: Instant, end: Instant) {
        self.is_lost(now);
        self.state.send_modify(|state| {
            if state.lost.is_none() {
                let end = self.hold_ends.map_or(end, |hold_ends| hold_ends.min(end));
                state.valid_until = state.valid_until.max(end);
                state.risk = None;
            }
        });
    }

    /// It has another lock id from now on.
    pub(super) fn rename(&self, lock_id: LockId) {
        self.state.send_modify(|state| state.lock_id = lock_id);
    }

    /// It ends at `end` at the latest.
    pub(super) fn shorten(&self, end: Instant) {
        self.state.send_modify(|state| state.valid_until = state.valid_until.min(end));
    }

    pub(super) fn lose(&self, lost: Lost) {
        self.state.send_modify(|state| state.lost = state.lost.take().or(Some(lost)));
    }

    pub(super) fn risk(&self, detail: String) {
        self.state.send_modify(|state| state.risk = Some(detail));
    }

    /// Waits until `seen` gives something, and looks again whenever the state changes and when the time of the lease is over.
    async fn when<T>(self: Arc<Self>, seen: impl Fn(&State) -> Option<T>) -> T {
        let mut states = self.state.subscribe();
        loop {
            let is_lost = self.is_lost(Instant::now());
            let lost_at = {
                let state = states.borrow_and_update();
                if let Some(seen) = seen(&state) {
                    return seen;
                }
                self.lost_at_of(state.valid_until)
            };
            tokio::select! {
                // Never fails: the sender is here.
                _ = states.changed() => {}
                () = sleep_until(lost_at), if !is_lost => {}
            }
        }
    }
}

/// The one claim to a lease that all its guards share: gives it back when the last of them is gone.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) id: u64,
    pub(super) standing: Arc<Standing>,
    pub(super) commands: Commands,
    pub(super) holds: Holds,
}

impl Hold {
    fn give_back(&self, answer: Option<oneshot::Sender<Result<Released, ReleaseError>>>) {
        self.holds.forget(self.standing.name(), self.id);
        // Nobody takes commands when the client has ended: the TTL ends the lease.
        let _ = self.commands.send(Command::GiveBack { id: self.id, answer });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

/// A lock that this program holds.
///
/// It is renewed in the background, and released when it is dropped, by a task of the [`super::Client`]. Where the end of the
/// release matters, [`Lease::release`] waits for it. A lease can be lost at any time: run the protected work beside
/// [`Lease::lost`], or in [`super::Client::with_lock`], and give [`Lease::token`] to the protected resource.
#[derive(Debug)]
#[must_use = "the lock is released when its lease is dropped"]
pub struct Lease {
    hold: Arc<Hold>,
}

impl Lease {
    pub(super) fn new(hold: Arc<Hold>) -> Self {
        Self { hold }
    }

    fn standing(&self) -> &Arc<Standing> {
        &self.hold.standing
    }

    /// What is locked.
    pub fn name(&self) -> &str {
        &self.standing().name
    }

    /// The fencing token. It stays the same for as long as the lease lasts, whichever proxies renew it. `None` only if the
    /// request said [`super::LockRequest::best_effort_token`].
    pub fn token(&self) -> Option<Token> {
        self.standing().token
    }

    /// The present lock id: a new one whenever another proxy takes over.
    pub fn lock_id(&self) -> LockId {
        self.standing().lock_id()
    }

    /// When the lease ends by this machine's monotonic clock, unless it is renewed. Nobody else has the lock before that.
    ///
    /// That clock stands still while a machine is suspended: after a suspension only the fencing token protects.
    pub fn valid_until(&self) -> Instant {
        self.standing().valid_until()
    }

    /// How long the lease lasts, unless it is renewed.
    pub fn valid_for(&self) -> Duration {
        self.valid_until().saturating_duration_since(Instant::now())
    }

    /// Whether the lock is held and [`Lease::lost`] has not come true. Once `false`, always `false`.
    pub fn is_valid(&self) -> bool {
        !self.standing().is_lost(Instant::now())
    }

    /// Comes true when the lease is lost, [`super::LockRequest::notice`] before its validity ends if this client's clock is
    /// what says so, and before it ends wherever a proxy could tell. Stop the protected work then, before
    /// [`Lease::valid_until`].
    ///
    /// Needs the runtime's timer, and not the client's background task. Does not borrow the lease.
    pub fn lost(&self) -> impl Future<Output = Lost> + Send + use<> {
        self.standing().clone().when(|state| state.lost.clone())
    }

    /// Comes true while less than half of the validity is left and the lease could not be renewed so far, and when it is lost;
    /// says why. It may be renewed yet, unless it is lost.
    pub fn at_risk(&self) -> impl Future<Output = String> + Send + use<> {
        self.standing().clone().when(|state| state.lost.as_ref().map(|lost| lost.detail.clone()).or(state.risk.clone()))
    }

    /// Gives the lock back and waits until a quorum of the nodes has deleted it, for 10 s at most
    /// ([`super::ClientBuilder::patience`]), and not much longer than until the lease ends anyhow. The release goes on if this future is dropped.
    pub async fn release(self) -> Result<Released, ReleaseError> {
        let Some(hold) = Arc::into_inner(self.hold) else { return Ok(Released::Shared) };
        let (answer, answered) = oneshot::channel();
        hold.give_back(Some(answer));
        drop(hold);
        answered.await.unwrap_or_else(|_| Err(ReleaseError("the client has ended".to_owned())))
    }
}
