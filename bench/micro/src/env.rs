//! Time and chance that are the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use redlockd::node::env::Env;
use tokio::time::Instant;

/// The wall clock of a run stands still.
pub const WALL_CLOCK: Duration = Duration::from_secs(1_700_000_000);

/// The runtime's clock, which is to be paused, and numbers in a fixed order.
#[derive(Debug, Default)]
pub struct FixedEnv(AtomicU64);

impl Env for FixedEnv {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(deadline))
    }

    fn wall_clock(&self) -> SystemTime {
        UNIX_EPOCH + WALL_CLOCK
    }

    /// SplitMix64.
    fn random(&self) -> u64 {
        let mut mixed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn secret(&self) -> u128 {
        (u128::from(self.random()) << 64) | u128::from(self.random())
    }
}
