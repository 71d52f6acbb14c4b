//! The one opaque string that holds all a proxy needs to know of a lease, so that proxies keep nothing.
//!
//! `rl1_` and the unpadded URL-safe base64 of: mode, wall-clock milliseconds of the grant, token (0: none), length of the
//! name, name, value, CRC-32 of all that. The checksum tells a damaged id from one that is not held; it protects nothing:
//! what keeps others out is the secret in the value.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::engine::fencing::Token;
use crate::engine::lease::{LockName, LockValue};

const FORMAT: &str = "rl";
const VERSION: &str = "1";
const EXCLUSIVE: u8 = 1;

/// A lease, as its holder knows it. A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct LockId {
    /// What is locked.
    pub name: LockName,
    /// What the nodes hold.
    pub value: LockValue,
    /// The token of the grant.
    pub token: Option<Token>,
    /// When it was granted, by the wall clock of the proxy that did: for the hold-time metric only.
    pub granted_at: SystemTime,
}

/// Why a text is no lock id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockIdError {
    /// It does not begin like one.
    NotALockId,
    /// It has a format that this proxy does not read.
    Version(String),
    /// It is cut or changed.
    Damaged,
}

impl fmt::Display for LockIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALockId => write!(f, "is no lock id: one begins with `{FORMAT}{VERSION}_`; pass on what Acquire answered"),
            Self::Version(found) => write!(
                f,
                "is a lock id of format {found}, and this proxy reads format {VERSION}; use a proxy of the version that granted it"
            ),
            Self::Damaged => {
                write!(f, "is a lock id that was cut or changed on its way; pass on exactly what Acquire answered")
            }
        }
    }
}

impl std::error::Error for LockIdError {}

impl LockId {
    /// The text that clients get.
    pub fn encode(&self) -> String {
        let (name, value) = (self.name.as_str().as_bytes(), self.value.as_str().as_bytes());
        let granted_ms = self.granted_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut bytes = Vec::with_capacity(23 + name.len() + value.len());
        bytes.push(EXCLUSIVE);
        bytes.extend(u64::try_from(granted_ms).unwrap_or_default().to_be_bytes());
        bytes.extend(self.token.map_or(0, Token::get).to_be_bytes());
        // A name has 512 bytes at most.
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend(name);
        bytes.extend(value);
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        let mut text = format!("{FORMAT}{VERSION}_");
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Reads what [`LockId::encode`] wrote.
    pub fn decode(text: &str) -> Result<Self, LockIdError> {
        let (version, body) = text.strip_prefix(FORMAT).and_then(|rest| rest.split_once('_')).ok_or(LockIdError::NotALockId)?;
        if version != VERSION {
            let is_number = !version.is_empty() && version.len() < 6 && version.bytes().all(|b| b.is_ascii_digit());
            return Err(if is_number { LockIdError::Version(version.to_owned()) } else { LockIdError::NotALockId });
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| LockIdError::Damaged)?;
        let (bytes, checksum) = bytes.split_last_chunk::<4>().ok_or(LockIdError::Damaged)?;
        if crc32fast::hash(bytes).to_be_bytes() != *checksum {
            return Err(LockIdError::Damaged);
        }
        Self::from_bytes(bytes).ok_or(LockIdError::Damaged)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mode, rest) = bytes.split_first()?;
        let (granted_ms, rest) = rest.split_first_chunk::<8>()?;
        let (token, rest) = rest.split_first_chunk::<8>()?;
        let (name_len, rest) = rest.split_first_chunk::<2>()?;
        let (name, value) = rest.split_at_checked(u16::from_be_bytes(*name_len).into())?;
        let token = u64::from_be_bytes(*token);
        let granted_at = UNIX_EPOCH.checked_add(Duration::from_millis(u64::from_be_bytes(*granted_ms)))?;
        (*mode == EXCLUSIVE && token < Token::LIMIT).then_some(())?;
        Some(Self {
            name: LockName::new(std::str::from_utf8(name).ok()?).ok()?,
            value: LockValue::parse(std::str::from_utf8(value).ok()?)?,
            token: Token::new(token),
            granted_at,
        })
    }
}

impl fmt::Debug for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockId(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(name: &str, token: u64) -> LockId {
        LockId {
            name: LockName::new(name).unwrap(),
            value: LockValue::new(7, None, None),
            token: Token::new(token),
            granted_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        }
    }

    proptest! {
        #[test]
        fn ids_can_be_read_back(name in "[^\\p{C}]{1,60}", token in 0_u64..Token::LIMIT) {
            prop_assume!(LockName::new(&name).is_ok());
            let id = id(&name, token);
            prop_assert_eq!(LockId::decode(&id.encode()), Ok(id));
        }

        #[test]
        fn a_changed_or_cut_id_is_noticed(at in 4_usize..90, to in "[A-Za-z0-9_-]", cut: bool) {
            let good = id("orders/42", 17).encode();
            prop_assume!(at < good.len());
            let bad = if cut { good[..at].to_owned() } else { format!("{}{to}{}", &good[..at], &good[at + 1..]) };
            prop_assume!(bad != good);
            prop_assert_eq!(LockId::decode(&bad), Err(LockIdError::Damaged));
        }

        #[test]
        fn no_text_makes_the_reader_fail(text in ".{0,200}") {
            prop_assert!(LockId::decode(&text).is_err());
        }
    }

    #[test]
    fn other_versions_and_other_texts_are_told_apart() {
        assert_eq!(LockId::decode("rl2_AAAA"), Err(LockIdError::Version("2".to_owned())));
        assert_eq!(LockId::decode(""), Err(LockIdError::NotALockId));
        assert_eq!(LockId::decode("hello"), Err(LockIdError::NotALockId));
        assert_eq!(LockId::decode("rl1_"), Err(LockIdError::Damaged));
    }
}
