//! Kills a process that works on a cache folder, again and again, and looks at what is left.
//!
//! **What.** The child (this binary, started again) fetches, leases, releases, holds and removes contents from memory, and
//! says so on its standard output after each acknowledged step. The parent kills it with SIGKILL at a random moment, reads
//! what it had acknowledged, opens the folder and compares. The next child goes on in the same folder.
//! **Why a process and not a thread.** Only a killed process leaves its files, locks and database as a crash does.
//! **Invariants.** Nothing acknowledged is lost; nothing active has a wrong byte; every folder can be opened.
//!
//! `HEARTH_KILL_ROUNDS` (default 100) and `HEARTH_KILL_SEED` repeat a run.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hearth_agent::store::{ContentSpec, RemoveMode, Scrubbed, Staging, Store, StoreConfig, no_progress};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LeaseId;
use hearth_protocol::message::control::Hold;
use hearth_protocol::words::{ConsumerKind, ContentKind};

#[path = "../src/store/tests/content.rs"]
mod content;
use content::Content;

/// The child finds its folder here.
const CHILD: &str = "HEARTH_KILL_CHILD";
/// Longest life of a child after it has opened the folder.
const LIFE_MS_MAX: u64 = 150;
/// Every so many rounds the child dies before that, in the middle of recovery or start.
const EARLY_DEATH: u64 = 4;
const BUDGET: u64 = 1 << 30;

type Outcome = Result<(), Box<dyn Error>>;

/// The name under which the test is listed.
const NAME: &str = "nothing_is_lost_over_a_hundred_kills";

fn main() -> Outcome {
    // What a runner asks before it runs anything; none of it is ignored.
    if std::env::args().any(|word| word == "--list") {
        let ignored = std::env::args().any(|word| word == "--ignored");
        return if ignored { Ok(()) } else { say(&format!("{NAME}: test")) };
    }
    let number = |name: &str, default: u64| -> u64 {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let seed = number("HEARTH_KILL_SEED", 1);
    if let Some(dir) = std::env::var_os(CHILD) {
        return work(Path::new(&dir), &mut Dice(seed));
    }
    parent(number("HEARTH_KILL_ROUNDS", 100), seed)
}

/// A small generator: the rounds of a seed are always the same, only the moment of death is not.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Twelve contents; each shares half of its chunks with its neighbour.
fn contents() -> Vec<Content> {
    (0..12).map(|n| Content::disk(n * 30..n * 30 + 60)).collect()
}

fn spec(content: &Content) -> ContentSpec {
    let Content { content, raw_bytes, data_bytes, .. } = *content;
    ContentSpec { content, kind: ContentKind::Disk, raw_bytes, data_bytes }
}

/// Says something to the parent; it is in the pipe when this returns.
fn say(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// The child: works until it is killed.
fn work(dir: &Path, dice: &mut Dice) -> Outcome {
    let (store, _) = Store::open(&StoreConfig::new(dir, BUDGET))?;
    say("open")?;
    let contents = contents();
    while let Some(unverified) = store.next_check() {
        store.scrub_one(unverified)?;
    }
    loop {
        let content = &contents[usize::try_from(dice.below(contents.len() as u64))?];
        let id = content.content;
        match (store.entry(id).is_some_and(|entry| entry.is_active()), dice.below(6)) {
            (false, _) => {
                fetch(&store.begin(spec(content))?, content)?;
                say(&format!("active {id}"))?;
            }
            (true, 0 | 1) => {
                let lease = store.lease(id, ConsumerKind::Vm, &format!("vm-{}", dice.below(99)), false)?;
                say(&format!("leased {}", lease.lease.lease))?;
            }
            (true, 2) => {
                for lease in store.leases().into_iter().take(2) {
                    say(&format!("releasing {}", lease.lease))?;
                    store.release(lease.lease)?;
                }
            }
            (true, 3) => {
                let until = dice.below(1 << 50);
                say(&format!("holding {id} {until}"))?;
                store.set_hold(id, Hold::Until(until))?;
                say(&format!("held {id} {until}"))?;
            }
            (true, _) => {
                say(&format!("removing {id}"))?;
                if store.remove(id, RemoveMode::Delete).is_ok() {
                    say(&format!("removed {id}"))?;
                } else {
                    say(&format!("active {id}"))?;
                }
                store.recheck(id).unwrap_or_default();
                store.scrub_one(id).map(|_| ()).unwrap_or_default();
            }
        }
    }
}

/// Fetches from memory, with a checkpoint in the middle.
fn fetch(staging: &Staging, content: &Content) -> Outcome {
    staging.put_root(&content.root)?;
    for page in staging.pages_missing()? {
        staging.put_page(page, &content.pages[page as usize])?;
    }
    let need = staging.prepare(&no_progress)?;
    let half = need.count() / 2;
    for (n, chunk) in (0..).zip(need.iter()) {
        let record = staging.records(chunk..chunk + 1)?[0];
        staging.write_run(record.offset, &content.chunks[&record.offset])?;
        staging.mark_done(&[chunk])?;
        if n == half {
            staging.checkpoint()?;
        }
    }
    staging.finish(&no_progress)?;
    Ok(())
}

/// What the children have acknowledged so far.
#[derive(Default)]
struct Known {
    active: BTreeSet<ContentId>,
    /// Being removed when the child died: there or not.
    unsure: BTreeSet<ContentId>,
    leases: BTreeSet<LeaseId>,
    unsure_leases: BTreeSet<LeaseId>,
    /// Ends of hold that a content may have; `None` is no hold.
    holds: BTreeMap<ContentId, BTreeSet<Option<u64>>>,
}

impl Known {
    fn hear(&mut self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["open"] => {}
            ["active", id] => {
                let id = id.parse()?;
                self.unsure.remove(&id);
                self.active.insert(id);
            }
            ["removing", id] => {
                let id = id.parse()?;
                self.active.remove(&id);
                self.unsure.insert(id);
            }
            ["removed", id] => {
                self.unsure.remove(&id.parse()?);
            }
            ["leased", lease] => {
                self.leases.insert(lease.parse()?);
            }
            ["releasing", lease] => {
                let lease = lease.parse()?;
                self.leases.remove(&lease);
                self.unsure_leases.insert(lease);
            }
            ["holding", id, until] => {
                let allowed = self.holds.entry(id.parse()?).or_insert_with(|| BTreeSet::from([None]));
                allowed.insert(Some(until.parse()?));
            }
            ["held", id, until] => {
                self.holds.insert(id.parse()?, BTreeSet::from([Some(until.parse()?)]));
            }
            other => return Err(format!("unknown line {other:?}").into()),
        }
        Ok(())
    }
}

fn parent(rounds: u64, seed: u64) -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().join("cache");
    let contents: BTreeMap<ContentId, Content> =
        contents().into_iter().map(|content| (content.content, content)).collect();
    let mut known = Known::default();
    let mut dice = Dice(seed);
    let (mut acknowledged, mut before_open, mut resumable) = (0, 0, 0);
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe()?)
            .env(CHILD, &dir)
            .env("HEARTH_KILL_SEED", (seed ^ round << 20).to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pipe = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut said = String::new();
        if round % EARLY_DEATH != 0 {
            pipe.read_line(&mut said)?;
        }
        std::thread::sleep(Duration::from_millis(dice.below(LIFE_MS_MAX)));
        let died = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        assert_eq!(died, None, "round {round}: the child ended by itself");
        pipe.read_to_string(&mut said)?;
        // The last line may be torn: then its step was not acknowledged.
        let whole = said.rfind('\n').map_or("", |end| said.get(..end).unwrap_or_default());
        before_open += u32::from(whole.is_empty());
        for line in whole.lines() {
            acknowledged += 1;
            known.hear(line)?;
        }
        resumable += check(&dir, &contents, &mut known, round)?;
    }
    assert!(acknowledged > rounds, "only {acknowledged} steps were acknowledged: the kills came too early");
    let summary = format!(
        "kill_store: {rounds} kills, {acknowledged} acknowledged steps, {before_open} deaths before the folder was open, {resumable} transfers resumed: nothing lost, nothing wrong\n"
    );
    Ok(std::io::stderr().write_all(summary.as_bytes())?)
}

/// Opens the folder as the next agent would and compares it with what was acknowledged.
fn check(
    dir: &Path,
    contents: &BTreeMap<ContentId, Content>,
    known: &mut Known,
    round: u64,
) -> Result<u32, Box<dyn Error>> {
    let (store, report) = Store::open(&StoreConfig::new(dir, BUDGET))?;
    assert_eq!(
        (report.quarantined, report.lost.len(), report.holds_lost),
        (0, 0, false),
        "round {round}: {report:?}"
    );
    for id in &known.active {
        let entry = store.entry(*id).ok_or("an acknowledged content is gone")?;
        // sled may not open after a kill: then the index is built anew, and every object proves itself below.
        let is_right = entry.is_active() || report.index_rebuilt.is_some();
        assert!(is_right, "round {round}: {id} was active, is {:?}: {report:?}", entry.state);
    }
    let leases: BTreeSet<LeaseId> = store.leases().into_iter().map(|lease| lease.lease).collect();
    assert!(known.leases.is_subset(&leases), "round {round}: an acknowledged lease is gone");
    for (id, allowed) in &known.holds {
        let found = end_of_hold(&store, *id)?;
        assert!(allowed.contains(&found), "round {round}: hold of {id} is {found:?}, not of {allowed:?}");
    }
    for entry in store.entries() {
        let content = &contents[&entry.content];
        if entry.is_active() {
            let bytes = std::fs::read(entry.path.as_ref().ok_or("active without a path")?)?;
            assert!(bytes == content.raw(), "round {round}: {} has wrong bytes", entry.content);
        } else {
            // Renamed, not yet acknowledged: must prove to be whole.
            assert_eq!(store.scrub_one(entry.content)?, Scrubbed::Good, "round {round}");
        }
    }
    // What is unsure is now known again.
    known.active =
        store.entries().into_iter().filter(|entry| entry.is_active()).map(|entry| entry.content).collect();
    known.unsure.clear();
    known.leases = leases;
    known.unsure_leases.clear();
    for (id, allowed) in &mut known.holds {
        *allowed = BTreeSet::from([end_of_hold(&store, *id)?]);
    }
    Ok(report.resumable)
}

fn end_of_hold(store: &Store, content: ContentId) -> Result<Option<u64>, Box<dyn Error>> {
    match store.hold_of(content) {
        Hold::Until(until) => Ok(Some(until)),
        Hold::Released => Ok(None),
        Hold::Pinned => Err("nobody pinned anything".into()),
    }
}
