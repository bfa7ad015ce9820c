//! What matters of the objects that users and Kubernetes wrote: a view for translators to ask questions of.
//!
//! A [`Cluster`] changes only through [`Cluster::apply`], which keeps every index beside the objects, and says what
//! it [`Touched`]. All questions are total: an object that is referred to and not there is an answer too.

mod apply;
mod index;
pub mod object;
mod routes;
mod vips;
mod virtual_services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambit_api::{labels, mesh_config::CONFIG_MAP};
use ambit_model::{
    identity::TrustDomain,
    name::{Hostname, Label, Namespace, Network, Node as NodeName, ServiceKey},
};

pub use apply::Touched;
use index::Index;
pub use index::{AttachedPolicy, HostOwner, Member, SelectorOwner};
use object::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Gateway, GatewayClass, Key, Labels, LimitTarget,
    MeshConfig, Name, NamespaceObject, Node, PeerAuthentication, Phase, Pod, PolicyTarget, Provider,
    RateLimitPolicy, ReferenceGrant, RequestAuthentication, Route, Selector, Service, ServiceEntry,
    VirtualService, WorkloadEntry,
};
pub use vips::{Vip, Vips};

/// What holds for the whole mesh and is not written in objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The id of this cluster, `Kubernetes`.
    pub cluster: ambit_model::name::Cluster,
    /// The domain of cluster services, `cluster.local`.
    pub domain: String,
    /// Who vouches for identities.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies hold everywhere, and whose label names the network.
    pub root_namespace: Namespace,
    /// What becomes of a DENY that only a waypoint could judge.
    pub l7_deny: L7Deny,
    /// Whether dry-run policies are sent to tunnels.
    pub dry_run_policies: bool,
    /// Whether waypoints are allowed in by policies made for them.
    pub auto_allow_waypoints: bool,
    /// Who sees ServiceEntries, if the mesh restricts it.
    pub entry_visibility: Option<EntryVisibility>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".into(),
            domain: "cluster.local".to_owned(),
            trust_domain: TrustDomain::default(),
            root_namespace: "istio-system".into(),
            l7_deny: L7Deny::Deny,
            dry_run_policies: false,
            auto_allow_waypoints: false,
            entry_visibility: None,
        }
    }
}

/// What becomes of a DENY rule whose conditions only a waypoint could judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum L7Deny {
    /// It denies what is left of it: a match of which nothing is left matches all.
    Deny,
    /// As Istio does: a match of which nothing is left matches nothing.
    Upstream,
    /// The webhook admits no such policy. One that is there all the same denies as with [`L7Deny::Deny`].
    Refuse,
}

/// Who sees ServiceEntries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EntryVisibility {
    /// Everybody.
    Public,
    /// Clients of their own namespace.
    Namespace,
    /// Nobody: they are not sent.
    None,
}

/// Why a provider is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownProvider<'a> {
    /// There is no mesh configuration.
    NoConfig,
    /// It could not be understood, for this reason.
    Undecodable(&'a str),
    /// It does not name him.
    Missing,
}

/// Objects of one kind, by namespace and name.
#[derive(Clone, Debug)]
pub struct Store<T>(BTreeMap<Name, Arc<T>>);

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Store<T> {
    /// The object of this name.
    pub fn get(&self, name: &Name) -> Option<&Arc<T>> {
        self.0.get(name)
    }

    /// Every object, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<T>)> {
        self.0.iter()
    }

    /// The objects of a namespace, by name.
    pub fn within<'a>(&'a self, namespace: &'a Namespace) -> impl Iterator<Item = (&'a Name, &'a Arc<T>)> {
        self.0
            .range(Name { namespace: namespace.clone(), name: "".into() }..)
            .take_while(move |(name, _)| name.namespace == *namespace)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything that matters, with its indexes.
#[derive(Clone, Debug)]
pub struct Cluster {
    settings: Arc<Settings>,
    /// Namespaces.
    pub namespaces: Store<NamespaceObject>,
    /// Nodes.
    pub nodes: Store<Node>,
    /// Pods.
    pub pods: Store<Pod>,
    /// Kubernetes Services.
    pub services: Store<Service>,
    /// EndpointSlices.
    pub slices: Store<EndpointSlice>,
    /// ServiceEntries.
    pub service_entries: Store<ServiceEntry>,
    /// WorkloadEntries.
    pub workload_entries: Store<WorkloadEntry>,
    /// AuthorizationPolicies.
    pub authorization_policies: Store<AuthorizationPolicy>,
    /// PeerAuthentications.
    pub peer_authentications: Store<PeerAuthentication>,
    /// RequestAuthentications.
    pub request_authentications: Store<RequestAuthentication>,
    /// DestinationRules.
    pub destination_rules: Store<DestinationRule>,
    /// RateLimitPolicies.
    pub rate_limit_policies: Store<RateLimitPolicy>,
    /// VirtualServices.
    pub virtual_services: Store<VirtualService>,
    /// Gateways.
    pub gateways: Store<Gateway>,
    /// GatewayClasses.
    pub gateway_classes: Store<GatewayClass>,
    /// ReferenceGrants.
    pub reference_grants: Store<ReferenceGrant>,
    /// Mesh configurations; the one of the root namespace counts.
    pub mesh_configs: Store<MeshConfig>,
    routes: BTreeMap<Key, Arc<Route>>,
    index: Index,
    vips: Vips,
}

impl Cluster {
    /// A cluster without objects.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            namespaces: Store::default(),
            nodes: Store::default(),
            pods: Store::default(),
            services: Store::default(),
            slices: Store::default(),
            service_entries: Store::default(),
            workload_entries: Store::default(),
            authorization_policies: Store::default(),
            peer_authentications: Store::default(),
            request_authentications: Store::default(),
            destination_rules: Store::default(),
            rate_limit_policies: Store::default(),
            virtual_services: Store::default(),
            gateways: Store::default(),
            gateway_classes: Store::default(),
            reference_grants: Store::default(),
            mesh_configs: Store::default(),
            routes: BTreeMap::new(),
            index: Index::default(),
            vips: Vips::default(),
        }
    }

    /// What holds for the whole mesh.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The network of this cluster, from the label of the root namespace; empty is the default one.
    pub fn network(&self) -> Network {
        let root = self.namespaces.get(&Name::new("", self.settings.root_namespace.as_str()));
        root.and_then(|root| root.meta.labels.get(labels::TOPOLOGY_NETWORK)).unwrap_or_default().into()
    }

    /// Whom policies know by `name`.
    ///
    /// # Errors
    /// Says why nobody is known by it.
    pub fn provider(&self, name: &Label) -> Result<&Provider, UnknownProvider<'_>> {
        let place = Name::new(self.settings.root_namespace.clone(), CONFIG_MAP);
        match self.mesh_configs.get(&place).map(|config| &config.providers) {
            None => Err(UnknownProvider::NoConfig),
            Some(Err(reason)) => Err(UnknownProvider::Undecodable(reason)),
            Some(Ok(providers)) => providers.get(name).ok_or(UnknownProvider::Missing),
        }
    }

    /// The labels of a namespace, whether it has an object or not.
    pub fn namespace_labels(&self, namespace: &Namespace) -> Labels {
        let object = self.namespaces.get(&Name::new("", namespace.as_str()));
        object.map_or_else(|| Labels::of_bare_namespace(namespace), |object| object.meta.labels.clone())
    }

    /// An annotation of a namespace.
    pub fn namespace_annotation(&self, namespace: &Namespace, key: &str) -> Option<&str> {
        self.namespaces.get(&Name::new("", namespace.as_str()))?.meta.annotations.get(key)
    }

    /// The host name of a Kubernetes Service.
    pub fn hostname_of(&self, service: &Name) -> Hostname {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.settings.domain).into()
    }

    /// The pods and workload entries of a namespace with these labels.
    pub fn members(&self, namespace: &Namespace, selector: &Selector) -> Vec<Member> {
        let candidates = self.index.members_with(namespace, selector.first());
        candidates
            .filter(|member| self.labels_of(member).is_some_and(|labels| selector.matches(labels)))
            .cloned()
            .collect()
    }

    /// Every pod and workload entry.
    pub fn all_members(&self) -> impl Iterator<Item = Member> {
        let pods = self.pods.iter().map(|(name, _)| Member::Pod(name.clone()));
        pods.chain(self.workload_entries.iter().map(|(name, _)| Member::Entry(name.clone())))
    }

    /// The labels of a pod or workload entry, as selectors see them.
    pub fn labels_of(&self, member: &Member) -> Option<&Labels> {
        match member {
            Member::Pod(name) => self.pods.get(name).map(|pod| &pod.meta.labels),
            Member::Entry(name) => self.workload_entries.get(name).map(|entry| &entry.labels),
        }
    }

    /// What selects these labels in a namespace: services, entries and policies, in stable order.
    pub fn selectors_of(&self, namespace: &Namespace, labels: &Labels) -> BTreeSet<SelectorOwner> {
        let candidates = labels.iter().flat_map(|label| self.index.selectors_with(namespace, label));
        candidates
            .filter(|owner| self.selector_of(owner).is_some_and(|selector| selector.matches(labels)))
            .cloned()
            .collect()
    }

    fn selector_of(&self, owner: &SelectorOwner) -> Option<&Selector> {
        match owner {
            SelectorOwner::Service(name) => self.services.get(name)?.selector.as_ref(),
            SelectorOwner::ServiceEntry(name) => self.service_entries.get(name)?.selector.as_ref(),
            SelectorOwner::AuthorizationPolicy(name) => self.authorization_policies.get(name)?.selector(),
            SelectorOwner::PeerAuthentication(name) => self.peer_authentications.get(name)?.selector.as_ref(),
        }
    }

    /// The EndpointSlices that name a pod.
    pub fn slices_of_pod(&self, pod: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.index.slices_of_pod(pod).filter_map(|name| self.slices.get(name))
    }

    /// The EndpointSlices of a Service.
    pub fn slices_of_service(&self, service: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.index.slices_of_service(service).filter_map(|name| self.slices.get(name))
    }

    /// The pods of a node.
    pub fn pods_on(&self, node: &NodeName) -> impl Iterator<Item = &Name> {
        self.index.pods_on(node)
    }

    /// The pods that are instances of a gateway.
    pub fn instances_of<'a>(&'a self, gateway: &'a Name) -> impl Iterator<Item = &'a Arc<Pod>> {
        let labelled =
            self.index.members_with(&gateway.namespace, (labels::GATEWAY_NAME, gateway.name.as_str()));
        labelled.filter_map(|member| match member {
            Member::Pod(name) => self.pods.get(name),
            Member::Entry(_) => None,
        })
    }

    /// The objects that name a gateway: as their waypoint or canary, or as that of which they are instances.
    pub fn bound_to(&self, gateway: &Name) -> impl Iterator<Item = &Key> {
        self.index.bound_to(gateway)
    }

    /// The policies that name a gateway or service, by kind and name.
    pub fn policies_on<'s>(
        &'s self,
        target: &PolicyTarget,
    ) -> impl Iterator<Item = &'s AttachedPolicy> + use<'s> {
        self.index.policies_on(target)
    }

    /// The RateLimitPolicies that limit this.
    pub fn limits_on<'s>(
        &'s self,
        target: &LimitTarget,
    ) -> impl Iterator<Item = &'s Arc<RateLimitPolicy>> + use<'s> {
        self.index.limits_on(target).filter_map(|name| self.rate_limit_policies.get(name))
    }

    /// The RateLimitPolicies that a service counts for.
    pub fn limits_counted_by(&self, service: &HostOwner) -> impl Iterator<Item = &Arc<RateLimitPolicy>> {
        self.index.limits_counted_by(service).filter_map(|name| self.rate_limit_policies.get(name))
    }

    /// Whatever has this host name, in any namespace.
    pub fn owners_of_host(&self, host: &Hostname) -> impl Iterator<Item = &HostOwner> {
        self.index.owners_of_host(host)
    }

    /// Which of the objects that have a host name in one namespace counts: the Kubernetes Service, else the oldest
    /// ServiceEntry.
    pub fn winner(&self, key: &ServiceKey) -> Option<HostOwner> {
        let here =
            self.index.owners_of_host(&key.hostname).filter(|owner| owner.name().namespace == key.namespace);
        here.min_by_key(|owner| self.rank(owner)).cloned()
    }

    /// Whether a service is preferred among those of its host name in all namespaces: the Kubernetes Service, else
    /// the oldest ServiceEntry that everybody sees.
    pub fn is_canonical(&self, owner: &HostOwner, host: &Hostname) -> bool {
        match owner {
            HostOwner::Service(_) => true,
            HostOwner::ServiceEntry(_) => {
                let private = self.settings.entry_visibility == Some(EntryVisibility::Namespace);
                let first = self.index.owners_of_host(host).min_by_key(|owner| self.rank(owner));
                !private && first == Some(owner)
            }
        }
    }

    /// Services before entries, then the oldest.
    fn rank(&self, owner: &HostOwner) -> (bool, Option<(Option<i64>, Name)>) {
        match owner {
            HostOwner::Service(name) => (false, self.services.get(name).map(|service| service.meta.age())),
            HostOwner::ServiceEntry(name) => {
                (true, self.service_entries.get(name).map(|entry| entry.meta.age()))
            }
        }
    }

    /// The automatic addresses of services that have none of their own.
    pub fn vips(&self) -> &Vips {
        &self.vips
    }

    /// Whether a node may ask for certificates of a service account: only if a pod that runs as it is there.
    pub fn runs_on(&self, node: &NodeName, namespace: &Namespace, service_account: &str) -> bool {
        self.pods_on(node).filter_map(|name| self.pods.get(name)).any(|pod| {
            pod.phase != Phase::Failed
                && pod.meta.name.namespace == *namespace
                && pod.service_account.as_str() == service_account
        })
    }
}
