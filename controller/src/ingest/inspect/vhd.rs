//! Inspects VHD (Virtual PC, old Hyper-V, Xen): fixed and dynamic.
//!
//! **What.** Footer (and its copy at the start of a dynamic disk) with checksums, dynamic header, block allocation
//! table. Differencing disks and parent locators are refused.
//!
//! **Why the size has two readings.** Programs that came from Virtual PC trust the geometry, Hyper-V's trust the size
//! field; QEMU chooses by the creator field, and we read it the same way so that the converted disk has the size we said.
//!
//! **Invariants**, each with a test in `tests/`: checksums hold; the disk needs no other file; every block lies inside
//! the file and is used once.
//!
//! Layout: "Virtual Hard Disk Image Format Specification" (Microsoft, 2006), block/vpc.c (QEMU).

use super::error::{Found, InspectError};
use super::extents::ExtentSet;
use super::source::field::{be16, be32, be64};
use super::source::{Part, ReadAt, Source};
use super::{Facts, MAX_MAPPED_BYTES, check_virtual_size};

pub(super) const COOKIE: &[u8; 8] = b"conectix";
const SECTOR: u64 = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// 65535 cylinders, 16 heads, 255 sectors: what the geometry says when it cannot say more.
const GEOMETRY_MAX_SECTORS: u64 = 65535 * 16 * 255;
/// Creators whose size field counts, as block/vpc.c of QEMU lists them.
const SIZE_FIELD_CREATORS: [&[u8; 4]; 6] = [b"win ", b"d2v ", b"qem2", b"tap\0", b"CTXS", b"wa\0\0"];
const UNUSED: u32 = u32::MAX;

const fn part(name: &'static str) -> Part {
    Part { format: Found::Vhd, name }
}

fn bad(field: &'static str, offset: u64, value: u64, allowed: &'static str) -> InspectError {
    InspectError::Field { format: Found::Vhd, field, offset, value, allowed }
}

/// Where the footer stands: at the start (dynamic) or only at the end (fixed).
pub(super) fn recognise<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    head: &[u8],
) -> Result<bool, InspectError> {
    if head.starts_with(COOKIE) {
        return Ok(true);
    }
    let Some(at) = source.len_bytes().checked_sub(SECTOR) else { return Ok(false) };
    Ok(source.peek::<8>(at)? == *COOKIE)
}

/// Whether the file is a fixed disk, whose first bytes are the disk's own.
pub(super) fn is_fixed(head: &[u8]) -> bool {
    !head.starts_with(COOKIE)
}

/// Checks everything. See the module's head.
///
/// # Errors
/// Any rule broken.
pub(super) fn check<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let at = source.len_bytes().saturating_sub(SECTOR);
    let head: [u8; 8] = source.array(part("header"), 0)?;
    let foot: [u8; 512] = source.array(part("footer"), at)?;
    if !foot.starts_with(COOKIE) {
        let (offset, file_bytes) = (at, source.len_bytes());
        let truncated = InspectError::Truncated {
            format: Found::Vhd,
            part: "footer",
            offset,
            needed_bytes: SECTOR,
            file_bytes,
        };
        return Err(truncated);
    }
    let virtual_size_bytes = footer(&foot, at)?;
    match be32(&foot, 60) {
        FIXED if is_fixed(&head) => {
            if virtual_size_bytes > at {
                let file_bytes = source.len_bytes();
                return Err(InspectError::Truncated {
                    format: Found::Vhd,
                    part: "fixed disk",
                    offset: 0,
                    needed_bytes: virtual_size_bytes + SECTOR,
                    file_bytes,
                });
            }
            Ok(Facts { virtual_size_bytes, mapped_bytes: virtual_size_bytes })
        }
        DYNAMIC if !is_fixed(&head) => {
            let copy: [u8; 512] = source.array(part("footer copy"), 0)?;
            if copy != foot {
                return Err(bad("footer copy", 0, 0, "the same bytes as the footer at the end"));
            }
            let mapped_bytes = dynamic(source, &foot, virtual_size_bytes)?;
            Ok(Facts { virtual_size_bytes, mapped_bytes })
        }
        DIFFERENCING => Err(outside()),
        other => Err(bad("disk type", at + 60, other.into(), "2 (fixed) or 3 (dynamic, with a footer copy)")),
    }
}

fn outside() -> InspectError {
    let hint = "merge it into its parent (Hyper-V: Merge-VHD) and import the result";
    InspectError::PointsOutside { format: Found::Vhd, what: "a parent disk", hint }
}

fn checksum(bytes: &[u8], at: usize, name: &'static str) -> Result<(), InspectError> {
    let stored = be32(bytes, at);
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = bytes[at..at + 4].iter().map(|&byte| u32::from(byte)).sum();
    let computed = !(sum - own);
    if stored == computed {
        return Ok(());
    }
    Err(InspectError::Checksum { format: Found::Vhd, part: name, stored, computed })
}

/// Checks the footer at `at`; returns the disk's size in bytes.
fn footer(foot: &[u8; 512], at: u64) -> Result<u64, InspectError> {
    checksum(foot, 64, "the footer")?;
    let version = be32(foot, 12);
    if version != 0x0001_0000 {
        return Err(bad("file format version", at + 12, version.into(), "0x10000"));
    }
    if be32(foot, 60) == DIFFERENCING {
        return Err(outside());
    }
    if foot[84] > 1 {
        return Err(bad("saved state", at + 84, foot[84].into(), "0 or 1"));
    }
    let geometry = u64::from(be16(foot, 56)) * u64::from(foot[58]) * u64::from(foot[59]);
    let by_size = SIZE_FIELD_CREATORS.iter().any(|name| foot[28..32] == name[..]);
    let size = be64(foot, 48);
    let sectors = if by_size || geometry == GEOMETRY_MAX_SECTORS { size / SECTOR } else { geometry };
    let virtual_size_bytes = sectors * SECTOR;
    check_virtual_size(Found::Vhd, virtual_size_bytes)?;
    Ok(virtual_size_bytes)
}

/// Checks the dynamic header and walks the allocation table; returns the mapped bytes.
fn dynamic<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    foot: &[u8; 512],
    virtual_size_bytes: u64,
) -> Result<u64, InspectError> {
    let at = be64(foot, 16);
    let head: [u8; 1024] = source.array(part("dynamic header"), at)?;
    if !head.starts_with(b"cxsparse") {
        return Err(bad("dynamic header cookie", at, be64(&head, 0), "cxsparse"));
    }
    checksum(&head, 36, "the dynamic header")?;
    if head[40..64].iter().chain(&head[576..768]).any(|&byte| byte != 0) {
        return Err(outside());
    }
    let block_bytes = u64::from(be32(&head, 32));
    if !block_bytes.is_power_of_two() || !(4096..=256 << 20).contains(&block_bytes) {
        return Err(bad("block size", at + 32, block_bytes, "a power of two from 4 KiB to 256 MiB"));
    }
    let n_blocks = virtual_size_bytes.div_ceil(block_bytes);
    let n_entries = u64::from(be32(&head, 28));
    if n_entries < n_blocks {
        return Err(bad("max table entries", at + 28, n_entries, "enough for the disk"));
    }
    let table_at = be64(&head, 16);
    if !table_at.is_multiple_of(SECTOR) {
        return Err(bad("table offset", at + 16, table_at, "a sector boundary"));
    }
    let mut used = ExtentSet::default();
    let table_sectors = (n_entries * 4).div_ceil(SECTOR);
    let mut ok = used.add(0, 1) && used.add(source.len_bytes() / SECTOR - 1, 1);
    ok &= used.add(at / SECTOR, 2) && used.add(table_at / SECTOR, table_sectors);
    let bitmap_sectors = (block_bytes / SECTOR).div_ceil(8).div_ceil(SECTOR);
    let mut mapped_bytes = 0;
    let mut entries = vec![0u8; 64 << 10];
    for first in (0..n_blocks).step_by(entries.len() / 4) {
        let n = (n_blocks - first).min(entries.len() as u64 / 4);
        let bytes = usize::try_from(n * 4).expect("at most the buffer's length");
        let from = table_at.saturating_add(first * 4);
        source.fill(part("block allocation table"), from, &mut entries[..bytes])?;
        for (block, entry) in (first..).zip(entries[..bytes].chunks_exact(4).map(|bytes| be32(bytes, 0))) {
            if entry == UNUSED {
                continue;
            }
            let here = block_bytes.min(virtual_size_bytes - block * block_bytes);
            let offset = u64::from(entry) * SECTOR;
            let needed_bytes = bitmap_sectors * SECTOR + here;
            if offset + needed_bytes > source.len_bytes() {
                let (part, file_bytes) = ("block", source.len_bytes());
                return Err(InspectError::Truncated {
                    format: Found::Vhd,
                    part,
                    offset,
                    needed_bytes,
                    file_bytes,
                });
            }
            ok &= used.add(entry.into(), needed_bytes.div_ceil(SECTOR));
            mapped_bytes += here;
        }
        if mapped_bytes > MAX_MAPPED_BYTES {
            let max_bytes = MAX_MAPPED_BYTES;
            return Err(InspectError::TooMuchMapped { format: Found::Vhd, mapped_bytes, max_bytes });
        }
    }
    if !ok {
        return Err(bad("number of blocks", at + 28, n_blocks, "at most 16,777,212 blocks"));
    }
    match used.overlap() {
        None => Ok(mapped_bytes),
        Some(sector) => Err(InspectError::MappedTwice {
            format: Found::Vhd,
            part: "block or table",
            offset: sector * SECTOR,
        }),
    }
}
