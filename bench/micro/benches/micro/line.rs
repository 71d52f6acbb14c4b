//! Those who wait for a lock: joining, leaving, and the lock going from hand to hand.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use redlockd::engine::line::{LineBounds, Lines, Next};
use redlockd_micro::world::name;

const BOUNDS: LineBounds = LineBounds { per_name: 10_000, in_all: 100_000 };

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("line");
    for waiters in [1, 64, 4_096] {
        group.bench_function(BenchmarkId::new("a turn, waiters", waiters), |bencher| turn(bencher, waiters));
    }
    group.bench_function("a line of its own", |bencher| {
        let (mut lines, name) = (Lines::<usize, ()>::new(BOUNDS), name(0));
        bencher.iter(|| {
            let ticket = lines.join(&name, 7).expect("there is room");
            lines.leave(&name, ticket)
        });
    });
    group.finish();
}

/// The head of the line gets the lock and leaves the line; whoever had it waits again at the end.
fn turn(bencher: &mut criterion::Bencher<'_>, waiters: usize) {
    let (mut lines, name) = (Lines::<usize, ()>::new(BOUNDS), name(0));
    let mut tickets: std::collections::VecDeque<_> =
        (0..waiters).map(|waiter| lines.join(&name, waiter).expect("there is room")).collect();
    let (mut now, mut number) = (Duration::ZERO, waiters);
    bencher.iter(|| {
        let next = lines.on_release(&name, false);
        assert!(matches!(next, Next::Heir(_)), "{next:?}");
        now += Duration::from_micros(200);
        lines.on_turn(&name, (), now);
        tickets.push_back(lines.join(&name, number).expect("there is room"));
        number += 1;
        let head = tickets.pop_front().expect("somebody waits");
        lines.leave(&name, head)
    });
}
