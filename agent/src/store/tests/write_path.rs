//! Fetching: what is written becomes an object, exactly and only then.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use hearth_protocol::message::control::ObservedState;
use hearth_protocol::words::EntryStatus;

use super::*;
use crate::store::BeginError;

#[test]
fn i1_an_object_has_exactly_the_bytes_of_its_manifest() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..300);
    fetch(&store, &content).unwrap();
    let view = store.entry(content.content).unwrap();
    assert!(view.is_active());
    assert_eq!((view.done_bytes, view.moved_bytes), (content.data_bytes, content.data_bytes));
    let path = view.path.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content.raw());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o440);
    assert!(view.allocated_bytes < content.raw_bytes, "zeros are holes");
}

#[test]
fn nothing_is_active_before_every_chunk_is_there() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..20);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    assert_eq!(need.len(), 20);
    write(&staging, &content, &need[1..]).unwrap();
    let early = staging.finish(&no_progress).unwrap_err();
    assert!(matches!(early, StoreError::Incomplete { missing: 1, .. }), "{early:?}");
    let state = store.entry(content.content).unwrap().state;
    assert_eq!(state, ObservedState::Present(EntryStatus::Caching));
    write(&staging, &content, &need[..1]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert!(store.entry(content.content).unwrap().is_active());
}

#[test]
fn bytes_that_lie_about_themselves_are_found_on_disk_and_asked_for_again() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..40);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need).unwrap();
    let record = staging.records(7..8).unwrap()[0];
    staging.file.write_all_at(&[0xee], record.offset + 5).unwrap();
    let error = staging.finish(&no_progress).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { chunks: 1, first: 7, .. }), "{error:?}");
    assert_eq!(staging.need().unwrap().iter().collect::<Vec<_>>(), [7]);
    write(&staging, &content, &[7]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_byte_between_the_chunks_is_never_published() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need).unwrap();
    staging.file.write_all_at(&[1], 100).unwrap();
    staging.finish(&no_progress).unwrap_err();
    drop(staging);
    assert!(!store.entry(content.content).unwrap().is_active());
    assert!(!object_path(&store, &content).exists());
    fetch(&store, &content).unwrap();
}

#[test]
fn i4_nothing_is_written_after_sealing() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need).unwrap();
    staging.finish(&no_progress).unwrap();
    let late = staging.write_run(1 << 20, &[1]).unwrap_err();
    assert!(matches!(late, StoreError::Write { .. }), "{late:?}");
    assert!(matches!(staging.finish(&no_progress).unwrap_err(), StoreError::State { .. }));
    assert!(matches!(store.begin(content.spec()).unwrap_err(), BeginError::Present { .. }));
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_second_transfer_of_the_same_content_is_refused_while_one_runs() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    let staging = store.begin(content.spec()).unwrap();
    assert!(matches!(store.begin(content.spec()).unwrap_err(), BeginError::Running { .. }));
    drop(staging);
    fetch(&store, &content).unwrap();
}

#[test]
fn a_manifest_of_another_content_or_size_is_refused() {
    let host = Host::new();
    let (store, _) = host.open();
    let (one, two) = (Content::disk(0..10), Content::disk(5..15));
    let staging = store.begin(one.spec()).unwrap();
    assert!(matches!(staging.put_root(&two.root).unwrap_err(), StoreError::Manifest { .. }));
    staging.put_root(&one.root).unwrap();
    assert!(matches!(staging.put_page(0, &two.pages[0]).unwrap_err(), StoreError::Manifest { .. }));
    drop(staging);
    let lying = ContentSpec { data_bytes: two.data_bytes - 4096, ..two.spec() };
    let staging = store.begin(lying).unwrap();
    assert!(matches!(staging.put_root(&two.root).unwrap_err(), StoreError::Announced { .. }));
}

#[test]
fn an_all_zero_content_needs_no_chunk() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::build(ContentKind::Disk, std::collections::BTreeMap::new(), 5 << 20);
    fetch(&store, &content).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), vec![0; 5 << 20]);
}

#[test]
fn two_writers_at_once_make_the_same_object() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..800);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    let (even, odd): (Vec<u32>, Vec<u32>) = need.iter().partition(|chunk| **chunk % 2 == 0);
    std::thread::scope(|scope| {
        for half in [even, odd] {
            let (staging, content) = (&staging, &content);
            scope.spawn(move || write(staging, content, &half).unwrap());
        }
    });
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn an_interrupted_transfer_goes_on_with_what_hashes_right() {
    let host = Host::new();
    let content = Content::disk(0..60);
    {
        let (store, _) = host.open();
        let staging = store.begin(content.spec()).unwrap();
        let need = prepare(&staging, &content).unwrap();
        write(&staging, &content, &need[..30]).unwrap();
        staging.checkpoint().unwrap();
        write(&staging, &content, &need[30..40]).unwrap();
        // One of the written chunks rots while the agent is away.
        let record = staging.records(3..4).unwrap()[0];
        staging.file.write_all_at(&[0xee], record.offset).unwrap();
    }
    let (store, report) = host.open();
    assert_eq!((report.resumable, report.active), (1, 0));
    let staging = store.begin(content.spec()).unwrap();
    assert_eq!(staging.pages_missing().unwrap(), [0_u32; 0]);
    let need: Vec<u32> = staging.prepare(&no_progress).unwrap().iter().collect();
    assert_eq!(need, std::iter::once(3).chain(40..60).collect::<Vec<u32>>());
    write(&staging, &content, &need).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn an_aborted_transfer_leaves_no_bytes() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..60);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need[..30]).unwrap();
    staging.abort().unwrap();
    let stats = store.stats().unwrap();
    assert_eq!(stats.used_bytes, 0);
    assert!(!store.inner.layout.staging(content.content).exists());
}

#[test]
fn chunks_of_other_contents_are_taken_from_there() {
    let host = Host::new();
    let (store, _) = host.open();
    let (base, next) = (Content::disk(0..400), Content::disk((100..350).chain(1000..1050)));
    fetch(&store, &base).unwrap();
    let staging = store.begin(next.spec()).unwrap();
    let need = prepare(&staging, &next).unwrap();
    assert_eq!(need, (250..300).collect::<Vec<u32>>());
    write(&staging, &next, &need).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &next)).unwrap(), next.raw());
    let view = store.entry(next.content).unwrap();
    assert_eq!(view.reused_bytes + view.moved_bytes, next.data_bytes);
}

#[test]
fn a_damaged_base_chunk_is_simply_needed() {
    let host = Host::new();
    let (store, _) = host.open();
    let (base, next) = (Content::disk(0..50), Content::disk(0..60));
    fetch(&store, &base).unwrap();
    let offset = *base.chunks.keys().nth(9).unwrap();
    let path = object_path(&store, &base);
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"rot", offset).unwrap();
    let staging = store.begin(next.spec()).unwrap();
    let need = prepare(&staging, &next).unwrap();
    assert_eq!(need, std::iter::once(9).chain(50..60).collect::<Vec<u32>>());
    write(&staging, &next, &need).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &next)).unwrap(), next.raw());
    assert_eq!(store.next_check(), Some(base.content), "the base is checked soon");
}
