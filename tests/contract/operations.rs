//! Each operation by itself: what it does to a key and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use redlockd::engine::membership::MarkerChange;
use redlockd::engine::reply::{Reply, WhyKind};
use redlockd::node::script::{COUNTERS_KEY, MARKER_KEY};
use redlockd::node::{NodeTime, WakeUp};

use super::*;

const KEY: &str = "lock:a";

/// Values that others may have left: any bytes, and what nearly looks like a value of ours.
const FOREIGN: [&[u8]; 9] = [
    b"",
    b"42",
    b"\0\xff\r\n$-1\r\n",
    b"a;b",
    b"0000000000000000000000000000000a.1.1",
    b"0000000000000000000000000000000a..1.00000000000000000000000000000001",
    b"0000000000000000000000000000000a.-1.1.00000000000000000000000000000001",
    b"0000000000000000000000000000000b.1.1.00000000000000000000000000000001",
    b" 0000000000000000000000000000000a.1.1.00000000000000000000000000000001",
];

#[tokio::test]
async fn an_acquire_takes_a_free_key() {
    on_every_node(async |node| {
        assert_eq!(node.one(acquire(KEY, &value(1), ttl(HALF))).await, Reply::Yes);
        let keys = node.backstage.keys();
        assert_eq!(keys.len(), 1);
        assert_eq!((keys[0].0.as_str(), keys[0].1.as_deref()), (KEY, Some(value(1).as_str().as_bytes())));
        is_about(keys[0].2, Some(HALF));
    })
    .await;
}

#[tokio::test]
async fn an_acquire_leaves_what_others_hold() {
    on_every_node(async |node| {
        let ours = of_request(10, 2, 1);
        for bytes in FOREIGN {
            node.backstage.put(KEY, bytes, Some(HALF));
            is_other(&node.one(acquire(KEY, &ours, LONG)).await, Some(bytes), Some(HALF));
            is_other(&node.one(acquire(KEY, &value(1), LONG)).await, Some(bytes), Some(HALF));
            is_other(&node.one(inspect(KEY)).await, Some(bytes), Some(HALF));
        }
        node.backstage.put(KEY, b"x", None);
        is_other(&node.one(acquire(KEY, &ours, LONG)).await, Some(b"x"), None);
        node.backstage.put_list(KEY);
        is_other(&node.one(acquire(KEY, &ours, LONG)).await, None, None);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
    })
    .await;
}

#[tokio::test]
async fn an_acquire_that_arrives_twice_is_refused() {
    on_every_node(async |node| {
        for ours in [value(1), of_request(10, 1, 1)] {
            assert_eq!(node.one(acquire(KEY, &ours, ttl(HALF))).await, Reply::Yes);
            is_other(&node.one(acquire(KEY, &ours, LONG)).await, Some(ours.as_str().as_bytes()), Some(HALF));
            assert_eq!(node.one(release(KEY, &ours)).await, Reply::Yes);
        }
    })
    .await;
}

#[tokio::test]
async fn a_value_replaces_one_of_the_same_request_with_a_lower_attempt_and_no_other() {
    on_every_node(async |node| {
        let ninth = of_request(10, 9, 5);
        assert_eq!(node.one(acquire(KEY, &ninth, ttl(HALF))).await, Reply::Yes);
        let refused = [of_request(10, 8, 6), of_request(10, 9, 6), of_request(11, 10, 6), value(10)];
        for other in refused {
            is_other(&node.one(acquire(KEY, &other, LONG)).await, Some(ninth.as_str().as_bytes()), Some(HALF));
        }
        // As numbers, not as texts; whatever the number of the try.
        let tenth = of_request(10, 10, 1);
        assert_eq!(node.one(acquire(KEY, &tenth, LONG)).await, Reply::Yes);
        is_held(&node.one(check(KEY, &tenth)).await, Some(LONG_MS));
        assert_eq!(node.one(release(KEY, &ninth)).await, Reply::Absent);
        let last = of_request(10, u32::MAX, 1);
        assert_eq!(node.one(acquire(KEY, &last, LONG)).await, Reply::Yes);
        is_other(
            &node.one(acquire(KEY, &of_request(10, u32::MAX - 1, 2), LONG)).await,
            Some(last.as_str().as_bytes()),
            Some(LONG_MS),
        );
    })
    .await;
}

#[tokio::test]
async fn a_value_that_replaces_another_does_not_shorten_its_time() {
    on_every_node(async |node| {
        assert_eq!(node.one(acquire(KEY, &of_request(10, 1, 1), LONG)).await, Reply::Yes);
        assert_eq!(node.one(acquire(KEY, &of_request(10, 2, 1), ttl(10))).await, Reply::Yes);
        is_held(&node.one(check(KEY, &of_request(10, 2, 1))).await, Some(LONG_MS));
    })
    .await;
}

#[tokio::test]
async fn a_release_deletes_the_whole_value_and_nothing_else() {
    on_every_node(async |node| {
        let ours = value(1);
        assert_eq!(node.one(release(KEY, &ours)).await, Reply::Absent);
        let longer = [ours.as_str().as_bytes(), b"x"].concat();
        let shorter = &ours.as_str().as_bytes()[..31];
        for bytes in [&longer[..], shorter, b""] {
            node.backstage.put(KEY, bytes, None);
            assert_eq!(node.one(release(KEY, &ours)).await, Reply::Absent);
            assert_eq!(node.backstage.keys(), [(KEY.to_owned(), Some(bytes.to_vec()), None)]);
        }
        node.backstage.put_list(KEY);
        assert_eq!(node.one(release(KEY, &ours)).await, Reply::Absent);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
        for left_ms in [Some(HALF), None] {
            node.backstage.put(KEY, ours.as_str().as_bytes(), left_ms);
            assert_eq!(node.one(release(KEY, &ours)).await, Reply::Yes);
            assert_eq!(node.backstage.keys(), []);
        }
        assert_eq!(node.one(release(KEY, &ours)).await, Reply::Absent);
    })
    .await;
}

#[tokio::test]
async fn a_renewal_lets_the_time_count_from_now_and_never_shortens_it() {
    on_every_node(async |node| {
        let ours = value(1);
        assert_eq!(node.one(acquire(KEY, &ours, ttl(HALF))).await, Reply::Yes);
        is_held(&node.one(renew(KEY, &ours, LONG)).await, Some(HALF));
        is_held(&node.one(renew(KEY, &ours, ttl(10))).await, Some(LONG_MS));
        is_held(&node.one(check(KEY, &ours)).await, Some(LONG_MS));
        is_about(node.backstage.keys()[0].2, Some(LONG_MS));
    })
    .await;
}

#[tokio::test]
async fn a_renewal_leaves_what_is_not_ours() {
    on_every_node(async |node| {
        let ours = value(1);
        assert_eq!(node.one(renew(KEY, &ours, LONG)).await, Reply::Absent);
        assert_eq!(node.backstage.keys(), []);
        for bytes in FOREIGN {
            node.backstage.put(KEY, bytes, Some(HALF));
            is_other(&node.one(renew(KEY, &ours, LONG)).await, Some(bytes), Some(HALF));
            is_about(node.backstage.keys()[0].2, Some(HALF));
        }
        node.backstage.put_list(KEY);
        is_other(&node.one(renew(KEY, &ours, LONG)).await, None, None);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_key_of_ours_without_an_end_keeps_having_none() {
    on_every_node(async |node| {
        let ours = value(1);
        node.backstage.put(KEY, ours.as_str().as_bytes(), None);
        is_held(&node.one(check(KEY, &ours)).await, None);
        is_held(&node.one(renew(KEY, &ours, ttl(HALF))).await, None);
        is_other(&node.one(inspect(KEY)).await, Some(ours.as_str().as_bytes()), None);
        assert_eq!(node.backstage.keys()[0].2, None);
    })
    .await;
}

#[tokio::test]
async fn an_adoption_takes_the_place_of_the_value_that_it_names_and_never_shortens_its_time() {
    on_every_node(async |node| {
        let (old, new) = (value(1), of_request(7, 1, 1));
        assert_eq!(node.one(adopt(KEY, &old, &new, LONG)).await, Reply::Absent, "what is missing is not adopted");
        assert_eq!(node.backstage.keys(), []);
        assert_eq!(node.one(acquire(KEY, &old, LONG)).await, Reply::Yes);
        is_held(&node.one(adopt(KEY, &old, &new, ttl(HALF))).await, Some(LONG_MS));
        is_held(&node.one(check(KEY, &new)).await, Some(LONG_MS));
        // What is done by the old name has no effect.
        assert_eq!(node.one(release(KEY, &old)).await, Reply::Absent);
        is_other(&node.one(renew(KEY, &old, LONG)).await, Some(new.as_str().as_bytes()), Some(LONG_MS));
        assert_eq!(node.one(release(KEY, &new)).await, Reply::Yes);
    })
    .await;
}

#[tokio::test]
async fn an_adoption_lets_the_time_count_from_now_and_replaces_its_own_lower_attempts_only() {
    on_every_node(async |node| {
        let (old, first, second) = (value(1), of_request(7, 1, 1), of_request(7, 2, 2));
        assert_eq!(node.one(acquire(KEY, &old, ttl(HALF))).await, Reply::Yes);
        is_held(&node.one(adopt(KEY, &old, &first, LONG)).await, Some(HALF));
        is_held(&node.one(adopt(KEY, &old, &second, LONG)).await, Some(LONG_MS));
        let stands = |reply: &Reply| is_other(reply, Some(second.as_str().as_bytes()), Some(LONG_MS));
        stands(&node.one(adopt(KEY, &old, &first, LONG)).await);
        stands(&node.one(adopt(KEY, &old, &second, LONG)).await);
        stands(&node.one(adopt(KEY, &old, &of_request(8, 9, 9), LONG)).await);
        for bytes in FOREIGN {
            node.backstage.put(KEY, bytes, Some(HALF));
            is_other(&node.one(adopt(KEY, &old, &second, LONG)).await, Some(bytes), Some(HALF));
        }
        node.backstage.put_list(KEY);
        is_other(&node.one(adopt(KEY, &old, &second, LONG)).await, None, None);
    })
    .await;
}

#[tokio::test]
async fn a_repair_puts_a_missing_value_back_until_its_end() {
    on_every_node(async |node| {
        let ours = value(1);
        let ends_at = node.backstage.now().plus_millis(HALF);
        assert_eq!(node.one(repair(KEY, &ours, ends_at)).await, Reply::Yes);
        is_held(&node.one(check(KEY, &ours)).await, Some(HALF));
        assert_eq!(node.one(repair(KEY, &ours, ends_at.plus_millis(HALF))).await, Reply::Absent, "it is there");
        is_held(&node.one(check(KEY, &ours)).await, Some(HALF));
        node.backstage.put(KEY, b"x", None);
        assert_eq!(node.one(repair(KEY, &ours, ends_at)).await, Reply::Absent);
        is_other(&node.one(inspect(KEY)).await, Some(b"x"), None);
        node.backstage.put_list(KEY);
        assert_eq!(node.one(repair(KEY, &ours, ends_at)).await, Reply::Absent);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_repair_that_comes_late_plants_nothing() {
    on_every_node(async |node| {
        let now_ms = node.backstage.now().as_millis();
        for ends_at_ms in [1, now_ms - 1_000] {
            let late = repair(KEY, &value(1), NodeTime { micros: ends_at_ms * 1_000 });
            let replies =
                node.call(&[late, inspect(KEY), acquire(KEY, &value(2), LONG), release(KEY, &value(2))]).await.replies;
            assert_eq!(replies[1..], [Reply::Absent, Reply::Yes, Reply::Yes], "{ends_at_ms}");
            assert_eq!(node.backstage.keys(), []);
        }
    })
    .await;
}

#[tokio::test]
async fn a_check_and_an_inspection_say_what_is_there_and_change_nothing() {
    on_every_node(async |node| {
        let (ours, theirs) = (value(1), value(2));
        assert_eq!(node.one(check(KEY, &ours)).await, Reply::Absent);
        assert_eq!(node.one(inspect(KEY)).await, Reply::Absent);
        assert_eq!(node.one(acquire(KEY, &ours, ttl(HALF))).await, Reply::Yes);
        is_held(&node.one(check(KEY, &ours)).await, Some(HALF));
        is_other(&node.one(check(KEY, &theirs)).await, Some(ours.as_str().as_bytes()), Some(HALF));
        is_other(&node.one(inspect(KEY)).await, Some(ours.as_str().as_bytes()), Some(HALF));
        node.backstage.put_list(KEY);
        is_other(&node.one(check(KEY, &ours)).await, None, None);
        is_other(&node.one(inspect(KEY)).await, None, None);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_lease_ends_by_itself_and_not_before_its_time() {
    on_every_node(async |node| {
        let ours = value(1);
        let taken = [acquire(KEY, &ours, ttl(300))];
        // In one batch: even a slow machine does not end the first time before the second begins.
        let renewed = [acquire(KEY, &ours, ttl(200)), renew(KEY, &ours, ttl(300))];
        for batch in [&taken[..], &renewed] {
            let replies = node.call(batch).await;
            assert_eq!(replies.replies[0], Reply::Yes);
            let gone = node.until(inspect(KEY), &Reply::Absent).await;
            assert!(gone.as_millis() - replies.time.as_millis() >= 300, "{replies:?}, gone at {gone:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_still_lives_in_the_millisecond_of_its_end() {
    on_every_node(async |node| {
        // That millisecond passes unseen now and then.
        for _ in 0..1_000 {
            assert_eq!(node.one(acquire(KEY, &value(1), ttl(10))).await, Reply::Yes);
            loop {
                match node.one(check(KEY, &value(1))).await {
                    Reply::Held { left_ms: 0 } => return,
                    Reply::Held { .. } => node.backstage.pause(200),
                    reply => break assert_eq!(reply, Reply::Absent),
                }
            }
        }
        panic!("it was never seen there");
    })
    .await;
}

pub fn start(mark: &str, start: u64, ceiling: u64) -> Op {
    Op::StartCounter { key: "counter".into(), mark: mark.into(), start, ceiling }
}

fn raise(ceiling: u64, owner: &str, seen: Option<&str>) -> Op {
    Op::RaiseCeiling { key: "ceiling".into(), ceiling, owner: owner.into(), seen: seen.map(Arc::from) }
}

#[tokio::test]
async fn a_counter_counts_up_to_its_ceiling() {
    on_every_node(async |node| {
        node.backstage.put("counter", &node.run(100, 110), None);
        let counted = |last, ceiling| Reply::Tokens { last, ceiling, run_id: node.run_id.clone() };
        assert_eq!(node.one(tokens("counter", 3)).await, counted(103, 110));
        assert_eq!(node.one(tokens("counter", 0)).await, counted(103, 110));
        assert_eq!(node.one(tokens("counter", 8)).await, Reply::AtCeiling { ceiling: 110, run_id: node.run_id.clone() });
        assert_eq!(node.one(tokens("counter", 7)).await, counted(110, 110));
        let advance = |ceiling| Op::AdvanceCounter { key: "counter".into(), ceiling };
        assert_eq!(node.one(advance(110)).await, Reply::Absent, "no higher");
        assert_eq!(node.one(advance(9_007_199_254_740_991)).await, Reply::Yes);
        assert_eq!(node.one(tokens("counter", 1)).await, counted(111, 9_007_199_254_740_991));
    })
    .await;
}

#[tokio::test]
async fn a_counter_of_another_process_is_lost_and_started_by_its_mark_only() {
    on_every_node(async |node| {
        let lost = |mark: &str| Reply::CounterLost { mark: mark.into(), run_id: node.run_id.clone() };
        let others = [&b"run another 100 200"[..], b"lost another ffff", b"42", b"", b"run"];
        for stored in others {
            node.backstage.put("counter", stored, None);
            assert_eq!(node.one(tokens("counter", 1)).await, lost(MARK), "{stored:?}");
        }
        node.backstage.delete("counter");
        assert_eq!(node.one(tokens("counter", 0)).await, lost(MARK), "a look finds it too");
        let again = Op::Tokens { key: "counter".into(), count: 1, mark: "beef".into() };
        assert_eq!(node.one(again).await, lost(MARK), "the first mark stands");
        assert_eq!(node.one(Op::AdvanceCounter { key: "counter".into(), ceiling: 1 << 50 }).await, Reply::Absent);
        assert_eq!(node.one(start("beef", 7, 9)).await, Reply::Absent, "not by another mark");
        assert_eq!(node.one(start(MARK, 7, 9)).await, Reply::Yes);
        assert_eq!(node.one(start(MARK, 1, 9)).await, Reply::Absent, "and once only");
        assert_eq!(node.one(tokens("counter", 1)).await, Reply::Tokens { last: 8, ceiling: 9, run_id: node.run_id.clone() });
    })
    .await;
}

#[tokio::test]
async fn a_ceiling_only_rises_and_belongs_to_one_counter() {
    on_every_node(async |node| {
        let stands = |text: &str| Reply::Other(Stored { value: Some(text.as_bytes().into()), left_ms: None });
        assert_eq!(node.one(raise(10, "a", None)).await, Reply::Yes);
        assert_eq!(node.one(raise(10, "a", None)).await, stands("10 a"), "not higher");
        assert_eq!(node.one(raise(11, "a", None)).await, Reply::Yes);
        assert_eq!(node.one(raise(12, "b", None)).await, stands("11 a"), "another counter's");
        assert_eq!(node.one(raise(12, "b", Some("10 a"))).await, stands("11 a"), "it has changed since it was seen");
        assert_eq!(node.one(raise(12, "b", Some("11 a"))).await, Reply::Yes);
        assert_eq!(node.one(raise(12, "b", Some("12 b"))).await, stands("12 b"), "not higher");
        let lift = |text: &str| Op::LiftCeiling { key: "ceiling".into(), ceiling: text.into() };
        assert_eq!(node.one(lift("11 a")).await, Reply::Yes);
        assert_eq!(node.one(inspect("ceiling")).await, stands("12 b"), "never down");
        assert_eq!(node.one(lift("13 a")).await, Reply::Yes);
        assert_eq!(node.one(inspect("ceiling")).await, stands("13 a"));
        node.backstage.delete("ceiling");
        assert_eq!(node.one(raise(5, "b", Some(""))).await, Reply::Yes, "nothing was seen, and nothing is there");
    })
    .await;
}

#[tokio::test]
async fn a_marker_comes_with_every_batch_and_changes_only_from_what_was_seen() {
    on_every_node(async |node| {
        let change = |expected: &str, new: &str| Op::Marker {
            key: MARKER_KEY.into(),
            change: MarkerChange { expected: expected.into(), new: new.into(), lift: None },
        };
        assert_eq!(&*node.call(&[]).await.marker, "");
        let both = node.call(&[change("", "one"), change("", "two")]).await;
        assert_eq!((&*both.marker, &both.replies[..]), ("", &[Reply::Yes, Reply::Absent][..]), "as it was before");
        assert_eq!(&*node.call(&[]).await.marker, "one");
        assert_eq!(node.one(change("two", "three")).await, Reply::Absent);
        assert_eq!(node.one(change("one", "two")).await, Reply::Yes);
        assert_eq!(&*node.call(&[]).await.marker, "two");
        node.backstage.delete(MARKER_KEY);
        assert_eq!(&*node.call(&[inspect("a")]).await.marker, "");
    })
    .await;
}

fn counted(value: &LockValue) -> Op {
    Op::Acquire { key: KEY.into(), value: value.clone(), ttl: LONG, bucket: Some(7) }
}

#[tokio::test]
async fn a_node_counts_with_its_own_yes_only_and_not_before_it_has_counters() {
    on_every_node(async |node| {
        is_error(&node.one(counted(&value(1))).await, "NOCOUNTERS");
        assert_eq!(node.one(inspect(KEY)).await, Reply::Absent, "nothing was set");
        let lift = |base, numbers: &str| Op::LiftCounters { key: COUNTERS_KEY.into(), base, numbers: numbers.into() };
        let base = 1_700_000_000_000_000;
        assert_eq!(node.one(lift(base, "")).await, Reply::Yes);
        assert_eq!(node.one(counted(&value(1))).await, Reply::Counted { number: base + 1 });
        is_other(&node.one(counted(&value(2))).await, Some(value(1).as_str().as_bytes()), Some(LONG_MS));
        assert_eq!(node.one(release(KEY, &value(1))).await, Reply::Yes);
        assert_eq!(node.one(counted(&value(2))).await, Reply::Counted { number: base + 2 }, "a refusal counts nothing");

        let raise = |value: &LockValue, token| Op::RaiseBucket { key: KEY.into(), value: value.clone(), bucket: 7, token };
        assert_eq!(node.one(raise(&value(1), base + 50)).await, Reply::Absent, "not where our value is gone");
        assert_eq!(node.one(raise(&value(2), base + 50)).await, Reply::Yes);
        assert_eq!(node.one(raise(&value(2), base + 9)).await, Reply::Yes, "never down");
        assert_eq!(node.one(release(KEY, &value(2))).await, Reply::Yes);
        assert_eq!(node.one(counted(&value(3))).await, Reply::Counted { number: base + 51 });

        assert_eq!(node.one(lift(base + 5, "7=3,8=1700000000000099")).await, Reply::Yes);
        assert_eq!(told(node).await, (base + 5, [(7, base + 51), (8, 1_700_000_000_000_099)].into()), "only upwards");
        // A base above a bucket lifts it with its next use.
        assert_eq!(node.one(lift(base + 1_000, "")).await, Reply::Yes);
        assert_eq!(node.one(release(KEY, &value(3))).await, Reply::Yes);
        assert_eq!(node.one(counted(&value(4))).await, Reply::Counted { number: base + 1_001 });
    })
    .await;
}

fn handed_over(released: bool, number: Option<u64>) -> Reply {
    Reply::HandedOver { released, number, no_vote: None }
}

fn could_not_hand_over(reply: &Reply, was_there: bool, error: &str) {
    let Reply::HandedOver { released, number: None, no_vote: Some(WhyKind::ServerError(why)) } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(*released, was_there);
    assert!(why.contains(error), "{why}");
}

#[tokio::test]
async fn a_hand_over_takes_the_place_of_the_released_value_or_of_nothing() {
    on_every_node(async |node| {
        let [old, new, third] = [1, 2, 3].map(value);
        node.one(acquire(KEY, &old, ttl(HALF))).await;
        assert_eq!(node.one(hand_over(KEY, &old, &new, LONG)).await, handed_over(true, None));
        let keys = node.backstage.keys();
        assert_eq!(keys[0].1.as_deref(), Some(new.as_str().as_bytes()));
        is_about(keys[0].2, Some(LONG_MS));
        // The released value is gone: neither it nor a value that never stood there is handed over.
        is_other(&node.one(hand_over(KEY, &old, &third, LONG)).await, Some(new.as_str().as_bytes()), Some(LONG_MS));
        assert_eq!(node.one(release(KEY, &new)).await, Reply::Yes);
        assert_eq!(node.one(hand_over(KEY, &old, &third, LONG)).await, handed_over(false, None), "nobody had it");
        is_held(&node.one(check(KEY, &third)).await, Some(LONG_MS));
    })
    .await;
}

#[tokio::test]
async fn a_hand_over_leaves_what_others_hold() {
    on_every_node(async |node| {
        for bytes in FOREIGN {
            node.backstage.put(KEY, bytes, Some(HALF));
            is_other(&node.one(hand_over(KEY, &value(1), &value(2), LONG)).await, Some(bytes), Some(HALF));
        }
        node.backstage.put_list(KEY);
        is_other(&node.one(hand_over(KEY, &value(1), &value(2), LONG)).await, None, None);
        assert_eq!(node.backstage.keys(), [(KEY.to_owned(), None, None)]);
    })
    .await;
}

#[tokio::test]
async fn a_hand_over_counts_and_carries_its_release_where_it_can_not() {
    on_every_node(async |node| {
        let [old, new, third] = [1, 2, 3].map(value);
        let counted = |old: &LockValue, new: &LockValue| Op::HandOver {
            key: KEY.into(),
            old: old.clone(),
            new: new.clone(),
            ttl: LONG,
            bucket: Some(7),
            wake: WakeUp { sender: "me".into() },
        };
        node.one(acquire(KEY, &old, LONG)).await;
        could_not_hand_over(&node.one(counted(&old, &new)).await, true, "NOCOUNTERS");
        assert_eq!(node.one(inspect(KEY)).await, Reply::Absent, "released all the same");
        could_not_hand_over(&node.one(counted(&old, &new)).await, false, "NOCOUNTERS");
        node.one(Op::LiftCounters { key: COUNTERS_KEY.into(), base: 100, numbers: "".into() }).await;
        assert_eq!(node.one(counted(&old, &new)).await, handed_over(false, Some(101)));
        is_other(&node.one(counted(&old, &third)).await, Some(new.as_str().as_bytes()), Some(LONG_MS));
        assert_eq!(node.one(counted(&new, &third)).await, handed_over(true, Some(102)), "a refusal counts nothing");
    })
    .await;
}

#[tokio::test]
async fn a_full_server_releases_what_it_can_not_hand_over() {
    on_every_node(async |node| {
        node.one(acquire(KEY, &value(1), LONG)).await;
        node.backstage.set_full(true);
        could_not_hand_over(&node.one(hand_over(KEY, &value(1), &value(2), LONG)).await, true, "OOM");
        node.backstage.set_full(false);
        assert_eq!(node.one(inspect(KEY)).await, Reply::Absent);
    })
    .await;
}

/// All that a node tells of its counters, part by part.
async fn told(node: &Subject) -> (u64, BTreeMap<u16, u64>) {
    let (mut all, mut from) = (BTreeMap::new(), Arc::from("0"));
    loop {
        let reply = node.one(Op::TellCounters { key: COUNTERS_KEY.into(), from }).await;
        let Reply::Counters { base, next, numbers } = reply else { panic!("{reply:?}") };
        all.extend(numbers);
        if &*next == "0" {
            return (base, all);
        }
        from = next;
    }
}

#[tokio::test]
async fn all_counters_are_told_in_parts() {
    on_every_node(async |node| {
        let numbers: BTreeMap<u16, u64> = (0..16_384).map(|bucket| (bucket, 1_000_000 + u64::from(bucket))).collect();
        let pairs: Vec<String> = numbers.iter().map(|(bucket, number)| format!("{bucket}={number}")).collect();
        for part in pairs.chunks(1_000) {
            let op = Op::LiftCounters { key: COUNTERS_KEY.into(), base: 17, numbers: part.join(",").into() };
            assert_eq!(node.one(op).await, Reply::Yes);
        }
        assert_eq!(told(node).await, (17, numbers));
    })
    .await;
}
