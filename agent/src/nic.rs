//! Reads what the kernel says about the network interface that carries our address.
//!
//! **What.** Finds the interface of an address, reads its `speed` and those of the devices that it stands on from sysfs;
//! `logic::nic` decides.
//! **Why at each session.** A link that was down when the daemon started, or a host that moved to a faster port, shows at
//! the next greeting; a file of a few bytes costs nothing.
//! **Invariants.** Reading never fails: what cannot be read is unknown. Nothing is sent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use hearth_udp::Moved;
use nix::ifaddrs::getifaddrs;

use crate::logic::nic::{self, Device, Origin, Role};

/// Where the kernel shows network devices.
const SYSFS_NET: &str = "/sys/class/net";
/// Devices that stand on devices: a bridge on a VLAN on a bond on a port, and one to spare. Ends a loop in a broken tree.
const DEPTH_MAX: u32 = 5;

/// Speed of the interface that carries the first of the `advertised` addresses that this host has; without one, of the
/// interface that leads to `controller`. Mbit/s, and where the figure comes from. Blocks for a few reads from sysfs.
#[must_use]
pub(crate) fn speed(configured: Option<u32>, advertised: &[String], controller: SocketAddr) -> (u32, Origin) {
    if configured.is_some() {
        return nic::speed(configured, None);
    }
    let carrier = carrier(advertised, controller).map(|name| device(Path::new(SYSFS_NET), &name, DEPTH_MAX));
    nic::speed(None, carrier.as_ref())
}

/// Name of the interface that carries our address.
fn carrier(advertised: &[String], controller: SocketAddr) -> Option<String> {
    let named =
        advertised.iter().filter_map(|text| text.parse::<SocketAddr>().ok()).map(|address| address.ip());
    named.chain(towards(controller)).find_map(interface_of)
}

/// What the devices moved that carry the first of the `advertised` addresses that this host has, or lead to `controller`. A
/// bridge counts its own bytes and not those of guests: they pass through the ports. Blocks for a few reads from sysfs.
#[must_use]
pub(crate) fn moved(advertised: &[String], controller: SocketAddr) -> Option<Moved> {
    let name = carrier(advertised, controller)?;
    Some(moved_below(Path::new(SYSFS_NET), &name, DEPTH_MAX))
}

fn moved_below(sysfs: &Path, name: &str, depth: u32) -> Moved {
    let dir = sysfs.join(name);
    let lower = lower_names(&dir);
    let is_real = dir.join("device").exists();
    if is_real || lower.is_empty() || depth == 0 {
        let read = |counter: &str| {
            let text = fs::read_to_string(dir.join("statistics").join(counter));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        return Moved { received: read("rx_bytes"), sent: read("tx_bytes") };
    }
    // Guests' taps are ports of a bridge, too: what passes through them passes through the real port, or stays in the host.
    let real: Vec<&String> =
        lower.iter().filter(|lower| stands_on_hardware(sysfs, lower, depth - 1)).collect();
    let chosen = if real.is_empty() { lower.iter().collect() } else { real };
    chosen.into_iter().fold(Moved::default(), |sum, lower| {
        let Moved { received, sent } = moved_below(sysfs, lower, depth - 1);
        Moved { received: sum.received.saturating_add(received), sent: sum.sent.saturating_add(sent) }
    })
}

fn stands_on_hardware(sysfs: &Path, name: &str, depth: u32) -> bool {
    let dir = sysfs.join(name);
    let below = || lower_names(&dir).iter().any(|lower| stands_on_hardware(sysfs, lower, depth - 1));
    dir.join("device").exists() || (depth > 0 && below())
}

/// Our own address on the way to `peer`: connecting a UDP socket looks the route up and sends nothing.
pub(crate) fn towards(peer: SocketAddr) -> Option<IpAddr> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let any = match peer {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Name of the interface that has `address`.
fn interface_of(address: IpAddr) -> Option<String> {
    let address = address.to_canonical();
    let has = |interface: &nix::ifaddrs::InterfaceAddress| {
        let storage = interface.address.as_ref()?;
        let v4 = storage.as_sockaddr_in().map(|found| IpAddr::from(found.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|found| IpAddr::from(found.ip())))
    };
    getifaddrs().ok()?.find(|interface| has(interface) == Some(address)).map(|found| found.interface_name)
}

/// The device `name` below `sysfs`, with those that it stands on.
fn device(sysfs: &Path, name: &str, depth: u32) -> Device {
    let dir = sysfs.join(name);
    let role = if dir.join("bonding").is_dir() {
        Role::Bond
    } else if dir.join("device").exists() {
        Role::Real
    } else {
        Role::Virtual
    };
    let lower = match depth {
        0 => Vec::new(),
        _ => lower_names(&dir).iter().map(|lower| device(sysfs, lower, depth - 1)).collect(),
    };
    Device { role, speed: fs::read_to_string(dir.join("speed")).ok(), lower }
}

fn lower_names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("lower_").map(str::to_owned);
    entries.flatten().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A made-up sysfs: folder per device with the given entries; `lower_x` becomes a link, a name with `/` a folder.
    fn sysfs(devices: &[(&str, &str, &[&str])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, speed, entries) in devices {
            let device = dir.path().join(name);
            fs::create_dir(&device).unwrap();
            // The kernel fails the read of loopback's speed; a folder in its place does too.
            match *speed {
                "EINVAL" => fs::create_dir(device.join("speed")).unwrap(),
                text => fs::write(device.join("speed"), format!("{text}\n")).unwrap(),
            }
            for entry in *entries {
                match entry.strip_prefix("lower_") {
                    Some(lower) => symlink(format!("../{lower}"), device.join(entry)).unwrap(),
                    None => fs::create_dir(device.join(entry)).unwrap(),
                }
            }
        }
        dir
    }

    #[test]
    fn a_made_up_sysfs_tree_gives_the_speed_of_the_real_device() {
        let tree = sysfs(&[
            ("eth0", "10000", &["device", "statistics"]),
            ("eth1", "25000", &["device"]),
            ("eth2", "25000", &["device"]),
            ("virtio", "-1", &["device"]),
            ("lo", "EINVAL", &[]),
            ("tap7", "40000", &[]),
            ("bond0", "50000", &["bonding", "lower_eth1", "lower_eth2"]),
            ("bond0.7", "50000", &["lower_bond0"]),
            ("br0", "40000", &["bridge", "lower_bond0.7", "lower_tap7"]),
            ("br1", "40000", &["bridge", "lower_eth0", "lower_tap7"]),
            ("loop0", "EINVAL", &["lower_loop1"]),
            ("loop1", "EINVAL", &["lower_loop0"]),
        ]);
        let read = |name| nic::speed(None, Some(&device(tree.path(), name, DEPTH_MAX)));
        for (name, mbps) in [("eth0", 10_000), ("bond0", 50_000), ("br0", 50_000), ("br1", 10_000)] {
            assert_eq!(read(name), (mbps, Origin::Sysfs), "{name}");
        }
        for name in ["virtio", "lo", "loop0", "gone"] {
            assert_eq!(read(name), (nic::NIC_MBPS_DEFAULT, Origin::Assumed), "{name}");
        }
    }

    #[test]
    fn a_bridge_moves_what_its_real_port_moves() {
        let tree = sysfs(&[
            ("eth0", "1000", &["device", "statistics"]),
            ("tap7", "10000", &["statistics"]),
            ("br0", "1000", &["bridge", "statistics", "lower_eth0", "lower_tap7"]),
        ]);
        for (name, received) in [("eth0", 7), ("tap7", 100), ("br0", 1000)] {
            let counters = tree.path().join(name).join("statistics");
            fs::write(counters.join("rx_bytes"), format!("{received}\n")).unwrap();
            fs::write(counters.join("tx_bytes"), "5\n").unwrap();
        }
        assert_eq!(moved_below(tree.path(), "br0", DEPTH_MAX), Moved { received: 7, sent: 5 });
        assert_eq!(moved_below(tree.path(), "gone", DEPTH_MAX), Moved::default());
    }

    #[test]
    fn the_interface_of_loopback_is_found_by_address_and_by_route() {
        let controller = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 9));
        assert_eq!(towards(controller), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(interface_of(Ipv4Addr::LOCALHOST.into()).as_deref(), Some("lo"));
        assert_eq!(
            interface_of(Ipv4Addr::new(192, 0, 2, 1).into()),
            None,
            "nobody has a documentation address"
        );
        let advertised = ["127.0.0.1:7444".to_owned()];
        let assumed = (nic::NIC_MBPS_DEFAULT, Origin::Assumed);
        assert_eq!(speed(None, &advertised, controller), assumed, "loopback has no speed");
        assert_eq!(speed(Some(40_000), &advertised, controller), (40_000, Origin::Configured));
    }
}
