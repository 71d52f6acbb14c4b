//! Where a server is and how to reach it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use url::{Host, Url};

/// A secret: shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<str>);

impl Password {
    /// Wraps a password.
    pub fn new(password: &str) -> Self {
        Self(password.into())
    }

    /// For the connection only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(secret)")
    }
}

/// How bytes get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `redis://host:port`, or `rediss://` with TLS.
    Tcp {
        /// Name or address.
        host: String,
        /// Default 6379.
        port: u16,
        /// Whether it speaks TLS.
        tls: bool,
    },
    /// `redis+unix:///path`.
    Unix {
        /// Of the socket.
        path: PathBuf,
    },
}

/// One configured server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// How to get there.
    pub transport: Transport,
    /// The database number, 0 to 255.
    pub database: u8,
    /// ACL user; the server's default user if there is none.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Password>,
}

impl Address {
    /// Reads `redis://[user[:password]@]host[:port][/database]`, `rediss://` or
    /// `redis+unix://[user[:password]@]/path/to/socket[?db=database]`. The error never repeats the text: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is no URL ({error}); {FORMS}"))?;
        let transport = match url.scheme() {
            scheme @ ("redis" | "rediss") => {
                Transport::Tcp { host: host(&url)?, port: url.port().unwrap_or(6379), tls: scheme == "rediss" }
            }
            "redis+unix" => Transport::Unix { path: socket_path(&url)? },
            other => return Err(format!("has the scheme `{other}`; {FORMS}")),
        };
        Ok(Self {
            database: database(&url, &transport)?,
            transport,
            username: Some(url.username()).filter(|user| !user.is_empty()).map(decode).transpose()?,
            password: url.password().map(decode).transpose()?.map(|password| Password::new(&password)),
        })
    }

    /// Whether it needs TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tcp { tls: true, .. })
    }

    /// `host:port` or the path, without credentials.
    pub fn label(&self) -> String {
        match &self.transport {
            Transport::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Transport::Tcp { host, port, .. } => format!("{host}:{port}"),
            Transport::Unix { path } => path.display().to_string(),
        }
    }
}

/// The URL without its password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = match (&self.username, &self.password) {
            (Some(user), Some(_)) => format!("{user}:***@"),
            (Some(user), None) => format!("{user}@"),
            (None, Some(_)) => ":***@".to_owned(),
            (None, None) => String::new(),
        };
        match &self.transport {
            Transport::Tcp { tls, .. } => {
                write!(f, "{}://{user}{}", if *tls { "rediss" } else { "redis" }, self.label())?;
                if self.database > 0 { write!(f, "/{}", self.database) } else { Ok(()) }
            }
            Transport::Unix { .. } => {
                write!(f, "redis+unix://{user}{}", self.label())?;
                if self.database > 0 { write!(f, "?db={}", self.database) } else { Ok(()) }
            }
        }
    }
}

const FORMS: &str = "expected redis://host:6379, rediss://host:6379 or redis+unix:///path/to/socket";

fn host(url: &Url) -> Result<String, String> {
    // For schemes that it does not know, `url` takes every host for a domain and keeps the brackets of none.
    match url.host() {
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        Some(host) if !host.to_string().is_empty() => Ok(host.to_string()),
        _ => Err(format!("has no host; {FORMS}")),
    }
}

fn socket_path(url: &Url) -> Result<PathBuf, String> {
    if url.host_str().is_some_and(|host| !host.is_empty() && host != "localhost") {
        return Err("names a host; the path of a socket begins after three slashes: redis+unix:///run/redis.sock".to_owned());
    }
    let path = decode(url.path())?;
    if path.len() < 2 {
        return Err(format!("has no path; {FORMS}"));
    }
    Ok(PathBuf::from(path))
}

fn database(url: &Url, transport: &Transport) -> Result<u8, String> {
    let text = match transport {
        Transport::Tcp { .. } => url.path().trim_start_matches('/').to_owned(),
        Transport::Unix { .. } => {
            url.query_pairs().find(|(key, _)| key == "db").map(|(_, value)| value.into_owned()).unwrap_or_default()
        }
    };
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("has the database `{text}`; a number from 0 to 255 is expected"))
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or("has a `%` that is not followed by two hexadecimal digits")?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "does not decode to UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let full = Address::parse("rediss://ann:s%40cret@r1.example:7000/3").unwrap();
        assert_eq!(full.transport, Transport::Tcp { host: "r1.example".into(), port: 7000, tls: true });
        assert_eq!((full.database, full.username.as_deref()), (3, Some("ann")));
        assert_eq!(full.password.as_ref().map(Password::reveal), Some("s@cret"));
        assert_eq!(full.to_string(), "rediss://ann:***@r1.example:7000/3");
        assert_eq!(full.label(), "r1.example:7000");

        let plain = Address::parse("redis://127.0.0.1").unwrap();
        assert_eq!(plain.label(), "127.0.0.1:6379");
        assert_eq!(Address::parse("redis://[::1]:7001").unwrap().label(), "[::1]:7001");

        let socket = Address::parse("redis+unix:///run/redis%201.sock?db=2").unwrap();
        assert_eq!(socket.transport, Transport::Unix { path: "/run/redis 1.sock".into() });
        assert_eq!(socket.database, 2);
    }

    #[test]
    fn errors_say_what_is_expected_and_show_no_password() {
        for bad in [
            "",
            "r1:6379",
            "http://r1",
            "redis://",
            "redis://:pa55@r1/x",
            "redis+unix://",
            "redis+unix://h/p",
            "redis://u:%zz@h",
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(!error.contains("pa55"), "{error}");
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let address = Address::parse("redis://u:pa55@h").unwrap();
        assert!(!format!("{address:?}").contains("pa55"));
    }
}
