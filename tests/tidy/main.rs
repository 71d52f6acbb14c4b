//! Rules that can rot: which module may use which, and what the README says against what the code does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// What a module of `src/` may use of the others. Downwards only; `main` may use all.
const ARROWS: [(&str, &[&str]); 15] = [
    ("engine", &[]),
    ("metrics", &[]),
    ("proto", &[]),
    ("dev", &[]),
    ("fenced", &["engine"]),
    ("node", &["engine"]),
    ("config", &["engine", "node"]),
    ("coordinator", &["engine", "node", "metrics"]),
    ("grpc", &["coordinator", "engine", "node", "metrics", "proto"]),
    ("admin", &["coordinator", "node", "metrics"]),
    ("run", &["admin", "config", "coordinator", "engine", "grpc", "metrics", "node", "proto"]),
    ("check", &["config", "engine", "node"]),
    ("client", &["proto"]),
    ("cli", &["client", "proto"]),
    ("args", &["check", "cli", "config"]),
];

/// The module of `src/` that a file belongs to.
fn module(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").trim_end_matches("_tests").to_owned()
}

/// The code of a file without its unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn arrows_point_one_way() {
    let mut arrows_seen = 0;
    for file in sources(&root().join("src")) {
        let own = module(&file);
        // The mutants are a switch that any module may ask.
        if ["lib", "main", "mutants"].contains(&own.as_str()) {
            continue;
        }
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == own).unwrap_or_else(|| panic!("no arrows for {own}"));
        for part in code(&file).split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_module = ARROWS.iter().any(|(name, _)| *name == used);
            assert!(!is_module || used == own || allowed.contains(&used.as_str()), "{} uses crate::{used}", file.display());
            arrows_seen += usize::from(is_module && used != own);
        }
    }
    assert!(arrows_seen > 20, "the test sees nothing: {arrows_seen}");
}

#[test]
fn the_engine_uses_the_standard_library_only() {
    let mut imports = 0;
    for file in sources(&root().join("src/engine")).iter().filter(|file| !file.ends_with("round_tests.rs")) {
        for line in code(file).lines().map(str::trim).filter(|line| line.starts_with("use ")) {
            let pure = ["use std::", "use super::", "use crate::engine::"].iter().any(|start| line.starts_with(start));
            let clock = ["Instant", "SystemTime", "thread", "sync::atomic"].iter().any(|word| line.contains(word));
            assert!(pure && !clock, "{}: {line}", file.display());
            imports += 1;
        }
    }
    assert!(imports > 5);
}

#[test]
fn only_one_file_names_the_redis_client() {
    let names_it = |file: &&PathBuf| code(file).lines().any(|line| line.trim_start().starts_with("use fred"));
    let all = sources(&root().join("src"));
    let files: Vec<&PathBuf> = all.iter().filter(names_it).collect();
    assert_eq!(files, [&root().join("src/node/redis.rs")]);
}

#[test]
fn there_is_no_lua_inside_rust() {
    for file in sources(&root().join("src")) {
        assert!(!code(&file).contains("redis.call"), "{}", file.display());
    }
}

#[test]
fn every_script_says_what_it_needs_and_why_it_is_one() {
    let entries = ["lua", "examples/fencing"].into_iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let scripts = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "lua"));
    for path in scripts {
        let text = fs::read_to_string(&path).unwrap();
        // The second half of another one.
        if path.to_string_lossy().ends_with("_end.lua") {
            continue;
        }
        for part in ["-- KEYS ", "-- Reply ", "script", "epeat"] {
            assert!(text.contains(part), "{} does not say {part:?}", path.display());
        }
    }
}

/// The text of a fenced block of the README that begins with `first`.
fn readme_block(first: &str) -> String {
    let readme = read("README.md");
    let block = readme
        .split("```")
        .find(|block| block.trim_start_matches(|c: char| c.is_alphanumeric()).trim_start().starts_with(first));
    let block = block.unwrap_or_else(|| panic!("the README has no block that begins with {first:?}"));
    block.split_once('\n').unwrap().1.trim().to_owned()
}

#[test]
fn the_sample_configuration_in_the_readme_is_what_the_program_prints() {
    let output = Command::new(env!("CARGO_BIN_EXE_redlockd"))
        .env_clear()
        .args(["serve", "--print-config"])
        .args(["--nodes-urls", "redis://r1:6379,redis://r2:6379,redis://r3:6379,redis://r4:6379,redis://r5:6379"])
        .args(["--fencing-url", "redis://fence:6379"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(readme_block("# Address and port of the gRPC"), String::from_utf8(output.stdout).unwrap().trim());
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let readme = read("README.md");
    for (name, _, help) in redlockd::metrics::CATALOGUE {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}")));
        let row = row.unwrap_or_else(|| panic!("the README does not list {name}"));
        assert!(row.contains(help), "the README describes {name} with other words: {row}");
    }
    for word in readme.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.starts_with("redlock_")) {
        let known = redlockd::metrics::CATALOGUE.iter().any(|(name, _, _)| word.starts_with(name));
        assert!(known, "the README names {word}, which does not exist");
    }
}

#[test]
fn the_alerts_use_only_metrics_and_labels_that_exist() {
    use redlockd::metrics::{CATALOGUE, Kind};
    let alerts = read("deploy/prometheus/alerts.yml");
    let mut named = 0;
    for word in alerts.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| word.starts_with("redlock_")) {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(*end));
        let known = CATALOGUE.iter().any(|(name, kind, _)| match kind {
            Kind::Counter | Kind::Gauge => *name == word,
            Kind::Seconds | Kind::Ratio | Kind::Size => *name == base.unwrap_or(word),
        });
        assert!(known, "the alerts name {word}, which does not exist");
        named += 1;
    }
    let code = code(&root().join("src/metrics.rs"));
    let mut matched = 0;
    let quoted: Vec<&str> = alerts.split('"').collect();
    for pair in quoted.windows(2) {
        let before = pair[0].trim_end_matches(['=', '!', '~']);
        // Not a label matcher, or one of Prometheus's own labels.
        if before == pair[0] || before.ends_with("job") {
            continue;
        }
        for value in pair[1].split('|') {
            let wanted = if before.ends_with(",le") { format!(" {value},") } else { format!("\"{value}\"") };
            assert!(code.contains(&wanted), "the alerts look for {value:?}, which no metric has");
            matched += 1;
        }
    }
    assert!(named > 20 && matched > 10, "the test sees nothing: {named} metrics, {matched} values of labels");
}

/// The first word of a text.
fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

#[test]
fn every_alert_is_tested_and_in_the_readme() {
    let (alerts, readme) = (read("deploy/prometheus/alerts.yml"), read("README.md"));
    let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    let tests = read("deploy/prometheus/alerts_test.yml");
    let cases: Vec<&str> = tests.split("alertname: ").skip(1).collect();
    for rule in &rules {
        let name = first_word(rule);
        for (what, sign) in [("fires", "exp_labels:"), ("does not fire", "exp_alerts: []")] {
            let tested = cases.iter().any(|case| first_word(case) == name && case.contains(sign));
            assert!(tested, "there is no test in which {name} {what}");
        }
        let severity = rule.split("severity: ").nth(1).map(first_word).unwrap_or_default();
        assert!(readme.contains(&format!("| `{name}` | {severity} |")), "the README does not list {name} as {severity}");
    }
    for case in &cases {
        let name = first_word(case);
        assert!(rules.iter().any(|rule| first_word(rule) == name), "there is a test of {name}, which does not exist");
    }
    assert_eq!(readme.matches("| `Redlock").count(), rules.len(), "the README lists an alert that does not exist");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut links = 0;
    for document in [
        "README.md",
        "CHANGELOG.md",
        "docs/guarantees.md",
        "examples/README.md",
        "examples/fencing/README.md",
        "tests/README.md",
    ] {
        let folder = root().join(document).parent().unwrap().to_owned();
        for part in read(document).split("](").skip(1) {
            let (target, _) = part.split_once(')').unwrap();
            let (file, _) = target.split_once('#').unwrap_or((target, ""));
            if !file.is_empty() && !file.contains("://") {
                assert!(folder.join(file).exists(), "{document} links to {target}, which does not exist");
                links += 1;
            }
        }
    }
    assert!(links > 5, "the test sees nothing: {links}");
}

#[test]
fn the_readme_names_every_command() {
    let readme = read("README.md");
    let help = Command::new(env!("CARGO_BIN_EXE_redlockd")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() >= 7, "{commands:?}");
    for command in commands {
        assert!(readme.contains(&format!("`{command}")) || readme.contains(&format!("redlockd {command}")), "{command}");
    }
}
