//! Connections of HTTP/1 on which nothing happens: they hold no buffers, and serve on as if nothing had been.

use http::Request;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::world::*;

const RESTING: &str = "ambit_connections_resting";

#[test]
fn a_connection_that_rested_serves_on() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut sender = tunnel.http1(WEB).await;
        for path in ["/first", "/second"] {
            let response = timeout(SOON, sender.send_request(get(path))).await.unwrap().unwrap();
            assert_eq!(Told::read(response).await.status, 200);
            assert_eq!(app.last().uri, path);
            waypoint.until_counted(RESTING, &[], 1).await;
        }
        let response = timeout(SOON, sender.send_request(post("/third", "body"))).await.unwrap().unwrap();
        assert_eq!(Told::read(response).await.status, 200);
        assert_eq!(waypoint.counted(RESTING, &[]).await, 0);
        assert_eq!(app.last().body, "body");
    });
}

#[test]
fn a_head_of_which_a_part_has_come_is_not_lost() {
    world(async |world| {
        let _app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut io = tunnel.connect(WEB).await.unwrap();
        io.write_all(b"GET /whole HTTP/1.1\r\nhost: web\r\n\r\nGET /half HT").await.unwrap();
        let mut heard = [0; 15];
        timeout(SOON, io.read_exact(&mut heard)).await.unwrap().unwrap();
        assert_eq!(&heard, b"HTTP/1.1 200 OK");
        // Another, that became idle after it, rests; so would it, if it could.
        let mut later = tunnel.http1(WEB).await;
        let response = timeout(SOON, later.send_request(get("/"))).await.unwrap().unwrap();
        assert_eq!(Told::read(response).await.status, 200);
        waypoint.until_counted(RESTING, &[], 1).await;
        io.write_all(b"TP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        timeout(SOON, io.read_to_end(&mut rest)).await.unwrap().unwrap();
        let rest = String::from_utf8_lossy(&rest);
        assert_eq!(rest.matches("HTTP/1.1 200 OK").count(), 1, "{rest}");
    });
}

#[test]
fn one_that_rests_ends_with_the_waypoint_and_with_its_client() {
    world(async |world| {
        let _app = world.web().await;
        let mut waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut leaves = tunnel.connect(WEB).await.unwrap();
        leaves.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        let mut stays = tunnel.connect(WEB).await.unwrap();
        stays.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        waypoint.until_counted(RESTING, &[], 2).await;
        leaves.shutdown().await.unwrap();
        let mut heard = Vec::new();
        timeout(SOON, leaves.read_to_end(&mut heard)).await.unwrap().unwrap();
        waypoint.until_counted(RESTING, &[], 1).await;
        waypoint.terminate();
        heard.clear();
        timeout(SOON, stays.read_to_end(&mut heard)).await.unwrap().unwrap();
        assert!(heard.starts_with(b"HTTP/1.1 200 OK"));
        assert!(waypoint.until_exited().await.success());
    });
}

#[test]
fn a_wish_to_upgrade_that_is_not_granted_costs_nothing() {
    world(async |world| {
        let app = world.web().await;
        let waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let mut io = tunnel.connect(WEB).await.unwrap();
        let wish = |path: &str, connection: &str| {
            format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: {connection}\r\nupgrade: other\r\n\r\n")
        };
        io.write_all(wish("/a", "upgrade").as_bytes()).await.unwrap();
        waypoint.until_counted(RESTING, &[], 1).await;
        io.write_all(wish("/b", "upgrade, close").as_bytes()).await.unwrap();
        let mut heard = String::new();
        timeout(SOON, io.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 2, "{heard}");
        let heard: Vec<_> = app.heard().into_iter().map(|heard| heard.uri).collect();
        assert_eq!(heard, ["/a", "/b"]);
    });
}

#[test]
fn nobody_goes_on_in_another_version_of_http() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        let request =
            Request::get("/upgrade").header("host", "web").header("connection", "upgrade, http2-settings");
        let request = request.header("upgrade", "h2c").header("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA");
        let told = world.tunnel().await.ask(WEB, request.body(Full::default()).unwrap()).await;
        assert_ne!(told.status, 101);
        let heard = app.last();
        assert_eq!((heard.header("upgrade"), heard.header("http2-settings")), (None, None));
    });
}
