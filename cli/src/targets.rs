//! Where copies should be: `--to A,B`, `--select 'zone=z1'` or `--all`.
//!
//! **What.** The three options that several commands share, and a check of a selector's form.
//! **Why checked here too.** The controller decides what a selector matches; a misspelt field is told before anything
//! is sent, with the fields that there are.

use clap::Args;
use hearth_protocol::api::cache::{Keep, Targets};

use crate::when;

/// Fields that a selector may name, beside `label.KEY`.
const FIELDS: &[&str] = &["name", "kind", "platform", "region", "zone", "rack", "account", "ip", "serial"];

/// Exactly one of the three.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// Names or ids of locations, separated by commas
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Where")]
    to: Vec<String>,
    /// Every location that matches: FIELD=PATTERN, separated by commas, all must match; fields are name, kind, platform,
    /// region, zone, rack, account, ip, serial and label.KEY; a pattern may hold *
    #[arg(long, value_name = "SELECTOR", value_parser = parse_selector, help_heading = "Where")]
    select: Option<String>,
    /// Every active location
    #[arg(long, help_heading = "Where")]
    all: bool,
}

impl TargetArgs {
    /// As the API takes it.
    pub(crate) fn body(&self) -> Targets {
        let to = self.to.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        Targets { to, select: self.select.clone(), all: self.all }
    }
}

/// How long copies are safe from eviction.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeepArgs {
    /// Keep the copies for so long before they may be evicted (default 24h; a prewarm counts from its end)
    #[arg(long, value_name = "DURATION", value_parser = when::parse_duration, conflicts_with = "pin")]
    keep: Option<std::time::Duration>,
    /// Keep the copies until somebody unpins them
    #[arg(long)]
    pin: bool,
}

impl KeepArgs {
    /// As the API takes it.
    pub(crate) fn body(&self) -> Keep {
        match (self.pin, self.keep) {
            (true, _) => Keep::Pinned,
            (false, Some(keep)) => Keep::Seconds(keep.as_secs()),
            (false, None) => Keep::default(),
        }
    }
}

/// The selector itself, if its form is right.
pub(crate) fn parse_selector(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let Some((field, pattern)) = part.split_once('=') else {
            return Err(format!("{part:?} has no =: write FIELD=PATTERN, for example zone=z1"));
        };
        let field = field.trim();
        let is_label = field.strip_prefix("label.").is_some_and(|key| !key.is_empty());
        if !is_label && !FIELDS.contains(&field) {
            return Err(format!("unknown field {field:?}: allowed are {} and label.KEY", FIELDS.join(", ")));
        }
        if pattern.trim().is_empty() {
            return Err(format!("the pattern of {field} is empty: write * for any"));
        }
    }
    Ok(text.to_owned())
}

/// A short text of what was asked for.
#[must_use]
pub(crate) fn describe(targets: &Targets) -> String {
    match (&targets.select, targets.all) {
        (Some(selector), _) => selector.clone(),
        (None, true) => "all".to_owned(),
        (None, false) => targets.to.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_name_known_fields() {
        for fine in ["zone=z1", "zone=z1,ip=10.0.*", "label.gpu=yes", "name=cn-*, rack=r1", "ip=fe80::1"] {
            assert_eq!(parse_selector(fine).as_deref(), Ok(fine));
        }
        for (wrong, why) in [
            ("z1", "no ="),
            ("zones=z1", "unknown field"),
            ("zone=", "empty"),
            ("label.=x", "unknown"),
            ("", "no ="),
        ] {
            let error = parse_selector(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn targets_are_described_as_asked() {
        assert_eq!(describe(&Targets { all: true, ..Targets::default() }), "all");
        assert_eq!(describe(&Targets { to: vec!["a".into(), "b".into()], ..Targets::default() }), "a,b");
    }
}
