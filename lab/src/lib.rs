//! A cluster on one Linux machine: nodes and pods as network namespaces, real processes on real (virtual) links.
//!
//! [`Lab`] makes the network and takes it down; [`kubelet`] keeps it as a directory of Kubernetes YAML says, with
//! what a kubelet, a kube-proxy ([`services`]) and a cluster DNS ([`dns`]) do. [`capture`] sees what crosses the wire.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ambit_lab::Lab;
//! let lab = Lab::create("try")?;
//! let web = lab.add_pod("shop", "web-1", "node-a")?;
//! lab.add_pod("shop", "app-1", "node-b")?;
//! let ping = lab.pod("shop", "app-1")?.exec(["ping", "-c1", &web.ips()[0].to_string()])?;
//! assert!(ping.status.success());
//! # Ok(()) }
//! ```

pub mod address;
pub mod capture;
pub mod command;
pub mod dns;
pub mod kubelet;
pub mod link;
pub mod manifest;
pub mod mesh;
pub mod netns;
pub mod network;
pub mod node;
pub mod pcap;
pub mod pod;
pub mod process;
mod runner;
pub mod services;
pub mod status;
mod token;

pub use kubelet::Kubelet;
pub use network::{Lab, LabError, NewPod, Topology};
pub use node::Node;
pub use pod::{Pod, PodName};
pub use process::{Output, Process, Program};
