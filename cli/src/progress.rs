//! Progress on stderr: bars on a terminal, plain lines elsewhere, nothing with `--quiet`.
//!
//! **What.** [`Steps`] follows one file or one import; [`Fleet`] follows a prewarm job with a bar per host, up to the
//! terminal's height, one for all, and a line about the swarm if there is one.
//! **Why lines too.** A build log with a million carriage returns helps nobody; a line per change does.
//! **Invariants.** Nothing here writes to stdout.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use hearth_protocol::api::campaign::Campaign;
use hearth_protocol::api::prewarm::{PrewarmDetails, PrewarmGroupDetails, PrewarmTarget};
use hearth_protocol::id::LocationId;
use hearth_protocol::words::{EntryStatus, PrewarmState};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::printable;
use crate::{campaign, clock, size};

/// Plain lines about something that merely goes on come no closer than this.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// Plain lines that say what the last one said come no closer than this.
const SAME_LINE_PAUSE: Duration = Duration::from_secs(60);
/// Columns that the longest name of a host gets before it is cut.
const NAME_COLUMNS_MAX: usize = 24;
/// Above so many hosts only failures get a plain line of their own.
const HOST_LINES_MAX: usize = 64;
/// Lines of the terminal that stay free below the bars: the prompt, the bar for all, the swarm and a remark.
const LINES_FREE: usize = 4;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// Moving bars.
    Bars,
    /// A line now and then.
    Lines,
    /// Not at all.
    Silent,
}

impl Mode {
    /// What fits this stderr.
    pub(crate) fn of_stderr(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Silent,
            (false, true) => Self::Bars,
            (false, false) => Self::Lines,
        }
    }
}

fn line(text: &str) {
    use std::io::Write as _;
    // A closed stderr must not stop the transfer that is reported on.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Progress of one thing that has a label and goes through steps.
#[derive(Debug)]
pub(crate) struct Steps {
    mode: Mode,
    label: String,
    bar: ProgressBar,
    said: Option<(String, Instant)>,
}

impl Steps {
    /// Starts with nothing done.
    pub(crate) fn new(mode: Mode, label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(mode));
        Self { mode, label: printable(label), bar, said: None }
    }

    /// Begins to move `total` bytes, of which `done` are there.
    pub(crate) fn bytes(&mut self, step: &str, done: u64, total: Option<u64>) {
        let template = match total {
            Some(_) => {
                "{prefix:.bold} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            None => "{prefix:.bold} {msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        };
        self.bar.set_style(style(template));
        self.bar.set_prefix(self.label.clone());
        self.bar.set_message(step.to_owned());
        self.bar.set_position(done);
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.reset_eta();
        self.said = None;
        self.tick(step);
    }

    /// So many bytes more.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if self.mode == Mode::Lines {
            let step = self.bar.message();
            self.tick(&step);
        }
    }

    /// A step of which only the percentage is known.
    pub(crate) fn percent(&mut self, step: &str, percent: u8) {
        if self.bar.message() != step {
            self.bar.set_style(style("{prefix:.bold} {msg} {wide_bar} {percent}%"));
            self.bar.set_prefix(self.label.clone());
            self.bar.set_message(step.to_owned());
            self.bar.set_length(100);
        }
        self.bar.set_position(u64::from(percent));
        self.tick(step);
    }

    /// Shows `text` instead of the bar, for good.
    pub(crate) fn end(&self, text: &str) {
        self.bar.finish_and_clear();
        if self.mode != Mode::Silent {
            line(&format!("{}: {text}", self.label));
        }
    }

    /// A handle that counts bytes from inside a stream.
    pub(crate) fn counter(&self) -> ProgressBar {
        self.bar.clone()
    }

    fn tick(&mut self, step: &str) {
        if self.mode != Mode::Lines {
            return;
        }
        let now = clock::monotonic();
        let due =
            self.said.as_ref().is_none_or(|(last, at)| last != step || now.duration_since(*at) >= LINE_PAUSE);
        if due {
            let (done, total) = (self.bar.position(), self.bar.length());
            let amount = match total {
                Some(100) => format!("{done}%"),
                Some(total) => format!("{} of {}", size::human(done), size::human(total)),
                None => size::human(done),
            };
            line(&format!("{}: {step} {amount}", self.label));
            self.said = Some((step.to_owned(), now));
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn target(mode: Mode) -> ProgressDrawTarget {
    if mode == Mode::Bars { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("templates in this file are well formed");
    style.progress_chars("━╸ ")
}

/// How far a job, or all jobs of a host image, are.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Name of the image or host image.
    pub(crate) name: String,
    /// State.
    pub(crate) state: PrewarmState,
    /// Locations.
    pub(crate) total: u32,
    /// Locations that are done.
    pub(crate) active: u32,
    /// Locations that failed.
    pub(crate) failed: u32,
    /// Raw bytes verified.
    pub(crate) done_bytes: u64,
    /// Raw bytes to be verified.
    pub(crate) data_bytes: u64,
    /// Stored bytes that moved.
    pub(crate) moved_bytes: u64,
    /// Each location.
    pub(crate) locations: Vec<PrewarmTarget>,
    /// How the hosts pass the image to each other; not known of all jobs of a host image together.
    pub(crate) campaign: Option<Campaign>,
}

impl From<PrewarmDetails> for Picture {
    fn from(PrewarmDetails { prewarm: job, locations, campaign }: PrewarmDetails) -> Self {
        Self {
            name: job.image_name,
            state: job.state,
            total: job.total,
            active: job.active,
            failed: job.failed,
            done_bytes: job.done_bytes,
            data_bytes: job.data_bytes,
            moved_bytes: job.moved_bytes,
            locations,
            campaign,
        }
    }
}

impl From<PrewarmGroupDetails> for Picture {
    fn from(PrewarmGroupDetails { group, locations }: PrewarmGroupDetails) -> Self {
        Self {
            name: group.host_image_name,
            state: group.state,
            total: group.total,
            active: group.active,
            failed: group.failed,
            done_bytes: group.done_bytes,
            data_bytes: group.data_bytes,
            moved_bytes: group.moved_bytes,
            locations,
            campaign: None,
        }
    }
}

/// Progress of a prewarm job.
#[derive(Debug)]
pub(crate) struct Fleet {
    mode: Mode,
    multi: MultiProgress,
    all: ProgressBar,
    hosts: BTreeMap<LocationId, ProgressBar>,
    swarm: Option<ProgressBar>,
    said: BTreeMap<LocationId, EntryStatus>,
    said_all: Option<(String, Instant)>,
    said_swarm: Option<(String, Instant)>,
}

impl Fleet {
    /// Shows nothing before the first update.
    pub(crate) fn new(mode: Mode) -> Self {
        let multi = MultiProgress::with_draw_target(target(mode));
        let all = multi.add(ProgressBar::new(0));
        Self {
            mode,
            multi,
            all,
            hosts: BTreeMap::new(),
            swarm: None,
            said: BTreeMap::new(),
            said_all: None,
            said_swarm: None,
        }
    }

    /// Shows the state of a job.
    pub(crate) fn show(&mut self, job: &Picture) {
        match self.mode {
            Mode::Bars => self.bars(job),
            Mode::Lines => self.lines(job),
            Mode::Silent => {}
        }
    }

    /// Draws what the last update changed: the terminal takes few frames a second, so some bars were left as they were.
    pub(crate) fn settle(&self) {
        self.all.tick();
        self.swarm.iter().for_each(ProgressBar::tick);
    }

    /// Takes the bars away.
    pub(crate) fn end(&mut self) {
        drop(self.multi.clear());
        self.multi.set_draw_target(ProgressDrawTarget::hidden());
    }

    fn bars(&mut self, job: &Picture) {
        let names = job.locations.iter().map(|host| console::measure_text_width(&host.location_name));
        let name = names.max().unwrap_or(0).clamp(3, NAME_COLUMNS_MAX);
        if self.all.prefix().is_empty() {
            let all = format!("{{prefix:{name}!.bold}} {{bar:20}} {{percent:>3}}% {{wide_msg}}");
            self.all.set_style(style(&all));
            self.all.set_prefix("all");
        }
        self.all.set_length(job.data_bytes.max(1));
        self.all.set_position(job.done_bytes);
        let (done, total) = (size::human(job.done_bytes), size::human(job.data_bytes));
        self.all.set_message(format!("{}, {done} of {total}", summary(job)));
        let rows = usize::from(console::Term::stderr().size().0).saturating_sub(LINES_FREE);
        let shown = visible(&job.locations, rows);
        let gone: Vec<LocationId> =
            self.hosts.keys().copied().filter(|id| !shown.iter().any(|host| host.location == *id)).collect();
        for id in gone {
            if let Some(bar) = self.hosts.remove(&id) {
                self.multi.remove(&bar);
            }
        }
        for host in shown {
            let bar = self.hosts.entry(host.location).or_insert_with(|| {
                let bar = self.multi.insert_before(&self.all, ProgressBar::new(100));
                bar.set_style(style(&format!("{{prefix:{name}!}} {{bar:20}} {{pos:>3}}% {{wide_msg}}")));
                bar.set_prefix(printable(&host.location_name));
                bar
            });
            bar.set_position(u64::from(host.percent));
            bar.set_message(host_text(host));
        }
        if let Some(text) = job.campaign.as_ref().and_then(campaign::line) {
            let swarm = self.swarm.get_or_insert_with(|| {
                let bar = self.multi.insert_after(&self.all, ProgressBar::new(0));
                bar.set_style(style("{wide_msg}"));
                bar
            });
            swarm.set_message(text);
        }
    }

    fn lines(&mut self, job: &Picture) {
        let few = job.locations.len() <= HOST_LINES_MAX;
        for host in &job.locations {
            // That a host is still to begin is no news.
            let before = self.said.insert(host.location, host.status).unwrap_or(EntryStatus::Queued);
            let changed = before != host.status;
            if changed && (few || host.status == EntryStatus::CacheFail) {
                line(&format!("{}: {}", printable(&host.location_name), host_text(host)));
            }
        }
        let now = clock::monotonic();
        let (done, total) = (size::human(job.done_bytes), size::human(job.data_bytes));
        let text = format!("all: {done} of {total}, {}", summary(job));
        let pause = match &self.said_all {
            Some((said, _)) if *said == text => SAME_LINE_PAUSE,
            _ => LINE_PAUSE,
        };
        if self.said_all.as_ref().is_none_or(|(_, at)| now.duration_since(*at) >= pause) {
            line(&text);
            self.said_all = Some((text, now));
        }
        let Some(text) = job.campaign.as_ref().and_then(campaign::line) else { return };
        let is_due = |(said, at): &(String, Instant)| *said != text && now.duration_since(*at) >= LINE_PAUSE;
        if self.said_swarm.as_ref().is_none_or(is_due) {
            line(&text);
            self.said_swarm = Some((text, now));
        }
    }
}

/// `7 of 9 active, 1 failed, 1 offline`: an offline host is what a job may wait for without an end.
#[must_use]
pub(crate) fn summary(job: &Picture) -> String {
    let waits = |host: &&PrewarmTarget| !host.online && host.status != EntryStatus::Active;
    let offline = job.locations.iter().filter(waits).count();
    let mut text = format!("{} of {} active", job.active, job.total);
    for (count, word) in [(job.failed as usize, "failed"), (offline, "offline")] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    text
}

fn host_text(host: &PrewarmTarget) -> String {
    let mut text = host.status.to_string();
    if !host.online {
        text.push_str(", offline");
    }
    if host.moved_bytes > 0 || host.reused_bytes > 0 {
        text.push_str(&format!(", {} moved", size::human(host.moved_bytes)));
    }
    if host.reused_bytes > 0 {
        text.push_str(&format!(", {} reused", size::human(host.reused_bytes)));
    }
    if !host.reason.is_empty() {
        text.push_str(&format!(": {}", printable(&host.reason)));
    }
    text
}

/// The hosts that get a bar: those that move first, then failed, waiting and finished ones, in the order of their names.
fn visible(hosts: &[PrewarmTarget], rows: usize) -> Vec<&PrewarmTarget> {
    let rank = |host: &PrewarmTarget| match host.status {
        EntryStatus::Caching | EntryStatus::Verifying => 0,
        EntryStatus::CacheFail | EntryStatus::DeleteFailed | EntryStatus::Stale => 1,
        EntryStatus::Queued | EntryStatus::Deleting => 2,
        EntryStatus::Active => 3,
    };
    let mut order: Vec<&PrewarmTarget> = hosts.iter().collect();
    order.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.location_name.cmp(&b.location_name)));
    order.truncate(rows.max(1));
    order.sort_by(|a, b| a.location_name.cmp(&b.location_name));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, status: EntryStatus) -> PrewarmTarget {
        PrewarmTarget {
            location: LocationId::from_bytes([name.as_bytes()[0]; 16]),
            location_name: name.into(),
            online: true,
            status,
            percent: 40,
            done_bytes: 4,
            data_bytes: 10,
            moved_bytes: 2048,
            reused_bytes: 0,
            reason: String::new(),
            attempts: 1,
            done_at: None,
        }
    }

    #[test]
    fn moving_hosts_are_shown_first_and_in_order_of_name() {
        let hosts = [
            host("a", EntryStatus::Active),
            host("b", EntryStatus::Caching),
            host("c", EntryStatus::CacheFail),
            host("d", EntryStatus::Queued),
        ];
        let names = |rows| visible(&hosts, rows).iter().map(|h| h.location_name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(1), ["b"]);
        assert_eq!(names(2), ["b", "c"]);
        assert_eq!(names(9), ["a", "b", "c", "d"]);
        assert_eq!(names(0), ["b"]);
    }

    #[test]
    fn a_host_says_why_it_waits() {
        let mut failed = host("c", EntryStatus::CacheFail);
        failed.reason = "no_space: 3 GiB needed".into();
        failed.online = false;
        assert_eq!(host_text(&failed), "cache_fail, offline, 2.0 KiB moved: no_space: 3 GiB needed");
    }
}
