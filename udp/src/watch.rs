//! Descriptors of which tokio watches one kind of event.
//!
//! **What.** [`watch`] registers a descriptor for packets, or for room to send, and not for both.
//! **Why.** tokio's own socket is woken by both, and room comes with every packet that leaves.
//! **Invariants.** The only module of this crate that may use `unsafe`; the block says why it is sound.

#![expect(unsafe_code, reason = "a call without a safe wrapper lives in this module alone")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that own their descriptor and name the same one for as long as they live.
pub(crate) trait OwnsFd: AsRawFd {}
impl OwnsFd for UdpSocket {}
impl OwnsFd for OwnedFd {}

/// `of`, watched for `interest` alone.
///
/// # Errors
/// What the kernel says to the registration.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn watch<T: OwnsFd>(of: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsFd` says that the descriptor is open and the same until `of` is dropped, which the result owns.
    Ok(unsafe { AsyncFd::register_with_interest(of, interest) }?)
}
