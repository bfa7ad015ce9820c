//! The desk, when the root is kept in a Secret and when cert-manager signs.

use std::{sync::Arc, time::SystemTime};

use ambit_api::labels::CA_LONGEST_LIFE;
use ambit_controller::{
    ca::{
        Desk, Signer,
        authority::Terms,
        cert_manager::{CertManager, Issuer, Settings},
        figures::Figures,
        in_force::InForce,
        rotation::Stage,
    },
    callers::Callers,
    config::Config,
    engine::Engine,
    nodes::Nodes,
    publish::Sink,
};
use ambit_model::identity::Identity;
use ambit_runtime::metrics::{Format, Registry};
use ambit_wire::{
    ca::{Application, Approver as _},
    cert::request::Request,
    channel::ClientAddress,
    xds::Resource,
};
use clap::Parser as _;
use http::Method;
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::{
    api::Api,
    keeping::{Replica, SYSTEM, annotation, open, wish},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Nowhere;

impl Sink for Nowhere {
    fn update(&self, _: &str, _: Vec<Resource>, _: &[String]) {}
    fn open(&self) {}
}

struct Office {
    desk: Desk,
    tunnel: Identity,
    _tokens: tempfile::TempDir,
}

impl Office {
    fn open(in_force: watch::Receiver<Arc<InForce>>, signer: Signer) -> Self {
        let tokens = tempfile::tempdir().unwrap();
        std::fs::write(tokens.path().join("n1"), TOKEN).unwrap();
        let tunnel = Identity::new("cluster.local", SYSTEM, "ztunnel");
        let nodes = Arc::new(Nodes::open(tokens.path(), tunnel.clone()).unwrap());
        let callers = Callers::Tokens(nodes);
        let flags = ["controller", "--source=directory:/x", "--tokens=/x"];
        let config = Config::try_parse_from(flags).unwrap();
        let engine = Engine::new(config.mesh.settings(), Nowhere);
        let terms = Terms::new(&config.authority).unwrap();
        let trusted = config.access.trusted(&config.mesh);
        let desk = Desk::new(in_force, signer, terms, callers, trusted, engine.view(), engine.synced());
        Self { desk, tunnel, _tokens: tokens }
    }

    async fn ask(&self, seconds: i64) -> Result<Vec<String>, Status> {
        let application = Application {
            csr: Request::new(&self.tunnel).unwrap().csr,
            lifetime_seconds: seconds,
            impersonated: None,
            token: Some(TOKEN.to_owned()),
            cluster: String::new(),
            client: ClientAddress(None),
        };
        self.desk.decide(application).await
    }
}

#[tokio::test]
async fn a_life_is_written_down_before_it_is_signed_for() {
    let api = Api::new();
    let keeper = open(&api).await.unwrap();
    let office = Office::open(keeper.in_force(), Signer::Counted(keeper.lives()));
    let replica = Replica::start(keeper, false);
    office.ask(86_400).await.unwrap();
    assert_eq!(annotation(&api, CA_LONGEST_LIFE).as_deref(), Some("86400"), "as long as usual");
    office.ask(40 * 3600).await.unwrap();
    assert_eq!(annotation(&api, CA_LONGEST_LIFE).as_deref(), Some("230400"), "64 hours");
    office.ask(60 * 3600).await.unwrap();
    assert_eq!(api.writes("secrets"), 2, "the root, and one longer life");
    // What cannot be written is not signed.
    api.fail(Method::PATCH, "secrets", 403, 1);
    let refused = office.ask(80 * 3600).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let in_use = office.desk.issued().in_use(SystemTime::now());
    assert_eq!(in_use.iter().map(|(_, one)| one.count).sum::<u64>(), 3);
    replica.stop().await;
}

#[tokio::test]
async fn certificates_come_from_the_root_that_signs_and_bring_every_root_that_is_trusted() {
    let api = Api::new();
    let keeper = open(&api).await.unwrap();
    let office = Office::open(keeper.in_force(), Signer::Counted(keeper.lives()));
    let kept = keeper.counts();
    let mut replica = Replica::start(keeper, true);
    let old = replica.in_force.borrow().bundle().to_owned();
    assert_eq!(*office.ask(0).await.unwrap().last().unwrap(), old);
    wish(&api, "prepare");
    let both = replica.until("prepared", |now| now.rotation.stage() == Stage::Prepared).await;
    assert_eq!(office.ask(0).await.unwrap().last().unwrap(), both.bundle());
    wish(&api, "activate-now");
    replica.until("active", |now| now.rotation.stage() == Stage::Active).await;
    office.ask(0).await.unwrap();

    let page = office.desk.page(SystemTime::now());
    let page: serde_json::Value = serde_json::to_value(&page).unwrap();
    assert_eq!(
        (&page["stage"], &page["signer"], &page["origin"]),
        (&"active".into(), &"authority".into(), &"own".into())
    );
    let (active, trusted) = (&page["active"]["fingerprint"], page["trusted"].as_array().unwrap());
    assert_eq!((trusted.len(), &trusted[0]["fingerprint"]), (2, active));
    assert_eq!(trusted[1]["key"], "ECDSA 256");
    let count = |root: &serde_json::Value| {
        let issued = page["issued"].as_array().unwrap().iter();
        issued
            .filter(|one| one["fingerprint"] == *root)
            .map(|one| one["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((count(&trusted[1]["fingerprint"]), count(active)), (2, 1));
    assert!(page["retireFrom"].as_str().unwrap().ends_with('Z'));
    assert_eq!(page["longestLifeSeconds"], 86_400);

    let mut registry = Registry::new();
    registry.collect(Figures {
        in_force: replica.in_force.clone(),
        desk: office.desk.clone(),
        kept: Some(kept),
        told: Some(Arc::default()),
    });
    let metrics = registry.share().render(Format::Prometheus);
    for line in [
        "ambit_ca_trusted_roots 2",
        "ambit_ca_rotation_stage{stage=\"active\"} 1",
        "ambit_ca_rotation_stage{stage=\"steady\"} 0",
        "ambit_ca_rotation_steps_total 2",
        "ambit_ca_secret_problem 0",
        "ambit_ca_distribution_writes_total{config_map=\"istio-ca-root-cert\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    replica.stop().await;
}

#[tokio::test]
async fn cert_manager_that_cannot_be_asked_is_said_to_the_caller() {
    let api = Api::new();
    let keeper = open(&api).await.unwrap();
    let issuer = Issuer {
        name: "mesh".to_owned(),
        kind: "ClusterIssuer".to_owned(),
        group: "cert-manager.io".to_owned(),
    };
    let settings = Settings { namespace: SYSTEM.to_owned(), issuer, roots: None };
    let asking = Arc::new(CertManager::new(api.client(), settings));
    let office = Office::open(keeper.in_force(), Signer::CertManager(asking));
    // As with an API server that does not know cert-manager.
    api.fail(Method::POST, "certificaterequests", 404, 1);
    let refused = office.ask(0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("CertificateRequest"), "{refused}");
    assert!(office.ask(91 * 86_400).await.is_err_and(|why| why.code() == Code::InvalidArgument));
}
