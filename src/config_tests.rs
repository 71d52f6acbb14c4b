use super::*;

fn layers(settings: &[(&'static str, &str)]) -> Layers {
    let mut layers = Layers::default();
    for (path, value) in settings {
        layers.set(path, (*value).to_owned(), Origin::Flag(path.replace(['.', '_'], "-")));
    }
    layers
}

const MINIMAL: [(&str, &str); 2] =
    [("nodes.urls", "redis://r1, redis://r2, redis://r3"), ("fencing.url", "redis://fence:6379")];

fn errors(settings: &[(&'static str, &str)]) -> Vec<String> {
    let settings = [&MINIMAL, settings].concat();
    layers(&settings).resolve().err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn nodes_and_counter_are_all_that_has_to_be_said() {
    let config = layers(&MINIMAL).resolve().unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.nodes.quorum.size(), 2);
    assert_eq!(config.nodes.timeout, Duration::from_millis(50));
    assert_eq!(config.limits.ttl.longest.as_duration(), Duration::from_secs(300));
    assert_eq!(config.nodes.drift, DriftFactor::DEFAULT);
}

#[test]
fn a_flag_goes_before_a_variable_and_a_variable_before_the_file() {
    let file = file(
        "[nodes]\nurls = [\"redis://r1\"]\ntimeout = \"10ms\"\nkey_prefix = \"f:\"\n[fencing]\nurl = \"redis://f\"\ntimeout = \"20ms\"",
    );
    let mut layers = Layers::default();
    layers.add_file(file.path());
    layers.add_environment(|name| match name {
        "REDLOCKD_NODES_TIMEOUT" => Some("30ms".to_owned()),
        "REDLOCKD_FENCING_TIMEOUT" => Some("31ms".to_owned()),
        _ => None,
    });
    layers.set("fencing.timeout", "40ms".to_owned(), Origin::Flag("fencing-timeout".to_owned()));
    let printed = layers.print();
    let config = layers.resolve().unwrap();
    assert_eq!(config.nodes.key_prefix, "f:");
    assert_eq!(config.nodes.timeout, Duration::from_millis(30));
    assert_eq!(config.fencing.timeout, Duration::from_millis(40));
    assert!(printed.contains("# environment REDLOCKD_NODES_TIMEOUT"), "{printed}");
    assert!(printed.contains("# flag --fencing-timeout"), "{printed}");
    assert!(printed.contains("# default"), "{printed}");
}

#[test]
fn five_errors_are_five_errors_each_with_key_value_origin_and_expectation() {
    let found = errors(&[
        ("listen", "here"),
        ("threads", "many"),
        ("nodes.timeout", "fast"),
        ("limits.max_ttl", "9h"),
        ("log.format", "xml"),
    ]);
    assert_eq!(found.len(), 5, "{found:#?}");
    for (error, parts) in found.iter().zip([
        ["listen", "here", "--listen", "127.0.0.1:50051"],
        ["threads", "many", "--threads", "1 to 64"],
        ["nodes.timeout", "fast", "--nodes-timeout", "250ms"],
        ["limits.max_ttl", "9h", "--limits-max-ttl", "1h"],
        ["log.format", "xml", "--log-format", "text or json"],
    ]) {
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_known_one() {
    let file = file("lsten = \"x\"\n[nodes]\ntimeuot = \"1s\"\n[quux]\nzzzzzz = 1");
    let mut layers = layers(&MINIMAL);
    layers.add_file(file.path());
    let errors: Vec<String> = layers.resolve().unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(errors.iter().any(|e| e.contains("nodes.timeuot") && e.contains("did you mean nodes.timeout?")), "{errors:#?}");
    assert!(errors.iter().any(|e| e.contains("lsten") && e.contains("did you mean listen?")), "{errors:#?}");
    assert!(errors.iter().any(|e| e.contains("quux") && e.contains("--print-config")), "{errors:#?}");
}

#[test]
fn one_server_listed_twice_is_named() {
    let found = errors(&[("nodes.urls", "redis://r1:7000,redis://r2,redis://r1:7000/2")]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("nodes.urls[2]") && found[0].contains("r1:7000") && found[0].contains("once"), "{found:?}");
}

#[test]
fn what_is_missing_is_said() {
    let errors: Vec<String> = Layers::default().resolve().unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 2);
    assert!(errors[0].starts_with("nodes.urls is not set"), "{errors:?}");
    assert!(errors[1].starts_with("fencing.url is not set"), "{errors:?}");
}

#[test]
fn no_secret_is_ever_shown() {
    let secret = [
        ("nodes.urls", "redis://u:hush@r1:1,http://u:hush@r2"),
        ("nodes.password", "hush"),
        ("fencing.url", "redis://:hush@f:port"),
    ];
    let layers = layers(&secret);
    let shown = layers.print();
    assert!(!shown.contains("hush"), "{shown}");
    let errors = layers.resolve().unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(!format!("{errors:?}").contains("hush"), "{errors:?}");
}

#[test]
fn secrets_come_from_files_too_and_urls_go_first() {
    let file = file("from-file\n");
    let path = file.path().display().to_string();
    let mut layers =
        layers(&[("nodes.urls", "redis://r1,redis://u:own@r2"), ("fencing.url", "redis://f"), ("nodes.username", "ann")]);
    layers.set("nodes.password_file", path, Origin::Default);
    let config = layers.resolve().unwrap();
    let credentials = |i: usize| {
        let address: &Address = &config.nodes.addresses[i];
        (address.username.clone(), address.password.as_ref().map(|p| p.reveal().to_owned()))
    };
    assert_eq!(credentials(0), (Some("ann".to_owned()), Some("from-file".to_owned())));
    assert_eq!(credentials(1), (Some("u".to_owned()), Some("own".to_owned())));
    assert_eq!(config.fencing.address.unwrap().password, None);
}

#[test]
fn the_printed_configuration_can_be_loaded() {
    let printed = layers(&MINIMAL).print();
    let file = file(&printed);
    let mut reloaded = Layers::default();
    reloaded.add_file(file.path());
    let config = reloaded.resolve().unwrap();
    assert_eq!(config.nodes.addresses.len(), 3);
}

#[test]
fn bounds_are_checked() {
    assert_eq!(errors(&[("limits.max_ttl", "5s")]).len(), 1, "the default TTL is longer than the longest");
    assert_eq!(errors(&[("nodes.drift_factor", "0.2")]).len(), 1);
    assert_eq!(errors(&[("nodes.tls_cert_file", "/dev/null")]).len(), 1);
    assert_eq!(errors(&[("nodes.tls_ca_file", "/nonexistent")]).len(), 1);
    for reserved in ["redlockd:x", "redlockd:", "redlockd", "r"] {
        assert_eq!(errors(&[("nodes.key_prefix", reserved)]).len(), 1, "{reserved}");
    }
    for free in ["", "redlock:", "lock:", "redlockd-a:"] {
        assert_eq!(errors(&[("nodes.key_prefix", free)]), Vec::<String>::new(), "{free}");
    }
    assert_eq!(errors(&[]), Vec::<String>::new());
}
