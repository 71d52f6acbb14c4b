//! True time, and the clocks that run beside it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::oracle::history::At;

/// The timer of the runtime ticks in milliseconds. So many of its units of time are one of ours: we tick in 50 microseconds.
const SCALE: u32 = 20;

/// How much any clock may run fast or slow: two of them then differ by less than the default drift factor, 2,000 ppm.
pub const MAX_RATE_PPM: i64 = 990;

/// True time: nobody in the simulated world knows it.
#[derive(Clone, Copy, Debug)]
pub struct TrueTime {
    start: Instant,
}

impl TrueTime {
    /// Begins now.
    pub fn begin() -> Self {
        Self { start: Instant::now() }
    }

    /// Since the beginning.
    pub fn now(self) -> At {
        self.start.elapsed() / SCALE
    }

    /// Ends at `at`.
    pub async fn until(self, at: At) {
        tokio::time::sleep_until(self.start + at * SCALE).await;
    }
}

/// A clock that runs at its own rate; wall clocks also leap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Microseconds that it is ahead of true time, but for its rate.
    pub offset_us: i64,
    /// Microseconds that it gains in a second.
    pub rate_ppm: i64,
}

impl Clock {
    /// What it shows, in nanoseconds since the beginning of true time: below zero if it is behind.
    pub fn reads_ns(self, at: At) -> i128 {
        let ns = i128::try_from(at.as_nanos()).expect("a run is short");
        ns + ns * i128::from(self.rate_ppm) / 1_000_000 + i128::from(self.offset_us) * 1_000
    }

    /// The first instant at which it shows `reading_ns`.
    pub fn when_ns(self, reading_ns: i128) -> At {
        let since = reading_ns - i128::from(self.offset_us) * 1_000;
        let ns = (since * 1_000_000).div_euclid(1_000_000 + i128::from(self.rate_ppm)).max(0);
        let mut at = Duration::from_nanos(u64::try_from(ns).expect("a run is short"));
        while self.reads_ns(at) < reading_ns {
            at += Duration::from_nanos(1);
        }
        at
    }
}

/// What a monotonic clock shows: a clock without an offset, as the program under test knows instants.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic {
    time: TrueTime,
    clock: Clock,
}

impl Monotonic {
    /// One that runs at `rate_ppm`.
    pub fn new(time: TrueTime, rate_ppm: i64) -> Self {
        Self { time, clock: Clock { offset_us: 0, rate_ppm } }
    }

    /// The clock's now.
    pub fn now(&self) -> Instant {
        self.shows(self.time.now())
    }

    /// What it shows at `at`.
    pub fn shows(&self, at: At) -> Instant {
        let ns = self.clock.reads_ns(at);
        self.time.start + Duration::from_nanos(u64::try_from(ns).expect("it has no offset"))
    }

    /// When it shows `instant`.
    pub fn when(&self, instant: Instant) -> At {
        let since = instant.saturating_duration_since(self.time.start);
        self.clock.when_ns(i128::try_from(since.as_nanos()).expect("a run is short"))
    }
}

/// Whether a process runs, sleeps, or is gone. Whatever reaches it while it sleeps reaches it when it wakes.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<Running>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Running {
    #[default]
    Yes,
    Until(At),
    Never,
}

impl Gate {
    fn state(&self) -> Running {
        *self.0.lock().expect("nobody panics with it")
    }

    /// Puts it to sleep until `until`, unless it is gone.
    pub fn pause(&self, until: At) {
        let mut state = self.0.lock().expect("nobody panics with it");
        if *state != Running::Never {
            *state = Running::Until(until);
        }
    }

    /// It never runs again.
    pub fn kill(&self) {
        *self.0.lock().expect("nobody panics with it") = Running::Never;
    }

    /// Whether it is gone.
    pub fn is_dead(&self) -> bool {
        self.state() == Running::Never
    }

    /// Ends when it runs; never, if it never does again.
    pub async fn passes(&self, time: TrueTime) {
        loop {
            match self.state() {
                Running::Yes => return,
                Running::Until(at) if at <= time.now() => return,
                Running::Until(at) => time.until(at).await,
                Running::Never => std::future::pending().await,
            }
        }
    }
}
