//! What can be measured: for each target, what a client does.

pub mod direct;
pub mod etcd;
pub mod rslock;
pub mod stream;
pub mod unary;

use std::time::Duration;

use clap::ValueEnum;

/// The time to live of every lock unless somebody asks for another: long enough for the slowest pair, the default of the proxy.
pub const TTL: Duration = Duration::from_secs(10);

/// All of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Target {
    /// redlockd by unary gRPC calls, fencing token included
    Unary,
    /// The same by tonic's client: what a service in Rust sees
    Tonic,
    /// redlockd by a session: one stream for all clients of a process
    Stream,
    /// The coordinator of redlockd within this process, without gRPC: what the protocol costs by itself
    Direct,
    /// The library rslock: plain Redlock without tokens
    Rslock,
    /// etcd's lock service, by unary gRPC calls
    Etcd,
}

impl Target {
    /// As in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Tonic => "tonic",
            Self::Stream => "stream",
            Self::Direct => "direct",
            Self::Rslock => "rslock",
            Self::Etcd => "etcd",
        }
    }

    /// Whether its locks pass through a proxy.
    pub fn needs_a_proxy(self) -> bool {
        matches!(self, Self::Unary | Self::Tonic | Self::Stream)
    }

    /// Whether its clients talk to the lock nodes themselves.
    pub fn needs_the_nodes(self) -> bool {
        matches!(self, Self::Direct | Self::Rslock)
    }
}
