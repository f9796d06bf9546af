//! Flipped bytes and foreign files: nothing wrong is ever handed out.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use hearth_protocol::message::control::{Hold, ObservedState};
use hearth_protocol::words::{ConsumerKind, EntryStatus, GoneReason};

use super::*;
use crate::store::Scrubbed;

/// Changes a byte although the file is read-only, and leaves the modification time as it was: what a disk does.
fn rot(path: &std::path::Path, offset: u64) {
    let meta = fs::metadata(path).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn i6_a_rotten_chunk_is_never_served_and_the_copy_is_mended() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..100);
    fetch(&store, &content).unwrap();
    store.set_hold(content.content, Hold::Pinned).unwrap();
    let offset = *content.chunks.keys().nth(50).unwrap();
    rot(&object_path(&store, &content), offset + 3);
    let reader = store.reader(content.content).unwrap();
    let mut buffer = Vec::new();
    let record = reader.read_chunk(49, &mut buffer).unwrap();
    assert_eq!(buffer, content.chunks[&record.offset]);
    let error = reader.read_chunk(50, &mut buffer).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { first: 50, .. }) && buffer.is_empty());
    assert!(matches!(reader.read_chunk(100, &mut buffer).unwrap_err(), StoreError::NotFound { .. }));
    drop(reader);
    // The check that follows takes it out, and only the bad chunk is fetched again.
    assert_eq!(store.next_check(), Some(content.content));
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Quarantined);
    assert_eq!(store.entry(content.content).unwrap().state, ObservedState::Present(EntryStatus::Queued));
    let staging = store.begin(content.spec()).unwrap();
    assert_eq!(prepare(&staging, &content).unwrap(), [50]);
    write(&staging, &content, &[50]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
    assert!(!store.inner.layout.quarantined(content.content).exists());
}

#[test]
fn a_rotten_copy_that_nobody_holds_is_lost() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    rot(&object_path(&store, &content), 1 << 20);
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Quarantined);
    assert_eq!(store.gone()[0].reason, GoneReason::Lost);
    assert_eq!(store.entries(), []);
}

#[test]
fn a_rotten_copy_in_use_stays_in_place_and_is_not_handed_out() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let grant = store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap();
    rot(&object_path(&store, &content), 1 << 20);
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::DamagedInUse);
    assert!(object_path(&store, &content).exists());
    let view = store.entry(content.content).unwrap();
    assert!(matches!(view.state, ObservedState::Failed { .. }) && view.path.is_none());
    assert!(store.lease(content.content, ConsumerKind::Vm, "db", false).is_err());
    // The damage is remembered over a restart: no row vouches for the file.
    drop(store);
    let (store, report) = host.open();
    assert_eq!((report.active, report.unverified), (0, 1));
    store.release(grant.lease.lease).unwrap();
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Quarantined);
}

#[test]
fn a_flipped_byte_in_a_manifest_never_makes_a_wrong_file_right() {
    let host = Host::new();
    let content = Content::disk(0..30);
    let sizes = {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        fs::metadata(store.inner.layout.manifest(content.content)).unwrap().len()
    };
    for step in 0..16 {
        let (store, _) = host.open();
        let manifest = store.inner.layout.manifest(content.content);
        let whole = fs::read(&manifest).unwrap();
        drop(store);
        rot(&manifest, sizes * step / 16);
        let (store, report) = host.open();
        match store.entry(content.content) {
            // A page is damaged: found by the check, and until then no chunk is served by it.
            Some(_) => {
                assert_eq!(report.quarantined, 0);
                let mut buffer = Vec::new();
                let served =
                    store.reader(content.content).and_then(|reader| reader.read_chunk(0, &mut buffer));
                let checked = store.scrub_one(content.content).unwrap();
                // A few bytes of the file's header carry no meaning.
                assert_eq!(served.is_ok(), checked == Scrubbed::Good, "step {step}");
            }
            None => assert_eq!(report.quarantined, 1, "step {step}"),
        }
        let gone = store.entry(content.content).is_none();
        if gone {
            fetch(&store, &content).unwrap();
        } else {
            fs::write(&manifest, whole).unwrap();
        }
        assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
    }
}

#[test]
fn i3_an_index_row_is_believed_only_for_the_very_file_that_was_hashed() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 4] = [
        ("another inode", |path| {
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o440)).unwrap();
        }),
        ("another time", |path| {
            File::options().write(true).open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("another mode", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap()),
        ("another size", |path| File::options().write(true).open(path).unwrap().set_len(5 << 20).unwrap()),
    ];
    for (what, change) in changes {
        let host = Host::new();
        let content = Content::disk(0..10);
        let path = {
            let (store, _) = host.open();
            fetch(&store, &content).unwrap();
            object_path(&store, &content)
        };
        change(&path);
        let (store, report) = host.open();
        assert_eq!((report.active, report.unverified), (0, 1), "{what}");
        let view = store.entry(content.content).unwrap();
        assert_eq!((view.state, view.path), (ObservedState::Present(EntryStatus::Verifying), None), "{what}");
        let expected = if what == "another size" { Scrubbed::Quarantined } else { Scrubbed::Good };
        assert_eq!(store.scrub_one(content.content).unwrap(), expected, "{what}");
        if expected == Scrubbed::Good {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o440, "{what}");
        }
    }
}

#[test]
fn a_flipped_byte_in_sled_gives_no_wrong_answer() {
    for step in 0..16 {
        let host = Host::new();
        let contents = [0, 100, 200].map(|n| Content::disk(n..n + 5));
        {
            let (store, _) = host.open();
            contents.iter().for_each(|content| fetch(&store, content).unwrap());
            store.remove(contents[2].content, crate::store::RemoveMode::Delete).unwrap();
        }
        let log = host.config.dir.join("db/db");
        let whole = fs::read(&log).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let mut flipped = whole.clone();
        flipped[used * step / 16] ^= 0x55;
        fs::write(&log, flipped).unwrap();
        let (store, report) = host.open();
        assert_eq!(report.active + report.unverified, 2, "step {step}: files are the truth");
        for view in store.entries() {
            let content = contents.iter().find(|content| content.content == view.content).unwrap();
            if !view.is_active() {
                assert_eq!(store.scrub_one(view.content).unwrap(), Scrubbed::Good);
            }
            assert_eq!(fs::read(object_path(&store, content)).unwrap(), content.raw(), "step {step}");
        }
        assert!(store.entry(contents[2].content).is_none());
        drop(store);
        let (_, report) = host.open();
        assert_eq!((report.active, report.index_rebuilt), (2, None), "step {step}: mended for good");
    }
}

#[test]
fn a_lost_index_costs_a_hash_and_nothing_else() {
    let host = Host::new();
    let content = Content::disk(0..10);
    {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        store.set_hold(content.content, Hold::Pinned).unwrap();
        store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap();
    }
    fs::remove_dir_all(host.config.dir.join("db")).unwrap();
    let (store, report) = host.open();
    assert_eq!((report.unverified, report.leases), (1, 1));
    assert_eq!(store.hold_of(content.content), Hold::Pinned);
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Good);
    drop(store);
    assert_eq!(host.open().1.active, 1);
}

#[test]
fn lost_holds_hold_everything_for_a_day() {
    let host = Host::new();
    let content = Content::disk(0..10);
    {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        store.set_hold(content.content, Hold::Pinned).unwrap();
    }
    rot(&host.config.dir.join("HOLDS"), 5);
    let (store, report) = host.open();
    assert!(report.holds_lost);
    assert!(matches!(store.hold_of(content.content), Hold::Until(_)));
    assert!(store.remove(content.content, crate::store::RemoveMode::Evict).is_err());
}

#[test]
fn an_unreadable_lease_file_protects_everything() {
    let host = Host::new();
    let content = Content::disk(0..10);
    {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        let grant = store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap();
        rot(&store.inner.layout.lease(grant.lease.lease), 0);
    }
    let (store, _) = host.open();
    let error = store.remove(content.content, crate::store::RemoveMode::Delete).unwrap_err();
    assert!(error.chain().contains("unreadable lease file"), "{}", error.chain());
}

#[test]
fn objects_without_manifest_and_foreign_files_go_to_quarantine() {
    let host = Host::new();
    let content = Content::disk(0..10);
    {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        fs::remove_file(store.inner.layout.manifest(content.content)).unwrap();
        fs::write(store.inner.layout.object_dir(content.content).join("README"), "hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", object_path(&store, &Content::disk(5..6)))
            .unwrap_or_default();
    }
    let (store, report) = host.open();
    assert!(report.quarantined >= 2, "{report:?}");
    assert_eq!(store.entries(), []);
    assert!(report.lost.is_empty(), "it is in quarantine, not lost");
    fetch(&store, &content).unwrap();
}

#[test]
fn an_object_that_vanished_is_reported_lost_once() {
    let host = Host::new();
    let content = Content::disk(0..10);
    {
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        fs::remove_file(object_path(&store, &content)).unwrap();
    }
    let (store, report) = host.open();
    assert_eq!(report.lost, [content.content]);
    assert_eq!(store.gone()[0].reason, GoneReason::Lost);
    drop(store);
    assert_eq!(host.open().1.lost, []);
}

#[test]
fn a_flipped_byte_in_a_journal_costs_at_most_the_resume() {
    let content = Content::disk(0..20);
    for step in 0..12 {
        let host = Host::new();
        let journal = {
            let (store, _) = host.open();
            let staging = store.begin(content.spec()).unwrap();
            let need = prepare(&staging, &content).unwrap();
            write(&staging, &content, &need[..10]).unwrap();
            staging.checkpoint().unwrap();
            store.inner.layout.journal(content.content)
        };
        let size = fs::metadata(&journal).unwrap().len();
        rot(&journal, size * step / 12);
        let (store, _) = host.open();
        let staging = store.begin(content.spec()).unwrap();
        let need = prepare(&staging, &content).unwrap();
        assert!(need.len() == 10 || need.len() == 20, "step {step}: {}", need.len());
        write(&staging, &content, &need).unwrap();
        staging.finish(&no_progress).unwrap();
        assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
    }
}

#[test]
fn two_agents_on_one_folder_are_refused() {
    let host = Host::new();
    let (_store, _) = host.open();
    let error = Store::open(&host.config).unwrap_err();
    assert!(matches!(error, StoreError::FolderInUse { .. }));
    assert!(error.to_string().contains("another agent uses the cache folder"));
}

#[test]
fn a_folder_of_another_format_is_left_alone() {
    let host = Host::new();
    drop(host.open());
    fs::write(host.config.dir.join("FORMAT"), "hearth-cache 99\n").unwrap();
    assert!(matches!(Store::open(&host.config).unwrap_err(), StoreError::Format { .. }));
}
