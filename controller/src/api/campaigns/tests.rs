//! What is shown of a campaign, and to whom.

use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::id::{ImageId, PrewarmId};
use hearth_protocol::message::swarm::Campaign as CampaignNumber;
use hearth_protocol::words::Priority;

use super::*;
use crate::fleet::Failures;
use crate::logic::swarm::{Shape, bound};

const CONTENT: ContentId = ContentId::from_bytes([7; 32]);

fn location(n: u8) -> LocationId {
    LocationId::from_bytes([n; 16])
}

/// A host that is done and did nothing wrong.
fn host(n: u8) -> HostView {
    HostView {
        location: location(n),
        receives: true,
        is_here: true,
        n_done: 200,
        joined_us: Some(100_000),
        finished_us: Some(9_000_000),
        from_controller_bytes: 0,
        from_agents_bytes: 0,
        sent_bytes: 0,
        failures: Failures::default(),
        accusers: 0,
        is_expelled: false,
    }
}

/// A host that lacks something.
fn slow(n: u8) -> HostView {
    HostView { n_done: 199, finished_us: None, ..host(n) }
}

fn shape() -> Shape {
    Shape {
        n_hosts: 10,
        bytes: 1000,
        piece_bytes: 5,
        source_bytes_per_s: 100,
        download_bytes_per_s_min: 1000,
        upload_bytes_per_s_sum: 100_000,
    }
}

fn view() -> CampaignView {
    CampaignView {
        campaign: CampaignNumber { epoch: 1, number: 3 },
        content: CONTENT,
        since_us: 1_000_000,
        ended: None,
        elapsed_us: 12_000_000,
        n_pieces: 200,
        piece_bytes: 5,
        data_bytes: 1000,
        n_receivers: 2,
        n_done: 1,
        n_holders: 0,
        bound: Some(bound(&shape())),
        leases: 400,
        source_pieces: 220,
        cross_rack_pieces: 50,
        from_controller_bytes: 1100,
        from_agents_bytes: 900,
        slowest: vec![slow(1), host(2)],
        culprits: Vec::new(),
        hosts: Vec::new(),
    }
}

#[test]
fn a_host_that_the_caller_may_not_see_has_neither_id_nor_name() {
    let seen = Known { name: Some("cn-2".into()), online: true };
    let shown = body(&view(), &HashMap::from([(location(2), seen), (location(1), Known::default())]));
    let names = shown.slowest.iter().map(|host| (host.location, host.location_name.as_str()));
    assert_eq!(names.collect::<Vec<_>>(), [(None, "another host"), (Some(location(2)), "cn-2")]);
}

#[test]
fn times_and_copies_are_in_proportion() {
    let shown = body(&view(), &HashMap::new());
    assert_eq!((shown.bound_s, shown.bound_set_by), (Some(10.0), Some(BoundSetBy::Source)));
    assert_eq!((shown.elapsed_s, shown.ratio), (12.0, Some(1.2)));
    assert_eq!((shown.source_copies, shown.cross_rack_copies), (1.1, 0.25));
    assert_eq!(shown.slowest.iter().map(|host| host.percent).collect::<Vec<_>>(), [99, 100]);
}

/// JSON would have `null` for it.
#[test]
fn an_endless_bound_is_none() {
    let endless = bound(&Shape { source_bytes_per_s: 0, ..shape() });
    let shown = body(&CampaignView { bound: Some(endless), n_pieces: 0, ..view() }, &HashMap::new());
    assert_eq!((shown.bound_s, shown.bound_set_by, shown.ratio), (None, None, None));
    assert!(shown.source_copies.is_finite());
    assert!(!serde_json::to_string(&shown).unwrap().contains("null"));
}

#[test]
fn each_limit_has_its_word() {
    let words = [
        (shape(), BoundSetBy::Source),
        (Shape { download_bytes_per_s_min: 10, ..shape() }, BoundSetBy::SlowestHost),
        (Shape { upload_bytes_per_s_sum: 100, piece_bytes: 0, ..shape() }, BoundSetBy::Uplinks),
        (Shape { piece_bytes: 1000, upload_bytes_per_s_sum: 1000, ..shape() }, BoundSetBy::Pieces),
    ];
    for (shape, word) in words {
        assert_eq!(set_by(bound(&shape)), word, "{shape:?}");
    }
}

#[test]
fn a_reason_says_why_a_host_is_slow_or_what_it_did() {
    let failed = |wrong, silent, missing| Failures { wrong, silent, missing, late: 9 };
    let silent = HostView { joined_us: None, ..slow(1) };
    let gone = HostView { is_here: false, ..slow(1) };
    let holder = HostView { receives: false, is_here: false, ..slow(1) };
    // The host, whether it is online, whether the campaign has ended.
    let cases = [
        (host(1), true, false, ""),
        (slow(1), true, false, ""),
        (HostView { is_here: false, ..host(1) }, false, false, ""),
        (gone.clone(), false, false, "offline"),
        (gone.clone(), true, false, "takes no part any more"),
        (gone, false, true, "left before the end"),
        (silent.clone(), true, false, "has not answered"),
        (silent.clone(), false, false, "offline"),
        (silent, true, true, "never answered"),
        (holder, false, false, "offline"),
        (HostView { failures: failed(0, 0, 0), ..host(1) }, true, false, ""),
        (HostView { failures: failed(3, 0, 0), ..host(1) }, true, false, "sent wrong bytes 3 times"),
        (
            HostView { failures: failed(4, 2, 0), accusers: 3, is_expelled: true, ..host(1) },
            true,
            false,
            "3 hosts had wrong bytes from it: left out",
        ),
        (
            HostView { failures: failed(0, 5, 1), ..host(1) },
            true,
            false,
            "silent 5 times, lacked what it had announced once",
        ),
        (
            HostView { is_here: false, failures: failed(1, 0, 0), ..slow(1) },
            false,
            false,
            "offline, sent wrong bytes once",
        ),
    ];
    for (host, online, has_ended, expected) in cases {
        assert_eq!(reason(&host, online, has_ended), expected, "{host:?} {online} {has_ended}");
    }
}

#[test]
fn a_job_shows_a_campaign_that_ran_while_it_did() {
    let job = Prewarm {
        id: PrewarmId::from_bytes([1; 16]),
        image: ImageId::from_bytes([2; 16]),
        content: CONTENT,
        image_name: "debian-12".into(),
        group: None,
        state: PrewarmState::Running,
        targets: Targets::default(),
        priority: Priority::Bulk,
        deadline_us: None,
        start_us: Some(150),
        rate_bytes_per_s: None,
        keep: Keep::default(),
        created_by: "root".into(),
        created_us: 100,
        finished_us: None,
    };
    let done = Prewarm { state: PrewarmState::Done, finished_us: Some(300), ..job.clone() };
    let scheduled = Prewarm { state: PrewarmState::Scheduled, ..job.clone() };
    let other = ContentId::from_bytes([8; 32]);
    assert!(is_of(CONTENT, (50, None), &job), "it had begun for somebody else and runs");
    assert!(is_of(CONTENT, (160, Some(250)), &job));
    assert!(!is_of(other, (160, Some(250)), &job), "another content");
    assert!(!is_of(CONTENT, (50, Some(149)), &job), "it ended before the job began");
    assert!(is_of(CONTENT, (160, Some(400)), &done), "holders linger");
    assert!(!is_of(CONTENT, (301, None), &done), "it serves a later job");
    assert!(!is_of(CONTENT, (50, None), &scheduled), "the job has not begun");
}
