//! Protected resources under one face, by addresses that another process can use too.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::fenced_http;
use crate::postgres::{self, Postgres};
use crate::support::Redis;

/// The row and the key: the names of the resource, not of its lock.
pub const NAME: &str = "orders/42";

pub fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fencing").join(file)
}

/// How a write is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// As the examples do.
    Token,
    /// As if there were no tokens.
    None,
}

impl Guard {
    /// The path of the document that is written so.
    fn path(self) -> &'static str {
        match self {
            Self::Token => "/document",
            Self::None => "/unchecked",
        }
    }
}

/// What became of a write or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    /// Not a token, or no answer.
    Error(String),
}

impl Answer {
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

#[derive(Clone, Debug)]
pub enum Resource {
    Redis { port: u16 },
    Postgres { programs: PathBuf, socket: PathBuf },
    Http { address: SocketAddr },
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis { port } => write!(f, "redis|{port}"),
            Self::Postgres { programs, socket } => write!(f, "postgres|{}|{}", programs.display(), socket.display()),
            Self::Http { address } => write!(f, "http|{address}"),
        }
    }
}

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('|').collect::<Vec<_>>()[..] {
            ["redis", port] => Ok(Self::Redis { port: port.parse().unwrap() }),
            ["postgres", programs, socket] => Ok(Self::Postgres { programs: programs.into(), socket: socket.into() }),
            ["http", address] => Ok(Self::Http { address: address.parse().unwrap() }),
            _ => Err(format!("{text:?} is no resource")),
        }
    }
}

impl Resource {
    /// Writes on behalf of the holder of a token.
    pub fn write(&self, guard: Guard, token: &str, value: &str) -> Answer {
        match (self, guard) {
            (Self::Redis { port }, Guard::Token) => of_script(&eval(*port, "fenced_set.lua", &[token, value])),
            (Self::Redis { port }, Guard::None) => {
                redis_cli(*port, &["HSET", NAME, "value", value]);
                Answer::Done
            }
            (Self::Postgres { programs, socket }, Guard::Token) => {
                let call = format!("EXECUTE fenced_write('{NAME}', {token}, '{value}')");
                run_sql(prepared(programs, socket).args(["-c", &call])).0
            }
            (Self::Postgres { programs, socket }, Guard::None) => {
                let update = format!("UPDATE fenced SET value = '{value}' WHERE name = '{NAME}' RETURNING name");
                run_sql(postgres::psql(programs, socket).args(["-c", &update])).0
            }
            (Self::Http { address }, _) => {
                let token = format!("Fencing-Token: {token}\r\n");
                of_status(&http(*address, "PUT", guard.path(), &token, value)).0
            }
        }
    }

    /// Reads on behalf of the holder of a token, and shuts earlier ones out; the value only if it was not refused.
    pub fn read(&self, token: &str) -> (Answer, String) {
        match self {
            Self::Redis { port } => {
                let reply = eval(*port, "fenced_get.lua", &[token]);
                (of_script(&reply), reply.lines().nth(2).unwrap_or_default().to_owned())
            }
            Self::Postgres { programs, socket } => {
                run_sql(prepared(programs, socket).args(["-c", &format!("EXECUTE fenced_read('{NAME}', {token})")]))
            }
            Self::Http { address } => {
                let token = format!("Fencing-Token: {token}\r\n");
                of_status(&http(*address, "GET", Guard::Token.path(), &token, ""))
            }
        }
    }

    /// What it holds, without any token.
    pub fn value(&self, guard: Guard) -> String {
        match self {
            Self::Redis { port } => redis_cli(*port, &["HGET", NAME, "value"]),
            Self::Postgres { programs, socket } => {
                let select = format!("SELECT value FROM fenced WHERE name = '{NAME}'");
                run_sql(postgres::psql(programs, socket).args(["-c", &select])).1
            }
            Self::Http { address } => http(*address, "GET", guard.path(), "", "").1,
        }
    }
}

/// What redis-cli prints: a line for each part of the reply.
fn redis_cli(port: u16, args: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn eval(port: u16, script: &str, args: &[&str]) -> String {
    redis_cli(port, &[&["--eval", example(script).to_str().unwrap(), NAME, ","], args].concat())
}

fn of_script(reply: &str) -> Answer {
    match reply.lines().next() {
        Some("1") => Answer::Done,
        Some("0") => Answer::Refused,
        _ => Answer::Error(reply.to_owned()),
    }
}

/// With the statements of the example.
pub fn prepared(programs: &Path, socket: &Path) -> Command {
    let mut command = postgres::psql(programs, socket);
    command.arg("-f").arg(example("fenced_write.sql"));
    command
}

/// Done if there was a row, and what is in it.
fn run_sql(command: &mut Command) -> (Answer, String) {
    let output = command.output().unwrap();
    let rows = String::from_utf8(output.stdout).unwrap();
    let answer = match (output.status.success(), rows.is_empty()) {
        (true, false) => Answer::Done,
        (true, true) => Answer::Refused,
        (false, _) => Answer::Error(String::from_utf8_lossy(&output.stderr).into_owned()),
    };
    (answer, rows.trim_end().to_owned())
}

/// Status and body. `headers` end with a line end each.
pub fn http(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn of_status((status, body): &(u16, String)) -> (Answer, String) {
    let answer = match status {
        200 | 204 => Answer::Done,
        412 => Answer::Refused,
        _ => Answer::Error(format!("{status}: {body}")),
    };
    (answer, body.clone())
}

/// One of each kind, all of them empty.
pub struct Resources {
    pub redis: Redis,
    pub postgres: Postgres,
    pub http: SocketAddr,
}

impl Resources {
    /// In a runtime with more threads than the caller's: calls to the resources block.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, fenced_http::app().merge(unchecked())).await });
        let resources = Self { redis: Redis::start(&[]), postgres: Postgres::start(), http };
        // Made once: two sessions that make the same table at a time would get in each other's way.
        let made = prepared(&resources.postgres.programs, resources.postgres.socket()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        resources
    }

    pub fn all(&self) -> [Resource; 3] {
        let (programs, socket) = (self.postgres.programs.clone(), self.postgres.socket().to_owned());
        let postgres = Resource::Postgres { programs, socket };
        [Resource::Redis { port: self.redis.port }, postgres, Resource::Http { address: self.http }]
    }
}

/// A document that asks for no token.
fn unchecked() -> Router {
    let document = Arc::new(Mutex::new(String::new()));
    let read = document.clone();
    let read = async move || read.lock().unwrap().clone();
    let write = async move |body: String| *document.lock().unwrap() = body;
    Router::new().route(Guard::None.path(), get(read).put(write))
}
