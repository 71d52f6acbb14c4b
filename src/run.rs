//! One proxy, from its configuration to its end. Owns neither ports nor signals: listeners and the end come from outside.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::admin;
use crate::config::Config;
use crate::coordinator::buckets::Buckets;
use crate::coordinator::ceiling::Ceilings;
use crate::coordinator::fence::Fence;
use crate::coordinator::observer::NodeObserver;
use crate::coordinator::{Coordinator, Counter, Settings};
use crate::grpc::routes::Services;
use crate::grpc::server;
use crate::grpc::service::Service;
use crate::metrics::{Metrics, NodeMetrics, Registry};
use crate::node::address::Address;
use crate::node::env::{Env, SystemEnv};
use crate::node::link::{Link, Timing};
use crate::node::redis::RedisNode;
use crate::node::roster::{Roster, Seat};
use crate::proto;
use crate::proto::lock_service_server::LockServiceServer;
use crate::proto::operator_service_server::OperatorServiceServer;

/// How long answers may take to leave after the last request has been served.
const LINGER: Duration = Duration::from_millis(500);

/// How often health and histograms are brought up to date.
const HOUSEKEEPING: Duration = Duration::from_millis(250);

/// A proxy's failure to start.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// Serves until `shutdown` is cancelled, then drains within the configured time.
pub async fn run(config: Config, grpc: TcpListener, http: TcpListener, shutdown: CancellationToken) -> Result<(), StartError> {
    let registry = Arc::new(Registry::new()?);
    let mut background = JoinSet::new();
    let coordinator = start(&config, &registry, &mut background)?;

    let router = admin::router(coordinator.clone(), registry.clone());
    background.spawn(async move {
        if let Err(error) = axum::serve(http, router).await {
            warn!(%error, "the metrics listener failed");
        }
    });
    let (health, health_service) = tonic_health::server::health_reporter();
    background.spawn(keep_house(coordinator.clone(), registry, health.clone()));

    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let service = Service::new(coordinator.clone(), config.limits.ttl);
    let others = Routes::new(OperatorServiceServer::new(service.clone()))
        .add_service(health_service)
        .add_service(reflection(tonic_reflection::server::Builder::configure()).build_v1()?)
        .add_service(reflection(tonic_reflection::server::Builder::configure()).build_v1alpha()?);
    let ended = CancellationToken::new();
    let mut server = tokio::spawn(server::serve(grpc, Services::new(service, others), ended.clone()));
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = shutdown.cancelled() => {}
    }
    drain(&coordinator, &health, &ended, server, config.drain_timeout).await;
    Ok(())
}

/// Links to all servers, and the coordinator over them: a proxy without its listeners, for whoever measures what these cost.
pub fn start(config: &Config, registry: &Registry, background: &mut JoinSet<()>) -> Result<Arc<Coordinator>, StartError> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    let tls = config.tls()?;

    let labels: Vec<Arc<str>> = config.nodes.addresses.iter().map(|address| address.label().into()).collect();
    let fence_label = config.fencing.address.as_ref().map(|address| Arc::from(address.label()));
    let metrics: Arc<Metrics> = Arc::new(registry.metrics(&labels, fence_label.as_ref()));

    let link = |index, address: &Address, timeout, events: NodeMetrics, seat: Option<Seat>| {
        let timing =
            Timing { look: config.nodes.probe_interval, ..Timing::new(timeout, config.limits.ttl.longest.as_duration()) };
        let node = Box::new(RedisNode::new(address, tls.clone(), timing.connect));
        let observer = Box::new(NodeObserver::new(events));
        Arc::new(Link::new(index, address.label().into(), node, timing, env.clone(), observer, seat))
    };
    let addresses = config.nodes.addresses.iter().enumerate();
    let roster = Roster::new(config.charter(), config.nodes.quorum, env.now());
    let links: Vec<Arc<Link>> = addresses
        .map(|(i, address)| link(i, address, config.nodes.timeout, metrics.node(i), Some(Seat::new(&roster, i))))
        .collect();
    let settings = Settings {
        quorum: config.nodes.quorum,
        key_prefix: config.nodes.key_prefix.clone(),
        drift: config.nodes.drift,
        max_inflight: config.limits.max_inflight,
        waiters: config.limits.waiters,
        handover_limit: config.limits.handover_limit,
    };
    let counter = match &config.fencing.address {
        // It may live on a lock node's server: it votes on nothing.
        Some(address) => {
            // There is a label where there is an address.
            let events = metrics.fence().expect("the handles of the counter's server");
            let fence = link(0, address, config.fencing.timeout, events, None);
            spawn_link(background, &fence);
            let longest_ttl = config.limits.ttl.longest.as_duration();
            let ceilings = Ceilings::new(links.clone(), config.nodes.quorum, env.clone(), longest_ttl);
            let fence = Fence::new(fence, ceilings, roster, env.clone(), metrics.clone());
            background.spawn(fence.clone().keep(config.nodes.bootstrap));
            Counter::Designated(fence)
        }
        None => {
            roster.on_counter(true);
            let buckets = Buckets::new(links.clone(), config.nodes.quorum, roster, env.clone());
            background.spawn(buckets.keep());
            Counter::Quorum
        }
    };
    links.iter().for_each(|link| spawn_link(background, link));
    let coordinator = Coordinator::new(settings, links, counter, env, metrics);
    (0..coordinator.quorum().nodes()).for_each(|node| drop(background.spawn(coordinator.clone().hear(node))));
    Ok(coordinator)
}

fn spawn_link(background: &mut JoinSet<()>, link: &Arc<Link>) {
    let link = link.clone();
    background.spawn(async move { link.run().await });
}

/// Keeps the health service true and the histograms small.
async fn keep_house(coordinator: Arc<Coordinator>, registry: Arc<Registry>, health: HealthReporter) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING);
    loop {
        ticks.tick().await;
        registry.upkeep();
        coordinator.forget_expired();
        match coordinator.ready() {
            Ok(()) => health.set_serving::<LockServiceServer<Service>>().await,
            Err(_) => health.set_not_serving::<LockServiceServer<Service>>().await,
        }
    }
}

/// Health says so first; then nothing is granted any more; then what is under way ends, within the bound.
async fn drain(
    coordinator: &Arc<Coordinator>,
    health: &HealthReporter,
    ended: &CancellationToken,
    server: tokio::task::JoinHandle<()>,
    bound: Duration,
) {
    info!(?bound, "shutting down");
    health.set_service_status("", ServingStatus::NotServing).await;
    health.set_not_serving::<LockServiceServer<Service>>().await;
    coordinator.drain();
    ended.cancel();
    let work = async {
        coordinator.drained().await;
        // Connections end by themselves, unless a stream that never ends (a health watch) keeps one open.
        let _ = tokio::time::timeout(LINGER, server).await;
    };
    if tokio::time::timeout(bound, work).await.is_err() {
        warn!("not everything ended in time; what is left ends with its TTL");
    } else {
        info!("drained");
    }
}
