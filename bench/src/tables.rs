//! Results as tables in Markdown: to be read as they are, and to be pasted where they are kept.

use crate::results::{Aim, Better, Checks, Fault, OpenLoop, Results, Row, Setup, Verdict};

/// With as many digits as it is worth.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        small if small < 0.1 => format!("{value:.3}"),
        _ => format!("{value:.2}"),
    }
}

/// A table whose columns are aligned: the first to the left, the others to the right.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let width = |column: usize| rows.iter().chain([&head]).filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or_default().max(3)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| match column {
        0 => "-".repeat(*width),
        _ => "-".repeat(width - 1) + ":",
    });
    line(&head) + &line(&rule.collect()) + &rows.iter().map(line).collect::<String>()
}

const UNOPTIMIZED: &str = "This load generator is a debug build, whose figures mean nothing: build it with --profile dist\n";

/// All that a run has measured; the ratios that there is an aim for come first.
pub fn text(results: &Results) -> String {
    let parts = [
        if results.run.optimized { String::new() } else { UNOPTIMIZED.to_owned() },
        aims(&results.aims),
        rows(&results.rows),
        errors(results),
        results.open_loop.iter().map(open_loop).collect(),
        faults(&results.faults),
        checks(&results.checks),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn aims(aims: &[Aim]) -> String {
    if aims.is_empty() {
        return String::new();
    }
    let cells = |aim: &Aim| {
        let bound = |bound: Option<f64>| match (bound, aim.better) {
            (None, _) => "-".to_owned(),
            (Some(bound), Better::Higher) => format!(">= {bound}"),
            (Some(bound), Better::Lower) => format!("<= {bound}"),
        };
        let spread = match (aim.least, aim.most) {
            (Some(least), Some(most)) => format!("{}..{}", number(least), number(most)),
            _ => String::new(),
        };
        let verdict = match aim.verdict() {
            Verdict::AimMet => "aim met",
            Verdict::FloorMet => "floor met",
            Verdict::Missed => "MISSED",
            Verdict::NotMeasured => "not measured",
        };
        let what = if aim.unit.is_empty() { aim.what.clone() } else { format!("{}, {}", aim.what, aim.unit) };
        vec![what, bound(aim.floor), bound(aim.aim), aim.measured.map_or("-".to_owned(), number), spread, verdict.to_owned()]
    };
    let rows: Vec<Vec<String>> = aims.iter().map(cells).collect();
    format!("Ratios, window by window\n\n{}", markdown(&["ratio", "floor", "aim", "measured", "least..most", ""], &rows))
}

const ROW_HEAD: [&str; 13] = [
    "target",
    "clients",
    "pairs/s",
    "least..most",
    "of rslock",
    "p50 ms",
    "p99 ms",
    "p99.99 ms",
    "CPU us/pair",
    "client + proxy + servers",
    "commands/pair",
    "least / most of a client",
    "errors",
];

fn rows(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let cells: Vec<Vec<String>> = rows.iter().map(row).collect();
    format!("Lock pairs: acquire and release, begun again as soon as it is done\n\n{}", markdown(&ROW_HEAD, &cells))
}

fn row(row: &Row) -> Vec<String> {
    let maybe = |figure: Option<f64>| figure.map_or("-".to_owned(), number);
    let whole = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.0}"));
    let servers = row.cpu.redis_us_per_pair.or(row.cpu.etcd_us_per_pair);
    let split = [row.cpu.client_us_per_pair, row.cpu.proxy_us_per_pair, servers].map(whole).join(" + ");
    let fairness = row.fairness.map(|fairness| fairness.least_pairs as f64 / fairness.most_pairs as f64);
    let errors: u64 = row.errors.iter().map(|error| error.count).sum();
    vec![
        format!("{}{}", row.target, setup(&row.setup)),
        row.clients.to_string(),
        format!("{:.0}", row.pairs_per_s),
        format!("{:.0}..{:.0}", row.pairs_per_s_least, row.pairs_per_s_most),
        maybe(row.ratio_to_rslock),
        number(row.latency.p50_ms),
        number(row.latency.p99_ms),
        number(row.latency.p9999_ms),
        whole(row.cpu_us_per_pair),
        split,
        maybe(row.redis.as_ref().map(|redis| redis.commands_per_pair)),
        maybe(fairness),
        errors.to_string(),
    ]
}

/// What is not as usual: ` (3 proxies)`, or nothing.
pub fn setup(setup: &Setup) -> String {
    let mut words = Vec::new();
    if setup.nodes != 0 && setup.nodes != u32::from(crate::servers::NODES) {
        words.push(format!("{} node{}", setup.nodes, if setup.nodes == 1 { "" } else { "s" }));
    }
    if setup.proxies > 1 {
        words.push(format!("{} proxies", setup.proxies));
    }
    if setup.held > 0 {
        words.push(format!("{} held", setup.held));
    }
    if setup.waiters > 0 {
        words.push(format!("{} waiting elsewhere", setup.waiters));
    }
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

/// The kinds of errors of rows, with the first of each.
fn errors(results: &Results) -> String {
    let of_row = |row: &Row| {
        let line = |error: &crate::results::ErrorCount| {
            format!("{} with {} clients: {} times {}: {}\n", row.target, row.clients, error.count, error.kind, error.example)
        };
        row.errors.iter().map(line).collect::<String>()
    };
    results.rows.iter().map(of_row).collect()
}

fn open_loop(open: &OpenLoop) -> String {
    let cells = |step: &crate::results::Step| {
        let errors: u64 = step.errors.iter().map(|error| error.count).sum();
        let cpu = step.cpu_us_per_pair.map_or("-".to_owned(), |cpu| format!("{cpu:.0}"));
        let [p50, p99, p999, max] =
            [step.acquire.p50_ms, step.acquire.p99_ms, step.acquire.p999_ms, step.acquire.max_ms].map(number);
        let verdict = step.saturated.clone().unwrap_or_else(|| "carried".to_owned());
        let rates = [step.offered_per_s, step.achieved_per_s].map(|rate| format!("{rate:.0}"));
        rates.into_iter().chain([p50, p99, p999, max, cpu, errors.to_string(), verdict]).collect()
    };
    let steps: Vec<Vec<String>> = open.steps.iter().map(cells).collect();
    let head = ["pairs/s due", "made", "acquire p50 ms", "p99 ms", "p99.9 ms", "max ms", "CPU us/pair", "errors", ""];
    let mut text = format!(
        "{}{} at given rates ({} arrivals), up to {} under way; latencies from the due time\n\n{}",
        open.target,
        setup(&open.setup),
        open.arrivals,
        open.clients,
        markdown(&head, &steps)
    );
    if let Some(knee) = &open.knee {
        let beyond = knee.not_carried_per_s.map_or(String::new(), |rate| format!(", and not {rate:.0}"));
        text += &format!("\nThe knee: {:.0} pairs/s are carried{beyond}. Carried: {}.\n", knee.pairs_per_s, knee.rule);
    }
    text
}

fn faults(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return String::new();
    }
    let mut rows = Vec::new();
    for fault in faults {
        let load = fault.offered_per_s.map_or(String::new(), |rate| format!(" at {rate:.0}/s"));
        let who = format!("{}, {} clients{load}", fault.target, fault.clients);
        let phases = [("before", Some(&fault.before)), (&fault.what, Some(&fault.during)), ("after", fault.after.as_ref())];
        for (when, phase) in phases {
            let Some(phase) = phase else { continue };
            let errors: u64 = phase.errors.iter().map(|error| error.count).sum();
            let rss = phase.proxy_rss_kib.map_or("-".to_owned(), |kib| format!("{:.1}", kib as f64 / 1024.0));
            let [p50, p99, max] = [phase.acquire.p50_ms, phase.acquire.p99_ms, phase.acquire.max_ms].map(number);
            let (seconds, rate) = (format!("{:.0}", phase.seconds), format!("{:.0}", phase.pairs_per_s));
            rows.push(vec![who.clone(), when.to_owned(), seconds, rate, p50, p99, max, errors.to_string(), rss]);
        }
        let ratios = [number(fault.throughput_ratio), String::new(), number(fault.p99_ratio)];
        let [rate, p50, p99] = ratios;
        let none = String::new;
        rows.push(vec![who, "during / around it".to_owned(), none(), rate, p50, p99, none(), none(), none()]);
    }
    let head = ["load", "nodes", "s", "pairs/s", "acquire p50 ms", "p99 ms", "max ms", "errors", "proxy MiB"];
    format!("Faults under load\n\n{}", markdown(&head, &rows))
}

fn checks(checks: &Checks) -> String {
    let mut text = format!(
        "Checked: {} grants of {} names: {} overlaps; {} tokens compared: {} not rising; {} senseless answers; {} looks at {} nodes \
         after the last release: {} keys left behind\n",
        checks.grants,
        checks.names,
        checks.overlaps,
        checks.tokens,
        checks.tokens_not_rising,
        checks.senseless_answers,
        checks.sweeps,
        checks.servers_swept,
        checks.keys_left
    );
    if checks.broken() > 0 {
        text += &format!("{} PROMISES WERE BROKEN, among them:\n", checks.broken());
        checks.lies.iter().for_each(|lie| text += &format!("  {lie}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_told_and_the_aims_first() {
        let results: Results = serde_json::from_str(include_str!("../tests/sample-results.json")).unwrap();
        let text = text(&results);
        assert!(text.starts_with("Ratios"), "{text}");
        for part in ["| unary ", "| etcd ", "The knee: ", "1 node of 5", "during / around it", "Checked: ", "deadline exceeded"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("BROKEN"));
    }

    #[test]
    fn a_broken_promise_can_not_be_overlooked() {
        let broken = Checks { keys_left: 2, lies: vec!["2 keys".to_owned()], ..Checks::default() };
        assert!(checks(&broken).contains("2 PROMISES WERE BROKEN") && checks(&broken).ends_with("  2 keys\n"));
    }

    #[test]
    fn an_aim_has_its_bounds_and_what_came_of_it() {
        let aim = |measured| Aim { what: "a over b".to_owned(), floor: Some(1.3), aim: Some(2.0), measured, ..Aim::default() };
        let table = aims(&[aim(Some(1.9)), aim(None), aim(Some(1.0))]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[4].contains(">= 1.3 | >= 2 |     1.90 |             |    floor met"), "{table}");
        assert!(lines[5].contains("not measured") && lines[6].contains("MISSED"), "{table}");
    }

    #[test]
    fn numbers_have_about_three_digits() {
        let numbers = [12345.6, 123.45, 12.345, 1.2345, 0.12345, 0.012345, f64::INFINITY].map(number);
        assert_eq!(numbers, ["12346", "123.5", "12.3", "1.23", "0.12", "0.012", "inf"]);
    }
}
