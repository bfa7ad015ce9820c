//! Benchmarks: decisions in instructions and seconds, tunnels in ratios.
//!
//! `benches/*.rs` time single [`decisions`]; `ambit-bench-count` counts their instructions. The program
//! `ambit-bench` sends real traffic through real proxies: [`run`] is its story, of [`tunnels`] and of a
//! [`waypoint`], each with a stage on the same [`ground`]. [`plane`] tells them about a [`world`], [`serve`]
//! and [`load`] are the two ends of the traffic, [`usage`] looks at the processes and [`cost`] says what a
//! load cost them, [`rounds`] compares, [`book`] keeps it, [`goals`] says what is hoped for and [`report`]
//! what came of it.

pub mod book;
pub mod cost;
pub mod decisions;
pub mod envoy;
pub mod figures;
pub mod goals;
pub mod ground;
pub mod load;
pub mod plane;
pub mod report;
pub mod rounds;
pub mod run;
pub mod serve;
pub mod tunnels;
pub mod usage;
pub mod waypoint;
pub mod world;
