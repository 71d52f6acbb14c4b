//! Section 1: a lock whose holder died becomes free within its TTL plus one retry; a quorum that is up is enough. So after
//! all faults have healed, the next acquire succeeds in bounded time.

use super::Violation;
use super::history::History;

pub(super) fn check(history: &History) -> Vec<Violation> {
    let late = history.recoveries.iter().filter(|recovery| recovery.granted.is_none_or(|granted| granted > recovery.due));
    late.map(|recovery| Violation {
        invariant: "recovery",
        what: format!(
            "{}: asked for at {:?}, after the last fault, due by {:?}, granted: {:?}",
            recovery.name, recovery.asked, recovery.due, recovery.granted
        ),
    })
    .collect()
}
