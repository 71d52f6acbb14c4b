//! `redlockd-bench report`: from a file to a page.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use crate::Error;
use crate::results::{Results, VERSION};

/// Make a page with plots from the results of a run: it needs no network and no script to be read
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// What a run has left
    #[arg(long = "in", value_name = "FILE", default_value = "target/bench/results.json")]
    input: PathBuf,
    /// Where the page goes
    #[arg(long, value_name = "FILE", default_value = "target/bench/report.html")]
    out: PathBuf,
}

/// The part of the results that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl ReportArgs {
    /// Reads, writes, and says where the page is.
    pub fn run(&self) -> Result<(), Error> {
        let input = self.input.display();
        let text = fs::read_to_string(&self.input)
            .map_err(|error| format!("{input}: {error}; a run leaves its results there, and --in names another file"))?;
        let page = super::page(&parse(&text).map_err(|why| format!("{input}: {why}"))?);
        let out = self.out.display();
        if let Some(folder) = self.out.parent() {
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        fs::write(&self.out, page).map_err(|error| format!("{out}: {error}; --out names another file"))?;
        println!("{out}");
        Ok(())
    }
}

fn parse(text: &str) -> Result<Results, String> {
    let head: Head = serde_json::from_str(text).map_err(|error| format!("these are no results of redlockd-bench: {error}"))?;
    if head.version != VERSION {
        return Err(format!(
            "version {} of the results; this redlockd-bench knows version {VERSION}. Make the report with the one that \
             measured, or measure again",
            head.version
        ));
    }
    serde_json::from_str(text).map_err(|error| format!("the results are not whole: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(input: PathBuf, out: PathBuf) -> ReportArgs {
        ReportArgs { input, out }
    }

    #[test]
    fn a_page_is_made_where_it_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let (input, out) = (folder.path().join("results.json"), folder.path().join("new/report.html"));
        fs::write(&input, include_str!("../../tests/sample-results.json")).expect("it can be written");
        args(input, out.clone()).run().expect("a good file");
        assert!(fs::read_to_string(out).expect("a page").starts_with("<!DOCTYPE html>"));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let of = |text: Option<&str>| {
            let input = folder.path().join("r.json");
            let _ = fs::remove_file(&input);
            text.into_iter().for_each(|text| fs::write(&input, text).expect("it can be written"));
            args(input, folder.path().join("report.html")).run().expect_err("no page").to_string()
        };
        let cases = [
            (None, "--in"),
            (Some("not json"), "no results"),
            (Some("{}"), "version"),
            (Some(r#"{"version": 999}"#), "999"),
            (Some(r#"{"version": 1}"#), "not whole"),
        ];
        for (text, word) in cases {
            let error = of(text);
            assert!(error.contains("r.json") && error.contains(word), "{text:?}: {error}");
        }
        assert!(!folder.path().join("report.html").exists());
    }
}
