//! The rules in a real pod: who is captured, who is not, and what becomes of connections that are open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a whole crate of test code, of which clippy knows only the functions that bear #[test]"
)]

mod place;

use std::net::{IpAddr, SocketAddr};

use ambit_cni::redirect::{Capture, Families, Interface, Redirect, apply};
use place::{
    Ends, Place, allowed, any, ask, dial, dial_marked, exchange, families, listen, original, run, udp,
};

fn usual() -> Redirect {
    Redirect {
        dns: Capture::On,
        inbound: Capture::On,
        virtual_interfaces: Vec::new(),
        probes: Default::default(),
    }
}

async fn captured(redirect: Redirect) -> Place {
    let place = Place::make();
    apply::apply(&place.netns(), redirect, Capture::On).await.unwrap();
    place
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[tokio::test]
async fn what_the_application_dials_arrives_at_15001() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        place.in_pod(|| {
            let tunnel = listen(any(pod, 15001));
            let mut client = dial(at(node, 80));
            let mut server = tunnel.accept();
            assert_eq!(original(&server), at(node, 80));
            assert_eq!(client.peer_addr().unwrap(), at(node, 80));
            exchange(&mut client, &mut server);
        });
    }
}

#[tokio::test]
async fn what_the_tunnel_dials_goes_out() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        let server = place.in_node(|| listen(at(node, 80)));
        let mut client = place.in_pod(|| dial_marked(at(node, 80), None));
        let mut accepted = server.accept();
        assert_eq!(accepted.peer_addr().unwrap().ip(), pod);
        exchange(&mut client, &mut accepted);
    }
}

#[tokio::test]
async fn what_comes_in_arrives_at_15006_but_hbone_at_15008() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        let (plain, hbone) = place.in_pod(|| (listen(any(pod, 15006)), listen(any(pod, 15008))));
        let mut client = place.in_node(|| dial(at(pod, 8080)));
        let mut server = plain.accept();
        assert_eq!((original(&server), server.peer_addr().unwrap().ip()), (at(pod, 8080), node));
        exchange(&mut client, &mut server);

        let mut client = place.in_node(|| dial(at(pod, 15008)));
        exchange(&mut client, &mut hbone.accept());
        assert!(plain.nobody_came());
    }
}

#[tokio::test]
async fn the_pod_reaches_itself_directly() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, .. } in families() {
        let loopback = if pod.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().unwrap();
        place.in_pod(|| {
            let captors = [listen(any(pod, 15001)), listen(any(pod, 15006))];
            let application = listen(any(pod, 8080));
            for ip in [pod, loopback] {
                exchange(&mut dial(at(ip, 8080)), &mut application.accept());
            }
            assert!(captors.iter().all(|captor| captor.nobody_came()));
        });
    }
}

#[tokio::test]
async fn a_borrowed_client_address_gets_its_answers() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        place.in_pod(|| {
            let application = listen(any(pod, 8080));
            // The tunnel delivers a stream that came from `node`, as `node`.
            let mut tunnel = dial_marked(at(pod, 8080), Some(node));
            let mut server = application.accept();
            assert_eq!(server.peer_addr().unwrap().ip(), node);
            exchange(&mut tunnel, &mut server);
        });
    }
}

#[tokio::test]
async fn questions_to_name_servers_arrive_at_15053() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        let upstream = place.in_node(|| udp(at(node, 53), None));
        place.in_pod(|| {
            // As the tunnel does: an answer must leave from where the question was redirected to.
            let loopback = if pod.is_ipv4() { "127.0.0.1" } else { "::1" }.parse().unwrap();
            let proxy = udp(at(loopback, 15053), None);
            let application = udp(any(pod, 0), None);
            ask(&application, at(node, 53), &proxy);
            // The proxy asks on, from the very port that the application used.
            let port = application.local_addr().unwrap().port();
            drop(application);
            let resolver = udp(any(pod, port), Some(0x539));
            ask(&resolver, at(node, 53), &upstream);

            let tcp = listen(any(pod, 15053));
            let mut client = dial(at(node, 53));
            let mut server = tcp.accept();
            assert_eq!(original(&server), at(node, 53));
            exchange(&mut client, &mut server);
        });
    }
}

#[tokio::test]
async fn other_datagrams_are_left_alone() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    for Ends { pod, node } in families() {
        let server = place.in_node(|| udp(at(node, 5353), None));
        place.in_pod(|| ask(&udp(any(pod, 0), None), at(node, 5353), &server));
    }
}

#[tokio::test]
async fn without_dns_capture_questions_go_out() {
    if !allowed() {
        return;
    }
    let place = captured(Redirect { dns: Capture::Off, ..usual() }).await;
    for Ends { pod, node } in families() {
        let upstream = place.in_node(|| udp(at(node, 53), None));
        place.in_pod(|| ask(&udp(any(pod, 0), None), at(node, 53), &upstream));
    }
}

#[tokio::test]
async fn an_ingress_is_reached_directly_and_still_answers_borrowed_addresses() {
    if !allowed() {
        return;
    }
    let place = captured(Redirect { inbound: Capture::Off, ..usual() }).await;
    for Ends { pod, node } in families() {
        let application = place.in_pod(|| listen(any(pod, 8080)));
        let mut client = place.in_node(|| dial(at(pod, 8080)));
        exchange(&mut client, &mut application.accept());
        let mut tunnel = place.in_pod(|| dial_marked(at(pod, 8080), Some(node)));
        exchange(&mut tunnel, &mut application.accept());
    }
}

#[tokio::test]
async fn probes_reach_the_application() {
    if !allowed() {
        return;
    }
    let place = captured(usual()).await;
    place.in_node(|| run("ip", &["addr", "add", "169.254.7.127/32", "dev", "lo"]));
    let Ends { pod, .. } = families()[0];
    let (application, captor) = place.in_pod(|| (listen(any(pod, 8080)), listen(any(pod, 15006))));
    let mut probe = place.in_node(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let from: SocketAddr = "169.254.7.127:0".parse().unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&at(pod, 8080).into(), place::SOON).unwrap();
        socket.into()
    });
    exchange(&mut probe, &mut application.accept());
    assert!(captor.nobody_came());
}

#[tokio::test]
async fn nested_machines_are_captured_as_the_pods_own() {
    if !allowed() {
        return;
    }
    let eth0 = vec![Interface::parse("eth0").unwrap()];
    let place = captured(Redirect { virtual_interfaces: eth0, ..usual() }).await;
    for Ends { pod, .. } in families() {
        let tunnel = place.in_pod(|| listen(any(pod, 15001)));
        let mut client = place.in_node(|| dial(at(pod, 80)));
        let mut server = tunnel.accept();
        assert_eq!(original(&server), at(pod, 80));
        exchange(&mut client, &mut server);
    }
}

#[tokio::test]
async fn open_connections_survive_enrolment_restart_and_departure() {
    if !allowed() {
        return;
    }
    for Ends { pod, node } in families() {
        let place = Place::make();
        let netns = place.netns();
        let (outside, application) =
            (place.in_node(|| listen(at(node, 80))), place.in_pod(|| listen(any(pod, 8080))));
        let mut old_out = (place.in_pod(|| dial(at(node, 80))), outside.accept());
        let mut old_in = (place.in_node(|| dial(at(pod, 8080))), application.accept());
        let mut both = || {
            exchange(&mut old_out.0, &mut old_out.1);
            exchange(&mut old_in.1, &mut old_in.0);
        };
        both();

        apply::apply(&netns, usual(), Capture::On).await.unwrap();
        both();
        let tunnel = place.in_pod(|| listen(any(pod, 15001)));
        let mut new = (place.in_pod(|| dial(at(node, 80))), tunnel.accept());
        exchange(&mut new.0, &mut new.1);
        let mut lent = (place.in_pod(|| dial_marked(at(pod, 8080), Some(node))), application.accept());

        // The agent is restarted, or the pod's annotations change.
        apply::apply(&netns, Redirect { dns: Capture::Off, ..usual() }, Capture::On).await.unwrap();
        both();
        exchange(&mut new.0, &mut new.1);
        exchange(&mut lent.0, &mut lent.1);

        // The pod leaves: new connections are direct, captured ones end in good order.
        apply::release(&netns).await.unwrap();
        both();
        exchange(&mut new.0, &mut new.1);
        exchange(&mut lent.0, &mut lent.1);
        let mut direct = (place.in_pod(|| dial(at(node, 80))), outside.accept());
        drop(new.1);
        let end = std::io::Read::read(&mut new.0, &mut [0]).unwrap();
        assert_eq!(end, 0, "the tunnel's goodbye is heard");

        apply::remove(&netns).await.unwrap();
        both();
        exchange(&mut direct.0, &mut direct.1);
        assert!(place.is_clean());
    }
}

#[tokio::test]
async fn everything_may_be_done_twice() {
    if !allowed() {
        return;
    }
    let place = Place::make();
    let netns = place.netns();
    apply::release(&netns).await.unwrap();
    assert!(place.is_clean(), "a pod that was never captured is given nothing");
    apply::remove(&netns).await.unwrap();
    let first = apply::apply(&netns, usual(), Capture::On).await.unwrap();
    let second = apply::apply(&netns, usual(), Capture::On).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(place.pod_says("ip", &["rule"]).matches("32764").count(), 1);
    assert_eq!(place.pod_says("ip", &["-6", "rule"]).matches("32764").count(), 1);
    assert!(!place.is_clean());
    apply::remove(&netns).await.unwrap();
    apply::remove(&netns).await.unwrap();
    assert!(place.is_clean());
}

#[tokio::test]
async fn meddling_is_noticed() {
    if !allowed() {
        return;
    }
    let place = Place::make();
    let netns = place.netns();
    let applied = apply::apply(&netns, usual(), Capture::On).await.unwrap();
    let Ends { pod, node } = families()[0];
    place.in_pod(|| {
        let tunnel = listen(any(pod, 15001));
        let _used = (dial(at(node, 80)), tunnel.accept());
    });
    assert!(apply::intact(&netns, applied.clone()).await.unwrap(), "use is no meddling");
    place.pod_says("ip", &["rule", "del", "pref", "32764"]);
    assert!(apply::intact(&netns, applied.clone()).await.unwrap());
    assert!(place.pod_says("ip", &["rule"]).contains("32764"), "the route is put back");
    place.pod_says("nft", &["flush", "chain", "inet", "ambit", "nat-output"]);
    assert!(!apply::intact(&netns, applied.clone()).await.unwrap());
    place.pod_says("nft", &["delete", "table", "inet", "ambit"]);
    assert!(!apply::intact(&netns, applied).await.unwrap());
}

#[tokio::test]
async fn a_pod_without_ipv6_on_lo_gets_no_rule_of_it() {
    if !allowed() {
        return;
    }
    let place = Place::make();
    place.in_pod(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap());
    let applied = apply::apply(&place.netns(), usual(), Capture::On).await.unwrap();
    assert_eq!(applied.families, Families::Ipv4);
    assert!(!place.pod_says("nft", &["list", "ruleset"]).contains("ip6"));
    assert!(!place.pod_says("ip", &["-6", "rule"]).contains("32764"));
    apply::remove(&place.netns()).await.unwrap();
    assert!(place.is_clean());
}

#[tokio::test]
async fn with_ipv6_capture_off_ipv6_goes_its_own_way() {
    if !allowed() {
        return;
    }
    let place = Place::make();
    apply::apply(&place.netns(), usual(), Capture::Off).await.unwrap();
    let Ends { pod, node } = families()[1];
    let server = place.in_node(|| listen(at(node, 80)));
    let mut client = place.in_pod(|| dial(at(node, 80)));
    exchange(&mut client, &mut server.accept());
    let upstream = place.in_node(|| udp(at(node, 53), None));
    place.in_pod(|| ask(&udp(any(pod, 0), None), at(node, 53), &upstream));
}

#[tokio::test]
async fn whatever_bears_our_name_is_replaced() {
    if !allowed() {
        return;
    }
    let place = Place::make();
    // A table of the same name and family with a chain of another type cannot stand in the way …
    place.pod_says("nft", &["add", "table", "inet", "ambit"]);
    place.pod_says("nft", &["add", "chain", "inet", "ambit", "nat-output"]);
    apply::apply(&place.netns(), usual(), Capture::On).await.unwrap();
    // … and waiting connections are handed over when a tunnel is replaced.
    let migrate = place.in_pod(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap());
    assert_eq!(migrate.trim(), "1");
}
