//! Packed files. The first byte picks the packer, whose first bytes are laid over the input.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the controller's files are built here without the controller"
)]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/ingest/space.rs"]
mod space;
#[path = "../../../controller/src/ingest/unpack.rs"]
mod unpack;

/// The one function that the unpacker takes from there.
mod clock {
    pub(crate) fn monotonic() -> std::time::Instant {
        std::time::Instant::now()
    }
}

/// Here too.
mod content {
    /// As if there were no holes: what counts here is what comes out.
    pub(crate) fn data_runs(bytes: &[u8], _at: u64) -> impl Iterator<Item = (usize, &[u8])> {
        std::iter::once((0, bytes))
    }
}

use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use space::Space;
use unpack::{Packing, Unpacking, packing_of};

/// Most that may come out: a small file of zeros is a megabyte.
const MOST_BYTES: u64 = 1 << 20;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("there is a folder for temporary files"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&packer, rest)) = input.split_first() else { return };
    let (packing, magic): (_, &[u8]) = match packer % 3 {
        0 => (Packing::Gzip, b"\x1F\x8B\x08"),
        1 => (Packing::Xz, b"\xFD7zXZ\0"),
        _ => (Packing::Zstd, b"\x28\xB5\x2F\xFD"),
    };
    let mut file = rest.to_vec();
    file.resize(file.len().max(magic.len()), 0);
    file[..magic.len()].copy_from_slice(magic);
    let (packed, output) = (FOLDER.path().join("packed"), FOLDER.path().join("output"));
    std::fs::write(&packed, &file).expect("there is room");
    assert_eq!(packing_of(&packed).expect("it can be read"), Some(packing));
    let space = Space::new(FOLDER.path());
    let unpacking =
        Unpacking { input: &packed, output: &output, most_bytes: MOST_BYTES, space: &space };
    let mut read = 0;
    let done = unpack::unpack(&unpacking, packing, &AtomicBool::new(false), &mut |now, all| {
        assert!(now >= read && now <= all);
        read = now;
    });
    match done {
        Ok(_) => assert!(output.metadata().expect("it was made").len() <= MOST_BYTES),
        Err(error) => assert!(error.to_string().len() < 1000),
    }
});
