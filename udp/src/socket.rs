//! The socket; see the crate.
//!
//! **Why not quinn's own rules of waiting.** It waits for packets and for room to send at once. Each packet that is sent then
//! frees room, and the kernel wakes the thread to say so; and after each packet it asks the kernel for one more. Waking up and
//! asking is most of what an idle agent costs: measured with 2,000 of them (133 pulses a second), 285 wake-ups and 242
//! questions a second with quinn's socket, 189 and 132 with this one.
//! **Invariants.** A connection that found no room waits on a descriptor of its own until there is some. A batch that was
//! not full has emptied the socket, so it is not asked again before the next packet's event. A packet that cannot be sent
//! with its class is sent as quinn would.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watch::watch;
use crate::{DSCP_MAX, Moved, mark, on_wire};

/// See the crate.
#[derive(Debug)]
pub struct MarkedSocket {
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// The class in the place that it has in the packet's header.
    class: u8,
    /// The last packet found no room.
    full: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

impl MarkedSocket {
    /// Takes a bound socket; `dscp` is 0 to [`DSCP_MAX`].
    ///
    /// # Errors
    /// What the kernel says to its options or to the registration.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(socket: UdpSocket, dscp: u8) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(Self::on(watch(socket, Interest::READABLE)?, state, dscp)))
    }

    const fn on(io: AsyncFd<UdpSocket>, state: UdpSocketState, dscp: u8) -> Self {
        Self {
            io,
            state,
            class: (dscp & DSCP_MAX) << 2,
            full: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }

    /// Bytes on the wire that this socket has received and sent.
    #[must_use]
    pub fn moved(&self) -> Moved {
        Moved { received: self.received.load(Ordering::Relaxed), sent: self.sent.load(Ordering::Relaxed) }
    }
}

impl AsyncUdpSocket for MarkedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = match mark::send(self.io.as_raw_fd(), self.class, transmit) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            // What quinn makes of it is right for all cases: it tries with less, or takes the packet for lost.
            Err(_) => self.state.send(self.io.get_ref().into(), transmit),
        };
        match &sent {
            Ok(()) => {
                let bytes = transmit.contents.len();
                let wire_bytes = on_wire(bytes, transmit.segment_size.unwrap_or(bytes));
                self.sent.fetch_add(wire_bytes, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.full.store(true, Ordering::Relaxed)
            }
            Err(_) => {}
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_read_ready(context))?;
            let received = guard.try_io(|io| self.state.recv(io.get_ref().into(), bufs, meta));
            let Ok(received) = received else { continue };
            if let Ok(packets) = received {
                let bytes = meta[..packets].iter().map(|meta| on_wire(meta.len, meta.stride)).sum();
                self.received.fetch_add(bytes, Ordering::Relaxed);
                if packets < BATCH_SIZE {
                    guard.clear_ready();
                }
            }
            return Poll::Ready(received);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
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

/// One connection's wait for room.
#[derive(Debug)]
struct Room {
    socket: Arc<MarkedSocket>,
    /// A copy of the socket's descriptor that is watched for room.
    waiting: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let watched = match self.waiting.take() {
            Some(watched) => watched,
            None if self.socket.full.load(Ordering::Relaxed) => {
                let copy = OwnedFd::from(self.socket.io.get_ref().try_clone()?);
                watch(copy, Interest::WRITABLE)?
            }
            None => return Poll::Ready(Ok(())),
        };
        let room = watched.poll_write_ready(context).map_ok(|_| ());
        if room.is_pending() {
            self.waiting = Some(watched);
        } else {
            self.socket.full.store(false, Ordering::Relaxed);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn socket() -> Arc<MarkedSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        MarkedSocket::new(socket, 0).unwrap()
    }

    fn packet(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None }
    }

    async fn receive(socket: &MarkedSocket) -> usize {
        let mut buffer = vec![0; 65536 * BATCH_SIZE];
        let mut bufs: Vec<_> = buffer.chunks_mut(65536).map(IoSliceMut::new).collect();
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let packets = poll_fn(|context| socket.poll_recv(context, &mut bufs, &mut meta)).await.unwrap();
        meta[..packets].iter().map(|meta| meta.len.div_ceil(meta.stride.max(1))).sum()
    }

    #[tokio::test]
    async fn every_packet_is_heard_also_after_a_batch_that_was_not_full() {
        let (here, there) = (socket(), socket());
        let to = there.local_addr().unwrap();
        for round in 0..100_usize {
            let n = 1 + round % (2 * BATCH_SIZE);
            (0..n).for_each(|i| here.try_send(&packet(to, &vec![7; 10 + i])).unwrap());
            let mut heard = 0;
            while heard < n {
                heard +=
                    timeout(Duration::from_secs(10), receive(&there)).await.expect("a packet was not heard");
            }
            assert_eq!(heard, n);
        }
    }

    #[tokio::test]
    async fn without_room_a_sender_waits_until_there_is_some() {
        let (left, right) = std::os::unix::net::UnixDatagram::pair().unwrap();
        left.set_nonblocking(true).unwrap();
        // A pair of datagram sockets has the room that loopback never runs out of.
        let mut sent = 0;
        while left.send(&[0; 1000]).is_ok() {
            sent += 1;
        }
        let left = UdpSocket::from(OwnedFd::from(left));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let state = UdpSocketState::new((&udp).into()).unwrap();
        let io = watch(left, Interest::READABLE).unwrap();
        let socket = Arc::new(MarkedSocket::on(io, state, 0));
        let mut room = Arc::clone(&socket).create_io_poller();
        let mut waits = async |limit| {
            timeout(Duration::from_millis(limit), poll_fn(|context| room.as_mut().poll_writable(context)))
                .await
        };
        waits(1000).await.expect("nobody said that it is full").unwrap();
        socket.full.store(true, Ordering::Relaxed);
        assert!(waits(50).await.is_err(), "there is no room yet");
        (0..sent).for_each(|_| assert_eq!(right.recv(&mut [0; 1000]).unwrap(), 1000));
        waits(10_000).await.expect("there is room again").unwrap();
        assert!(!socket.full.load(Ordering::Relaxed));
        waits(1000).await.expect("the way is free").unwrap();
    }
}
