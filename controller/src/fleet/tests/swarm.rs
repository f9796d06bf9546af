//! Campaigns: who is asked, what is leased, what the source serves, and how it ends.

use std::collections::BTreeSet;
use std::sync::Mutex;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::DataRequest;
use hearth_protocol::message::swarm::{
    Campaign, CampaignStateV1, EndCampaignV1, FailureKind, FetchPieceV1, FinishedPiece, GoV1, GrantV1,
    HavingV1, JoinCampaignV1, PeerV1, PieceFailure, PieceLease, PieceLeasesV1, PieceReportV1, piece_bits,
};
use hearth_protocol::piece::Pieces;

use super::data::{ask, fetch, want};
use super::*;
use crate::logic::admission::Caps;

/// Pieces of the content: 300 chunks of 8 KiB in pieces of 1 MiB.
const PIECES: u32 = 3;

async fn place() -> Place {
    Place::with(|config| {
        config.swarm.linger = Duration::from_millis(500);
        // So slow beside the hosts that it sends nothing that they can.
        config.swarm.source_bytes_per_s = 20_000_000;
        config.caps = Caps { total: 1, per_location: 1 };
    })
    .await
}

/// A session that speaks version 4.
async fn session(place: &Place, agent: &Agent) -> Live {
    let hello = HelloV1 { version_max: 4, ..agent.hello() };
    let mut live = agent.greet(place, hello, None).await.unwrap();
    live.observe(Some(true), vec![]).await;
    live
}

/// Sessions of agents that all want the content.
async fn wanting<const N: usize>(place: &Place) -> ([Agent; N], Vec<Live>) {
    let mut agents = Vec::new();
    for n in 0..N {
        agents.push(place.agent(&format!("cn-{n}")).await);
        want(place, &agents[n]).await;
    }
    let mut lives = Vec::new();
    for agent in &agents {
        lives.push(session(place, agent).await);
    }
    (agents.try_into().ok().unwrap(), lives)
}

impl Live {
    /// The next message about a campaign.
    async fn swarm(&mut self) -> ToAgent {
        loop {
            match self.hear().await {
                ToAgent::Plan(_) => {}
                other => return other,
            }
        }
    }

    /// Waits to be asked; every plan before must admit the transfer.
    async fn joined(&mut self, place: &Place) -> JoinCampaignV1 {
        let mut is_placed = false;
        loop {
            match self.hear().await {
                ToAgent::Plan(plan) => {
                    is_placed |= plan.entries.iter().any(|entry| entry.content == place.content);
                }
                ToAgent::JoinCampaign(join) => {
                    assert!(is_placed, "the plan comes first");
                    assert_eq!((join.location, join.grant.content), (self.location, place.content));
                    return join;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    async fn leases(&mut self) -> PieceLeasesV1 {
        match self.swarm().await {
            ToAgent::PieceLeases(leases) => leases,
            other => panic!("unexpected {other:?}"),
        }
    }

    async fn state(&mut self, campaign: Campaign, has: bool) {
        self.say(state(campaign, has)).await;
    }
}

fn state(campaign: Campaign, has: bool) -> CampaignStateV1 {
    CampaignStateV1 {
        campaign,
        n_pieces: PIECES,
        done: piece_bits(PIECES, |_| has),
        needed_bytes: if has { 0 } else { 300 * 8192 },
        upload_bytes_per_s: 100_000_000,
        download_bytes_per_s: 100_000_000,
    }
}

fn report(campaign: Campaign, finished: Vec<FinishedPiece>, failed: Vec<PieceFailure>) -> PieceReportV1 {
    PieceReportV1 {
        campaign,
        finished,
        failed,
        from_controller_bytes: 10,
        from_agents_bytes: 20,
        sent_bytes: 30,
    }
}

fn whole(place: &Place, piece: u32) -> DataRequest {
    let mut pieces = Pieces::new(u64::from(place.n_chunks) * 8192);
    (0..place.n_chunks).for_each(|_| pieces.push(8192));
    let chunks = pieces.chunks(piece).unwrap();
    fetch(place.content, piece, &ChunkMask::full(chunks.end - chunks.start))
}

/// What an agent of a test did.
#[derive(Debug, Default)]
struct Log {
    /// Pieces fetched from the controller.
    from_source: Vec<u32>,
    /// Pieces that came from others, with whom the lease named first.
    from_others: Vec<(u32, u32)>,
    peers: Vec<PeerV1>,
    end: Option<EndCampaignV1>,
}

impl Log {
    fn n_pieces(&self) -> usize {
        self.from_source.len() + self.from_others.len()
    }
}

/// Plays an agent: answers, follows its leases (what others would send is taken as sent) and reports, until the end.
async fn play(place: &Place, mut live: Live, has: bool, log: &Mutex<Log>) {
    let mut campaign = None;
    loop {
        let heard = tokio::time::timeout(Duration::from_millis(300), live.reader.next::<ToAgent>()).await;
        match (heard, campaign) {
            (Err(_), Some(campaign)) => live.say(report(campaign, vec![], vec![])).await,
            (Err(_), None) | (Ok(Ok(Some(ToAgent::Plan(_)))), _) => {}
            (Ok(Ok(Some(ToAgent::JoinCampaign(join)))), _) => {
                campaign = Some(join.campaign);
                live.state(join.campaign, has).await;
            }
            (Ok(Ok(Some(ToAgent::PieceLeases(leases)))), _) => follow(place, &mut live, leases, log).await,
            (Ok(Ok(Some(ToAgent::EndCampaign(end)))), _) => {
                log.lock().unwrap().end = Some(end);
                return;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn follow(place: &Place, live: &mut Live, leases: PieceLeasesV1, log: &Mutex<Log>) {
    log.lock().unwrap().peers.extend(leases.peers);
    for PieceLease { piece, holders } in leases.leases {
        if holders == [0] {
            ask(live, whole(place, piece)).await.unwrap();
            log.lock().unwrap().from_source.push(piece);
        } else {
            let mut log = log.lock().unwrap();
            let is_described = |host: &u32| log.peers.iter().any(|peer| peer.host == *host);
            assert!(holders.iter().all(|host| *host == 0 || is_described(host)), "{holders:?}");
            log.from_others.push((piece, holders[0]));
        }
        let finished = vec![FinishedPiece { piece, from: Some(holders[0]) }];
        live.say(report(leases.campaign, finished, vec![])).await;
    }
    let n_pieces = { log.lock().unwrap() }.n_pieces();
    if n_pieces == PIECES as usize {
        live.report_active(place.content).await;
    }
}

/// The campaign of the place's content: the one that runs, else the last one.
fn shown(place: &Place) -> Option<Arc<crate::fleet::CampaignView>> {
    place.fleet.campaigns().into_iter().find(|view| view.content == place.content)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_share_what_the_source_sends_once() {
    let place = place().await;
    let (agents, lives) = wanting::<2>(&place).await;
    let logs = [Mutex::new(Log::default()), Mutex::new(Log::default())];
    let mut lives = lives.into_iter();
    let (one, two) = (lives.next().unwrap(), lives.next().unwrap());
    let play_all =
        futures::future::join(play(&place, one, false, &logs[0]), play(&place, two, false, &logs[1]));
    tokio::time::timeout(SOON * 2, play_all).await.expect("the campaign ends");
    let logs = logs.map(|log| log.into_inner().unwrap());
    let mut from_source: Vec<u32> = logs.iter().flat_map(|log| log.from_source.clone()).collect();
    from_source.sort_unstable();
    assert_eq!(from_source, [0, 1, 2], "the source sends each piece once");
    for (n, log) in logs.iter().enumerate() {
        assert_eq!(log.n_pieces(), PIECES as usize);
        assert_eq!(log.end.as_ref().unwrap().reason, "everybody has it");
        let other = &agents[1 - n];
        for peer in &log.peers {
            assert_eq!((peer.location, peer.agent), (other.location(), other.id()));
            assert_eq!(peer.addresses, ["127.0.0.1:7444"]);
        }
    }
    until("the view is kept", || async { shown(&place).is_some_and(|view| view.ended.is_some()) }).await;
    let view = shown(&place).unwrap();
    assert_eq!((view.n_receivers, view.n_done, view.n_holders, view.n_pieces), (2, 2, 0, PIECES));
    assert_eq!((view.source_pieces, view.from_controller_bytes, view.from_agents_bytes), (3, 20, 40));
    assert!(view.bound.is_some_and(|bound| bound.seconds > 0.0) && view.culprits.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_it_serves_and_the_source_sends_nothing() {
    let place = place().await;
    // It has a copy, and nobody wants it there: it serves all the same.
    let holder = place.agent("holder").await;
    let mut held = session(&place, &holder).await;
    held.report_active(place.content).await;
    until("the holder is known", || async {
        place.fleet.inner.shared.picture.active_at(place.content) == [holder.location()]
    })
    .await;
    let (_agents, mut lives) = wanting::<2>(&place).await;
    let logs: [Mutex<Log>; 3] = std::array::from_fn(|_| Mutex::default());
    let join = held.swarm().await;
    let ToAgent::JoinCampaign(join) = join else { panic!("unexpected {join:?}") };
    held.state(join.campaign, true).await;
    until("the holder is in", || async {
        let view = shown(&place).unwrap();
        view.hosts.iter().any(|host| host.location == holder.location() && host.joined_us.is_some())
    })
    .await;
    let (two, one) = (lives.pop().unwrap(), lives.pop().unwrap());
    let serve = async {
        loop {
            held.say(report(join.campaign, vec![], vec![])).await;
            let heard = tokio::time::timeout(Duration::from_millis(300), held.reader.next::<ToAgent>()).await;
            match heard {
                Ok(Ok(Some(ToAgent::EndCampaign(_)))) => return,
                Ok(Ok(Some(ToAgent::JoinCampaign(join)))) => held.state(join.campaign, true).await,
                _ => {}
            }
        }
    };
    let (one, two) = (play(&place, one, false, &logs[0]), play(&place, two, false, &logs[1]));
    tokio::time::timeout(SOON * 2, futures::future::join3(one, two, serve)).await.expect("it ends");
    for log in &logs[..2] {
        let log = log.lock().unwrap();
        assert_eq!((log.from_source.len(), log.from_others.len()), (0, PIECES as usize));
        assert!(log.peers.iter().any(|peer| peer.location == holder.location()));
    }
    until("the view is final", || async { shown(&place).is_some_and(|view| view.ended.is_some()) }).await;
    let view = shown(&place).unwrap();
    assert_eq!((view.n_receivers, view.n_holders, view.source_pieces), (2, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_serves_only_what_is_leased() {
    let place = place().await;
    let (_agents, mut lives) = wanting::<2>(&place).await;
    let mut joins = Vec::new();
    for live in &mut lives {
        joins.push(live.joined(&place).await);
    }
    assert_eq!(joins[0].campaign, joins[1].campaign);
    assert_eq!((joins[0].slots, joins[0].controllers.len()), (4, 0));
    // Nobody said what it has: nothing is leased, and nothing served. The manifest is.
    let early = ask(&lives[0], whole(&place, 0)).await.unwrap_err();
    assert_eq!((early.fault, early.retry_after_ms), (FaultCode::Busy, 500));
    let root = hearth_protocol::message::data::RootV1 { content: place.content };
    ask(&lives[0], DataRequest::Root(root)).await.unwrap();
    lives[0].state(joins[0].campaign, false).await;
    let leased = lives[0].leases().await;
    let pieces: BTreeSet<u32> = leased.leases.iter().map(|lease| lease.piece).collect();
    assert!(leased.leases.iter().all(|lease| lease.holders == [0]) && !pieces.is_empty(), "{leased:?}");
    // What is leased to one is not leased to the other.
    let theirs = ask(&lives[1], whole(&place, leased.leases[0].piece)).await.unwrap_err();
    assert_eq!(theirs.fault, FaultCode::Busy);
    ask(&lives[0], whole(&place, leased.leases[0].piece)).await.unwrap();
    until("it is sent once", || async {
        // It was not reported: without a sign of life the lease ends, at the latest with the host.
        ask(&lives[0], whole(&place, leased.leases[0].piece)).await.is_err()
    })
    .await;
    for request in [
        DataRequest::FetchPiece(FetchPieceV1 { grant: joins[0].grant.clone(), piece: 0 }),
        DataRequest::Having(HavingV1 { grant: joins[0].grant.clone() }),
        DataRequest::Go(GoV1 { mask: vec![1] }),
    ] {
        assert_eq!(ask(&lives[0], request).await.unwrap_err().fault, FaultCode::Protocol);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_and_hosts_of_an_older_version_are_served_directly() {
    let place = Place::new().await;
    let (one, two, old) = (place.agent("cn-1").await, place.agent("cn-2").await, place.agent("old").await);
    for agent in [&one, &two, &old] {
        want(&place, agent).await;
    }
    let mut alone = session(&place, &one).await;
    let hello = HelloV1 { version_max: 3, ..old.hello() };
    let mut older = old.greet(&place, hello, None).await.unwrap();
    older.observe(Some(true), vec![]).await;
    for live in [&mut alone, &mut older] {
        live.plan(|plan| !plan.entries.is_empty() && plan.entries[0].admitted).await;
        ask(live, whole(&place, 1)).await.unwrap();
    }
    assert_eq!(place.fleet.campaigns(), []);
    // The second one of version 4 makes a campaign; the old one is not asked and still served.
    let mut second = session(&place, &two).await;
    second.joined(&place).await;
    alone.swarm().await;
    ask(&older, whole(&place, 2)).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_millis(300), older.swarm()).await;
    assert!(heard.is_err(), "{heard:?}");
    assert_eq!(ask(&alone, whole(&place, 1)).await.unwrap_err().fault, FaultCode::Busy);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_campaigns_in_the_settings_there_are_none() {
    let place = Place::with(|config| config.swarm.on = false).await;
    let (_agents, mut lives) = wanting::<2>(&place).await;
    for live in &mut lives {
        live.plan(|plan| !plan.entries.is_empty() && plan.entries[0].admitted).await;
        ask(live, whole(&place, 0)).await.unwrap();
    }
    assert_eq!(place.fleet.campaigns(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cap_counts_those_who_share() {
    // The cap is one transfer.
    let place = place().await;
    let (_agents, mut lives) = wanting::<3>(&place).await;
    for live in &mut lives {
        live.plan(|plan| !plan.entries.is_empty() && plan.entries[0].admitted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_about_campaigns_changes_nothing() {
    let place = place().await;
    let (_agents, mut lives) = wanting::<2>(&place).await;
    let campaign = lives[0].joined(&place).await.campaign;
    lives[1].joined(&place).await;
    let other = Campaign { number: campaign.number + 1, ..campaign };
    let good = state(campaign, false);
    for wrong in [
        CampaignStateV1 { campaign: other, ..good.clone() },
        CampaignStateV1 { n_pieces: 4, ..good.clone() },
        CampaignStateV1 { n_pieces: u32::MAX, ..good.clone() },
        CampaignStateV1 { n_pieces: 0, done: vec![], ..good.clone() },
        CampaignStateV1 { done: vec![], ..good.clone() },
        CampaignStateV1 { done: vec![0xff; 1000], ..good.clone() },
    ] {
        lives[0].say(wrong).await;
    }
    // Reports of a host that has not said what it has, then all kinds of numbers that mean nothing.
    let finished = |piece: u32, from: Option<u32>| FinishedPiece { piece, from };
    let lies = || {
        let finished = vec![finished(u32::MAX, None), finished(PIECES, Some(0)), finished(7, Some(u32::MAX))];
        let failed = [(PIECES, 1), (u32::MAX, 1), (0, 77), (0, u32::MAX), (1, 0)]
            .map(|(piece, from)| PieceFailure { piece, from, how: FailureKind::Wrong, is_last: false });
        report(campaign, finished, failed.to_vec())
    };
    lives[0].say(lies()).await;
    // Rates of nothing and of everything; bits past the last piece.
    lives[0]
        .say(CampaignStateV1 {
            done: vec![0xf8],
            upload_bytes_per_s: u64::MAX,
            download_bytes_per_s: 0,
            needed_bytes: u64::MAX,
            ..good.clone()
        })
        .await;
    let leased = lives[0].leases().await;
    assert!(!leased.leases.is_empty());
    lives[0].say(lies()).await;
    lives[0].say(good.clone()).await;
    let too_many = vec![finished(0, None); 4097];
    lives[0].say(report(campaign, too_many, vec![])).await;
    lives[1].state(campaign, false).await;
    let done = (0..PIECES).map(|piece| finished(piece, Some(0))).collect();
    lives[0].say(report(campaign, done, vec![])).await;
    until("what is true was taken", || async {
        let view = shown(&place).unwrap();
        let done = view.hosts.iter().filter(|host| host.n_done == PIECES).count();
        done == 1 && view.ended.is_none() && view.culprits.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_back_or_falls_silent_is_asked_again() {
    let place = place().await;
    let (agents, mut lives) = wanting::<2>(&place).await;
    let campaign = lives[0].joined(&place).await.campaign;
    lives[0].state(campaign, false).await;
    lives[0].leases().await;
    // Silent for longer than the planner waits.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    lives[0].say(report(campaign, vec![], vec![])).await;
    let again = loop {
        match lives[0].swarm().await {
            ToAgent::JoinCampaign(join) => break join,
            ToAgent::PieceLeases(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(again.campaign, campaign);
    lives[0].state(campaign, false).await;
    lives[0].leases().await;
    lives[1].connection.close(VarInt::from_u32(0), b"");
    until("it is gone", || async { place.fleet.online_count() == 1 }).await;
    let mut back = session(&place, &agents[1]).await;
    assert_eq!(back.joined(&place).await.campaign, campaign, "the campaign goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_all_transfers_ends_the_campaign() {
    let place = place().await;
    let (_agents, mut lives) = wanting::<2>(&place).await;
    for live in &mut lives {
        live.joined(&place).await;
    }
    let op = Draft::system("transfer.stop");
    place.db.set_setting(crate::fleet::STOPPED_SETTING, "true", &op).await.unwrap();
    for live in &mut lives {
        let end = live.swarm().await;
        assert!(matches!(&end, ToAgent::EndCampaign(end) if end.reason.contains("stopped")), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_named_to_all_others() {
    let place = Place::new().await;
    let (bad, good, old) = (place.agent("bad").await, place.agent("good").await, place.agent("old").await);
    let mut live = session(&place, &good).await;
    let mut older = old.session(&place).await;
    until("both are up", || async { place.fleet.online_count() == 2 }).await;
    place.db.remove_location(bad.location(), &Draft::system("location.remove")).await.unwrap();
    let is_denied = |message: &ToAgent| matches!(message, ToAgent::Deny(deny) if deny.agents == [bad.id()]);
    let heard = live.swarm().await;
    assert!(is_denied(&heard), "{heard:?}");
    live.connection.close(VarInt::from_u32(0), b"");
    let mut later = session(&place, &good).await;
    let heard = later.swarm().await;
    assert!(is_denied(&heard), "{heard:?}");
    let heard = tokio::time::timeout(Duration::from_millis(300), older.swarm()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// Grants name the agent that was asked, and are valid now.
#[tokio::test(flavor = "multi_thread")]
async fn each_receiver_is_given_a_grant_of_its_own() {
    let place = place().await;
    let (agents, mut lives) = wanting::<2>(&place).await;
    for (agent, live) in agents.iter().zip(&mut lives) {
        let join = live.joined(&place).await;
        let GrantV1 { agent: named, not_before_unix_ms, not_after_unix_ms, .. } = join.grant.clone();
        assert_eq!(named, agent.id());
        assert!((not_before_unix_ms..not_after_unix_ms).contains(&clock::unix_ms()));
        let key =
            aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, join.grant_key);
        key.verify(&join.grant.signed_bytes(), &join.grant.signature).unwrap();
    }
}
