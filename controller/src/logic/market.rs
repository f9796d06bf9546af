//! Which catalogs of a market are taken.
//!
//! **What.** [`open`] checks the signature of a file and everything in it; [`succeeds`] says whether it may follow the edition
//! that is here.
//!
//! **Why every field before anything is stored.** A signature says who wrote a catalog, not that it is well made. What is wrong
//! is told to whoever adds it, not to whoever imports from it a month later.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `a_file_that_was_changed_or_signed_by_somebody_else_is_refused`
//! 2. `a_bad_entry_is_named_with_its_field`
//! 3. `an_older_edition_is_refused`

use std::collections::HashSet;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use hearth_protocol::api::market::{
    Catalog, CatalogEntry, ENTRIES_MAX, ENTRY_KEY_CHARS_MAX, FILE_BYTES_MAX, KEY_DIGITS, SIGNATURE_DIGITS,
    SignedCatalog, signed_bytes,
};

use super::catalog::{FieldError, check_description, check_name};
use super::source::Source;

/// Largest file of an entry: no image is larger.
const SIZE_BYTES_MAX: u64 = 1 << 44;

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> FieldError {
    FieldError { field: field.into(), problem: problem.into() }
}

/// The bytes of hex digits, lower case; `None`: it is something else.
fn bytes(hex: &str, digits: usize) -> Option<Vec<u8>> {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if hex.len() != digits || !hex.bytes().all(digit) {
        return None;
    }
    (0..digits).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}

/// Checks the form of a public key.
///
/// # Errors
/// It is none.
pub fn check_key(key: &str) -> Result<(), FieldError> {
    let form =
        format!("a public key is {KEY_DIGITS} lower-case hex digits, as `hearth market keygen` prints it");
    bytes(key, KEY_DIGITS).map(drop).ok_or_else(|| wrong("key", form))
}

/// The catalog of a signed file, if `key` signed it and all of it can be used.
///
/// # Errors
/// What is wrong, with its place.
pub fn open(file: &SignedCatalog, key: &str) -> Result<Catalog, FieldError> {
    check_key(key)?;
    if file.catalog.len() > FILE_BYTES_MAX {
        return Err(wrong("file", format!("the catalog is larger than {FILE_BYTES_MAX} bytes")));
    }
    let signature = bytes(&file.signature, SIGNATURE_DIGITS);
    let signature = signature.ok_or_else(|| {
        wrong("file.signature", format!("a signature is {SIGNATURE_DIGITS} lower-case hex digits"))
    })?;
    let key = UnparsedPublicKey::new(&ED25519, bytes(key, KEY_DIGITS).unwrap_or_default());
    key.verify(&signed_bytes(&file.catalog), &signature).map_err(|_| {
        wrong(
            "file.signature",
            "the catalog was changed, or somebody else's key signed it: nothing of it was used",
        )
    })?;
    let read = serde_json::from_str(&file.catalog);
    let catalog: Catalog =
        read.map_err(|error| wrong("file.catalog", format!("it cannot be read: {error}")))?;
    check(&catalog)?;
    Ok(catalog)
}

/// Checks a catalog.
///
/// # Errors
/// What is wrong, with its place.
pub fn check(catalog: &Catalog) -> Result<(), FieldError> {
    check_name("file.catalog.name", &catalog.name)?;
    if catalog.serial == 0 || i64::try_from(catalog.serial).is_err() {
        return Err(wrong("file.catalog.serial", "a serial is 1 or more"));
    }
    if catalog.entries.len() > ENTRIES_MAX {
        return Err(wrong("file.catalog.entries", format!("at most {ENTRIES_MAX} entries")));
    }
    let mut keys = HashSet::new();
    for (n, entry) in catalog.entries.iter().enumerate() {
        let place =
            |error: FieldError| wrong(format!("file.catalog.entries[{n}].{}", error.field), error.problem);
        check_entry(entry).map_err(place)?;
        if !keys.insert(entry.key.as_str()) {
            return Err(place(wrong("key", format!("two entries have the key {}", entry.key))));
        }
    }
    Ok(())
}

fn check_entry(entry: &CatalogEntry) -> Result<(), FieldError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if !(1..=ENTRY_KEY_CHARS_MAX).contains(&entry.key.len()) || !entry.key.bytes().all(fits) {
        return Err(wrong("key", format!("a key is 1 to {ENTRY_KEY_CHARS_MAX} of a-z 0-9 . _ -")));
    }
    check_name("name", &entry.name)?;
    check_name("distribution", &entry.distribution)?;
    check_name("version", &entry.version)?;
    check_description(entry.description.as_deref())?;
    let source = Source::parse(&entry.url).map_err(|error| wrong("url", error.to_string()))?;
    if source.hides() {
        return Err(wrong("url", "a catalog is read by many: its URLs hold no user, password or query"));
    }
    if !(1..=SIZE_BYTES_MAX).contains(&entry.size_bytes) {
        return Err(wrong("size_bytes", format!("a size is 1 to {SIZE_BYTES_MAX} bytes")));
    }
    bytes(&entry.sha256, KEY_DIGITS)
        .map(drop)
        .ok_or_else(|| wrong("sha256", "is not 64 lower-case hex digits"))
}

/// Whether an edition may follow what was seen of this catalog before: its serial, and whether its text is the same.
///
/// # Errors
/// Why not: what the edition is.
pub fn succeeds(serial: u64, seen: Option<u64>, same_text: bool) -> Result<(), String> {
    match seen {
        Some(seen) if serial < seen => Err(format!("older than edition {seen}, which was here already")),
        Some(seen) if serial == seen && !same_text => {
            Err("not the one that was here under its serial".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn signed(catalog: &str, seed: u8) -> (SignedCatalog, String) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let signature = hex(pair.sign(&signed_bytes(catalog)).as_ref());
        (SignedCatalog { catalog: catalog.to_owned(), signature }, hex(pair.public_key().as_ref()))
    }

    fn catalog() -> Value {
        json!({ "name": "official", "serial": 3, "entries": [{
            "key": "noble", "name": "Ubuntu 24.04", "os_type": "linux", "distribution": "Ubuntu", "version": "24.04",
            "architecture": "x86_64", "format": "qcow2", "compression": "xz",
            "url": "https://images.example/noble.qcow2.xz", "size_bytes": 5, "sha256": "ab".repeat(32),
        }] })
    }

    /// MK-1: only what the key signed is read, to the last byte.
    #[test]
    fn a_file_that_was_changed_or_signed_by_somebody_else_is_refused() {
        let (file, key) = signed(&catalog().to_string(), 1);
        assert_eq!(open(&file, &key).unwrap().entries[0].key, "noble");
        let (_, other) = signed("", 2);
        assert_eq!(open(&file, &other).unwrap_err().field, "file.signature");
        for at in 0..file.catalog.len() {
            let mut text = file.catalog.clone().into_bytes();
            text[at] ^= 1;
            let Ok(catalog) = String::from_utf8(text) else { continue };
            let changed = SignedCatalog { catalog, ..file.clone() };
            assert!(open(&changed, &key).unwrap_err().problem.contains("was changed"), "byte {at}");
        }
        for signature in ["", "00", &"0".repeat(128), &"G".repeat(128), &file.signature.to_uppercase()] {
            let changed = SignedCatalog { signature: signature.to_owned(), ..file.clone() };
            assert_eq!(open(&changed, &key).unwrap_err().field, "file.signature", "{signature}");
        }
        // The signature of the bare text is one for another purpose.
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let bare = hex(pair.sign(file.catalog.as_bytes()).as_ref());
        assert!(open(&SignedCatalog { signature: bare, ..file.clone() }, &key).is_err());
        assert_eq!(open(&file, "abc").unwrap_err().field, "key");
    }

    /// MK-1: what is badly made is refused as a whole, whoever signed it.
    #[test]
    fn a_bad_entry_is_named_with_its_field() {
        for (field, value) in [
            ("key", json!("No Spaces")),
            ("key", json!("")),
            ("name", json!("a\u{0}b")),
            ("version", json!("")),
            ("distribution", json!("x".repeat(300))),
            ("description", json!("x".repeat(5000))),
            ("url", json!("file:///etc/passwd")),
            ("url", json!("https://user:secret@images.example/x")),
            ("url", json!("https://images.example/x?token=1")),
            ("size_bytes", json!(0)),
            ("sha256", json!("abc")),
        ] {
            let mut bad = catalog();
            bad["entries"][0][field] = value.clone();
            let (file, key) = signed(&bad.to_string(), 1);
            let error = open(&file, &key).unwrap_err();
            assert_eq!(error.field, format!("file.catalog.entries[0].{field}"), "{value}: {}", error.problem);
            assert!(!error.problem.contains("secret"));
        }
        let mut twice = catalog();
        let entry = twice["entries"][0].clone();
        twice["entries"].as_array_mut().unwrap().push(entry.clone());
        let (file, key) = signed(&twice.to_string(), 1);
        assert_eq!(open(&file, &key).unwrap_err().field, "file.catalog.entries[1].key");
        let mut many = catalog();
        many["entries"] = (0..=ENTRIES_MAX).map(|_| entry.clone()).collect();
        let (file, key) = signed(&many.to_string(), 1);
        assert_eq!(open(&file, &key).unwrap_err().field, "file.catalog.entries");
        for text in ["", "[]", "{}", &catalog().to_string().replace("linux", "beos"), &"[".repeat(100_000)] {
            let (file, key) = signed(text, 1);
            assert_eq!(open(&file, &key).unwrap_err().field, "file.catalog");
        }
        let (file, key) = signed(&" ".repeat(FILE_BYTES_MAX + 1), 1);
        assert!(open(&file, &key).unwrap_err().problem.contains("larger"));
    }

    /// MK-1: nobody brings back an edition that was replaced.
    #[test]
    fn an_older_edition_is_refused() {
        assert_eq!(succeeds(3, None, false), Ok(()));
        assert_eq!(succeeds(3, Some(3), true), Ok(()));
        assert_eq!(succeeds(4, Some(3), false), Ok(()));
        assert!(succeeds(2, Some(3), true).unwrap_err().contains("older"));
        assert!(succeeds(3, Some(3), false).unwrap_err().contains("not the one"));
    }
}
