//! Packets of a class.
//!
//! **What.** [`send`] hands one transmit of quinn to the kernel, with the class and the ECN bits in its header.
//! **Why not quinn's own send, or a socket option.** quinn writes the ECN bits alone into the byte that holds the class, with each
//! packet, and so overwrites the option.
//! **Invariants.** One call of the kernel per transmit, and nothing of it is kept.

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn::udp::Transmit;

/// Sends; `class` is in the place that it has in the header. The kernel takes all of it, or there is an error.
pub(crate) fn send(socket: RawFd, class: u8, transmit: &Transmit<'_>) -> Result<(), Errno> {
    let mark = class | transmit.ecn.map_or(0, |ecn| ecn as u8);
    let wide_mark = i32::from(mark);
    let is_v4 = transmit.destination.ip().to_canonical().is_ipv4();
    let segment = transmit.segment_size.filter(|bytes| *bytes < transmit.contents.len());
    let segment = segment.and_then(|bytes| u16::try_from(bytes).ok());
    let source = transmit.src_ip.map(Source::of);
    let mut words = Vec::with_capacity(3);
    words.push(if is_v4 { ControlMessage::Ipv4Tos(&mark) } else { ControlMessage::Ipv6TClass(&wide_mark) });
    words.extend(segment.as_ref().map(ControlMessage::UdpGsoSegments));
    words.extend(source.as_ref().map(|source| match source {
        Source::V4(info) => ControlMessage::Ipv4PacketInfo(info),
        Source::V6(info) => ControlMessage::Ipv6PacketInfo(info),
    }));
    let to = SockaddrStorage::from(transmit.destination);
    let contents = [IoSlice::new(transmit.contents)];
    sendmsg(socket, &contents, &words, MsgFlags::MSG_DONTWAIT, Some(&to)).map(drop)
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

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::UdpSocket;
    use std::os::fd::{AsFd as _, AsRawFd as _};

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
        let transmit = Transmit {
            destination: receiver.local_addr().unwrap(),
            ecn: transmit_ecn,
            contents: b"packet",
            segment_size: None,
            src_ip: Some(receiver.local_addr().unwrap().ip()),
        };
        assert_eq!(send(sender.as_raw_fd(), dscp << 2, &transmit), Ok(()));
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

    #[test]
    fn a_packet_carries_its_class_and_its_ecn_bits() {
        assert_eq!(class_of(Some(EcnCodepoint::Ect0), 8, "127.0.0.1:0"), 8 << 2 | 0b10);
        assert_eq!(class_of(None, 0, "127.0.0.1:0"), 0);
        assert_eq!(class_of(Some(EcnCodepoint::Ect0), 1, "[::1]:0"), 1 << 2 | 0b10);
    }
}
