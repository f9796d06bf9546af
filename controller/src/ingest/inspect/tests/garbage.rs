//! Garbage and mutated files: no panic, and no more reading than the file is worth.

use proptest::prelude::*;

use super::craft::*;
use super::*;

/// Signatures need a few KiB, tables are read once: so a file costs at most itself, twice for headers that
/// are read again in full, and a MiB.
#[track_caller]
fn check(file: &[u8]) {
    for declared in [None].into_iter().chain(DiskFormat::ALL.iter().copied().map(Some)) {
        let counted = Counted { file, read_bytes: 0.into() };
        let result = inspect(&counted, declared);
        let read_bytes = counted.read_bytes.get();
        assert!(read_bytes <= 2 * file.len() as u64 + (1 << 20), "{read_bytes} of {}", file.len());
        if let Ok(inspection) = &result {
            assert_eq!(inspection.read_bytes, read_bytes);
            assert!(inspection.mapped_bytes <= inspection.virtual_size_bytes);
            assert!(inspection.virtual_size_bytes <= MAX_VIRTUAL_BYTES);
        }
        if let Err(error) = result {
            assert!(error.to_string().len() < 600, "{error}");
        }
    }
}

struct Counted<'a> {
    file: &'a [u8],
    read_bytes: std::cell::Cell<u64>,
}

impl ReadAt for Counted<'_> {
    fn len_bytes(&self) -> u64 {
        self.file.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        self.read_bytes.set(self.read_bytes.get() + n as u64);
        Ok(n)
    }
}

/// Offsets where headers and tables of the crafted files lie.
fn hot_spot() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..1024,
        2 => L1_AT..L2_AT + 64,
        2 => VMDK_GD_AT..VMDK_GT_AT + 64,
        1 => (64usize << 10)..(64 << 10) + 128,
        1 => (192usize << 10)..(192 << 10) + 128,
        1 => (2usize << 20)..(2 << 20) + 64,
        1 => (3usize << 20)..(3 << 20) + 160,
        1 => (3usize << 20) + 65536..(3 << 20) + 65536 + 24,
        1 => 130usize * 512..138 * 512,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(file in proptest::collection::vec(any::<u8>(), 0..3000)) {
        check(&file);
    }

    #[test]
    fn random_bytes_behind_a_magic_never_panic(
        magic in prop_oneof![
            Just(b"QFI\xFB\0\0\0\x03"), Just(b"QFI\xFB\0\0\0\x02"), Just(b"KDMV\x01\0\0\0"),
            Just(b"conectix"), Just(b"vhdxfile"),
        ],
        mut file in proptest::collection::vec(any::<u8>(), 8..3000),
    ) {
        file[..8].copy_from_slice(magic);
        check(&file);
    }

    #[test]
    fn mutated_files_never_panic(
        which in 0usize..8,
        changes in proptest::collection::vec((hot_spot(), any::<u64>(), 1usize..=8), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        reseal in any::<bool>(),
    ) {
        let mut file = match which {
            0 | 1 => qcow2(),
            2 => vmdk(),
            3 => stream_vmdk(),
            4 => vhd_fixed(),
            5 => vhd_dynamic(|foot, head| if reseal {
                for (at, value, n) in &changes {
                    put(if at % 2 == 0 { foot } else { head }, at % 500, &value.to_be_bytes()[..*n]);
                }
            }),
            6 => vhdx(|head, regions, metadata, bat| if reseal {
                for (at, value, n) in &changes {
                    let block = [&mut *head, &mut *regions, &mut *metadata, &mut *bat];
                    put(block.into_iter().nth(at % 4).unwrap(), at % 160, &value.to_le_bytes()[..*n]);
                }
            }),
            _ => iso(),
        };
        for (at, value, n) in &changes {
            let at = at % file.len().saturating_sub(8);
            file[at..at + n].copy_from_slice(&value.to_be_bytes()[..*n]);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        check(&file);
    }

    #[test]
    fn descriptors_of_any_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _verdict = vmdk::check_descriptor(&text, 2048);
    }
}
