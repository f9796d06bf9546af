//! Tests of the store: publishing, damage, mending, crashes, originals.

#![expect(clippy::string_slice, reason = "names here are made of hex digits")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::id::ImageId;
use hearth_protocol::manifest::PAGE_RECORDS;
use hearth_protocol::words::ContentKind;

use super::*;

static GO: AtomicBool = AtomicBool::new(false);
const NONE: [u32; 0] = [];

/// Raw bytes of chunk `n`: 8 KiB, half of the chunks pack well.
fn raw(n: u32) -> Vec<u8> {
    if n.is_multiple_of(2) { n.to_le_bytes().repeat(2048) } else { noise(n) }
}

fn noise(n: u32) -> Vec<u8> {
    let mut out = vec![0; 8192];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Stages a content of `n` chunks.
fn staged(folder: &Path, name: &str, n: u32) -> Staged {
    let mut writer = ObjectWriter::create(&folder.join(name), ContentKind::Disk).unwrap();
    let mut packer = Packer::new().unwrap();
    for chunk in 0..n {
        let (raw, mut stored) = (raw(chunk), Vec::new());
        let encoding = packer.pack(&raw, &mut stored).unwrap();
        let packed = PackedChunk {
            offset: u64::from(chunk) * 12288,
            raw_len: 8192,
            digest: ChunkDigest::of(&raw),
            stored_len: u32::try_from(stored.len()).unwrap(),
            encoding,
        };
        writer.push(&[packed], &stored).unwrap();
    }
    writer.finish(u64::from(n.max(1)) * 12288).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
    store: ContentStore,
    content: ContentId,
}

impl Place {
    fn new(n: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = ContentStore::new(folder.path()).unwrap();
        let staged = staged(folder.path(), "staging", n);
        let content = staged.root().content_id();
        assert_eq!(store.publish(staged, &GO).unwrap(), Published::New);
        assert!(!folder.path().join("staging").exists());
        Self { folder, store, content }
    }

    fn file(&self, suffix: &str) -> PathBuf {
        let id = self.content.to_string();
        self.folder.path().join("objects").join(&id[..2]).join(format!("{id}{suffix}"))
    }

    fn files(&self) -> Vec<String> {
        let folder = self.file("");
        let mut names: Vec<String> = fs::read_dir(folder.parent().unwrap())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap()[64..].to_owned())
            .collect();
        names.sort();
        names
    }

    fn flip(&self, suffix: &str, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(self.file(suffix)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        self.store.forget(self.content);
    }

    fn bad(&self) -> Vec<u32> {
        self.store.open(self.content).unwrap().verify_all(2, &GO, &|_| ()).unwrap()
    }

    #[track_caller]
    fn damaged(&self, part: &str) {
        let result = self.store.open(self.content);
        assert!(matches!(&result, Err(ContentError::Damaged { part: p, .. }) if *p == part), "{result:?}");
    }
}

#[test]
fn a_published_content_is_read_as_it_was_written() {
    let n = PAGE_RECORDS + 10;
    let place = Place::new(n);
    let object = place.store.open(place.content).unwrap();
    assert_eq!(object.root().n_chunks(), n);
    assert_eq!(ContentId::of(&object.manifest_root()), place.content);
    let pages = [object.manifest_page(0).unwrap(), object.manifest_page(1).unwrap()];
    let mut walk = hearth_protocol::manifest::ManifestWalk::new(object.root());
    pages.iter().for_each(|page| assert!(!walk.step(page).unwrap().records().is_empty()));
    walk.finish().unwrap();
    assert!(matches!(object.manifest_page(2), Err(ContentError::Range { .. })));

    // Across the page boundary, in one run.
    let first = PAGE_RECORDS - 5;
    let (records, run) = (object.chunk_range(first, 10).unwrap(), object.read_stored(first, 10).unwrap());
    let mut rest = run.bytes.clone();
    let mut unpacker = Unpacker::new().unwrap();
    for (stored, record) in run.chunks.iter().zip(&records) {
        let mut out = Vec::new();
        let bytes = rest.split_to(stored.stored_len as usize);
        assert!(unpacker.unpack(stored.encoding, &bytes, record.raw_len, &mut out));
        assert!(out == raw(stored.chunk) && record.digest == ChunkDigest::of(&out));
    }
    assert!(rest.is_empty());
    assert_eq!(object.pieces().unwrap().piece_of(n - 1), Some(object.pieces().unwrap().len() - 1));
    assert_eq!(place.bad(), NONE);
    assert_eq!(place.store.list().unwrap(), [place.content]);
}

#[test]
fn chunks_that_do_not_exist_and_too_many_at_once_are_refused() {
    let place = Place::new(5000);
    let object = place.store.open(place.content).unwrap();
    for (first, n) in [(5000, 1), (4999, 2), (0, 0), (u32::MAX, 1), (u32::MAX, u32::MAX), (0, 2049)] {
        assert!(matches!(object.read_stored(first, n), Err(ContentError::Range { .. })), "{first} {n}");
        assert!(matches!(object.chunk_range(first, n), Err(ContentError::Range { .. })), "{first} {n}");
    }
    // 2,048 chunks are allowed, but not more bytes than a piece has.
    assert!(matches!(object.read_stored(0, 2048), Err(ContentError::Range { .. })));
}

#[test]
fn equal_bytes_imported_twice_are_one_object() {
    let place = Place::new(100);
    let before = fs::metadata(place.file("")).unwrap().modified().unwrap();
    let again = staged(place.folder.path(), "again", 100);
    assert_eq!(place.store.publish(again, &GO).unwrap(), Published::Reused);
    assert!(!place.folder.path().join("again").exists());
    assert_eq!(fs::metadata(place.file("")).unwrap().modified().unwrap(), before);
    assert_eq!(place.files(), ["", ".index", ".manifest"]);
}

#[test]
fn a_flipped_byte_is_found_named_and_mended() {
    let place = Place::new(50);
    let object = place.store.open(place.content).unwrap();
    let skip: u64 = object.read_stored(0, 7).unwrap().bytes.len() as u64;
    place.flip("", skip + 100);
    assert_eq!(place.bad(), [7]);
    assert!(!place.store.open(place.content).unwrap().verify_chunk(7).unwrap());
    assert!(place.store.open(place.content).unwrap().verify_chunk(8).unwrap());
    let wrong = place.store.heal_chunks(place.content, &[(7, Bytes::from(raw(8)))]);
    assert!(matches!(wrong, Err(ContentError::WrongBytes { chunk: 7, .. })), "{wrong:?}");
    place.store.heal_chunks(place.content, &[(7, Bytes::from(raw(7)))]).unwrap();
    assert_eq!(place.bad(), NONE);
    // The chunk has moved: a run over it is still one answer.
    let run = place.store.open(place.content).unwrap().read_stored(5, 5).unwrap();
    assert_eq!(run.chunks.len(), 5);
    assert_eq!(run.chunks.iter().map(|chunk| chunk.stored_len as usize).sum::<usize>(), run.bytes.len());
    // Who had it open before goes on reading the old bytes.
    assert!(!object.verify_chunk(7).unwrap());
    assert_eq!(place.files(), ["", ".index", ".manifest"]);
    ContentStore::new(place.folder.path()).unwrap();
    assert_eq!(place.bad(), NONE);
}

#[test]
fn damaged_parts_are_named_and_an_import_of_the_same_bytes_replaces_them() {
    type Harm = fn(&Place);
    let harms: [(&str, Harm); 6] = [
        ("index", |place| place.flip(".index", 120)),
        ("index", |place| fs::write(place.file(".index"), b"").unwrap()),
        ("manifest", |place| {
            place.flip(".manifest", fs::metadata(place.file(".manifest")).unwrap().len() - 30)
        }),
        ("manifest", |place| fs::remove_file(place.file(".manifest")).unwrap()),
        ("object", |place| fs::remove_file(place.file("")).unwrap()),
        ("object", |place| OpenOptions::new().write(true).open(place.file("")).unwrap().set_len(9).unwrap()),
    ];
    for (part, harm) in harms {
        let place = Place::new(60);
        harm(&place);
        place.store.forget(place.content);
        place.damaged(part);
        // A restart keeps what may serve for mending.
        ContentStore::new(place.folder.path()).unwrap();
        place.damaged(part);
        let again = staged(place.folder.path(), "again", 60);
        assert_eq!(place.store.publish(again, &GO).unwrap(), Published::Replaced);
        assert_eq!(place.bad(), NONE);
        assert_eq!(place.files().len(), 3, "{:?}", place.files());
        ContentStore::new(place.folder.path()).unwrap();
        assert_eq!(place.bad(), NONE);
    }
}

#[test]
fn a_damaged_chunk_is_replaced_by_an_import_of_the_same_bytes() {
    let place = Place::new(60);
    place.flip("", 3);
    let again = staged(place.folder.path(), "again", 60);
    assert_eq!(place.store.publish(again, &GO).unwrap(), Published::Replaced);
    assert_eq!(
        (place.bad(), place.files()),
        (vec![], vec![".g1".to_owned(), ".index".into(), ".manifest".into()])
    );
}

#[test]
fn a_damaged_page_is_found_when_it_is_read() {
    let place = Place::new(60);
    place.flip(".manifest", 50);
    let object = place.store.open(place.content).unwrap();
    assert!(matches!(object.manifest_page(0), Err(ContentError::Damaged { part: "manifest", .. })));
    assert!(matches!(
        object.verify_all(2, &GO, &|_| ()),
        Err(ContentError::Damaged { part: "manifest", .. })
    ));
}

#[test]
fn what_a_crash_leaves_is_removed_and_what_counts_stays() {
    let place = Place::new(60);
    let other = ContentId::of(b"another");
    let shard = place.folder.path().join("objects").join(&other.to_string()[..2]);
    fs::create_dir_all(&shard).unwrap();
    for suffix in ["", ".manifest", ".g3", ".index.new"] {
        fs::write(shard.join(format!("{other}{suffix}")), b"half").unwrap();
    }
    for suffix in [".g1", ".index.new"] {
        fs::write(place.file(suffix), b"half").unwrap();
    }
    fs::write(shard.join("README"), b"a person's").unwrap();
    let store = ContentStore::new(place.folder.path()).unwrap();
    let mut left: Vec<_> = fs::read_dir(&shard).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.retain(|name| !name.to_str().unwrap().starts_with(&place.content.to_string()));
    assert_eq!(left, ["README"]);
    assert_eq!((place.files().len(), place.bad()), (3, vec![]));
    assert!(store.contains(place.content) && !store.contains(other));
}

/// Gives the parts of a content of [`raw`] chunks; the chunk `bad` is another one.
struct Agent(std::sync::Arc<ContentObject>, Option<u32>);

impl ContentSource for Agent {
    fn root(&mut self) -> Result<Bytes, ContentError> {
        Ok(self.0.manifest_root())
    }
    fn page(&mut self, index: u32) -> Result<Bytes, ContentError> {
        self.0.manifest_page(index)
    }
    fn chunk(
        &mut self,
        index: u32,
        _: &hearth_protocol::manifest::ChunkRecord,
    ) -> Result<Bytes, ContentError> {
        Ok(raw(if self.1 == Some(index) { index + 1 } else { index }).into())
    }
}

#[test]
fn a_content_of_which_nothing_is_left_is_made_again_from_an_agent() {
    let agent = Place::new(PAGE_RECORDS + 3);
    let object = agent.store.open(agent.content).unwrap();
    let place = Place::new(1);
    let staging = place.folder.path().join("again");
    let staged = restage(agent.content, &mut Agent(object.clone(), None), &staging).unwrap();
    assert_eq!(place.store.publish(staged, &GO).unwrap(), Published::New);
    let again = place.store.open(agent.content).unwrap();
    assert_eq!(again.verify_all(2, &GO, &|_| ()).unwrap(), NONE);
    assert_eq!(again.root(), object.root());

    let result = restage(agent.content, &mut Agent(object.clone(), Some(7)), &staging);
    assert!(matches!(result, Err(ContentError::WrongBytes { chunk: 7, .. })), "{result:?}");
    let result = restage(place.content, &mut Agent(object, None), &staging);
    assert!(matches!(result, Err(ContentError::Manifest(_))), "{result:?}");
    assert!(!staging.exists());
}

#[test]
fn a_removed_content_is_gone_with_all_its_files() {
    let place = Place::new(60);
    let object = place.store.open(place.content).unwrap();
    place.store.remove(place.content).unwrap();
    place.store.remove(place.content).unwrap();
    assert!(matches!(place.store.open(place.content), Err(ContentError::NotFound { .. })));
    assert_eq!(place.files(), [""; 0]);
    assert!(object.verify_chunk(0).unwrap(), "who has it open can go on");
}

#[test]
fn an_empty_content_can_be_stored() {
    let place = Place::new(0);
    let object = place.store.open(place.content).unwrap();
    assert_eq!((object.root().n_chunks(), object.stored_bytes(), place.bad()), (0, 0, vec![]));
    assert!(object.pieces().unwrap().is_empty());
}

#[test]
fn an_original_has_the_checksums_of_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let originals = Originals::new(folder.path()).unwrap();
    let image = ImageId::from_bytes([7; 16]);
    let mut writer = originals.create(image).unwrap();
    for part in ["a", "", "bc"] {
        writer.write(Bytes::from(part)).unwrap();
    }
    assert!(originals.open(image).unwrap().is_none());
    let sums = writer.finish().unwrap();
    assert_eq!(sums.size_bytes, 3);
    assert_eq!(sums.md5, "900150983cd24fb0d6963f7d28e17f72");
    assert_eq!(sums.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert!(sums.sha512.starts_with("ddaf35a193617abacc417349ae204131"), "{sums:?}");
    assert_eq!(sums.blake3, blake3::hash(b"abc").to_hex().as_str());
    let original = originals.open(image).unwrap().unwrap();
    assert_eq!(original.sums().unwrap(), sums);
    assert_eq!(original.read_range(1, 100).unwrap(), "bc");
    assert_eq!(original.read_range(3, 1).unwrap(), "");
    assert_eq!(original.read_range(u64::MAX, 1).unwrap(), "");
    assert_eq!(originals.list().unwrap(), [image]);
    originals.remove(image).unwrap();
    originals.remove(image).unwrap();
    assert!(originals.open(image).unwrap().is_none());
}

/// Whatever the sender's pieces, the file reads as the bytes that came and has the holes that it can have.
#[test]
fn zeros_of_an_original_are_holes_and_read_as_zeros() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let originals = Originals::new(folder.path()).unwrap();
    let image = ImageId::from_bytes([7; 16]);
    let mut bytes = vec![0; (4 << 20) + 4097];
    for at in [0, 5000, (1 << 20) - 1, 2 << 20, (3 << 20) + 4095, (4 << 20) + 4096] {
        bytes[at] = 1;
    }
    for step in [1 << 20, 4096, 10_000, 4_095, 7 << 20] {
        let mut writer = originals.create(image).unwrap();
        for piece in bytes.chunks(step) {
            writer.write(Bytes::copy_from_slice(piece)).unwrap();
        }
        let sums = writer.finish().unwrap();
        assert_eq!(sums.blake3, blake3::hash(&bytes).to_hex().as_str());
        let path = originals.path(image);
        assert!(fs::read(&path).unwrap() == bytes, "pieces of {step} bytes");
        let allocated_bytes = fs::metadata(&path).unwrap().blocks() * 512;
        let whole_blocks = step % 4096 == 0 || step > bytes.len();
        assert!(!whole_blocks || allocated_bytes < 1 << 20, "pieces of {step}: {allocated_bytes} bytes");
        assert_eq!(originals.open(image).unwrap().unwrap().sums().unwrap(), sums);
    }
    let mut writer = originals.create(image).unwrap();
    writer.write(Bytes::from(vec![0; 1 << 20])).unwrap();
    assert_eq!(writer.finish().unwrap().size_bytes, 1 << 20);
    assert!(fs::read(originals.path(image)).unwrap() == vec![0; 1 << 20], "zeros alone");
}

#[test]
fn an_interrupted_upload_leaves_no_original() {
    let folder = tempfile::tempdir().unwrap();
    let originals = Originals::new(folder.path()).unwrap();
    let image = ImageId::from_bytes([7; 16]);
    let store = folder.path().join("originals");
    let files = || fs::read_dir(&store).unwrap().count();
    let mut writer = originals.create(image).unwrap();
    writer.write(Bytes::from_static(b"half")).unwrap();
    let other = originals.create(image).unwrap();
    assert_eq!((files(), originals.list().unwrap()), (2, vec![]), "two writers never share a file");
    drop((writer, other));
    assert_eq!(files(), 0);
    fs::write(store.join(format!("{image}.0.part")), b"killed").unwrap();
    let originals = Originals::new(folder.path()).unwrap();
    assert_eq!((files(), originals.list().unwrap()), (0, vec![]));
}
