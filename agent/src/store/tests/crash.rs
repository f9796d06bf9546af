//! A crash between any two steps, and recovery from it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hearth_protocol::words::ConsumerKind;

use super::*;
use crate::store::RemoveMode;
use crate::store::failpoint::{self, Trouble};

/// Runs `work` with a crash armed; returns whether it crashed.
fn crashes(place: &'static str, work: impl FnOnce()) -> bool {
    failpoint::arm(place, Trouble::Crash);
    let crashed = catch_unwind(AssertUnwindSafe(work)).is_err();
    crashed && !failpoint::disarm()
}

/// What a second recovery must not change: every file name with its size.
fn files(host: &Host) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![host.config.dir.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() && entry.file_name() != "db" {
                folders.push(entry.path());
            } else if meta.is_file() {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
}

const FETCH_PLACES: &[&str] = &[
    "begin.before-create",
    "begin.after-create",
    "begin.after-journal",
    "staging.write",
    "checkpoint.sync",
    "checkpoint.after-sync",
    "finish.sync",
    "finish.after-sync",
    "finish.sync-mode",
    "finish.before-manifest",
    "finish.after-manifest",
    "finish.after-rename",
    "finish.after-folder-sync",
    "finish.after-index",
];

#[test]
fn a_crash_at_any_step_of_a_fetch_leaves_nothing_wrong_and_the_next_try_succeeds() {
    for place in FETCH_PLACES {
        let host = Host::new();
        let content = Content::disk(0..40);
        let (store, _) = host.open();
        let crashed = crashes(place, || {
            let staging = store.begin(content.spec()).unwrap();
            let need = prepare(&staging, &content).unwrap();
            write(&staging, &content, &need).unwrap();
            staging.checkpoint().unwrap();
            staging.finish(&no_progress).unwrap();
        });
        assert!(crashed, "{place} was not reached");
        drop(store);

        let (store, first) = host.open();
        let before = files(&host);
        // I11: recovering again changes nothing.
        drop(store);
        let (store, second) = host.open();
        assert_eq!(files(&host), before, "{place}");
        assert_eq!(
            (first.active, first.unverified, first.resumable),
            (second.active, second.unverified, second.resumable)
        );

        let published = object_path(&store, &content).exists();
        if published {
            let view = store.entry(content.content).unwrap();
            assert_eq!(
                view.is_active(),
                *place == "finish.after-index",
                "{place}: only an indexed object is believed"
            );
            assert_eq!(store.scrub_one(content.content).unwrap(), crate::store::Scrubbed::Good);
        } else {
            fetch(&store, &content).unwrap();
        }
        assert!(store.entry(content.content).unwrap().is_active(), "{place}");
        assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw(), "{place}");
    }
}

#[test]
fn after_a_crash_late_in_a_fetch_nothing_is_fetched_twice() {
    for place in ["finish.sync", "finish.before-manifest", "finish.after-manifest"] {
        let host = Host::new();
        let content = Content::disk(0..40);
        let (store, _) = host.open();
        assert!(crashes(place, || fetch(&store, &content).unwrap()));
        drop(store);
        let (store, _) = host.open();
        let staging = store.begin(content.spec()).unwrap();
        assert_eq!(prepare(&staging, &content).unwrap(), [0_u32; 0], "{place}");
        staging.finish(&no_progress).unwrap();
    }
}

#[test]
fn a_crash_at_any_step_of_an_eviction_leaves_the_object_or_nothing() {
    for place in ["evict.leased", "evict.after-index", "evict.after-rename", "evict.after-meta"] {
        let host = Host::new();
        let content = Content::disk(0..10);
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        assert!(crashes(place, || store.remove(content.content, RemoveMode::Evict).unwrap()), "{place}");
        drop(store);
        let (store, _) = host.open();
        let before = files(&host);
        drop(store);
        let (store, _) = host.open();
        assert_eq!(files(&host), before, "{place}");
        match store.entry(content.content) {
            Some(_) => {
                store.scrub_one(content.content).unwrap();
                assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw(), "{place}");
            }
            None => {
                assert!(!object_path(&store, &content).exists(), "{place}");
                fetch(&store, &content).unwrap();
            }
        }
    }
}

#[test]
fn i12_a_crash_during_recovery_is_just_another_crash() {
    for place in ["recover.after-objects", "recover.after-staging"] {
        let host = Host::new();
        let (done, half) = (Content::disk(0..10), Content::disk(20..60));
        let (store, _) = host.open();
        fetch(&store, &done).unwrap();
        let staging = store.begin(half.spec()).unwrap();
        let need = prepare(&staging, &half).unwrap();
        write(&staging, &half, &need[..20]).unwrap();
        drop((staging, store));
        assert!(crashes(place, || drop(host.open())), "{place}");
        let (store, report) = host.open();
        assert_eq!((report.active, report.resumable), (1, 1), "{place}");
        let staging = store.begin(half.spec()).unwrap();
        assert_eq!(prepare(&staging, &half).unwrap().len(), 20);
    }
}

#[test]
fn i8_an_acknowledged_lease_survives_a_crash_and_an_unacknowledged_one_does_no_harm() {
    for place in ["lease.before-write", "lease.after-write"] {
        let host = Host::new();
        let content = Content::disk(0..5);
        let (store, _) = host.open();
        fetch(&store, &content).unwrap();
        let kept = store.lease(content.content, ConsumerKind::Vm, "kept", false).unwrap();
        assert!(crashes(place, || drop(
            store.lease(content.content, ConsumerKind::Vm, "torn", false).unwrap()
        )));
        drop(store);
        let (store, report) = host.open();
        assert!(report.leases == 1 || report.leases == 2);
        assert!(store.leases().contains(&kept.lease), "{place}");
        assert!(store.remove(content.content, RemoveMode::Delete).is_err());
    }
}

#[test]
fn after_a_failed_sync_the_inode_is_thrown_away_and_a_new_one_succeeds() {
    for place in ["checkpoint.sync", "finish.sync", "finish.sync-mode", "staging.write"] {
        let host = Host::new();
        let content = Content::disk(0..20);
        let (store, _) = host.open();
        let staging = store.begin(content.spec()).unwrap();
        let need = prepare(&staging, &content).unwrap();
        failpoint::arm(place, Trouble::Errno(nix::libc::EIO));
        let result = write(&staging, &content, &need)
            .and_then(|()| staging.checkpoint())
            .and_then(|()| staging.finish(&no_progress));
        assert!(matches!(result.unwrap_err(), StoreError::Io { .. }), "{place}");
        assert!(!store.inner.layout.staging(content.content).exists(), "{place}: the inode must go");
        let dead = staging.write_run(1 << 20, &[0; 4096]).unwrap_err();
        assert!(matches!(dead, StoreError::ThrownAway { .. }), "{place}: {dead:?}");
        drop(staging);
        assert_eq!(store.stats().unwrap().used_bytes, 0, "{place}");
        let staging = store.begin(content.spec()).unwrap();
        assert_eq!(prepare(&staging, &content).unwrap().len(), 20, "{place}: nothing of it is believed");
        write(&staging, &content, &need).unwrap();
        staging.finish(&no_progress).unwrap();
    }
}

#[test]
fn three_disk_failures_make_the_cache_read_only_until_a_write_succeeds() {
    let host = Host::new();
    let content = Content::disk(0..20);
    let (store, _) = host.open();
    for _ in 0..3 {
        let staging = store.begin(content.spec()).unwrap();
        let need = prepare(&staging, &content).unwrap();
        write(&staging, &content, &need).unwrap();
        failpoint::arm("finish.sync", Trouble::Errno(nix::libc::EIO));
        staging.finish(&no_progress).unwrap_err();
    }
    assert!(matches!(store.begin(content.spec()).unwrap_err(), crate::store::BeginError::Degraded { .. }));
    assert!(store.stats().unwrap().degraded.contains("sync"));
    store.note_disk_success();
    fetch(&store, &content).unwrap();
}
