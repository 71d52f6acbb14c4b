//! Tables whose first column says what, and whose others are figures.

use super::markup::Markup;

/// A table that scrolls by itself where the screen is too narrow for it.
pub fn draw(page: &mut Markup, heads: &[&str], rows: &[Vec<String>]) {
    page.tag("div", &[("class", &"scroll"), ("tabindex", &"0")], |page| {
        page.tag("table", &[], |table| {
            table.tag("thead", &[], |head| head.tag("tr", &[], |row| heads.iter().for_each(|text| row.leaf("th", &[], text))));
            table.tag("tbody", &[], |body| {
                for cells in rows {
                    body.tag("tr", &[], |row| cells.iter().for_each(|text| row.leaf("td", &[], text)));
                }
            });
        });
    });
}
