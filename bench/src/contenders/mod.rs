//! For each target, what a client does that wants a lock which others want too.

pub mod etcd;
pub mod proxy;
pub mod rslock;

use std::time::Duration;

/// How long clients wait for their turn: for ever, as far as a measurement goes.
pub const WAIT: Duration = Duration::from_secs(60);
