//! What is out of its bounds is refused by name, value and bound, and leaves nothing behind.

use redlockd::proto;
use redlockd::proto::AcquireRequest;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::*;

/// The refusal names one field, and says what its description and the message have to say.
#[track_caller]
fn refused(status: &Status, field: &str, facts: &[&str]) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let violations = status.get_details_bad_request().expect("google.rpc.BadRequest").field_violations;
    let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field], "{status:?}");
    says(&violations[0].description, facts);
    says(status.message(), &[&[field], facts].concat());
}

/// What a request for `name` looks like after `change`.
fn changed(change: impl FnOnce(&mut AcquireRequest)) -> AcquireRequest {
    let mut request = want("bad");
    change(&mut request);
    request
}

fn everything_on(cluster: &Cluster) -> Vec<String> {
    let keys = |node: &Redis| node.cli(&["KEYS", "*"]).lines().filter(|key| !key.starts_with("redlockd:")).collect::<String>();
    cluster.nodes.iter().map(keys).collect()
}

#[tokio::test]
async fn acquire_refuses_by_field_value_and_bound() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &["--limits-max-ttl", "1m"]).await;
    let mut client = proxy.client().await;
    let (long_name, long_owner) = ("n".repeat(513), "o".repeat(129));
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let uuid = bytes(36);

    let cases: Vec<(AcquireRequest, &str, &[&str])> = vec![
        (changed(|r| r.name = String::new()), "name", &["empty"]),
        (changed(|r| r.name = long_name), "name", &["513", "512"]),
        (changed(|r| r.name = "a\nb".to_owned()), "name", &["\\n", "control"]),
        (changed(|r| r.name = "redlockd:member".to_owned()), "name", &["redlockd:member", "reserved"]),
        (changed(|r| r.ttl = seconds(0)), "ttl", &["0", "10 ms", "1m"]),
        (changed(|r| r.ttl = millis(9)), "ttl", &["9ms", "10 ms", "1m"]),
        (changed(|r| r.ttl = millis(60_001)), "ttl", &["60.001s", "10 ms", "1m", "max_ttl"]),
        (changed(|r| r.ttl = negative), "ttl", &["-1"]),
        (changed(|r| r.wait = seconds(3_601)), "wait", &["3601s", "1h"]),
        (changed(|r| r.wait = negative), "wait", &["-1"]),
        (changed(|r| r.owner = long_owner), "owner", &["129", "128"]),
        (changed(|r| r.owner = "ann;bob".to_owned()), "owner", &["ann;bob", "';'"]),
        (changed(|r| r.owner = "ann\u{7}".to_owned()), "owner", &["\\u{7}", "control"]),
        (changed(|r| r.mode = 7), "mode", &["7", "LOCK_MODE_EXCLUSIVE"]),
        (changed(|r| r.token = 9), "token", &["9", "TOKEN_REQUIREMENT_REQUIRED"]),
        (changed(|r| r.request_id = bytes(15)), "request_id", &["15", "16"]),
        (changed(|r| r.request_id = bytes(65)), "request_id", &["65", "64"]),
        (changed(|r| r.attempt = 1), "attempt", &["1", "request_id"]),
        (changed(|r| (r.request_id, r.attempt) = (uuid, 1 << 31)), "attempt", &["2147483648", "2147483647"]),
        (changed(|r| r.min_validity = seconds(0)), "min_validity", &["0", "1 ms"]),
        (changed(|r| r.min_validity = millis(10_001)), "min_validity", &["10.001s", "10000 ms"]),
        (changed(|r| r.min_validity = negative), "min_validity", &["-1"]),
    ];
    for (request, field, facts) in cases {
        refused(&acquire_error(&mut client, request).await, field, facts);
    }
    proxy.idle().await;
    assert_eq!(everything_on(&cluster), ["", "", ""], "a refused request left something on a node");
}

/// As many random bytes as anybody wants to see.
fn bytes(count: u8) -> prost::bytes::Bytes {
    (0..count).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn what_is_just_within_the_bounds_is_granted() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &["--limits-max-ttl", "1m"]).await;
    let mut client = proxy.client().await;
    let requests = [
        AcquireRequest { name: "n".repeat(512), ..want("") },
        AcquireRequest { owner: "o".repeat(128), ..want("long owner") },
        AcquireRequest { owner: String::new(), ..want("no owner") },
        AcquireRequest { ttl: seconds(60), ..want("longest") },
        AcquireRequest { ttl: None, ..want("default ttl") },
        AcquireRequest { wait: seconds(3_600), ..want("longest wait") },
        AcquireRequest { request_id: bytes(16), ..want("shortest request id") },
        AcquireRequest { request_id: bytes(64), attempt: (1 << 31) - 1, ..want("highest attempt") },
        AcquireRequest { min_validity: millis(1), ..want("least validity") },
    ];
    for request in requests {
        granted(&mut client, request).await;
    }
}

#[tokio::test]
async fn a_bad_lock_id_is_refused_without_being_shown_and_changes_nothing() {
    let cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(120), ..want("kept") }).await;
    until("the lock on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3).then_some(()) }).await;
    let before: Vec<String> = cluster.nodes.iter().map(|node| node.value("kept")).collect();

    let good = held.lock_id;
    let cut = good[..good.len() - 7].to_owned();
    let mut garbled = good.clone();
    garbled.replace_range(20..21, if &good[20..21] == "A" { "B" } else { "A" });
    let other_version = good.replacen("rl1_", "rl2_", 1);
    let cases: [(&str, &[&str]); 5] = [
        ("", &["empty", "Acquire"]),
        ("orders/42", &["rl1_"]),
        (&cut, &["cut or changed"]),
        (&garbled, &["cut or changed"]),
        (&other_version, &["format 2", "format 1"]),
    ];
    for (lock_id, facts) in cases {
        let release = client.release(proto::ReleaseRequest { lock_id: lock_id.to_owned() }).await.map(drop);
        let renew = client.renew(proto::RenewRequest { lock_id: lock_id.to_owned(), ttl: seconds(10) }).await.map(drop);
        let check = client.check(proto::CheckRequest { lock_id: lock_id.to_owned() }).await.map(drop);
        for status in [release, renew, check].map(Result::unwrap_err) {
            refused(&status, "lock_id", facts);
            // A lock id is a secret, and a garbled one is nearly it.
            assert!(lock_id.len() < 10 || !status.message().contains(&lock_id[4..30]), "{}", status.message());
        }
    }
    proxy.idle().await;
    let after: Vec<String> = cluster.nodes.iter().map(|node| node.value("kept")).collect();
    assert_eq!(after, before);
    assert!(is_held(&mut client, &good).await);
}

#[tokio::test]
async fn renew_and_get_refuse_by_field_value_and_bound() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let mut client = proxy.client().await;
    let held = granted(&mut client, want("kept")).await;

    for (ttl, facts) in [
        (millis(0), ["0", "10 ms"]),
        (millis(9), ["9ms", "10 ms"]),
        (seconds(301), ["301s", "5m"]),
        (Some(prost_types::Duration { seconds: 0, nanos: -5 }), ["-5", "0 or more"]),
    ] {
        let request = proto::RenewRequest { lock_id: held.lock_id.clone(), ttl };
        refused(&client.renew(request).await.unwrap_err(), "ttl", &facts);
    }
    let long = "n".repeat(513);
    let cases: [(&str, &[&str]); 3] = [("", &["empty"]), (&long, &["513", "512"]), ("redlockd:x", &["redlockd:x"])];
    for (name, facts) in cases {
        let status = client.get(proto::GetRequest { name: name.to_owned() }).await.unwrap_err();
        refused(&status, "name", facts);
    }
    assert!(is_held(&mut client, &held.lock_id).await);
}
