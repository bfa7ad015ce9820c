//! Clients that break the protocol: each gets the right answer, and nothing of it reaches another's request.

use crate::world::*;

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused_or_made_one() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let table = [
            ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
            ("no host", "GET / HTTP/1.1\r\n\r\n", "400"),
            ("target and host", "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n", "400"),
            (
                "two lengths",
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
                "400",
            ),
            ("no length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na", "400"),
            ("a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\na", "400"),
            (
                "chunked, not last",
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
                "400",
            ),
            ("an unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: x\r\n\r\n", "400"),
            ("a folded line", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", "400"),
            ("a space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n", "400"),
            ("a NUL", "GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", "400"),
            ("a lone CR", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n", "400"),
            ("a tunnel", "CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
            ("an escaped NUL", "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
            ("half an escape", "GET /%4 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ];
        for (what, bytes, status) in table {
            let bytes = bytes.replacen("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1);
            let told = tunnel.say(WEB, bytes.as_bytes()).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {told:?}");
        }
        assert_eq!(app.heard().len(), 0, "{:?}", app.heard());
    });
}

#[test]
fn a_length_beside_chunks_is_ignored_and_the_connection_ends() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start().await;
        let smuggled = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
            0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let told = world.tunnel().await.say(WEB, smuggled.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
        let heard = app.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!((heard[0].header("content-length"), heard[0].body.as_str()), (None, ""));
    });
}

#[test]
fn a_head_that_is_too_large_or_too_slow_is_not_waited_for() {
    world(async |world| {
        let app = world.web().await;
        let _waypoint = world.start_with(&[("AMBIT_REQUEST_HEADERS_TIMEOUT", "300ms")]).await;
        let tunnel = world.tunnel().await;
        let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(80 * 1024));
        let told = tunnel.say(WEB, large.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
        let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
        let told = tunnel.say(WEB, format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
        // Half a head, and then nothing.
        let told = tunnel.say(WEB, b"GET / HTTP/1.1\r\nhost: a\r\n").await;
        assert!(!told.contains("200"), "{told}");
        assert_eq!(app.heard().len(), 0);
        // Who has not begun may take his time.
        let mut sender = tunnel.http1(WEB).await;
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        let told = Told::read(sender.send_request(get("/")).await.unwrap()).await;
        assert_eq!(told.status, 200);
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        sender.ready().await.unwrap();
        assert_eq!(Told::read(sender.send_request(get("/")).await.unwrap()).await.status, 200);
    });
}
