//! Ways to reach a node: TLS, ACL users, passwords, Unix sockets, databases.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redlockd::proto::{NodeState, ReleaseOutcome, WatchEventKind};
use support::*;

/// What the README tells operators to allow, and nothing more.
const LOCK_ACL: [&str; 22] = [
    "on",
    ">hush",
    "resetkeys",
    "~lock:*",
    "~redlockd:*",
    "-@all",
    "+ping",
    "+info",
    "+eval",
    "+evalsha",
    "+set",
    "+get",
    "+mget",
    "+del",
    "+pttl",
    "+pexpire",
    "&redlockd:*",
    "+publish",
    "+subscribe",
    "+unsubscribe",
    "+pubsub|numsub",
    "+scan",
];
const FENCE_ACL: [&str; 13] = [
    "on",
    ">hush",
    "resetkeys",
    "~redlockd:*",
    "-@all",
    "+ping",
    "+info",
    "+eval",
    "+evalsha",
    "+get",
    "+set",
    "+exists",
    "+incrby",
];

/// Takes a lock, renews it, lets another node repair it, looks at it, lists and releases it: every operation there is.
async fn everything_works(proxy: &Proxy) {
    let mut client = proxy.client().await;
    let first = granted(&mut client, want("a")).await;
    contended(&mut client, want("a")).await;
    let lock_id = first.lock_id.clone();
    let renewal = redlockd::proto::RenewRequest { lock_id: lock_id.clone(), ttl: seconds(20) };
    let renewed = client.renew(renewal).await.unwrap().into_inner().outcome.unwrap();
    assert!(matches!(renewed, redlockd::proto::renew_response::Outcome::Renewed(_)));
    let held = client.get(redlockd::proto::GetRequest { name: "a".to_owned() }).await.unwrap().into_inner();
    assert!(matches!(held.state, Some(redlockd::proto::get_response::State::Held(_))), "{held:?}");
    let listed = client.list(redlockd::proto::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.locks.iter().map(|lock| lock.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(release(&mut client, &lock_id).await, ReleaseOutcome::Released);
    let second = granted(&mut client, want("a")).await;
    assert!(token(&second) > token(&first));
    let mut events = client.watch(redlockd::proto::WatchRequest::default()).await.unwrap().into_inner();
    let mut event = async || events.message().await.unwrap().unwrap().kind();
    while event().await != WatchEventKind::Complete {}
    let waiter = tokio::spawn({
        let mut client = client.clone();
        async move { granted(&mut client, redlockd::proto::AcquireRequest { wait: seconds(60), ..want("a") }).await }
    });
    until("every node to be listened to", || async {
        let nodes = proxy.nodes().await.nodes.len() - 1;
        (proxy.metric_sum("redlock_node_listening", "").await == nodes as f64).then_some(())
    })
    .await;
    assert_eq!(release(&mut client, &second.lock_id).await, ReleaseOutcome::Released);
    waiter.await.unwrap();
    // It may have been asking when the lock was released.
    while !matches!(event().await, WatchEventKind::HandedOver | WatchEventKind::Granted) {}
    assert_eq!(proxy.metric_sum("redlock_node_errors_total", "kind=\"not_published\"").await, 0.0);
}

#[tokio::test]
async fn an_acl_user_with_what_the_readme_names_is_enough() {
    let cluster = Cluster::start(3);
    for node in &cluster.nodes {
        node.cli(&[&["ACL", "SETUSER", "proxy"], LOCK_ACL.as_slice(), &["+time"]].concat());
    }
    cluster.fence.cli(&[&["ACL", "SETUSER", "proxy"], FENCE_ACL.as_slice(), &["+time"]].concat());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| format!("redis://proxy:hush@{}", node.address())).collect();
    let fence = format!("redis://proxy:hush@{}", cluster.fence.address());
    let proxy = Proxy::start_unready(&urls, &fence, &[]).await;
    proxy.ready().await;
    everything_works(&proxy).await;
    assert!(!proxy.log().contains("hush"), "{}", proxy.log());
    assert!(proxy.nodes().await.nodes.iter().all(|node| !node.node.contains("hush") && node.state() == NodeState::Up));
}

#[tokio::test]
async fn a_missing_permission_is_named_with_its_node_and_is_no_refusal() {
    let cluster = Cluster::start(3);
    for node in &cluster.nodes[..2] {
        node.cli(&["ACL", "SETUSER", "default", "-set"]);
    }
    let proxy = Proxy::start(&cluster, &[]).await;
    let status = proxy.client().await.acquire(want("a")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    for node in &cluster.nodes[..2] {
        let line = status.message().lines().find(|line| line.contains(&node.address())).unwrap();
        assert!(line.contains("error from the server") && line.contains("'set' command"), "{line}");
    }
    cluster.no_key_left().await;
}

#[tokio::test]
async fn passwords_come_from_a_file_or_the_environment_and_a_wrong_one_is_named() {
    let options = ["--requirepass", "hush"];
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start_with_client(&options, &["-a", "hush"])).collect();
    let fence = Redis::start_with_client(&options, &["-a", "hush"]);
    let urls: Vec<String> = nodes.iter().map(Redis::url).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hush\n").unwrap();
    let path = file.path().to_str().unwrap();
    let flags = ["--nodes-password-file", path, "--fencing-password-file", path];
    let proxy = Proxy::start_unready(&urls, &fence.url(), &flags).await;
    proxy.ready().await;
    everything_works(&proxy).await;

    std::fs::write(file.path(), "wrong\n").unwrap();
    let proxy = Proxy::start_unready(&urls, &fence.url(), &flags).await;
    let status = until("the nodes to refuse the password", || async {
        let status = proxy.client().await.acquire(want("a")).await.unwrap_err();
        status.message().contains("auth").then_some(status)
    })
    .await;
    assert_eq!(status.code(), tonic::Code::Unavailable);
    for node in &nodes {
        let line = status.message().lines().find(|line| line.contains(&node.address())).unwrap();
        assert!(line.contains("auth") && !line.contains("wrong\n"), "{line}");
    }
}

#[tokio::test]
async fn unix_sockets_and_databases() {
    let nodes: Vec<Redis> = (0..3).map(|_| Redis::start(&["--unixsocket", "s", "--unixsocketperm", "700"])).collect();
    let fence = Redis::start(&[]);
    let urls: Vec<String> =
        nodes.iter().map(|node| format!("redis+unix://{}?db=3", node.directory().join("s").display())).collect();
    let proxy = Proxy::start_unready(&urls, &format!("{}/2", fence.url()), &[]).await;
    proxy.ready().await;
    everything_works(&proxy).await;
    let held = nodes.iter().filter(|node| node.cli(&["-n", "3", "KEYS", "lock:*"]) == "lock:a").count();
    assert!(held >= 2, "the lock is in database 3 of {held} nodes");
    assert_eq!(fence.cli(&["-n", "2", "KEYS", "*"]), "redlockd:fence:counter");
}

/// A CA, and a certificate for 127.0.0.1 that it has signed, as files.
struct Certificates {
    _directory: tempfile::TempDir,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "the CA of this test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key_pair = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key_pair, &ca).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Self {
            ca: file("ca.pem", ca.pem()),
            cert: file("cert.pem", cert.pem()),
            key: file("key.pem", key_pair.serialize_pem()),
            _directory: directory,
        }
    }

    fn server(&self, clients: &str) -> Redis {
        let [ca, cert, key] = [&self.ca, &self.cert, &self.key].map(|path| path.to_str().unwrap());
        let options = ["--port", "0", "--tls-port", "{port}", "--tls-cert-file", cert, "--tls-key-file", key];
        let options = [options.as_slice(), &["--tls-ca-cert-file", ca, "--tls-auth-clients", clients]].concat();
        Redis::start_with_client(&options, &["--tls", "--cacert", ca, "--cert", cert, "--key", key])
    }
}

#[tokio::test]
async fn tls_with_a_ca_of_our_own_and_a_certificate_of_the_client() {
    let files = Certificates::new();
    // The last one asks for the client's certificate.
    let servers: Vec<Redis> = ["no", "no", "yes"].map(|clients| files.server(clients)).into();
    let fence = files.server("yes");
    let tls_url = |server: &Redis| format!("rediss://{}", server.address());
    let urls: Vec<String> = servers.iter().map(tls_url).collect();
    let [ca, cert, key] = [&files.ca, &files.cert, &files.key].map(|path| path.to_str().unwrap());
    let flags = ["--nodes-tls-ca-file", ca, "--nodes-tls-cert-file", cert, "--nodes-tls-key-file", key];
    let proxy = Proxy::start_unready(&urls, &tls_url(&fence), &flags).await;
    proxy.ready().await;
    everything_works(&proxy).await;
    assert_eq!(proxy.nodes().await.voting, 3);

    // Without the CA nobody is trusted, and the node says why.
    let proxy = Proxy::start_unready(&urls, &tls_url(&fence), &[]).await;
    let detail = until("the nodes to be refused", || async {
        let nodes = proxy.nodes().await.nodes;
        let details: Vec<String> = nodes.into_iter().map(|node| node.detail).collect();
        details.iter().all(|detail| detail.to_lowercase().contains("certificate")).then_some(details)
    })
    .await;
    assert_eq!(detail.len(), 4);
}
