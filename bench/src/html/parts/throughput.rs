//! Pairs a second over the number of clients, and targets side by side.

use crate::results::Row;

use super::super::Report;
use super::super::bars::{self, Bar};
use super::super::markup::Markup;
use super::super::numbers::{maybe, ratio, three_digits, whole};
use super::super::plot::{Line, Plot, Point, SMALL};
use super::super::scale::Axis;
use super::super::table;
use super::rows::{clients, setup_text, targets};
use super::{figure, heading, plots};

impl Report<'_> {
    pub(in super::super) fn throughput(&self, page: &mut Markup) {
        let rows = self.compared();
        let Some(setup) = self.setup() else { return };
        heading(page, "Throughput", &format!("Lock pairs a second: {}.", setup_text(setup)));
        plots(page, |page| {
            if self.by_clients().len() > 1 {
                figure(page, "Throughput over clients", "median of the windows, bars from least to most", |page| {
                    self.over_clients(&rows).draw(page, SMALL);
                    self.legend(page, targets(&rows));
                });
            }
            for (number, rows) in self.by_clients() {
                let caption = format!("Side by side, {}", clients(number));
                figure(page, &caption, "pairs/s, and times those of rslock; whiskers from least to most", |page| {
                    bars::draw(page, &caption, &rows.iter().map(|row| self.bar(row)).collect::<Vec<_>>());
                });
            }
        });
        table::draw(
            page,
            &["target", "clients", "pairs/s", "least to most", "of rslock", "p50 ms", "p99 ms", "p99.9 ms", "CPU \u{b5}s/pair"],
            &rows.iter().map(|row| cells(row)).collect::<Vec<_>>(),
        );
    }

    fn over_clients(&self, rows: &[&Row]) -> Plot {
        let line = |target: &str| {
            let mut points: Vec<Point> = rows.iter().filter(|row| row.target == target).map(|row| point(row)).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            Line { look: Some(self.looks.of(target)), points, gap: None }
        };
        let numbers: Vec<f64> = self.by_clients().iter().map(|(clients, _)| f64::from(*clients)).collect();
        Plot {
            title: "Throughput over the number of clients".to_owned(),
            x: Axis::doubling("clients", &numbers),
            y: Axis::from_zero("pairs/s", rows.iter().flat_map(|row| [row.pairs_per_s, row.pairs_per_s_most])),
            lines: targets(rows).into_iter().map(line).collect(),
            bands: Vec::new(),
            mark: None,
        }
    }

    fn bar(&self, row: &Row) -> Bar {
        let times = row.ratio_to_rslock.map_or_else(String::new, |times| format!(" ({times:.2}\u{d7})"));
        let text = format!("{}{times}", whole(row.pairs_per_s));
        let bar = Bar::whole(&row.target, self.looks.of(&row.target), row.pairs_per_s, text);
        Bar { range: Some((row.pairs_per_s_least, row.pairs_per_s_most)), ..bar }
    }
}

fn point(row: &Row) -> Point {
    let tip = format!(
        "{}, {}: {} pairs/s, {} to {}",
        row.target,
        clients(row.clients),
        whole(row.pairs_per_s),
        whole(row.pairs_per_s_least),
        whole(row.pairs_per_s_most)
    );
    let range = Some((row.pairs_per_s_least, row.pairs_per_s_most));
    Point { x: f64::from(row.clients), y: row.pairs_per_s, range, tip }
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.target.clone(),
        whole(f64::from(row.clients)),
        whole(row.pairs_per_s),
        format!("{} to {}", whole(row.pairs_per_s_least), whole(row.pairs_per_s_most)),
        ratio(row.ratio_to_rslock),
        three_digits(row.latency.p50_ms),
        three_digits(row.latency.p99_ms),
        three_digits(row.latency.p999_ms),
        maybe(row.cpu_us_per_pair),
    ]
}
