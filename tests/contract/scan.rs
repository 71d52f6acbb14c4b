//! The scan of a node's locks: all of them, in small parts, whatever goes on meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use redlockd::engine::reply::{Reply, Stored};
use redlockd::node::Op;

use super::*;

type Locks = BTreeMap<String, Stored>;

/// No part looks at many more than this.
const SOME: usize = 300;

fn scan(beginning: &str, from: Arc<str>) -> Op {
    Op::Scan { key: beginning.into(), from }
}

/// All locks whose keys begin so, and in how many parts they were told. `meanwhile` goes on between the parts.
async fn scanned(node: &mut Subject, beginning: &str, mut meanwhile: impl FnMut(&mut Subject, usize)) -> (Locks, usize) {
    let (mut all, mut from, mut parts) = (Locks::new(), Arc::from("0"), 0);
    loop {
        let reply = node.one(scan(beginning, from)).await;
        let Reply::Scanned { next, locks } = reply else { panic!("{reply:?}") };
        assert!(locks.len() < SOME, "{} in one part", locks.len());
        all.extend(locks.into_iter().map(|(key, stored)| (key.to_string(), stored)));
        parts += 1;
        if &*next == "0" {
            return (all, parts);
        }
        meanwhile(node, parts);
        from = next;
    }
}

async fn keys(node: &mut Subject, beginning: &str) -> Vec<String> {
    scanned(node, beginning, |_, _| {}).await.0.into_keys().collect()
}

#[tokio::test]
async fn a_scan_tells_every_lock_that_begins_so_with_its_value_and_its_time() {
    on_every_node(async |node| {
        let lock = |number: u32| (format!("lock:orders/{number}"), format!("value {number}"));
        for number in 0..1_000 {
            let (key, value) = lock(number);
            node.backstage.put(&key, value.as_bytes(), (number % 7 > 0).then_some(HALF));
            node.backstage.put(&format!("other:orders/{number}"), b"x", None);
        }
        node.backstage.put("lock:order", b"x", None);
        node.backstage.put_list("lock:orders/list");
        let (locks, parts) = scanned(node, "lock:orders/", |_, _| {}).await;
        assert!(parts >= 2_001 / SOME, "{parts} parts");
        assert_eq!(locks.len(), 1_000);
        for number in 0..1_000 {
            let (key, value) = lock(number);
            let stored = &locks[&key];
            assert_eq!(stored.value.as_deref(), Some(value.as_bytes()));
            is_about(stored.left_ms, (number % 7 > 0).then_some(HALF));
        }
        assert_eq!(keys(node, "nothing").await, Vec::<String>::new());
        assert_eq!(keys(node, "").await.len(), 2_001, "all but the list");
    })
    .await;
}

#[tokio::test]
async fn the_beginning_of_a_key_is_no_pattern() {
    let names =
        ["*", "?", "[", "]", "\\", "^", "-", "a", "b", "ab", "a*", "a?b", "[ab]", "[^a]", "[a-c]", "\\a", "\\*", "a[", "ü*"];
    on_every_node(async |node| {
        for name in names {
            for more in ["", "x", "*"] {
                node.backstage.put(&format!("lock:{name}{more}"), b"x", None);
            }
        }
        let all: Vec<String> = node.backstage.keys().into_iter().map(|(key, ..)| key).collect();
        for name in names {
            let beginning = format!("lock:{name}");
            let expected: Vec<String> = all.iter().filter(|key| key.starts_with(&beginning)).cloned().collect();
            assert_eq!(keys(node, &beginning).await, expected, "{beginning}");
        }
    })
    .await;
}

#[tokio::test]
async fn keys_that_stay_are_told_whatever_comes_and_goes() {
    on_every_node(async |node| {
        for number in 0..1_000 {
            node.backstage.put(&format!("lock:stays/{number}"), b"x", Some(HALF));
            node.backstage.put(&format!("lock:goes/{number}"), b"x", Some(HALF));
        }
        // The servers' tables grow and shrink under it.
        let churn = |node: &mut Subject, part: usize| {
            for number in (part % 10 * 100)..(part % 10 * 100 + 100) {
                node.backstage.delete(&format!("lock:goes/{number}"));
                (0..8).for_each(|more| node.backstage.put(&format!("lock:new/{number}/{more}"), b"x", Some(HALF)));
            }
        };
        let (locks, parts) = scanned(node, "lock:", churn).await;
        assert!(parts >= 2_000 / SOME, "{parts} parts");
        let missing: Vec<u32> = (0..1_000).filter(|number| !locks.contains_key(&format!("lock:stays/{number}"))).collect();
        assert_eq!(missing, Vec::<u32>::new());
    })
    .await;
}

#[tokio::test]
async fn values_are_told_as_they_are_unless_they_are_long() {
    on_every_node(async |node| {
        let longest_of_ours = LockValue::new(
            u128::MAX,
            Some(RequestKey { request: u128::MAX, attempt: u32::MAX, try_number: 9_999_999_999_999_999 }),
            Owner::new(&"o".repeat(Owner::MAX_BYTES)).unwrap().as_ref(),
        );
        let values: [&[u8]; 4] = [b"", b"\0\xff\r\n", longest_of_ours.as_str().as_bytes(), &[7; 256]];
        for value in values {
            node.backstage.put("lock:a", value, None);
            let (locks, _) = scanned(node, "lock:", |_, _| {}).await;
            assert_eq!(locks["lock:a"], Stored { value: Some(value.into()), left_ms: None });
        }
        node.backstage.put("lock:a", &[7; 100_000], None);
        let (locks, _) = scanned(node, "lock:", |_, _| {}).await;
        assert_eq!(locks["lock:a"], Stored { value: Some([7; 256].as_slice().into()), left_ms: None });
    })
    .await;
}

#[tokio::test]
async fn what_has_ended_is_not_told() {
    on_every_node(async |node| {
        node.backstage.put("lock:ends", b"x", Some(20));
        node.backstage.put("lock:stays", b"x", Some(HALF));
        node.until(inspect("lock:ends"), &Reply::Absent).await;
        assert_eq!(keys(node, "lock:").await, ["lock:stays"]);
    })
    .await;
}

/// Patterns and what they stand for, so that the simulated node would show an escape that is missing.
#[tokio::test]
async fn patterns_mean_the_same_on_every_node() {
    let patterns =
        ["*", "a*c", "a?c", "a[bx]c", "a[^b]c", "a[a-c]c", "a[c-a]c", "a[\\]]c", "a\\*c", "a[", "a\\", "", "**c", "a[b"];
    let keys = ["abc", "axc", "a*c", "a]c", "a-c", "ac", "a[", "a\\", "ab"];
    let mut simulated = Vec::new();
    on_every_node(async |node| {
        keys.iter().for_each(|key| node.backstage.put(key, b"x", None));
        let script = "local k = redis.call('SCAN', '0', 'MATCH', ARGV[1], 'COUNT', 1000) table.sort(k[2]) return k";
        let answers: Vec<_> = patterns.iter().map(|pattern| node.backstage.eval(script, &[pattern.as_bytes()])).collect();
        if simulated.is_empty() {
            simulated = answers;
        } else {
            patterns.iter().zip(simulated.iter().zip(answers)).for_each(|(p, (ours, theirs))| assert_eq!(*ours, theirs, "{p}"));
        }
    })
    .await;
    let refused = ["'x'", "'0', 'COUNT', 0", "'0', 'MATCH'", "'0', 'FROM', 'x'"];
    on_every_node(async |node| {
        for words in refused {
            let script = format!("return redis.call('SCAN', {words})");
            assert!(node.backstage.eval(&script, &[]).is_err(), "{words}");
        }
    })
    .await;
}
