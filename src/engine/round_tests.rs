use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn quorum(nodes: usize) -> Quorum {
    Quorum::of(nodes).unwrap()
}

fn stored(value: &str, left_ms: u64) -> Stored {
    Stored { value: Some(value.as_bytes().into()), left_ms: Some(left_ms) }
}

fn refusal() -> Reply {
    Reply::Other(stored("other", 500))
}

fn unknown(may_have_landed: bool) -> Reply {
    Reply::Unknown(Why { kind: WhyKind::Timeout(Duration::from_millis(50)), may_have_landed })
}

/// A round whose operations have all been sent.
fn sent(nodes: usize) -> AcquireRound {
    let mut round = AcquireRound::new(quorum(nodes));
    for node in 0..nodes {
        assert!(round.on_sending(node));
    }
    round
}

fn reply_kind() -> impl Strategy<Value = Reply> {
    prop_oneof![3 => Just(Reply::Yes), 2 => Just(refusal()), 2 => Just(unknown(true)), 1 => Just(unknown(false))]
}

/// Up to nine nodes, a reply for each, and the order in which they come.
fn history() -> impl Strategy<Value = Vec<(NodeIndex, Reply)>> {
    (1_usize..=9).prop_flat_map(|nodes| (proptest::collection::vec(reply_kind(), nodes), any::<[Index; 9]>())).prop_map(
        |(replies, order)| {
            let mut left: Vec<(NodeIndex, Reply)> = replies.into_iter().enumerate().collect();
            order.iter().map_while(|i| (!left.is_empty()).then(|| left.remove(i.index(left.len())))).collect()
        },
    )
}

/// What the answer would be if the replies so far were followed by `rest`, judged from the whole.
fn judge(nodes: usize, replies: &[Reply]) -> Step {
    let yes = replies.iter().filter(|r| **r == Reply::Yes).count();
    let no = replies.iter().filter(|r| matches!(r, Reply::Other(_))).count();
    match () {
        () if yes > nodes / 2 => Step::Grant,
        () if yes + no > nodes / 2 => Step::GiveUp(Loss::Contended),
        () => Step::GiveUp(Loss::NoQuorum),
    }
}

/// Every way in which `missing` nodes can still reply.
fn futures_of(missing: usize) -> Vec<Vec<Reply>> {
    let kinds = [Reply::Yes, refusal(), unknown(true)];
    (0..3_usize.pow(u32::try_from(missing).unwrap()))
        .map(|code| (0..missing).map(|i| kinds[code / 3_usize.pow(u32::try_from(i).unwrap()) % 3].clone()).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Decided with the very reply after which every possible rest leads to the same answer, not one later, and once.
    #[test]
    fn decided_as_early_as_possible_and_never_contradicted(history in history()) {
        let nodes = history.len();
        let mut round = sent(nodes);
        let mut seen = Vec::new();
        let mut decision = None;
        for (node, reply) in history {
            seen.push(reply.clone());
            let step = round.on_reply(node, reply);
            let outcomes: Vec<Step> = futures_of(nodes - seen.len())
                .into_iter()
                .map(|rest| judge(nodes, &[seen.clone(), rest].concat()))
                .collect();
            let certain = outcomes.iter().all(|outcome| *outcome == outcomes[0]);
            match decision {
                Some(_) => prop_assert_eq!(step, Step::Wait, "decided twice"),
                None if certain => {
                    prop_assert_eq!(step, outcomes[0]);
                    decision = Some(step);
                }
                None => prop_assert_eq!(step, Step::Wait, "decided while it could still change"),
            }
        }
        prop_assert!(decision.is_some(), "all replied and nothing decided");
    }

    /// A given-up attempt leaves out of its clean-up only the nodes on which its value can not be.
    #[test]
    fn whatever_did_not_refuse_is_cleaned_up(history in history(), replies in 0_usize..9, unsent in 0_usize..9) {
        let nodes = history.len();
        let unsent = unsent.min(nodes);
        let mut round = AcquireRound::new(quorum(nodes));
        for node in unsent..nodes {
            round.on_sending(node);
        }
        let replied: Vec<_> = history.into_iter().filter(|(node, _)| *node >= unsent).take(replies).collect();
        for (node, reply) in &replied {
            round.on_reply(*node, reply.clone());
        }
        let release = round.give_up();
        for node in 0..nodes {
            let reply = replied.iter().find(|(n, _)| *n == node).map(|(_, reply)| reply);
            let clean = node < unsent || matches!(reply, Some(Reply::Other(_))) || reply == Some(&unknown(false));
            prop_assert_eq!(release.contains(&node), !clean, "node {} of {}", node, nodes);
            prop_assert!(!round.on_sending(node), "a given-up attempt sends nothing more");
        }
    }

    #[test]
    fn a_lease_is_judged_from_a_quorum_of_the_configured_nodes(
        replies in (1_usize..=9).prop_flat_map(|n| proptest::collection::vec(0_u8..3, n))
    ) {
        let nodes = replies.len();
        let mut round = LeaseRound::new(quorum(nodes));
        let mut verdict = None;
        let (mut held, mut against) = (0, 0);
        for (node, kind) in replies.into_iter().enumerate() {
            let reply = match kind {
                0 => { held += 1; Reply::Held { left_ms: 10 } }
                1 => { against += 1; Reply::Absent }
                _ => unknown(true),
            };
            if let Some(found) = round.on_reply(node, reply) {
                prop_assert_eq!(verdict, None, "decided twice");
                verdict = Some(found);
            }
        }
        let expected = if held > nodes / 2 {
            Verdict::Held
        } else if nodes - against <= nodes / 2 {
            Verdict::NotHeld
        } else {
            Verdict::Unknown
        };
        prop_assert_eq!(verdict, Some(expected));
    }
}

#[test]
fn three_of_five_grant_and_the_rest_changes_nothing() {
    let mut round = sent(5);
    assert_eq!(round.on_reply(4, Reply::Yes), Step::Wait);
    assert_eq!(round.on_reply(0, unknown(true)), Step::Wait);
    assert_eq!(round.on_reply(2, Reply::Yes), Step::Wait);
    assert_eq!(round.on_reply(1, Reply::Yes), Step::Grant);
    assert_eq!(round.on_reply(3, refusal()), Step::Wait);
    assert_eq!(round.on_timeout(), Step::Wait);
}

#[test]
fn three_refusals_of_five_end_it_without_the_others() {
    let mut round = sent(5);
    assert_eq!(round.on_reply(0, refusal()), Step::Wait);
    assert_eq!(round.on_reply(1, refusal()), Step::Wait);
    assert_eq!(round.on_reply(2, refusal()), Step::GiveUp(Loss::Contended));
    assert_eq!(round.give_up(), [3, 4], "the silent ones are cleaned up too");
}

#[test]
fn a_late_yes_still_counts_while_the_answer_is_open() {
    let mut round = sent(5);
    round.on_reply(0, unknown(true));
    round.on_reply(1, Reply::Yes);
    round.on_reply(2, Reply::Yes);
    assert_eq!(round.on_reply(0, Reply::Yes), Step::Grant);
}

#[test]
fn a_late_refusal_spares_the_clean_up() {
    let mut round = sent(5);
    round.on_timeout();
    assert_eq!(round.give_up(), [0, 1, 2, 3, 4]);
    round.on_reply(3, refusal());
    assert!(!round.needs_release(3));
    assert!(round.needs_release(4));
}

#[test]
fn an_error_is_no_refusal() {
    let mut round = sent(3);
    round.on_reply(0, unknown(true));
    assert_eq!(round.on_reply(1, unknown(true)), Step::GiveUp(Loss::NoQuorum));
    assert_eq!(round.give_up(), [0, 1, 2]);
}

#[test]
fn what_was_never_sent_needs_no_clean_up_and_what_a_grant_queued_still_goes_out() {
    let mut round = AcquireRound::new(quorum(5));
    for node in 0..4 {
        round.on_sending(node);
    }
    for node in 0..3 {
        round.on_reply(node, Reply::Yes);
    }
    assert!(round.on_sending(4), "granted: the queued SET still goes out");
    let mut round = AcquireRound::new(quorum(5));
    round.on_sending(0);
    assert_eq!(round.give_up(), [0]);
    assert!(!round.on_sending(1), "given up: the queued SET is dropped");
}

#[test]
fn a_set_that_is_still_queued_at_the_time_out_is_not_sent_behind_the_clean_up() {
    let mut round = AcquireRound::new(quorum(3));
    round.on_sending(0);
    assert_eq!(round.on_timeout(), Step::GiveUp(Loss::NoQuorum));
    assert_eq!(round.give_up(), [0]);
    assert!(!round.on_sending(1));
}

#[test]
fn the_lock_can_be_free_when_enough_refusing_keys_have_expired() {
    let mut round = sent(5);
    for (node, left) in [(0, 900), (1, 100), (2, 400)] {
        round.on_reply(node, Reply::Other(stored("x", left)));
    }
    assert_eq!(round.free_in_ms(), Some(100), "two are free, one more makes three");
    round.on_reply(3, Reply::Other(stored("x", 300)));
    assert_eq!(round.free_in_ms(), Some(300));
    let mut endless = sent(1);
    endless.on_reply(0, Reply::Other(Stored { value: None, left_ms: None }));
    assert_eq!(endless.free_in_ms(), None);
}

#[test]
fn the_holder_is_whom_most_refusing_nodes_name() {
    let value = |nonce, owner| {
        let owner = Owner::new(owner).unwrap();
        let value = crate::engine::lease::LockValue::new(nonce, None, owner.as_ref());
        Reply::Other(stored(value.as_str(), 10))
    };
    let mut round = sent(5);
    round.on_reply(0, value(1, "loser"));
    round.on_reply(1, value(2, "winner"));
    round.on_reply(2, value(2, "winner"));
    assert_eq!(round.holder(), Owner::new("winner").unwrap());
}

#[test]
fn a_renewal_leaves_what_the_weakest_of_a_quorum_has() {
    let mut round = LeaseRound::new(quorum(5));
    assert_eq!(round.on_reply(0, Reply::Held { left_ms: 700 }), None);
    assert_eq!(round.on_reply(1, Reply::Absent), None);
    assert_eq!(round.on_reply(2, Reply::Held { left_ms: 20 }), None);
    assert_eq!(round.left_ms(0), None, "two are no quorum");
    assert_eq!(round.on_reply(3, Reply::Held { left_ms: 90 }), Some(Verdict::Held));
    assert_eq!(round.left_ms(0), Some(20));
    assert_eq!(round.left_ms(100), Some(100));
    assert!(round.lost_the_key(1), "it gets the key back, but did not count");
    assert!(!round.lost_the_key(4));
}

#[test]
fn two_deleted_and_two_not_ours_prove_nothing_while_one_is_silent() {
    let mut round = LeaseRound::new(quorum(5));
    for (node, reply) in [Reply::Yes, Reply::Yes, Reply::Absent, Reply::Absent].into_iter().enumerate() {
        assert_eq!(round.on_reply(node, reply), None);
    }
    assert_eq!(round.on_reply(4, unknown(true)), Some(Verdict::Unknown));
}

/// Its reply was lost, it was sent again, and found nothing any more: nobody may be told that the lease had been lost.
#[test]
fn a_release_does_not_take_its_own_work_for_a_loss() {
    let mut round = LeaseRound::release(quorum(3));
    assert_eq!(round.on_reply(1, unknown(true)), None);
    assert_eq!(round.on_reply(1, Reply::Absent), None);
    assert_eq!(round.on_reply(2, Reply::Absent), None);
    assert_eq!(round.on_reply(0, Reply::Yes), Some(Verdict::Unknown));

    let mut sent_once = LeaseRound::release(quorum(3));
    assert_eq!(sent_once.on_reply(1, unknown(false)), None);
    assert_eq!(sent_once.on_reply(1, Reply::Absent), None);
    assert_eq!(sent_once.on_reply(2, Reply::Absent), Some(Verdict::NotHeld));
}

#[test]
fn a_survey_waits_for_all_and_sees_the_holder_of_a_quorum() {
    let mut survey = Survey::new(quorum(5));
    assert!(survey.on_reply(0, Reply::Other(stored("a", 50))).is_none());
    assert!(survey.on_reply(1, Reply::Other(stored("a", 70))).is_none());
    assert!(survey.on_reply(2, Reply::Other(stored("b", 90))).is_none());
    assert!(survey.on_reply(3, Reply::Other(stored("a", 60))).is_none());
    let found = survey.on_reply(4, unknown(true));
    assert!(found == Some(Occupancy::Held { value: b"a".as_slice().into(), left_ms: Some(50), by: vec![0, 1, 3] }));
}

#[test]
fn a_survey_does_not_guess_what_silent_nodes_hold() {
    let survey = |replies: [Reply; 3]| {
        let mut survey = Survey::new(quorum(3));
        replies.into_iter().enumerate().find_map(|(node, reply)| survey.on_reply(node, reply)).unwrap()
    };
    let other = || Reply::Other(stored("a", 50));
    assert!(survey([other(), unknown(true), Reply::Absent]) == Occupancy::Unknown);
    assert!(survey([unknown(true), Reply::Absent, Reply::Absent]) == Occupancy::Free);
    assert!(survey([other(), Reply::Absent, Reply::Absent]) == Occupancy::Free);
    let wrong_type = || Reply::Other(Stored { value: None, left_ms: None });
    assert!(survey([wrong_type(), wrong_type(), wrong_type()]) == Occupancy::Free);
}

#[test]
fn a_release_that_is_lost_twice_does_not_take_its_own_work_for_a_loss() {
    let unknown = |may_have_landed| Reply::Unknown(Why { kind: WhyKind::Silent, may_have_landed });
    let mut round = LeaseRound::release(Quorum::of(3).unwrap());
    assert_eq!(round.on_reply(0, unknown(true)), None);
    assert_eq!(round.on_reply(0, unknown(false)), None, "the repeat was not even sent");
    assert_eq!(round.on_reply(0, Reply::Absent), None, "its own work");
    assert_eq!(round.on_reply(1, Reply::Absent), None, "or this is a verdict");
    assert_eq!(round.on_reply(2, Reply::Yes), Some(Verdict::Unknown));
}

/// Protocol section 3: the others are asked only if the first did not refuse, and then decide as ever.
#[test]
fn one_node_is_asked_before_the_others() {
    let round = || {
        let mut round = AcquireRound::one_first(quorum(5), 2);
        assert!(round.on_sending(2));
        round
    };
    assert_eq!(round().others().collect::<Vec<_>>(), [0, 1, 3, 4]);

    let mut refused = round();
    assert_eq!(refused.on_reply(2, refusal()), Step::GiveUp(Loss::Contended));
    assert_eq!(refused.free_in_ms(), Some(500), "as far as it is known");
    assert_eq!(refused.give_up(), Vec::<NodeIndex>::new(), "nobody was asked");

    for first in [Reply::Yes, unknown(true), unknown(false)] {
        let mut going_on = round();
        assert_eq!(going_on.on_reply(2, first.clone()), Step::AskTheOthers);
        let needed = if first == Reply::Yes { [0, 1].as_slice() } else { &[0, 1, 3] };
        for node in needed {
            assert!(going_on.on_sending(*node));
            let last = Some(node) == needed.last();
            assert_eq!(going_on.on_reply(*node, Reply::Yes), if last { Step::Grant } else { Step::Wait });
        }
    }

    let mut silent = round();
    assert_eq!(silent.on_timeout(), Step::GiveUp(Loss::NoQuorum));
    assert_eq!(silent.on_reply(2, Reply::Yes), Step::Wait, "too late");
    assert_eq!(silent.give_up(), [2]);
    assert!(!silent.on_sending(0), "the others are not asked any more");
}
