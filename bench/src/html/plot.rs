//! Lines over two axes.

use super::look::Look;
use super::markup::{Markup, Px};
use super::scale::Axis;

/// Letters are as wide as that, at most, and as high.
const LETTER: (f64, f64) = (7.6, 13.0);

/// Above the plot, for the title of its vertical axis; at the right; below.
const TOP: f64 = 28.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 42.0;

/// So many points can be told apart; lines with more have none.
const MOST_POINTS: usize = 40;

/// How large a plot is drawn; it is stretched to the room that there is, letters and all.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// From left to right.
    pub width: f64,
    /// From top to bottom.
    pub height: f64,
}

/// Beside others, or on a narrow screen.
pub const SMALL: Size = Size { width: 480.0, height: 290.0 };

/// As wide as the page.
pub const WIDE: Size = Size { width: 1_000.0, height: 290.0 };

/// A figure on a line.
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// Between which figures it is the median.
    pub range: Option<(f64, f64)>,
    /// In words.
    pub tip: String,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its colour and the form of its points. `None`: a faint line to compare with.
    pub look: Option<Look>,
    /// From left to right.
    pub points: Vec<Point>,
    /// Points that are further apart are not joined.
    pub gap: Option<f64>,
}

/// A time in which something was wrong.
#[derive(Clone, Debug)]
pub struct Band {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// What was wrong.
    pub label: String,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plot {
    /// For those who can not see it.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// What was wrong when.
    pub bands: Vec<Band>,
    /// A place on the horizontal axis, with what is there.
    pub mark: Option<(f64, String)>,
}

/// Where the axes are.
struct Frame<'a> {
    plot: &'a Plot,
    size: Size,
    left: f64,
}

impl Plot {
    /// Draws it.
    pub fn draw(&self, page: &mut Markup, size: Size) {
        let left = 10.0 + LETTER.0 * self.y.widest() as f64;
        let frame = Frame { plot: self, size, left };
        let view = format!("0 0 {} {}", Px(size.width), Px(size.height));
        page.tag("svg", &[("class", &"plot"), ("viewBox", &view), ("role", &"img"), ("aria-label", &self.title)], |svg| {
            frame.bands(svg);
            frame.axes(svg);
            frame.mark(svg);
            self.lines.iter().for_each(|line| frame.line(svg, line));
        });
    }

    /// Draws it as wide as the page where there is room for it, and else small.
    pub fn draw_wide(&self, page: &mut Markup) {
        page.tag("div", &[("class", &"narrow")], |page| self.draw(page, SMALL));
        page.tag("div", &[("class", &"wide")], |page| self.draw(page, WIDE));
    }
}

impl Frame<'_> {
    fn x(&self, figure: f64) -> f64 {
        self.left + (self.size.width - RIGHT - self.left) * self.plot.x.scale.place(figure)
    }

    fn y(&self, figure: f64) -> f64 {
        self.bottom() - (self.bottom() - TOP) * self.plot.y.scale.place(figure)
    }

    fn bottom(&self) -> f64 {
        self.size.height - BOTTOM
    }

    fn axes(&self, svg: &mut Markup) {
        let (left, right, bottom) = (self.left, self.size.width - RIGHT, self.bottom());
        for (figure, text) in &self.plot.y.ticks {
            let y = self.y(*figure);
            rule(svg, "grid", (left, y), (right, y));
            label(svg, "end", (left - 6.0, y + 4.5), text);
        }
        for (figure, text) in self.ticks_with_room() {
            let x = self.x(*figure);
            rule(svg, "grid", (x, bottom), (x, bottom + 5.0));
            label(svg, "middle", (x, bottom + 18.0), text);
        }
        rule(svg, "axis", (left, bottom), (right, bottom));
        label(svg, "start", (2.0, LETTER.1), &self.plot.y.title);
        label(svg, "end", (right, self.size.height - 6.0), &self.plot.x.title);
    }

    /// Those that can be read beside the one before them.
    fn ticks_with_room(&self) -> Vec<&(f64, String)> {
        let mut written_to = f64::NEG_INFINITY;
        let has_room = |tick: &&(f64, String)| {
            let (x, half) = (self.x(tick.0), tick.1.chars().count() as f64 * LETTER.0 / 2.0);
            let fits = x - half > written_to + LETTER.0;
            written_to = if fits { x + half } else { written_to };
            fits
        };
        self.plot.x.ticks.iter().filter(has_room).collect()
    }

    fn bands(&self, svg: &mut Markup) {
        for band in &self.plot.bands {
            let (from, to) = (self.x(band.from), self.x(band.to));
            let (height, width) = (self.bottom() - TOP, (to - from).max(1.0));
            let place: [(&str, &dyn std::fmt::Display); 4] =
                [("x", &Px(from)), ("y", &Px(TOP)), ("width", &Px(width)), ("height", &Px(height))];
            svg.tag("g", &[("class", &"band")], |group| group.void("rect", &place));
            // Below, because lines are above, as a rule; and where it is not cut at the right.
            let width = band.label.chars().count() as f64 * LETTER.0;
            let x = (from + 5.0).min(self.size.width - RIGHT - width).max(self.left);
            label(svg, "start", (x, self.bottom() - 7.0), &band.label);
        }
    }

    fn mark(&self, svg: &mut Markup) {
        let Some((figure, text)) = &self.plot.mark else {
            return;
        };
        let x = self.x(*figure);
        rule(svg, "mark", (x, TOP), (x, self.bottom()));
        let (anchor, x) = if x > self.size.width / 2.0 { ("end", x - 5.0) } else { ("start", x + 5.0) };
        label(svg, anchor, (x, TOP + LETTER.1), text);
    }

    fn line(&self, svg: &mut Markup, line: &Line) {
        let class = line.look.map_or_else(|| "faint".to_owned(), Look::class);
        svg.tag("g", &[("class", &class)], |group| {
            let joined = |a: &Point, b: &Point| line.gap.is_none_or(|gap| b.x - a.x <= gap);
            for stretch in line.points.chunk_by(joined) {
                let places: Vec<String> =
                    stretch.iter().map(|point| format!("{},{}", Px(self.x(point.x)), Px(self.y(point.y)))).collect();
                group.void("polyline", &[("class", &"line"), ("points", &places.join(" "))]);
            }
            if let Some(look) = line.look.filter(|_| line.points.len() <= MOST_POINTS) {
                line.points.iter().for_each(|point| self.point(group, look, point));
            }
        });
    }

    fn point(&self, svg: &mut Markup, look: Look, point: &Point) {
        let (x, y) = (self.x(point.x), self.y(point.y));
        svg.tag("g", &[("class", &"points")], |group| {
            group.leaf("title", &[], &point.tip);
            if let Some((least, most)) = point.range {
                rule(group, "range", (x, self.y(least)), (x, self.y(most)));
            }
            look.point(group, x, y);
        });
    }
}

/// A straight line.
pub fn rule(svg: &mut Markup, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    svg.void("line", &[("class", &class), ("x1", &Px(x1)), ("y1", &Px(y1)), ("x2", &Px(x2)), ("y2", &Px(y2))]);
}

/// Letters.
pub fn label(svg: &mut Markup, anchor: &str, (x, y): (f64, f64), text: &str) {
    svg.leaf("text", &[("x", &Px(x)), ("y", &Px(y)), ("text-anchor", &anchor)], text);
}
