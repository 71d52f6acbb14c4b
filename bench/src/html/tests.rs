//! The page of the sample, as a program reads it.

use roxmltree::{Document, ParsingOptions};

use super::*;
use crate::results::{Aim, ErrorCount, Mark, MarkKind, Sample, Timeline};

fn sample() -> Results {
    serde_json::from_str(include_str!("../../tests/sample-results.json")).expect("a good sample")
}

/// Well-formed, or a failed test.
fn parsed<T>(results: &Results, look: impl FnOnce(&Document<'_>) -> T) -> T {
    let page = page(results);
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(&page, options).unwrap_or_else(|error| panic!("{error}\n{page}"));
    look(&document)
}

/// All text between tags.
fn words(document: &Document<'_>) -> String {
    let texts = document
        .descendants()
        .filter(|node| node.is_text() && node.parent().is_none_or(|parent| !parent.has_tag_name("style")));
    texts.filter_map(|node| node.text()).collect::<Vec<_>>().join("\n")
}

fn count(document: &Document<'_>, tag: &str) -> usize {
    document.descendants().filter(|node| node.has_tag_name(tag)).count()
}

#[test]
fn everything_in_the_sample_is_on_its_page() {
    let results = sample();
    parsed(&results, |document| {
        let words = words(document);
        let rows = results.rows.iter().map(|row| &row.target);
        let aims = results.aims.iter().map(|aim| &aim.what);
        let faults = results.faults.iter().map(|fault| &fault.what);
        let titles = results.timelines.iter().map(|timeline| &timeline.title);
        let mut seen = 0;
        for text in rows.chain(aims).chain(faults).chain(titles).chain([&results.run.command]) {
            assert!(words.contains(text.as_str()), "{text} is not on the page");
            seen += 1;
        }
        assert!(seen > 20, "the sample has too little");
        let machine = &results.run.machine;
        for text in [&machine.cpu_model, &machine.kernel, "2026-11-23 14:02 UTC", "knee", "\u{2713} No promise was broken"] {
            assert!(words.contains(text), "{text} is not on the page");
        }
        assert!(count(document, "svg") > 15 && count(document, "polyline") > 20 && count(document, "table") > 2);
    });
}

#[test]
fn the_first_table_is_that_of_the_aims() {
    let results = sample();
    parsed(&results, |document| {
        let table = document.descendants().find(|node| node.has_tag_name("table")).expect("a table");
        let rows: Vec<_> = table.descendants().filter(|node| node.has_tag_name("tr")).skip(1).collect();
        assert_eq!(rows.len(), results.aims.len());
        let cells = |row: &roxmltree::Node<'_, '_>| {
            let cells = row.children().filter(|node| node.has_tag_name("td"));
            cells
                .map(|cell| cell.descendants().filter_map(|node| node.text().filter(|_| node.is_text())).collect::<String>())
                .collect::<Vec<_>>()
        };
        let first = &results.aims[0];
        let figures = [first.floor, first.aim, first.measured].map(|figure| format!("{:.2}", figure.expect("a figure")));
        let shown = cells(&rows[0]);
        assert_eq!(shown[0], first.what);
        assert!(figures.iter().zip(&shown[1..]).all(|(figure, cell)| cell.contains(figure)), "{shown:?}");
        assert_eq!(shown[4], "\u{2713} floor met");
    });
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page(&sample());
    for outside in ["://", "src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "<img"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
}

#[test]
fn whatever_is_in_the_results_is_text_on_the_page() {
    let evil = "<script>alert(\"1\")</script>&amp;";
    let mut results = sample();
    let text = || evil.to_owned();
    (results.run.command, results.run.machine.cpu_model, results.run.started) = (text(), text(), text());
    results.aims.push(Aim { what: text(), unit: text(), measured: Some(1.0), ..Aim::default() });
    results.checks.lies.push(text());
    (results.checks.overlaps, results.rows[0].target) = (1, text());
    results.rows[0].errors.push(ErrorCount { kind: text(), count: 1, example: text() });
    (results.timelines[0].title, results.timelines[0].target) = (text(), text());
    results.timelines[0].marks.push(Mark { at_s: 4.0, kind: MarkKind::FaultBegins, what: text() });
    results.faults[0].what = text();
    let knee = results.open_loop[0].knee.as_mut().expect("a knee");
    (knee.rule, results.open_loop[0].arrivals) = (text(), text());
    parsed(&results, |document| {
        assert_eq!(count(document, "script"), 0);
        let words = words(document);
        assert!(words.matches(evil).count() >= 10, "{}", words.matches(evil).count());
        assert!(words.contains("\u{2717} Promises were broken: 1"));
    });
}

#[test]
fn a_page_can_be_made_of_anything_that_a_run_may_leave() {
    parsed(&Results::default(), |document| assert_eq!(count(document, "svg"), 0));
    // What was not measured, and what can not be measured.
    let mut results = sample();
    results.aims.clear();
    results.rows.truncate(1);
    let row = &mut results.rows[0];
    (row.cpu_us_per_pair, row.ratio_to_rslock, row.redis, row.fairness) = (None, None, None, None);
    (row.pairs_per_s, row.pairs_per_s_most, row.latency.p50_ms) = (0.0, f64::NAN, f64::INFINITY);
    row.latency.curve.clear();
    results.open_loop[0].steps.truncate(1);
    results.open_loop[0].knee = None;
    results.faults[0].after = None;
    results.faults[0].ended_s = None;
    let sample = Sample { at_s: 3.0, ..Sample::default() };
    results.timelines = vec![Timeline { title: "one".to_owned(), samples: vec![sample], ..Timeline::default() }];
    let page = parsed(&results, |document| {
        document.descendants().for_each(|node| {
            for attribute in node.attributes() {
                assert!(!attribute.value().contains("NaN") && !attribute.value().contains("inf"), "{attribute:?}");
            }
        });
        words(document)
    });
    assert!(!page.contains("NaN") && !page.contains("inf "), "{page}");
}

#[test]
fn a_fault_is_drawn_from_its_beginning_to_its_end_or_to_that_of_the_plot() {
    let rects = |results: &Results| {
        parsed(results, |document| {
            let bands = document.descendants().filter(|node| node.attribute("class") == Some("band"));
            let rects = bands.flat_map(|band| band.descendants().filter(|node| node.has_tag_name("rect")).collect::<Vec<_>>());
            rects
                .map(|rect| rect.attribute("width").and_then(|width| width.parse::<f64>().ok()).expect("a width"))
                .collect::<Vec<_>>()
        })
    };
    let mut results = sample();
    let marked = results.timelines.iter_mut().find(|timeline| !timeline.marks.is_empty()).expect("a fault");
    let ended = marked.marks.clone();
    let open = ended.iter().filter(|mark| mark.kind == MarkKind::FaultBegins).cloned().collect();
    let with_end = rects(&results);
    let marked = results.timelines.iter_mut().find(|timeline| !timeline.marks.is_empty()).expect("a fault");
    marked.marks = open;
    let without_end = rects(&results);
    assert!(!with_end.is_empty() && with_end.len() == without_end.len());
    assert!(
        with_end.iter().zip(&without_end).all(|(with, without)| *with > 1.0 && without > with),
        "{with_end:?} {without_end:?}"
    );
}

/// etcd has no nodes, a library no proxies: they stand beside the others all the same.
#[test]
fn targets_that_do_without_nodes_or_proxies_are_compared_with_the_others() {
    let mut results = sample();
    for row in &mut results.rows {
        match row.target.as_str() {
            "etcd" => (row.setup.nodes, row.setup.proxies) = (0, 0),
            "rslock" => row.setup.proxies = 0,
            _ => {}
        }
    }
    let bars = |results: &Results| {
        parsed(results, |document| document.descendants().filter(|node| node.attribute("class") == Some("bar")).count())
    };
    assert_eq!(bars(&results), bars(&sample()));
    parsed(&results, |document| assert!(!words(document).contains("Other setups")));
}

#[test]
fn other_setups_are_shown_beside_each_other() {
    let mut results = sample();
    let standard = results.rows.iter().find(|row| row.target == "unary" && row.clients == 64).expect("a row").clone();
    for (nodes, held) in [(1, 0), (7, 0), (5, 1_000_000)] {
        let mut row = standard.clone();
        (row.setup.nodes, row.setup.held) = (nodes, held);
        results.rows.push(row);
    }
    parsed(&results, |document| {
        let words = words(document);
        for text in [
            "Other setups",
            "Throughput by nodes: unary, 64 clients",
            "CPU of the proxy by nodes",
            "Throughput by other locks held",
        ] {
            assert!(words.contains(text), "{text} is not on the page");
        }
        assert!(words.contains("1,000,000 other locks held"), "in words");
        let of_the_comparison = words.matches("Side by side").count();
        assert_eq!(of_the_comparison, 3, "one for each number of clients");
    });
}
