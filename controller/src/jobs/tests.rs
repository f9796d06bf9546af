//! The sweep on a real database and folder: it waits for no import and keeps none waiting.

use hearth_protocol::words::{ContentKind, DiskFormat, ImageKind};

use super::*;
use crate::db::images::{ImageFacts, NewImage};
use crate::ingest::convert::Converter;
use crate::ingest::sandbox::SandboxMode;

/// An image that went through the catalog and was deleted: its content is left.
async fn unused_content(db: &Db) {
    let (domain, project) = db.default_tenants().await.unwrap();
    let (id, job, op) = (new_id(), new_id(), || Draft::system("test"));
    let facts = ImageFacts::named("gone");
    let new = NewImage {
        id,
        kind: ImageKind::Disk,
        format: None,
        container_format: "bare".to_owned(),
        domain,
        project,
        expected: Default::default(),
        fixed: Default::default(),
        facts,
    };
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
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&format!("sqlite://{}", folder.path().join("db").display())).await.unwrap();
    let converter = Converter {
        controller: "/bin/false".into(),
        qemu_img: "/bin/false".into(),
        mode: SandboxMode::BestEffort,
    };
    let ingest = Arc::new(Ingest::new(folder.path(), converter, 1).unwrap());
    let jobs = Jobs::new(db.clone(), ingest, true, Vec::new(), CancellationToken::new());
    unused_content(&db).await;
    let import = jobs.files.read().await;
    let now = tokio::time::timeout(Duration::from_secs(20), jobs.sweep()).await;
    assert_eq!(now.expect("it does not wait").unwrap(), 0);
    let another = jobs.files.try_read().expect("nobody waits before it");
    drop((import, another));
    assert_eq!(jobs.sweep().await.unwrap(), 1);
    db.close().await;
}
