//! The verifier against chains made on the spot: right, wrong CA, wrong name, out of time, forged leaf.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{IpAddr, Ipv4Addr};

use super::*;

struct Chain {
    ca: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
}

/// A CA and a leaf for `name`, valid over `years`. The CA's subject is the same each time, its key is not.
fn chain(name: &str, years: (i32, i32)) -> Chain {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Hearth CA");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2050, 1, 1);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
    Chain { ca, leaf }
}

/// Whether `sent` is accepted in 2026 by a client that pins `pinned` and asked for `host`.
fn check(
    pinned: &CertificateDer<'_>,
    sent: (&CertificateDer<'_>, &[CertificateDer<'_>]),
    host: &str,
) -> Result<(), Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let seen = SeenCa::default();
    let verifier = PinnedCa { fingerprint: CaFingerprint::of(pinned), provider, seen: Arc::clone(&seen) };
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000));
    let verified = verifier.verify_server_cert(sent.0, sent.1, &name, &[], now).map(drop);
    let kept = verified.is_ok().then_some(pinned);
    assert_eq!(seen.get(), kept, "the CA is kept if and only if it was proved");
    verified
}

#[test]
fn the_pinned_ca_is_accepted_by_either_name() {
    for name in [CONTROLLER_NAME, "c.example", "10.0.0.7"] {
        let c = chain(name, (2025, 2030));
        check(&c.ca, (&c.leaf, std::slice::from_ref(&c.ca)), name).unwrap();
    }
    let c = chain(CONTROLLER_NAME, (2025, 2030));
    check(&c.ca, (&c.leaf, std::slice::from_ref(&c.ca)), "127.0.0.1").unwrap();
    check(&c.ca, (&c.leaf, std::slice::from_ref(&c.ca)), "elsewhere.example").unwrap();
    assert_eq!(ServerName::from(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1]))).to_str(), "127.0.0.1");
}

#[test]
fn another_ca_is_refused_and_named() {
    let (ours, theirs) = (chain(CONTROLLER_NAME, (2025, 2030)), chain(CONTROLLER_NAME, (2025, 2030)));
    let error =
        check(&ours.ca, (&theirs.leaf, std::slice::from_ref(&theirs.ca)), CONTROLLER_NAME).unwrap_err();
    assert!(error.to_string().contains(&CaFingerprint::of(&theirs.ca).to_string()), "{error}");
    check(&ours.ca, (&theirs.leaf, &[]), CONTROLLER_NAME).unwrap_err();
}

#[test]
fn a_leaf_of_another_ca_beside_the_pinned_one_is_refused() {
    let (ours, theirs) = (chain(CONTROLLER_NAME, (2025, 2030)), chain(CONTROLLER_NAME, (2025, 2030)));
    let both = [theirs.ca.clone(), ours.ca.clone()];
    check(&ours.ca, (&theirs.leaf, &both), CONTROLLER_NAME).unwrap_err();
}

#[test]
fn a_leaf_out_of_time_or_for_another_name_is_refused() {
    for (name, years) in
        [(CONTROLLER_NAME, (2021, 2022)), (CONTROLLER_NAME, (2040, 2041)), ("x.example", (2025, 2030))]
    {
        let c = chain(name, years);
        check(&c.ca, (&c.leaf, std::slice::from_ref(&c.ca)), "c.example").unwrap_err();
    }
}

#[test]
fn a_certificate_is_printed_as_pem() {
    let ca = chain(CONTROLLER_NAME, (2025, 2030)).ca;
    let text = pem(&ca);
    assert!(text.lines().all(|line| line.len() <= 64), "{text}");
    let back = <CertificateDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(text.as_bytes());
    assert_eq!(back.unwrap(), ca);
}
