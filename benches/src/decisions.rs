//! Single decisions and the worlds in which they are made, for timing and for counting.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ambit_model::{
    answer::{Answer, Asked},
    authz::{Action, Clause, Content, Facts, Match, Policy, Rule, Scope, Text, Verdict, check},
    identity::Identity,
    name::{Label, Network, PolicyKey},
    snapshot::{Snapshot, Update},
    workload::{Health, Workload},
};
use ambit_wire::{
    codec,
    discovery::{Discovery, Mesh},
    xds::{Handler, Received, Resource, Update as Response},
};
use ambit_ztunnel::outbound::plan::{self, Call, Plan};

use crate::{
    plane,
    world::{World, address, vip},
};

/// Policies, and a connection that only the last of them allows.
#[derive(Debug)]
pub struct Judgement {
    policies: Vec<Arc<Policy>>,
    peer: Identity,
}

impl Judgement {
    /// By so many policies.
    pub fn of(policies: usize) -> Self {
        Self {
            policies: (1..=policies).map(|number| Arc::new(policy(policies - number))).collect(),
            peer: Identity::new("cluster.local", "shop", "client-0"),
        }
    }

    /// Decides.
    pub fn check(&self) -> Verdict {
        let facts = Facts {
            peer: Some(&self.peer),
            source: IpAddr::V4(address(1)),
            destination: SocketAddr::from((address(2), 8080)),
            seen: None,
        };
        check(self.policies.iter().map(Arc::as_ref), &facts)
    }
}

/// A policy as people write them: who, and at which ports.
pub fn policy(number: usize) -> Policy {
    let principal = format!("cluster.local/ns/shop/sa/client-{number}");
    let from = Match { principals: vec![Text::Exact(Label::from(principal))], ..Match::default() };
    let to = Match { destination_ports: vec![8080, 8443], ..Match::default() };
    let clauses = vec![Clause { matches: vec![from] }, Clause { matches: vec![to] }];
    Policy {
        key: PolicyKey::new("shop", format!("policy-{number}")),
        scope: Scope::Namespace,
        content: Content::Rules { action: Action::Allow, rules: vec![Rule { clauses }], dry_run: false },
    }
}

/// A mesh, and a pod that calls a service and another pod in it.
#[derive(Debug)]
pub struct Planning {
    mesh: Snapshot,
    source: Workload,
    network: Network,
    next: u64,
}

impl Planning {
    /// In a mesh of so many.
    pub fn of(workloads: u32, services: u32) -> Self {
        let world = World::of(workloads, services);
        let source = world.workloads.first().cloned().unwrap_or_default();
        Self { mesh: snapshot(&world), source, network: Network::default(), next: 0 }
    }

    /// Plans a call of the address of a service.
    pub fn to_service(&mut self) -> Option<Plan> {
        self.plan(SocketAddr::from((vip(7), 80)))
    }

    /// Plans a call of the address of a pod.
    pub fn to_workload(&mut self) -> Option<Plan> {
        self.plan(SocketAddr::from((address(77), 8080)))
    }

    /// Plans a call of an address that the mesh does not know.
    pub fn to_stranger(&mut self) -> Option<Plan> {
        self.plan(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443)))
    }

    fn plan(&mut self, to: SocketAddr) -> Option<Plan> {
        let call = Call { source: &self.source, network: &self.network, to, tried: &[] };
        // Not random: each run of the benchmark decides the same.
        let next = &mut self.next;
        let mut dice = |bound: u64| {
            *next = next.wrapping_add(1);
            *next % bound.max(1)
        };
        match plan::outbound(&self.mesh, &Asked::Everything, &call, &mut dice) {
            Answer::Known(plan) => plan.ok(),
            Answer::Need(_) => None,
        }
    }
}

/// All of a world at once.
pub fn snapshot(world: &World) -> Snapshot {
    Snapshot::empty(None).apply(&[], updates(world))
}

/// A world as updates.
pub fn updates(world: &World) -> Vec<Update> {
    let workloads = world.workloads.iter().cloned().map(|one| Update::Workload(Arc::new(one)));
    let services = world.services.iter().cloned().map(|one| Update::Service(Arc::new(one)));
    workloads.chain(services).collect()
}

/// A mesh in which one workload changes again and again.
#[derive(Debug)]
pub struct Changing {
    mesh: Snapshot,
    versions: [Arc<Workload>; 2],
    turn: usize,
}

impl Changing {
    /// Among so many.
    pub fn of(workloads: u32) -> Self {
        let world = World::of(workloads, workloads / 10);
        let one = world.workloads.first().cloned().unwrap_or_default();
        let ill = Workload { health: Health::Unhealthy, ..one.clone() };
        Self { mesh: snapshot(&world), versions: [Arc::new(ill), Arc::new(one)], turn: 0 }
    }

    /// The next change.
    pub fn apply(&mut self) {
        self.turn += 1;
        let version = self.versions.get(self.turn % 2).cloned();
        self.mesh = self.mesh.apply(&[], version.map(Update::Workload));
    }
}

/// A first response as it comes from the wire.
#[derive(Debug)]
pub struct Decoding(Response);

impl Decoding {
    /// So many workloads and services.
    pub fn addresses(workloads: u32, services: u32) -> Self {
        Self::of(codec::ADDRESS, plane::addresses(&World::of(workloads, services)))
    }

    /// So many policies.
    pub fn policies(count: usize) -> Self {
        let resource = |number| {
            let policy = policy(number);
            let name = policy.key.to_string();
            Resource { name, body: codec::encode_policy(&policy), ..Resource::default() }
        };
        Self::of(codec::AUTHORIZATION, (0..count).map(resource).collect())
    }

    fn of(type_url: &str, resources: Vec<Resource>) -> Self {
        let upserts = resources.into_iter().map(|Resource { name, version, aliases, body, .. }| Received {
            name,
            aliases,
            version,
            body: Some(body),
        });
        Self(Response { type_url: type_url.to_owned(), upserts: upserts.collect(), removed: Vec::new() })
    }

    /// Decoded and applied to an empty mesh; how many resources were refused.
    pub fn apply(&self) -> usize {
        let (_mesh, mut discovery): (Mesh, Discovery) = Mesh::new(None);
        Handler::apply(&mut discovery, self.0.clone()).len()
    }
}

#[cfg(test)]
mod tests {
    use ambit_ztunnel::outbound::plan::Route;

    use super::*;

    #[test]
    fn what_is_measured_is_what_is_meant() {
        assert!(Judgement::of(10).check().is_allowed());
        let mut planning = Planning::of(1_000, 100);
        assert!(matches!(planning.to_service().unwrap().route, Route::Tunnel { .. }));
        assert!(matches!(planning.to_workload().unwrap().route, Route::Tunnel { .. }));
        assert!(matches!(planning.to_stranger().unwrap().route, Route::Plain { .. }));
        assert_eq!(Decoding::addresses(100, 10).apply(), 0);
        assert_eq!(Decoding::policies(10).apply(), 0);
    }
}
