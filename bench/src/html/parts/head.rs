//! What ran, and whether it was right; at the end, on what and how.

use super::super::Report;
use super::super::markup::Markup;
use super::super::numbers::{instant, span, three_digits, whole};
use super::heading;

/// So many lies are shown; one is enough to look into.
const MOST_LIES: usize = 20;

impl Report<'_> {
    pub(in super::super) fn head(&self, page: &mut Markup) {
        let run = &self.results.run;
        page.leaf("h1", &[], "redlockd under load");
        page.tag("p", &[], |line| {
            line.leaf("code", &[], &run.command);
            line.text(format_args!(", {}, took {}", instant(&run.started), span(run.took_s)));
            let machine = &run.machine;
            if !machine.cpu_model.is_empty() {
                line.text(format_args!("; {} cores, {}", machine.cores, machine.cpu_model));
            }
        });
        if !run.optimized {
            page.tag("div", &[("class", &"verdict bad")], |warning| {
                warning.text("The load generator was built without optimization: these figures mean nothing.");
            });
        }
        self.verdict(page);
    }

    /// Whether anybody was told a lie.
    fn verdict(&self, page: &mut Markup) {
        let checks = &self.results.checks;
        let count = |number: u64| whole(number as f64);
        let class = if checks.broken() == 0 { "verdict good" } else { "verdict bad" };
        page.tag("div", &[("class", &class)], |verdict| {
            verdict.leaf("strong", &[], match checks.broken() {
                0 if checks.grants == 0 => "Nothing was checked.".to_owned(),
                0 => "\u{2713} No promise was broken while it was loaded.".to_owned(),
                broken => format!("\u{2717} Promises were broken: {}", count(broken)),
            });
            verdict.text(format_args!(
                " {} grants of {} names: {} overlapping leases; {} of {} tokens did not rise; {} senseless answers; {} keys left in \
                 {} looks at servers.",
                count(checks.grants),
                count(checks.names),
                count(checks.overlaps),
                count(checks.tokens_not_rising),
                count(checks.tokens),
                count(checks.senseless_answers),
                count(checks.keys_left),
                count(checks.servers_swept),
            ));
            if !checks.lies.is_empty() {
                verdict.tag("ul", &[], |list| {
                    checks.lies.iter().take(MOST_LIES).for_each(|lie| list.leaf("li", &[], lie));
                });
            }
        });
    }

    /// Machine, programs, and what every client did.
    pub(in super::super) fn setting(&self, page: &mut Markup) {
        let (run, load) = (&self.results.run, &self.results.run.load);
        let machine = &run.machine;
        heading(page, "How it was measured", "");
        let versions: Vec<String> =
            run.versions.iter().map(|program| format!("{} {}", program.name, program.version)).collect();
        let facts = [
            ("Command", run.command.clone()),
            ("Date", format!("{}, took {}", instant(&run.started), span(run.took_s))),
            (
                "Machine",
                format!(
                    "{} cores, {}, {} MiB of memory, {}; load average before: {}",
                    machine.cores,
                    if machine.cpu_model.is_empty() { "unknown model" } else { &machine.cpu_model },
                    whole(machine.memory_mib as f64),
                    machine.kernel,
                    three_digits(machine.load_average)
                ),
            ),
            ("Programs", versions.join(", ")),
            (
                "Each client",
                format!(
                    "takes a lock and releases it, again and again; names: {}; TTL {} ms; held for {} ms; waits up to {} ms",
                    load.names,
                    whole(load.ttl_ms as f64),
                    three_digits(load.hold_ms),
                    whole(load.wait_ms as f64)
                ),
            ),
            (
                "Windows",
                format!(
                    "{} of {} after {} of warm-up, targets in turn; clients on {} of the load generator",
                    load.rounds,
                    span(load.window_s),
                    span(load.warm_up_s),
                    if run.threads == 1 { "one thread".to_owned() } else { format!("{} threads", run.threads) }
                ),
            ),
        ];
        page.tag("dl", &[], |list| {
            for (name, fact) in &facts {
                list.leaf("dt", &[], name);
                list.leaf("dd", &[], fact);
            }
        });
        page.leaf(
            "p",
            &[("class", &"soft")],
            "A pair is a lock taken and released. A figure of several windows is their median, with the extremes as \
             \u{201c}least to most\u{201d}; a ratio is taken between windows that lie side by side in time, and the median is \
             that of the ratios. CPU is user and system time.",
        );
    }
}
