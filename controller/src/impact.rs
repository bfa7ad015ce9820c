//! What may have changed, when one object did. Pure.
//!
//! An output that is named here and did not change costs a comparison; one that is missing here is a bug that leaves
//! the mesh wrong. So each rule is generous, and a property test compares with a translation from scratch.

use std::collections::BTreeSet;

use ambit_api::labels;
use ambit_model::name::{Hostname, Namespace, ServiceKey};
use ambit_model::service_config::ServiceConfig;

use crate::cluster::object::{
    Attachment, AuthorizationPolicy, Content, DestinationRule, EndpointSlice, GatewayClass, Key, Kind,
    Labels, LimitTarget, Meta, Name, NamespaceObject, Object, PeerAuthentication, Pod, PolicyTarget,
    RateLimitPolicy, ReferenceGrant, Route, Selector, Service, ServiceEntry, Subset, VirtualService,
};
use crate::cluster::{Cluster, HostOwner, Member, Touched};
use crate::translate::workload::{inline_sources, slice_sources};
use crate::translate::{Output, PolicySource, WorkloadSource};
use crate::translate::{destination, waypoint};

/// The outputs that may have changed. `cluster` is as it is after the change.
pub fn of(cluster: &Cluster, touched: &Touched) -> BTreeSet<Output> {
    // What hangs on the labels that an object had is not found by looking at all that there is now.
    let all = if network_changed(cluster, touched) { everything(cluster) } else { BTreeSet::new() };
    let mut dependents = Dependents { cluster, outputs: all };
    for object in [&touched.before, &touched.after].into_iter().flatten() {
        dependents.of_object(object);
    }
    dependents.outputs
}

/// The outputs of services whose automatic addresses moved.
pub fn of_moved(services: Vec<ServiceKey>) -> BTreeSet<Output> {
    services.into_iter().map(Output::Service).collect()
}

/// Every output that there may be.
pub fn everything(cluster: &Cluster) -> BTreeSet<Output> {
    let mut all = Dependents { cluster, outputs: BTreeSet::new() };
    all.members(cluster.all_members());
    for (name, _) in cluster.services.iter() {
        all.service(&name.namespace, &cluster.hostname_of(name));
    }
    for (_, entry) in cluster.service_entries.iter() {
        all.entry(entry);
    }
    for (_, slice) in cluster.slices.iter() {
        all.slice(slice);
    }
    for (name, _) in cluster.authorization_policies.iter() {
        all.policy(PolicySource::Authorization(name.clone()));
    }
    for (name, _) in cluster.peer_authentications.iter() {
        all.policy(PolicySource::Converted(name.clone()));
    }
    for (name, _) in cluster.gateways.iter() {
        all.policy(PolicySource::AllowWaypoint(name.clone()));
        all.workloads_at(name);
    }
    all.policy(PolicySource::StaticStrict);
    all.outputs
}

/// The network is part of every address.
fn network_changed(cluster: &Cluster, touched: &Touched) -> bool {
    let network = |object: &Option<Object>| match object {
        Some(Object::Namespace(namespace))
            if namespace.meta.name.name == cluster.settings().root_namespace.as_str() =>
        {
            namespace.meta.labels.get(labels::TOPOLOGY_NETWORK).map(str::to_owned)
        }
        Some(_) | None => None,
    };
    network(&touched.before) != network(&touched.after)
}

/// Collects the outputs that depend on objects.
struct Dependents<'a> {
    cluster: &'a Cluster,
    outputs: BTreeSet<Output>,
}

impl<'a> Dependents<'a> {
    fn of_object(&mut self, object: &Object) {
        match object {
            Object::Namespace(namespace) => self.of_namespace(namespace),
            Object::Node(node) => {
                let name = node.meta.name.name.as_str().into();
                let pods = self.cluster.pods_on(&name).cloned().map(Member::Pod).collect::<Vec<_>>();
                self.members(pods);
            }
            Object::Pod(pod) => self.of_pod(pod),
            Object::WorkloadEntry(entry) => {
                self.members([Member::Entry(entry.meta.name.clone())]);
                self.subsets_of(&entry.meta.name.namespace, &entry.labels);
            }
            Object::Service(service) => self.of_service(service),
            Object::EndpointSlice(slice) => self.slice(slice),
            Object::ServiceEntry(entry) => self.of_entry(entry),
            Object::AuthorizationPolicy(policy) => self.of_authorization(policy),
            Object::PeerAuthentication(policy) => self.of_peer_authentication(policy),
            Object::RequestAuthentication(policy) => self.attached(&policy.attachment),
            Object::DestinationRule(rule) => self.of_destination_rule(rule),
            Object::RateLimitPolicy(policy) => self.limited(policy),
            Object::VirtualService(object) => self.of_virtual(object),
            Object::Gateway(gateway) => self.of_gateway(&gateway.meta.name),
            Object::GatewayClass(class) => self.of_class(class),
            Object::Route(route) => self.of_route(route),
            Object::ReferenceGrant(grant) => self.of_grant(grant),
            Object::MeshConfig(_) => self.of_providers(),
        }
    }

    /// A namespace lends its labels to everything in it: those of now, and those that it had.
    fn of_namespace(&mut self, namespace: &NamespaceObject) {
        let name = Namespace::from(namespace.meta.name.name.as_str());
        self.all_within(&name);
        let cluster = self.cluster;
        for (_, service) in cluster.services.within(&name) {
            let host = cluster.hostname_of(&service.meta.name);
            self.configs_by(&service.meta, &namespace.meta.labels, [&host]);
        }
        for (_, entry) in cluster.service_entries.within(&name) {
            self.configs_by(&entry.meta, &namespace.meta.labels, &entry.hosts);
        }
    }

    fn of_pod(&mut self, pod: &Pod) {
        self.members([Member::Pod(pod.meta.name.clone())]);
        self.subsets_of(&pod.meta.name.namespace, &pod.meta.labels);
        if let Some(gateway) = pod.meta.labels.get(labels::GATEWAY_NAME) {
            let gateway = Name::new(pod.meta.name.namespace.clone(), gateway);
            self.of_gateway(&gateway);
        }
    }

    fn of_service(&mut self, service: &Service) {
        let name = &service.meta.name;
        let host = self.cluster.hostname_of(name);
        self.selected(&name.namespace, service.selector.as_ref());
        self.slices_of(name);
        self.rivals(&name.namespace, &host);
        self.service(&name.namespace, &host);
        self.configs_by(&service.meta, &self.cluster.namespace_labels(&name.namespace), [&host]);
        self.senders(&HostOwner::Service(name.clone()));
    }

    fn of_entry(&mut self, entry: &ServiceEntry) {
        self.entry(entry);
        self.selected(&entry.meta.name.namespace, entry.selector.as_ref());
        let name = &entry.meta.name;
        for host in &entry.hosts {
            self.rivals(&name.namespace, host);
            self.virtual_senders(host);
        }
        self.configs_by(&entry.meta, &self.cluster.namespace_labels(&name.namespace), &entry.hosts);
        self.senders(&HostOwner::ServiceEntry(name.clone()));
    }

    /// Who else has a host name: in other namespaces it decides who is canonical, in the same one who counts.
    fn rivals(&mut self, namespace: &Namespace, host: &Hostname) {
        let owners: Vec<_> = self.cluster.owners_of_host(host).cloned().collect();
        for owner in owners {
            let name = owner.name();
            self.service(&name.namespace, host);
            if name.namespace != *namespace {
                continue;
            }
            self.senders(&owner);
            match &owner {
                HostOwner::Service(name) => {
                    let selector =
                        self.cluster.services.get(name).and_then(|service| service.selector.as_ref());
                    self.selected(namespace, selector);
                    self.slices_of(name);
                }
                HostOwner::ServiceEntry(name) => {
                    if let Some(entry) = self.cluster.service_entries.get(name) {
                        self.entry(entry);
                        self.selected(namespace, entry.selector.as_ref());
                    }
                }
            }
        }
    }

    fn of_authorization(&mut self, policy: &AuthorizationPolicy) {
        let name = &policy.meta.name;
        self.policy(PolicySource::Authorization(name.clone()));
        if let Some(selector) = policy.selector() {
            self.judged(&name.namespace, selector);
        }
        self.attached(&policy.attachment);
    }

    /// A policy is part of what waypoints know of the services that it is attached to.
    fn attached(&mut self, attachment: &Attachment) {
        let cluster = self.cluster;
        for target in attachment.targets() {
            match target {
                PolicyTarget::Service(owner) => self.configs(owner),
                PolicyTarget::Gateway(gateway) => self.configs_at(gateway),
                PolicyTarget::Class(class) => {
                    let gateways = cluster.gateways.iter().filter(|(_, gateway)| gateway.class == *class);
                    gateways.for_each(|(name, _)| self.configs_at(name));
                }
                PolicyTarget::Unknown { .. } => {}
            }
        }
    }

    /// A rule is part of what waypoints know of the services that it names, and of those that send something to them.
    fn of_destination_rule(&mut self, rule: &DestinationRule) {
        for owner in destination::named(self.cluster, rule) {
            self.configs(&owner);
            self.senders(&owner);
        }
    }

    /// Whoever has these labels may be in a subset. One of all endpoints names none of them.
    fn subsets_of(&mut self, namespace: &Namespace, labels: &Labels) {
        let cluster = self.cluster;
        let has = |subset: &Subset| subset.labels.as_ref().is_some_and(|wanted| wanted.matches(labels));
        let root = &cluster.settings().root_namespace;
        let namespaces = BTreeSet::from([namespace, root]);
        let rules = namespaces.into_iter().flat_map(|namespace| cluster.destination_rules.within(namespace));
        for (_, rule) in rules.filter(|(_, rule)| rule.subsets.iter().any(has)) {
            let named = destination::named(cluster, rule);
            for owner in named.iter().filter(|owner| owner.name().namespace == *namespace) {
                self.configs(owner);
                self.senders(owner);
            }
        }
    }

    /// A limit is part of what waypoints know of the services that it is for.
    fn limited(&mut self, policy: &RateLimitPolicy) {
        let cluster = self.cluster;
        for target in &policy.targets {
            match &target.to {
                LimitTarget::Service(owner) => self.configs(owner),
                LimitTarget::Gateway(gateway) => self.configs_at(gateway),
                LimitTarget::Route(key) => {
                    if let Some(route) = cluster.route(key) {
                        self.of_route(route);
                    }
                }
            }
        }
    }

    /// What a gateway knows of the services that name it, and maybe what others know of them.
    fn configs_at(&mut self, gateway: &Name) {
        self.workloads_at(gateway);
        let cluster = self.cluster;
        for Key { kind, name } in cluster.bound_to(gateway) {
            match kind {
                Kind::Namespace => {
                    let namespace = Namespace::from(name.name.as_str());
                    for (name, _) in cluster.services.within(&namespace) {
                        self.configs(&HostOwner::Service(name.clone()));
                    }
                    for (name, _) in cluster.service_entries.within(&namespace) {
                        self.configs(&HostOwner::ServiceEntry(name.clone()));
                    }
                }
                Kind::Service => self.configs(&HostOwner::Service(name.clone())),
                Kind::ServiceEntry => self.configs(&HostOwner::ServiceEntry(name.clone())),
                // What is addressed to workloads has no configuration; the others are bound to nothing.
                Kind::Pod
                | Kind::WorkloadEntry
                | Kind::Node
                | Kind::EndpointSlice
                | Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::RequestAuthentication
                | Kind::DestinationRule
                | Kind::RateLimitPolicy
                | Kind::VirtualService
                | Kind::Gateway
                | Kind::GatewayClass
                | Kind::GrpcRoute
                | Kind::HttpRoute
                | Kind::TlsRoute
                | Kind::TcpRoute
                | Kind::ReferenceGrant
                | Kind::MeshConfig => {}
            }
        }
    }

    fn of_peer_authentication(&mut self, policy: &PeerAuthentication) {
        let name = &policy.meta.name;
        self.policy(PolicySource::StaticStrict);
        self.policy(PolicySource::Converted(name.clone()));
        let of_mesh = name.namespace == self.cluster.settings().root_namespace;
        match &policy.selector {
            Some(selector) => self.judged(&name.namespace, selector),
            None if of_mesh => {
                self.members(self.cluster.all_members());
                for (_, entry) in self.cluster.service_entries.iter() {
                    self.inline(entry);
                }
                self.converted(self.cluster.peer_authentications.iter().map(|(name, _)| name));
            }
            None => {
                self.members_within(&name.namespace);
                self.converted(
                    self.cluster.peer_authentications.within(&name.namespace).map(|(name, _)| name),
                );
            }
        }
    }

    fn of_class(&mut self, class: &GatewayClass) {
        for (_, gateway) in self.cluster.gateways.iter() {
            if gateway.class == class.meta.name.name {
                self.of_gateway(&gateway.meta.name);
            }
        }
    }

    /// A waypoint is part of everything bound to it, of its own instances, and of the policy that lets it in.
    fn of_gateway(&mut self, gateway: &Name) {
        self.policy(PolicySource::AllowWaypoint(gateway.clone()));
        self.workloads_at(gateway);
        let bound: Vec<Key> = self.cluster.bound_to(gateway).cloned().collect();
        for key in bound {
            match key.kind {
                Kind::Namespace => self.all_within(&Namespace::from(key.name.name.as_str())),
                Kind::Service => {
                    if let Some(service) = self.cluster.services.get(&key.name) {
                        self.of_service(service);
                    }
                }
                Kind::ServiceEntry => {
                    if let Some(entry) = self.cluster.service_entries.get(&key.name) {
                        self.of_entry(entry);
                    }
                }
                Kind::Pod => self.members([Member::Pod(key.name)]),
                Kind::WorkloadEntry => self.members([Member::Entry(key.name)]),
                // Their labels bind them to nothing.
                Kind::Node
                | Kind::EndpointSlice
                | Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::RequestAuthentication
                | Kind::DestinationRule
                | Kind::RateLimitPolicy
                | Kind::VirtualService
                | Kind::Gateway
                | Kind::GatewayClass
                | Kind::GrpcRoute
                | Kind::HttpRoute
                | Kind::TlsRoute
                | Kind::TcpRoute
                | Kind::ReferenceGrant
                | Kind::MeshConfig => {}
            }
        }
    }

    /// A route is part of what waypoints know of the services that it is attached to.
    fn of_route(&mut self, route: &Route) {
        for (_, owner) in route.services() {
            self.configs(owner);
        }
    }

    /// A VirtualService is part of what waypoints know of the services that it is for.
    fn of_virtual(&mut self, object: &VirtualService) {
        let cluster = self.cluster;
        for host in &object.hosts {
            for owner in cluster.owners_of_host(&cluster.whole_host(host)) {
                self.configs(owner);
            }
        }
    }

    /// VirtualServices that send something to a host depend on who defines it, of whatever namespace, and on its ports.
    fn virtual_senders(&mut self, host: &Hostname) {
        let cluster = self.cluster;
        for object in cluster.virtual_services_to(host) {
            self.of_virtual(object);
        }
    }

    /// A grant is part of the routes, VirtualServices and limits that it is for.
    fn of_grant(&mut self, grant: &ReferenceGrant) {
        let cluster = self.cluster;
        for (kind, namespace) in &grant.from {
            for route in cluster.routes_within(*kind, namespace) {
                self.of_route(route);
            }
            if *kind == Kind::RateLimitPolicy {
                for (_, policy) in cluster.rate_limit_policies.within(namespace) {
                    self.limited(policy);
                }
            }
            if *kind == Kind::VirtualService {
                for (_, object) in cluster.virtual_services.within(namespace) {
                    self.of_virtual(object);
                }
            }
        }
    }

    /// Providers are part of the policies that ask them.
    fn of_providers(&mut self) {
        let cluster = self.cluster;
        for (_, policy) in cluster.authorization_policies.iter() {
            if matches!(policy.content, Content::Custom { .. }) {
                self.attached(&policy.attachment);
            }
        }
    }

    /// Routes and VirtualServices that send something to a service depend on whether it is there, and on its ports; so do limits that it
    /// counts.
    fn senders(&mut self, owner: &HostOwner) {
        let cluster = self.cluster;
        for route in cluster.routes_to(owner) {
            self.of_route(route);
        }
        for policy in cluster.limits_counted_by(owner) {
            self.limited(policy);
        }
        match owner {
            HostOwner::Service(name) => self.virtual_senders(&cluster.hostname_of(name)),
            HostOwner::ServiceEntry(name) => {
                let hosts = cluster.service_entries.get(name).into_iter().flat_map(|entry| &entry.hosts);
                hosts.for_each(|host| self.virtual_senders(host));
            }
        }
    }

    /// What a waypoint knows of what is addressed to workloads.
    fn workloads_at(&mut self, gateway: &Name) {
        let service = ServiceConfig::key_of_workloads(&gateway.namespace);
        self.outputs.insert(Output::ServiceConfig { gateway: gateway.clone(), service });
    }

    /// What waypoints know of the services of an object.
    fn configs(&mut self, owner: &HostOwner) {
        let cluster = self.cluster;
        let of_namespace = cluster.namespace_labels(&owner.name().namespace);
        match owner {
            HostOwner::Service(name) => {
                if let Some(service) = cluster.services.get(name) {
                    self.configs_by(&service.meta, &of_namespace, [&cluster.hostname_of(name)]);
                }
            }
            HostOwner::ServiceEntry(name) => {
                if let Some(entry) = cluster.service_entries.get(name) {
                    self.configs_by(&entry.meta, &of_namespace, &entry.hosts);
                }
            }
        }
    }

    /// What waypoints know of services with these labels.
    fn configs_by<'h>(
        &mut self,
        meta: &Meta,
        of_namespace: &Labels,
        hosts: impl IntoIterator<Item = &'h Hostname> + Clone,
    ) {
        for gateway in waypoint::named(meta, of_namespace) {
            for host in hosts.clone() {
                let service = ServiceKey { namespace: meta.name.namespace.clone(), hostname: host.clone() };
                self.outputs.insert(Output::ServiceConfig { gateway: gateway.clone(), service });
            }
        }
    }

    fn all_within(&mut self, namespace: &Namespace) {
        self.members_within(namespace);
        let hosts: Vec<_> =
            self.cluster.services.within(namespace).map(|(name, _)| self.cluster.hostname_of(name)).collect();
        for host in hosts {
            self.service(namespace, &host);
        }
        let cluster = self.cluster;
        for (name, entry) in cluster.service_entries.within(namespace) {
            self.entry(entry);
            // Whether there is a waypoint decides whether one that DNS resolves is known at all.
            self.senders(&HostOwner::ServiceEntry(name.clone()));
        }
    }

    /// The pods, workload entries and written endpoints of a namespace.
    fn members_within(&mut self, namespace: &Namespace) {
        let pods = self.cluster.pods.within(namespace).map(|(name, _)| Member::Pod(name.clone()));
        let entries =
            self.cluster.workload_entries.within(namespace).map(|(name, _)| Member::Entry(name.clone()));
        let members: Vec<_> = pods.chain(entries).collect();
        self.members(members);
        for (_, entry) in self.cluster.service_entries.within(namespace) {
            self.inline(entry);
        }
    }

    /// The workloads that a policy of this namespace selects.
    fn judged(&mut self, namespace: &Namespace, selector: &Selector) {
        if *namespace == self.cluster.settings().root_namespace {
            let all = self.cluster.all_members();
            let selected =
                all.filter(|member| self.cluster.labels_of(member).is_some_and(|l| selector.matches(l)));
            let selected: Vec<_> = selected.collect();
            self.members(selected);
            for (_, entry) in self.cluster.service_entries.iter() {
                self.inline(entry);
            }
        } else {
            self.selected(namespace, Some(selector));
            for (_, entry) in self.cluster.service_entries.within(namespace) {
                self.inline(entry);
            }
        }
    }

    fn selected(&mut self, namespace: &Namespace, selector: Option<&Selector>) {
        if let Some(selector) = selector {
            self.members(self.cluster.members(namespace, selector));
        }
    }

    fn slices_of(&mut self, service: &Name) {
        for slice in self.cluster.slices_of_service(service) {
            self.slice(slice);
        }
    }

    fn slice(&mut self, slice: &EndpointSlice) {
        self.outputs.extend(slice_sources(slice).into_iter().map(Output::Workload));
        self.members(slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone()).map(Member::Pod));
    }

    fn entry(&mut self, entry: &ServiceEntry) {
        for host in &entry.hosts {
            self.service(&entry.meta.name.namespace, host);
        }
        self.inline(entry);
    }

    fn inline(&mut self, entry: &ServiceEntry) {
        self.outputs.extend(inline_sources(entry).into_iter().map(Output::Workload));
    }

    fn members(&mut self, members: impl IntoIterator<Item = Member>) {
        self.outputs.extend(members.into_iter().map(|member| {
            Output::Workload(match member {
                Member::Pod(name) => WorkloadSource::Pod(name),
                Member::Entry(name) => WorkloadSource::Entry(name),
            })
        }));
    }

    fn converted<'n>(&mut self, names: impl Iterator<Item = &'n Name>) {
        self.outputs.extend(names.cloned().map(PolicySource::Converted).map(Output::Policy));
    }

    fn policy(&mut self, source: PolicySource) {
        self.outputs.insert(Output::Policy(source));
    }

    /// A service, and what waypoints know of it.
    fn service(&mut self, namespace: &Namespace, host: &Hostname) {
        let key = ServiceKey { namespace: namespace.clone(), hostname: host.clone() };
        self.outputs.insert(Output::Service(key));
        let cluster = self.cluster;
        for owner in cluster.owners_of_host(host).filter(|owner| owner.name().namespace == *namespace) {
            self.configs(owner);
        }
    }
}
