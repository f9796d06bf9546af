//! Hostile and unfit files: raw, qcow2, polyglots, and the formats that are never taken.

use super::craft::*;
use super::*;

#[test]
fn the_crafted_qcow2_is_fine_before_it_is_broken() {
    let inspection = accepted(&qcow2(), DiskFormat::Qcow2, QCOW2_BYTES);
    assert_eq!(inspection.mapped_bytes, 2 * CLUSTER as u64);
}

#[test]
fn a_qcow2_with_a_backing_file_is_refused() {
    let mut file = qcow2_with(8, &512u64.to_be_bytes());
    put(&mut file, 16, &11u32.to_be_bytes());
    put(&mut file, 512, b"/etc/passwd");
    refused(&file, DiskFormat::Qcow2, "backing file");
    put(&mut file, 512, b"json:{\"driver\":\"nbd\"}");
    put(&mut file, 16, &21u32.to_be_bytes());
    refused(&file, DiskFormat::Qcow2, "backing file");
    refused(&qcow2_with(16, &1u32.to_be_bytes()), DiskFormat::Qcow2, "backing file");
    refused(&qcow2_with(8, &1u64.to_be_bytes()), DiskFormat::Qcow2, "backing file");
}

#[test]
fn a_qcow2_with_a_data_file_is_refused() {
    refused(&qcow2_with(72, &4u64.to_be_bytes()), DiskFormat::Qcow2, "external data file");
    let mut file = qcow2_with(104, &0x4441_5441u32.to_be_bytes());
    put(&mut file, 108, &8u32.to_be_bytes());
    refused(&file, DiskFormat::Qcow2, "external data file");
    refused(&qcow2_with(88, &2u64.to_be_bytes()), DiskFormat::Qcow2, "autoclear_features");
}

#[test]
fn bits_and_extensions_beyond_the_allow_list_are_refused() {
    for bit in [0, 1, 4, 5, 17, 63] {
        let file = qcow2_with(72, &(1u64 << bit).to_be_bytes());
        refused(&file, DiskFormat::Qcow2, "incompatible_features");
    }
    for bit in [0, 1, 2, 63] {
        refused(&qcow2_with(88, &(1u64 << bit).to_be_bytes()), DiskFormat::Qcow2, "autoclear_features");
    }
    for kind in [0xE279_2ACAu32, 0x2385_2875, 0x0537_BE77, 0xDEAD_BEEF] {
        refused(&qcow2_with(104, &kind.to_be_bytes()), DiskFormat::Qcow2, "header extension");
    }
    let mut endless = qcow2();
    for i in 0..100 {
        put(&mut endless, 104 + i * 8, &0x6803_F857u32.to_be_bytes());
    }
    refused(&endless, DiskFormat::Qcow2, "header extensions");
    let mut long = qcow2_with(104, &0x6803_F857u32.to_be_bytes());
    put(&mut long, 108, &u32::MAX.to_be_bytes());
    refused(&long, DiskFormat::Qcow2, "header extension length");
}

#[test]
fn fields_that_only_bombs_and_mistakes_have_are_refused() {
    let cases: [(usize, &[u8], &str); 14] = [
        (20, &63u32.to_be_bytes(), "cluster_bits"),
        (20, &8u32.to_be_bytes(), "cluster_bits"),
        (24, &((1u64 << 63) - 1).to_be_bytes(), "at most"),
        (24, &0u64.to_be_bytes(), "size of the disk"),
        (24, &((16u64 << 40) + 512).to_be_bytes(), "at most"),
        (32, &1u32.to_be_bytes(), "crypt_method"),
        (60, &1u32.to_be_bytes(), "nb_snapshots"),
        (60, &u32::MAX.to_be_bytes(), "nb_snapshots"),
        (36, &1u32.to_be_bytes(), "l1_size"),
        (36, &u32::MAX.to_be_bytes(), "l1_size"),
        (40, &100u64.to_be_bytes(), "l1_table_offset"),
        (40, &(1u64 << 62).to_be_bytes(), "L1 table"),
        (48, &(1u64 << 62).to_be_bytes(), "refcount table"),
        (56, &u32::MAX.to_be_bytes(), "refcount_table_clusters"),
    ];
    for (at, value, expected) in cases {
        refused(&qcow2_with(at, value), DiskFormat::Qcow2, expected);
    }
    refused(&qcow2_with(96, &7u32.to_be_bytes()), DiskFormat::Qcow2, "refcount_order");
    refused(&qcow2_with(100, &100u32.to_be_bytes()), DiskFormat::Qcow2, "header_length");
}

#[test]
fn an_unknown_compression_type_is_refused_with_and_without_its_bit() {
    let mut typed = qcow2_with(72, &8u64.to_be_bytes());
    put(&mut typed, 100, &112u32.to_be_bytes());
    put(&mut typed, 104, &[1]);
    accepted(&typed, DiskFormat::Qcow2, QCOW2_BYTES);
    put(&mut typed, 104, &[2]);
    refused(&typed, DiskFormat::Qcow2, "compression_type");
    put(&mut typed, 104, &[1]);
    put(&mut typed, 72, &0u64.to_be_bytes());
    refused(&typed, DiskFormat::Qcow2, "compression_type");
    put(&mut typed, 104, &[0]);
    put(&mut typed, 72, &8u64.to_be_bytes());
    refused(&typed, DiskFormat::Qcow2, "compression_type");
}

#[test]
fn no_cluster_is_mapped_twice() {
    let again = (1u64 << 63 | DATA_AT as u64).to_be_bytes();
    refused(&qcow2_with(L2_AT + 8, &again), DiskFormat::Qcow2, "data cluster at byte 20480 is used twice");
    let table = (1u64 << 63 | L2_AT as u64).to_be_bytes();
    refused(&qcow2_with(L1_AT + 8, &table), DiskFormat::Qcow2, "L2 table at byte 16384 is used twice");
    for (target, what) in [(0u64, "L1 entry"), (L1_AT as u64, "used twice")] {
        refused(&qcow2_with(L1_AT + 8, &(1 << 63 | target).to_be_bytes()), DiskFormat::Qcow2, what);
    }
    refused(&qcow2_with(48, &(L1_AT as u64).to_be_bytes()), DiskFormat::Qcow2, "L1 table");
}

#[test]
fn compressed_clusters_may_share_a_host_cluster_but_no_bytes() {
    // x = 62 - (12 - 8) = 58 bits of offset, then the number of further sectors.
    let packed = |start: u64, more: u64| (1u64 << 62 | more << 58 | start).to_be_bytes();
    let at = DATA_AT as u64;
    let mut file = qcow2_with(L2_AT, &packed(at, 0));
    put(&mut file, L2_AT + 8, &packed(at + 100, 1));
    let inspection = accepted(&file, DiskFormat::Qcow2, QCOW2_BYTES);
    assert_eq!(inspection.mapped_bytes, 2 * CLUSTER as u64);
    put(&mut file, L2_AT + 16, &packed(at + 100, 0));
    refused(&file, DiskFormat::Qcow2, "compressed cluster at byte 20580 is used twice");
    put(&mut file, L2_AT + 16, &packed(at + 300, 0));
    refused(&file, DiskFormat::Qcow2, "compressed cluster at byte 20780 is used twice");
    put(&mut file, L2_AT + 16, &packed(L1_AT as u64, 0));
    refused(&file, DiskFormat::Qcow2, "used twice");
    put(&mut file, L2_AT + 16, &packed(7 * CLUSTER as u64 - 1, 1));
    refused(&file, DiskFormat::Qcow2, "cut short");
}

#[test]
fn a_file_of_1_mib_that_unpacks_to_32_tib_is_refused_at_once() {
    // 2 MiB clusters: each L1 entry names the same L2 table, each L2 entry the same data.
    let mut file = qcow2_with(20, &16u32.to_be_bytes());
    file.resize(1 << 20, 7);
    put(&mut file, 24, &(16u64 << 40).to_be_bytes());
    put(&mut file, 36, &32768u32.to_be_bytes());
    put(&mut file, 40, &(2u64 << 16).to_be_bytes());
    put(&mut file, 48, &(1u64 << 16).to_be_bytes());
    for i in 0..32768 {
        put(&mut file, (2 << 16) + i * 8, &(1u64 << 63 | 7 << 16).to_be_bytes());
    }
    for i in 0..8192 {
        put(&mut file, (7 << 16) + i * 8, &(1u64 << 63 | 8 << 16).to_be_bytes());
    }
    put(&mut file, 104, &[0; 8]);
    refused(&file, DiskFormat::Qcow2, "used twice");
}

#[test]
fn tables_and_clusters_outside_the_file_are_refused() {
    let outside = ((1u64 << 63) | (7 * CLUSTER as u64)).to_be_bytes();
    refused(&qcow2_with(L1_AT + 8, &outside), DiskFormat::Qcow2, "L2 table needs");
    refused(&qcow2_with(L2_AT + 16, &outside), DiskFormat::Qcow2, "data cluster needs");
    refused(&qcow2_with(L2_AT + 16, &0x40u64.to_be_bytes()), DiskFormat::Qcow2, "L2 entry");
    refused(&qcow2_with(L1_AT + 8, &(1u64 << 60).to_be_bytes()), DiskFormat::Qcow2, "L1 entry");
    let half = &qcow2()[..7 * CLUSTER / 2];
    refused(half, DiskFormat::Qcow2, "L2 table needs");
}

#[test]
fn a_cut_qcow2_is_refused_at_every_boundary() {
    let whole = qcow2();
    let mut cuts: Vec<usize> = vec![4, 8, 71, 72, 73, 103, 104, 105, 111];
    for boundary in (CLUSTER..whole.len()).step_by(CLUSTER) {
        cuts.extend([boundary - 1, boundary, boundary + 1]);
    }
    cuts.push(whole.len() - 1);
    for cut in cuts {
        assert!(bytes(&whole[..cut], Some(DiskFormat::Qcow2)).is_err(), "accepted when cut to {cut} bytes");
    }
}

#[test]
fn other_versions_of_qcow_are_refused() {
    refused(&qcow2_with(4, &1u32.to_be_bytes()), DiskFormat::Qcow2, "qcow version 1");
    refused(&qcow2_with(4, &4u32.to_be_bytes()), DiskFormat::Qcow2, "unknown version");
    let mut two = qcow2_with(4, &2u32.to_be_bytes());
    put(&mut two, 72, &[0; 32]);
    accepted(&two, DiskFormat::Qcow2, QCOW2_BYTES);
    put(&mut two, L2_AT, &1u64.to_be_bytes()); // the zero bit is of version 3
    refused(&two, DiskFormat::Qcow2, "L2 entry");
}

#[test]
fn two_formats_in_one_file_are_refused() {
    let mut with_boot_sector = qcow2();
    let (mbr, gpt) = (mbr(), gpt());
    put(&mut with_boot_sector, 446, &mbr[446..512]);
    refused(&with_boot_sector, DiskFormat::Qcow2, "qcow2 and a partition table at the same time");
    put(&mut with_boot_sector, 446, &gpt[446..520]);
    refused(&with_boot_sector, DiskFormat::Qcow2, "qcow2 and a partition table at the same time");

    let mut with_volume = qcow2();
    with_volume.resize(64 << 10, 0);
    put(&mut with_volume, 32769, b"CD001");
    refused(&with_volume, DiskFormat::Qcow2, "qcow2 and iso at the same time");
    refused(&with_volume, DiskFormat::Iso, "qcow2 and iso at the same time");

    let mut with_footer = qcow2();
    with_footer.extend(vhd_footer(2));
    refused(&with_footer, DiskFormat::Qcow2, "qcow2 and vhd at the same time");
    let mut with_tar = qcow2();
    put(&mut with_tar, 257, b"ustar");
    refused(&with_tar, DiskFormat::Qcow2, "at the same time");
}

#[test]
fn an_iso_is_taken_only_when_declared_and_then_with_a_boot_sector() {
    accepted(&iso(), DiskFormat::Iso, 80 << 10);
    assert!(matches!(bytes(&iso(), None), Err(InspectError::IsoNotDeclared)));
    assert!(matches!(bytes(&iso(), Some(DiskFormat::Raw)), Err(InspectError::Mismatch { .. })));
    let mut hybrid = iso();
    put(&mut hybrid, 446, &mbr()[446..512]);
    let inspection = accepted(&hybrid, DiskFormat::Iso, 80 << 10);
    assert_eq!(inspection.partition_table, PartitionTable::Mbr);
    assert!(matches!(bytes(&hybrid, None), Err(InspectError::Polyglot { .. })));
    assert!(matches!(bytes(&hybrid, Some(DiskFormat::Raw)), Err(InspectError::Polyglot { .. })));
    refused(&iso()[..79 << 10], DiskFormat::Iso, "iso");
    assert!(matches!(bytes(&iso()[..79 << 10], Some(DiskFormat::Iso)), Err(InspectError::Truncated { .. })));
}

#[test]
fn a_declared_format_must_be_the_one_found() {
    for declared in [DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vhd, DiskFormat::Vhdx, DiskFormat::Iso]
    {
        let error = bytes(&mbr(), Some(declared)).unwrap_err();
        assert!(matches!(error, InspectError::Mismatch { found: Found::Raw, .. }), "{error}");
    }
    let error = bytes(&qcow2(), Some(DiskFormat::Raw)).unwrap_err();
    assert!(matches!(error, InspectError::Mismatch { found: Found::Qcow2, .. }), "{error}");
}

/// Proves IMG-1.
#[test]
fn formats_that_are_never_taken_are_refused_with_a_hint() {
    let padded = |at: usize, magic: &[u8]| {
        let mut file = vec![0; 2048];
        put(&mut file, at, magic);
        file
    };
    let cases = [
        (padded(64, &0xBEDA_107Fu32.to_le_bytes()), "qemu-img convert"),
        (padded(0, b"QED\0"), "qed"),
        (padded(257, b"ustar"), "import the .vmdk inside"),
        (padded(0, b"LUKS\xBA\xBE\0\x01"), "LUKS"),
        (padded(0, b"LUKS\xBA\xBE\0\x02"), "LUKS"),
        (padded(0, b"WithoutFreeSpace"), "parallels"),
        (padded(0, b"WithouFreSpacExt"), "parallels"),
        (padded(0, b"Bochs Virtual HD Image"), "bochs"),
        (padded(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"), "cloop"),
        (padded(2048 - 512, b"koly"), "dmg"),
        (padded(0, b"COWD"), "ESX"),
        (padded(0, &0xCAFE_BABEu64.to_le_bytes()), "ESX"),
        (padded(0, b"\x1F\x8B\x08"), "gunzip"),
        (padded(0, b"\xFD7zXZ\0"), "unxz"),
        (padded(0, b"\x28\xB5\x2F\xFD"), "zstd -d"),
        (padded(0, b"<?xml version=\"1.0\"?><Envelope>"), "OVF"),
        (padded(0, b"\n <!DOCTYPE HTML>"), "web page"),
        (padded(0, b"# Disk DescriptorFile\nversion=1\n"), "names other files"),
        (padded(0, b"#comment\n\n version=3\nRW 1 FLAT \"/etc/shadow\" 0\n"), "names other files"),
    ];
    for (file, expected) in cases {
        refused(&file, DiskFormat::Raw, expected);
    }
}

#[test]
fn raw_is_what_is_left() {
    accepted(&[0], DiskFormat::Raw, 1);
    let inspection = bytes(&[7; 1000], None).unwrap();
    assert_eq!(inspection.warnings, [InspectWarning::PartialSector]);
    assert!(matches!(bytes(&[], None), Err(InspectError::Empty)));
    assert_eq!(accepted(&mbr(), DiskFormat::Raw, 1 << 20).partition_table, PartitionTable::Mbr);
}

#[test]
fn a_gpt_with_faults_is_a_warning_and_no_more() {
    let inspection = accepted(&gpt(), DiskFormat::Raw, 1 << 20);
    assert_eq!((inspection.partition_table, inspection.warnings), (PartitionTable::Gpt, vec![]));
    let mut file = gpt();
    put(&mut file, 2047 * 512, b"EFI FART");
    put(&mut file, 512 + 50, &[1]);
    let expected = vec![InspectWarning::GptChecksum, InspectWarning::GptBackupMissing];
    assert_eq!(accepted(&file, DiskFormat::Raw, 1 << 20).warnings, expected);
    let grown = [gpt(), vec![0; 4096]].concat();
    assert_eq!(accepted(&grown, DiskFormat::Raw, (1 << 20) + 4096).warnings, []);
}
