//! Questions about VirtualServices: which are for a host, and which send something to one.

use std::sync::Arc;

use ambit_model::name::Hostname;

use super::{
    Cluster,
    object::{HostName, VirtualService},
};

impl Cluster {
    /// The VirtualServices that are for a host, by name.
    pub fn virtual_services_of(&self, host: &Hostname) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.index.virtual_services_of(host).filter_map(|name| self.virtual_services.get(name))
    }

    /// The VirtualServices that send something to a host.
    pub fn virtual_services_to(&self, host: &Hostname) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.index.virtual_services_to(host).filter_map(|name| self.virtual_services.get(name))
    }

    /// The whole of a host's name.
    pub fn whole_host(&self, host: &HostName) -> Hostname {
        host.whole(|name| self.hostname_of(name))
    }
}
