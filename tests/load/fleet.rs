//! Keys, certificates and the endpoint of the simulated agents.
//!
//! **What.** Every agent enrols with the same join token, as a rollout would.
//! **Why one endpoint.** One UDP socket carries all connections; each has its own TLS identity and the settings of a real
//! agent's connection, which decide how often the controller is woken up.
//! **Invariants.** Nothing is skipped: each certificate comes from the controller's CA over `hearth-enrol/1`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use anyhow::{Context, Result, bail};
use futures::stream::{StreamExt, TryStreamExt};
use hearth_agent::transfer::endpoint::Endpoint;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::enrol::EnrolRequest;
use hearth_protocol::message::enrol::{EnrolReply, EnrolV1, JoinToken, LocationFacts};
use hearth_protocol::version::{ALPN, ALPN_ENROL};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::session::{read, write};

/// Name in the controller's certificate.
pub(crate) const SERVER_NAME: &str = "controller.hearth.internal";
/// Enrolments at once.
const ENROL_PARALLEL: usize = 16;

/// What all sessions count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) up: AtomicUsize,
    pub(crate) welcomes: AtomicUsize,
    pub(crate) lost: AtomicUsize,
    pub(crate) last_welcome_unix_ms: AtomicU64,
}

/// One enrolled agent.
pub(crate) struct Agent {
    pub(crate) location: LocationId,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) config: quinn::ClientConfig,
}

/// Enrols `n` agents.
pub(crate) async fn enrol(ca: &Path, controller: SocketAddr, token: &str, n: usize) -> Result<Vec<Agent>> {
    let ca = CertificateDer::from_pem_file(ca).with_context(|| format!("read {}", ca.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let roots = Arc::new(roots);
    let token: JoinToken = token.parse()?;
    let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, b"load")?;
    let anonymous = client_config(&endpoint, &roots, None)?;
    let enrolments = (0..n).map(|i| {
        let (roots, endpoint, anonymous) = (roots.clone(), endpoint.clone(), anonymous.clone());
        async move {
            let name = format!("load-{i:05}");
            let agent = enrol_one(&name, controller, token, &roots, endpoint, anonymous).await;
            agent.with_context(|| format!("enrol {name}"))
        }
    });
    futures::stream::iter(enrolments).buffer_unordered(ENROL_PARALLEL).try_collect().await
}

async fn enrol_one(
    name: &str,
    controller: SocketAddr,
    token: JoinToken,
    roots: &Arc<RootCertStore>,
    endpoint: Endpoint,
    anonymous: quinn::ClientConfig,
) -> Result<Agent> {
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    let connection = endpoint.quinn().connect_with(anonymous, controller, SERVER_NAME)?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let facts = LocationFacts { name: name.into(), platform: "load".into(), ..LocationFacts::default() };
    let request = EnrolV1 { token_secret: Some(token.secret), csr_der: csr.der().to_vec(), facts };
    write(&mut send, &EnrolRequest::from(request)).await?;
    let enrolled = match read::<EnrolReply>(&mut receive).await? {
        EnrolReply::Enrolled(enrolled) => enrolled,
        EnrolReply::Fault(fault) => bail!("{}: {}", fault.fault, fault.text),
    };
    connection.close(0_u32.into(), b"enrolled");
    let chain = enrolled.chain.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = client_config(&endpoint, roots, Some((chain, key)))?;
    Ok(Agent { location: enrolled.location, endpoint: endpoint.quinn().clone(), config })
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_config(
    endpoint: &Endpoint,
    roots: &Arc<RootCertStore>,
    identity: Option<Identity>,
) -> Result<quinn::ClientConfig> {
    let alpn = if identity.is_some() { ALPN } else { ALPN_ENROL };
    let tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots.clone());
    let mut tls = match identity {
        Some((chain, key)) => tls.with_client_auth_cert(chain, key)?,
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    // A session cache per agent would be the generator's memory, not the controller's.
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(endpoint.client_config(QuicClientConfig::try_from(tls)?))
}
