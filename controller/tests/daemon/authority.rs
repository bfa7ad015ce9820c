//! Who gets which certificate, and what signs it.

use std::{fs, time::Duration};

use ambit_controller::app::Controller;
use ambit_model::identity::Identity;
use ambit_wire::{
    ca::Asking,
    cert::{
        IssueError,
        authority::{Authority, Serial, Validity},
        crl::Edition,
    },
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::setup::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Life and names of a certificate, as openssl-free parsing sees them.
fn describe(pem: &str) -> (i64, String) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    let validity = certificate.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    (life, format!("{:?}", names.value.general_names))
}

fn refusal(answer: Result<Vec<String>, IssueError>) -> (String, String) {
    match answer {
        Err(IssueError::Refused { code, message }) => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_the_pods_on_it_and_for_nobody_else() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let at = controller.address();
    let chain = mesh.ask(at, "n1", "cart", HOUR).await.unwrap();
    assert_eq!(chain.len(), 2);
    let (life, names) = describe(&chain[0]);
    assert_eq!(names, "[URI(\"spiffe://cluster.local/ns/shop/sa/cart\")]");
    assert!((3600..=3725).contains(&life), "{life}");
    assert_eq!(chain[1], fs::read_to_string(mesh.path("root.pem")).unwrap());
    mesh.ask(at, "n2", "pay", HOUR).await.unwrap();

    for (node, account) in [("n1", "pay"), ("n2", "cart"), ("n1", "nobody"), ("n2", "default")] {
        let (code, message) = refusal(mesh.ask(at, node, account, HOUR).await);
        assert_eq!(code, "Unauthenticated");
        assert!(message.contains("impersonation") && message.contains(node), "{message}");
    }
    let foreign = Identity::new("elsewhere", "shop", "cart");
    let answer = sign(mesh.channel(at, &token("n1")), Asking::ForOthers, &foreign, HOUR).await;
    assert_eq!(refusal(answer).0, "Unauthenticated");

    // A pod that comes is found, one that failed is not.
    mesh.pod("late", "10.0.0.9", "n1", "one");
    let mut answer = mesh.ask(at, "n1", "late", HOUR).await;
    let begun = std::time::Instant::now();
    while answer.is_err() {
        assert!(begun.elapsed() < SOON, "{answer:?}");
        answer = mesh.ask(at, "n1", "late", HOUR).await;
    }
    mesh.remove("late.yaml");
    while answer.is_ok() {
        assert!(begun.elapsed() < SOON);
        answer = mesh.ask(at, "n1", "late", HOUR).await;
    }
    let (_, metrics) = page(&controller, "/metrics").await;
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("citadel_server_success_cert_issuance_count") >= 3);
    assert!(count("citadel_server_id_extraction_err_count") >= 6);
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_impersonation_a_caller_gets_its_own_identity_whatever_the_request_says() {
    let mesh = Mesh::new();
    let controller = mesh.start(&[]).await;
    let channel = mesh.channel(controller.address(), &token("n1"));
    let chain = sign(channel, Asking::ForMyself, &of_shop("pay"), HOUR).await.unwrap();
    assert_eq!(describe(&chain[0]).1, "[URI(\"spiffe://cluster.local/ns/istio-system/sa/ztunnel\")]");
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_untrusted_accounts_get_nothing() {
    let mesh = Mesh::new();
    let controller = mesh.start(&["--trusted-node-accounts=istio-system/other"]).await;
    let at = controller.address();
    for token in [token("n9"), "n1".to_owned(), String::new()] {
        let answer = sign(mesh.channel(at, &token), Asking::ForOthers, &of_shop("cart"), HOUR).await;
        let (code, message) = refusal(answer);
        assert_eq!(code, "Unauthenticated");
        assert!(message.contains("token"), "{message}");
    }
    let (code, message) = refusal(mesh.ask(at, "n1", "cart", HOUR).await);
    assert_eq!(code, "Unauthenticated");
    assert!(message.contains("--trusted-node-accounts"), "{message}");
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_are_as_asked_up_to_the_most() {
    let mesh = Mesh::new();
    let controller = mesh.start(&["--max-workload-ttl=48h"]).await;
    let at = controller.address();
    let (life, _) = describe(&mesh.ask(at, "n1", "cart", Duration::ZERO).await.unwrap()[0]);
    assert_eq!(life, 86_400 + 120, "the usual");
    let (life, _) = describe(&mesh.ask(at, "n1", "cart", Duration::from_secs(5)).await.unwrap()[0]);
    assert!((5..=7).contains(&life), "{life}");
    let (code, message) = refusal(mesh.ask(at, "n1", "cart", 49 * HOUR).await);
    assert_eq!(code, "InvalidArgument");
    assert!(message.contains("--max-workload-ttl"), "{message}");
    stop(controller).await;
    let controller = mesh.start(&["--debug-cert-ttl=6s"]).await;
    let (life, _) = describe(&mesh.ask(controller.address(), "n1", "cart", HOUR).await.unwrap()[0]);
    assert!((6..=8).contains(&life), "{life}");
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_start_together_and_again_have_one_root() {
    let mesh = Mesh::new();
    let configs = [mesh.config(&[]), mesh.config(&[])];
    let (one, two) = tokio::join!(Controller::start(&configs[0], None), Controller::start(&configs[1], None));
    let (one, two) = (one.unwrap(), two.unwrap());
    let root = fs::read_to_string(mesh.path("root.pem")).unwrap();
    for controller in [one, two] {
        within("ready", controller.ready()).await;
        let chain = mesh.ask(controller.address(), "n1", "cart", HOUR).await.unwrap();
        assert_eq!(chain[1], root);
        stop(controller).await;
    }
    assert_eq!(mode(&mesh.path("root.pem")), 0o644);
    assert_eq!(mode(&mesh.path("ca")), 0o700);
    assert_eq!(mode(&mesh.path("ca/self-signed.pem")), 0o600);
    assert!(!root.contains("PRIVATE"));
    let again = mesh.start(&[]).await;
    assert_eq!(fs::read_to_string(mesh.path("root.pem")).unwrap(), root);
    stop(again).await;
}

/// Puts an intermediate of an intermediate of a root where a controller finds it.
fn plug(mesh: &Mesh) -> Authority {
    let now = std::time::SystemTime::now();
    let life = |length| Validity { not_before: now - HOUR, not_after: now + length };
    let root = Authority::self_signed(&"corp".into(), life(1000 * HOUR), Serial::new(1)).unwrap();
    let middle = root.intermediate("Middle", life(500 * HOUR), Serial::new(2)).unwrap();
    let signer = middle.intermediate("Mesh", life(2 * HOUR), Serial::new(3)).unwrap();
    fs::create_dir_all(mesh.path("ca")).unwrap();
    let chain = signer.chain().unwrap();
    let end = "-----END CERTIFICATE-----\n";
    let own = &chain[..chain.find(end).unwrap() + end.len()];
    for (name, content) in [
        ("ca-cert.pem", own),
        ("ca-key.pem", &signer.key().to_pem().unwrap()),
        ("cert-chain.pem", &chain),
        ("root-cert.pem", signer.roots()),
    ] {
        fs::write(mesh.path("ca").join(name), content).unwrap();
    }
    signer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugged_in_authority_signs_chains_that_openssl_accepts() {
    let mesh = Mesh::new();
    let signer = plug(&mesh);
    let controller = mesh.start(&[]).await;
    assert_eq!(mode(&mesh.path("ca/ca-key.pem")), 0o600, "it was for everybody to read");
    assert_eq!(fs::read_to_string(mesh.path("root.pem")).unwrap(), signer.roots());
    let chain = mesh.ask(controller.address(), "n1", "cart", 24 * HOUR).await.unwrap();
    assert_eq!(chain.len(), 4, "leaf, two intermediates, root");
    let (life, _) = describe(&chain[0]);
    assert!(life <= 2 * 3600 + 120, "not beyond its signer: {life}");
    let at = |name: &str| mesh.path(name).display().to_string();
    fs::write(mesh.path("leaf.pem"), &chain[0]).unwrap();
    fs::write(mesh.path("between.pem"), chain[1..3].concat()).unwrap();
    let verified = output(
        "openssl",
        &[
            "verify",
            "-x509_strict",
            "-CAfile",
            &at("root.pem"),
            "-untrusted",
            &at("between.pem"),
            &at("leaf.pem"),
        ],
    );
    assert!(verified.trim().ends_with("leaf.pem: OK"), "{verified}");
    // The tunnels' own connection goes through the same chain.
    let tunnel = mesh.tunnel(controller.address(), "n1");
    tunnel.synced().await;
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_made_with_openssl_as_istio_describes_it_is_taken() {
    let mesh = Mesh::new();
    fs::create_dir_all(mesh.path("ca")).unwrap();
    let script = r#"
        set -e; cd "$0"
        printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n' >extensions
        printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >>extensions
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ../root-key.pem -out root-cert.pem -days 9 -subj /O=corp
        openssl ecparam -genkey -name prime256v1 -out ca-key.pem
        openssl req -new -key ca-key.pem -subj /O=mesh -out request
        openssl x509 -req -in request -CA root-cert.pem -CAkey ../root-key.pem -CAcreateserial -days 2 \
            -extfile extensions -out ca-cert.pem
        cat ca-cert.pem root-cert.pem >cert-chain.pem
    "#;
    output("sh", &["-c", script, &mesh.path("ca").display().to_string()]);
    let controller = mesh.start(&[]).await;
    let chain = mesh.ask(controller.address(), "n1", "cart", HOUR).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert!(!mesh.path("ca/self-signed.pem").exists());
    let at = |name: &str| mesh.path(name).display().to_string();
    fs::write(mesh.path("leaf.pem"), &chain[0]).unwrap();
    let arguments =
        ["verify", "-CAfile", &at("ca/root-cert.pem"), "-untrusted", &at("ca/ca-cert.pem"), &at("leaf.pem")];
    assert!(output("openssl", &arguments).trim().ends_with("leaf.pem: OK"));
    mesh.tunnel(controller.address(), "n1").synced().await;
    stop(controller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_lists_are_passed_on() {
    let mesh = Mesh::new();
    let signer = plug(&mesh);
    let now = std::time::SystemTime::now();
    let list = |number| {
        let edition = Edition { number, this_update: now, next_update: now + HOUR };
        signer.revocation_list(&[Serial::new(number.into())], edition).unwrap()
    };
    let first = list(1);
    fs::write(mesh.path("ca/ca-crl.pem"), &first).unwrap();
    let out = mesh.path("crl.pem");
    let controller = mesh.start(&[&format!("--crl-out={}", out.display())]).await;
    assert_eq!(fs::read_to_string(&out).unwrap(), first);
    let next = list(2);
    fs::write(mesh.path("ca/ca-crl.pem"), &next).unwrap();
    eventually("the next list", || (fs::read_to_string(&out).unwrap() == next).then_some(())).await;
    stop(controller).await;
    fs::write(mesh.path("ca/ca-crl.pem"), "garbage").unwrap();
    let config = mesh.config(&[&format!("--crl-out={}", out.display())]);
    assert!(Controller::start(&config, None).await.is_err(), "a list that cannot be read is not no list");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_certificate_is_replaced_while_it_serves() {
    let mesh = Mesh::new();
    let controller = mesh.start(&["--server-cert-ttl=4s", "--name=mesh.example.org,10.7.7.7"]).await;
    let tunnel = mesh.tunnel(controller.address(), "n1");
    tunnel.synced().await;
    let port = controller.address().port();
    let shown = |what: &'static str| async move {
        let command = format!(
            "openssl s_client -connect 127.0.0.1:{port} -showcerts </dev/null 2>/dev/null | openssl x509 -noout {what}"
        );
        tokio::task::spawn_blocking(move || output("sh", &["-c", &command])).await.unwrap()
    };
    let names = shown("-ext subjectAltName").await;
    for name in ["istiod.istio-system.svc", "localhost", "mesh.example.org", "10.7.7.7", "127.0.0.1"] {
        assert!(names.contains(name), "{name}: {names}");
    }
    let first = shown("-serial").await;
    let begun = std::time::Instant::now();
    while shown("-serial").await == first {
        assert!(begun.elapsed() < SOON, "never replaced");
    }
    assert!(
        tunnel.state().connected_since.is_some()
            && tunnel.metrics.terminations().all(|(_, count)| count == 0)
    );
    mesh.tunnel(controller.address(), "n2").synced().await;
    stop(controller).await;
}
