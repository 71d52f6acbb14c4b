//! The only file that names the Redis client, and nothing but its calls.
//!
//! fred would like to reconnect, to send again and to time out for us. All of that is off: a reconnect would send what was
//! queued before anybody looked who is there now, a repeated `SET NX` reports its own success as "held", and a time-out
//! throws the late reply away. So a client lives as long as its one connection.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, ConfigInterface, EventInterface, LuaInterface, PubsubInterface};
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig, TlsConnector, UnresponsiveConfig};
use fred::types::{Builder, ConnectHandle, InfoKind, Key, Message, RespVersion, Value};
use fred::util::sha1_hash;
use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::sync::broadcast;
use tokio::task::{AbortHandle, JoinError};

use super::address::{Address, Transport};
use super::script::{self, Arg, Raw};
use super::{Channel, Connection, Listener, Node, Op, Probe, Replies, ScriptBy, Settings, WireError};

/// Messages that nobody has read yet: whoever falls so far behind has lost some, and starts again.
const UNREAD_MESSAGES: usize = 4_096;

/// The same where none come: fred has rooms of this size for several purposes.
const NO_MESSAGES: usize = 8;

/// A Redis or Valkey server.
pub struct RedisNode {
    config: Config,
    connect_timeout: Duration,
}

impl RedisNode {
    /// `tls` is needed for `rediss://` only.
    pub fn new(address: &Address, tls: Option<ClientConfig>, connect_timeout: Duration) -> Self {
        let (server, encrypted) = match &address.transport {
            Transport::Tcp { host, port, tls } => (ServerConfig::new_centralized(host, *port), *tls),
            Transport::Unix { path } => (ServerConfig::Unix { path: path.clone() }, false),
        };
        let config = Config {
            fail_fast: true,
            server,
            username: address.username.clone(),
            password: address.password.as_ref().map(|password| password.reveal().to_owned()),
            database: Some(address.database).filter(|number| *number > 0),
            tls: tls.filter(|_| encrypted).map(|tls| TlsConnector::from(tls).into()),
            ..Config::default()
        };
        Self { config, connect_timeout }
    }

    async fn open(
        &self,
        version: RespVersion,
        unread_messages: usize,
    ) -> Result<(Client, ConnectHandle, EndOnDrop), WireError> {
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
        // Ends a connection whose peer is gone for good; a call that is overdue ends it sooner.
        connection.tcp.user_timeout = Some(Duration::from_secs(5).max(self.connect_timeout));
        let client = Builder::from_config(Config { version, ..self.config.clone() })
            .set_connection_config(connection)
            .set_performance_config(PerformanceConfig {
                default_command_timeout: Duration::ZERO,
                broadcast_channel_capacity: unread_messages,
                ..Default::default()
            })
            .build()
            .map_err(|error| closed(&error))?;
        let task = client.connect();
        // Whoever loses patience with this future must not leave a task behind that connects later, for nobody.
        let end = EndOnDrop(task.abort_handle());
        client.wait_for_connect().await.map_err(|error| closed(&error))?;
        Ok((client, task, end))
    }

    async fn open_connection(&self) -> Result<Box<dyn Connection>, WireError> {
        let (client, task, end) = self.open(RespVersion::RESP2, NO_MESSAGES).await?;
        let (hash, run_id, task) = (sha1_hash(script::text()), OnceLock::new(), Mutex::new(Some(task)));
        Ok(Box::new(RedisConnection { client, hash, run_id, task, _end: end }))
    }

    async fn open_listener(&self) -> Result<Box<dyn Listener>, WireError> {
        // With RESP3 a connection that listens can be asked as well.
        let (client, task, end) = self.open(RespVersion::RESP3, UNREAD_MESSAGES).await?;
        let messages = client.message_rx();
        Ok(Box::new(RedisListener { client, messages, task, _end: end }))
    }
}

impl Node for RedisNode {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, WireError>> {
        Box::pin(self.open_connection())
    }

    fn listen(&self) -> BoxFuture<'_, Result<Box<dyn Listener>, WireError>> {
        Box::pin(self.open_listener())
    }
}

struct RedisConnection {
    client: Client,
    hash: String,
    /// Of the process at the other end, once it was probed.
    run_id: OnceLock<Arc<str>>,
    task: Mutex<Option<ConnectHandle>>,
    _end: EndOnDrop,
}

/// Ends the task that owns the socket.
struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RedisConnection {
    async fn run(&self, batch: &[Op], by: ScriptBy) -> Result<Replies, WireError> {
        let keys: Vec<Key> = script::keys(batch).map(Key::from).collect();
        let run_id = self.run_id.get().map_or("", |run_id| &**run_id);
        let args: Vec<Value> = script::encode(run_id, batch).into_iter().map(value).collect();
        let reply: Value = match by {
            ScriptBy::Hash => self.client.evalsha(self.hash.as_str(), keys, args).await,
            ScriptBy::Text => self.client.eval(script::text(), keys, args).await,
        }
        .map_err(|error| failed(&error))?;
        let Value::Array(entries) = reply else {
            return Err(WireError::Server("the batch script's reply is no list".into()));
        };
        script::decode(batch, entries.into_iter().map(raw).collect()).map_err(WireError::Server)
    }

    /// What it may not tell us is not known.
    async fn settings(&self) -> Settings {
        let get = async |setting: &str| {
            let answer = self.client.config_get::<Vec<String>, _>(setting).await.ok()?;
            answer.into_iter().nth(1).map(Arc::from)
        };
        let (eviction, append_only, fsync, no_fsync_on_rewrite) =
            tokio::join!(get("maxmemory-policy"), get("appendonly"), get("appendfsync"), get("no-appendfsync-on-rewrite"));
        Settings { eviction, append_only, fsync, no_fsync_on_rewrite }
    }

    async fn ask(&self) -> Result<Probe, WireError> {
        let info: String = self.client.info(None::<InfoKind>).await.map_err(|error| failed(&error))?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let need = |name: &str| {
            field(name).ok_or_else(|| WireError::Closed(format!("its INFO has no `{name}`; is it a Redis server?").into()))
        };
        let version = match field("valkey_version") {
            Some(version) => format!("valkey {version}"),
            None => format!("redis {}", need("redis_version")?),
        };
        let run_id: Arc<str> = need("run_id")?.into();
        // A connection has one process at its other end: what it was at first it stays.
        let run_id = self.run_id.get_or_init(|| run_id).clone();
        Ok(Probe {
            run_id,
            version: version.into(),
            uptime: Duration::from_secs(need("uptime_in_seconds")?.parse().unwrap_or_default()),
            role: need("role")?.into(),
            cluster: field("cluster_enabled") == Some("1"),
            loading: field("loading") == Some("1"),
            settings: self.settings().await,
        })
    }
}

impl Connection for RedisConnection {
    fn probe(&self) -> BoxFuture<'_, Result<Probe, WireError>> {
        Box::pin(self.ask())
    }

    fn call<'a>(&'a self, batch: &'a [Op], by: ScriptBy) -> BoxFuture<'a, Result<Replies, WireError>> {
        Box::pin(self.run(batch, by))
    }

    fn closed(&self) -> BoxFuture<'static, Arc<str>> {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            match task {
                Some(task) => end_of(task.await),
                None => std::future::pending().await,
            }
        })
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

fn value(arg: Arg<'_>) -> Value {
    match arg {
        Arg::Text(text) => Value::from(text),
        Arg::Number(number) => Value::from(number.to_string()),
    }
}

fn raw(value: Value) -> Raw {
    match value {
        Value::Integer(number) => Raw::Integer(number),
        Value::Boolean(yes) => Raw::Integer(yes.into()),
        Value::String(text) => Raw::Bytes(text.as_bytes().into()),
        Value::Bytes(bytes) => Raw::Bytes(bytes.as_ref().into()),
        Value::Array(entries) => Raw::List(entries.into_iter().map(raw).collect()),
        Value::Null | Value::Queued | Value::Map(_) | Value::Double(_) => Raw::Nil,
    }
}

/// What fred's error says of the connection: an answer of the server leaves it standing.
fn failed(error: &Error) -> WireError {
    if error.details().starts_with("NOSCRIPT") {
        return WireError::NoScript;
    }
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
