//! Finding a controller and getting a connection to it.
//!
//! **What.** Tries every address of every configured controller in random order. A certificate that ended is renewed
//! first, over the enrolment door.
//! **Why random.** After a controller is lost, its agents spread over the others instead of storming the first in the list.
//! **Invariants.** Only a controller below our CA, with the controller's name, is ever connected.

use std::net::SocketAddr;
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use quinn::{Connection, ConnectionError};
use rand::seq::SliceRandom as _;

use super::credentials::Credentials;
use super::enrol::{self, EnrolError};
use super::tls::{self, CONTROLLER_NAME, TlsError};
use crate::transfer::endpoint::Endpoint;

/// Time for one handshake. A controller that is away does not answer at all; the next address must get its turn soon.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS alerts with which a server says no to a client's certificate (RFC 8446, 6.2).
const ALERT_BAD_CERTIFICATE: u8 = 42;
const ALERT_CERTIFICATE_REVOKED: u8 = 44;
const ALERT_CERTIFICATE_EXPIRED: u8 = 45;
const ALERT_CERTIFICATE_UNKNOWN: u8 = 46;
const ALERT_UNKNOWN_CA: u8 = 48;
const ALERT_ACCESS_DENIED: u8 = 49;
/// A signature is wrong. Every controller's CA has the same name, so this is what a certificate of another one meets.
const ALERT_DECRYPT_ERROR: u8 = 51;
/// QUIC puts TLS alerts at 0x100 + alert (RFC 9001, 4.8).
const CRYPTO_ERROR: u64 = 0x100;

/// Why there is no connection, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address answered.
    #[error("no controller reached, last {address}: {why}")]
    Unreachable {
        /// The last address tried.
        address: String,
        /// What happened.
        why: String,
    },
    /// The connection ended.
    #[error("connection lost: {why}")]
    Lost {
        /// What happened.
        why: String,
    },
    /// The controller closed it for a reason.
    #[error("the controller closed the connection: {text} ({fault})")]
    Closed {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
    /// Whoever answers there does not show a certificate that we believe.
    #[error("{address} {doubt}")]
    Doubtful {
        /// The address.
        address: String,
        /// What is wrong with it.
        doubt: Doubt,
    },
    /// The certificate ended and no new one was given.
    #[error("our certificate has ended and is not renewed: {0}")]
    Renewal(#[source] EnrolError),
    /// TLS settings.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ConnectError {
    /// The fault, if waiting a few seconds will not heal it.
    #[must_use]
    pub fn fault(&self) -> Option<FaultCode> {
        match self {
            Self::Closed { fault, .. } | Self::Renewal(EnrolError::Refused { fault, .. }) => {
                Some(*fault).filter(|fault| !matches!(fault, FaultCode::Closing | FaultCode::Busy))
            }
            Self::Renewal(EnrolError::WrongController { doubt: Doubt::Stranger { .. }, .. }) => {
                Some(FaultCode::Protocol)
            }
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Doubtful { .. }
            | Self::Renewal(_)
            | Self::Tls(_) => None,
        }
    }
}

/// Why we do not believe a controller's certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Doubt {
    /// By our clock it is not valid yet, or not any more: one of two clocks is wrong, far more often than a certificate.
    #[error(
        "shows a certificate that is not valid at this host's time ({why}): compare the clocks of both (NTP)"
    )]
    Time {
        /// What TLS said.
        why: String,
    },
    /// It is not signed by our CA, or has another name.
    #[error(
        "is not the controller that our token or certificate is from ({why}): check the address, or enrol with a new \
         token of that controller"
    )]
    Stranger {
        /// What TLS said.
        why: String,
    },
}

impl Doubt {
    /// Our verdict on a certificate, if that is what ended the connection.
    #[must_use]
    pub fn of(reason: &ConnectionError) -> Option<Self> {
        let ConnectionError::TransportError(error) = reason else { return None };
        // Alerts that we sent; what the other side sent comes as `ConnectionClosed`.
        u64::from(error.code).checked_sub(CRYPTO_ERROR).and_then(|alert| u8::try_from(alert).ok())?;
        let why = error.reason.clone();
        // The words of rustls for `Expired` and `NotValidYet`; the alert is the same as for others.
        let time = ["expired", "not valid yet"].iter().any(|words| why.to_lowercase().contains(words));
        Some(if time { Self::Time { why } } else { Self::Stranger { why } })
    }
}

/// What the end of a connection means.
#[must_use]
pub fn lost(reason: &ConnectionError) -> ConnectError {
    let closed = |fault, text: &[u8]| {
        let text: String =
            String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(512).collect();
        ConnectError::Closed { fault, text }
    };
    let alert = |code: u64| code.checked_sub(CRYPTO_ERROR).and_then(|alert| u8::try_from(alert).ok());
    match reason {
        ConnectionError::ApplicationClosed(close) => match u16::try_from(close.error_code.into_inner()) {
            Ok(number) if number != 0 => closed(FaultCode::from_number(number), &close.reason),
            _ => ConnectError::Lost { why: reason.to_string() },
        },
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code.into()) {
            Some(
                ALERT_BAD_CERTIFICATE
                | ALERT_CERTIFICATE_REVOKED
                | ALERT_CERTIFICATE_UNKNOWN
                | ALERT_UNKNOWN_CA
                | ALERT_ACCESS_DENIED
                | ALERT_DECRYPT_ERROR,
            ) => closed(FaultCode::Denied, b"it does not accept our certificate"),
            _ => ConnectError::Lost { why: reason.to_string() },
        },
        _ => ConnectError::Lost { why: reason.to_string() },
    }
}

/// Whether the other side said that our certificate has ended.
#[must_use]
pub fn says_expired(reason: &ConnectionError) -> bool {
    let expired = CRYPTO_ERROR + u64::from(ALERT_CERTIFICATE_EXPIRED);
    matches!(reason, ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == expired)
}

/// A connection to one of `controllers`, with a certificate that has not ended. Cancel safe.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    endpoint: &Endpoint,
    credentials: &Credentials,
    controllers: &[String],
) -> Result<Connection, ConnectError> {
    if credentials.ends_in().is_zero() {
        renew(endpoint, credentials, controllers).await?;
    }
    let mut order: Vec<&String> = controllers.iter().collect();
    order.shuffle(&mut rand::rng());
    let mut last =
        ConnectError::Unreachable { address: "(none)".into(), why: "no controller is configured".into() };
    let config = endpoint.client_config(tls::session(credentials.key(), &credentials.enrolment())?);
    for name in order {
        let unreachable = |why: String| ConnectError::Unreachable { address: name.clone(), why };
        let addresses: Vec<SocketAddr> = match tokio::net::lookup_host(name).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                last = unreachable(error.to_string());
                continue;
            }
        };
        for address in addresses {
            let connecting = match endpoint.quinn().connect_with(config.clone(), address, CONTROLLER_NAME) {
                Ok(connecting) => connecting,
                Err(error) => {
                    last = unreachable(error.to_string());
                    continue;
                }
            };
            last = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(reason)) if says_expired(&reason) => {
                    credentials.mark_ended();
                    return Err(ConnectError::Lost { why: "our certificate has ended".into() });
                }
                Ok(Err(reason)) => match (lost(&reason), Doubt::of(&reason)) {
                    (closed @ ConnectError::Closed { .. }, _) => return Err(closed),
                    (_, Some(doubt)) => ConnectError::Doubtful { address: name.clone(), doubt },
                    _ => unreachable(reason.to_string()),
                },
                Err(_) => unreachable(format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs())),
            };
        }
    }
    Err(last)
}

/// Gets a new certificate by the enrolment door.
///
/// # Errors
/// [`ConnectError::Renewal`].
pub async fn renew(
    endpoint: &Endpoint,
    credentials: &Credentials,
    controllers: &[String],
) -> Result<(), ConnectError> {
    tracing::info!("our certificate has ended; asking for a new one with the enrolled key");
    let old = credentials.enrolment();
    let data_dir = credentials.data_dir();
    let new = enrol::renew(endpoint, data_dir, controllers, credentials.key(), &old)
        .await
        .map_err(ConnectError::Renewal)?;
    credentials.replace(new);
    Ok(())
}
