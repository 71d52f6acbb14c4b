//! Stories with a name, each told for many seeds: what a holder, its rival and the register see when it happens.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redlockd::coordinator::question::Released;
use redlockd::engine::lease::Ttl;
use redlockd::engine::membership::CounterKind;

use crate::oracle::Assumptions;
use crate::oracle::history::{At, History};
use crate::run::{settle, simulate};
use crate::world::client::{Client, InHand, Outcome};
use crate::world::{Size, World};

const NAME: &str = "orders/42";
const SEEDS: std::ops::RangeInclusive<u64> = 1..=25;
const SIZE: Size = Size {
    nodes: 5,
    proxies: 2,
    node_timeout: Duration::from_millis(50),
    latency: Duration::from_millis(1),
    max_ttl: Ttl::LONGEST,
    established: true,
    durable: true,
    counter: CounterKind::Designated,
};

/// More than any TTL of these stories.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the story for every seed; no promise may break in it. The histories.
fn tell<F: Future<Output = ()>>(story: impl Fn(Arc<World>) -> F) -> Vec<History> {
    let both = [CounterKind::Designated, CounterKind::Quorum];
    let told = SEEDS.flat_map(|seed| both.map(|counter| (seed, counter))).map(|(seed, counter)| {
        let (story, size) = (&story, Size { counter, ..SIZE });
        let judged = simulate(seed, size, Assumptions::Hold, false, |world| async move {
            // Until every proxy has connected.
            world.shared.sleep(seconds(1)).await;
            story(world.clone()).await;
            settle(&world, &[NAME.to_owned()], seconds(15)).await;
        });
        assert!(judged.violations.is_empty(), "seed {seed}: {:#?}", judged.violations);
        judged.history
    });
    told.collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn client(world: &Arc<World>, label: &str) -> Arc<Client> {
    Arc::new(Client::new(world, label, 0))
}

/// Takes the lock through a proxy, waiting if it has to.
async fn take(client: &Arc<Client>, proxy: usize, ttl_ms: u64) -> InHand {
    let want = client.want(NAME, ttl_ms, PATIENCE);
    match client.acquire(proxy, &want, PATIENCE + seconds(1), None).await {
        Outcome::Held(held) => held,
        Outcome::Refused => panic!("{} is refused", client.label),
        Outcome::NoAnswer => panic!("{} gets no answer", client.label),
    }
}

/// Until when the client may rely on its lease, in true time.
fn ends(world: &World, held: &InHand) -> At {
    world.shared.state().history.leases[held.granted.lease].held.expect("its client knows of it").until
}

fn token(held: &InHand) -> u64 {
    held.granted.id.token.expect("it was required").get()
}

#[test]
fn normal() {
    tell(|world| async move {
        let (alice, bob) = (client(&world, "alice"), client(&world, "bob"));
        let first = take(&alice, 0, 10_000).await;
        assert!(alice.write(&first).await);
        assert_eq!(alice.release(&first).await, Some(Released::Released));
        let asked = world.shared.now();
        let second = take(&bob, 1, 10_000).await;
        assert!(world.shared.now() - asked < seconds(1), "it was free");
        assert!(bob.write(&second).await);
        assert!(token(&first) < token(&second));
        assert_eq!(bob.release(&second).await, Some(Released::Released));
        assert_eq!(bob.release(&second).await, Some(Released::NotHeld));
    });
}

#[test]
fn crash_of_the_holder() {
    tell(|world| async move {
        let (alice, bob) = (client(&world, "alice"), client(&world, "bob"));
        let lost = take(&alice, 0, 2_000).await;
        // Alice is gone; nobody gives her lease back.
        let found = take(&bob, 1, 2_000).await;
        let waited = world.shared.now() - ends(&world, &lost);
        assert!(waited < seconds(1), "free within the TTL and a retry, not {waited:?} later");
        assert!(bob.write(&found).await);
        bob.release(&found).await;
    });
}

/// The holder's proxy reaches two of five nodes. Its renewals keep the key on these two; on the others it expires.
#[test]
fn partition_during_a_hold() {
    tell(|world| async move {
        let (alice, bob) = (client(&world, "alice"), client(&world, "bob"));
        let mut held = take(&alice, 0, 2_000).await;
        let promised = ends(&world, &held);
        for site in 2..5 {
            let line = &mut world.shared.state().lines[0][site];
            line.requests_held_until = world.shared.time.now() + seconds(10);
        }
        let ttl = Ttl::from_millis(2_000, Ttl::LONGEST).unwrap();
        for _ in 0..3 {
            world.shared.sleep(Duration::from_millis(500)).await;
            alice.renew(&mut held, ttl).await;
        }
        assert_eq!(ends(&world, &held), promised, "two of five extend nothing");
        let taken = take(&bob, 1, 2_000).await;
        let (value, now) = (held.granted.id.value.as_str(), world.shared.now());
        let is_hers = |stored: &str| stored == value;
        let key = format!("lock:{NAME}");
        let keeps = world.shared.state().sites[..5].iter().filter(|site| site.keeps_until(&key, is_hers, now) > now).count();
        assert_eq!(keeps, 2, "the minority keeps the old lease");
        assert!(!alice.may_use(&held), "by her own clock");
        assert!(bob.write(&taken).await);
        assert!(!alice.write(&held).await, "the register knows better");
        world.shared.time.until(now + seconds(10)).await;
        bob.release(&taken).await;
    });
}

#[test]
fn stale_write_after_a_pause() {
    let histories = tell(|world| async move {
        let (alice, bob) = (client(&world, "alice"), client(&world, "bob"));
        let held = take(&alice, 0, 1_000).await;
        assert!(alice.may_use(&held));
        // A garbage collector runs between this look at the clock and the write.
        world.shared.sleep(seconds(5)).await;
        let next = take(&bob, 1, 10_000).await;
        assert!(bob.write(&next).await);
        assert!(!alice.write(&held).await);
        bob.release(&next).await;
    });
    assert!(histories.iter().all(|history| history.tally().refused_writes == 1));
}

/// The SETs of the first attempt are under way when its client turns to another proxy, and land, with their clean-up, later.
#[test]
fn cancel_and_retry_through_another_proxy() {
    let histories = tell(|world| async move {
        let alice = client(&world, "alice");
        for site in 0..5 {
            let line = &mut world.shared.state().lines[0][site];
            (line.slow, line.slow_until) = (Duration::from_millis(20), world.shared.time.now() + seconds(5));
        }
        let mut want = alice.want(NAME, 10_000, Duration::ZERO);
        want.request = Some((b"a request id of 16+ bytes".to_vec(), 1));
        let hurried = alice.acquire(0, &want, Duration::from_millis(12), None).await;
        assert!(matches!(hurried, Outcome::NoAnswer));
        want.request = Some((b"a request id of 16+ bytes".to_vec(), 2));
        let Outcome::Held(held) = alice.acquire(1, &want, seconds(5), None).await else { panic!("the retry is refused") };
        world.shared.sleep(seconds(2)).await;
        assert!(alice.may_use(&held), "the oracle sees to it that a quorum keeps it");
        assert!(world.proxy(1).kept_until(&held.granted.id) >= ends(&world, &held));
        assert!(alice.write(&held).await);
        assert_eq!(alice.release(&held).await, Some(Released::Released));
    });
    assert!(histories.iter().all(|history| history.losses.get("no answer") == Some(&1)));
}

/// Network time is charged to the lease: a client that counts from its own sending is left with what is left.
#[test]
fn an_answer_that_arrives_8_s_late() {
    tell(|world| async move {
        let (alice, bob) = (client(&world, "alice"), client(&world, "bob"));
        let want = alice.want(NAME, 10_000, Duration::ZERO);
        let Outcome::Held(held) = alice.acquire(0, &want, PATIENCE, Some(seconds(8))).await else { panic!("refused") };
        let left = ends(&world, &held) - world.shared.now();
        assert!(left > seconds(1) && left < seconds(2), "{left:?} of 10 s");
        assert!(alice.may_use(&held));
        let next = take(&bob, 1, 5_000).await;
        assert!(world.shared.now() >= ends(&world, &held));
        bob.release(&next).await;

        let want = alice.want(NAME, 5_000, Duration::ZERO);
        let Outcome::Held(held) = alice.acquire(0, &want, PATIENCE, Some(seconds(8))).await else { panic!("refused") };
        assert!(!alice.may_use(&held), "it was over before she knew of it");
    });
}
