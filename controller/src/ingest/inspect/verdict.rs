//! Puts all inspectors together: what is this file, and is it accepted?
//!
//! **What.** [`inspect`] runs every recogniser over the file, refuses when more than one matches, then runs the full
//! check of the one format that is left; no match is raw.
//!
//! **Why all of them.** A file that is qcow2 to one program and raw to another has leaked host files in other
//! clouds more than once. First match wins is how.
//!
//! **Invariants**, each with a test in `tests/`: two matches are refused (but for an ISO with a boot sector that was
//! declared iso, and the partition table inside a fixed vhd); a declared format must be the one found; iso only when declared.

use hearth_protocol::words::DiskFormat;

use super::error::{Found, FoundList, InspectError};
use super::partition::{InspectWarning, PartitionTable};
use super::source::{Part, READ_BUDGET_BYTES, ReadAt, Source};
use super::{Facts, check_virtual_size, iso, magics, partition, qcow2, vhd, vhdx, vmdk};

/// What every magic at the start of a file needs.
const HEAD_BYTES: usize = 1024;

/// An accepted image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inspection {
    /// What it is.
    pub format: DiskFormat,
    /// Size of the disk a guest sees; for iso and raw the file's length. Bytes.
    pub virtual_size_bytes: u64,
    /// Upper bound of bytes that are not zero, from the format's tables. Bytes.
    pub mapped_bytes: u64,
    /// Partition table at the start of a raw disk, fixed vhd or iso; `None` where we did not look inside.
    pub partition_table: PartitionTable,
    /// Oddities, for people.
    pub warnings: Vec<InspectWarning>,
    /// What the inspection cost.
    pub read_bytes: u64,
}

/// Recognises and checks an image. `declared` is what the uploader said, if anything.
///
/// # Errors
/// [`InspectError`]: the file is not accepted, with the reason and what to do.
pub fn inspect<R: ReadAt + ?Sized>(
    reader: &R,
    declared: Option<DiskFormat>,
) -> Result<Inspection, InspectError> {
    let source = Source::new(reader, READ_BUDGET_BYTES);
    if source.len_bytes() == 0 {
        return Err(InspectError::Empty);
    }
    let mut head = [0u8; HEAD_BYTES];
    head.copy_from_slice(&source.peek::<HEAD_BYTES>(0)?);
    let partition_table = partition::recognise(&head);
    let found = decide(&source, &head, partition_table, declared)?;
    let facts = match found {
        Found::Qcow2 => qcow2::check(&source)?,
        Found::Vmdk => vmdk::check(&source)?,
        Found::Vhd => vhd::check(&source)?,
        Found::Vhdx => vhdx::check(&source)?,
        Found::Iso => iso::check(&source)?,
        _ => raw(&source)?,
    };
    let mut warnings = Vec::new();
    if found == Found::Raw && partition_table == PartitionTable::Gpt {
        warnings = partition::warnings(&source)?;
    }
    if facts.virtual_size_bytes % 512 != 0 {
        warnings.push(InspectWarning::PartialSector);
    }
    Ok(Inspection {
        format: format(found),
        virtual_size_bytes: facts.virtual_size_bytes,
        mapped_bytes: facts.mapped_bytes,
        partition_table,
        warnings,
        read_bytes: source.read_bytes(),
    })
}

/// Runs all recognisers; returns the one format the file is.
fn decide<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    head: &[u8; HEAD_BYTES],
    partition_table: PartitionTable,
    declared: Option<DiskFormat>,
) -> Result<Found, InspectError> {
    let mut found = magics::recognise(source, head)?;
    found.extend(qcow2::recognise(head));
    if head.starts_with(vmdk::MAGIC) {
        found.push(Found::Vmdk);
    }
    if vhd::recognise(source, head)? {
        found.push(Found::Vhd);
    }
    if head.starts_with(vhdx::MAGIC) {
        found.push(Found::Vhdx);
    }
    if iso::recognise(source)? {
        found.push(Found::Iso);
    }
    let as_iso = found == [Found::Iso] && declared == Some(DiskFormat::Iso);
    let as_fixed_vhd = found == [Found::Vhd] && vhd::is_fixed(head);
    if partition_table != PartitionTable::None && !found.is_empty() && !as_iso && !as_fixed_vhd {
        found.push(Found::PartitionTable);
    }
    let one = match found.as_slice() {
        [] => Found::Raw,
        [one] => *one,
        _ => return Err(InspectError::Polyglot { found: FoundList(found) }),
    };
    match one {
        Found::Raw | Found::Qcow2 | Found::Vmdk | Found::Vhd | Found::Vhdx | Found::Iso => {}
        _ => return Err(InspectError::Refused { found: one }),
    }
    match declared {
        Some(declared) if declared != format(one) => {
            Err(InspectError::Mismatch { declared: as_found(declared), found: one })
        }
        None if one == Found::Iso => Err(InspectError::IsoNotDeclared),
        _ => Ok(one),
    }
}

fn raw<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let virtual_size_bytes = source.len_bytes();
    check_virtual_size(Found::Raw, virtual_size_bytes)?;
    let last = virtual_size_bytes - 1;
    source.array::<1>(Part { format: Found::Raw, name: "disk" }, last)?;
    Ok(Facts { virtual_size_bytes, mapped_bytes: virtual_size_bytes })
}

/// The format of an accepted file; raw for everything else.
fn format(found: Found) -> DiskFormat {
    match found {
        Found::Qcow2 => DiskFormat::Qcow2,
        Found::Vmdk => DiskFormat::Vmdk,
        Found::Vhd => DiskFormat::Vhd,
        Found::Vhdx => DiskFormat::Vhdx,
        Found::Iso => DiskFormat::Iso,
        _ => DiskFormat::Raw,
    }
}

fn as_found(format: DiskFormat) -> Found {
    match format {
        DiskFormat::Raw => Found::Raw,
        DiskFormat::Qcow2 => Found::Qcow2,
        DiskFormat::Vmdk => Found::Vmdk,
        DiskFormat::Vhd => Found::Vhd,
        DiskFormat::Vhdx => Found::Vhdx,
        DiskFormat::Iso => Found::Iso,
    }
}
