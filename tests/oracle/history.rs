//! What happened in a run, as an observer outside of it saw it, in true time. Recorded by the simulation and by the runs on
//! real servers; judged by the oracle.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// An instant in true time, since the run began.
pub type At = Duration;

/// The number of a lease in its history.
pub type LeaseId = usize;

/// A span of time during which a client could rely on a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The client had received the grant.
    pub from: At,
    /// Its validity ended, by the client's own clock, or the client began to give it back.
    pub until: At,
}

/// One grant.
#[derive(Clone, Debug)]
pub struct Lease {
    /// What is locked.
    pub name: String,
    /// Who asked, for people.
    pub client: String,
    /// The fencing token.
    pub token: Option<u64>,
    /// It can not have been granted before: a quorum of nodes had set it, or, where nobody sees that, the request was sent.
    pub not_before: At,
    /// It surely had been granted: the proxy answered, or, where nobody sees that, the client received the answer.
    pub granted_by: At,
    /// When the client could rely on it; `None` if the answer never reached it.
    pub held: Option<Held>,
}

/// A write to the protected resource, as it arrived there.
#[derive(Clone, Debug)]
pub struct Write {
    /// When.
    pub at: At,
    /// What is protected.
    pub name: String,
    /// By the holder of which lease.
    pub lease: LeaseId,
    /// What it showed.
    pub token: u64,
    /// What the resource said.
    pub accepted: bool,
}

/// A call to a proxy.
#[derive(Clone, Debug)]
pub struct Call {
    /// What, by whom, for people.
    pub what: String,
    /// When the client sent it.
    pub sent: At,
    /// When it had the answer, or had given up waiting as it said it would.
    pub answered: Option<At>,
    /// When it had to be answered.
    pub due: At,
}

/// A caller in line for a lock.
#[derive(Clone, Debug)]
pub struct Wait {
    /// What for.
    pub name: String,
    /// Of which proxy, in which of its lives, for which name.
    pub line: String,
    /// Who, for people.
    pub client: String,
    /// When it came.
    pub joined: At,
    /// When it got the lock.
    pub got: Option<At>,
    /// When it left, with or without it.
    pub left: Option<At>,
}

/// What the nodes that granted or renewed a lease keep of it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The lease.
    pub lease: LeaseId,
    /// Until when the client was told to rely on it.
    pub until: At,
    /// Until when a quorum of the nodes keeps it.
    pub kept_until: At,
}

/// A lock's key that was deleted or changed by an operation on a node.
#[derive(Clone, Debug)]
pub struct Removal {
    /// When.
    pub at: At,
    /// Where.
    pub node: String,
    /// The key.
    pub key: String,
    /// What stood there.
    pub stood: String,
    /// The value of the operation that removed it.
    pub by: String,
}

/// A release or renewal with a lock id that was not the holder's any more.
#[derive(Clone, Debug)]
pub struct Intrusion {
    /// When it was answered.
    pub at: At,
    /// The lease that it named.
    pub lease: LeaseId,
    /// What it tried, for people.
    pub what: String,
    /// Whether it was told that it had worked.
    pub worked: bool,
}

/// The holder of a lease was told that it is not held, at a time until which it had been promised.
#[derive(Clone, Debug)]
pub struct Denial {
    /// When it was told.
    pub at: At,
    /// The lease.
    pub lease: LeaseId,
    /// What it had asked for, for people.
    pub what: String,
}

/// What the client of a session was told of a lease, on one stream.
#[derive(Clone, Debug)]
pub struct Word {
    /// When.
    pub at: At,
    /// The number of the stream, all of the run counted.
    pub stream: usize,
    /// By which proxy: the name under which faults befall it.
    pub proxy: String,
    /// The lease.
    pub lease: LeaseId,
    /// What.
    pub said: Said,
    /// When the message was sent from which its client counts.
    pub counts_from: At,
    /// Until when its client may rely on it after that.
    pub until: At,
    /// Until when it may be held at most, if its client said so.
    pub hold_ends: Option<At>,
}

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// It was granted.
    Granted,
    /// It goes on in another session, or on another stream.
    Adopted,
    /// It goes on.
    Renewed,
    /// It may not.
    AtRisk,
    /// It does not. Nobody can know of it before, if somebody deleted it.
    Lost { not_held: bool },
    /// It was given back.
    Released,
    /// Nothing: its validity ended unannounced.
    Nothing,
    /// Its client did not listen for a while.
    Unheard,
}

/// A key that was still there when all was quiet and that belongs to no lease.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Where.
    pub node: String,
    /// The key.
    pub key: String,
    /// The fault that made it unknowable, if one did.
    pub excused: Option<String>,
}

/// An acquire after all faults had healed.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// What was locked.
    pub name: String,
    /// When it was asked for.
    pub asked: At,
    /// When it was granted, if it was.
    pub granted: Option<At>,
    /// When it had to be.
    pub due: At,
}

/// Something that was done to the world.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What, for people.
    pub what: String,
    /// To whom, for people: one line of the timeline.
    pub to: String,
    /// When it began.
    pub from: At,
    /// When it was over.
    pub until: At,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every grant.
    pub leases: Vec<Lease>,
    /// Every write, in the order of arrival.
    pub writes: Vec<Write>,
    /// Every call.
    pub calls: Vec<Call>,
    /// Every caller in line; empty where nobody can look into the proxies.
    pub waits: Vec<Wait>,
    /// What was promised and what was kept; empty where nobody can look into the nodes.
    pub promises: Vec<Promise>,
    /// Every removal; empty where nobody can look into the nodes.
    pub removals: Vec<Removal>,
    /// Every intrusion.
    pub intrusions: Vec<Intrusion>,
    /// Every denial.
    pub denials: Vec<Denial>,
    /// Every word of a session.
    pub words: Vec<Word>,
    /// What was left when all was quiet.
    pub leftovers: Vec<Leftover>,
    /// What became of every name after the last fault.
    pub recoveries: Vec<Recovery>,
    /// Every fault.
    pub faults: Vec<Fault>,
    /// Attempts that were answered without a grant, by how.
    pub losses: BTreeMap<&'static str, usize>,
    /// What happened, line by line.
    pub log: Log,
}

/// The lines of a history, in order: hashed, and kept if somebody wants to read them.
#[derive(Clone, Debug, Default)]
pub struct Log {
    hash: Sha256,
    lines: Option<Vec<String>>,
}

impl History {
    /// One that keeps its lines.
    pub fn verbose() -> Self {
        Self { log: Log { lines: Some(Vec::new()), ..Log::default() }, ..Self::default() }
    }

    /// Notes what happened. All that a run does goes through here, so that two runs of one seed can be compared.
    pub fn note(&mut self, at: At, what: fmt::Arguments<'_>) {
        let line = format!("{:>12.6} {what}", at.as_secs_f64());
        self.log.hash.update(line.as_bytes());
        self.log.hash.update(b"\n");
        if let Some(lines) = &mut self.log.lines {
            lines.push(line);
        }
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> String {
        let digest = self.log.hash.clone().finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &[String] {
        self.log.lines.as_deref().unwrap_or_default()
    }

    /// What a run achieved.
    pub fn tally(&self) -> Tally {
        Tally {
            grants: self.leases.iter().filter(|lease| lease.held.is_some()).count(),
            losses: self.losses.values().sum(),
            writes: self.writes.iter().filter(|write| write.accepted).count(),
            refused_writes: self.writes.iter().filter(|write| !write.accepted).count(),
        }
    }
}

/// What a run achieved: no victory is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Leases that their clients got to know of.
    pub grants: usize,
    /// Attempts without a grant.
    pub losses: usize,
    /// Writes that the resource accepted.
    pub writes: usize,
    /// Writes that it refused as stale.
    pub refused_writes: usize,
}
