//! Where a list of images is few, so that it begins there.
//!
//! **What.** A list asks for several things at once: what a scope may see, a state, a project, a part of a name. [`Set`] is one of
//! them, as an index serves it; [`Db::narrowest`] finds the smallest, and [`within`] adds it to the statement.
//! **Why counted here.** Images are walked in the order of the list until a page is full. That is quick while many match, and
//! reads the whole catalog for a project with ten images. The engines' own guesses do not tell these apart: SQLite knows
//! nothing of how often a word occurs, PostgreSQL nothing of what several conditions leave together.
//! **Invariants.** A set only repeats what the statement asks for anyway: it changes how long an answer takes, never the answer.

use std::collections::BTreeSet;

use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{ImageKind, ImageStatus, ShareStatus};

use super::error::DbError;
use super::grams::{fold, look_ups, meant_statuses};
use super::image_list::ImageFilter;
use super::shares::{View, reaches};
use super::sql::{Stmt, sql};
use super::store::Db;
use super::tokens::Scope;

/// Largest set that a list begins with. One in a hundred of a large catalog: of a larger one a page is soon full.
const FEW: i64 = 1_000;
/// The same for pieces of texts, and for what a tenant sees if a text is asked for: what else an image must have is compared row by
/// row, and may leave nothing.
const FEW_TO_COMPARE: i64 = 10_000;
/// The same for counts of texts and tags: a count goes on until it has counted what it may.
const FEW_TO_COUNT: i64 = 30_000;
/// A set that is so small need not be beaten.
const TINY: i64 = 200;

const PUBLIC: &str = "SELECT public.id FROM image public WHERE public.visibility = 'public'";

/// Images that have one thing in common.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Set {
    /// What a scope may see; at least that.
    Seen(Scope),
    /// What lies inside a domain.
    Domain(DomainId),
    /// Of a project.
    Project(ProjectId),
    /// What everybody has.
    Public,
    /// What is featured.
    Featured,
    /// What a share with this status brings into a scope.
    Shared(Scope, ShareStatus),
    /// In a state that few are in.
    Rare(ImageStatus),
    /// ISO images.
    Iso,
    /// With one or two neighbouring characters in name or description.
    Gram(String),
    /// With a rare piece and all of the others.
    Grams(String, Vec<String>),
    /// With one piece, or in one of these states, in which few are.
    GramOr(String, Vec<ImageStatus>),
    /// With a tag.
    Tag(String),
}

impl Set {
    /// The sets that all images of a list are in.
    pub(super) fn of(scope: Scope, filter: &ImageFilter) -> Vec<Self> {
        let mut sets = Vec::new();
        // A whole name is in each project once.
        if filter.name.is_some() {
            return sets;
        }
        sets.extend(Self::of_view(scope, filter.view));
        sets.extend(filter.project.map(Self::Project));
        sets.extend(filter.domain.map(Self::Domain));
        sets.extend(filter.tags.iter().map(|tag| Self::Tag(fold(tag))));
        sets.extend(filter.status.filter(|status| *status != ImageStatus::Active).map(Self::Rare));
        sets.extend(filter.name_contains.iter().flat_map(|text| look_ups(&fold(text))).map(Self::Gram));
        if let Some(text) = filter.search.as_deref().map(fold) {
            // What may be meant as a status is also found where the text is not.
            let meant = meant_statuses(&text);
            if !meant.contains(&ImageStatus::Active) {
                let gram = |gram| match meant.is_empty() {
                    true => Self::Gram(gram),
                    false => Self::GramOr(gram, meant.clone()),
                };
                sets.extend(look_ups(&text).into_iter().map(gram));
            }
        }
        sets.extend((filter.kind == Some(ImageKind::Iso)).then_some(Self::Iso));
        sets
    }

    const fn is_text(&self) -> bool {
        matches!(self, Self::Gram(_) | Self::Grams(..) | Self::GramOr(..))
    }

    fn of_view(scope: Scope, view: View) -> Option<Self> {
        let inside = match scope {
            Scope::System => None,
            Scope::Domain(id) => Some(Self::Domain(id)),
            Scope::Project(_, id) => Some(Self::Project(id)),
        };
        match view {
            View::All => inside.map(|_| Self::Seen(scope)),
            View::Featured => Some(Self::Featured),
            View::Public => Some(Self::Public),
            View::Private => inside,
            View::Shared(status) => Some(Self::Shared(scope, status)),
        }
    }

    const fn piece(&self) -> Option<&String> {
        match self {
            Self::Gram(gram) => Some(gram),
            _ => None,
        }
    }

    /// The set of a piece that all images of a list have, narrowed by two others of `pieces`: fewer texts are left to compare,
    /// and a look-up of an index is cheaper than one of a row.
    fn and_others(self, pieces: &[String]) -> Self {
        let Self::Gram(gram) = self else { return self };
        let other = |piece: &&String| **piece != gram;
        let (first, last) = (pieces.iter().find(other), pieces.iter().rfind(other));
        let others: BTreeSet<&String> = first.into_iter().chain(last).collect();
        if others.is_empty() {
            return Self::Gram(gram);
        }
        Self::Grams(gram, others.into_iter().cloned().collect())
    }

    /// The begin of a statement that reads the ids of images from this set on, if it names each image once; see [`Self::joined`].
    pub(super) const fn ids_to_join(&self) -> &'static str {
        match self {
            Self::Gram(_) => "SELECT image.id FROM image_gram CROSS JOIN image",
            Self::Tag(_) => "SELECT image.id FROM image_tag CROSS JOIN image",
            _ => "SELECT image.id FROM image",
        }
    }

    /// Adds that an image is in the set, to a statement that begins with [`Self::ids_to_join`]. SQLite would keep a copy of the
    /// ids of an `IN`; a join takes half the time.
    pub(super) fn joined(&self, stmt: Stmt) -> Stmt {
        match self {
            Self::Gram(gram) => {
                stmt.text(" AND image.id = image_gram.image_id AND image_gram.gram = ").arg(gram)
            }
            Self::Tag(tag) => {
                stmt.text(" AND image.id = image_tag.image_id AND image_tag.tag_folded = ").arg(tag)
            }
            _ => within(stmt, Some(self)),
        }
    }

    /// Appends the ids.
    fn ids(&self, stmt: Stmt) -> Stmt {
        match self {
            Self::Seen(Scope::System) => stmt.text("SELECT image.id FROM image"),
            Self::Seen(scope @ Scope::Domain(id)) => others(Self::Domain(*id).ids(stmt), *scope),
            Self::Seen(scope @ Scope::Project(_, id)) => others(Self::Project(*id).ids(stmt), *scope),
            Self::Domain(id) => stmt.text("SELECT own.id FROM image own WHERE own.domain_id = ").arg(*id),
            Self::Public => stmt.text(PUBLIC),
            Self::Featured => stmt.text("SELECT featured.id FROM image featured WHERE featured.featured = 1"),
            Self::Shared(scope, status) => shared(stmt, *scope, *status),
            Self::Project(id) => stmt.text("SELECT own.id FROM image own WHERE own.project_id = ").arg(*id),
            // The word stands twice: only so the engines know that the index of the rare states has it.
            Self::Rare(status) => stmt
                .text("SELECT rare.id FROM image rare WHERE rare.status <> 'active' AND rare.status = ")
                .arg(*status),
            Self::Iso => stmt.text("SELECT iso.id FROM image iso WHERE iso.kind = 'iso'"),
            Self::Gram(gram) => {
                stmt.text("SELECT image_gram.image_id FROM image_gram WHERE image_gram.gram = ").arg(gram)
            }
            Self::Grams(rare, others) => {
                others.iter().fold(Self::Gram(rare.clone()).ids(stmt), |stmt, gram| {
                    let too = " AND EXISTS (SELECT too.gram FROM image_gram too \
                     WHERE too.image_id = image_gram.image_id AND too.gram = ";
                    stmt.text(too).arg(gram).text(")")
                })
            }
            Self::GramOr(gram, statuses) => {
                let stmt =
                    Self::Gram(gram.clone()).ids(stmt).text(" UNION ALL SELECT rare.id FROM image rare");
                stmt.text(" WHERE rare.status <> 'active' AND rare.status IN ").list(statuses.iter().copied())
            }
            Self::Tag(tag) => {
                stmt.text("SELECT image_tag.image_id FROM image_tag WHERE image_tag.tag_folded = ").arg(tag)
            }
        }
    }
}

/// Appends what belongs to others and may be seen.
fn others(stmt: Stmt, scope: Scope) -> Stmt {
    let stmt = stmt.text(" UNION ALL ").text(PUBLIC).text(" UNION ALL ");
    shared(stmt, scope, ShareStatus::Accepted)
}

fn shared(stmt: Stmt, scope: Scope, status: ShareStatus) -> Stmt {
    let stmt = stmt.text("SELECT share.image_id FROM share WHERE share.status = ").arg(status);
    reaches(stmt.text(" AND "), scope)
}

/// Adds that an image is in the set, if there is one.
pub(super) fn within(stmt: Stmt, set: Option<&Set>) -> Stmt {
    match set {
        Some(set) => set.ids(stmt.text(" AND image.id IN (")).text(")"),
        None => stmt,
    }
}

impl Db {
    /// The smallest of these sets to list from; `None` if all are large.
    pub(super) async fn narrowest(&self, sets: Vec<Set>) -> Result<Option<Set>, DbError> {
        let pieces: Vec<String> = sets.iter().filter_map(Set::piece).cloned().collect();
        // A text that is one piece is in all of the set: nothing else is compared.
        let is_piece = sets.iter().filter(|set| set.is_text()).count() == 1;
        let is_sparse = self.has_sparse_text(&sets).await?;
        let compares = |set: &Set| match set {
            Set::Seen(_) => is_sparse,
            _ => set.is_text() && !is_piece,
        };
        let found = self.smallest(sets, |set| if compares(set) { FEW_TO_COMPARE } else { FEW }).await?;
        Ok(found.map(|set| set.and_others(&pieces)))
    }

    /// The smallest of these sets to count from; `None` if all are large.
    pub(super) async fn narrowest_to_count(&self, sets: Vec<Set>) -> Result<Option<Set>, DbError> {
        // Also for a text that is everywhere: a count does not end with a page, and asks all that a tenant does not see too.
        let has_text = sets.iter().any(Set::is_text);
        let most = |set: &Set| match set {
            Set::Seen(_) if has_text => FEW_TO_COMPARE,
            Set::Tag(_) => FEW_TO_COUNT,
            _ if set.is_text() => FEW_TO_COUNT,
            _ => FEW,
        };
        self.smallest(sets, most).await
    }

    /// Whether a text is asked for that may be in few images. What is one piece that many have is found everywhere: a walk in the
    /// order of the list is soon over.
    async fn has_sparse_text(&self, sets: &[Set]) -> Result<bool, DbError> {
        // It matters only where there is something else to begin with.
        if !sets.iter().any(|set| matches!(set, Set::Seen(_))) {
            return Ok(false);
        }
        let mut texts = sets.iter().filter(|set| set.is_text());
        match (texts.next(), texts.next()) {
            (None, _) => Ok(false),
            (Some(piece), None) => Ok(self.count_up_to(piece, FEW_TO_COMPARE + 1).await? <= FEW_TO_COMPARE),
            (Some(_), Some(_)) => Ok(true),
        }
    }

    async fn smallest(&self, sets: Vec<Set>, most: impl Fn(&Set) -> i64) -> Result<Option<Set>, DbError> {
        let (mut smallest, mut found) = (i64::MAX, None);
        for set in sets {
            let limit = smallest.min(most(&set) + 1);
            // Counted only as far as it could be smaller.
            let n = self.count_up_to(&set, limit).await?;
            if n < limit {
                (smallest, found) = (n, Some(set));
            }
            if smallest <= TINY {
                break;
            }
        }
        Ok(found)
    }

    /// How large a set is, at most `limit`.
    async fn count_up_to(&self, set: &Set, limit: i64) -> Result<i64, DbError> {
        let stmt = set.ids(sql("image", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM ("));
        let row = self.row(stmt.text(" LIMIT ").arg(limit).text(") AS counted")).await?;
        row.map_or(Ok(0), |row| row.int("n"))
    }
}
