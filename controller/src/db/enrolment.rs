//! How a location comes to be, and how its certificate is renewed.
//!
//! **What.** [`Db::enrol`] spends a join token, makes or takes over the location, has the certificate signed and records
//! it, all in one transaction. [`Db::record_certificate`] notes a renewal.
//! **Why the signature happens inside.** Signed after the commit, a crash would spend the token for nothing; signed
//! before, a refused token would leave a valid certificate. Signing takes well under a millisecond and has no other effect,
//! so a repeated transaction only signs again.
//! **Invariants.** A revoked key never enrols again. A name that a living location has is not taken over by another key.

use hearth_protocol::digest::AgentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::{LocationKind, LocationState};

use super::changes::Change;
use super::error::DbError;
use super::grams::fold;
use super::ids::new_id;
use super::join_tokens::{JoinToken, TokenFault, spend};
use super::locations::{COLUMNS, Location, location};
use super::operations::{Draft, WhoKind};
use super::sql::{sql, to_json};
use super::store::{Db, Tx};
use crate::logic::join::{self, JoinError};

/// What an agent shows when it enrols.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolment {
    /// BLAKE3 of the token's secret, hex.
    pub secret_hash: String,
    /// Its key.
    pub agent: AgentId,
    /// What it says about its location; checked lengths.
    pub facts: LocationFacts,
}

/// A certificate's facts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// Serial number, hex.
    pub serial: String,
    /// End, microseconds since the epoch.
    pub not_after_us: i64,
}

/// Why an agent was not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token does not let it in.
    #[error(transparent)]
    Token(#[from] TokenFault),
    /// The token presets what no location has.
    #[error(transparent)]
    Preset(#[from] JoinError),
    /// The key was revoked.
    #[error("the agent's key is revoked: delete the key on the host and enrol with a new one")]
    Revoked,
    /// Another agent serves a location of this name.
    #[error("location {name} exists with another key: remove it first, or give this host another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The certificate could not be made.
    #[error("cannot sign the certificate: {0}")]
    Sign(String),
    /// The store failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Db {
    /// Lets an agent in. `sign` makes its certificate for the location; it may be called several times and only the last
    /// result counts.
    ///
    /// # Errors
    /// [`EnrolError`]; nothing has changed then and the token keeps its use.
    pub async fn enrol<C: Send>(
        &self,
        enrolment: &Enrolment,
        sign: impl Fn(&Location) -> Result<(Certificate, C), String> + Send + Sync,
    ) -> Result<(Location, C), EnrolError> {
        let (sign, fresh) = (&sign, new_id());
        self.write_tx(move |tx| {
            Box::pin(async move {
                let facts = &enrolment.facts;
                let token = spend(tx, &enrolment.secret_hash, &facts.name).await??;
                let revoked = sql("revoked_agent", "SELECT agent_id FROM revoked_agent WHERE agent_id = $1");
                if tx.row(revoked.bind(enrolment.agent)).await?.is_some() {
                    return Err(EnrolError::Revoked);
                }
                let id = place(tx, enrolment, fresh).await?;
                describe(tx, id, enrolment, &token).await?;
                let (certificate, signed) = sign(&tx.location(id).await?).map_err(EnrolError::Sign)?;
                put_certificate(tx, id, &certificate).await?;
                let who = enrolment.agent.to_string();
                let op =
                    Draft::new(WhoKind::Agent, who, "location.enrol").on("location", id, facts.name.as_str());
                let details =
                    serde_json::json!({ "join_token": token.id, "certificate": certificate.serial });
                tx.record(&op.with(details)).await?;
                tx.changed(Change::Location(id));
                Ok((tx.location(id).await?, signed))
            })
        })
        .await
    }

    /// Notes a renewed certificate.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn record_certificate(&self, id: LocationId, certificate: &Certificate) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(put_certificate(tx, id, certificate))).await
    }
}

/// The row that this agent may have: its own, a removed or revoked one of its name, or a new one.
async fn place(tx: &mut Tx<'_>, enrolment: &Enrolment, fresh: LocationId) -> Result<LocationId, EnrolError> {
    let name = &enrolment.facts.name;
    let own = tx.row(sql("location", COLUMNS).text(" WHERE agent_id = ").arg(enrolment.agent)).await?;
    let own = own.as_ref().map(location).transpose()?;
    let named = tx.row(sql("location", COLUMNS).text(" WHERE name_folded = ").arg(fold(name))).await?;
    let named = named.as_ref().map(location).transpose()?;
    match (own, named) {
        (Some(own), Some(named)) if own.id != named.id => Err(EnrolError::NameTaken { name: name.clone() }),
        (Some(own), _) => Ok(own.id),
        (None, Some(named)) if named.agent.is_some() => Err(EnrolError::NameTaken { name: name.clone() }),
        (None, Some(named)) => Ok(named.id),
        (None, None) => {
            let insert = "INSERT INTO location (id, name, name_folded, kind, state, platform, region, zone, rack, \
                 account, ip, serial, labels, advertised, nic_mbps, cert_serial, budget_bytes, used_bytes, free_bytes, \
                 floor_bytes, degraded, generation, created_us, updated_us) VALUES ($1, $2, $3, 'host', 'active', '', \
                 '', '', '', '', '', '', '{}', '[]', 0, '', 0, 0, 0, 0, '', 0, $4, $4)";
            tx.run(sql("location", insert).bind(fresh).bind(name).bind(fold(name)).bind(tx.now_us())).await?;
            Ok(fresh)
        }
    }
}

/// Writes what the agent says, with the token's presets over it. A location that was removed is active again.
async fn describe(
    tx: &mut Tx<'_>,
    id: LocationId,
    enrolment: &Enrolment,
    token: &JoinToken,
) -> Result<(), EnrolError> {
    let presets = token.presets.iter().map(|(field, value)| (field.as_str(), value.as_str()));
    let facts = &join::with_presets(enrolment.facts.clone(), presets)?;
    let labels: std::collections::BTreeMap<_, _> = facts.labels.iter().cloned().collect();
    let update = "UPDATE location SET name = $1, name_folded = $2, kind = $3, platform = $4, region = $5, zone = $6, \
         rack = $7, account = $8, ip = $9, serial = $10, labels = $11, agent_id = $12, join_token_id = $13, \
         revoked_us = NULL, state = CASE WHEN state = $14 THEN $15 ELSE state END, updated_us = $16 WHERE id = $17";
    let stmt = sql("location", update).bind(&facts.name).bind(fold(&facts.name));
    let stmt = stmt.bind(facts.kind.unwrap_or(LocationKind::Host)).bind(&facts.platform).bind(&facts.region);
    let stmt =
        stmt.bind(&facts.zone).bind(&facts.rack).bind(&facts.account).bind(&facts.ip).bind(&facts.serial);
    let stmt = stmt.bind(to_json(&labels)).bind(enrolment.agent).bind(token.id);
    let stmt = stmt.bind(LocationState::Removed).bind(LocationState::Active).bind(tx.now_us()).bind(id);
    tx.run(stmt).await?;
    Ok(())
}

async fn put_certificate(tx: &mut Tx<'_>, id: LocationId, certificate: &Certificate) -> Result<(), DbError> {
    let update =
        "UPDATE location SET cert_serial = $1, cert_not_after_us = $2, updated_us = $3 WHERE id = $4";
    let stmt = sql("location", update).bind(&certificate.serial).bind(certificate.not_after_us);
    if tx.run(stmt.bind(tx.now_us()).bind(id)).await? == 0 {
        return Err(DbError::NotFound { what: "location", key: id.to_string() });
    }
    tx.changed(Change::Location(id));
    Ok(())
}
