//! Times as texts: RFC 3339 in UTC outside, microseconds since the epoch inside.

use jiff::Timestamp;

use super::fault::Fault;

/// The text of a time; one out of range becomes the nearest that has a text.
#[must_use]
pub fn text(us: i64) -> String {
    let time = Timestamp::from_microsecond(us);
    time.unwrap_or(if us < 0 { Timestamp::MIN } else { Timestamp::MAX }).to_string()
}

/// The text of a time that may be absent.
#[must_use]
pub fn opt_text(us: Option<i64>) -> Option<String> {
    us.map(text)
}

/// The time of a text in `field`.
///
/// # Errors
/// 400 with the name of the field.
pub fn parse(field: &str, given: &str) -> Result<i64, Fault> {
    let wrong =
        |_| Fault::invalid(field, format!("{field} is not an RFC 3339 time such as 2026-11-22T08:00:00Z"));
    given.parse::<Timestamp>().map(Timestamp::as_microsecond).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_times_agree() {
        let us = parse("deadline", "2026-11-22T08:00:00.5+08:00").unwrap();
        assert_eq!(text(us), "2026-11-22T00:00:00.5Z");
        assert_eq!(parse("start", "tomorrow").unwrap_err().parts().field.as_deref(), Some("start"));
        assert!(text(i64::MAX).starts_with("9999") && !text(i64::MIN).is_empty());
    }
}
