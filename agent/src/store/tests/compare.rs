//! Files that change below a running agent: nothing wrong is ever handed out, and nothing in use is touched.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use hearth_protocol::message::control::{Hold, ObservedState};
use hearth_protocol::words::{ConsumerKind, EntryStatus, GoneReason};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::index::Row;
use crate::store::{CompareReport, Scrubbed, maintain};

type Change = fn(&Path);

/// What an operator or a repaired file system may do to an object; each leaves a wrong file or none.
const CHANGES: [(&str, Change); 6] = [
    ("removed", |path| fs::remove_file(path).unwrap()),
    ("replaced", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[(1 << 20) + 7] ^= 1;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o440)).unwrap();
    }),
    ("truncated", |path| File::options().write(true).open(path).unwrap().set_len(1 << 20).unwrap()),
    ("emptied", |path| File::options().write(true).open(path).unwrap().set_len(0).unwrap()),
    ("a folder", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("a link", |path| {
        fs::rename(path, path.with_extension("old")).unwrap();
        std::os::unix::fs::symlink(path.with_extension("old"), path).unwrap();
    }),
];

fn is_active(store: &Store, content: &Content) -> bool {
    store.entry(content.content).is_some_and(|view| view.path.is_some())
}

#[test]
fn an_untouched_cache_compares_equal() {
    let host = Host::new();
    let (store, _) = host.open();
    let contents = [0, 100].map(|n| Content::disk(n..n + 10));
    contents.iter().for_each(|content| fetch(&store, content).unwrap());
    let staging = store.begin(Content::disk(200..210).spec()).unwrap();
    assert_eq!(store.compare().unwrap(), CompareReport::default());
    assert!(contents.iter().all(|content| is_active(&store, content)));
    drop(staging);
}

#[test]
fn a_changed_file_is_not_handed_out_from_the_next_look_on() {
    for (what, change) in CHANGES {
        let host = Host::new();
        let (store, _) = host.open();
        let content = Content::disk(0..10);
        fetch(&store, &content).unwrap();
        change(&object_path(&store, &content));
        // Before any comparison: the look that comes before a path or a lease is given.
        let refused = store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap_err();
        assert!(matches!(refused, StoreError::State { .. }), "{what}: {refused:?}");
        assert!(!is_active(&store, &content) && store.leases().is_empty(), "{what}");
        assert_eq!(store.next_check(), Some(content.content), "{what}");
    }
}

#[test]
fn a_changed_file_that_is_held_is_fetched_again() {
    for (what, change) in CHANGES {
        let host = Host::new();
        let (store, _) = host.open();
        let content = Content::disk(0..10);
        fetch(&store, &content).unwrap();
        store.set_hold(content.content, Hold::Pinned).unwrap();
        change(&object_path(&store, &content));
        let report = store.compare().unwrap();
        assert_eq!(report.rechecked + u32::try_from(report.lost.len()).unwrap(), 1, "{what}: {report:?}");
        assert_eq!(report.quarantined, u32::from(what == "a link"), "{what}: the file of another name");
        assert!(!is_active(&store, &content), "{what}");
        if report.lost.is_empty() {
            assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Quarantined, "{what}");
        }
        let state = store.entry(content.content).unwrap().state;
        assert_eq!(state, ObservedState::Present(EntryStatus::Queued), "{what}");
        fetch(&store, &content).unwrap();
        assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw(), "{what}");
        assert_eq!(store.compare().unwrap(), CompareReport::default(), "{what}: mended for good");
        drop(store);
        assert_eq!(host.open().1.active, 1, "{what}");
    }
}

#[test]
fn a_file_that_vanished_unheld_is_gone_and_a_lease_does_not_keep_nothing() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap();
    fs::remove_file(object_path(&store, &content)).unwrap();
    assert_eq!(store.compare().unwrap().lost, [content.content]);
    assert_eq!(store.entries(), []);
    assert_eq!(store.gone()[0].reason, GoneReason::Lost);
    assert_eq!(store.compare().unwrap(), CompareReport::default());
    // Its lease waits for the new copy.
    fetch(&store, &content).unwrap();
    assert_eq!(store.entry(content.content).unwrap().leases, 1);
}

#[test]
fn a_good_file_in_another_place_of_the_disk_is_hashed_and_stays() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let path = object_path(&store, &content);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    assert_eq!(store.compare().unwrap().rechecked, 1);
    assert!(!is_active(&store, &content));
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::Good);
    assert!(is_active(&store, &content));
    assert_eq!(store.compare().unwrap(), CompareReport::default());
}

#[test]
fn an_extra_file_is_adopted_unhashed_or_put_away() {
    let (donor, host) = (Host::new(), Host::new());
    let (good, bad) = (Content::disk(0..10), Content::disk(20..30));
    let (from, _) = donor.open();
    [&good, &bad].into_iter().for_each(|content| fetch(&from, content).unwrap());
    let (store, _) = host.open();
    for content in [&good, &bad] {
        let layout = &store.inner.layout;
        layout.make_object_dir(content.content).unwrap();
        fs::copy(object_path(&from, content), object_path(&store, content)).unwrap();
        fs::copy(from.inner.layout.manifest(content.content), layout.manifest(content.content)).unwrap();
    }
    fs::set_permissions(object_path(&store, &bad), fs::Permissions::from_mode(0o640)).unwrap();
    File::options().write(true).open(object_path(&store, &bad)).unwrap().set_len(1 << 20).unwrap();
    let unknown = Content::disk(40..50);
    store.inner.layout.make_object_dir(unknown.content).unwrap();
    fs::write(object_path(&store, &unknown), "no manifest").unwrap();
    fs::write(store.inner.layout.objects_dir().join("README"), "hello").unwrap();
    fs::create_dir(store.inner.layout.object_dir(unknown.content).join("folder")).unwrap();
    let report = store.compare().unwrap();
    assert_eq!((report.adopted, report.quarantined, report.rechecked), (2, 3, 0), "{report:?}");
    assert!(!is_active(&store, &good) && !is_active(&store, &bad));
    assert_eq!(store.scrub_one(good.content).unwrap(), Scrubbed::Good);
    assert_eq!(store.scrub_one(bad.content).unwrap(), Scrubbed::Quarantined);
    assert_eq!(fs::read(object_path(&store, &good)).unwrap(), good.raw());
    assert_eq!(store.compare().unwrap(), CompareReport::default());
    // A folder in quarantine can be deleted, too.
    store.purge_quarantine(Duration::ZERO).unwrap();
    assert_eq!(fs::read_dir(store.inner.layout.quarantine_dir()).unwrap().count(), 0);
    fetch(&store, &unknown).unwrap();
}

#[test]
fn a_path_that_cannot_be_moved_does_not_end_the_comparison() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    fs::remove_file(object_path(&store, &content)).unwrap();
    let objects = store.inner.layout.objects_dir();
    // With what quarantine puts before it, the name is longer than a file system takes. It comes first in order.
    let stuck = objects.join("0".repeat(250));
    fs::write(&stuck, "stuck").unwrap();
    fs::write(objects.join("README"), "hello").unwrap();
    let report = store.compare().unwrap();
    assert_eq!((report.quarantined, report.lost), (1, vec![content.content]));
    assert!(stuck.exists());
}

#[test]
fn a_foreign_file_that_is_open_keeps_its_name() {
    let host = Host::new();
    let (store, _) = host.open();
    let path = store.inner.layout.objects_dir().join("scratch.img");
    fs::write(&path, "somebody's").unwrap();
    let open = File::open(&path).unwrap();
    let report = store.compare().unwrap();
    assert_eq!((report.in_use, report.quarantined), (1, 0));
    assert!(path.exists());
    drop(open);
    assert_eq!(store.compare().unwrap().quarantined, 1);
    assert!(!path.exists());
}

#[test]
fn a_damaged_file_in_use_stays_in_place() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let grant = store.lease(content.content, ConsumerKind::Vm, "web", false).unwrap();
    let path = object_path(&store, &content);
    File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(store.compare().unwrap().rechecked, 1);
    assert_eq!(store.scrub_one(content.content).unwrap(), Scrubbed::DamagedInUse);
    assert!(path.exists() && !is_active(&store, &content));
    store.release(grant.lease.lease).unwrap();
}

#[test]
fn a_row_that_sled_lost_or_kept_too_long_is_mended() {
    let host = Host::new();
    let (store, _) = host.open();
    let contents = [0, 100].map(|n| Content::disk(n..n + 10));
    contents.iter().for_each(|content| fetch(&store, content).unwrap());
    let rows = store.inner.index.rows().unwrap();
    assert_eq!(rows.len(), 2);
    store.inner.index.remove(contents[0].content).unwrap();
    let mut stray = rows[0];
    stray.spec.content = Content::disk(7..8).content;
    store.inner.index.put(&[stray]).unwrap();
    assert_eq!(store.compare().unwrap().rows_mended, 2);
    let mended = store.inner.index.rows().unwrap();
    let specs = |rows: &[Row]| rows.iter().map(|row| row.spec).collect::<Vec<_>>();
    assert_eq!(specs(&mended), specs(&rows));
    assert_eq!(store.compare().unwrap(), CompareReport::default());
}

#[test]
fn the_running_agent_notices_by_itself() {
    let mut host = Host::new();
    host.config.compare_every = Duration::from_millis(20);
    let (store, _) = host.open();
    let contents = [0, 100, 200, 300, 400, 500].map(|n| Content::disk(n..n + 10));
    for content in &contents {
        fetch(&store, content).unwrap();
        store.set_hold(content.content, Hold::Pinned).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let running = runtime.spawn_blocking({
        let (runtime, store, stop) = (runtime.handle().clone(), store.clone(), stop.clone());
        move || runtime.block_on(maintain(store, stop))
    });
    for ((_, change), content) in CHANGES.iter().zip(&contents) {
        change(&object_path(&store, content));
    }
    let mut changes = store.changes();
    let queued = |content: &Content| {
        let queued = ObservedState::Present(EntryStatus::Queued);
        let cleared = fs::symlink_metadata(object_path(&store, content)).is_err();
        cleared && store.entry(content.content).is_some_and(|view| view.state == queued)
    };
    runtime.block_on(async {
        while !contents.iter().all(queued) {
            changes.changed().await.unwrap();
        }
    });
    contents.iter().for_each(|content| fetch(&store, content).unwrap());
    for content in &contents {
        assert_eq!(fs::read(object_path(&store, content)).unwrap(), content.raw());
    }
    stop.cancel();
    runtime.block_on(running).unwrap();
}
