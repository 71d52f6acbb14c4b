//! `redlockd list`: all pages as one list, for people and for scripts.

use std::process::Stdio;

use crate::support::*;
use crate::{DONE, UNAVAILABLE, USAGE, failed, fields, objects};

/// Locks that another proxy granted to `ann`.
fn plant(cluster: &Cluster, prefix: &str, count: usize) {
    let script =
        "for i = 1, ARGV[2] do redis.call('SET', ARGV[1] .. i, string.format('%032x;ann', 4096 + i), 'PX', 600000) end";
    for node in &cluster.nodes {
        node.cli(&["EVAL", script, "0", &format!("lock:{prefix}"), &count.to_string()]);
    }
}

/// The names in an answer with `-o json`.
#[track_caller]
fn names(ran: &Ran) -> Vec<String> {
    assert_eq!((ran.code, ran.stderr.as_str()), (DONE, ""));
    objects(ran).iter().map(|lock| lock["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_goes_on_through_all_pages() {
    let mut cluster = Cluster::start(3);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    let nothing = run(&proxy, &["list", "-o", "json"]);
    assert_eq!((nothing.code, nothing.stdout.as_str(), nothing.stderr.as_str()), (DONE, "", ""));
    says(&run(&proxy, &["list"]).stdout, &["NAME", "0 locks\n"]);

    plant(&cluster, "orders/", 25);
    let acquire = ["acquire", "orders/0", "--ttl", "4m", "--owner", "bob", "-o", "json"];
    let granted = objects(&run(&proxy, &acquire)).remove(0);
    assert_eq!(run(&proxy, &["acquire", "users/1", "--ttl", "4m"]).code, DONE);
    until("the locks on every node", || async { (cluster.keys_on(&[0, 1, 2]).len() == 3 * 27).then_some(()) }).await;
    let mut expected: Vec<String> = (0..=25).map(|number| format!("orders/{number}")).collect();
    expected.sort();
    for size in ["1", "7", "1000"] {
        assert_eq!(names(&run(&proxy, &["list", "orders/", "--page-size", size, "-o", "json"])), expected, "{size}");
    }
    assert_eq!(names(&run(&proxy, &["list", "-o", "json"])).len(), 27);
    for limit in [1, 12, 26] {
        let ran = run(&proxy, &["list", "orders/", "--page-size", "5", "--limit", &limit.to_string(), "-o", "json"]);
        assert_eq!(names(&ran), expected[..limit]);
    }

    let ran = run(&proxy, &["list", "orders/", "-o", "json"]);
    let locks = objects(&ran);
    assert_eq!(fields(&locks[0]), ["name", "owner", "time_left_ms", "fencing_token", "waiters", "nodes"]);
    assert_eq!((&locks[0]["owner"], &locks[0]["fencing_token"]), (&"bob".into(), &granted["fencing_token"]));
    assert_eq!((&locks[0]["waiters"], &locks[0]["nodes"]), (&0.into(), &3.into()));
    let left = locks[0]["time_left_ms"].as_u64().unwrap();
    assert!(left > 60_000 && left < 240_000, "{left}");
    assert_eq!(fields(&locks[1]), ["name", "owner", "time_left_ms", "waiters", "nodes"]);
    assert_eq!(locks[1]["owner"], "ann");

    let table = run(&proxy, &["list", "orders/"]).stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "OWNER", "TIME", "LEFT", "TOKEN", "NODES", "WAITERS"]);
    assert_eq!(lines[1][..2], ["orders/0", "bob"]);
    assert_eq!(lines[1][lines[1].len() - 3..], [granted["fencing_token"].to_string().as_str(), "3", "0"]);
    assert_eq!(lines[2][lines[2].len() - 3..], ["-", "3", "0"], "the token is not known here");
    assert_eq!((lines.len(), &lines[27][..]), (28, &["26", "locks"][..]));
    says(&run(&proxy, &["list", "--limit", "1"]).stdout, &["1 lock, and maybe more"]);
    assert!(!table.contains(&format!("{:032x}", 4_097)), "a secret: {table}");

    for args in [["--limit", "0"], ["--page-size", "0"], ["--page-size", "1001"]] {
        failed(&run(&proxy, &[&["list"], &args[..]].concat()), USAGE, &args);
    }
    failed(&run(&proxy, &["list", "a\nb"]), USAGE, &["INVALID_ARGUMENT", "prefix"]);
    cluster.nodes.iter_mut().skip(1).for_each(Redis::kill);
    failed(&run(&proxy, &["list"]), UNAVAILABLE, &["UNAVAILABLE", "2 of 3", &cluster.nodes[1].address()]);
}

#[tokio::test]
async fn whoever_has_seen_enough_may_stop_reading() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::start_whole(&cluster, &[]).await;
    plant(&cluster, "a", 3_000);
    let mut command = redlockd();
    command.args(["list", "--page-size", "100", "--server", &proxy.url()]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut list = command.spawn().unwrap();
    drop(list.stdout.take());
    let ran: Ran = list.wait_with_output().unwrap().into();
    assert_eq!((ran.code, ran.stderr.as_str()), (DONE, ""));
}
