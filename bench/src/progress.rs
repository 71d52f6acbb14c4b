//! What people see while it runs: one line that changes on a terminal; elsewhere a line for each step, and now and then one of
//! a step that takes long.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::results::Sample;
use crate::servers::{Servers, proxy};
use crate::tables::number;

/// Where it is no terminal, a long step says so often that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// How long the proxy may take to say how its nodes are.
const PATIENCE: Duration = Duration::from_millis(200);

/// For people.
pub struct Progress {
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    step: Mutex<Step>,
}

struct Step {
    what: String,
    said: Instant,
}

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            // Fails only for a template that is wrong.
            let style = ProgressStyle::with_template("{bar:8} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style)
        });
        Self { bar, step: Mutex::new(Step { what: String::new(), said: Instant::now() }) }
    }

    /// What happens from now on.
    pub fn step(&self, what: impl Into<String>) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        *step = Step { what: what.into(), said: Instant::now() };
        if let Some(bar) = &self.bar {
            bar.set_position(0);
            bar.set_message(step.what.clone());
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// How it goes.
    pub async fn tick(&self, servers: &Servers, elapsed: Duration, of: Duration, sample: &Sample, errors: u64) {
        let Some(bar) = &self.bar else {
            return self.sign_of_life(sample, errors);
        };
        let nodes = tokio::time::timeout(PATIENCE, proxy::nodes_up(&servers.proxy())).await.ok().flatten();
        let nodes = nodes.map_or_else(|| "servers ?".to_owned(), |(up, all)| format!("servers {up}/{all}"));
        let what = self.step.lock().unwrap_or_else(PoisonError::into_inner).what.clone();
        bar.set_length(of.as_millis() as u64);
        bar.set_position(elapsed.min(of).as_millis() as u64);
        // What changes comes first: a narrow terminal cuts the rest.
        bar.set_message(format!("{}, {nodes}: {what}", figures(sample, errors)));
    }

    fn sign_of_life(&self, sample: &Sample, errors: u64) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        if step.said.elapsed() >= SIGN_OF_LIFE {
            step.said = Instant::now();
            eprintln!("{}: {}", step.what, figures(sample, errors));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn figures(sample: &Sample, errors: u64) -> String {
    let [p50, p99] = [sample.p50_ms, sample.p99_ms].map(|ms| ms.map_or_else(|| "-".to_owned(), number));
    format!("{:.0}/s, p50 {p50} p99 {p99} ms, {errors} errors", sample.pairs_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let sample = Sample { pairs_per_s: 1234.5, p50_ms: Some(1.234), ..Sample::default() };
        assert_eq!(figures(&sample, 2), "1234/s, p50 1.23 p99 - ms, 2 errors");
    }
}
