//! Fencing tokens: numbers that rise in grant order, for the protected resource to check.

use std::fmt;

/// A token: at least 1, below 2^53, so that it is exact in every language's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// The first number that is too large.
    pub const LIMIT: u64 = 1 << 53;

    /// Checks a number.
    pub fn new(number: u64) -> Option<Self> {
        (1..Self::LIMIT).contains(&number).then_some(Self(number))
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0
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
    fn a_block_is_handed_out_lowest_first() {
        let numbers: Vec<u64> = block(12, 3).unwrap().map(Token::get).collect();
        assert_eq!(numbers, [10, 11, 12]);
        assert!(block(2, 3).is_none(), "it would begin with 0");
        assert!(block(1 << 53, 1).is_none());
    }
}
