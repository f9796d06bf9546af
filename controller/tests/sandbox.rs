//! The converter's sandbox, with the real controller, qemu-img and other programs of the system in it.
//!
//! **What.** What the sandboxed process may and may not do; that bombs and slow conversions are stopped; that a file
//! which names another file copies nothing even if no inspector had looked at it.
//! **Why here.** The rules hold for a process after `exec`, so only a real process can show them.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hearth_controller::clock;
use hearth_controller::ingest::convert::{Conversion, ConvertError, Converter, time_limit};
use hearth_controller::ingest::sandbox::{Confinement, SandboxMode, landlock_available};
use hearth_protocol::words::DiskFormat;

const CONTROLLER: &str = env!("CARGO_BIN_EXE_hearth-controller");
const QEMU_IMG: &str = "/usr/bin/qemu-img";

/// A folder with an input, an empty output and a file nobody may see.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        fs::write(place.path("input"), "the input").unwrap();
        fs::write(place.path("output"), "").unwrap();
        fs::write(place.path("secret"), "the secret").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program of the system in the sandbox.
    fn run(&self, program: &[&str]) -> Output {
        let confinement = Confinement {
            mode: SandboxMode::Required,
            read: self.path("input"),
            write: self.path("output"),
            file_bytes: 1 << 20,
            cpu_s: 5,
            also_read: Vec::new(),
        };
        let program: Vec<_> = program.iter().map(Into::into).collect();
        Command::new(CONTROLLER).args(confinement.arguments(&program)).output().unwrap()
    }

    /// Runs a piece of perl (essential on Debian) in the sandbox; it must end with `expected` on its standard error.
    #[track_caller]
    fn perl(&self, code: &str, expected: &str) {
        let output = self.run(&["/usr/bin/perl", "-e", code]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{code}: {} {said}", output.status);
    }
}

#[test]
fn this_kernel_has_landlock() {
    assert!(landlock_available(), "the tests of the sandbox need a kernel with Landlock (lsm=landlock,…)");
}

#[test]
fn the_input_is_read_and_the_output_written() {
    let place = Place::new();
    let (input, output) = (place.path("input"), place.path("output"));
    let code =
        "open(I,'<',$ARGV[0]) or die 1; open(O,'+<',$ARGV[1]) or die 2; print O <I>; close(O) or die 3;";
    let done = place.run(&["/usr/bin/perl", "-e", code, input.to_str().unwrap(), output.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::read_to_string(output).unwrap(), "the input");
}

#[test]
fn no_other_file_is_opened_made_or_removed() {
    let place = Place::new();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let denied = "Permission denied";
    place.perl(&format!("open(F,'<','{}') or die $!", at("secret")), denied);
    place.perl("open(F,'<','/etc/passwd') or die $!", denied);
    place.perl("open(F,'<','/proc/self/environ') or die $!", denied);
    place.perl("opendir(D,'/etc') or die $!", denied);
    place.perl(&format!("open(F,'>','{}') or die $!", at("new")), denied);
    place.perl(&format!("open(F,'+<','{}') or die $!", at("input")), denied);
    place.perl(&format!("unlink('{}') or die $!", at("secret")), "not permitted");
    place.perl(&format!("rename('{}','{}') or die $!", at("output"), at("x")), "not permitted");
    place.perl(&format!("symlink('/etc','{}') or die $!", at("x")), "not permitted");
    place.perl(&format!("link('{}','{}') or die $!", at("secret"), at("x")), "not permitted");
    place.perl(&format!("chmod(0777,'{}') or die $!", at("input")), "not permitted");
    assert_eq!(fs::read_to_string(at("secret")).unwrap(), "the secret");
}

#[test]
fn no_socket_no_process_no_tracing() {
    let place = Place::new();
    let denied = "not permitted";
    for family in [1, 2, 10, 16] {
        place.perl(&format!("socket(S,{family},1,0) or die $!"), denied);
    }
    place.perl("socketpair(A,B,1,1,0) or die $!", denied);
    place.perl("defined(fork) or die $!", denied);
    place.perl("kill(9,getppid) or die $!", denied);
    // ptrace(PTRACE_TRACEME), mount, unshare, setns, bpf, io_uring_setup, process_vm_readv, keyctl, memfd_create
    #[cfg(target_arch = "x86_64")]
    for call in [101, 165, 272, 308, 321, 425, 310, 250, 319] {
        place.perl(&format!("syscall({call},0,0,0,0,0,0)==-1 or exit 0; die $!"), denied);
    }
    place.perl("exec('/bin/sh','-c','true') or die $!", "Permission denied");
}

#[test]
fn the_length_of_the_output_and_the_processor_time_are_limited() {
    let place = Place::new();
    let output = place.path("output");
    let code =
        format!("open(O,'+<','{}') or die; seek(O,2<<20,0); print O 'x'; close(O) or die", output.display());
    assert!(!place.run(&["/usr/bin/perl", "-e", &code]).status.success());
    assert_eq!(fs::metadata(output).unwrap().len(), 0);
    let started = clock::monotonic();
    assert!(!place.run(&["/usr/bin/perl", "-e", "1 while 1"]).status.success());
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_child_with_wrong_arguments_says_so() {
    let output = Command::new(CONTROLLER).args(["convert-child", "off", "/x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("convert-child"), "{output:?}");
    let place = Place::new();
    // Started by somebody else than the process that wrote the arguments: its watcher is not there.
    let confinement = Confinement {
        mode: SandboxMode::Required,
        read: place.path("input"),
        write: place.path("output"),
        file_bytes: 1,
        cpu_s: 1,
        also_read: Vec::new(),
    };
    let mut arguments = confinement.arguments(&["/usr/bin/perl".into(), "-e1".into()]);
    arguments[6] = "1".into();
    let orphan = Command::new(CONTROLLER).args(arguments).output().unwrap();
    assert_eq!(orphan.status.code(), Some(125), "{orphan:?}");
    let missing = place.run(&["/usr/bin/no-such-program"]);
    assert_eq!(missing.status.code(), Some(125), "{missing:?}");
}

#[track_caller]
fn qemu_img(args: &[&str]) {
    let output = Command::new(QEMU_IMG).args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn converter() -> Converter {
    Converter { controller: CONTROLLER.into(), qemu_img: QEMU_IMG.into(), mode: SandboxMode::Required }
}

/// Compressible bytes that are nowhere zero.
fn disk(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| b"hearth keeps images warm. "[i % 26]).collect()
}

fn convert(
    input: &Path,
    format: DiskFormat,
    output: &Path,
    size: u64,
    reserved: u64,
) -> Result<u8, ConvertError> {
    let conversion = Conversion {
        input,
        format,
        output,
        virtual_size_bytes: size,
        reserved_bytes: reserved,
        time: time_limit(size),
    };
    let mut last = 0;
    converter().to_raw(&conversion, &AtomicBool::new(false), &mut |percent| last = percent)?;
    Ok(last)
}

#[test]
fn every_format_is_converted_to_the_same_bytes() {
    let place = Place::new();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let mut bytes = disk(8 << 20);
    bytes[1 << 20..4 << 20].fill(0);
    fs::write(at("raw"), &bytes).unwrap();
    let cases: [(&str, &[&str], DiskFormat); 7] = [
        ("qcow2", &[], DiskFormat::Qcow2),
        ("qcow2", &["-c"], DiskFormat::Qcow2),
        ("qcow2", &["-c", "-o", "compression_type=zstd"], DiskFormat::Qcow2),
        ("vmdk", &[], DiskFormat::Vmdk),
        ("vmdk", &["-o", "subformat=streamOptimized"], DiskFormat::Vmdk),
        ("vpc", &["-o", "force_size=on"], DiskFormat::Vhd),
        ("vhdx", &[], DiskFormat::Vhdx),
    ];
    for (i, (driver, options, format)) in cases.into_iter().enumerate() {
        let (source, target) = (at(&format!("{i}.img")), at(&format!("{i}.raw")));
        qemu_img(&[&["convert", "-f", "raw", "-O", driver], options, &[&at("raw"), &source]].concat());
        convert(source.as_ref(), format, target.as_ref(), 8 << 20, 8 << 20).unwrap();
        assert!(fs::read(target).unwrap() == bytes, "{driver} {options:?}");
    }
}

#[test]
fn a_bomb_is_killed_at_its_reservation() {
    let place = Place::new();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    fs::write(at("raw"), disk(512 << 20)).unwrap();
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        &at("raw"),
        &at("bomb"),
    ]);
    fs::remove_file(at("raw")).unwrap();
    let result = convert(at("bomb").as_ref(), DiskFormat::Qcow2, at("out").as_ref(), 512 << 20, 8 << 20);
    let Err(ConvertError::TooLarge { allocated_bytes, .. }) = result else { panic!("{result:?}") };
    let after = fs::metadata(at("out")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        fs::metadata(at("out")).unwrap().modified().unwrap(),
        after.modified().unwrap(),
        "still written"
    );
    assert!(allocated_bytes > 8 << 20);
}

#[test]
fn a_slow_conversion_and_a_cancelled_one_are_stopped() {
    let place = Place::new();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    fs::write(at("raw"), disk(64 << 20)).unwrap();
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", &at("raw"), &at("image")]);
    let (image, out) = (at("image"), at("out"));
    let mut conversion = Conversion {
        input: image.as_ref(),
        format: DiskFormat::Qcow2,
        output: out.as_ref(),
        virtual_size_bytes: 64 << 20,
        reserved_bytes: 64 << 20,
        time: Duration::ZERO,
    };
    let slow = converter().to_raw(&conversion, &AtomicBool::new(false), &mut |_| ());
    assert!(matches!(slow, Err(ConvertError::TooSlow { .. })), "{slow:?}");
    fs::remove_file(&out).unwrap();
    conversion.time = time_limit(0);
    let cancelled = converter().to_raw(&conversion, &AtomicBool::new(true), &mut |_| ());
    assert!(matches!(cancelled, Err(ConvertError::Cancelled)), "{cancelled:?}");
}

#[test]
fn images_that_name_a_host_file_copy_nothing() {
    let place = Place::new();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    fs::write(at("host"), disk(1 << 20)).unwrap();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 2048 FLAT \"{}\" 0\n",
        at("host")
    );
    fs::write(at("text.vmdk"), text).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &at("host"), "-F", "raw", &at("overlay"), "1M"]);
    // The same files outside the sandbox do copy: the attack is real.
    qemu_img(&["convert", "-f", "vmdk", "-O", "raw", &at("text.vmdk"), &at("leak1")]);
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &at("overlay"), &at("leak2")]);
    assert!(
        fs::read(at("leak1")).unwrap() == disk(1 << 20) && fs::read(at("leak2")).unwrap() == disk(1 << 20)
    );
    for (name, format) in [("text.vmdk", DiskFormat::Vmdk), ("overlay", DiskFormat::Qcow2)] {
        let out = at(&format!("{name}.out"));
        let result = convert(at(name).as_ref(), format, out.as_ref(), 1 << 20, 1 << 20);
        let Err(ConvertError::Failed { message, .. }) = result else { panic!("{name}: {result:?}") };
        assert!(message.contains("Permission denied"), "{name}: {message}");
        assert!(fs::read(out).unwrap().iter().all(|&byte| byte == 0), "{name} leaked");
    }
}
