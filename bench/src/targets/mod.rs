//! What can be measured: for each target, what one caller does.

pub mod proxy;
pub mod rslock;
pub mod stream;

use std::time::Duration;

/// The time to live of every lock: long enough for the slowest pair, the default of the proxy.
pub const TTL: Duration = Duration::from_secs(10);
