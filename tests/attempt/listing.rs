//! Lists: which nodes count, what their times are worth, and that nothing goes on for nobody.

use std::collections::BTreeSet;

use redlockd::coordinator::listing::{HeldName, ListFailure, Listing};
use redlockd::engine::lease::NamePrefix;
use redlockd::engine::listing::PageSpec;

use super::*;

/// Keys for several steps of a scan.
const MANY: usize = 1_000;

fn page(size: usize) -> PageSpec {
    PageSpec { prefix: NamePrefix::new("").unwrap(), after: None, size }
}

/// A world whose nodes answer after 10 ms and hold the same locks, with ten minutes left.
async fn full_world(nodes: usize) -> World {
    let world = world(nodes).await;
    for node in &world.nodes {
        node.set_delay(10);
        for number in 0..MANY {
            let value = LockValue::new(number as u128, None, None);
            let ends_at_ms = Some(NODES_NOW.as_millis() + 600_000);
            node.with(|state| state.server.put(&format!("lock:{number:04}"), value.as_str().as_bytes(), ends_at_ms));
        }
    }
    world
}

fn held(listing: &Listing) -> Vec<(usize, usize)> {
    let number = |held: &HeldName| (held.name.as_str().parse().unwrap(), held.nodes);
    listing.held.iter().map(number).collect()
}

fn scans(world: &World) -> Vec<usize> {
    world.nodes.iter().map(|node| node.with(|state| state.scans)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_list_takes_is_charged_to_the_locks_in_it() {
    let world = full_world(3).await;
    let first = world.coordinator.list(&page(2)).await.unwrap();
    assert_eq!((held(&first), first.next_after), (vec![(0, 3), (1, 3)], LockName::new("0001").ok()));
    let (start, before) = (Instant::now(), scans(&world)[0]);
    let listing = world.coordinator.list(&page(MANY)).await.unwrap();
    let (steps, took) = ((scans(&world)[0] - before) as u64, u64::try_from(ms_since(start)).unwrap());
    assert!((4..=6).contains(&steps), "{steps}");
    assert_eq!(took, 10 * steps, "one step at a time, all nodes side by side");
    // The clocks stand still on these nodes: each lock had ten minutes left when its step was sent.
    let left = |sent: u64| 600_000 + sent - took - DriftFactor::DEFAULT.drift_ms(600_000 + sent);
    let expected: BTreeSet<u64> = (0..steps).map(|step| left(10 * step)).collect();
    let lefts: BTreeSet<u64> = listing.held.iter().map(|held| u64::try_from(held.left.as_millis()).unwrap()).collect();
    assert_eq!((lefts, listing.next_after), (expected, None));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_answering_half_way_does_not_count() {
    let world = full_world(3).await;
    let half_way = async {
        sleep(Duration::from_millis(25)).await;
        world.nodes[2].set_delay(5_000);
    };
    let spec = page(MANY);
    let (listing, ()) = tokio::join!(world.coordinator.list(&spec), half_way);
    let expected: Vec<_> = (0..MANY).map(|number| (number, 2)).collect();
    assert_eq!(held(&listing.unwrap()), expected, "what it told until then is not counted");
    assert!(scans(&world)[2] < scans(&world)[0], "{:?}", scans(&world));

    // Without a quorum there is no need to hear the others out.
    world.set_delays(&[900, 5_000, 5_000]);
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let ListFailure::NoQuorum(no_quorum) = world.coordinator.list(&spec).await.unwrap_err() else { panic!("too many") };
    assert_eq!(ms_since(start), 1_000);
    assert_eq!(no_quorum.needed, 2);
    let said: Vec<&str> = no_quorum.nodes.iter().map(|word| word.said.as_str()).collect();
    assert_eq!(said[0], "has not told everything yet");
    assert!(said[1].contains("timeout") && said[2].contains("timeout"), "{said:?}");
}

/// Of thousands of steps one takes too long now and then.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_slow_for_a_moment_goes_on_where_it_was() {
    let world = full_world(3).await;
    let slow = async {
        for (at, delay) in [(25, 1_500), (10, 10)] {
            sleep(Duration::from_millis(at)).await;
            world.nodes[2].set_delay(delay);
        }
    };
    let (spec, start) = (page(MANY), Instant::now());
    let (listing, ()) = tokio::join!(world.coordinator.list(&spec), slow);
    let expected: Vec<_> = (0..MANY).map(|number| (number, 3)).collect();
    assert_eq!(held(&listing.unwrap()), expected);
    assert!((1_500..1_700).contains(&ms_since(start)), "{} ms", ms_since(start));
    assert_eq!(scans(&world)[2], scans(&world)[0] + 1, "one step was asked for twice");

    // Not if it is silent from the start.
    world.nodes[2].set_delay(1_500);
    let (listing, ms) = (world.coordinator.list(&spec).await.unwrap(), ms_since(start));
    assert!(listing.held.iter().all(|held| held.nodes == 2) && ms < 3_000, "{ms} ms");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_nobody_awaits_goes_no_further() {
    let world = full_world(3).await;
    for patience_ms in [5, 15, 35] {
        let before = scans(&world);
        let list = tokio::time::timeout(Duration::from_millis(patience_ms), world.coordinator.list(&page(2))).await;
        assert!(list.is_err());
        let at_the_end = scans(&world);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(scans(&world), at_the_end, "after {patience_ms} ms");
        assert_eq!(at_the_end[0] - before[0], patience_ms as usize / 10 + 1);
    }
    for _ in 0..10 {
        assert!(world.coordinator.list(&page(2)).await.is_ok(), "its place is free again");
    }
}

/// A step ends where only the process knows that made it: another one with the same keys has them in another order.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_another_process_by_the_next_step_does_not_count() {
    let world = full_world(3).await;
    let spec = page(MANY);
    let mut list = Box::pin(world.coordinator.list(&spec));
    assert!(tokio::time::timeout(Duration::from_millis(25), &mut list).await.is_err());
    // This proxy is held up when it has the answer, and asks for the next step when the connection has been replaced.
    sleep(Duration::from_millis(10)).await;
    world.nodes[1].restart("n1 again");
    sleep(Duration::from_secs(2)).await;
    let listing = list.await.unwrap();
    assert!(listing.held.iter().all(|held| held.nodes == 2), "{listing:?}");
    assert_eq!(listing.held.len(), MANY);
    let again = world.coordinator.list(&spec).await.unwrap();
    assert!(again.held.iter().all(|held| held.nodes == 3));
}
