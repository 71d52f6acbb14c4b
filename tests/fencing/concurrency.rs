//! Many writers at a time, each with tokens in an order of its own.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::postgres::{Postgres, psql};
use crate::resource::{NAME, example, prepared};
use crate::support::*;

const WRITERS: usize = 8;

/// Small and large tokens, every one once, in a random order, for each of the writers.
fn shuffled() -> Vec<Vec<u64>> {
    let seed = rand::random();
    println!("seed {seed}");
    let last = (1 << 53) - 1;
    let mut tokens: Vec<u64> = (1..=300).chain(last - 100..=last).collect();
    tokens.shuffle(&mut StdRng::seed_from_u64(seed));
    tokens.chunks(tokens.len().div_ceil(WRITERS)).map(<[u64]>::to_vec).collect()
}

/// Starts a program that reads these lines.
fn feed(command: &mut Command, lines: &str) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn in_redis_the_highest_token_wins_and_accepted_ones_never_fall() {
    let redis = Redis::start(&[]);
    let script = std::fs::read_to_string(example("fenced_set.lua")).unwrap();
    let sha = redis.cli(&["SCRIPT", "LOAD", &script]);
    let writers = shuffled();
    let start = |tokens: &Vec<u64>| {
        let call = |token: &u64| format!("EVALSHA {sha} 1 {NAME} {token} value-{token}\n");
        feed(Command::new("redis-cli").args(["-p", &redis.port.to_string()]), &tokens.iter().map(call).collect::<String>())
    };
    let running: Vec<Child> = writers.iter().map(start).collect();

    // The token and the highest before it, of each write that was taken.
    let (mut taken, mut refused) = (Vec::new(), 0);
    for (tokens, child) in writers.iter().zip(running) {
        let reply: Vec<u64> = output(child).lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(reply.len(), 2 * tokens.len());
        for (token, answer) in tokens.iter().zip(reply.chunks(2)) {
            match answer {
                [1, before] => taken.push((*token, *before)),
                [0, highest] if highest > token => refused += 1,
                other => panic!("{token}: {other:?}"),
            }
        }
    }
    // Each followed a lower one that was taken, and no two the same: they rose from the first to the last.
    taken.sort_unstable();
    let mut before = 0;
    for (token, seen) in &taken {
        assert_eq!(*seen, before, "when {token} was taken");
        before = *token;
    }
    let last = (1_u64 << 53) - 1;
    assert_eq!(before, last);
    assert_eq!(redis.cli(&["HMGET", NAME, "token", "value"]), format!("{last}\nvalue-{last}"));
    assert!(refused > 0, "nothing came out of order");
}

#[test]
fn in_postgresql_the_highest_token_wins_and_accepted_ones_never_fall() {
    let postgres = with_history();
    let writers = shuffled();
    let start = |tokens: &Vec<u64>| {
        let call = |token: &u64| format!("EXECUTE fenced_write('{NAME}', {token}, 'value-{token}');\n");
        let calls: String = tokens.iter().map(call).collect();
        feed(prepared(&postgres.programs, postgres.socket()).args(["-f", "-"]), &calls)
    };
    let running: Vec<Child> = writers.iter().map(start).collect();

    let mut taken: Vec<u64> = Vec::new();
    for child in running {
        taken.extend(output(child).lines().map(|line| line.parse::<u64>().unwrap()));
    }
    taken.sort_unstable();
    let history = postgres.sql("SELECT token FROM history ORDER BY number");
    let history: Vec<u64> = history.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(history, taken, "in the order in which they were taken: they rose, and the writers know which ones");
    let last = (1_u64 << 53) - 1;
    assert_eq!(postgres.sql("SELECT token, value FROM fenced"), format!("{last}|value-{last}"));
    assert!(taken.len() < writers.iter().map(Vec::len).sum(), "nothing came out of order");
}

/// With a table that keeps the tokens that were written, in that order: it is filled while the row is locked.
fn with_history() -> Postgres {
    let postgres = Postgres::start();
    assert!(prepared(&postgres.programs, postgres.socket()).status().unwrap().success());
    postgres.sql(
        "CREATE TABLE history (number bigserial, token bigint);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN INSERT INTO history (token) VALUES (NEW.token); RETURN NULL; END';
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON fenced FOR EACH ROW EXECUTE FUNCTION note()",
    );
    postgres
}

/// A transaction that has written with a token and stays open.
struct Open {
    child: Child,
    input: std::process::ChildStdin,
}

impl Open {
    async fn start(postgres: &Postgres, token: u64) -> Self {
        let mut command = prepared(&postgres.programs, postgres.socket());
        let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "BEGIN; EXECUTE fenced_write('{NAME}', {token}, 'value-{token}');").unwrap();
        seen(&postgres.programs, postgres.socket(), "state = 'idle in transaction' AND query LIKE 'EXECUTE%'").await;
        Self { child, input }
    }

    fn end(mut self, how: &str) -> String {
        writeln!(self.input, "{how};").unwrap();
        drop(self.input);
        output(self.child)
    }
}

/// Waits until there is a session like that.
async fn seen(programs: &Path, socket: &Path, what: &str) {
    let count = format!("SELECT count(*) FROM pg_stat_activity WHERE {what}");
    until(what, || async {
        let output = psql(programs, socket).args(["-c", &count]).output().unwrap();
        (output.stdout == b"1\n").then_some(())
    })
    .await;
}

/// Two writers at exactly the same time: the later one waits for the earlier one, and is judged by what that one did.
#[tokio::test]
async fn in_postgresql_a_writer_waits_for_one_that_has_not_committed() {
    let postgres = with_history();
    // The first time there is no row yet.
    for (open, late, how, taken) in [(10, 9, "COMMIT", false), (12, 11, "ROLLBACK", true), (20, 21, "COMMIT", true)] {
        let first = Open::start(&postgres, open).await;
        let call = format!("EXECUTE fenced_write('{NAME}', {late}, 'value-{late}')");
        let mut second = prepared(&postgres.programs, postgres.socket());
        let second = second.args(["-c", &call]).stdout(Stdio::piped()).spawn().unwrap();
        seen(&postgres.programs, postgres.socket(), "wait_event_type = 'Lock'").await;
        assert_eq!(first.end(how), format!("{open}\n"));
        assert_eq!(output(second), if taken { format!("{late}\n") } else { String::new() }, "{late} after {open}, {how}");
        let winner = if taken { late } else { open };
        assert_eq!(postgres.sql("SELECT token, value FROM fenced"), format!("{winner}|value-{winner}"));
    }
}
