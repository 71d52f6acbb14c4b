//! Nodes that stop, die, forget or answer late, and clients that go away: what stays on real servers, and what is promised
//! all the same.
//!
//! Nothing here may pass because a key expired: leases last longer than any test waits.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod batch;
mod cancel;
mod delivery;
mod late;
mod renewal;
mod restart;
mod retry;
mod stopped;
mod tokens;
mod validity;

use rand::SeedableRng;
use rand::rngs::StdRng;
use redlockd::proto;
use redlockd::proto::lock_service_client::LockServiceClient;
use redlockd::proto::{ReleaseOutcome, acquire_response};
use support::gate::Gate;
use support::*;
use tonic::Code;
use tonic::transport::Channel;

/// For tests in which nothing shall time out, and nothing be sent but what they ask for.
const NO_TIMEOUTS: [&str; 6] = ["--nodes-timeout", "30s", "--fencing-timeout", "30s", "--nodes-probe-interval", "1h"];

/// Longer than [`PATIENCE`]: what is gone within a test was removed, not expired.
const LASTING_SECONDS: u64 = 280;

/// Wants a lease that outlives the test.
fn lasting(name: &str) -> proto::AcquireRequest {
    proto::AcquireRequest { ttl: seconds(LASTING_SECONDS), ..want(name) }
}

/// The same, and tries again for a while: for tests in which a node's time-out is short, so that a busy machine fails none.
fn patient(name: &str) -> proto::AcquireRequest {
    proto::AcquireRequest { wait: seconds(50), ..lasting(name) }
}

/// Releases until a quorum has said so; `UNAVAILABLE` may be repeated.
async fn release_surely(client: &mut LockServiceClient<Channel>, lock_id: &str) -> ReleaseOutcome {
    let (client, request) = (&*client, proto::ReleaseRequest { lock_id: lock_id.to_owned() });
    until("a release to be answered by a quorum", || async {
        match client.clone().release(request.clone()).await {
            Ok(answer) => Some(answer.into_inner().outcome()),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                None
            }
        }
    })
    .await
}

/// URLs that lead through gates.
fn through(gates: &[Gate]) -> Vec<String> {
    gates.iter().map(Gate::url).collect()
}

/// A proxy whose connections to the nodes lead through `gates`, ready to grant.
async fn proxy_behind(gates: &[Gate], fence: &str, flags: &[&str]) -> Proxy {
    // What a gate holds back shall be what the test has asked for.
    let flags = if flags.contains(&"--nodes-probe-interval") {
        flags.to_vec()
    } else {
        [flags, &["--nodes-probe-interval", "1h"]].concat()
    };
    let proxy = Proxy::start_unready(&through(gates), fence, &flags).await;
    proxy.ready().await;
    warm_up(&proxy).await;
    proxy
}

/// Lets every node know our script: the first call to a server that does not has to be repeated with the text, and a gate
/// would hold back the word that it does not.
async fn warm_up(proxy: &Proxy) {
    // Ready with a quorum; these tests want all.
    until("every node to be up", || async {
        let nodes = proxy.nodes().await;
        (nodes.voting as usize == nodes.nodes.len() - 1).then_some(())
    })
    .await;
    let mut client = proxy.client().await;
    let grant = granted(&mut client, patient("warm-up")).await;
    until("every node to know the lock", || async {
        let request = proto::GetRequest { name: "warm-up".to_owned() };
        let votes = client.clone().get(request).await.ok()?.into_inner().votes;
        votes.iter().all(|vote| vote.state() == proto::NodeVoteState::Holder).then_some(())
    })
    .await;
    release_surely(&mut client, &grant.lock_id).await;
    proxy.idle().await;
}

/// Random numbers that come again with `SEED=..`.
fn seeded() -> StdRng {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}
