//! What the parts of redlockd cost, without any server: a whole proxy over nodes that live in its own memory, and samples of what
//! goes to and comes from a node. Used by the benchmarks (`benches/micro`) and by the program that counts instructions.
//!
//! - [`memory`]: a node in memory. [`mod@env`]: time and chance that are the same in every run.
//! - [`world`]: a coordinator over such nodes, and callers of it. [`samples`]: a batch and its reply.
//! - [`work`]: what is counted. [`counting`]: one run of it under callgrind. [`figures`]: what is stored, and how it compares.

pub mod counting;
pub mod env;
pub mod figures;
pub mod memory;
pub mod samples;
pub mod work;
pub mod world;
