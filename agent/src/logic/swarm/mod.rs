//! An agent's part in a swarm: which leases it follows how, whom it serves next, what it does when nobody leads.
//!
//! **What.** [`Downloads`] follows the leases of one content, [`Uploads`] orders those who ask this host, [`Neighbours`] finds
//! work while the controller is away. All are pure: the shell moves the bytes and says what happened.
//! **Why the server offers and the receiver accepts.** A lease names three holders and all are asked. Whoever has a free slot
//! first offers; the receiver takes one offer per piece and declines the others. No byte is sent twice, and no slot waits for
//! somebody who is served elsewhere.

pub mod downloads;
pub mod neighbours;
pub mod uploads;

pub use downloads::{Downloads, Ended, Failed, Lease, Report, WINDOW_MAX, window};
pub use neighbours::Neighbours;
pub use uploads::{Answer, Uploads, Wish};
