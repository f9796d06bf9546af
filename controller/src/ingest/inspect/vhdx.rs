//! Inspects VHDX (Hyper-V).
//!
//! **What.** File identifier, both headers, region table, metadata table and block allocation table, each with its
//! checksum where the format has one. A log that waits to be replayed, a parent, and any required item or region we do
//! not know are refused.
//!
//! **Why a dirty log is refused.** Replaying it means writing to the file by rules found in the file; the machine that
//! left it can do that safely by opening the disk once.
//!
//! **Invariants**, each with a test in `tests/`: checksums hold; the disk needs no other file; every block lies inside
//! the file and is used once; 2,047 entries at most in a table.
//!
//! Layout: MS-VHDX.

use super::crc::crc32c;
use super::error::{Found, InspectError};
use super::extents::ExtentSet;
use super::source::field::{le16, le32, le64};
use super::source::{Part, ReadAt, Source};
use super::{Facts, MAX_MAPPED_BYTES, check_virtual_size};

pub(super) const MAGIC: &[u8; 8] = b"vhdxfile";
const MIB: u64 = 1 << 20;
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS_AT: u64 = 192 << 10;
const REGION_TABLE_BYTES: usize = 64 << 10;
/// By MS-VHDX; protects the parser's time.
const ENTRIES_MAX: u32 = 2047;

type Guid = [u8; 16];
pub(super) const BAT: Guid = guid(0x2DC2_7766, 0xF623, 0x4200, 0x9D64_115E_9BFD_4A08);
pub(super) const METADATA: Guid = guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E);
pub(super) const FILE_PARAMETERS: Guid = guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B);
pub(super) const DISK_SIZE: Guid = guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8);
const DISK_ID: Guid = guid(0xBECA_12AB, 0xB2E6, 0x4523, 0x93EF_C309_E000_C746);
pub(super) const LOGICAL_SECTOR: Guid = guid(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47_F233_A8FA_AB5F);
const PHYSICAL_SECTOR: Guid = guid(0xCDA3_48C7, 0x445D, 0x4471, 0x9CC9_E988_5251_C556);
pub(super) const PARENT_LOCATOR: Guid = guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> Guid {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

const fn part(name: &'static str) -> Part {
    Part { format: Found::Vhdx, name }
}

fn bad(field: &'static str, offset: u64, value: u64, allowed: &'static str) -> InspectError {
    InspectError::Field { format: Found::Vhdx, field, offset, value, allowed }
}

fn outside() -> InspectError {
    let hint = "merge it into its parent (Hyper-V: Merge-VHD) and import the result";
    InspectError::PointsOutside { format: Found::Vhdx, what: "a parent disk", hint }
}

/// Compares the CRC-32C at bytes 4..8 with that of the block with those bytes zeroed.
fn checksum(block: &[u8], name: &'static str) -> Result<(), InspectError> {
    let (stored, computed) = (le32(block, 4), crc32c(&[&block[..4], &[0; 4], &block[8..]]));
    if stored == computed {
        return Ok(());
    }
    Err(InspectError::Checksum { format: Found::Vhdx, part: name, stored, computed })
}

#[derive(Clone, Copy, Debug)]
struct Region {
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Disk {
    virtual_size_bytes: u64,
    block_bytes: u64,
    sector_bytes: u64,
}

/// Checks everything. See the module's head.
///
/// # Errors
/// Any rule broken.
pub(super) fn check<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let mut used = ExtentSet::default();
    let mut ok = used.add(0, MIB / 512);
    let log = active_header(source)?;
    if log.bytes > 0 {
        ok &= used.add(log.offset / 512, log.bytes / 512);
    }
    let (bat, metadata) = regions(source)?;
    for region in [bat, metadata] {
        ok &= used.add(region.offset / 512, region.bytes / 512);
    }
    let disk = disk(source, metadata)?;
    let mapped_bytes = walk(source, &disk, bat, &mut used)?;
    if !ok {
        return Err(bad("region", REGIONS_AT, bat.bytes, "regions of less than 8 GiB"));
    }
    if let Some(sector) = used.overlap() {
        let (part, offset) = ("block or region", sector * 512);
        return Err(InspectError::MappedTwice { format: Found::Vhdx, part, offset });
    }
    Ok(Facts { virtual_size_bytes: disk.virtual_size_bytes, mapped_bytes })
}

/// Finds the newer of the two headers; returns where the (empty) log lies.
fn active_header<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Region, InspectError> {
    let mut active: Option<(u64, u64, [u8; 4096])> = None;
    let mut first_error = None;
    for at in HEADERS_AT {
        let head: [u8; 4096] = source.array(part("header"), at)?;
        let checked = if head.starts_with(b"head") {
            checksum(&head, "a header")
        } else {
            Err(bad("header signature", at, le32(&head, 0).into(), "head"))
        };
        match checked {
            Err(error) => first_error = first_error.or(Some(error)),
            Ok(()) => {
                let sequence = le64(&head, 8);
                if active.as_ref().is_none_or(|(newest, ..)| sequence > *newest) {
                    active = Some((sequence, at, head));
                }
            }
        }
    }
    let Some((_, at, head)) = active else {
        return Err(first_error.expect("a header that is not active has left its error"));
    };
    if head[48..64].iter().any(|&byte| byte != 0) {
        let allowed = "no log to replay: attach the disk once where it was made, shut that machine down cleanly, and \
                       copy it again";
        return Err(bad("log GUID", at + 48, le64(&head, 48), allowed));
    }
    if le16(&head, 66) != 1 {
        return Err(bad("version", at + 66, le16(&head, 66).into(), "1"));
    }
    let log = Region { offset: le64(&head, 72), bytes: le32(&head, 68).into() };
    inside(source, log, "log")?;
    Ok(log)
}

/// A region is a MiB or more, on a MiB boundary, behind the first MiB, inside the file.
fn inside<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    region: Region,
    name: &'static str,
) -> Result<(), InspectError> {
    if region.bytes == 0 && name == "log" {
        return Ok(());
    }
    if region.offset < MIB
        || !region.offset.is_multiple_of(MIB)
        || region.bytes == 0
        || !region.bytes.is_multiple_of(MIB)
    {
        return Err(bad(name, region.offset, region.bytes, "whole MiB on MiB boundaries from 1 MiB on"));
    }
    if region.offset.checked_add(region.bytes).is_none_or(|end| end > source.len_bytes()) {
        return Err(InspectError::Truncated {
            format: Found::Vhdx,
            part: name,
            offset: region.offset,
            needed_bytes: region.bytes,
            file_bytes: source.len_bytes(),
        });
    }
    Ok(())
}

/// Reads the region table; returns (BAT, metadata).
fn regions<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<(Region, Region), InspectError> {
    let mut table = vec![0u8; REGION_TABLE_BYTES];
    source.fill(part("region table"), REGIONS_AT, &mut table)?;
    if !table.starts_with(b"regi") {
        return Err(bad("region table signature", REGIONS_AT, le32(&table, 0).into(), "regi"));
    }
    checksum(&table, "the region table")?;
    let n = le32(&table, 8);
    if n > ENTRIES_MAX {
        return Err(bad("region entry count", REGIONS_AT + 8, n.into(), "at most 2,047"));
    }
    let (mut bat, mut metadata) = (None, None);
    for (index, entry) in (0u64..).zip(table[16..].chunks_exact(32).take(n as usize)) {
        let at = REGIONS_AT + 16 + index * 32;
        let region = Region { offset: le64(entry, 16), bytes: le32(entry, 24).into() };
        let slot = match &entry[..16] {
            id if id == BAT => &mut bat,
            id if id == METADATA => &mut metadata,
            _ if le32(entry, 28) & 1 == 0 => continue,
            _ => return Err(bad("region", at, le64(entry, 0), "BAT, metadata and optional regions")),
        };
        inside(source, region, "region")?;
        if slot.replace(region).is_some() {
            return Err(bad("region", at, le64(entry, 0), "each region once"));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok((bat, metadata)),
        _ => Err(bad("region entry count", REGIONS_AT + 8, n.into(), "a BAT and a metadata region")),
    }
}

/// Reads the metadata items.
fn disk<R: ReadAt + ?Sized>(source: &Source<'_, R>, metadata: Region) -> Result<Disk, InspectError> {
    let mut table = vec![0u8; REGION_TABLE_BYTES];
    source.fill(part("metadata table"), metadata.offset, &mut table)?;
    if !table.starts_with(b"metadata") {
        return Err(bad("metadata signature", metadata.offset, le64(&table, 0), "metadata"));
    }
    let n = le16(&table, 10);
    if u32::from(n) > ENTRIES_MAX {
        return Err(bad("metadata entry count", metadata.offset + 10, n.into(), "at most 2,047"));
    }
    let (mut block_bytes, mut size, mut sector) = (None, None, None);
    for (index, entry) in (0u64..).zip(table[32..].chunks_exact(32).take(n.into())) {
        let at = metadata.offset + 32 + index * 32;
        let (offset, length, flags) = (le32(entry, 16), le32(entry, 20), le32(entry, 24));
        let inside = u64::from(offset) + u64::from(length) <= metadata.bytes;
        if !inside || offset < 64 << 10 {
            return Err(bad("metadata item offset", at + 16, offset.into(), "inside the metadata region"));
        }
        let item_at = metadata.offset + u64::from(offset);
        let value: [u8; 8] = if length >= 8 {
            source.array(part("metadata item"), item_at)?
        } else {
            let [a, b, c, d] = source.array::<4>(part("metadata item"), item_at)?;
            [a, b, c, d, 0, 0, 0, 0]
        };
        let twice = match &entry[..16] {
            id if id == FILE_PARAMETERS => {
                if le32(&value, 4) & 2 != 0 {
                    return Err(outside());
                }
                block_bytes.replace(u64::from(le32(&value, 0))).is_some()
            }
            id if id == DISK_SIZE => size.replace(le64(&value, 0)).is_some(),
            id if id == LOGICAL_SECTOR => sector.replace(u64::from(le32(&value, 0))).is_some(),
            id if id == DISK_ID || id == PHYSICAL_SECTOR => false,
            id if id == PARENT_LOCATOR => return Err(outside()),
            _ if flags & 4 == 0 => false,
            _ => return Err(bad("metadata item", at, le64(entry, 0), "items of MS-VHDX version 1")),
        };
        if twice {
            return Err(bad("metadata item", at, le64(entry, 0), "each item once"));
        }
    }
    let missing =
        || bad("metadata entry count", metadata.offset + 10, n.into(), "parameters, size and sector size");
    checked(
        metadata,
        block_bytes.ok_or_else(missing)?,
        size.ok_or_else(missing)?,
        sector.ok_or_else(missing)?,
    )
}

fn checked(metadata: Region, block_bytes: u64, size: u64, sector_bytes: u64) -> Result<Disk, InspectError> {
    if !block_bytes.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_bytes) {
        return Err(bad("block size", metadata.offset, block_bytes, "a power of two from 1 to 256 MiB"));
    }
    if sector_bytes != 512 && sector_bytes != 4096 {
        return Err(bad("logical sector size", metadata.offset, sector_bytes, "512 or 4096"));
    }
    check_virtual_size(Found::Vhdx, size)?;
    if !size.is_multiple_of(sector_bytes) {
        return Err(bad("virtual disk size", metadata.offset, size, "whole sectors"));
    }
    Ok(Disk { virtual_size_bytes: size, block_bytes, sector_bytes })
}

/// Walks the block allocation table; returns the mapped bytes.
fn walk<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    disk: &Disk,
    bat: Region,
    used: &mut ExtentSet,
) -> Result<u64, InspectError> {
    let ratio = (disk.sector_bytes << 23) / disk.block_bytes;
    let n_blocks = disk.virtual_size_bytes.div_ceil(disk.block_bytes);
    let n_entries = n_blocks + (n_blocks - 1) / ratio;
    if n_entries * 8 > bat.bytes {
        return Err(bad(
            "BAT length",
            bat.offset,
            bat.bytes,
            "8 bytes for each block and bitmap of the disk",
        ));
    }
    let mut mapped_bytes = 0;
    let mut entries = vec![0u8; 64 << 10];
    for first in (0..n_entries).step_by(entries.len() / 8) {
        let n = (n_entries - first).min(entries.len() as u64 / 8);
        let bytes = usize::try_from(n * 8).expect("at most the buffer's length");
        source.fill(part("block allocation table"), bat.offset + first * 8, &mut entries[..bytes])?;
        for (index, entry) in (first..).zip(entries[..bytes].chunks_exact(8).map(|bytes| le64(bytes, 0))) {
            let (at, state, offset) = (bat.offset + index * 8, entry & 7, entry >> 20 << 20);
            let is_bitmap = index % (ratio + 1) == ratio;
            match state {
                0..=3 => {}
                6 if !is_bitmap => {
                    let block = index - index / (ratio + 1);
                    let here = disk.block_bytes.min(disk.virtual_size_bytes - block * disk.block_bytes);
                    block_inside(source, offset, here)?;
                    if !used.add(offset / 512, here.div_ceil(512)) {
                        return Err(bad(
                            "BAT entry",
                            at,
                            entry,
                            "offsets below 512 TiB, at most 16,777,216 blocks",
                        ));
                    }
                    mapped_bytes += here;
                }
                _ => return Err(bad("BAT entry", at, entry, "states 0 to 3 and, for blocks, 6")),
            }
        }
        if mapped_bytes > MAX_MAPPED_BYTES {
            let max_bytes = MAX_MAPPED_BYTES;
            return Err(InspectError::TooMuchMapped { format: Found::Vhdx, mapped_bytes, max_bytes });
        }
    }
    Ok(mapped_bytes)
}

fn block_inside<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    offset: u64,
    needed_bytes: u64,
) -> Result<(), InspectError> {
    let file_bytes = source.len_bytes();
    if offset >= MIB && offset.checked_add(needed_bytes).is_some_and(|end| end <= file_bytes) {
        return Ok(());
    }
    Err(InspectError::Truncated { format: Found::Vhdx, part: "block", offset, needed_bytes, file_bytes })
}
