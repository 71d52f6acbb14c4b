//! Each operation by itself: what it does to a key and what it answers.

use redlockd::engine::reply::Reply;
use redlockd::node::NodeTime;

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

#[tokio::test]
async fn tokens_rise_from_the_time_at_which_the_counter_was_found_missing() {
    on_every_node(async |node| {
        let before = node.call(&[]).await.time;
        let Reply::Tokens { last: first } = node.one(tokens("counter", 3)).await else { panic!() };
        let after = node.call(&[]).await.time;
        assert!((before.micros..=after.micros).contains(&(first - 3)), "{before:?} {first} {after:?}");
        assert_eq!(node.one(tokens("counter", 1)).await, Reply::Tokens { last: first + 1 });
        assert_eq!(node.one(tokens("counter", 512)).await, Reply::Tokens { last: first + 513 });
        let keys = node.backstage.keys();
        assert_eq!(keys, [("counter".to_owned(), Some((first + 513).to_string().into_bytes()), None)]);
    })
    .await;
}

#[tokio::test]
async fn tokens_come_from_a_counter_only() {
    on_every_node(async |node| {
        let most = (1_u64 << 53) - 2;
        node.backstage.put("counter", most.to_string().as_bytes(), None);
        assert_eq!(node.one(tokens("counter", 1)).await, Reply::Tokens { last: most + 1 });
        for bytes in [&b"x"[..], b"", b"042", b" 42", b"+42", b"4.2", b"9223372036854775808"] {
            node.backstage.put("counter", bytes, None);
            is_error(&node.one(tokens("counter", 1)).await, "not an integer");
        }
        node.backstage.put("counter", b"9223372036854775807", None);
        is_error(&node.one(tokens("counter", 1)).await, "overflow");
        node.backstage.put_list("counter");
        is_error(&node.one(tokens("counter", 1)).await, "WRONGTYPE");
    })
    .await;
}
