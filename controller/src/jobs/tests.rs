//! Imports, sweep and mending on a real database and folder, each step by hand.

mod order;

use bytes::Bytes;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::KeyId;
use hearth_protocol::words::{ContentKind, ImageKind};

use super::*;
use crate::db::images::{FixedFacts, ImageFacts, NewImage};
use crate::db::keys::NewKey;
use crate::ingest::convert::Converter;
use crate::ingest::sandbox::SandboxMode;

/// A controller's stores in a folder, and a runner without workers.
pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) db: Db,
    pub(super) ingest: Arc<Ingest>,
    pub(super) closing: CancellationToken,
    pub(super) jobs: Arc<Jobs>,
}

impl World {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&format!("sqlite://{}", folder.path().join("db").display())).await.unwrap();
        let converter = Converter {
            controller: "/bin/false".into(),
            qemu_img: "/bin/false".into(),
            mode: SandboxMode::BestEffort,
        };
        let ingest = Arc::new(Ingest::new(folder.path(), converter, 1).unwrap());
        let closing = CancellationToken::new();
        let jobs = Jobs::new(db.clone(), Arc::clone(&ingest), true, Vec::new(), closing.clone());
        Self { folder, db, ingest, closing, jobs }
    }

    /// A key; what is sealed in it was made for `sealed_for`.
    pub(super) async fn key(&self, keys: &KeyStore, id: KeyId, sealed_for: KeyId) -> KeyId {
        let (domain, project) = self.db.default_tenants().await.unwrap();
        let sealed = keys.make(sealed_for, project).unwrap();
        let new = NewKey { id, name: id.to_string(), domain, project, sealed };
        self.db.create_key(&new, &op()).await.unwrap();
        id
    }

    /// An image whose file is here, and its job as a worker gets it.
    pub(super) async fn uploaded(&self, name: &str, bytes: &[u8], key: Option<KeyId>) -> (Image, Job) {
        let new = new_image(&self.db, name, key).await;
        self.db.create_image(&new, &op()).await.unwrap();
        self.db.start_upload(new.id).await.unwrap();
        let mut writer = self.ingest.originals.create(new.id).unwrap();
        writer.write(Bytes::copy_from_slice(bytes)).unwrap();
        let sums = writer.finish().unwrap();
        let original = Original { bytes: sums.size_bytes, checksums: sums.into() };
        self.db.accept_upload(new.id, &original, (new_id(), "{}"), &op()).await.unwrap();
        let job = self.db.claim_job().await.unwrap().unwrap();
        assert_eq!(job.image, new.id);
        (self.image(new.id).await, job)
    }

    pub(super) async fn image(&self, id: ImageId) -> Image {
        self.db.image(id).await.unwrap().unwrap()
    }

    /// Imports in the plain, as far as to the published content.
    pub(super) fn publish(&self, image: &Image) -> Imported {
        let spec = ImportSpec {
            image: image.id,
            declared: None,
            expected: Checksums::default(),
            disk_bytes: None,
            sums: known_sums(image),
        };
        self.ingest.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ()).unwrap()
    }

    pub(super) fn has_original(&self, image: &Image) -> bool {
        self.ingest.originals.open(image.id).unwrap().is_some()
    }
}

pub(super) fn op() -> Draft {
    Draft::system("test")
}

/// Bytes that nothing packs.
pub(super) fn noise(n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) async fn new_image(db: &Db, name: &str, key: Option<KeyId>) -> NewImage {
    let (domain, project) = db.default_tenants().await.unwrap();
    NewImage {
        id: new_id(),
        kind: ImageKind::Disk,
        format: None,
        container_format: "bare".to_owned(),
        domain,
        project,
        expected: Default::default(),
        fixed: FixedFacts { key, ..FixedFacts::default() },
        facts: ImageFacts::named(name),
    }
}

/// An image that went through the catalog and was deleted: its content is left.
async fn unused_content(db: &Db) {
    let new = new_image(db, "gone", None).await;
    let (id, job) = (new.id, new_id());
    db.create_image(&new, &op()).await.unwrap();
    db.start_upload(id).await.unwrap();
    let original = Original { bytes: 1, checksums: Default::default() };
    db.accept_upload(id, &original, (job, "{}"), &op()).await.unwrap();
    let content = Content {
        id: ContentId::from_bytes([1; 32]),
        kind: ContentKind::Disk,
        raw_bytes: 1,
        data_bytes: 1,
        stored_bytes: 1,
        n_chunks: 1,
        damaged: false,
    };
    let recorded =
        Recorded { content, format: DiskFormat::Raw, original_kept: false, variants: Vec::new(), scan: None };
    db.finish_import(id, job, &recorded, &op()).await.unwrap();
    db.delete_image(id, None, &op()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_waits_for_no_import_and_keeps_none_waiting() {
    let World { folder: _folder, db, jobs, .. } = World::new().await;
    unused_content(&db).await;
    let import = jobs.files.read().await;
    let now = tokio::time::timeout(Duration::from_secs(20), jobs.sweep()).await;
    assert_eq!(now.expect("it does not wait").unwrap(), 0);
    let another = jobs.files.try_read().expect("nobody waits before it");
    drop((import, another));
    assert_eq!(jobs.sweep().await.unwrap(), 1);
    db.close().await;
}

/// An image is deleted at the last moment of its import; the content stays for another import of the same bytes that found it.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_not_recorded_takes_nothing_from_another() {
    let world = World::new().await;
    let (jobs, bytes) = (&world.jobs, noise(300_000));
    let (first, first_job) = world.uploaded("first", &bytes, None).await;
    let (second, second_job) = world.uploaded("second", &bytes, None).await;
    let together = jobs.files.read().await;
    let (gone, found) = (world.publish(&first), world.publish(&second));
    assert_eq!(gone.content, found.content);
    world.db.cancel_image(first.id, &op()).await.unwrap();
    assert!(!jobs.imported(&first_job, &first, &gone).await.unwrap());
    assert_eq!(jobs.sweep().await.unwrap(), 0, "an import runs");
    assert!(jobs.imported(&second_job, &second, &found).await.unwrap());
    drop(together);
    jobs.sweep().await.unwrap();
    assert_eq!(world.image(second.id).await.status, ImageStatus::Active);
    world.ingest.content.open(found.content).expect("an active image has its files");
    assert_eq!(world.ingest.content.undecided().unwrap(), []);
    // One that nobody else wants goes.
    let (third, third_job) = world.uploaded("third", &noise(200_000), None).await;
    let alone = world.publish(&third);
    world.db.cancel_image(third.id, &op()).await.unwrap();
    assert!(!jobs.imported(&third_job, &third, &alone).await.unwrap());
    assert_eq!(jobs.sweep().await.unwrap(), 1);
    assert!(!world.ingest.content.contains(alone.content));
    world.db.close().await;
}

/// A database that stops answering in the middle of an import leaves no import that seems to run.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_breaks_off_does_not_seem_to_run() {
    let world = World::new().await;
    let keys = KeyStore::new(Some(crate::keys::master::Master::from_bytes([1; 32])), None);
    let id = new_id();
    let key = world.key(&keys, id, id).await;
    let (image, job) = world.uploaded("secret", &noise(100_000), Some(key)).await;
    let url = format!("sqlite://{}", world.folder.path().join("db").display());
    let broken = sqlx::SqlitePool::connect(&url).await.unwrap();
    sqlx::query("ALTER TABLE encrypted_import RENAME COLUMN made TO unmade").execute(&broken).await.unwrap();
    broken.close().await;
    assert!(world.jobs.import(&job).await.is_err());
    assert!(world.jobs.running.lock().unwrap().is_empty());
    assert!(world.has_original(&image));
    world.db.close().await;
}

/// A disk that goes bad reports many chunks of one content: each report makes all of it again, and none disturbs another.
#[tokio::test(flavor = "multi_thread")]
async fn contents_are_made_again_one_after_the_other() {
    let world = World::new().await;
    let (image, job) = world.uploaded("disk", &noise(8 << 20), None).await;
    let imported = world.publish(&image);
    assert!(world.jobs.imported(&job, &image, &imported).await.unwrap());
    let content = imported.content;
    for _ in 0..3 {
        let calls = (0..8).map(|_| world.jobs.remake_now(content));
        let made = futures::future::join_all(calls).await;
        assert!(made.iter().all(|made| matches!(made, Ok(true))), "{made:?}");
        let object = world.ingest.content.open(content).unwrap();
        assert!(object.verify_all(1, &AtomicBool::new(false), &|_| ()).unwrap().is_empty());
    }
    // Of those that nobody waits for, one is enough.
    let busy = world.jobs.files.write().await;
    for _ in 0..8 {
        world.jobs.remake(content);
    }
    assert_eq!(world.jobs.remaking.waits(), 1);
    drop(busy);
    while world.jobs.remaking.waits() > 0 {
        tokio::task::yield_now().await;
    }
    world.db.close().await;
}
