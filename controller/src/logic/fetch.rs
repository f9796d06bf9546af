//! What to do about a source's answer, and when to try again.
//!
//! **What.** [`judge`] says whether an HTTP answer goes on where the last one stopped; [`Backoff`] counts failures;
//! [`Flow`] finds a source that drips.
//!
//! **Why no limit on the whole time.** How long 40 GB take is the network's business. What must end is silence, dripping,
//! and trying without getting anywhere.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `bytes_are_appended_only_to_the_file_they_belong_to`
//! 2. `five_failures_without_progress_end_a_fetch`
//! 3. `a_source_that_always_begins_again_is_given_up`
//! 4. `a_dripping_source_is_found`

use std::time::Duration;

/// Failures in a row without progress after which a fetch is given up.
pub const FAILURES_MAX: u32 = 5;
/// Bytes that count as progress: less is a source that wants to be asked for ever.
pub const PROGRESS_BYTES_MIN: u64 = 64 << 10;
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Least rate over a window, bytes per second.
pub const RATE_BYTES_PER_S_MIN: u64 = 1024;
/// Longest entity tag or date that is remembered.
const MARK_CHARS_MAX: usize = 200;

/// How patient a fetch is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest silence.
    pub silence: Duration,
    /// Time over which the rate is looked at.
    pub window: Duration,
    /// First pause after a failure; doubles with each one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            window: Duration::from_secs(60),
            pause: Duration::from_secs(1),
        }
    }
}

/// The head of an HTTP answer, as far as it matters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// `Content-Length`.
    pub length_bytes: Option<u64>,
    /// `Content-Range`: first byte and size of the whole.
    pub range: Option<(u64, Option<u64>)>,
    /// `ETag` as it came.
    pub etag: Option<String>,
    /// `Last-Modified` as it came.
    pub modified: Option<String>,
}

impl Answer {
    /// By what the source will say that it is still the same file; empty if it cannot. A weak tag promises no bytes.
    #[must_use]
    pub fn mark(&self) -> String {
        let strong = self.etag.as_ref().filter(|tag| tag.starts_with('"'));
        let mark = strong.or(self.modified.as_ref()).filter(|mark| mark.len() <= MARK_CHARS_MAX);
        mark.cloned().unwrap_or_default()
    }
}

/// What an answer means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The body is the file from its first byte.
    Whole {
        /// Its size, if the source tells.
        size_bytes: Option<u64>,
        /// Its mark.
        mark: String,
    },
    /// The body goes on where the last one stopped.
    Rest,
    /// There is nothing more: the file is whole.
    Complete,
    /// It is another file, or the source cannot go on: begin again.
    Changed,
    /// Try again later.
    Later(String),
    /// Trying again is of no use.
    Never(String),
}

/// Judges the answer to a request for everything from byte `at` on of the file with `mark` and `size_bytes`.
#[must_use]
pub fn judge(at: u64, mark: &str, size_bytes: Option<u64>, answer: &Answer) -> Verdict {
    match answer.status {
        200 if at == 0 => Verdict::Whole { size_bytes: answer.length_bytes, mark: answer.mark() },
        200 | 412 => Verdict::Changed,
        206 => match answer.range {
            Some((first, whole)) if first == at => {
                let other_mark = !answer.mark().is_empty() && answer.mark() != mark;
                let other_size = size_bytes.is_some() && whole.is_some() && whole != size_bytes;
                if mark.is_empty() || other_mark || other_size { Verdict::Changed } else { Verdict::Rest }
            }
            _ => Verdict::Later("the source sent another part than it was asked for".to_owned()),
        },
        416 if at > 0 && size_bytes.is_none_or(|size| size == at) => match answer.range {
            Some((_, whole)) if whole == Some(at) => Verdict::Complete,
            _ => Verdict::Changed,
        },
        416 => Verdict::Changed,
        status @ (408 | 425 | 429 | 500..=599) => Verdict::Later(format!("the source answered {status}")),
        status @ (401 | 403) => Verdict::Never(format!(
            "the source answered {status}: it wants another user, password or signature"
        )),
        status => Verdict::Never(format!("the source answered {status}")),
    }
}

/// Failures so far.
#[derive(Clone, Debug)]
pub struct Backoff {
    pause: Duration,
    in_vain: u32,
    restarts: u32,
}

impl Backoff {
    /// No failures yet.
    #[must_use]
    pub const fn new(pause: Duration) -> Self {
        Self { pause, in_vain: 0, restarts: 0 }
    }

    /// How long to wait after a try that brought `progress_bytes`; `None`: give up.
    #[must_use]
    pub fn after(&mut self, progress_bytes: u64) -> Option<Duration> {
        self.in_vain = if progress_bytes >= PROGRESS_BYTES_MIN { 0 } else { self.in_vain + 1 };
        let doubled = 1_u32 << self.in_vain.saturating_sub(1).min(16);
        (self.in_vain < FAILURES_MAX).then(|| self.pause.saturating_mul(doubled).min(PAUSE_MAX))
    }

    /// As [`Backoff::after`], for a source whose file is another one now.
    #[must_use]
    pub fn restart(&mut self) -> Option<Duration> {
        self.restarts += 1;
        (self.restarts < FAILURES_MAX).then_some(self.pause)
    }
}

/// Watches the rate of a source. Times count from the begin of the transfer.
#[derive(Clone, Debug)]
pub struct Flow {
    window: Duration,
    since: Duration,
    bytes: u64,
}

impl Flow {
    /// Begins to watch.
    #[must_use]
    pub const fn new(window: Duration) -> Self {
        Self { window, since: Duration::ZERO, bytes: 0 }
    }

    /// Counts bytes; `false` if fewer than [`RATE_BYTES_PER_S_MIN`] came over a window.
    #[must_use]
    pub fn add(&mut self, bytes: u64, now: Duration) -> bool {
        self.bytes += bytes;
        let passed = now.saturating_sub(self.since);
        if passed < self.window {
            return true;
        }
        let enough = u128::from(self.bytes) * 1000 >= u128::from(RATE_BYTES_PER_S_MIN) * passed.as_millis();
        (self.since, self.bytes) = (now, 0);
        enough
    }
}

/// First byte and size of `bytes 5-9/10`, `bytes 5-9/*` and `bytes */10`.
#[must_use]
pub fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    let first = if range == "*" { 0 } else { range.split_once('-')?.0.parse().ok()? };
    Some((first, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, etag: Some("\"v1\"".into()), ..Answer::default() }
    }

    #[test]
    fn bytes_are_appended_only_to_the_file_they_belong_to() {
        let part = |first, whole| Answer { range: Some((first, Some(whole))), ..answer(206) };
        let go_on = |answer: &Answer| judge(50, "\"v1\"", Some(100), answer);
        assert_eq!(go_on(&part(50, 100)), Verdict::Rest);
        assert_eq!(go_on(&part(50, 101)), Verdict::Changed, "another size");
        assert!(matches!(go_on(&part(49, 100)), Verdict::Later(_)), "another part");
        assert!(matches!(go_on(&answer(206)), Verdict::Later(_)), "no range at all");
        let other = Answer { etag: Some("\"v2\"".into()), ..part(50, 100) };
        assert_eq!(go_on(&other), Verdict::Changed, "another tag");
        assert_eq!(
            judge(50, "", Some(100), &part(50, 100)),
            Verdict::Changed,
            "nothing says that it is the same"
        );
        assert_eq!(go_on(&answer(200)), Verdict::Changed);
        assert_eq!(go_on(&answer(412)), Verdict::Changed);
        let past = |whole| Answer { range: Some((0, Some(whole))), ..answer(416) };
        assert_eq!(judge(100, "\"v1\"", None, &past(100)), Verdict::Complete);
        assert_eq!(judge(100, "\"v1\"", None, &past(90)), Verdict::Changed);
        let whole = Answer { length_bytes: Some(7), ..answer(200) };
        assert_eq!(judge(0, "", None, &whole), Verdict::Whole { size_bytes: Some(7), mark: "\"v1\"".into() });
    }

    #[test]
    fn a_weak_tag_is_no_mark() {
        let weak = Answer { etag: Some("W/\"1\"".into()), modified: Some("Thu".into()), ..answer(200) };
        assert_eq!(weak.mark(), "Thu");
        assert_eq!(Answer { modified: None, ..weak }.mark(), "");
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(judge(0, "", None, &answer(status)), Verdict::Later(_)), "{status}");
        }
        for status in [204, 304, 400, 401, 403, 404, 405, 410, 451] {
            assert!(matches!(judge(0, "", None, &answer(status)), Verdict::Never(_)), "{status}");
        }
    }

    #[test]
    fn five_failures_without_progress_end_a_fetch() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let pauses: Vec<_> = (0..4).map(|_| backoff.after(0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8]);
        let mut lucky = backoff.clone();
        assert_eq!(backoff.after(PROGRESS_BYTES_MIN - 1), None, "a few bytes are no progress");
        assert_eq!(lucky.after(PROGRESS_BYTES_MIN), Some(Duration::from_secs(1)));
        assert_eq!(lucky.after(0), Some(Duration::from_secs(1)), "counted from the start again");
    }

    #[test]
    fn a_source_that_always_begins_again_is_given_up() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut tries = 0;
        while backoff.restart().is_some() {
            assert!(backoff.after(1 << 30).is_some());
            tries += 1;
        }
        assert_eq!(tries, FAILURES_MAX - 1);
    }

    #[test]
    fn a_dripping_source_is_found() {
        let at = Duration::from_secs;
        let mut flow = Flow::new(at(60));
        assert!(flow.add(1, at(59)), "not before the window is over");
        assert!(!flow.add(1, at(60)));
        assert!(flow.add(60 * RATE_BYTES_PER_S_MIN, at(120)));
        assert!(!flow.add(60 * RATE_BYTES_PER_S_MIN, at(300)), "a long silence counts");
    }

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("bytes */10"), Some((0, Some(10))));
        for wrong in ["", "5-9/10", "bytes 5-9", "bytes a-9/10", "bytes 5-9/-1", "lines 5-9/10"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
