//! A control plane that errs, stalls, dies and returns.

use std::time::{Duration, Instant};

use ambit_fixtures::Status;
use ambit_fixtures::{
    control_plane::{Conduct, Settings},
    mesh::service,
};
use ambit_model::authz::Action;
use ambit_wire::codec::{ADDRESS, AUTHORIZATION};
use bytes::Bytes;

use crate::harness::*;

/// Not a protobuf message of any type.
fn garbage() -> Bytes {
    Bytes::from_static(&[0xff; 20])
}

#[test]
fn it_is_ready_only_after_the_first_clean_push() {
    world(async |world: World| {
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        world.plane.publish(ADDRESS, [("broken".to_owned(), garbage())]);
        let tunnel = world.launch(world.env());
        let (page, state) = until("the push was refused", async || {
            let page = tunnel.readiness().await.filter(|page| page.status == 500)?;
            let state = tunnel.get("/debug/sync").await.json();
            state["lastNack"]["message"].is_string().then_some((page, state))
        })
        .await;
        assert!(page.body.contains("state manager"), "{page:?}");
        let nack = state["lastNack"]["message"].as_str().unwrap();
        assert!(nack.contains("broken: ") && !nack.contains("web"), "{nack}");
        assert_eq!(state["synced"], false);
        // The control plane hears the same.
        let heard = |world: &World| {
            let subscribers = world.plane.publisher().subscribers();
            subscribers.iter().flat_map(|one| &one.types).find_map(|of| of.last_nack.clone())
        };
        let (_, text) = until("the control plane was told", async || heard(&world)).await;
        assert_eq!(text, nack);
        assert!(!tunnel.is_ready().await);
        world.plane.remove(ADDRESS, &["broken"]);
        tunnel.until_ready().await;
        call(&world.stranger(), web.at(8080)).await.unwrap();
    });
}

#[test]
fn one_bad_resource_of_each_kind_is_named_and_the_others_apply() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.pod("client").await;
        call(&client, web.at(8080)).await.unwrap();
        // A workload with an address of five bytes, a service key without a slash, an enum of tomorrow,
        // a service without destination behind its waypoint, an empty message, and a good service.
        let workload = |inner: &[u8]| [&[0x0a, u8::try_from(inner.len()).unwrap()], inner].concat();
        let bad = [
            ("five-bytes", workload(b"\xa2\x01\x01u\x1a\x05\x01\x02\x03\x04\x05")),
            ("no-slash", workload(b"\xa2\x01\x01u\xb2\x01\x05\x0a\x03web")),
            ("tomorrow", workload(b"\xa2\x01\x01u\x28\x63")),
            ("waypoint-nowhere", b"\x12\x08\x0a\x01s\x12\x01n\x3a\x00".to_vec()),
            ("neither", Vec::new()),
        ];
        let good = addresses([], [service("default/web.test").vip("10.96.0.9").ports(&[(80, 8080)])]);
        let update = bad.iter().map(|(name, body)| ((*name).to_owned(), Bytes::from(body.clone())));
        world.publish([web.builder().behind("default/web.test", &[(80, 8080)])], []);
        world.plane.publish(ADDRESS, update.chain(good));
        let nack = until("the push was refused", async || {
            let state = tunnel.get("/debug/sync").await.json();
            state["lastNack"]["message"].as_str().map(str::to_owned)
        })
        .await;
        for (name, _) in &bad {
            assert!(nack.contains(&format!("{name}: ")), "{name} is not in {nack}");
        }
        assert!(!nack.contains("default/web.test:"), "{nack}");
        let vip = "10.96.0.9:80".parse().unwrap();
        until_true("the good one applies", async || call(&client, vip).await.is_ok()).await;
        call(&client, web.at(8080)).await.unwrap();
        assert!(tunnel.is_ready().await, "it was, and stays so");
    });
}

#[test]
fn a_policy_that_cannot_be_decoded_denies_in_its_namespace_and_is_shown() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let peer = world.hbone(&client, "curl", &web).await;
        let mut open = peer.connect(web.at(8080)).await.unwrap();
        greeting(&mut open).await.unwrap();
        world.plane.publish(AUTHORIZATION, [("default/broken".to_owned(), garbage())]);
        // It denies what is open and what is new, with a reason that says so.
        until_closed(&mut open).await;
        assert_eq!(peer.connect(web.at(8080)).await.err().unwrap().status(), Some(401));
        tunnel.line(&["connection complete", "default/broken"]).await;
        let dump = tunnel.get("/config_dump").await.json();
        let shown = dump["policies"].to_string();
        assert!(shown.contains("broken") && shown.contains("undecodable"), "{shown}");
        // A good version lifts it; a bad one after a good one leaves the good one in force.
        world.publish_policies([policy("broken", Action::Deny, from_accounts(&["mallory"]))]);
        until_true("curl is let in", async || peer.connect(web.at(8080)).await.is_ok()).await;
        world.plane.publish(AUTHORIZATION, [("default/broken".to_owned(), garbage())]);
        until_true("the bad version was refused", async || {
            let state = tunnel.get("/debug/sync").await.json();
            state["lastNack"]["typeUrl"] == AUTHORIZATION
                && tunnel.said().matches("Refused a resource").count() >= 2
        })
        .await;
        peer.connect(web.at(8080)).await.unwrap();
        let mallory = world.hbone(&client, "mallory", &web).await;
        assert_eq!(mallory.connect(web.at(8080)).await.err().unwrap().status(), Some(401));
    });
}

#[test]
fn whatever_a_control_plane_does_the_tunnel_lives_and_recovers() {
    world(async |world: World| {
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        for conduct in [
            Conduct::Stall,
            Conduct::Refuse(Status::permission_denied("not you")),
            Conduct::HangUp,
            Conduct::Garbage,
            Conduct::NotProtobuf,
            Conduct::DieInMessage,
            Conduct::UnknownType,
            Conduct::Hollow(ADDRESS),
            Conduct::WrongNonce(AUTHORIZATION),
        ] {
            world.plane.set_conduct(conduct.clone());
            let tunnel = world.launch(world.env());
            // It was treated so: something came, or the stream ended, or it stands open and says nothing.
            until_true(&format!("{conduct:?} was felt"), async || {
                let Some(_) = tunnel.readiness().await else { return false };
                let state = tunnel.get("/debug/sync").await.json();
                !state["lastEnd"].is_null() || !state["connectedSince"].is_null()
            })
            .await;
            assert!(!tunnel.is_ready().await, "{conduct:?}");
            assert!(tunnel.exited().is_none(), "{conduct:?}: {}", tunnel.said());
            world.plane.set_conduct(Conduct::Sound);
            tunnel.until_ready().await;
            call(&client, web.at(8080)).await.unwrap_or_else(|error| panic!("{conduct:?}: {error}"));
        }
    });
}

#[test]
fn without_its_control_plane_traffic_goes_on_and_its_return_brings_only_what_changed() {
    world(async |mut world: World| {
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let _app = App::echo(&web, 8080);
        let many =
            (0..200).map(|n| ambit_fixtures::mesh::pod(&format!("far/pod-{n}")).at(&format!("10.200.0.{n}")));
        world.publish(many, []);
        let tunnel = world.tunnel().await;
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        let address = "url=\"type.googleapis.com/istio.workload.Address\"";
        let bytes = async || tunnel.counted("istio_xds_message_bytes_total", &[address]).await;
        let before = bytes().await;
        assert!(before > 5000, "{before}");
        let listening = world.plane.address();
        let settings = || Settings { address: listening, ..plane(&world.ca) };
        let resources: Vec<_> = world.plane.publisher().listing();
        assert!(resources.len() > 200);
        let fresh = settings();
        let old = std::mem::replace(&mut world.plane, plane(&world.ca).start().await);
        old.stop().await;
        until_true("the loss was noticed", async || {
            tunnel.get("/debug/sync").await.json()["connectedSince"].is_null()
        })
        .await;
        // Old connections, new ones, in both directions, and readiness: as before.
        exchange(&mut open, b"on and on").await.unwrap();
        call(&client, web.at(8080)).await.unwrap();
        call(&world.stranger(), web.at(8080)).await.unwrap();
        assert!(tunnel.is_ready().await);
        // It returns, with the same workloads and one more.
        let returned = fresh.start_closed().await;
        let many =
            (0..200).map(|n| ambit_fixtures::mesh::pod(&format!("far/pod-{n}")).at(&format!("10.200.0.{n}")));
        let more = ambit_fixtures::mesh::pod("far/one-more").at("10.200.1.1");
        returned.publish(ADDRESS, addresses(many.chain([more, web.builder(), client.builder()]), []));
        returned.publisher().open();
        world.plane = returned;
        until_true("it is in sync again", async || {
            tunnel.get("/config_dump").await.body.contains("one-more")
        })
        .await;
        let grown = bytes().await - before;
        assert!(grown < before / 10, "{grown} bytes for one new workload, after {before}");
        call(&client, web.at(8080)).await.unwrap();
    });
}

#[test]
fn a_token_that_is_replaced_is_used_and_a_wrong_one_is_told_about() {
    world(async |world: World| {
        std::fs::write(world.path("token"), "wrong").unwrap();
        let tunnel = world.launch(world.env());
        let end = until("the refusal is shown", async || {
            tunnel.readiness().await?;
            tunnel.get("/debug/sync").await.json()["lastEnd"].as_str().map(str::to_owned)
        })
        .await;
        assert!(end.contains("bring the token"), "{end}");
        std::fs::write(world.path("token"), TOKEN).unwrap();
        let began = Instant::now();
        tunnel.until_ready().await;
        assert!(began.elapsed() < Duration::from_secs(16), "the longest pause is 15 seconds");
    });
}
