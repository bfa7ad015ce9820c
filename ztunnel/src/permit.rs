//! The right to carry a connection to a pod.
//!
//! A [`Permit`] is made here and nowhere else, by judging the connection; nothing is delivered
//! without one. It can be taken away: what was delivered ends when a policy no longer grants it.

use std::net::SocketAddr;

use ambit_model::{authz::By, identity::Identity, workload::Workload};

use crate::{
    connections::{Registration, UntilEnded, until_ended},
    metrics::Direction,
    pods::Pod,
    refusal::Refusal,
};

/// The right to carry one connection to one pod, as long as it is held.
#[derive(Debug)]
pub struct Permit {
    registration: Registration,
    granted_by: By,
}

/// Who asks to be let in, and where from.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The TCP peer.
    pub address: SocketAddr,
    /// The identity that it proved; `None` for plain text.
    pub identity: Option<Identity>,
}

impl Permit {
    /// Judges the connection of `caller` to `destination`, a port of `pod`.
    ///
    /// It is registered before it is judged: a policy that changes in between ends it through the
    /// registration (protocols 12, line 21).
    pub fn check(
        pod: &Pod,
        workload: &Workload,
        caller: Caller,
        destination: SocketAddr,
    ) -> Result<Self, Refusal> {
        let Caller { address, identity } = caller;
        let registration = pod.connections.register(Direction::Inbound, address, destination, identity)?;
        let mesh = pod.tunnel.mesh.current();
        // The workload of this snapshot, not the one the caller was planned with: both may have changed.
        let workload = pod.workload_in(&mesh).map_or(workload, |workload| workload);
        let metrics = &pod.tunnel.metrics;
        for (policy, action) in registration.dry_run(&mesh, workload) {
            metrics.dry_run(policy, action);
            tracing::event!(target: "access", tracing::Level::INFO, policy = %policy, action = ?action, src.addr = %address, dst.addr = %destination,
                "dry-run policy matched; not enforced"
            );
        }
        for policy in mesh.unknown_policies(workload) {
            tracing::warn!(
                policy = %policy, workload = %workload.uid,
                "A policy that the workload names is not known here; judging without it"
            );
        }
        let granted_by = registration.judge(&mesh, workload)?;
        Ok(Self { registration, granted_by })
    }

    /// What granted it.
    pub fn granted_by(&self) -> &By {
        &self.granted_by
    }

    /// Runs `work` until it is done or the permit is taken away.
    pub fn while_held<F: Future>(&self, work: F) -> UntilEnded<'_, F> {
        until_ended(&self.registration, work)
    }
}

impl From<Permit> for Registration {
    /// What has been delivered needs no further right, and is still told when it must end.
    fn from(permit: Permit) -> Self {
        permit.registration
    }
}
