//! File, environment and flags become one typed [`Config`]; the only place with defaults; reports every error at once.
//!
//! In two steps: [`Layers`] holds what people wrote and where, [`Layers::resolve`] turns it into values that can not be
//! wrong. A flag goes before a variable, a variable before the file, the file before the default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::engine::lease::{Ttl, TtlBounds};
use crate::engine::line::LineBounds;
use crate::engine::membership::{Charter, CounterKind};
use crate::engine::preflight::UNSAFE;
use crate::engine::quorum::{MAX_NODES, Quorum};
use crate::engine::validity::{DriftFactor, ceil_millis};
use crate::node::address::{Address, Password};
use crate::node::tls::{self, TlsError};

/// Everything that a proxy can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics, `/livez` and `/readyz` are served.
    pub metrics_listen: SocketAddr,
    /// Threads that serve.
    pub threads: usize,
    /// How long a shutdown waits for what is under way.
    pub drain_timeout: Duration,
    /// Findings of the preflight with which it starts all the same.
    pub allow_unsafe: Vec<String>,
    /// The lock nodes.
    pub nodes: Nodes,
    /// The designated counter.
    pub fencing: Fencing,
    /// Bounds.
    pub limits: Limits,
    /// What is logged.
    pub log: Log,
}

/// The lock nodes.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// Where they are.
    pub addresses: Vec<Address>,
    /// Of the configured number of them.
    pub quorum: Quorum,
    /// A call that takes longer counts as unanswered.
    pub timeout: Duration,
    /// Stands before every name.
    pub key_prefix: String,
    /// How differently clocks may run.
    pub drift: DriftFactor,
    /// What the nodes are called in their markers, if not by their addresses.
    pub names: Vec<Arc<str>>,
    /// People say that this cluster is new.
    pub bootstrap: bool,
    /// A node without traffic is looked at so often.
    pub probe_interval: Duration,
    /// For `rediss://`.
    pub tls: TlsFiles,
}

/// Where tokens come from.
#[derive(Clone, Debug)]
pub struct Fencing {
    /// Which kind of counter.
    pub counter: CounterKind,
    /// Where the designated one is; `None` with the other kind.
    pub address: Option<Address>,
    /// A request for tokens that takes longer counts as unanswered.
    pub timeout: Duration,
}

/// Files in PEM form; without a CA the system's are used.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Who signs the nodes' certificates.
    pub ca: Option<PathBuf>,
    /// Our own certificate, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Which TTLs a request may name.
    pub ttl: TtlBounds,
    /// Requests served at a time, those aside that wait for a lock.
    pub max_inflight: usize,
    /// How many may wait for a lock.
    pub waiters: LineBounds,
    /// So often in a row a lock is handed over within a line before waiters at other proxies get their turn.
    pub handover_limit: u32,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// In the form of `RUST_LOG`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Config {
    /// What this proxy takes the cluster for.
    pub fn charter(&self) -> Charter {
        Charter {
            nodes: self.nodes.names.clone(),
            counter: self.fencing.counter,
            max_ttl: self.limits.ttl.longest,
            drift: self.nodes.drift,
            bootstrap: self.nodes.bootstrap,
        }
    }

    /// How servers with `rediss://` URLs are spoken to; `None` if there are none.
    pub fn tls(&self) -> Result<Option<ClientConfig>, TlsError> {
        let files = &self.nodes.tls;
        let identity = files.cert.as_deref().zip(files.key.as_deref());
        let encrypted = self.nodes.addresses.iter().chain(&self.fencing.address).any(Address::is_encrypted);
        encrypted.then(|| tls::client_config(files.ca.as_deref(), identity)).transpose()
    }
}

/// One thing that can be configured.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `table.key` in the file.
    pub path: &'static str,
    /// In the form of a file's value; empty: none.
    default: &'static str,
    shape: Shape,
    /// For `--help` and the sample.
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Text,
    Number,
    List,
    /// Never on the command line, never shown.
    Secret,
}

const fn key(path: &'static str, default: &'static str, shape: Shape, help: &'static str) -> Key {
    Key { path, default, shape, help }
}

/// All of them, in the order of the sample.
pub const KEYS: &[Key] = &[
    key("listen", "127.0.0.1:50051", Shape::Text, "Address and port of the gRPC service; port 0 picks a free one"),
    key(
        "metrics_listen",
        "127.0.0.1:9464",
        Shape::Text,
        "Address and port of /metrics, /livez and /readyz; port 0 picks a free one",
    ),
    key("threads", "1", Shape::Number, "Threads that serve, 1 to 64. More proxies scale better than more threads"),
    key("drain_timeout", "10s", Shape::Text, "How long a shutdown waits for requests under way"),
    key(
        "allow_unsafe",
        "",
        Shape::List,
        "What the servers may be like although locks are not safe then: names of what `redlockd check` finds, such as eviction",
    ),
    key(
        "nodes.urls",
        "",
        Shape::List,
        "The independent Redis servers, an odd number of them: redis://, rediss:// or redis+unix:// URLs",
    ),
    key("nodes.timeout", "50ms", Shape::Text, "A call to a node that takes longer counts as unanswered, 1ms to 1m"),
    key(
        "nodes.probe_interval",
        "1s",
        Shape::Text,
        "A node without traffic is looked at so often, 10ms to 1h: its marker, its clock",
    ),
    key(
        "nodes.bootstrap",
        "wait",
        Shape::Text,
        "`now` says that the cluster is new: its nodes vote at once if all of them and the counter are empty. `wait`: like nodes \
         that lost their data, after limits.max_ttl",
    ),
    key(
        "nodes.names",
        "",
        Shape::List,
        "What the nodes are called, in the order of nodes.urls, where proxies reach them by different addresses; default: host:port",
    ),
    key("nodes.key_prefix", "lock:", Shape::Text, "Stands before every lock name on the nodes"),
    key(
        "nodes.drift_factor",
        "0.002",
        Shape::Number,
        "How much the clocks of nodes may run apart, 0 to 0.1; 0.002 is 2 ms a second",
    ),
    key("nodes.username", "", Shape::Text, "ACL user, for URLs that name none"),
    key("nodes.password", "", Shape::Secret, "Password, for URLs that hold none"),
    key("nodes.password_file", "", Shape::Text, "File with the password, for URLs that hold none"),
    key("nodes.tls_ca_file", "", Shape::Text, "PEM file with the CA of rediss:// servers; default: the system's CAs"),
    key("nodes.tls_cert_file", "", Shape::Text, "PEM file with our certificate, for rediss:// servers that ask for one"),
    key("nodes.tls_key_file", "", Shape::Text, "PEM file with the key of that certificate"),
    key(
        "fencing.counter",
        "designated",
        Shape::Text,
        "Where tokens come from: `designated`, a Redis server of its own; or `quorum`, the nodes themselves, without a single server that \
         all depends on",
    ),
    key("fencing.url", "", Shape::Text, "The Redis server that keeps the designated counter"),
    key("fencing.timeout", "100ms", Shape::Text, "A request for tokens that takes longer counts as unanswered, 1ms to 1m"),
    key("fencing.username", "", Shape::Text, "ACL user, if the URL names none"),
    key("fencing.password", "", Shape::Secret, "Password, if the URL holds none"),
    key("fencing.password_file", "", Shape::Text, "File with the password, if the URL holds none"),
    key("limits.default_ttl", "10s", Shape::Text, "The TTL of requests that name none"),
    key("limits.max_ttl", "5m", Shape::Text, "The longest TTL that a request may name, 10ms to 1h"),
    key(
        "limits.max_inflight",
        "10000",
        Shape::Number,
        "Requests served at a time, those that wait for a lock aside, 1 to 1000000; more are RESOURCE_EXHAUSTED",
    ),
    key(
        "limits.max_waiters_per_name",
        "10000",
        Shape::Number,
        "Callers in line for one lock, 1 to 1000000; more are RESOURCE_EXHAUSTED",
    ),
    key(
        "limits.max_waiters",
        "100000",
        Shape::Number,
        "Callers in line for all locks together, 1 to 1000000; more are RESOURCE_EXHAUSTED",
    ),
    key(
        "limits.handover_limit",
        "16",
        Shape::Number,
        "So often in a row a lock goes from hand to hand within a line, 0 to 10000, before waiters at other proxies get their turn",
    ),
    key("log.level", "info", Shape::Text, "error, warn, info, debug or trace; or filters as in RUST_LOG"),
    key("log.format", "text", Shape::Text, "text or json"),
];

impl Key {
    /// `--nodes-timeout`; none for secrets, because arguments show in `ps`.
    pub fn flag(&self) -> Option<String> {
        (self.shape != Shape::Secret).then(|| self.path.replace(['.', '_'], "-"))
    }

    /// `REDLOCKD_NODES_TIMEOUT`.
    pub fn variable(&self) -> String {
        format!("REDLOCKD_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// For `--help`: empty if there is none.
    pub fn default(&self) -> &'static str {
        self.default
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file.
    File(PathBuf),
    /// In this variable.
    Variable(String),
    /// In this flag.
    Flag(String),
    /// By `redlockd dev`.
    Dev,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Dev => f.write_str("redlockd dev"),
        }
    }
}

/// One thing that is wrong: which key, what it was set to and where, and what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What people wrote.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, (String, Origin)>,
    errors: Vec<ConfigError>,
}

impl Layers {
    /// Adds the file's keys. A layer added later goes before what was added earlier.
    pub fn add_file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.error(format!("{}: the file can not be read: {error}", path.display())),
        };
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return self.error(format!("{}: {}", path.display(), error.to_string().trim_end())),
        };
        self.add_table("", &table, path);
    }

    fn add_table(&mut self, prefix: &str, table: &toml::Table, file: &Path) {
        for (name, value) in table {
            let path = format!("{prefix}{name}");
            match value {
                toml::Value::Table(inner) if KEYS.iter().any(|key| key.path.starts_with(&format!("{path}."))) => {
                    self.add_table(&format!("{path}."), inner, file);
                }
                _ => self.add_toml(&path, value, file),
            }
        }
    }

    fn add_toml(&mut self, path: &str, value: &toml::Value, file: &Path) {
        let Some(key) = KEYS.iter().find(|key| key.path == path) else {
            return self.error(format!("{path} (file {}) is no known key; {}", file.display(), nearest(path)));
        };
        match plain(value) {
            Some(text) => self.set(key.path, text, Origin::File(file.to_owned())),
            None => self.error(format!(
                "{path} (file {}): a {} can not be its value; text, a number or a list of texts is expected",
                file.display(),
                value.type_str()
            )),
        }
    }

    /// Adds the variables that name keys; others are left alone.
    pub fn add_environment(&mut self, get: impl Fn(&str) -> Option<String>) {
        for key in KEYS {
            let variable = key.variable();
            if let Some(value) = get(&variable) {
                self.set(key.path, value, Origin::Variable(variable));
            }
        }
    }

    /// What a key is set to, as it was written.
    pub fn value(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(|(value, _)| value.as_str())
    }

    /// Sets a key that nobody wrote.
    pub fn set_default(&mut self, path: &'static str, value: String, origin: Origin) {
        self.values.entry(path).or_insert((value, origin));
    }

    /// Sets a key, over whatever it was.
    pub fn set(&mut self, path: &'static str, value: String, origin: Origin) {
        self.values.insert(path, (value, origin));
    }

    fn error(&mut self, text: String) {
        self.errors.push(ConfigError(text));
    }

    fn written(&self, key: &Key) -> (&str, Origin) {
        match self.values.get(key.path) {
            Some((value, origin)) => (value, origin.clone()),
            None => (key.default, Origin::Default),
        }
    }

    /// Every key with its value and where it came from, as a file that could be loaded; secrets are masked.
    pub fn print(&self) -> String {
        let mut out = String::new();
        let mut table = "";
        for key in KEYS {
            let name = match key.path.split_once('.') {
                Some((new_table, name)) => {
                    if new_table != table {
                        table = new_table;
                        out.push_str(&format!("\n[{table}]\n"));
                    }
                    name
                }
                None => key.path,
            };
            let (value, origin) = self.written(key);
            let unset = if value.is_empty() { "# " } else { "" };
            out.push_str(&format!("# {}\n{unset}{name} = {}  # {origin}\n", key.help, as_toml(key.shape, value)));
        }
        out
    }

    /// The typed configuration, or everything that is wrong with it.
    pub fn resolve(self) -> Result<Config, Vec<ConfigError>> {
        let mut reader = Reader { errors: self.errors.clone(), layers: &self };
        let config = reader.config();
        match config {
            Some(config) if reader.errors.is_empty() => Ok(config),
            _ => Err(reader.errors),
        }
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(entries) => {
            let texts: Option<Vec<&str>> = entries.iter().map(toml::Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn nearest(path: &str) -> String {
    let distance = |key: &&Key| strsim::damerau_levenshtein(key.path, path);
    match KEYS.iter().min_by_key(distance).filter(|key| distance(key) <= 1 + path.len() / 3) {
        Some(key) => format!("did you mean {}?", key.path),
        None => "`redlockd serve --print-config` lists the known ones".to_owned(),
    }
}

fn as_toml(shape: Shape, value: &str) -> String {
    match shape {
        Shape::Number if !value.is_empty() => value.to_owned(),
        Shape::List => {
            let entries: Vec<String> = split(value).map(|entry| toml::Value::from(mask(entry)).to_string()).collect();
            format!("[{}]", entries.join(", "))
        }
        Shape::Secret if !value.is_empty() => "\"***\"".to_owned(),
        _ => toml::Value::from(mask(value)).to_string(),
    }
}

/// Hides the password in whatever looks like a URL with one.
fn mask(text: &str) -> String {
    let masked = || {
        let (scheme, rest) = text.split_once("://")?;
        let (credentials, host) = rest.rsplit_once('@')?;
        let (user, _) = credentials.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    };
    masked().unwrap_or_else(|| text.to_owned())
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// Reads typed values, and goes on after an error.
struct Reader<'a> {
    layers: &'a Layers,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn config(&mut self) -> Option<Config> {
        let listen = self.socket("listen");
        let metrics_listen = self.socket("metrics_listen");
        let threads = self.number("threads", 1, 64);
        let drain_timeout = self.duration("drain_timeout", Duration::ZERO, Duration::from_secs(600));
        let allow_unsafe = self.allow_unsafe();
        let nodes = self.nodes();
        let fencing = self.fencing();
        let limits = self.limits();
        let log = self.log();
        Some(Config {
            listen: listen?,
            metrics_listen: metrics_listen?,
            threads: threads?,
            drain_timeout: drain_timeout?,
            allow_unsafe: allow_unsafe?,
            nodes: nodes?,
            fencing: fencing?,
            limits: limits?,
            log: log?,
        })
    }

    fn nodes(&mut self) -> Option<Nodes> {
        let addresses = self.addresses();
        let timeout = self.timeout("nodes.timeout");
        let key_prefix = self.key_prefix();
        let drift = self.drift();
        let bootstrap = self.bootstrap();
        let probe_interval = self.duration("nodes.probe_interval", Duration::from_millis(10), Duration::from_secs(3_600));
        let tls = TlsFiles {
            ca: self.path("nodes.tls_ca_file"),
            cert: self.path("nodes.tls_cert_file"),
            key: self.path("nodes.tls_key_file"),
        };
        if tls.cert.is_some() != tls.key.is_some() {
            let (given, missing) = if tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            self.wrong::<()>(
                &format!("nodes.tls_{given}_file"),
                &format!("goes together with nodes.tls_{missing}_file, which is not set"),
            );
        }
        let addresses = addresses?;
        let names = self.names(&addresses);
        Some(Nodes {
            quorum: Quorum::of(addresses.len())?,
            names: names?,
            bootstrap: bootstrap?,
            probe_interval: probe_interval?,
            addresses,
            timeout: timeout?,
            key_prefix: key_prefix?,
            drift: drift?,
            tls,
        })
    }

    fn addresses(&mut self) -> Option<Vec<Address>> {
        let (list, origin) = self.written("nodes.urls");
        let urls: Vec<String> = split(&list).map(str::to_owned).collect();
        if urls.is_empty() {
            return self.wrong(
                "nodes.urls",
                "is not set; name the independent Redis servers, such as redis://r1:6379,redis://r2:6379,redis://r3:6379",
            );
        }
        if urls.len() > MAX_NODES {
            return self.wrong("nodes.urls", &format!("names {} nodes; 1 to {MAX_NODES} are allowed", urls.len()));
        }
        let (username, password) = self.credentials("nodes");
        let mut addresses: Vec<Address> = Vec::new();
        let mut complete = true;
        for (index, url) in urls.iter().enumerate() {
            let wrong = match Address::parse(url) {
                Err(error) => error,
                Ok(address) => match addresses.iter().find(|known| known.label() == address.label()) {
                    Some(known) => format!(
                        "is the same server as {known}, which is also in the list; name each server once, or it votes twice"
                    ),
                    None => {
                        addresses.push(with_credentials(address, &username, &password));
                        continue;
                    }
                },
            };
            complete = false;
            self.errors.push(ConfigError(format!("nodes.urls[{index}] = {:?} ({origin}): {wrong}", mask(url))));
        }
        complete.then_some(addresses)
    }

    fn allow_unsafe(&mut self) -> Option<Vec<String>> {
        let (list, _) = self.written("allow_unsafe");
        let names: Vec<String> = split(&list).map(str::to_owned).collect();
        match names.iter().find(|name| !UNSAFE.contains(&name.as_str())) {
            Some(name) => self.wrong("allow_unsafe", &format!("{name:?} is none of {}", UNSAFE.join(", "))),
            None => Some(names),
        }
    }

    fn bootstrap(&mut self) -> Option<bool> {
        match self.written("nodes.bootstrap").0.as_str() {
            "now" => Some(true),
            "wait" => Some(false),
            _ => self.wrong("nodes.bootstrap", "expected wait or now"),
        }
    }

    fn names(&mut self, addresses: &[Address]) -> Option<Vec<Arc<str>>> {
        let (list, _) = self.written("nodes.names");
        let names: Vec<Arc<str>> = split(&list).map(Arc::from).collect();
        if names.is_empty() {
            return Some(addresses.iter().map(|address| address.label().into()).collect());
        }
        let different: std::collections::BTreeSet<&Arc<str>> = names.iter().collect();
        if names.len() != addresses.len() || different.len() != names.len() {
            let wanted = format!("expected {} different names, one for each of nodes.urls", addresses.len());
            return self.wrong("nodes.names", &wanted);
        }
        if let Some(name) = names.iter().find(|name| name.len() > 128 || name.chars().any(char::is_control)) {
            let wrong = format!("{name:?} is no name: expected at most 128 bytes without control characters");
            return self.wrong("nodes.names", &wrong);
        }
        Some(names)
    }

    fn fencing(&mut self) -> Option<Fencing> {
        let timeout = self.timeout("fencing.timeout");
        let (username, password) = self.credentials("fencing");
        let (kind, _) = self.written("fencing.counter");
        let Some(counter) = CounterKind::parse(&kind) else {
            return self.wrong("fencing.counter", "expected designated or quorum");
        };
        let (url, _) = self.written("fencing.url");
        if counter == CounterKind::Quorum {
            return match url.as_str() {
                "" => Some(Fencing { counter, address: None, timeout: timeout? }),
                _ => self
                    .wrong("fencing.url", "goes not together with fencing.counter = quorum, which needs no server of its own"),
            };
        }
        if url.is_empty() {
            return self.wrong(
                "fencing.url",
                "is not set; name the Redis server that keeps the fencing counter, such as redis://fence:6379; or set fencing.counter to quorum",
            );
        }
        match Address::parse(&url) {
            Ok(address) => {
                let address = Some(with_credentials(address, &username, &password));
                Some(Fencing { counter, address, timeout: timeout? })
            }
            Err(error) => self.wrong("fencing.url", &error),
        }
    }

    fn limits(&mut self) -> Option<Limits> {
        let max_ttl = self.ttl("limits.max_ttl", Ttl::LONGEST);
        let default_ttl = self.ttl("limits.default_ttl", max_ttl.unwrap_or(Ttl::LONGEST));
        let max_inflight = self.number("limits.max_inflight", 1, 1_000_000);
        let per_name = self.number("limits.max_waiters_per_name", 1, 1_000_000);
        let in_all = self.number("limits.max_waiters", 1, 1_000_000);
        let ttl = TtlBounds { default: default_ttl?, longest: max_ttl? };
        let handover_limit = self.number("limits.handover_limit", 0, 10_000);
        let waiters = LineBounds { per_name: per_name?, in_all: in_all? };
        // At most 10,000.
        Some(Limits { ttl, max_inflight: max_inflight?, waiters, handover_limit: handover_limit? as u32 })
    }

    fn log(&mut self) -> Option<Log> {
        let (level, _) = self.written("log.level");
        let level = match level.parse::<tracing_subscriber::filter::Targets>() {
            Ok(_) => Some(level),
            Err(_) => self.wrong("log.level", "expected error, warn, info, debug or trace, or filters as in RUST_LOG"),
        };
        let (format, _) = self.written("log.format");
        let format = match format.as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => self.wrong("log.format", "expected text or json"),
        };
        Some(Log { level: level?, format: format? })
    }

    fn written(&self, path: &str) -> (String, Origin) {
        // Paths in this file are keys in KEYS: the tests resolve all of them.
        let key = KEYS.iter().find(|key| key.path == path).expect("a known key");
        let (value, origin) = self.layers.written(key);
        (value.to_owned(), origin)
    }

    fn wrong<T>(&mut self, path: &str, what: &str) -> Option<T> {
        let (value, origin) = self.written(path);
        let secret = KEYS.iter().any(|key| key.path == path && key.shape == Shape::Secret);
        let text = match value.as_str() {
            "" if origin == Origin::Default => format!("{path} {what}"),
            _ if secret => format!("{path} ({origin}): {what}"),
            value => format!("{path} = {:?} ({origin}): {what}", mask(value)),
        };
        self.errors.push(ConfigError(text));
        None
    }

    fn socket(&mut self, path: &str) -> Option<SocketAddr> {
        let (value, _) = self.written(path);
        value.parse().ok().or_else(|| self.wrong(path, "expected an address and a port such as 127.0.0.1:50051 or [::1]:50051"))
    }

    fn number(&mut self, path: &str, least: usize, most: usize) -> Option<usize> {
        let (value, _) = self.written(path);
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        number.or_else(|| self.wrong(path, &format!("expected a whole number from {least} to {most}")))
    }

    fn duration(&mut self, path: &str, least: Duration, most: Duration) -> Option<Duration> {
        let (value, _) = self.written(path);
        let duration = humantime::parse_duration(&value).ok().filter(|duration| (least..=most).contains(duration));
        duration.or_else(|| {
            let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
            self.wrong(path, &format!("expected a duration such as 250ms, 10s or 1h, from {least} to {most}"))
        })
    }

    fn timeout(&mut self, path: &str) -> Option<Duration> {
        self.duration(path, Duration::from_millis(1), Duration::from_secs(60))
    }

    fn ttl(&mut self, path: &str, longest: Ttl) -> Option<Ttl> {
        let shortest = Duration::from_millis(Ttl::SHORTEST_MS);
        let duration = self.duration(path, shortest, longest.as_duration())?;
        Ttl::from_millis(ceil_millis(duration), Ttl::LONGEST)
    }

    fn drift(&mut self) -> Option<DriftFactor> {
        let (value, _) = self.written("nodes.drift_factor");
        let millionths = value.parse::<f64>().ok().map(|factor| (factor * 1e6).ceil());
        let factor = millionths.filter(|m| (0.0..=100_000.0).contains(m)).and_then(|m| DriftFactor::from_millionths(m as u32));
        factor.or_else(|| self.wrong("nodes.drift_factor", "expected a number from 0 to 0.1, such as 0.002"))
    }

    fn key_prefix(&mut self) -> Option<String> {
        let (prefix, _) = self.written("nodes.key_prefix");
        let ours = crate::engine::lease::RESERVED_PREFIX;
        // `redlock` and a lock named `d:fence:counter` would be the key of the counter.
        let can_become_ours = prefix.starts_with(ours) || (!prefix.is_empty() && ours.starts_with(&prefix));
        if prefix.len() > 128 || prefix.chars().any(char::is_control) || can_become_ours {
            return self.wrong(
                "nodes.key_prefix",
                &format!(
                    "expected at most 128 bytes without control characters, not beginning with `{ours}` and no part of its \
                     beginning"
                ),
            );
        }
        Some(prefix)
    }

    fn path(&mut self, path: &str) -> Option<PathBuf> {
        let (value, _) = self.written(path);
        if value.is_empty() {
            return None;
        }
        if let Err(error) = std::fs::metadata(&value) {
            return self.wrong(path, &format!("the file can not be read: {error}"));
        }
        Some(PathBuf::from(value))
    }

    fn credentials(&mut self, table: &str) -> (Option<String>, Option<Password>) {
        let (username, _) = self.written(&format!("{table}.username"));
        let (password, _) = self.written(&format!("{table}.password"));
        let file = format!("{table}.password_file");
        let password = match self.path(&file) {
            Some(_) if !password.is_empty() => {
                self.wrong(&file, &format!("goes not together with {table}.password; keep one of them"))
            }
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(error) => self.wrong(&file, &format!("the file can not be read: {error}")),
            },
            None => Some(password),
        };
        let set = |text: String| (!text.is_empty()).then_some(text);
        (set(username), password.and_then(set).map(|password| Password::new(&password)))
    }
}

fn with_credentials(mut address: Address, username: &Option<String>, password: &Option<Password>) -> Address {
    if address.username.is_none() && address.password.is_none() {
        address.username.clone_from(username);
        address.password.clone_from(password);
    }
    address
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
