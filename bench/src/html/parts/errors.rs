//! What failed, by kind, wherever it did.

use crate::results::ErrorCount;

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::whole;
use super::super::table;
use super::heading;
use super::rows::clients;

impl Report<'_> {
    pub(in super::super) fn errors(&self, page: &mut Markup) {
        let results = self.results;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut add = |place: String, errors: &[ErrorCount]| {
            rows.extend(
                errors
                    .iter()
                    .map(|error| vec![place.clone(), error.kind.clone(), whole(error.count as f64), error.example.clone()]),
            );
        };
        for row in &results.rows {
            add(format!("{}, {}", row.target, clients(row.clients)), &row.errors);
        }
        for open in &results.open_loop {
            let steps = open.steps.iter();
            steps.for_each(|step| add(format!("{} at {} pairs/s", open.target, whole(step.offered_per_s)), &step.errors));
        }
        for fault in &results.faults {
            let phases = [("before", Some(&fault.before)), ("during", Some(&fault.during)), ("after", fault.after.as_ref())];
            for (name, phase) in phases {
                add(format!("{}, {name}: {}", fault.target, fault.what), phase.map_or(&[], |phase| &phase.errors));
            }
        }
        if rows.is_empty() {
            return;
        }
        heading(page, "Errors", "Operations that failed, by kind, with the first of each kind in full.");
        page.tag("div", &[("class", &"words")], |page| {
            table::draw(page, &["where", "kind", "count", "the first of them"], &rows)
        });
    }
}
