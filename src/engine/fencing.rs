//! Fencing tokens: numbers that rise in grant order, for the protected resource to check.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::quorum::{NodeIndex, Quorum};

/// A token: at least 1, below 2^53, so that it is exact in every language's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(NonZeroU64);

impl Token {
    /// The first number that is too large.
    pub const LIMIT: u64 = 1 << 53;

    /// Checks a number.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).filter(|_| number < Self::LIMIT).map(Self)
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The `count` tokens of a block that ends with `last`, lowest first; `None` if any of them is out of bounds.
///
/// They belong to the attempts in the order in which these reached their quorum.
pub fn block(last: u64, count: usize) -> Option<impl Iterator<Item = Token>> {
    let count = u64::try_from(count).ok()?;
    let first = last.checked_sub(count)?.checked_add(1)?;
    Token::new(first)?;
    Token::new(last)?;
    Some((first..=last).filter_map(Token::new))
}

/// What a lock node keeps for the designated counter: it never hands out a number above that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    /// The highest number that may have been handed out.
    pub number: u64,
    /// The process that counts.
    pub owner: Arc<str>,
}

impl Ceiling {
    /// From `number owner`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, owner) = text.split_once(' ')?;
        Some(Self { number: number.parse().ok()?, owner: owner.into() })
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.owner)
    }
}

/// What all nodes hold as ceiling.
#[derive(Debug)]
pub struct HighestCeiling {
    texts: Vec<Option<Arc<str>>>,
    highest: Option<Ceiling>,
}

impl HighestCeiling {
    /// None of `nodes` has told yet.
    pub fn new(nodes: usize) -> Self {
        Self { texts: vec![None; nodes], highest: None }
    }

    /// A node holds `text`; empty: nothing.
    pub fn note(&mut self, node: NodeIndex, text: &str) {
        self.texts[node] = Some(text.into());
        if let Some(ceiling) = Ceiling::parse(text)
            && self.highest.as_ref().is_none_or(|highest| highest.number < ceiling.number)
        {
            self.highest = Some(ceiling);
        }
    }

    /// What a node holds, if it has told.
    pub fn text(&self, node: NodeIndex) -> Option<Arc<str>> {
        self.texts[node].clone()
    }

    /// The highest of all.
    pub fn highest(&self) -> Option<&Ceiling> {
        self.highest.as_ref()
    }
}

/// How many buckets the quorum counter has on every node: by the hash of a lock's name.
pub const BUCKETS: u16 = 16_384;

/// The numbers that one attempt got from the nodes that granted it, on their way to a token (protocol section 4).
///
/// The token is the highest number of a quorum of these nodes, all of which stand at it before it is handed out: then every
/// later grant of the name meets a node that counts on from there. Nodes that stand lower are raised; whoever can not be, is
/// no part of the quorum.
#[derive(Debug)]
pub struct Counts {
    quorum: Quorum,
    nodes: Vec<Stands>,
    /// What the quorum shall stand at, once there is one.
    target: Option<u64>,
    done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// It did not grant, or not yet.
    Out,
    /// It granted, and stands at that.
    At(u64),
    /// It stands at the first number, and is being raised to the second.
    Rising(u64, u64),
}

/// What to do for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// Raise these nodes to their number, and wait.
    Raise(Vec<(NodeIndex, u64)>),
    /// This is it.
    Token(u64),
    /// Too few nodes stand at one number, and none can be raised.
    Failed,
}

impl Counts {
    /// Of an attempt on the nodes of `quorum`.
    pub fn new(quorum: Quorum) -> Self {
        Self { quorum, nodes: vec![Stands::Out; quorum.nodes()], target: None, done: false }
    }

    /// A node granted, and its bucket stands at `number`.
    pub fn on_yes(&mut self, node: NodeIndex, number: u64) {
        self.nodes[node] = Stands::At(number);
    }

    /// A quorum granted: what is to be done for the token.
    pub fn on_quorum(&mut self) -> Count {
        self.advance()
    }

    /// A node was raised, or not; `None` if nothing is to be done now.
    pub fn on_raised(&mut self, node: NodeIndex, raised: bool) -> Option<Count> {
        if let Stands::Rising(_, to) = self.nodes[node] {
            self.nodes[node] = if raised { Stands::At(to) } else { Stands::Out };
        }
        if self.done {
            return None;
        }
        match self.advance() {
            Count::Raise(nodes) if nodes.is_empty() => None,
            count => Some(count),
        }
    }

    fn advance(&mut self) -> Count {
        let at = |standing: &Stands| match standing {
            Stands::Out => None,
            Stands::At(number) | Stands::Rising(number, _) => Some(*number),
        };
        let granted = self.nodes.iter().filter_map(at).count();
        if !self.quorum.reached(granted) {
            return self.end(Count::Failed);
        }
        // The first time, of those that made the quorum; later on, no lower.
        let mut target = self.target.unwrap_or_else(|| self.nodes.iter().filter_map(at).max().unwrap_or_default());
        if mutant!("missing-raise") {
            return self.end(Count::Token(target));
        }
        // Others that granted later may stand higher: they are taken only where too few can be brought to the target.
        let below = |standing: &&Stands| at(standing).is_some_and(|number| number <= target);
        if !self.quorum.reached(self.nodes.iter().filter(below).count()) {
            target = self.nodes.iter().filter_map(at).max().unwrap_or_default();
        }
        self.target = Some(target);
        if self.quorum.reached(self.nodes.iter().filter(|standing| **standing == Stands::At(target)).count()) {
            return self.end(Count::Token(target));
        }
        let mut raise = Vec::new();
        for (node, standing) in self.nodes.iter_mut().enumerate() {
            if let Stands::At(number) = *standing
                && number < target
            {
                *standing = Stands::Rising(number, target);
                raise.push((node, target));
            }
        }
        Count::Raise(raise)
    }

    fn end(&mut self, count: Count) -> Count {
        self.done = true;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_what_a_double_can_not_hold_are_no_tokens() {
        assert_eq!(Token::new(0), None);
        assert!(Token::new(1).is_some());
        assert!(Token::new((1 << 53) - 1).is_some());
        assert_eq!(Token::new(1 << 53), None);
    }

    #[test]
    fn the_highest_ceiling_counts_whoever_owns_it() {
        let mut seen = HighestCeiling::new(4);
        assert_eq!((seen.highest(), seen.text(0)), (None, None));
        for (node, text) in [(0, "10 a"), (1, "30 b"), (2, "")] {
            seen.note(node, text);
        }
        assert_eq!(seen.highest(), Ceiling::parse("30 b").as_ref());
        assert_eq!(seen.text(2).as_deref(), Some(""));
        assert_eq!(seen.text(3), None, "it has not told");
        assert_eq!(Ceiling::parse("30 b").map(|ceiling| ceiling.to_string()).as_deref(), Some("30 b"));
        assert_eq!(Ceiling::parse("x"), None);
    }

    #[test]
    fn a_block_is_handed_out_lowest_first() {
        let numbers: Vec<u64> = block(12, 3).unwrap().map(Token::get).collect();
        assert_eq!(numbers, [10, 11, 12]);
        assert!(block(2, 3).is_none(), "it would begin with 0");
        assert!(block(1 << 53, 1).is_none());
    }

    fn counts(numbers: &[(NodeIndex, u64)]) -> Counts {
        let mut counts = Counts::new(Quorum::of(5).unwrap());
        numbers.iter().for_each(|(node, number)| counts.on_yes(*node, *number));
        counts
    }

    #[test]
    fn a_quorum_that_agrees_needs_no_second_round_trip() {
        assert_eq!(counts(&[(0, 7), (2, 7), (4, 7)]).on_quorum(), Count::Token(7));
    }

    #[test]
    fn lower_ones_are_raised_before_the_token_is_handed_out() {
        let mut counts = counts(&[(0, 7), (1, 9), (2, 8)]);
        assert_eq!(counts.on_quorum(), Count::Raise(vec![(0, 9), (2, 9)]));
        assert_eq!(counts.on_raised(2, true), None);
        assert_eq!(counts.on_raised(0, true), Some(Count::Token(9)));
    }

    #[test]
    fn who_can_not_be_raised_is_replaced_by_who_granted_later_or_nothing_is_granted() {
        let mut three = counts(&[(0, 7), (1, 9), (2, 8)]);
        three.on_quorum();
        assert_eq!(three.on_raised(0, false), Some(Count::Failed));
        assert_eq!(three.on_raised(2, true), None, "it is over");
        let mut four = counts(&[(0, 7), (1, 9), (2, 9)]);
        four.on_quorum();
        four.on_yes(3, 8);
        assert_eq!(four.on_raised(0, false), Some(Count::Raise(vec![(3, 9)])));
        assert_eq!(four.on_raised(3, true), Some(Count::Token(9)));
        // One that stands higher lifts all the others.
        let mut higher = counts(&[(0, 7), (1, 9), (2, 9)]);
        higher.on_quorum();
        higher.on_yes(4, 12);
        assert_eq!(higher.on_raised(0, false), Some(Count::Raise(vec![(1, 12), (2, 12)])));
        assert_eq!(higher.on_raised(1, true), None);
        assert_eq!(higher.on_raised(2, true), Some(Count::Token(12)));
    }

    /// Grants of one name, each by any quorum of nodes that count by themselves, some of which can not be raised.
    #[test]
    fn tokens_rise_whatever_quorum_grants() {
        use proptest::prelude::*;
        let step = (prop::collection::vec(0_usize..5, 5), prop::collection::vec(any::<bool>(), 40), 0_usize..5);
        proptest!(|(steps in prop::collection::vec(step, 1..40))| {
            let mut buckets = [0_u64; 5];
            let mut last = 0;
            for (order, works, stray) in steps {
                // Another name of the same bucket was here.
                buckets[stray] += 1;
                let mut works = works.into_iter();
                let mut counts = Counts::new(Quorum::of(5).unwrap());
                let (mut granted, mut token) = (Vec::new(), None);
                let mut todo = Vec::new();
                for node in order {
                    if granted.contains(&node) {
                        continue;
                    }
                    granted.push(node);
                    buckets[node] += 1;
                    counts.on_yes(node, buckets[node]);
                    if granted.len() == 3 {
                        todo.push(counts.on_quorum());
                    }
                }
                while let Some(count) = todo.pop() {
                    match count {
                        Count::Token(number) => token = token.or(Some(number)),
                        Count::Failed => {}
                        Count::Raise(nodes) => for (node, number) in nodes {
                            let raised = works.next().unwrap_or(true);
                            if raised {
                                buckets[node] = buckets[node].max(number);
                            }
                            todo.extend(counts.on_raised(node, raised));
                        },
                    }
                }
                if let Some(token) = token {
                    prop_assert!(token > last, "{token} after {last}");
                    last = token;
                }
            }
        });
    }
}
