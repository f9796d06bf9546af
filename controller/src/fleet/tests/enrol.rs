//! Who gets a certificate, and who does not.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_agent_in_and_its_second_use_is_shown() {
    let place = Place::new().await;
    let secret = place.token(1, 900, "cn-*").await;
    let mut first = Agent::new("cn-1");
    let location = first.enrol(&place, Some(secret)).await.unwrap();
    let stored = place.db.location(location).await.unwrap().unwrap();
    assert_eq!((stored.name.as_str(), stored.zone.as_str()), ("cn-1", "z1"), "the token's presets hold");
    assert_eq!(stored.agent, Some(first.id()));

    let refused = Agent::new("cn-2").enrol(&place, Some(secret)).await.unwrap_err();
    assert!(refused.contains("used up"), "{refused}");
    assert!(place.actions().await.contains(&"join_token.reuse".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_agents_with_one_token_at_once_one_gets_in() {
    let place = Place::new().await;
    let secret = place.token(1, 900, "").await;
    let mut agents: Vec<Agent> = (0..8).map(|n| Agent::new(&format!("cn-{n}"))).collect();
    let tries = agents.iter_mut().map(|agent| agent.enrol(&place, Some(secret)));
    let results = futures::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_expired_and_misnamed_tokens_are_refused() {
    let place = Place::new().await;
    let mut agent = Agent::new("gw-1");
    for (secret, expected) in [
        ([7; 32], "unknown"),
        (place.token(1, -1, "").await, "expired"),
        (place.token(1, 900, "cn-*").await, "other names"),
    ] {
        let refused = agent.enrol(&place, Some(secret)).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
    let unnamed = Agent::new("").enrol(&place, Some(place.token(1, 900, "").await)).await.unwrap_err();
    assert!(unnamed.contains("name"), "{unnamed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_is_not_given_to_another_key() {
    let place = Place::new().await;
    place.agent("cn-1").await;
    let secret = place.token(1, 900, "").await;
    let refused = Agent::new("CN-1").enrol(&place, Some(secret)).await.unwrap_err();
    assert!(refused.contains("another key"), "{refused}");
    // The token kept its use.
    Agent::new("cn-2").enrol(&place, Some(secret)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_key_renews_without_a_token_unless_revoked() {
    let place = Place::new().await;
    let mut agent = place.agent("cn-1").await;
    let before = place.db.location(agent.location()).await.unwrap().unwrap();
    assert_eq!(agent.enrol(&place, None).await, Ok(agent.location()));
    let after = place.db.location(agent.location()).await.unwrap().unwrap();
    assert_ne!(before.cert_serial, after.cert_serial);

    let stranger = Agent::new("cn-2").enrol(&place, None).await.unwrap_err();
    assert!(stranger.contains("not enrolled"), "{stranger}");

    place.db.revoke_location(agent.location(), &Draft::system("location.revoke")).await.unwrap();
    let refused = agent.enrol(&place, None).await.unwrap_err();
    assert!(refused.contains("revoked"), "{refused}");
    let secret = place.token(1, 900, "").await;
    let refused = agent.enrol(&place, Some(secret)).await.unwrap_err();
    assert!(refused.contains("revoked"), "a revoked key gets in with no token: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_two_days_after_its_end_renews_and_after_thirty_one_does_not() {
    use crate::db::enrolment::Certificate;
    let place = Place::new().await;
    let mut agent = place.agent("cn-1").await;
    let day_us = 24 * 3600 * 1_000_000;
    for (days, allowed) in [(2, true), (31, false)] {
        let ended = Certificate { serial: "old".into(), not_after_us: clock::unix_us() - days * day_us };
        place.db.record_certificate(agent.location(), &ended).await.unwrap();
        assert_eq!(agent.enrol(&place, None).await.is_ok(), allowed, "{days} days");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_tokens_is_stopped() {
    let place = Place::new().await;
    let mut agent = Agent::new("cn-1");
    let mut last = String::new();
    for n in 0..40 {
        last = agent.enrol(&place, Some([n; 32])).await.unwrap_err();
    }
    assert!(last.contains("too many"), "{last}");
}
