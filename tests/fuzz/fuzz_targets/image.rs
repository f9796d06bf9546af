//! The inspectors of uploaded images. The input is laid over the skeleton of a format, with its checksums made right, so
//! that the tables behind them are reached.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the controller's files are built here without the controller"
)]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/ingest/inspect/mod.rs"]
mod inspect;

use hearth_protocol::words::DiskFormat;
use inspect::{ReadAt, inspect};

/// Counts what is read.
struct Counted<'a>(&'a [u8], std::cell::Cell<u64>);

impl ReadAt for Counted<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let n = self.0.read_at(buf, offset)?;
        self.1.set(self.1.get() + n as u64);
        Ok(n)
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&skeleton, rest)) = input.split_first() else { return };
    let file = match skeleton % 7 {
        0 => rest.to_vec(),
        1 => over(rest, b"QFI\xFB\0\0\0\x03"),
        2 => over(rest, b"QFI\xFB\0\0\0\x02"),
        3 => over(rest, b"KDMV\x01\0\0\0"),
        4 => vhd(rest, true),
        5 => vhd(rest, false),
        _ => vhdx(rest),
    };
    for declared in [None].into_iter().chain(DiskFormat::ALL.iter().copied().map(Some)) {
        let counted = Counted(&file, 0.into());
        let verdict = inspect(&counted, declared);
        assert!(counted.1.get() <= 2 * file.len() as u64 + (1 << 20), "read {} bytes", counted.1.get());
        match verdict {
            Ok(inspection) => assert!(inspection.mapped_bytes <= inspection.virtual_size_bytes),
            Err(error) => assert!(error.to_string().len() < 600),
        }
    }
});

fn over(rest: &[u8], magic: &[u8]) -> Vec<u8> {
    let mut file = rest.to_vec();
    file.resize(file.len().max(1024), 0);
    file[..magic.len()].copy_from_slice(magic);
    file
}

/// Takes the next `n` bytes of the input, zero-filled.
fn take(rest: &mut &[u8], n: usize) -> Vec<u8> {
    let (head, tail) = rest.split_at(rest.len().min(n));
    *rest = tail;
    let mut block = head.to_vec();
    block.resize(n, 0);
    block
}

fn ones_complement(block: &mut [u8], at: usize) {
    block[at..at + 4].fill(0);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn vhd(mut rest: &[u8], dynamic: bool) -> Vec<u8> {
    let mut foot = take(&mut rest, 512);
    foot[..16].copy_from_slice(b"conectix\0\0\0\x02\0\x01\0\0");
    foot[16..24].copy_from_slice(&512u64.to_be_bytes());
    ones_complement(&mut foot, 64);
    if !dynamic {
        return [rest, &foot].concat();
    }
    let mut head = take(&mut rest, 1024);
    head[..8].copy_from_slice(b"cxsparse");
    ones_complement(&mut head, 36);
    [&foot, head.as_slice(), rest, &foot].concat()
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// Headers, regions, metadata and BAT from the input, at their places in a file of 4 MiB.
fn vhdx(mut rest: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 4 << 20];
    file[..8].copy_from_slice(b"vhdxfile");
    let (head, regions) = (take(&mut rest, 80), take(&mut rest, 128));
    let metadata = take(&mut rest, 256);
    for (at, magic, bytes, len) in [
        (64 << 10, b"head", &head, 4096),
        (128 << 10, b"head", &head, 4096),
        (192 << 10, b"regi", &regions, 65536),
    ] {
        let block: &mut [u8] = &mut file[at..at + len];
        block[..bytes.len()].copy_from_slice(bytes);
        block[..4].copy_from_slice(magic);
        block[4..8].fill(0);
        let crc = crc32c(block);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    file[2 << 20..][..metadata.len()].copy_from_slice(&metadata);
    file[2 << 20..][..8].copy_from_slice(b"metadata");
    let values = take(&mut rest, 256);
    file[(2 << 20) + (64 << 10)..][..256].copy_from_slice(&values);
    let bat = &rest[..rest.len().min(1 << 20)];
    file[3 << 20..][..bat.len()].copy_from_slice(bat);
    file
}
