//! Statements and rows: the only place that knows how values travel to and from the driver.
//!
//! **What.** [`Stmt`] is a text with bound values; [`Row`] reads columns by name into protocol types.
//! **Why not the driver's own traits.** `sqlx::Any` carries TEXT and BIGINT well and little else alike on both engines.
//! Here ids, words and JSON become TEXT and sizes, times and flags BIGINT in one place, and a value that does not parse
//! is an error that names table and column.
//! **Invariants.** Values are bound, never written into the text; the text of a statement is made of constants of this
//! crate and of placeholders alone. NULLs are typed, because PostgreSQL refuses a parameter whose type it must guess.

use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{
    BootId, DomainId, Generation, GrantId, HostImageId, ImageId, IntentId, JobId, JoinTokenId, KeyId,
    LeaseId, LinkId, LocationId, MarketId, OperationId, PrewarmGroupId, PrewarmId, ProjectId, TokenId,
    UploadId, UserId,
};
use hearth_protocol::words::{
    Architecture, ConsumerKind, ContentKind, DiskDriver, DiskFormat, EntryStatus, ImageKind, ImageStatus,
    ImportStage, LocationKind, LocationState, NetworkDriver, Origin, OsType, PrewarmState, Priority, Role,
    ScopeKind, ShareKind, ShareStatus, VariantStatus, Virtualisation, Visibility,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::{Any, Arguments as _, AssertSqlSafe, Row as _};

use super::error::DbError;
use super::grams::fold;

/// A value on its way to the database.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// TEXT.
    Text(Option<String>),
    /// BIGINT.
    Int(Option<i64>),
}

/// Something that can be bound.
pub(super) trait Arg {
    /// Its value.
    fn value(self) -> Value;
    /// NULL of its type.
    fn null() -> Value;
}

macro_rules! text_args {
    ($($name:ty)*) => {$(
        impl Arg for $name {
            fn value(self) -> Value { Value::Text(Some(self.to_string())) }
            fn null() -> Value { Value::Text(None) }
        }
    )*};
}
macro_rules! int_args {
    ($($name:ty, $this:ident => $int:expr;)*) => {$(
        impl Arg for $name {
            fn value(self) -> Value { let $this = self; Value::Int(Some($int)) }
            fn null() -> Value { Value::Int(None) }
        }
    )*};
}

text_args! {
    &str &String AgentId ContentId BootId DomainId HostImageId PrewarmGroupId ImageId IntentId JobId JoinTokenId KeyId LeaseId LinkId MarketId LocationId OperationId
    PrewarmId ProjectId TokenId ConsumerKind ContentKind DiskFormat EntryStatus ImageKind ImageStatus ImportStage
    LocationKind LocationState Origin PrewarmState Priority Role ScopeKind Visibility Architecture OsType Virtualisation
    DiskDriver NetworkDriver ShareKind ShareStatus VariantStatus GrantId UploadId UserId
}
int_args! {
    i64, n => n;
    u32, n => i64::from(n);
    u8, n => i64::from(n);
    bool, flag => i64::from(flag);
    // Sizes and times past i64 are "for ever" or a sender's nonsense: the largest value says the same.
    u64, n => i64::try_from(n).unwrap_or(i64::MAX);
    Generation, generation => i64::try_from(generation.0).unwrap_or(i64::MAX);
    FaultCode, fault => i64::from(fault.number());
}

/// Words that only the database and its readers share: an enum with one spelling.
macro_rules! db_words {
    ($($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// The word as it is stored and shown.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(concat!("not a ", $what)),
                }
            }
        }

        impl $crate::db::sql::Arg for $name {
            fn value(self) -> $crate::db::sql::Value { self.as_str().value() }
            fn null() -> $crate::db::sql::Value { <&str as $crate::db::sql::Arg>::null() }
        }
    )*};
}
pub(super) use db_words;

impl Arg for String {
    fn value(self) -> Value {
        Value::Text(Some(self))
    }
    fn null() -> Value {
        Value::Text(None)
    }
}

impl<T: Arg> Arg for Option<T> {
    fn value(self) -> Value {
        self.map_or_else(T::null, T::value)
    }
    fn null() -> Value {
        T::null()
    }
}

/// A statement about one table with its bound values.
#[derive(Clone, Debug)]
pub(super) struct Stmt {
    table: &'static str,
    text: Cow<'static, str>,
    args: Vec<Value>,
}

/// A statement with the text `text` on `table` (named in errors). Bind `$1`, `$2`, … in order.
pub(super) const fn sql(table: &'static str, text: &'static str) -> Stmt {
    Stmt { table, text: Cow::Borrowed(text), args: Vec::new() }
}

impl Stmt {
    /// Binds the next placeholder of the text.
    #[must_use]
    pub(super) fn bind(mut self, arg: impl Arg) -> Self {
        self.args.push(arg.value());
        self
    }

    /// Appends constant text.
    #[must_use]
    pub(super) fn text(mut self, text: &'static str) -> Self {
        self.text.to_mut().push_str(text);
        self
    }

    /// Appends the next placeholder and binds it.
    #[must_use]
    pub(super) fn arg(mut self, arg: impl Arg) -> Self {
        self.args.push(arg.value());
        let placeholder = format!("${}", self.args.len());
        self.text.to_mut().push_str(&placeholder);
        self
    }

    /// Appends `text` and a bound value, if there is one.
    #[must_use]
    pub(super) fn when(self, arg: Option<impl Arg>, text: &'static str) -> Self {
        match arg {
            Some(arg) => self.text(text).arg(arg),
            None => self,
        }
    }

    /// Appends `(a, b, …)` of bound values; an empty list matches nothing.
    #[must_use]
    pub(super) fn list<T: Arg>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self = self.text("(");
        let mut n = 0;
        for arg in args {
            self = self.text(if n == 0 { "" } else { ", " }).arg(arg);
            n += 1;
        }
        self.text(if n == 0 { "NULL)" } else { ")" })
    }

    /// Appends `(VALUES (a, b), …)` of bound values; of at least one pair.
    #[must_use]
    pub(super) fn pairs<A: Arg + Copy, B: Arg + Copy>(mut self, pairs: &[(A, B)]) -> Self {
        for (n, (a, b)) in pairs.iter().enumerate() {
            self = self.text(if n == 0 { "(VALUES (" } else { ", (" }).arg(*a).text(", ").arg(*b).text(")");
        }
        self.text(")")
    }

    /// Puts constant text before and after.
    #[must_use]
    pub(super) fn wrapped(mut self, before: &'static str, after: &'static str) -> Self {
        self.text.to_mut().insert_str(0, before);
        self.text(after)
    }

    /// The text, for errors.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The table that rows are said to be of.
    pub(super) const fn table(&self) -> &'static str {
        self.table
    }

    /// The driver's form. Constant texts are kept prepared; built ones are not, because there are too many of them.
    pub(super) fn into_query(self) -> sqlx::query::Query<'static, Any, AnyArguments> {
        let mut args = AnyArguments::default();
        for value in self.args {
            let added = match value {
                Value::Text(text) => args.add(text),
                Value::Int(int) => args.add(int),
            };
            added.expect("text and integers always encode");
        }
        match self.text {
            Cow::Borrowed(text) => sqlx::query_with(text, args),
            Cow::Owned(text) => sqlx::query_with(AssertSqlSafe(text), args).persistent(false),
        }
    }
}

/// One row of an answer.
pub(super) struct Row {
    pub(super) row: AnyRow,
    pub(super) table: &'static str,
}

impl Row {
    fn bad(&self, column: &'static str, given: &str, expected: impl Display) -> DbError {
        let given = given.chars().take(64).collect();
        DbError::Value { table: self.table, column, given, expected: expected.to_string() }
    }

    /// TEXT that may be NULL.
    pub(super) fn opt_text(&self, column: &'static str) -> Result<Option<String>, DbError> {
        self.row.try_get(column).map_err(|error| self.bad(column, "?", error))
    }

    /// TEXT.
    pub(super) fn text(&self, column: &'static str) -> Result<String, DbError> {
        self.opt_text(column)?.ok_or_else(|| self.bad(column, "NULL", "a text"))
    }

    /// BIGINT that may be NULL.
    pub(super) fn opt_int(&self, column: &'static str) -> Result<Option<i64>, DbError> {
        self.row.try_get(column).map_err(|error| self.bad(column, "?", error))
    }

    /// BIGINT.
    pub(super) fn int(&self, column: &'static str) -> Result<i64, DbError> {
        self.opt_int(column)?.ok_or_else(|| self.bad(column, "NULL", "a number"))
    }

    /// BIGINT that fits `T` (sizes, counts) and may be NULL.
    pub(super) fn opt_size<T: TryFrom<i64>>(&self, column: &'static str) -> Result<Option<T>, DbError> {
        let fit =
            |int: i64| T::try_from(int).map_err(|_| self.bad(column, &int.to_string(), "a number in range"));
        self.opt_int(column)?.map(fit).transpose()
    }

    /// BIGINT that fits `T`.
    pub(super) fn size<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, DbError> {
        self.opt_size(column)?.ok_or_else(|| self.bad(column, "NULL", "a number"))
    }

    /// BIGINT 0 or 1.
    pub(super) fn flag(&self, column: &'static str) -> Result<bool, DbError> {
        match self.int(column)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(column, &other.to_string(), "0 or 1")),
        }
    }

    /// TEXT in the spelling of `T` (ids, digests, words), may be NULL.
    pub(super) fn opt_parse<T: FromStr<Err: Display>>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, DbError> {
        let parse = |text: String| text.parse().map_err(|error| self.bad(column, &text, error));
        self.opt_text(column)?.map(parse).transpose()
    }

    /// TEXT in the spelling of `T`.
    pub(super) fn parse<T: FromStr<Err: Display>>(&self, column: &'static str) -> Result<T, DbError> {
        self.opt_parse(column)?.ok_or_else(|| self.bad(column, "NULL", "a text"))
    }

    /// TEXT in the spelling of `T`, or empty for none.
    pub(super) fn parse_or_empty<T: FromStr<Err: Display>>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, DbError> {
        if self.text(column)?.is_empty() { Ok(None) } else { self.parse(column).map(Some) }
    }

    /// TEXT that holds JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, DbError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| self.bad(column, &text, error))
    }
}

/// JSON text of a record's free part.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("maps with text keys and plain structs always serialize")
}

/// A LIKE pattern (with `ESCAPE '\'`) for "contains `text`", folded.
pub(super) fn contains(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in fold(text).chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_statements_number_their_placeholders() {
        let stmt =
            sql("image", "SELECT id FROM image WHERE id = $1").bind("a").when(Some("b"), " AND name = ");
        let stmt = stmt.when(None::<i64>, " AND percent = ").text(" AND kind IN ").list(["c", "d"]);
        assert_eq!(stmt.as_str(), "SELECT id FROM image WHERE id = $1 AND name = $2 AND kind IN ($3, $4)");
        assert_eq!(stmt.args.len(), 4);
    }

    #[test]
    fn wildcards_of_a_reader_are_plain_text() {
        assert_eq!(contains(r"50%_\A"), r"%50\%\_\\a%");
    }
}
