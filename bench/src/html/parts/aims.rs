//! What the project has set itself, and what came of it.

use crate::results::{Aim, Better, Verdict};

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::{NONE, ratio, with_unit};
use super::heading;

impl Report<'_> {
    pub(in super::super) fn aims(&self, page: &mut Markup) {
        let aims = &self.results.aims;
        if aims.is_empty() {
            return;
        }
        heading(page, "Ratios and aims", "What must be (floor), what should be (aim), and what was measured.");
        page.tag("div", &[("class", &"scroll aims"), ("tabindex", &"0")], |page| {
            page.tag("table", &[], |table| {
                table.tag("thead", &[], |head| {
                    head.tag("tr", &[], |row| {
                        ["", "floor", "aim", "measured", ""].iter().for_each(|text| row.leaf("th", &[], text));
                    });
                });
                table.tag("tbody", &[], |body| aims.iter().for_each(|aim| one(body, aim)));
            });
        });
    }
}

fn one(body: &mut Markup, aim: &Aim) {
    let figure = |number: f64| {
        if aim.unit.is_empty() { ratio(Some(number)) } else { with_unit(number, &aim.unit) }
    };
    let side = match aim.better {
        Better::Higher => "\u{2265}",
        Better::Lower => "\u{2264}",
    };
    let bound = |bound: Option<f64>| bound.map_or_else(|| NONE.to_owned(), |bound| format!("{side} {}", figure(bound)));
    let (class, verdict) = match aim.verdict() {
        Verdict::AimMet if aim.aim.is_none() => ("good-text", "\u{2713} met"),
        Verdict::AimMet => ("good-text", "\u{2713} aim met"),
        Verdict::FloorMet if aim.aim.is_none() => ("good-text", "\u{2713} met"),
        Verdict::FloorMet => ("fair-text", "\u{2713} floor met"),
        Verdict::Missed => ("bad-text", "\u{2717} missed"),
        Verdict::NotMeasured => ("no-text", "not in this run"),
    };
    body.tag("tr", &[], |row| {
        row.leaf("td", &[], &aim.what);
        row.leaf("td", &[], bound(aim.floor));
        row.leaf("td", &[], bound(aim.aim));
        row.tag("td", &[], |cell| {
            cell.text(aim.measured.map_or_else(|| NONE.to_owned(), figure));
            if let (Some(least), Some(most)) = (aim.least, aim.most) {
                cell.leaf("small", &[], format_args!("{} to {}", figure(least), figure(most)));
            }
        });
        row.leaf("td", &[("class", &class)], verdict);
    });
}
