//! Looks for partition tables: MBR and GPT.
//!
//! **What.** Says whether the file begins with a partition table, and warns of GPT checksums that do not hold.
//!
//! **Why.** A container format that also begins with a partition table is two disks in one file. On a raw disk the
//! table is a note for people: it says nothing about whether the disk is accepted.
//!
//! **Invariants.** Nothing here refuses an image by itself. A FAT boot sector is not a partition table.

use super::crc::crc32;
use super::error::InspectError;
use super::source::field::{le32, le64};
use super::source::{ReadAt, Source};

/// Which partition table stands at the start of the disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PartitionTable {
    /// None that we know.
    #[default]
    None,
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// Something odd that does not keep the image out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InspectWarning {
    /// The primary GPT header's checksum is wrong.
    #[error("the GPT header's checksum is wrong; a guest may repair it from the backup")]
    GptChecksum,
    /// No GPT backup where the header says.
    #[error("the backup GPT is not at the end of the disk; a guest may move it (common after a resize)")]
    GptBackupMissing,
    /// The size is no multiple of 512.
    #[error("the disk is no whole number of 512-byte sectors; guests will not see the last bytes")]
    PartialSector,
}

/// Finds the partition table in the first KiB of a disk.
pub(super) fn recognise(head: &[u8]) -> PartitionTable {
    let Some(mbr) = head.get(..512) else { return PartitionTable::None };
    if mbr[510..512] != [0x55, 0xAA] || is_fat(mbr) {
        return PartitionTable::None;
    }
    let entries = mbr[446..510].chunks_exact(16);
    if entries.clone().any(|entry| !matches!(entry[0], 0 | 0x80)) {
        return PartitionTable::None;
    }
    let used: Vec<&[u8]> = entries.filter(|entry| entry[4] != 0).collect();
    match used.as_slice() {
        [] => PartitionTable::None,
        _ if head.get(512..520) == Some(b"EFI PART") => PartitionTable::Gpt,
        [only] if only[4] == 0xEE && le32(only, 8) == 1 => PartitionTable::Gpt,
        _ => PartitionTable::Mbr,
    }
}

fn is_fat(sector: &[u8]) -> bool {
    let jump = sector[0] == 0xEB || sector[0] == 0xE9;
    jump && (sector[54..57] == *b"FAT" || sector[82..85] == *b"FAT") && sector[16] <= 2
}

/// What is odd about the GPT of a raw disk.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn warnings<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
) -> Result<Vec<InspectWarning>, InspectError> {
    let mut warnings = Vec::new();
    let header: [u8; 92] = source.peek(512)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(warnings); // 4 KiB sectors or no header behind the protective MBR.
    }
    if le32(&header, 16) != crc32(&[&header[..16], &[0; 4], &header[20..]]) {
        warnings.push(InspectWarning::GptChecksum);
    }
    let backup_at = le64(&header, 32).checked_mul(512);
    let present =
        match backup_at.filter(|at| at.checked_add(512).is_some_and(|end| end <= source.len_bytes())) {
            None => false,
            Some(at) => source.peek::<8>(at)? == *b"EFI PART",
        };
    if !present {
        warnings.push(InspectWarning::GptBackupMissing);
    }
    Ok(warnings)
}
