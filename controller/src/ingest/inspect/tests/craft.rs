//! Builds small, valid files of each format byte by byte, to be broken one field at a time.

/// Writes `value` at `at`, growing the file where needed.
pub(super) fn put(file: &mut Vec<u8>, at: usize, value: &[u8]) {
    if file.len() < at + value.len() {
        file.resize(at + value.len(), 0);
    }
    file[at..at + value.len()].copy_from_slice(value);
}

pub(super) const CLUSTER: usize = 4096;
pub(super) const L1_AT: usize = 3 * CLUSTER;
pub(super) const L2_AT: usize = 4 * CLUSTER;
pub(super) const DATA_AT: usize = 5 * CLUSTER;
pub(super) const QCOW2_BYTES: u64 = 4 << 20;

/// qcow2 version 3 with 4 KiB clusters, 4 MiB virtual, two data clusters.
pub(super) fn qcow2() -> Vec<u8> {
    let mut file = vec![0; 7 * CLUSTER];
    put(&mut file, 0, b"QFI\xFB");
    put(&mut file, 4, &3u32.to_be_bytes());
    put(&mut file, 20, &12u32.to_be_bytes());
    put(&mut file, 24, &QCOW2_BYTES.to_be_bytes());
    put(&mut file, 36, &2u32.to_be_bytes()); // l1_size
    put(&mut file, 40, &(L1_AT as u64).to_be_bytes());
    put(&mut file, 48, &(CLUSTER as u64).to_be_bytes());
    put(&mut file, 56, &1u32.to_be_bytes());
    put(&mut file, 96, &4u32.to_be_bytes());
    put(&mut file, 100, &104u32.to_be_bytes());
    put(&mut file, L1_AT, &(1 << 63 | L2_AT as u64).to_be_bytes());
    put(&mut file, L2_AT, &(1 << 63 | DATA_AT as u64).to_be_bytes());
    put(&mut file, L2_AT + 8, &(1 << 63 | (DATA_AT + CLUSTER) as u64).to_be_bytes());
    file[DATA_AT..].fill(0xAB);
    file
}

/// [`qcow2`] with one field changed.
pub(super) fn qcow2_with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut file = qcow2();
    put(&mut file, at, value);
    file
}

pub(super) const VMDK_SECTORS: u64 = 2048;
pub(super) const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
    createType=\"monolithicSparse\"\n\n# Extent description\nRW 2048 SPARSE \"disk.vmdk\"\n\n# DDB\n\
    ddb.adapterType = \"ide\"\nddb.geometry.heads = \"16\"\n";
pub(super) const VMDK_GD_AT: usize = 21 * 512;
pub(super) const VMDK_GT_AT: usize = 22 * 512;
pub(super) const VMDK_GRAIN_AT: usize = 128 * 512;

/// monolithicSparse with 64 KiB grains, 1 MiB virtual, one grain.
pub(super) fn vmdk() -> Vec<u8> {
    vmdk_with(DESCRIPTOR)
}

pub(super) fn vmdk_with(descriptor: &str) -> Vec<u8> {
    let mut file = vec![0; VMDK_GRAIN_AT + 65536];
    put(&mut file, 0, b"KDMV");
    put(&mut file, 4, &1u32.to_le_bytes());
    put(&mut file, 8, &3u32.to_le_bytes());
    put(&mut file, 12, &VMDK_SECTORS.to_le_bytes());
    put(&mut file, 20, &128u64.to_le_bytes());
    put(&mut file, 28, &1u64.to_le_bytes());
    put(&mut file, 36, &20u64.to_le_bytes());
    put(&mut file, 44, &512u32.to_le_bytes());
    put(&mut file, 56, &21u64.to_le_bytes());
    put(&mut file, 64, &128u64.to_le_bytes());
    put(&mut file, 73, b"\n \r\n");
    put(&mut file, 512, descriptor.as_bytes());
    put(&mut file, VMDK_GD_AT, &22u32.to_le_bytes());
    put(&mut file, VMDK_GT_AT + 8, &128u32.to_le_bytes());
    file[VMDK_GRAIN_AT..].fill(0xCD);
    file
}

/// streamOptimized with the grain directory behind the grains and a footer, as VMware exports it. The grain's bytes
/// are no deflate stream: the inspector does not unpack.
pub(super) fn stream_vmdk() -> Vec<u8> {
    let descriptor =
        DESCRIPTOR.replace("monolithicSparse", "streamOptimized").replace("RW 2048", "RDONLY 2048");
    let mut file = vmdk_with(&descriptor);
    file.truncate(VMDK_GRAIN_AT);
    file[VMDK_GD_AT..].fill(0);
    put(&mut file, 8, &(1u32 | 1 << 16 | 1 << 17).to_le_bytes());
    put(&mut file, 77, &1u16.to_le_bytes());
    put(&mut file, 56, &u64::MAX.to_le_bytes());
    // The grain for sector 256 at sector 128, 600 bytes: two sectors.
    put(&mut file, VMDK_GRAIN_AT, &256u64.to_le_bytes());
    put(&mut file, VMDK_GRAIN_AT + 8, &600u32.to_le_bytes());
    put(&mut file, 130 * 512 + 8, &128u32.to_le_bytes()); // table at 130..134
    put(&mut file, 134 * 512, &130u32.to_le_bytes()); // directory at 134
    put(&mut file, 135 * 512, &1u64.to_le_bytes()); // footer marker at 135
    put(&mut file, 135 * 512 + 12, &3u32.to_le_bytes());
    let mut footer = file[..512].to_vec();
    put(&mut footer, 56, &134u64.to_le_bytes());
    put(&mut file, 136 * 512, &footer);
    put(&mut file, 137 * 512 + 511, &[0]);
    file
}

pub(super) const VHD_BYTES: u64 = 4 << 20;

/// The ones' complement sum at `at`.
pub(super) fn vhd_checksum(block: &mut [u8], at: usize) {
    block[at..at + 4].fill(0);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

pub(super) fn vhd_footer(disk_type: u32) -> Vec<u8> {
    let mut foot = vec![0; 512];
    put(&mut foot, 0, b"conectix");
    put(&mut foot, 8, &2u32.to_be_bytes());
    put(&mut foot, 12, &0x10000u32.to_be_bytes());
    put(&mut foot, 16, &if disk_type == 2 { u64::MAX } else { 512 }.to_be_bytes());
    put(&mut foot, 28, b"win ");
    put(&mut foot, 40, &VHD_BYTES.to_be_bytes());
    put(&mut foot, 48, &VHD_BYTES.to_be_bytes());
    put(&mut foot, 60, &disk_type.to_be_bytes());
    vhd_checksum(&mut foot, 64);
    foot
}

pub(super) fn vhd_fixed() -> Vec<u8> {
    let mut file = vec![0x11; usize::try_from(VHD_BYTES).unwrap()];
    file.extend(vhd_footer(2));
    file
}

/// Dynamic, 2 MiB blocks, the second one allocated at sector 4. `edit` changes (footer, dynamic header) before the
/// checksums are made.
pub(super) fn vhd_dynamic(edit: impl Fn(&mut Vec<u8>, &mut Vec<u8>)) -> Vec<u8> {
    let mut foot = vhd_footer(3);
    let mut head = vec![0; 1024];
    put(&mut head, 0, b"cxsparse");
    put(&mut head, 8, &u64::MAX.to_be_bytes());
    put(&mut head, 16, &1536u64.to_be_bytes());
    put(&mut head, 24, &0x10000u32.to_be_bytes());
    put(&mut head, 28, &2u32.to_be_bytes());
    put(&mut head, 32, &(2u32 << 20).to_be_bytes());
    edit(&mut foot, &mut head);
    vhd_checksum(&mut foot, 64);
    vhd_checksum(&mut head, 36);
    let mut file = foot.clone();
    file.extend(head);
    file.extend(u32::MAX.to_be_bytes());
    file.extend(4u32.to_be_bytes());
    file.resize(2048, 0xFF);
    file.resize(2048 + 512 + (2 << 20), 0x22);
    file.extend(foot);
    file
}

/// VHDX of 8 MiB with 1 MiB blocks; block 0 lies at 4 MiB. `edit` changes (header, regions, metadata region, BAT).
pub(super) fn vhdx(edit: impl Fn(&mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>)) -> Vec<u8> {
    use super::super::crc::crc32c;
    const MIB: u64 = 1 << 20;
    let seal = |block: &mut Vec<u8>| {
        let crc = crc32c(&[&block[..4], &[0; 4], &block[8..]]);
        put(block, 4, &crc.to_le_bytes());
    };
    let mut head = vec![0; 4096];
    put(&mut head, 0, b"head");
    put(&mut head, 8, &7u64.to_le_bytes());
    put(&mut head, 66, &1u16.to_le_bytes());
    put(&mut head, 68, &(1u32 << 20).to_le_bytes());
    put(&mut head, 72, &MIB.to_le_bytes());
    let mut regions = vec![0; 65536];
    put(&mut regions, 0, b"regi");
    put(&mut regions, 8, &2u32.to_le_bytes());
    for (i, (id, at)) in
        [(super::super::vhdx::BAT, 2 * MIB), (super::super::vhdx::METADATA, 3 * MIB)].iter().enumerate()
    {
        put(&mut regions, 16 + 32 * i, id);
        put(&mut regions, 16 + 32 * i + 16, &at.to_le_bytes());
        put(&mut regions, 16 + 32 * i + 24, &(1u32 << 20).to_le_bytes());
        put(&mut regions, 16 + 32 * i + 28, &1u32.to_le_bytes());
    }
    let mut metadata = vec![0; 1 << 20];
    put(&mut metadata, 0, b"metadata");
    put(&mut metadata, 10, &3u16.to_le_bytes());
    let items = [
        (super::super::vhdx::FILE_PARAMETERS, 8u32, (1u64 << 20).to_le_bytes()),
        (super::super::vhdx::DISK_SIZE, 8, (8 * MIB).to_le_bytes()),
        (super::super::vhdx::LOGICAL_SECTOR, 4, 512u64.to_le_bytes()),
    ];
    for (i, (id, length, value)) in items.iter().enumerate() {
        let offset = 65536 + 8 * u32::try_from(i).unwrap();
        put(&mut metadata, 32 + 32 * i, id);
        put(&mut metadata, 32 + 32 * i + 16, &offset.to_le_bytes());
        put(&mut metadata, 32 + 32 * i + 20, &length.to_le_bytes());
        put(&mut metadata, 32 + 32 * i + 24, &4u32.to_le_bytes());
        put(&mut metadata, offset as usize, value);
    }
    let mut bat = vec![0; 1 << 20];
    put(&mut bat, 0, &((4 * MIB) | 6).to_le_bytes());
    edit(&mut head, &mut regions, &mut metadata, &mut bat);
    seal(&mut head);
    seal(&mut regions);
    let mut file = vec![0; 5 << 20];
    put(&mut file, 0, b"vhdxfile");
    for (at, block) in [(64 << 10, &head), (128 << 10, &head), (192 << 10, &regions), (256 << 10, &regions)] {
        put(&mut file, at, block);
    }
    put(&mut file, 2 << 20, &bat);
    put(&mut file, 3 << 20, &metadata);
    file
}

/// A raw disk of 1 MiB with a GPT behind a protective MBR; the backup header is where it should be.
pub(super) fn gpt() -> Vec<u8> {
    use super::super::crc::crc32;
    let mut file = vec![0; 1 << 20];
    put(&mut file, 446, &[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 7, 0, 0]);
    put(&mut file, 510, &[0x55, 0xAA]);
    put(&mut file, 512, b"EFI PART");
    put(&mut file, 512 + 12, &92u32.to_le_bytes());
    put(&mut file, 512 + 24, &1u64.to_le_bytes());
    put(&mut file, 512 + 32, &2047u64.to_le_bytes());
    let crc = crc32(&[&file[512..604]]);
    put(&mut file, 512 + 16, &crc.to_le_bytes());
    put(&mut file, 2047 * 512, b"EFI PART");
    file
}

/// A raw disk with one MBR partition.
pub(super) fn mbr() -> Vec<u8> {
    let mut file = vec![0; 1 << 20];
    put(&mut file, 446, &[0x80, 0, 2, 0, 0x83, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 7, 0, 0]);
    put(&mut file, 510, &[0x55, 0xAA]);
    file
}

/// A primary volume descriptor over a volume of 40 blocks, in a file of exactly that size.
pub(super) fn iso() -> Vec<u8> {
    let mut file = vec![0; 40 * 2048];
    put(&mut file, 32768, b"\x01CD001\x01");
    put(&mut file, 32768 + 80, &40u32.to_le_bytes());
    put(&mut file, 32768 + 128, &2048u16.to_le_bytes());
    file
}
