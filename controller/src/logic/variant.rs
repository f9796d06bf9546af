//! Which variants an image may have, what making one takes, and when it may begin.
//!
//! **What.** Pure answers for `jobs` and `api`: the formats, the refusals, the room to set aside, and whether imports go first.
//!
//! **Why the room is a bound and not a guess.** How far a disk packs is known only afterwards. The bound holds for bytes that do
//! not pack at all, so a variant never takes room that was promised to somebody else.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `only_disks_have_variants`
//! 2. `a_refusal_names_what_is_too_large_and_the_limit`
//! 3. `imports_go_first_but_not_for_ever`

use hearth_protocol::words::{ContentKind, DiskFormat};

/// Formats that can be made, in the order in which they are shown.
pub const FORMATS: [DiskFormat; 5] =
    [DiskFormat::Raw, DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vhd, DiskFormat::Vhdx];
/// Largest disk of a VHD: its sector numbers end at 0xff000000 (QEMU's `VHD_MAX_SECTORS`, 2,040 GiB).
pub const VHD_BYTES_MAX: u64 = 0xff00_0000 * 512;
/// Longest wait of a variant for imports, microseconds (10 min): with imports all day long variants must still be made.
pub const IMPORTS_FIRST_US_MAX: i64 = 600 * 1_000_000;
/// Tables, logs and the file system's own blocks, beside what grows with the disk.
const SLACK_BYTES: u64 = 64 << 20;
/// How much longer than its disk a file may be: VHDX rounds up to blocks of at most 256 MiB and has a log.
const LENGTH_SLACK_BYTES: u64 = 1 << 30;

/// Why an image cannot have a variant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VariantRefusal {
    /// Its content is a file, not a disk.
    #[error("ISO and encrypted images have no variants: their file is handed out as it is")]
    NoDisk,
    /// ISO is no format of a disk.
    #[error("iso is no format of a disk: raw, qcow2, vmdk, vhd and vhdx can be made")]
    Iso,
    /// The format cannot hold the disk.
    #[error("the disk has {disk_bytes} bytes, and {format} holds at most {bytes_max}")]
    TooLarge {
        /// Which format.
        format: DiskFormat,
        /// Size of the disk.
        disk_bytes: u64,
        /// Limit of the format.
        bytes_max: u64,
    },
}

/// Says whether a content of `kind` with a disk of `disk_bytes` can be made into `format`.
///
/// # Errors
/// [`VariantRefusal`].
pub const fn check(kind: ContentKind, disk_bytes: u64, format: DiskFormat) -> Result<(), VariantRefusal> {
    match (kind, format) {
        (ContentKind::File, _) => Err(VariantRefusal::NoDisk),
        (ContentKind::Disk, DiskFormat::Iso) => Err(VariantRefusal::Iso),
        (ContentKind::Disk, DiskFormat::Vhd) if disk_bytes > VHD_BYTES_MAX => {
            Err(VariantRefusal::TooLarge { format, disk_bytes, bytes_max: VHD_BYTES_MAX })
        }
        (ContentKind::Disk, _) => Ok(()),
    }
}

/// Room that making a variant may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Allocated bytes of the raw disk that it is made of.
    pub raw_bytes: u64,
    /// Allocated bytes of the variant; 0 for raw, which is that raw disk.
    pub made_bytes: u64,
    /// Length that the file may reach.
    pub length_bytes: u64,
}

impl Room {
    /// Both files at once.
    #[must_use]
    pub const fn all_bytes(self) -> u64 {
        self.raw_bytes.saturating_add(self.made_bytes)
    }
}

/// The room for a variant of a disk of `disk_bytes` with `data_bytes` that are not zero.
///
/// The eighth covers VMDK, which pads each packed grain to a sector (512 of at least 4,096 bytes); a 256th of the disk covers a
/// bitmap and a footer per 2 MiB block of a VHD, and the tables of all others.
#[must_use]
pub const fn room(format: DiskFormat, disk_bytes: u64, data_bytes: u64) -> Room {
    let raw_bytes = data_bytes.saturating_add(SLACK_BYTES);
    let made_bytes = match format {
        DiskFormat::Raw | DiskFormat::Iso => 0,
        _ => raw_bytes.saturating_add(data_bytes / 8).saturating_add(disk_bytes / 256),
    };
    let length_bytes = disk_bytes.saturating_add(disk_bytes / 64).saturating_add(LENGTH_SLACK_BYTES);
    Room { raw_bytes, made_bytes, length_bytes }
}

/// Whether a variant that was queued at `queued_us` still lets imports go first.
#[must_use]
pub const fn waits_for_imports(now_us: i64, queued_us: i64, imports_are_there: bool) -> bool {
    imports_are_there && now_us < queued_us.saturating_add(IMPORTS_FIRST_US_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_have_variants() {
        for format in FORMATS {
            assert_eq!(check(ContentKind::Disk, 1 << 30, format), Ok(()));
            assert_eq!(check(ContentKind::File, 1 << 30, format), Err(VariantRefusal::NoDisk));
        }
        assert_eq!(check(ContentKind::Disk, 1, DiskFormat::Iso), Err(VariantRefusal::Iso));
    }

    #[test]
    fn a_refusal_names_what_is_too_large_and_the_limit() {
        assert_eq!(check(ContentKind::Disk, VHD_BYTES_MAX, DiskFormat::Vhd), Ok(()));
        let text = check(ContentKind::Disk, VHD_BYTES_MAX + 1, DiskFormat::Vhd).unwrap_err().to_string();
        assert_eq!(text, "the disk has 2190433320961 bytes, and vhd holds at most 2190433320960");
        assert_eq!(check(ContentKind::Disk, VHD_BYTES_MAX + 1, DiskFormat::Vhdx), Ok(()));
    }

    #[test]
    fn raw_needs_room_once_and_no_room_overflows() {
        let raw = room(DiskFormat::Raw, 10 << 30, 1 << 30);
        assert_eq!((raw.raw_bytes, raw.made_bytes), ((1 << 30) + SLACK_BYTES, 0));
        let vmdk = room(DiskFormat::Vmdk, 10 << 30, 1 << 30);
        assert_eq!(vmdk.all_bytes(), 2 * raw.raw_bytes + (1 << 27) + (10 << 22));
        assert_eq!(room(DiskFormat::Vhd, u64::MAX, u64::MAX).all_bytes(), u64::MAX);
    }

    #[test]
    fn imports_go_first_but_not_for_ever() {
        assert!(waits_for_imports(100, 0, true) && !waits_for_imports(100, 0, false));
        assert!(waits_for_imports(IMPORTS_FIRST_US_MAX - 1, 0, true));
        assert!(!waits_for_imports(IMPORTS_FIRST_US_MAX, 0, true));
    }
}
