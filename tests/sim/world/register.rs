//! The protected resource: takes a write if its token is not below the highest that it has seen.

use std::collections::BTreeMap;

/// One for each name.
#[derive(Debug, Default)]
pub struct Register {
    highest: BTreeMap<String, u64>,
}

impl Register {
    /// Whether the write is taken.
    pub fn write(&mut self, name: &str, token: u64) -> bool {
        let highest = self.highest.entry(name.to_owned()).or_default();
        let accepted = token >= *highest;
        *highest = token.max(*highest);
        accepted
    }
}
