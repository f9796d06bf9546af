//! Rules for what may stand in an image's record.
//!
//! **What.** Pure checks of a create request and of every text in it; the answer names the field that is wrong and what is
//! allowed. [`super::attributes`] checks edits with the same rules.
//!
//! **Why here.** The same rules hold for every way an image can come in: HTTP now, import by URL, clones and the
//! OpenStack interface later.
//!
//! **Invariants.** `every_refusal_names_its_field`; a name that passes has no control characters and is not blank,
//! so it can stand in a table, a log line and a header.

use std::collections::{BTreeMap, BTreeSet};

use hearth_protocol::api::image::{
    Checksums, DISK_BYTES_MAX, DISK_BYTES_MIN, ImageCreate, NAME_CHARS_MAX, TAG_CHARS_MAX, TAGS_MAX,
};
use hearth_protocol::words::{DiskFormat, ImageKind};

/// Longest description, characters: bounds a record.
pub const DESCRIPTION_CHARS_MAX: usize = 4096;
/// Most free properties of an image: bounds a record.
pub const PROPERTIES_MAX: usize = 64;
/// Longest name of a property, characters.
pub const PROPERTY_NAME_CHARS_MAX: usize = 64;
/// Longest value of a property, characters.
pub const PROPERTY_VALUE_CHARS_MAX: usize = 1024;
/// Longest of the short texts (distribution and its version, language, platform), characters.
pub const SHORT_TEXT_CHARS_MAX: usize = 255;
/// Bytes of a sector: no disk has a part of one.
const SECTOR_BYTES: u64 = 512;
/// Largest size that a record may ask for: what fits a signed 64-bit column.
pub const SIZE_BYTES_MAX: u64 = i64::MAX.unsigned_abs();

/// A field that may not be as it is.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Path of the field in the request, for example `properties.os`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub problem: String,
}

pub(super) fn wrong<T>(field: &str, problem: impl Into<String>) -> Result<T, FieldError> {
    Err(FieldError { field: field.to_owned(), problem: problem.into() })
}

/// Checks a new image's record.
///
/// # Errors
/// The first field that is wrong.
pub fn check_create(create: &ImageCreate) -> Result<(), FieldError> {
    check_name("name", &create.name)?;
    match (create.kind, create.format) {
        (Some(ImageKind::Disk), Some(DiskFormat::Iso)) => {
            return wrong("format", "iso is no format of a disk: leave `kind` out, or say `iso`");
        }
        (Some(ImageKind::Iso), Some(format)) if format != DiskFormat::Iso => {
            return wrong("format", format!("an iso has the format iso, not {format}"));
        }
        _ => {}
    }
    check_checksums(&create.expected)?;
    check_short("distribution", create.distribution.as_deref())?;
    check_short("version", create.version.as_deref())?;
    check_short("os_language", create.os_language.as_deref())?;
    check_short("app_platform", create.app_platform.as_deref())?;
    check_description(create.description.as_deref())?;
    check_size("min_disk_bytes", create.min_disk_bytes)?;
    check_size("min_memory_bytes", create.min_memory_bytes)?;
    check_disk_size(create)?;
    check_tags("tags", &create.tags)?;
    check_properties(&create.properties)
}

/// The size that a disk is grown to: 20 GB to 500 GiB in whole sectors, and only for disks.
fn check_disk_size(create: &ImageCreate) -> Result<(), FieldError> {
    let Some(bytes) = create.disk_bytes else { return Ok(()) };
    if create.kind == Some(ImageKind::Iso) || create.format == Some(DiskFormat::Iso) {
        return wrong("disk_bytes", "an iso is no disk: it keeps its size");
    }
    if !(DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&bytes) {
        let range = format!("{DISK_BYTES_MIN} (20 GB) to {DISK_BYTES_MAX} (500 GiB) bytes");
        return wrong("disk_bytes", format!("{bytes} bytes: must be {range}"));
    }
    if bytes % SECTOR_BYTES != 0 {
        return wrong("disk_bytes", format!("{bytes} bytes are no whole sectors of {SECTOR_BYTES} bytes"));
    }
    Ok(())
}

/// Checks a size that is only told.
pub(super) fn check_size(field: &str, bytes: Option<u64>) -> Result<(), FieldError> {
    match bytes {
        Some(bytes) if bytes > SIZE_BYTES_MAX => wrong(field, format!("at most {SIZE_BYTES_MAX} bytes")),
        _ => Ok(()),
    }
}

/// Checks tags: at most 50 of 1 to 64 characters, each once without regard to case.
///
/// # Errors
/// What is wrong with them, for the field `field`.
pub fn check_tags(field: &str, tags: &BTreeSet<String>) -> Result<(), FieldError> {
    if tags.len() > TAGS_MAX {
        return wrong(field, format!("{} are too many: at most {TAGS_MAX}", tags.len()));
    }
    let mut seen = BTreeSet::new();
    for tag in tags {
        let chars = tag.chars().count();
        if chars > TAG_CHARS_MAX {
            return wrong(field, format!("a tag has {chars} characters: 1 to {TAG_CHARS_MAX}"));
        }
        check_name(field, tag)?;
        if !seen.insert(tag.to_lowercase()) {
            return wrong(field, format!("{tag} is there twice: case makes no difference"));
        }
    }
    Ok(())
}

/// Checks free properties.
pub(super) fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), FieldError> {
    if properties.len() > PROPERTIES_MAX {
        return wrong("properties", format!("{} are too many: at most {PROPERTIES_MAX}", properties.len()));
    }
    properties.iter().try_for_each(|(name, value)| check_property(name, value))
}

/// Checks a name of an image, a token or a location's label: 1 to 255 characters, none of them a control character.
///
/// # Errors
/// What is wrong with it, for the field `field`.
pub fn check_name(field: &str, name: &str) -> Result<(), FieldError> {
    let chars = name.chars().count();
    if name.trim().is_empty() {
        return wrong(field, format!("must not be empty: 1 to {NAME_CHARS_MAX} characters"));
    }
    if chars > NAME_CHARS_MAX {
        return wrong(field, format!("has {chars} characters: at most {NAME_CHARS_MAX}"));
    }
    if name.trim() != name {
        return wrong(field, "must not begin or end with a blank");
    }
    if name.chars().any(is_unprintable) {
        return wrong(field, "must not hold control characters");
    }
    Ok(())
}

/// Checks a text that names are searched for: none that holds it could be longer or have control characters.
///
/// # Errors
/// What is wrong with it, for the parameter `field`.
pub fn check_search(field: &str, text: &str) -> Result<(), FieldError> {
    check_text(field, Some(text), NAME_CHARS_MAX)
}

/// Control characters, and the marks that turn the direction of writing: a name must look like what it is.
fn is_unprintable(c: char) -> bool {
    let turns =
        matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Checks one of the short texts.
pub(super) fn check_short(field: &str, text: Option<&str>) -> Result<(), FieldError> {
    check_text(field, text, SHORT_TEXT_CHARS_MAX)
}

pub(super) fn check_text(field: &str, text: Option<&str>, chars_max: usize) -> Result<(), FieldError> {
    let Some(text) = text else { return Ok(()) };
    let chars = text.chars().count();
    if chars > chars_max {
        return wrong(field, format!("has {chars} characters: at most {chars_max}"));
    }
    if text.chars().any(is_unprintable) {
        return wrong(field, "must not hold control characters");
    }
    Ok(())
}

/// A description may have lines.
pub(super) fn check_description(text: Option<&str>) -> Result<(), FieldError> {
    let Some(text) = text else { return Ok(()) };
    let chars = text.chars().count();
    if chars > DESCRIPTION_CHARS_MAX {
        return wrong("description", format!("has {chars} characters: at most {DESCRIPTION_CHARS_MAX}"));
    }
    if text.chars().any(|c| is_unprintable(c) && !matches!(c, '\n' | '\t')) {
        return wrong("description", "must not hold control characters but line ends and tabs");
    }
    Ok(())
}

pub(super) fn check_word(field: &str, word: Option<&str>, allowed: &[&str]) -> Result<(), FieldError> {
    match word {
        Some(word) if !allowed.contains(&word) => wrong(field, format!("is none of {}", allowed.join(", "))),
        _ => Ok(()),
    }
}

fn check_property(name: &str, value: &str) -> Result<(), FieldError> {
    let shown: String = name.chars().filter(|c| !is_unprintable(*c)).take(PROPERTY_NAME_CHARS_MAX).collect();
    let field = format!("properties.{shown}");
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '.' | '-');
    if name.is_empty() || name.chars().count() > PROPERTY_NAME_CHARS_MAX || !name.chars().all(allowed) {
        return wrong(
            &field,
            format!("a property's name is 1 to {PROPERTY_NAME_CHARS_MAX} of a-z 0-9 _ . -"),
        );
    }
    check_text(&field, Some(value), PROPERTY_VALUE_CHARS_MAX)
}

fn check_checksums(checksums: &Checksums) -> Result<(), FieldError> {
    let Checksums { sha256, sha512, md5, blake3 } = checksums;
    for (field, text, digits) in [
        ("expected.sha256", sha256, 64),
        ("expected.sha512", sha512, 128),
        ("expected.md5", md5, 32),
        ("expected.blake3", blake3, 64),
    ] {
        let Some(text) = text else { continue };
        if text.len() != digits || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return wrong(field, format!("is not {digits} lower-case hex digits"));
        }
    }
    Ok(())
}

/// The first checksum that is expected and differs: its name, what was expected, what came.
#[must_use]
pub fn first_mismatch<'a>(
    expected: &'a Checksums,
    actual: &'a Checksums,
) -> Option<(&'static str, &'a str, &'a str)> {
    [
        ("sha256", &expected.sha256, &actual.sha256),
        ("sha512", &expected.sha512, &actual.sha512),
        ("md5", &expected.md5, &actual.md5),
        ("blake3", &expected.blake3, &actual.blake3),
    ]
    .into_iter()
    .find_map(|(name, expected, actual)| {
        let expected = expected.as_deref()?;
        let actual = actual.as_deref().unwrap_or_default();
        (expected != actual).then_some((name, expected, actual))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageCreate {
        ImageCreate { name: name.to_owned(), ..ImageCreate::default() }
    }

    #[track_caller]
    fn check(field: &str, change: impl FnOnce(&mut ImageCreate)) {
        let mut create = image("debian-12");
        change(&mut create);
        let error = check_create(&create).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }

    #[test]
    fn every_refusal_names_its_field() {
        check("name", |c| c.name = String::new());
        check("name", |c| c.name = " \t ".into());
        check("name", |c| c.name = "a\u{0}b".into());
        check("name", |c| c.name = "a\nb".into());
        check("name", |c| c.name = "gpj.\u{202E}exe".into());
        check("name", |c| c.name = "é".repeat(256));
        check("format", |c| (c.kind, c.format) = (Some(ImageKind::Disk), Some(DiskFormat::Iso)));
        check("format", |c| (c.kind, c.format) = (Some(ImageKind::Iso), Some(DiskFormat::Raw)));
        check("expected.sha256", |c| c.expected.sha256 = Some("AB".repeat(32)));
        check("expected.sha512", |c| c.expected.sha512 = Some("ab".repeat(32)));
        check("expected.md5", |c| c.expected.md5 = Some(String::new()));
        check("expected.blake3", |c| c.expected.blake3 = Some("é".repeat(32)));
        check("os_language", |c| c.os_language = Some("x".repeat(256)));
        check("app_platform", |c| c.app_platform = Some("a\u{200F}b".into()));
        check("disk_bytes", |c| c.disk_bytes = Some(DISK_BYTES_MIN - 512));
        check("disk_bytes", |c| c.disk_bytes = Some(DISK_BYTES_MAX + 512));
        check("disk_bytes", |c| c.disk_bytes = Some(DISK_BYTES_MIN + 1));
        check("disk_bytes", |c| (c.disk_bytes, c.kind) = (Some(DISK_BYTES_MIN), Some(ImageKind::Iso)));
        check("tags", |c| c.tags = (0..51).map(|n| n.to_string()).collect());
        for tag in ["", " ", "a\nb", " a", "\u{202E}x", "x".repeat(65).as_str()] {
            check("tags", |c| c.tags = [tag.to_owned()].into());
        }
        check("tags", |c| c.tags = ["Prod".to_owned(), "prod".to_owned()].into());
        check("distribution", |c| c.distribution = Some("x".repeat(256)));
        check("version", |c| c.version = Some("1\r2".into()));
        check("description", |c| c.description = Some("x".repeat(4097)));
        check("description", |c| c.description = Some("\u{1b}[2J".into()));
        check("min_disk_bytes", |c| c.min_disk_bytes = Some(u64::MAX));
        check("properties", |c| c.properties = (0..65).map(|i| (format!("p{i}"), String::new())).collect());
        check("properties.Os", |c| c.properties = [("Os".into(), "x".into())].into());
        check("properties.os", |c| c.properties = [("os".into(), "x".repeat(1025))].into());
    }

    #[test]
    fn a_search_is_bounded() {
        for text in ["", "镜像", "100%_", "é".repeat(255).as_str()] {
            check_search("q", text).unwrap();
        }
        for text in ["a\u{0}", "é".repeat(256).as_str()] {
            assert_eq!(check_search("q", text).unwrap_err().field, "q");
        }
    }

    #[test]
    fn ordinary_and_foreign_names_pass() {
        for name in ["debian-12", "Ubuntu 24.04 (cloud)", "系统镜像 一", "é".repeat(255).as_str()] {
            check_create(&image(name)).unwrap();
        }
        for bytes in [DISK_BYTES_MIN, 40 << 30, DISK_BYTES_MAX] {
            check_create(&ImageCreate { disk_bytes: Some(bytes), ..image("x") }).unwrap();
        }
        let tags = ["生产".to_owned(), "é".repeat(64), "<b>".to_owned()].into();
        check_create(&ImageCreate { tags, ..image("x") }).unwrap();
        let lines = ImageCreate { description: Some("one\ntwo".into()), ..image("x") };
        check_create(&lines).unwrap();
    }

    #[test]
    fn a_wrong_checksum_is_named() {
        let expected = Checksums { sha256: Some("a".into()), md5: Some("b".into()), ..Checksums::default() };
        let mut actual = expected.clone();
        actual.sha512 = Some("c".into());
        assert_eq!(first_mismatch(&expected, &actual), None);
        actual.md5 = Some("d".into());
        assert_eq!(first_mismatch(&expected, &actual), Some(("md5", "b", "d")));
        assert!(first_mismatch(&expected, &Checksums::default()).is_some());
    }
}
