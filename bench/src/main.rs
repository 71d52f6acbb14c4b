//! The load generator of redlockd.

fn main() {}
