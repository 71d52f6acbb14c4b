//! The quorum counter: no server that all depends on.

use std::collections::BTreeMap;

use super::*;

const QUORUM: [&str; 2] = ["--fencing-counter", "quorum"];

async fn proxy_on(cluster: &Cluster, flags: &[&str]) -> Proxy {
    let flags = [&QUORUM[..], flags].concat();
    Proxy::start_without_fence(&cluster.urls(), &flags).await
}

/// Takes and releases a few locks; tokens of each name have to rise.
async fn work(proxy: &Proxy, tokens: &mut BTreeMap<String, u64>, rounds: usize) {
    let mut client = proxy.client().await;
    for round in 0..rounds {
        let name = format!("job/{}", round % 7);
        let request = proto::AcquireRequest { wait: seconds(30), ttl: seconds(2), ..want(&name) };
        let grant = until("a grant", || async {
            match client.clone().acquire(request.clone()).await.map(|answer| answer.into_inner().outcome) {
                Ok(Some(proto::acquire_response::Outcome::Granted(granted))) => Some(granted),
                _ => None,
            }
        })
        .await;
        let number = token(&grant);
        let before = tokens.insert(name.clone(), number).unwrap_or_default();
        assert!(number > before, "{name}: {number} after {before}");
        let _ = client.release(proto::ReleaseRequest { lock_id: grant.lock_id }).await;
    }
}

/// Every two of five.
fn pairs() -> Vec<[usize; 2]> {
    (0..5).flat_map(|a| (a + 1..5).map(move |b| [a, b])).collect()
}

#[tokio::test]
async fn any_two_of_five_may_be_dead_from_the_start() {
    for dead in pairs().into_iter().step_by(3) {
        let mut cluster = fresh(5);
        dead.iter().for_each(|node| cluster.nodes[*node].kill());
        let proxy = proxy_on(&cluster, &short("2s")).await;
        proxy.ready().await;
        let mut tokens = BTreeMap::new();
        work(&proxy, &mut tokens, 20).await;
        for node in dead {
            cluster.nodes[node].start_again();
        }
        voting(&proxy, 5).await;
        work(&proxy, &mut tokens, 20).await;
        assert!(tokens.values().all(|token| *token > 1_600_000_000_000_000), "{tokens:?}");
    }
}

#[tokio::test]
async fn any_two_of_five_may_die_under_load() {
    let mut cluster = fresh(5);
    let proxies = [proxy_on(&cluster, &short("2s")).await, proxy_on(&cluster, &short("2s")).await];
    for proxy in &proxies {
        voting(proxy, 5).await;
    }
    assert_eq!(proxies[0].nodes().await.nodes.len(), 5, "there is no other server");
    let mut tokens = BTreeMap::new();
    work(&proxies[0], &mut tokens, 30).await;
    for (round, dying) in pairs().into_iter().enumerate() {
        work(&proxies[round % 2], &mut tokens, 5).await;
        dying.iter().for_each(|node| cluster.nodes[*node].kill());
        work(&proxies[(round + 1) % 2], &mut tokens, 10).await;
        // They come back with nothing, and count from where the others are.
        dying.iter().for_each(|node| cluster.nodes[*node].start_again());
        for proxy in &proxies {
            voting(proxy, 5).await;
        }
    }
    work(&proxies[0], &mut tokens, 30).await;
}

/// Both kinds at a time would hand out tokens of two sequences.
#[tokio::test]
async fn a_proxy_with_the_other_kind_of_counter_does_not_vote_and_says_how_to_change() {
    let cluster = fresh(3);
    let proxy = Proxy::start(&cluster, &short("3s")).await;
    voting(&proxy, 3).await;
    let before = token(&granted(&mut proxy.client().await, proto::AcquireRequest { ttl: seconds(2), ..want("a") }).await);
    let mut command = redlockd();
    command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--nodes-names", "n1,n2,n3"]);
    let refused: Ran = command.args(["--nodes-urls", &cluster.urls().join(",")]).args(QUORUM).output().unwrap().into();
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    says(&refused.stderr, &["foreign", "designated", "quorum"]);
    // As the message says: every proxy stopped, the markers deleted, and the time waited.
    drop(proxy);
    cluster.nodes.iter().for_each(|node| drop(node.cli(&["DEL", "redlockd:member"])));
    let proxy = proxy_on(&cluster, &short("3s")).await;
    voting(&proxy, 3).await;
    let after = token(&granted(&mut proxy.client().await, proto::AcquireRequest { ttl: seconds(2), ..want("a") }).await);
    assert!(after > before, "{after} after {before}");
}
