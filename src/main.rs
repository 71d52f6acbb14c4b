//! Wires only: arguments, configuration, telemetry, the library, exit code.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use redlockd::args::{CheckArgs, Cli, Command, DevArgs, ServeArgs};
use redlockd::check::Report;
use redlockd::cli::{self, CliError};
use redlockd::config::{Config, ConfigError, LogFormat, Origin};
use redlockd::dev::{self, Cluster, Server};
use redlockd::engine::membership::CounterKind;
use redlockd::engine::preflight::{Finding, Severity};
use redlockd::run;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Usage and configuration errors, as in sysexits.h.
const USAGE: u8 = 64;
/// Something that is needed can not be reached or opened.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with code 0.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked_for { 0 } else { USAGE });
        }
    };
    match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Dev(args) => develop(&args),
        Command::Check(args) => check(&args),
        // On the main thread: the command dies with the thread that started it.
        Command::Run(args) => client(cli::run::run(args)),
        Command::RunChild(args) => ExitCode::from(cli::run::run_child(&args).0),
        Command::Acquire(args) => client(cli::acquire::run(args)),
        Command::Release(args) => client(cli::release::run(args)),
        Command::Renew(args) => client(cli::renew::run(args)),
        Command::Get(args) => client(cli::get::run(args)),
        Command::List(args) => client(cli::list::run(args)),
        Command::Watch(args) => client(cli::watch::run(args)),
        Command::Nodes(args) => client(cli::nodes::run(args)),
    }
}

fn client(command: impl Future<Output = Result<cli::ExitCode, CliError>>) -> ExitCode {
    match runtime(1).block_on(command) {
        Ok(code) => ExitCode::from(code.0),
        Err(error) => {
            eprintln!("redlockd: {error}");
            ExitCode::from(error.code.0)
        }
    }
}

fn runtime(threads: usize) -> Runtime {
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    // Fails only where a process can not have another file descriptor.
    builder.worker_threads(threads.max(1)).enable_all().build().expect("a tokio runtime")
}

fn serve(args: &ServeArgs) -> ExitCode {
    use_small_pages();
    let layers = args.layers();
    if args.print_config {
        print!("{}", layers.print());
    }
    match layers.resolve() {
        Err(errors) => report(&errors),
        Ok(_) if args.print_config => ExitCode::SUCCESS,
        Ok(_) if args.check_config => {
            println!("the configuration is good");
            ExitCode::SUCCESS
        }
        Ok(config) => {
            start_logging(&config);
            proxy(config, None)
        }
    }
}

/// The allocator asks for huge pages, and a proxy that needs ten megabytes took forty with them, at the same speed. Whatever this
/// process starts inherits it, so that it is for a proxy by itself: not for `run` and `dev`, which start others. A kernel that
/// refuses costs memory, and nothing else.
fn use_small_pages() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

fn check(args: &CheckArgs) -> ExitCode {
    let config = match args.layers().resolve() {
        Ok(config) => config,
        Err(errors) => return report(&errors),
    };
    match runtime(1).block_on(Report::of(&config)) {
        Ok(report) => {
            report.print(args.output);
            ExitCode::from(report.exit_code())
        }
        Err(error) => {
            eprintln!("redlockd: {error}");
            ExitCode::from(USAGE)
        }
    }
}

/// Warns of what is wrong with the servers. `Err`: what makes locks unsafe, and was not allowed by name.
async fn preflight(config: &Config) -> Result<(), run::StartError> {
    let findings = Report::of(config).await?.findings;
    let allowed = |finding: &&Finding| config.allow_unsafe.iter().any(|name| name == finding.name);
    let is_unsafe = |finding: &&Finding| finding.severity == Severity::Unsafe;
    findings.iter().for_each(|finding| tracing::warn!("{finding}"));
    let unsafe_findings: Vec<String> =
        findings.iter().filter(is_unsafe).filter(|finding| !allowed(finding)).map(ToString::to_string).collect();
    if unsafe_findings.is_empty() {
        return Ok(());
    }
    let names = findings.iter().filter(is_unsafe).map(|finding| finding.name).collect::<Vec<_>>().join(",");
    let advice = format!("locks would not be safe; to start all the same: --allow-unsafe {names}");
    Err(format!("{}\n{advice}", unsafe_findings.join("\n")).into())
}

fn report(errors: &[ConfigError]) -> ExitCode {
    errors.iter().for_each(|error| eprintln!("redlockd: {error}"));
    eprintln!(
        "redlockd: {} in the configuration",
        if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) }
    );
    ExitCode::from(USAGE)
}

fn develop(args: &DevArgs) -> ExitCode {
    // Before the servers are started, so that a wrong flag costs nothing.
    let mut layers = args.layers();
    let designated = layers.value("fencing.counter").is_none_or(|kind| kind == CounterKind::Designated.as_str());
    layers.set("nodes.urls", "redis://localhost".to_owned(), Origin::Dev);
    if designated {
        layers.set("fencing.url", "redis://localhost".to_owned(), Origin::Dev);
    }
    if let Err(errors) = layers.resolve() {
        return report(&errors);
    }
    let cluster = match dev::start(args.nodes, designated, args.redis_server.as_deref()) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("redlockd dev: {error}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let mut layers = args.layers();
    layers.set_default("nodes.bootstrap", "now".to_owned(), Origin::Dev);
    let urls: Vec<String> = cluster.nodes.iter().map(Server::url).collect();
    layers.set("nodes.urls", urls.join(","), Origin::Dev);
    if let Some(fence) = &cluster.fence {
        layers.set("fencing.url", fence.url(), Origin::Dev);
    }
    match layers.resolve() {
        Err(errors) => report(&errors),
        Ok(config) => {
            start_logging(&config);
            for node in &cluster.nodes {
                println!("node {} pid {}", node.address(), node.pid());
            }
            if let Some(fence) = &cluster.fence {
                println!("fence {} pid {}", fence.address(), fence.pid());
            }
            proxy(config, Some(cluster))
        }
    }
}

fn start_logging(config: &Config) {
    // Checked when the configuration was read.
    let filter: Targets = config.log.level.parse().unwrap_or_else(|_| Targets::new().with_default(tracing::Level::INFO));
    // fred logs every connection it loses; ours say which node and what follows.
    let filter = filter.with_target("fred", tracing::Level::ERROR);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    match config.log.format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
}

/// Serves until SIGTERM or SIGINT; a second one ends it at once.
fn proxy(config: Config, cluster: Option<Cluster>) -> ExitCode {
    let runtime = runtime(config.threads);
    let result = runtime.block_on(async {
        let grpc = bind(config.listen, "listen").await?;
        let http = bind(config.metrics_listen, "metrics_listen").await?;
        // Before anybody is told that we are there: a signal that comes at once ends us in order too.
        let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        if cluster.is_none() {
            preflight(&config).await?;
        }
        announce(&grpc, &http, cluster.is_some())?;
        let shutdown = CancellationToken::new();
        tokio::spawn(end_on_signal(signals, shutdown.clone()));
        if let Some(cluster) = cluster {
            tokio::spawn(watch(cluster, shutdown.clone()));
        }
        run::run(config, grpc, http, shutdown).await
    });
    // The servers of `dev` live in a task, and end with it.
    drop(runtime);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redlockd: {error}");
            ExitCode::from(UNAVAILABLE)
        }
    }
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, run::StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let flag = key.replace('_', "-");
        format!("{key} = {address}: {error}. Is another redlockd running? Choose another address with --{flag}; port 0 picks a free one").into()
    })
}

fn announce(grpc: &TcpListener, http: &TcpListener, dev: bool) -> Result<(), run::StartError> {
    let (grpc, http) = (grpc.local_addr()?, http.local_addr()?);
    println!("listening on {grpc} (gRPC) and {http} (/metrics, /livez, /readyz)");
    for address in [grpc, http].iter().filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(%address, "anybody who reaches this address can take and see every lock: there is no authentication yet");
    }
    if dev {
        println!("try: redlockd acquire orders/42 --ttl 10s --server http://{grpc}");
    }
    Ok(())
}

async fn end_on_signal(signals: [std::io::Result<Signal>; 2], shutdown: CancellationToken) {
    let [Ok(mut terminate), Ok(mut interrupt)] = signals else {
        return tracing::error!("signals can not be handled; end this process with SIGKILL");
    };
    for count in 1.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if count > 1 {
            std::process::exit(1);
        }
        shutdown.cancel();
    }
}

/// Says when a server has died; none is started again.
async fn watch(mut cluster: Cluster, shutdown: CancellationToken) {
    let Ok(mut child_ended) = signal(SignalKind::child()) else { return };
    loop {
        for server in cluster.nodes.iter_mut().chain(&mut cluster.fence) {
            if server.has_just_died() {
                tracing::warn!(address = %server.address(), pid = server.pid(), "a server has died; it is not started again");
            }
        }
        if child_ended.recv().await.is_none() {
            return shutdown.cancelled().await;
        }
    }
}
