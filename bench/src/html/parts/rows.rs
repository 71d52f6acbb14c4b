//! Rows of the results by what they have in common.

use crate::results::{Row, Setup};

use super::super::Report;
use super::super::numbers::whole;

impl Report<'_> {
    /// The setup of the comparison: the one with the most rows, the first of them if there are several. It names nodes and
    /// proxies, if any row does: some targets have none.
    pub(super) fn setup(&self) -> Option<&Setup> {
        let rows = &self.results.rows;
        let count = |setup: &Setup| rows.iter().filter(|row| row.setup == *setup).count();
        let weight = |setup: &&Setup| (setup.nodes > 0 && setup.proxies > 0, count(setup));
        rows.iter().rev().map(|row| &row.setup).max_by_key(weight)
    }

    /// The rows of the comparison.
    pub(super) fn compared(&self) -> Vec<&Row> {
        let Some(setup) = self.setup() else {
            return Vec::new();
        };
        self.results.rows.iter().filter(|row| fits(&row.setup, setup)).collect()
    }

    /// All others.
    pub(super) fn not_compared(&self) -> Vec<&Row> {
        let Some(setup) = self.setup() else {
            return Vec::new();
        };
        self.results.rows.iter().filter(|row| !fits(&row.setup, setup)).collect()
    }

    /// The same, by the number of clients, which rises.
    pub(super) fn by_clients(&self) -> Vec<(u32, Vec<&Row>)> {
        let mut all: Vec<(u32, Vec<&Row>)> = Vec::new();
        for row in self.compared() {
            match all.iter_mut().find(|(clients, _)| *clients == row.clients) {
                Some((_, rows)) => rows.push(row),
                None => all.push((row.clients, vec![row])),
            }
        }
        all.sort_by_key(|(clients, _)| *clients);
        all
    }
}

/// Whether a row with this setup stands beside those of `standard`: its target may do without nodes or proxies.
fn fits(setup: &Setup, standard: &Setup) -> bool {
    let alike = |own: u32, standard: u32| own == standard || own == 0;
    let beside = (setup.held, setup.waiters) == (standard.held, standard.waiters);
    beside && alike(setup.nodes, standard.nodes) && alike(setup.proxies, standard.proxies)
}

/// The targets of some rows, in their order.
pub(super) fn targets<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut all: Vec<&str> = Vec::new();
    for row in rows {
        if !all.contains(&row.target.as_str()) {
            all.push(&row.target);
        }
    }
    all
}

/// `1 client`, `64 clients`.
pub(super) fn clients(number: u32) -> String {
    if number == 1 { "1 client".to_owned() } else { format!("{number} clients") }
}

/// In words.
pub(super) fn setup_text(setup: &Setup) -> String {
    let many = |number: u64, one: &str, more: &str| {
        (number > 0).then(|| format!("{} {}", whole(number as f64), if number == 1 { one } else { more }))
    };
    let parts = [
        many(setup.nodes.into(), "node", "nodes"),
        many(setup.proxies.into(), "proxy", "proxies"),
        many(setup.held, "other lock held", "other locks held"),
        many(setup.waiters.into(), "waiter at each of the other proxies", "waiters at each of the other proxies"),
    ];
    let named: Vec<String> = parts.into_iter().flatten().collect();
    if named.is_empty() { "nothing else".to_owned() } else { named.join(", ") }
}
