//! Which locations an operator means by `zone=z1,ip=10.0.*`.
//!
//! **What.** A selector is a list of terms, `FIELD=PATTERN` or `FIELD!=PATTERN`, separated by commas. Terms of different
//! fields must all hold; of several `=` terms with the same field one must hold (`zone=z1,zone=z2` is either zone).
//! **Why errors are long.** A mistyped selector that silently selects nothing, or everything, costs a night.
//! **Invariants.** `agrees_with_the_slow_reading`; an empty selector is refused: "all" must be said.

use std::fmt;
use std::str::FromStr;

use super::glob;

/// Most terms of one selector: bounds the work per location.
pub const TERMS_MAX: usize = 64;
/// Longest selector, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 4096;

/// What a location is compared by.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Field {
    /// Unique name.
    Name,
    /// `host` or `region`.
    Kind,
    /// Platform, for example `kvm`.
    Platform,
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Rack.
    Rack,
    /// Account.
    Account,
    /// Management address.
    Ip,
    /// Serial number.
    Serial,
    /// `active`, `draining` or `removed`.
    State,
}

impl Field {
    const ALL: [(&'static str, Self); 10] = [
        ("name", Self::Name),
        ("kind", Self::Kind),
        ("platform", Self::Platform),
        ("region", Self::Region),
        ("zone", Self::Zone),
        ("rack", Self::Rack),
        ("account", Self::Account),
        ("ip", Self::Ip),
        ("serial", Self::Serial),
        ("state", Self::State),
    ];
}

/// A location, as far as selectors look at it.
pub trait Selectable {
    /// Value of a field; empty if the location has none.
    fn field(&self, field: Field) -> &str;
    /// Value of a label, or `None` if the location does not have it.
    fn label(&self, key: &str) -> Option<&str>;
}

/// Text that is not a selector.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SelectorError {
    /// Nothing was given.
    #[error("empty selector: write for example zone=z1,ip=10.0.*; to mean every location say so with --all")]
    Empty,
    /// Longer than [`SELECTOR_BYTES_MAX`] or more than [`TERMS_MAX`] terms.
    #[error(
        "selector passes the limit of {SELECTOR_BYTES_MAX} B or {TERMS_MAX} terms: use several prewarms or labels"
    )]
    TooLong,
    /// A term without `=`.
    #[error("selector term {term:?} has no '=': write FIELD=PATTERN, for example zone=z1")]
    NoOperator {
        /// The term.
        term: String,
    },
    /// A field that no location has.
    #[error(
        "unknown field {field:?} in selector: allowed are name, kind, platform, region, zone, rack, account, ip, serial, state and label.KEY"
    )]
    UnknownField {
        /// The field.
        field: String,
    },
    /// A term without a pattern.
    #[error("selector term {term:?} has no value after '=': write a value or * for any")]
    NoValue {
        /// The term.
        term: String,
    },
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Key {
    Field(Field),
    Label(String),
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Term {
    key: Key,
    pattern: String,
    negated: bool,
}

impl Term {
    /// Whether the pattern fits, before negation. A label that is not there fits no pattern.
    fn fits(&self, location: &impl Selectable) -> bool {
        let value = match &self.key {
            Key::Field(field) => Some(location.field(*field)),
            Key::Label(key) => location.label(key),
        };
        value.is_some_and(|value| glob::matches(&self.pattern, value))
    }
}

/// A checked selector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selector {
    terms: Vec<Term>,
    text: String,
}

impl Selector {
    /// Whether the selector names `location`.
    #[must_use]
    pub fn selects(&self, location: &impl Selectable) -> bool {
        self.terms.iter().all(|term| {
            if term.negated {
                return !term.fits(location);
            }
            let same_key = self.terms.iter().filter(|other| !other.negated && other.key == term.key);
            same_key.into_iter().any(|other| other.fits(location))
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Err(SelectorError::Empty);
        }
        if words.len() > TERMS_MAX {
            return Err(SelectorError::TooLong);
        }
        let terms = words.into_iter().map(parse_term).collect::<Result<_, _>>()?;
        Ok(Self { terms, text: text.to_owned() })
    }
}

fn parse_term(word: &str) -> Result<Term, SelectorError> {
    let (key, pattern) =
        word.split_once('=').ok_or_else(|| SelectorError::NoOperator { term: word.to_owned() })?;
    let (key, negated) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
    let (key, pattern) = (key.trim().to_ascii_lowercase(), pattern.trim());
    if pattern.is_empty() {
        return Err(SelectorError::NoValue { term: word.to_owned() });
    }
    let label = key.strip_prefix("label.").filter(|label| !label.is_empty());
    let field = Field::ALL.iter().find(|(name, _)| *name == key).map(|(_, field)| *field);
    let key = match (label, field) {
        (Some(label), _) => Key::Label(label.to_owned()),
        (None, Some(field)) => Key::Field(field),
        (None, None) => return Err(SelectorError::UnknownField { field: key }),
    };
    Ok(Term { key, pattern: pattern.to_owned(), negated })
}

/// The locations that `selector` names, in the order given.
pub fn select_locations<'a, L: Selectable>(
    selector: &Selector,
    locations: impl IntoIterator<Item = &'a L>,
) -> Vec<&'a L> {
    locations.into_iter().filter(|location| selector.selects(*location)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Host {
        name: String,
        zone: String,
        ip: String,
        labels: BTreeMap<String, String>,
    }

    impl Selectable for Host {
        fn field(&self, field: Field) -> &str {
            match field {
                Field::Name => &self.name,
                Field::Zone => &self.zone,
                Field::Ip => &self.ip,
                _ => "",
            }
        }
        fn label(&self, key: &str) -> Option<&str> {
            self.labels.get(key).map(String::as_str)
        }
    }

    fn host(name: &str, zone: &str, ip: &str) -> Host {
        let labels = BTreeMap::from([("gpu".to_owned(), "a100".to_owned())]);
        Host { name: name.into(), zone: zone.into(), ip: ip.into(), labels }
    }

    #[track_caller]
    fn check(selector: &str, expected: &[&str]) {
        let hosts =
            [host("cn-1", "z1", "10.0.0.1"), host("cn-2", "z2", "10.0.1.2"), host("gw", "z3", "10.1.0.3")];
        let selector: Selector = selector.parse().unwrap();
        let names: Vec<&str> =
            select_locations(&selector, &hosts).iter().map(|host| host.name.as_str()).collect();
        assert_eq!(names, expected, "{selector}");
    }

    #[test]
    fn fields_are_anded_and_repeats_are_ored() {
        check("zone=z1", &["cn-1"]);
        check("zone=z1,zone=z2", &["cn-1", "cn-2"]);
        check("zone=z*,ip=10.0.*", &["cn-1", "cn-2"]);
        check(" zone = z1 , name = CN-* ", &["cn-1"]);
        check("name=cn-*,zone!=z1", &["cn-2"]);
        check("label.gpu=a*", &["cn-1", "cn-2", "gw"]);
        check("label.gpu!=a*", &[]);
        check("label.rack=*", &[]);
    }

    #[test]
    fn a_wrong_selector_says_what_is_wrong() {
        let error = |text: &str| text.parse::<Selector>().unwrap_err();
        assert_eq!(error(""), SelectorError::Empty);
        assert_eq!(error(" , "), SelectorError::Empty);
        assert_eq!(error("z1"), SelectorError::NoOperator { term: "z1".into() });
        assert_eq!(error("zone="), SelectorError::NoValue { term: "zone=".into() });
        assert_eq!(error("zome=z1"), SelectorError::UnknownField { field: "zome".into() });
        assert_eq!(error("label.=z1"), SelectorError::UnknownField { field: "label.".into() });
        assert_eq!(error(&"zone=z1,".repeat(65)), SelectorError::TooLong);
        assert!(error("zome=z1").to_string().contains("platform, region, zone"));
    }

    proptest! {
        #[test]
        fn agrees_with_the_slow_reading(
            terms in proptest::collection::vec((0_usize..2, any::<bool>(), "[ab*]{1,3}"), 1..6),
            zone in "[ab]{0,3}", ip in "[ab]{0,3}",
        ) {
            let names = ["zone", "ip"];
            let values = [zone.as_str(), ip.as_str()];
            let text: Vec<String> =
                terms.iter().map(|(f, not, p)| format!("{}{}={p}", names[*f], if *not { "!" } else { "" })).collect();
            let selector: Selector = text.join(",").parse().unwrap();
            let field_holds = |field: usize| {
                let of = |not: bool| terms.iter().filter(move |term| term.0 == field && term.1 == not);
                let either = of(false).count() == 0 || of(false).any(|term| glob::matches(&term.2, values[field]));
                either && of(true).all(|term| !glob::matches(&term.2, values[field]))
            };
            prop_assert_eq!(selector.selects(&host("h", &zone, &ip)), field_holds(0) && field_holds(1));
        }
    }
}
