//! The work that is counted: the same every time that it is done, so often.

use std::hint::black_box;
use std::str::FromStr;
use std::sync::Arc;

use crate::samples::{self, Exchange};
use crate::world::{World, name, runtime};

/// Callers at a time in [`Work::Crowd`], and operations of each kind in a batch of [`Work::Codec`].
const MANY: usize = 64;

/// What there is to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Locks that are taken and released one at a time, so that every batch holds one operation.
    Alone,
    /// The same by 64 callers at a time, whose operations share batches.
    Crowd,
    /// Batches of 64 SETs and 64 releases put into arguments, and their replies read.
    Codec,
}

impl Work {
    /// All of it.
    pub const ALL: [Self; 3] = [Self::Alone, Self::Crowd, Self::Codec];

    /// As it is stored and typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "pair_alone",
            Self::Crowd => "pair_in_a_crowd",
            Self::Codec => "codec",
        }
    }

    /// What one figure is of.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Alone => "a lock taken and released, five nodes, one at a time",
            Self::Crowd => "a lock taken and released, five nodes, 64 at a time",
            Self::Codec => "an operation put into a batch of 128, and its reply read",
        }
    }

    /// Does it so often, or a little more: whole rounds.
    pub fn run(self, times: usize) {
        match self {
            Self::Alone => pairs(1, times),
            Self::Crowd => pairs(MANY, times.div_ceil(MANY)),
            Self::Codec => codec(times.div_ceil(2 * MANY)),
        }
    }
}

/// The name of what callgrind counts: nothing outside of it, such as the start of a world, in which clocks are calibrated.
pub const COUNTED: &str = "redlockd_micro::work::counted*";

/// See [`COUNTED`]: not generic and not inlined, so that it is one function.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|work| work.name() == text).ok_or_else(|| format!("{text} is none of {}", known()))
    }
}

/// `callers` at a time take and release a lock each, so often.
fn pairs(callers: usize, times: usize) {
    let runtime = runtime();
    let world = Arc::new(runtime.block_on(World::start()));
    let all = async || {
        let begin = |number| tokio::spawn(caller(world.clone(), number, times));
        let callers: Vec<_> = (0..callers).map(begin).collect();
        for caller in callers {
            caller.await.expect("no pair fails");
        }
    };
    counted(&mut || runtime.block_on(all()));
}

async fn caller(world: Arc<World>, number: usize, times: usize) {
    let (name, mut last) = (name(number), 0);
    for _ in 0..times {
        let token = world.pair(&name).await;
        assert!(token > last, "token {token} after {last}");
        last = token;
    }
}

fn codec(times: usize) {
    let (batch, exchange) = (samples::batch(MANY), Exchange::of(MANY));
    let batch: Vec<_> = batch.iter().collect();
    counted(&mut || {
        for _ in 0..times {
            let replies = exchange.call(black_box(&batch)).expect("a good reply");
            assert_eq!(black_box(replies).replies.len(), batch.len());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_can_be_done_and_is_named() {
        for work in Work::ALL {
            work.run(300);
            assert_eq!(work.name().parse(), Ok(work));
        }
        let error = "nothing".parse::<Work>().expect_err("there is no such work");
        assert!(error.contains("nothing") && error.contains("codec"), "{error}");
    }
}
