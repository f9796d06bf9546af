//! Files as the real qemu-img makes them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::*;

const SIZE_BYTES: u64 = 24 << 20;

#[track_caller]
fn qemu_img(args: &[&str]) {
    let output =
        Command::new("qemu-img").args(args).output().expect("qemu-img is installed (package qemu-utils)");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk with text, noise and holes.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
    let mut state = 1u32;
    for (i, byte) in disk[1 << 20..5 << 20].iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = if i % 8192 < 4096 { state.to_be_bytes()[0] } else { b"hearth "[i % 7] };
    }
    disk[20 << 20..(20 << 20) + 5000].fill(b'x');
    disk
}

fn inspect_file(path: &Path, declared: Option<DiskFormat>) -> Result<Inspection, InspectError> {
    inspect(&ImageFile::new(File::open(path).unwrap()).unwrap(), declared)
}

#[test]
fn every_accepted_format_made_by_qemu_img_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("disk.raw");
    fs::write(&source, disk()).unwrap();
    let source = source.to_str().unwrap();
    let cases: [(&str, &str, &[&str], DiskFormat); 15] = [
        ("plain", "qcow2", &[], DiskFormat::Qcow2),
        ("v2", "qcow2", &["-o", "compat=0.10"], DiskFormat::Qcow2),
        ("zlib", "qcow2", &["-c"], DiskFormat::Qcow2),
        ("zstd", "qcow2", &["-c", "-o", "compression_type=zstd"], DiskFormat::Qcow2),
        ("zstd2m", "qcow2", &["-c", "-o", "compression_type=zstd,cluster_size=2M"], DiskFormat::Qcow2),
        ("metadata", "qcow2", &["-o", "preallocation=metadata"], DiskFormat::Qcow2),
        ("small", "qcow2", &["-o", "cluster_size=512"], DiskFormat::Qcow2),
        ("lazy", "qcow2", &["-o", "lazy_refcounts=on"], DiskFormat::Qcow2),
        ("sparse", "vmdk", &["-o", "subformat=monolithicSparse"], DiskFormat::Vmdk),
        ("stream", "vmdk", &["-o", "subformat=streamOptimized"], DiskFormat::Vmdk),
        ("fixed", "vpc", &["-o", "subformat=fixed"], DiskFormat::Vhd),
        ("dynamic", "vpc", &["-o", "subformat=dynamic"], DiskFormat::Vhd),
        ("azure", "vpc", &["-o", "subformat=fixed,force_size=on"], DiskFormat::Vhd),
        ("vhdx", "vhdx", &[], DiskFormat::Vhdx),
        ("vhdx1m", "vhdx", &["-o", "block_size=1M"], DiskFormat::Vhdx),
    ];
    for (name, driver, options, format) in cases {
        let path = folder.path().join(name);
        let target = path.to_str().unwrap();
        qemu_img(&[&["convert", "-f", "raw", "-O", driver], options, &[source, target]].concat());
        for declared in [None, Some(format)] {
            let inspection = inspect_file(&path, declared).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(inspection.format, format, "{name}");
            assert!(inspection.mapped_bytes >= 4 << 20, "{name}: {inspection:?}");
            let back = folder.path().join("back");
            let back = back.to_str().unwrap();
            qemu_img(&["convert", "-f", driver, "-O", "raw", target, back]);
            assert_eq!(fs::metadata(back).unwrap().len(), inspection.virtual_size_bytes, "{name}");
        }
        let whole = fs::read(&path).unwrap();
        for cut in [whole.len() / 2, whole.len() - 70_000, 65536, 1536, 512, 100, 10] {
            let cut_file = bytes(&whole[..cut], Some(format));
            assert!(cut_file.is_err(), "{name} accepted when cut to {cut} of {} bytes", whole.len());
        }
    }
}

#[test]
fn what_qemu_img_makes_and_we_do_not_take_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (base, size) = (path("base.qcow2"), "8M");
    qemu_img(&["create", "-q", "-f", "qcow2", &base, size]);
    let cases: [(&str, &[&str], &str); 9] = [
        ("overlay", &["-f", "qcow2", "-b", &base, "-F", "qcow2"], "backing file"),
        ("data", &["-f", "qcow2", "-o", &format!("data_file={}", path("d"))], "external data file"),
        ("wide", &["-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"], "incompatible_features"),
        ("vdi", &["-f", "vdi"], "vdi"),
        ("qed", &["-f", "qed"], "qed"),
        ("qcow", &["-f", "qcow"], "qcow version 1"),
        ("flat.vmdk", &["-f", "vmdk", "-o", "subformat=monolithicFlat"], "names other files"),
        ("two.vmdk", &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"], "names other files"),
        ("parallels", &["-f", "parallels"], "parallels"),
    ];
    for (name, options, expected) in cases {
        qemu_img(&[&["create", "-q"], options, &[&path(name), size]].concat());
        let error = inspect_file(path(name).as_ref(), None).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    qemu_img(&["snapshot", "-c", "one", &base]);
    let error = inspect_file(base.as_ref(), None).unwrap_err().to_string();
    assert!(error.contains("nb_snapshots"), "{error}");
}
