//! Section 1: at most one valid exclusive lease per lock name, at the client.

use std::collections::BTreeMap;

use super::Violation;
use super::history::{Held, History, Lease};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut by_name: BTreeMap<&str, Vec<(Held, &Lease)>> = BTreeMap::new();
    for lease in &history.leases {
        if let Some(held) = lease.held.filter(|held| held.from < held.until) {
            by_name.entry(&lease.name).or_default().push((held, lease));
        }
    }
    by_name.values_mut().flat_map(overlaps).collect()
}

fn overlaps(leases: &mut Vec<(Held, &Lease)>) -> Vec<Violation> {
    leases.sort_by_key(|(held, _)| (held.from, held.until));
    let mut found = Vec::new();
    let mut longest: Option<(Held, &Lease)> = None;
    for &(held, lease) in leases.iter() {
        if let Some((before, holder)) = longest.filter(|(before, _)| held.from < before.until) {
            let what = format!(
                "{}: {} holds it from {:?} to {:?} (token {:?}), {} from {:?} to {:?} (token {:?})",
                lease.name,
                holder.client,
                before.from,
                before.until,
                holder.token,
                lease.client,
                held.from,
                held.until,
                lease.token
            );
            found.push(Violation { invariant: "exclusion", what });
        }
        if longest.is_none_or(|(before, _)| before.until < held.until) {
            longest = Some((held, lease));
        }
    }
    found
}
