//! Hostile vhd and vhdx files.

use super::craft::*;
use super::*;

#[test]
fn the_crafted_disks_are_fine_before_they_are_broken() {
    assert_eq!(accepted(&vhd_fixed(), DiskFormat::Vhd, VHD_BYTES).mapped_bytes, VHD_BYTES);
    assert_eq!(accepted(&vhd_dynamic(|_, _| ()), DiskFormat::Vhd, VHD_BYTES).mapped_bytes, 2 << 20);
    assert_eq!(accepted(&vhdx(|_, _, _, _| ()), DiskFormat::Vhdx, 8 << 20).mapped_bytes, 1 << 20);
}

#[test]
fn a_fixed_vhd_may_begin_with_a_partition_table_but_with_no_other_format() {
    let mut file = vhd_fixed();
    put(&mut file, 446, &mbr()[446..512]);
    assert_eq!(accepted(&file, DiskFormat::Vhd, VHD_BYTES).partition_table, PartitionTable::Mbr);
    put(&mut file, 0, b"QFI\xFB\0\0\0\x03");
    refused(&file, DiskFormat::Vhd, "at the same time");
}

#[test]
fn differencing_vhds_and_parent_locators_are_refused() {
    let typed = vhd_dynamic(|foot, _| put(foot, 60, &4u32.to_be_bytes()));
    refused(&typed, DiskFormat::Vhd, "a parent disk");
    let mut fixed = vhd_fixed();
    fixed.truncate(fixed.len() - 512);
    fixed.extend(vhd_footer(4));
    refused(&fixed, DiskFormat::Vhd, "a parent disk");
    let parent = vhd_dynamic(|_, head| put(head, 40, &[1]));
    refused(&parent, DiskFormat::Vhd, "a parent disk");
    let locator = vhd_dynamic(|_, head| put(head, 576, b"W2ku"));
    refused(&locator, DiskFormat::Vhd, "a parent disk");
}

#[test]
fn vhd_checksums_hold() {
    let mut foot = vhd_fixed();
    let at = foot.len() - 512 + 48;
    foot[at] ^= 1;
    refused(&foot, DiskFormat::Vhd, "checksum of the footer");
    let mut head = vhd_dynamic(|_, _| ());
    head[512 + 30] ^= 1;
    refused(&head, DiskFormat::Vhd, "checksum of the dynamic header");
    let mut copy = vhd_dynamic(|_, _| ());
    copy[300] ^= 1;
    refused(&copy, DiskFormat::Vhd, "footer copy");
}

#[test]
fn vhd_fields_outside_the_format_are_refused() {
    let foot = |at: usize, value: &[u8]| vhd_dynamic(|foot, _| put(foot, at, value));
    let head = |at: usize, value: &[u8]| vhd_dynamic(|_, head| put(head, at, value));
    refused(&foot(60, &9u32.to_be_bytes()), DiskFormat::Vhd, "disk type");
    refused(&foot(60, &2u32.to_be_bytes()), DiskFormat::Vhd, "disk type");
    refused(&foot(12, &[9]), DiskFormat::Vhd, "file format version");
    refused(&foot(84, &[9]), DiskFormat::Vhd, "saved state");
    refused(&foot(48, &u64::MAX.to_be_bytes()), DiskFormat::Vhd, "at most");
    refused(&foot(48, &0u64.to_be_bytes()), DiskFormat::Vhd, "size of the disk");
    refused(&foot(16, &u64::MAX.to_be_bytes()), DiskFormat::Vhd, "dynamic header needs");
    refused(&foot(16, &0u64.to_be_bytes()), DiskFormat::Vhd, "dynamic header cookie");
    refused(&head(32, &3u32.to_be_bytes()), DiskFormat::Vhd, "block size");
    refused(&head(28, &1u32.to_be_bytes()), DiskFormat::Vhd, "max table entries");
    refused(&head(28, &u32::MAX.to_be_bytes()), DiskFormat::Vhd, "vhd");
    refused(&head(16, &(1u64 << 62).to_be_bytes()), DiskFormat::Vhd, "block allocation table needs");
    refused(&head(16, &1537u64.to_be_bytes()), DiskFormat::Vhd, "table offset");
}

#[test]
fn vhd_blocks_are_inside_the_file_and_used_once() {
    let mut twice = vhd_dynamic(|_, _| ());
    put(&mut twice, 1536, &4u32.to_be_bytes());
    refused(&twice, DiskFormat::Vhd, "used twice");
    let mut header = vhd_dynamic(|_, _| ());
    put(&mut header, 1536 + 4, &1u32.to_be_bytes());
    refused(&header, DiskFormat::Vhd, "used twice");
    let mut outside = vhd_dynamic(|_, _| ());
    put(&mut outside, 1536, &100_000u32.to_be_bytes());
    refused(&outside, DiskFormat::Vhd, "block needs");
}

#[test]
fn the_creator_decides_which_size_of_a_vhd_counts() {
    let geometry = |foot: &mut Vec<u8>, creator: &[u8; 4]| {
        put(foot, 28, creator);
        put(foot, 56, &[0, 100, 4, 17]); // 6800 sectors
    };
    accepted(&vhd_dynamic(|foot, _| geometry(foot, b"vpc ")), DiskFormat::Vhd, 6800 * 512);
    accepted(&vhd_dynamic(|foot, _| geometry(foot, b"win ")), DiskFormat::Vhd, VHD_BYTES);
}

#[test]
fn a_vhdx_with_a_parent_is_refused() {
    let flagged = vhdx(|_, _, metadata, _| put(metadata, 65536 + 4, &2u32.to_le_bytes()));
    refused(&flagged, DiskFormat::Vhdx, "a parent disk");
    let locator = vhdx(|_, _, metadata, _| {
        put(metadata, 10, &4u16.to_le_bytes());
        put(metadata, 128, &vhdx::PARENT_LOCATOR);
        put(metadata, 144, &65600u32.to_le_bytes());
        put(metadata, 148, &8u32.to_le_bytes());
    });
    refused(&locator, DiskFormat::Vhdx, "a parent disk");
    let partial = vhdx(|_, _, _, bat| put(bat, 8, &7u64.to_le_bytes()));
    refused(&partial, DiskFormat::Vhdx, "BAT entry");
}

#[test]
fn a_vhdx_log_that_waits_is_refused() {
    let dirty = vhdx(|head, _, _, _| put(head, 50, &[1]));
    refused(&dirty, DiskFormat::Vhdx, "log GUID");
}

#[test]
fn vhdx_checksums_hold_and_the_newer_header_counts() {
    let mut one = vhdx(|_, _, _, _| ());
    one[(64 << 10) + 100] ^= 1;
    accepted(&one, DiskFormat::Vhdx, 8 << 20);
    one[(128 << 10) + 100] ^= 1;
    refused(&one, DiskFormat::Vhdx, "checksum of a header");
    let mut regions = vhdx(|_, _, _, _| ());
    regions[(192 << 10) + 5000] ^= 1;
    refused(&regions, DiskFormat::Vhdx, "checksum of the region table");
}

#[test]
fn vhdx_fields_outside_the_format_are_refused() {
    let head = |at: usize, value: &[u8]| vhdx(|head, _, _, _| put(head, at, value));
    let regions = |at: usize, value: &[u8]| vhdx(|_, regions, _, _| put(regions, at, value));
    let metadata = |at: usize, value: &[u8]| vhdx(|_, _, metadata, _| put(metadata, at, value));
    let bat = |at: usize, value: u64| vhdx(|_, _, _, bat| put(bat, at, &value.to_le_bytes()));
    let cases = [
        (head(66, &[2]), "version"),
        (head(72, &(1u64 << 62).to_le_bytes()), "log needs"),
        (regions(8, &u32::MAX.to_le_bytes()), "region entry count"),
        (regions(8, &1u32.to_le_bytes()), "region entry count"),
        (regions(16, &[9]), "region"),
        (regions(32, &(1u64 << 62).to_le_bytes()), "region needs"),
        (regions(32, &(3u64 << 20).to_le_bytes()), "BAT entry"),
        (metadata(0, b"x"), "metadata signature"),
        (metadata(10, &u16::MAX.to_le_bytes()), "metadata entry count"),
        (metadata(10, &1u16.to_le_bytes()), "metadata entry count"),
        (metadata(32, &[9]), "metadata item"),
        (metadata(48, &u32::MAX.to_le_bytes()), "metadata item offset"),
        (metadata(65536, &3u32.to_le_bytes()), "block size"),
        (metadata(65544, &0u64.to_le_bytes()), "size of the disk"),
        (metadata(65544, &u64::MAX.to_le_bytes()), "at most"),
        (metadata(65552, &7u32.to_le_bytes()), "logical sector size"),
        (bat(0, 4 << 20 | 5), "BAT entry"),
        (bat(8, 4 << 20 | 6), "used twice"),
        (bat(8, 2 << 20 | 6), "used twice"),
        (bat(8, 5 << 20 | 6), "block needs"),
        (bat(8, u64::MAX - 1), "block needs"),
    ];
    for (file, expected) in cases {
        refused(&file, DiskFormat::Vhdx, expected);
    }
}

#[test]
fn cut_vhds_and_vhdxs_are_refused_at_every_boundary() {
    let dynamic = vhd_dynamic(|_, _| ());
    let vhdx = vhdx(|_, _, _, _| ());
    for (whole, format) in
        [(vhd_fixed(), DiskFormat::Vhd), (dynamic, DiskFormat::Vhd), (vhdx, DiskFormat::Vhdx)]
    {
        let mut cuts =
            vec![1, 7, 8, 511, 512, 513, 1535, 1536, 1537, 2047, 2048, 65535, 65536, whole.len() - 1];
        cuts.extend([whole.len() - 511, whole.len() - 512, whole.len() - 513, whole.len() / 2]);
        cuts.extend((1..whole.len() >> 16).flat_map(|n| [(n << 16) - 1, n << 16, (n << 16) + 1]));
        for cut in cuts {
            assert!(bytes(&whole[..cut], Some(format)).is_err(), "{format} accepted when cut to {cut} bytes");
        }
    }
}
