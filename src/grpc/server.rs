//! Accepts connections, and serves what comes over them until it is told to end.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tracing::{debug, warn};

use super::routes::Services;

/// Finds clients whose machine is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Lock clients cancel waits all day; the default of 20 would end their connections.
const MAX_PENDING_RESETS: usize = 4_096;

/// After the system could not give us a connection: there may be no more files, and it would say so again at once.
const RETRY_ACCEPT: Duration = Duration::from_millis(100);

/// Serves until `ended` is cancelled, and then until all connections have ended; requests that are under way by then are served.
pub async fn serve(listener: TcpListener, services: Services, ended: CancellationToken) {
    let mut incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (connections, builder) = (GracefulShutdown::new(), builder());
    loop {
        let stream = tokio::select! {
            biased;
            () = ended.cancelled() => break,
            accepted = incoming.next() => match accepted {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => {
                    if !is_of_the_peer(&error) {
                        warn!(%error, "no connection can be accepted");
                        let _ = tokio::time::timeout(RETRY_ACCEPT, ended.cancelled()).await;
                    }
                    continue;
                }
                None => break,
            },
        };
        let connection = connections.watch(builder.serve_connection(TokioIo::new(stream), services.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended");
            }
        });
    }
    drop(incoming);
    connections.shutdown().await;
}

/// Whether it is the one connection that failed, and not ours to accept any.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | Interrupted | TimedOut | WouldBlock)
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        // What bounds requests is the coordinator.
        .max_concurrent_streams(None)
        // The other limit of this kind stays hyper's: 1,024 streams that break the protocol, and no cancelled ones among them.
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        // Nobody reads it in gRPC.
        .auto_date_header(false);
    builder
}
