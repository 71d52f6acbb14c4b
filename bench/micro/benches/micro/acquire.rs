//! All of it but the wire and gRPC: a lock taken and released through a coordinator over nodes in memory.

use criterion::{Criterion, Throughput};
use redlockd_micro::world::{World, name, runtime};

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire and release");
    let runtime = runtime();
    let world = runtime.block_on(World::start());
    let one = name(0);
    group.bench_function("alone", |bencher| bencher.iter(|| runtime.block_on(world.pair(&one))));
    let many: Vec<_> = (0..64).map(name).collect();
    group.throughput(Throughput::Elements(many.len() as u64));
    group.bench_function("64 at a time", |bencher| {
        bencher.iter(|| runtime.block_on(futures::future::join_all(many.iter().map(|name| world.pair(name)))));
    });
    group.finish();
}
