//! The UDP socket of the agent, whose packets are marked as less urgent than those of guests.
//!
//! **What.** [`MarkedSocket`] is quinn's socket on tokio, but every packet carries a DSCP class beside the ECN bits.
//! **Why not a socket option.** quinn's socket sets the whole byte with each packet, and so overwrites the option.
//! **Why it counts.** How much of an interface others use is known only from what of it is ours, to the packet.
//! **Why the class of every packet.** Networks reorder between classes, and a connection in two of them takes that for loss.
//! **Invariants.** A packet that cannot be sent so is sent as quinn would.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;

use crate::nic::Moved;

/// See the module.
#[derive(Debug)]
pub(super) struct MarkedSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    /// The class in the place that it has in the packet's header.
    class: u8,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Bytes of a packet on the wire beside its contents: Ethernet, IPv4, UDP.
const HEADER_BYTES: u64 = 14 + 20 + 8;

/// What so many bytes of contents are on the wire, in packets of `packet` bytes.
fn on_wire(bytes: usize, packet: usize) -> u64 {
    bytes as u64 + HEADER_BYTES * bytes.div_ceil(packet.max(1)) as u64
}

impl MarkedSocket {
    /// Takes a bound socket; `dscp` is 0 to 63.
    ///
    /// # Errors
    /// What the kernel says to its options or to the registration.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn new(socket: UdpSocket, dscp: u8) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(Self {
            io: tokio::net::UdpSocket::from_std(socket)?,
            state,
            class: dscp << 2,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }))
    }

    /// Bytes on the wire that this socket has received and sent.
    pub(super) fn moved(&self) -> Moved {
        Moved { received: self.received.load(Ordering::Relaxed), sent: self.sent.load(Ordering::Relaxed) }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.send_marked(transmit) {
            Ok(bytes) => {
                let wire_bytes = on_wire(bytes, transmit.segment_size.unwrap_or(bytes));
                self.sent.fetch_add(wire_bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            // What quinn makes of it is right for all cases: it tries with less, or takes the packet for lost.
            Err(_) => self.state.send((&self.io).into(), transmit),
        }
    }

    fn send_marked(&self, transmit: &Transmit<'_>) -> Result<usize, Errno> {
        let mark = self.class | transmit.ecn.map_or(0, |ecn| ecn as u8);
        let wide_mark = i32::from(mark);
        let is_v4 = transmit.destination.ip().to_canonical().is_ipv4();
        let segment = transmit.segment_size.filter(|bytes| *bytes < transmit.contents.len());
        let segment = segment.and_then(|bytes| u16::try_from(bytes).ok());
        let source = transmit.src_ip.map(Source::of);
        let mut words = Vec::with_capacity(3);
        words.push(if is_v4 {
            ControlMessage::Ipv4Tos(&mark)
        } else {
            ControlMessage::Ipv6TClass(&wide_mark)
        });
        words.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
        words.extend(source.as_ref().map(|source| match source {
            Source::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Source::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }));
        let to = SockaddrStorage::from(transmit.destination);
        let contents = [IoSlice::new(transmit.contents)];
        sendmsg(self.io.as_raw_fd(), &contents, &words, MsgFlags::MSG_DONTWAIT, Some(&to))
    }
}

/// The address that a packet leaves from.
enum Source {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::V4(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            IpAddr::V6(v6) => Self::V6(libc::in6_pktinfo {
                ipi6_ifindex: 0,
                ipi6_addr: libc::in6_addr { s6_addr: v6.octets() },
            }),
        }
    }
}

impl AsyncUdpSocket for MarkedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.send(transmit))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), bufs, meta));
            if let Ok(packets) = received {
                let bytes = meta[..packets].iter().map(|meta| on_wire(meta.len, meta.stride)).sum();
                self.received.fetch_add(bytes, Ordering::Relaxed);
                return Poll::Ready(Ok(packets));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One connection's wait for room.
struct Room {
    socket: Arc<MarkedSocket>,
    waiting: Option<Waiting>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = Arc::clone(&self.socket);
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let room = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        Poll::Ready(room)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::sys::socket::{ControlMessageOwned, recvmsg, setsockopt, sockopt};
    use quinn::udp::EcnCodepoint;

    use super::*;

    fn class_of(transmit_ecn: Option<EcnCodepoint>, dscp: u8, address: &str) -> u8 {
        let receiver = UdpSocket::bind(address).unwrap();
        let is_v4 = receiver.local_addr().unwrap().is_ipv4();
        if is_v4 {
            setsockopt(&receiver.as_fd(), sockopt::IpRecvTos, &true).unwrap();
        } else {
            setsockopt(&receiver.as_fd(), sockopt::Ipv6RecvTClass, &true).unwrap();
        }
        let sender = UdpSocket::bind(address).unwrap();
        sender.set_nonblocking(true).unwrap();
        let sender = MarkedSocket::new(sender, dscp).unwrap();
        let transmit = Transmit {
            destination: receiver.local_addr().unwrap(),
            ecn: transmit_ecn,
            contents: b"packet",
            segment_size: None,
            src_ip: Some(receiver.local_addr().unwrap().ip()),
        };
        sender.send(&transmit).unwrap();
        let mut bytes = [0; 16];
        let mut room = [IoSliceMut::new(&mut bytes)];
        let mut words = nix::cmsg_space!(u8, i32);
        let flags = MsgFlags::empty();
        let got =
            recvmsg::<SockaddrStorage>(receiver.as_raw_fd(), &mut room, Some(&mut words), flags).unwrap();
        assert_eq!(got.bytes, 6);
        let class = got.cmsgs().unwrap().find_map(|word| match word {
            ControlMessageOwned::Ipv4Tos(class) => Some(class),
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
            _ => None,
        });
        class.unwrap()
    }

    #[tokio::test]
    async fn a_packet_carries_its_class_and_its_ecn_bits() {
        assert_eq!(class_of(Some(EcnCodepoint::Ect0), 8, "127.0.0.1:0"), 8 << 2 | 0b10);
        assert_eq!(class_of(None, 0, "127.0.0.1:0"), 0);
        assert_eq!(class_of(Some(EcnCodepoint::Ect0), 1, "[::1]:0"), 1 << 2 | 0b10);
    }
}
