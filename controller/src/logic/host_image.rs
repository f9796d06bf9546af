//! What may be merged into a host image, and what may stand in its record.
//!
//! **What.** Pure checks; each refusal names the field. [`check_member`] judges one disk when its image is known.
//!
//! **Why only own and public images.** A member of a host image refuses deletion. If an image could be merged by those it is
//! merely shared with, a receiver could keep an owner from deleting it; and the owner could withdraw it and break the host
//! image. A public image belongs to the system's administrators, who see every host image and so what holds it.
//!
//! **Invariants.** `every_refusal_names_its_field`. Images of several projects may be merged by who owns them all; the host
//! image belongs to one project, and who sees it without seeing a disk's image learns its place and state alone.

use std::collections::HashMap;

use hearth_protocol::api::host_image::{
    BATCH_MAX, DISKS_MAX, DISKS_MIN, HostImageCreate, HostImageFacts, HostImageUpdate,
};
use hearth_protocol::id::{HostImageId, ImageId};
use hearth_protocol::words::ImageKind;

use super::catalog::{
    FieldError, SHORT_TEXT_CHARS_MAX, SIZE_BYTES_MAX, check_description, check_name, check_text, check_word,
};

const ARCHITECTURES: &[&str] = &["", "x86_64", "aarch64"];
const OS_TYPES: &[&str] = &["", "linux", "windows", "macos", "vmware", "other"];
const DISK_DRIVERS: &[&str] = &["", "auto", "virtio", "scsi", "pvscsi", "ide", "sata"];
const NETWORK_DRIVERS: &[&str] = &["", "auto", "virtio", "e1000", "vmxnet3"];

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError { field: field.into(), problem: problem.into() })
}

/// The field of the request that names disk `position`.
#[must_use]
pub fn member_field(position: usize) -> String {
    format!("images[{position}]")
}

/// Checks a new host image, as far as that needs no look at its images.
///
/// # Errors
/// The first field that is wrong.
pub fn check_create(create: &HostImageCreate) -> Result<(), FieldError> {
    check_name("name", &create.name)?;
    let count = create.images.len();
    if count < DISKS_MIN {
        return wrong("images", format!("{count} given: a host image has {DISKS_MIN} to {DISKS_MAX} disks"));
    }
    if count > DISKS_MAX {
        return wrong("images", format!("{count} are too many: {DISKS_MIN} to {DISKS_MAX} disks"));
    }
    let mut first: HashMap<ImageId, usize> = HashMap::new();
    for (position, image) in create.images.iter().enumerate() {
        if let Some(before) = first.insert(*image, position) {
            return wrong(member_field(position), format!("is the same image as images[{before}]"));
        }
    }
    check_facts(&create.facts)
}

/// Checks an edit.
///
/// # Errors
/// The first field that is wrong.
pub fn check_update(update: &HostImageUpdate) -> Result<(), FieldError> {
    update.name.as_deref().map_or(Ok(()), |name| check_name("name", name))?;
    check_facts(&update.facts)
}

fn check_facts(facts: &HostImageFacts) -> Result<(), FieldError> {
    check_description(facts.description.as_deref())
        .map_err(|error| FieldError { field: format!("facts.{}", error.field), ..error })?;
    for (field, word, allowed) in [
        ("facts.architecture", &facts.architecture, ARCHITECTURES),
        ("facts.os_type", &facts.os_type, OS_TYPES),
        ("facts.disk_driver", &facts.disk_driver, DISK_DRIVERS),
        ("facts.network_driver", &facts.network_driver, NETWORK_DRIVERS),
    ] {
        // The empty word takes the fact away; only the others are worth naming.
        if word.as_deref() != Some("") {
            check_word(field, word.as_deref(), &allowed[1..])?;
        }
    }
    for (field, text) in [
        ("facts.distribution", &facts.distribution),
        ("facts.version", &facts.version),
        ("facts.os_language", &facts.os_language),
        ("facts.app_platform", &facts.app_platform),
    ] {
        check_text(field, text.as_deref(), SHORT_TEXT_CHARS_MAX)?;
    }
    for (field, bytes) in
        [("facts.min_disk_bytes", facts.min_disk_bytes), ("facts.min_memory_bytes", facts.min_memory_bytes)]
    {
        if bytes.is_some_and(|bytes| bytes > SIZE_BYTES_MAX) {
            return wrong(field, format!("at most {SIZE_BYTES_MAX} bytes"));
        }
    }
    Ok(())
}

/// Checks the image of disk `position`. `is_own`: the caller owns it; `is_public`: everybody sees it.
///
/// # Errors
/// Why it cannot be a disk of a host image.
pub fn check_member(
    position: usize,
    kind: ImageKind,
    is_own: bool,
    is_public: bool,
) -> Result<(), FieldError> {
    if kind != ImageKind::Disk {
        return wrong(member_field(position), "is an ISO image: only disk images can be merged");
    }
    if !is_own && !is_public {
        return wrong(
            member_field(position),
            "is shared with you, not yours: only your own and public images can be merged",
        );
    }
    Ok(())
}

/// Checks the ids of a call over many.
///
/// # Errors
/// None, too many, or one twice.
pub fn check_batch(ids: &[HostImageId]) -> Result<(), FieldError> {
    if ids.is_empty() || ids.len() > BATCH_MAX {
        return wrong("ids", format!("{} given: 1 to {BATCH_MAX} ids", ids.len()));
    }
    let mut first: HashMap<HostImageId, usize> = HashMap::new();
    for (n, id) in ids.iter().enumerate() {
        if let Some(before) = first.insert(*id, n) {
            return wrong(format!("ids[{n}]"), format!("is the same as ids[{before}]"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(disks: u8) -> HostImageCreate {
        let images = (0..disks).map(|n| ImageId::from_bytes([n; 16])).collect();
        HostImageCreate { name: "erp".into(), images, ..HostImageCreate::default() }
    }

    #[track_caller]
    fn check(field: &str, change: impl FnOnce(&mut HostImageCreate)) {
        let mut create = create(3);
        change(&mut create);
        let error = check_create(&create).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }

    #[test]
    fn every_refusal_names_its_field() {
        check("name", |c| c.name = "a\u{0}".into());
        check("images", |c| c.images.clear());
        check("images", |c| c.images.truncate(1));
        check("images", |c| c.images = create(17).images);
        check("images[2]", |c| c.images[2] = c.images[0]);
        check("facts.description", |c| c.facts.description = Some("x".repeat(4097)));
        check("facts.description", |c| c.facts.description = Some("\u{1b}[2J".into()));
        check("facts.architecture", |c| c.facts.architecture = Some("amd64".into()));
        check("facts.os_type", |c| c.facts.os_type = Some("bsd".into()));
        check("facts.disk_driver", |c| c.facts.disk_driver = Some("nvme".into()));
        check("facts.network_driver", |c| c.facts.network_driver = Some("rtl8139".into()));
        check("facts.distribution", |c| c.facts.distribution = Some("\u{202E}x".into()));
        check("facts.version", |c| c.facts.version = Some("1\r2".into()));
        check("facts.os_language", |c| c.facts.os_language = Some("é".repeat(256)));
        check("facts.app_platform", |c| c.facts.app_platform = Some("a\u{7}".into()));
        check("facts.min_disk_bytes", |c| c.facts.min_disk_bytes = Some(u64::MAX));
        check("facts.min_memory_bytes", |c| c.facts.min_memory_bytes = Some(u64::MAX));
    }

    #[test]
    fn two_to_sixteen_different_images_can_be_merged() {
        for disks in [2, 16] {
            check_create(&create(disks)).unwrap();
        }
        let empty = HostImageFacts { os_type: Some(String::new()), ..HostImageFacts::default() };
        check_update(&HostImageUpdate { facts: empty, ..HostImageUpdate::default() }).unwrap();
    }

    #[test]
    fn only_own_and_public_disks_can_be_merged() {
        assert_eq!(check_member(1, ImageKind::Disk, true, false), Ok(()));
        assert_eq!(check_member(1, ImageKind::Disk, false, true), Ok(()));
        assert_eq!(check_member(1, ImageKind::Iso, true, false).unwrap_err().field, "images[1]");
        assert_eq!(check_member(2, ImageKind::Disk, false, false).unwrap_err().field, "images[2]");
    }

    #[test]
    fn a_call_over_many_is_bounded_and_names_what_comes_twice() {
        let ids = |n: u8| (0..n).map(|n| HostImageId::from_bytes([n; 16])).collect::<Vec<_>>();
        assert_eq!(check_batch(&ids(0)).unwrap_err().field, "ids");
        assert_eq!(check_batch(&ids(101)).unwrap_err().field, "ids");
        check_batch(&ids(100)).unwrap();
        let twice = [ids(2), ids(1)].concat();
        assert_eq!(check_batch(&twice).unwrap_err().field, "ids[2]");
    }
}
