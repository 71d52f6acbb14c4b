//! Whoever waits at a proxy gets the lock before those who came to the same line later (section 5).

use super::Violation;
use super::history::{History, Wait};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let overtaken = |later: &Wait| {
        let got = later.got?;
        let waits = |earlier: &&Wait| earlier.joined < later.joined && earlier.left.is_none_or(|left| left > got);
        let earlier = history.waits.iter().filter(|earlier| earlier.line == later.line).find(waits)?;
        Some(Violation {
            invariant: "fifo",
            what: format!(
                "{}: {}, in line since {:?}, got it at {got:?}, and {}, in line since {:?}, still waited",
                later.line, later.client, later.joined, earlier.client, earlier.joined
            ),
        })
    };
    history.waits.iter().filter_map(overtaken).collect()
}
