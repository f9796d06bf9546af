//! Decides how fast the host's network interface is.
//!
//! **What.** [`speed`] takes what the operator configured and what the kernel says about the interface that carries our
//! address, and returns a speed with its origin.
//! **Why a tree of devices.** On a hypervisor the address stands on a bridge. Newer kernels give a bridge the speed of its
//! fastest port, which may be a guest's tap (10 Gbit/s, whatever the host has); older ones give nothing. So a device that
//! is made of others is as fast as the fastest real one below it. A bond knows best itself: its mode decides whether its
//! ports add up.
//! **Invariants**, each tested: `the_configuration_wins`, `a_speed_that_nobody_knows_is_one_gigabit`,
//! `a_bridge_is_as_fast_as_its_real_port_and_not_as_a_guests_tap`.

/// Speed of an interface that nobody knows, Mbit/s: low enough that the shares of it protect the guests of any host.
pub const NIC_MBPS_DEFAULT: u32 = 1000;
/// Largest speed that is believed, Mbit/s (1.6 Tbit/s).
pub const NIC_MBPS_MAX: u32 = 1_600_000;

/// Where a speed comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// `nic_mbps` of the configuration.
    Configured,
    /// The kernel.
    Sysfs,
    /// Nobody knows it.
    Assumed,
}

/// What a device is, as far as its speed goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// It has hardware, or a hypervisor's imitation of it, below itself.
    Real,
    /// It bundles others and says itself how fast it is.
    Bond,
    /// A bridge, a VLAN, a tap, loopback.
    Virtual,
}

/// A device as the kernel describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// What it is.
    pub role: Role,
    /// Text of its `speed` file; `None` if it cannot be read.
    pub speed: Option<String>,
    /// Devices that it stands on.
    pub lower: Vec<Self>,
}

/// Speed in Mbit/s, 1 ..= [`NIC_MBPS_MAX`], and where it comes from. `carrier` is the device that carries our address.
#[must_use]
pub fn speed(configured: Option<u32>, carrier: Option<&Device>) -> (u32, Origin) {
    let known = carrier.and_then(|device| real_mbps(device).or_else(|| own_mbps(device)));
    match (configured, known) {
        (Some(mbps), _) => (mbps.clamp(1, NIC_MBPS_MAX), Origin::Configured),
        (None, Some(mbps)) => (mbps, Origin::Sysfs),
        (None, None) => (NIC_MBPS_DEFAULT, Origin::Assumed),
    }
}

/// Speed of the fastest device with hardware, here or below.
fn real_mbps(device: &Device) -> Option<u32> {
    let below = || device.lower.iter().filter_map(real_mbps).max();
    match device.role {
        Role::Real => own_mbps(device),
        Role::Bond => own_mbps(device).or_else(below),
        Role::Virtual => below(),
    }
}

/// virtio and a link that is down say -1, or the same as an unsigned number; some drivers say 0.
fn own_mbps(device: &Device) -> Option<u32> {
    let mbps = device.speed.as_ref()?.trim().parse().ok()?;
    (1..=NIC_MBPS_MAX).contains(&mbps).then_some(mbps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(role: Role, speed: &str, lower: &[Device]) -> Device {
        Device { role, speed: Some(speed.to_owned()), lower: lower.to_vec() }
    }

    #[test]
    fn the_configuration_wins() {
        let nic = device(Role::Real, "25000\n", &[]);
        assert_eq!(speed(Some(10_000), Some(&nic)), (10_000, Origin::Configured));
        assert_eq!(speed(None, Some(&nic)), (25_000, Origin::Sysfs));
    }

    #[test]
    fn a_speed_that_nobody_knows_is_one_gigabit() {
        let assumed = (NIC_MBPS_DEFAULT, Origin::Assumed);
        assert_eq!(speed(None, None), assumed);
        for text in ["-1\n", "0", "4294967295", "1600001", "", "fast"] {
            assert_eq!(speed(None, Some(&device(Role::Real, text, &[]))), assumed, "{text:?}");
        }
        let unreadable = Device { role: Role::Virtual, speed: None, lower: Vec::new() };
        assert_eq!(speed(None, Some(&unreadable)), assumed, "loopback gives EINVAL");
    }

    #[test]
    fn a_bridge_is_as_fast_as_its_real_port_and_not_as_a_guests_tap() {
        let (nic, tap) = (device(Role::Real, "1000", &[]), device(Role::Virtual, "10000", &[]));
        let bridge = device(Role::Virtual, "10000", &[tap.clone(), nic]);
        assert_eq!(speed(None, Some(&bridge)), (1000, Origin::Sysfs));
        // Without any real device below, its own word is all there is.
        let alone = device(Role::Virtual, "10000", &[tap]);
        assert_eq!(speed(None, Some(&alone)), (10_000, Origin::Sysfs));
    }

    #[test]
    fn a_bond_adds_its_ports_up_itself() {
        let port = device(Role::Real, "25000", &[]);
        let bond = device(Role::Bond, "50000", &[port.clone(), port.clone()]);
        let vlan = device(Role::Virtual, "50000", &[bond]);
        assert_eq!(speed(None, Some(&device(Role::Virtual, "-1", &[vlan]))), (50_000, Origin::Sysfs));
        let silent = device(Role::Bond, "-1", &[port]);
        assert_eq!(speed(None, Some(&silent)), (25_000, Origin::Sysfs));
    }
}
