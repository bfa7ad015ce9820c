//! This controller's own certificate: signed by its own authority, replaced before it ends and when the authority is,
//! without a restart. The webhook shows it, too.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_wire::{
    cert::{
        authority::{Authority, Serial, SignError},
        renew::renew_at,
    },
    channel::{ServerTls, ServerTlsError},
    tls::Profile,
};
use tokio::sync::watch;
use tracing::{error, info};

use super::{authority::starting, in_force::InForce};

/// After a failure. What is served is good for half of its life yet.
const RETRY: Duration = Duration::from_secs(10);
/// A machine that sleeps must find out soon after it wakes that its certificate is old.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Signs and replaces the certificate.
#[derive(Debug)]
pub struct Serving {
    in_force: watch::Receiver<Arc<InForce>>,
    /// What signed the certificate that is served.
    signed_by: Arc<InForce>,
    names: Vec<String>,
    life: Duration,
    tls: Arc<ServerTls>,
    signed: SystemTime,
}

impl Serving {
    /// A certificate for `names` that is good for `life`, or until the signer ends.
    pub fn new(
        profile: &Profile,
        mut in_force: watch::Receiver<Arc<InForce>>,
        names: Vec<String>,
        life: Duration,
    ) -> Result<Self, ServingError> {
        let now = SystemTime::now();
        let signed_by = Arc::clone(&in_force.borrow_and_update());
        let shown = credentials(signed_by.authority(), &names, life, now)?;
        let tls = Arc::new(ServerTls::new(profile, &shown)?);
        Ok(Self { in_force, signed_by, names, life, tls, signed: now })
    }

    /// What to serve with.
    pub fn tls(&self) -> Arc<ServerTls> {
        Arc::clone(&self.tls)
    }

    /// Replaces the certificate when the signer is another, and at half of its life, again and again, until `stop`.
    pub async fn rotate(mut self, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        let mut due = self.due();
        let mut changes = self.in_force.clone();
        loop {
            let now = SystemTime::now();
            let wait = due.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP);
            tokio::select! {
                () = &mut stop => return,
                Ok(()) = changes.changed() => {
                    let current = changes.borrow_and_update();
                    if !current.signs_as(&self.signed_by) {
                        due = now;
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
            let now = SystemTime::now();
            if now < due {
                continue;
            }
            due = match self.replace(now) {
                Ok(()) => {
                    info!("Own certificate replaced");
                    self.due()
                }
                Err(error) => {
                    error!(%error, "Own certificate could not be replaced");
                    now + RETRY
                }
            };
        }
    }

    fn due(&self) -> SystemTime {
        let validity = starting(self.signed, self.life);
        let ends = validity.not_after.min(self.signed_by.expires());
        renew_at(self.signed, validity.not_before, ends, 0.0)
    }

    fn replace(&mut self, now: SystemTime) -> Result<(), ServingError> {
        let signer = Arc::clone(&self.in_force.borrow());
        self.tls.replace(&credentials(signer.authority(), &self.names, self.life, now)?)?;
        self.signed = now;
        self.signed_by = signer;
        Ok(())
    }
}

/// What tunnels and the API server call a controller in Kubernetes by.
pub fn service_names(revision: Option<&str>, system_namespace: &str, cluster_domain: &str) -> Vec<String> {
    let service = match revision.filter(|revision| !revision.is_empty() && *revision != "default") {
        Some(revision) => format!("istiod-{revision}"),
        None => "istiod".to_owned(),
    };
    let short = format!("{service}.{system_namespace}.svc");
    let long = format!("{short}.{cluster_domain}");
    vec![short, long]
}

fn credentials(
    authority: &Authority,
    names: &[String],
    life: Duration,
    now: SystemTime,
) -> Result<ambit_wire::cert::authority::ServerCredentials, SignError> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    authority.sign_server(&names, starting(now, life), Serial::random()?)
}

/// Why there is no certificate of our own.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// It could not be signed.
    #[error("the controller's own certificate cannot be signed: {0}")]
    Sign(#[from] SignError),
    /// It cannot be served.
    #[error(transparent)]
    Serve(#[from] ServerTlsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_has_a_service_of_its_own() {
        for (revision, name) in [
            (None, "istiod"),
            (Some(""), "istiod"),
            (Some("default"), "istiod"),
            (Some("canary"), "istiod-canary"),
        ] {
            let names = service_names(revision, "mesh", "cluster.local");
            assert_eq!(names, [format!("{name}.mesh.svc"), format!("{name}.mesh.svc.cluster.local")]);
        }
    }
}
