//! From many callers into one batch: operations are posted, and taken out together.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use futures::FutureExt;
use redlockd::node::mailbox::{Mailbox, Nobody, Reach};
use redlockd::node::script::MAX_BATCH;
use redlockd_micro::samples;
use tokio::time::Instant;

/// More than any batch.
const PLACES: usize = 4_096;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    let now = Instant::now();
    let mailbox = Mailbox::new(0, PLACES, Duration::from_secs(300));
    mailbox.set_reach(Reach::Up, now);
    let nobody = Arc::new(Nobody);
    for of_each in [1, 16, 256] {
        let batch = samples::batch(of_each);
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_function(BenchmarkId::new("post and take", batch.len()), |bencher| {
            let post_and_take = |batch: Vec<_>| {
                let posted = batch.len();
                batch.into_iter().for_each(|op| mailbox.post(op, nobody.clone(), now));
                let taken = take(&mailbox);
                assert_eq!(taken, posted);
            };
            bencher.iter_batched(|| batch.clone(), post_and_take, BatchSize::SmallInput);
        });
    }
    group.finish();
}

/// It gives others a turn first, and finds what was posted then.
fn take(mailbox: &Mailbox) -> usize {
    let mut next = std::pin::pin!(mailbox.next_batch(MAX_BATCH));
    loop {
        if let Some(batch) = next.as_mut().now_or_never() {
            return batch.len();
        }
    }
}
