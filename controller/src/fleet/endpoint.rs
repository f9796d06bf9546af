//! The QUIC endpoint: who may take how much before anybody is known.
//!
//! **What.** The UDP socket, its limits, and the loop that accepts connections and sends each to its door by ALPN.
//! **Why so many limits.** Everything before a certificate is checked is paid for by us and caused by anybody: quinn's
//! defaults allow 65,536 waiting handshakes and a receive window without bound. The values come from reliability.md
//! threat 15 and the transport measurements of performance.md §2a.
//! **Invariants.** An address that nobody proved costs at most one Retry packet once [`RETRY_ABOVE`] handshakes wait. A
//! connection without certificate reaches enrolment and nothing else.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use hearth_protocol::message::data::STREAMS_MAX;
use hearth_udp::MarkedSocket;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::ca::Authority;

/// Handshakes that may wait to be looked at: protects memory.
const INCOMING_MAX: usize = 4096;
/// Bytes kept for one handshake that waits, and for all of them.
const INCOMING_BYTES_MAX: u64 = 16 * 1024;
const INCOMING_BYTES_TOTAL_MAX: u64 = 16 * 1024 * 1024;
/// Handshakes under way above which an address must prove itself by a Retry.
pub const RETRY_ABOVE: usize = 256;
/// Handshakes under way above which a newcomer is refused: each costs a signature.
pub const HANDSHAKES_MAX: usize = 1024;
/// Time for a handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections at once: protects memory (about 64 KiB each while idle).
pub const CONNECTIONS_MAX: usize = 32_768;
/// New connections of one source address at once and per second; a site behind one address has thousands of hosts.
pub const CONNECTS_BURST: u32 = 8192;
/// See [`CONNECTS_BURST`].
pub const CONNECTS_PER_S: u32 = 512;
/// A connection without any packet ends after this.
const IDLE_MAX_MS: u32 = 60_000;
/// What one agent may make us hold while nothing is fetched from it: control frames.
const RECEIVE_WINDOW: u32 = 128 * 1024;
/// What one agent may make us hold while we fetch from it to mend our own copy.
pub const RECEIVE_WINDOW_HEALING: u32 = 2 * 1024 * 1024;
const STREAM_RECEIVE_WINDOW: u32 = 1024 * 1024;
/// Unacknowledged bytes per agent. Bounds the controller's memory while it serves; 2 MiB feed 10 Gbit/s at 1.6 ms.
const SEND_WINDOW: u64 = 2 * 1024 * 1024;
/// Packets after which the receiver acknowledges: measured best with large windows.
const ACK_EVERY: u32 = 20;
/// Largest UDP payload that is tried. Half the CPU per byte where the network has jumbo frames; ten such packets still
/// fit one segmented send.
const MTU_MAX: u16 = 6500;
/// Shortest time between two "I do not know you" packets. Each is smaller than the packet it answers, so it amplifies
/// nothing; quinn's 20 ms would let two thousand agents wait 40 s after a restart.
const RESET_INTERVAL_MIN: Duration = Duration::from_micros(200);
/// Kernel buffers asked for, each way; below the second value people are told.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
const SOCKET_BUFFER_BYTES_WARN: usize = 1024 * 1024;

/// Why the endpoint does not start.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be had.
    #[error("cannot listen on {address}/udp: is another controller running, or does the port need rights?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for agents")]
    Tls(#[from] super::tls::TlsError),
}

/// Opens the endpoint at `address`; every packet is of class `dscp`.
///
/// # Errors
/// [`EndpointError`].
///
/// # Panics
/// Outside a tokio runtime.
pub fn open(
    address: SocketAddr,
    dscp: u8,
    identity: Arc<super::tls::ServerIdentity>,
) -> Result<quinn::Endpoint, EndpointError> {
    let bind = |source| EndpointError::Bind { address, source };
    let socket = socket(address).map_err(bind)?;
    let mut server =
        quinn::ServerConfig::with_crypto(Arc::new(super::tls::quic_config(Arc::clone(&identity))?));
    server
        .transport_config(Arc::new(transport()))
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);
    let mut config = endpoint_config(identity.authority());
    if let Err(error) = config.max_udp_payload_size(MTU_MAX) {
        tracing::warn!(%error, "large packets are not used");
    }
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = MarkedSocket::new(socket, dscp).map_err(bind)?;
    quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime).map_err(bind)
}

/// Settings by which a restarted controller recognises connections of the one before it: agents that send to it are told
/// at once that it knows them no more, instead of waiting a minute for an answer.
fn endpoint_config(authority: &Authority) -> EndpointConfig {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &authority.secret_for("hearth 2026 quic stateless reset"));
    let ids = authority.secret_for("hearth 2026 quic connection ids");
    let ids = u64::from_le_bytes([ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], ids[6], ids[7]]);
    let mut config = EndpointConfig::new(Arc::new(key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config.min_reset_interval(RESET_INTERVAL_MIN);
    config
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(mtu));
    transport
}

fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    size_buffers(&socket);
    Ok(socket)
}

/// Asks for large kernel buffers and says when the kernel gives less.
fn size_buffers(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER_BYTES));
    if let Err(error) = asked {
        tracing::warn!(%error, "cannot ask for larger UDP buffers");
    }
    let (receive, send) = (socket.recv_buffer_size().unwrap_or(0), socket.send_buffer_size().unwrap_or(0));
    if receive.min(send) < SOCKET_BUFFER_BYTES_WARN {
        tracing::warn!(
            receive_bytes = receive,
            send_bytes = send,
            "the kernel gives small UDP buffers, transfers will lose packets: set net.core.rmem_max and wmem_max to 8388608 (sysctl.d/hearth.conf does)"
        );
    } else {
        tracing::debug!(receive_bytes = receive, send_bytes = send, "UDP buffers");
    }
}

/// What counts as one source: an IPv4 address, or the /64 that one host of IPv6 is given.
#[must_use]
pub fn source_of(address: SocketAddr) -> u64 {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => u64::try_from(ip.to_bits() >> 64).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let source = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(source("10.0.0.1:1"), source("[::ffff:10.0.0.1]:2"));
        assert_ne!(source("10.0.0.1:1"), source("10.0.0.2:1"));
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::ffff:2]:9"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
    }
}
