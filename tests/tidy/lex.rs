//! Tells Rust code from comments and strings.
//!
//! **What.** One pass over a file. The result has the code with every comment and every string blanked out, byte for
//! byte at its old offset, and the strings by themselves.
//!
//! **Why not `syn`.** A rule that looks for a word needs the words in their place, also in macros, and nothing else.
//!
//! **Invariants.** `code` has the length of the text, so an offset in one is an offset in the other.

/// A file taken apart.
#[derive(Debug, Default)]
pub(crate) struct Lexed {
    /// The text with comments and the insides of strings replaced by spaces; line ends are kept.
    pub(crate) code: String,
    /// The insides of string literals with the offset at which each begins. Escapes are left as written.
    pub(crate) strings: Vec<(usize, String)>,
}

impl Lexed {
    /// Offsets at which `word` stands in the code, not as the tail of a longer name.
    pub(crate) fn find<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let names = word.starts_with(|first: char| first.is_alphanumeric());
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = self.code.as_bytes().get(at.wrapping_sub(1)).copied().unwrap_or(b' ');
            !(names && (before.is_ascii_alphanumeric() || before == b'_'))
        })
    }
}

/// Takes a Rust file apart. Text that is not Rust gives some result, never a panic.
pub(crate) fn lex(text: &str) -> Lexed {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut strings = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (end, inside) = token(bytes, at);
        match inside {
            Inside::Code => code.extend_from_slice(&bytes[at..end]),
            Inside::Comment => blank(&mut code, &bytes[at..end]),
            Inside::Text { start, stop } => {
                code.extend_from_slice(&bytes[at..start]);
                blank(&mut code, &bytes[start..stop]);
                code.extend_from_slice(&bytes[stop..end]);
                strings.push((start, String::from_utf8_lossy(&bytes[start..stop]).into_owned()));
            }
        }
        at = end;
    }
    Lexed { code: String::from_utf8_lossy(&code).into_owned(), strings }
}

/// What one token is.
enum Inside {
    Code,
    Comment,
    /// A string literal; its inside is `start..stop`.
    Text {
        start: usize,
        stop: usize,
    },
}

/// The end of the token that begins at `at`, and what it is.
fn token(bytes: &[u8], at: usize) -> (usize, Inside) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n);
        return (end, Inside::Comment);
    }
    if rest.starts_with(b"/*") {
        return (block_comment_end(bytes, at), Inside::Comment);
    }
    let in_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if !in_name && let Some((start, closing)) = raw_string_start(rest) {
        let start = at + start;
        let stop = find(bytes, start, &closing).unwrap_or(bytes.len());
        return ((stop + closing.len()).min(bytes.len()), Inside::Text { start, stop });
    }
    match rest[0] {
        b'"' => {
            let stop = quoted_end(bytes, at + 1, b'"');
            ((stop + 1).min(bytes.len()), Inside::Text { start: at + 1, stop })
        }
        b'\'' => match char_end(bytes, at) {
            Some(end) => (end, Inside::Comment),
            None => (at + 1, Inside::Code), // a life time
        },
        _ => (at + 1, Inside::Code),
    }
}

/// For `r"`, `br#"` and the like: the offset of the inside, and what closes it.
fn raw_string_start(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    let prefix = [b"br".as_slice(), b"cr", b"r"].into_iter().find(|prefix| rest.starts_with(prefix))?.len();
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    Some((prefix + hashes + 1, closing))
}

/// The offset of the closing quote of a literal with escapes.
fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

/// The end of a character literal that begins at `at`, unless it is a life time.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        return Some((quoted_end(bytes, at + 1, b'\'') + 1).min(bytes.len()));
    }
    // One character of up to four bytes, then the closing quote.
    let close = (at + 2..=at + 5).find(|n| bytes.get(*n) == Some(&b'\''))?;
    let one = std::str::from_utf8(&bytes[at + 1..close]).is_ok_and(|text| text.chars().count() == 1);
    one.then_some(close + 1)
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    bytes.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|n| from + n)
}

fn blank(code: &mut Vec<u8>, bytes: &[u8]) {
    code.extend(bytes.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, code: &str, strings: &[&str]) {
        let lexed = lex(text);
        assert_eq!(lexed.code, code);
        assert_eq!(lexed.code.len(), text.len());
        assert_eq!(lexed.strings.iter().map(|(_, s)| s.as_str()).collect::<Vec<_>>(), strings);
        assert!(lexed.strings.iter().all(|(at, s)| text[*at..].starts_with(s.as_str())));
    }

    #[test]
    fn comments_are_blanked() {
        check("a // b\nc", "a     \nc", &[]);
        check("a /* b /* c */ d */ e", "a                   e", &[]);
    }

    #[test]
    fn strings_are_taken_out() {
        check(r#"f("a // b", 'x')"#, r#"f("      ",    )"#, &["a // b"]);
        check(r#"g("a\"b")"#, r#"g("    ")"#, &[r#"a\"b"#]);
        check("h(r#\"a\"b\"#)", "h(r#\"   \"#)", &["a\"b"]);
        check("var\"x\"", "var\" \"", &["x"]);
    }

    #[test]
    fn life_times_and_characters_are_told_apart() {
        check("fn f<'a>(x: &'a str) { '\"'; '\\''; 'ä' }", "fn f<'a>(x: &'a str) {    ;     ;      }", &[]);
    }

    #[test]
    fn text_that_ends_early_does_not_panic() {
        for text in ["\"abc", "/* abc", "r#\"abc\"", "'\\", "\"\\", "r#", "'"] {
            assert_eq!(lex(text).code.len(), text.len(), "{text}");
        }
    }

    #[test]
    fn a_word_is_not_the_tail_of_a_longer_name() {
        assert_eq!(lex("my_todo!() todo!()").find("todo!").collect::<Vec<_>>(), [11]);
    }
}
