//! A campaign: how the hosts that need one content pass it to each other. It is shown with the prewarm job that it serves.
//!
//! **Why the bound is beside the time.** A time alone says nothing of the plan; beside the time that no plan can beat, and
//! what sets that, it says what would have to be faster.

use serde::{Deserialize, Serialize};

use crate::id::LocationId;

/// A campaign. Numbers change about once a second while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Campaign {
    /// Its number in this life of the controller.
    pub number: u64,
    /// When it began.
    pub since: String,
    /// When it ended; absent: it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_why: Option<String>,
    /// Seconds until every receiver had everything; while one lacks something, seconds so far.
    pub elapsed_s: f64,
    /// Seconds that no plan can beat; absent while it is not known what the hosts need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_s: Option<f64>,
    /// What would have to be faster for a lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_set_by: Option<BoundSetBy>,
    /// `elapsed_s` in times of `bound_s`; below 1 while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Pieces of the content.
    pub n_pieces: u32,
    /// Raw bytes of a piece.
    pub piece_bytes: u64,
    /// Hosts that receive or received.
    pub receivers: u32,
    /// Of those, the ones that have everything.
    pub done: u32,
    /// Hosts that have the content and only serve.
    pub holders: u32,
    /// Leases given: times that a host was told what to fetch from whom.
    pub leases: u64,
    /// Pieces that the controller sent, in copies of the content.
    pub source_copies: f64,
    /// Pieces that hosts had from a host in another rack, in copies of the content.
    pub cross_rack_copies: f64,
    /// Stored bytes that hosts had from the controller.
    pub from_controller_bytes: u64,
    /// Stored bytes that hosts had from each other.
    pub from_agents_bytes: u64,
    /// Who takes longest, at most 8: first those that lack most, then those that finished last.
    pub slowest: Vec<CampaignHost>,
    /// Who failed others most, at most 8.
    pub culprits: Vec<CampaignHost>,
}

/// What sets the time that no plan can beat.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoundSetBy {
    /// The controller must send everything once.
    Source,
    /// The slowest host must take everything.
    SlowestHost,
    /// All uplinks together must send everything to everybody.
    Uplinks,
    /// A piece must be had whole before it is sent on.
    Pieces,
}

/// A host of a campaign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CampaignHost {
    /// The location; absent for one that you may not see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<LocationId>,
    /// Its name; `another host` for one that you may not see.
    pub location_name: String,
    /// It receives; else it only serves.
    pub receives: bool,
    /// It takes part now, or did when the campaign ended.
    pub here: bool,
    /// Pieces that it has, 0 to 100; 100 means all.
    pub percent: u8,
    /// Seconds from the begin of the campaign until it joined; absent: it has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_s: Option<f64>,
    /// Seconds from the begin of the campaign until it had everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_s: Option<f64>,
    /// Stored bytes that it had from the controller.
    pub from_controller_bytes: u64,
    /// Stored bytes that it had from other hosts.
    pub from_agents_bytes: u64,
    /// Bytes that it sent to other hosts.
    pub sent_bytes: u64,
    /// How often others found it full or too late; this happens to everybody.
    pub late: u32,
    /// How often it lacked a piece that it had announced.
    pub missing: u32,
    /// How often it could not be reached, broke off or stalled.
    pub silent: u32,
    /// How often it sent wrong bytes.
    pub wrong: u32,
    /// Why it is slow, or what it did; empty if nothing is known.
    pub reason: String,
}
