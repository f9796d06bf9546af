//! Inspects qcow2: header, extensions, and every L1 and L2 entry.
//!
//! **What.** Accepts a version 2 or 3 image that stands alone: no backing file, no data file, no snapshots, no
//! encryption, no bits or extensions beyond the allow-list, every table and cluster inside the file and used once.
//!
//! **Why walk the tables.** The header of a 1 MiB file that maps one cluster half a billion times is perfectly fine
//! (it unpacks to 32 TiB); `qemu-img check` spends minutes on such a file. The walk reads each table once.
//!
//! **Invariants**, each with a test in `tests/`: nothing outside the file is named; no cluster is mapped twice; mapped
//! bytes stay under the cap; unknown incompatible and autoclear bits are refused.
//!
//! Layout: docs/interop/qcow2.txt of QEMU.

use super::error::{Found, InspectError};
use super::extents::{ClusterMap, MAX_EXTENTS};
use super::source::field::{be32, be64};
use super::source::{Part, ReadAt, Source};
use super::{Facts, MAX_MAPPED_BYTES, check_virtual_size};

const MAGIC: u32 = 0x5146_49FB;
/// Bit 3 says that the compression type field counts; every other incompatible bit is refused.
const INCOMPATIBLE_ALLOWED: u64 = 1 << 3;
const EXTENSION_END: u32 = 0;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_F857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
/// QEMU's own limit; protects its and our memory.
const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU's own limit for the refcount table.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
const HEADER_V2_BYTES: u32 = 72;
const HEADER_V3_BYTES: u32 = 104;
/// Feature names need 48 bytes each, of at most 3 × 64; protects the parser's time.
const EXTENSIONS_MAX: u32 = 16;

const OFFSET_MASK: u64 = 0x00FF_FFFF_FFFF_FE00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;

/// What the first bytes say. `Some` for every file with the magic, whatever its version.
pub(super) fn recognise(head: &[u8]) -> Option<Found> {
    if be32(head, 0) != MAGIC {
        return None;
    }
    Some(match be32(head, 4) {
        1 => Found::Qcow1,
        2 | 3 => Found::Qcow2,
        _ => Found::QcowUnknown,
    })
}

const fn part(name: &'static str) -> Part {
    Part { format: Found::Qcow2, name }
}

fn bad(field: &'static str, offset: u64, value: u64, allowed: &'static str) -> InspectError {
    InspectError::Field { format: Found::Qcow2, field, offset, value, allowed }
}

fn twice(part: &'static str, offset: u64) -> InspectError {
    InspectError::MappedTwice { format: Found::Qcow2, part, offset }
}

/// The header fields the walk needs.
#[derive(Debug)]
struct Header {
    version: u32,
    cluster_bits: u32,
    virtual_size_bytes: u64,
    l1_offset: u64,
    n_l1: u64,
    refcount_offset: u64,
    refcount_clusters: u64,
}

impl Header {
    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
    fn n_l2(&self) -> u64 {
        self.cluster_bytes() / 8
    }
}

/// Checks everything. See the module's head.
///
/// # Errors
/// Any rule broken.
pub(super) fn check<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let head: [u8; 72] = source.array(part("header"), 0)?;
    let header = header(&head)?;
    if header.version == 3 {
        let length = version_3(source)?;
        extensions(source, length, header.cluster_bytes())?;
    } else {
        extensions(source, HEADER_V2_BYTES, header.cluster_bytes())?;
    }
    let mapped_bytes = walk(source, &header)?;
    Ok(Facts { virtual_size_bytes: header.virtual_size_bytes, mapped_bytes })
}

fn header(head: &[u8; 72]) -> Result<Header, InspectError> {
    if be64(head, 8) != 0 || be32(head, 16) != 0 {
        let hint = "flatten it: qemu-img convert -O qcow2 SOURCE image.qcow2, then import image.qcow2";
        return Err(InspectError::PointsOutside { format: Found::Qcow2, what: "a backing file", hint });
    }
    let cluster_bits = be32(head, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(bad("cluster_bits", 20, cluster_bits.into(), "9 to 21"));
    }
    let virtual_size_bytes = be64(head, 24);
    check_virtual_size(Found::Qcow2, virtual_size_bytes)?;
    if !virtual_size_bytes.is_multiple_of(512) {
        return Err(bad("size", 24, virtual_size_bytes, "multiples of 512"));
    }
    if be32(head, 32) != 0 {
        let allowed = "0 (not encrypted); decrypt it first: qemu-img convert";
        return Err(bad("crypt_method", 32, be32(head, 32).into(), allowed));
    }
    if be32(head, 60) != 0 {
        let allowed =
            "0; remove the snapshots: qemu-img convert -O qcow2 SOURCE image.qcow2 keeps the current state";
        return Err(bad("nb_snapshots", 60, be32(head, 60).into(), allowed));
    }
    let header = Header {
        version: be32(head, 4),
        cluster_bits,
        virtual_size_bytes,
        n_l1: be32(head, 36).into(),
        l1_offset: be64(head, 40),
        refcount_offset: be64(head, 48),
        refcount_clusters: be32(head, 56).into(),
    };
    let needed = virtual_size_bytes.div_ceil(header.cluster_bytes() * header.n_l2());
    if header.n_l1 < needed || header.n_l1 * 8 > L1_BYTES_MAX {
        return Err(bad("l1_size", 36, header.n_l1, "enough for the disk, at most 4,194,304"));
    }
    if !header.l1_offset.is_multiple_of(header.cluster_bytes()) {
        return Err(bad("l1_table_offset", 40, header.l1_offset, "a cluster boundary"));
    }
    if !header.refcount_offset.is_multiple_of(header.cluster_bytes()) {
        return Err(bad("refcount_table_offset", 48, header.refcount_offset, "a cluster boundary"));
    }
    if header.refcount_clusters == 0
        || header.refcount_clusters * header.cluster_bytes() > REFCOUNT_TABLE_BYTES_MAX
    {
        return Err(bad("refcount_table_clusters", 56, header.refcount_clusters, "1 up to 8 MiB in all"));
    }
    Ok(header)
}

/// Checks the fields that only version 3 has; returns the header's length.
fn version_3<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<u32, InspectError> {
    let head: [u8; 104] = source.array(part("header"), 0)?;
    let incompatible = be64(&head, 72);
    if incompatible & 1 << 2 != 0 {
        let hint = "join it: qemu-img convert -O qcow2 SOURCE image.qcow2, then import image.qcow2";
        return Err(InspectError::PointsOutside {
            format: Found::Qcow2,
            what: "an external data file",
            hint,
        });
    }
    if incompatible & !INCOMPATIBLE_ALLOWED != 0 {
        let allowed = "bit 3 alone (compression type); dirty (bit 0) or corrupt (bit 1): qemu-img check -r all; \
                       extended L2 (bit 4): qemu-img convert -O qcow2";
        return Err(bad("incompatible_features", 72, incompatible, allowed));
    }
    let autoclear = be64(&head, 88);
    if autoclear != 0 {
        let allowed = "0 (no bitmaps, no raw external data); rewrite it: qemu-img convert -O qcow2";
        return Err(bad("autoclear_features", 88, autoclear, allowed));
    }
    if be32(&head, 96) > 6 {
        return Err(bad("refcount_order", 96, be32(&head, 96).into(), "0 to 6"));
    }
    let length = be32(&head, 100);
    if length < HEADER_V3_BYTES || !length.is_multiple_of(8) || length > 512 {
        return Err(bad("header_length", 100, length.into(), "104 to 512, a multiple of 8"));
    }
    let compression = if length > HEADER_V3_BYTES { source.array::<1>(part("header"), 104)?[0] } else { 0 };
    let typed = incompatible & INCOMPATIBLE_ALLOWED != 0;
    if compression > 1 || typed != (compression != 0) {
        let allowed = "0 (zlib) without incompatible bit 3, or 1 (zstd) with it";
        return Err(bad("compression_type", 104, compression.into(), allowed));
    }
    Ok(length)
}

/// Walks the header extensions, all of which must end inside the first cluster.
fn extensions<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    from: u32,
    cluster_bytes: u64,
) -> Result<(), InspectError> {
    let mut at = u64::from(from);
    for _ in 0..EXTENSIONS_MAX {
        if at + 8 > cluster_bytes {
            return Ok(());
        }
        let extension: [u8; 8] = source.array(part("header extension"), at)?;
        let (kind, length) = (be32(&extension, 0), be32(&extension, 4));
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_FEATURE_NAMES => {}
            EXTENSION_DATA_FILE => {
                let hint = "join it: qemu-img convert -O qcow2 SOURCE image.qcow2, then import image.qcow2";
                return Err(InspectError::PointsOutside {
                    format: Found::Qcow2,
                    what: "an external data file",
                    hint,
                });
            }
            _ => {
                let allowed = "the feature name table alone; rewrite it: qemu-img convert -O qcow2";
                return Err(bad("header extension", at, kind.into(), allowed));
            }
        }
        at = at + 8 + u64::from(length).next_multiple_of(8);
        if at > cluster_bytes {
            return Err(bad("header extension length", at, length.into(), "inside the first cluster"));
        }
    }
    Err(bad("header extensions", at, EXTENSIONS_MAX.into(), "at most 16"))
}

/// What the walk has claimed so far.
struct Claims {
    used: ClusterMap,
    packed: ClusterMap,
    packed_entries: Vec<u64>,
    mapped_bytes: u64,
}

/// Walks L1 and L2; returns the mapped bytes.
fn walk<R: ReadAt + ?Sized>(source: &Source<'_, R>, header: &Header) -> Result<u64, InspectError> {
    let n_clusters = source.len_bytes().div_ceil(header.cluster_bytes());
    let too_small = || {
        bad(
            "cluster_bits",
            20,
            header.cluster_bits.into(),
            "larger clusters for a file of this size (64 KiB: 16)",
        )
    };
    let mut claims = Claims {
        used: ClusterMap::new(n_clusters).ok_or_else(too_small)?,
        packed: ClusterMap::new(n_clusters).ok_or_else(too_small)?,
        packed_entries: Vec::new(),
        mapped_bytes: 0,
    };
    claim(source, header, &mut claims.used, 0, 1, "header")?;
    let refcount_bytes = header.refcount_clusters * header.cluster_bytes();
    claim(source, header, &mut claims.used, header.refcount_offset, refcount_bytes, "refcount table")?;
    let l1_bytes = header.n_l1 * 8;
    claim(source, header, &mut claims.used, header.l1_offset, l1_bytes.max(1), "L1 table")?;

    let needed = header.virtual_size_bytes.div_ceil(header.cluster_bytes() * header.n_l2());
    let mut l1 = vec![0u8; usize::try_from(l1_bytes).expect("at most 32 MiB by the check of l1_size")];
    source.fill(part("L1 table"), header.l1_offset, &mut l1)?;
    let mut l2 = vec![0u8; usize::try_from(header.cluster_bytes()).expect("at most 2 MiB by cluster_bits")];
    for (index, entry) in (0u64..).zip(l1.chunks_exact(8).map(|bytes| be64(bytes, 0))) {
        if entry == 0 {
            continue;
        }
        let at = header.l1_offset + index * 8;
        let offset = entry & OFFSET_MASK;
        let aligned = offset.is_multiple_of(header.cluster_bytes()) && offset != 0;
        if entry & !(OFFSET_MASK | COPIED) != 0 || !aligned || index >= needed {
            return Err(bad("L1 entry", at, entry, "a cluster boundary, for a part of the disk"));
        }
        claim(source, header, &mut claims.used, offset, header.cluster_bytes(), "L2 table")?;
        source.fill(part("L2 table"), offset, &mut l2)?;
        level_2(source, header, &mut claims, offset, index * header.n_l2(), &l2)?;
    }
    packed_overlap(header, &mut claims)?;
    Ok(claims.mapped_bytes)
}

/// Claims the clusters of `[offset, offset + bytes)`, which must lie inside the file.
fn claim<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    header: &Header,
    map: &mut ClusterMap,
    offset: u64,
    needed_bytes: u64,
    name: &'static str,
) -> Result<(), InspectError> {
    let end = offset.checked_add(needed_bytes).filter(|&end| end <= source.len_bytes());
    let Some(end) = end else {
        let file_bytes = source.len_bytes();
        return Err(InspectError::Truncated {
            format: Found::Qcow2,
            part: name,
            offset,
            needed_bytes,
            file_bytes,
        });
    };
    for cluster in offset >> header.cluster_bits..end.div_ceil(header.cluster_bytes()) {
        if !map.claim(cluster) {
            return Err(twice(name, cluster << header.cluster_bits));
        }
    }
    Ok(())
}

/// One L2 table; `first` is the number of its first guest cluster.
fn level_2<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    header: &Header,
    claims: &mut Claims,
    table_offset: u64,
    first: u64,
    table: &[u8],
) -> Result<(), InspectError> {
    for (index, entry) in (0u64..).zip(table.chunks_exact(8).map(|bytes| be64(bytes, 0))) {
        if entry == 0 {
            continue;
        }
        let guest = (first + index) << header.cluster_bits;
        let here = header.cluster_bytes().min(header.virtual_size_bytes.saturating_sub(guest));
        if here == 0 {
            let allowed = "0 behind the end of the disk";
            return Err(bad("L2 entry", table_offset + index * 8, entry, allowed));
        }
        if entry & COMPRESSED != 0 {
            packed_cluster(source, header, claims, entry)?;
            claims.mapped_bytes += here;
        } else {
            let offset = entry & OFFSET_MASK;
            let zero = entry & READS_AS_ZERO != 0;
            let known = OFFSET_MASK | COPIED | if header.version == 3 { READS_AS_ZERO } else { 0 };
            let placed = offset != 0 || zero;
            if entry & !known != 0 || !offset.is_multiple_of(header.cluster_bytes()) || !placed {
                let allowed = "a cluster boundary and no reserved bits";
                return Err(bad("L2 entry", table_offset + index * 8, entry, allowed));
            }
            if offset != 0 {
                claim(source, header, &mut claims.used, offset, here, "data cluster")?;
            }
            claims.mapped_bytes += if zero { 0 } else { here };
        }
        if claims.mapped_bytes > MAX_MAPPED_BYTES {
            return Err(InspectError::TooMuchMapped {
                format: Found::Qcow2,
                mapped_bytes: claims.mapped_bytes,
                max_bytes: MAX_MAPPED_BYTES,
            });
        }
    }
    Ok(())
}

/// First byte and first byte of the last 512-byte sector of a compressed cluster.
fn packed_span(header: &Header, entry: u64) -> (u64, u64) {
    let bits = 62 - (header.cluster_bits - 8);
    let start = entry & ((1 << bits) - 1);
    let more_sectors = (entry & !(COPIED | COMPRESSED)) >> bits;
    (start, (start / 512 + more_sectors) * 512)
}

fn packed_cluster<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    header: &Header,
    claims: &mut Claims,
    entry: u64,
) -> Result<(), InspectError> {
    let (start, last) = packed_span(header, entry);
    let file_bytes = source.len_bytes();
    if start >= file_bytes || last >= file_bytes {
        return Err(InspectError::Truncated {
            format: Found::Qcow2,
            part: "compressed cluster",
            offset: start,
            needed_bytes: (last + 1).saturating_sub(start).max(1),
            file_bytes,
        });
    }
    // Several compressed clusters share a host cluster, so this map only keeps them off everything else.
    for cluster in start >> header.cluster_bits..=last >> header.cluster_bits {
        claims.packed.claim(cluster);
    }
    if claims.packed_entries.len() >= MAX_EXTENTS {
        let allowed = "at most 16,777,216; make the clusters larger: qemu-img convert -c -o cluster_size=2M";
        return Err(bad("number of compressed clusters", start, MAX_EXTENTS as u64 + 1, allowed));
    }
    claims.packed_entries.push(entry & !(COPIED | COMPRESSED));
    Ok(())
}

/// A compressed cluster ends somewhere in its last sector, so the next one begins behind that sector's first byte.
fn packed_overlap(header: &Header, claims: &mut Claims) -> Result<(), InspectError> {
    if let Some(cluster) = claims.used.common(&claims.packed) {
        return Err(twice("compressed cluster", cluster << header.cluster_bits));
    }
    claims.packed_entries.sort_unstable_by_key(|&entry| packed_span(header, entry));
    for pair in claims.packed_entries.windows(2) {
        let (start, last) = packed_span(header, pair[0]);
        let (next, _) = packed_span(header, pair[1]);
        if next <= start.max(last) {
            return Err(twice("compressed cluster", next));
        }
    }
    Ok(())
}
