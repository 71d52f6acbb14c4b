//! How the members of a plot are told apart: a colour and the form of a point, the same for a target in every plot.

use super::markup::{Markup, Px};

/// Targets that have looks of their own; others take what is left, in their order.
const KNOWN: [&str; 6] = ["unary", "stream", "direct", "rslock", "etcd", "tonic"];

/// How many looks there are.
const LOOKS: usize = 8;

/// A colour and a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look(usize);

/// The looks of a report.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    others: Vec<String>,
}

impl Looks {
    /// For these targets.
    pub fn new<'a>(targets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut others = Vec::new();
        for target in targets {
            if !KNOWN.contains(&target) && !others.iter().any(|other| other == target) {
                others.push(target.to_owned());
            }
        }
        Self { others }
    }

    /// That of a target.
    pub fn of(&self, target: &str) -> Look {
        let known = KNOWN.iter().position(|known| *known == target);
        let other = || self.others.iter().position(|other| other == target).unwrap_or_default() + KNOWN.len();
        Look(known.unwrap_or_else(other) % LOOKS)
    }
}

impl Look {
    /// Of the `number`th of some, where no target is meant.
    pub fn number(number: usize) -> Self {
        Self(number % LOOKS)
    }

    /// The class that has its colour.
    pub fn class(self) -> String {
        format!("c{}", self.0 + 1)
    }

    /// A point, in the colour of the class around it.
    pub fn point(self, svg: &mut Markup, x: f64, y: f64) {
        // All of them are about as large as a circle of radius 4.
        let outline = match self.0 % 4 {
            0 => format!("M{} {}a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", Px(x - 4.0), Px(y)),
            1 => format!("M{} {}h7v7h-7z", Px(x - 3.5), Px(y - 3.5)),
            2 => format!("M{} {}l4.6 8h-9.2z", Px(x), Px(y - 5.0)),
            _ => format!("M{} {}l5 5l-5 5l-5-5z", Px(x), Px(y - 5.0)),
        };
        svg.void("path", &[("d", &outline)]);
    }
}

/// Which look is whose.
pub fn legend<'a>(page: &mut Markup, names: impl IntoIterator<Item = (&'a str, Look)>) {
    page.tag("ul", &[("class", &"legend")], |list| {
        for (name, look) in names {
            list.tag("li", &[("class", &look.class())], |item| {
                item.tag(
                    "svg",
                    &[("viewBox", &"0 0 14 14"), ("width", &14), ("height", &14), ("aria-hidden", &"true")],
                    |svg| {
                        svg.tag("g", &[("class", &"points")], |points| look.point(points, 7.0, 7.0));
                    },
                );
                item.text(name);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_looks_the_same_wherever_it_stands() {
        let one = Looks::new(["etcd", "mine", "unary"]);
        let other = Looks::new(["unary"]);
        assert_eq!(one.of("unary"), other.of("unary"));
        let all: Vec<String> =
            ["unary", "stream", "direct", "rslock", "etcd", "tonic", "mine"].map(|target| one.of(target).class()).to_vec();
        let mut different = all.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }
}
