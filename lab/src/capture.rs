//! What crosses the wire: `tcpdump` on a node's end of it, begun and ended so that nothing in between is missed.
//!
//! A capture is on when `tcpdump` says that it listens, which it does after the kernel has opened its ring. It ends
//! with a packet of our own that we wait to see in the file: everything that came before it is in the file then.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::netns::{Netns, NetnsError};
use crate::pcap::{Captured, PcapError};
use crate::process::{Process, ProcessError, Program};

/// The discard port: nothing answers but an ICMP message.
pub(crate) const MARKER_PORT: u16 = 9;
/// `tcpdump` needs some milliseconds; a loaded machine more.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The marker crosses in microseconds, or is lost on a lossy link and sent again.
const MARKER_LIMIT: Duration = Duration::from_secs(5);
const MARKER_PAUSE: Duration = Duration::from_millis(20);
/// `tcpdump` writes its last buffer and ends at once.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The kernel's ring, in KiB: a burst at 10 Gbit/s for ten milliseconds; its pages are touched at every start.
const RING_KIB: &str = "16384";

/// A capture that is on.
#[derive(Debug)]
pub struct Capture {
    netns: Netns,
    file: PathBuf,
    marker: Marker,
    tcpdump: Process,
}

/// Why there is no capture, or none that can be believed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// `tcpdump` did not start.
    #[error("the capture did not begin: {0}; install the package tcpdump, and run as root")]
    Start(ProcessError),
    /// `tcpdump` did not end.
    #[error("the capture did not end: {0}")]
    Stop(ProcessError),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The end of the capture was never seen in it.
    #[error("the capture's last packet did not arrive in {file} within {MARKER_LIMIT:?}; is the link up and not wholly lossy?", file = file.display())]
    Marker {
        /// The capture's file.
        file: PathBuf,
    },
    /// The capture's file cannot be read.
    #[error("cannot read the capture {file}: {source}", file = file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The capture's file is not a capture.
    #[error(transparent)]
    Pcap(#[from] PcapError),
}

/// The packet that ends a capture.
#[derive(Debug)]
struct Marker {
    to: SocketAddr,
    text: String,
}

impl Capture {
    /// Begins to capture what passes `device` in `netns`; returns when the capture is on.
    pub(crate) fn start(
        netns: &Netns,
        device: &str,
        file: &Path,
        filter: &str,
        marker: SocketAddr,
    ) -> Result<Self, CaptureError> {
        /// Tells captures of one process apart.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let text = format!("ambit-capture-end-{}-{number}.", std::process::id());

        let log = file.with_extension("log");
        // An earlier capture's words would be taken for ours.
        let _ = fs::remove_file(&log);
        let filter = match filter {
            "" => String::new(),
            filter => format!("({filter}) or udp dst port {MARKER_PORT}"),
        };
        let program = Program::new("tcpdump")
            // As root: it would else become a user who may not write here.
            .args([
                "-Z",
                "root",
                "-n",
                "-i",
                device,
                "-s",
                "0",
                "-B",
                RING_KIB,
                "--immediate-mode",
                "-U",
                "-w",
            ])
            .arg(file)
            .args((!filter.is_empty()).then_some(filter));
        let tcpdump = Process::start(Some(netns), &program, &log).map_err(CaptureError::Start)?;
        tcpdump.wait_until_said("listening on", START_LIMIT).map_err(CaptureError::Start)?;
        Ok(Self { netns: netns.clone(), file: file.to_owned(), marker: Marker { to: marker, text }, tcpdump })
    }

    /// The file being written.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and reads it. All that crossed before this call is in it.
    pub fn stop(self) -> Result<Captured, CaptureError> {
        self.marker.send(&self.netns, &self.file)?;
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.wait(STOP_LIMIT).map_err(CaptureError::Stop)?;
        let unreadable = |source| CaptureError::File { file: self.file.clone(), source };
        let bytes = fs::read(&self.file).map_err(unreadable)?;
        let mut captured = Captured::parse(&bytes)?;
        captured.lost = lost(&self.tcpdump.said());
        Ok(captured)
    }
}

impl Marker {
    /// Sends the marker until it is seen in `file`.
    fn send(&self, netns: &Netns, file: &Path) -> Result<(), CaptureError> {
        let unreadable = |source| CaptureError::File { file: file.to_owned(), source };
        let any = if self.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = netns.inside(|| UdpSocket::bind(any))?.map_err(unreadable)?;
        socket.set_read_timeout(Some(MARKER_PAUSE)).map_err(unreadable)?;
        let deadline = Instant::now() + MARKER_LIMIT;
        while Instant::now() < deadline {
            // Refused by the other end's ICMP message, or lost: the file is what counts.
            let _ = socket.send_to(self.text.as_bytes(), self.to);
            let _ = socket.recv(&mut [0]);
            let bytes = fs::read(file).map_err(unreadable)?;
            if ends_with_marker(&bytes, self.text.as_bytes()) {
                return Ok(());
            }
        }
        Err(CaptureError::Marker { file: file.to_owned() })
    }
}

/// The marker is among the last packets: a capture may be large, and is read often.
fn ends_with_marker(file: &[u8], marker: &[u8]) -> bool {
    const LAST: usize = 1 << 20;
    let last = file.get(file.len().saturating_sub(LAST)..).unwrap_or_default();
    last.windows(marker.len()).any(|window| window == marker)
}

/// What `tcpdump` says at its end: "N packets dropped by kernel".
fn lost(said: &str) -> u64 {
    said.lines()
        .filter_map(|line| line.split_once(" packet")?.1.contains("dropped by kernel").then_some(line))
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_the_kernel_dropped_are_counted() {
        let said = "3 packets captured\n5 packets received by filter\n2 packets dropped by kernel\n";
        assert_eq!(lost(said), 2);
        assert_eq!(lost("1 packet dropped by kernel\n"), 1);
        assert_eq!(lost("tcpdump: listening on eth0"), 0);
    }
}
