//! What a controller does in Kubernetes beside serving tunnels: it takes part in leading, writes conditions, and answers
//! the API server's question whether objects are sound.

use std::{net::SocketAddr, sync::Arc};

use ambit_runtime::metrics::Registry;
use ambit_wire::channel::{Entrance, ServerTls, TurnedAway};
use kube::Client;
use tokio::sync::watch;
use tracing::info;

use super::{StartError, listen, parts::Parts};
use crate::{
    admit::{self, Registration, keep_registered},
    ca::in_force::InForce,
    config::Config,
    leader::{self, LeaseName},
    status,
};

/// What counts them, made before they start.
#[derive(Debug, Default)]
pub(super) struct Duties {
    leader: leader::Counts,
    status: status::Counts,
    admit: admit::Counts,
    webhook: Option<Entrance>,
}

impl Duties {
    /// Listens where the webhook should be.
    pub(super) async fn open(config: &Config, registry: &mut Registry) -> Result<Self, StartError> {
        let webhook = match config.webhook {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let this = Self { webhook, ..Self::default() };
        registry.collect(this.leader.clone());
        registry.collect(this.status.clone());
        registry.collect(this.admit.clone());
        Ok(this)
    }

    /// Who was turned away from the webhook.
    pub(super) fn turned_away(&self) -> Option<TurnedAway> {
        self.webhook.as_ref().map(Entrance::turned_away)
    }

    /// Starts them.
    pub(super) fn start(self, parts: &Parts, client: &Client, config: &Config, needs: Needs) {
        let system = &config.mesh.system_namespace;
        let lease = LeaseName { namespace: system.clone(), name: config.replica.lease() };
        let (asking, me) = (client.clone(), config.replica.identity());
        parts.start("leader", |stop| leader::run(asking, lease, me, needs.leads, self.leader, stop));
        let asking = client.clone();
        let leader = needs.status.leader.clone();
        parts.start("status", |stop| status::run(asking, needs.status, self.status, stop));
        let Some(entrance) = self.webhook else { return };
        let (settings, tls) = (config.mesh.settings(), needs.tls);
        parts.start("webhook", |stop| {
            admit::serve(entrance, move || tls.current(), settings, self.admit, stop)
        });
        let registration = Registration {
            name: config.replica.webhook(system),
            namespace: system.clone(),
            bundle: needs.bundle,
            leader,
        };
        let asking = client.clone();
        parts.start("webhook registration", |stop| keep_registered(asking, registration, stop));
    }
}

/// What the duties need of others.
pub(super) struct Needs {
    /// To be told who leads.
    pub(super) leads: watch::Sender<bool>,
    /// What conditions are made of.
    pub(super) status: status::Inputs,
    /// This controller's own certificate.
    pub(super) tls: Arc<ServerTls>,
    /// By what the API server trusts it.
    pub(super) bundle: watch::Receiver<String>,
}

async fn bind(address: SocketAddr) -> Result<Entrance, StartError> {
    let listener = listen(address).await.map_err(|source| StartError::Webhook(address, source))?;
    info!(address = ?listener.local_addr().ok(), "Webhook listens");
    Ok(Entrance::new(listener, admit::MOST_CONNECTIONS))
}

/// The trusted roots alone, now and later.
pub(super) fn bundles(parts: &Parts, mut in_force: watch::Receiver<Arc<InForce>>) -> watch::Receiver<String> {
    let (tell, bundle) = watch::channel(in_force.borrow_and_update().bundle().to_owned());
    parts.start("bundle", |stop| async move {
        let follow = async {
            while in_force.changed().await.is_ok() {
                let now = in_force.borrow_and_update().bundle().to_owned();
                tell.send_if_modified(|bundle| {
                    let differs = *bundle != now;
                    *bundle = now;
                    differs
                });
            }
            // What never changes any more is told.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop => {}
            () = follow => {}
        }
    });
    bundle
}
