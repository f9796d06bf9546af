//! How the store fails.
//!
//! **What.** One enum for all nouns; a variant per decision a caller can make (answer 404, 409, try later, stop).
//! **Why one.** A transaction often touches several nouns; an enum per noun would be wrapped at every border.
//! **Invariants.** The texts name the record and, where there is one, the next step. No secret is in them.

use std::path::PathBuf;

/// A call to the store that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database cannot be reached or opened.
    #[error("cannot open the database {place}")]
    Open {
        /// Path, or address without its password.
        place: String,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// The address is none of the two engines.
    #[error("{given:?} is not a database: give a file path, sqlite:PATH or postgres://USER@HOST/NAME")]
    Address {
        /// The text before the first colon.
        given: String,
    },
    /// A statement failed for a reason that no other variant names.
    #[error("database statement failed: {statement}")]
    Sql {
        /// The beginning of the statement; values are bound, so it holds none.
        statement: String,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// A stored value is not what its column promises.
    #[error("{table}.{column} holds {given:?}: {expected}; run `hearth-controller fsck`")]
    Value {
        /// Table of the row.
        table: &'static str,
        /// Column of the value.
        column: &'static str,
        /// The value, cut to 64 characters.
        given: String,
        /// What was expected.
        expected: String,
    },
    /// There is no such record.
    #[error("no {what} {key}")]
    NotFound {
        /// Kind of record.
        what: &'static str,
        /// Id or name.
        key: String,
    },
    /// Another record has the name or key already.
    #[error("{what} {key} exists already")]
    Exists {
        /// Kind of record.
        what: &'static str,
        /// The name or key.
        key: String,
    },
    /// The record changed since it was read.
    #[error("{what} {key} has revision {found}, not {expected}: read it again and repeat the change")]
    Revision {
        /// Kind of record.
        what: &'static str,
        /// Id.
        key: String,
        /// Revision in the store.
        found: u64,
        /// Revision the caller had read.
        expected: u64,
    },
    /// The record's state does not allow the call.
    #[error("{what} {key} is {state}: {allowed}")]
    State {
        /// Kind of record.
        what: &'static str,
        /// Id or name.
        key: String,
        /// State now.
        state: String,
        /// What would allow it, or what to do.
        allowed: &'static str,
    },
    /// There would be more than is allowed.
    #[error("{of}: {used} {what} of at most {limit} are there, {wanted} more would be too many")]
    Quota {
        /// Of what, in the plural.
        what: &'static str,
        /// Whose.
        of: String,
        /// What there is.
        used: u64,
        /// What was wanted beside it.
        wanted: u64,
        /// What is allowed.
        limit: u64,
        /// What to do.
        cure: &'static str,
    },
    /// The change would lock everybody out.
    #[error("this would take the last system administrator away: nobody could make another")]
    LastAdministrator,
    /// The page mark was not made by this list.
    #[error("the cursor is not one that this list gave: ask for the first page without one")]
    Cursor,
    /// Other writers were faster too many times.
    #[error("gave up after {attempts} tries: other transactions changed the same records; try again")]
    Conflict {
        /// Tries.
        attempts: u32,
    },
    /// The data is of an older program.
    #[error(
        "the database has version {found}, this program needs {known}: start `hearth-controller serve`, which makes a backup and brings it further"
    )]
    OlderVersion {
        /// Version in the database.
        found: i64,
        /// Version of this program.
        known: i64,
    },
    /// The data is of a newer program.
    #[error(
        "the database has version {found}, this program knows versions up to {known}: start the newer program, or restore a backup"
    )]
    NewerVersion {
        /// Version in the database.
        found: i64,
        /// Newest version of this program.
        known: i64,
    },
    /// The data was made by a build between two releases.
    #[error(
        "the database has version {version} as a development build made it, which this program cannot use: set up a new state folder (hearth-controller init) and import the images again"
    )]
    OtherSchema {
        /// Version in the database.
        version: i64,
    },
    /// A file of a backup could not be read or written.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A backup or restore was refused or a tool failed.
    #[error("{what}: {hint}")]
    Backup {
        /// What happened.
        what: String,
        /// What to do.
        hint: &'static str,
    },
}

impl DbError {
    /// Wraps a driver error with the statement that met it.
    pub(super) fn sql(statement: &str, source: sqlx::Error) -> Self {
        Self::Sql { statement: statement.chars().take(STATEMENT_CHARS_MAX).collect(), source }
    }

    /// Whether a UNIQUE or PRIMARY KEY constraint refused the row.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Sql { source, .. } if source.as_database_error().is_some_and(|e| e.is_unique_violation()))
    }

    /// Whether the same call may succeed later: the disk was full, or the engine did not answer.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Sql { source, .. } => passes(source),
            Self::Open { .. } | Self::Conflict { .. } => true,
            _ => false,
        }
    }

    /// Turns "row exists" into [`DbError::Exists`] and leaves the rest.
    pub(super) fn or_exists(self, what: &'static str, key: &str) -> Self {
        if self.is_unique_violation() { Self::Exists { what, key: key.to_owned() } } else { self }
    }
}

fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing_code(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether an engine's code is of its surroundings, not of the statement.
fn is_passing_code(code: &str) -> bool {
    if code.len() == 5 {
        // PostgreSQL: insufficient resources, operator intervention, connection, rollback.
        return ["53", "57P", "08", "40"].iter().any(|class| code.starts_with(class));
    }
    // SQLite, extended or not: BUSY, LOCKED, IOERR, FULL, CANTOPEN (no room, or too many files, for a journal).
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
}

/// Characters of a statement in an error: enough to find it, short enough for a log line.
const STATEMENT_CHARS_MAX: usize = 120;

/// Whether the engine asks to repeat the whole transaction.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    // PostgreSQL: serialization failure, deadlock. SQLite: BUSY, BUSY_RECOVERY, BUSY_SNAPSHOT, by another process.
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| matches!(code.as_ref(), "40001" | "40P01" | "5" | "261" | "517"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_surroundings_did_passes() {
        for code in ["5", "261", "6", "10", "778", "13", "53100", "57P01", "08006", "40001"] {
            assert!(is_passing_code(code), "{code}");
        }
        // Syntax, constraints, a missing table, a division: the same again and again.
        for code in ["1", "19", "2067", "787", "42601", "42P01", "23505", "22012"] {
            assert!(!is_passing_code(code), "{code}");
        }
        assert!(passes(&sqlx::Error::PoolTimedOut) && !passes(&sqlx::Error::RowNotFound));
    }
}
