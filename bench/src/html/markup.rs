//! HTML and SVG that is well-formed, and escaped wherever text goes in, by the way in which it is made.

use std::fmt::{Display, Write};

/// Attributes of an element.
pub type Attributes<'a> = [(&'a str, &'a dyn Display)];

/// A document under way.
#[derive(Debug, Default)]
pub struct Markup(String);

impl Markup {
    /// An element with something inside.
    pub fn tag(&mut self, name: &str, attributes: &Attributes<'_>, inside: impl FnOnce(&mut Self)) {
        self.begin(name, attributes);
        self.0.push('>');
        inside(self);
        // Into a string, nothing fails.
        let _ = write!(self.0, "</{name}>");
    }

    /// An element with text inside.
    pub fn leaf(&mut self, name: &str, attributes: &Attributes<'_>, text: impl Display) {
        self.tag(name, attributes, |inside| inside.text(text));
    }

    /// An element that can have nothing inside.
    pub fn void(&mut self, name: &str, attributes: &Attributes<'_>) {
        self.begin(name, attributes);
        self.0.push_str("/>");
    }

    /// Text, whatever is in it.
    pub fn text(&mut self, text: impl Display) {
        let _ = write!(Escaped(&mut self.0), "{text}");
    }

    /// The style sheet, which has nothing to escape.
    pub fn style(&mut self, css: &'static str) {
        debug_assert!(!css.contains(['<', '&']), "it would not be well-formed");
        self.0.push_str("<style>");
        self.0.push_str(css);
        self.0.push_str("</style>");
    }

    /// The document.
    pub fn finish(self) -> String {
        format!("<!DOCTYPE html>\n{}\n", self.0)
    }

    fn begin(&mut self, name: &str, attributes: &Attributes<'_>) {
        let _ = write!(self.0, "<{name}");
        for (name, value) in attributes {
            let _ = write!(self.0, " {name}=\"");
            let _ = write!(Escaped(&mut self.0), "{value}");
            self.0.push('"');
        }
    }
}

/// Escapes what is written through it.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                // No document may hold it in any form.
                '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' => self.0.push('\u{fffd}'),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

/// A length in a drawing, to a tenth; none for what is no number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Px(pub f64);

impl Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.1}", if self.0.is_finite() { self.0 } else { 0.0 });
        f.write_str(text.strip_suffix(".0").unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let mut markup = Markup::default();
        markup.tag("p", &[("title", &"a \"b\" & c"), ("width", &Px(12.04))], |p| p.text("<script>\u{1}1 > 0 & more"));
        markup.void("br", &[]);
        assert_eq!(
            markup.finish(),
            "<!DOCTYPE html>\n<p title=\"a &quot;b&quot; &amp; c\" width=\"12\">&lt;script&gt;\u{fffd}1 &gt; 0 &amp; more</p><br/>\n"
        );
    }
}
