//! Benchmarks: decisions in instructions and seconds, tunnels in ratios.
//!
//! `benches/*.rs` time single [`decisions`]; `ambit-bench-count` counts their instructions. The program
//! `ambit-bench` sends real traffic through real tunnels: [`run`] is its story, [`stage`] makes the
//! place where it happens, [`plane`] tells the tunnels about a [`world`], [`serve`] and [`load`] are
//! the two ends of the traffic, [`usage`] looks at the processes, [`rounds`] compares, [`goals`]
//! says what is hoped for and [`report`] what came of it.

pub mod decisions;
pub mod envoy;
pub mod figures;
pub mod goals;
pub mod load;
pub mod plane;
pub mod report;
pub mod rounds;
pub mod run;
pub mod serve;
pub mod stage;
pub mod usage;
pub mod world;
