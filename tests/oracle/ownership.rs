//! Section 3: only the holder releases or renews; every script compares the whole value. And nobody tells the holder that
//! its lease was lost while it was not.

use super::Violation;
use super::history::History;

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for removal in history.removals.iter().filter(|removal| removal.stood != removal.by) {
        let what = format!(
            "{} on {} at {:?}: {:?} was removed by an operation of {:?}",
            removal.key, removal.node, removal.at, removal.stood, removal.by
        );
        found.push(Violation { invariant: "ownership", what });
    }
    for intrusion in history.intrusions.iter().filter(|intrusion| intrusion.worked) {
        let lease = &history.leases[intrusion.lease];
        let what = format!(
            "{} at {:?}: to {} the lease of {} (token {:?}) worked, which had ended",
            lease.name, intrusion.at, intrusion.what, lease.client, lease.token
        );
        found.push(Violation { invariant: "ownership", what });
    }
    for denial in &history.denials {
        let lease = &history.leases[denial.lease];
        let what = format!(
            "{}: {} asked to {} its lease (token {:?}) and was told at {:?} that it had been lost, which was promised for longer",
            lease.name, lease.client, denial.what, lease.token, denial.at
        );
        found.push(Violation { invariant: "ownership", what });
    }
    found
}
