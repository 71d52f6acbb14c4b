//! Section 1 and 4: fencing tokens strictly rise in grant order, per lock name, always.
//!
//! One grant is before another if it surely had been made when the other can not have been made yet.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::history::{History, Lease};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut by_name: BTreeMap<&str, Vec<(u64, &Lease)>> = BTreeMap::new();
    for lease in &history.leases {
        if let Some(token) = lease.token {
            by_name.entry(&lease.name).or_default().push((token, lease));
        }
    }
    by_name.values().flat_map(|grants| repeated(grants).chain(falling(grants)).collect::<Vec<_>>()).collect()
}

fn repeated<'a>(grants: &'a [(u64, &Lease)]) -> impl Iterator<Item = Violation> + 'a {
    let mut seen = BTreeSet::new();
    let twice = grants.iter().filter(move |(token, _)| !seen.insert(*token));
    twice.map(|(token, lease)| Violation {
        invariant: "tokens",
        what: format!("{}: token {token} was handed out twice, the second time to {}", lease.name, lease.client),
    })
}

/// For every grant, the highest token of those that were surely made before it.
fn falling(grants: &[(u64, &Lease)]) -> Vec<Violation> {
    let mut made = grants.to_vec();
    made.sort_by_key(|(_, lease)| lease.granted_by);
    let mut begun = grants.to_vec();
    begun.sort_by_key(|(_, lease)| lease.not_before);
    let mut made = made.into_iter().peekable();
    let mut highest: Option<(u64, &Lease)> = None;
    let mut found = Vec::new();
    for (token, lease) in begun {
        while let Some(earlier) = made.next_if(|(_, earlier)| earlier.granted_by < lease.not_before) {
            if highest.is_none_or(|(most, _)| most < earlier.0) {
                highest = Some(earlier);
            }
        }
        if let Some((most, earlier)) = highest.filter(|(most, _)| token < *most) {
            let what = format!(
                "{}: {} got token {token} at {:?}, after {} had got {most} at {:?}",
                lease.name, lease.client, lease.granted_by, earlier.client, earlier.granted_by
            );
            found.push(Violation { invariant: "tokens", what });
        }
    }
    found
}
