//! With whom an image may be shared, and what a share means.
//!
//! **What.** The receivers of a request, whether each lies within reach, which of several shares counts, and which shares
//! keep an image from going to another owner.
//!
//! **Why a domain's share needs no answer.** Nobody speaks for all projects of a domain. It comes from a member of one of them,
//! whose image it is (SH-2), or from the system: for other domains from nobody else. A project that is named is asked, so
//! that strangers cannot fill its lists; in its own domain nobody is one.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `a_request_names_somebody_and_at_most_a_hundred`
//! 2. `only_the_system_reaches_beyond_the_domain`
//! 3. `the_strongest_share_counts`
//! 4. `a_new_owner_inherits_no_share_that_leaves_its_domain`

use std::collections::BTreeSet;
use std::fmt;

use hearth_protocol::api::share::{SHARE_IDS_MAX, ShareCreate, ShareRemove};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{ShareKind, ShareStatus};

use super::catalog::FieldError;

/// Who gets an image.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Receiver {
    /// One project.
    Project(ProjectId),
    /// All projects of a domain, those of later too.
    Domain(DomainId),
}

impl Receiver {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> ShareKind {
        match self {
            Self::Project(_) => ShareKind::Project,
            Self::Domain(_) => ShareKind::Domain,
        }
    }

    /// Its id as a text.
    #[must_use]
    pub fn target(self) -> String {
        match self {
            Self::Project(id) => id.to_string(),
            Self::Domain(id) => id.to_string(),
        }
    }

    /// The receiver of this kind with this id; `None` if the text is no id.
    #[must_use]
    pub fn of(kind: ShareKind, target: &str) -> Option<Self> {
        match kind {
            ShareKind::Project => target.parse().ok().map(Self::Project),
            ShareKind::Domain => target.parse().ok().map(Self::Domain),
        }
    }

    /// How a new share with it begins.
    #[must_use]
    pub const fn first_status(self) -> ShareStatus {
        match self {
            Self::Project(_) => ShareStatus::Pending,
            Self::Domain(_) => ShareStatus::Accepted,
        }
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.target())
    }
}

/// The receivers that a request names, each once; `own` is the image's domain.
///
/// # Errors
/// None, or more than [`SHARE_IDS_MAX`].
pub fn receivers(create: &ShareCreate, own: DomainId) -> Result<BTreeSet<Receiver>, FieldError> {
    check_receivers(create)?;
    Ok(named(&create.projects, &create.domains, create.whole_domain, own))
}

/// The receivers that are to lose an image; `None`: all.
///
/// # Errors
/// As [`receivers`]; all and some at once.
pub fn losers(remove: &ShareRemove, own: DomainId) -> Result<Option<BTreeSet<Receiver>>, FieldError> {
    check_losers(remove)?;
    let ShareRemove { projects, domains, whole_domain, all } = remove;
    Ok((!*all).then(|| named(projects, domains, *whole_domain, own)))
}

/// Checks a request to share before anybody looks which image it is about.
///
/// # Errors
/// As [`receivers`].
pub fn check_receivers(create: &ShareCreate) -> Result<(), FieldError> {
    check_named(&create.projects, &create.domains, create.whole_domain)
}

/// Checks a request to end shares before anybody looks which image it is about.
///
/// # Errors
/// As [`losers`].
pub fn check_losers(remove: &ShareRemove) -> Result<(), FieldError> {
    let ShareRemove { projects, domains, whole_domain, all } = remove;
    if !*all {
        return check_named(projects, domains, *whole_domain);
    }
    if projects.is_empty() && domains.is_empty() && !*whole_domain {
        return Ok(());
    }
    Err(FieldError { field: "all".to_owned(), problem: "with `all` nobody else is named".to_owned() })
}

fn check_named(projects: &[ProjectId], domains: &[DomainId], whole_domain: bool) -> Result<(), FieldError> {
    let wrong = |field: &str, problem: String| Err(FieldError { field: field.to_owned(), problem });
    let ids = projects.len() + domains.len();
    if ids > SHARE_IDS_MAX {
        let field = if projects.is_empty() { "domains" } else { "projects" };
        return wrong(field, format!("{ids} ids in one request are too many: at most {SHARE_IDS_MAX}"));
    }
    if ids == 0 && !whole_domain {
        return wrong("projects", "name at least one project or domain, or say `whole_domain`".to_owned());
    }
    Ok(())
}

fn named(
    projects: &[ProjectId],
    domains: &[DomainId],
    whole_domain: bool,
    own: DomainId,
) -> BTreeSet<Receiver> {
    let projects = projects.iter().copied().map(Receiver::Project);
    let domains = domains.iter().copied().chain(whole_domain.then_some(own)).map(Receiver::Domain);
    projects.chain(domains).collect()
}

/// Whether a receiver in domain `there` may get an image of domain `own`. The system reaches everywhere.
#[must_use]
pub fn is_within_reach(own: DomainId, there: DomainId, by_system: bool) -> bool {
    by_system || own == there
}

/// The share that counts where several reach the same caller: accepted over pending over rejected.
#[must_use]
pub fn strongest(statuses: impl IntoIterator<Item = ShareStatus>) -> Option<ShareStatus> {
    let rank = |status: &ShareStatus| match status {
        ShareStatus::Accepted => 2,
        ShareStatus::Pending => 1,
        ShareStatus::Rejected => 0,
    };
    statuses.into_iter().max_by_key(rank)
}

/// The receivers that an owner in domain `new` could not have shared with; each comes with its own domain.
#[must_use]
pub fn beyond(shares: &[(Receiver, DomainId)], new: DomainId) -> Vec<Receiver> {
    let outside = shares.iter().filter(|(_, there)| !is_within_reach(new, *there, false));
    outside.map(|(receiver, _)| *receiver).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: DomainId = DomainId::from_bytes([1; 16]);
    const OTHER: DomainId = DomainId::from_bytes([2; 16]);

    fn project(n: u8) -> ProjectId {
        ProjectId::from_bytes([n; 16])
    }

    fn projects(n: u8) -> ShareCreate {
        ShareCreate { projects: (0..n).map(project).collect(), ..ShareCreate::default() }
    }

    /// SH-3: up to 100 ids in one request.
    #[test]
    fn a_request_names_somebody_and_at_most_a_hundred() {
        assert_eq!(receivers(&projects(0), OWN).unwrap_err().field, "projects");
        assert_eq!(receivers(&projects(100), OWN).unwrap().len(), 100);
        let error = receivers(&projects(101), OWN).unwrap_err();
        assert_eq!(error.field, "projects");
        assert!(error.problem.contains("101") && error.problem.contains("100"), "{error}");
        let mixed = ShareCreate { domains: vec![OTHER], ..projects(100) };
        assert_eq!(receivers(&mixed, OWN).unwrap_err().field, "projects");
        let twice = ShareCreate { projects: vec![project(1); 2], domains: vec![OWN], whole_domain: true };
        let expected = BTreeSet::from([Receiver::Project(project(1)), Receiver::Domain(OWN)]);
        assert_eq!(receivers(&twice, OWN).unwrap(), expected, "each once");
        let all = ShareRemove { all: true, ..ShareRemove::default() };
        assert_eq!(losers(&all, OWN).unwrap(), None);
        let both = ShareRemove { whole_domain: true, ..all };
        assert_eq!(losers(&both, OWN).unwrap_err().field, "all");
    }

    #[test]
    fn only_the_system_reaches_beyond_the_domain() {
        assert!(is_within_reach(OWN, OWN, false) && is_within_reach(OWN, OTHER, true));
        assert!(!is_within_reach(OWN, OTHER, false));
    }

    #[test]
    fn the_strongest_share_counts() {
        use ShareStatus::{Accepted, Pending, Rejected};
        assert_eq!(strongest([]), None);
        assert_eq!(strongest([Rejected, Pending]), Some(Pending));
        assert_eq!(strongest([Pending, Accepted, Rejected]), Some(Accepted));
    }

    /// SH-5: refused while shared beyond the new owner.
    #[test]
    fn a_new_owner_inherits_no_share_that_leaves_its_domain() {
        let shares = [
            (Receiver::Project(project(1)), OWN),
            (Receiver::Project(project(2)), OTHER),
            (Receiver::Domain(OWN), OWN),
        ];
        assert_eq!(beyond(&shares, OWN), [Receiver::Project(project(2))]);
        assert_eq!(beyond(&shares, OTHER), [Receiver::Project(project(1)), Receiver::Domain(OWN)]);
        assert_eq!(beyond(&[], OTHER), []);
    }
}
