//! What a pair costs, and who pays it.

use crate::results::Row;

use super::super::Report;
use super::super::bars::{self, Bar, Part};
use super::super::markup::Markup;
use super::super::numbers::three_digits;
use super::rows::clients;
use super::{figure, heading, plots};

/// Class and words for each kind of process.
const KINDS: [(&str, &str); 4] = [("client", "client"), ("proxy", "proxy"), ("redis", "Redis"), ("etcd", "etcd")];

impl Report<'_> {
    pub(in super::super) fn cpu(&self, page: &mut Markup) {
        let measured = |rows: Vec<_>| rows.into_iter().filter(|row: &&Row| row.cpu_us_per_pair.is_some()).collect::<Vec<_>>();
        let by_clients: Vec<_> = self
            .by_clients()
            .into_iter()
            .map(|(number, rows)| (number, measured(rows)))
            .filter(|(_, rows)| !rows.is_empty())
            .collect();
        if by_clients.is_empty() {
            return;
        }
        heading(page, "CPU", "Microseconds of CPU, user and system, that all processes together spend on one pair.");
        legend(page);
        plots(page, |page| {
            for (number, rows) in by_clients {
                let caption = clients(number);
                figure(page, &caption, "\u{b5}s of CPU for a pair", |page| {
                    bars::draw(
                        page,
                        &format!("CPU for a pair, {caption}"),
                        &rows.iter().map(|row| bar(row)).collect::<Vec<_>>(),
                    );
                });
            }
        });
    }
}

fn legend(page: &mut Markup) {
    page.tag("ul", &[("class", &"legend")], |list| {
        for (class, name) in KINDS {
            list.tag("li", &[("class", &class)], |item| {
                item.leaf("span", &[("class", &"swatch")], "");
                item.text(if class == "client" { "client, load generator included" } else { name });
            });
        }
    });
}

fn bar(row: &Row) -> Bar {
    let cpu = &row.cpu;
    let figures = [cpu.client_us_per_pair, cpu.proxy_us_per_pair, cpu.redis_us_per_pair, cpu.etcd_us_per_pair];
    let parts = KINDS.iter().zip(figures).filter_map(|((class, name), figure)| {
        let figure = figure?;
        let tip = format!("{}, {name}: {} \u{b5}s", row.target, three_digits(figure));
        Some(Part { class: (*class).to_owned(), figure, tip })
    });
    let text = three_digits(row.cpu_us_per_pair.unwrap_or_default());
    Bar { name: row.target.clone(), parts: parts.collect(), range: None, text }
}
