//! From figures to places along an axis, and the figures that are written beside it.

use super::numbers::three_digits;

/// How figures are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Evenly.
    Linear {
        /// At the beginning.
        from: f64,
        /// At the end.
        to: f64,
    },
    /// So that equal ratios are equally long.
    Log {
        /// At the beginning, above 0.
        from: f64,
        /// At the end.
        to: f64,
    },
    /// Percentiles up to this one: each nine takes as much room as the one before.
    Nines {
        /// At the end: below 100.
        to: f64,
    },
}

/// A scale with what is written beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What is laid out, with its unit.
    pub title: String,
    /// How.
    pub scale: Scale,
    /// Figures, and how they are written.
    pub ticks: Vec<(f64, String)>,
}

impl Scale {
    /// Where a figure is, from 0 to 1; what is beyond the scale is at its end.
    pub fn place(self, figure: f64) -> f64 {
        let part = |from: f64, to: f64, figure: f64| {
            if to > from { (figure - from) / (to - from) } else { 0.5 }
        };
        let place = match self {
            Self::Linear { from, to } => part(from, to, figure),
            Self::Log { from, to } => part(from.ln(), to.ln(), figure.max(from).ln()),
            Self::Nines { to } => part(0.0, nines(to), nines(figure.min(to))),
        };
        place.clamp(0.0, 1.0)
    }
}

/// 1 for 90, 2 for 99, and so on.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

impl Axis {
    /// From 0 to a round figure above all of these.
    pub fn from_zero(title: impl Into<String>, figures: impl IntoIterator<Item = f64>) -> Self {
        let most = figures.into_iter().filter(|figure| figure.is_finite()).fold(0.0, f64::max);
        Self::between(title, 0.0, most)
    }

    /// From one figure to another, at least: both ends of the scale are round.
    pub fn between(title: impl Into<String>, from: f64, to: f64) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        let step = round_step((to - from) / 5.0);
        let (first, last) = ((from / step).floor(), (to / step - 1e-9).ceil());
        let ticks: Vec<f64> = (0..=(last - first) as u32).map(|number| (first + f64::from(number)) * step).collect();
        let scale = Scale::Linear { from: first * step, to: last * step };
        Self { title: title.into(), scale, ticks: ticks.into_iter().map(|tick| (tick, tick_text(tick, step))).collect() }
    }

    /// From one instant to another, no more: round figures between them.
    pub fn span(title: impl Into<String>, from: f64, to: f64) -> Self {
        let mut axis = Self::between(title, from, to);
        axis.ticks.retain(|(tick, _)| (from..=to).contains(tick));
        axis.scale = Scale::Linear { from, to };
        axis
    }

    /// Between two such powers that hold all of these figures; those that are not above 0 do not count.
    pub fn log(title: impl Into<String>, figures: impl IntoIterator<Item = f64>) -> Self {
        let figures: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite() && *figure > 0.0).collect();
        let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = figures.iter().copied().fold(0.0, f64::max);
        let (least, most) = if figures.is_empty() { (0.1, 1.0) } else { (least, most) };
        let candidates: Vec<f64> = (-6..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))).collect();
        let from = candidates.iter().copied().rfind(|figure| *figure <= least).unwrap_or(least);
        let to = candidates.iter().copied().find(|figure| *figure >= most && *figure > from).unwrap_or(most);
        let mut ticks: Vec<f64> = candidates.into_iter().filter(|figure| (from..=to).contains(figure)).collect();
        if ticks.len() > 8 {
            ticks.retain(|tick| tick.log10().fract().abs() < 1e-9);
        }
        let ticks = ticks.into_iter().map(|tick| (tick, plain(tick))).collect();
        Self { title: title.into(), scale: Scale::Log { from, to }, ticks }
    }

    /// These figures and no others, so that equal ratios are equally long.
    pub fn doubling(title: impl Into<String>, figures: &[f64]) -> Self {
        let (from, to) = (figures.first().copied().unwrap_or(1.0), figures.last().copied().unwrap_or(1.0));
        let ticks = figures.iter().map(|figure| (*figure, plain(*figure))).collect();
        Self { title: title.into(), scale: Scale::Log { from, to }, ticks }
    }

    /// Percentiles up to 99.99.
    pub fn percentiles() -> Self {
        let ticks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99].map(|tick| (tick, format!("{tick}")));
        Self { title: "percentile".to_owned(), scale: Scale::Nines { to: 99.99 }, ticks: ticks.to_vec() }
    }

    /// Letters in the longest text.
    pub fn widest(&self) -> usize {
        self.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or_default()
    }
}

/// 1, 2 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|round| *round >= step * (1.0 - 1e-9)).unwrap_or(step)
}

fn tick_text(tick: f64, step: f64) -> String {
    if step >= 1.0 { super::numbers::whole(tick) } else { format!("{tick:.*}", (-step.log10()).ceil() as usize) }
}

/// Without zeros at the end.
fn plain(tick: f64) -> String {
    if tick >= 1_000.0 { three_digits(tick) } else { format!("{}", (tick * 1e6).round() / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ends_are_round_and_hold_everything() {
        let axis = Axis::from_zero("pairs/s", [1_500.0, 38_000.0, f64::NAN]);
        assert_eq!(axis.scale, Scale::Linear { from: 0.0, to: 40_000.0 });
        assert_eq!(texts(&axis), ["0", "10,000", "20,000", "30,000", "40,000"]);
        assert_eq!(texts(&Axis::from_zero("ratio", [0.9])), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(Axis::from_zero("nothing", []).ticks.len(), 6);
        assert_eq!(texts(&Axis::log("ms", [0.3, 27.0])), ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]);
        assert_eq!(texts(&Axis::log("ms", [0.15, 2_700.0])), ["0.1", "1", "10", "100", "1,000"]);
        assert_eq!(texts(&Axis::log("ms", [])).len(), 4);
    }

    #[test]
    fn figures_have_their_places() {
        let near = |scale: Scale, figure, place: f64| {
            assert!((scale.place(figure) - place).abs() < 1e-9, "{scale:?} {figure}: {}", scale.place(figure));
        };
        near(Scale::Linear { from: 10.0, to: 20.0 }, 15.0, 0.5);
        near(Scale::Linear { from: 10.0, to: 20.0 }, 25.0, 1.0);
        near(Scale::Linear { from: 3.0, to: 3.0 }, 3.0, 0.5);
        near(Scale::Log { from: 1.0, to: 100.0 }, 10.0, 0.5);
        near(Scale::Log { from: 1.0, to: 100.0 }, 0.0, 0.0);
        near(Scale::Nines { to: 99.99 }, 99.0, 0.5);
        near(Scale::Nines { to: 99.99 }, 100.0, 1.0);
    }
}
