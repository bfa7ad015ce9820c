//! Policies as they come, change and go, and what becomes of connections that are open.

use std::time::{Duration, Instant};

use ambit_model::authz::{Action, Match};
use ambit_wire::codec::AUTHORIZATION;

use crate::harness::*;

/// How soon a connection that lost its right must be gone.
const A_SECOND: Duration = Duration::from_secs(1);

/// A client's open stream.
struct Open {
    peer: Peer,
    stream: Stream,
}

async fn open(world: &World, from: &PodNet, account: &str, to: &Pod) -> Open {
    let peer = world.hbone(from, account, to).await;
    let mut stream = peer.connect(to.at(8080)).await.unwrap();
    greeting(&mut stream).await.unwrap();
    exchange(&mut stream, b"hello").await.unwrap();
    Open { peer, stream }
}

/// Registered first, then judged: whoever comes while a policy arrives is refused or cut (protocols 12, line 21).
#[test]
fn nobody_slips_in_while_a_policy_arrives() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let client = world.stranger();
        for round in 0..5 {
            let mut streams = Vec::new();
            for n in 0..60 {
                if n == 20 {
                    world.publish_policies([policy("nobody", Action::Deny, without_identity())]);
                }
                if let Ok((stream, _)) = call(&client, web.at(8080)).await {
                    streams.push(stream);
                }
            }
            assert!(streams.len() >= 20, "round {round}: {}", streams.len());
            for stream in &mut streams {
                until_closed(stream).await;
            }
            world.plane.remove(AUTHORIZATION, &["default/nobody"]);
            until_true("all are let in again", async || call(&client, web.at(8080)).await.is_ok()).await;
        }
    });
}

#[test]
fn a_changed_policy_cuts_the_connection_that_lost_its_right_and_no_other() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, other) = (world.pod("web").await, world.pod("other").await);
        let _apps = (App::echo(&web, 8080), App::echo(&other, 8080));
        let client = world.stranger();
        let both = policy("allowed", Action::Allow, from_accounts(&["alice", "bob"]));
        world.publish_policies([both]);
        until_true("the policy is in force", async || call(&client, web.at(8080)).await.is_err()).await;
        let mut alice = open(&world, &client, "alice", &web).await;
        let mut bob = open(&world, &client, "bob", &web).await;
        let mut bob_elsewhere = open(&world, &client, "bob", &other).await;
        // To the other pod bob may still go.
        let to_web = Match {
            destination_ips: vec![format!("{}/32", web.v4).parse().unwrap()],
            ..from_accounts(&["bob"])
        };
        let changed = Instant::now();
        world.publish_policies([policy("no-bob", Action::Deny, to_web)]);
        until_closed(&mut bob.stream).await;
        assert!(changed.elapsed() < A_SECOND, "after {:?}", changed.elapsed());
        assert!(stays_open(&mut alice.stream, Duration::from_millis(200)).await);
        assert!(stays_open(&mut bob_elsewhere.stream, Duration::from_millis(10)).await);
        // The tunnel itself is kept; it may carry nothing to that pod.
        assert!(!bob.peer.has_ended());
        assert_eq!(bob.peer.connect(web.at(8080)).await.err().unwrap().status(), Some(401));
        let line =
            tunnel.line(&["connection complete", "connection closed due to policy change", "sa/bob"]).await;
        assert!(line.contains("explicitly denied by: default/no-bob"), "{line}");
        let failed = ["reporter=\"destination\"", "response_flags=\"DENY\"", "sa/bob"];
        tunnel.until_counted("istio_tcp_connections_failed_total", &failed, 2).await;
        // Taken back, it is as if it had never been.
        world.plane.remove(AUTHORIZATION, &["default/no-bob"]);
        until_true("bob is let in", async || bob.peer.connect(web.at(8080)).await.is_ok()).await;
    });
}

#[test]
fn plain_connections_are_cut_as_well() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let (mut plain, _) = call(&client, web.at(8080)).await.unwrap();
        let mut proven = open(&world, &client, "alice", &web).await;
        let changed = Instant::now();
        world.publish_policies([policy("strict", Action::Deny, without_identity())]);
        until_closed(&mut plain).await;
        assert!(changed.elapsed() < A_SECOND, "after {:?}", changed.elapsed());
        exchange(&mut proven.stream, b"still here").await.unwrap();
        tunnel.line(&["connection complete", "connection closed due to policy change"]).await;
    });
}

#[test]
fn a_selector_policy_that_is_newly_attached_acts_on_open_connections() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let (web, other) = (world.pod("web").await, world.pod("other").await);
        let _apps = (App::echo(&web, 8080), App::echo(&other, 8080));
        let client = world.stranger();
        // Known for long, and naming nobody yet.
        world.publish_policies([selected(policy("no-bob", Action::Deny, from_accounts(&["bob"])))]);
        let mut alice = open(&world, &client, "alice", &web).await;
        let mut bob = open(&world, &client, "bob", &web).await;
        let mut bob_elsewhere = open(&world, &client, "bob", &other).await;
        let changed = Instant::now();
        world.publish([web.builder().policies(&["default/no-bob"])], []);
        until_closed(&mut bob.stream).await;
        assert!(changed.elapsed() < A_SECOND, "after {:?}", changed.elapsed());
        assert!(stays_open(&mut alice.stream, Duration::from_millis(200)).await);
        assert!(stays_open(&mut bob_elsewhere.stream, Duration::from_millis(10)).await);
        // Attached before it is known: it acts when it comes.
        world.publish([other.builder().policies(&["default/no-bob-either"])], []);
        assert!(stays_open(&mut bob_elsewhere.stream, Duration::from_millis(200)).await);
        world.publish_policies([selected(policy("no-bob-either", Action::Deny, from_accounts(&["bob"])))]);
        until_closed(&mut bob_elsewhere.stream).await;
    });
}

#[test]
fn a_policy_that_becomes_another_scopes_no_longer_holds_where_it_was() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let deny = || policy("no-bob", Action::Deny, from_accounts(&["bob"]));
        world.publish_policies([deny()]);
        let bob = world.hbone(&client, "bob", &web).await;
        until_true("bob is denied", async || bob.connect(web.at(8080)).await.is_err()).await;
        world.publish_policies([selected(deny())]);
        until_true("the namespace is free of it", async || bob.connect(web.at(8080)).await.is_ok()).await;
        world.publish([web.builder().policies(&["default/no-bob"])], []);
        until_true("the workload is not", async || bob.connect(web.at(8080)).await.is_err()).await;
    });
}

#[test]
fn a_policy_on_trial_is_counted_and_logged_and_not_enforced() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        world.publish_policies([
            tried_out(policy("no-bob", Action::Deny, from_accounts(&["bob"]))),
            tried_out(policy("only-alice", Action::Allow, from_accounts(&["alice"]))),
        ]);
        until_true("they are known", async || tunnel.get("/config_dump").await.body.contains("only-alice"))
            .await;
        let bob = world.hbone(&client, "bob", &web).await;
        bob.connect(web.at(8080)).await.unwrap();
        let counted = |policy: &str, action: &str| {
            [format!("policy=\"default/{policy}\""), format!("action=\"{action}\"")]
        };
        let [denied, action] = counted("no-bob", "deny");
        tunnel.until_counted("ambit_authz_dry_run_total", &[&denied, &action], 1).await;
        tunnel.line(&["dry-run policy matched; not enforced", "default/no-bob"]).await;
        let [allowed, action] = counted("only-alice", "allow");
        assert_eq!(tunnel.counted("ambit_authz_dry_run_total", &[&allowed, &action]).await, 0);
        let alice = world.hbone(&client, "alice", &web).await;
        alice.connect(web.at(8080)).await.unwrap();
        tunnel.until_counted("ambit_authz_dry_run_total", &[&allowed, &action], 1).await;
        let failed = tunnel.counted("istio_tcp_connections_failed_total", &[]).await;
        assert_eq!(failed, 0);
    });
}

#[test]
fn a_neighbour_on_the_node_is_judged_like_everybody_else() {
    for same_node in ["direct", "hbone"] {
        world(async move |world: World| {
            let tunnel = world.tunnel_with(world.env().with("SAME_NODE", same_node)).await;
            let (web, alice, bob) =
                (world.pod("web").await, world.pod("alice").await, world.pod("bob").await);
            let _app = App::echo(&web, 8080);
            let (mut alice_open, _) = call(&alice, web.at(8080)).await.unwrap();
            let (mut bob_open, _) = call(&bob, web.at(8080)).await.unwrap();
            let changed = Instant::now();
            world.publish_policies([policy("only-alice", Action::Allow, from_accounts(&["alice"]))]);
            until_closed(&mut bob_open).await;
            assert!(changed.elapsed() < A_SECOND, "{same_node}: after {:?}", changed.elapsed());
            exchange(&mut alice_open, b"still here").await.unwrap();
            assert!(call(&bob, web.at(8080)).await.is_err(), "{same_node}");
            call(&alice, web.at(8080)).await.unwrap();
            let inbound = ["reporter=\"destination\"", "response_flags=\"DENY\"", "sa/bob"];
            tunnel.until_counted("istio_tcp_connections_failed_total", &inbound, 2).await;
            let outbound = ["connection complete", "direction=\"outbound\"", "http status: 401"];
            tunnel.line(&outbound).await;
        });
    }
}

#[test]
fn a_policy_of_addresses_judges_the_clients_address_in_both_families() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let _app = App::echo(&web, 8080);
        let (bad, good) = (world.stranger(), world.stranger());
        let ranges =
            [format!("{}/32", bad.v4), format!("{}/128", bad.v6)].map(|range| range.parse().unwrap());
        let from_bad = Match { source_ips: ranges.to_vec(), ..Match::default() };
        world.publish_policies([policy("not-from-there", Action::Deny, from_bad)]);
        // The listener has both families: an IPv4 client must not look like another.
        for to in [web.at(8080), web.at6(8080)] {
            until_true("it is denied", async || call(&bad, to).await.is_err()).await;
            call(&good, to).await.unwrap();
        }
        let peer = world.hbone(&bad, "alice", &web).await;
        assert_eq!(peer.connect(web.at(8080)).await.err().unwrap().status(), Some(401));
        world.hbone(&good, "alice", &web).await.connect(web.at(8080)).await.unwrap();
    });
}

#[test]
fn a_port_that_is_strict_leaves_the_others_as_they_are() {
    world(async |world: World| {
        let _tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _apps = (App::echo(&web, 8080), App::echo(&web, 9090));
        let strict = Match { destination_ports: vec![8080], ..without_identity() };
        world.publish_policies([policy("strict-8080", Action::Deny, strict)]);
        until_true("it is denied", async || call(&client, web.at(8080)).await.is_err()).await;
        call(&client, web.at(9090)).await.unwrap();
        let peer = world.hbone(&client, "alice", &web).await;
        for port in [8080, 9090] {
            peer.connect(web.at(port)).await.unwrap();
        }
    });
}
