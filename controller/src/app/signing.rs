//! What signs, and whatever keeps it up: files of a directory, or Secrets and what every namespace is told.

use std::{sync::Arc, time::SystemTime};

use kube::Client;
use tokio::sync::watch;

use super::{StartError, parts::Parts};
use crate::{
    ca::{
        Signer,
        cert_manager::{self, CertManager},
        distribute::{self, Told},
        file,
        in_force::InForce,
        keeping::{self, Keeper},
        revocation::PassOn,
        root::{self, REVOCATION_LISTS},
        secret::Making,
    },
    config::Config,
};

/// What signs.
pub(super) struct Signing {
    /// What is in force, now and later.
    pub(super) in_force: watch::Receiver<Arc<InForce>>,
    /// Who signs for workloads.
    pub(super) signer: Signer,
    /// What happened to Secrets, where there are any.
    pub(super) kept: Option<Arc<keeping::Counts>>,
    /// What namespaces were told, where there are any.
    pub(super) told: Option<Arc<Told>>,
    upkeep: Upkeep,
}

enum Upkeep {
    Files(Option<PassOn>),
    Secrets { client: Client, keeper: Box<Keeper>, told: Arc<Told> },
}

impl Signing {
    /// From files: what signs, its root where tunnels find it, and the revocation lists passed on.
    pub(super) async fn from_files(config: &Config) -> Result<Self, StartError> {
        let settings = config.authority.clone();
        let trust_domain = config.mesh.trust_domain.as_str().into();
        // It may wait for another controller that makes the root.
        let made = tokio::task::spawn_blocking(move || {
            let root = root::open(&settings.ca_dir, &trust_domain, settings.root_ttl, SystemTime::now())?;
            if let Some(path) = &settings.root_cert {
                file::publish(path, root.authority.roots().as_bytes())?;
            }
            let lists = settings.crl_out.map(|to| PassOn::start(settings.ca_dir.join(REVOCATION_LISTS), to));
            Ok::<_, StartError>((root, lists.transpose()?))
        });
        let (root, lists) = made.await.map_err(|_| StartError::Failed("authority"))??;
        Ok(Self {
            in_force: InForce::fixed(root),
            signer: Signer::Authority,
            kept: None,
            told: None,
            upkeep: Upkeep::Files(lists),
        })
    }

    /// From Secrets; or, for workloads, from cert-manager.
    pub(super) async fn from_secrets(client: &Client, config: &Config) -> Result<Self, StartError> {
        let settings = keeping::Settings {
            system_namespace: config.mesh.system_namespace.clone(),
            making: Making {
                trust_domain: config.mesh.trust_domain.as_str().into(),
                lifetime: config.authority.root_ttl,
                usual: config.authority.default_workload_ttl,
                longest: config.authority.max_workload_ttl,
            },
            replica: config.replica.identity(),
        };
        let keeper = Keeper::open(client.clone(), settings).await?;
        let signer = match &config.authority.issuer {
            None => Signer::Counted(keeper.lives()),
            Some(issuer) => {
                let roots = config.authority.issuer_roots.as_deref().map(file::read).transpose()?;
                let settings = cert_manager::Settings {
                    namespace: config.mesh.system_namespace.clone(),
                    issuer: issuer.clone(),
                    roots,
                };
                Signer::CertManager(Arc::new(CertManager::new(client.clone(), settings)))
            }
        };
        let told = Arc::new(Told::default());
        Ok(Self {
            in_force: keeper.in_force(),
            signer,
            kept: Some(keeper.counts()),
            told: Some(Arc::clone(&told)),
            upkeep: Upkeep::Secrets { client: client.clone(), keeper: Box::new(keeper), told },
        })
    }

    /// Starts what keeps it up.
    pub(super) fn keep_up(self, parts: &Parts, leader: &watch::Receiver<bool>) {
        match self.upkeep {
            Upkeep::Files(None) => {}
            Upkeep::Files(Some(lists)) => {
                parts.start("revocation lists", |stop| lists.follow(stop));
            }
            Upkeep::Secrets { client, keeper, told } => {
                let voice = leader.clone();
                parts.start("authority", |stop| keeper.follow(voice, stop));
                if let Signer::CertManager(asked) = self.signer {
                    parts.start("left requests", |stop| async move {
                        asked.sweep().await;
                        stop.await;
                    });
                }
                let (in_force, voice) = (self.in_force, leader.clone());
                parts.start("roots of namespaces", |stop| {
                    distribute::run(client, in_force, voice, told, stop)
                });
            }
        }
    }
}
