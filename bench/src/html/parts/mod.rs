//! The parts of the page. Each writes nothing if there is nothing to show.

mod aims;
mod cpu;
mod errors;
mod faults;
mod head;
mod latency;
mod open_loop;
mod rows;
mod setups;
mod throughput;
mod timelines;

use super::Report;
use super::look::{Look, legend};
use super::markup::Markup;

/// A heading.
fn heading(page: &mut Markup, text: &str, about: &str) {
    page.leaf("h2", &[], text);
    if !about.is_empty() {
        page.leaf("p", &[("class", &"soft")], about);
    }
}

/// Plots side by side where there is room.
fn plots(page: &mut Markup, inside: impl FnOnce(&mut Markup)) {
    page.tag("div", &[("class", &"plots")], inside);
}

/// A plot with what it shows.
fn figure(page: &mut Markup, caption: &str, about: &str, inside: impl FnOnce(&mut Markup)) {
    page.tag("figure", &[], |figure| {
        figure.tag("figcaption", &[], |text| {
            text.text(caption);
            if !about.is_empty() {
                text.leaf("small", &[], about);
            }
        });
        inside(figure);
    });
}

impl Report<'_> {
    /// Which look is whose, of these targets in this order.
    fn legend<'a>(&self, page: &mut Markup, targets: impl IntoIterator<Item = &'a str>) {
        let mut named: Vec<(&str, Look)> = Vec::new();
        for target in targets {
            if !named.iter().any(|(known, _)| *known == target) {
                named.push((target, self.looks.of(target)));
            }
        }
        // One alone is named by the caption.
        if named.len() > 1 {
            legend(page, named);
        }
    }
}
