//! A rogue's session: it greets like an agent and joins every campaign.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hearth_agent::config::Config;
use hearth_agent::control::connect;
use hearth_agent::control::credentials::Credentials;
use hearth_agent::swarm::tls::{self, AGENT_NAME};
use hearth_agent::transfer::endpoint::Endpoint;
use hearth_agent::transfer::link::{Quic, Source};
use hearth_agent::transfer::{ask, frames};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{BootId, Generation};
use hearth_protocol::manifest::{ManifestRoot, PAGE_BYTES_MAX, ROOT_BYTES_MAX};
use hearth_protocol::message::control::{
    HelloAckV1, HelloLocation, HelloV1, ObservedV1, PlanAckV1, ToAgent, ToController,
};
use hearth_protocol::message::data::{DataReply, DataRequest, PageV1, RootV1};
use hearth_protocol::message::swarm::{
    Campaign, CampaignStateV1, FetchPieceV1, GrantV1, JoinCampaignV1, PeerV1, PieceLeasesV1, PieceReportV1,
    piece_bits,
};
use hearth_protocol::piece::Pieces;
use hearth_protocol::version::{VERSION_MAX, VERSION_MIN};
use quinn::{Connection, SendStream};

use super::harm::{Harm, Loot, Piece};

/// Time between two signs of life.
const SIGN_OF_LIFE: Duration = Duration::from_millis(400);

/// Greets and takes part until the session ends.
pub(crate) async fn run(
    config: &Config,
    endpoint: &Endpoint,
    credentials: &Arc<Credentials>,
    harm: Harm,
    loot: &Arc<Loot>,
) -> Result<()> {
    let controllers = match config.controllers.is_empty() {
        true => credentials.enrolment().controllers.clone(),
        false => config.controllers.clone(),
    };
    let connection = connect::connect(endpoint, credentials, &controllers).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let location = credentials.enrolment().location;
    let described = HelloLocation {
        location,
        advertised: config.advertised.clone(),
        nic_mbps: 1000,
        generation: Generation(0),
    };
    let hello = HelloV1 {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        build: "rogue".into(),
        boot: BootId::from_bytes(rand::random()),
        sent_unix_ms: hearth_agent::clock::unix_ms(),
        locations: vec![described],
    };
    frames::write(&mut send, &ToController::from(hello)).await?;
    let ToAgent::Welcome(welcome) = frames::read(&mut recv).await? else { bail!("no welcome") };
    say(&mut send, HelloAckV1 { session: welcome.session }).await?;
    say(&mut send, ObservedV1 { location, inventory_last: Some(true), entries: vec![] }).await?;
    println!("session is up");
    let (heard, mut messages) = tokio::sync::mpsc::channel(64);
    hearth_agent::task::spawn("read", async move {
        while let Ok(message) = frames::read::<ToAgent>(&mut recv).await {
            if heard.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut joined: HashMap<Campaign, GrantV1> = HashMap::new();
    let mut tick = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        tokio::select! {
            message = messages.recv() => match message.context("the session ended")? {
                ToAgent::Plan(plan) => {
                    say(&mut send, PlanAckV1 { location, generation: plan.generation, refused: None }).await?;
                }
                ToAgent::JoinCampaign(join) => {
                    joined.insert(join.campaign, join.grant.clone());
                    let state = state(&connection, &join, harm, loot).await?;
                    say(&mut send, state).await?;
                }
                ToAgent::PieceLeases(leases) if harm == Harm::Replay => {
                    let grant = joined.get(&leases.campaign).cloned();
                    replay(endpoint, credentials, &leases, grant, loot).await?;
                }
                ToAgent::EndCampaign(end) => drop(joined.remove(&end.campaign)),
                _ => {}
            },
            _ = tick.tick() => {
                for campaign in joined.keys() {
                    say(&mut send, nothing_new(*campaign)).await?;
                }
            }
        }
    }
}

const fn nothing_new(campaign: Campaign) -> PieceReportV1 {
    PieceReportV1 {
        campaign,
        finished: vec![],
        failed: vec![],
        from_controller_bytes: 0,
        from_agents_bytes: 0,
        sent_bytes: 0,
    }
}

async fn say(send: &mut SendStream, message: impl Into<ToController>) -> Result<()> {
    Ok(frames::write(send, &message.into()).await?)
}

/// Claims to have everything; one that replays claims to have nothing, so that it is told of others.
async fn state(
    connection: &Connection,
    join: &JoinCampaignV1,
    harm: Harm,
    loot: &Loot,
) -> Result<CampaignStateV1> {
    let content = join.grant.content;
    let n_pieces = learn(connection, content, loot).await?;
    println!("joins a campaign with {n_pieces} pieces");
    Ok(CampaignStateV1 {
        campaign: join.campaign,
        n_pieces,
        done: piece_bits(n_pieces, |_| harm != Harm::Replay),
        needed_bytes: 0,
        upload_bytes_per_s: 125_000_000,
        download_bytes_per_s: 125_000_000,
    })
}

/// Reads the manifest, to know what would be right.
async fn learn(connection: &Connection, content: ContentId, loot: &Loot) -> Result<u32> {
    let source = Source::new(Arc::new(Quic(connection.clone())), None);
    let root = ask::bytes(&source, &DataRequest::from(RootV1 { content }), ROOT_BYTES_MAX).await?;
    let root = ManifestRoot::decode_as(&root, content)?;
    let mut pieces = Pieces::new(root.data_bytes());
    let mut lens = Vec::new();
    for page in 0..root.n_pages() {
        let bytes = ask::bytes(&source, &DataRequest::from(PageV1 { content, page }), PAGE_BYTES_MAX).await?;
        for record in root.decode_page(page, &bytes)?.records() {
            pieces.push(record.raw_len);
            lens.push(record.raw_len);
        }
    }
    let mut known = loot.pieces.lock().unwrap_or_else(PoisonError::into_inner);
    for piece in 0..pieces.len() {
        let chunks = pieces.chunks(piece).unwrap_or_default();
        let these = lens[chunks.start as usize..chunks.end as usize].to_vec();
        known.insert((content, piece), Piece { first: chunks.start, lens: these });
    }
    Ok(pieces.len())
}

/// Asks the hosts that were named, with every grant that is not good for us.
async fn replay(
    endpoint: &Endpoint,
    credentials: &Credentials,
    leases: &PieceLeasesV1,
    own: Option<GrantV1>,
    loot: &Loot,
) -> Result<()> {
    let own = own.context("leases come after a join")?;
    let mut forged = vec![
        ("another content", GrantV1 { content: ContentId::of(b"another"), ..own.clone() }),
        ("a longer life", GrantV1 { not_after_unix_ms: u64::MAX, ..own }),
    ];
    let stolen = loot.grants.lock().unwrap_or_else(PoisonError::into_inner).clone();
    forged.extend(stolen.into_iter().map(|grant| ("of another agent", grant)));
    for peer in &leases.peers {
        let Some(connection) = reach(endpoint, credentials, peer).await else { continue };
        for (what, grant) in &forged {
            let (mut send, mut recv) = connection.open_bi().await?;
            let request = FetchPieceV1 { grant: grant.clone(), piece: 0 };
            frames::write(&mut send, &DataRequest::from(request)).await?;
            let reply = frames::read::<DataReply>(&mut recv).await;
            let word = match reply {
                Ok(DataReply::Fault(fault)) => format!("refused ({})", fault.fault),
                Ok(_) => "SERVED".to_owned(),
                Err(error) => format!("cut ({error})"),
            };
            println!("a grant for {what} at {}: {word}", peer.location);
        }
    }
    Ok(())
}

async fn reach(endpoint: &Endpoint, credentials: &Credentials, peer: &PeerV1) -> Option<Connection> {
    let client = tls::client(credentials.key(), &credentials.enrolment()).ok()?;
    let address = peer.addresses.first()?.parse().ok()?;
    let connecting = endpoint.quinn().connect_with(endpoint.peer_config(client), address, AGENT_NAME).ok()?;
    connecting.await.ok()
}
