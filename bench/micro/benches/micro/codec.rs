//! Operations into the bytes of commands, and the bytes of answers into replies.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use redlockd_micro::samples::{self, Exchange};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for of_each in [1, 16, 256] {
        let batch = samples::batch(of_each);
        group.throughput(Throughput::Elements(batch.len() as u64));
        let (exchange, ops) = (Exchange::of(of_each), batch.iter().collect::<Vec<_>>());
        group.bench_with_input(BenchmarkId::new("call", batch.len()), &ops, |bencher, ops| {
            bencher.iter(|| black_box(exchange.call(black_box(ops))));
        });
    }
    group.finish();
}
