//! Hashing behind the writers, on a real file system: `/tmp` may be a tmpfs, from which no page ever leaves.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock;

/// More than two batches of write-back.
const KEYS: std::ops::Range<u64> = 1_000..1_800;

fn host() -> Host {
    Host::below(Path::new("/var/tmp"))
}

fn begun(store: &Store, content: &Content) -> (Staging, Vec<u32>) {
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, content).unwrap();
    (staging, need)
}

/// Threads of this process that hash behind writers. Each test runs in a process of its own.
fn n_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| name.starts_with("hearth-behind"))
        })
        .count()
}

fn wait_for_threads(n: usize) {
    let until = clock::monotonic() + Duration::from_secs(60);
    while n_threads() > n {
        assert!(clock::monotonic() < until, "{} threads", n_threads());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn whole_chunks_are_known_before_the_closing_check() {
    let host = host();
    let (store, _) = host.open();
    let content = Content::disk(KEYS);
    assert!(content.data_bytes > 20 << 20, "{}", content.data_bytes);
    let (staging, need) = begun(&store, &content);
    write(&staging, &content, &need).unwrap();
    staging.settle();
    let times = staging.finish(&no_progress).unwrap();
    assert!(times.behind_percent > 20, "{times:?}");
    assert_eq!(n_threads(), 0);
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_chunk_that_rots_before_it_is_hashed_behind_is_named_by_the_closing_check() {
    let host = host();
    let (store, _) = host.open();
    let content = Content::disk(KEYS);
    let (staging, need) = begun(&store, &content);
    write(&staging, &content, &need[..20]).unwrap();
    let record = staging.records(7..8).unwrap()[0];
    staging.file.write_all_at(&[0xee], record.offset + 5).unwrap();
    write(&staging, &content, &need[20..]).unwrap();
    staging.settle();
    let known = staging.known().unwrap();
    assert!(!known.contains(7) && known.count() > 0, "{} known", known.count());
    let error = staging.finish(&no_progress).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { chunks: 1, first: 7, .. }), "{error:?}");
    write(&staging, &content, &[7]).unwrap();
    staging.finish(&no_progress).unwrap();
    assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
}

#[test]
fn a_transfer_dropped_in_the_middle_leaves_no_thread() {
    let host = host();
    let (store, _) = host.open();
    let content = Content::disk(KEYS);
    let (staging, need) = begun(&store, &content);
    write(&staging, &content, &need[..600]).unwrap();
    assert_eq!(n_threads(), 2);
    drop(staging);
    assert_eq!(n_threads(), 0);
}

#[test]
fn where_no_page_ever_leaves_memory_the_threads_end() {
    let shm = Path::new("/dev/shm");
    if !nix::sys::statfs::statfs(shm).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC) {
        return;
    }
    let host = Host::below(shm);
    let (store, _) = host.open();
    let content = Content::disk(1_000..2_400);
    let (staging, need) = begun(&store, &content);
    write(&staging, &content, &need[..1_000]).unwrap();
    // One sees that it is in vain, the other is told with the next batch.
    wait_for_threads(1);
    write(&staging, &content, &need[1_000..]).unwrap();
    wait_for_threads(0);
    assert_eq!(staging.finish(&no_progress).unwrap().behind_percent, 0);
}
