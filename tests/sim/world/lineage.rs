//! Which values stand for one lease: an adoption gives it another one.

use std::collections::BTreeMap;

/// From a value to the first one of its lease. A value that nobody adopted is the first itself.
#[derive(Debug, Default)]
pub struct Lineage(BTreeMap<String, String>);

impl Lineage {
    /// `new` shall stand for the lease of `old`.
    pub fn adopt(&mut self, old: &str, new: &str) {
        let first = self.first(old).to_owned();
        self.0.insert(new.to_owned(), first);
    }

    /// The first value of the lease that `value` stands for.
    pub fn first<'a>(&'a self, value: &'a str) -> &'a str {
        self.0.get(value).map_or(value, String::as_str)
    }
}
