//! Bars from left to right, whole or in parts.

use super::look::Look;
use super::markup::{Markup, Px};
use super::plot::{label, rule};

/// Of a drawing; its height goes by the bars.
const WIDTH: f64 = 480.0;

/// From bar to bar, and how high one is.
const ROW: f64 = 32.0;
const BAR: f64 = 20.0;

/// A letter, at most.
const LETTER: f64 = 7.6;

/// A part of a bar.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its colour.
    pub class: String,
    /// Its length.
    pub figure: f64,
    /// In words.
    pub tip: String,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose.
    pub name: String,
    /// From left to right.
    pub parts: Vec<Part>,
    /// Between which figures it is the median.
    pub range: Option<(f64, f64)>,
    /// Its length, written at its end.
    pub text: String,
}

impl Bar {
    /// Of one part.
    pub fn whole(name: &str, look: Look, figure: f64, text: String) -> Self {
        let part = Part { class: look.class(), figure, tip: format!("{name}: {text}") };
        Self { name: name.to_owned(), parts: vec![part], range: None, text }
    }

    fn length(&self) -> f64 {
        self.parts.iter().map(|part| part.figure).sum()
    }

    fn reach(&self) -> f64 {
        self.range.map_or(0.0, |(_, most)| most).max(self.length())
    }
}

/// Draws bars that can be compared: all begin at 0 and have one scale.
pub fn draw(page: &mut Markup, title: &str, bars: &[Bar]) {
    let letters = |text: fn(&Bar) -> &str| bars.iter().map(|bar| text(bar).chars().count()).max().unwrap_or_default() as f64;
    let left = 8.0 + LETTER * letters(|bar| &bar.name);
    let room = WIDTH - left - 10.0 - LETTER * letters(|bar| &bar.text);
    let longest = bars.iter().map(Bar::reach).fold(0.0, f64::max);
    let scale = if longest > 0.0 { room / longest } else { 0.0 };
    let view = format!("0 0 {} {}", Px(WIDTH), Px(ROW * bars.len() as f64 + 4.0));
    page.tag("svg", &[("class", &"plot"), ("viewBox", &view), ("role", &"img"), ("aria-label", &title)], |svg| {
        for (number, bar) in bars.iter().enumerate() {
            let top = ROW * number as f64 + 4.0;
            label(svg, "end", (left - 6.0, top + 15.0), &bar.name);
            draw_bar(svg, bar, left, top, scale);
        }
        rule(svg, "axis", (left, 0.0), (left, ROW * bars.len() as f64));
    });
}

fn draw_bar(svg: &mut Markup, bar: &Bar, left: f64, top: f64, scale: f64) {
    let mut x = left;
    for part in &bar.parts {
        let width = part.figure * scale;
        svg.tag("g", &[("class", &part.class)], |group| {
            group.leaf("title", &[], &part.tip);
            let (x, top, width) = (Px(x), Px(top), Px(width));
            group.void("rect", &[("class", &"bar"), ("x", &x), ("y", &top), ("width", &width), ("height", &BAR)]);
        });
        x += width;
    }
    if let Some((least, most)) = bar.range {
        let middle = top + BAR / 2.0;
        rule(svg, "whisker", (left + least * scale, middle), (left + most * scale, middle));
        for end in [least, most].map(|figure| left + figure * scale) {
            rule(svg, "whisker", (end, middle - 4.0), (end, middle + 4.0));
        }
    }
    label(svg, "start", (left + bar.reach() * scale + 7.0, top + 15.0), &bar.text);
}
