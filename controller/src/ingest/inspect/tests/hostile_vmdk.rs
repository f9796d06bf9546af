//! Hostile vmdk files.

use super::craft::*;
use super::*;

#[test]
fn the_crafted_vmdks_are_fine_before_they_are_broken() {
    assert_eq!(accepted(&vmdk(), DiskFormat::Vmdk, 1 << 20).mapped_bytes, 65536);
    assert_eq!(accepted(&stream_vmdk(), DiskFormat::Vmdk, 1 << 20).mapped_bytes, 65536);
}

#[test]
fn a_descriptor_that_names_another_file_is_refused() {
    let extent = "RW 2048 SPARSE \"disk.vmdk\"";
    let cases = [
        (extent.replace("disk.vmdk", "/etc/shadow"), "bare file name"),
        (extent.replace("disk.vmdk", "../disk.vmdk"), "bare file name"),
        (extent.replace("disk.vmdk", "a\\b"), "bare file name"),
        (extent.replace("disk.vmdk", "nbd:host"), "bare file name"),
        (extent.replace("\"disk.vmdk\"", "disk.vmdk"), "bare file name"),
        (extent.replace("SPARSE", "FLAT"), "SPARSE"),
        (extent.replace("SPARSE", "VMFS"), "SPARSE"),
        (extent.replace("RW 2048", "RW 4096"), "size is not the disk's"),
        (format!("{extent}\n{extent}"), "exactly one extent"),
        (String::new(), "exactly one extent"),
        ("NOACCESS 2048 ZERO".into(), "no known kind"),
    ];
    for (line, expected) in cases {
        refused(&vmdk_with(&DESCRIPTOR.replace(extent, &line)), DiskFormat::Vmdk, expected);
    }
}

#[test]
fn create_types_beyond_the_two_are_refused() {
    for kind in ["monolithicFlat", "twoGbMaxExtentSparse", "vmfs", "custom", "fullDevice", ""] {
        let text = DESCRIPTOR.replace("monolithicSparse", kind);
        refused(&vmdk_with(&text), DiskFormat::Vmdk, "createType must be");
    }
    refused(&vmdk_with(&DESCRIPTOR.replace("createType", "#")), DiskFormat::Vmdk, "createType is missing");
    let twice = format!("{DESCRIPTOR}createType=\"streamOptimized\"\n");
    refused(&vmdk_with(&twice), DiskFormat::Vmdk, "createType stands twice");
}

#[test]
fn parents_are_refused() {
    refused(&vmdk_with(&DESCRIPTOR.replace("ffffffff", "12345678")), DiskFormat::Vmdk, "a parent disk");
    let hint = format!("{DESCRIPTOR}parentFileNameHint=\"base.vmdk\"\n");
    refused(&vmdk_with(&hint), DiskFormat::Vmdk, "a parent disk");
}

#[test]
fn lines_of_no_known_kind_are_refused() {
    for line in ["changeTrackPath=\"x\"", "include other", "=", "key with space=1", "\u{1}ddb.x=1"] {
        let text = format!("{DESCRIPTOR}{line}\n");
        assert!(bytes(&vmdk_with(&text), Some(DiskFormat::Vmdk)).is_err(), "accepted {line:?}");
    }
    let hidden = format!("{DESCRIPTOR}\0RW 1 FLAT \"/etc/shadow\" 0\n");
    refused(&vmdk_with(&hidden), DiskFormat::Vmdk, "behind the end of the text");
    let (_, own_end) = DESCRIPTOR.split_at(DESCRIPTOR.len() - 7);
    refused(&vmdk_with(&format!("{DESCRIPTOR}\0{own_end}")), DiskFormat::Vmdk, "behind the end of the text");
}

/// What qemu-img leaves when the second CID of a disk has fewer digits than the first.
#[test]
fn the_end_of_a_longer_text_is_no_fault() {
    for n_left in 1..=6 {
        let (_, end) = DESCRIPTOR.split_at(DESCRIPTOR.len() - n_left);
        let left = format!("{DESCRIPTOR}\0{end}");
        bytes(&vmdk_with(&left), Some(DiskFormat::Vmdk)).unwrap();
    }
}

#[test]
fn header_fields_outside_the_format_are_refused() {
    let cases: [(usize, &[u8], &str); 11] = [
        (4, &9u32.to_le_bytes(), "version"),
        (8, &(1u32 << 5).to_le_bytes(), "flags"),
        (8, &(3u32 | 1 << 16).to_le_bytes(), "compressAlgorithm"),
        (12, &0u64.to_le_bytes(), "size of the disk"),
        (12, &u64::MAX.to_le_bytes(), "at most"),
        (20, &100u64.to_le_bytes(), "grainSize"),
        (28, &u64::MAX.to_le_bytes(), "descriptorOffset"),
        (36, &u64::MAX.to_le_bytes(), "descriptorSize"),
        (44, &u32::MAX.to_le_bytes(), "numGTEsPerGT"),
        (56, &(u64::MAX - 1).to_le_bytes(), "grain directory"),
        (73, b"\n \n\n", "line end test"),
    ];
    for (at, value, expected) in cases {
        let mut file = vmdk();
        put(&mut file, at, value);
        refused(&file, DiskFormat::Vmdk, expected);
    }
}

#[test]
fn grains_and_tables_are_inside_the_file_and_used_once() {
    let mut twice = vmdk();
    put(&mut twice, VMDK_GT_AT, &128u32.to_le_bytes());
    refused(&twice, DiskFormat::Vmdk, "used twice");
    let mut over_table = vmdk();
    put(&mut over_table, VMDK_GT_AT, &22u32.to_le_bytes());
    refused(&over_table, DiskFormat::Vmdk, "used twice");
    let mut outside = vmdk();
    put(&mut outside, VMDK_GT_AT, &u32::MAX.to_le_bytes());
    refused(&outside, DiskFormat::Vmdk, "grain needs");
    let mut table = vmdk();
    put(&mut table, VMDK_GD_AT, &u32::MAX.to_le_bytes());
    refused(&table, DiskFormat::Vmdk, "grain table needs");
    let mut behind = vmdk();
    put(&mut behind, VMDK_GT_AT + 4 * 16, &128u32.to_le_bytes());
    refused(&behind, DiskFormat::Vmdk, "behind the end of the disk");
}

#[test]
fn a_footer_that_differs_from_the_header_is_refused() {
    let whole = stream_vmdk();
    let foot = whole.len() - 1024;
    for (at, value, expected) in [
        (foot + 12, 9u8, "footer"),            // capacity
        (foot + 28, 5, "footer"),              // descriptor offset
        (foot + 100, 1, "footer"),             // padding
        (foot - 512 + 12, 2, "footer marker"), // not a footer
        (whole.len() - 1, 1, "end of stream"),
    ] {
        let mut file = whole.clone();
        file[at] = value;
        refused(&file, DiskFormat::Vmdk, expected);
    }
    let mut again = whole.clone();
    put(&mut again, foot + 56, &u64::MAX.to_le_bytes());
    refused(&again, DiskFormat::Vmdk, "gdOffset of the footer");
}

#[test]
fn compressed_grains_must_be_what_the_table_says() {
    let whole = stream_vmdk();
    for (at, value, expected) in [
        (VMDK_GRAIN_AT, 7u32, "sector number of a grain marker"),
        (VMDK_GRAIN_AT + 8, 0, "size of a grain marker"),
        (VMDK_GRAIN_AT + 8, u32::MAX, "size of a grain marker"),
        (VMDK_GRAIN_AT + 8, 2000, "used twice"), // runs into the table behind it
        (VMDK_GRAIN_AT + 8, 60000, "grain needs"),
    ] {
        let mut file = whole.clone();
        put(&mut file, at, &value.to_le_bytes());
        refused(&file, DiskFormat::Vmdk, expected);
    }
}

#[test]
fn a_cut_vmdk_is_refused_at_every_boundary() {
    for whole in [vmdk(), stream_vmdk()] {
        for sector in 0..whole.len() / 512 {
            for cut in [sector * 512, sector * 512 + 1, sector * 512 + 511] {
                assert!(
                    bytes(&whole[..cut], Some(DiskFormat::Vmdk)).is_err(),
                    "accepted when cut to {cut} bytes"
                );
            }
        }
    }
}
