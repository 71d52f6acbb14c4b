//! Numbers as people read them.

/// What is written where there is no figure.
pub const NONE: &str = "\u{2013}";

/// A whole number, in groups of three digits.
pub fn whole(number: f64) -> String {
    if !number.is_finite() {
        return NONE.to_owned();
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0.0 && digits != "0" { format!("\u{2212}{text}") } else { text }
}

/// To three digits, but never less than a whole number.
pub fn three_digits(number: f64) -> String {
    let size = number.abs();
    match size {
        _ if !number.is_finite() => NONE.to_owned(),
        0.0 => "0".to_owned(),
        // As it would be rounded, not as it is: 99.96 is 100.
        _ if size >= 99.95 => whole(number),
        _ if size >= 9.995 => format!("{number:.1}"),
        _ if size >= 0.9995 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// The same with its unit, if there is one.
pub fn with_unit(number: f64, unit: &str) -> String {
    if unit.is_empty() { three_digits(number) } else { format!("{} {unit}", three_digits(number)) }
}

/// The same for a figure that may be missing.
pub fn maybe(number: Option<f64>) -> String {
    number.map_or_else(|| NONE.to_owned(), three_digits)
}

/// A ratio, to a hundredth.
pub fn ratio(number: Option<f64>) -> String {
    match number {
        Some(number) if number.is_finite() => format!("{number:.2}"),
        _ => NONE.to_owned(),
    }
}

/// A span of time.
pub fn span(seconds: f64) -> String {
    match seconds {
        _ if !seconds.is_finite() => NONE.to_owned(),
        _ if seconds >= 119.5 => format!("{:.0} min {:.0} s", (seconds.round() / 60.0).floor(), seconds.round() % 60.0),
        _ => format!("{} s", three_digits(seconds)),
    }
}

/// Kibibytes, as mebibytes.
pub fn mib(kib: f64) -> f64 {
    kib / 1024.0
}

/// An instant of RFC 3339 without what people do not look for: `2026-11-23 14:02 UTC`. Anything else as it is.
pub fn instant(text: &str) -> String {
    let is_utc = text.len() >= 17 && text.is_ascii() && text.as_bytes()[10] == b'T' && text.ends_with('Z');
    if is_utc { format!("{} {} UTC", &text[..10], &text[11..16]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        let cases = [(0.0, "0"), (0.0416, "0.042"), (0.416, "0.416"), (1.5174, "1.52"), (12.345, "12.3"), (99.97, "100")];
        for (number, text) in
            cases.into_iter().chain([(999.6, "1,000"), (31_234.4, "31,234"), (-1_234_567.0, "\u{2212}1,234,567")])
        {
            assert_eq!(three_digits(number), text);
        }
        assert_eq!([three_digits(f64::NAN), maybe(None), ratio(None)], [NONE; 3]);
        assert_eq!(ratio(Some(1.347)), "1.35");
        assert_eq!([span(3.0), span(333.3), span(119.9)], ["3.00 s", "5 min 33 s", "2 min 0 s"]);
    }

    #[test]
    fn an_instant_is_told_to_the_minute() {
        assert_eq!(instant("2026-11-23T14:02:11Z"), "2026-11-23 14:02 UTC");
        assert_eq!(instant("yesterday"), "yesterday");
    }
}
