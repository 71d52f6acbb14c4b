//! The client commands: one file each. They know the proto and the client only.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Read, Write, stdout};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::client::reason;

pub mod acquire;
pub mod get;
pub mod list;
pub mod nodes;
pub mod release;
pub mod renew;
pub mod run;
pub mod watch;

/// Whether somebody still reads it: what is long has been seen enough by whoever looks at its head.
fn print_lines(lines: &[String]) -> Result<bool, CliError> {
    let mut out = stdout().lock();
    match lines.iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CliError { text: format!("standard output: {error}"), code: ExitCode::SOFTWARE }),
    }
}

/// What a script can branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

impl ExitCode {
    /// Done.
    pub const DONE: Self = Self(0);
    /// Contended or not held.
    pub const CONFLICT: Self = Self(1);
    /// The command or its values are wrong.
    pub const USAGE: Self = Self(64);
    /// No server, or it can not serve now.
    pub const UNAVAILABLE: Self = Self(69);
    /// A failure of this program.
    pub const SOFTWARE: Self = Self(70);
    /// Try again later.
    pub const TEMPORARY: Self = Self(75);
    /// Not allowed.
    pub const NOT_ALLOWED: Self = Self(77);
}

/// How a command failed: the text for stderr and the exit code.
#[derive(Debug)]
pub struct CliError {
    text: String,
    /// For the shell.
    pub code: ExitCode,
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl CliError {
    fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: ExitCode::USAGE }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument => ExitCode::USAGE,
            Code::Unavailable => ExitCode::UNAVAILABLE,
            Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled => ExitCode::TEMPORARY,
            Code::Unauthenticated | Code::PermissionDenied => ExitCode::NOT_ALLOWED,
            _ => ExitCode::SOFTWARE,
        };
        Self { text: format!("{}: {}", code_name(status.code()), status.message()), code }
    }
}

fn code_name(code: Code) -> String {
    let debug = format!("{code:?}");
    debug.chars().enumerate().fold(String::new(), |mut name, (index, character)| {
        if index > 0 && character.is_uppercase() {
            name.push('_');
        }
        name.extend(character.to_uppercase());
        name
    })
}

/// How to reach the proxy and how to print.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The proxy, or several with commas: the first one that answers is asked
    #[arg(long, env = "REDLOCKD_SERVER", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    server: String,
    /// How to print the answer; json is one object a line, durations in milliseconds
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl ClientArgs {
    /// A connection to the first proxy that answers; `patience` bounds every call on it.
    async fn connect(&self, patience: Duration) -> Result<Channel, CliError> {
        let mut failures = Vec::new();
        for server in self.server.split(',') {
            let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| {
                CliError::usage(format!("--server {url}: {error}; a URL such as http://127.0.0.1:50051 is expected"))
            })?;
            match endpoint.connect_timeout(Duration::from_secs(5)).timeout(patience).connect().await {
                Ok(channel) => return Ok(channel),
                Err(error) => failures.push(format!("{url}: {}", reason(&error))),
            }
        }
        Err(CliError {
            text: format!(
                "no redlockd answers at {}. Start one with `redlockd dev`, or name it with --server",
                failures.join("; ")
            ),
            code: ExitCode::UNAVAILABLE,
        })
    }

    fn print(&self, answer: Map<String, Value>, text: impl FnOnce() -> String) {
        match self.output {
            Output::Json => println!("{}", Value::Object(answer)),
            Output::Text => println!("{}", text()),
        }
    }
}

/// A call that names no wait of its own.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where a lock id comes from: it is a secret, and arguments show in `ps`.
#[derive(Args, Clone, Debug)]
struct LockIdArg {
    /// The lock id that `acquire` printed; `-` reads it from standard input
    #[arg(env = "REDLOCK_LOCK_ID", hide_env_values = true, value_name = "LOCK_ID")]
    lock_id: Option<String>,
}

impl LockIdArg {
    fn read(self) -> Result<String, CliError> {
        match self.lock_id.as_deref() {
            None => Err(CliError::usage("no lock id: give it as argument, in REDLOCK_LOCK_ID, or as `-` on standard input")),
            Some("-") => {
                if std::io::stdin().is_terminal() {
                    eprintln!("type or paste the lock id, then Ctrl-D");
                }
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .map_err(|error| CliError::usage(format!("standard input: {error}")))?;
                Ok(text.trim().to_owned())
            }
            Some(lock_id) => Ok(lock_id.to_owned()),
        }
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn millis(duration: Option<prost_types::Duration>) -> u64 {
    let duration = duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default();
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn proto_duration(duration: Duration) -> Result<prost_types::Duration, CliError> {
    prost_types::Duration::try_from(duration).map_err(|_| CliError::usage(format!("{duration:?} is too long")))
}

fn people(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

fn unexpected() -> CliError {
    CliError { text: "the proxy's answer has no outcome; is it of another version?".to_owned(), code: ExitCode::SOFTWARE }
}
