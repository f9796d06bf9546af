//! Hashing behind the writers, on a real file system: `/tmp` may be a tmpfs, from which no page ever leaves.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock;
use crate::store::disk::{DiskBuffer, DiskFile};

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
    let kind = nix::sys::statfs::statfs(shm).expect("Linux has /dev/shm").filesystem_type();
    assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC);
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

#[test]
fn a_file_system_that_hides_its_pages_is_not_believed() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    });
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let overlay = Some("overlay");
    if let Err(error) = mount(overlay, &merged, overlay, MsFlags::empty(), Some(options.as_str())) {
        assert_eq!(error, nix::Error::EPERM);
        return once_more_where_mounts_work(
            "store::tests::behind::a_file_system_that_hides_its_pages_is_not_believed",
        );
    }
    {
        let path = merged.join("object");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let disk = DiskFile::beside_writers(&file);
        let read = disk.read(4096, 4096, &mut DiskBuffer::new(4096)).map(<[u8]>::len);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert!(!disk.has_dropped());
    }
    umount2(&merged, MntFlags::MNT_DETACH).unwrap();
}
