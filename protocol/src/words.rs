//! The closed sets of words that wire, API, command line and database share.
//!
//! **What.** Enums whose text is the same everywhere: `Display`, `FromStr`, JSON and SQL use one spelling,
//! lower case with underscores. On the wire the order of variants is frozen; new ones are added at the end.
//! **Why one macro.** Seven hand-written copies of the same table would drift apart.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A word that is not in the set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown {what} {given:?}: allowed are {allowed}")]
pub struct WordError {
    /// What the word should name, for example `disk format`.
    pub what: &'static str,
    /// The text that was given, cut to 64 characters.
    pub given: String,
    /// The allowed words, separated by commas.
    pub allowed: &'static str,
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:tt),+ $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Encode, Decode, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every word, in the order of the declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word as it is spelled everywhere.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| WordError {
                    what: $what,
                    given: text.chars().take(64).collect(),
                    allowed: words!(@list $($text),+),
                })
            }
        }
    )*};
    (@list $first:literal $(, $rest:literal)*) => { concat!($first $(, ", ", $rest)*) };
}

words! {
    /// Format of an uploaded file.
    DiskFormat, "disk format" {
        /// Bytes of the disk as the guest sees them.
        Raw = "raw",
        /// QEMU copy-on-write, version 2 or 3.
        Qcow2 = "qcow2",
        /// VMware, monolithicSparse or streamOptimized with one extent.
        Vmdk = "vmdk",
        /// Microsoft VHD (`vpc` in QEMU), fixed or dynamic.
        Vhd = "vhd",
        /// Microsoft VHDX without parent.
        Vhdx = "vhdx",
        /// ISO 9660 medium.
        Iso = "iso",
    }
    /// What kind of image a catalog record is.
    ImageKind, "image kind" {
        /// A disk to start machines from.
        Disk = "disk",
        /// An installation medium.
        Iso = "iso",
    }
    /// What a content's bytes are.
    ContentKind, "content kind" {
        /// The raw guest-visible disk: cut at content-defined block boundaries.
        Disk = "disk",
        /// A file as it is (ISO, encrypted image): cut every 64 KiB.
        File = "file",
    }
    /// Glance's image states.
    ImageStatus, "image status" {
        /// The record exists, no bytes yet.
        Queued = "queued",
        /// Bytes are being uploaded.
        Saving = "saving",
        /// The import job works on the bytes.
        Importing = "importing",
        /// Can be cached and launched.
        Active = "active",
        /// Kept, but closed to users by an administrator.
        Deactivated = "deactivated",
        /// The import failed; `reason` says why.
        Killed = "killed",
        /// In the recycle bin.
        PendingDelete = "pending_delete",
        /// Files are going.
        Deleted = "deleted",
    }
    /// State of a variant: a content in another disk format.
    VariantStatus, "variant status" {
        /// Waits for its turn.
        Queued = "queued",
        /// Is being made.
        Saving = "saving",
        /// Whole, synced and summed: can be downloaded.
        Active = "active",
        /// Could not be made; `reason` says why.
        SaveFail = "save_fail",
    }
    /// Where an import stands.
    ImportStage, "import stage" {
        /// Bytes arrive.
        Uploading = "uploading",
        /// The header is checked.
        Inspecting = "inspecting",
        /// qemu-img makes it raw.
        Converting = "converting",
        /// The content is cut, packed and stored.
        Chunking = "chunking",
        /// The content is encrypted.
        Encrypting = "encrypting",
        /// The stored bytes are read again and compared.
        Checksumming = "checksumming",
    }
    /// State of one cache entry: one image at one location.
    EntryStatus, "entry status" {
        /// Wanted, not begun.
        Queued = "queued",
        /// Bytes are moving.
        Caching = "caching",
        /// All bytes are there and are hashed from disk.
        Verifying = "verifying",
        /// Verified on disk, index written: hypervisors may use it.
        Active = "active",
        /// The last try failed; a next try is planned.
        CacheFail = "cache_fail",
        /// The copy is being removed.
        Deleting = "deleting",
        /// The copy could not be removed.
        DeleteFailed = "delete_failed",
        /// The location is gone or silent for 15 minutes.
        Stale = "stale",
    }
    /// What a location is.
    LocationKind, "location kind" {
        /// A hypervisor host (IDC or private cloud).
        Host = "host",
        /// A region of a public cloud.
        Region = "region",
    }
    /// How the operator uses a location.
    LocationState, "location state" {
        /// New copies may be placed.
        Active = "active",
        /// No new copies; what is there may be used.
        Draining = "draining",
        /// Taken out of the fleet; its certificate is revoked.
        Removed = "removed",
    }
    /// Who asked for an entry.
    Origin, "origin" {
        /// An operator named image and location.
        Manual = "manual",
        /// A prewarm job.
        Job = "job",
        /// A cache policy.
        Policy = "policy",
        /// A launch or lease.
        Launch = "launch",
    }
    /// Order in which an agent works; the first is served first.
    Priority, "priority" {
        /// Somebody waits for these bytes.
        Demand = "demand",
        /// Must be done by a given time.
        Deadline = "deadline",
        /// As soon as convenient.
        Bulk = "bulk",
        /// Repair of copies that nobody waits for.
        Scrub = "scrub",
    }
    /// State of a prewarm job.
    PrewarmState, "prewarm state" {
        /// Waits for its start time.
        Scheduled = "scheduled",
        /// Copies are being made.
        Running = "running",
        /// Stopped by an operator; goes on with `resume`.
        Paused = "paused",
        /// Every target says verified on disk.
        Done = "done",
        /// Ended with failed targets; `retry` tries them again.
        Failed = "failed",
        /// Ended by an operator.
        Cancelled = "cancelled",
    }
    /// Role of a principal inside its scope; each includes the next.
    Role, "role" {
        /// Everything.
        Admin = "admin",
        /// Uses and changes its own.
        Member = "member",
        /// Looks only.
        Reader = "reader",
    }
    /// Level at which a role holds.
    ScopeKind, "scope" {
        /// The whole system.
        System = "system",
        /// One domain and its projects.
        Domain = "domain",
        /// One project.
        Project = "project",
    }
    /// Who may see an image.
    Visibility, "visibility" {
        /// The owning project.
        Private = "private",
        /// The owning project and those it is shared with.
        Shared = "shared",
        /// Everybody.
        Public = "public",
    }
    /// With what an image is shared.
    ShareKind, "share kind" {
        /// One project.
        Project = "project",
        /// All projects of a domain.
        Domain = "domain",
    }
    /// What the receiver says to a share.
    ShareStatus, "share status" {
        /// Nothing yet.
        Pending = "pending",
        /// The image is in the receiver's lists.
        Accepted = "accepted",
        /// The receiver does not want it; may be accepted later.
        Rejected = "rejected",
    }
    /// Which part of the catalog a list shows.
    ImageView, "view" {
        /// Everything that the caller may use.
        All = "all",
        /// What administrators recommend.
        Featured = "featured",
        /// What everybody has.
        Public = "public",
        /// What the caller's project, domain or system owns and is not public.
        Private = "private",
        /// What others share with the caller.
        Shared = "shared",
    }
    /// Why an entry left a cache or never came to be.
    GoneReason, "reason" {
        /// Evicted to make room.
        Evicted = "evicted",
        /// Deleted as the controller asked.
        Deleted = "deleted",
        /// The file was missing or damaged and nothing holds it.
        Lost = "lost",
    }
    /// Kind of consumer that leases an entry.
    ConsumerKind, "consumer kind" {
        /// A virtual machine.
        Vm = "vm",
        /// An operator or a script.
        Operator = "operator",
        /// Another part of Hearth (a delta that reads its base).
        Internal = "internal",
    }
    /// State of a host image: the worst of its disks' states. From best to worst.
    HostImageStatus, "host image status" {
        /// Every disk can be cached and launched.
        Active = "active",
        /// A disk is closed to users.
        Deactivated = "deactivated",
        /// A disk's import job works.
        Importing = "importing",
        /// A disk is being uploaded.
        Saving = "saving",
        /// A disk has no bytes yet.
        Queued = "queued",
        /// A disk is in the recycle bin.
        PendingDelete = "pending_delete",
        /// A disk's import failed.
        Killed = "killed",
        /// A disk is gone.
        Missing = "missing",
    }
    /// What a disk is in a machine.
    DiskRole, "disk role" {
        /// The disk that it starts from: the first of a host image.
        System = "system",
        /// Any other.
        Data = "data",
    }
    /// State of a host image at one location: the worst of its disks' entries there. From best to worst.
    HostEntryStatus, "host image cache status" {
        /// Every disk is verified on disk.
        Active = "active",
        /// Disks are being hashed, and no other is further behind.
        Verifying = "verifying",
        /// Bytes of a disk are moving.
        Caching = "caching",
        /// A disk is wanted and not begun.
        Queued = "queued",
        /// A disk is neither there nor wanted, though others are.
        Partial = "partial",
        /// A disk is being removed.
        Deleting = "deleting",
        /// The location is silent.
        Stale = "stale",
        /// A disk could not be removed.
        DeleteFailed = "delete_failed",
        /// The last try of a disk failed.
        CacheFail = "cache_fail",
    }
    /// CPU architecture of an image.
    Architecture, "architecture" {
        /// Intel and AMD, 64 bits.
        X8664 = "x86_64",
        /// ARM, 64 bits.
        Aarch64 = "aarch64",
    }
    /// Operating system of an image.
    OsType, "OS type" {
        /// Any Linux.
        Linux = "linux",
        /// Any Windows.
        Windows = "windows",
        /// Any macOS.
        Macos = "macos",
        /// VMware ESXi and its kin.
        Vmware = "vmware",
        /// Anything else.
        Other = "other",
    }
    /// What an image was built to run on.
    Virtualisation, "virtualisation" {
        /// KVM and QEMU.
        Kvm = "kvm",
        /// VMware.
        Vmware = "vmware",
        /// Microsoft Hyper-V.
        Hyperv = "hyperv",
        /// Xen.
        Xen = "xen",
        /// Anything else.
        Other = "other",
    }
    /// How a machine of an image sees its disks.
    DiskDriver, "disk driver" {
        /// The platform chooses.
        Auto = "auto",
        /// virtio-blk.
        Virtio = "virtio",
        /// virtio-scsi or an emulated SCSI controller.
        Scsi = "scsi",
        /// VMware's paravirtual SCSI.
        Pvscsi = "pvscsi",
        /// IDE.
        Ide = "ide",
        /// SATA.
        Sata = "sata",
    }
    /// How a machine of an image sees its network.
    NetworkDriver, "network driver" {
        /// The platform chooses.
        Auto = "auto",
        /// virtio-net.
        Virtio = "virtio",
        /// Intel's e1000.
        E1000 = "e1000",
        /// VMware's paravirtual interface.
        Vmxnet3 = "vmxnet3",
    }
    /// By what a list of images is sorted.
    ImageSort, "sort key" {
        /// Name without regard to case.
        Name = "name",
        /// Size as a guest sees it.
        Size = "size",
        /// When it was made.
        Created = "created",
        /// When it last changed.
        Updated = "updated",
        /// The status word.
        Status = "status",
    }
    /// Which end of a sorted list comes first.
    SortOrder, "order" {
        /// The smallest.
        Asc = "asc",
        /// The largest.
        Desc = "desc",
    }
    /// What one call does to many images.
    BatchAction, "batch action" {
        /// Into the recycle bin.
        Delete = "delete",
        /// Out of the recycle bin.
        Restore = "restore",
        /// Gone at once.
        Destroy = "destroy",
        /// Refuses deletion from now on.
        Protect = "protect",
        /// Can be deleted again.
        Unprotect = "unprotect",
        /// Closed to users.
        Deactivate = "deactivate",
        /// Open to users again.
        Reactivate = "reactivate",
        /// Gets tags.
        Tag = "tag",
        /// Loses tags.
        Untag = "untag",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_one_spelling_in_text_and_json() {
        for status in EntryStatus::ALL {
            assert_eq!(status.as_str().parse::<EntryStatus>().unwrap(), *status);
            assert_eq!(serde_json::to_string(status).unwrap(), format!("\"{status}\""));
        }
    }

    #[test]
    fn an_unknown_word_names_the_allowed_ones() {
        let error = "vdi".parse::<DiskFormat>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown disk format \"vdi\": allowed are raw, qcow2, vmdk, vhd, vhdx, iso"
        );
    }
}
