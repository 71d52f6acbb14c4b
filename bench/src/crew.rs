//! The clients of one target at work: each takes a lock, holds it, gives it back, and begins again.
//!
//! In a closed loop a client begins as soon as it is done. In an open loop pairs are due at instants of their own, and a client
//! that is free takes the next one: [`Arrivals`]. Everything that is granted is watched: [`Watch`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;

use crate::Error;
use crate::arrivals::Arrivals;
use crate::client::{Client, Failure};
use crate::names::{Chooser, Names};
use crate::results::Checks;
use crate::tally::Recorder;
use crate::witness::{Lease, Lie, Witness};

/// After a failure in a closed loop, so that a target that is down is not asked a million times.
const PAUSE: Duration = Duration::from_millis(10);

/// The lies that are told in words.
const LIES_SHOWN: usize = 10;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Habit {
    pub names: Names,
    /// Stands before the number of each name.
    pub prefix: String,
    /// Between grant and release.
    pub hold: Duration,
}

/// One spell of work.
#[derive(Clone, Debug)]
pub struct Shift {
    pub pace: Pace,
    /// No pair is begun from then on.
    pub end: Instant,
    /// The clients begin one after the other over this time.
    pub ramp: Duration,
}

/// When a client begins the next pair.
#[derive(Clone, Debug)]
pub enum Pace {
    /// When it is done with the last one.
    Closed,
    /// When it is due.
    Open(Arc<Arrivals>),
}

/// A crew, whatever its target.
pub trait Work: Send {
    /// Puts everybody to work.
    fn begin(&mut self, shift: &Shift);

    /// Comes true when all are done. Nothing is lost if it is dropped before, and asked for again.
    fn ended(&mut self) -> BoxFuture<'_, Result<(), Error>>;

    /// Where they count.
    fn recorder(&self) -> &Recorder;

    /// Who watches them.
    fn watch(&self) -> &Watch;

    /// Pairs of each client since the last time.
    fn take_shares(&mut self) -> Vec<u64>;
}

/// The clients of one target.
pub struct Crew<C: Client> {
    members: Vec<Member<C>>,
    at_work: JoinSet<Member<C>>,
    shared: Arc<Shared>,
}

struct Member<C> {
    number: usize,
    client: C,
    random: SmallRng,
    pairs: u64,
}

struct Shared {
    names: Vec<String>,
    chooser: Chooser,
    hold: Duration,
    recorder: Recorder,
    watch: Watch,
}

impl<C: Client> Crew<C> {
    /// Of clients with a habit.
    pub fn new(clients: Vec<C>, habit: &Habit) -> Self {
        let count = habit.names.count(clients.len());
        let shared = Shared {
            names: (0..count).map(|i| format!("{}/{i}", habit.prefix)).collect(),
            chooser: habit.names.chooser(),
            hold: habit.hold,
            recorder: Recorder::default(),
            watch: Watch::new(count),
        };
        let member = |(number, client)| Member { number, client, random: SmallRng::seed_from_u64(number as u64), pairs: 0 };
        let members = clients.into_iter().enumerate().map(member).collect();
        Self { members, at_work: JoinSet::new(), shared: Arc::new(shared) }
    }
}

impl<C: Client> Work for Crew<C> {
    fn begin(&mut self, shift: &Shift) {
        let (started, count) = (Instant::now(), self.members.len() as u32);
        for (place, member) in self.members.drain(..).enumerate() {
            let from = started + shift.ramp * place as u32 / count.max(1);
            self.at_work.spawn(member.work(self.shared.clone(), shift.clone(), from));
        }
    }

    fn ended(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            while let Some(member) = self.at_work.join_next().await {
                self.members.push(member?);
            }
            self.members.sort_by_key(|member| member.number);
            Ok(())
        }
        .boxed()
    }

    fn recorder(&self) -> &Recorder {
        &self.shared.recorder
    }

    fn watch(&self) -> &Watch {
        &self.shared.watch
    }

    fn take_shares(&mut self) -> Vec<u64> {
        self.members.iter_mut().map(|member| std::mem::take(&mut member.pairs)).collect()
    }
}

impl<C: Client> Member<C> {
    async fn work(mut self, shared: Arc<Shared>, shift: Shift, from: Instant) -> Self {
        if from > Instant::now() {
            tokio::time::sleep_until(from.into()).await;
        }
        match &shift.pace {
            Pace::Closed => {
                while Instant::now() < shift.end {
                    if !self.pair(&shared, Instant::now()).await {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
            Pace::Open(arrivals) => {
                while let Some(due) = arrivals.next(Instant::now()) {
                    if due > Instant::now() {
                        tokio::time::sleep_until(due.into()).await;
                    }
                    self.pair(&shared, due).await;
                }
            }
        }
        self
    }

    /// One pair, that was due then. Whether it was made.
    async fn pair(&mut self, shared: &Shared, due: Instant) -> bool {
        let (number, recorder, watch) = (self.number, &shared.recorder, &shared.watch);
        let name = shared.chooser.choose(number, &mut self.random);
        let failed = |failure: &Failure| {
            recorder.failure(number, failure);
            watch.failed(failure);
            false
        };
        let (held, lease) = match self.client.take(&shared.names[name]).await {
            Ok(taken) => taken,
            Err(failure) => return failed(&failure),
        };
        let granted = Instant::now();
        recorder.taken(number, granted.saturating_duration_since(due));
        watch.granted(number, name, granted, lease);
        if !shared.hold.is_zero() {
            tokio::time::sleep(shared.hold).await;
        }
        watch.gives_back(number, name);
        if let Err(failure) = self.client.give_back(held).await {
            return failed(&failure);
        }
        recorder.pair(number, due.elapsed());
        self.pairs += 1;
        true
    }
}

/// The witnesses of all names of a crew, and the lies that they have seen.
#[derive(Debug, Default)]
pub struct Watch {
    names: Vec<Witness>,
    overlaps: AtomicU64,
    tokens_not_rising: AtomicU64,
    senseless_answers: AtomicU64,
    lies: Mutex<Vec<String>>,
}

impl Watch {
    fn new(names: usize) -> Self {
        Self { names: (0..names).map(|_| Witness::default()).collect(), ..Self::default() }
    }

    fn granted(&self, client: usize, name: usize, now: Instant, lease: Lease) {
        let Err(lie) = self.names[name].granted(client, now, lease) else { return };
        let count = match lie {
            Lie::Overlap { .. } => &self.overlaps,
            Lie::Token { .. } => &self.tokens_not_rising,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.tell(format!("name {name}: {lie}"));
    }

    fn gives_back(&self, client: usize, name: usize) {
        self.names[name].gives_back(client);
    }

    fn failed(&self, failure: &Failure) {
        if failure.is_lie {
            self.senseless_answers.fetch_add(1, Ordering::Relaxed);
            self.tell(failure.what.clone());
        }
    }

    fn tell(&self, lie: String) {
        let mut lies = self.lies.lock().unwrap_or_else(PoisonError::into_inner);
        if lies.len() < LIES_SHOWN {
            lies.push(lie);
        }
    }

    /// What was checked, and what was wrong.
    pub fn checks(&self) -> Checks {
        Checks {
            grants: self.names.iter().map(Witness::grants).sum(),
            names: self.names.iter().filter(|witness| witness.grants() > 0).count() as u64,
            overlaps: self.overlaps.load(Ordering::Relaxed),
            tokens: self.names.iter().map(Witness::tokens_compared).sum(),
            tokens_not_rising: self.tokens_not_rising.load(Ordering::Relaxed),
            senseless_answers: self.senseless_answers.load(Ordering::Relaxed),
            lies: self.lies.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Checks::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::arrivals::{Rate, Rhythm};
    use crate::tally::Tally;

    const SECOND: Duration = Duration::from_secs(1);

    /// Grants everything to everybody; the tokens are those of a counter that may stand still.
    struct Generous {
        tokens: Arc<AtomicU64>,
        counts: bool,
        every_third_fails: bool,
        calls: u64,
        slow: Arc<AtomicBool>,
    }

    impl Client for Generous {
        type Held = ();

        async fn take(&mut self, _: &str) -> Result<((), Lease), Failure> {
            self.calls += 1;
            let pause = if self.slow.load(Ordering::Relaxed) { 50 } else { 1 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if self.every_third_fails && self.calls.is_multiple_of(3) {
                return Err(Failure::new("acquire: unavailable", format!("the {}th", self.calls)));
            }
            let token = self.tokens.fetch_add(u64::from(self.counts), Ordering::Relaxed);
            Ok(((), Lease { ends: Instant::now() + SECOND, token: Some(token) }))
        }

        async fn give_back(&mut self, (): ()) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn crew(clients: usize, names: Names, hold: Duration, counts: bool, every_third_fails: bool) -> Crew<Generous> {
        let (tokens, slow) = (Arc::new(AtomicU64::new(1)), Arc::default());
        let clients = (0..clients)
            .map(|_| Generous { tokens: Arc::clone(&tokens), counts, every_third_fails, calls: 0, slow: Arc::clone(&slow) })
            .collect();
        Crew::new(clients, &Habit { names, prefix: "test".to_owned(), hold })
    }

    async fn work(crew: &mut impl Work, pace: Pace, time: Duration) -> Tally {
        crew.begin(&Shift { pace, end: Instant::now() + time, ramp: Duration::ZERO });
        crew.ended().await.unwrap();
        crew.recorder().drain()
    }

    #[tokio::test]
    async fn a_good_history_has_no_lies_and_all_is_counted() {
        let mut crew = crew(3, Names::Distinct, Duration::ZERO, true, true);
        let tally = work(&mut crew, Pace::Closed, Duration::from_millis(100)).await;
        let calls: u64 = crew.members.iter().map(|member| member.client.calls).sum();
        assert_eq!((tally.pairs() + tally.errors.count(), tally.acquire.count()), (calls, tally.pairs()));
        assert!(tally.errors.count() > 0 && tally.pairs() > 3, "{tally:?}");
        assert_eq!(crew.take_shares().iter().sum::<u64>(), tally.pairs());
        assert_eq!(crew.take_shares(), [0, 0, 0]);
        let checks = crew.watch().checks();
        assert_eq!((checks.broken(), checks.grants, checks.names), (0, tally.pairs(), 3));
        assert_eq!(checks.tokens, checks.grants - 3, "the first of each name has none before it");
    }

    #[tokio::test]
    async fn two_holders_of_one_name_are_found() {
        let mut crew = crew(2, Names::One, Duration::from_millis(5), true, false);
        work(&mut crew, Pace::Closed, Duration::from_millis(50)).await;
        let checks = crew.watch().checks();
        assert!(checks.overlaps > 0 && checks.lies[0].contains("TWO HOLDERS"), "{checks:?}");
    }

    #[tokio::test]
    async fn tokens_that_stand_still_are_found() {
        let mut crew = crew(1, Names::One, Duration::ZERO, false, false);
        let tally = work(&mut crew, Pace::Closed, Duration::from_millis(50)).await;
        let checks = crew.watch().checks();
        assert_eq!((checks.overlaps, checks.tokens_not_rising), (0, tally.pairs() - 1));
        assert!(checks.lies.len() <= LIES_SHOWN && checks.broken() > 0);
    }

    #[tokio::test]
    async fn waiting_for_a_busy_client_is_in_the_latency_of_an_open_loop() {
        let mut crew = crew(1, Names::Distinct, Duration::ZERO, true, false);
        crew.members[0].client.slow.store(true, Ordering::Relaxed);
        let (started, length) = (Instant::now(), Duration::from_millis(400));
        let arrivals = Arc::new(Arrivals::new(Rate::of(100.0), Rhythm::Steady, 1, started, length));
        let tally = work(&mut crew, Pace::Open(arrivals.clone()), length).await;
        // One client makes a pair in 50 ms, but one is due every 10 ms: each waits 40 ms longer than the one before.
        assert_eq!(tally.pairs(), arrivals.taken());
        assert!(tally.pairs() >= 2 && tally.pairs() <= 8, "{}", tally.pairs());
        let longest = tally.pair.percentile_ms(100.0).unwrap();
        assert!(longest >= 50.0 + 40.0 * (tally.pairs() - 1) as f64 - 11.0, "{longest} ms after {} pairs", tally.pairs());
        assert_eq!(arrivals.not_begun().len() as u64, 39 - arrivals.taken());
    }
}
