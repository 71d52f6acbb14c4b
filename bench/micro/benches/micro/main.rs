//! How long the parts of redlockd take: `make micro-bench`, or `cargo bench -p redlockd-micro -- line` for some of it.
//! `-- --test` does each once.
#![allow(missing_docs)]

use criterion::{criterion_group, criterion_main};

mod acquire;
mod codec;
mod engine;
mod line;
mod mailbox;

criterion_group!(benches, engine::bench, codec::bench, mailbox::bench, line::bench, acquire::bench);
criterion_main!(benches);
