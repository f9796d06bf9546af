//! Tests of the store, by theme. The invariants of the store's module are tested under their numbers.

mod behind;
mod compare;
mod crash;
mod damage;
mod removal;
mod repeat;
mod write_path;

use hearth_protocol::words::ContentKind;

use super::content::Content;
use super::{ContentSpec, RecoveryReport, Staging, Store, StoreConfig, StoreError, no_progress};

/// Budget of test stores: plenty.
const BUDGET: u64 = 1 << 30;

impl Content {
    fn spec(&self) -> ContentSpec {
        let Self { content, raw_bytes, data_bytes, .. } = *self;
        ContentSpec { content, kind: ContentKind::Disk, raw_bytes, data_bytes }
    }
}

/// A folder with a store in it that can be closed and opened again.
struct Host {
    _dir: tempfile::TempDir,
    config: StoreConfig,
}

impl Host {
    fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// With its folder in `parent`.
    fn below(parent: &std::path::Path) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let config = StoreConfig::new(dir.path().join("cache"), BUDGET);
        Self { _dir: dir, config }
    }

    fn open(&self) -> (Store, RecoveryReport) {
        Store::open(&self.config).unwrap()
    }
}

/// Gives the manifest and asks what is needed.
fn prepare(staging: &Staging, content: &Content) -> Result<Vec<u32>, StoreError> {
    staging.put_root(&content.root)?;
    for page in staging.pages_missing()? {
        staging.put_page(page, &content.pages[page as usize])?;
    }
    Ok(staging.prepare(&no_progress)?.iter().collect())
}

/// Writes some of the needed chunks as a transfer would.
fn write(staging: &Staging, content: &Content, chunks: &[u32]) -> Result<(), StoreError> {
    for chunk in chunks {
        let record = staging.records(*chunk..chunk + 1)?[0];
        staging.write_run(record.offset, &content.chunks[&record.offset])?;
        staging.mark_done(&[*chunk])?;
        staging.add_moved(u64::from(record.raw_len));
    }
    Ok(())
}

/// Fetches a whole content.
fn fetch(store: &Store, content: &Content) -> Result<(), StoreError> {
    let staging = store.begin(content.spec()).unwrap();
    let need = prepare(&staging, content)?;
    write(&staging, content, &need)?;
    staging.finish(&no_progress).map(drop)
}

/// The one object file of a content, wherever consumers see it.
fn object_path(store: &Store, content: &Content) -> std::path::PathBuf {
    store.inner.layout.object(content.content, ContentKind::Disk)
}

/// Mounting needs rights that a developer may lack: a namespace of its own has them.
fn once_more_where_mounts_work(test: &str) {
    const AGAIN: &str = "HEARTH_TEST_IN_NAMESPACE";
    assert!(std::env::var_os(AGAIN).is_none(), "cannot mount: run as root, or allow user namespaces");
    let done = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(AGAIN, "1")
        .output()
        .expect("unshare is installed (util-linux)");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{test} in a namespace: {done:?}");
}
