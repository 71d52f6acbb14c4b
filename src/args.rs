//! The command line.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command as ClapCommand, FromArgMatches, Parser, Subcommand, value_parser};

use crate::check::Format;
use crate::cli;
use crate::config::{KEYS, Layers, Origin};

/// A lock service on N independent Redis servers (Redlock), over gRPC.
///
/// Without a checked fencing token Redlock is an efficiency lock: it keeps two workers off the same job nearly always, not
/// always. Where a double run would do harm, let the protected resource refuse a token lower than the highest it has seen.
#[derive(Debug, Parser)]
#[command(name = "redlockd", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Serve(ServeArgs),
    /// Start real Redis servers on free loopback ports and a proxy in front of them
    Dev(DevArgs),
    /// Look at the configured servers themselves, and say what is wrong with them
    Check(CheckArgs),
    /// Run a command under a lock
    Run(cli::run::RunArgs),
    /// Take a lock and print its lock id
    Acquire(cli::acquire::AcquireArgs),
    /// Give a lock back
    Release(cli::release::ReleaseArgs),
    /// Let the TTL of a lock count from now
    Renew(cli::renew::RenewArgs),
    /// Show who holds a name
    Get(cli::get::GetArgs),
    /// Show which names are held
    List(cli::list::ListArgs),
    /// Show what becomes of locks, as it happens
    Watch(cli::watch::WatchArgs),
    /// Show the proxy's view of its nodes
    Nodes(cli::nodes::NodesArgs),
    /// The step between `run` and its command
    #[command(hide = true)]
    RunChild(cli::run::RunChildArgs),
}

/// `redlockd serve`.
#[derive(Args, Debug)]
#[command(
    after_help = "Every key can also be set in the file (--config) as `table.key`, and by the variable REDLOCKD_TABLE_KEY; \
                        a flag goes before a variable, a variable before the file. Passwords are taken from the file, the \
                        variables REDLOCKD_NODES_PASSWORD and REDLOCKD_FENCING_PASSWORD, or the files named by \
                        --nodes-password-file and --fencing-password-file."
)]
pub struct ServeArgs {
    /// TOML file with the configuration
    #[arg(long, env = "REDLOCKD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, print every error, and exit
    #[arg(long)]
    pub check_config: bool,
    /// Print every key with its value and where it came from, and exit
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    keys: KeyFlags<true>,
}

/// `redlockd check`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 nothing was found, 1 findings, 64 the configuration is wrong, 69 a server can not be reached."
)]
pub struct CheckArgs {
    /// TOML file with the configuration
    #[arg(long, env = "REDLOCKD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print the findings; json is one object a line
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
    #[command(flatten)]
    keys: KeyFlags<true>,
}

/// `redlockd dev`.
#[derive(Args, Debug)]
pub struct DevArgs {
    /// How many lock nodes to start, 1 to 9
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u8).range(1..=9))]
    pub nodes: u8,
    /// The server program [default: redis-server or valkey-server on PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub redis_server: Option<PathBuf>,
    /// TOML file with the configuration
    #[arg(long, env = "REDLOCKD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyFlags<false>,
}

impl ServeArgs {
    /// What was configured: file, then environment, then flags.
    pub fn layers(&self) -> Layers {
        layers(self.config.as_ref(), &self.keys.0)
    }
}

impl CheckArgs {
    /// What was configured: file, then environment, then flags.
    pub fn layers(&self) -> Layers {
        layers(self.config.as_ref(), &self.keys.0)
    }
}

impl DevArgs {
    /// What was configured; the servers come later.
    pub fn layers(&self) -> Layers {
        layers(self.config.as_ref(), &self.keys.0)
    }
}

fn layers(file: Option<&PathBuf>, flags: &[(&'static str, String)]) -> Layers {
    let mut layers = Layers::default();
    if let Some(file) = file {
        layers.add_file(file);
    }
    layers.add_environment(|name| std::env::var(name).ok());
    for (path, value) in flags {
        layers.set(path, value.clone(), Origin::Flag(path.replace(['.', '_'], "-")));
    }
    layers
}

/// A flag for every key that may have one; `SERVERS`: also for those that name servers.
#[derive(Debug)]
struct KeyFlags<const SERVERS: bool>(Vec<(&'static str, String)>);

fn names_servers(path: &str) -> bool {
    path == "nodes.urls" || path == "fencing.url"
}

impl<const SERVERS: bool> Args for KeyFlags<SERVERS> {
    fn augment_args(command: ClapCommand) -> ClapCommand {
        let keys = KEYS.iter().filter(|key| SERVERS || !names_servers(key.path));
        keys.fold(command, |command, key| {
            let Some(flag) = key.flag() else { return command };
            let default = if key.default().is_empty() { String::new() } else { format!(" [default: {}]", key.default()) };
            let help = format!("{}{default} [env: {}]", key.help, key.variable());
            command.arg(Arg::new(key.path).long(flag).value_name("VALUE").help(help).help_heading("Configuration"))
        })
    }

    fn augment_args_for_update(command: ClapCommand) -> ClapCommand {
        Self::augment_args(command)
    }
}

impl<const SERVERS: bool> FromArgMatches for KeyFlags<SERVERS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |path| matches.try_get_one::<String>(path).ok().flatten().cloned();
        Ok(Self(KEYS.iter().filter_map(|key| Some((key.path, value(key.path)?))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
