//! Where a list goes on, as one opaque string, so that proxies keep nothing between two pages.
//!
//! The unpadded URL-safe base64 of: the version of this format, the name after which the next page begins, CRC-32 of both. The
//! checksum tells a damaged token from another place in the list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::engine::lease::LockName;

const VERSION: u8 = 1;

/// The token of the page that begins after `name`.
pub fn encode(name: &LockName) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(name.as_str().as_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads what [`encode`] wrote; `Err` says why it can not.
pub fn decode(text: &str) -> Result<LockName, String> {
    let bytes =
        checked(text).ok_or("is no page token, or was cut or changed on its way; pass on exactly what List answered")?;
    match bytes.split_first() {
        Some((&VERSION, name)) => std::str::from_utf8(name).ok().and_then(|name| LockName::new(name).ok()),
        _ => None,
    }
    .ok_or_else(|| "is a page token of another version; begin with the first page again".to_owned())
}

/// What stands before a checksum that is right.
fn checked(text: &str) -> Option<Vec<u8>> {
    let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let checksum: [u8; 4] = bytes.split_off(bytes.len().checked_sub(4)?).try_into().ok()?;
    (crc32fast::hash(&bytes).to_be_bytes() == checksum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_can_be_read_back_and_changed_ones_are_noticed(name in "[^\\p{C}]{1,60}", at: usize, to in "[A-Za-z0-9_-]") {
            prop_assume!(LockName::new(&name).is_ok());
            let name = LockName::new(&name).unwrap();
            let good = encode(&name);
            prop_assert_eq!(decode(&good), Ok(name));
            let at = at % good.len();
            let changed = format!("{}{to}{}", &good[..at], &good[at + 1..]);
            prop_assert!(changed == good || decode(&changed).is_err());
            prop_assert!(decode(&good[..at]).is_err());
        }

        #[test]
        fn no_text_makes_the_reader_fail(text in ".{0,40}") {
            prop_assert!(decode(&text).is_err());
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = b"\x02orders/42".to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        assert!(decode(&URL_SAFE_NO_PAD.encode(bytes)).unwrap_err().contains("version"));
        assert!(decode("").unwrap_err().contains("no page token"));
    }
}
