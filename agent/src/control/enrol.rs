//! Getting a certificate: with a join token, or with the enrolled key after the old one ended.
//!
//! **What.** One connection on ALPN `hearth-enrol/1`, one request, one answer.
//! **Why the same way for both.** After a weekend's outage an agent has a key and an ended certificate; the CA's
//! fingerprint, which it keeps, is all it needs to believe the controller.
//! **Invariants.** The key never leaves this host; a chain is written down only if it is for our key and ends in the CA
//! that was pinned.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hearth_protocol::digest::CaFingerprint;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::data::FaultV1;
use hearth_protocol::message::enrol::{EnrolReply, EnrolRequest, EnrolV1, JoinToken, LocationFacts};

use super::connect::Doubt;
use super::identity::{AgentKey, Enrolment, IdentityError};
use super::tls::{self, CONTROLLER_NAME, TlsError};
use crate::transfer::endpoint::Endpoint;
use crate::transfer::frames::{self, WireError};

/// Time for one try at one address: several round trips on the worst line, and the signing.
const TRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No address answered.
    #[error("no controller answered at {address}: {why}; check the address, udp port 7443 and firewalls")]
    Unreachable {
        /// The last address tried.
        address: String,
        /// What happened.
        why: String,
    },
    /// It is not the controller that made the token.
    #[error("{address} {doubt}")]
    WrongController {
        /// The address.
        address: String,
        /// What is wrong with it.
        doubt: Doubt,
    },
    /// The controller said no.
    #[error("the controller refused: {text} ({fault})")]
    Refused {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
    /// The controller does not speak our language.
    #[error("the controller's answer is not readable: {0}")]
    Wire(#[from] WireError),
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS settings.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Enrols with a join token and writes key and certificate below `data_dir`.
///
/// A key that is already there is used again, so a try whose answer was lost can be repeated with a new token.
///
/// # Errors
/// [`EnrolError`]; nothing but the key has been written then.
pub async fn join(
    endpoint: &Endpoint,
    data_dir: &Path,
    controllers: &[String],
    token: &JoinToken,
    facts: &LocationFacts,
) -> Result<Enrolment, EnrolError> {
    let key = AgentKey::load_or_create(data_dir)?;
    let request = EnrolV1 { token_secret: Some(token.secret), csr_der: key.request()?, facts: facts.clone() };
    let mut enrolment = ask(endpoint, controllers, token.ca, &key, request).await?;
    enrolment.controllers = controllers.to_vec();
    enrolment.save(data_dir)?;
    Ok(enrolment)
}

/// Gets a new certificate for the enrolled key, also after the old one ended, and writes it down.
///
/// # Errors
/// [`EnrolError::Refused`] with `Denied` if the key is revoked or ended too long ago.
pub async fn renew(
    endpoint: &Endpoint,
    data_dir: &Path,
    controllers: &[String],
    key: &AgentKey,
    old: &Enrolment,
) -> Result<Enrolment, EnrolError> {
    let facts = LocationFacts::default();
    let request = EnrolV1 { token_secret: None, csr_der: key.request()?, facts };
    let new = ask(endpoint, controllers, old.ca(), key, request).await?;
    let enrolment = Enrolment { chain: new.chain, ..old.clone() };
    enrolment.save(data_dir)?;
    Ok(enrolment)
}

async fn ask(
    endpoint: &Endpoint,
    controllers: &[String],
    ca: CaFingerprint,
    key: &AgentKey,
    request: EnrolV1,
) -> Result<Enrolment, EnrolError> {
    let config = endpoint.client_config(tls::enrolment(ca)?);
    let request = EnrolRequest::from(request);
    let none = || EnrolError::Unreachable { address: "(none given)".into(), why: "no address".into() };
    let mut last = none();
    for name in controllers {
        let unreachable = |why: String| EnrolError::Unreachable { address: name.clone(), why };
        let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(name).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                last = unreachable(error.to_string());
                continue;
            }
        };
        for address in addresses {
            let answer =
                tokio::time::timeout(TRY_TIMEOUT, exchange(endpoint, &config, address, &request)).await;
            last = match answer {
                Ok(Ok(EnrolReply::Enrolled(reply))) => {
                    let chain = key.check_chain(&reply.chain, ca)?;
                    return Ok(Enrolment { location: reply.location, controllers: Vec::new(), chain });
                }
                Ok(Ok(EnrolReply::Fault(FaultV1 { fault, text, .. }))) => {
                    return Err(EnrolError::Refused { fault, text });
                }
                Ok(Err(ExchangeError::Tls(doubt))) => {
                    EnrolError::WrongController { address: name.clone(), doubt }
                }
                Ok(Err(ExchangeError::Link(why))) => unreachable(why),
                Ok(Err(ExchangeError::Wire(error))) => error.into(),
                Err(_) => unreachable(format!("no answer within {} s", TRY_TIMEOUT.as_secs())),
            };
        }
    }
    Err(last)
}

enum ExchangeError {
    Tls(Doubt),
    Link(String),
    Wire(WireError),
}

async fn exchange(
    endpoint: &Endpoint,
    config: &quinn::ClientConfig,
    address: SocketAddr,
    request: &EnrolRequest,
) -> Result<EnrolReply, ExchangeError> {
    let link = |error: &dyn std::fmt::Display| ExchangeError::Link(error.to_string());
    let connecting =
        endpoint.quinn().connect_with(config.clone(), address, CONTROLLER_NAME).map_err(|e| link(&e))?;
    let connection = connecting
        .await
        .map_err(|error| Doubt::of(&error).map_or_else(|| link(&error), ExchangeError::Tls))?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| link(&e))?;
    frames::write(&mut send, request).await.map_err(ExchangeError::Wire)?;
    send.finish().map_err(|e| link(&e))?;
    let reply = frames::read(&mut recv).await.map_err(ExchangeError::Wire)?;
    connection.close(quinn::VarInt::from_u32(0), b"done");
    Ok(reply)
}
