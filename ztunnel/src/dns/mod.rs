//! The DNS proxy of each pod (protocols 9): answers for the services of the mesh, and forwards every
//! other question as it came, byte for byte.
//!
//! [`answer`] decides, [`serve`] listens, [`forward`] asks the nameservers. A name that the mesh owns
//! is answered without anyone else being asked, so that a service can be found whose address exists
//! nowhere but in the mesh.

pub mod answer;
pub mod forward;
mod names;
mod packet;
pub mod resolv_conf;
pub mod serve;

pub use self::{
    answer::Settings,
    forward::{Forwarder, Sockets},
    resolv_conf::ResolvConf,
    serve::Resolver,
};
