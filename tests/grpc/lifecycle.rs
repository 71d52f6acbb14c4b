//! Health, reflection, and the end of a proxy.

use std::collections::BTreeSet;

use futures::StreamExt;
use nix::sys::signal::Signal;
use redlockd::proto::{AcquireRequest, ReleaseOutcome};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::*;

const LOCK_SERVICE: &str = "redlock.v1.LockService";
const OPERATOR_SERVICE: &str = "redlock.v1.OperatorService";

async fn health(proxy: &Proxy, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(proxy.channel().await).check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn health_tells_alive_from_ready() {
    let mut cluster = Cluster::start_durable(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    assert_eq!(health(&proxy, "").await, ServingStatus::Serving);
    until("the lock service to be ready", || async {
        (health(&proxy, LOCK_SERVICE).await == ServingStatus::Serving).then_some(())
    })
    .await;

    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    until("the lock service to be unready", || async {
        (health(&proxy, LOCK_SERVICE).await == ServingStatus::NotServing).then_some(())
    })
    .await;
    assert_eq!(health(&proxy, "").await, ServingStatus::Serving, "a lost quorum does not end the proxy");
    assert_eq!(proxy.http_get("/livez").await.0, 200);
    assert_eq!(proxy.http_get("/readyz").await.0, 503);
    cluster.nodes[0].start_again();
    until("the lock service to be ready again", || async {
        (health(&proxy, LOCK_SERVICE).await == ServingStatus::Serving).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;

    let ask = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(proxy.channel().await);
    let answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.collect::<Vec<_>>().await.remove(0).unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("no list");
    };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in [LOCK_SERVICE, OPERATOR_SERVICE, "grpc.health.v1.Health"] {
        assert!(names.contains(service), "{service} is not in {names:?}");
    }

    let ask = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(LOCK_SERVICE.to_owned());
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let list = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(proxy.channel().await);
    let answers = client.server_reflection_info(futures::stream::iter([request, list])).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    use v1alpha::server_reflection_response::MessageResponse as Answer;
    assert!(matches!(&answers[0], Answer::FileDescriptorResponse(file) if !file.file_descriptor_proto.is_empty()));
    let Answer::ListServicesResponse(list) = &answers[1] else { panic!("no list") };
    let names: BTreeSet<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(LOCK_SERVICE) && names.contains(OPERATOR_SERVICE), "{names:?}");
}

#[tokio::test]
async fn a_shutdown_answers_who_waits_and_leaves_none_of_their_keys() {
    let cluster = Cluster::start(5);
    let mut proxy = Proxy::start_whole(&cluster, &[]).await;
    let other = Proxy::start_whole(&cluster, &[]).await;
    let mut client = other.client().await;
    let held = granted(&mut client, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;

    let mut health = HealthClient::new(proxy.channel().await);
    let mut states = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut client = proxy.client().await;
        waiting.spawn(async move { client.acquire(AcquireRequest { wait: seconds(600), ..want("orders/42") }).await });
    }
    until("the waiters", || async { (proxy.metric("redlock_waiters").await == 20.0).then_some(()) }).await;

    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    for answer in waiting.join_all().await {
        let status = answer.unwrap_err();
        unavailable(&status, &["shutting down", "another"]);
    }
    // A watch has no end of its own.
    drop((states, health));
    assert_eq!(proxy.process.ended().await.code(), Some(0));

    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
    cluster.no_key_left().await;
}

#[tokio::test]
async fn a_shutdown_ends_within_its_bound_whatever_clients_do() {
    let cluster = Cluster::start(3);
    let mut proxy = Proxy::start_whole(&cluster, &["--drain-timeout", "300ms"]).await;
    let mut health = HealthClient::new(proxy.channel().await);
    let mut states = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Neither the stream nor the connection ends by itself.
    assert_eq!(proxy.process.ended().await.code(), Some(0));
    drop(states);
}

#[tokio::test]
async fn a_shutdown_ends_only_when_every_release_has_reached_its_node() {
    let mut cluster = Cluster::start(3);
    for round in 0..5 {
        let mut proxy = Proxy::start_whole(&cluster, &["--threads", "4"]).await;
        // Without a token there is no grant: every key that an acquire sets has to be deleted again.
        cluster.fence.kill();
        until("the proxy to notice", || async { (proxy.http_get("/readyz").await.0 == 503).then_some(()) }).await;
        let mut calls = tokio::task::JoinSet::new();
        for caller in 0..32 {
            let mut client = proxy.client().await;
            calls.spawn(async move {
                let mut answered = 0;
                loop {
                    let request = AcquireRequest { ttl: seconds(240), ..want(&format!("{round}/{caller}/{answered}")) };
                    match client.acquire(request).await {
                        Err(status) if status.message().contains("token") => answered += 1,
                        Err(_) => return answered,
                        Ok(_) => panic!("a grant without a token"),
                    }
                }
            });
        }
        until("some acquires", || async { (proxy.metric("redlock_fencing_unavailable_total").await > 50.0).then_some(()) })
            .await;
        proxy.process.signal(Signal::SIGTERM);
        assert_eq!(proxy.process.ended().await.code(), Some(0));
        assert!(calls.join_all().await.iter().sum::<u32>() > 0);
        cluster.no_key_left().await;
        cluster.fence.start_again();
    }
}

#[tokio::test]
async fn a_signal_right_after_the_start_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let nobody = format!("redis://127.0.0.1:{}", free_port());
        let mut proxy = Proxy::start_unready(std::slice::from_ref(&nobody), &nobody, &[]).await;
        proxy.process.signal(signal);
        assert_eq!(proxy.process.ended().await.code(), Some(0));
    }
}

#[tokio::test]
async fn leases_survive_the_end_of_their_proxy() {
    let cluster = Cluster::start(3);
    let mut proxy = Proxy::start_whole(&cluster, &[]).await;
    let other = Proxy::start_whole(&cluster, &[]).await;
    let held = granted(&mut proxy.client().await, AcquireRequest { ttl: seconds(240), ..want("orders/42") }).await;
    proxy.process.signal(Signal::SIGINT);
    assert_eq!(proxy.process.ended().await.code(), Some(0));

    let mut client = other.client().await;
    contended(&mut client, want("orders/42")).await;
    assert!(is_held(&mut client, &held.lock_id).await);
    assert_eq!(release(&mut client, &held.lock_id).await, ReleaseOutcome::Released);
}
