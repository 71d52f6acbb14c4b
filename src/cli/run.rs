//! `redlockd run`: a command under a lock.
//!
//! The command runs in a process group of its own, and that group is ended before the lock can be somebody else's, by this
//! machine's monotonic clock: asked to end `grace` and a margin before the lease does, killed the margin before. Whether a proxy
//! answers makes no difference to that.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, stdin, stdout};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, getpgrp, getpid, getppid, getsid, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::acquire::default_owner;
use super::{CliError, ExitCode};
use crate::client::{AcquireError, Client, ConnectError, Contended, Lease, LockRequest};

/// What is passed on to the command.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// The command is killed so long before the end of the lease: a fiftieth of the TTL within these bounds.
const MARGIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// The default of `--grace`, unless a quarter of the TTL is less.
const LONGEST_DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// Between looks whether a process group is gone.
const LOOK: Duration = Duration::from_millis(5);

/// A command that could not be executed, and one that could not be found: as a shell says it.
const NOT_EXECUTABLE: ExitCode = ExitCode(126);
const NOT_FOUND: ExitCode = ExitCode(127);

/// Arguments.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  redlockd run nightly-report -- ./report.sh           wait for the lock, then run the script under it
  redlockd run -n -E 0 cleanup -- ./cleanup            do nothing, with success, if somebody else is at it
  redlockd run -w 30s --ttl 1m migrate -- sh -c 'psql -v token=$REDLOCK_FENCING_TOKEN -f migrate.sql'
  redlockd run --server proxy-1:50051,proxy-2:50051 job -- ./job

The lock is renewed while the command runs, through any of the proxies. If that fails, the process group of the command gets \
the signal of --on-lost, and SIGKILL after --grace, all of it before the lock can be somebody else's. What the command leaves \
running in its process group when it ends is ended in the same way, before the lock is released.

The command finds REDLOCK_NAME, REDLOCK_FENCING_TOKEN (let the protected resource refuse a token lower than the highest it has \
seen) and REDLOCK_LOCK_ID (a secret; out of date as soon as another proxy takes over) in its environment. Of a command that is \
suspended (Ctrl-Z, or in the background because it wants to read from the terminal) the lease ends with its TTL; if it goes on \
later, it is ended.

Exit codes: that of the command; 128 and the number of the signal that killed it; 126 it can not be executed, 127 it is not \
there; 1 somebody else has the lock (-E); 64 usage; 69 no proxy, or it can not grant; 75 the lease was lost while the command ran.")]
pub struct RunArgs {
    /// What to lock: 1 to 512 bytes
    name: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// How long the lease lasts without a renewal: how soon the lock is free if this machine dies
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s", value_name = "DURATION")]
    ttl: Duration,
    /// How long to wait for a lock that is held [default: for ever]
    #[arg(short, long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    wait: Option<Duration>,
    /// Do not wait
    #[arg(short = 'n', long = "try", conflicts_with = "wait")]
    is_try: bool,
    /// The exit code if somebody else has the lock
    #[arg(short = 'E', long, default_value_t = ExitCode::CONFLICT.0, value_name = "N")]
    conflict_exit_code: u8,
    /// What the command gets when the lease is lost, by name or number
    #[arg(long, value_parser = parse_signal, default_value = "TERM", value_name = "SIGNAL")]
    on_lost: Signal,
    /// From that signal to SIGKILL, at most about half of the TTL [default: a quarter of the TTL, 5s at most]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    grace: Option<Duration>,
    /// Hold the lock for one TTL at most
    #[arg(long)]
    no_renew: bool,
    /// Hold the lock for so long at most, the grace included
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    max_hold: Option<Duration>,
    /// Public label of the holder [default: user@host:pid]
    #[arg(long)]
    owner: Option<String>,
    /// Take the lock even if the fencing counter can not be reached
    #[arg(long)]
    best_effort_token: bool,
    /// The proxies, in the order in which they are tried
    #[arg(long, env = "REDLOCKD_SERVER", default_value = "http://127.0.0.1:50051", value_delimiter = ',', value_name = "URL")]
    server: Vec<String>,
}

fn parse_signal(text: &str) -> Result<Signal, String> {
    let name = text.to_uppercase();
    let by_number = name.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
    by_number
        .or_else(|| Signal::from_str(&name).ok())
        .or_else(|| Signal::from_str(&format!("SIG{name}")).ok())
        .ok_or_else(|| "no such signal; a name such as TERM is expected".to_owned())
}

/// How a command whose lease is lost is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    signal: Signal,
    grace: Duration,
    margin: Duration,
}

impl Ending {
    fn of(args: &RunArgs) -> Result<Self, CliError> {
        let margin = (args.ttl / 50).clamp(MARGIN.0, MARGIN.1);
        // A lease that is renewed in time has more than half of its TTL left at any time.
        let most = (args.ttl / 2).saturating_sub(margin);
        let grace = args.grace.unwrap_or_else(|| (args.ttl / 4).min(LONGEST_DEFAULT_GRACE).min(most));
        if grace > most {
            let (grace, most, ttl) = [grace, most, args.ttl].map(humantime::format_duration).into();
            return Err(CliError::usage(format!("--grace {grace}: at most {most} with a --ttl of {ttl}")));
        }
        if args.max_hold.is_some_and(|max_hold| max_hold <= grace + margin) {
            return Err(CliError::usage(format!(
                "--max-hold: longer than --grace, which is {}",
                humantime::format_duration(grace)
            )));
        }
        Ok(Self { signal: args.on_lost, grace, margin })
    }
}

/// Runs a command under a lock.
pub async fn run(args: RunArgs) -> Result<ExitCode, CliError> {
    let ending = Ending::of(&args)?;
    let mut signals = listen().map_err(|error| software("signals", &error))?;
    let client = Client::connect(args.server.clone()).await.map_err(unreachable)?;
    let code = run_with(&client, &args, ending, &mut signals).await;
    client.shutdown().await;
    code
}

async fn run_with(client: &Client, args: &RunArgs, ending: Ending, signals: &mut Signals) -> Result<ExitCode, CliError> {
    let lease = match take(request(client, args, ending), signals).await {
        Ok(lease) => lease,
        Err(NotTaken::Signal(signal)) => return Ok(killed_by(signal)),
        Err(NotTaken::Error(AcquireError::Contended(by))) => return Ok(contended(args, &by)),
        Err(NotTaken::Error(error)) => return Err(failure(&error)),
    };
    // It may have been suspended since.
    if !lease.is_valid() {
        let lost = lease.lost().await;
        return Err(CliError { text: format!("{}: {lost}", args.name), code: ExitCode::TEMPORARY });
    }
    let mut group = Group::start(args, &lease)?;
    let code = group.guard(&lease, ending, signals).await?;
    // Only now is nothing of the command left that could rely on the lock.
    if let Err(error) = lease.release().await {
        eprintln!("redlockd: {}: {error}", args.name);
    }
    Ok(code)
}

fn request(client: &Client, args: &RunArgs, ending: Ending) -> LockRequest {
    let wait = if args.is_try { Duration::ZERO } else { args.wait.unwrap_or(Duration::MAX) };
    let owner = args.owner.clone().unwrap_or_else(default_owner);
    let mut request = client.lock(&args.name).ttl(args.ttl).wait(wait).owner(owner).notice(ending.grace + ending.margin);
    let not_renewed = args.no_renew.then_some(args.ttl);
    if let Some(max_hold) = [args.max_hold, not_renewed].into_iter().flatten().min() {
        request = request.max_hold(max_hold);
    }
    if args.best_effort_token { request.best_effort_token() } else { request }
}

enum NotTaken {
    Signal(Signal),
    Error(AcquireError),
}

async fn take(request: LockRequest, signals: &mut Signals) -> Result<Lease, NotTaken> {
    let mut lease = std::pin::pin!(request.acquire());
    loop {
        tokio::select! {
            lease = &mut lease => return lease.map_err(NotTaken::Error),
            Some(signal) = signals.recv() => match signal {
                Signal::SIGTSTP => suspend_ourselves(),
                signal => return Err(NotTaken::Signal(signal)),
            },
        }
    }
}

fn contended(args: &RunArgs, by: &Contended) -> ExitCode {
    eprintln!("redlockd: {} is held by {}", args.name, by.owner.as_deref().unwrap_or("somebody else"));
    ExitCode(args.conflict_exit_code)
}

fn unreachable(error: ConnectError) -> CliError {
    match error {
        ConnectError::Invalid(text) => CliError::usage(format!("--server {text}")),
        error @ ConnectError::Unreachable(_) => CliError {
            text: format!("{error}. Start one with `redlockd dev`, or name it with --server"),
            code: ExitCode::UNAVAILABLE,
        },
    }
}

fn failure(error: &AcquireError) -> CliError {
    let code = match error {
        AcquireError::Invalid(_) => ExitCode::USAGE,
        AcquireError::Unavailable { .. } => ExitCode::UNAVAILABLE,
        AcquireError::Busy { .. } => ExitCode::TEMPORARY,
        _ => ExitCode::SOFTWARE,
    };
    CliError { text: error.to_string(), code }
}

fn software(what: &str, error: &dyn std::error::Error) -> CliError {
    CliError { text: format!("{what}: {error}"), code: ExitCode::SOFTWARE }
}

fn killed_by(signal: Signal) -> ExitCode {
    ExitCode(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
}

type Signals = mpsc::Receiver<Signal>;

/// What is sent to this process and is meant for the command. What whoever started us wants to be ignored stays ignored, as
/// `nohup` expects.
fn listen() -> io::Result<Signals> {
    let (sender, signals) = mpsc::channel(16);
    let ignored = ignored_signals();
    for kind in FORWARDED.into_iter().chain([Signal::SIGTSTP]).filter(|kind| ignored & (1 << (*kind as u32 - 1)) == 0) {
        let (mut stream, sender) = (signal(SignalKind::from_raw(kind as i32))?, sender.clone());
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(kind).await.is_ok() {} });
    }
    Ok(signals)
}

/// As the system shows them: a bit for each.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Comes back when somebody has us go on.
fn suspend_ourselves() {
    // Can not fail: it is our own process.
    let _ = kill(getpid(), Signal::SIGSTOP);
}

/// The terminal, if it is ours to hand on: a command in a group of its own may read from it only if it has the foreground.
/// Not where only one end of us is on it: then we are part of a pipeline, whose other commands need it.
struct Terminal;

impl Terminal {
    fn ours() -> Option<Self> {
        (stdout().is_terminal() && Self::is_ours()).then_some(Self)
    }

    /// Whether we are in its foreground.
    fn is_ours() -> bool {
        stdin().is_terminal() && tcgetpgrp(stdin()) == Ok(getpgrp())
    }

    fn give_to(&self, group: Pid) {
        // Whoever gives it from the background is stopped by the system otherwise.
        let tty_output = SigSet::from(Signal::SIGTTOU);
        let _ = tty_output.thread_block();
        // Fails if the terminal is gone: then nobody needs it.
        let _ = tcsetpgrp(stdin(), group);
        let _ = tty_output.thread_unblock();
    }
}

/// Whether a shell can have our process group go on after it has been stopped: the first of our ancestors outside of it is of
/// our session. Else nobody does, and the system does not stop it for the sake of a terminal.
fn is_a_job() -> bool {
    let mut ancestor = getppid();
    while getpgid(Some(ancestor)) == Ok(getpgrp()) {
        let Some(parent) = parent_of(ancestor) else { return false };
        ancestor = parent;
    }
    getsid(Some(ancestor)).is_ok_and(|session| Ok(session) == getsid(None))
}

fn parent_of(process: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().map(Pid::from_raw)
}

/// The process group of the command. Killed when dropped, unless it has ended.
struct Group {
    leader: Pid,
    /// The exit code of the command, once it has ended.
    code: Option<ExitCode>,
    terminal: Option<Terminal>,
}

impl Group {
    fn start(args: &RunArgs, lease: &Lease) -> Result<Self, CliError> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("redlockd").args(["run-child", &getpid().to_string(), "--"]).args(&args.command);
        command.env("REDLOCK_NAME", lease.name()).env("REDLOCK_LOCK_ID", lease.lock_id().as_str());
        match lease.token() {
            Some(token) => command.env("REDLOCK_FENCING_TOKEN", token.to_string()),
            None => command.env_remove("REDLOCK_FENCING_TOKEN"),
        };
        let child = command.process_group(0).spawn().map_err(|error| software("the command can not be started", &error))?;
        // Fits: it came from the system as one.
        let leader = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
        let group = Self { leader, code: None, terminal: Terminal::ours() };
        if let Some(terminal) = &group.terminal {
            terminal.give_to(leader);
            // It may have looked at the terminal before it had it.
            group.signal(Signal::SIGCONT);
        }
        Ok(group)
    }

    fn signal(&self, signal: Signal) {
        // Fails only if nobody is left in it.
        let _ = killpg(self.leader, signal);
    }

    /// Whether any process of it is left.
    fn is_there(&self) -> bool {
        killpg(self.leader, None) != Err(Errno::ESRCH)
    }

    /// Waits for the end of the command, and sees to it that nothing of its group is left by the end of the lease.
    async fn guard(&mut self, lease: &Lease, ending: Ending, signals: &mut Signals) -> Result<ExitCode, CliError> {
        let mut changes = signal(SignalKind::child()).map_err(|error| software("signals", &error))?;
        let mut lost = std::pin::pin!(lease.lost());
        let (mut kill_at, mut why) = (None, None);
        self.look(lease)?;
        while self.code.is_none() {
            tokio::select! {
                biased;
                () = until(kill_at) => {
                    self.signal(Signal::SIGKILL);
                    kill_at = Some(Instant::now() + LOOK);
                }
                lost = &mut lost, if kill_at.is_none() => {
                    kill_at = Some(self.ask_to_end(lease, ending));
                    why = Some(lost);
                }
                _ = changes.recv() => self.look(lease)?,
                Some(signal) = signals.recv() => match signal {
                    Signal::SIGTSTP => self.suspend(lease),
                    signal => self.signal(signal),
                },
            }
        }
        self.end_the_rest(lease, ending, kill_at).await;
        // Not before: whoever reads it may not read now, and the command would outlive its lease.
        if let Some(lost) = why {
            eprintln!("redlockd: {}: {lost}; its command has been ended", lease.name());
        }
        let own = self.code.unwrap_or(ExitCode::SOFTWARE);
        Ok(if kill_at.is_some() { ExitCode::TEMPORARY } else { own })
    }

    /// Says when it has to be killed.
    fn ask_to_end(&self, lease: &Lease, ending: Ending) -> Instant {
        let now = Instant::now();
        let last = lease.valid_until().checked_sub(ending.margin).unwrap_or(now);
        if last <= now {
            // One that was stopped over the end of its lease must not even clean up.
            self.signal(Signal::SIGKILL);
            return now;
        }
        self.signal(ending.signal);
        // One that is stopped can not hear.
        self.signal(Signal::SIGCONT);
        last.min(now + ending.grace)
    }

    /// What the command left behind in its group is ended too.
    async fn end_the_rest(&mut self, lease: &Lease, ending: Ending, kill_at: Option<Instant>) {
        if !self.is_there() {
            return;
        }
        let kill_at = kill_at.unwrap_or_else(|| self.ask_to_end(lease, ending));
        while self.is_there() && Instant::now() < kill_at && lease.is_valid() {
            sleep(LOOK).await;
        }
        self.signal(Signal::SIGKILL);
        // Whoever should reap them may not do so: nothing runs in them any more.
        let gone = Instant::now() + ending.margin;
        while self.is_there() && Instant::now() < gone {
            sleep(LOOK).await;
        }
    }

    /// Sees what has become of the command.
    fn look(&mut self, lease: &Lease) -> Result<(), CliError> {
        loop {
            match waitpid(self.leader, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Exited(_, code)) => self.code = Some(ExitCode(u8::try_from(code).unwrap_or(u8::MAX))),
                Ok(WaitStatus::Signaled(_, signal, _)) => self.code = Some(killed_by(signal)),
                Ok(WaitStatus::Stopped(..)) if self.terminal.is_some() => {
                    self.suspend(lease);
                    continue;
                }
                Ok(WaitStatus::Stopped(_, why @ (Signal::SIGTTIN | Signal::SIGTTOU))) => {
                    self.wait_for_terminal(lease, why);
                    continue;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(software("the command can not be waited for", &error)),
            }
            break;
        }
        if let Some(terminal) = self.terminal.take_if(|_| self.code.is_some()) {
            terminal.give_to(getpgrp());
        }
        Ok(())
    }

    /// The command can not go on without a terminal that it does not have. From the foreground it gets it. In the background all
    /// of us stop, as if we and the command were one group, until the shell has us go on. Who is no job of a shell can have it
    /// never, and would hold the lock for ever.
    fn wait_for_terminal(&mut self, lease: &Lease, why: Signal) {
        if !Terminal::is_ours() {
            if !is_a_job() {
                eprintln!("redlockd: {}: the command wants a terminal that it can not have, and has been ended", lease.name());
                return self.signal(Signal::SIGKILL);
            }
            self.signal(Signal::SIGSTOP);
            // Can not fail: it is our own group.
            let _ = killpg(getpgrp(), why);
        }
        if Terminal::is_ours() {
            self.terminal.insert(Terminal).give_to(self.leader);
        }
        if lease.is_valid() {
            self.signal(Signal::SIGCONT);
        }
    }

    /// Stops with the command, and goes on with it if it still has its lock by then.
    fn suspend(&self, lease: &Lease) {
        self.signal(Signal::SIGSTOP);
        if let Some(terminal) = &self.terminal {
            terminal.give_to(getpgrp());
        }
        suspend_ourselves();
        if let Some(terminal) = self.terminal.as_ref().filter(|_| tcgetpgrp(stdin()) == Ok(getpgrp())) {
            terminal.give_to(self.leader);
        }
        // Otherwise it never runs again: what is due is done next.
        if lease.is_valid() {
            self.signal(Signal::SIGCONT);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.code.is_none() {
            self.signal(Signal::SIGKILL);
        }
        if let Some(terminal) = &self.terminal {
            terminal.give_to(getpgrp());
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Arguments of the step between `run` and its command.
#[derive(Args, Debug)]
pub struct RunChildArgs {
    parent: i32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command, after it has asked the system to be killed when `run` dies.
pub fn run_child(args: &RunChildArgs) -> ExitCode {
    let asked = prctl::set_pdeathsig(Signal::SIGKILL);
    // It may have died before.
    if asked.is_err() || getppid() != Pid::from_raw(args.parent) {
        return ExitCode::TEMPORARY;
    }
    let Some((program, arguments)) = args.command.split_first() else { return ExitCode::USAGE };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("redlockd: {}: {error}", program.display());
    if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn ending(args: &[&str]) -> Result<Ending, CliError> {
        let line = [&["run", "orders/42"], args, &["--", "true"]].concat();
        Ending::of(&Line::try_parse_from(line).unwrap().run)
    }

    #[test]
    fn the_command_is_ended_within_half_of_the_ttl() {
        let of = |ttl: &str| {
            let ending = ending(&["--ttl", ttl]).unwrap();
            (ending.grace.as_millis(), ending.margin.as_millis())
        };
        assert_eq!(of("10s"), (2_500, 200));
        assert_eq!(of("1m"), (5_000, 500));
        assert_eq!(of("100ms"), (25, 5));
        assert_eq!(of("10ms"), (0, 5));
        for args in [&["--grace", "4900ms"][..], &["--max-hold", "2s"], &["--ttl", "1s", "--grace", "490ms"]] {
            assert_eq!(ending(args).unwrap_err().code, ExitCode::USAGE, "{args:?}");
        }
        assert_eq!(ending(&["--grace", "4800ms"]).unwrap().grace, Duration::from_millis(4_800));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(parse_signal(text), Ok(Signal::SIGTERM), "{text}");
        }
        assert!(parse_signal("NONE").is_err() && parse_signal("0").is_err());
    }
}
