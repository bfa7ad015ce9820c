//! A certificate authority that refuses, dawdles, lies, and is away when it is needed.

use std::time::{Duration, Instant};

use ambit_fixtures::Status;
use ambit_fixtures::ca::Mood;
use tokio::time::timeout;

use crate::harness::*;

/// How long the certificates of a world with short lives live: its half is when they are renewed.
const SHORT: Duration = Duration::from_secs(4);

#[test]
fn without_a_usable_certificate_nothing_is_delivered_and_with_one_everything_is() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.stranger();
        let moods = [
            (Mood::Refuse(Status::permission_denied("not for you")), "not for you"),
            (Mood::Empty, "without a certificate"),
            (Mood::NoRoot, "no root"),
            (Mood::Garbage, "not a PEM certificate"),
            (Mood::WrongKey, "not for the key"),
            (Mood::WrongIdentity(identity("somebody-else")), "somebody-else"),
            (Mood::WrongRoot, "does not lead to the roots"),
        ];
        for (number, (mood, reason)) in moods.into_iter().enumerate() {
            world.served_ca.set_mood(mood);
            // Each its own identity: the certificate of the last round would be good still.
            let web = world.pod(&format!("web-{number}")).await;
            let _app = App::echo(&web, 8080);
            let certificate = world.ca.certificate(&identity("curl"));
            let stream = client.connect(web.at(HBONE)).await.unwrap();
            let refused = Peer::over(stream, certificate.client_config(web.identity())).await;
            assert!(refused.is_err(), "{reason}");
            let pod = format!("sa/web-{number}");
            tunnel.line(&["\twarn\t", "connection failed", &pod, reason]).await;
            // What needs no certificate goes on.
            call(&client, web.at(8080)).await.unwrap();
            world.served_ca.set_mood(Mood::Sign);
            until_true("it is served once the CA is well", async || {
                let stream = client.connect(web.at(HBONE)).await.unwrap();
                Peer::over(stream, certificate.client_config(web.identity())).await.is_ok()
            })
            .await;
        }
    });
}

#[test]
fn a_silent_authority_holds_up_only_whom_it_was_asked_for() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let client = world.stranger();
        let good = world.pod("good").await;
        let _app = App::echo(&good, 8080);
        world.hbone(&client, "curl", &good).await;
        world.served_ca.set_mood(Mood::Silent);
        let late = world.pod("late").await;
        let _late_app = App::echo(&late, 8080);
        let config = world.ca.certificate(&identity("curl")).client_config(late.identity());
        let stream = client.connect(late.at(HBONE)).await.unwrap();
        let waiting = Peer::over(stream, config);
        let others = async {
            world.hbone(&client, "curl", &good).await.connect(good.at(8080)).await.unwrap();
            call(&client, late.at(8080)).await.unwrap();
        };
        let (waited, ()) = tokio::join!(waiting, others);
        assert!(waited.is_err(), "it is not waited for for ever");
        tunnel.line(&["\twarn\t", "connection failed", "sa/late"]).await;
    });
}

#[test]
fn it_asks_for_the_pods_identity_as_the_protocol_says() {
    world(async |world: World| {
        let _tunnel = world.tunnel_with(world.env().with("SECRET_TTL", "1h")).await;
        let web = world.pod("web").await;
        let asked = until("the CA was asked", async || {
            let seen = world.served_ca.seen();
            seen.into_iter().find(|one| one.impersonated == Some(web.identity().to_string()))
        })
        .await;
        assert_eq!(asked.lifetime_seconds, 3600);
        assert_eq!(asked.token.as_deref(), Some(TOKEN));
        assert_eq!(asked.cluster, "Kubernetes");
        assert!(asked.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{}", asked.csr);
    });
}

#[test]
fn a_certificate_with_a_short_life_is_renewed_under_an_open_connection() {
    world(async |world: World| {
        world.served_ca.set_mood(Mood::SignFor(SHORT));
        let tunnel = world.tunnel_with(world.env().with("SAME_NODE", "hbone")).await;
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let _app = App::echo(&web, 8080);
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        let began = Instant::now();
        let first = until("a certificate", async || tunnel.serial_of(&web.identity()).await).await;
        let mut seen = vec![first];
        // Longer than the first one lives.
        while began.elapsed() < SHORT + Duration::from_secs(1) || seen.len() < 3 {
            let serial = tunnel.serial_of(&web.identity()).await.unwrap();
            if !seen.contains(&serial) {
                seen.push(serial);
            }
            exchange(&mut open, b"going on").await.unwrap();
            call(&client, web.at(8080)).await.unwrap();
            assert!(began.elapsed() < SOON, "renewed only {} times", seen.len() - 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn an_authority_that_is_away_at_renewal_leaves_the_last_good_certificate_in_force() {
    world(async |world: World| {
        world.served_ca.set_mood(Mood::SignFor(2 * SHORT));
        let tunnel = world.tunnel_with(world.env().with("SAME_NODE", "hbone")).await;
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let _app = App::echo(&web, 8080);
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        let first = until("a certificate", async || tunnel.serial_of(&web.identity()).await).await;
        let asked = world.served_ca.seen().len();
        world.served_ca.set_mood(Mood::Refuse(Status::unavailable("away")));
        until_true("renewal was tried in vain", async || world.served_ca.seen().len() >= asked + 2).await;
        exchange(&mut open, b"going on").await.unwrap();
        let (_new, _) = call(&client, web.at(8080)).await.unwrap();
        assert_eq!(tunnel.serial_of(&web.identity()).await, Some(first.clone()));
        world.served_ca.set_mood(Mood::Sign);
        until_true("it is renewed once the CA is back", async || {
            tunnel.serial_of(&web.identity()).await.is_some_and(|serial| serial != first)
        })
        .await;
        exchange(&mut open, b"as ever").await.unwrap();
    });
}

#[test]
fn one_certificate_is_fetched_for_many_connections_that_come_at_once() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        world.served_ca.set_mood(Mood::Refuse(Status::unavailable("not yet")));
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        world.served_ca.set_mood(Mood::Sign);
        let certificate = world.ca.certificate(&identity("curl"));
        let config = certificate.client_config(web.identity());
        until_true("the pod has its certificate", async || {
            let stream = client.connect(web.at(HBONE)).await.unwrap();
            Peer::over(stream, config.clone()).await.is_ok()
        })
        .await;
        let wanted = Some(web.identity().to_string());
        let asked = || world.served_ca.seen().into_iter().filter(|one| one.impersonated == wanted).count();
        let before = asked();
        let many = (0..20).map(async |_| {
            let stream = client.connect(web.at(HBONE)).await.unwrap();
            Peer::over(stream, config.clone()).await.unwrap()
        });
        timeout(SOON, futures_util::future::join_all(many)).await.unwrap();
        assert_eq!(asked(), before);
    });
}
