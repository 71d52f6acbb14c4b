//! One session: a connection of its own to one proxy, and the stream on it.
//!
//! A session ends in one of two ways, and they must not be mistaken for each other: an orderly end releases all leases, a broken
//! connection none. So our side of the stream never ends by itself: either SessionClose was sent, or the socket is shut down
//! under it, whatever else still holds a part of the stream.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};

use super::reason;
use super::sends::Sends;
use crate::proto::lock_service_client::LockServiceClient;
use crate::proto::session_request::Message as Say;
use crate::proto::session_response::Message as Told;
use crate::proto::{ReleaseOutcome, ReleaseRequest, SessionOpen, SessionRequest, SessionResponse};

/// Messages on their way to the connection.
const UNSENT: usize = 64;

/// A proxy that does not answer a ping is gone: proxies allow one every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection's socket. Dropping it ends the connection at once, for both sides: nothing that was not sent is sent any more.
#[derive(Debug)]
struct Socket(std::net::TcpStream);

impl Drop for Socket {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// See the head of this file. Dropping it breaks the session.
#[derive(Debug)]
pub(super) struct Session {
    /// First: nothing else of the connection is to end before its socket does.
    _socket: Socket,
    channel: Channel,
    outbound: mpsc::Sender<SessionRequest>,
    inbound: Streaming<SessionResponse>,
}

type Reason = String;

impl Session {
    /// Opens a session at `proxy` within `patience`; its first message has the number `seq`.
    pub(super) async fn open(proxy: Endpoint, seq: u64, patience: Duration) -> Result<(Self, Sends), Reason> {
        let opened = timeout(patience, Self::try_open(proxy, seq)).await;
        opened.unwrap_or_else(|_| Err(format!("no answer within {patience:?}")))
    }

    async fn try_open(proxy: Endpoint, seq: u64) -> Result<(Self, Sends), Reason> {
        let (channel, socket) = connect(proxy).await?;
        let (outbound, mut unsent) = mpsc::channel(UNSENT);
        let mut sends = Sends::default();
        let message = Some(Say::Open(SessionOpen::default()));
        sends.on_send(seq, Instant::now());
        // There is room: it is the first.
        let _ = outbound.try_send(SessionRequest { seq, message });
        let requests = futures::stream::poll_fn(move |context| match unsent.poll_recv(context) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(message)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        });
        let response = LockServiceClient::new(channel.clone()).session(requests).await.map_err(|status| reason(&status))?;
        let mut session = Self { _socket: socket, channel, outbound, inbound: response.into_inner() };
        match session.next().await?.message {
            Some(Told::Opened(_)) => Ok((session, sends)),
            _ => Err("the proxy began a session with something else than SessionOpened".to_owned()),
        }
    }

    /// The next message of the proxy; the reason if the session has ended. Can be dropped without losing one.
    pub(super) async fn next(&mut self) -> Result<SessionResponse, Reason> {
        match self.inbound.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err("the proxy ended the session".to_owned()),
            Err(status) => Err(reason(&status)),
        }
    }

    /// Where messages go: each is to be made when there is room for it, because its time counts from then.
    pub(super) fn outbound(&self) -> mpsc::Sender<SessionRequest> {
        self.outbound.clone()
    }

    /// For single calls.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Says the last message and waits for the end of the stream.
    pub(super) async fn close(mut self, last: SessionRequest) {
        if self.outbound.send(last).await.is_ok() {
            while self.next().await.is_ok() {}
        }
    }
}

/// A connection that is made once: one that replaces it would carry a session that nobody knows of.
async fn connect(proxy: Endpoint) -> Result<(Channel, Socket), Reason> {
    let made = Arc::new(Mutex::new(None));
    let slot = made.clone();
    let connector = tower::service_fn(move |uri: Uri| {
        let slot = slot.clone();
        async move {
            let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
            stream.set_nodelay(true)?;
            let stream = stream.into_std()?;
            let socket = Socket(stream.try_clone()?);
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.is_some() {
                return Err(std::io::Error::other("the session has broken"));
            }
            *slot = Some(Some(socket));
            Ok(TokioIo::new(TcpStream::from_std(stream)?))
        }
    });
    let proxy = proxy.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(true);
    let channel = proxy.connect_with_connector(connector).await.map_err(|error| reason(&error))?;
    let socket = made.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Option::take);
    Ok((channel, socket.ok_or("no connection was made")?))
}

/// A release by a call of its own. `None`: neither outcome is proven.
pub(super) async fn release(channel: Channel, lock_id: String, patience: Duration) -> Option<ReleaseOutcome> {
    let call = async { LockServiceClient::new(channel).release(ReleaseRequest { lock_id }).await };
    let response = timeout(patience, call).await.ok()?.ok()?;
    Some(response.into_inner().outcome()).filter(|outcome| *outcome != ReleaseOutcome::Unspecified)
}
