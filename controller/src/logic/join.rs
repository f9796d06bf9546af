//! What a location is called when its agent enrols, and how long an enrolled key may renew.
//!
//! **What.** What an agent says about itself is checked; the presets of its join token outweigh it. (Whether a token
//! admits anybody is decided where its use is counted down, in `db::join_tokens`.)
//! **Why presets win.** An operator says where a rack stands; a host with a stale configuration must not put itself into
//! another zone, nor choose its labels, once the operator has said something.
//! **Invariants.** Texts are bounded and have no control characters before they reach the database or a screen.

use hearth_protocol::message::control::TEXT_BYTES_MAX;
use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::{LocationKind, WordError};

/// Most labels of a location.
pub const LABELS_MAX: usize = 64;
/// Days after the end of its certificate during which an enrolled key may renew without a token.
pub const RENEWAL_GRACE_DAYS: i64 = 30;

/// Why an agent is not admitted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JoinError {
    /// The agent's facts are not acceptable.
    #[error("{field} of the location is not acceptable: {why}")]
    Facts {
        /// Which fact.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A preset of the token names something that is not a fact.
    #[error("the join token presets {field:?}, which no location has")]
    Preset {
        /// The preset's name.
        field: String,
    },
    /// A preset's word is not allowed.
    #[error("the join token presets a wrong kind")]
    PresetKind(#[source] WordError),
}

/// Checks what an agent says about itself.
///
/// # Errors
/// [`JoinError::Facts`].
pub fn check_facts(facts: &LocationFacts) -> Result<(), JoinError> {
    let LocationFacts { name, kind: _, platform, region, zone, rack, account, ip, serial, labels } = facts;
    if name.trim().is_empty() {
        return Err(JoinError::Facts {
            field: "name",
            why: "it is empty; give one, for example the host name",
        });
    }
    if name.trim() != name || name.contains([',', '=', '*', '?', '/']) {
        return Err(JoinError::Facts {
            field: "name",
            why: "blanks at its ends and , = * ? / are not allowed",
        });
    }
    for (field, text) in [
        ("name", name),
        ("platform", platform),
        ("region", region),
        ("zone", zone),
        ("rack", rack),
        ("account", account),
        ("ip", ip),
        ("serial", serial),
    ] {
        check_text(field, text)?;
    }
    if labels.len() > LABELS_MAX {
        return Err(JoinError::Facts { field: "labels", why: "there are more than 64" });
    }
    for (key, value) in labels {
        check_text("a label", key)?;
        check_text("a label", value)?;
    }
    Ok(())
}

fn check_text(field: &'static str, text: &str) -> Result<(), JoinError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(JoinError::Facts { field, why: "it is longer than 512 bytes" });
    }
    if text.chars().any(char::is_control) {
        return Err(JoinError::Facts { field, why: "it has control characters" });
    }
    Ok(())
}

/// The facts of the new location: the agent's, overridden by the token's presets (`zone`, `label.KEY` …). An empty rack
/// becomes the zone.
///
/// # Errors
/// [`JoinError::Preset`] or [`JoinError::PresetKind`] if the token's presets make no sense.
pub fn with_presets<'a>(
    mut facts: LocationFacts,
    presets: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<LocationFacts, JoinError> {
    for (field, value) in presets {
        let place = match field {
            "platform" => &mut facts.platform,
            "region" => &mut facts.region,
            "zone" => &mut facts.zone,
            "rack" => &mut facts.rack,
            "account" => &mut facts.account,
            "ip" => &mut facts.ip,
            "serial" => &mut facts.serial,
            "kind" => {
                facts.kind = Some(value.parse::<LocationKind>().map_err(JoinError::PresetKind)?);
                continue;
            }
            other => {
                let wrong = || JoinError::Preset { field: other.to_owned() };
                let key = other.strip_prefix("label.").ok_or_else(wrong)?;
                facts.labels.retain(|(name, _)| name != key);
                facts.labels.push((key.to_owned(), value.to_owned()));
                continue;
            }
        };
        value.clone_into(place);
    }
    if facts.rack.is_empty() {
        facts.rack.clone_from(&facts.zone);
    }
    Ok(facts)
}

/// Whether a key whose certificate ended at `not_after_us` may still renew without a token.
#[must_use]
pub const fn may_renew(not_after_us: i64, now_us: i64) -> bool {
    now_us.saturating_sub(not_after_us) <= RENEWAL_GRACE_DAYS * 24 * 3600 * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_outweigh_what_the_agent_says() {
        let facts = LocationFacts {
            name: "cn-1".into(),
            zone: "agent".into(),
            labels: vec![("gpu".into(), "no".into())],
            ..LocationFacts::default()
        };
        let facts = with_presets(facts, [("zone", "z1"), ("label.gpu", "a100"), ("kind", "region")]).unwrap();
        assert_eq!(
            (facts.zone.as_str(), facts.rack.as_str(), facts.kind),
            ("z1", "z1", Some(LocationKind::Region))
        );
        assert_eq!(facts.labels, [("gpu".to_owned(), "a100".to_owned())]);
        let wrong = JoinError::Preset { field: "name".into() };
        assert_eq!(with_presets(LocationFacts::default(), [("name", "x")]).unwrap_err(), wrong);
    }

    #[test]
    fn facts_are_bounded_and_printable() {
        let named = |name: &str| LocationFacts { name: name.into(), ..LocationFacts::default() };
        assert_eq!(check_facts(&named("cn-1.example.org")), Ok(()));
        for name in ["", " x", "a,b", "a\u{1b}[31m", &"x".repeat(513)] {
            assert!(
                matches!(check_facts(&named(name)), Err(JoinError::Facts { field: "name", .. })),
                "{name:?}"
            );
        }
        let labels = vec![("a".to_owned(), "b".to_owned()); 65];
        assert!(check_facts(&LocationFacts { labels, ..named("x") }).is_err());
    }

    #[test]
    fn renewal_is_possible_for_thirty_days() {
        let day_us = 24 * 3600 * 1_000_000;
        assert!(may_renew(0, 30 * day_us));
        assert!(!may_renew(0, 30 * day_us + 1));
        assert!(may_renew(i64::MAX, 0));
    }
}
