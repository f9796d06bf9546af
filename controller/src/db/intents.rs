//! Intents: the wishes that make the reconciler work.
//!
//! **What.** One row per (image, location, origin, job). An operator and two jobs may want the same copy; each has a row
//! of its own, and the reconciler merges them.
//! **Why put, not create.** Repeating a call must not make a second wish: the same key updates the row and keeps its id.
//! **Invariants.** An intent's content is its image's content, and no image that is deleted has one: both are asked in the
//! transaction that puts it, since an image can go while a call is on its way. An intent whose hold ended is deleted, never kept
//! as "expired": what has no intent is unheld cache.

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, IntentId, LocationId, PrewarmId};
use hearth_protocol::words::{ImageStatus, Origin, Priority};

use super::changes::Change;
use super::error::DbError;
use super::ids::new_id;
use super::operations::Draft;
use super::placements::place;
use super::prewarm_targets::call_off;
use super::sql::{Row, Stmt, db_words, sql};
use super::store::{Db, Tx};

db_words! {
    /// What an intent wants.
    IntentWish, "wish" {
        /// The copy should be there.
        Keep = "keep",
        /// The copy should go.
        Remove = "remove",
    }
}

/// How long a copy must not be evicted.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum IntentHold {
    /// Until this time, microseconds since the epoch.
    Until(i64),
    /// Until it is unpinned (or, for a job that runs, until its end).
    Pinned,
}

impl IntentHold {
    const fn word(self) -> &'static str {
        match self {
            Self::Until(_) => "until",
            Self::Pinned => "pinned",
        }
    }

    const fn until_us(self) -> Option<i64> {
        match self {
            Self::Until(us) => Some(us),
            Self::Pinned => None,
        }
    }
}

/// An intent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intent {
    /// Its id; kept when the same wish is put again.
    pub id: IntentId,
    /// The image.
    pub image: ImageId,
    /// The image's content.
    pub content: ContentId,
    /// Where.
    pub location: LocationId,
    /// Who asked.
    pub origin: Origin,
    /// The job that asked.
    pub prewarm: Option<PrewarmId>,
    /// Order of work.
    pub priority: Priority,
    /// When it must be done, microseconds since the epoch.
    pub deadline_us: Option<i64>,
    /// How long the copy must not be evicted.
    pub hold: IntentHold,
    /// Cap on the transfer.
    pub rate_bytes_per_s: Option<u64>,
    /// Keep or remove.
    pub wish: IntentWish,
    /// With `remove`: also if it is held by other intents.
    pub force: bool,
    /// When it was put first; ignored when put.
    pub created_us: i64,
}

impl Intent {
    /// A wish to keep a copy, as an operator makes it by hand: no deadline, no cap.
    #[must_use]
    pub fn manual(image: ImageId, content: ContentId, location: LocationId, hold: IntentHold) -> Self {
        Self {
            id: new_id(),
            image,
            content,
            location,
            origin: Origin::Manual,
            prewarm: None,
            priority: Priority::Bulk,
            deadline_us: None,
            hold,
            rate_bytes_per_s: None,
            wish: IntentWish::Keep,
            force: false,
            created_us: 0,
        }
    }
}

/// Time for which what a launch brought is kept, microseconds (a day): machines are often made again.
const LAUNCH_HOLD_US: i64 = 24 * 3600 * 1_000_000;

impl Intent {
    /// A wish for a machine that is being created now: first in the queue, held for a day.
    #[must_use]
    pub fn launch(image: ImageId, content: ContentId, location: LocationId, now_us: i64) -> Self {
        let hold = IntentHold::Until(now_us.saturating_add(LAUNCH_HOLD_US));
        let priority = Priority::Demand;
        Self { origin: Origin::Launch, priority, ..Self::manual(image, content, location, hold) }
    }
}

const COLUMNS: &str = "SELECT id, image_id, content_id, location_id, origin, prewarm_id, priority, deadline_us, hold, \
     hold_until_us, rate_bytes_per_s, wish, force, created_us FROM intent";

/// Rows of one INSERT: 15 values each stay far below the 32,766 that SQLite allows.
const ROWS_PER_INSERT: usize = 200;

fn intent(row: &Row) -> Result<Intent, DbError> {
    let prewarm = row.text("prewarm_id")?;
    let hold = row.opt_int("hold_until_us")?.map_or(IntentHold::Pinned, IntentHold::Until);
    Ok(Intent {
        id: row.parse("id")?,
        image: row.parse("image_id")?,
        content: row.parse("content_id")?,
        location: row.parse("location_id")?,
        origin: row.parse("origin")?,
        prewarm: if prewarm.is_empty() { None } else { Some(row.parse("prewarm_id")?) },
        priority: row.parse("priority")?,
        deadline_us: row.opt_int("deadline_us")?,
        hold,
        rate_bytes_per_s: row.opt_size("rate_bytes_per_s")?,
        wish: row.parse("wish")?,
        force: row.flag("force")?,
        created_us: row.int("created_us")?,
    })
}

fn insert(intents: &[Intent], now_us: i64) -> Stmt {
    let mut stmt = sql(
        "intent",
        "INSERT INTO intent (id, image_id, content_id, location_id, origin, prewarm_id, priority, \
         deadline_us, hold, hold_until_us, rate_bytes_per_s, wish, force, created_us, updated_us) VALUES ",
    );
    for (n, intent) in intents.iter().enumerate() {
        stmt = stmt.text(if n == 0 { "(" } else { ", (" });
        stmt = stmt.arg(intent.id).text(", ").arg(intent.image).text(", ").arg(intent.content).text(", ");
        stmt = stmt.arg(intent.location).text(", ").arg(intent.origin).text(", ");
        stmt = stmt.arg(intent.prewarm.map_or_else(String::new, |id| id.to_string())).text(", ");
        stmt = stmt.arg(intent.priority).text(", ").arg(intent.deadline_us).text(", ");
        stmt = stmt.arg(intent.hold.word()).text(", ").arg(intent.hold.until_us()).text(", ");
        stmt = stmt
            .arg(intent.rate_bytes_per_s)
            .text(", ")
            .arg(intent.wish)
            .text(", ")
            .arg(intent.force)
            .text(", ");
        stmt = stmt.arg(now_us).text(", ").arg(now_us).text(")");
    }
    stmt.text(
        " ON CONFLICT (image_id, location_id, origin, prewarm_id) DO UPDATE SET content_id = excluded.content_id, \
         priority = excluded.priority, deadline_us = excluded.deadline_us, hold = excluded.hold, \
         hold_until_us = excluded.hold_until_us, rate_bytes_per_s = excluded.rate_bytes_per_s, wish = excluded.wish, \
         force = excluded.force, updated_us = excluded.updated_us",
    )
}

impl Tx<'_> {
    /// Refuses to place `content` for an image that is deleted or in the recycle bin, or that has another content. One that is
    /// deactivated keeps its wishes: they wait.
    pub(super) async fn must_be_placeable(
        &mut self,
        image: ImageId,
        content: ContentId,
    ) -> Result<(), DbError> {
        let image = self.live_image(image).await?;
        let placed = matches!(image.status, ImageStatus::Active | ImageStatus::Deactivated);
        if placed && image.content == Some(content) {
            return Ok(());
        }
        let state = if placed { "another content by now".to_owned() } else { image.status.to_string() };
        let allowed = "only an active image can be cached";
        Err(DbError::State { what: "image", key: image.facts.name, state, allowed })
    }
}

/// Refuses intents of images that cannot have them. A copy can be wished away as long as its image is not deleted.
async fn must_be_wishable(tx: &mut Tx<'_>, intents: &[Intent]) -> Result<(), DbError> {
    let mut seen = std::collections::HashSet::new();
    for intent in intents {
        if !seen.insert((intent.image, intent.content, intent.wish)) {
            continue;
        }
        match intent.wish {
            IntentWish::Keep => tx.must_be_placeable(intent.image, intent.content).await?,
            IntentWish::Remove => tx.live_image(intent.image).await.map(drop)?,
        }
    }
    Ok(())
}

/// Puts intents inside a transaction. Of two with the same key the last counts.
pub(super) async fn put(tx: &mut Tx<'_>, intents: &[Intent]) -> Result<(), DbError> {
    must_be_wishable(tx, intents).await?;
    // PostgreSQL refuses a statement that would touch one row twice.
    let mut seen = std::collections::HashSet::new();
    let mut last: Vec<Intent> = intents.to_vec();
    last.reverse();
    last.retain(|intent| seen.insert((intent.image, intent.location, intent.origin, intent.prewarm)));
    for rows in last.chunks(ROWS_PER_INSERT) {
        tx.run(insert(rows, tx.now_us())).await?;
        place(tx, rows).await?;
    }
    tx.changed(Change::Intents);
    Ok(())
}

impl Db {
    /// Puts intents: makes them, or updates those with the same image, location, origin and job.
    ///
    /// # Errors
    /// [`DbError::NotFound`] for a deleted image; [`DbError::State`] for one in the recycle bin or with another content; a failed
    /// statement, for example for a location that does not exist.
    pub async fn put_intents(&self, intents: &[Intent], op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                put(tx, intents).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Puts the intent of a launch. Whoever waits for a machine asks again and again: only the first time is an operation.
    ///
    /// # Errors
    /// As [`Db::put_intents`].
    pub async fn put_launch(&self, launch: &Intent, op: &Draft) -> Result<(), DbError> {
        let known = "SELECT id FROM intent WHERE image_id = $1 AND location_id = $2 AND origin = $3 LIMIT 1";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("intent", known).bind(launch.image).bind(launch.location);
                let is_new = tx.row(stmt.bind(launch.origin)).await?.is_none();
                put(tx, std::slice::from_ref(launch)).await?;
                if is_new { tx.record(op).await } else { Ok(()) }
            })
        })
        .await
    }

    /// Deletes the intents of one origin for an image at a location. Returns how many there were.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn delete_intents(
        &self,
        image: ImageId,
        location: LocationId,
        origin: Origin,
        op: &Draft,
    ) -> Result<u64, DbError> {
        let delete = "DELETE FROM intent WHERE image_id = $1 AND location_id = $2 AND origin = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let n = tx.run(sql("intent", delete).bind(image).bind(location).bind(origin)).await?;
                tx.changed(Change::Intents);
                tx.record(op).await?;
                Ok(n)
            })
        })
        .await
    }

    /// An operator wants copies gone: at each location the manual intent becomes `remove`; with `force` every other intent
    /// for the image there is deleted too, so that nothing holds the copy, and jobs that wait for it there wait no longer.
    ///
    /// # Errors
    /// [`DbError::NotFound`] for a deleted image, or a failed statement.
    pub async fn wish_removed(
        &self,
        image: ImageId,
        content: ContentId,
        locations: &[LocationId],
        force: bool,
        op: &Draft,
    ) -> Result<(), DbError> {
        let wish = |location: &LocationId| Intent {
            wish: IntentWish::Remove,
            force,
            ..Intent::manual(image, content, *location, IntentHold::Pinned)
        };
        let intents: Vec<Intent> = locations.iter().map(wish).collect();
        let intents = &intents;
        self.write_tx(move |tx| {
            Box::pin(async move {
                if force {
                    let others = sql("intent", "DELETE FROM intent WHERE image_id = $1 AND location_id IN ")
                        .bind(image);
                    tx.run(others.list(locations.iter().copied())).await?;
                    call_off(tx, image, locations).await?;
                }
                put(tx, intents).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Deletes intents by id: the reconciler, when what they wanted gone is gone. Returns how many there were.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn drop_intents(&self, ids: &[IntentId]) -> Result<u64, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let mut n = 0;
                for ids in ids.chunks(ROWS_PER_INSERT) {
                    n += tx
                        .run(sql("intent", "DELETE FROM intent WHERE id IN ").list(ids.iter().copied()))
                        .await?;
                }
                if n > 0 {
                    tx.changed(Change::Intents);
                }
                Ok(n)
            })
        })
        .await
    }

    /// Deletes the intents whose hold ended at `now_us` or before, and returns them. The copies stay as unheld cache.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn expire_holds(&self, now_us: i64) -> Result<Vec<Intent>, DbError> {
        const ENDED: &str = " WHERE hold = 'until' AND hold_until_us <= ";
        // The reconciler asks every few seconds: look before taking the writer.
        if self.row(sql("intent", COLUMNS).text(ENDED).arg(now_us).text(" LIMIT 1")).await?.is_none() {
            return Ok(Vec::new());
        }
        self.write_tx(move |tx| {
            Box::pin(async move {
                let rows = tx.rows(sql("intent", COLUMNS).text(ENDED).arg(now_us)).await?;
                let ended = rows.iter().map(intent).collect::<Result<Vec<_>, _>>()?;
                tx.run(sql("intent", "DELETE FROM intent").text(ENDED).arg(now_us)).await?;
                tx.changed(Change::Intents);
                Ok(ended)
            })
        })
        .await
    }

    /// The intents of these images, each at its location: of a page of the cache list.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn intents_of(&self, pairs: &[(ImageId, LocationId)]) -> Result<Vec<Intent>, DbError> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let stmt = sql("intent", COLUMNS).text(" WHERE (image_id, location_id) IN ").pairs(pairs);
        self.rows(stmt.text(" ORDER BY location_id, id")).await?.iter().map(intent).collect()
    }

    /// Every intent; for the reconciler at start.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn intents(&self) -> Result<Vec<Intent>, DbError> {
        self.each(sql("intent", COLUMNS).text(" ORDER BY location_id, id"), intent).await
    }

    /// The intents at a location.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn intents_at(&self, location: LocationId) -> Result<Vec<Intent>, DbError> {
        let stmt = sql("intent", COLUMNS).text(" WHERE location_id = ").arg(location).text(" ORDER BY id");
        self.rows(stmt).await?.iter().map(intent).collect()
    }

    /// The intents for an image, everywhere or at some locations.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn intents_for(
        &self,
        image: ImageId,
        locations: Option<&[LocationId]>,
    ) -> Result<Vec<Intent>, DbError> {
        let mut stmt = sql("intent", COLUMNS).text(" WHERE image_id = ").arg(image);
        if let Some(locations) = locations {
            stmt = stmt.text(" AND location_id IN ").list(locations.iter().copied());
        }
        self.rows(stmt.text(" ORDER BY location_id, id")).await?.iter().map(intent).collect()
    }
}
