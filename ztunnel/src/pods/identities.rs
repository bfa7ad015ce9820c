//! Keeps the certificates of this node's pods warm: asked for before the first connection waits, let
//! go when the last pod that bears them has left (protocols 3.3).

use std::collections::BTreeSet;

use ambit_model::{
    identity::Identity,
    name::Node,
    snapshot::Snapshot,
    workload::{Tunnel, Workload},
};
use ambit_wire::{cert::store::Certificates, discovery::Mesh};

/// The identities that pods of `node` bear.
pub fn of_node(mesh: &Snapshot, node: &Node) -> BTreeSet<Identity> {
    let here = mesh.local_workloads().filter(|workload| workload.node == *node);
    here.filter(|workload| speaks_hbone(workload)).map(|workload| workload.identity()).collect()
}

fn speaks_hbone(workload: &Workload) -> bool {
    workload.native_tunnel
        || match workload.tunnel {
            Tunnel::Hbone => true,
            Tunnel::None => false,
        }
}

/// Follows the mesh for ever.
pub async fn keep_warm(mesh: Mesh, node: Node, certificates: Certificates) {
    let mut changes = mesh.changes();
    let mut held = BTreeSet::new();
    loop {
        let wanted = of_node(&mesh.current(), &node);
        for identity in wanted.difference(&held) {
            if let Err(error) = certificates.prefetch(identity) {
                tracing::warn!(identity = %identity, error = %error, "Certificate cannot be asked for");
            }
        }
        held.difference(&wanted).for_each(|identity| certificates.forget(identity));
        held = wanted;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_fixtures::mesh::{pod, snapshot};

    use super::*;

    #[test]
    fn only_pods_of_the_node_that_speak_hbone_bear_identities() {
        let mesh = snapshot(
            [
                pod("shop/a").account("a").on("here"),
                pod("shop/b").account("b").on("there"),
                pod("shop/c").account("c").on("here").plain(),
                pod("shop/d").account("d").on("here").plain().with(|pod| pod.native_tunnel = true),
                pod("shop/e").account("a").on("here"),
            ],
            [],
        );
        let names: Vec<_> =
            of_node(&mesh, &"here".into()).into_iter().map(|one| one.service_account.to_string()).collect();
        assert_eq!(names, ["a", "d"]);
    }
}
