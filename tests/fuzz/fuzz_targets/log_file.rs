//! Archives of the operation log: the input as lines that are packed here, and as the packed file itself.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "the controller's files are built here without the controller")]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/db/archived.rs"]
mod archived;
#[path = "../../../controller/src/logic/chain.rs"]
mod chain;
#[path = "../../../controller/src/admin/log_file.rs"]
mod log_file;

mod db {
    pub(crate) use crate::archived;
}
mod logic {
    pub(crate) use crate::chain;
}

use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("there is a folder for temporary files"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let path = FOLDER.path().join("log.zst");
    let begin =
        r#"{"begin":{"format":1,"instance":"i","first_seq":2,"prev_hash":"","build":"","made_unix_ms":0}}"#;
    let lines = [begin.as_bytes(), b"\n", input].concat();
    for file in [
        input.to_vec(),
        zstd::encode_all(input, 1).expect("memory takes it"),
        zstd::encode_all(lines.as_slice(), 1).expect("memory takes it"),
    ] {
        std::fs::write(&path, file).expect("there is room");
        match log_file::read(&path, &[]) {
            Ok(proof) => assert!(proof.verdict.intact <= proof.rows && proof.first_seq > 0),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
