//! What was published, so that only what differs is published again.

use std::collections::BTreeMap;
use std::time::Duration;

use ambit_model::workload::Workload;
use ambit_wire::codec::{self, ADDRESS, AUTHORIZATION, SERVICE_CONFIG, WORKLOAD};
use ambit_wire::xds::{Publisher, Resource};
use bytes::Bytes;
use tracing::error;
use xxhash_rust::xxh64::xxh64;

use crate::translate::{Output, Translated};

/// Whoever serves resources to subscribers.
pub trait Sink {
    /// Publishes removals, then upserts, of one type.
    fn update(&self, type_url: &str, upserts: Vec<Resource>, removals: &[String]);
    /// Says that everything is published for the first time.
    fn open(&self);
    /// Hears how long a batch of events took until it was published.
    fn took(&self, _time: Duration) {}
}

impl Sink for Publisher {
    fn update(&self, type_url: &str, upserts: Vec<Resource>, removals: &[String]) {
        if let Err(error) = Publisher::update(self, type_url, upserts, removals) {
            error!(xds.type_url = type_url, %error, "Resources were not published");
        }
    }

    fn open(&self) {
        Publisher::open(self);
    }
}

/// What is published now.
#[derive(Debug, Default)]
pub struct Outputs {
    held: BTreeMap<Output, Held>,
}

/// One published resource.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    name: String,
    body: Bytes,
}

/// What differs from what was published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workloads and services that are new or changed.
    pub addresses: Vec<Resource>,
    /// Names of workloads that are gone.
    pub removed_workloads: Vec<String>,
    /// Names of services that are gone.
    pub removed_services: Vec<String>,
    /// Policies that are new or changed.
    pub policies: Vec<Resource>,
    /// Names of policies that are gone.
    pub removed_policies: Vec<String>,
    /// What waypoints are to know of services, new or changed.
    pub configs: Vec<Resource>,
    /// Names of what they need no longer know.
    pub removed_configs: Vec<String>,
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many resources differ.
    pub fn len(&self) -> usize {
        self.addresses.len()
            + self.removed_workloads.len()
            + self.removed_services.len()
            + self.policies.len()
            + self.removed_policies.len()
            + self.configs.len()
            + self.removed_configs.len()
    }

    /// Publishes the difference. A policy is there before a workload names it, and goes after: a name that a tunnel
    /// does not know restricts nothing. So does what a waypoint knows of a service: tunnels bring it requests as soon
    /// as the service names it.
    pub fn publish(self, sink: &impl Sink) {
        if !self.policies.is_empty() {
            sink.update(AUTHORIZATION, self.policies, &[]);
        }
        if !self.configs.is_empty() {
            sink.update(SERVICE_CONFIG, self.configs, &[]);
        }
        let workloads: Vec<_> = self.addresses.iter().filter_map(bare).collect();
        let removed = [self.removed_workloads.as_slice(), &self.removed_services].concat();
        if !(self.addresses.is_empty() && removed.is_empty()) {
            sink.update(ADDRESS, self.addresses, &removed);
        }
        if !(workloads.is_empty() && self.removed_workloads.is_empty()) {
            sink.update(WORKLOAD, workloads, &self.removed_workloads);
        }
        if !self.removed_configs.is_empty() {
            sink.update(SERVICE_CONFIG, Vec::new(), &self.removed_configs);
        }
        if !self.removed_policies.is_empty() {
            sink.update(AUTHORIZATION, Vec::new(), &self.removed_policies);
        }
    }
}

impl Outputs {
    /// Takes what `output` is now, and adds to `changes` how it differs.
    pub fn put(&mut self, output: Output, now: Option<&Translated>, changes: &mut Changes) {
        let Some(now) = now else {
            if let Some(held) = self.held.remove(&output) {
                match output {
                    Output::Workload(_) => changes.removed_workloads.push(held.name),
                    Output::Service(_) => changes.removed_services.push(held.name),
                    Output::Policy(_) => changes.removed_policies.push(held.name),
                    Output::ServiceConfig { .. } => changes.removed_configs.push(held.name),
                }
            }
            return;
        };
        let resource = encode(now);
        let held = Held { name: resource.name.clone(), body: resource.body.clone() };
        if self.held.get(&output) == Some(&held) {
            return;
        }
        match now {
            Translated::Workload(_) | Translated::Service(_) => changes.addresses.push(resource),
            Translated::Policy(_) => changes.policies.push(resource),
            Translated::ServiceConfig { .. } => changes.configs.push(resource),
        }
        self.held.insert(output, held);
    }

    /// How many resources are published.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is published.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Every published resource: name and body, by what it is made from.
    pub fn iter(&self) -> impl Iterator<Item = (&Output, &str, &Bytes)> {
        self.held.iter().map(|(output, held)| (output, held.name.as_str(), &held.body))
    }
}

/// The resource that subscribers get.
fn encode(now: &Translated) -> Resource {
    match now {
        Translated::Workload(workload) => {
            let body = codec::encode_workload(workload);
            Resource {
                name: workload.uid.to_string(),
                version: version(&body),
                aliases: workload.addresses.iter().map(|ip| format!("{}/{ip}", workload.network)).collect(),
                follows: follows(workload),
                node: workload.node.to_string(),
                body,
                ..Resource::default()
            }
        }
        Translated::Service(service) => {
            let body = codec::encode_service(service);
            let vips = service.vips.iter().map(ToString::to_string);
            Resource {
                name: service.key().to_string(),
                version: version(&body),
                aliases: vips.chain(service.ranges.iter().map(ToString::to_string)).collect(),
                body,
                ..Resource::default()
            }
        }
        // Without a version, tunnels get every policy again when they reconnect (protocols 1.7).
        Translated::Policy(policy) => Resource {
            name: policy.key.to_string(),
            body: codec::encode_policy(policy),
            ..Resource::default()
        },
        Translated::ServiceConfig { gateway, config } => {
            let body = codec::encode_service_config(config);
            let (namespace, name) = (gateway.namespace.as_str(), gateway.name.as_str());
            Resource {
                name: codec::service_config_name(namespace, name, config.key()),
                version: version(&body),
                owner: gateway.to_string(),
                body,
                ..Resource::default()
            }
        }
    }
}

/// The same workload for those who want workloads alone; `None` for a service.
fn bare(address: &Resource) -> Option<Resource> {
    let body = codec::bare_workload(&address.body)?;
    Some(Resource { version: version(&body), body, ..address.clone() })
}

/// Whoever asks for a service gets its endpoints too.
fn follows(workload: &Workload) -> Vec<String> {
    workload.services.iter().map(|(key, _)| key.to_string()).collect()
}

/// The version of a resource: a hash of its bytes, so that it survives a restart (protocols 1.7).
fn version(body: &Bytes) -> String {
    format!("{:x}", xxh64(body, 0))
}
