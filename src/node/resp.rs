//! RESP2, the protocol of Redis: how a command is written and a reply is read. No sockets here.

use std::sync::Arc;

use super::script::Raw;

/// What a server answers to a command; `Err`: an error, as the server words it.
pub type Answer = Result<Raw, Arc<str>>;

/// An error as the server words it, with the word `auth` where it does not let us in.
pub fn worded(error: &str) -> Arc<str> {
    let keeps_out = ["NOAUTH", "WRONGPASS"].iter().any(|word| error.starts_with(word));
    if keeps_out { format!("auth: {error}").into() } else { error.into() }
}

/// No list of ours is so deep: whoever sends one is no Redis server.
const MAX_DEPTH: usize = 8;

/// No reply of ours is so long, in bytes or entries.
const MAX_LENGTH: usize = 512 * 1024 * 1024;

/// Begins a command of so many words, which have to follow.
pub fn write_head(out: &mut Vec<u8>, words: usize) {
    write_prefixed(out, b'*', words);
}

/// A word of a command.
pub fn write_word(out: &mut Vec<u8>, word: &[u8]) {
    write_prefixed(out, b'$', word.len());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// A number as a word of a command.
pub fn write_number(out: &mut Vec<u8>, number: u64) {
    write_word(out, itoa::Buffer::new().format(number).as_bytes());
}

/// A whole command.
pub fn write_command(out: &mut Vec<u8>, words: &[&str]) {
    write_head(out, words.len());
    words.iter().for_each(|word| write_word(out, word.as_bytes()));
}

fn write_prefixed(out: &mut Vec<u8>, kind: u8, number: usize) {
    // Most words are short.
    if let Ok(short @ 0..100) = u8::try_from(number) {
        let digits = [kind, b'0' + short / 10, b'0' + short % 10, b'\r', b'\n'];
        return match short {
            0..10 => out.extend_from_slice(&[kind, digits[2], b'\r', b'\n']),
            _ => out.extend_from_slice(&digits),
        };
    }
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Reads the reply at the head of `bytes`, and how long it is. `None` if some of it has not come yet; `Err` if it is no RESP2.
pub fn read(bytes: &[u8]) -> Result<Option<(Answer, usize)>, Arc<str>> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.answer() {
        Ok(answer) => Ok(Some((answer, reader.at))),
        Err(Stop::Incomplete) => Ok(None),
        Err(Stop::Malformed(what)) => Err(format!("it does not speak RESP2: {what}").into()),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

enum Stop {
    Incomplete,
    Malformed(&'static str),
}

impl<'a> Reader<'a> {
    fn answer(&mut self) -> Result<Answer, Stop> {
        if self.bytes.get(self.at) != Some(&b'-') {
            return self.value(MAX_DEPTH).map(Ok);
        }
        self.at += 1;
        Ok(Err(String::from_utf8_lossy(self.line()?).into()))
    }

    fn value(&mut self, depth: usize) -> Result<Raw, Stop> {
        let kind = *self.bytes.get(self.at).ok_or(Stop::Incomplete)?;
        self.at += 1;
        match kind {
            b':' => self.number().map(Raw::Integer),
            // An error within a list is an entry like any other.
            b'+' | b'-' => Ok(match (kind, self.line()?) {
                (b'+', b"OK") => Raw::Done,
                (_, line) => Raw::Bytes(line.into()),
            }),
            b'$' => match self.length()? {
                None => Ok(Raw::Nil),
                Some(length) => self.text(length).map(|text| Raw::Bytes(text.into())),
            },
            b'*' => match self.length()? {
                None => Ok(Raw::Nil),
                Some(_) if depth == 0 => Err(Stop::Malformed("lists within lists without an end")),
                Some(length) => self.list(length, depth - 1),
            },
            _ => Err(Stop::Malformed("a reply of an unknown kind")),
        }
    }

    fn list(&mut self, length: usize, depth: usize) -> Result<Raw, Stop> {
        // An entry has four bytes at least, so that nobody can make us reserve memory by a number alone.
        let mut entries = Vec::with_capacity(length.min(self.bytes.len() / 4));
        for _ in 0..length {
            entries.push(self.value(depth)?);
        }
        Ok(Raw::List(entries))
    }

    fn text(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let end = self.at + length;
        let (text, line_end) = (self.bytes.get(self.at..end), self.bytes.get(end..end + 2));
        let (Some(text), Some(line_end)) = (text, line_end) else { return Err(Stop::Incomplete) };
        if line_end != b"\r\n" {
            return Err(Stop::Malformed("a text that is longer than announced"));
        }
        self.at = end + 2;
        Ok(text)
    }

    /// `None`: there is nothing of which it would be the length.
    fn length(&mut self) -> Result<Option<usize>, Stop> {
        match self.number()? {
            -1 => Ok(None),
            number => match usize::try_from(number) {
                Ok(length) if length <= MAX_LENGTH => Ok(Some(length)),
                _ => Err(Stop::Malformed("a length out of bounds")),
            },
        }
    }

    fn number(&mut self) -> Result<i64, Stop> {
        let line = self.line()?;
        let (negative, digits) = match line.split_first() {
            Some((b'-', digits)) => (true, digits),
            _ => (false, line),
        };
        let add = |sum: i64, digit: &u8| {
            let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
            sum.checked_mul(10)?.checked_add(if negative { -digit } else { digit })
        };
        let sum = digits.iter().try_fold(0, add).filter(|_| !digits.is_empty());
        sum.ok_or(Stop::Malformed("a number with other characters than digits"))
    }

    /// Up to the line's end, which is skipped.
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\r').ok_or(Stop::Incomplete)?;
        match rest.get(length + 1) {
            None => Err(Stop::Incomplete),
            Some(b'\n') => {
                self.at += length + 2;
                Ok(&rest[..length])
            }
            Some(_) => Err(Stop::Malformed("a line that ends in an unknown way")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &[u8]) -> Raw {
        Raw::Bytes(text.into())
    }

    #[test]
    fn commands_are_lists_of_words() {
        let mut out = Vec::new();
        write_command(&mut out, &["CONFIG", "GET", ""]);
        write_head(&mut out, 1);
        write_number(&mut out, u64::MAX);
        assert_eq!(out, b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$0\r\n\r\n*1\r\n$20\r\n18446744073709551615\r\n");
    }

    #[test]
    fn replies_of_every_kind() {
        let reply = b"*7\r\n:-9223372036854775808\r\n+OK\r\n$-1\r\n$3\r\n\r\n\xff\r\n*-1\r\n*1\r\n:0\r\n-ERR no\r\n:next";
        let expected = vec![
            Raw::Integer(i64::MIN),
            Raw::Done,
            Raw::Nil,
            bytes(b"\r\n\xff"),
            Raw::Nil,
            Raw::List(vec![Raw::Integer(0)]),
            bytes(b"ERR no"),
        ];
        assert_eq!(read(reply), Ok(Some((Ok(Raw::List(expected)), reply.len() - 5))));
        assert_eq!(read(b"-NOSCRIPT what?\r\n+"), Ok(Some((Err("NOSCRIPT what?".into()), 17))));
    }

    #[test]
    fn what_is_no_resp2_is_an_error() {
        let bad: [&[u8]; 9] = [
            b"HTTP/1.1 400\r\n",
            b":1\rx",
            b":\r\n",
            b":-\r\n",
            b":9223372036854775808\r\n",
            b"$-2\r\n",
            b"$536870913\r\n",
            b"$1\r\nab\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ];
        for bytes in bad {
            assert!(read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_list_that_is_only_announced_costs_no_memory() {
        assert_eq!(read(b"*536870912\r\n:1\r\n"), Ok(None));
    }

    fn any_value() -> impl Strategy<Value = Raw> {
        let text = prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| Raw::Bytes(text.into()));
        let leaf = prop_oneof![any::<i64>().prop_map(Raw::Integer), text, Just(Raw::Nil), Just(Raw::Done)];
        leaf.prop_recursive(4, 64, 8, |inner| prop::collection::vec(inner, 0..8).prop_map(Raw::List))
    }

    fn written(value: &Raw, out: &mut Vec<u8>) {
        match value {
            Raw::Integer(number) => out.extend(format!(":{number}\r\n").bytes()),
            Raw::Nil => out.extend(b"$-1\r\n"),
            Raw::Done => out.extend(b"+OK\r\n"),
            Raw::Bytes(text) => {
                out.extend(format!("${}\r\n", text.len()).bytes());
                out.extend_from_slice(text);
                out.extend(b"\r\n");
            }
            Raw::List(entries) => {
                out.extend(format!("*{}\r\n", entries.len()).bytes());
                entries.iter().for_each(|entry| written(entry, out));
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_once_all_of_it_is_there(value in any_value(), more in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut reply = Vec::new();
            written(&value, &mut reply);
            for part in 0..reply.len() {
                prop_assert_eq!(read(&reply[..part]), Ok(None));
            }
            let length = reply.len();
            reply.extend(more);
            prop_assert_eq!(read(&reply), Ok(Some((Ok(value), length))));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&bytes));
        }
    }
}
