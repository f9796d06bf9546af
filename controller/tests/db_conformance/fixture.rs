//! Records that the tests start from, made through the store's own calls.

use std::collections::BTreeMap;

use hearth_controller::clock;
use hearth_controller::db::contents::Content;
use hearth_controller::db::enrolment::{Certificate, EnrolError, Enrolment};
use hearth_controller::db::image_changes::{Imported, Original};
use hearth_controller::db::images::{Image, ImageFacts, NewImage};
use hearth_controller::db::join_tokens::JoinToken;
use hearth_controller::db::locations::{Location, SessionFacts};
use hearth_controller::db::operations::Draft;
use hearth_controller::db::{Db, new_id};
use hearth_protocol::api::image::Checksums;
use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::id::{BootId, DomainId, ImageId, LocationId, ProjectId};
use hearth_protocol::message::control::{ObservedEntry, ObservedState};
use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::{Architecture, ContentKind, DiskFormat, EntryStatus, ImageKind};

pub(crate) const MINUTE_US: i64 = 60_000_000;

pub(crate) fn op(action: &str) -> Draft {
    Draft::system(action)
}

pub(crate) fn facts(name: &str) -> ImageFacts {
    ImageFacts {
        architecture: Some(Architecture::X8664),
        description: "0".to_owned(),
        properties: BTreeMap::from([("hw_disk_bus".to_owned(), "virtio".to_owned())]),
        ..ImageFacts::named(name)
    }
}

/// A queued image of the default project.
pub(crate) async fn queued_image(db: &Db, name: &str) -> ImageId {
    let (domain, project) = db.default_tenants().await.unwrap();
    image_of(db, domain, project, name).await
}

/// A queued image of a project.
pub(crate) async fn image_of(db: &Db, domain: DomainId, project: ProjectId, name: &str) -> ImageId {
    let new = new_image(domain, project, name);
    db.create_image(&new, &op("image.create")).await.unwrap();
    new.id
}

pub(crate) fn new_image(domain: DomainId, project: ProjectId, name: &str) -> NewImage {
    NewImage {
        id: new_id(),
        kind: ImageKind::Disk,
        format: None,
        container_format: "bare".to_owned(),
        domain,
        project,
        expected: Checksums::default(),
        fixed: Default::default(),
        facts: facts(name),
    }
}

/// A new project of a domain.
pub(crate) async fn project_in(db: &Db, domain: DomainId, name: &str) -> ProjectId {
    let id = new_id();
    db.create_project(id, domain, name, &op("project.create")).await.unwrap();
    id
}

pub(crate) fn original() -> Original {
    let checksums = Checksums { sha256: Some("ab".repeat(32)), ..Checksums::default() };
    Original { bytes: 1000, checksums }
}

pub(crate) fn content_named(name: &str) -> Content {
    Content {
        id: ContentId::of(name.as_bytes()),
        kind: ContentKind::Disk,
        raw_bytes: 1 << 30,
        data_bytes: 1 << 20,
        stored_bytes: 1 << 19,
        n_chunks: 16,
        damaged: false,
    }
}

/// An active image whose content is that of `name`.
pub(crate) async fn active_image(db: &Db, name: &str) -> Image {
    let id = queued_image(db, name).await;
    db.start_upload(id).await.unwrap();
    let job = new_id();
    db.accept_upload(id, &original(), (job, "{}"), &op("image.upload")).await.unwrap();
    let imported = Imported {
        content: content_named(name),
        format: DiskFormat::Qcow2,
        original_kept: true,
        variants: Vec::new(),
        scan: None,
    };
    db.finish_import(id, job, &imported, &op("image.import")).await.unwrap();
    db.image(id).await.unwrap().unwrap()
}

/// A join token with `uses` uses; returns the hash of its secret.
pub(crate) async fn join_token(db: &Db, uses: u32, name_glob: &str, expires_us: i64) -> String {
    let id = new_id();
    let presets =
        BTreeMap::from([("zone", "z1"), ("label.gpu", "yes")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let (name_glob, created_by) = (name_glob.to_owned(), "test".to_owned());
    let token = JoinToken {
        id,
        uses_left: uses,
        expires_us,
        name_glob,
        presets,
        revoked_us: None,
        created_by,
        created_us: 0,
    };
    let hash = format!("hash of {id:?}");
    db.create_join_token(&token, &hash, &op("join_token.create")).await.unwrap();
    hash
}

pub(crate) async fn enrol(db: &Db, secret_hash: &str, name: &str, key: &str) -> Result<Location, EnrolError> {
    let facts = LocationFacts { name: name.to_owned(), zone: "said".to_owned(), ..LocationFacts::default() };
    let agent = AgentId::of(key.as_bytes());
    let enrolment = Enrolment { secret_hash: secret_hash.to_owned(), agent, facts };
    let sign = |location: &Location| {
        Ok((
            Certificate { serial: format!("serial of {}", location.name), not_after_us: MINUTE_US },
            location.id,
        ))
    };
    let (location, signed_for) = db.enrol(&enrolment, sign).await?;
    assert_eq!(location.id, signed_for);
    Ok(location)
}

/// Locations `n-0` … that have just been seen.
pub(crate) async fn locations(db: &Db, n: u32) -> Vec<LocationId> {
    let token = join_token(db, n, "", clock::unix_us() + MINUTE_US).await;
    let mut ids = Vec::new();
    for i in 0..n {
        let name = format!("n-{i:03}");
        let location = enrol(db, &token, &name, &name).await.unwrap();
        let boot = BootId::from_bytes([7; 16]);
        let session = SessionFacts { boot, advertised: vec!["10.0.0.1:7444".to_owned()], nic_mbps: 10_000 };
        db.begin_session(location.id, &session).await.unwrap();
        ids.push(location.id);
    }
    ids
}

pub(crate) fn observed(content: ContentId, status: EntryStatus, done_bytes: u64) -> ObservedEntry {
    ObservedEntry {
        content,
        state: ObservedState::Present(status),
        done_bytes,
        data_bytes: 1 << 20,
        moved_bytes: done_bytes / 2,
        reused_bytes: 0,
        allocated_bytes: done_bytes,
        leases: 0,
        last_used_unix_ms: 0,
    }
}
