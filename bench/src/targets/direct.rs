//! redlockd's coordinator within this process: the same protocol, tokens and connections to the nodes as a proxy has, without
//! the way over gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use redlockd::args::{Cli, Command};
use redlockd::config::{Config, ConfigError};
use redlockd::coordinator::Coordinator;
use redlockd::coordinator::attempt::{AcquireFailure, AcquireSpec};
use redlockd::coordinator::lock_id::LockId;
use redlockd::coordinator::question::Released;
use redlockd::engine::lease::{LockName, Ttl};
use redlockd::metrics::Registry;
use redlockd::run;
use tokio::task::JoinSet;

use crate::Error;
use crate::client::{Client, Failure, Terms};
use crate::witness::Lease;

/// How long it may take until the nodes vote.
const PATIENCE: Duration = Duration::from_secs(30);

/// As often as a proxy does.
const HOUSEKEEPING: Duration = Duration::from_millis(250);

/// The coordinator. It ends with the last of its clients.
struct Library {
    coordinator: Arc<Coordinator>,
    _background: JoinSet<()>,
}

/// One client.
pub struct Direct {
    library: Arc<Library>,
    terms: Terms,
}

/// So many clients of one coordinator, which is configured as `redlockd serve` with these arguments.
pub async fn clients(serve: &[String], count: usize, terms: Terms) -> Result<Vec<Direct>, Error> {
    let library = Arc::new(Library::start(serve).await?);
    Ok((0..count).map(|_| Direct { library: library.clone(), terms }).collect())
}

impl Library {
    async fn start(serve: &[String]) -> Result<Self, Error> {
        let config = config(serve)?;
        let (registry, mut background) = (Arc::new(Registry::new()?), JoinSet::new());
        let coordinator = run::start(&config, &registry, &mut background)?;
        background.spawn(keep_house(coordinator.clone(), registry));
        let started = Instant::now();
        while let Err(why) = coordinator.ready() {
            if started.elapsed() > PATIENCE {
                return Err(format!("direct: not ready after {PATIENCE:?}: {}", why.join(", ")).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { coordinator, _background: background })
    }
}

/// What those arguments mean.
fn config(serve: &[String]) -> Result<Config, Error> {
    // The proxy is started without them; here they would count.
    if let Some((name, _)) = std::env::vars_os().find(|(name, _)| name.to_string_lossy().starts_with("REDLOCKD_")) {
        return Err(format!("{} is set, which the target direct would take for itself alone: unset it", name.display()).into());
    }
    let words = ["redlockd", "serve"].into_iter().chain(serve.iter().map(String::as_str));
    let Command::Serve(args) = Cli::try_parse_from(words)?.command else { return Err("these are not for serve".into()) };
    let words = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    args.layers().resolve().map_err(|errors| words(errors).into())
}

async fn keep_house(coordinator: Arc<Coordinator>, registry: Arc<Registry>) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING);
    loop {
        ticks.tick().await;
        registry.upkeep();
        coordinator.forget_expired();
    }
}

impl Client for Direct {
    type Held = LockId;

    async fn take(&mut self, name: &str) -> Result<(LockId, Lease), Failure> {
        let coordinator = &self.library.coordinator;
        let (sent, received) = (Instant::now(), coordinator.now());
        let grant = coordinator.acquire(spec(name, self.terms, received)?).await.map_err(failure)?;
        let Some((validity, served_for)) = grant.answer() else {
            return Err(Failure::new("acquire: too late", "acquire: nothing was left of the TTL"));
        };
        let Ok(token) = &grant.token else {
            return Err(Failure::lie(format!("acquire: {:?} for a token", grant.token)));
        };
        let lease = Lease { ends: sent + served_for + validity.as_duration(), token: Some(token.get()) };
        if validity.as_duration() > self.terms.ttl {
            return Err(Failure::lie(format!("acquire: a validity of {validity:?} with a TTL of {:?}", self.terms.ttl)));
        }
        let id = grant.lock_id();
        grant.delivered();
        Ok((id, lease))
    }

    async fn give_back(&mut self, id: LockId) -> Result<(), Failure> {
        match self.library.coordinator.release(&id).await {
            Ok(Released::Released) => Ok(()),
            Ok(Released::NotHeld) => Err(Failure::new("release: not held", "release: the lease had ended before")),
            Err(no_quorum) => Err(Failure::new("release: unavailable", format!("release: {no_quorum:?}"))),
        }
    }
}

fn spec(name: &str, terms: Terms, received: tokio::time::Instant) -> Result<AcquireSpec, Failure> {
    let wrong = |what: String| Failure::new("acquire: invalid argument", what);
    let name = LockName::new(name).map_err(|error| wrong(error.to_string()))?;
    let ttl = Ttl::from_millis(terms.ttl.as_millis() as u64, Ttl::LONGEST);
    let ttl = ttl.ok_or_else(|| wrong(format!("a TTL of {:?}", terms.ttl)))?;
    Ok(AcquireSpec {
        name,
        ttl,
        wait: terms.wait,
        owner: None,
        token_required: true,
        request: None,
        min_validity_ms: 1,
        received,
        deadline: None,
    })
}

fn failure(failure: AcquireFailure) -> Failure {
    let kind = match &failure {
        AcquireFailure::Contended { .. } => "acquire: contended",
        AcquireFailure::LineFull(_) => "acquire: resource exhausted",
        AcquireFailure::NoQuorum(_) | AcquireFailure::NoToken(_) | AcquireFailure::Draining => "acquire: unavailable",
        AcquireFailure::TooLate { .. } => "acquire: too late",
        AcquireFailure::Deadline => "acquire: deadline exceeded",
    };
    Failure::new(kind, format!("acquire: {failure:?}"))
}
