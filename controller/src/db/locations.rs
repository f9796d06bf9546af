//! Locations as they are read and as operators and sessions change them. [`super::enrolment`] makes them.
//!
//! **What.** One row per host or region: what it is, which agent serves it, its certificate, its figures.
//! **Why whether it is online is not here.** That is a fact of the running process (it holds the sessions); stored, it
//! would be wrong after every crash. `last_seen_us` is stored, at most once a minute.
//! **Invariants.** Names are unique without regard to case, also among removed locations: a removed one is taken over when
//! its name enrols again. `generation` never goes back.

use std::collections::BTreeMap;

use hearth_protocol::api::Page;
use hearth_protocol::api::image_update::Edit;
use hearth_protocol::digest::AgentId;
use hearth_protocol::id::{BootId, DomainId, Generation, JoinTokenId, LocationId};
use hearth_protocol::words::{LocationKind, LocationState};

use super::changes::Change;
use super::error::DbError;
use super::grams::fold;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, sql, to_json};
use super::store::{Db, Tx};

/// A location.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// Its id.
    pub id: LocationId,
    /// Its name.
    pub name: String,
    /// Host or region.
    pub kind: LocationKind,
    /// How the operator uses it.
    pub state: LocationState,
    /// Platform.
    pub platform: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Rack; the zone if it was not given.
    pub rack: String,
    /// Account.
    pub account: String,
    /// Management address.
    pub ip: String,
    /// Serial number.
    pub serial: String,
    /// The domain whose it is; `None`: the system's alone.
    pub domain: Option<DomainId>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses for other agents.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s; 0 until the agent says.
    pub nic_mbps: u32,
    /// The agent that serves it; `None` once removed.
    pub agent: Option<AgentId>,
    /// The token with which it enrolled last.
    pub join_token: Option<JoinTokenId>,
    /// Serial number of the newest certificate, hex.
    pub cert_serial: String,
    /// End of the newest certificate, microseconds since the epoch.
    pub cert_not_after_us: Option<i64>,
    /// When its agent was revoked.
    pub revoked_us: Option<i64>,
    /// Process that had the last session.
    pub boot: Option<BootId>,
    /// Last sign of life, to the minute.
    pub last_seen_us: Option<i64>,
    /// Figures of the last report.
    pub figures: Figures,
    /// Newest plan.
    pub generation: Generation,
    /// When it enrolled first.
    pub created_us: i64,
}

/// What a cache says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes the cache has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Free bytes that must stay.
    pub floor_bytes: u64,
    /// Not empty: the cache is read-only for this reason.
    pub degraded: String,
}

/// A change by an operator; `None` leaves a fact as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LocationEdit {
    /// `active` or `draining`.
    pub state: Option<LocationState>,
    /// Replaces all labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// New rack.
    pub rack: Option<String>,
    /// Another domain.
    pub domain: Edit<DomainId>,
}

/// What a session says when it begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionFacts {
    /// The process.
    pub boot: BootId,
    /// Addresses for other agents.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s.
    pub nic_mbps: u32,
}

/// Locations of one UPDATE: far below the 32,766 values that SQLite allows.
const SEEN_PER_UPDATE: usize = 1000;
/// Locations that are read at once where a selector sorts them out.
const ROWS_PER_STEP: i64 = 1000;

pub(super) const COLUMNS: &str = "SELECT * FROM location";

pub(super) fn location(row: &Row) -> Result<Location, DbError> {
    let figures = Figures {
        budget_bytes: row.size("budget_bytes")?,
        used_bytes: row.size("used_bytes")?,
        free_bytes: row.size("free_bytes")?,
        floor_bytes: row.size("floor_bytes")?,
        degraded: row.text("degraded")?,
    };
    Ok(Location {
        id: row.parse("id")?,
        name: row.text("name")?,
        kind: row.parse("kind")?,
        state: row.parse("state")?,
        platform: row.text("platform")?,
        region: row.text("region")?,
        zone: row.text("zone")?,
        rack: row.text("rack")?,
        account: row.text("account")?,
        ip: row.text("ip")?,
        serial: row.text("serial")?,
        domain: row.opt_parse("domain_id")?,
        labels: row.json("labels")?,
        advertised: row.json("advertised")?,
        nic_mbps: row.size("nic_mbps")?,
        agent: row.opt_parse("agent_id")?,
        join_token: row.opt_parse("join_token_id")?,
        cert_serial: row.text("cert_serial")?,
        cert_not_after_us: row.opt_int("cert_not_after_us")?,
        revoked_us: row.opt_int("revoked_us")?,
        boot: row.opt_parse("boot")?,
        last_seen_us: row.opt_int("last_seen_us")?,
        figures,
        generation: Generation(row.size("generation")?),
        created_us: row.int("created_us")?,
    })
}

impl Tx<'_> {
    /// The location with this id.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn location(&mut self, id: LocationId) -> Result<Location, DbError> {
        let row = self.row(sql("location", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        let found = row.as_ref().map(location).transpose()?;
        found.ok_or_else(|| DbError::NotFound { what: "location", key: id.to_string() })
    }
}

impl Db {
    /// The location with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn location(&self, id: LocationId) -> Result<Option<Location>, DbError> {
        self.row(sql("location", COLUMNS).text(" WHERE id = ").arg(id))
            .await?
            .as_ref()
            .map(location)
            .transpose()
    }

    /// The location with this name, without regard to case. Also a removed one.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn location_named(&self, name: &str) -> Result<Option<Location>, DbError> {
        let stmt = sql("location", COLUMNS).text(" WHERE name_folded = ").arg(fold(name));
        self.row(stmt).await?.as_ref().map(location).transpose()
    }

    /// The location that this agent serves.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn location_of_agent(&self, agent: AgentId) -> Result<Option<Location>, DbError> {
        let stmt = sql("location", COLUMNS).text(" WHERE agent_id = ").arg(agent);
        self.row(stmt).await?.as_ref().map(location).transpose()
    }

    /// Whether this agent's key was revoked, also long ago and also if its location has a new agent.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn is_revoked(&self, agent: AgentId) -> Result<bool, DbError> {
        let select = "SELECT agent_id FROM revoked_agent WHERE agent_id = $1";
        Ok(self.row(sql("revoked_agent", select).bind(agent)).await?.is_some())
    }

    /// Agents whose key was revoked after `since_us`, the newest first, at most `most`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn revoked_agents(&self, since_us: i64, most: u32) -> Result<Vec<AgentId>, DbError> {
        let select = "SELECT agent_id FROM revoked_agent WHERE revoked_us > ";
        let stmt = sql("revoked_agent", select).arg(since_us);
        let rows = self
            .rows(
                stmt.text(" ORDER BY revoked_us DESC NULLS FIRST, agent_id NULLS FIRST LIMIT ")
                    .arg(i64::from(most)),
            )
            .await?;
        rows.iter().map(|row| row.parse("agent_id")).collect()
    }

    /// Every location by name, with all facts that selectors look at; removed ones only if asked for. A fleet is
    /// thousands of rows and selectors run in Rust: no pages.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn locations(&self, also_removed: bool) -> Result<Vec<Location>, DbError> {
        let which = if also_removed { " WHERE 1 = 1" } else { " WHERE state <> 'removed'" };
        let stmt = sql("location", COLUMNS).text(which).text(" ORDER BY name_folded");
        self.rows(stmt).await?.iter().map(location).collect()
    }

    /// Locations by name, page by page, but removed ones. `name`: the one that has it, without regard to case; `keep`: those
    /// that it says yes to.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn location_page(
        &self,
        name: Option<&str>,
        keep: Option<&(dyn Fn(&Location) -> bool + Sync)>,
        page: &PageRequest,
    ) -> Result<Page<Location>, DbError> {
        let mut after = page.key()?.map(|[after]| after);
        // Of what is sorted out in Rust nobody knows how much it takes to fill a page.
        let step = if keep.is_some() { ROWS_PER_STEP } else { page.fetch() };
        let mut found = Vec::new();
        loop {
            let stmt = sql("location", COLUMNS).text(" WHERE state <> 'removed'");
            let stmt =
                stmt.when(name.map(fold), " AND name_folded = ").when(after.take(), " AND name_folded > ");
            let rows = self.rows(stmt.text(" ORDER BY name_folded LIMIT ").arg(step)).await?;
            for row in &rows {
                let location = location(row)?;
                if keep.is_none_or(|keep| keep(&location)) {
                    found.push(location);
                }
            }
            let is_full = found.len() as u64 >= page.fetch().unsigned_abs();
            match rows.last().filter(|_| !is_full && rows.len() as u64 >= step.unsigned_abs()) {
                Some(last) => after = Some(last.text("name_folded")?),
                None => return Ok(page.page(found, |location| [fold(&location.name)])),
            }
        }
    }

    /// How many locations there are, without removed ones.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn location_count(&self) -> Result<u32, DbError> {
        let count = "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM location WHERE state <> 'removed'";
        self.row(sql("location", count)).await?.map_or(Ok(0), |row| row.size("n"))
    }

    /// Changes what an operator may change.
    ///
    /// # Errors
    /// [`DbError::NotFound`], also for the domain; [`DbError::State`] for a removed location; or a failed statement.
    pub async fn edit_location(
        &self,
        id: LocationId,
        edit: &LocationEdit,
        op: &Draft,
    ) -> Result<Location, DbError> {
        let update = "UPDATE location SET state = $1, labels = $2, rack = $3, domain_id = $4, updated_us = $5 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.location(id).await?;
                if found.state == LocationState::Removed || edit.state == Some(LocationState::Removed) {
                    let (state, allowed) =
                        (found.state.to_string(), "remove it with `location remove`; enrol again to use it");
                    return Err(DbError::State { what: "location", key: found.name, state, allowed });
                }
                if let Edit::Set(domain) = &edit.domain {
                    tx.live_domain(*domain).await?;
                }
                let mut domain = found.domain;
                edit.domain.clone().apply(&mut domain, None);
                let stmt = sql("location", update).bind(edit.state.unwrap_or(found.state));
                let stmt = stmt.bind(to_json(edit.labels.as_ref().unwrap_or(&found.labels)));
                let stmt = stmt.bind(edit.rack.as_ref().unwrap_or(&found.rack)).bind(domain);
                tx.run(stmt.bind(tx.now_us()).bind(id)).await?;
                tx.changed(Change::Location(id));
                tx.record(op).await?;
                tx.location(id).await
            })
        })
        .await
    }

    /// Takes a location out of the fleet for good: revokes its agent's key, forgets what is wanted and observed there.
    /// Returns the record as it was; the caller closes the live connection.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement. Doing it twice is no error.
    pub async fn remove_location(&self, id: LocationId, op: &Draft) -> Result<Location, DbError> {
        let update = "UPDATE location SET state = 'removed', agent_id = NULL, boot = NULL, \
             revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE id = $2";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.location(id).await?;
                if let Some(agent) = found.agent {
                    revoke_agent(tx, agent, id).await?;
                }
                tx.run(sql("intent", "DELETE FROM intent WHERE location_id = $1").bind(id)).await?;
                tx.run(sql("placement", "DELETE FROM placement WHERE location_id = $1").bind(id)).await?;
                tx.run(sql("lease", "DELETE FROM lease WHERE location_id = $1").bind(id)).await?;
                tx.run(sql("entry", "DELETE FROM entry WHERE location_id = $1").bind(id)).await?;
                tx.run(sql("key_given", "DELETE FROM key_given WHERE location_id = $1").bind(id)).await?;
                tx.run(sql("location", update).bind(tx.now_us()).bind(id)).await?;
                for change in [Change::Location(id), Change::Intents, Change::Entries(id)] {
                    tx.changed(change);
                }
                tx.record(op).await?;
                Ok(found)
            })
        })
        .await
    }

    /// Revokes the agent's key, for example after its token was shown twice; the location stays and waits for a new
    /// enrolment under its name. The caller closes the live connection.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn revoke_location(&self, id: LocationId, op: &Draft) -> Result<Location, DbError> {
        let update = "UPDATE location SET agent_id = NULL, revoked_us = $1, updated_us = $1 WHERE id = $2";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.location(id).await?;
                if let Some(agent) = found.agent {
                    revoke_agent(tx, agent, id).await?;
                }
                tx.run(sql("location", update).bind(tx.now_us()).bind(id)).await?;
                tx.changed(Change::Location(id));
                tx.record(op).await?;
                Ok(found)
            })
        })
        .await
    }

    /// Notes the begin of a session.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn begin_session(&self, id: LocationId, facts: &SessionFacts) -> Result<(), DbError> {
        let update = "UPDATE location SET boot = $1, advertised = $2, nic_mbps = $3, last_seen_us = $4, updated_us = $4 \
             WHERE id = $5";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("location", update).bind(facts.boot).bind(to_json(&facts.advertised));
                let changed = tx.run(stmt.bind(facts.nic_mbps).bind(tx.now_us()).bind(id)).await?;
                if changed == 0 {
                    return Err(DbError::NotFound { what: "location", key: id.to_string() });
                }
                tx.changed(Change::Location(id));
                Ok(())
            })
        })
        .await
    }

    /// Notes figures and signs of life of many locations in one transaction; unknown ones are passed over. Call it once a
    /// minute, not per pulse.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn record_figures(&self, reports: &[(LocationId, i64, Figures)]) -> Result<(), DbError> {
        let update = "UPDATE location SET last_seen_us = $1, budget_bytes = $2, used_bytes = $3, free_bytes = $4, \
             floor_bytes = $5, degraded = $6 WHERE id = $7";
        self.write_tx(move |tx| {
            Box::pin(async move {
                for (id, seen_us, figures) in reports {
                    let stmt = sql("location", update).bind(*seen_us).bind(figures.budget_bytes);
                    let stmt =
                        stmt.bind(figures.used_bytes).bind(figures.free_bytes).bind(figures.floor_bytes);
                    tx.run(stmt.bind(&figures.degraded).bind(*id)).await?;
                    tx.changed(Change::Location(*id));
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes a sign of life of many locations in one statement. Announces nothing: nobody waits for it.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn record_seen(&self, locations: &[LocationId], seen_us: i64) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                for ids in locations.chunks(SEEN_PER_UPDATE) {
                    let update = sql("location", "UPDATE location SET last_seen_us = ").arg(seen_us);
                    tx.run(update.text(" WHERE id IN ").list(ids.iter().copied())).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// A generation for the next plan: above the stored one and above `followed` (what the agent says it follows, which is
    /// higher after an older backup was restored).
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn bump_generation(&self, id: LocationId, followed: Generation) -> Result<Generation, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let next = Generation(tx.location(id).await?.generation.max(followed).0.saturating_add(1));
                let update = "UPDATE location SET generation = $1 WHERE id = $2";
                tx.run(sql("location", update).bind(next).bind(id)).await?;
                Ok(next)
            })
        })
        .await
    }

    /// Stores generations that were counted in memory, of many locations in one transaction. A lower one than the stored
    /// is passed over.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn record_generations(&self, generations: &[(LocationId, Generation)]) -> Result<(), DbError> {
        let update = "UPDATE location SET generation = $1 WHERE id = $2 AND generation < $1";
        self.write_tx(move |tx| {
            Box::pin(async move {
                for (id, generation) in generations {
                    tx.run(sql("location", update).bind(*generation).bind(*id)).await?;
                }
                Ok(())
            })
        })
        .await
    }
}

pub(super) async fn revoke_agent(tx: &mut Tx<'_>, agent: AgentId, of: LocationId) -> Result<(), DbError> {
    let insert = "INSERT INTO revoked_agent (agent_id, location_id, revoked_us) VALUES ($1, $2, $3) \
         ON CONFLICT (agent_id) DO NOTHING";
    tx.run(sql("revoked_agent", insert).bind(agent).bind(of).bind(tx.now_us())).await.map(|_| ())
}
