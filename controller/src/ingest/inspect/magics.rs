//! Recognises what Hearth never takes.
//!
//! **What.** Magic numbers of formats QEMU knows and we refuse, of archives and packed files, and of texts that people
//! upload by mistake.
//!
//! **Why.** A file that is accepted as raw must be raw for every program that will ever look at it; and "this is an
//! OVA, unpack it" helps more than a guest that does not boot.
//!
//! **Invariants.** Every magic is looked for wherever QEMU would look for it.

use super::error::{Found, InspectError};
use super::source::field::{le32, le64};
use super::source::{ReadAt, Source};
use super::vmdk;

/// QEMU looks for the trailer of a dmg in the last KiB.
const DMG_TAIL_BYTES: u64 = 1024;

/// Everything that matches, of the formats that are always refused.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn recognise<R: ReadAt + ?Sized>(
    source: &Source<'_, R>,
    head: &[u8],
) -> Result<Vec<Found>, InspectError> {
    let mut found: Vec<Found> =
        STARTS.iter().filter(|(magic, _)| head.starts_with(magic)).map(|&(_, found)| found).collect();
    if head.get(257..262) == Some(b"ustar") {
        found.push(Found::Tar);
    }
    if le32(head, 64) == 0xBEDA_107F {
        found.push(Found::Vdi);
    }
    if le64(head, 0) == 0xCAFE_BABE {
        found.push(Found::VmdkEsx);
    }
    if vmdk::looks_like_descriptor(head) {
        found.push(Found::VmdkText);
    }
    let text = head.trim_ascii_start();
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let lower = text.get(..16).unwrap_or(text).to_ascii_lowercase();
    if lower.starts_with(b"<?xml") || lower.starts_with(b"<envelope") {
        found.push(Found::Xml);
    }
    if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") {
        found.push(Found::Html);
    }
    let tail: [u8; 1024] = source.peek(source.len_bytes().saturating_sub(DMG_TAIL_BYTES))?;
    if source.len_bytes() >= 512 && tail.windows(4).any(|four| four == b"koly") {
        found.push(Found::Dmg);
    }
    Ok(found)
}

const STARTS: [(&[u8], Found); 13] = [
    (b"QED\0", Found::Qed),
    (b"LUKS\xBA\xBE", Found::Luks),
    (b"COWD", Found::VmdkEsx),
    (b"WithoutFreeSpace", Found::Parallels),
    (b"WithouFreSpacExt", Found::Parallels),
    (b"Bochs Virtual HD Image", Found::Bochs),
    (b"#!/bin/sh\n#V2.0 Format\n", Found::Cloop),
    (b"\x1F\x8B\x08", Found::Packed("gzip")),
    (b"\xFD7zXZ\0", Found::Packed("xz")),
    (b"\x28\xB5\x2F\xFD", Found::Packed("zstd")),
    (b"BZh91AY&SY", Found::Packed("bzip2")),
    (b"PK\x03\x04", Found::Packed("zip")),
    (b"7z\xBC\xAF\x27\x1C", Found::Packed("7z")),
];
