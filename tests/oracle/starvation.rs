//! Waiters at every proxy get their turns (section 5): a line is passed over for a while, never for long. Judged only where
//! nothing went wrong, because a proxy that reaches no quorum can get nothing.

use super::Violation;
use super::history::{At, History, Wait};

/// So many grants in a row to waiters elsewhere. A turn is of five at most in the simulation, and which of two proxies has the
/// next one is chance: thirty lost in a row are none.
const MOST: usize = 150;

pub(super) fn check(history: &History) -> Vec<Violation> {
    if !history.faults.is_empty() {
        return Vec::new();
    }
    history.waits.iter().filter_map(|wait| passed_over(history, wait)).collect()
}

fn passed_over(history: &History, wait: &Wait) -> Option<Violation> {
    let end = wait.got.or(wait.left).unwrap_or(At::MAX);
    let got = |own: bool| {
        let of_name = history.waits.iter().filter(|other| other.name == wait.name);
        of_name.filter(move |other| (other.line == wait.line) == own).filter_map(|other| other.got).filter(|at| *at < end)
    };
    let since = got(true).max().map_or(wait.joined, |last| last.max(wait.joined));
    let elsewhere = got(false).filter(|at| *at > since).count();
    (elsewhere > MOST).then(|| Violation {
        invariant: "starvation",
        what: format!(
            "{}: {}, in line since {:?}, saw {elsewhere} grants elsewhere from {since:?} to {end:?}, and none here",
            wait.line, wait.client, wait.joined
        ),
    })
}
