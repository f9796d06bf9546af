//! One idle session, opened again whenever it ends.
//!
//! **What.** Hello, Welcome, HelloAck, empty inventory, then a pulse each heartbeat with ±20 % jitter.
//! **Why full jitter.** After a controller's restart all agents come at once; each waits a random part of its back-off.
//! **Invariants.** `up` counts a session from its acknowledged Welcome to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use hearth_protocol::frame::{FrameHeader, HEADER_BYTES, Message};
use hearth_protocol::id::{BootId, Generation};
use hearth_protocol::message::control::{
    HelloAckV1, HelloLocation, HelloV1, ObservedV1, PlanAckV1, PulseV1, ToAgent, ToController,
};
use hearth_protocol::version::{VERSION_MAX, VERSION_MIN};

use crate::fleet::{Agent, SERVER_NAME, Tally};
use crate::unix_ms;

/// Longest wait before the next try.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Keeps one session up for ever.
pub(crate) async fn keep(agent: Agent, controller: SocketAddr, tally: Arc<Tally>) {
    let boot = BootId::from_bytes(rand::random());
    let mut backoff = Duration::from_secs(1);
    loop {
        let mut up = false;
        if let Err(error) = session(&agent, boot, controller, &tally, &mut up).await
            && tally.lost.load(Ordering::Relaxed) == 0
        {
            eprintln!("first session that ended: {error:#}");
        }
        if up {
            tally.up.fetch_sub(1, Ordering::Relaxed);
            tally.lost.fetch_add(1, Ordering::Relaxed);
            backoff = Duration::from_secs(1);
        }
        tokio::time::sleep(backoff.mul_f64(rand::random::<f64>())).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn session(
    agent: &Agent,
    boot: BootId,
    controller: SocketAddr,
    tally: &Tally,
    up: &mut bool,
) -> Result<()> {
    let connection = agent.endpoint.connect_with(agent.config.clone(), controller, SERVER_NAME)?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let location = agent.location;
    let here = HelloLocation { location, advertised: Vec::new(), nic_mbps: 1000, generation: Generation(0) };
    let hello = HelloV1 {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        build: "load".into(),
        boot,
        sent_unix_ms: unix_ms(),
        locations: vec![here],
    };
    write(&mut send, &ToController::from(hello)).await?;
    let welcome = match read::<ToAgent>(&mut receive).await? {
        ToAgent::Welcome(welcome) => welcome,
        other => bail!("expected Welcome, got {other:?}"),
    };
    write(&mut send, &ToController::from(HelloAckV1 { session: welcome.session })).await?;
    let inventory = ObservedV1 { location, inventory_last: Some(true), entries: Vec::new() };
    write(&mut send, &ToController::from(inventory)).await?;
    *up = true;
    tally.up.fetch_add(1, Ordering::Relaxed);
    tally.welcomes.fetch_add(1, Ordering::Relaxed);
    tally.last_welcome_unix_ms.store(unix_ms(), Ordering::Relaxed);
    let heartbeat = Duration::from_millis(welcome.heartbeat_ms.into());
    let send = tokio::sync::Mutex::new(send);
    let pulses = async {
        loop {
            tokio::time::sleep(heartbeat.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
            if let Err(error) = write(&mut *send.lock().await, &pulse(agent)).await {
                break Err(error);
            }
        }
    };
    let plans = async {
        loop {
            match read::<ToAgent>(&mut receive).await {
                Ok(ToAgent::Plan(plan)) => {
                    let ack = PlanAckV1 { location, generation: plan.generation, refused: None };
                    if let Err(error) = write(&mut *send.lock().await, &ToController::from(ack)).await {
                        break Err(error);
                    }
                }
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        }
    };
    tokio::select! { ended = pulses => ended, ended = plans => ended }
}

fn pulse(agent: &Agent) -> ToController {
    PulseV1 {
        location: agent.location,
        unix_ms: unix_ms(),
        generation: Generation(0),
        budget_bytes: 1 << 40,
        used_bytes: 0,
        free_bytes: 1 << 40,
        floor_bytes: 0,
        degraded: String::new(),
    }
    .into()
}

/// Sends one frame.
pub(crate) async fn write<M: Message>(send: &mut quinn::SendStream, message: &M) -> Result<()> {
    send.write_all(&message.to_frame()?).await?;
    Ok(())
}

/// Reads one frame. Not cancel-safe inside a frame; callers drop the stream when it fails.
pub(crate) async fn read<M: Message>(receive: &mut quinn::RecvStream) -> Result<M> {
    let mut header = [0; HEADER_BYTES];
    receive.read_exact(&mut header).await?;
    let header = FrameHeader::parse(header)?;
    let mut body = vec![0; header.body_bytes];
    receive.read_exact(&mut body).await?;
    Ok(M::from_body(header.kind, &body)?)
}
