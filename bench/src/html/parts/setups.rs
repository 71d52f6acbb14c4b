//! The same with other numbers of nodes, proxies, or held locks.

use crate::results::{Row, Setup};

use super::super::Report;
use super::super::bars::{self, Bar};
use super::super::markup::Markup;
use super::super::numbers::{NONE, maybe, mib, three_digits, whole};
use super::super::table;
use super::rows::{clients, setup_text};
use super::{figure, heading, plots};

/// What may differ, and what of it is shown.
struct Side {
    caption: &'static str,
    number: fn(&Setup) -> u64,
    /// All the rest.
    rest: fn(Setup) -> Setup,
}

const SIDES: [Side; 4] = [
    Side { caption: "nodes", number: |setup| setup.nodes.into(), rest: |setup| Setup { nodes: 0, ..setup } },
    Side { caption: "proxies", number: |setup| setup.proxies.into(), rest: |setup| Setup { proxies: 0, ..setup } },
    Side { caption: "waiters elsewhere", number: |setup| setup.waiters.into(), rest: |setup| Setup { waiters: 0, ..setup } },
    Side { caption: "other locks held", number: |setup| setup.held, rest: |setup| Setup { held: 0, ..setup } },
];

/// Rows that differ in one number of their setup only.
struct Group<'a> {
    side: &'static Side,
    rows: Vec<&'a Row>,
}

impl Report<'_> {
    pub(in super::super) fn setups(&self, page: &mut Markup) {
        let (groups, others) = (self.groups(), self.not_compared());
        if others.is_empty() {
            return;
        }
        heading(page, "Other setups", "The same load on more or fewer nodes and proxies, or beside many held locks.");
        plots(page, |page| groups.iter().for_each(|group| self.group(page, group)));
        let rows: Vec<_> = others.into_iter().map(cells).collect();
        let heads =
            ["setup", "target", "clients", "pairs/s", "p99 ms", "CPU \u{b5}s/pair", "of the proxy", "of Redis", "proxy MiB"];
        table::draw(page, &heads, &rows);
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for side in &SIDES {
            for row in &self.results.rows {
                let alike = |other: &Row| {
                    let rest = |row: &Row| (row.target.clone(), row.clients, (side.rest)(row.setup.clone()));
                    rest(other) == rest(row)
                };
                let is_known = groups.iter().any(|group| std::ptr::eq(group.side, side) && alike(group.rows[0]));
                let mut rows: Vec<&Row> = self.results.rows.iter().filter(|other| alike(other)).collect();
                if !is_known && rows.len() > 1 {
                    rows.sort_by_key(|row| (side.number)(&row.setup));
                    groups.push(Group { side, rows });
                }
            }
        }
        groups
    }

    fn group(&self, page: &mut Markup, Group { side, rows }: &Group<'_>) {
        let (first, look) = (rows[0], self.looks.of(&rows[0].target));
        let name = |row: &Row| whole((side.number)(&row.setup) as f64);
        let throughput = |row: &&Row| {
            let bar = Bar::whole(&name(row), look, row.pairs_per_s, whole(row.pairs_per_s));
            Bar { range: Some((row.pairs_per_s_least, row.pairs_per_s_most)), ..bar }
        };
        let caption = format!("Throughput by {}: {}, {}", side.caption, first.target, clients(first.clients));
        figure(page, &caption, "pairs/s; whiskers from least to most", |page| {
            bars::draw(page, &caption, &rows.iter().map(throughput).collect::<Vec<_>>());
        });
        let proxy = |row: &&Row| {
            let us = row.cpu.proxy_us_per_pair?;
            Some(Bar::whole(&name(row), look, us, three_digits(us)))
        };
        let bars: Vec<Bar> = rows.iter().filter_map(proxy).collect();
        if bars.len() > 1 {
            let caption = format!("CPU of the proxy by {}: {}, {}", side.caption, first.target, clients(first.clients));
            figure(page, &caption, "\u{b5}s for a pair", |page| bars::draw(page, &caption, &bars));
        }
    }
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        setup_text(&row.setup),
        row.target.clone(),
        whole(f64::from(row.clients)),
        whole(row.pairs_per_s),
        three_digits(row.latency.p99_ms),
        maybe(row.cpu_us_per_pair),
        maybe(row.cpu.proxy_us_per_pair),
        maybe(row.cpu.redis_us_per_pair),
        row.proxy_rss_kib.map_or_else(|| NONE.to_owned(), |kib| three_digits(mib(kib as f64))),
    ]
}
