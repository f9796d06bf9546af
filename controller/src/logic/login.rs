//! Which of a user's grants a login gets, and what may be a password.
//!
//! **What.** [`choose`] takes the grants and what the request says. Without a wish the widest scope wins, there the strongest role,
//! then the oldest grant: one answer for one user, always.
//! **Why not an error on doubt.** Somebody who may do much and says nothing expects to be able to do it. Only a project's
//! name can mean two things, and that is told.
//! **Invariants.** `a_login_gets_what_it_asked_for_or_nothing`; nothing is made up that is not among the grants.

use hearth_protocol::api::user::{PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN};
use hearth_protocol::id::DomainId;
use hearth_protocol::words::{Role, ScopeKind};

use super::authz::{Principal, Scope};
use super::catalog::FieldError;

/// A grant that could be used; oldest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Held<'a> {
    /// What it allows.
    pub principal: Principal,
    /// Name of its project; empty for other scopes.
    pub project_name: &'a str,
}

/// What the request says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted<'a> {
    /// Level.
    pub scope: Option<ScopeKind>,
    /// Name or id of the project.
    pub project: Option<&'a str>,
    /// The user's domain: where a project's name is looked up first.
    pub home: DomainId,
}

/// Why no grant is chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unchosen {
    /// None is what the request wants.
    None,
    /// So many projects have that name.
    Several(usize),
}

/// The place in `held` of the grant that the login gets.
///
/// # Errors
/// [`Unchosen`].
pub fn choose(held: &[Held<'_>], wanted: &Wanted<'_>) -> Result<usize, Unchosen> {
    let kind = |scope: Scope| match scope {
        Scope::System => ScopeKind::System,
        Scope::Domain(_) => ScopeKind::Domain,
        Scope::Project(..) => ScopeKind::Project,
    };
    let named = projects_named(held, wanted)?;
    let fits = |place: usize| {
        let scope = held[place].principal.scope;
        wanted.scope.is_none_or(|wanted| wanted == kind(scope))
            && named.is_none_or(|project| project == scope)
            // Several domains: one's own is meant.
            && (wanted.scope != Some(ScopeKind::Domain)
                || scope == Scope::Domain(wanted.home)
                || !held.iter().any(|other| other.principal.scope == Scope::Domain(wanted.home)))
    };
    let rank = |place: &usize| {
        let Principal { role, scope } = held[*place].principal;
        let strength = match role {
            Role::Admin => 0_u8,
            Role::Member => 1,
            Role::Reader => 2,
        };
        (kind(scope), strength, *place)
    };
    (0..held.len()).filter(|place| fits(*place)).min_by_key(rank).ok_or(Unchosen::None)
}

/// The one project that the request names, if it names one.
fn projects_named(held: &[Held<'_>], wanted: &Wanted<'_>) -> Result<Option<Scope>, Unchosen> {
    let Some(name) = wanted.project else { return Ok(None) };
    let folded = name.to_lowercase();
    let mut found: Vec<Scope> = Vec::new();
    for one in held {
        let Scope::Project(_, id) = one.principal.scope else { continue };
        let is_meant = id.to_string() == name || one.project_name.to_lowercase() == folded;
        if is_meant && !found.contains(&one.principal.scope) {
            found.push(one.principal.scope);
        }
    }
    if found.len() > 1 {
        let exact = |scope: &Scope| matches!(scope, Scope::Project(_, id) if id.to_string() == name);
        let at_home = |scope: &Scope| matches!(scope, Scope::Project(domain, _) if *domain == wanted.home);
        let best = found.iter().copied().find(exact).or_else(|| found.iter().copied().find(at_home));
        return best.map(Some).ok_or(Unchosen::Several(found.len()));
    }
    found.first().copied().map(Some).ok_or(Unchosen::None)
}

/// Checks a new password: long enough to be hard to guess, short enough to be typed.
///
/// # Errors
/// What is wrong with it, for the field `field`; never the password itself.
pub fn check_password(field: &str, password: &str) -> Result<(), FieldError> {
    let wrong = |problem: String| Err(FieldError { field: field.to_owned(), problem });
    let chars = password.chars().count();
    if chars < PASSWORD_CHARS_MIN {
        return wrong(format!("has {chars} characters: at least {PASSWORD_CHARS_MIN}"));
    }
    if chars > PASSWORD_CHARS_MAX {
        return wrong(format!("has {chars} characters: at most {PASSWORD_CHARS_MAX}"));
    }
    if password.chars().any(char::is_control) {
        return wrong("must not hold control characters".to_owned());
    }
    if password.trim().is_empty() {
        return wrong("must not be blank".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hearth_protocol::id::ProjectId;

    use super::*;

    const HOME: DomainId = DomainId::from_bytes([1; 16]);
    const AWAY: DomainId = DomainId::from_bytes([2; 16]);

    const fn project(domain: DomainId, n: u8) -> Scope {
        Scope::Project(domain, ProjectId::from_bytes([n; 16]))
    }

    const fn held(role: Role, scope: Scope, project_name: &str) -> Held<'_> {
        Held { principal: Principal { role, scope }, project_name }
    }

    #[track_caller]
    fn check(
        grants: &[Held<'_>],
        scope: Option<ScopeKind>,
        project: Option<&str>,
        expected: Result<usize, Unchosen>,
    ) {
        assert_eq!(choose(grants, &Wanted { scope, project, home: HOME }), expected);
    }

    #[test]
    fn a_login_gets_what_it_asked_for_or_nothing() {
        let grants = [
            held(Role::Reader, project(HOME, 1), "web"),
            held(Role::Admin, project(HOME, 2), "Build"),
            held(Role::Reader, Scope::Domain(HOME), ""),
            held(Role::Member, project(HOME, 1), "web"),
            held(Role::Reader, Scope::System, ""),
            held(Role::Admin, Scope::Domain(AWAY), ""),
        ];
        check(&grants, None, None, Ok(4));
        check(&grants, Some(ScopeKind::Domain), None, Ok(2));
        check(&grants, Some(ScopeKind::Project), None, Ok(1));
        check(&grants, None, Some("web"), Ok(3));
        check(&grants, None, Some("build"), Ok(1));
        check(&grants, Some(ScopeKind::Project), Some(&ProjectId::from_bytes([2; 16]).to_string()), Ok(1));
        check(&grants, Some(ScopeKind::System), Some("web"), Err(Unchosen::None));
        check(&grants, None, Some("other"), Err(Unchosen::None));
        check(&[], None, None, Err(Unchosen::None));
        check(&grants[..2], Some(ScopeKind::System), None, Err(Unchosen::None));
    }

    #[test]
    fn a_name_in_two_domains_is_the_one_at_home_or_told() {
        let third = DomainId::from_bytes([3; 16]);
        let away = [
            held(Role::Reader, project(AWAY, 4), "web"),
            held(Role::Reader, project(third, 5), "WEB"),
            held(Role::Reader, project(HOME, 6), "web"),
        ];
        check(&away, None, Some("web"), Ok(2));
        check(&away[..2], None, Some("web"), Err(Unchosen::Several(2)));
        check(&away[..2], None, Some(&ProjectId::from_bytes([5; 16]).to_string()), Ok(1));
    }

    #[test]
    fn a_password_is_long_enough_and_no_refusal_repeats_it() {
        for password in ["correct horse", "密码密码密码密码密码", &"x".repeat(256)] {
            check_password("password", password).unwrap();
        }
        for password in ["secret", "", "          ", "secret\nsecret", &"x".repeat(257)] {
            let error = check_password("password", password).unwrap_err();
            assert_eq!(error.field, "password");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
