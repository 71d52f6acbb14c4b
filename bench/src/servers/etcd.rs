//! One etcd server, as it comes, on loopback.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use super::PATIENCE;
use super::process::{Directory, Process, free_addresses};
use crate::Error;
use crate::call::{Call, Caller};
use api::{LeaseGrantRequest, LeaseGrantResponse};

/// What is used of its gRPC contract, generated from `proto/etcd`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod api {
    mod lease {
        tonic::include_proto!("etcdserverpb");
    }
    mod lock {
        tonic::include_proto!("v3lockpb");
    }
    pub use lease::{LeaseGrantRequest, LeaseGrantResponse};
    pub use lock::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
}

const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";

/// How it is started.
#[derive(Args, Debug)]
pub struct EtcdArgs {
    /// The etcd server program
    #[arg(long, value_name = "PROGRAM", default_value = "etcd")]
    etcd: PathBuf,
    /// Where etcd writes: to disk, and waits for it, unless this is in memory [default: the system's temporary directory]
    #[arg(long, value_name = "DIRECTORY")]
    etcd_data: Option<PathBuf>,
}

/// The server. It ends with this process, and so does its data.
pub struct Etcd {
    /// The first to be dropped: it writes to the directory.
    process: Process,
    directory: Directory,
    address: SocketAddr,
}

impl Etcd {
    /// Starts it. To be called from the main thread, see [`Process::start`].
    pub async fn start(args: &EtcdArgs) -> Result<Self, Error> {
        let directory = Directory::create(args.etcd_data.as_deref().unwrap_or(&std::env::temp_dir()))?;
        let addresses = free_addresses(2)?;
        let mut command = command(&args.etcd, directory.path(), addresses[0], addresses[1])?;
        let process = Process::start(&mut command).map_err(|error| {
            format!("{error}. Debian and Ubuntu have it in the package etcd-server; or name it with --etcd")
        })?;
        let mut etcd = Self { process, directory, address: addresses[0] };
        etcd.serves().await?;
        Ok(etcd)
    }

    /// Where it serves clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A new lease.
    pub async fn lease(&self, caller: &mut Caller, ttl: Duration) -> Result<i64, Error> {
        let request = LeaseGrantRequest { ttl: ttl.as_secs().try_into()? };
        let response: LeaseGrantResponse = caller.call(LEASE_GRANT, request).await?;
        if response.error.is_empty() { Ok(response.id) } else { Err(response.error.into()) }
    }

    /// Waits until it does.
    async fn serves(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let asked = async { self.lease(&mut Caller::connect(&self.url()).await?, PATIENCE).await };
            let Err(error) = asked.await else { return Ok(()) };
            if self.process.has_ended() || started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(log(self.directory.path())).unwrap_or_default();
                return Err(
                    format!("etcd does not serve: {error}; {}", log.lines().last().unwrap_or("it logged nothing")).into()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the program says of its version.
pub fn version(args: &EtcdArgs) -> Option<String> {
    let said = Command::new(&args.etcd).arg("--version").output().ok()?;
    String::from_utf8(said.stdout).ok()?.lines().next()?.strip_prefix("etcd Version:").map(|version| version.trim().to_owned())
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn command(program: &Path, directory: &Path, client: SocketAddr, peer: SocketAddr) -> Result<Command, Error> {
    let mut command = Command::new(program);
    // What is measured is what everybody gets.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    let [client, peer] = [client, peer].map(|address| format!("http://{address}"));
    let log = File::create(log(directory))?;
    command
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--name", "bench", "--initial-cluster", &format!("bench={peer}"), "--data-dir"])
        .arg(directory.join("data"))
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}
