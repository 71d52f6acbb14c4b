//! What a proxy takes from the world besides messages: time and chance. Handed in, so that a simulation can decide both.

use std::time::SystemTime;

use futures::future::BoxFuture;
use rand::RngCore;
use tokio::time::Instant;

/// Clock and randomness.
pub trait Env: Send + Sync + 'static {
    /// The monotonic clock: the only one that validity is computed from.
    fn now(&self) -> Instant;

    /// Ends at `deadline`, at once if it has passed.
    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()>;

    /// The wall clock: for people and metrics only, never for a decision.
    fn wall_clock(&self) -> SystemTime;

    /// 64 random bits, for delays.
    fn random(&self) -> u64;

    /// 128 random bits that nobody can guess, for secrets.
    fn secret(&self) -> u128;
}

/// The machine's own clock and random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(deadline))
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }

    fn random(&self) -> u64 {
        rand::rng().next_u64()
    }

    fn secret(&self) -> u128 {
        // The thread's generator is a CSPRNG (ChaCha, seeded by the system).
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        u128::from_be_bytes(bytes)
    }
}
