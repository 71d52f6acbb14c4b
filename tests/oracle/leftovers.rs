//! Section 3: an attempt that was given up leaves no key once all is quiet, or only such as a fault made unknowable.

use super::Violation;
use super::history::History;

pub(super) fn check(history: &History) -> Vec<Violation> {
    let left = history.leftovers.iter().filter(|left| left.excused.is_none());
    left.map(|left| Violation {
        invariant: "leftovers",
        what: format!("{} is still on {}, and is no lease's", left.key, left.node),
    })
    .collect()
}
