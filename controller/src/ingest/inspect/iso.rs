//! Inspects ISO 9660 images.
//!
//! **What.** The primary volume descriptor and that the volume fits into the file. The file is kept as it is.
//!
//! **Why only when declared.** Any raw disk can carry the five letters at 32 KiB; what a file is must not depend on
//! five letters inside it, so the person who imports says `iso`.
//!
//! **Invariants.** The volume lies inside the file; the descriptor's block size is 2048 (ECMA-119 allows less, nobody
//! uses it).

use super::Facts;
use super::error::{Found, InspectError};
use super::source::field::{le16, le32};
use super::source::{Part, ReadAt, Source};

const DESCRIPTOR_AT: u64 = 32 << 10;
const BLOCK_BYTES: u64 = 2048;

/// Whether a volume descriptor of ISO 9660 stands where the first one must.
pub(super) fn recognise<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<bool, InspectError> {
    Ok(source.peek::<5>(DESCRIPTOR_AT + 1)? == *b"CD001")
}

/// Checks the primary volume descriptor.
///
/// # Errors
/// Any rule broken.
pub(super) fn check<R: ReadAt + ?Sized>(source: &Source<'_, R>) -> Result<Facts, InspectError> {
    let of = Part { format: Found::Iso, name: "volume descriptor" };
    let descriptor: [u8; 2048] = source.array(of, DESCRIPTOR_AT)?;
    let bad = |field, at: u64, value: u64, allowed| InspectError::Field {
        format: Found::Iso,
        field,
        offset: DESCRIPTOR_AT + at,
        value,
        allowed,
    };
    if descriptor[0] > 3 {
        return Err(bad("volume descriptor type", 0, descriptor[0].into(), "0 to 3"));
    }
    if descriptor[0] == 1 {
        let block = u64::from(le16(&descriptor, 128));
        if block != BLOCK_BYTES {
            return Err(bad("logical block size", 128, block, "2048"));
        }
        let needed_bytes = u64::from(le32(&descriptor, 80)) * BLOCK_BYTES;
        if needed_bytes > source.len_bytes() {
            let (part, file_bytes) = ("volume", source.len_bytes());
            return Err(InspectError::Truncated {
                format: Found::Iso,
                part,
                offset: 0,
                needed_bytes,
                file_bytes,
            });
        }
    }
    Ok(Facts { virtual_size_bytes: source.len_bytes(), mapped_bytes: source.len_bytes() })
}
