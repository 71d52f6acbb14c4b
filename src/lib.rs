//! redlockd: a stateless Redlock coordinator proxy in front of N independent Redis nodes.
//!
//! # Reading order
//!
//! 1. [`engine`]: the decisions, pure. Its page lists the laws.
//! 2. [`node`]: one server: the wire, its mailbox, and the link that keeps a connection.
//! 3. [`coordinator`]: carries the protocol out over all nodes.
//! 4. [`grpc`]: messages in, messages out. [`admin`]: the HTTP side. [`run`]: wires all of it up.
//! 5. [`config`], [`args`], [`cli`], [`check`], [`dev`]: what people type.
//! 6. [`client`] and [`fenced`]: for programs that link this library: locks, and a resource that checks tokens. The command
//!    line uses the client too.
//!
//! # How an acquire flows
//!
//! `grpc::service` receives the message, `grpc::convert` turns it into an `AcquireSpec` or an `INVALID_ARGUMENT`.
//! `coordinator::attempt` starts one task for it, which reads the start instant and posts a SET to the mailbox of every node.
//! Each `node::link` sends what is pending in one call, which `node::talk` makes commands of. A reply goes to the ballot of its attempt, where
//! `engine::round` says grant, give up or wait. The vote that makes the quorum asks `coordinator::fence` for a token; then the
//! task is woken, computes the validity once more, and answers. A ballot that ends without a delivered grant releases every
//! node that did not refuse.
//!
//! # Arrows
//!
//! `main -> run -> {config, metrics, grpc}`; `grpc -> coordinator -> {engine, node, metrics}`; `node -> engine -> std`;
//! `cli -> client -> proto`. `tests/tidy` enforces them.
//!
//! # Features
//!
//! `server` (default): all of it. `client`: [`client`], [`fenced`] and [`proto`], without what only a proxy
//! needs.

#[macro_use]
pub mod mutants;

#[cfg(feature = "server")]
pub mod admin;
#[cfg(feature = "server")]
pub mod args;
#[cfg(feature = "server")]
pub mod check;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod coordinator;
#[cfg(feature = "server")]
pub mod dev;
pub mod engine;
pub mod fenced;
#[cfg(feature = "server")]
pub mod grpc;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod node;
pub mod proto;
#[cfg(feature = "server")]
pub mod run;
