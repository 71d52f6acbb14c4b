//! `results.json` as one page: nothing else is needed to read it, neither a network nor a script.
//!
//! - [`command`]: from a file to a page.
//! - [`markup`], [`numbers`]: what the page is written with. [`scale`], [`plot`], [`bars`], [`table`], [`look`]: what it is drawn with.
//! - [`parts`]: its parts, in their order.

use crate::results::Results;

mod bars;
mod command;
mod look;
mod markup;
mod numbers;
mod parts;
mod plot;
mod scale;
mod table;

#[cfg(test)]
mod tests;

pub use command::ReportArgs;
use look::Looks;
use markup::Markup;

const STYLE: &str = include_str!("style.css");

/// What the parts of a page are made from.
struct Report<'a> {
    results: &'a Results,
    looks: Looks,
}

/// The page.
fn page(results: &Results) -> String {
    let rows = results.rows.iter().map(|row| row.target.as_str());
    let targets = rows.chain(results.timelines.iter().map(|timeline| timeline.target.as_str()));
    let report =
        Report { results, looks: Looks::new(targets.chain(results.open_loop.iter().map(|open| open.target.as_str()))) };
    let mut page = Markup::default();
    page.tag("html", &[("lang", &"en")], |html| {
        html.tag("head", &[], |head| {
            head.void("meta", &[("charset", &"utf-8")]);
            head.void("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
            head.leaf("title", &[], format_args!("redlockd under load, {}", numbers::instant(&results.run.started)));
            head.style(STYLE);
        });
        html.tag("body", &[], |body| report.parts(body));
    });
    page.finish()
}

impl Report<'_> {
    fn parts(&self, body: &mut Markup) {
        self.head(body);
        self.aims(body);
        self.throughput(body);
        self.latency(body);
        self.cpu(body);
        self.open_loop(body);
        self.faults(body);
        self.setups(body);
        self.timelines(body);
        self.errors(body);
        self.setting(body);
    }
}
