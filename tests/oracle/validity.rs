//! Section 2: the validity that a client is told is never above what the granting quorum keeps.

use super::Violation;
use super::history::History;

pub(super) fn check(history: &History) -> Vec<Violation> {
    let broken = history.promises.iter().filter(|promise| promise.until > promise.kept_until);
    let violation = |promise: &super::history::Promise| {
        let lease = &history.leases[promise.lease];
        let what = format!(
            "{}: {} may rely on its lease until {:?}, a quorum keeps it until {:?}",
            lease.name, lease.client, promise.until, promise.kept_until
        );
        Violation { invariant: "validity", what }
    };
    broken.map(violation).collect()
}
