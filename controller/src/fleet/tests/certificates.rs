//! Certificates that open no door: foreign ones, ended ones, ones with another name.

use rcgen::{Issuer, SanType};

use super::super::ca::AGENT_LIFE_DEFAULT;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_or_with_a_foreign_one_there_is_no_session() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let bare = Agent { location: agent.location, ..Agent::new("cn-1") };
    let refused = bare.greet(&place, bare.hello(), None).await.err().unwrap();
    assert!(refused.contains("certificate is required"), "{refused}");

    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::create(elsewhere.path(), clock::unix_us()).unwrap();
    let made = foreign.agent_certificate(&agent.csr(), clock::unix_us(), AGENT_LIFE_DEFAULT).unwrap();
    let chain = made.chain.into_iter().map(CertificateDer::from).collect();
    let foreign = Agent { chain, ..Agent { key: agent.key, location: agent.location, ..Agent::new("cn-1") } };
    assert!(foreign.greet(&place, foreign.hello(), None).await.is_err());
    assert_eq!(place.fleet.online_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() {
    let place = Place::new().await;
    let mut agent = place.agent("cn-1").await;
    let two_days_ago = clock::unix_us() - 48 * 3600 * 1_000_000;
    let made = place.authority.agent_certificate(&agent.csr(), two_days_ago, AGENT_LIFE_DEFAULT).unwrap();
    agent.chain = made.chain.into_iter().map(CertificateDer::from).collect();
    let refused = agent.greet(&place, agent.hello(), None).await.err().unwrap();
    assert!(refused.to_lowercase().contains("expired"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_the_name_of_another_agent_is_refused_even_if_our_ca_signed_it() {
    let place = Place::new().await;
    let (agent, other) = (place.agent("cn-1").await, place.agent("cn-2").await);
    let ca = place.folder.path().join("ca");
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(ca.join("ca.key")).unwrap()).unwrap();
    let ours = Issuer::from_ca_cert_der(place.authority.certificate(), ca_key).unwrap();
    let (own, theirs) = (format!("hearth://agent/{}", agent.id()), format!("hearth://agent/{}", other.id()));
    let Agent { key, location, .. } = agent;
    let mut bearer = Agent { key, location, ..Agent::new("cn-1") };
    for (names, signed_by_us) in
        [(vec![theirs], true), (vec!["agent.hearth.internal".into()], true), (vec![own], false)]
    {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        params.not_after = rcgen::date_time_ymd(2999, 1, 1);
        let made = match signed_by_us {
            true => params.signed_by(&bearer.key, &ours),
            false => params.self_signed(&bearer.key),
        };
        let ca = place.authority.certificate().clone();
        bearer.chain = vec![made.unwrap().der().clone(), ca];
        let refused = bearer.greet(&place, bearer.hello(), None).await.err().unwrap();
        let expected =
            if signed_by_us { "agent certificate is required: enrol first" } else { "certificate" };
        assert!(refused.contains(expected), "{names:?}: {refused}");
    }
    assert_eq!(place.fleet.online_count(), 0);
}

fn san(name: &str) -> SanType {
    match name.starts_with("hearth:") {
        true => SanType::URI(name.try_into().unwrap()),
        false => SanType::DnsName(name.try_into().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_dies_at_its_end_and_the_one_after_it_lives() {
    let place = Place::with(|config| config.agent_life = Duration::from_secs(4)).await;
    let mut agent = place.agent("cn-1").await;
    let (first, (_, end_us)) = (agent.chain.clone(), super::super::ca::agent_of(&agent.chain[0]).unwrap());
    let live = agent.session(&place).await;
    until("the first certificate has ended", || async { clock::unix_us() > end_us + 1_000_000 }).await;
    let refused = agent.greet(&place, agent.hello(), None).await.err().unwrap();
    assert!(refused.to_lowercase().contains("expired"), "{refused}");
    // Its key still opens the door for enrolment, and the session that it opened is not cut off at once.
    agent.enrol(&place, None).await.unwrap();
    assert_ne!(agent.chain, first);
    assert!(live.connection.close_reason().is_none(), "five minutes of grace");
    drop(live);
    agent.session(&place).await;
}
