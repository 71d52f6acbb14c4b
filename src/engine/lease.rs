//! What a lease is made of: checked once at the edge, and then never wrong.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

/// Names that begin so are ours.
pub const RESERVED_PREFIX: &str = "redlockd:";

/// The name of a lock: 1 to 512 bytes of UTF-8 without control characters, not beginning with `redlockd:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(Arc<str>);

impl LockName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, TextError> {
        if name.is_empty() {
            return Err(TextError::Empty);
        }
        check_text(name, Self::MAX_BYTES)?;
        if name.starts_with(RESERVED_PREFIX) {
            return Err(TextError::Reserved);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How names begin: at most 512 bytes of UTF-8 without control characters. All names begin with the empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePrefix(Arc<str>);

impl NamePrefix {
    /// Checks a beginning.
    pub fn new(text: &str) -> Result<Self, TextError> {
        check_text(text, LockName::MAX_BYTES)?;
        Ok(Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The public label of a holder: at most 128 bytes of UTF-8 without control characters and without `;`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The longest label, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks a label; the empty one is `None`.
    pub fn new(label: &str) -> Result<Option<Self>, TextError> {
        check_text(label, Self::MAX_BYTES)?;
        if let Some(at) = label.find(';') {
            return Err(TextError::Forbidden { character: ';', at });
        }
        Ok((!label.is_empty()).then(|| Self(label.into())))
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_text(text: &str, max_bytes: usize) -> Result<(), TextError> {
    if text.len() > max_bytes {
        return Err(TextError::TooLong { bytes: text.len(), max_bytes });
    }
    match text.char_indices().find(|(_, character)| character.is_control()) {
        Some((at, character)) => Err(TextError::Forbidden { character, at }),
        None => Ok(()),
    }
}

/// Why a text can not be a name or a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// A name needs a byte at least.
    Empty,
    /// Over its bound.
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// It holds a character that it may not.
    Forbidden {
        /// The character.
        character: char,
        /// The byte at which it stands.
        at: usize,
    },
    /// It begins with [`RESERVED_PREFIX`].
    Reserved,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty; at least 1 byte is expected"),
            Self::TooLong { bytes, max_bytes } => write!(f, "has {bytes} bytes; at most {max_bytes} are allowed"),
            Self::Forbidden { character, at } => {
                write!(f, "holds {character:?} at byte {at}; control characters and, in an owner, `;` are not allowed")
            }
            Self::Reserved => write!(f, "begins with `{RESERVED_PREFIX}`, which is reserved for redlockd itself"),
        }
    }
}

impl std::error::Error for TextError {}

/// How long a key lives: whole milliseconds, 10 ms to the configured maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl {
    /// An hour fits well, and there are two of them in every lease that is kept.
    ms: u32,
}

impl Ttl {
    /// Shorter leases end before they can be used.
    pub const SHORTEST_MS: u64 = 10;

    /// The longest that a configuration can allow: an hour. A restarted node has to be left out for as long.
    pub const LONGEST: Self = Self { ms: 3_600_000 };

    /// Checks `ms` against the bounds; `None` outside of them.
    pub fn from_millis(ms: u64, longest: Self) -> Option<Self> {
        let is_within = (Self::SHORTEST_MS..=longest.as_millis()).contains(&ms);
        u32::try_from(ms).ok().filter(|_| is_within).map(|ms| Self { ms })
    }

    /// In milliseconds.
    pub fn as_millis(self) -> u64 {
        self.ms.into()
    }

    /// As a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.as_millis())
    }
}

/// Which TTLs a request may name.
#[derive(Clone, Copy, Debug)]
pub struct TtlBounds {
    /// For requests that name none.
    pub default: Ttl,
    /// The longest.
    pub longest: Ttl,
}

/// Makes the retries of one request replace each other, and nothing else.
///
/// It stands at the head of the value as `request.attempt.try.`: a value may replace one with the same request and a
/// lower attempt. Without the number, a late SET of a first attempt takes the lock back from a second one, and its
/// clean-up then frees it: two holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// A hash of the lock's name and the client's request id.
    pub request: u128,
    /// The client's number of the try.
    pub attempt: u32,
    /// The proxy's number of the try: rises with every one it makes.
    pub try_number: u64,
}

/// What a node stores for a lease: a secret of 128 random bits, fresh for every attempt, and the public label.
///
/// `[request.attempt.try.]nonce[;owner]`. Never logged: its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockValue(Arc<str>);

impl LockValue {
    /// Composes a value. `nonce` has to be fresh and random.
    pub fn new(nonce: u128, request: Option<RequestKey>, owner: Option<&Owner>) -> Self {
        let mut text = String::with_capacity(160);
        // Writing to a String can not fail.
        if let Some(RequestKey { request, attempt, try_number }) = request {
            let _ = write!(text, "{request:032x}.{attempt}.{try_number}.");
        }
        let _ = write!(text, "{nonce:032x}");
        if let Some(owner) = owner {
            text.push(';');
            text.push_str(owner.as_str());
        }
        Self(text.into())
    }

    /// From a lock id: `None` unless it has the form of [`LockValue::new`].
    pub fn parse(text: &str) -> Option<Self> {
        let (secret, label) = match text.split_once(';') {
            Some((secret, label)) => (secret, Some(label)),
            None => (text, None),
        };
        if let Some(label) = label {
            Owner::new(label).ok()??;
        }
        is_secret(secret).then(|| Self(text.into()))
    }

    /// The same for values that are the same, and for others only by chance or if they are of one request: a hash of their head.
    pub fn tag(&self) -> u64 {
        let head = self.0.as_bytes().first_chunk::<32>().unwrap_or(&[0; 32]);
        let mix =
            |sum: u64, part: &[u8; 8]| (sum.rotate_left(5) ^ u64::from_le_bytes(*part)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        head.as_chunks::<8>().0.iter().fold(0, mix)
    }

    /// Whether it was composed for this request.
    pub fn is_of(&self, request: u128) -> bool {
        self.0.strip_prefix(&format!("{request:032x}")).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The public label in what a node holds: `None` if there is none, or if no redlockd wrote it. Other programs' values
    /// are secrets as a whole.
    pub fn public_label(stored: &[u8]) -> Option<Owner> {
        let (secret, label) = std::str::from_utf8(stored).ok()?.split_once(';')?;
        if !is_secret(secret) {
            return None;
        }
        Owner::new(label).ok()?
    }

    /// What is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_secret(secret: &str) -> bool {
    let is_hex = |part: &str| part.len() == 32 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_number = |part: &str| !part.is_empty() && part.len() <= 16 && part.bytes().all(|b| b.is_ascii_digit());
    match secret.split('.').collect::<Vec<_>>()[..] {
        [nonce] => is_hex(nonce),
        [request, attempt, try_number, nonce] => {
            is_hex(request) && is_number(attempt) && is_number(try_number) && is_hex(nonce)
        }
        _ => false,
    }
}

impl fmt::Debug for LockValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockValue(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_bounds() {
        assert_eq!(LockName::new(""), Err(TextError::Empty));
        assert!(LockName::new(&"x".repeat(512)).is_ok());
        assert_eq!(LockName::new(&"x".repeat(513)), Err(TextError::TooLong { bytes: 513, max_bytes: 512 }));
        assert_eq!(LockName::new("a\nb"), Err(TextError::Forbidden { character: '\n', at: 1 }));
        assert_eq!(LockName::new("redlockd:member"), Err(TextError::Reserved));
        assert!(LockName::new("orders/42 ü;").is_ok());
    }

    #[test]
    fn owners_have_bounds() {
        assert_eq!(Owner::new(""), Ok(None));
        assert_eq!(Owner::new("a;b"), Err(TextError::Forbidden { character: ';', at: 1 }));
        assert!(matches!(Owner::new(&"x".repeat(129)), Err(TextError::TooLong { .. })));
    }

    #[test]
    fn tags_tell_values_apart_unless_they_are_of_one_request() {
        let of = |request, try_number| Some(RequestKey { request, attempt: 1, try_number });
        let owner = Owner::new("ann").unwrap();
        let tag = |nonce, request| LockValue::new(nonce, request, owner.as_ref()).tag();
        assert_eq!(tag(7, None), tag(7, None));
        let all = [tag(7, None), tag(8, None), tag(7 << 64, None), tag(7 << 120, None), tag(7, of(7, 1)), tag(7, of(9, 1))];
        let apart: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(apart.len(), 5, "the fifth begins as the first does");
        assert_eq!(tag(7, of(7, 1)), tag(9, of(7, 2)));
    }

    #[test]
    fn ttls_have_bounds() {
        let longest = Ttl::from_millis(300_000, Ttl::LONGEST).unwrap();
        assert_eq!(Ttl::from_millis(9, longest), None);
        assert!(Ttl::from_millis(10, longest).is_some());
        assert!(Ttl::from_millis(300_000, longest).is_some());
        assert_eq!(Ttl::from_millis(300_001, longest), None);
        assert_eq!(Ttl::from_millis((1 << 32) + 300_000, longest), None, "it is not cut");
    }

    #[test]
    fn a_value_is_never_shown() {
        let value = LockValue::new(0xabcdef, None, None);
        assert_eq!(format!("{value:?}"), "LockValue(secret)");
    }

    #[test]
    fn the_label_of_a_value_that_others_wrote_is_not_shown() {
        assert_eq!(LockValue::public_label(b"k3jf09;2jf0wjf0wjf0"), None);
        assert_eq!(LockValue::public_label(&[0xff, b';', b'a']), None);
    }

    proptest! {
        #[test]
        fn values_can_be_read_back(
            nonce: u128, request: u128, attempt in 1_u32.., try_number in 0_u64..(1 << 53), with_request: bool,
            label in "[a-z@.:0-9]{0,40}",
        ) {
            let owner = Owner::new(&label).unwrap();
            let request = with_request.then_some(RequestKey { request, attempt, try_number });
            let value = LockValue::new(nonce, request, owner.as_ref());
            prop_assert_eq!(LockValue::parse(value.as_str()), Some(value.clone()));
            prop_assert_eq!(LockValue::public_label(value.as_str().as_bytes()), owner);
        }

        #[test]
        fn no_bytes_make_the_label_parser_fail(bytes: Vec<u8>) {
            let _ = LockValue::public_label(&bytes);
        }
    }
}
