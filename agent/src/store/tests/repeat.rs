//! Chunks that repeat inside one content: they come once and stand everywhere.

use std::fs;
use std::os::unix::fs::FileExt as _;

use super::*;

/// Keys with repetitions near and far, beside each other and across gaps of zeros.
fn repeated() -> Content {
    Content::disk([1, 2, 1, 3, 3, 4, 2, 1, 5, 5, 5, 6, 1])
}

#[test]
fn equal_chunks_are_needed_once_and_written_to_every_place() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = repeated();
    let staging = store.begin(content.spec()).unwrap();
    assert_eq!(prepare(&staging, &content).unwrap(), [0, 1, 3, 5, 8, 11]);
    assert_eq!(staging.need().unwrap().count(), 13, "none is there yet");
    write(&staging, &content, &[0, 1, 3, 5, 8, 11]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
    let view = store.entry(content.content).unwrap();
    assert_eq!((view.done_bytes, view.reused_bytes), (content.data_bytes, 0));
}

#[test]
fn a_resumed_transfer_takes_repetitions_from_what_is_there() {
    let host = Host::new();
    let content = repeated();
    {
        let (store, _) = host.open();
        let staging = store.begin(content.spec()).unwrap();
        prepare(&staging, &content).unwrap();
        write(&staging, &content, &[0, 3]).unwrap();
        staging.checkpoint().unwrap();
    }
    let (store, _) = host.open();
    let staging = store.begin(content.spec()).unwrap();
    assert_eq!(prepare(&staging, &content).unwrap(), [1, 5, 8, 11]);
    write(&staging, &content, &[1, 5, 8, 11]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_repetition_of_a_chunk_that_went_bad_is_fetched() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = repeated();
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need).unwrap();
    let rotten = *content.chunks.keys().nth(3).unwrap();
    staging.file.write_all_at(b"rot", rotten).unwrap();
    let error = staging.finish(&no_progress).unwrap_err();
    assert!(matches!(error, StoreError::Incomplete { missing: 1, .. }), "{error:?}");
    assert_eq!(staging.need().unwrap().iter().collect::<Vec<_>>(), [4]);
    write(&staging, &content, &[4]).unwrap();
    let error = staging.finish(&no_progress).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { chunks: 1, first: 3, .. }), "{error:?}");
    write(&staging, &content, &[3]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_stop_while_copying_loses_nothing() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = repeated();
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    write(&staging, &content, &need).unwrap();
    let error = staging.finish(&|_| std::ops::ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, StoreError::Stopped), "{error:?}");
    drop(staging);
    let staging = store.begin(content.spec()).unwrap();
    assert_eq!(prepare(&staging, &content).unwrap(), Vec::<u32>::new());
    staging.finish(&no_progress).unwrap();
    assert_eq!(fs::read(object_path(&store, &content)).unwrap(), content.raw());
}
