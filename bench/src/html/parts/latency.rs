//! How long a pair takes, by percentile.

use crate::results::{Latency, Row};

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::three_digits;
use super::super::plot::{Line, Plot, Point, SMALL};
use super::super::scale::Axis;
use super::rows::{clients, targets};
use super::{figure, heading, plots};

impl Report<'_> {
    pub(in super::super) fn latency(&self, page: &mut Markup) {
        let counted = |rows: &[&Row]| rows.iter().any(|row| row.latency.count > 0);
        let by_clients: Vec<_> = self.by_clients().into_iter().filter(|(_, rows)| counted(rows)).collect();
        if by_clients.is_empty() {
            return;
        }
        let about = "From the call to the end of the release, by percentile: at 99, one pair of a hundred took longer.";
        heading(page, "Latency", about);
        plots(page, |page| {
            for (number, rows) in by_clients {
                figure(page, &clients(number), "the whole pair", |page| {
                    self.percentiles(number, &rows).draw(page, SMALL);
                    self.legend(page, targets(&rows));
                });
            }
        });
    }

    fn percentiles(&self, number: u32, rows: &[&Row]) -> Plot {
        let rows = || rows.iter().filter(|row| row.latency.count > 0);
        let line = |row: &&Row| {
            let look = Some(self.looks.of(&row.target));
            Line { look, points: points(&row.target, &row.latency), gap: None }
        };
        Plot {
            title: format!("Latency by percentile, {}", clients(number)),
            x: Axis::percentiles(),
            y: Axis::log("ms", rows().flat_map(|row| curve(&row.latency)).map(|(_, ms)| ms)),
            lines: rows().map(line).collect(),
            bands: Vec::new(),
            mark: None,
        }
    }
}

/// Up to where the scale ends; from the summary, if there is no curve.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let summary = [
        (50.0, latency.p50_ms),
        (90.0, latency.p90_ms),
        (99.0, latency.p99_ms),
        (99.9, latency.p999_ms),
        (99.99, latency.p9999_ms),
    ];
    let curve = latency.curve.iter().map(|point| (point.percentile, point.ms));
    let curve: Vec<(f64, f64)> = if latency.curve.is_empty() { summary.to_vec() } else { curve.collect() };
    curve.into_iter().filter(|(percentile, _)| *percentile <= 99.99).collect()
}

fn points(target: &str, latency: &Latency) -> Vec<Point> {
    let tip = |percentile: f64, ms: f64| format!("{target}: {percentile} % within {} ms", three_digits(ms));
    let points = curve(latency).into_iter();
    points.map(|(percentile, ms)| Point { x: percentile, y: ms, range: None, tip: tip(percentile, ms) }).collect()
}
