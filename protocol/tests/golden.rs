//! One frozen encoding of every message kind.
//!
//! **What.** Each sample is encoded and compared with `golden/<name>.hex`; `make golden` writes them anew.
//! **Why.** Published messages never change: a change of a struct, an enum's order or the codec shows up here before
//! it meets a host that was not upgraded.
//! **Invariants.** Every kind of every direction has a sample; every file has a sample.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use hearth_protocol::digest::{AgentId, CaFingerprint, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::frame::{FrameHeader, HEADER_BYTES, Message};
use hearth_protocol::id::{BootId, Generation, ImageId, LeaseId, LocationId};
use hearth_protocol::message::control::*;
use hearth_protocol::message::data::*;
use hearth_protocol::message::enrol::*;
use hearth_protocol::message::swarm::*;
use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::words::{ConsumerKind, ContentKind, EntryStatus, GoneReason, LocationKind, Priority};

const LOCATION: LocationId = LocationId::from_bytes([0x11; 16]);
const CONTENT: ContentId = ContentId::from_bytes([0x22; 32]);

struct Golden {
    seen_files: BTreeSet<String>,
    seen_kinds: BTreeSet<u16>,
}

impl Golden {
    fn check<M: Message + std::fmt::Debug + PartialEq>(&mut self, name: &str, message: impl Into<M>) {
        let message: M = message.into();
        let frame = message.to_frame().unwrap();
        let header = FrameHeader::parse(frame[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(
            M::from_body(header.kind, &frame[HEADER_BYTES..]).unwrap(),
            message,
            "{name} survives the wire"
        );
        let file = format!("{:04x}-{name}.hex", header.kind);
        let path = folder().join(&file);
        let text = hex(&frame);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let frozen = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            frozen, text,
            "{file} differs: a published message must not change; add a new version instead"
        );
        self.seen_files.insert(file);
        self.seen_kinds.insert(header.kind);
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

#[test]
fn every_message_has_its_frozen_encoding() {
    let mut golden = Golden { seen_files: BTreeSet::new(), seen_kinds: BTreeSet::new() };
    to_controller(&mut golden);
    to_agent(&mut golden);
    data(&mut golden);
    swarm(&mut golden);
    enrolment(&mut golden);
    let kinds = [
        ToController::KINDS,
        ToAgent::KINDS,
        DataRequest::KINDS,
        DataReply::KINDS,
        EnrolRequest::KINDS,
        EnrolReply::KINDS,
    ];
    assert_eq!(golden.seen_kinds, kinds.concat().into_iter().collect(), "every kind has a sample");
    let files =
        std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(golden.seen_files, files.collect(), "every file has a sample");
}

fn to_controller(golden: &mut Golden) {
    golden.check::<ToController>(
        "hello",
        HelloV1 {
            version_min: 1,
            version_max: 2,
            build: "0.1.0".into(),
            boot: BootId::from_bytes([0x33; 16]),
            sent_unix_ms: 1_795_000_000_000,
            locations: vec![HelloLocation {
                location: LOCATION,
                advertised: vec!["10.0.0.7:7444".into()],
                nic_mbps: 25_000,
                generation: Generation(9),
            }],
        },
    );
    golden.check::<ToController>("hello-ack", HelloAckV1 { session: 5 });
    let states = [
        ObservedState::Present(EntryStatus::Active),
        ObservedState::Failed { fault: FaultCode::NoSpace, text: "needs 2 GiB".into(), next_try_unix_ms: 7 },
        ObservedState::Gone(GoneReason::Evicted),
    ];
    let entries = states.map(|state| ObservedEntry {
        content: CONTENT,
        state,
        done_bytes: 1,
        data_bytes: 2,
        moved_bytes: 3,
        reused_bytes: 4,
        allocated_bytes: 5,
        leases: 6,
        last_used_unix_ms: 7,
    });
    let observed = ObservedV1 { location: LOCATION, inventory_last: Some(true), entries: entries.to_vec() };
    golden.check::<ToController>("observed", observed);
    golden.check::<ToController>(
        "pulse",
        PulseV1 {
            location: LOCATION,
            unix_ms: 1,
            generation: Generation(2),
            budget_bytes: 3,
            used_bytes: 4,
            free_bytes: 5,
            floor_bytes: 6,
            degraded: "disk".into(),
        },
    );
    let refused = Some(FaultCode::StalePlan);
    golden.check::<ToController>(
        "plan-ack",
        PlanAckV1 { location: LOCATION, generation: Generation(3), refused },
    );
    let lease = Lease {
        lease: LeaseId::from_bytes([0x44; 16]),
        content: CONTENT,
        kind: ConsumerKind::Vm,
        consumer: "web-1".into(),
        since_unix_ms: 8,
    };
    golden.check::<ToController>("leases", LeasesV1 { location: LOCATION, first: true, leases: vec![lease] });
    golden.check::<ToController>(
        "bad-chunk",
        BadChunkV1 { content: CONTENT, chunk: 7, source: Some(LOCATION) },
    );
    golden.check::<ToController>("renew", RenewV1 { csr_der: vec![1, 2, 3] });
    golden.check::<ToController>("goodbye", GoodbyeV1 { reason: "stop".into() });
    golden.check::<ToController>("want", WantV1 { location: LOCATION, number: 7, image: "debian-12".into() });
    golden.check::<ToController>("key-ask", KeyAskV1 { location: LOCATION, content: CONTENT });
}

fn to_agent(golden: &mut Golden) {
    let welcome =
        WelcomeV1 { version: 1, session: 5, now_unix_ms: 6, heartbeat_ms: 15_000, build: "0.1.0".into() };
    golden.check::<ToAgent>("welcome", welcome);
    golden.check::<ToAgent>("refused", RefusedV1 { fault: FaultCode::Version, text: "speaks 1".into() });
    let entry = PlanEntry {
        content: CONTENT,
        kind: ContentKind::Disk,
        raw_bytes: 2 << 30,
        data_bytes: 375 << 20,
        images: vec![ImageName { image: ImageId::from_bytes([0x55; 16]), name: "debian-12".into() }],
        wish: Wish::Keep,
        priority: Priority::Deadline,
        deadline_unix_ms: Some(1),
        hold: Hold::Until(2),
        admitted: true,
        rate_bytes_per_s: None,
    };
    let removed =
        PlanEntry { wish: Wish::Remove, hold: Hold::Released, kind: ContentKind::File, ..entry.clone() };
    let entries = vec![PlanEntry { hold: Hold::Pinned, ..entry.clone() }, entry, removed];
    let plan =
        PlanV1 { location: LOCATION, generation: Generation(4), part: 0, parts: 1, stopped: false, entries };
    golden.check::<ToAgent>("plan", plan);
    golden.check::<ToAgent>("renewed", RenewedV1 { chain: vec![vec![1], vec![2, 3]] });
    golden.check::<ToAgent>("verify", VerifyV1 { location: LOCATION, content: CONTENT });
    let placed = WantResult::Placed { content: CONTENT };
    golden.check::<ToAgent>("wanted-placed", WantedV1 { number: 7, result: placed });
    let refused = WantResult::Refused { fault: FaultCode::NotFound, text: "no".into() };
    golden.check::<ToAgent>("wanted-refused", WantedV1 { number: 8, result: refused });
    let given = KeyAnswer::Given(Passphrase::new("ab".repeat(32)));
    golden.check::<ToAgent>("key-given", KeyGivenV1 { content: CONTENT, key: given });
    golden.check::<ToAgent>("key-plain", KeyGivenV1 { content: CONTENT, key: KeyAnswer::Plain });
    let refused = KeyAnswer::Refused { fault: FaultCode::NotPlaced, text: "no".into() };
    golden.check::<ToAgent>("key-refused", KeyGivenV1 { content: CONTENT, key: refused });
}

fn data(golden: &mut Golden) {
    golden.check::<DataRequest>("root", RootV1 { content: CONTENT });
    golden.check::<DataRequest>("page", PageV1 { content: CONTENT, page: 2 });
    golden.check::<DataRequest>("fetch", FetchV1 { content: CONTENT, piece: 3, mask: vec![0b101] });
    golden.check::<DataReply>("bytes-follow", BytesFollowV1 { bytes: 40 });
    golden.check::<DataReply>("chunks-follow", ChunksFollowV1 { chunks: 2, bytes: 100 });
    golden.check::<DataReply>(
        "fault",
        FaultV1 { fault: FaultCode::Busy, text: "all 64 slots are taken".into(), retry_after_ms: 500 },
    );
}

fn swarm(golden: &mut Golden) {
    let campaign = Campaign { epoch: 1_795_000_000_000, number: 7 };
    let agent = AgentId::from_bytes([0x66; 32]);
    let grant = GrantV1 {
        content: CONTENT,
        agent,
        not_before_unix_ms: 1,
        not_after_unix_ms: 2,
        epoch: 3,
        signature: [0x77; 64],
    };
    golden.check::<ToAgent>(
        "join-campaign",
        JoinCampaignV1 {
            location: LOCATION,
            campaign,
            controllers: vec!["10.0.0.1:7443".into()],
            slots: 4,
            lease_ms: 3000,
            grant: grant.clone(),
            grant_key: [0x88; 32],
        },
    );
    let peer = PeerV1 { host: 5, location: LOCATION, agent, addresses: vec!["10.0.0.7:7444".into()] };
    let leases = vec![PieceLease { piece: 3, holders: vec![0, 5] }];
    golden.check::<ToAgent>("piece-leases", PieceLeasesV1 { campaign, peers: vec![peer], leases });
    golden.check::<ToAgent>("end-campaign", EndCampaignV1 { campaign, reason: "done".into() });
    golden.check::<ToAgent>("deny", DenyV1 { agents: vec![agent] });
    golden.check::<ToController>(
        "campaign-state",
        CampaignStateV1 {
            campaign,
            n_pieces: 9,
            done: vec![0xff, 1],
            needed_bytes: 4,
            upload_bytes_per_s: 5,
            download_bytes_per_s: 6,
        },
    );
    let kinds = [FailureKind::Late, FailureKind::Missing, FailureKind::Silent, FailureKind::Wrong];
    let failed =
        (1..).zip(kinds).map(|(piece, how)| PieceFailure { piece, from: 5, how, is_last: piece == 2 });
    let came = FinishedPiece { piece: 1, from: Some(5) };
    golden.check::<ToController>(
        "piece-report",
        PieceReportV1 {
            campaign,
            finished: vec![came, FinishedPiece { piece: 2, from: None }],
            failed: failed.collect(),
            from_controller_bytes: 1,
            from_agents_bytes: 2,
            sent_bytes: 3,
        },
    );
    golden.check::<DataRequest>("fetch-piece", FetchPieceV1 { grant: grant.clone(), piece: 3 });
    golden.check::<DataRequest>("go", GoV1 { mask: vec![0b101] });
    golden.check::<DataRequest>("having", HavingV1 { grant });
    golden.check::<DataReply>("ready", ReadyV1 { has_all: true });
    golden.check::<DataReply>("piece-follows", PieceFollowsV1 { chunks: 2 });
    golden.check::<DataReply>("pieces-here", PiecesHereV1 { n_pieces: 9, done: vec![1, 1] });
}

fn enrolment(golden: &mut Golden) {
    let facts = LocationFacts {
        name: "cn-1".into(),
        kind: Some(LocationKind::Host),
        platform: "kvm".into(),
        region: "north".into(),
        zone: "z1".into(),
        rack: "r1".into(),
        account: "a".into(),
        ip: "10.0.0.7".into(),
        serial: "SN1".into(),
        labels: vec![("gpu".into(), "yes".into())],
    };
    golden
        .check::<EnrolRequest>("enrol", EnrolV1 { token_secret: Some([9; 32]), csr_der: vec![4, 5], facts });
    golden.check::<EnrolReply>("enrolled", EnrolledV1 { location: LOCATION, chain: vec![vec![6]] });
    let fault = FaultV1 { fault: FaultCode::Denied, text: "token was used".into(), retry_after_ms: 0 };
    golden.check::<EnrolReply>("fault", fault);
}

#[test]
fn a_join_token_has_its_frozen_text() {
    let token = JoinToken { secret: [0xab; 32], ca: CaFingerprint::from_bytes([0xcd; 32]) };
    assert_eq!(token.to_string(), format!("hj1_{}_{}", "ab".repeat(32), "cd".repeat(32)));
}

#[test]
fn a_body_with_bytes_left_over_is_refused() {
    let frame = ToController::from(HelloAckV1 { session: 5 }).to_frame().unwrap();
    let mut body = frame[HEADER_BYTES..].to_vec();
    body.push(0);
    assert!(ToController::from_body(0x0102, &body).is_err());
    assert!(ToController::from_body(0x0201, &body).is_err(), "a kind of the other direction");
}

#[test]
fn an_announced_length_is_not_allocated() {
    let mut body = 8_u64.to_le_bytes().to_vec();
    body.extend_from_slice(&(1_u64 << 61).to_le_bytes());
    assert!(ToController::from_body(0x0108, &body[8..]).is_err());
    let header = [0xff, 0xff, 0xff, 0x7f, 1, 1];
    assert!(FrameHeader::parse(header).is_err());
}
