//! `/api/v1/users`, `/api/v1/grants`, `/api/v1/login`: people, what they may do, and how they get a token.
//!
//! **Invariants.** A [`Password`] is in requests alone, and its `Debug` text shows nothing of it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{DomainId, GrantId, ProjectId, UserId};
use crate::words::{Role, ScopeKind};

/// Fewest characters of a password (NIST SP 800-63B asks for 8; guesses get cheaper).
pub const PASSWORD_CHARS_MIN: usize = 10;
/// Most characters of a password: bounds the work of one guess.
pub const PASSWORD_CHARS_MAX: usize = 256;

/// A password on its way to the controller.
#[derive(Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct Password(String);

impl Password {
    /// Wraps a text; whether it may be a password is the controller's business.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The text itself, for a buffer that is wiped.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The decoder's own error would repeat a value of the wrong type.
        String::deserialize(deserializer).map(Self).map_err(|error| {
            let absent = error.to_string().starts_with("missing field");
            if absent { error } else { serde::de::Error::custom("a password is a text") }
        })
    }
}

/// Makes a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserCreate {
    /// The name to log in with, 1 to 255 characters; unique in the domain without regard to case.
    pub name: String,
    /// The domain; absent: the caller's, or for the system the one named `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainId>,
    /// The password, 10 to 256 characters; absent: the user cannot log in until one is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The name to log in with.
    pub name: String,
    /// The domain.
    pub domain: DomainId,
    /// Cannot log in, and no token of it opens anything.
    pub disabled: bool,
    /// Whether a password is set.
    pub has_password: bool,
    /// When it was made.
    pub created_at: String,
}

/// Sets the password of a user; ends all tokens of the user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordSet {
    /// The new one, 10 to 256 characters.
    pub password: Password,
}

/// Changes the caller's own password; ends the user's other tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The password as it is.
    pub old: Password,
    /// The new one, 10 to 256 characters.
    pub new: Password,
}

/// Gives a user a role in a scope. Nobody can give more than they have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantCreate {
    /// To whom.
    pub user: UserId,
    /// Role.
    pub role: Role,
    /// Level.
    pub scope: ScopeKind,
    /// The domain, for scope domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainId>,
    /// The project, for scope project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
}

/// A role that a user has in a scope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Who has it.
    pub user: UserId,
    /// The user's name.
    pub user_name: String,
    /// Role.
    pub role: Role,
    /// Level.
    pub scope: ScopeKind,
    /// The domain.
    pub domain: Option<DomainId>,
    /// The domain's name.
    pub domain_name: Option<String>,
    /// The project.
    pub project: Option<ProjectId>,
    /// The project's name.
    pub project_name: Option<String>,
    /// Who gave it.
    pub created_by: String,
    /// When it was given.
    pub created_at: String,
}

/// Asks for a token with one of the user's grants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Name or id of the user's domain; absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Name of the user.
    pub user: String,
    /// Password of the user.
    pub password: Password,
    /// Level of the grant to use; absent: the project's if `project` is given, else the widest that the user has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeKind>,
    /// Name or id of the project, for a grant in a project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PE-1: a password is in no log, whatever is printed.
    #[test]
    fn a_password_shows_in_no_text_but_its_own() {
        let text = r#"{"user":"alice","password":"correct horse"}"#;
        let login: Login = serde_json::from_str(text).unwrap();
        assert_eq!(login.password.expose(), "correct horse");
        assert!(!format!("{login:?}").contains("horse"));
        let error = serde_json::from_str::<PasswordSet>(r#"{"password":31415926535}"#).unwrap_err();
        assert!(!error.to_string().contains("31415"), "{error}");
    }
}
