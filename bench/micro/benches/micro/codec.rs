//! Operations into arguments of the batch script, and its reply into replies.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use redlockd_micro::samples;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for of_each in [1, 16, 256] {
        let batch = samples::batch(of_each);
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_with_input(BenchmarkId::new("encode", batch.len()), &batch, |bencher, batch| {
            bencher.iter(|| black_box(samples::encode(black_box(batch))));
        });
        group.bench_with_input(BenchmarkId::new("decode", batch.len()), &batch, |bencher, batch| {
            bencher.iter_batched(|| samples::reply(of_each), |reply| samples::decode(batch, reply), BatchSize::SmallInput);
        });
    }
    group.finish();
}
