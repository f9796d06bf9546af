//! What an administrator does on the controller's own machine: set it up, save it, bring it back, check it.

pub mod backup;
pub mod fsck;
mod holdings;
pub mod init;
pub mod log_archive;
pub mod log_file;
pub mod restore;
mod variants;
