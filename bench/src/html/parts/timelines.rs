//! How it went over the time.

use crate::results::{MarkKind, Sample, Timeline};

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::mib;
use super::super::plot::{Band, Line, Plot, Point};
use super::super::scale::Axis;
use super::{figure, heading};

/// More points than that can not be told apart in any plot.
const MOST_POINTS: usize = 600;

/// Samples that are missing leave a gap.
const GAP: f64 = 2.5;

/// What of a sample is shown.
type Of = fn(&Sample) -> Option<f64>;

/// Timelines that belong into one plot.
struct Group<'a> {
    title: &'a str,
    timelines: Vec<&'a Timeline>,
}

impl Group<'_> {
    fn is_marked(&self) -> bool {
        self.timelines.iter().any(|timeline| !timeline.marks.is_empty())
    }
}

impl Report<'_> {
    /// Those in which something was done to the servers.
    pub(super) fn marked_timelines(&self, page: &mut Markup) {
        self.groups_of_time().iter().filter(|group| group.is_marked()).for_each(|group| self.group_of_time(page, group));
    }

    /// All others.
    pub(in super::super) fn timelines(&self, page: &mut Markup) {
        let groups = self.groups_of_time();
        let shown: Vec<_> = groups.iter().filter(|group| !group.is_marked() || self.results.faults.is_empty()).collect();
        if shown.is_empty() {
            return;
        }
        let about = "Each target works in its windows and rests in those of the others; the time is that since the run began.";
        heading(page, "Over the time", about);
        shown.into_iter().for_each(|group| self.group_of_time(page, group));
    }

    fn groups_of_time(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for timeline in self.results.timelines.iter().filter(|timeline| !timeline.samples.is_empty()) {
            match groups.iter_mut().find(|group| group.title == timeline.title) {
                Some(group) => group.timelines.push(timeline),
                None => groups.push(Group { title: &timeline.title, timelines: vec![timeline] }),
            }
        }
        groups
    }

    fn group_of_time(&self, page: &mut Markup, group: &Group<'_>) {
        let throughput: Of = |sample| Some(sample.pairs_per_s);
        let p99: Of = |sample| sample.p99_ms;
        let memory: Of = |sample| sample.proxy_rss_kib.map(|kib| mib(kib as f64));
        let figures = |of: Of| group.timelines.iter().flat_map(move |timeline| timeline.samples.iter().filter_map(of));
        self.over_time(page, group, "Throughput", throughput, Axis::from_zero("pairs/s", figures(throughput)));
        self.over_time(page, group, "p99", p99, Axis::from_zero("p99 of a pair, ms", figures(p99)));
        if figures(memory).count() > 1 {
            let axis = Axis::from_zero("resident memory, MiB", figures(memory));
            self.over_time(page, group, "Memory of the proxy", memory, axis);
        }
    }

    fn over_time(&self, page: &mut Markup, group: &Group<'_>, what: &str, of: Of, y: Axis) {
        let line = |timeline: &&Timeline| Line {
            look: Some(self.looks.of(&timeline.target)),
            points: thinned(timeline, of),
            gap: Some(timeline.interval_s.max(spacing(timeline)) * GAP),
        };
        let samples = || group.timelines.iter().flat_map(|timeline| &timeline.samples);
        let ends = samples().map(|sample| sample.at_s);
        let begins = group.timelines.iter().filter_map(|timeline| Some(timeline.samples.first()?.at_s - timeline.interval_s));
        let (from, to) = (begins.fold(f64::INFINITY, f64::min).max(0.0), ends.fold(0.0, f64::max));
        let plot = Plot {
            title: format!("{what} over the time: {}", group.title),
            x: Axis::span("seconds since the run began", from, to),
            y,
            lines: group.timelines.iter().map(line).collect(),
            bands: bands(group, to),
            mark: None,
        };
        let one = group.timelines.first().filter(|_| group.timelines.len() == 1);
        let about = one.map_or("", |timeline| timeline.target.as_str());
        figure(page, &format!("{what}: {}", group.title), about, |page| {
            plot.draw_wide(page);
            self.legend(page, group.timelines.iter().map(|timeline| timeline.target.as_str()));
        });
    }
}

/// What was wrong when: from each fault's beginning to its end, or to that of the plot.
fn bands(group: &Group<'_>, to: f64) -> Vec<Band> {
    let mut marks: Vec<_> = group.timelines.iter().flat_map(|timeline| &timeline.marks).collect();
    marks.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    marks.dedup();
    let mut bands: Vec<Band> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for mark in marks {
        match mark.kind {
            MarkKind::FaultBegins => {
                open.push(bands.len());
                bands.push(Band { from: mark.at_s, to, label: mark.what.clone() });
            }
            // The one that began last.
            MarkKind::FaultEnds => {
                if let Some(index) = open.pop() {
                    bands[index].to = mark.at_s;
                }
            }
        }
    }
    bands
}

/// Samples that stand for one point.
fn chunk(timeline: &Timeline) -> usize {
    timeline.samples.len().div_ceil(MOST_POINTS).max(1)
}

fn spacing(timeline: &Timeline) -> f64 {
    timeline.interval_s * chunk(timeline) as f64
}

/// Of neighbours that stand for one point, the mean.
fn thinned(timeline: &Timeline, of: Of) -> Vec<Point> {
    let chunks = timeline.samples.chunks(chunk(timeline));
    let points = chunks.filter_map(|samples| {
        let figures: Vec<f64> = samples.iter().filter_map(of).collect();
        let (last, count) = (samples.last()?, figures.len() as f64);
        (count > 0.0).then(|| Point { x: last.at_s, y: figures.iter().sum::<f64>() / count, ..Point::default() })
    });
    points.collect()
}
