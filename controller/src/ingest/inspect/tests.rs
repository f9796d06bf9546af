//! Tests of the inspectors: real files by qemu-img, crafted hostile files, and garbage.

mod craft;
mod garbage;
mod hostile;
mod hostile_microsoft;
mod hostile_vmdk;
mod real;

use hearth_protocol::words::DiskFormat;

use super::*;

/// Inspects bytes in memory.
fn bytes(file: &[u8], declared: Option<DiskFormat>) -> Result<Inspection, InspectError> {
    inspect(&file, declared)
}

/// The refusal's text must contain `expected`, whether or not the right format was declared.
#[track_caller]
fn refused(file: &[u8], declared: DiskFormat, expected: &str) {
    for declared in [None, Some(declared)] {
        match bytes(file, declared) {
            Ok(inspection) => panic!("accepted as {inspection:?}, expected a refusal with {expected:?}"),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    }
}

#[track_caller]
fn accepted(file: &[u8], format: DiskFormat, virtual_size_bytes: u64) -> Inspection {
    let inspection = bytes(file, Some(format)).unwrap();
    assert_eq!((inspection.format, inspection.virtual_size_bytes), (format, virtual_size_bytes));
    inspection
}
