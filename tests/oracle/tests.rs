//! The checkers checked: a good history that each must pass, and bad ones that each must reject.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::history::{
    Call, Denial, Fault, Held, History, Intrusion, Lease, Leftover, Promise, Recovery, Removal, Said, Wait, Word, Write,
};
use super::{Assumptions, Violation, judge, overlaps, stale_writes_taken};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn lease(client: &str, token: u64, granted: u64, until: u64) -> Lease {
    Lease {
        name: "a".to_owned(),
        client: client.to_owned(),
        token: Some(token),
        not_before: at(granted),
        granted_by: at(granted + 2),
        held: Some(Held { from: at(granted + 3), until: at(until) }),
    }
}

fn wait(joined: u64, got: Option<u64>, left: Option<u64>) -> Wait {
    Wait {
        name: "n".to_owned(),
        line: "a".to_owned(),
        client: "one".to_owned(),
        joined: at(joined),
        got: got.map(at),
        left: left.map(at),
    }
}

fn word(said: Said, ms: u64, until: u64) -> Word {
    Word {
        at: at(ms),
        stream: 1,
        proxy: "proxy 1".to_owned(),
        lease: 0,
        said,
        counts_from: at(ms - 5),
        until: at(until),
        hold_ends: Some(at(100)),
    }
}

fn write(lease: usize, token: u64, ms: u64, accepted: bool) -> Write {
    Write { at: at(ms), name: "a".to_owned(), lease, token, accepted }
}

/// Two leases, one after the other, each with a write; a stale one is refused.
fn good() -> History {
    History {
        leases: vec![lease("one", 7, 10, 100), lease("two", 8, 110, 200)],
        writes: vec![write(0, 7, 50, true), write(1, 8, 150, true), write(0, 7, 160, false), write(1, 8, 170, true)],
        calls: vec![Call { what: "acquire".to_owned(), sent: at(1), answered: Some(at(13)), due: at(20) }],
        // In order; one that left without it; one that came later and one of another line that still wait.
        waits: vec![
            wait(10, Some(20), Some(20)),
            wait(11, None, Some(25)),
            wait(12, Some(30), Some(30)),
            wait(13, None, None),
            Wait { line: "b".to_owned(), ..wait(5, None, None) },
        ],
        words: vec![
            word(Said::Granted, 10, 60),
            word(Said::AtRisk, 40, 60),
            word(Said::Renewed, 45, 95),
            word(Said::AtRisk, 80, 95),
            word(Said::Lost { not_held: false }, 90, 95),
        ],
        promises: vec![Promise { lease: 0, until: at(100), kept_until: at(100) }],
        removals: vec![Removal {
            at: at(99),
            node: "n1".to_owned(),
            key: "lock:a".to_owned(),
            stood: "v".to_owned(),
            by: "v".to_owned(),
        }],
        intrusions: vec![Intrusion { at: at(150), lease: 0, what: "release".to_owned(), worked: false }],
        leftovers: vec![Leftover { node: "n1".to_owned(), key: "lock:a".to_owned(), excused: Some("cut".to_owned()) }],
        recoveries: vec![Recovery { name: "a".to_owned(), asked: at(300), granted: Some(at(310)), due: at(400) }],
        ..History::default()
    }
}

fn invariants(history: &History, assumptions: Assumptions) -> Vec<&'static str> {
    judge(history, assumptions).iter().map(|Violation { invariant, .. }| *invariant).collect()
}

/// Until which class of runs a promise has to hold; the later ones include those before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum HoldsIn {
    Hold,
    Guarded,
    Broken,
}

/// Changes the good history, and expects exactly this complaint wherever the promise has to hold, and none elsewhere.
fn rejects(invariant: &'static str, holds_in: HoldsIn, spoil: impl FnOnce(&mut History)) {
    let mut history = good();
    spoil(&mut history);
    let classes =
        [(HoldsIn::Hold, Assumptions::Hold), (HoldsIn::Guarded, Assumptions::Guarded), (HoldsIn::Broken, Assumptions::Broken)];
    for (class, assumptions) in classes {
        let expected = if class <= holds_in { vec![invariant] } else { vec![] };
        assert_eq!(invariants(&history, assumptions), expected, "{assumptions:?}");
    }
}

#[test]
fn a_good_history_passes() {
    assert_eq!(judge(&good(), Assumptions::Hold), []);
    assert_eq!(overlaps(&good()), 0);
}

#[test]
fn two_holders_at_one_instant_are_rejected() {
    rejects("exclusion", HoldsIn::Guarded, |history| history.leases[0].held = Some(Held { from: at(13), until: at(114) }));
    // Not only of neighbours: the first lease lasts longer than the second.
    rejects("exclusion", HoldsIn::Guarded, |history| {
        history.leases.push(lease("three", 9, 210, 300));
        history.leases[1].held = Some(Held { from: at(120), until: at(130) });
        history.leases[0].held = Some(Held { from: at(13), until: at(119) });
        history.leases[2].held = Some(Held { from: at(125), until: at(300) });
    });
}

#[test]
fn a_long_lease_overlaps_with_all_that_it_covers() {
    let mut history = good();
    history.leases.push(lease("three", 9, 210, 300));
    history.leases[0].held = Some(Held { from: at(13), until: at(400) });
    assert_eq!(overlaps(&history), 2);
}

#[test]
fn leases_that_touch_or_never_reached_their_clients_do_not_overlap() {
    let mut history = good();
    history.leases[0].held = Some(Held { from: at(13), until: at(113) });
    assert_eq!(overlaps(&history), 0);
    history.leases[0].held = None;
    history.leases[1].held = Some(Held { from: at(1), until: at(500) });
    assert_eq!(overlaps(&history), 0);
    let mut other_name = good();
    other_name.leases[1].name = "b".to_owned();
    other_name.leases[0].held = Some(Held { from: at(13), until: at(500) });
    assert_eq!(overlaps(&other_name), 0);
}

#[test]
fn a_promise_that_the_nodes_do_not_keep_is_rejected() {
    rejects("validity", HoldsIn::Hold, |history| history.promises[0].kept_until = at(99));
}

#[test]
fn a_token_that_falls_or_comes_twice_is_rejected() {
    rejects("tokens", HoldsIn::Broken, |history| {
        history.leases[1].token = Some(6);
        history.writes.clear();
    });
    rejects("tokens", HoldsIn::Broken, |history| {
        history.leases[1].token = Some(7);
        history.writes.clear();
    });
}

#[test]
fn grants_at_the_same_time_may_have_their_tokens_in_any_order() {
    let mut history = good();
    history.leases[0].granted_by = at(111);
    history.leases[0].token = Some(9);
    history.writes.clear();
    assert_eq!(invariants(&history, Assumptions::Broken), [""; 0]);
}

#[test]
fn a_resource_that_takes_a_stale_write_is_rejected() {
    assert_eq!(stale_writes_taken(&good()), 0);
    rejects("register", HoldsIn::Broken, |history| {
        history.writes[2].accepted = true;
        assert_eq!(stale_writes_taken(history), 1);
    });
}

#[test]
fn a_resource_that_refuses_the_newer_holder_is_rejected() {
    rejects("register", HoldsIn::Broken, |history| history.writes[1].accepted = false);
}

#[test]
fn a_key_that_somebody_else_removed_is_rejected() {
    rejects("ownership", HoldsIn::Hold, |history| history.removals[0].by = "w".to_owned());
    rejects("ownership", HoldsIn::Hold, |history| history.intrusions[0].worked = true);
}

#[test]
fn a_holder_who_is_told_that_its_lease_was_lost_is_rejected() {
    rejects("ownership", HoldsIn::Hold, |history| {
        history.denials.push(Denial { at: at(60), lease: 0, what: "release".to_owned() });
    });
}

#[test]
fn a_key_that_no_fault_explains_is_rejected() {
    rejects("leftovers", HoldsIn::Hold, |history| history.leftovers[0].excused = None);
}

#[test]
fn a_name_that_stays_locked_is_rejected() {
    rejects("recovery", HoldsIn::Broken, |history| history.recoveries[0].granted = None);
    rejects("recovery", HoldsIn::Broken, |history| history.recoveries[0].granted = Some(at(401)));
}

#[test]
fn whoever_overtakes_in_line_is_rejected() {
    rejects("fifo", HoldsIn::Broken, |history| history.waits[1].left = Some(at(31)));
    rejects("fifo", HoldsIn::Broken, |history| history.waits[1].left = None);
    rejects("fifo", HoldsIn::Broken, |history| history.waits[3].joined = at(11));
}

#[test]
fn a_call_without_an_answer_is_rejected() {
    rejects("liveness", HoldsIn::Broken, |history| history.calls[0].answered = None);
    rejects("liveness", HoldsIn::Broken, |history| history.calls[0].answered = Some(at(21)));
}

#[test]
fn the_hash_is_of_the_lines_and_nothing_else() {
    let mut histories = [History::default(), History::verbose(), History::default()];
    for history in &mut histories {
        history.note(at(1), format_args!("grant {}", 7));
    }
    histories[2].note(at(1), format_args!("write"));
    let [plain, verbose, longer] = histories;
    assert_eq!(plain.hash(), verbose.hash());
    assert_ne!(plain.hash(), longer.hash());
    assert_eq!((plain.lines().len(), verbose.lines().len()), (0, 1));
}

/// One waiter of a line sees so many grants to another line while nothing goes wrong.
#[test]
fn a_line_that_is_passed_over_for_long_is_rejected() {
    let elsewhere = |count: u64| {
        let grants = (0..count).map(|n| Wait { line: "b".to_owned(), ..wait(n, Some(100 + n), Some(100 + n)) });
        History { waits: grants.chain([wait(1, Some(1_000), Some(1_000))]).collect(), ..History::default() }
    };
    assert_eq!(invariants(&elsewhere(150), Assumptions::Hold), Vec::<&str>::new());
    assert_eq!(invariants(&elsewhere(151), Assumptions::Hold), ["starvation"]);
    let mut own_turn = elsewhere(200);
    own_turn.waits.push(wait(0, Some(200), Some(200)));
    assert_eq!(invariants(&own_turn, Assumptions::Hold), Vec::<&str>::new(), "its line had a turn");
    let mut faulty = elsewhere(200);
    faulty.faults.push(Fault { what: "stopped".to_owned(), to: "proxy 1".to_owned(), from: at(0), until: at(1) });
    assert_eq!(invariants(&faulty, Assumptions::Hold), Vec::<&str>::new(), "what went wrong explains it");
}

const LOST: Said = Said::Lost { not_held: false };

#[test]
fn a_session_that_tells_too_much_is_rejected() {
    rejects("words", HoldsIn::Broken, |history| history.words.push(word(Said::Renewed, 92, 99)));
    rejects("words", HoldsIn::Broken, |history| history.words.insert(2, word(Said::AtRisk, 42, 60)));
    rejects("words", HoldsIn::Broken, |history| history.words[2].until = at(101));
}

#[test]
fn a_session_that_tells_too_little_is_rejected() {
    let in_silence = |history: &mut History| history.words = vec![word(Said::Granted, 10, 60), word(Said::Nothing, 61, 60)];
    rejects("words", HoldsIn::Broken, in_silence);
    rejects("words", HoldsIn::Broken, |history| drop(history.words.remove(3)));
    let too_late = |history: &mut History| {
        history.words = vec![word(Said::Granted, 10, 60), word(Said::AtRisk, 40, 60), word(LOST, 62, 60)]
    };
    rejects("words", HoldsIn::Broken, too_late);
    // A loss without a risk: nobody can know of it before.
    let mut deleted = good();
    deleted.words = vec![word(Said::Granted, 10, 60), word(Said::Lost { not_held: true }, 20, 60)];
    assert_eq!(invariants(&deleted, Assumptions::Hold), Vec::<&str>::new());
}

#[test]
fn a_session_whose_proxy_was_stopped_or_whose_client_was_deaf_may_tell_too_little() {
    for said in [LOST, Said::Nothing] {
        let mut history = good();
        history.words = vec![word(Said::Granted, 10, 60), word(said, 61, 60)];
        let stopped =
            |to: &str, from, until| Fault { what: "stopped".to_owned(), to: to.to_owned(), from: at(from), until: at(until) };
        history.faults =
            vec![stopped("proxy 2", 20, 50), stopped("proxy 1", 1, 4), stopped("proxy 1", 62, 70), stopped("proxy 1", 20, 22)];
        assert_eq!(invariants(&history, Assumptions::Hold), ["words"], "not then, not for so short, or not that one");
        history.faults.push(stopped("proxy 1", 30, 55));
        assert_eq!(invariants(&history, Assumptions::Hold), Vec::<&str>::new());
        history.faults.clear();
        history.words.insert(1, word(Said::Unheard, 15, 60));
        assert_eq!(invariants(&history, Assumptions::Hold), Vec::<&str>::new());
        history.words.insert(2, word(Said::Renewed, 20, 60));
        assert_eq!(invariants(&history, Assumptions::Hold), ["words"], "it heard again");
    }
}
