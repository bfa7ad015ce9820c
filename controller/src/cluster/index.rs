//! The secondary indexes of a [`Cluster`](super::Cluster): who has this label, who selects it, who names that gateway.
//!
//! An index narrows a question down; the objects answer it. So an entry may be a candidate too many, never one too few.

use std::collections::{BTreeMap, BTreeSet};

use ambit_api::labels;
use ambit_model::name::{Hostname, Namespace, Node};

use super::object::{Attachment, Key, Kind, Labels, LimitTarget, Meta, Name, Object, PolicyTarget, Referent};

/// A pod or workload entry: what selectors select.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// A pod.
    Pod(Name),
    /// A workload entry.
    Entry(Name),
}

/// Something that selects pods and workload entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SelectorOwner {
    /// A Service.
    Service(Name),
    /// A ServiceEntry.
    ServiceEntry(Name),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Name),
    /// A PeerAuthentication.
    PeerAuthentication(Name),
}

/// A policy that gateways or services have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttachedPolicy {
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Name),
    /// A RequestAuthentication.
    RequestAuthentication(Name),
}

impl AttachedPolicy {
    /// The object's name.
    pub fn name(&self) -> &Name {
        match self {
            Self::AuthorizationPolicy(name) | Self::RequestAuthentication(name) => name,
        }
    }
}

/// Something that has a host name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostOwner {
    /// A Service.
    Service(Name),
    /// A ServiceEntry.
    ServiceEntry(Name),
}

impl HostOwner {
    /// The object's name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Service(name) | Self::ServiceEntry(name) => name,
        }
    }
}

/// A label within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labelled {
    namespace: Namespace,
    key: String,
    value: String,
}

/// The indexes.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    members: Multimap<Labelled, Member>,
    selectors: Multimap<Labelled, SelectorOwner>,
    slices_by_pod: Multimap<Name, Name>,
    slices_by_service: Multimap<Name, Name>,
    pods_by_node: Multimap<Node, Name>,
    hosts: Multimap<Hostname, HostOwner>,
    bound: Multimap<Name, Key>,
    routes_by_parent: Multimap<HostOwner, Key>,
    routes_by_reference: Multimap<HostOwner, Key>,
    policies_by_target: Multimap<PolicyTarget, AttachedPolicy>,
    virtual_by_host: Multimap<Hostname, Name>,
    virtual_by_reference: Multimap<Hostname, Name>,
    limits_by_target: Multimap<LimitTarget, Name>,
    limits_by_reference: Multimap<HostOwner, Name>,
}

impl Index {
    pub(super) fn members_with<'s>(
        &'s self,
        namespace: &Namespace,
        label: (&str, &str),
    ) -> impl Iterator<Item = &'s Member> + use<'s> {
        self.members.get(&labelled(namespace, label))
    }

    pub(super) fn selectors_with<'s>(
        &'s self,
        namespace: &Namespace,
        label: (&str, &str),
    ) -> impl Iterator<Item = &'s SelectorOwner> + use<'s> {
        self.selectors.get(&labelled(namespace, label))
    }

    pub(super) fn slices_of_pod<'s>(&'s self, pod: &Name) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.slices_by_pod.get(pod)
    }

    pub(super) fn slices_of_service<'s>(
        &'s self,
        service: &Name,
    ) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.slices_by_service.get(service)
    }

    pub(super) fn pods_on<'s>(&'s self, node: &Node) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.pods_by_node.get(node)
    }

    pub(super) fn owners_of_host<'s>(
        &'s self,
        host: &Hostname,
    ) -> impl Iterator<Item = &'s HostOwner> + use<'s> {
        self.hosts.get(host)
    }

    pub(super) fn bound_to<'s>(&'s self, gateway: &Name) -> impl Iterator<Item = &'s Key> + use<'s> {
        self.bound.get(gateway)
    }

    pub(super) fn routes_at<'s>(&'s self, parent: &HostOwner) -> impl Iterator<Item = &'s Key> + use<'s> {
        self.routes_by_parent.get(parent)
    }

    pub(super) fn routes_to<'s>(&'s self, service: &HostOwner) -> impl Iterator<Item = &'s Key> + use<'s> {
        self.routes_by_reference.get(service)
    }

    pub(super) fn virtual_services_of<'s>(
        &'s self,
        host: &Hostname,
    ) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.virtual_by_host.get(host)
    }

    pub(super) fn virtual_services_to<'s>(
        &'s self,
        host: &Hostname,
    ) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.virtual_by_reference.get(host)
    }

    pub(super) fn policies_on<'s>(
        &'s self,
        target: &PolicyTarget,
    ) -> impl Iterator<Item = &'s AttachedPolicy> + use<'s> {
        self.policies_by_target.get(target)
    }

    pub(super) fn limits_on<'s>(&'s self, target: &LimitTarget) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.limits_by_target.get(target)
    }

    pub(super) fn limits_counted_by<'s>(
        &'s self,
        service: &HostOwner,
    ) -> impl Iterator<Item = &'s Name> + use<'s> {
        self.limits_by_reference.get(service)
    }

    /// Enters an object. `hostname_of` names Kubernetes Services.
    pub(super) fn enter(&mut self, object: &Object, hostname_of: impl Fn(&Name) -> Hostname) {
        self.each_entry(object, hostname_of, Change::Enter);
    }

    /// Takes an object out again, which must be the very one that was entered.
    pub(super) fn leave(&mut self, object: &Object, hostname_of: impl Fn(&Name) -> Hostname) {
        self.each_entry(object, hostname_of, Change::Leave);
    }

    fn each_entry(&mut self, object: &Object, hostname_of: impl Fn(&Name) -> Hostname, change: Change) {
        match object {
            Object::Namespace(namespace) => {
                let own = Namespace::from(namespace.meta.name.name.as_str());
                self.bind(&namespace.meta, &own, Kind::Namespace, change);
            }
            Object::Pod(pod) => {
                let name = &pod.meta.name;
                self.label(name, &pod.meta.labels, &Member::Pod(name.clone()), change);
                self.bind(&pod.meta, &name.namespace, Kind::Pod, change);
                self.pods_by_node.put(pod.node.clone(), name.clone(), change);
            }
            Object::WorkloadEntry(entry) => {
                let name = &entry.meta.name;
                self.label(name, &entry.labels, &Member::Entry(name.clone()), change);
                self.bind(&entry.meta, &name.namespace, Kind::WorkloadEntry, change);
            }
            Object::Service(service) => {
                let name = &service.meta.name;
                self.select(name, service.selector.as_ref(), SelectorOwner::Service(name.clone()), change);
                self.bind(&service.meta, &name.namespace, Kind::Service, change);
                // Another name for a host outside is not a service of the mesh.
                if !service.is_external_name {
                    self.hosts.put(hostname_of(name), HostOwner::Service(name.clone()), change);
                }
            }
            Object::ServiceEntry(entry) => {
                let name = &entry.meta.name;
                self.select(name, entry.selector.as_ref(), SelectorOwner::ServiceEntry(name.clone()), change);
                self.bind(&entry.meta, &name.namespace, Kind::ServiceEntry, change);
                for host in &entry.hosts {
                    self.hosts.put(host.clone(), HostOwner::ServiceEntry(name.clone()), change);
                }
            }
            Object::EndpointSlice(slice) => {
                for pod in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
                    self.slices_by_pod.put(pod.clone(), slice.meta.name.clone(), change);
                }
                if let Some(service) = &slice.service {
                    self.slices_by_service.put(service.clone(), slice.meta.name.clone(), change);
                }
            }
            Object::AuthorizationPolicy(policy) => {
                let name = &policy.meta.name;
                self.select(
                    name,
                    policy.selector(),
                    SelectorOwner::AuthorizationPolicy(name.clone()),
                    change,
                );
                let own = AttachedPolicy::AuthorizationPolicy(name.clone());
                self.attach(&policy.attachment, &own, change);
            }
            Object::RequestAuthentication(policy) => {
                let own = AttachedPolicy::RequestAuthentication(policy.meta.name.clone());
                self.attach(&policy.attachment, &own, change);
            }
            Object::PeerAuthentication(policy) => {
                let name = &policy.meta.name;
                self.select(
                    name,
                    policy.selector.as_ref(),
                    SelectorOwner::PeerAuthentication(name.clone()),
                    change,
                );
            }
            Object::Route(route) => {
                let key = Key { kind: route.kind.kind(), name: route.meta.name.clone() };
                for (_, parent) in route.services() {
                    self.routes_by_parent.put(parent.clone(), key.clone(), change);
                }
                for reference in route.references() {
                    if let Referent::Service { owner, .. } = &reference.to {
                        self.routes_by_reference.put(owner.clone(), key.clone(), change);
                    }
                }
            }
            Object::RateLimitPolicy(policy) => {
                let name = &policy.meta.name;
                for target in &policy.targets {
                    self.limits_by_target.put(target.to.clone(), name.clone(), change);
                }
                if let Some(Referent::Service { owner, .. }) = policy.limit_service().map(|one| &one.to) {
                    self.limits_by_reference.put(owner.clone(), name.clone(), change);
                }
            }
            Object::VirtualService(object) => {
                let name = &object.meta.name;
                for host in &object.hosts {
                    self.virtual_by_host.put(host.whole(&hostname_of), name.clone(), change);
                }
                for reference in object.references() {
                    if let Referent::Host { host, .. } = &reference.to {
                        self.virtual_by_reference.put(host.whole(&hostname_of), name.clone(), change);
                    }
                }
            }
            Object::Node(_)
            | Object::DestinationRule(_)
            | Object::Gateway(_)
            | Object::GatewayClass(_)
            | Object::ReferenceGrant(_)
            | Object::MeshConfig(_) => {}
        }
    }

    fn label(&mut self, name: &Name, labels: &Labels, member: &Member, change: Change) {
        for label in labels.0.iter().map(|(key, value)| (key.as_str(), value.as_str())) {
            self.members.put(labelled(&name.namespace, label), member.clone(), change);
        }
    }

    fn select(
        &mut self,
        name: &Name,
        selector: Option<&super::Selector>,
        owner: SelectorOwner,
        change: Change,
    ) {
        if let Some(selector) = selector {
            self.selectors.put(labelled(&name.namespace, selector.first()), owner, change);
        }
    }

    fn attach(&mut self, attachment: &Attachment, policy: &AttachedPolicy, change: Change) {
        for target in attachment.targets() {
            self.policies_by_target.put(target.clone(), policy.clone(), change);
        }
    }

    /// Enters the gateways that an object names: its waypoint, its canary, and that of which it is an instance.
    fn bind(&mut self, meta: &Meta, namespace: &Namespace, kind: Kind, change: Change) {
        let references = [
            (labels::USE_WAYPOINT, labels::USE_WAYPOINT_NAMESPACE),
            (labels::USE_WAYPOINT_CANARY, labels::USE_WAYPOINT_CANARY_NAMESPACE),
        ];
        for (name, elsewhere) in references {
            if let Some(gateway) = meta.labels.get(name) {
                let namespace = meta.labels.get(elsewhere).map_or_else(|| namespace.clone(), Namespace::from);
                let key = Key { kind, name: meta.name.clone() };
                self.bound.put(Name { namespace, name: gateway.into() }, key, change);
            }
        }
        if let Some(gateway) = meta.labels.get(labels::GATEWAY_NAME) {
            let gateway = Name { namespace: namespace.clone(), name: gateway.into() };
            self.bound.put(gateway, Key { kind, name: meta.name.clone() }, change);
        }
    }
}

fn labelled(namespace: &Namespace, (key, value): (&str, &str)) -> Labelled {
    Labelled { namespace: namespace.clone(), key: key.to_owned(), value: value.to_owned() }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Enter,
    Leave,
}

/// Several values for a key, in order.
#[derive(Clone, Debug)]
struct Multimap<K, V>(BTreeMap<K, BTreeSet<V>>);

impl<K, V> Default for Multimap<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V: Ord> Multimap<K, V> {
    fn get<'s>(&'s self, key: &K) -> impl Iterator<Item = &'s V> + use<'s, K, V> {
        self.0.get(key).into_iter().flatten()
    }

    fn put(&mut self, key: K, value: V, change: Change) {
        match change {
            Change::Enter => {
                self.0.entry(key).or_default().insert(value);
            }
            Change::Leave => {
                if let Some(values) = self.0.get_mut(&key) {
                    values.remove(&value);
                    if values.is_empty() {
                        self.0.remove(&key);
                    }
                }
            }
        }
    }
}
