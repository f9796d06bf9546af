//! Durations and moments as people write and read them.
//!
//! **What.** `90s`, `2h`, `1h30m`, `7d`, dates (UTC) and RFC 3339 texts in; `3 min ago` and `in 2 h` out.
//! **Why our own.** A deadline is written as either of the two; a person should not have to know which option takes which.
//! **Invariants.** No function here reads a clock.

use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Seconds of the units that may be written.
const UNITS: &[(&str, u64)] = &[
    ("s", 1),
    ("sec", 1),
    ("m", 60),
    ("min", 60),
    ("h", 3600),
    ("d", 86_400),
    ("day", 86_400),
    ("days", 86_400),
    ("w", 604_800),
];
/// Longest duration that is taken: a hundred years, so that adding it to a date stays in range.
const DURATION_S_MAX: u64 = 100 * 366 * 86_400;

/// A duration such as `90s`, `2h`, `1h30m` or `7d`.
///
/// # Errors
/// A sentence for the person who wrote it.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is not a duration: write for example 90s, 30m, 2h, 1h30m or 7d");
    let mut rest = text.trim();
    let mut total_s: u64 = 0;
    if rest.is_empty() {
        return Err(refused());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let factor = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(refused)?.1;
        let number: u64 = number.parse().map_err(|_| refused())?;
        total_s = number.checked_mul(factor).and_then(|s| s.checked_add(total_s)).ok_or_else(refused)?;
        rest = next;
    }
    if total_s > DURATION_S_MAX {
        return Err(format!("{text:?} is longer than a hundred years"));
    }
    Ok(Duration::from_secs(total_s))
}

/// A point in time: as it is, or counted from now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    /// This one.
    At(Timestamp),
    /// So long from now.
    In(Duration),
}

impl Moment {
    /// RFC 3339 text of the moment.
    #[must_use]
    pub(crate) fn rfc3339(self, now: Timestamp) -> String {
        match self {
            Self::At(at) => at.to_string(),
            Self::In(wait) => {
                let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
                now.saturating_add(wait).unwrap_or(Timestamp::MAX).to_string()
            }
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        moment(text, "from now")
    }
}

/// A point in time of which a duration counts back from now: the caller subtracts it.
///
/// # Errors
/// A sentence for the person who wrote it.
pub(crate) fn parse_past(text: &str) -> Result<Moment, String> {
    moment(text, "back from now")
}

fn moment(text: &str, counted: &str) -> Result<Moment, String> {
    let trimmed = text.trim();
    if let Ok(at) = trimmed.parse::<Timestamp>() {
        return Ok(Moment::At(at));
    }
    // Without a zone it is UTC, as the log has it.
    if let Ok(at) = trimmed.parse::<DateTime>().and_then(|at| at.to_zoned(TimeZone::UTC)) {
        return Ok(Moment::At(at.timestamp()));
    }
    parse_duration(trimmed.trim_start_matches('+')).map(Moment::In).map_err(|_| {
        format!(
            "{text:?} is no moment: write a duration {counted} (2h, 1h30m, 7d), a date (2026-01-31 or \"2026-01-31 \
             18:00\", UTC) or RFC 3339 (2026-01-31T18:00:00Z)"
        )
    })
}

/// `45 s`, `12 min`, `24 h`, `5 d`: the largest unit that gives at least 2, rounded, for people.
#[must_use]
pub(crate) fn human(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", (s + 30) / 60),
        7200..172_800 => format!("{} h", (s + 1800) / 3600),
        _ => format!("{} d", (s + 43_200) / 86_400),
    }
}

/// `3 min ago` or `in 2 h` for an RFC 3339 text; the text itself if it is none.
#[must_use]
pub(crate) fn relative(at: &str, now: Timestamp) -> String {
    let Ok(at_time) = at.parse::<Timestamp>() else { return at.to_owned() };
    let distance = at_time.duration_since(now);
    let text = human(distance.unsigned_abs());
    match distance.as_secs() {
        -1..=1 => "now".to_owned(),
        2.. => format!("in {text}"),
        _ => format!("{text} ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        let cases =
            [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("7d", 604_800), ("1w 1d", 691_200), ("5min", 300)];
        for (text, s) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(s)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "h", "2 hours ago", "-1h", "1.5h", "200000w", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_moment_is_a_date_or_counted_from_now() {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Moment>().unwrap().rfc3339(now), expected);
        };
        check("2h", "2026-03-01T12:00:00Z");
        check("+1h30m", "2026-03-01T11:30:00Z");
        check("2026-03-01T18:00:00+08:00", "2026-03-01T10:00:00Z");
        check("2026-11-27", "2026-11-27T00:00:00Z");
        check("2026-11-27 18:30", "2026-11-27T18:30:00Z");
        assert!("tomorrow".parse::<Moment>().unwrap_err().contains("RFC 3339"));
        assert!("tomorrow".parse::<Moment>().unwrap_err().contains("duration from now"));
        assert!(parse_past("yesterday").unwrap_err().contains("duration back from now"));
        assert_eq!(parse_past("24h"), Ok(Moment::In(Duration::from_secs(86_400))));
    }

    #[test]
    fn distances_read_both_ways() {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        assert_eq!(relative("2026-03-01T09:57:00Z", now), "3 min ago");
        assert_eq!(relative("2026-03-01T12:29:00Z", now), "in 2 h");
        assert_eq!(relative("2026-03-02T09:59:58Z", now), "in 24 h");
        assert_eq!(relative("2026-03-01T10:00:01Z", now), "now");
        assert_eq!(relative("2026-02-01T10:00:00Z", now), "28 d ago");
        assert_eq!(relative("soon", now), "soon");
    }
}
