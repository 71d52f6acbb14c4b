//! The examples, run as somebody runs them who wants to see what they show: what has to happen in each does.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Generous: nothing here depends on something being fast.
const PATIENCE: Duration = Duration::from_secs(300);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the examples, as `cargo run` does before it runs one, and says where they are. With the features of the whole
/// workspace, with which `make test` has built them already.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["build", "--quiet", "--locked", "--workspace", "--examples", "--message-format=json"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "the examples do not compile");
        let messages = String::from_utf8(output.stdout).unwrap();
        let mut programs = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_example = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "example");
            is_example.then(|| message["executable"].as_str().map(PathBuf::from))?
        });
        programs.next_back().expect("an example").parent().unwrap().to_owned()
    })
}

/// What an example prints. It has to end by itself, and well.
async fn shown(name: &str) -> Vec<String> {
    let folder = tokio::task::spawn_blocking(folder).await.unwrap();
    let mut command = tokio::process::Command::new(folder.join(name));
    // Without what the shell of whoever runs the tests says of proxies.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("REDLOCK")) {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.unwrap_or_else(|_| panic!("{name} does not end")).unwrap();
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{name}: {}\n{text}{errors}", output.status);
    assert_eq!(errors, "", "{name}: {text}");
    text.lines().map(str::to_owned).collect()
}

/// The number after `words` in the first line after `from` that has them, and where that is.
#[track_caller]
fn number_after(lines: &[String], from: usize, words: &str) -> (usize, u64) {
    let found = lines.iter().enumerate().skip(from).find_map(|(at, line)| Some((at, line.split_once(words)?.1)));
    let (at, rest) = found.unwrap_or_else(|| panic!("{words:?} is missing after line {from}: {lines:#?}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (at, digits.parse().unwrap_or_else(|_| panic!("no number after {words:?}: {}", lines[at])))
}

#[tokio::test]
async fn competition() {
    let lines = shown("competition").await;
    let (at, first) = number_after(&lines, 0, "has it, with token ");
    let (winner, told) = (lines[at].split_whitespace().next().unwrap(), &lines[at + 1]);
    assert!(["ann", "bob"].contains(&winner), "{lines:#?}");
    assert!(told.ends_with(&format!("is told that {winner} has it")), "{lines:#?}");
    let (at, second) = number_after(&lines, at, "works, with token ");
    assert!(lines[at + 1].ends_with("is done"), "{lines:#?}");
    let (_, third) = number_after(&lines, at + 1, "works, with token ");
    assert!(first < second && second < third, "{lines:#?}");
}

#[tokio::test]
async fn crashed_holder() {
    let lines = shown("crashed_holder").await;
    let (at, first) = number_after(&lines, 0, "the holder works under the lock, with token ");
    assert_eq!(lines[at + 1], "somebody else is told that the holder has it");
    assert!(lines[at + 2].starts_with("the holder is killed"), "{lines:#?}");
    let (_, second) = number_after(&lines, at + 3, "after the crash, with token ");
    assert!(second > first, "{lines:#?}");
}

#[tokio::test]
async fn failing_nodes() {
    let lines = shown("failing_nodes").await;
    let (mut at, mut steps) = number_after(&lines, 0, "with five nodes: ");
    let stopped = (1..=5).map(|node| format!("while node {node} is stopped: "));
    let killed = [2, 4].map(|node| format!("after node {node} has been killed: "));
    for when in stopped.chain(killed) {
        let (next, more) = number_after(&lines, at + 1, &when);
        assert!(more > steps, "{lines:#?}");
        (at, steps) = (next, more);
    }
    assert!(lines[at + 1].ends_with("never did two work at once"), "{lines:#?}");
    assert!(lines[at + 2].ends_with("two of five are no quorum"), "{lines:#?}");
}

#[tokio::test]
async fn leader() {
    let lines = shown("leader").await;
    let (mut at, mut token) = (0, 0);
    let mut leaders = Vec::new();
    for event in ["is told to resign", "is killed", "later"] {
        let (next, higher) = number_after(&lines, at, " leads, with token ");
        assert!(higher > token, "{lines:#?}");
        (at, token) = (next + 1, higher);
        let leader = lines[next].split_whitespace().next().unwrap().to_owned();
        assert!(lines[at..].iter().any(|line| line.starts_with(&leader) && line.contains(event)), "{lines:#?}");
        leaders.push(leader);
    }
    assert!(leaders[0] != leaders[1] && leaders[1] != leaders[2], "{leaders:?}");
}

/// One line and one command for each, and no other.
#[test]
fn the_readme_names_every_example() {
    let readme = std::fs::read_to_string(root().join("examples/README.md")).unwrap();
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let names: Vec<&str> = manifest.split("[[example]]").skip(1).filter_map(|part| part.split('"').nth(1)).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in &names {
        assert!(readme.contains(&format!("cargo run --example {name}")), "{name}");
    }
    let named: Vec<&str> =
        readme.split("cargo run --example ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next()).collect();
    assert!(named.iter().all(|name| names.contains(name)), "{named:?}");
}
