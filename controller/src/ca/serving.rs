//! This controller's own certificate: signed by its own authority, replaced before it ends, without a restart.

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
use tracing::{error, info};

use super::authority::starting;

/// After a failure. What is served is good for half of its life yet.
const RETRY: Duration = Duration::from_secs(10);
/// A machine that sleeps must find out soon after it wakes that its certificate is old.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Signs and replaces the certificate.
#[derive(Debug)]
pub struct Serving {
    authority: Authority,
    names: Vec<String>,
    life: Duration,
    tls: Arc<ServerTls>,
    signed: SystemTime,
}

impl Serving {
    /// A certificate for `names` that is good for `life`, or until the signer ends.
    pub fn new(
        profile: &Profile,
        authority: Authority,
        names: Vec<String>,
        life: Duration,
    ) -> Result<Self, ServingError> {
        let now = SystemTime::now();
        let tls = Arc::new(ServerTls::new(profile, &credentials(&authority, &names, life, now)?)?);
        Ok(Self { authority, names, life, tls, signed: now })
    }

    /// What to serve with.
    pub fn tls(&self) -> Arc<ServerTls> {
        Arc::clone(&self.tls)
    }

    /// Replaces the certificate at half of its life, again and again, until `stop`. `expires` is when the signer ends.
    pub async fn rotate(mut self, expires: SystemTime, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        let mut due = self.due(expires);
        loop {
            let now = SystemTime::now();
            let wait = due.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP);
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(wait) => {}
            }
            let now = SystemTime::now();
            if now < due {
                continue;
            }
            due = match self.replace(now) {
                Ok(()) => {
                    info!("Own certificate replaced");
                    self.due(expires)
                }
                Err(error) => {
                    error!(%error, "Own certificate could not be replaced");
                    now + RETRY
                }
            };
        }
    }

    fn due(&self, expires: SystemTime) -> SystemTime {
        let validity = starting(self.signed, self.life);
        renew_at(self.signed, validity.not_before, validity.not_after.min(expires), 0.0)
    }

    fn replace(&mut self, now: SystemTime) -> Result<(), ServingError> {
        self.tls.replace(&credentials(&self.authority, &self.names, self.life, now)?)?;
        self.signed = now;
        Ok(())
    }
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
