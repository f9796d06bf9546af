//! Enrolment and renewal: who gets a certificate.
//!
//! **What.** The `hearth-enrol/1` door (one request, one reply) and renewals inside a session. Token, name and key are
//! checked in the database transaction that signs.
//! **Why answers differ.** An operator with a wrong token must know what to do; whoever guesses tokens learns nothing,
//! because a secret has 256 bits and wrong ones are counted per source.
//! **Invariants.** Names in a CSR are ignored. A token's use is spent in the transaction that signs, so a token for one use
//! admits one key. A revoked key gets nothing here, whatever it shows.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::data::FaultV1;
use hearth_protocol::message::enrol::{EnrolReply, EnrolRequest, EnrolV1, EnrolledV1, LocationFacts};
use hearth_protocol::words::LocationState;
use quinn::{Connection, VarInt};
use tokio::time::timeout;

use super::Shared;
use super::ca::{AgentCertificate, CaError};
use super::endpoint::source_of;
use super::frames::{FrameReader, StreamError, send};
use super::registry::Session;
use crate::clock;
use crate::db::DbError;
use crate::db::enrolment::{Certificate, EnrolError, Enrolment};
use crate::db::join_tokens::TokenFault;
use crate::db::operations::{Draft, WhoKind};
use crate::logic::join::{self, JoinError};

/// Largest request: a CSR and 64 labels.
const REQUEST_BYTES_MAX: usize = 96 * 1024;
/// Time for the request, and for the agent to read the reply.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);
/// Enrolments of one source at once and per second; a site behind one address may enrol thousands of hosts in a minute.
pub(super) const ATTEMPTS_BURST: u32 = 8192;
/// See [`ATTEMPTS_BURST`].
pub(super) const ATTEMPTS_PER_S: u32 = 256;
/// Refused enrolments of one source at once and per second.
pub(super) const REFUSALS_BURST: u32 = 20;
/// See [`REFUSALS_BURST`].
pub(super) const REFUSALS_PER_S: u32 = 1;

/// Why no certificate is given.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefuseError {
    /// Too many attempts of one source.
    #[error("too many enrolments from this address: wait a minute")]
    TooMany,
    /// What the agent says about itself is not acceptable.
    #[error(transparent)]
    Facts(#[from] JoinError),
    /// The certificate request is not acceptable.
    #[error(transparent)]
    Csr(#[from] CaError),
    /// The token or the name does not admit it.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The key is not enrolled, or was revoked.
    #[error(
        "this key is not enrolled here, or was revoked: enrol with a join token (`hearth location token create`)"
    )]
    NotEnrolled,
    /// The certificate ran out too long ago.
    #[error(
        "this key's certificate ended more than 30 days ago: enrol with a join token (`hearth location token create`)"
    )]
    TooLate,
    /// The request is for another key than the session's.
    #[error("the certificate request is for another key than the session's")]
    WrongKey,
    /// The database failed.
    #[error("the controller cannot look the agent up")]
    Db(#[from] DbError),
}

impl RefuseError {
    fn fault(&self) -> FaultCode {
        match self {
            Self::TooMany => FaultCode::Busy,
            Self::Facts(_) => FaultCode::Protocol,
            Self::Csr(CaError::Csr { .. }) => FaultCode::Protocol,
            Self::Csr(_) | Self::Db(_) | Self::Enrol(EnrolError::Db(_) | EnrolError::Sign(_)) => {
                FaultCode::Internal
            }
            Self::Enrol(_) | Self::NotEnrolled | Self::TooLate | Self::WrongKey => FaultCode::Denied,
        }
    }
}

/// Serves a `hearth-enrol/1` connection.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let address = connection.remote_address();
    if let Err(error) = exchange(&shared, &connection).await {
        tracing::info!(%address, %error, "an enrolment broke off");
    }
    connection.close(VarInt::from_u32(0), b"done");
}

async fn exchange(shared: &Arc<Shared>, connection: &Connection) -> Result<(), StreamError> {
    let accepted = timeout(EXCHANGE_MAX, connection.accept_bi()).await.map_err(|_| StreamError::TooSlow)?;
    let (mut writer, recv) = accepted.map_err(|error| StreamError::Read(error.into()))?;
    let EnrolRequest::Enrol(request) = FrameReader::new(recv, REQUEST_BYTES_MAX).expect(EXCHANGE_MAX).await?;
    let reply = match Box::pin(decide(shared, connection, request)).await {
        Ok((location, chain)) => EnrolReply::Enrolled(EnrolledV1 { location, chain }),
        Err(error) => {
            let fault = error.fault();
            let text = if fault == FaultCode::Internal {
                tracing::error!(%error, "an enrolment failed");
                "the controller failed; its log says more".to_owned()
            } else {
                error.to_string()
            };
            let retry_after_ms = if fault == FaultCode::Busy { 60_000 } else { 0 };
            EnrolReply::Fault(FaultV1 { fault, text, retry_after_ms })
        }
    };
    send(&mut writer, &reply).await?;
    // Fails only if the agent has gone already.
    drop(writer.finish());
    // The agent closes when it has read the reply; a close from here could overtake it.
    if timeout(EXCHANGE_MAX, connection.closed()).await.is_err() {
        tracing::debug!("an enrolled agent did not close its connection");
    }
    Ok(())
}

async fn decide(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: EnrolV1,
) -> Result<(LocationId, Vec<Vec<u8>>), RefuseError> {
    let address = connection.remote_address();
    let (source, now_ms) = (source_of(address), shared.now_ms());
    if !shared.enrol_attempts.lock().unwrap_or_else(PoisonError::into_inner).take(source, now_ms) {
        return Err(RefuseError::TooMany);
    }
    let name = request.facts.name.clone();
    let how = if request.token_secret.is_some() { "token" } else { "key" };
    let decided = match request.token_secret {
        Some(secret) => {
            let hash = blake3::hash(&secret).to_hex().to_string();
            join_with_token(shared, hash, &request.csr_der, request.facts).await
        }
        None => renew_with_key(shared, &request.csr_der).await,
    };
    match &decided {
        Ok((location, _)) => {
            metrics::counter!(super::metrics::CERTIFICATES, "how" => how).increment(1);
            tracing::info!(%location, name, how, %address, "an agent got a certificate");
        }
        Err(error) => {
            metrics::counter!(super::metrics::ENROLMENTS_REFUSED).increment(1);
            tracing::warn!(name, %address, %error, "an enrolment was refused");
            let counted =
                shared.enrol_refusals.lock().unwrap_or_else(PoisonError::into_inner).take(source, now_ms);
            if !counted {
                return Err(RefuseError::TooMany);
            }
            show_refusal(shared, error, &name, &address.to_string()).await;
        }
    }
    decided
}

async fn join_with_token(
    shared: &Arc<Shared>,
    secret_hash: String,
    csr_der: &[u8],
    facts: LocationFacts,
) -> Result<(LocationId, Vec<Vec<u8>>), RefuseError> {
    join::check_facts(&facts)?;
    let authority = shared.identity.authority();
    let agent = authority.csr_agent(csr_der)?;
    let sign = |_: &crate::db::locations::Location| {
        let made = authority.agent_certificate(csr_der, clock::unix_us(), shared.config.agent_life);
        let made = made.map_err(|error| error.to_string())?;
        Ok((record_of(&made), made.chain))
    };
    let (location, chain) = shared.db.enrol(&Enrolment { secret_hash, agent, facts }, sign).await?;
    shared.location_changed(location.id);
    Ok((location.id, chain))
}

async fn renew_with_key(
    shared: &Arc<Shared>,
    csr_der: &[u8],
) -> Result<(LocationId, Vec<Vec<u8>>), RefuseError> {
    let agent = shared.identity.authority().csr_agent(csr_der)?;
    let known = shared.db.location_of_agent(agent).await?;
    let usable = known.filter(|at| at.state != LocationState::Removed && at.revoked_us.is_none());
    let location = usable.ok_or(RefuseError::NotEnrolled)?;
    let now_us = clock::unix_us();
    if !location.cert_not_after_us.is_some_and(|end_us| join::may_renew(end_us, now_us)) {
        return Err(RefuseError::TooLate);
    }
    let made = certify(shared, location.id, csr_der, now_us).await?;
    Ok((location.id, made.chain))
}

async fn certify(
    shared: &Arc<Shared>,
    location: LocationId,
    csr_der: &[u8],
    now_us: i64,
) -> Result<AgentCertificate, RefuseError> {
    let made = shared.identity.authority().agent_certificate(csr_der, now_us, shared.config.agent_life)?;
    shared.db.record_certificate(location, &record_of(&made)).await?;
    Ok(made)
}

fn record_of(made: &AgentCertificate) -> Certificate {
    Certificate { serial: made.serial.clone(), not_after_us: made.not_after_us }
}

/// Renews the certificate of a live session; the session then lives as long as the new certificate.
///
/// # Errors
/// [`RefuseError`]; the session goes on with the old certificate.
pub(super) async fn renew_in_session(
    shared: &Arc<Shared>,
    session: &Session,
    csr_der: &[u8],
) -> Result<Vec<Vec<u8>>, RefuseError> {
    if shared.identity.authority().csr_agent(csr_der)? != session.agent {
        return Err(RefuseError::WrongKey);
    }
    let known = shared.db.location_of_agent(session.agent).await?;
    if !known.is_some_and(|at| at.id == session.location && at.revoked_us.is_none()) {
        return Err(RefuseError::NotEnrolled);
    }
    let now_us = clock::unix_us();
    let made = certify(shared, session.location, csr_der, now_us).await?;
    let left_ms = u64::try_from(made.not_after_us.saturating_sub(now_us) / 1000).unwrap_or(0);
    session.extend(shared.now_ms() + left_ms);
    metrics::counter!(super::metrics::CERTIFICATES, "how" => "session").increment(1);
    tracing::debug!(location = %session.location, "renewed a certificate");
    Ok(made.chain)
}

/// What must not go unseen: a token that was shown once more, and a name that somebody else has.
async fn show_refusal(shared: &Shared, error: &RefuseError, name: &str, address: &str) {
    let action = match error {
        RefuseError::Enrol(EnrolError::Token(TokenFault::UsedUp(_))) => "join_token.reuse",
        RefuseError::Enrol(EnrolError::NameTaken { .. }) => "location.enrol",
        RefuseError::Enrol(EnrolError::Token(_) | EnrolError::Revoked) => "location.enrol",
        _ => return,
    };
    let name: String = name.chars().filter(|c| !c.is_control()).take(256).collect();
    let op = Draft::new(WhoKind::Agent, address, action).on("location", "", name).failed(error);
    if let Err(error) = shared.db.record(&op).await {
        tracing::error!(%error, "cannot record a refused enrolment");
    }
}
