//! Sessions: who may have one, and what ends it.

use hearth_protocol::message::control::{GoodbyeV1, PulseV1, RenewV1};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_comes_up_and_is_seen() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let pulse = PulseV1 {
        location: agent.location(),
        unix_ms: clock::unix_ms(),
        generation: Generation(0),
        budget_bytes: 100,
        used_bytes: 7,
        free_bytes: 50,
        floor_bytes: 5,
        degraded: String::new(),
    };
    live.say(pulse).await;
    until("the pulse is seen", || async {
        let view = place.fleet.session(agent.location());
        view.is_some_and(|view| view.figures.is_some_and(|figures| figures.used_bytes == 7))
    })
    .await;
    let stored = || async { place.db.location(agent.location()).await.unwrap().unwrap() };
    until("the session is stored", || async { stored().await.nic_mbps == 1000 }).await;
    live.say(GoodbyeV1 { reason: "test".into() }).await;
    until("the session is over", || async { place.fleet.online_count() == 0 }).await;
    until("its figures are stored", || async { stored().await.figures.used_bytes == 7 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_clock_and_foreign_locations_are_refused() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let other = place.agent("cn-2").await;
    let good = agent.hello();
    let version = HelloV1 { version_min: 9, version_max: 10, ..good.clone() };
    let clock = HelloV1 { sent_unix_ms: good.sent_unix_ms - 6 * 60 * 1000, ..good.clone() };
    let foreign = HelloV1 { locations: other.hello().locations, ..good };
    for (hello, expected) in [(version, "version: "), (clock, "clock: "), (foreign, "denied: ")] {
        let refused = agent.greet(&place, hello, None).await.err().unwrap();
        assert!(refused.starts_with(expected), "{refused}");
    }
    assert_eq!(place.fleet.online_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_closes_a_live_connection_within_five_seconds() {
    let place = Place::new().await;
    let (told, untold) = (place.agent("cn-1").await, place.agent("cn-2").await);
    let (live, other) = (told.session(&place).await, untold.session(&place).await);
    until("both are up", || async { place.fleet.online_count() == 2 }).await;
    let begun = clock::monotonic();
    let location =
        place.db.remove_location(told.location(), &Draft::system("location.remove")).await.unwrap();
    assert!(place.fleet.revoke(location.agent.unwrap()));
    // The second time nobody tells the fleet: it sees the change itself.
    place.db.revoke_location(untold.location(), &Draft::system("location.revoke")).await.unwrap();
    for connection in [live.connection, other.connection] {
        let closed = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.unwrap();
        assert!(closed.to_string().contains("revoked"), "{closed}");
    }
    assert!(clock::monotonic().duration_since(begun) < Duration::from_secs(5));
    for agent in [told, untold] {
        let refused = agent.greet(&place, agent.hello(), None).await.err().unwrap();
        assert!(refused.starts_with("denied: "), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_is_refused_while_the_first_agent_lives() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let first = agent.session(&place).await;
    until("the first is up", || async { place.fleet.online_count() == 1 }).await;
    let refused = agent.greet(&place, agent.hello(), None).await.err().unwrap();
    assert!(refused.starts_with("duplicate: "), "{refused}");
    assert!(place.actions().await.contains(&"agent.duplicate".to_owned()));
    assert!(first.connection.close_reason().is_none(), "the first agent keeps its session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_takes_its_place_back() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let first = agent.session(&place).await;
    until("the first is up", || async { place.fleet.online_count() == 1 }).await;
    let before = place.fleet.session(agent.location()).unwrap().address;
    // As after kill -9: nobody says goodbye, and what comes from another port is not the old connection.
    agent.endpoint.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let again = Agent { endpoint: Agent::new("").endpoint, ..agent };
    let live = again.session(&place).await;
    until("the second is up", || async {
        place.fleet.session(again.location()).is_some_and(|view| view.address != before)
    })
    .await;
    drop((first, live));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_controller_tells_agents_that_it_does_not_know_them() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    until("the agent is up", || async { place.fleet.online_count() == 1 }).await;
    let Place { fleet, address, authority, db, store, folder, .. } = place;
    // As after kill -9: no close is sent.
    fleet.inner.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    drop(fleet);
    let identity = ServerIdentity::new(authority, vec![], clock::unix_us()).unwrap();
    let begun = clock::monotonic();
    let _again = loop {
        let (db, store, identity) = (db.clone(), Arc::clone(&store), Arc::clone(&identity));
        let context = FleetContext {
            db,
            store,
            identity,
            config: FleetConfig::new(address),
            keys: Arc::default(),
            remake: None,
        };
        match Fleet::start(context).await {
            Ok(fleet) => break fleet,
            Err(error) => assert!(clock::monotonic().duration_since(begun) < SOON, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    live.say(GoodbyeV1 { reason: "anybody there?".into() }).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), live.connection.closed()).await.unwrap();
    assert_eq!(closed, quinn::ConnectionError::Reset);
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_in_the_session_gives_a_new_certificate() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    live.say(RenewV1 { csr_der: agent.csr() }).await;
    let renewed = loop {
        if let ToAgent::Renewed(renewed) = live.hear().await {
            break renewed;
        }
    };
    let (named, _) = super::super::ca::agent_of(&CertificateDer::from(renewed.chain[0].clone())).unwrap();
    assert_eq!(named, agent.id());
}
