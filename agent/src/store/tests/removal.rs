//! Eviction, deletion, holds and leases: what may go, what may not, and who is named.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hearth_protocol::message::control::Hold;
use hearth_protocol::words::{ConsumerKind, GoneReason};

use super::*;
use crate::logic::evict::HeldBy;
use crate::store::{BeginError, InUse, RemoveMode};

#[track_caller]
fn in_use(result: Result<(), StoreError>) -> InUse {
    match result {
        Err(StoreError::InUse { by, .. }) => by,
        other => panic!("not in use: {other:?}"),
    }
}

/// Proves CA-3.
#[test]
fn i9_a_leased_entry_is_never_removed_and_the_consumer_is_named() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let grant = store.lease(content.content, ConsumerKind::Vm, "web-1", false).unwrap();
    for mode in [RemoveMode::Evict, RemoveMode::Delete] {
        let by = in_use(store.remove(content.content, mode));
        assert_eq!(by.to_string(), "leased by vm web-1");
        assert!(object_path(&store, &content).exists());
    }
    // Refused as a wish of the controller: shown with the reason, and gone as soon as the lease ends.
    let view = store.entry(content.content).unwrap();
    assert_eq!(view.state, crate::logic::entry::Phase::DeleteFailed { text: String::new() }.observed());
    store.release(grant.lease.lease).unwrap();
    store.remove(content.content, RemoveMode::Delete).unwrap();
    assert!(!object_path(&store, &content).exists());
    assert_eq!(store.gone()[0].reason, GoneReason::Deleted);
    assert!(matches!(store.release(grant.lease.lease), Err(StoreError::NoLease)));
}

#[test]
fn a_lease_asked_for_twice_is_one_lease() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..3);
    fetch(&store, &content).unwrap();
    let one = store.lease(content.content, ConsumerKind::Vm, "a", false).unwrap();
    assert_eq!(store.lease(content.content, ConsumerKind::Vm, "a", false).unwrap(), one);
    assert_ne!(store.lease(content.content, ConsumerKind::Vm, "b", false).unwrap(), one);
    for wrong in ["", "a\nb", &"x".repeat(257)] {
        let error = store.lease(content.content, ConsumerKind::Vm, wrong, false).unwrap_err();
        assert!(matches!(error, StoreError::ConsumerName { .. }), "{wrong:?}");
    }
}

#[test]
fn a_file_that_a_process_has_open_is_not_removed() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let open = File::open(object_path(&store, &content)).unwrap();
    assert_eq!(in_use(store.remove(content.content, RemoveMode::Evict)), InUse::Open);
    assert!(store.entry(content.content).unwrap().is_active(), "a refused eviction changes nothing");
    drop(open);
    store.remove(content.content, RemoveMode::Evict).unwrap();
    assert_eq!(store.gone()[0].reason, GoneReason::Evicted);
}

#[test]
fn a_file_with_a_further_hard_link_is_not_removed() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let link = host.config.dir.parent().unwrap().join("link");
    std::fs::hard_link(object_path(&store, &content), &link).unwrap();
    assert_eq!(in_use(store.remove(content.content, RemoveMode::Evict)), InUse::HardLinks(1));
    // link(2) changes ctime only: the entry is still believed after a restart.
    drop(store);
    let (store, report) = host.open();
    assert_eq!((report.active, report.unverified), (1, 0));
    std::fs::remove_file(link).unwrap();
    store.remove(content.content, RemoveMode::Evict).unwrap();
}

#[test]
fn our_own_reader_keeps_an_entry_until_it_is_closed() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let reader = store.reader(content.content).unwrap();
    assert_eq!(in_use(store.remove(content.content, RemoveMode::Delete)), InUse::Agent);
    drop(reader);
    store.remove(content.content, RemoveMode::Delete).unwrap();
}

/// A child that is killed when the test ends.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until `ready` says so.
#[track_caller]
fn wait_until(mut ready: impl FnMut() -> bool) {
    for _ in 0..500 {
        if ready() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited 10 s in vain");
}

#[test]
fn an_overlay_that_qemu_has_open_keeps_its_base() {
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..10);
    fetch(&store, &content).unwrap();
    let (base, overlay) = (object_path(&store, &content), host.config.dir.parent().unwrap().join("vm.qcow2"));
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&base, &overlay])
        .status();
    assert!(made.expect("qemu-utils is installed (`make test` sees to it)").success());
    for options in ["driver=qcow2", "driver=qcow2,file.locking=off"] {
        let options = format!("{options},file.filename={}", overlay.display());
        let mut command = Command::new("qemu-io");
        command.args(["--image-opts", &options]).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = Holder(command.spawn().expect("qemu-utils is installed"));
        let fds = format!("/proc/{}/fd", holder.0.id());
        let has_base = || {
            let links = std::fs::read_dir(&fds).into_iter().flatten().flatten();
            links.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| target == base)
        };
        wait_until(has_base);
        assert_eq!(in_use(store.remove(content.content, RemoveMode::Evict)), InUse::Open, "{options}");
        drop(holder);
        wait_until(|| !has_base());
    }
    store.remove(content.content, RemoveMode::Evict).unwrap();
}

#[test]
fn holds_and_pins_keep_entries_and_survive_a_restart() {
    let host = Host::new();
    let (one, two, three) = (Content::disk(0..5), Content::disk(10..15), Content::disk(20..25));
    {
        let (store, _) = host.open();
        [&one, &two, &three].into_iter().for_each(|content| fetch(&store, content).unwrap());
        let soon = crate::clock::unix_ms() + 3_600_000;
        store.set_holds(&[(one.content, Hold::Pinned), (two.content, Hold::Until(soon))]).unwrap();
        store.set_local_pin(three.content, true).unwrap();
    }
    let (store, _) = host.open();
    for content in [&one, &two, &three] {
        let by = in_use(store.remove(content.content, RemoveMode::Evict));
        assert!(matches!(by, InUse::Held(HeldBy::Pin | HeldBy::Until(_))), "{by}");
    }
    store.set_hold(one.content, Hold::Until(1)).unwrap();
    store.remove(one.content, RemoveMode::Evict).unwrap();
    // A wish of the controller to delete outranks holds.
    store.remove(two.content, RemoveMode::Delete).unwrap();
    store.set_local_pin(three.content, false).unwrap();
    store.remove(three.content, RemoveMode::Evict).unwrap();
}

/// A store whose budget takes about two of the contents made by `small`.
fn tight() -> (Host, [Content; 4]) {
    let mut host = Host::new();
    let contents = [0, 1, 2, 3].map(|n| Content::disk(n * 1000..n * 1000 + 200));
    let one = crate::logic::budget::reservation_bytes(contents[0].data_bytes);
    host.config.budget_bytes = one * 5 / 2;
    (host, contents)
}

/// Proves CA-7.
#[test]
fn i7_room_is_made_by_evicting_the_least_recently_used() {
    let (host, [a, b, c, d]) = tight();
    let (store, _) = host.open();
    fetch(&store, &a).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    fetch(&store, &b).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    store.touch(a.content);
    fetch(&store, &c).unwrap();
    assert!(store.entry(b.content).is_none(), "b was used longest ago");
    assert!(store.entry(a.content).unwrap().is_active());
    let stats = store.stats().unwrap();
    assert!(stats.used_bytes <= stats.budget_bytes);
    // While one is written, its reservation counts.
    store.set_hold(a.content, Hold::Pinned).unwrap();
    let staging = store.begin(d.spec()).unwrap();
    let stats = store.stats().unwrap();
    assert!(stats.used_bytes <= stats.budget_bytes);
    assert!(store.entry(c.content).is_none() && store.entry(a.content).is_some());
    let refused = store.begin(b.spec()).unwrap_err();
    let BeginError::NoSpace { needed, free, held_by } = refused else { panic!("{refused:?}") };
    assert!(free < needed);
    let held: Vec<_> = held_by.iter().map(|holder| (holder.content, holder.held_by.clone())).collect();
    assert!(held.contains(&(a.content, HeldBy::Pin)), "{held:?}");
    drop(staging);
}

#[test]
fn an_open_entry_is_passed_over_and_the_next_one_goes() {
    let (host, [a, b, c, _]) = tight();
    let (store, _) = host.open();
    fetch(&store, &a).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    fetch(&store, &b).unwrap();
    let _open = File::open(object_path(&store, &a)).unwrap();
    fetch(&store, &c).unwrap();
    assert!(store.entry(a.content).unwrap().is_active());
    assert!(store.entry(b.content).is_none());
}

#[test]
fn enforce_gets_under_a_smaller_budget_but_never_takes_what_is_held() {
    let (mut host, [a, b, ..]) = tight();
    {
        let (store, _) = host.open();
        fetch(&store, &a).unwrap();
        fetch(&store, &b).unwrap();
        store.set_hold(a.content, Hold::Pinned).unwrap();
    }
    host.config.budget_bytes = 4096;
    let (store, _) = host.open();
    assert!(store.enforce().unwrap() > 0);
    assert!(store.entry(a.content).unwrap().is_active());
    assert!(store.entry(b.content).is_none());
    store.set_hold(a.content, Hold::Released).unwrap();
    assert_eq!(store.enforce().unwrap(), 0);
    assert_eq!(store.stats().unwrap().used_bytes, 0);
}

#[test]
fn a_full_disk_fails_the_transfer_and_gives_its_bytes_back() {
    use crate::store::failpoint::{self, Trouble};
    let host = Host::new();
    let (store, _) = host.open();
    let content = Content::disk(0..20);
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, &content).unwrap();
    failpoint::arm("staging.write", Trouble::Errno(nix::libc::ENOSPC));
    let error = write(&staging, &content, &need).unwrap_err();
    assert_eq!(error.fault(), hearth_protocol::fault::FaultCode::NoSpace);
    drop(staging);
    assert_eq!(store.stats().unwrap().used_bytes, 0);
    fetch(&store, &content).unwrap();
}

#[test]
fn a_really_full_file_system_does_no_harm() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let mut host = Host::new();
    let small = host.config.dir.parent().unwrap().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=24m"));
    if let Err(error) = mounted {
        assert_eq!(error, nix::Error::EPERM);
        return once_more_where_mounts_work("store::tests::removal::a_really_full_file_system_does_no_harm");
    }
    host.config.dir = small.join("cache");
    let content = Content::disk(0..300);
    {
        let (store, _) = host.open();
        // Somebody else fills the disk after the reservation was made.
        let staging = store.begin(content.spec()).unwrap();
        let need = prepare(&staging, &content).unwrap();
        std::fs::write(small.join("other"), vec![1; 20 << 20]).unwrap_or_default();
        let error = write(&staging, &content, &need).unwrap_err();
        assert_eq!(error.fault(), hearth_protocol::fault::FaultCode::NoSpace, "{error:?}");
        drop(staging);
        assert!(matches!(store.begin(content.spec()).unwrap_err(), BeginError::NoSpace { .. }));
        std::fs::remove_file(small.join("other")).unwrap();
        fetch(&store, &content).unwrap();
        assert_eq!(std::fs::read(object_path(&store, &content)).unwrap(), content.raw());
    }
    umount2(&small, MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_hashes_what_is_unverified_and_frees_trash_after_its_grace() {
    let mut host = Host::new();
    host.config.grace = Duration::from_millis(1);
    let (kept, gone) = (Content::disk(0..5), Content::disk(10..15));
    {
        let (store, _) = host.open();
        fetch(&store, &kept).unwrap();
    }
    std::fs::remove_dir_all(host.config.dir.join("db")).unwrap();
    let (store, report) = host.open();
    assert_eq!(report.unverified, 1);
    fetch(&store, &gone).unwrap();
    store.remove(gone.content, RemoveMode::Delete).unwrap();
    let trash = || std::fs::read_dir(host.config.dir.join("trash")).unwrap().count();
    assert_eq!(trash(), 1, "the bytes stay for the grace time");
    let stop = tokio_util::sync::CancellationToken::new();
    let mut changes = store.changes();
    let task = crate::task::spawn("maintain", crate::store::maintain(store.clone(), stop.clone()));
    while !store.entry(kept.content).unwrap().is_active() || trash() > 0 {
        tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn files_and_folders_have_the_group_and_modes_that_hypervisors_need() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mut host = Host::new();
    let gid = nix::unistd::getgid();
    let own = nix::unistd::Group::from_gid(gid).unwrap().unwrap();
    host.config.group = Some(own.name);
    host.config.consumer_dir = Some("/var/lib/hearth/images".into());
    let (store, _) = host.open();
    let content = Content::disk(0..5);
    fetch(&store, &content).unwrap();
    let path = object_path(&store, &content);
    for (path, mode) in [(path.parent().unwrap(), 0o2750), (&path, 0o440), (&host.config.dir, 0o2750)] {
        let meta = std::fs::metadata(path).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.gid()),
            (mode, gid.as_raw()),
            "{}",
            path.display()
        );
    }
    let shown = store.entry(content.content).unwrap().path.unwrap();
    let relative = path.strip_prefix(host.config.dir.join("objects")).unwrap();
    assert_eq!(shown, std::path::Path::new("/var/lib/hearth/images").join(relative));
    host.config.group = Some("no-such-group".to_owned());
    drop(store);
    assert!(matches!(Store::open(&host.config).unwrap_err(), StoreError::NoGroup { .. }));
}
