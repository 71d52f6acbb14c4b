//! Decisions: a round of votes, the quorum, the validity.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use redlockd::engine::lease::{LockName, LockValue, Ttl};
use redlockd::engine::quorum::Quorum;
use redlockd::engine::reply::{Reply, Stored};
use redlockd::engine::round::{AcquireRound, Step};
use redlockd::engine::validity::{DriftFactor, Spent, validity};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    let quorum = Quorum::of(5).expect("a number that may be configured");
    group.bench_function("a round that is granted", |bencher| bencher.iter(|| granted(black_box(quorum))));
    group.bench_function("a round that is refused", |bencher| bencher.iter(|| refused(black_box(quorum))));
    group.bench_function("what a quorum reaches", |bencher| {
        bencher.iter(|| quorum.reached_by_quorum(black_box(vec![30, 10, 50, 20, 40])));
    });
    let ttl = Ttl::from_millis(10_000, Ttl::LONGEST).expect("a TTL that may be configured");
    let start = Duration::ZERO;
    group.bench_function("validity", |bencher| {
        bencher.iter(|| {
            let spent = Spent::between(black_box(start), start, black_box(Duration::from_micros(1_234)));
            validity(black_box(ttl), spent, DriftFactor::DEFAULT)
        });
    });
    group.bench_function("a name that is checked", |bencher| bencher.iter(|| LockName::new(black_box("orders/42"))));
    group.bench_function("a value that is made", |bencher| bencher.iter(|| LockValue::new(black_box(1 << 100), None, None)));
    group.finish();
}

fn granted(quorum: Quorum) -> bool {
    let mut round = AcquireRound::new(quorum);
    let mut granted = false;
    for node in 0..quorum.nodes() {
        round.on_sending(node);
        granted |= round.on_reply(node, Reply::Yes) == Step::Grant;
    }
    assert!(granted);
    granted
}

fn refused(quorum: Quorum) -> usize {
    let mut round = AcquireRound::new(quorum);
    let mut given_up = false;
    for node in 0..quorum.nodes() {
        round.on_sending(node);
        let stored = Stored { value: None, left_ms: Some(1_000) };
        given_up |= matches!(round.on_reply(node, Reply::Other(stored)), Step::GiveUp(_));
    }
    assert!(given_up);
    round.give_up().len()
}
