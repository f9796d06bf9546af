//! Inspects VMDK: one sparse extent that carries its own descriptor.
//!
//! **What.** Accepts monolithicSparse and streamOptimized: header, embedded descriptor (every line of a known kind,
//! exactly one extent without a path, no parent), footer equal to the header, and every grain table entry.
//!
//! **Why so strict on the descriptor.** It is a text in which a file may name any other file; a text of 120 bytes made
//! qemu-img copy a file of the host into the image.
//!
//! **Invariants**, each with a test in `tests/`: no other file is named; grains and tables lie inside the file and
//! nothing is used twice; a footer may differ from the header in the place of the grain directory alone.
//!
//! Layout: "Virtual Disk Format 5.0" (VMware), block/vmdk.c (QEMU).

use super::error::{Found, InspectError};
use super::extents::ExtentSet;
use super::source::field::{le16, le32, le64};
use super::source::{Part, ReadAt, Source};
use super::{Facts, MAX_MAPPED_BYTES, check_virtual_size};

pub(super) const MAGIC: &[u8; 4] = b"KDMV";
const SECTOR: u64 = 512;
const AT_END: u64 = u64::MAX;
const FLAG_NEWLINE_TEST: u32 = 1;
const FLAG_REDUNDANT_TABLE: u32 = 1 << 1;
const FLAG_ZEROED_GRAIN: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
const FLAGS_ALLOWED: u32 =
    FLAG_NEWLINE_TEST | FLAG_REDUNDANT_TABLE | FLAG_ZEROED_GRAIN | FLAG_COMPRESSED | FLAG_MARKERS;
const ENTRIES_PER_TABLE: u64 = 512;
/// The descriptor is text of a few hundred bytes; protects the parser's memory.
const DESCRIPTOR_SECTORS_MAX: u64 = 2047;
const MARKER_FOOTER: u32 = 3;
/// Grain directories above this belong to no disk we accept (16 TiB in 4 KiB grains); protects memory.
const DIRECTORY_BYTES_MAX: u64 = 32 << 20;

const fn part(name: &'static str) -> Part {
    Part { format: Found::Vmdk, name }
}

fn bad(field: &'static str, offset: u64, value: u64, allowed: &'static str) -> InspectError {
    InspectError::Field { format: Found::Vmdk, field, offset, value, allowed }
}

fn line_error(line: u32, reason: &'static str) -> InspectError {
    let hint =
        "export it as one file: qemu-img convert -O vmdk -o subformat=streamOptimized SOURCE image.vmdk";
    InspectError::Descriptor { format: Found::Vmdk, line, reason, hint }
}

#[derive(Debug)]
struct Header {
    flags: u32,
    capacity: u64,
    grain_sectors: u64,
    directory: u64,
}

impl Header {
    fn compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }
}

/// Checks everything. See the module's head.
///
/// # Errors
/// Any rule broken.
pub(super) fn check<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let head: [u8; 512] = source.array(part("header"), 0)?;
    let mut header = header(&head)?;
    descriptor(source, &head, header.capacity)?;
    if header.directory == AT_END {
        header.directory = footer(source, &head)?;
    }
    let mapped_bytes = walk(source, &header)?;
    Ok(Facts { virtual_size_bytes: header.capacity * SECTOR, mapped_bytes })
}

fn header(head: &[u8; 512]) -> Result<Header, InspectError> {
    let version = le32(head, 4);
    if !(1..=3).contains(&version) {
        return Err(bad("version", 4, version.into(), "1 to 3"));
    }
    let flags = le32(head, 8);
    if flags & !FLAGS_ALLOWED != 0 {
        return Err(bad("flags", 8, flags.into(), "bits 0 to 2, 16 and 17"));
    }
    let capacity = le64(head, 12);
    let bytes = capacity.saturating_mul(SECTOR);
    check_virtual_size(Found::Vmdk, bytes)?;
    let grain_sectors = le64(head, 20);
    if !(8..=2048).contains(&grain_sectors) || !grain_sectors.is_power_of_two() {
        return Err(bad("grainSize", 20, grain_sectors, "a power of two from 8 to 2,048 sectors"));
    }
    let per_table = le32(head, 44);
    if u64::from(per_table) != ENTRIES_PER_TABLE {
        return Err(bad("numGTEsPerGT", 44, per_table.into(), "512"));
    }
    if flags & FLAG_NEWLINE_TEST != 0 && head[73..77] != *b"\n \r\n" {
        let value = le32(head, 73).into();
        return Err(bad(
            "line end test",
            73,
            value,
            "0a 20 0d 0a; the file went through a text-mode transfer",
        ));
    }
    let algorithm = le16(head, 77);
    let compressed = flags & FLAG_COMPRESSED != 0;
    if algorithm > 1 || compressed != (algorithm == 1) || compressed != (flags & FLAG_MARKERS != 0) {
        return Err(bad(
            "compressAlgorithm",
            77,
            algorithm.into(),
            "0, or 1 (deflate) with flag bits 16 and 17",
        ));
    }
    Ok(Header { flags, capacity, grain_sectors, directory: le64(head, 56) })
}

/// Reads the footer that replaces the header where the grain directory was written last; returns its directory.
fn footer<R: ReadAt + ?Sized>(source: &Source<'_, R>, head: &[u8; 512]) -> Result<u64, InspectError> {
    let at = source.len_bytes().saturating_sub(3 * SECTOR);
    let tail: [u8; 1536] = source.array(part("footer"), at)?;
    if le64(&tail, 0) != 1 || le32(&tail, 8) != 0 || le32(&tail, 12) != MARKER_FOOTER {
        return Err(bad("footer marker", at, le32(&tail, 12).into(), "value 1, size 0, type 3"));
    }
    if tail[1024..1536].iter().any(|&byte| byte != 0) {
        return Err(bad("end of stream marker", at + 1024, le32(&tail, 1024).into(), "512 zero bytes"));
    }
    let foot = &tail[512..1024];
    if foot[..56] != head[..56] || foot[64..] != head[64..] {
        return Err(bad("footer", at + 512, 0, "the header's bytes, but for gdOffset"));
    }
    let directory = le64(foot, 56);
    if directory == AT_END {
        return Err(bad("gdOffset of the footer", at + 568, directory, "a sector of the file"));
    }
    Ok(directory)
}

fn descriptor<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    head: &[u8; 512],
    capacity: u64,
) -> Result<(), InspectError> {
    let (offset, size) = (le64(head, 28), le64(head, 36));
    if offset != 1 {
        return Err(bad("descriptorOffset", 28, offset, "1"));
    }
    if size == 0 || size > DESCRIPTOR_SECTORS_MAX {
        return Err(bad("descriptorSize", 36, size, "1 to 2,047 sectors"));
    }
    let bytes = usize::try_from(size * SECTOR).expect("below 1 MiB by the check above");
    let mut text = vec![0u8; bytes];
    source.fill(part("descriptor"), SECTOR, &mut text)?;
    check_descriptor(&text, capacity)
}

/// Digits of a CID. A text that loses all but one of them leaves one byte less than it lost: the first is the zero at its end.
const CID_DIGITS_MAX: usize = 8;

/// Checks the text of an embedded descriptor; it ends at the first zero byte. Behind it may stand zeros, and what qemu-img
/// leaves of its own text: it writes the disk's new CID over the first one, and where that has fewer digits (one file in a
/// hundred) the last bytes of the longer text stay behind the new end.
///
/// # Errors
/// [`InspectError::Descriptor`] or [`InspectError::PointsOutside`] with the line at fault.
pub(super) fn check_descriptor(text: &[u8], capacity: u64) -> Result<(), InspectError> {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    let left =
        text[end..].iter().rposition(|&byte| byte != 0).map_or(&[][..], |last| &text[end + 1..=end + last]);
    if left.len() > CID_DIGITS_MAX - 2 || !text[..end].ends_with(left) {
        return Err(line_error(0, "bytes stand behind the end of the text"));
    }
    let (mut n_extents, mut kind) = (0, None);
    for (number, line) in (1u32..).zip(text[..end].split(|&byte| byte == b'\n')) {
        let line = line.trim_ascii();
        let printable =
            line.iter().all(|&byte| byte == b'\t' || (b' '..0x7f).contains(&byte) || byte >= 0x80);
        let line = std::str::from_utf8(line).ok().filter(|_| printable);
        let line = line.ok_or_else(|| line_error(number, "it is not text"))?;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=').map(|(key, value)| (key.trim(), value.trim().trim_matches('"'))) {
            Some((key, value)) if !key.contains(' ') => setting(number, key, value, &mut kind)?,
            _ => {
                n_extents += 1;
                extent(number, line, capacity)?;
            }
        }
    }
    if kind.is_none() {
        return Err(line_error(0, "createType is missing"));
    }
    if n_extents != 1 {
        return Err(line_error(0, "there must be exactly one extent"));
    }
    Ok(())
}

fn setting(number: u32, key: &str, value: &str, kind: &mut Option<()>) -> Result<(), InspectError> {
    let outside = || InspectError::PointsOutside {
        format: Found::Vmdk,
        what: "a parent disk",
        hint: "consolidate its snapshots and export it again, or: qemu-img convert -O qcow2 SOURCE image.qcow2",
    };
    match key.to_ascii_lowercase().as_str() {
        "version" | "cid" | "encoding" | "isnativesnapshot" => Ok(()),
        "parentcid" if value.eq_ignore_ascii_case("ffffffff") => Ok(()),
        "parentcid" | "parentfilenamehint" => Err(outside()),
        "createtype" if kind.is_some() => Err(line_error(number, "createType stands twice")),
        "createtype" if matches!(value, "monolithicSparse" | "streamOptimized") => {
            *kind = Some(());
            Ok(())
        }
        "createtype" => Err(line_error(number, "createType must be monolithicSparse or streamOptimized")),
        other if other.starts_with("ddb.") => Ok(()),
        _ => Err(line_error(number, "it is of no known kind")),
    }
}

/// `RW 4194304 SPARSE "disk.vmdk"`: access, sectors, kind and a bare name.
fn extent(number: u32, line: &str, capacity: u64) -> Result<(), InspectError> {
    let mut words = line.splitn(4, ' ');
    let (access, sectors, kind, name) = (words.next(), words.next(), words.next(), words.next());
    if !matches!(access, Some("RW" | "RDONLY")) {
        return Err(line_error(number, "it is of no known kind"));
    }
    if kind != Some("SPARSE") {
        return Err(line_error(number, "the extent must be SPARSE, the file's own"));
    }
    if sectors.and_then(|text| text.parse::<u64>().ok()) != Some(capacity) {
        return Err(line_error(number, "the extent's size is not the disk's"));
    }
    let name = name.and_then(|text| text.trim().strip_prefix('"')).and_then(|text| text.strip_suffix('"'));
    match name {
        Some(name) if !name.is_empty() && !name.contains(['/', '\\', '"', ':']) => Ok(()),
        _ => Err(line_error(number, "the extent must be a bare file name in quotes, without a path")),
    }
}

/// Walks grain directory and grain tables; returns the mapped bytes.
fn walk<R: ReadAt + ?Sized>(source: &Source<'_, R>, header: &Header) -> Result<u64, InspectError> {
    let n_grains = header.capacity.div_ceil(header.grain_sectors);
    let n_tables = n_grains.div_ceil(ENTRIES_PER_TABLE);
    if n_tables * 4 > DIRECTORY_BYTES_MAX {
        return Err(bad("grainSize", 20, header.grain_sectors, "larger grains for a disk of this size"));
    }
    let mut used = ExtentSet::default();
    let at = header.directory.saturating_mul(SECTOR);
    let mut directory = vec![0u8; usize::try_from(n_tables * 4).expect("at most 32 MiB by the check above")];
    source.fill(part("grain directory"), at, &mut directory)?;
    let mut mapped_bytes = 0;
    add(&mut used, 0, 1)?;
    add(&mut used, header.directory, (n_tables * 4).div_ceil(SECTOR))?;
    for (index, table) in (0u64..).zip(directory.chunks_exact(4).map(|bytes| le32(bytes, 0))) {
        if table == 0 {
            continue;
        }
        let entries: [u8; 2048] = source.array(part("grain table"), u64::from(table) * SECTOR)?;
        add(&mut used, table.into(), 4)?;
        for (slot, grain) in (0u64..).zip(entries.chunks_exact(4).map(|bytes| le32(bytes, 0))) {
            let guest = (index * ENTRIES_PER_TABLE + slot) * header.grain_sectors;
            let zeroed = grain == 1 && header.flags & FLAG_ZEROED_GRAIN != 0;
            if grain == 0 || zeroed {
                continue;
            }
            let here = header.grain_sectors.min(header.capacity.saturating_sub(guest));
            if here == 0 {
                let at = u64::from(table) * SECTOR + slot * 4;
                return Err(bad("grain table entry", at, grain.into(), "0 behind the end of the disk"));
            }
            let stored = stored_sectors(source, header, grain.into(), guest, here)?;
            add(&mut used, grain.into(), stored)?;
            mapped_bytes += here * SECTOR;
        }
        if mapped_bytes > MAX_MAPPED_BYTES {
            let max_bytes = MAX_MAPPED_BYTES;
            return Err(InspectError::TooMuchMapped { format: Found::Vmdk, mapped_bytes, max_bytes });
        }
    }
    match used.overlap() {
        None => Ok(mapped_bytes),
        Some(sector) => Err(InspectError::MappedTwice {
            format: Found::Vmdk,
            part: "grain or table",
            offset: sector * SECTOR,
        }),
    }
}

fn add(used: &mut ExtentSet, start: u64, sectors: u64) -> Result<(), InspectError> {
    if used.add(start, sectors) {
        return Ok(());
    }
    let allowed = "at most 16,777,216 grains; make them larger or: qemu-img convert -O qcow2";
    Err(bad("number of grains", start.saturating_mul(SECTOR), sectors, allowed))
}

/// Sectors the grain takes in the file; it must lie inside the file.
fn stored_sectors<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    header: &Header,
    grain: u64,
    guest: u64,
    here: u64,
) -> Result<u64, InspectError> {
    let offset = grain * SECTOR;
    let (needed_bytes, sectors) = if header.compressed() {
        let marker: [u8; 12] = source.array(part("grain marker"), offset)?;
        let (lba, size) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
        if lba != guest {
            return Err(bad("sector number of a grain marker", offset, lba, "the grain's place on the disk"));
        }
        if size == 0 || size > 2 * header.grain_sectors * SECTOR {
            return Err(bad("size of a grain marker", offset + 8, size, "1 to twice the grain size"));
        }
        (12 + size, (12 + size).div_ceil(SECTOR))
    } else {
        (here * SECTOR, here)
    };
    if offset + needed_bytes > source.len_bytes() {
        let file_bytes = source.len_bytes();
        return Err(InspectError::Truncated {
            format: Found::Vmdk,
            part: "grain",
            offset,
            needed_bytes,
            file_bytes,
        });
    }
    Ok(sectors)
}

/// Whether QEMU would take this text for a VMDK descriptor: comments and blank lines, then `version=1`, 2 or 3.
pub(super) fn looks_like_descriptor(head: &[u8]) -> bool {
    for line in head.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") {
            if line.to_ascii_lowercase().starts_with(b"# disk descriptorfile") {
                return true;
            }
            continue;
        }
        if line.iter().all(|&byte| byte == b' ') {
            continue;
        }
        let line = line.trim_ascii().to_ascii_lowercase();
        return [b"version=1", b"version=2", b"version=3"].iter().any(|text| line.starts_with(*text));
    }
    false
}
