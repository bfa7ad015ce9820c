//! The stories: real processes, real packets.
//!
//! [`town`] is a mesh in a lab with a directory of YAML to edit and pods to call from; [`observe`] reads what its
//! tunnels say: access log, metrics, dump. [`telling`] tells steps and keeps what came of them; [`wait`] waits for
//! conditions. [`demo`] is the story of `make demo`, which is also the test `story`; the other stories are in `tests/`,
//! told by [`story`]. [`tasks`] does what the pages in `docs/tasks` say, which [`pages`] reads.
//!
//! [`kubernetes`] is a real cluster of two nodes on this machine; [`api_server`] is Kubernetes' word without a cluster,
//! [`controller`] runs beside it, [`kubelet`] leads to its pages, and [`scale`] measures it.

pub mod api_server;
pub mod controller;
pub mod demo;
pub mod kubelet;
pub mod kubernetes;
pub mod observe;
pub mod pages;
pub mod scale;
pub mod story;
pub mod tasks;
pub mod telling;
pub mod town;
pub mod wait;
