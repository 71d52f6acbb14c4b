//! Before, during and after a fault.

use crate::results::{Fault, Phase};

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::{NONE, mib, ratio, span, three_digits, whole};
use super::super::table;
use super::heading;
use super::rows::{clients, setup_text};

impl Report<'_> {
    pub(in super::super) fn faults(&self, page: &mut Markup) {
        if self.results.faults.is_empty() {
            return;
        }
        let about = "What becomes of the callers while something is wrong with a node. Ratios: during the fault over the mean of \
                     before and after.";
        heading(page, "Faults", about);
        for fault in &self.results.faults {
            one(page, fault);
        }
        self.marked_timelines(page);
    }
}

fn one(page: &mut Markup, fault: &Fault) {
    page.tag("p", &[], |line| {
        line.leaf("strong", &[], &fault.what);
        let rate = fault.offered_per_s.map_or_else(String::new, |rate| format!(" at {} pairs/s", whole(rate)));
        line.text(format_args!(
            ": {}, {}{rate}, {}. Throughput ",
            fault.target,
            clients(fault.clients),
            setup_text(&fault.setup)
        ));
        line.leaf("strong", &[], format_args!("{}\u{d7}", ratio(Some(fault.throughput_ratio))));
        line.text(", p99 of the acquire ");
        line.leaf("strong", &[], format_args!("{}\u{d7}", ratio(Some(fault.p99_ratio))));
    });
    let phases = [("before", Some(&fault.before)), ("during", Some(&fault.during)), ("after", fault.after.as_ref())];
    let rows: Vec<_> = phases.into_iter().filter_map(|(name, phase)| phase.map(|phase| cells(name, phase))).collect();
    let heads = ["", "for", "pairs/s", "acquire p50 ms", "p99 ms", "p99.99 ms", "pair p99 ms", "errors", "proxy MiB"];
    table::draw(page, &heads, &rows);
}

fn cells(name: &str, phase: &Phase) -> Vec<String> {
    vec![
        name.to_owned(),
        span(phase.seconds),
        whole(phase.pairs_per_s),
        three_digits(phase.acquire.p50_ms),
        three_digits(phase.acquire.p99_ms),
        three_digits(phase.acquire.p9999_ms),
        three_digits(phase.latency.p99_ms),
        whole(phase.errors.iter().map(|error| error.count).sum::<u64>() as f64),
        phase.proxy_rss_kib.map_or_else(|| NONE.to_owned(), |kib| three_digits(mib(kib as f64))),
    ]
}
