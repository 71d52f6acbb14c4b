//! What holds for whole calls: batches, errors, the script, the connection.

use futures::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use redlockd::engine::membership::MarkerChange;
use redlockd::engine::reply::Reply;
use redlockd::node::script::{MARKER_KEY, MAX_BATCH};

use super::*;
use crate::support::PATIENCE;

/// With a key for each.
fn one_of_each(number: usize) -> (Op, Reply) {
    let key = format!("{:03}", number);
    match number % 6 {
        0 => (acquire(&key, &value(1), LONG), Reply::Yes),
        1 => (release(&key, &value(1)), Reply::Absent),
        2 => (renew(&key, &value(1), LONG), Reply::Absent),
        3 => (check(&key, &value(1)), Reply::Absent),
        4 => (inspect(&key), Reply::Absent),
        _ => (tokens("counter", 1), Reply::Absent),
    }
}

#[tokio::test]
async fn a_batch_of_any_size_in_any_order_answers_each_operation() {
    on_every_node(async |node| {
        for size in [0, 1, 2, 100, MAX_BATCH - 1, MAX_BATCH] {
            let mut work: Vec<(Op, Reply)> = (0..size).map(one_of_each).collect();
            for order in 0..3 {
                node.backstage.put("counter", &node.run(0, 1_000), None);
                match order {
                    // Runs of one.
                    0 => {}
                    // Runs as long as can be.
                    1 => work.sort_by_key(|(op, _)| format!("{op:?}").chars().next()),
                    _ => work.shuffle(&mut StdRng::seed_from_u64(1)),
                }
                let batch: Vec<Op> = work.iter().map(|(op, _)| op.clone()).collect();
                let replies = node.call(&batch).await.replies;
                assert_eq!(replies.len(), size);
                let mut last = 0;
                for ((op, expected), reply) in work.iter().zip(replies) {
                    match &reply {
                        // The order is another one, the numbers are not.
                        Reply::Tokens { last: token, ceiling: 1_000, run_id } if *run_id == node.run_id => {
                            last += 1;
                            assert_eq!(*token, last);
                        }
                        reply => assert_eq!(reply, expected, "{op:?}"),
                    }
                }
                let cleanup: Vec<Op> = batch.iter().map(|op| release(op.key(), &value(1))).collect();
                let freed = node.call(&cleanup).await.replies.iter().filter(|reply| **reply == Reply::Yes).count();
                assert_eq!(freed, size.div_ceil(6));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_operations_of_a_batch_run_in_their_order() {
    on_every_node(async |node| {
        let (first, second) = (value(1), value(2));
        let batch = [
            acquire("a", &first, LONG),
            check("a", &first),
            release("a", &first),
            check("a", &first),
            acquire("a", &second, LONG),
            release("a", &first),
            release("a", &second),
        ];
        let replies = node.call(&batch).await.replies;
        is_held(&replies[1], Some(LONG_MS));
        let others = [&replies[0], &replies[2], &replies[3], &replies[4], &replies[5], &replies[6]];
        assert_eq!(others, [&Reply::Yes, &Reply::Yes, &Reply::Absent, &Reply::Yes, &Reply::Absent, &Reply::Yes]);
    })
    .await;
}

#[tokio::test]
async fn calls_on_one_connection_take_effect_in_the_order_in_which_they_were_made() {
    on_every_node(async |node| {
        node.call(&[]).await;
        let batches: Vec<[Op; 1]> =
            (1..=200).flat_map(|n| [[acquire("a", &value(n), LONG)], [release("a", &value(n))]]).collect();
        let batches: Vec<[&Op; 1]> = batches.iter().map(|[op]| [op]).collect();
        let calls = batches.iter().map(|batch| node.connection.call(batch, Course::Turns));
        for (number, answer) in join_all(calls).await.into_iter().enumerate() {
            assert_eq!(answer.unwrap().replies, [Reply::Yes], "call {number}");
        }
    })
    .await;
}

#[tokio::test]
async fn replies_carry_the_time_of_the_node() {
    on_every_node(async |node| {
        let mut last = node.call(&[]).await.time;
        let off = last.micros.abs_diff(node.backstage.now().micros);
        assert!(u128::from(off) < PATIENCE.as_micros(), "{off} us off");
        for _ in 0..5 {
            node.backstage.pause(1_000);
            let time = node.call(&[acquire("a", &value(1), LONG)]).await.time;
            assert!(time > last, "{time:?} after {last:?}");
            last = time;
        }
    })
    .await;
}

#[tokio::test]
async fn an_operation_that_meets_an_error_spoils_no_other() {
    on_every_node(async |node| {
        node.backstage.put_list("list");
        node.backstage.put("counter", &node.run(3, 9), None);
        let batch = [
            acquire("a", &value(1), LONG),
            release("list", &value(1)),
            acquire("b", &value(1), LONG),
            Op::Tokens { key: "counter".into(), count: 1 << 60, mark: MARK.into() },
            release("a", &value(1)),
            tokens("counter", 1),
        ];
        let replies = node.call(&batch).await.replies;
        assert_eq!(replies[1], Reply::Absent, "a list is no lock of ours");
        assert_eq!(replies[3], Reply::AtCeiling { ceiling: 9, run_id: node.run_id.clone() });
        assert_eq!([&replies[0], &replies[2], &replies[4]], [&Reply::Yes; 3]);
        assert!(matches!(replies[5], Reply::Tokens { .. }), "{:?}", replies[5]);
    })
    .await;
}

/// What a full server still does: all that needs no more memory.
#[tokio::test]
async fn a_full_server_refuses_to_set_and_takes_releases_and_renewals() {
    on_every_node(async |node| {
        let (ours, retry) = (of_request(10, 1, 1), of_request(10, 2, 1));
        node.backstage.put("counter", b"41", None);
        node.one(acquire("a", &ours, ttl(HALF))).await;
        node.one(acquire("b", &value(2), ttl(HALF))).await;
        node.backstage.set_full(true);
        let late = node.backstage.now().plus_millis(HALF);
        let batch = [
            acquire("c", &value(3), LONG),
            acquire("a", &retry, LONG),
            acquire("b", &value(3), LONG),
            repair("d", &value(3), late),
            tokens("counter", 1),
            tokens("missing", 1),
        ];
        for reply in node.call(&batch).await.replies {
            is_error(&reply, "OOM");
        }
        is_held(&node.one(check("a", &ours)).await, Some(HALF));
        is_held(&node.one(renew("a", &ours, LONG)).await, Some(HALF));
        assert_eq!(node.one(release("a", &ours)).await, Reply::Yes);
        // By its text too, as after a restart.
        node.backstage.forget_scripts();
        assert_eq!(node.one(release("b", &value(2))).await, Reply::Yes);
        assert_eq!(node.backstage.keys(), [("counter".to_owned(), Some(b"41".to_vec()), None)]);
        node.backstage.set_full(false);
        assert_eq!(node.one(acquire("c", &value(3), LONG)).await, Reply::Yes);
    })
    .await;
}

/// A server does not stop a script that has written, and releases go first.
#[tokio::test]
async fn after_a_release_the_rest_of_the_batch_needs_no_memory() {
    on_every_node(async |node| {
        node.one(acquire("a", &value(1), LONG)).await;
        node.backstage.set_full(true);
        let batch = [acquire("b", &value(2), LONG), release("a", &value(1)), acquire("c", &value(3), LONG)];
        let replies = node.call(&batch).await.replies;
        is_error(&replies[0], "OOM");
        assert_eq!(replies[1..], [Reply::Yes, Reply::Yes]);
        assert_eq!(node.backstage.keys().len(), 1);
    })
    .await;
}

/// Of which kind the first call after it is: releases, a SET, a SET that is refused, everything.
#[tokio::test]
async fn a_server_that_does_not_know_the_scripts_is_sent_them() {
    on_every_node(async |node| {
        let (ours, others) = (value(1), value(2));
        node.one(acquire("held", &others, LONG)).await;
        let kinds: [&[Op]; 4] = [
            &[release("a", &ours), release("b", &others)],
            &[acquire("a", &ours, LONG), acquire("b", &others, LONG)],
            &[acquire("held", &ours, LONG)],
            &[
                release("a", &ours),
                release("b", &ours),
                acquire("a", &ours, LONG),
                acquire("held", &ours, LONG),
                check("a", &ours),
            ],
        ];
        for kind in kinds {
            for (key, value) in [("a", &ours), ("b", &others)] {
                node.one(release(key, value)).await;
                node.one(acquire(key, value, LONG)).await;
            }
            let known = node.call(kind).await.replies;
            for (key, value) in [("a", &ours), ("b", &others)] {
                node.one(release(key, value)).await;
                node.one(acquire(key, value, LONG)).await;
            }
            node.backstage.forget_scripts();
            let unknown = node.call(kind).await.replies;
            let shape = |replies: &[Reply]| replies.iter().map(std::mem::discriminant).collect::<Vec<_>>();
            assert_eq!(shape(&known), shape(&unknown), "{kind:?}: {unknown:?}");
        }
        node.restart().await;
        assert_eq!(node.one(release("a", &ours)).await, Reply::Absent);
    })
    .await;
}

/// What a plain SET can not do is left to the script, and what comes behind it in the batch goes on.
#[tokio::test]
async fn a_refused_acquire_says_who_holds_the_lock_and_a_retry_replaces_its_earlier_attempt() {
    on_every_node(async |node| {
        let (first, second, other) = (of_request(7, 1, 1), of_request(7, 2, 2), value(3));
        let batch =
            [acquire("a", &second, LONG), acquire("b", &second, LONG), acquire("c", &second, LONG), acquire("a", &first, LONG)];
        for course in [Course::Turns, Course::OneTurn] {
            node.course = course;
            let replies = node.call(&[acquire("a", &first, LONG), acquire("b", &other, ttl(HALF))]).await.replies;
            assert_eq!(replies, [Reply::Yes, Reply::Yes]);
            // Through the script after the first refusal.
            for _ in 0..2 {
                let replies = node.call(&batch).await.replies;
                assert_eq!([&replies[0], &replies[2]], [&Reply::Yes, &Reply::Yes]);
                is_other(&replies[1], Some(other.as_str().as_bytes()), Some(HALF));
                is_other(&replies[3], Some(second.as_str().as_bytes()), Some(LONG_MS));
                node.call(&[release("a", &second), release("c", &second), acquire("a", &first, LONG)]).await;
            }
            let replies = node.call(&[release("a", &first), release("b", &other)]).await.replies;
            assert_eq!(replies, [Reply::Yes, Reply::Yes]);
        }
    })
    .await;
}

/// So that a vote of a node that was emptied a moment ago is seen for what it is, however the vote was asked for.
#[tokio::test]
async fn every_call_tells_the_marker_and_one_that_changes_it_tells_the_one_before() {
    on_every_node(async |node| {
        let marker = |expected: &str, new: &str| Op::Marker {
            key: MARKER_KEY.into(),
            change: MarkerChange { expected: expected.into(), new: new.into(), lift: None },
        };
        let calls: [(&[Op], &str); 8] = [
            (&[acquire("a", &value(1), LONG)], ""),
            (&[marker("", "one"), acquire("b", &value(1), LONG)], ""),
            (&[release("a", &value(1))], "one"),
            (&[acquire("a", &value(1), LONG)], "one"),
            (&[acquire("a", &value(2), LONG)], "one"),
            (&[release("a", &value(1)), acquire("a", &value(1), LONG), marker("one", "two")], "one"),
            (&[release("a", &value(1)), acquire("a", &value(1), LONG), check("a", &value(1))], "two"),
            (&[], "two"),
        ];
        for (batch, expected) in calls {
            assert_eq!(&*node.call(batch).await.marker, expected, "{batch:?}");
        }
        node.backstage.put_list(MARKER_KEY);
        for batch in [&[acquire("c", &value(1), LONG)][..], &[check("c", &value(1))]] {
            assert_eq!(&*node.call(batch).await.marker, "", "a list is no marker");
        }
    })
    .await;
}

#[tokio::test]
async fn the_servers_have_the_versions_that_they_are_taken_for() {
    for server in real::servers() {
        let node = Subject::real(&server).await;
        let version = node.connection.probe().await.unwrap().version;
        assert!(version.starts_with(server.name), "{version} in place of {}", server.name);
        println!("tested with {version}");
    }
}
