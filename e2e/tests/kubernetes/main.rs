//! The stories on a real Kubernetes cluster: `ambit_e2e::kubernetes` says how they share one.

mod cluster;
mod mesh;
mod rights;
mod scene;
mod trace;
