//! How the hosts of a prewarm job pass the image to each other: a line while it goes on, tables afterwards.
//!
//! **Why the least possible time.** It tells a slow plan from a slow network, and names what would have to be faster.
//! **Invariants.** For people alone: programs read the API's body.

use std::time::Duration;

use hearth_protocol::api::campaign::{BoundSetBy, Campaign, CampaignHost};

use crate::output::{Cell, Grid, Out};
use crate::{size, when};

/// `swarm: 21 of 32 done, 18.4 s of at least 16.1 s (1.14×, set by the uplinks), 1.02 copies from the controller`. Nothing
/// while nobody has answered yet.
#[must_use]
pub(crate) fn line(campaign: &Campaign) -> Option<String> {
    if campaign.receivers == 0 {
        return None;
    }
    let mut text =
        format!("swarm: {} of {} done, {}", campaign.done, campaign.receivers, seconds(campaign.elapsed_s));
    if let Some((bound_s, set_by)) = campaign.bound_s.zip(campaign.bound_set_by) {
        let ratio = ratio(campaign).map(|ratio| format!("{ratio}, ")).unwrap_or_default();
        text.push_str(&format!(" of at least {} ({ratio}set by {})", seconds(bound_s), limit(set_by)));
    }
    text.push_str(&format!(", {:.2} copies from the controller", campaign.source_copies));
    Some(text)
}

/// Whether the numbers are final: they are counted once a second.
#[must_use]
pub(crate) const fn is_counted(campaign: &Campaign) -> bool {
    campaign.ended_at.is_some() || (campaign.receivers > 0 && campaign.done == campaign.receivers)
}

/// Facts, slow hosts and those that failed others, below the facts of a job.
///
/// # Errors
/// Output that cannot be written.
pub(crate) fn show(out: Out, campaign: &Campaign) -> anyhow::Result<()> {
    out.below(&facts(campaign))?;
    if !campaign.slowest.is_empty() {
        out.below(&slowest(&campaign.slowest))?;
    }
    if !campaign.culprits.is_empty() {
        out.below(&culprits(&campaign.culprits))?;
    }
    Ok(())
}

fn facts(campaign: &Campaign) -> Grid {
    let state = match &campaign.ended_why {
        None => "running".to_owned(),
        Some(why) => format!("ended: {why}"),
    };
    let done = match campaign.holders {
        0 => format!("{} of {} hosts", campaign.done, campaign.receivers),
        n => format!("{} of {} hosts; {n} more serve", campaign.done, campaign.receivers),
    };
    let bound = campaign.bound_s.zip(campaign.bound_set_by);
    let bound = bound.map(|(bound_s, set_by)| format!("{}, set by {}", seconds(bound_s), limit(set_by)));
    let so_far = if is_counted(campaign) { "" } else { " so far" };
    let sent =
        format!("{}, {:.2} copies sent", size::human(campaign.from_controller_bytes), campaign.source_copies);
    let mut rows = vec![
        ("state", Cell::text(state)),
        ("done", Cell::text(done)),
        ("time", Cell::text(format!("{}{so_far}", seconds(campaign.elapsed_s)))),
    ];
    rows.extend(bound.map(|bound| ("at least", Cell::text(bound))));
    rows.extend(ratio(campaign).map(|ratio| ("ratio", Cell::text(ratio))));
    rows.push(("from controller", Cell::text(sent)));
    rows.push(("from hosts", Cell::text(size::human(campaign.from_agents_bytes))));
    if campaign.cross_rack_copies > 0.0 {
        rows.push(("between racks", Cell::text(format!("{:.2} copies", campaign.cross_rack_copies))));
    }
    let mut grid = Grid::new(&["SWARM", ""]);
    rows.into_iter().for_each(|(name, cell)| grid.push(vec![Cell::text(name), cell]));
    grid
}

fn slowest(hosts: &[CampaignHost]) -> Grid {
    const COLUMNS: &[&str] =
        &["SLOWEST LOCATION", "DONE", "~AFTER", "FROM CONTROLLER", "FROM HOSTS", "SENT", "WHY"];
    Grid::of(COLUMNS, hosts, |host| {
        vec![
            Cell::text(&host.location_name),
            Cell::Percent(host.percent),
            Cell::maybe(host.finished_s.map(seconds)),
            Cell::Bytes(Some(host.from_controller_bytes)),
            Cell::Bytes(Some(host.from_agents_bytes)),
            Cell::Bytes(Some(host.sent_bytes)),
            Cell::text(&host.reason),
        ]
    })
}

fn culprits(hosts: &[CampaignHost]) -> Grid {
    Grid::of(&["FAILED OTHERS", "SENT", "WHAT"], hosts, |host| {
        vec![Cell::text(&host.location_name), Cell::Bytes(Some(host.sent_bytes)), Cell::text(&host.reason)]
    })
}

/// `1.14×`; nothing while the time is still below the least possible one.
fn ratio(campaign: &Campaign) -> Option<String> {
    let shown = campaign.ratio.filter(|ratio| *ratio >= 1.0 || is_counted(campaign));
    shown.map(|ratio| format!("{ratio:.2}×"))
}

/// What would have to be faster.
const fn limit(set_by: BoundSetBy) -> &'static str {
    match set_by {
        BoundSetBy::Source => "the controller",
        BoundSetBy::SlowestHost => "the slowest host",
        BoundSetBy::Uplinks => "the uplinks",
        BoundSetBy::Pieces => "the uplinks, piece by piece",
    }
}

/// `18.4 s`, `184 s`, `17 min`.
fn seconds(s: f64) -> String {
    match s {
        ..100.0 => format!("{s:.1} s"),
        ..1000.0 => format!("{s:.0} s"),
        _ => when::human(Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Look;

    fn host(name: &str, percent: u8, finished_s: Option<f64>, reason: &str) -> CampaignHost {
        CampaignHost {
            location: None,
            location_name: name.into(),
            receives: true,
            here: true,
            percent,
            joined_s: Some(0.1),
            finished_s,
            from_controller_bytes: 64 << 20,
            from_agents_bytes: 2 << 30,
            sent_bytes: 3 << 30,
            late: 7,
            missing: 0,
            silent: 0,
            wrong: 0,
            reason: reason.into(),
        }
    }

    fn campaign() -> Campaign {
        Campaign {
            number: 4,
            since: "2026-03-01T09:57:00Z".into(),
            ended_at: None,
            ended_why: None,
            elapsed_s: 18.36,
            bound_s: Some(16.1),
            bound_set_by: Some(BoundSetBy::Uplinks),
            ratio: Some(1.1404),
            n_pieces: 512,
            piece_bytes: 4 << 20,
            receivers: 32,
            done: 21,
            holders: 0,
            leases: 16_000,
            source_copies: 1.0195,
            cross_rack_copies: 0.0,
            from_controller_bytes: 2 << 30,
            from_agents_bytes: 62 << 30,
            slowest: vec![host("cn-7", 41, None, "has not answered"), host("cn-12", 100, Some(17.9), "")],
            culprits: Vec::new(),
        }
    }

    fn text(grid: &Grid) -> String {
        let now = "2026-03-01T10:00:00Z".parse().unwrap();
        grid.table(Look { width: None, colour: false, now })
    }

    #[test]
    fn a_line_says_how_far_and_how_well() {
        let expected = "swarm: 21 of 32 done, 18.4 s of at least 16.1 s (1.14×, set by the uplinks), 1.02 copies from the controller";
        assert_eq!(line(&campaign()).as_deref(), Some(expected));
    }

    #[test]
    fn a_ratio_below_one_is_no_news_while_it_runs() {
        let early = Campaign { elapsed_s: 8.0, ratio: Some(0.5), ..campaign() };
        assert!(line(&early).unwrap().contains("8.0 s of at least 16.1 s (set by the uplinks)"));
        let done = Campaign { done: 32, ratio: Some(0.97), ..campaign() };
        assert!(line(&done).unwrap().contains("(0.97×, set by"), "parts of pieces were passed on");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let unknown = Campaign { bound_s: None, bound_set_by: None, ratio: None, ..campaign() };
        let expected = "swarm: 21 of 32 done, 18.4 s, 1.02 copies from the controller";
        assert_eq!(line(&unknown).as_deref(), Some(expected));
        assert_eq!(line(&Campaign { receivers: 0, done: 0, ..campaign() }), None);
        assert!(!text(&facts(&unknown)).contains("at least"));
    }

    #[test]
    fn long_times_have_no_tenths() {
        assert_eq!([9.96, 99.94, 184.3, 1_020.0].map(seconds), ["10.0 s", "99.9 s", "184 s", "17 min"]);
    }

    #[test]
    fn a_running_swarm_in_tables() {
        insta::assert_snapshot!(text(&facts(&campaign())), @r"
        SWARM
        state            running
        done             21 of 32 hosts
        time             18.4 s so far
        at least         16.1 s, set by the uplinks
        ratio            1.14×
        from controller  2.0 GiB, 1.02 copies sent
        from hosts       62.0 GiB
        ");
        insta::assert_snapshot!(text(&slowest(&campaign().slowest)), @r"
        SLOWEST LOCATION  DONE  AFTER   FROM CONTROLLER  FROM HOSTS     SENT  WHY
        cn-7               41%  -              64.0 MiB     2.0 GiB  3.0 GiB  has not answered
        cn-12             100%  17.9 s         64.0 MiB     2.0 GiB  3.0 GiB  -
        ");
    }

    #[test]
    fn a_swarm_that_ended_over_racks_and_with_culprits() {
        let ended = Campaign {
            ended_at: Some("2026-03-01T09:58:00Z".into()),
            ended_why: Some("everybody has it".into()),
            done: 32,
            holders: 2,
            cross_rack_copies: 3.1,
            culprits: vec![host("cn-9", 100, None, "sent wrong bytes 4 times")],
            ..campaign()
        };
        insta::assert_snapshot!(text(&facts(&ended)), @r"
        SWARM
        state            ended: everybody has it
        done             32 of 32 hosts; 2 more serve
        time             18.4 s
        at least         16.1 s, set by the uplinks
        ratio            1.14×
        from controller  2.0 GiB, 1.02 copies sent
        from hosts       62.0 GiB
        between racks    3.10 copies
        ");
        insta::assert_snapshot!(text(&culprits(&ended.culprits)), @r"
        FAILED OTHERS     SENT  WHAT
        cn-9           3.0 GiB  sent wrong bytes 4 times
        ");
    }
}
