//! Messages by stream. Published structs and the order of enum variants are frozen: a change is a new `…V2` with a
//! new kind, and `tests/golden` holds one encoding of each.
//!
//! | stream | opened by | agent sends | controller sends |
//! |---|---|---|---|
//! | control, the first bidirectional stream of a session | agent | [`control::ToController`] | [`control::ToAgent`] |
//! | data, every further bidirectional stream, either side | the asker | [`data::DataRequest`] | [`data::DataReply`] + raw bytes |
//! | data, every stream of a `hearth-peer/1` connection between two agents | the asker | both: [`data::DataRequest`] and [`data::DataReply`] + raw bytes | |
//! | enrolment, the only stream of a `hearth-enrol/1` connection | agent | [`enrol::EnrolRequest`] | [`enrol::EnrolReply`] |

pub mod control;
pub mod data;
pub mod enrol;
pub mod swarm;
