//! How fast this host sends and takes in campaigns.
//!
//! **What.** Two token buckets for the whole host, and what they allow by configuration and by the speed of the interface.
//! **Why a share of the interface.** Guests come first: what is not configured is a fifth of the interface, at most
//! 2.5 Gbit/s.
//! **Why it changes.** [`Caps::give_way`] leaves the interface to guests that fill it (`logic::guests`).
//! **Invariants.** The controller is told of rates as configured: it plans for the whole, and a host that gives way is slow.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::clock;
use crate::logic::guests::Share;
use crate::logic::nic::NIC_MBPS_DEFAULT;
use crate::nic;
use crate::transfer::endpoint::Endpoint;
use crate::transfer::rate::RateCap;

/// Part of the interface that may be used for sending if nothing is configured: one in this many.
const UPLOAD_PART: u32 = 5;
/// Most of it, Mbit/s.
const UPLOAD_MBPS_MAX: u32 = 2500;
/// Time between two looks at the interface.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bytes on the wire for a hundred of chunks: headers of Ethernet, IP, UDP and QUIC (5), and acknowledgements of what comes
/// in meanwhile. A cap that left them out would be more than a line of that speed can take, and what waits for it would
/// make every piece late.
const WIRE_PERCENT: u64 = 107;
/// Fewer bytes between two looks are pulses and reports.
const IDLE_BYTES: u64 = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Caps {
    upload_mbps: Option<u32>,
    download_mbps: Option<u32>,
    nic_mbps: AtomicU32,
    /// What all uploads share, in bytes on the wire.
    upload: RateCap,
    /// What all downloads share; without a rate if none is configured.
    pub download: Arc<RateCap>,
}

const fn bytes_per_s(mbps: u32) -> u64 {
    mbps as u64 * 125_000
}

impl Caps {
    /// Caps as configured, Mbit/s; `None`: by the speed of the interface for uploads, none for downloads.
    #[must_use]
    pub fn new(upload_mbps: Option<u32>, download_mbps: Option<u32>) -> Self {
        let caps = Self {
            upload_mbps,
            download_mbps,
            nic_mbps: AtomicU32::new(NIC_MBPS_DEFAULT),
            upload: RateCap::new(None),
            download: Arc::new(RateCap::new(download_mbps.map(bytes_per_s))),
        };
        caps.upload.set(Some(caps.upload_bytes_per_s()));
        caps
    }

    /// The interface has this speed.
    pub fn set_nic(&self, mbps: u32) {
        self.nic_mbps.store(mbps.max(1), Ordering::Relaxed);
        self.upload.set(Some(self.upload_bytes_per_s()));
    }

    /// Looks at the interface that leads to `controller` and leaves it to guests that fill it. Never ends.
    pub async fn give_way(
        &self,
        endpoint: &Endpoint,
        advertised: Vec<String>,
        controller: SocketAddr,
    ) -> std::convert::Infallible {
        let (mut sending, mut taking) = (Share::default(), Share::default());
        let (mut before, mut ours_before, mut looked) = (None, endpoint.moved(), clock::monotonic());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ours = endpoint.moved();
            let mine = ours.since(ours_before);
            if before.is_none() && mine.received.max(mine.sent) < IDLE_BYTES {
                // Hardly anything of ours moves, and nobody needs to know how busy the guests are.
                (ours_before, looked) = (ours, clock::monotonic());
                continue;
            }
            let advertised = advertised.clone();
            let read = tokio::task::spawn_blocking(move || nic::moved(&advertised, controller)).await;
            let Ok(Some(moved)) = read else { continue };
            let now = clock::monotonic();
            let passed = now.duration_since(looked);
            (ours_before, looked) = (ours, now);
            let Some(old) = before.replace(moved) else { continue };
            let all = moved.since(old);
            let rate = |bytes: u64| bytes * 1000 / u64::try_from(passed.as_millis()).unwrap_or(1).max(1);
            let nic = bytes_per_s(self.nic_mbps.load(Ordering::Relaxed));
            let upload = sending.look(rate(all.sent), rate(mine.sent), nic, self.upload_bytes_per_s());
            let download =
                taking.look(rate(all.received), rate(mine.received), nic, self.download_bytes_per_s());
            self.upload.set(Some(upload));
            let is_capped = self.download_mbps.is_some() || download < self.download_bytes_per_s();
            self.download.set(is_capped.then_some(download));
            if mine.received.max(mine.sent) < IDLE_BYTES && sending.is_whole() && taking.is_whole() {
                before = None;
            }
        }
    }

    /// Waits until so many bytes of chunks may be sent.
    pub(super) async fn before_sending(&self, bytes: u64) {
        self.upload.pause(bytes * WIRE_PERCENT / 100).await;
    }

    /// What this host may send of chunks, bytes per second, at least 1.
    #[must_use]
    pub fn payload_bytes_per_s(&self) -> u64 {
        self.upload_bytes_per_s() * 100 / WIRE_PERCENT
    }

    /// What this host may send, bytes on the wire per second, at least 1.
    #[must_use]
    pub fn upload_bytes_per_s(&self) -> u64 {
        let share = (self.nic_mbps.load(Ordering::Relaxed) / UPLOAD_PART).clamp(1, UPLOAD_MBPS_MAX);
        bytes_per_s(self.upload_mbps.unwrap_or(share))
    }

    /// What it may take, bytes per second, at least 1.
    #[must_use]
    pub fn download_bytes_per_s(&self) -> u64 {
        let nic_mbps = self.nic_mbps.load(Ordering::Relaxed);
        bytes_per_s(self.download_mbps.unwrap_or(nic_mbps).min(nic_mbps).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_configured_is_a_fifth_of_the_interface() {
        let caps = Caps::new(None, None);
        caps.set_nic(10_000);
        assert_eq!((caps.upload_bytes_per_s(), caps.download_bytes_per_s()), (250_000_000, 1_250_000_000));
        caps.set_nic(100_000);
        assert_eq!(caps.upload_bytes_per_s(), 312_500_000, "2.5 Gbit/s at most");
        let caps = Caps::new(Some(100), Some(40));
        caps.set_nic(100);
        assert_eq!((caps.upload_bytes_per_s(), caps.download_bytes_per_s()), (12_500_000, 5_000_000));
    }
}
