//! Signed catalogs: with a signature that is right, so that the catalog behind it is reached, and with one that is not.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the controller's files are built here without the controller"
)]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/logic/catalog.rs"]
mod catalog;
#[path = "../../../controller/src/logic/market.rs"]
mod market;
#[path = "../../../controller/src/logic/source.rs"]
mod source;

use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use hearth_protocol::api::market::{SignedCatalog, signed_bytes};

static SIGNER: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes"));

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let catalog = String::from_utf8_lossy(input).into_owned();
    let key = hex(SIGNER.public_key().as_ref());
    let signature = hex(SIGNER.sign(&signed_bytes(&catalog)).as_ref());
    let file = SignedCatalog { catalog, signature };
    if let Ok(catalog) = market::open(&file, &key) {
        assert!(catalog.serial > 0 && market::check(&catalog).is_ok());
        assert!(market::open(&file, &"00".repeat(32)).is_err());
    }
    // The input as it came: file, signature and key.
    if let Ok(file) = serde_json::from_slice::<SignedCatalog>(input) {
        let _ = market::open(&file, &key);
        assert!(market::open(&file, &file.signature).is_err());
    }
});
