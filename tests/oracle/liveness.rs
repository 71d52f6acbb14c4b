//! Nothing hangs: every call is answered by the time at which it had to be.

use super::Violation;
use super::history::History;

pub(super) fn check(history: &History) -> Vec<Violation> {
    let late = history.calls.iter().filter(|call| call.answered.is_none_or(|answered| answered > call.due));
    late.map(|call| Violation {
        invariant: "liveness",
        what: format!("{}: sent at {:?}, due by {:?}, answered: {:?}", call.what, call.sent, call.due, call.answered),
    })
    .collect()
}
