//! Name patterns with `*` and `?`, as operators write them: `cn-*`, `10.0.*`.
//!
//! **What.** `*` stands for any run of characters (also none), `?` for one. Everything else is itself, without regard to
//! ASCII case, because host names have none.
//! **Why not regular expressions.** A selector is typed in a hurry before hundreds of machines start; `10.0.*` must not
//! match `10x0y1`. And a pattern from outside must not cost more than its length times the text's.
//! **Invariants.** `agrees_with_the_recursive_definition`.

/// Whether the whole of `text` fits `pattern`. Takes at most `pattern × text` steps.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let fold = |text: &str| text.chars().map(|c| c.to_ascii_lowercase()).collect::<Vec<char>>();
    let (pattern, text) = (fold(pattern), fold(text));
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last `*`: its position, and how much of the text it has swallowed so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star_at, swallowed)) = star else {
                    return false;
                };
                star = Some((star_at, swallowed + 1));
                p = star_at + 1;
                t = swallowed + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => slow(rest, text) || (!text.is_empty() && slow(pattern, &text[1..])),
            (Some((p, rest)), Some((t, after))) => (*p == '?' || p == t) && slow(rest, after),
            _ => false,
        }
    }

    #[test]
    fn patterns_as_operators_write_them() {
        for (pattern, text, expected) in [
            ("cn-*", "cn-0017", true),
            ("cn-*", "CN-0017", true),
            ("10.0.*", "10.0.3.7", true),
            ("10.0.*", "10x0y1", false),
            ("rack?", "rack7", true),
            ("rack?", "rack", false),
            ("", "", true),
            ("", "x", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_recursive_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&pattern, &text), slow(&p, &t));
        }
    }
}
