//! A protected resource in memory that refuses whoever comes with an old fencing token.

use std::error::Error;
use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::fencing::Token;

/// A value that is written only with a fencing token, and only if no higher token has been seen.
///
/// What it guarantees, to any number of threads:
///
/// - The highest token seen never falls. Both a write and a read with a token let it be seen.
/// - A write is taken if and only if its token is at or above the highest seen. Equal is taken, because a holder may write as
///   often as it likes. So the tokens of the writes that were taken never fall either.
/// - A refused write or read changes nothing and says which two tokens it was about.
/// - Value and highest token change in one step: nobody sees the one without the other.
///
/// What it does not: it knows nothing of leases. A holder whose lease has ended is refused from the moment on at which a later
/// holder was *seen here*, not before. So whoever computes a new value from the old one begins with [`FencedRegister::read`],
/// which shuts out all earlier holders before it answers. And it lives in memory: a new register has seen no token.
///
/// One register belongs to one lock name. Tokens of different names say nothing about each other.
///
/// ```
/// use redlockd::engine::fencing::Token;
/// use redlockd::fenced::FencedRegister;
///
/// # let (earlier, later) = (Token::new(33).unwrap(), Token::new(34).unwrap());
/// let balance = FencedRegister::new(100);
/// let seen = balance.read(later)?;
/// balance.write(later, seen - 30)?;
/// let refusal = balance.write(earlier, 0).unwrap_err();
/// assert_eq!((refusal.token, refusal.highest), (earlier, later));
/// assert_eq!(balance.peek(), 70);
/// # Ok::<(), redlockd::fenced::StaleToken>(())
/// ```
#[derive(Debug)]
pub struct FencedRegister<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    highest: Option<Token>,
}

impl<T> State<T> {
    /// Lets a token be seen, or refuses it.
    fn admit(&mut self, token: Token) -> Result<(), StaleToken> {
        match self.highest {
            Some(highest) if token < highest => Err(StaleToken { token, highest }),
            _ => {
                self.highest = Some(token);
                Ok(())
            }
        }
    }
}

impl<T> FencedRegister<T> {
    /// Holds `value`, and has seen no token.
    pub fn new(value: T) -> Self {
        Self { state: Mutex::new(State { value, highest: None }) }
    }

    /// Replaces the value.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a higher token has been seen: nothing was written, and a repeat is of no use.
    pub fn write(&self, token: Token, value: T) -> Result<(), StaleToken> {
        let mut state = self.lock();
        state.admit(token)?;
        let old = mem::replace(&mut state.value, value);
        // The end of the old value is the caller's code: not under the lock.
        drop(state);
        drop(old);
        Ok(())
    }

    /// The value, for a holder that decides by it what to write: from now on every lower token is refused.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a higher token has been seen: the lock has a later holder.
    pub fn read(&self, token: Token) -> Result<T, StaleToken>
    where
        T: Clone,
    {
        let mut state = self.lock();
        state.admit(token)?;
        Ok(state.value.clone())
    }

    /// The value, for those who hold no lock. Nobody is shut out by it.
    pub fn peek(&self) -> T
    where
        T: Clone,
    {
        self.lock().value.clone()
    }

    /// The highest token seen; `None` before the first.
    pub fn highest(&self) -> Option<Token> {
        self.lock().highest
    }

    /// A panic of the caller's `clone` leaves nothing half done, so that there is nothing to be told about it.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal: the lock has had a later holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleToken {
    /// What came with the refused write or read.
    pub token: Token,
    /// The highest that was seen before.
    pub highest: Token,
}

impl fmt::Display for StaleToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stale fencing token {}: {} has been seen, so the lock has had a later holder", self.token, self.highest)
    }
}

impl Error for StaleToken {}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn token(number: u64) -> Token {
        Token::new(number).unwrap()
    }

    #[test]
    fn a_holder_may_write_again_and_an_earlier_one_may_not() {
        let register = FencedRegister::new("nothing");
        assert_eq!((register.peek(), register.highest()), ("nothing", None));
        assert_eq!(register.write(token(34), "second holder"), Ok(()));
        assert_eq!(register.write(token(34), "second holder again"), Ok(()));
        let refusal = register.write(token(33), "first holder").unwrap_err();
        assert_eq!(refusal, StaleToken { token: token(33), highest: token(34) });
        assert_eq!((register.peek(), register.highest()), ("second holder again", Some(token(34))));
        let text = refusal.to_string();
        assert!(text.contains("33") && text.contains("34"), "{text}");
    }

    #[test]
    fn a_read_shuts_earlier_holders_out_and_a_look_does_not() {
        let register = FencedRegister::new(1);
        assert_eq!(register.write(token(1), 2), Ok(()));
        assert_eq!(register.peek(), 2);
        assert_eq!(register.write(token(1), 3), Ok(()));
        assert_eq!(register.read(token(2)), Ok(3));
        let refusal = StaleToken { token: token(1), highest: token(2) };
        assert_eq!((register.write(token(1), 4), register.read(token(1))), (Err(refusal), Err(refusal)));
        assert_eq!(register.peek(), 3);
    }

    /// What is not `Clone`, such as a file, can be guarded too.
    #[test]
    fn tokens_are_compared_as_numbers_up_to_the_last() {
        struct NotClone;
        let register = FencedRegister::new(NotClone);
        for number in [9, 10, Token::LIMIT - 2, Token::LIMIT - 1] {
            assert_eq!(register.write(token(number), NotClone), Ok(()));
        }
        assert!(register.write(token(Token::LIMIT - 2), NotClone).is_err());
    }

    #[derive(Clone, Copy, Debug)]
    enum Call {
        Write,
        Read,
    }

    fn calls() -> impl Strategy<Value = Vec<(Call, u64)>> {
        let call = prop_oneof![3 => Just(Call::Write), 1 => Just(Call::Read)];
        prop::collection::vec((call, prop_oneof![1..12_u64, Token::LIMIT - 4..Token::LIMIT]), 0..60)
    }

    proptest! {
        #[test]
        fn the_highest_token_never_falls_and_a_refusal_changes_nothing(calls in calls()) {
            let register = FencedRegister::new(usize::MAX);
            let (mut highest, mut value, mut taken) = (None, usize::MAX, Vec::new());
            for (index, (call, number)) in calls.into_iter().enumerate() {
                let own = token(number);
                let answer = match call {
                    Call::Write => register.write(own, index),
                    Call::Read => register.read(own).map(|read| assert_eq!(read, value)),
                };
                let stale = highest.filter(|highest| own < *highest).map(|highest| StaleToken { token: own, highest });
                prop_assert_eq!(answer.err(), stale, "taken if and only if no higher one was seen");
                if stale.is_none() {
                    highest = Some(own);
                    if matches!(call, Call::Write) {
                        value = index;
                        taken.push(own);
                    }
                }
                prop_assert_eq!((register.peek(), register.highest()), (value, highest));
            }
            prop_assert!(taken.is_sorted(), "{:?}", taken);
        }

        #[test]
        fn threads_in_any_order_leave_the_write_of_the_highest_token(numbers in prop::collection::vec(1..1000_u64, 2..40)) {
            let register = FencedRegister::new(0);
            thread::scope(|scope| {
                for part in numbers.chunks(numbers.len().div_ceil(4)) {
                    let register = &register;
                    scope.spawn(move || {
                        for number in part {
                            let before = register.highest();
                            let refusal = register.write(token(*number), *number).err();
                            assert!(refusal.is_none_or(|stale| stale.token < stale.highest), "{refusal:?}");
                            assert!(before <= register.highest(), "it fell from {before:?}");
                        }
                    });
                }
            });
            let highest = numbers.iter().max().copied().unwrap();
            prop_assert_eq!((register.peek(), register.highest()), (highest, Some(token(highest))));
        }
    }
}
