//! Why an image was not accepted, in words an operator can act on.
//!
//! **What.** One variant per kind of reason; `Display` says what is wrong, where, what is allowed and what to do.
//!
//! **Why fields and not sentences.** The API shows them as `{code, message, hint, field}`, tests compare them.
//!
//! **Invariants.** Nothing from inside the file is echoed except numbers and short, filtered names, so a hostile
//! file cannot put control characters or a wall of text on an operator's terminal.

use std::fmt;
use std::io;

/// What the bytes were recognised as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// No container known to us: the disk's own bytes.
    Raw,
    /// qcow2 version 2 or 3.
    Qcow2,
    /// VMware sparse extent with its header.
    Vmdk,
    /// Virtual PC disk.
    Vhd,
    /// Hyper-V disk.
    Vhdx,
    /// ISO 9660.
    Iso,
    /// A master boot record or GUID partition table at the start.
    PartitionTable,
    /// VirtualBox disk.
    Vdi,
    /// QEMU enhanced disk.
    Qed,
    /// First version of qcow.
    Qcow1,
    /// qcow of a version nobody has specified.
    QcowUnknown,
    /// LUKS container.
    Luks,
    /// tar, and so an OVA.
    Tar,
    /// OVF descriptor or another XML text.
    Xml,
    /// A web page, usually an error page saved under an image's name.
    Html,
    /// VMDK descriptor as a text file, naming other files.
    VmdkText,
    /// VMDK of ESX (COWD or seSparse).
    VmdkEsx,
    /// Parallels disk.
    Parallels,
    /// Bochs disk.
    Bochs,
    /// Compressed loop image.
    Cloop,
    /// Apple disk image.
    Dmg,
    /// A file packed with gzip, xz, zstd, bzip2, zip or 7z.
    Packed(&'static str),
}

impl Found {
    /// What to do with a file of this kind that Hearth does not take.
    fn hint(self) -> &'static str {
        match self {
            Self::Vdi | Self::Qed | Self::Qcow1 | Self::Parallels | Self::Bochs | Self::Cloop | Self::Dmg => {
                "convert it on a machine you trust: qemu-img convert -O qcow2 SOURCE image.qcow2, then import image.qcow2"
            }
            Self::Tar => {
                "an OVA is a tar archive: unpack it (tar xf FILE) and import the .vmdk inside as format vmdk"
            }
            Self::Xml => {
                "an OVF is only the description: import the .vmdk that stands beside it as format vmdk"
            }
            Self::Html => {
                "this is a web page, probably an error page saved under the image's name: fetch the image again"
            }
            Self::VmdkText => {
                "this text only names other files: join them with qemu-img convert -O vmdk -o subformat=streamOptimized FILE.vmdk one.vmdk, \
                 then import one.vmdk"
            }
            Self::VmdkEsx => {
                "export the machine as OVF/OVA (that makes a streamOptimized disk) and import that .vmdk"
            }
            Self::Luks => {
                "Hearth has no passphrase for it: open it where it was made and import the plain disk inside"
            }
            Self::Packed(_) => {
                "unpack it first (gunzip, unxz, zstd -d, bunzip2, unzip) and import what comes out"
            }
            Self::QcowUnknown => {
                "qcow2 versions 2 and 3 are accepted: qemu-img convert -O qcow2 SOURCE image.qcow2"
            }
            Self::Raw
            | Self::Qcow2
            | Self::Vmdk
            | Self::Vhd
            | Self::Vhdx
            | Self::Iso
            | Self::PartitionTable => "",
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Iso => "iso",
            Self::PartitionTable => "a partition table",
            Self::Vdi => "vdi (VirtualBox)",
            Self::Qed => "qed",
            Self::Qcow1 => "qcow version 1",
            Self::QcowUnknown => "qcow of an unknown version",
            Self::Luks => "a LUKS container",
            Self::Tar => "a tar archive (OVA)",
            Self::Xml => "an XML text (OVF)",
            Self::Html => "a web page",
            Self::VmdkText => "a VMDK descriptor text",
            Self::VmdkEsx => "an ESX vmdk (COWD or seSparse)",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Packed(name) => return write!(f, "a {name} file"),
        })
    }
}

/// Several formats in one file, for the message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundList(pub Vec<Found>);

impl fmt::Display for FoundList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, found) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" and ")?;
            }
            write!(f, "{found}")?;
        }
        Ok(())
    }
}

/// Why the file is not accepted as an image.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file could not be read.
    #[error("cannot read the file at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without bytes.
    #[error("the file is empty; upload the image again")]
    Empty,
    /// A format that is never taken.
    #[error("the file is {found}, which is not accepted (accepted: raw, qcow2, vmdk, vhd, vhdx, iso); {}", found.hint())]
    Refused {
        /// What it is.
        found: Found,
    },
    /// More than one format claims the file.
    #[error(
        "the file is {found} at the same time, so different programs would see different disks; \
         convert it to one format on a machine you trust, or, for a bootable ISO, declare format iso"
    )]
    Polyglot {
        /// All that matched.
        found: FoundList,
    },
    /// The bytes are not what was declared.
    #[error(
        "declared as {declared}, but the bytes are {found}; declare the right format or upload the right file"
    )]
    Mismatch {
        /// What the caller said.
        declared: Found,
        /// What it is.
        found: Found,
    },
    /// ISO files are taken only when declared.
    #[error("the file is an ISO 9660 image; declare format iso to import it as one")]
    IsoNotDeclared,
    /// The file names something outside itself.
    #[error("{format}: the file names {what}; images must stand alone: {hint}")]
    PointsOutside {
        /// The format.
        format: Found,
        /// "a backing file", "a parent disk".
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The file ends before something it needs.
    #[error(
        "{format}: {part} needs {needed_bytes} bytes at byte {offset}, but the file has {file_bytes} bytes; \
         it is cut short or damaged: upload it again"
    )]
    Truncated {
        /// The format.
        format: Found,
        /// "header", "L1 table", "data cluster".
        part: &'static str,
        /// Where it should be.
        offset: u64,
        /// How long it should be.
        needed_bytes: u64,
        /// How long the file is.
        file_bytes: u64,
    },
    /// A field has a value outside the allow-list.
    #[error("{format}: {field} at byte {offset} is {value:#x}; allowed: {allowed}")]
    Field {
        /// The format.
        format: Found,
        /// Name as in the format's specification.
        field: &'static str,
        /// Where it stands.
        offset: u64,
        /// What it says.
        value: u64,
        /// What is allowed, and what to do where that helps.
        allowed: &'static str,
    },
    /// A line of a VMDK descriptor is not on the allow-list.
    #[error("{format}: line {line} of the descriptor is not allowed: {reason}; {hint}")]
    Descriptor {
        /// The format.
        format: Found,
        /// Line number from 1; 0 when a line is missing.
        line: u32,
        /// Which rule.
        reason: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A stored checksum is wrong.
    #[error(
        "{format}: the checksum of {part} is {stored:#010x} but its bytes give {computed:#010x}; \
         the file is damaged: upload it again"
    )]
    Checksum {
        /// The format.
        format: Found,
        /// Which structure.
        part: &'static str,
        /// In the file.
        stored: u32,
        /// By us.
        computed: u32,
    },
    /// Two structures or two blocks of the disk share bytes of the file.
    #[error(
        "{format}: {part} at byte {offset} is used twice; such a file can unpack to far more than it holds. \
         If it is honest, rewrite it: qemu-img convert -O qcow2 SOURCE image.qcow2"
    )]
    MappedTwice {
        /// The format.
        format: Found,
        /// What is shared.
        part: &'static str,
        /// Where.
        offset: u64,
    },
    /// Larger than Hearth takes.
    #[error("{format}: the disk has {virtual_size_bytes} bytes; at most {max_bytes} are accepted")]
    TooLarge {
        /// The format.
        format: Found,
        /// Size the guest would see.
        virtual_size_bytes: u64,
        /// Limit.
        max_bytes: u64,
    },
    /// More content than Hearth takes.
    #[error(
        "{format}: the disk holds {mapped_bytes} bytes of content or more; at most {max_bytes} are accepted"
    )]
    TooMuchMapped {
        /// The format.
        format: Found,
        /// Bytes counted when the limit was passed.
        mapped_bytes: u64,
        /// Limit.
        max_bytes: u64,
    },
    /// The tables are longer than an honest file needs.
    #[error(
        "{format}: the tables need more than {max_bytes} bytes of reading; rewrite the file with larger clusters: qemu-img convert -O qcow2"
    )]
    Budget {
        /// The format.
        format: Found,
        /// Limit.
        max_bytes: u64,
    },
}
