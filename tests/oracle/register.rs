//! Section 1: the fencing token lets the protected resource reject the stale holder, whatever breaks.
//!
//! The resource accepts a token that is not below the highest that it has seen. It has failed if it took a write of a lease
//! after one of a lease that was granted later, or if it refused the newer of the two.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{History, Lease, Write};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut newest: BTreeMap<&str, (&Write, &Lease)> = BTreeMap::new();
    let mut found = Vec::new();
    for write in &history.writes {
        let lease = &history.leases[write.lease];
        let known = newest.get(write.name.as_str()).copied();
        if let Some((last, holder)) = known {
            let stale = lease.granted_by < holder.not_before;
            let newer = holder.granted_by < lease.not_before;
            if write.accepted && stale {
                found.push(violation(write, lease, last, holder, TAKEN));
            }
            if !write.accepted && newer {
                found.push(violation(write, lease, last, holder, "refused, though newer"));
            }
        }
        if write.accepted && known.is_none_or(|(_, holder)| holder.not_before <= lease.not_before) {
            newest.insert(&write.name, (write, lease));
        }
    }
    found
}

/// Writes of stale holders that the resource took.
pub(super) fn stale_writes_taken(history: &History) -> usize {
    check(history).iter().filter(|violation| violation.what.contains(TAKEN)).count()
}

const TAKEN: &str = "accepted, though stale";

fn violation(write: &Write, lease: &Lease, last: &Write, holder: &Lease, how: &str) -> Violation {
    let what = format!(
        "{}: the write of {} at {:?} (token {}) was {how} than that of {} at {:?} (token {})",
        write.name, lease.client, write.at, write.token, holder.client, last.at, last.token
    );
    Violation { invariant: "register", what }
}
