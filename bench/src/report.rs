//! Results as tables for people and as JSON for programs.

use std::path::Path;

use serde::Serialize;

use crate::Error;
use crate::load::Window;
use crate::stats::{Latencies, median, spread};

/// The failures that are told in words.
const FAILURES_SHOWN: usize = 10;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Threads that served the callers.
    pub threads: u8,
    /// Lock pairs by target and number of callers.
    pub rows: Vec<Row>,
    /// Sessions against calls.
    pub streams: Vec<StreamReport>,
    /// Healthy against stopped nodes.
    pub stopped: Option<StoppedReport>,
    /// Operations that failed, and locks that were left behind.
    pub failures: u64,
    /// Some of them in words.
    pub failures_shown: Vec<String>,
}

/// One target with one number of callers; medians over the windows.
#[derive(Debug, Serialize)]
pub struct Row {
    pub target: &'static str,
    pub clients: usize,
    pub pairs_per_s: f64,
    pub pairs_per_s_least: f64,
    pub pairs_per_s_most: f64,
    pub cpu_us_per_pair: f64,
    pub client_us_per_pair: f64,
    pub proxy_us_per_pair: f64,
    pub redis_us_per_pair: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of the throughput, window by window with the rslock window beside it.
    pub ratio_to_rslock: f64,
}

impl Row {
    /// Of `windows`, each compared with the one of `rslock` that followed it.
    pub fn new(target: &'static str, clients: usize, windows: &[Window], rslock: &[Window]) -> Self {
        let of = |figure: &dyn Fn(&Window) -> f64| median(windows.iter().map(figure));
        let (least, most) = spread(windows.iter().map(Window::pairs_per_s));
        Self {
            target,
            clients,
            pairs_per_s: of(&Window::pairs_per_s),
            pairs_per_s_least: least,
            pairs_per_s_most: most,
            cpu_us_per_pair: of(&|window| window.us_per_pair(window.cpu.total())),
            client_us_per_pair: of(&|window| window.us_per_pair(window.cpu.client)),
            proxy_us_per_pair: of(&|window| window.us_per_pair(window.cpu.proxy)),
            redis_us_per_pair: of(&|window| window.us_per_pair(window.cpu.redis)),
            p50_ms: of(&|window| window.pair.percentile_ms(50)),
            p99_ms: of(&|window| window.pair.percentile_ms(99)),
            ratio_to_rslock: ratio(windows, rslock, Window::pairs_per_s),
        }
    }

    fn cells(&self) -> Vec<String> {
        let whole = |number: f64| format!("{number:.0}");
        let range = format!("{:.0}..{:.0}", self.pairs_per_s_least, self.pairs_per_s_most);
        let rate = [self.clients.to_string(), self.target.to_owned(), whole(self.pairs_per_s), range];
        let cpu = [self.client_us_per_pair, self.proxy_us_per_pair, self.redis_us_per_pair, self.cpu_us_per_pair];
        let rest = [format!("{:.2}", self.p50_ms), format!("{:.2}", self.p99_ms), format!("{:.2}", self.ratio_to_rslock)];
        rate.into_iter().chain(cpu.map(whole)).chain(rest).collect()
    }
}

/// A session against unary calls, window by window.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    /// Pairs under way at a time.
    pub in_flight: usize,
    pub throughput_ratio: f64,
    pub cpu_ratio: f64,
    pub proxy_cpu_ratio: f64,
}

impl StreamReport {
    /// Of windows side by side.
    pub fn new(in_flight: usize, stream: &[Window], unary: &[Window]) -> Self {
        Self {
            in_flight,
            throughput_ratio: ratio(stream, unary, Window::pairs_per_s),
            cpu_ratio: ratio(stream, unary, |window| window.us_per_pair(window.cpu.total())),
            proxy_cpu_ratio: ratio(stream, unary, |window| window.us_per_pair(window.cpu.proxy)),
        }
    }

    fn text(&self) -> String {
        format!(
            "{} in flight: a session does {:.2} times the pairs of unary calls, with {:.2} of their CPU time a pair (the proxy: {:.2})\n",
            self.in_flight, self.throughput_ratio, self.cpu_ratio, self.proxy_cpu_ratio
        )
    }
}

/// The median of the ratios of windows that lie side by side in time.
pub fn ratio<W>(windows: &[W], others: &[W], figure: impl Fn(&W) -> f64) -> f64 {
    median(windows.iter().zip(others).map(|(window, other)| figure(window) / figure(other)))
}

/// The proxy with all nodes and with some of them stopped. Latencies are of the acquire alone.
#[derive(Debug, Serialize)]
pub struct StoppedReport {
    pub clients: usize,
    pub nodes_stopped: usize,
    pub healthy: Side,
    pub stopped: Side,
    /// Stopped over healthy, window by window.
    pub p99_ratio: f64,
    pub throughput_ratio: f64,
    pub memory: Memory,
}

/// Medians over the windows.
#[derive(Debug, Serialize)]
pub struct Side {
    pub pairs_per_s: f64,
    pub acquire_p50_ms: f64,
    pub acquire_p99_ms: f64,
}

impl Side {
    /// Of `windows`.
    pub fn new(windows: &[Window]) -> Self {
        let percentile =
            |percent| median(windows.iter().map(|window: &Window| Latencies::percentile_ms(&window.acquire, percent)));
        Self {
            pairs_per_s: median(windows.iter().map(Window::pairs_per_s)),
            acquire_p50_ms: percentile(50),
            acquire_p99_ms: percentile(99),
        }
    }

    fn cells(&self, name: &str) -> Vec<String> {
        let ms = |number: f64| format!("{number:.2}");
        vec![name.to_owned(), format!("{:.0}", self.pairs_per_s), ms(self.acquire_p50_ms), ms(self.acquire_p99_ms)]
    }
}

/// The proxy's resident memory around acquires with stopped nodes.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub acquires: u64,
    /// After as much work with all nodes.
    pub before_kib: u64,
    /// After half of the acquires.
    pub half_kib: u64,
    /// After all of them.
    pub after_kib: u64,
    /// After the nodes went on, and what was kept for them had been delivered.
    pub resumed_kib: u64,
}

impl Report {
    /// Takes failures in.
    pub fn count_failures(&mut self, count: u64, shown: &[String]) {
        self.failures += count;
        let room = FAILURES_SHOWN.saturating_sub(self.failures_shown.len());
        self.failures_shown.extend(shown.iter().take(room).cloned());
    }

    /// Writes it as JSON.
    pub fn write_json(&self, file: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()).into())
    }

    /// Tables, as they are printed.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.rows.is_empty() {
            let head = ["callers", "target", "pairs/s", "least..most", "client", "proxy", "redis", "CPU us/pair", "p50 ms"];
            let head = head.iter().chain(&["p99 ms", "of rslock"]).map(ToString::to_string).collect();
            let threads = if self.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", self.threads) };
            text += "Lock pairs: acquire and release of a name of one's own, nobody in the way; ";
            text += &format!("callers on {threads}\n\n");
            text += &table(&[vec![head], self.rows.iter().map(Row::cells).collect()].concat());
        }
        if !self.streams.is_empty() {
            text += "\n";
            self.streams.iter().for_each(|stream| text += &stream.text());
        }
        if let Some(stopped) = &self.stopped {
            text += &stopped.text();
        }
        if self.failures > 0 {
            text += &format!("\n{} FAILURES, among them:\n", self.failures);
            self.failures_shown.iter().for_each(|what| text += &format!("  {what}\n"));
        }
        text
    }
}

impl StoppedReport {
    fn text(&self) -> String {
        let (stopped, clients, memory) = (self.nodes_stopped, self.clients, &self.memory);
        let head = ["nodes", "pairs/s", "acquire p50 ms", "acquire p99 ms"].map(str::to_owned).to_vec();
        let ratio = |number: f64| format!("{number:.2}");
        let ratios = vec!["ratio".to_owned(), ratio(self.throughput_ratio), String::new(), ratio(self.p99_ratio)];
        let lines = [head, self.healthy.cells("all"), self.stopped.cells(&format!("{stopped} stopped")), ratios];
        let mib = |kib: u64| kib as f64 / 1024.0;
        format!(
            "\nThrough the proxy with {stopped} nodes stopped, {clients} callers\n\n{}\nResident memory of the proxy: {:.1} MiB, \
             {:.1} after {} acquires with stopped nodes, {:.1} after {}, {:.1} after the nodes went on\n",
            table(&lines),
            mib(memory.before_kib),
            mib(memory.half_kib),
            memory.acquires / 2,
            mib(memory.after_kib),
            memory.acquires,
            mib(memory.resumed_kib),
        )
    }
}

/// Right-aligned columns.
fn table(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or_default();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().enumerate().map(|(column, cell)| format!("{cell:>width$}", width = width(column)));
        format!("{}\n", cells.collect::<Vec<_>>().join("  "))
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cpu::CpuTime;

    fn window(pairs: u64, cpu_ms: u64) -> Window {
        Window {
            pairs,
            took: Duration::from_secs(1),
            cpu: CpuTime { proxy: Duration::from_millis(cpu_ms), ..CpuTime::default() },
            pair: Latencies::new(vec![1000, 3000]),
            acquire: Latencies::new(vec![500]),
            failures: 0,
            failures_shown: vec![],
        }
    }

    #[test]
    fn ratios_are_taken_side_by_side() {
        // Medians of each: 200 and 400. But a noisy second window slowed both.
        let (ours, theirs) = ([window(200, 1), window(20, 1), window(900, 1)], [window(400, 1), window(40, 1), window(900, 1)]);
        assert_eq!(ratio(&ours, &theirs, Window::pairs_per_s), 0.5);
    }

    #[test]
    fn a_row_is_the_median_of_its_windows() {
        let windows = [window(100, 10), window(1000, 30), window(200, 10)];
        let row = Row::new("unary", 16, &windows, &windows);
        assert_eq!((row.pairs_per_s_least, row.pairs_per_s, row.pairs_per_s_most), (100.0, 200.0, 1000.0));
        assert_eq!((row.proxy_us_per_pair.round(), row.cpu_us_per_pair.round(), row.client_us_per_pair), (50.0, 50.0, 0.0));
        assert_eq!((row.p50_ms, row.p99_ms, row.ratio_to_rslock), (1.0, 3.0, 1.0));
        let cells = row.cells();
        assert_eq!(cells[..4], ["16", "unary", "200", "100..1000"]);
        assert_eq!(cells[8..], ["1.00", "3.00", "1.00"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let lines = [vec!["a".to_owned(), "long".to_owned()], vec!["1234".to_owned(), "5".to_owned()]];
        assert_eq!(table(&lines), "   a  long\n1234     5\n");
    }

    #[test]
    fn json_has_the_figures_by_name() {
        let windows = [window(100, 10)];
        let report = Report { rows: vec![Row::new("unary", 1, &windows, &windows)], ..Report::default() };
        let value = serde_json::to_value(&report).unwrap();
        let row = &value["rows"][0];
        assert_eq!((row["target"].as_str(), row["clients"].as_u64()), (Some("unary"), Some(1)));
        for figure in ["pairs_per_s", "cpu_us_per_pair", "p50_ms", "p99_ms", "ratio_to_rslock"] {
            assert!(row[figure].as_f64().is_some_and(|number| number > 0.0), "{figure}");
        }
    }
}
