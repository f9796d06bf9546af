//! Names that copies go by when no plan names them any more.
//!
//! **What.** Remembers which images the last plan with a content named for it, as long as the content is here, and keeps
//! that on disk.
//! **Why.** A plan forgets a copy when its hold ends, but the copy stays, and scripts on this host know it by the name of its
//! image alone. Names in the plan come first: this is asked only for what the plan does not know.
//!
//! **Invariants.**
//! 1. `a_name_outlives_the_plan_while_the_copy_is_here`.
//! 2. `a_name_that_a_plan_gives_to_another_content_is_taken_from_the_first`.
//! 3. `a_damaged_file_is_no_names`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::message::control::ImageName;

use super::identity::{IdentityError, write_private};
use super::plan::Plan;

/// Images of a content: id and name.
type Images = Vec<(ImageId, String)>;

/// The names and their file.
#[derive(Debug)]
pub(super) struct NameBook {
    path: PathBuf,
    known: Mutex<BTreeMap<ContentId, Images>>,
}

impl NameBook {
    /// Reads the names below `data_dir`. An unreadable file is said in the log and counts as no names.
    pub(super) fn load(data_dir: &Path) -> Self {
        let path = data_dir.join("names");
        let known = read(&path).unwrap_or_else(|why| {
            tracing::warn!(path = %path.display(), why, "copies that no plan names go by their content id alone");
            BTreeMap::new()
        });
        Self { path, known: Mutex::new(known) }
    }

    /// Takes the names of a plan, and forgets those of contents that are neither in it nor here. Blocks for the disk if
    /// something changed.
    ///
    /// # Errors
    /// [`IdentityError::File`] if they cannot be written; until the next start they are known all the same.
    pub(super) fn note(&self, plan: &Plan, is_here: impl Fn(ContentId) -> bool) -> Result<(), IdentityError> {
        let of = |images: &[ImageName]| images.iter().map(|i| (i.image, i.name.clone())).collect::<Images>();
        let named: BTreeMap<ContentId, Images> =
            plan.entries.iter().map(|entry| (entry.content, of(&entry.images))).collect();
        let mut known = self.lock();
        let mut next = known.clone();
        next.retain(|content, _| !named.contains_key(content) && is_here(*content));
        let given = |(image, name): &(ImageId, String)| {
            named.values().flatten().any(|(other, also)| other == image || also == name)
        };
        next.values_mut().for_each(|images| images.retain(|image| !given(image)));
        next.extend(named);
        next.retain(|_, images| !images.is_empty());
        if next == *known {
            return Ok(());
        }
        *known = next;
        let mut text = String::new();
        for (content, images) in &*known {
            let images = serde_json::to_string(images).expect("ids and names always have a JSON form");
            text.push_str(&format!("{content} {images}\n"));
        }
        let digest = blake3::hash(text.as_bytes()).to_hex();
        write_private(&self.path, format!("{digest}\n{text}").as_bytes())
    }

    /// Contents whose image had this name or id.
    pub(super) fn contents_of(&self, wanted: &str) -> Vec<ContentId> {
        let is = |(image, name): &(ImageId, String)| name == wanted || image.to_string() == wanted;
        let known = self.lock();
        known.iter().filter(|(_, images)| images.iter().any(is)).map(|(content, _)| *content).collect()
    }

    /// Names that images with these bytes had.
    pub(super) fn images_of(&self, content: ContentId) -> Vec<String> {
        let known = self.lock();
        known.get(&content).into_iter().flatten().map(|(_, name)| name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContentId, Images>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<BTreeMap<ContentId, Images>, &'static str> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(_) => return Err("cannot be read"),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| "damaged")?;
    let (digest, rows) = text.split_once('\n').ok_or("cut short")?;
    if blake3::hash(rows.as_bytes()).to_hex().as_str() != digest {
        return Err("damaged");
    }
    let row = |line: &str| {
        let (content, images) = line.split_once(' ')?;
        Some((content.parse().ok()?, serde_json::from_str(images).ok()?))
    };
    rows.lines().map(row).collect::<Option<_>>().ok_or("not understood")
}

#[cfg(test)]
mod tests {
    use hearth_protocol::id::Generation;
    use hearth_protocol::message::control::{Hold, PlanEntry};

    use super::*;
    use crate::control::plan::tests::entry;

    fn id(content: &str) -> ContentId {
        ContentId::of(content.as_bytes())
    }

    /// A plan with these contents, each with the image of this number and name.
    fn plan(contents: &[(&str, u8, &str)]) -> Plan {
        let entry = |(content, image, name): &(&str, u8, &str)| {
            let images =
                vec![ImageName { image: ImageId::from_bytes([*image; 16]), name: (*name).to_owned() }];
            PlanEntry { images, ..entry(id(content), Hold::Pinned) }
        };
        Plan { generation: Generation(1), stopped: false, entries: contents.iter().map(entry).collect() }
    }

    #[test]
    fn a_name_outlives_the_plan_while_the_copy_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let book = NameBook::load(dir.path());
        book.note(&plan(&[("a", 1, "noble"), ("b", 2, "jammy")]), |_| false).unwrap();
        book.note(&plan(&[("c", 3, "trixie")]), |content| content == id("a")).unwrap();
        for book in [book, NameBook::load(dir.path())] {
            assert_eq!(book.contents_of("noble"), [id("a")]);
            assert_eq!(book.contents_of(&ImageId::from_bytes([1; 16]).to_string()), [id("a")]);
            assert_eq!(book.images_of(id("a")), ["noble"]);
            assert_eq!(book.contents_of("jammy"), []);
            assert_eq!(book.contents_of("trixie"), [id("c")]);
        }
    }

    #[test]
    fn a_name_that_a_plan_gives_to_another_content_is_taken_from_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let book = NameBook::load(dir.path());
        book.note(&plan(&[("a", 1, "noble")]), |_| true).unwrap();
        book.note(&plan(&[("b", 2, "noble")]), |_| true).unwrap();
        assert_eq!(book.contents_of("noble"), [id("b")]);
        // The image was renamed, or lost its bytes to the controller's wish to remove them.
        book.note(&plan(&[("b", 2, "resolute")]), |_| true).unwrap();
        assert_eq!(
            (book.contents_of("noble"), book.images_of(id("b"))),
            (vec![], vec!["resolute".to_owned()])
        );
    }

    #[test]
    fn a_damaged_file_is_no_names() {
        let dir = tempfile::tempdir().unwrap();
        NameBook::load(dir.path()).note(&plan(&[("a", 1, "noble")]), |_| true).unwrap();
        let path = dir.path().join("names");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "flipped byte {at}");
            assert_eq!(NameBook::load(dir.path()).contents_of("noble"), []);
        }
    }
}
