//! Rules for edits of an image's record.
//!
//! **What.** [`check_update`] checks what an editor sends, with the rules of [`super::catalog`]; what never changes is refused
//! by name.
//! **Why the fixed fields are named.** "Unknown field" would send a person looking for the right spelling of something that
//! cannot be done.
//! **Invariants.** `every_refusal_names_its_field`; `what_never_changes_is_refused_by_name`.

use hearth_protocol::api::image_update::{Edit, ImageUpdate};

use super::catalog::{
    FieldError, check_description, check_name, check_properties, check_short, check_size, check_tags, wrong,
};

/// Checks an edit.
///
/// # Errors
/// The first field that is wrong.
pub fn check_update(update: &ImageUpdate) -> Result<(), FieldError> {
    for (field, edit) in [
        ("url", &update.url),
        ("format", &update.format),
        ("domain", &update.domain),
        ("virtualisation", &update.virtualisation),
    ] {
        if !edit.is_keep() {
            return wrong(field, "never changes: import a new image");
        }
    }
    if update.is_empty() {
        return wrong("body", "names nothing to change");
    }
    match &update.name {
        Edit::Keep => {}
        Edit::Clear => return wrong("name", "an image cannot be without a name"),
        Edit::Set(name) => check_name("name", name)?,
    }
    let text = |edit: &Edit<String>| edit.set().cloned();
    check_description(text(&update.description).as_deref())?;
    check_short("distribution", text(&update.distribution).as_deref())?;
    check_short("version", text(&update.version).as_deref())?;
    check_short("os_language", text(&update.os_language).as_deref())?;
    check_short("app_platform", text(&update.app_platform).as_deref())?;
    check_size("min_disk_bytes", update.min_disk_bytes.set().copied())?;
    check_size("min_memory_bytes", update.min_memory_bytes.set().copied())?;
    update.tags.set().map_or(Ok(()), |tags| check_tags("tags", tags))?;
    update.properties.set().map_or(Ok(()), check_properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(field: &str, change: impl FnOnce(&mut ImageUpdate)) {
        let mut update = ImageUpdate::default();
        change(&mut update);
        let error = check_update(&update).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    }

    #[test]
    fn every_refusal_names_its_field() {
        check("body", |_| ());
        check("name", |u| u.name = Edit::Clear);
        check("name", |u| u.name = Edit::Set("a\u{7}".into()));
        check("description", |u| u.description = Edit::Set("x".repeat(4097)));
        check("distribution", |u| u.distribution = Edit::Set("\u{1b}".into()));
        check("version", |u| u.version = Edit::Set("x".repeat(256)));
        check("os_language", |u| u.os_language = Edit::Set("\u{202E}".into()));
        check("app_platform", |u| u.app_platform = Edit::Set("a\u{0}".into()));
        check("min_disk_bytes", |u| u.min_disk_bytes = Edit::Set(u64::MAX));
        check("min_memory_bytes", |u| u.min_memory_bytes = Edit::Set(u64::MAX));
        check("tags", |u| u.tags = Edit::Set([String::new()].into()));
        check("properties.A", |u| u.properties = Edit::Set([("A".into(), String::new())].into()));
    }

    #[test]
    fn what_never_changes_is_refused_by_name() {
        check("url", |u| u.url = Edit::Set("http://x".into()));
        check("format", |u| u.format = Edit::Set("raw".into()));
        check("domain", |u| u.domain = Edit::Clear);
        check("virtualisation", |u| u.virtualisation = Edit::Set("kvm".into()));
    }
}
