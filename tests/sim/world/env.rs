//! Clock and chance of one simulated proxy.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use rand::RngCore;
use redlockd::node::env::Env;
use tokio::time::Instant;

use super::Shared;
use super::clock::{Gate, Monotonic};

/// When every run begins, for those who look at wall clocks.
pub const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// What a proxy takes from the world.
pub struct SimEnv {
    pub shared: Arc<Shared>,
    pub clock: Monotonic,
    pub gate: Gate,
}

impl Env for SimEnv {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let (time, at, gate) = (self.shared.time, self.clock.when(deadline), self.gate.clone());
        Box::pin(async move {
            time.until(at).await;
            gate.passes(time).await;
        })
    }

    fn wall_clock(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + self.shared.time.now()
    }

    fn random(&self) -> u64 {
        self.shared.chance(|rng| rng.next_u64())
    }

    fn secret(&self) -> u128 {
        self.shared.chance(|rng| u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64()))
    }
}
