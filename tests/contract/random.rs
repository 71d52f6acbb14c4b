//! The same random batches on the simulated node and on a real server side by side: whatever they are, both say and hold the
//! same. `SEED` picks one of the runs, which print theirs.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use redlockd::engine::reply::Reply;
use redlockd::node::script::MAX_BATCH;

use super::*;
use crate::operations::start;
use crate::subject::{Backstage, Found};

const BATCHES: usize = 120;
/// Few, so that they meet; the last one is for tokens too.
const KEYS: [&str; 4] = ["lock:a", "lock:b", "lock:ü", "counter"];
/// A key's times are so far apart that no slow machine can take one for another.
const STEP_MS: u64 = 2 * SLACK_MS;

#[derive(Clone)]
struct Chance(StdRng);

impl Chance {
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        from.choose(&mut self.0).unwrap()
    }

    fn one_in(&mut self, number: u32) -> bool {
        self.0.random_ratio(1, number)
    }

    fn ttl(&mut self) -> u64 {
        STEP_MS * self.0.random_range(1..=3)
    }

    fn value(&mut self) -> LockValue {
        match self.0.random_range(0..3) {
            0 => value(self.0.random_range(0..2)),
            _ => of_request(self.0.random_range(16..18), self.0.random_range(9..11), 1),
        }
    }

    /// Any bytes, or a value of ours with a few of them changed.
    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = match self.0.random_range(0..3) {
            0 => (0..self.0.random_range(0..40)).map(|_| self.0.random()).collect(),
            1 => self.0.random_range(-1_000..1_000).to_string().into_bytes(),
            _ => self.value().as_str().as_bytes().to_vec(),
        };
        for _ in 0..self.0.random_range(0..3) {
            let at = self.0.random_range(0..=bytes.len());
            match self.0.random() {
                true => bytes.insert(at, *self.pick(b".;0aF-\0\xff")),
                false => bytes.truncate(at.max(bytes.len().saturating_sub(1))),
            }
        }
        bytes
    }

    fn op(&mut self, now: NodeTime) -> Op {
        let (key, value, ttl_ms) = (*self.pick(&KEYS), self.value(), self.ttl());
        match self.0.random_range(0..8) {
            0 | 1 => acquire(key, &value, ttl(ttl_ms)),
            // A counter that is missing starts at the server's own time.
            2 => release(KEYS[self.0.random_range(0..3)], &value),
            3 if self.one_in(2) => renew(key, &value, ttl(ttl_ms)),
            3 => adopt(key, &value, &self.value(), ttl(ttl_ms)),
            4 if self.one_in(4) => repair(key, &value, NodeTime { micros: now.micros - STEP_MS * 1_000 }),
            4 => repair(key, &value, now.plus_millis(ttl_ms)),
            5 if self.one_in(2) => hand_over(key, &value, &self.value(), ttl(ttl_ms)),
            5 => check(key, &value),
            6 => inspect(key),
            _ => match self.0.random_range(0..6) {
                0 | 1 => start(MARK, self.0.random_range(0..100), 1 << self.0.random_range(5..12)),
                2 => Op::AdvanceCounter { key: "counter".into(), ceiling: 1 << self.0.random_range(5..12) },
                _ => tokens("counter", self.0.random_range(0..100)),
            },
        }
    }

    fn batch(&mut self, now: NodeTime) -> Vec<Op> {
        let most = if self.one_in(20) { MAX_BATCH } else { 12 };
        (0..self.0.random_range(0..=most)).map(|_| self.op(now)).collect()
    }

    /// What somebody else does to both.
    fn interfere(&mut self, both: [&mut dyn Backstage; 2]) {
        let (key, bytes, end) = (*self.pick(&KEYS), self.bytes(), self.ttl());
        let (what, left_ms) = (self.0.random_range(0..8), (!self.one_in(3)).then_some(end));
        for server in both {
            match what {
                0 | 1 => server.put(key, &bytes, left_ms),
                2 => server.put_list(key),
                3..=5 if key != "counter" => server.delete(key),
                _ => server.put("counter", b"1000", None),
            }
        }
    }
}

/// What a reply says, and the time that is left in it, by which two may differ.
fn parts(reply: &Reply, run_id: &str) -> (String, Option<u64>) {
    let (text, left) = parts_of(reply);
    (text.replace(run_id, "RUN"), left)
}

fn parts_of(reply: &Reply) -> (String, Option<u64>) {
    match reply {
        Reply::Held { left_ms } => ("Held".to_owned(), Some(*left_ms)),
        Reply::Other(stored) => (format!("Other {:?}", stored.value.as_deref().map(String::from_utf8_lossy)), stored.left_ms),
        Reply::Unknown(why) => (format!("Unknown {}", error(&why.kind.to_string())), None),
        Reply::HandedOver { released, no_vote: Some(why), .. } => {
            (format!("HandedOver {released}: {}", error(&why.to_string())), None)
        }
        other => (format!("{other:?}"), None),
    }
}

/// What an error is about: servers have their own words for it.
fn error(text: &str) -> &str {
    let known = ["OOM", "WRONGTYPE"];
    known.iter().find(|word| text.contains(**word)).unwrap_or_else(|| panic!("an unexpected error: {text}"))
}

fn same_time(a: Option<u64>, b: Option<u64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) < SLACK_MS,
        _ => a == b,
    }
}

fn assert_same_keys(simulated: &[Found], real: &[Found], run_ids: [&str; 2]) {
    let content = |bytes: &Option<Vec<u8>>, run_id: &str| {
        bytes.as_deref().map(|bytes| String::from_utf8_lossy(bytes).replace(run_id, "RUN"))
    };
    let names = |keys: &[Found], run_id: &str| {
        keys.iter().map(|(key, bytes, _)| (key.clone(), content(bytes, run_id))).collect::<Vec<_>>()
    };
    assert_eq!(names(simulated, run_ids[0]), names(real, run_ids[1]));
    for (a, b) in simulated.iter().zip(real) {
        assert!(same_time(a.2, b.2), "{a:?} {b:?}");
    }
}

/// How often each kind of reply came.
type Seen = BTreeMap<String, usize>;

async fn compare(simulated: &mut Subject, real: &mut Subject, seed: u64, seen: &mut Seen) {
    let mut chance = Chance(StdRng::seed_from_u64(seed));
    for node in [&mut *simulated, &mut *real] {
        node.backstage.put("counter", &node.run(0, 200), None);
    }
    for number in 0..BATCHES {
        if chance.one_in(2) {
            chance.interfere([&mut *simulated.backstage, &mut *real.backstage]);
        }
        let full = chance.one_in(10);
        // The same but for what names the time: their clocks differ.
        let our_batch = chance.clone().batch(simulated.backstage.now());
        let batch = chance.batch(real.backstage.now());
        let ours = call(simulated, &our_batch, full).await;
        let theirs = call(real, &batch, full).await;
        assert_eq!(ours.len(), theirs.len());
        for ((op, ours), theirs) in batch.iter().zip(&ours).zip(&theirs) {
            let ((kind, left), (expected, expected_left)) = (parts(ours, &simulated.run_id), parts(theirs, &real.run_id));
            let same = kind == expected && same_time(left, expected_left);
            assert!(same, "batch {number}, full {full}, {op:?}: {ours:?}, really {theirs:?}");
            *seen.entry(kind.split(' ').next().unwrap().to_owned()).or_default() += 1;
        }
        assert_same_keys(&simulated.backstage.keys(), &real.backstage.keys(), [&simulated.run_id, &real.run_id]);
    }
}

async fn call(node: &mut Subject, batch: &[Op], full: bool) -> Vec<Reply> {
    node.backstage.set_full(full);
    // No key has its whole time left, so that a renewal writes on both, after which memory is no matter any more.
    node.backstage.pause(2_000);
    let replies = node.call(batch).await.replies;
    node.backstage.set_full(false);
    replies
}

#[tokio::test]
async fn the_simulated_node_does_what_a_real_server_does() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..3).collect(),
    };
    for server in real::servers() {
        let mut total = Seen::new();
        for seed in &seeds {
            println!("{} SEED={seed}", server.name);
            let (mut simulated, mut real) = (Subject::simulated().await, Subject::real(&server).await);
            compare(&mut simulated, &mut real, *seed, &mut total).await;
        }
        println!("{total:?}");
        assert!(seeds.len() == 1 || (total.len() == 9 && total.values().all(|count| *count > 20)), "{total:?}");
    }
}
