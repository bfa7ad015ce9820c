//! Peers and applications that break every rule: the tunnel lives on, serves others, and stays small.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::harness::*;

/// What any of these attacks may make the process grow by, in KiB.
const GROWTH: u64 = 64 * 1024;

/// A world with one pod, its application, and an honest client with an open stream.
struct Scene {
    world: World,
    tunnel: Ztunnel,
    web: Pod,
    client: PodNet,
    honest: Stream,
    _peer: Peer,
    _app: App,
    resident: u64,
}

impl Scene {
    async fn set(world: World) -> Self {
        let tunnel = world.tunnel().await;
        let web = world.pod("web").await;
        let app = App::echo(&web, 8080);
        let client = world.stranger();
        let peer = world.hbone(&client, "honest", &web).await;
        let mut honest = peer.connect(web.at(8080)).await.unwrap();
        greeting(&mut honest).await.unwrap();
        let resident = tunnel.resident();
        Self { world, tunnel, web, client, honest, _peer: peer, _app: app, resident }
    }

    /// HTTP/2 by hand, in good TLS.
    async fn raw(&self) -> RawHttp2<TlsStream<tokio::net::TcpStream>> {
        let config = self.world.ca.certificate(&identity("mallory")).client_config(self.web.identity());
        let stream = self.client.connect(self.web.at(HBONE)).await.unwrap();
        RawHttp2::over(secure(stream, config).await.unwrap())
    }

    /// The open stream goes on, new ones are served, and memory is what it was.
    async fn is_as_before(&mut self, attack: &str) {
        exchange(&mut self.honest, b"still here").await.unwrap_or_else(|error| panic!("{attack}: {error}"));
        let peer = self.world.hbone(&self.client, "late", &self.web).await;
        let mut stream = peer.connect(self.web.at(8080)).await.unwrap();
        greeting(&mut stream).await.unwrap();
        assert!(self.tunnel.exited().is_none(), "{attack}: {}", self.tunnel.said());
        let grown = self.tunnel.resident().saturating_sub(self.resident);
        assert!(grown < GROWTH, "{attack}: {grown} KiB more");
    }
}

#[test]
fn random_bytes_on_every_port_do_no_harm() {
    world(async |world: World| {
        let mut scene = Scene::set(world).await;
        let mut random = StdRng::seed_from_u64(15008);
        let mut noise = vec![0; 4096];
        for port in [15001, 15006, 15008, 15053] {
            for round in 0..40 {
                random.fill_bytes(&mut noise);
                // Sometimes what follows looks like the beginning of something.
                match round % 4 {
                    1 => noise[..5].copy_from_slice(&[0x16, 3, 1, 0x0f, 0xfb]),
                    2 => noise[..16].copy_from_slice(b"PRI * HTTP/2.0\r\n"),
                    3 => noise[..2].copy_from_slice(&[0x0f, 0xfe]),
                    _ => {}
                }
                let from_inside = scene.web.connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
                let from_outside = scene.client.connect(scene.web.at(port)).await;
                for stream in [from_inside, from_outside].into_iter().flatten() {
                    scatter(stream, &noise).await;
                }
            }
        }
        let socket = scene.web.udp();
        for _ in 0..200 {
            random.fill_bytes(&mut noise);
            let length = usize::try_from(random.next_u32() % 1200).unwrap();
            let _ = socket.send_to(&noise[..length], "127.0.0.1:15053").await;
        }
        scene.is_as_before("random bytes").await;
    });
}

async fn scatter(mut stream: tokio::net::TcpStream, noise: &[u8]) {
    let _ = stream.write_all(noise).await;
    let _ = stream.shutdown().await;
    let mut sink = [0; 512];
    let drain = async { while stream.read(&mut sink).await.is_ok_and(|length| length > 0) {} };
    // Whether it is answered, closed or left alone is its own affair.
    let _ = timeout(Duration::from_millis(50), drain).await;
}

#[test]
fn a_recursive_call_is_refused_and_logged() {
    world(async |world: World| {
        let scene = Scene::set(world).await;
        // By loopback, and by the pod's own address, which is not redirected either (protocols 12, line 11).
        for ip in [IpAddr::from([127, 0, 0, 1]), scene.web.v4.into()] {
            for port in [15001, 15006] {
                let mut stream = scene.web.connect(SocketAddr::from((ip, port))).await.unwrap();
                until_closed(&mut stream).await;
            }
        }
        scene.tunnel.lines(&["\twarn\t", "connection failed", "recursive call"], 4).await;
        // Where they came in, and not only at the other end of a tunnel to oneself.
        let outbound = ["connection failed", "recursive call", "direction=\"outbound\""];
        scene.tunnel.lines(&outbound, 2).await;
    });
}

#[test]
fn rapid_reset_ends_the_tunnel_of_who_does_it() {
    world(async |world: World| {
        let mut scene = Scene::set(world).await;
        let mut raw = scene.raw().await;
        raw.send(&[frame(SETTINGS, 0, 0, &[])]).await;
        let authority = scene.web.at(8080).to_string();
        let mut sent = 0u32;
        let attack = async {
            loop {
                let batch = (0..50).flat_map(|one| {
                    let stream = 2 * (sent + one) + 1;
                    [connect_frame(stream, &authority), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                });
                let batch: Vec<_> = batch.collect();
                if raw.try_send(&batch).await.is_err() {
                    return;
                }
                sent += 50;
            }
        };
        timeout(SOON, attack).await.expect("it is cut off");
        scene.is_as_before("rapid reset").await;
    });
}

#[test]
fn floods_of_ping_and_settings_stop_the_flooder_alone() {
    world(async |world: World| {
        let mut scene = Scene::set(world).await;
        let floods = [
            ("PING", frame(PING, 0, 0, &[0; 8])),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ];
        for (name, one) in floods {
            let mut raw = scene.raw().await;
            raw.send(&[frame(SETTINGS, 0, 0, &[])]).await;
            let batch = vec![one.clone(); 1000];
            // Nothing is read: answers fill the sockets, then what is sent stays with the sender.
            let flood = async {
                for _ in 0..2000 {
                    if raw.try_send(&batch).await.is_err() {
                        return true;
                    }
                }
                false
            };
            let ended = timeout(Duration::from_secs(3), flood).await;
            assert_ne!(ended, Ok(false), "{name}: two million frames were swallowed");
            scene.is_as_before(name).await;
        }
    });
}

#[test]
fn headers_without_end_end_the_tunnel_and_headers_too_large_only_their_stream() {
    world(async |world: World| {
        let mut scene = Scene::set(world).await;
        let authority = scene.web.at(8080).to_string();
        let mut raw = scene.raw().await;
        // A literal header of 70,000 bytes: 127 + 69,873 in HPACK's integers.
        let mut large = connect_frame(1, &authority).split_off(9);
        large.extend(b"\x00\x01x\x7f\xf1\xa1\x04");
        large.extend(vec![b'y'; 70_000]);
        raw.send(&[frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, &large)]).await;
        raw.send(&[connect_frame(3, &authority)]).await;
        assert!(raw.answer_to(3).await.starts_with(&[HEADERS, 0x88]));
        // And one that never ends.
        let mut raw = scene.raw().await;
        let head = connect_frame(1, &authority).split_off(9);
        raw.send(&[frame(SETTINGS, 0, 0, &[]), frame(HEADERS, 0, 1, &head)]).await;
        let more = frame(CONTINUATION, 0, 1, &[&b"\x00\x01x\x7f\x81\x7e"[..], &[b'y'; 16_000]].concat());
        let endless = async { while raw.try_send(std::slice::from_ref(&more)).await.is_ok() {} };
        timeout(SOON, endless).await.expect("it is cut off");
        scene.is_as_before("headers").await;
    });
}

#[test]
fn a_pod_with_as_many_connections_as_it_may_have_starves_nobody_else() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("AMBIT_MAX_CONNECTIONS_PER_POD", "100")).await;
        let (greedy, modest) = (world.pod("greedy").await, world.pod("modest").await);
        let web = world.stranger();
        let _app = App::echo(&web, 8080);
        let mut held = Vec::new();
        until_true("the pod may have no more", async || match call(&greedy, web.at(8080)).await {
            Ok((stream, _)) => {
                held.push(stream);
                false
            }
            Err(_) => true,
        })
        .await;
        assert_eq!(held.len(), 100);
        tunnel.line(&["\twarn\t", "connection failed", "too many connections of this pod"]).await;
        call(&modest, web.at(8080)).await.unwrap();
        exchange(&mut held[0], b"fine").await.unwrap();
        held.pop();
        until_true("there is room again", async || call(&greedy, web.at(8080)).await.is_ok()).await;
    });
}

#[test]
fn a_full_table_of_descriptors_is_survived() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        call(&client, web.at(8080)).await.unwrap();
        let open = std::fs::read_dir(format!("/proc/{}/fd", tunnel.pid())).unwrap().count();
        let limit = format!("--nofile={}:{}", open + 40, open + 40);
        let set =
            Command::new("prlimit").args(["--pid", &tunnel.pid().to_string(), &limit]).status().unwrap();
        assert!(set.success());
        let mut held = Vec::new();
        until_true("the table is full", async || {
            held.push(client.connect(web.at(8080)).await.unwrap());
            tunnel.said().contains("open file limit") || tunnel.said().contains("Too many open files")
        })
        .await;
        drop(held);
        until_true("it serves again", async || {
            timeout(Duration::from_secs(2), call(&client, web.at(8080)))
                .await
                .is_ok_and(|called| called.is_ok())
        })
        .await;
        assert!(tunnel.exited().is_none());
    });
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent_while_the_other_half_is_closed() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 1024;
    world(async |world: World| {
        let _tunnel = world.tunnel_with(world.env().with("SAME_NODE", "hbone")).await;
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let mut piece = vec![0; PIECE];
        StdRng::seed_from_u64(1).fill_bytes(&mut piece);
        let expected = piece.clone();
        // Each piece begins with its number, so that none can stand for another.
        let _app = App::serve(web.listen(8080), move |mut stream, _| {
            let mut expected = expected.clone();
            async move {
                let mut heard = vec![0; PIECE];
                for number in 0..PIECES {
                    expected[..8].copy_from_slice(&number.to_be_bytes());
                    if stream.read_exact(&mut heard).await.is_err() || heard != expected {
                        let _ = stream.write_all(format!("piece {number} is wrong").as_bytes()).await;
                        return;
                    }
                }
                let rest = stream.read(&mut heard).await;
                let verdict = if matches!(rest, Ok(0)) { "all of it" } else { "too much" };
                let _ = stream.write_all(verdict.as_bytes()).await;
            }
        });
        let mut stream = client.connect(web.at(8080)).await.unwrap();
        for number in 0..PIECES {
            piece[..8].copy_from_slice(&number.to_be_bytes());
            stream.write_all(&piece).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut verdict = String::new();
        timeout(SOON, stream.read_to_string(&mut verdict)).await.unwrap().unwrap();
        assert_eq!(verdict, "all of it");
    });
}
