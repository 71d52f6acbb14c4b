//! Faults of nodes while they are loaded.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Error;
use crate::results::FaultKind;
use crate::servers::Stopped;

/// How long a slow node runs between two stops.
const AWAKE: Duration = Duration::from_millis(2);

/// What is done to nodes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    pub kind: FaultKind,
    pub nodes: usize,
    pub when: When,
    /// Of a slow node.
    pub delay: Duration,
}

/// From a time of the run on, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    pub at: Duration,
    pub lasts: Duration,
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?}: AT+LENGTH is expected, such as 15s+60s");
        let (at, lasts) = text.split_once('+').ok_or_else(expected)?;
        let [at, lasts] = [at, lasts].map(|time| humantime::parse_duration(time).map_err(|_| expected()));
        let when = Self { at: at?, lasts: lasts? };
        let bounds = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
        match bounds.contains(&when.at) && bounds.contains(&when.lasts) {
            true => Ok(when),
            false => Err(format!("{text:?}: both times are from 100ms to a day")),
        }
    }
}

impl FaultPlan {
    /// In words.
    pub fn words(&self, of: usize) -> String {
        let nodes = if self.nodes == 1 { format!("1 node of {of}") } else { format!("{} nodes of {of}", self.nodes) };
        match self.kind {
            FaultKind::Stop => format!("{nodes} hung (stopped by SIGSTOP)"),
            FaultKind::Kill => format!("{nodes} dead (SIGKILL)"),
            FaultKind::Slow => format!("{nodes} slow (stopped for {:?} after every {AWAKE:?})", self.delay),
        }
    }

    /// How long there is load: as long after the fault as before it. There is no after of a node that is killed.
    pub fn length(&self) -> Duration {
        let after = if self.ends() { self.when.at } else { Duration::ZERO };
        self.when.at + self.when.lasts + after
    }

    /// Whether the nodes come back.
    pub fn ends(&self) -> bool {
        self.kind != FaultKind::Kill
    }

    /// Begins it.
    pub fn begin(&self, pids: Vec<Pid>) -> Result<Active, Error> {
        Ok(match self.kind {
            FaultKind::Stop => Active::Stopped { _stopped: Stopped::new(pids)? },
            FaultKind::Slow => Active::Slow { _slow: Slow::begin(pids, self.delay)? },
            FaultKind::Kill => {
                pids.iter().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
                Active::Killed
            }
        })
    }
}

/// A fault that is there until this is dropped; a node that was killed stays dead.
pub enum Active {
    Stopped { _stopped: Stopped },
    Slow { _slow: Slow },
    Killed,
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped { .. } => "stopped",
            Self::Slow { .. } => "slow",
            Self::Killed => "killed",
        })
    }
}

/// Nodes that get little time: what a machine that is overloaded, or swaps, does to its processes. Their answers come late by
/// up to the delay. There is nothing in the way between them and their clients, which would cost time also without the fault.
pub struct Slow {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn begin(pids: Vec<Pid>, delay: Duration) -> Result<Self, Error> {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        // A thread of its own: the clients' threads are busy.
        let thread = std::thread::Builder::new().name("slow".to_owned()).spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // A node that is gone needs no stop.
                let Ok(stopped) = Stopped::new(pids.clone()) else { return };
                std::thread::sleep(delay);
                drop(stopped);
                std::thread::sleep(AWAKE);
            }
        });
        Ok(Self { over, thread: Some(thread?) })
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It lets the nodes go on before it ends, also when it panics.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    fn plan(kind: FaultKind) -> FaultPlan {
        let when = When { at: Duration::from_secs(15), lasts: Duration::from_secs(60) };
        FaultPlan { kind, nodes: 1, when, delay: Duration::from_millis(5) }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!("15s+1m".parse::<When>(), Ok(plan(FaultKind::Stop).when));
        for text in ["15s", "15+60", "0s+60s", "15s+0s", "", "+"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }

    #[test]
    fn there_is_as_much_after_as_before_unless_it_does_not_end() {
        assert_eq!(plan(FaultKind::Stop).length(), Duration::from_secs(90));
        assert_eq!(plan(FaultKind::Kill).length(), Duration::from_secs(75));
        assert_eq!(plan(FaultKind::Kill).words(5), "1 node of 5 dead (SIGKILL)");
    }

    struct Victim(Child);

    impl Drop for Victim {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn state(victim: &Victim) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.0.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1[..1].to_owned()
    }

    fn becomes(victim: &Victim, states: &[&str]) {
        let started = Instant::now();
        while !states.contains(&state(victim).as_str()) {
            assert!(started.elapsed() < Duration::from_secs(30), "{states:?} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nodes_suffer_while_it_lasts_and_go_on_after_it() {
        let victim = Victim(Command::new("sleep").arg("600").spawn().unwrap());
        let pids = || vec![Pid::from_raw(victim.0.id() as i32)];
        for kind in [FaultKind::Stop, FaultKind::Slow] {
            let active = plan(kind).begin(pids()).unwrap();
            becomes(&victim, &["T"]);
            if kind == FaultKind::Slow {
                becomes(&victim, &["S", "R"]);
                becomes(&victim, &["T"]);
            }
            drop(active);
            becomes(&victim, &["S", "R"]);
        }
        drop(plan(FaultKind::Kill).begin(pids()).unwrap());
        becomes(&victim, &["Z"]);
    }
}
