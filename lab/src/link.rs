//! The wire between nodes: a veth pair for two nodes, a bridge in a namespace of its own for more.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::capture::{Capture, CaptureError};
use crate::command::{self, CommandError};
use crate::netns::Netns;

/// The device by which a node is on the wire; every pod calls its own device so too.
pub(crate) const DEVICE: &str = "eth0";
/// The bridge that joins more than two nodes, in the wire's own namespace.
pub(crate) const BRIDGE: &str = "br0";

/// One node's end of the wire: all that this node sends to and receives from other nodes passes here.
#[derive(Debug, Clone)]
pub struct Link {
    netns: Netns,
    /// An address beyond the wire, for the packet that ends a capture.
    beyond: Option<IpAddr>,
}

/// What the wire does to packets, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Netem {
    /// Added to each packet's way.
    pub delay: Duration,
    /// Of a hundred packets, how many are lost.
    pub loss_percent: f32,
}

impl Link {
    pub(crate) fn new(netns: Netns, beyond: Option<IpAddr>) -> Self {
        Self { netns, beyond }
    }

    /// The namespace in which the device is.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The device's name there.
    pub fn device(&self) -> &'static str {
        DEVICE
    }

    /// Captures what crosses from now on into `file`; returns when the capture is really on.
    pub fn capture(&self, file: &Path) -> Result<Capture, CaptureError> {
        self.capture_matching(file, "")
    }

    /// As [`Link::capture`], only packets that match the `tcpdump` filter.
    pub fn capture_matching(&self, file: &Path, filter: &str) -> Result<Capture, CaptureError> {
        // Any address will do where there is no other node: the packet then stays here and the capture ends by time.
        let beyond = self.beyond.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        Capture::start(
            &self.netns,
            DEVICE,
            file,
            filter,
            SocketAddr::new(beyond, crate::capture::MARKER_PORT),
        )
    }

    /// Makes the way out of this node slow or lossy (replacing what was set before).
    pub fn disturb(&self, netem: Netem) -> Result<(), CommandError> {
        let mut what = format!("qdisc replace dev {DEVICE} root netem");
        // Writing to a String cannot fail.
        if netem.delay > Duration::ZERO {
            let _ = write!(what, " delay {}us", netem.delay.as_micros());
        }
        if netem.loss_percent > 0.0 {
            let _ = write!(what, " loss {}%", netem.loss_percent);
        }
        command::run(&["tc", "-n", self.netns.name(), "-batch", "-"], &what).map(drop)
    }
}
