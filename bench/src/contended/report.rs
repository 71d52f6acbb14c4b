//! What was measured, in Markdown: to be read as it is, and to be pasted where it is kept.

use std::fmt;

use crate::line::Turns;
use crate::tables::markdown;
pub use crate::tables::number;

/// The failures that are told in words.
const FAILURES_SHOWN: usize = 10;

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    tables: Vec<Table>,
    figures: Vec<Figure>,
    /// Turns that failed, promises that were broken, and locks that were left behind.
    pub failures: u64,
    failures_shown: Vec<String>,
}

/// Details, for people.
#[derive(Debug)]
pub struct Table {
    pub title: String,
    pub head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

/// A figure that there is an aim for.
#[derive(Debug)]
pub struct Figure {
    pub what: String,
    pub aim: Aim,
    pub measured: f64,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

impl Aim {
    fn is_met_by(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound,
            Self::AtMost(bound) => measured <= bound,
            Self::Below(bound) => measured < bound,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
            Self::Below(bound) => write!(f, "below {bound}"),
        }
    }
}

impl Report {
    /// Takes in a table and the figures that were made of it.
    pub fn add(&mut self, table: Table, figures: impl IntoIterator<Item = Figure>) {
        self.tables.push(table);
        self.figures.extend(figures);
    }

    /// Takes in what failed of some turns.
    pub fn count_failures(&mut self, turns: &Turns) {
        self.failures += turns.failures;
        self.show(&turns.failures_shown);
    }

    /// Takes in one more failure.
    pub fn failed(&mut self, what: String) {
        self.failures += 1;
        self.show(&[what]);
    }

    fn show(&mut self, failures: &[String]) {
        let room = FAILURES_SHOWN.saturating_sub(self.failures_shown.len());
        self.failures_shown.extend(failures.iter().take(room).cloned());
    }

    /// As it is printed.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            text += &format!("{}\n\n{}\n", table.title, markdown(&table.head, &table.rows));
        }
        if !self.figures.is_empty() {
            let rows: Vec<Vec<String>> = self.figures.iter().map(Figure::cells).collect();
            text += &format!("Aims\n\n{}", markdown(&["figure", "aim", "measured", ""], &rows));
        }
        if self.failures > 0 {
            text += &format!("\n{} FAILURES, among them:\n", self.failures);
            self.failures_shown.iter().for_each(|what| text += &format!("  {what}\n"));
        }
        text
    }
}

impl Figure {
    fn cells(&self) -> Vec<String> {
        let met = if self.aim.is_met_by(self.measured) { "met" } else { "missed" };
        vec![self.what.clone(), self.aim.to_string(), number(self.measured), met.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_met_at_their_bounds_but_those_below() {
        assert!(Aim::AtLeast(3.0).is_met_by(3.0) && !Aim::AtLeast(3.0).is_met_by(2.9));
        assert!(Aim::AtMost(1.1).is_met_by(1.1) && !Aim::AtMost(1.1).is_met_by(1.2));
        assert!(Aim::Below(100.0).is_met_by(99.9) && !Aim::Below(100.0).is_met_by(100.0));
        for aim in [Aim::AtLeast(1.0), Aim::AtMost(1.0), Aim::Below(1.0)] {
            assert!(!aim.is_met_by(f64::NAN), "nothing was measured");
        }
    }

    #[test]
    fn figures_say_aim_and_value() {
        let mut report = Report::default();
        let table = Table { title: "T".to_owned(), head: vec!["a", "b"], rows: vec![vec!["long".to_owned(), "1".to_owned()]] };
        let figure = Figure { what: "ratio".to_owned(), aim: Aim::AtMost(1.5), measured: 1.234 };
        report.add(table, [figure]);
        let text = "T\n\n| a    |   b |\n| ---- | --: |\n| long |   1 |\n\n\
                    Aims\n\n| figure |         aim | measured |     |\n| ------ | ----------: | -------: | --: |\n\
                    | ratio  | at most 1.5 |     1.23 | met |\n";
        assert_eq!(report.text(), text);
        report.failed("lie".to_owned());
        assert!(report.text().ends_with("\n1 FAILURES, among them:\n  lie\n"));
    }
}
