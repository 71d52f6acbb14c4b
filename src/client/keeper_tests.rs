//! The keeper against a proxy that says what the test wants, on a clock that stands still unless it is told to go on.

use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

struct World {
    keeper: Keeper,
    now: Instant,
    next_id: u64,
    places: Arc<Semaphore>,
}

impl World {
    fn new(has_others: bool) -> Self {
        let keeper = Keeper::new(Settings { patience: PATIENCE, has_others }, 1);
        Self { keeper, now: Instant::now(), next_id: 1, places: Arc::new(Semaphore::new(10_000)) }
    }

    /// With a session.
    fn connected(has_others: bool) -> Self {
        let mut world = Self::new(has_others);
        world.connect();
        world
    }

    fn connect(&mut self) {
        let mut sends = Sends::default();
        sends.on_send(self.keeper.next_seq(), self.now);
        self.keeper.on_session(self.now, sends);
    }

    fn wish(&self, wait: Duration) -> Wish {
        Wish {
            name: "orders/42".to_owned(),
            ttl: TTL,
            wait_ends: self.now.checked_add(wait),
            max_hold: None,
            best_effort_token: false,
            owner: "ann".to_owned(),
            notice: ms(500),
        }
    }

    fn ask(&mut self, wish: Wish) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        let [_call, place] = [(); 2].map(|()| self.places.clone().try_acquire_owned().unwrap());
        self.keeper.acquire(id, wish, [7; 16], Asker { answer, _call }, place);
        (id, answered)
    }

    /// All that there is to say now, with its numbers.
    fn said(&mut self) -> Vec<(u64, Say)> {
        std::iter::from_fn(|| self.keeper.next_message(self.now))
            .map(|request| (request.seq, request.message.unwrap()))
            .collect()
    }

    /// The one thing that there is to say now.
    #[track_caller]
    fn says(&mut self) -> (u64, Say) {
        let mut said = self.said();
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    #[track_caller]
    fn says_acquire(&mut self) -> (u64, proto::SessionAcquire) {
        match self.says() {
            (seq, Say::Acquire(acquire)) => (seq, acquire),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn says_adopt(&mut self) -> (u64, proto::SessionAdopt) {
        match self.says() {
            (seq, Say::Adopt(adopt)) => (seq, adopt),
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, acked_seq: u64, message: Told) {
        self.keeper.on_message(self.now, SessionResponse { acked_seq, since_ack: None, message: Some(message) }).unwrap();
    }

    fn go_on(&mut self, duration: Duration) {
        self.now += duration;
        self.keeper.on_time(self.now);
    }

    /// Goes on from timer to timer.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.keeper.next_timer().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.keeper.on_time(self.now);
        }
        self.now = end;
    }

    /// A lease that is held since now.
    fn held(&mut self) -> (u64, u64, Arc<Standing>) {
        let (id, mut answered) = self.ask(self.wish(Duration::ZERO));
        let (seq, _) = self.says_acquire();
        self.hear(seq, granted(seq, "rl1_first", 9_000));
        (id, seq, answered.try_recv().unwrap().unwrap())
    }
}

fn granted(lease: u64, lock_id: &str, validity: u64) -> Told {
    Told::Granted(proto::SessionGranted {
        lease,
        lock_id: lock_id.to_owned(),
        fencing: Some(Fencing::FencingToken(17)),
        validity: proto_duration(ms(validity)),
    })
}

fn renewed(lease: u64, validity: u64) -> Told {
    Told::Renewed(proto::SessionRenewed { lease, validity: proto_duration(ms(validity)) })
}

fn lost(lease: u64, validity: u64, reason: SessionLossReason) -> Told {
    let validity = proto_duration(ms(validity));
    Told::Lost(proto::SessionLost { lease, validity, reason: reason.into(), detail: "gone".to_owned() })
}

fn failed(request: u64, code: u32) -> Told {
    Told::Failed(proto::SessionFailed { request, code, message: "no".to_owned(), retry_after: proto_duration(ms(20)) })
}

fn freed(lease: u64) -> Told {
    Told::Released(proto::SessionReleased { lease, outcome: ReleaseOutcome::Released.into() })
}

#[test]
fn a_lease_ends_as_the_proxy_says_counted_from_our_own_sending() {
    let mut world = World::connected(true);
    let (_, mut answered) = world.ask(world.wish(ms(3_000)));
    let sent = world.now;
    let (seq, acquire) = world.says_acquire();
    let request = acquire.request.unwrap();
    assert_eq!((request.name.as_str(), request.owner.as_str(), request.attempt), ("orders/42", "ann", 1));
    assert_eq!((duration(request.ttl), duration(request.wait), request.request_id.len()), (TTL, ms(3_000), 16));
    world.go_on(ms(700));
    let response =
        SessionResponse { acked_seq: seq, since_ack: proto_duration(ms(40)), message: Some(granted(seq, "rl1_a", 9_000)) };
    world.keeper.on_message(world.now, response).unwrap();
    let standing = answered.try_recv().unwrap().unwrap();
    assert_eq!(standing.valid_until(), sent + ms(9_040));
    // A renewal moves the end only to a later instant.
    world.hear(seq, renewed(seq, 9_500));
    assert_eq!(standing.valid_until(), sent + ms(9_500));
    world.hear(seq, renewed(seq, 2_000));
    assert_eq!(standing.valid_until(), sent + ms(9_500));
}

/// Of which so much is forgotten that only the first of the session would be left to stand in.
#[test]
fn a_grant_after_much_talk_counts_from_its_own_message() {
    let mut world = World::connected(true);
    world.go_on(ms(700));
    let (_, mut answered) = world.ask(world.wish(ms(3_000)));
    let sent = world.now;
    let (seq, _) = world.says_acquire();
    (0..100_000).for_each(|_| drop(world.keeper.close_message(sent)));
    world.hear(seq, granted(seq, "rl1_a", 9_000));
    assert_eq!(answered.try_recv().unwrap().unwrap().valid_until(), sent + ms(9_000));
}

#[test]
fn a_grant_that_counts_from_nothing_that_was_sent_ends_the_session() {
    let mut world = World::connected(true);
    let _asked = world.ask(world.wish(Duration::ZERO));
    let (seq, _) = world.says_acquire();
    let response = SessionResponse { acked_seq: seq + 1, since_ack: None, message: Some(granted(seq, "rl1_a", 9_000)) };
    assert!(world.keeper.on_message(world.now, response).is_err());
}

#[test]
fn something_is_said_at_least_every_sixth_of_the_shortest_ttl() {
    let mut world = World::connected(true);
    assert_eq!(world.keeper.next_look(), None, "nothing is held or wanted");
    let (id, seq, _) = world.held();
    let (start, mut last, mut count) = (world.now, world.now, 0);
    while world.now < start + TTL {
        world.now = world.keeper.next_look().unwrap();
        world.keeper.on_time(world.now);
        for (keep_alive, say) in world.said() {
            assert!(matches!(say, Say::KeepAlive(_)), "{say:?}");
            assert!(world.now - last <= TTL / 6);
            (last, count) = (world.now, count + 1);
            world.hear(keep_alive, renewed(seq, 9_000));
        }
    }
    assert!((6..=10).contains(&count), "{count}");
    world.keeper.give_back(world.now, id, None);
    let (release, _) = world.says();
    world.hear(release, freed(seq));
    assert_eq!((world.keeper.next_look(), world.keeper.is_idle()), (None, true));
}

#[test]
fn a_lease_whose_session_broke_is_adopted_with_rising_attempts_until_it_works() {
    let mut world = World::connected(true);
    let (_, _, standing) = world.held();
    let end = standing.valid_until();
    for attempt in 1..=2 {
        world.keeper.on_break();
        world.go_on(ms(500));
        world.connect();
        let (_, adopt) = world.says_adopt();
        assert_eq!((adopt.lock_id.as_str(), adopt.attempt, duration(adopt.ttl)), ("rl1_first", attempt, TTL));
    }
    // Refused for now: again at the next proxy.
    world.keeper.on_break();
    world.connect();
    let (seq, _) = world.says_adopt();
    world.hear(seq, failed(seq, UNAVAILABLE));
    assert!(world.keeper.wants_another());
    world.keeper.on_break();
    world.connect();
    let (seq, adopt) = world.says_adopt();
    assert_eq!(adopt.attempt, 4);
    assert_eq!(standing.valid_until(), end, "only a proxy moves the end");
    world.hear(seq, granted(seq, "rl1_second", 9_000));
    assert_eq!((standing.lock_id().as_str(), standing.valid_until()), ("rl1_second", world.now + ms(9_000)));
    assert!(!standing.is_lost(world.now) && !world.keeper.wants_another());
    world.hear(seq, renewed(seq, 9_500));
    assert_eq!(standing.valid_until(), world.now + ms(9_500), "its number is that of the adoption");
    world.keeper.on_break();
    world.connect();
    let (_, adopt) = world.says_adopt();
    assert_eq!((adopt.lock_id.as_str(), adopt.attempt), ("rl1_second", 1));
}

#[test]
fn an_acquire_whose_session_broke_is_asked_again_with_a_higher_attempt() {
    let mut world = World::connected(true);
    let (_, mut answered) = world.ask(world.wish(ms(60_000)));
    let (_, first) = world.says_acquire();
    world.keeper.on_break();
    world.go_on(ms(4_000));
    world.connect();
    let (seq, second) = world.says_acquire();
    let (first, second) = (first.request.unwrap(), second.request.unwrap());
    assert_eq!((second.attempt, &second.request_id), (2, &first.request_id));
    assert_eq!(duration(second.wait), ms(56_000));
    world.hear(seq, granted(seq, "rl1_a", 9_000));
    assert!(answered.try_recv().unwrap().is_ok());
}

#[test]
fn whoever_waits_is_answered_a_bounded_time_after_the_wait() {
    let mut world = World::connected(true);
    let (_, mut answered) = world.ask(world.wish(ms(5_000)));
    world.says_acquire();
    world.keeper.on_break();
    world.pass(ms(14_900));
    assert!(answered.try_recv().is_err());
    world.pass(ms(200));
    let answer = answered.try_recv().unwrap();
    assert!(matches!(answer, Err(AcquireError::Unavailable { .. })), "{answer:?}");
    assert!(world.keeper.is_idle());
}

#[test]
fn contended_is_asked_again_while_there_is_time_and_told_when_there_is_none() {
    let mut world = World::connected(true);
    let contended = |acquire| {
        let contended =
            proto::Contended { owner: "bob".to_owned(), retry_after: proto_duration(ms(300)), ..Default::default() };
        Told::Contended(proto::SessionContended { acquire, contended: Some(contended) })
    };
    let (_, mut answered) = world.ask(world.wish(ms(5_000)));
    let (seq, _) = world.says_acquire();
    world.hear(seq, contended(seq));
    assert!(answered.try_recv().is_err() && world.said().is_empty());
    world.pass(ms(300));
    let (seq, again) = world.says_acquire();
    assert_eq!(again.request.unwrap().attempt, 2);
    world.pass(ms(4_600));
    world.hear(seq, contended(seq));
    let Err(AcquireError::Contended(by)) = answered.try_recv().unwrap() else { panic!("not contended") };
    assert_eq!((by.owner.as_deref(), by.retry_after), (Some("bob"), ms(300)));
}

#[test]
fn a_request_that_is_given_up_is_cancelled_and_its_grant_released() {
    let mut world = World::connected(true);
    let (id, answered) = world.ask(world.wish(ms(60_000)));
    let (seq, _) = world.says_acquire();
    drop(answered);
    world.keeper.give_back(world.now, id, None);
    let (_, cancel) = world.says();
    assert_eq!(cancel, Say::Cancel(proto::SessionCancel { acquire: seq }));
    world.hear(seq, granted(seq, "rl1_a", 9_000));
    let (_, release) = world.says();
    assert_eq!(release, Say::Release(proto::SessionRelease { lease: seq }));
    assert!(world.keeper.is_idle());

    // The same for one that was answered in time.
    let (id, _answered) = world.ask(world.wish(ms(60_000)));
    let (seq, _) = world.says_acquire();
    world.keeper.give_back(world.now, id, None);
    world.says();
    world.hear(seq, failed(seq, CANCELLED));
    assert!(world.keeper.is_idle() && world.said().is_empty());
}

#[test]
fn a_grant_that_is_of_no_use_is_released_and_asked_for_again() {
    let mut world = World::connected(true);
    let (_, mut answered) = world.ask(world.wish(ms(60_000)));
    let (seq, _) = world.says_acquire();
    world.now += ms(8_600);
    // Valid for 400 ms yet, with a notice of 500.
    world.hear(seq, granted(seq, "rl1_a", 9_000));
    assert!(answered.try_recv().is_err());
    let (_, release) = world.says();
    assert_eq!(release, Say::Release(proto::SessionRelease { lease: seq }));
    world.pass(ms(200));
    let (again, acquire) = world.says_acquire();
    assert_eq!(acquire.request.unwrap().attempt, 2);
    world.hear(again, granted(again, "rl1_b", 9_000));
    assert_eq!(answered.try_recv().unwrap().unwrap().lock_id().as_str(), "rl1_b");
}

#[test]
fn a_lease_that_is_not_renewed_by_half_of_its_validity_wants_another_proxy() {
    let mut world = World::connected(true);
    let (_, seq, _) = world.held();
    world.pass(ms(4_500));
    assert!(!world.keeper.wants_another());
    world.pass(ms(300));
    assert!(world.keeper.wants_another(), "half of 9 s, and a little more");
    world.said();
    world.hear(seq, renewed(seq, 9_000));
    assert!(!world.keeper.wants_another(), "renewed after all");

    // Where there is no other one, only silence is a reason.
    for (is_silent, wants_another) in [(true, true), (false, false)] {
        let mut world = World::connected(false);
        let (_, seq, standing) = world.held();
        world.pass(ms(4_600));
        if !is_silent {
            let detail = "no quorum".to_owned();
            world.hear(seq, Told::AtRisk(proto::SessionAtRisk { lease: seq, validity: None, detail }));
        }
        world.pass(ms(3_800));
        assert!(!standing.is_lost(world.now));
        assert_eq!(world.keeper.wants_another(), wants_another);
    }
}

#[test]
fn a_lease_is_lost_by_our_own_clock_whatever_the_proxy_says_later() {
    let mut world = World::connected(true);
    let (_, seq, standing) = world.held();
    let end = standing.valid_until();
    world.pass(ms(8_499));
    assert!(!standing.is_lost_already());
    world.pass(ms(1));
    assert!(standing.is_lost_already(), "half a second before its end");
    world.said();
    let acked = world.keeper.seq;
    world.hear(acked, renewed(seq, 9_000));
    assert!(standing.is_lost(world.now));
    assert_eq!(standing.valid_until(), end);
    // Its holder has all of that time to stop.
    world.pass(ms(499));
    assert!(world.said().iter().all(|(_, say)| matches!(say, Say::KeepAlive(_))));
    world.pass(ms(2));
    assert!(world.said().iter().any(|(_, say)| *say == Say::Release(proto::SessionRelease { lease: seq })));
}

#[test]
fn what_the_proxy_says_is_lost_is_lost_at_once() {
    let mut world = World::connected(true);
    let (_, seq, standing) = world.held();
    world.go_on(ms(1_000));
    world.hear(seq, lost(seq, 300, SessionLossReason::NotHeld));
    assert!(standing.is_lost(world.now));
    assert!(standing.valid_until() <= world.now, "300 ms after the sending of the acquire");

    // For want of a quorum or of our keep-alives, another proxy may do better.
    let (_, seq, standing) = world.held();
    world.hear(seq, lost(seq, 6_000, SessionLossReason::NoQuorum));
    assert!(!standing.is_lost(world.now) && world.keeper.wants_another());
    assert_eq!(standing.valid_until(), world.now + ms(6_000));
    world.keeper.on_break();
    world.connect();
    let (_, adopt) = world.says_adopt();
    assert_eq!((adopt.lock_id.as_str(), adopt.attempt), ("rl1_first", 1));
}

/// More leases than a proxy adopts at a time: it is given no more than that, and one that is busy is not left with all of them.
#[test]
fn many_leases_are_adopted_in_turn_and_a_busy_proxy_is_not_left() {
    const MANY: usize = MAX_ADOPTING + 1_000;
    let mut world = World::connected(true);
    world.places = Arc::new(Semaphore::new(2 * MANY));
    let leases: Vec<_> = (0..MANY).map(|_| world.held()).collect();
    world.keeper.on_break();
    world.connect();
    let adoptions = world.said();
    assert_eq!(adoptions.len(), MAX_ADOPTING, "no more at a time");
    assert!(!world.keeper.has_something_to_say(world.now));

    // Refused for want of room, and asked again in the same session.
    let (refused, _) = adoptions[0];
    world.hear(refused, failed(refused, RESOURCE_EXHAUSTED));
    assert!(!world.keeper.wants_another());
    assert_eq!(world.said().len(), 1, "another one in its place");
    world.go_on(ms(1_300));
    assert!(matches!(world.says(), (_, Say::KeepAlive(_))), "there is no room for it");
    for (seq, _) in &adoptions[1..1_001] {
        world.hear(*seq, granted(*seq, "rl1_b", 9_000));
    }
    let rest = world.said();
    assert_eq!(rest.len(), 1_000);
    assert!(rest.iter().any(|(_, say)| matches!(say, Say::Adopt(adopt) if adopt.attempt == 2)));
    assert!(!world.keeper.wants_another() && leases.iter().all(|(_, _, standing)| !standing.is_lost(world.now)));

    // A lease that is about to end is worth another proxy.
    for (after, wants_another) in [(5_900, false), (6_100, true)] {
        let mut world = World::connected(true);
        world.held();
        world.go_on(ms(after));
        world.keeper.on_break();
        world.connect();
        let (seq, _) = world.says_adopt();
        world.hear(seq, failed(seq, RESOURCE_EXHAUSTED));
        assert_eq!(world.keeper.wants_another(), wants_another);
    }
}

#[test]
fn an_adoption_that_finds_the_lease_lost_is_final() {
    let mut world = World::connected(true);
    let (id, _, standing) = world.held();
    world.keeper.on_break();
    world.connect();
    let (seq, _) = world.says_adopt();
    world.hear(seq, lost(seq, 0, SessionLossReason::NotHeld));
    assert!(standing.is_lost(world.now));
    world.keeper.give_back(world.now, id, None);
    assert_eq!(world.keeper.next_call().map(|(id, _)| id), Some(id));
    world.keeper.on_call_done(world.now, id, Some(ReleaseOutcome::NotHeld));
    assert!(world.keeper.is_idle());
}

#[test]
fn max_hold_ends_a_lease_and_goes_along_with_it() {
    let mut world = World::connected(true);
    let wish = Wish { max_hold: Some(ms(20_000)), ..world.wish(Duration::ZERO) };
    let (_, mut answered) = world.ask(wish);
    let (seq, acquire) = world.says_acquire();
    assert_eq!(duration(acquire.max_hold), ms(20_000));
    world.hear(seq, granted(seq, "rl1_a", 9_000));
    let (start, standing) = (world.now, answered.try_recv().unwrap().unwrap());
    world.go_on(ms(5_000));
    world.keeper.on_break();
    world.connect();
    let (adopted, adopt) = world.says_adopt();
    assert_eq!(duration(adopt.max_hold), ms(15_000));
    world.hear(adopted, granted(adopted, "rl1_b", 9_000));
    for _ in 0..3 {
        world.go_on(ms(4_000));
        let (keep_alive, _) = world.says();
        world.hear(keep_alive, renewed(adopted, 9_000));
    }
    assert_eq!(standing.valid_until(), start + ms(20_000));
    world.pass(ms(2_600));
    assert!(standing.is_lost_already());
}

#[test]
fn a_release_ends_with_the_answer_of_its_session_or_of_a_call() {
    let mut world = World::connected(true);
    let (id, seq, _) = world.held();
    let (answer, mut answered) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    let (number, release) = world.says();
    assert_eq!(release, Say::Release(proto::SessionRelease { lease: seq }));
    world.hear(number, freed(seq));
    assert_eq!(answered.try_recv().unwrap(), Ok(Released::Freed));

    // The session breaks before the answer; a call fails, the next one does not.
    let (id, ..) = world.held();
    let (answer, mut answered) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    world.says();
    world.keeper.on_break();
    world.connect();
    assert_eq!(world.keeper.next_call(), Some((id, LockId::new("rl1_first"))));
    world.keeper.on_call_done(world.now, id, None);
    assert_eq!(world.keeper.next_call(), None, "not at once");
    world.pass(ms(100));
    assert!(world.keeper.next_call().is_some());
    world.keeper.on_call_done(world.now, id, Some(ReleaseOutcome::NotHeld));
    assert_eq!(answered.try_recv().unwrap(), Ok(Released::Freed), "by one of those that were not answered");

    // Nobody ever answers.
    let (id, ..) = world.held();
    let (answer, mut answered) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    world.keeper.on_break();
    world.pass(PATIENCE);
    assert!(answered.try_recv().unwrap().is_err());
    assert!(world.keeper.is_idle());
}

/// That of a proxy that could not reach enough nodes, or of a session that broke, may have been carried out.
#[test]
fn nothing_is_left_of_a_valid_lease_only_if_a_release_was_carried_out() {
    let in_doubt = |world: &mut World, number| world.hear(number, failed(number, UNAVAILABLE));
    let broken = |world: &mut World, _| {
        world.keeper.on_break();
        world.connect();
    };
    for first in [in_doubt as fn(&mut World, u64), broken] {
        let mut world = World::connected(true);
        let (id, ..) = world.held();
        let (answer, mut answered) = oneshot::channel();
        world.keeper.give_back(world.now, id, Some(answer));
        let (number, _) = world.says();
        first(&mut world, number);
        world.pass(ms(1_000));
        assert!(world.keeper.next_call().is_some());
        world.keeper.on_call_done(world.now, id, Some(ReleaseOutcome::NotHeld));
        assert_eq!(answered.try_recv().unwrap(), Ok(Released::Freed));
    }
    // Said of the first release, it is an alarm.
    let mut world = World::connected(true);
    let (id, ..) = world.held();
    world.keeper.on_break();
    world.connect();
    let (answer, mut answered) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    assert!(world.keeper.next_call().is_some());
    world.keeper.on_call_done(world.now, id, Some(ReleaseOutcome::NotHeld));
    assert_eq!(answered.try_recv().unwrap(), Ok(Released::NotHeld));
    // So it is of a lease whose time was over.
    let (id, ..) = world.held();
    world.now += TTL;
    let (answer, mut answered) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    let (number, _) = world.says();
    world.hear(number, failed(number, UNAVAILABLE));
    world.pass(ms(500));
    assert!(world.keeper.next_call().is_some());
    world.keeper.on_call_done(world.now, id, Some(ReleaseOutcome::NotHeld));
    assert_eq!(answered.try_recv().unwrap(), Ok(Released::NotHeld));
}

#[test]
fn a_release_after_an_adoption_of_unknown_end_adopts_first() {
    let mut world = World::connected(true);
    let (id, ..) = world.held();
    world.keeper.on_break();
    world.connect();
    world.says_adopt();
    world.keeper.on_break();
    world.keeper.give_back(world.now, id, None);
    world.connect();
    let (seq, adopt) = world.says_adopt();
    assert_eq!(adopt.attempt, 2);
    world.hear(seq, granted(seq, "rl1_second", 9_000));
    let (number, release) = world.says();
    assert_eq!(release, Say::Release(proto::SessionRelease { lease: seq }));
    world.hear(number, freed(seq));
    assert!(world.keeper.is_idle());
}

#[test]
fn a_proxy_that_drains_is_asked_for_nothing_new() {
    let mut world = World::connected(true);
    let (_, waiting) = world.ask(world.wish(ms(60_000)));
    let (seq, _) = world.says_acquire();
    world.hear(seq, Told::Draining(proto::SessionDraining {}));
    assert!(world.keeper.wants_another());
    world.hear(seq, failed(seq, UNAVAILABLE));
    let (_, new) = world.ask(world.wish(Duration::ZERO));
    assert!(world.said().is_empty());
    world.keeper.on_break();
    world.connect();
    let said = world.said();
    assert_eq!(said.len(), 2, "{said:?}");
    drop((waiting, new));
}

/// The answer to a release that a draining proxy has carried out must not be lost: whoever asks again finds nothing, and can
/// not say whether the lease had been held to its end.
#[test]
fn a_proxy_that_drains_is_left_after_its_last_answer() {
    let mut world = World::connected(true);
    let (id, lease, _held) = world.held();
    let (answer, mut released) = oneshot::channel();
    world.keeper.give_back(world.now, id, Some(answer));
    let (number, _) = world.says();
    let (waiter, mut waiting) = world.ask(world.wish(ms(60_000)));
    let (asked, _) = world.says_acquire();
    world.hear(number, Told::Draining(proto::SessionDraining {}));
    assert!(world.keeper.wants_another());

    // Another session is ready.
    world.keeper.leave();
    let (later, _) = world.ask(world.wish(Duration::ZERO));
    world.go_on(TTL / 4);
    assert!(!world.keeper.may_leave());
    let said = world.said();
    assert!(matches!(&said[..], [(_, Say::KeepAlive(_))]), "a sign of life, and nothing new: {said:?}");
    world.hear(number, freed(lease));
    assert_eq!(released.try_recv().unwrap(), Ok(Released::Freed));
    assert!(!world.keeper.may_leave(), "there is still the one who waits");
    world.hear(asked, failed(asked, UNAVAILABLE));
    assert!(world.keeper.may_leave());
    world.keeper.on_break();
    world.connect();
    let said = world.said();
    assert!(matches!(&said[..], [(_, Say::Acquire(_)), (_, Say::Acquire(_))]), "{said:?}");
    assert!(waiting.try_recv().is_err());
    for id in [waiter, later] {
        world.keeper.give_back(world.now, id, None);
    }
}

/// Nobody else knows of it, and a session that breaks releases nothing.
#[test]
fn what_nobody_wants_is_given_up_before_a_proxy_is_left() {
    let mut world = World::connected(true);
    let (id, waiting) = world.ask(world.wish(ms(60_000)));
    let (asked, _) = world.says_acquire();
    world.hear(asked, Told::Draining(proto::SessionDraining {}));
    world.keeper.leave();
    drop(waiting);
    world.keeper.give_back(world.now, id, None);
    assert!(!world.keeper.may_leave() && world.keeper.has_something_to_say(world.now));
    let said = world.said();
    assert!(matches!(&said[..], [(_, Say::Cancel(cancel))] if cancel.acquire == asked), "{said:?}");
    // The grant was on its way.
    world.hear(asked, granted(asked, "rl1_a", 9_000));
    assert!(!world.keeper.may_leave());
    let said = world.said();
    assert!(matches!(&said[..], [(_, Say::Release(release))] if release.lease == asked), "{said:?}");
    assert!(world.keeper.may_leave());
}

#[test]
fn what_is_given_back_while_a_proxy_is_being_left_is_given_back_to_the_next_one() {
    let mut world = World::connected(true);
    let (kept, _, _standing) = world.held();
    let (id, _, _held) = world.held();
    world.hear(1, Told::Draining(proto::SessionDraining {}));
    world.keeper.leave();
    assert!(world.keeper.may_leave(), "nothing was asked");
    world.keeper.give_back(world.now, id, None);
    assert!(world.said().is_empty() && world.keeper.next_call().is_none(), "it would be answered by nobody");
    world.keeper.on_break();
    world.connect();
    assert_eq!(world.keeper.next_call().map(|(id, _)| id), Some(id));
    assert_eq!(world.says_adopt().1.attempt, 1);
    world.keeper.give_back(world.now, kept, None);
}

#[test]
fn a_proxy_that_does_not_answer_is_left_at_once() {
    let mut world = World::connected(true);
    let (_, waiting) = world.ask(world.wish(Duration::ZERO));
    let (seq, _) = world.says_acquire();
    world.keeper.leave();
    assert!(world.keeper.may_leave(), "it does not shut down in order");
    world.hear(seq, Told::Draining(proto::SessionDraining {}));
    assert!(!world.keeper.may_leave());
    world.pass(PATIENCE / 2);
    assert!(world.keeper.may_leave(), "the answer is late");
    drop(waiting);
}

#[test]
fn the_end_of_the_client_tells_all_and_releases_only_what_was_given_back() {
    let mut world = World::connected(true);
    let (_, _, held) = world.held();
    let (given_back, lease, _) = world.held();
    let (_, mut waiting) = world.ask(world.wish(ms(60_000)));
    world.keeper.give_back(world.now, given_back, None);
    world.keeper.close(world.now);
    assert!(matches!(waiting.try_recv().unwrap(), Err(AcquireError::Closed)));
    assert!(held.is_lost(world.now) && !world.keeper.is_settled());
    let said = world.said();
    assert_eq!(said.iter().map(|(_, say)| say.clone()).collect::<Vec<_>>(), [Say::Release(proto::SessionRelease { lease })]);
    world.hear(said[0].0, freed(lease));
    assert!(world.keeper.is_settled() && !world.keeper.is_idle());
    let (_, mut late) = world.ask(world.wish(Duration::ZERO));
    assert!(matches!(late.try_recv().unwrap(), Err(AcquireError::Closed)));
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        wait: u64,
        max_hold: Option<u64>,
    },
    GiveBack(usize),
    Break,
    Connect,
    Say,
    /// Something about one of the numbers that were used.
    Hear {
        which: usize,
        what: u8,
        since: u64,
        validity: u64,
    },
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u64..30_000, prop::option::weighted(0.2, 10_u64..20_000)).prop_map(|(wait, max_hold)| Step::Ask { wait, max_hold }),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => Just(Step::Break),
        2 => Just(Step::Connect),
        6 => Just(Step::Say),
        12 => (any::<usize>(), 0_u8..12, 0_u64..100, 0_u64..10_000)
            .prop_map(|(which, what, since, validity)| Step::Hear { which, what, since, validity }),
        5 => (0_u64..2_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..200)
}

/// What the proxies have said of the ends of leases, by their ids.
#[derive(Default)]
struct Promises(BTreeMap<u64, Instant>);

proptest! {
    /// Whatever proxies say, in whichever order: no lease ends later than it was said to, one that is lost stays so, time is
    /// never waited for in vain, and nothing is kept of what is done.
    #[test]
    fn no_lease_outlasts_what_a_proxy_promised(steps in steps(), has_others: bool) {
        let mut world = World::connected(has_others);
        let mut promises = Promises::default();
        let (mut asked, mut held, mut gone) = (Vec::new(), Vec::<(u64, Arc<Standing>)>::new(), BTreeSet::new());
        // seq -> (when it was sent, the id that it is about)
        let mut sent: Vec<(u64, Instant, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Ask { wait, max_hold } => {
                    let name = format!("{}", world.next_id);
                    asked.push(world.ask(Wish { name, max_hold: max_hold.map(ms), ..world.wish(ms(wait)) }));
                }
                Step::GiveBack(which) if world.next_id > 1 => {
                    let id = 1 + which as u64 % (world.next_id - 1);
                    world.keeper.give_back(world.now, id, None);
                    gone.insert(id);
                }
                Step::GiveBack(_) => {}
                Step::Break => {
                    world.keeper.on_break();
                    sent.clear();
                }
                Step::Connect => {
                    world.keeper.on_break();
                    sent.clear();
                    world.connect();
                }
                Step::Say => {
                    let now = world.now;
                    for (seq, _) in world.said() {
                        let about = world.keeper.numbers.get(&seq).copied().unwrap_or_default();
                        sent.push((seq, now, about));
                    }
                }
                Step::Hear { which, what, since, validity } => {
                    let Some((seq, at, id)) = sent.get(which % sent.len().max(1)).copied() else { continue };
                    let message = match what {
                        0..5 => granted(seq, &format!("rl1_{which}"), validity),
                        5..8 => renewed(seq, validity),
                        8 => lost(seq, validity, SessionLossReason::NotHeld),
                        9 => lost(seq, validity, SessionLossReason::NoQuorum),
                        10 => failed(seq, UNAVAILABLE),
                        _ => freed(seq),
                    };
                    if what < 8 {
                        let end = at + ms(since + validity);
                        let promise = promises.0.entry(id).or_insert(end);
                        *promise = end.max(*promise);
                    }
                    let (acked_seq, since_ack) = (seq, proto_duration(ms(since)));
                    let _ = world.keeper.on_message(world.now, SessionResponse { acked_seq, since_ack, message: Some(message) });
                }
                Step::Pass(duration) => world.pass(ms(duration)),
            }
            asked.retain_mut(|(id, answered)| match answered.try_recv() {
                Ok(Ok(standing)) => {
                    held.push((*id, standing));
                    false
                }
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
                Err(oneshot::error::TryRecvError::Empty) => true,
            });
            world.keeper.on_time(world.now);
            prop_assert!(world.keeper.next_timer().is_none_or(|next| next > world.now), "time stands still");
            for (id, standing) in &held {
                prop_assert_eq!(standing.name(), id.to_string());
                prop_assert!(standing.valid_until() <= promises.0[id]);
                prop_assert!(gone.contains(id) || standing.is_lost_already() || standing.lost_at() > world.now);
            }
        }
        // In the end all of it is given back, with a proxy or without.
        for id in 1..world.next_id {
            world.keeper.give_back(world.now, id, None);
        }
        world.pass(PATIENCE);
        prop_assert!(world.keeper.is_idle(), "{:?}", world.keeper);
        prop_assert!(world.keeper.timers.is_empty() && world.keeper.numbers.is_empty());
        prop_assert!(world.keeper.ttls.is_empty() && world.keeper.late.is_empty());
        prop_assert_eq!(world.places.available_permits(), 10_000);
    }
}
