//! A real server: votes go through a [`Pipe`], and what it publishes comes by the Redis client, which only this file names.
//!
//! fred would like to reconnect and to send again. All of that is off: whoever listens has to know that something may have been
//! missed. So a client lives as long as its one connection.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig, TlsConnector, UnresponsiveConfig};
use fred::types::{Builder, ConnectHandle, Message, RespVersion, Value};
use fred::util::sha1_hash;
use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::sync::broadcast;
use tokio::task::{AbortHandle, JoinError};

use super::address::{Address, Transport};
use super::pipe::Pipe;
use super::script::Scripts;
use super::{Channel, Connection, Listener, Node, WireError};

/// Messages that nobody has read yet: whoever falls so far behind has lost some, and starts again. A connection of fred has
/// queues of that length for all that it could tell, and takes two megabytes for them.
const UNREAD_MESSAGES: usize = 4_096;

/// How long a peer may be gone at least before the system ends a connection; a call that is overdue ends it sooner.
const PEER_GONE: Duration = Duration::from_secs(5);

/// A Redis or Valkey server.
pub struct RedisNode {
    address: Address,
    tls: Option<ClientConfig>,
    connect_timeout: Duration,
    scripts: Arc<Scripts>,
}

impl RedisNode {
    /// `tls` is needed for `rediss://` only.
    pub fn new(address: &Address, tls: Option<ClientConfig>, connect_timeout: Duration) -> Self {
        let scripts = Arc::new(Scripts::hashed_by(sha1_hash));
        Self { address: address.clone(), tls, connect_timeout, scripts }
    }

    fn patience(&self) -> Duration {
        PEER_GONE.max(self.connect_timeout)
    }

    /// With RESP3 a connection that listens can be asked as well.
    fn config(&self) -> Config {
        let (server, encrypted) = match &self.address.transport {
            Transport::Tcp { host, port, tls } => (ServerConfig::new_centralized(host, *port), *tls),
            Transport::Unix { path } => (ServerConfig::Unix { path: path.clone() }, false),
        };
        Config {
            version: RespVersion::RESP3,
            fail_fast: true,
            server,
            username: self.address.username.clone(),
            password: self.address.password.as_ref().map(|password| password.reveal().to_owned()),
            database: Some(self.address.database).filter(|number| *number > 0),
            tls: self.tls.clone().filter(|_| encrypted).map(|tls| TlsConnector::from(tls).into()),
            ..Config::default()
        }
    }

    async fn open_listener(&self) -> Result<Box<dyn Listener>, WireError> {
        let mut connection = ConnectionConfig {
            connection_timeout: self.connect_timeout,
            internal_command_timeout: self.connect_timeout,
            max_command_attempts: 1,
            auto_client_setname: false,
            reconnect_on_auth_error: false,
            unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
            ..ConnectionConfig::default()
        };
        connection.tcp.nodelay = Some(true);
        connection.tcp.user_timeout = Some(self.patience());
        let client = Builder::from_config(self.config())
            .set_connection_config(connection)
            .set_performance_config(PerformanceConfig {
                default_command_timeout: Duration::ZERO,
                broadcast_channel_capacity: UNREAD_MESSAGES,
                ..Default::default()
            })
            .build()
            .map_err(|error| closed(&error))?;
        let task = client.connect();
        // Whoever loses patience with this future must not leave a task behind that connects later, for nobody.
        let end = EndOnDrop(task.abort_handle());
        client.wait_for_connect().await.map_err(|error| closed(&error))?;
        let messages = client.message_rx();
        Ok(Box::new(RedisListener { client, messages, task, _end: end }))
    }

    async fn open_pipe(&self) -> Result<Box<dyn Connection>, WireError> {
        Ok(Box::new(Pipe::open(&self.address, self.tls.as_ref(), self.patience(), self.scripts.clone()).await?))
    }
}

impl Node for RedisNode {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        Box::pin(self.open_pipe())
    }

    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(self.open_listener())
    }
}

/// Ends the task that owns the socket.
struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a connection ended.
fn end_of(task: Result<Result<(), Error>, JoinError>) -> Arc<str> {
    match task {
        Ok(Err(error)) => what(&error),
        Ok(Ok(())) => "closed by the server".into(),
        Err(error) => error.to_string().into(),
    }
}

struct RedisListener {
    client: Client,
    messages: broadcast::Receiver<Message>,
    task: ConnectHandle,
    _end: EndOnDrop,
}

fn names(channels: &[Channel]) -> Vec<String> {
    channels.iter().map(Channel::to_string).collect()
}

impl Listener for RedisListener {
    fn subscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        Box::pin(async {
            // fred does not wait for the server's word on a subscription; that on what is sent right behind it says the same, and
            // is the error if there is one.
            let (sent, answered) = tokio::join!(self.client.subscribe(names(channels)), self.client.ping::<Value>(None));
            sent.and(answered.map(drop)).map_err(|error| failed(&error))
        })
    }

    fn unsubscribe<'a>(&'a self, channels: &'a [Channel]) -> BoxFuture<'a, Result<(), WireError>> {
        Box::pin(async {
            let (sent, answered) = tokio::join!(self.client.unsubscribe(names(channels)), self.client.ping::<Value>(None));
            sent.and(answered.map(drop)).map_err(|error| failed(&error))
        })
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Arc<str>, WireError>> {
        Box::pin(async {
            tokio::select! {
                biased;
                message = self.messages.recv() => match message {
                    // What is no text is nobody's whom we know.
                    Ok(message) => Ok(message.value.as_string().unwrap_or_default().into()),
                    Err(lost) => Err(WireError::Closed(lost.to_string().into())),
                },
                ended = &mut self.task => Err(WireError::Closed(end_of(ended))),
            }
        })
    }
}

/// What fred's error says of the connection: an answer of the server leaves it standing.
fn failed(error: &Error) -> WireError {
    match error.kind() {
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Protocol | ErrorKind::Tls | ErrorKind::Parse => {
            closed(error)
        }
        _ => WireError::Server(what(error)),
    }
}

fn closed(error: &Error) -> WireError {
    WireError::Closed(what(error))
}

/// Kind and text, with the word `auth` where the server does not let us in.
fn what(error: &Error) -> Arc<str> {
    match error.kind() {
        ErrorKind::Auth => format!("auth: {}", error.details()).into(),
        _ => error.details().into(),
    }
}
