//! Where a list of images is few, so that it begins there.
//!
//! **What.** A list asks for several things at once: what a scope may see, a state, a project, a part of a name. [`Set`] is one of
//! them, as an index serves it; [`Db::narrowest`] finds the smallest, and [`within`] adds it to the statement.
//! **Why counted here.** Images are walked in the order of the list until a page is full. That is quick while many match, and
//! reads the whole catalog for a project with ten images. The engines' own guesses do not tell these apart: SQLite knows
//! nothing of how often a word occurs, PostgreSQL nothing of what several conditions leave together.
//! **Invariants.** A set only repeats what the statement asks for anyway: it changes how long an answer takes, never the answer.

use hearth_protocol::id::ProjectId;
use hearth_protocol::words::{ImageKind, ImageStatus};

use super::error::DbError;
use super::grams::look_ups;
use super::images::ImageFilter;
use super::sql::{Stmt, sql};
use super::store::Db;
use super::tokens::Scope;

/// Largest set that a list begins with. One in ten of a large catalog: of a larger one a page is soon full.
const FEW: i64 = 10_000;
/// A set that is so small need not be beaten.
const TINY: i64 = 200;

/// Images that have one thing in common.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Set {
    /// What a scope may see.
    Seen(Scope),
    /// Of a project.
    Project(ProjectId),
    /// In a state that few are in.
    Rare(ImageStatus),
    /// ISO images.
    Iso,
    /// With one or two neighbouring characters in their names.
    Gram(String),
}

impl Set {
    /// The sets that all images of a list are in.
    pub(super) fn of(scope: Scope, filter: &ImageFilter) -> Vec<Self> {
        let mut sets = Vec::new();
        sets.extend(filter.project.map(Self::Project));
        sets.extend(filter.status.filter(|status| *status != ImageStatus::Active).map(Self::Rare));
        sets.extend((scope != Scope::System).then_some(Self::Seen(scope)));
        sets.extend(filter.name_contains.iter().flat_map(|text| look_ups(text)).map(Self::Gram));
        sets.extend((filter.kind == Some(ImageKind::Iso)).then_some(Self::Iso));
        sets
    }

    /// Appends the ids.
    fn ids(&self, stmt: Stmt) -> Stmt {
        match self {
            Self::Seen(Scope::System) => stmt.text("SELECT image.id FROM image"),
            Self::Seen(Scope::Domain(id)) => {
                let stmt = stmt.text("SELECT own.id FROM image own WHERE own.domain_id = ").arg(*id);
                others(stmt, "domain", id.to_string())
            }
            Self::Seen(Scope::Project(_, id)) => {
                let stmt = stmt.text("SELECT own.id FROM image own WHERE own.project_id = ").arg(*id);
                others(stmt, "project", id.to_string())
            }
            Self::Project(id) => stmt.text("SELECT own.id FROM image own WHERE own.project_id = ").arg(*id),
            // The word stands twice: only so the engines know that the index of the rare states has it.
            Self::Rare(status) => stmt
                .text("SELECT rare.id FROM image rare WHERE rare.status <> 'active' AND rare.status = ")
                .arg(*status),
            Self::Iso => stmt.text("SELECT iso.id FROM image iso WHERE iso.kind = 'iso'"),
            Self::Gram(gram) => {
                stmt.text("SELECT image_gram.image_id FROM image_gram WHERE image_gram.gram = ").arg(gram)
            }
        }
    }
}

/// Appends what belongs to others and may be seen.
fn others(stmt: Stmt, kind: &'static str, target: String) -> Stmt {
    let stmt = stmt.text(" UNION ALL SELECT public.id FROM image public WHERE public.visibility = 'public'");
    let stmt = stmt.text(" UNION ALL SELECT share.image_id FROM share WHERE share.kind = ").arg(kind);
    stmt.text(" AND share.target = ").arg(target).text(" AND share.status = 'accepted'")
}

/// Adds that an image is in the set, if there is one.
pub(super) fn within(stmt: Stmt, set: Option<&Set>) -> Stmt {
    match set {
        Some(set) => set.ids(stmt.text(" AND image.id IN (")).text(")"),
        None => stmt,
    }
}

impl Db {
    /// The smallest of these sets; `None` if all have more than [`FEW`] images.
    pub(super) async fn narrowest(&self, sets: Vec<Set>) -> Result<Option<Set>, DbError> {
        let (mut smallest, mut found) = (FEW + 1, None);
        for set in sets {
            // Counted only as far as it could be smaller.
            let stmt = set.ids(sql("image", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM ("));
            let row = self.row(stmt.text(" LIMIT ").arg(smallest).text(") AS counted")).await?;
            let n = row.map_or(Ok(0), |row| row.int("n"))?;
            if n < smallest {
                (smallest, found) = (n, Some(set));
            }
            if smallest <= TINY {
                break;
            }
        }
        Ok(found)
    }
}
