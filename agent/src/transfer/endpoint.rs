//! The UDP socket and the QUIC settings.
//!
//! **What.** Binds one socket for everything this agent does over QUIC, with large buffers, and gives the transport
//! settings that were fastest in measurement.
//! **Why one socket.** Firewalls and other agents know one port; packets of all connections share the buffers.
//!
//! **Invariants.** The connection window is never larger than the receive buffer that the kernel really gave: a sender
//! that fills the window cannot overflow the socket (measured: 2,630 lost packets per 512 MiB with default settings, 0
//! with this bound).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::message::data::STREAMS_MAX;
use hearth_udp::{DSCP_DEFAULT, MarkedSocket, Moved};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Socket buffers that are asked for, bytes. The package's sysctl.d allows them.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Below this a line of a few Gbit/s loses packets: warn.
pub const SOCKET_BUFFER_BYTES_LOW: usize = 1 << 20;
/// Receive window of one stream, bytes: protects our memory from a stream that nobody reads.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Smallest connection window, whatever the kernel gives; below it nothing moves on a long line.
const WINDOW_BYTES_MIN: usize = 256 << 10;
/// Bytes in flight towards the other side.
const SEND_WINDOW_BYTES: u64 = 4 << 20;
/// An answer is asked for after this many packets; per-packet work is the bound of QUIC.
const ACK_EVERY_PACKETS: u32 = 20;
/// Largest UDP payload that is tried and taken: jumbo frames halve the CPU per byte (measured); both ends must allow it.
const MTU_MAX: u16 = 6500;
/// A connection without a packet for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// QUIC's own sign of life. Longer than two pulses are apart, so that an idle agent costs the controller one packet per
/// pulse: it keeps the connection only where pulses are rare, or late because the agent waits for its disk.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Windows of one connection between agents, bytes: protects memory, as there may be hundreds; a megabyte feeds 1 Gbit/s at
/// 8 ms.
const PEER_WINDOW_BYTES: u32 = 1 << 20;
/// A connection between agents that nobody uses ends after this, ms: longer than the longest lease, as who waits for his turn
/// says nothing.
const PEER_IDLE_MS: u32 = 90_000;
/// Round trip that is assumed before one was measured. Agents are in one cloud: with quinn's third of a second a lost packet of
/// a handshake costs a second, and full links lose some per cent of all packets (measured).
const PEER_INITIAL_RTT: Duration = Duration::from_millis(50);
/// Handshakes of other agents that may wait, and what is kept for each.
const PEERS_INCOMING_MAX: usize = 256;
const PEER_INCOMING_BYTES_MAX: u64 = 16 << 10;

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be used.
    #[error("cannot listen on udp {address}: {source}; set `listen` to a free address of this host")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// quinn cannot use the socket.
    #[error("cannot run QUIC on udp {address}: {source}")]
    Quic {
        /// The address.
        address: SocketAddr,
        /// What it said.
        source: io::Error,
    },
}

/// The agent's QUIC endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    socket: Arc<MarkedSocket>,
    buffer_bytes: usize,
}

impl Endpoint {
    /// Binds `listen`. Must be called inside a tokio runtime. `secret` makes the tokens with which a restarted agent
    /// tells the other side of its old connections that they are gone; it must be the same after a restart.
    ///
    /// # Errors
    /// [`EndpointError`]; `[::]` falls back to `0.0.0.0` on a host without IPv6.
    pub fn bind(listen: SocketAddr, secret: &[u8]) -> Result<Self, EndpointError> {
        Self::bind_marked(listen, secret, DSCP_DEFAULT)
    }

    /// As [`Endpoint::bind`]; every packet is of class `dscp`, 0 to [`hearth_udp::DSCP_MAX`].
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub fn bind_marked(listen: SocketAddr, secret: &[u8], dscp: u8) -> Result<Self, EndpointError> {
        let (socket, buffer_bytes) = match open(listen) {
            Err(error) if listen.ip().is_unspecified() && listen.is_ipv6() && no_ipv6(&error) => {
                open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listen.port()))
            }
            other => other,
        }
        .map_err(|source| EndpointError::Bind { address: listen, source })?;
        if buffer_bytes < SOCKET_BUFFER_BYTES_LOW {
            tracing::warn!(
                bytes = buffer_bytes,
                wanted = SOCKET_BUFFER_BYTES,
                "small UDP receive buffer: fast transfers will lose packets; set net.core.rmem_max and wmem_max (sysctl.d/10-hearth.conf)"
            );
        }
        let reset_key = blake3::derive_key("hearth 2026 agent quic stateless reset", secret);
        let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &reset_key);
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        if let Err(error) = config.max_udp_payload_size(MTU_MAX) {
            tracing::warn!(%error, "large packets are not used");
        }
        let quic = |source| EndpointError::Quic { address: listen, source };
        let socket = MarkedSocket::new(socket, dscp).map_err(quic)?;
        let runtime = Arc::new(TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            config,
            None,
            Arc::<MarkedSocket>::clone(&socket),
            runtime,
        )
        .map_err(quic)?;
        Ok(Self { quinn, socket, buffer_bytes })
    }

    /// Settings for connections that this agent opens.
    ///
    /// What it sends are single small frames. The controller is asked to answer each at once: to answer later is a second
    /// wake-up, and waking up is most of what an idle agent costs it.
    #[must_use]
    pub fn client_config(&self, tls: QuicClientConfig) -> ClientConfig {
        let mut config = ClientConfig::new(Arc::new(tls));
        let mut transport = transport(self.buffer_bytes);
        transport.ack_frequency_config(Some(acks(0)));
        config.transport_config(Arc::new(transport));
        config
    }

    /// Settings for connections that this agent opens to another agent.
    #[must_use]
    pub fn peer_config(&self, tls: QuicClientConfig) -> ClientConfig {
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(peer_transport(self.buffer_bytes)));
        config
    }

    /// Settings for connections of other agents.
    #[must_use]
    pub fn peer_server_config(&self, tls: QuicServerConfig) -> ServerConfig {
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config
            .transport_config(Arc::new(peer_transport(self.buffer_bytes)))
            .migration(false)
            .max_incoming(PEERS_INCOMING_MAX)
            .incoming_buffer_size(PEER_INCOMING_BYTES_MAX)
            .incoming_buffer_size_total(PEERS_INCOMING_MAX as u64 * PEER_INCOMING_BYTES_MAX);
        config
    }

    /// The endpoint itself.
    #[must_use]
    pub const fn quinn(&self) -> &quinn::Endpoint {
        &self.quinn
    }

    /// What went through the socket, bytes on the wire.
    #[must_use]
    pub(crate) fn moved(&self) -> Moved {
        self.socket.moved()
    }

    /// Receive buffer as the kernel gave it, bytes.
    #[must_use]
    pub const fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

fn open(address: SocketAddr) -> io::Result<(std::net::UdpSocket, usize)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Linux reports twice what it gives to payload: the other half is its own bookkeeping.
    let buffer_bytes = socket.recv_buffer_size()? / 2;
    Ok((socket.into(), buffer_bytes))
}

/// Asks the other side to answer as soon as more than `packets` wait for it.
fn acks(packets: u32) -> AckFrequencyConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(packets));
    acks
}

/// The measured settings; `buffer_bytes` is the receive buffer as read back.
#[must_use]
pub fn transport(buffer_bytes: usize) -> TransportConfig {
    let window = buffer_bytes.clamp(WINDOW_BYTES_MIN, SOCKET_BUFFER_BYTES);
    let window = u32::try_from(window).unwrap_or(STREAM_WINDOW_BYTES);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES.min(window)))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW_BYTES)
        .ack_frequency_config(Some(acks(ACK_EVERY_PACKETS)))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(CubicConfig::default()))
        .enable_segmentation_offload(true)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("60 s fit into a QUIC integer")));
    transport
}

/// Between agents there are many connections, each with a small share of the line.
fn peer_transport(buffer_bytes: usize) -> TransportConfig {
    let mut transport = transport(buffer_bytes);
    transport
        .receive_window(VarInt::from_u32(PEER_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(PEER_WINDOW_BYTES / 2))
        .send_window(PEER_WINDOW_BYTES.into())
        .initial_rtt(PEER_INITIAL_RTT)
        .keep_alive_interval(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(PEER_IDLE_MS))));
    transport
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_endpoints_cannot_have_one_port_and_the_error_says_so() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = Endpoint::bind(loopback, b"one").unwrap();
        assert!(first.buffer_bytes() > 64 << 10);
        let taken = first.quinn().local_addr().unwrap();
        let error = Endpoint::bind(taken, b"two").unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("`listen`"), "{error}");
    }

    #[tokio::test]
    async fn the_dual_stack_address_works_on_every_host() {
        assert!(Endpoint::bind("[::]:0".parse().unwrap(), b"x").is_ok());
    }
}
