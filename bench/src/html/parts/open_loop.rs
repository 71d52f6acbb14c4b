//! Rates that are given, whatever becomes of the earlier pairs.

use crate::results::{OpenLoop, Step};

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::{maybe, three_digits, whole};
use super::super::plot::{Line, Plot, Point, SMALL};
use super::super::scale::Axis;
use super::super::table;
use super::rows::setup_text;
use super::{figure, heading, plots};

impl Report<'_> {
    pub(in super::super) fn open_loop(&self, page: &mut Markup) {
        if self.results.open_loop.is_empty() {
            return;
        }
        let about = "Pairs come at a given rate, whatever becomes of those before. Latency counts from the instant at which a \
                     pair was due, so that waiting is not hidden.";
        heading(page, "At a given rate", about);
        for open in &self.results.open_loop {
            self.one_open_loop(page, open);
        }
    }

    fn one_open_loop(&self, page: &mut Markup, open: &OpenLoop) {
        page.tag("p", &[], |line| {
            line.leaf("strong", &[], &open.target);
            let most = whole(f64::from(open.clients));
            line.text(format_args!(
                ", {}; {} arrivals, at most {most} pairs under way. {}",
                setup_text(&open.setup),
                open.arrivals,
                knee(open)
            ));
        });
        if open.steps.len() > 1 {
            plots(page, |page| {
                figure(
                    page,
                    "What was carried",
                    "pairs/s that ended in the window; dashed: as many as were asked for",
                    |page| {
                        self.carried(open).draw(page, SMALL);
                    },
                );
                figure(page, "Latency over the rate", "from the due time to the end of the release", |page| {
                    latency(open).draw(page, SMALL);
                    super::legend(page, PERCENTILES.iter().enumerate().map(|(number, (name, _))| (*name, look(number))));
                });
            });
        }
        table::draw(
            page,
            &[
                "rate asked for",
                "carried",
                "acquire p50 ms",
                "p99 ms",
                "pair p99 ms",
                "p99.99 ms",
                "not begun",
                "CPU \u{b5}s/pair",
                "verdict",
            ],
            &open.steps.iter().map(cells).collect::<Vec<_>>(),
        );
    }

    fn carried(&self, open: &OpenLoop) -> Plot {
        let point = |step: &Step| {
            let tip = format!("{} of {} pairs/s carried", whole(step.achieved_per_s), whole(step.offered_per_s));
            Point { x: step.offered_per_s, y: step.achieved_per_s, range: None, tip }
        };
        let as_asked = |step: &Step| Point { x: step.offered_per_s, y: step.offered_per_s, ..Point::default() };
        let steps = open.steps.iter();
        Plot {
            title: format!("{}: pairs a second carried over those asked for", open.target),
            x: offered(open),
            y: Axis::from_zero("pairs/s carried", steps.clone().flat_map(|step| [step.achieved_per_s, step.offered_per_s])),
            lines: vec![
                Line { look: None, points: steps.clone().map(as_asked).collect(), gap: None },
                Line { look: Some(self.looks.of(&open.target)), points: steps.map(point).collect(), gap: None },
            ],
            bands: Vec::new(),
            mark: mark(open),
        }
    }
}

type Of = fn(&Step) -> f64;

const PERCENTILES: [(&str, Of); 3] =
    [("p50", |step| step.latency.p50_ms), ("p99", |step| step.latency.p99_ms), ("p99.99", |step| step.latency.p9999_ms)];

/// Not those of targets.
fn look(number: usize) -> super::Look {
    super::Look::number(number + 5)
}

fn offered(open: &OpenLoop) -> Axis {
    Axis::from_zero("pairs/s asked for", open.steps.iter().map(|step| step.offered_per_s))
}

fn latency(open: &OpenLoop) -> Plot {
    let line = |(number, (name, of)): (usize, &(&str, Of))| {
        let point = |step: &Step| {
            let tip = format!("{name} at {} pairs/s: {} ms", whole(step.offered_per_s), three_digits(of(step)));
            Point { x: step.offered_per_s, y: of(step), range: None, tip }
        };
        Line { look: Some(look(number)), points: open.steps.iter().map(point).collect(), gap: None }
    };
    Plot {
        title: format!("{}: latency over the rate asked for", open.target),
        x: offered(open),
        y: Axis::log("ms", open.steps.iter().flat_map(|step| PERCENTILES.map(|(_, of)| of(step)))),
        lines: PERCENTILES.iter().enumerate().map(line).collect(),
        bands: Vec::new(),
        mark: mark(open),
    }
}

fn mark(open: &OpenLoop) -> Option<(f64, String)> {
    open.knee.as_ref().map(|knee| (knee.pairs_per_s, format!("knee: {}", whole(knee.pairs_per_s))))
}

fn knee(open: &OpenLoop) -> String {
    let Some(knee) = &open.knee else {
        return String::new();
    };
    let beyond = knee
        .not_carried_per_s
        .map_or_else(|| "no rate that was tried was too much".to_owned(), |rate| format!("{} were too many", whole(rate)));
    let (at, p99) = (whole(knee.pairs_per_s), three_digits(knee.p99_ms));
    format!("Up to {at} pairs/s are carried, with a p99 of the acquire of {p99} ms; {beyond}. Carried means: {}.", knee.rule)
}

fn cells(step: &Step) -> Vec<String> {
    vec![
        whole(step.offered_per_s),
        whole(step.achieved_per_s),
        three_digits(step.acquire.p50_ms),
        three_digits(step.acquire.p99_ms),
        three_digits(step.latency.p99_ms),
        three_digits(step.latency.p9999_ms),
        whole(step.backlog as f64),
        maybe(step.cpu_us_per_pair),
        step.saturated.clone().unwrap_or_else(|| "carried".to_owned()),
    ]
}
