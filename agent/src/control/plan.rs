//! The plan that this agent follows, kept on disk.
//!
//! **What.** Collects the parts of a plan, refuses stale ones, writes the whole down and hands it to the reconciler.
//! **Why on disk.** An agent that starts while the controller is away must still know which entries are held: without
//! the plan every hold would look ended, and the cache could evict what a thousand VMs need tomorrow.
//!
//! **Invariants.**
//! 1. `an_older_plan_is_refused`.
//! 2. `a_plan_takes_effect_only_when_it_is_whole`.
//! 3. `a_plan_survives_a_restart_and_a_damaged_file_is_no_plan`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::frame::{FrameHeader, HEADER_BYTES, Message as _};
use hearth_protocol::id::{Generation, LocationId};
use hearth_protocol::message::control::{ImageName, PART_ENTRIES_MAX, PlanEntry, PlanV1, ToAgent};
use tokio::sync::watch;

use super::identity::{IdentityError, write_private};
use super::names::NameBook;
pub use crate::logic::plan_parts::Plan;
use crate::logic::plan_parts::PlanParts;

/// Largest plan file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;
const MAGIC: &[u8; 8] = b"HRTHPLN1";

/// What became of a part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// More parts must come.
    Waiting,
    /// The plan is whole and followed from now on.
    Followed,
    /// The part is refused.
    Refused(FaultCode),
}

/// The plan and its file.
#[derive(Debug)]
pub struct PlanBook {
    path: PathBuf,
    location: LocationId,
    current: watch::Sender<Arc<Plan>>,
    collecting: Mutex<PlanParts>,
    /// Held while holds are written: see [`super::holds`].
    holding: Mutex<()>,
    /// Names of contents that the plan does not name any more.
    names: NameBook,
}

impl PlanBook {
    /// Reads the last plan below `data_dir`. An unreadable file is said in the log and counts as no plan.
    #[must_use]
    pub fn load(data_dir: &Path, location: LocationId) -> Self {
        let path = data_dir.join("plan.bin");
        let plan = match read(&path, location) {
            Ok(plan) => plan,
            Err(why) => {
                tracing::warn!(path = %path.display(), why, "the last plan is not readable; waiting for the controller");
                None
            }
        };
        let current = watch::Sender::new(Arc::new(plan.unwrap_or_default()));
        let names = NameBook::load(data_dir);
        Self { path, location, current, collecting: Mutex::default(), holding: Mutex::default(), names }
    }

    /// The plan that is followed now.
    #[must_use]
    pub fn current(&self) -> Arc<Plan> {
        Arc::clone(&self.current.borrow())
    }

    /// Contents that an image id or image name stands for: those of the plan, else those that it stood for last.
    #[must_use]
    pub fn contents_of(&self, name: &str) -> Vec<ContentId> {
        let is = |image: &ImageName| image.name == name || image.image.to_string() == name;
        let plan = self.current();
        let named = plan.entries.iter().filter(|entry| entry.images.iter().any(is));
        let found: Vec<ContentId> = named.map(|entry| entry.content).collect();
        if found.is_empty() { self.names.contents_of(name) } else { found }
    }

    /// Names of images with these bytes: as the plan says, else as the last one did that had them.
    #[must_use]
    pub fn images_of(&self, content: ContentId) -> Vec<String> {
        let plan = self.current();
        match plan.entries.iter().find(|entry| entry.content == content) {
            Some(entry) => entry.images.iter().map(|image| image.name.clone()).collect(),
            None => self.names.images_of(content),
        }
    }

    /// Remembers the names of a plan that is followed, for as long as its contents are here. Blocks for the disk.
    pub(super) fn note_names(&self, plan: &Plan, is_here: impl Fn(ContentId) -> bool) {
        if plan.generation != Generation(0)
            && let Err(error) = self.names.note(plan, is_here)
        {
            tracing::warn!(%error, "names of images are not known after a restart");
        }
    }

    /// Follows changes of the plan.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Plan>> {
        self.current.subscribe()
    }

    /// Forgets parts of a plan that is not whole: a new session sends it again.
    pub fn begin_session(&self) {
        self.lock().forget();
    }

    /// Takes one part. Blocks for the disk when it is the last.
    ///
    /// A plan with the generation that is followed already is taken as said again.
    ///
    /// # Errors
    /// [`IdentityError::File`] if the plan cannot be written; it is followed all the same.
    pub fn take(&self, part: PlanV1) -> Result<Taken, IdentityError> {
        if part.location != self.location {
            return Ok(Taken::Refused(FaultCode::NotPlaced));
        }
        let taken = self.lock().take(self.current().generation, part);
        match taken {
            Ok(Some(plan)) => {
                let plan = Arc::new(plan);
                self.current.send_replace(Arc::clone(&plan));
                self.write(&plan).map(|()| Taken::Followed)
            }
            Ok(None) => Ok(Taken::Waiting),
            Err(fault) => Ok(Taken::Refused(fault)),
        }
    }

    /// Whoever writes holds waits for whoever writes them now. Not needed to take a plan.
    pub(super) fn holding(&self) -> std::sync::MutexGuard<'_, ()> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PlanParts> {
        self.collecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, plan: &Plan) -> Result<(), IdentityError> {
        let mut body = Vec::new();
        let parts: Vec<&[PlanEntry]> = match plan.entries.is_empty() {
            true => vec![&[]],
            false => plan.entries.chunks(PART_ENTRIES_MAX).collect(),
        };
        let n_parts = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        for (part, entries) in (0..).zip(parts) {
            let part = PlanV1 {
                location: self.location,
                generation: plan.generation,
                part,
                parts: n_parts,
                stopped: plan.stopped,
                entries: entries.to_vec(),
            };
            let frame = ToAgent::from(part).to_frame().expect("a plan that came in frames fits into frames");
            body.extend_from_slice(&frame);
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(blake3::hash(&body).as_bytes());
        file.append(&mut body);
        write_private(&self.path, &file)
    }
}

/// The plan in the file, `None` if there is no file.
fn read(path: &Path, location: LocationId) -> Result<Option<Plan>, &'static str> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(_) => return Err("cannot be read"),
    };
    if size > FILE_BYTES_MAX {
        return Err("too long");
    }
    let file = std::fs::read(path).map_err(|_| "cannot be read")?;
    let rest = file.strip_prefix(MAGIC).ok_or("no plan")?;
    let (digest, mut body) = rest.split_first_chunk::<32>().ok_or("cut short")?;
    if blake3::hash(body).as_bytes() != digest {
        return Err("damaged");
    }
    let mut plan = Plan::default();
    while let Some((header, rest)) = body.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(*header).map_err(|_| "no frame")?;
        let (frame, rest) = rest.split_at_checked(header.body_bytes).ok_or("cut short")?;
        let Ok(ToAgent::Plan(part)) = ToAgent::from_body(header.kind, frame) else {
            return Err("no plan part");
        };
        if part.location != location {
            return Err("of another location");
        }
        plan.generation = part.generation;
        plan.stopped = part.stopped;
        plan.entries.extend(part.entries);
        body = rest;
    }
    Ok(Some(plan))
}

#[cfg(test)]
pub(super) mod tests {
    use hearth_protocol::message::control::{Hold, Wish};
    use hearth_protocol::words::{ContentKind, Priority};

    use super::*;

    const HERE: LocationId = LocationId::from_bytes([1; 16]);

    /// A wish to keep `content` that may begin.
    pub(in crate::control) fn entry(content: ContentId, hold: Hold) -> PlanEntry {
        PlanEntry {
            content,
            kind: ContentKind::Disk,
            raw_bytes: 1,
            data_bytes: 1,
            images: Vec::new(),
            wish: Wish::Keep,
            priority: Priority::Bulk,
            deadline_unix_ms: None,
            hold,
            admitted: true,
            rate_bytes_per_s: None,
        }
    }

    fn part(generation: u64, part: u16, parts: u16, n_entries: usize) -> PlanV1 {
        let entry = |n: usize| entry(ContentId::of(format!("{n} {part}").as_bytes()), Hold::Until(5));
        PlanV1 {
            location: HERE,
            generation: Generation(generation),
            part,
            parts,
            stopped: false,
            entries: (0..n_entries).map(entry).collect(),
        }
    }

    #[test]
    fn a_plan_takes_effect_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        assert_eq!(book.take(part(3, 1, 2, 2)).unwrap(), Taken::Waiting);
        assert_eq!(book.current().generation, Generation(0));
        assert_eq!(book.take(part(3, 0, 2, 3)).unwrap(), Taken::Followed);
        assert_eq!((book.current().generation, book.current().entries.len()), (Generation(3), 5));
    }

    #[test]
    fn an_older_plan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        assert_eq!(book.take(part(3, 0, 1, 1)).unwrap(), Taken::Followed);
        assert_eq!(book.take(part(2, 0, 1, 1)).unwrap(), Taken::Refused(FaultCode::StalePlan));
        assert_eq!(book.take(part(3, 0, 1, 1)).unwrap(), Taken::Followed, "said again");
        assert_eq!(book.take(part(5, 0, 2, 1)).unwrap(), Taken::Waiting);
        assert_eq!(book.take(part(4, 0, 1, 1)).unwrap(), Taken::Refused(FaultCode::StalePlan));
        assert_eq!(
            book.take(part(6, 0, 1, 1)).unwrap(),
            Taken::Followed,
            "overtakes a plan that is not whole"
        );
        let none = PlanBook::load(&dir.path().join("none"), HERE);
        assert_eq!(none.take(part(0, 0, 1, 0)).unwrap(), Taken::Refused(FaultCode::StalePlan), "no plan");
        let elsewhere = PlanV1 { location: LocationId::from_bytes([2; 16]), ..part(9, 0, 1, 1) };
        assert_eq!(book.take(elsewhere).unwrap(), Taken::Refused(FaultCode::NotPlaced));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        for wrong in [part(1, 0, 0, 1), part(1, 2, 2, 1), part(1, 0, 257, 1), part(1, 0, 1, 257)] {
            let wrong = PlanV1 { entries: wrong.entries.into_iter().take(257).collect(), ..wrong };
            assert_eq!(book.take(wrong).unwrap(), Taken::Refused(FaultCode::Protocol));
        }
        assert_eq!(book.take(part(1, 0, 2, 1)).unwrap(), Taken::Waiting);
        assert_eq!(book.take(part(1, 1, 3, 1)).unwrap(), Taken::Refused(FaultCode::Protocol));
    }

    #[test]
    fn a_plan_survives_a_restart_and_a_damaged_file_is_no_plan() {
        let dir = tempfile::tempdir().unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        assert_eq!(book.take(part(7, 0, 1, 200)).unwrap(), Taken::Followed);
        assert_eq!(PlanBook::load(dir.path(), HERE).current(), book.current());
        let elsewhere = PlanBook::load(dir.path(), LocationId::from_bytes([2; 16]));
        assert_eq!(*elsewhere.current(), Plan::default());
        let path = dir.path().join("plan.bin");
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(*PlanBook::load(dir.path(), HERE).current(), Plan::default(), "flipped byte {at}");
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert_eq!(*PlanBook::load(dir.path(), HERE).current(), Plan::default());
    }
}
