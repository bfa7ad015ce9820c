//! What operators and machines read of it: readiness, admin pages, metrics, the log.

use ambit_fixtures::mesh::service;
use ambit_model::authz::Action;

use crate::harness::*;

#[test]
fn the_config_dump_has_the_keys_that_tools_read() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let key = "default/web.test";
        let web = world.pod_with("web", |pod| pod.behind(key, &[(80, 8080)])).await;
        let _app = App::echo(&web, 8080);
        world.publish([], [service(key).vip("10.96.0.1").ports(&[(80, 8080)])]);
        world.publish_policies([policy("no-mallory", Action::Deny, from_accounts(&["mallory"]))]);
        let client = world.stranger();
        let peer = world.hbone(&client, "curl", &web).await;
        let _stream = peer.connect(web.at(8080)).await.unwrap();
        let (_outgoing, _) = call(&web, web.at(8080)).await.unwrap();
        let dump = until("everything is known", async || {
            let dump = tunnel.get("/config_dump").await.json();
            let all = !dump["services"].as_array()?.is_empty() && !dump["policies"].as_array()?.is_empty();
            all.then_some(dump)
        })
        .await;
        let mut keys: Vec<_> = dump.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "certificates",
            "config",
            "policies",
            "services",
            "stagedServices",
            "staticConfig",
            "version",
            "workloadState",
            "workloads",
        ];
        assert_eq!(keys, expected);
        let workload = dump["workloads"].as_array().unwrap().iter().find(|one| one["name"] == "web").unwrap();
        for (name, value) in [
            ("uid", "Kubernetes//Pod/default/web"),
            ("protocol", "HBONE"),
            ("namespace", "default"),
            ("serviceAccount", "web"),
            ("node", NODE),
            ("status", "Healthy"),
            ("clusterId", "Kubernetes"),
            ("canonicalName", "web"),
            ("workloadName", "web"),
        ] {
            assert_eq!(workload[name], value, "{name} of {workload}");
        }
        assert_eq!(workload["workloadIps"][0], web.v4.to_string());
        let shown = &dump["services"][0];
        assert_eq!((&shown["hostname"], &shown["vips"][0]), (&"web.test".into(), &"/10.96.0.1".into()));
        assert_eq!(shown["ports"]["80"], 8080);
        let endpoint = &shown["endpoints"]["Kubernetes//Pod/default/web"];
        assert_eq!(endpoint["workloadUid"], "Kubernetes//Pod/default/web", "{shown}");
        assert_eq!(dump["policies"][0]["name"], "no-mallory");
        let state = &dump["workloadState"]["Kubernetes//Pod/default/web"];
        assert_eq!(
            (&state["state"], &state["info"]["serviceAccount"]),
            (&"Up".into(), &"web".into()),
            "{state}"
        );
        assert_eq!(state["connections"]["inbound"].as_array().unwrap().len(), 1, "{state}");
        let held = dump["certificates"].as_array().unwrap();
        let own = held.iter().find(|one| one["identity"] == web.identity().to_string().as_str()).unwrap();
        for name in ["pem", "serialNumber", "validFrom", "expirationTime"] {
            assert!(
                own["certChain"][0][name].is_string() && own["rootCerts"][0][name].is_string(),
                "{name}: {own}"
            );
        }
    });
}

#[test]
fn the_level_of_the_log_is_changed_while_it_runs_and_set_back() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        call(&client, web.at(8080)).await.unwrap();
        tunnel.line(&["connection complete"]).await;
        assert!(!tunnel.said().contains("connection opened"));
        let page = tunnel.post("/logging?level=access:debug").await;
        assert_eq!(page.status, 200, "{page:?}");
        assert!(page.body.contains("access"), "{page:?}");
        call(&client, web.at(8080)).await.unwrap();
        tunnel.line(&["\tdebug\t", "connection opened"]).await;
        assert_eq!(tunnel.post("/logging?level=access:loud").await.status, 400);
        let page = tunnel.post("/logging?reset").await;
        assert_eq!(page.status, 200, "{page:?}");
        let opened = tunnel.said().matches("connection opened").count();
        call(&client, web.at(8080)).await.unwrap();
        tunnel.lines(&["connection complete"], 3).await;
        assert_eq!(tunnel.said().matches("connection opened").count(), opened);
    });
}

#[test]
fn quitquitquit_drains_and_ends_with_status_0() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("TERMINATION_GRACE_PERIOD_SECONDS", "30")).await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        assert_eq!(tunnel.get("/quitquitquit").await.status, 405);
        for page in ["profile", "heap", "heap/profiling"] {
            let profile = tunnel.get(&format!("/debug/pprof/{page}")).await;
            assert_eq!(profile.status, 501, "no profile, and no pretence of one");
            assert!(profile.body.contains("perf record"), "{profile:?}");
        }
        assert_eq!(tunnel.post("/quitquitquit").await.status, 200);
        tunnel.line(&["Draining"]).await;
        exchange(&mut open, b"still here").await.unwrap();
        until_true("nothing new is taken", async || client.connect(web.at(HBONE)).await.is_err()).await;
        assert!(tunnel.exited().is_none());
        drop(open);
        assert_eq!(tunnel.until_exited().await.code(), Some(0));
    });
}

#[test]
fn readiness_says_what_is_waited_for() {
    world(async |mut world: World| {
        let later = Agent::start(world.path("later.sock"));
        let path = std::mem::replace(&mut world.agent, later).stop().await;
        let _ = std::fs::remove_file(&path);
        let tunnel = world.launch(world.env());
        let page = until("the control plane is done", async || {
            let page = tunnel.readiness().await?;
            (!page.body.contains("state manager")).then_some(page)
        })
        .await;
        assert_eq!(page.status, 500);
        assert!(page.body.contains("workload proxy manager"), "{page:?}");
        std::fs::rename(world.path("later.sock"), path).unwrap();
        tunnel.until_ready().await;
        let page = tunnel.readiness().await.unwrap();
        assert_eq!((page.status, page.body.as_str()), (200, "ready\n"));
    });
}

#[test]
fn the_metrics_have_their_names_and_labels() {
    world(async |world: World| {
        let env = world.env().with("ISTIO_META_ISTIO_VERSION", "1.99").with("SAME_NODE", "hbone");
        let tunnel = world.tunnel_with(env).await;
        let key = "default/web.test";
        let web = world.pod_with("web", |pod| pod.behind(key, &[(80, 8080)])).await;
        let client = world.pod("client").await;
        let _app = App::echo(&web, 8080);
        world.publish([], [service(key).vip("10.96.0.1").ports(&[(80, 8080)])]);
        let vip = "10.96.0.1:80".parse().unwrap();
        let (open, seen) = until("the service is called", async || call(&client, vip).await.ok()).await;
        let heard = u64::try_from(seen.len()).unwrap() + 1 + 5;
        drop(open);
        let labels = |reporter: &str| {
            [
                format!("reporter=\"{reporter}\""),
                "source_workload=\"client\"".to_owned(),
                "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"".to_owned(),
                "destination_service=\"web.test\"".to_owned(),
                "destination_service_namespace=\"default\"".to_owned(),
                "destination_workload=\"web\"".to_owned(),
                "destination_principal=\"spiffe://cluster.local/ns/default/sa/web\"".to_owned(),
                "request_protocol=\"tcp\"".to_owned(),
                "response_flags=\"-\"".to_owned(),
                "connection_security_policy=\"mutual_tls\"".to_owned(),
            ]
        };
        for reporter in ["source", "destination"] {
            let labels = labels(reporter);
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            tunnel.until_counted("istio_tcp_connections_closed_total", &labels, 1).await;
            assert_eq!(tunnel.counted("istio_tcp_connections_opened_total", &labels).await, 1);
            // Received is what the client said, for both.
            assert_eq!(tunnel.counted("istio_tcp_received_bytes_total", &labels).await, 5, "{reporter}");
            assert_eq!(tunnel.counted("istio_tcp_sent_bytes_total", &labels).await, heard, "{reporter}");
        }
        assert_eq!(tunnel.counted("istio_build", &["component=\"ztunnel\"", "tag=\"1.99\""]).await, 1);
        assert_eq!(tunnel.counted("workload_manager_active_proxy_count", &[]).await, 2);
        let text = tunnel.metrics().await;
        for name in [
            "istio_tcp_sockets_open{",
            "istio_xds_message_total{",
            "istio_xds_message_bytes_total{",
            "workload_manager_pending_proxy_count ",
            "workload_manager_proxies_started_total ",
            "workload_manager_proxies_stopped_total ",
            "process_open_fds ",
            "process_max_fds ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing in {text}");
        }
        // The limit was raised as far as it goes (protocols 12, line 52).
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", tunnel.pid())).unwrap();
        let files: Vec<_> = limits.lines().find(|line| line.starts_with("Max open files")).unwrap()
            ["Max open files".len()..]
            .split_whitespace()
            .collect();
        assert_eq!(files[0], files[1], "{limits}");
        let page = tunnel.metrics_at("/stats/prometheus").await;
        assert!(page.contains("istio_build"), "{page}");
    });
}

#[test]
fn the_log_in_json_is_one_object_a_line_with_the_same_fields() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("LOG_FORMAT", "json")).await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let peer = world.hbone(&client, "curl", &web).await;
        drop(peer.connect(web.at(8080)).await.unwrap());
        let line = tunnel.line(&["connection complete"]).await;
        for line in tunnel.said().lines() {
            let object: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for name in ["level", "time", "scope", "message"] {
                assert!(object[name].is_string(), "{name} of {line}");
            }
        }
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&object["scope"], &object["level"]), (&"access".into(), &"info".into()), "{line}");
        assert_eq!(object["src.identity"], "spiffe://cluster.local/ns/default/sa/curl");
        assert_eq!(object["dst.hbone_addr"], web.at(8080).to_string());
        assert_eq!(object["direction"], "inbound");
    });
}
