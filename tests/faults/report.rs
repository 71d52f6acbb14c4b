//! One page about a run: what was broken, the figures, and a timeline to look at it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::clients::NAMES;
use crate::oracle::history::{At, Fault, History, Lease};
use crate::oracle::{Violation, overlaps};
use crate::plan::Target;

/// All that the page shows.
pub struct Report<'a> {
    pub title: String,
    pub history: &'a History,
    pub figures: Vec<(&'static str, BTreeMap<String, String>)>,
    pub violations: &'a [Violation],
}

const STYLE: &str = "
body { font: 14px/1.5 system-ui, sans-serif; margin: 24px; color: #222; background: #fff }
h1 { font-size: 20px } h2 { font-size: 16px; margin-top: 28px }
.good { color: #17692c } .bad { color: #b00020 }
.timeline { display: flex; border: 1px solid #ddd }
.lanes { flex: none; border-right: 1px solid #ddd } .scroll { overflow-x: auto }
.tables { display: flex; flex-wrap: wrap; gap: 32px; align-items: flex-start }
table { border-collapse: collapse } caption { text-align: left; font-weight: 600; padding: 4px 0 }
td { padding: 1px 12px 1px 0; border-top: 1px solid #eee } td + td { text-align: right; font-variant-numeric: tabular-nums }
text { font: 12px system-ui, sans-serif; fill: #333 }
.band { fill: #000; opacity: .07 } .grid { stroke: #ddd } .refused { stroke: #d00000; stroke-width: 2 }
.key span { display: inline-block; width: 14px; height: 10px; margin: 0 4px 0 14px }
";

const NAME_LANE: f64 = 30.0;
const SERVER_LANE: f64 = 16.0;
const AXIS: f64 = 22.0;

/// The colour of a fault, by a word in its name.
const COLOURS: [(&str, &str, &str); 6] = [
    ("Emptied", "#8c1d82", "killed, data lost"),
    ("Killed", "#c0392b", "killed"),
    ("Stop", "#2c5aa0", "stopped for longer than a TTL"),
    ("Pause", "#7fa8dc", "stopped for less"),
    ("Clock", "#13866f", "clock set"),
    ("", "#e0a030", "connections: held, slow, reset, refused, a reply swallowed"),
];

impl Report<'_> {
    pub fn html(&self) -> String {
        let mut page =
            format!("<!doctype html><meta charset=utf-8><title>{0}</title><style>{STYLE}</style><h1>{0}</h1>", self.title);
        self.write_verdict(&mut page);
        page.push_str("<h2>Timeline</h2>");
        self.write_key(&mut page);
        let timeline = Timeline::of(self.history);
        let _ = write!(page, "<div class=timeline><div class=lanes>{}</div>", timeline.labels());
        let _ = write!(page, "<div class=scroll>{}</div></div>", timeline.drawing());
        page.push_str("<h2>Figures</h2><div class=tables>");
        for (caption, rows) in &self.figures {
            let _ = write!(page, "<table><caption>{caption}</caption>");
            for (what, value) in rows {
                let _ = write!(page, "<tr><td>{}<td>{}", escape(what), escape(value));
            }
            page.push_str("</table>");
        }
        page.push_str("</div>\n");
        page
    }

    fn write_verdict(&self, page: &mut String) {
        if self.violations.is_empty() {
            let _ = write!(page, "<p class=good>No promise was broken. {} leases overlapped.</p>", overlaps(self.history));
            return;
        }
        let _ = write!(page, "<p class=bad>{} broken promises:</p><ul>", self.violations.len());
        for violation in self.violations {
            let _ = write!(page, "<li>{}", escape(&violation.to_string()));
        }
        page.push_str("</ul>");
    }

    fn write_key(&self, page: &mut String) {
        page.push_str(
            "<p class=key>Leases per name, a colour per client; a red cross is a stale write that was refused. Grey bands: \
             a majority or the counter suffers. Faults:",
        );
        for (_, colour, meaning) in COLOURS {
            let _ = write!(page, "<span style=background:{colour}></span>{meaning}");
        }
        page.push_str("</p>");
    }
}

struct Timeline<'a> {
    history: &'a History,
    seconds: f64,
    /// Pixels a second.
    scale: f64,
    /// Top and height of every lane.
    lanes: BTreeMap<String, (f64, f64)>,
    height: f64,
}

impl<'a> Timeline<'a> {
    fn of(history: &'a History) -> Self {
        let ends = history.leases.iter().filter_map(|lease| lease.held).map(|held| held.until);
        let seconds =
            ends.chain(history.faults.iter().map(|fault| fault.until)).max().unwrap_or(Duration::from_secs(1)).as_secs_f64();
        let (mut lanes, mut height) = (BTreeMap::new(), AXIS);
        let servers = Target::ALL.iter().map(|target| (target.to_string(), SERVER_LANE));
        let names = NAMES.iter().map(|name| ((*name).to_owned(), NAME_LANE));
        for (lane, tall) in names.chain(servers).chain([("clients".to_owned(), SERVER_LANE)]) {
            lanes.insert(lane, (height, tall));
            height += tall;
        }
        // Short runs fill a screen; long ones are drawn smaller, so that a browser can show them.
        let scale = (60_000.0 / seconds).clamp(1.0, (1_300.0 / seconds).max(20.0));
        Self { history, seconds, scale, lanes, height }
    }

    fn x(&self, at: At) -> f64 {
        at.as_secs_f64() * self.scale
    }

    fn labels(&self) -> String {
        let mut drawing = format!("<svg width=80 height={}>", self.height);
        for (lane, (top, tall)) in &self.lanes {
            let _ = write!(drawing, "<text x=6 y={:.0}>{}</text>", top + tall / 2.0 + 4.0, escape(lane));
        }
        drawing + "</svg>"
    }

    fn drawing(&self) -> String {
        let width = self.seconds * self.scale + 20.0;
        let mut drawing = format!("<svg width={width:.0} height={}>", self.height);
        self.draw_grid(&mut drawing, width);
        for fault in &self.history.faults {
            self.draw_fault(&mut drawing, fault);
        }
        let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
        for lease in &self.history.leases {
            // Neighbours in different rows, so that an overlap can be seen.
            let row = rows.entry(&lease.name).or_default();
            *row += 1;
            self.draw_lease(&mut drawing, lease, *row % 2);
        }
        for write in self.history.writes.iter().filter(|write| !write.accepted) {
            let (x, (top, tall)) = (self.x(write.at), self.lanes[&write.name]);
            let y = top + tall / 2.0;
            let cross = format!("M{:.1} {:.1}l6 6m0 -6l-6 6", x - 3.0, y - 3.0);
            let _ = write!(
                drawing,
                "<path class=refused d=\"{cross}\"><title>{}: token {} refused at {:.3} s</title></path>",
                escape(&self.history.leases[write.lease].client),
                write.token,
                write.at.as_secs_f64()
            );
        }
        drawing + "</svg>"
    }

    fn draw_grid(&self, drawing: &mut String, width: f64) {
        let step = if self.scale >= 10.0 { 5 } else { 60 };
        for second in (0..=self.seconds as usize).step_by(step) {
            let x = second as f64 * self.scale;
            let _ = write!(drawing, "<line class=grid x1={x} x2={x} y1={AXIS} y2=\"{}\" />", self.height);
            let _ = write!(drawing, "<text x={} y=15>{second} s</text>", x + 2.0);
        }
        for (top, _) in self.lanes.values() {
            let _ = write!(drawing, "<line class=grid x1=0 x2={width} y1={top} y2=\"{top}\" />");
        }
    }

    fn draw_lease(&self, drawing: &mut String, lease: &Lease, row: usize) {
        let (Some(held), Some((top, tall))) = (lease.held, self.lanes.get(&lease.name)) else { return };
        let number: usize = lease.client.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        let (x, y) = (self.x(held.from), top + 2.0 + row as f64 * (tall / 2.0 - 1.0));
        let _ = write!(
            drawing,
            "<rect x={x:.1} y={y} width={:.1} height={} fill=\"hsl({} 60% {}%)\"><title>{}: token {:?}, {:.3} to {:.3} s</title></rect>",
            (self.x(held.until) - x).max(1.0),
            tall / 2.0 - 3.0,
            number * 137 % 360,
            45 + number % 3 * 10,
            escape(&lease.client),
            lease.token,
            held.from.as_secs_f64(),
            held.until.as_secs_f64()
        );
    }

    fn draw_fault(&self, drawing: &mut String, fault: &Fault) {
        let Some((top, tall)) = self.lanes.get(&fault.to) else { return };
        let (x, width) = (self.x(fault.from), (self.x(fault.until) - self.x(fault.from)).max(2.0));
        let (_, colour, _) = COLOURS.iter().find(|(word, _, _)| fault.what.contains(word)).expect("the last fits all");
        let opacity = if fault.to == "clients" { 0.3 } else { 1.0 };
        if fault.what.starts_with("Majority") || fault.what.starts_with("Counter") {
            let _ = write!(
                drawing,
                "<rect class=band x={x:.1} y={AXIS} width={width:.1} height=\"{}\" />",
                NAME_LANE * NAMES.len() as f64
            );
        }
        let _ = write!(
            drawing,
            "<rect x={x:.1} y={} width={width:.1} height={} fill=\"{colour}\" opacity={opacity}><title>{}, {:.3} to {:.3} s</title></rect>",
            top + 2.0,
            tall - 4.0,
            escape(&fault.what),
            fault.from.as_secs_f64(),
            fault.until.as_secs_f64()
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
