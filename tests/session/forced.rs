//! A thousand leases that are lost, in each way in which that happens: every holder is told before its validity ends.

use std::collections::BTreeMap;
use std::time::Duration;

use redlockd::proto::session_response::Message as Said;
use redlockd::proto::{AcquireRequest, SessionLossReason};
use tokio::time::Instant;

use crate::client::Session;
use crate::support::gate::{self, Gate};
use crate::support::*;

/// A word on the way has an eighth of it.
const TTL: u64 = 40;

/// A lease as its holder knows it.
struct Held {
    end: Instant,
    at_risk: Option<Instant>,
    lost: Option<(Instant, SessionLossReason)>,
}

/// Holds so many leases, has something done to them, and listens until all are lost.
async fn lose(proxy: &Proxy, count: usize, strike: impl FnOnce()) -> Vec<Held> {
    let mut session = Session::open(proxy).await;
    let asked: Vec<u64> =
        (0..count).map(|n| session.acquire(AcquireRequest { ttl: seconds(TTL), ..want(&format!("n{n}")) })).collect();
    let mut held = BTreeMap::new();
    for seq in asked {
        let (granted, end) = session.granted(seq).await;
        held.insert(granted.lease, Held { end: end.0, at_risk: None, lost: None });
    }
    proxy.idle().await;
    strike();
    while held.values().any(|lease| lease.lost.is_none()) {
        let Ok(said) = tokio::time::timeout(Duration::from_secs(1), session.next()).await else {
            session.keep_alive();
            continue;
        };
        let (said, now) = (said.unwrap().expect("no end"), Instant::now());
        match said.message.as_ref().unwrap() {
            // One that was under way.
            Said::Renewed(renewed) => {
                held.get_mut(&renewed.lease).unwrap().end = session.end(&said, renewed.validity).0;
            }
            Said::AtRisk(risk) => held.get_mut(&risk.lease).unwrap().at_risk = Some(now),
            Said::Lost(lost) => held.get_mut(&lost.lease).unwrap().lost = Some((now, lost.reason())),
            other => panic!("{other:?}"),
        }
    }
    held.into_values().collect()
}

/// How many there were.
fn all_were_told_in_time(leases: Vec<Held>, reason: SessionLossReason, at_risk_first: bool) -> usize {
    for lease in &leases {
        let (lost, why) = lease.lost.unwrap();
        assert_eq!(why, reason);
        assert!(lost < lease.end, "told of its loss {:?} after its end", lost - lease.end);
        if at_risk_first {
            assert!(lease.at_risk.expect("a word of risk") <= lost);
        }
    }
    let least = leases.iter().map(|lease| lease.end - lease.lost.unwrap().0).min().unwrap();
    println!("{} leases lost ({reason:?}): told {least:?} before their ends at least", leases.len());
    leases.len()
}

#[tokio::test]
async fn every_one_of_a_thousand_holders_is_told_before_its_validity_ends() {
    let deleted = async {
        let cluster = Cluster::start(5);
        let proxy = Proxy::start_whole(&cluster, &[]).await;
        let leases = lose(&proxy, 334, || {
            for node in &cluster.nodes[..3] {
                let keys = node.keys();
                let command: Vec<&str> = ["DEL"].into_iter().chain(keys.iter().map(String::as_str)).collect();
                assert_eq!(node.cli(&command).trim(), "334");
            }
        });
        all_were_told_in_time(leases.await, SessionLossReason::NotHeld, false)
    };
    let cut = async {
        let cluster = Cluster::start(5);
        let gates = gate::before_all(cluster.nodes.iter().map(|node| node.port)).await;
        let urls: Vec<String> = gates.iter().map(Gate::url).collect();
        let proxy = Proxy::start_unready(&urls, &cluster.fence.url(), &[]).await;
        proxy.ready().await;
        let leases = lose(&proxy, 333, || gates[..3].iter().for_each(Gate::hold_requests));
        all_were_told_in_time(leases.await, SessionLossReason::NoQuorum, true)
    };
    let down = async {
        let mut cluster = Cluster::start(5);
        let proxy = Proxy::start_whole(&cluster, &[]).await;
        let leases = lose(&proxy, 333, || cluster.nodes[..3].iter_mut().for_each(Redis::kill));
        all_were_told_in_time(leases.await, SessionLossReason::NoQuorum, true)
    };
    let (deleted, cut, down) = tokio::join!(deleted, cut, down);
    assert_eq!(deleted + cut + down, 1_000);
}
