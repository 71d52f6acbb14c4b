//! The instructions that were counted when somebody last looked, and how new ones compare with them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::work::Work;

/// How far a figure may be from the stored one, in percent of it.
pub const TOLERANCE_PERCENT: u64 = 5;

const HEAD: &str =
    "# Instructions of the acquire path, counted by callgrind: written by `make micro-renew`, compared by `make micro`.\n";

/// What is stored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// `rustc --version` of the compiler that built what was counted.
    pub compiler: String,
    /// By the name of the work.
    pub instructions: BTreeMap<String, u64>,
}

impl Figures {
    /// Those in a file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}; `make micro-renew` writes it", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}; `make micro-renew` writes it anew", path.display()))
    }

    /// Keeps them.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        fs::write(path, format!("{HEAD}{text}")).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// A count beside the stored one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Of what.
    pub work: Work,
    /// Now.
    pub counted: u64,
    /// Before; `None`: nothing is stored.
    pub stored: Option<u64>,
}

impl Comparison {
    /// How much more than before, as a part of that.
    fn change(&self) -> Option<f64> {
        let stored = self.stored.filter(|stored| *stored > 0)?;
        Some(self.counted as f64 / stored as f64 - 1.0)
    }

    /// Whether it is as it was.
    pub fn is_good(&self) -> bool {
        // In whole numbers: 950 of 1,000 is no more than 5 % away.
        let is_close = |stored: u64| self.counted.abs_diff(stored) * 100 <= stored * TOLERANCE_PERCENT;
        self.stored.is_some_and(|stored| stored > 0 && is_close(stored))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { work, counted, .. } = self;
        write!(f, "{:>8} instructions {}, ", counted, work.unit())?;
        match (self.stored, self.change()) {
            (Some(stored), Some(change)) => {
                let word = if self.is_good() { "good" } else { "NOT WITHIN 5 %" };
                write!(f, "stored {stored}: {:+.2} %, {word}", change * 100.0)
            }
            _ => write!(f, "none stored: NOT GOOD"),
        }
    }
}

/// What to do about figures that are not as they were; `compiler`: that of now.
pub fn advice(stored: &Figures, compiler: &str) -> String {
    let mut text = "What to do: more instructions are time that every lock pays. Find them (`valgrind --tool=callgrind \
                    target/release/redlockd-micro run pair_in_a_crowd 4096`, then `callgrind_annotate`) before and after your \
                    change. If they are worth it, or if there are fewer of them, `make micro-renew` stores the new figures: \
                    commit them with the change, and say why. "
        .to_owned();
    text += &if stored.compiler == compiler {
        format!(
            "The compiler is the same as when they were stored ({compiler}), so the change is in the code or in Cargo.lock."
        )
    } else {
        format!(
            "Another compiler alone may shift the figures: they were stored with {}, and this is {compiler}. Count the code as \
             it was before your change with this compiler first.",
            stored.compiler
        )
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counted: u64, stored: Option<u64>) -> Comparison {
        Comparison { work: Work::Alone, counted, stored }
    }

    #[test]
    fn a_figure_is_good_within_five_percent_either_way() {
        for good in [950, 1_000, 1_050] {
            assert!(of(good, Some(1_000)).is_good(), "{good}");
        }
        for bad in [of(949, Some(1_000)), of(1_051, Some(1_000)), of(1_000, None), of(1_000, Some(0))] {
            assert!(!bad.is_good(), "{bad}");
            assert!(bad.to_string().contains("NOT"), "{bad}");
        }
        assert!(of(1_020, Some(1_000)).to_string().contains("+2.00 %"));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("figures.toml");
        let missing = Figures::read(&path).expect_err("nothing is there");
        assert!(missing.contains("figures.toml") && missing.contains("make micro-renew"), "{missing}");
        let figures = Figures { compiler: "rustc 1".to_owned(), instructions: [("codec".to_owned(), 17)].into() };
        figures.write(&path).expect("it can be written");
        assert_eq!(Figures::read(&path), Ok(figures.clone()));
        assert!(advice(&figures, "rustc 1").contains("the same"));
        assert!(advice(&figures, "rustc 2").contains("Another compiler"));
    }
}
