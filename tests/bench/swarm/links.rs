//! The links of the bed: their speed, their breaks, and the bytes that passed them.
//!
//! **What.** [`Bed::shape`] sets both directions of a link, [`Bed::cut`] and [`Bed::heal`] break and mend it,
//! [`Bed::traffic`] reads the kernel's counters at the bridge.
//! **Why tbf, and htb only where classes are asked for.** A token bucket is what a plain port does. Classes stand for a
//! network that knows DSCP.
//! **Invariants.** Queues hold 20 ms at the link's speed, so that delay stays bounded. Counters see what left a queue, so
//! dropped packets count in neither direction.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hearth_tests::daemon::run;
use serde_json::Value;

use super::bed::{Bed, Node, ip, ip_in};

/// At least one segment as large as the kernel makes them.
const BURST_BYTES: u32 = 64 << 10;
/// Milliseconds that a queue holds at most.
const QUEUE_MS: u32 = 20;
/// DSCP of low priority: LE and CS1, as values of the TOS byte.
const LOW_PRIORITY_TOS: [&str; 2] = ["0x04", "0x20"];

/// How a link is shaped, the same in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// One queue.
    Plain { rate_mbit: u32 },
    /// Two: packets with a DSCP of low priority get a tenth, and what the others leave.
    Classes { rate_mbit: u32 },
}

/// Bytes that passed since the bed was built; index 0 is the source.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    /// By a node into the network.
    pub(crate) sent: Vec<u64>,
    /// By a node from the network.
    pub(crate) received: Vec<u64>,
}

impl Traffic {
    /// What passed after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let less = |now: &[u64], then: &[u64]| {
            now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then)).collect()
        };
        Self { sent: less(&self.sent, &earlier.sent), received: less(&self.received, &earlier.received) }
    }

    /// Of all hosts, without the source.
    pub(crate) fn hosts_received(&self) -> u64 {
        self.received.iter().skip(1).sum()
    }

    /// Of all hosts, without the source.
    pub(crate) fn hosts_sent(&self) -> u64 {
        self.sent.iter().skip(1).sum()
    }
}

impl Bed {
    /// Shapes a link anew, while it is used too.
    pub(crate) fn shape(&self, node: Node, shape: Shape) -> Result<()> {
        shape_device(&self.namespace(node), "eth0", shape)?;
        shape_device(&self.switch(), &node.port(), shape)
    }

    /// Takes a link down.
    pub(crate) fn cut(&self, node: Node) -> Result<()> {
        ip_in(&self.switch(), &format!("link set {} down", node.port())).map(drop)
    }

    /// Takes it up again.
    pub(crate) fn heal(&self, node: Node) -> Result<()> {
        ip_in(&self.switch(), &format!("link set {} up", node.port())).map(drop)
    }

    /// The counters of all links.
    pub(crate) fn traffic(&self) -> Result<Traffic> {
        let text = ip(&["-n", &self.switch(), "-s", "-j", "link", "show", "type", "veth"])?;
        let links: Vec<Value> = serde_json::from_str(&text)?;
        let of = |node: Node, direction: &str| {
            let link = links.iter().find(|link| link["ifname"] == node.port().as_str());
            let bytes = link.and_then(|link| link["stats64"][direction]["bytes"].as_u64());
            bytes.with_context(|| format!("`ip` counts no {direction} bytes of {}", node.port()))
        };
        // What the bridge receives is what the node sent.
        Ok(Traffic {
            sent: self.nodes().map(|node| of(node, "rx")).collect::<Result<_>>()?,
            received: self.nodes().map(|node| of(node, "tx")).collect::<Result<_>>()?,
        })
    }
}

fn shape_device(namespace: &str, device: &str, shape: Shape) -> Result<()> {
    let tc = |words: &str| run(Command::new("tc").args(["-n", namespace]).args(words.split(' '))).map(drop);
    // There is none yet at a new link.
    drop(tc(&format!("qdisc del dev {device} root")));
    match shape {
        Shape::Plain { rate_mbit } => tc(&format!(
            "qdisc add dev {device} root tbf rate {rate_mbit}mbit burst {BURST_BYTES} limit {}",
            queue_bytes(rate_mbit)
        )),
        Shape::Classes { rate_mbit } => {
            ensure!(rate_mbit >= 10, "links of two classes have at least 10 Mbit/s");
            let low = rate_mbit / 10;
            tc(&format!("qdisc add dev {device} root handle 1: htb default 10 r2q 1000"))?;
            let all = format!("burst {BURST_BYTES} cburst {BURST_BYTES}");
            tc(&format!("class add dev {device} parent 1: classid 1:1 htb rate {rate_mbit}mbit {all}"))?;
            for (class, rate, priority) in [("10", rate_mbit - low, 0), ("20", low, 1)] {
                tc(&format!(
                    "class add dev {device} parent 1:1 classid 1:{class} htb rate {rate}mbit ceil {rate_mbit}mbit \
                     prio {priority} {all}"
                ))?;
                tc(&format!(
                    "qdisc add dev {device} parent 1:{class} handle {class}: bfifo limit {}",
                    queue_bytes(rate_mbit)
                ))?;
            }
            for tos in LOW_PRIORITY_TOS {
                tc(&format!(
                    "filter add dev {device} parent 1: protocol ip prio 1 u32 match ip tos {tos} 0xfc flowid 1:20"
                ))?;
            }
            Ok(())
        }
    }
}

const fn queue_bytes(rate_mbit: u32) -> u32 {
    rate_mbit * 125 * QUEUE_MS + BURST_BYTES
}
