//! Debug tokens: for whom they are signed, and that a waypoint believes them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_controller::app::Controller;
use ambit_model::identity::{Identity, TrustDomain};
use ambit_wire::{
    ca::{Asking, CaClient},
    cert::{Certificate, IssueError, Issuer as _, SigningRequest, request::Request},
    debug_token::{self, InvalidToken},
    tls::{Compliance, Profile, Versions, revoked::Revocation},
};

use crate::setup::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A mesh with a waypoint, whose pod is on `n1`.
fn with_waypoint() -> Mesh {
    let mesh = Mesh::new();
    mesh.write(
        "gateway.yaml",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gate, namespace: shop}, \
         spec: {gatewayClassName: ambit-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    );
    mesh.pod("gate", "10.0.0.9", "n1", "one");
    mesh
}

/// What the waypoint has.
async fn certificate(mesh: &Mesh, at: std::net::SocketAddr, identity: &Identity) -> Arc<Certificate> {
    let Request { key, csr } = Request::new(identity).unwrap();
    let client = CaClient::new(mesh.channel(at, &token("n1")), Asking::ForOthers, HOUR);
    let asked = client.issue(SigningRequest { identity: identity.clone(), csr });
    let issued = within("an answer of the CA", asked).await.unwrap();
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
    Arc::new(Certificate::from_response(&profile, Some(identity), &issued.chain, &key).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_signed_that_the_waypoint_believes() {
    let mesh = with_waypoint();
    let controller = mesh.start(&[]).await;
    let gate = of_shop("gate");
    let own = certificate(&mesh, controller.address(), &gate).await;
    let now = SystemTime::now();
    for (query, life) in
        [("for=shop/gate&life=30s", 30), ("for=shop", 600), ("for=shop%2Fgate&life=1h", 3600)]
    {
        let (status, signed) = post(&controller, &format!("/debug/token?{query}"), "").await;
        assert_eq!(status, 200, "{signed}");
        let signed = signed.trim_end().as_bytes();
        assert_eq!(debug_token::verify(signed, &own, &gate, now), Ok(()), "{query}");
        let over = now + Duration::from_secs(life + 30);
        assert_eq!(debug_token::verify(signed, &own, &gate, over), Err(InvalidToken::Expired), "{query}");
    }
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_cannot_be_granted_is_told_why() {
    let mesh = with_waypoint();
    let controller = mesh.start(&[]).await;
    for (query, says) in [
        ("", "NAMESPACE"),
        ("?for=a/b/c", "NAMESPACE/NAME"),
        ("?for=shop/other", "no waypoint of shop/other"),
        ("?for=bank", "no waypoint of bank"),
        ("?for=shop/gate&life=2h", "3600s"),
        ("?for=shop/gate&life=1s", "10s"),
        ("?for=shop/gate&life=soon", "500ms"),
    ] {
        let (status, said) = post(&controller, &format!("/debug/token{query}"), "").await;
        assert_eq!(status, 400, "{query}: {said}");
        assert!(said.contains(says), "{query}: {said}");
    }
    let (status, _) = page(&controller, "/debug/token?for=shop").await;
    assert_eq!(status, 405, "a link does not sign");
    for header in ["origin: http://x\r\n", "sec-fetch-site: same-origin\r\n"] {
        let (status, said) = post(&controller, "/debug/token?for=shop", header).await;
        assert_eq!((status, said.contains("browsers")), (403, true), "{header}: {said}");
    }
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_signed_on_pages_that_everybody_reaches() {
    let mesh = with_waypoint();
    let mut config = mesh.config(&[]);
    config.admin = "0.0.0.0:0".parse().unwrap();
    let controller = Controller::start(&config, None).await.unwrap();
    within("ready", controller.ready()).await;
    let (status, said) = post(&controller, "/debug/token?for=shop", "").await;
    assert_eq!(status, 403);
    assert!(said.contains("--admin"), "{said}");
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_gets_a_certificate_that_signs_tokens() {
    let mesh = with_waypoint();
    let controller = mesh.start(&[]).await;
    let signer = debug_token::identity(&TrustDomain::default());
    let channel = mesh.channel(controller.address(), &token("n1"));
    let answer = sign(channel, Asking::ForOthers, &signer, HOUR).await;
    assert!(matches!(answer, Err(IssueError::Refused { .. })), "{answer:?}");
    // What a request says it is for counts for nothing.
    let channel = mesh.channel(controller.address(), &token("n1"));
    let chain = sign(channel, Asking::ForMyself, &signer, HOUR).await.unwrap();
    assert!(!chain[0].is_empty());
    stop(controller).await;
}
