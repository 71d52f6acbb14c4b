//! The patterns of Redis.

/// Whether `text` is what `pattern` describes: `*`, `?`, `[..]`, and `\` before a character that means itself.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        (_, []) => false,
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([b'[', rest @ ..], [byte, tail @ ..]) => {
            let (is_in, rest) = class(rest, *byte);
            is_in && matches(rest, tail)
        }
        ([b'\\', wanted, rest @ ..] | [wanted, rest @ ..], [byte, tail @ ..]) => wanted == byte && matches(rest, tail),
    }
}

/// Whether `byte` is in the class that `pattern` begins with, and what follows the class. One that does not end ends with the
/// pattern.
fn class(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (is_not, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    loop {
        let (from, to);
        (from, to, rest) = match rest {
            [] => return (is_in != is_not, rest),
            [b']', after @ ..] => return (is_in != is_not, after),
            [b'\\', one, after @ ..] => (*one, *one, after),
            [from, b'-', to, after @ ..] => ((*from).min(*to), (*from).max(*to), after),
            [one, after @ ..] => (*one, *one, after),
        };
        is_in |= (from..=to).contains(&byte);
    }
}
