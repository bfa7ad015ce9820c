//! How connections end.

use std::time::Duration;

use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, advance, timeout},
};

use super::*;
use crate::hbone::OpenError;

#[tokio::test(start_paused = true)]
async fn edge_5_a_client_drops_a_peer_that_answers_no_ping_after_thirty_seconds() {
    let (connection, mut server, tasks) = pair().await;
    let (mut near, _far) = stream(&connection, &mut server).await;
    // The peer's task is gone without a word; its socket stays.
    let (_held, mute) = silence();
    let lonely = connected(mute, &Settings::default(), &tasks).await;
    let start = Instant::now();
    assert!(lonely.open(to("10.0.0.9:80")).await.is_err());
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(29) && waited <= Duration::from_secs(31), "{waited:?}");
    // The other one, whose peer answers, is as it was.
    assert_eq!(connection.active(), 1);
    assert!(timeout(Duration::from_secs(300), near.data()).await.is_err());
}

/// A socket whose other end reads nothing and says nothing.
fn silence() -> (DuplexStream, DuplexStream) {
    duplex(1024 * 1024)
}

#[tokio::test(start_paused = true)]
async fn edge_5_a_server_drops_a_peer_that_answers_no_ping() {
    let (mut near, far) = duplex(SOCKET);
    let mut server = Server::on(far, Settings::default());
    // A preface and empty SETTINGS, and never anything again.
    tokio::io::AsyncWriteExt::write_all(&mut near, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let start = Instant::now();
    let ended = (&mut server.ended).await.unwrap().unwrap();
    assert!(matches!(ended, server::Served::Silent), "{ended:?}");
    assert!(start.elapsed() <= Duration::from_secs(31));
    let mut last = Vec::new();
    near.read_to_end(&mut last).await.unwrap();
    // GOAWAY, 8 bytes: last stream 0, NO_ERROR.
    assert!(last.ends_with(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0"), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_no_preface_is_cut_off() {
    let (_near, far) = duplex(SOCKET);
    let server = Server::on(far, Settings::default());
    let start = Instant::now();
    assert!(matches!(server.ended.await.unwrap(), Err(server::ServeError::Dawdled)));
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn edge_6_an_idle_connection_is_released_after_five_minutes_and_leaves_no_task() {
    let (connection, mut server, tasks) = pair().await;
    let opened = stream(&connection, &mut server).await;
    advance(Duration::from_secs(3600)).await;
    settle().await;
    assert_eq!(tasks.alive(), 1, "a connection that carries a stream stays");
    drop(opened);
    let idle = Instant::now();
    (&mut server.ended).await.unwrap().unwrap();
    settle().await;
    assert!(
        (Duration::from_secs(290)..=Duration::from_secs(311)).contains(&idle.elapsed()),
        "{:?}",
        idle.elapsed()
    );
    assert_eq!(tasks.alive(), 0);
    assert!(matches!(connection.open(to("web:80")).await, Err(OpenError::Unprocessed(None))));
}

#[tokio::test(start_paused = true)]
async fn a_drained_server_finishes_what_it_has_and_takes_no_more() {
    let (mut connection, mut server, tasks) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    server.drain();
    settle().await;
    assert!(!connection.is_open());
    assert!(matches!(connection.open(to("web:80")).await, Err(OpenError::Unprocessed(_))));
    near.send_when_ready("late".into()).await.unwrap();
    assert_eq!(far.data().await.unwrap().unwrap(), "late");
    far.finish().unwrap();
    near.finish().unwrap();
    assert!(near.data().await.is_none() && far.data().await.is_none());
    drop((near, far));
    assert!(matches!((&mut server.ended).await.unwrap(), Ok(server::Served::Closed)));
    settle().await;
    assert_eq!(tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cut_server_ends_everything_at_once() {
    let (connection, mut server, tasks) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    server.cut();
    assert!(matches!((&mut server.ended).await.unwrap(), Ok(server::Served::Cut)));
    assert!(!matches!(near.data().await, Some(Ok(_))));
    assert!(!matches!(far.data().await, Some(Ok(_))));
    drop(connection);
    settle().await;
    assert_eq!(tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_breaks_its_streams() {
    let (connection, mut server, tasks) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    connection.close();
    assert!(!matches!(near.data().await, Some(Ok(_))));
    assert!(!matches!(far.data().await, Some(Ok(_))));
    settle().await;
    assert_eq!(tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_nobody_holds_it() {
    let (connection, mut server, tasks) = pair().await;
    let (near, far) = stream(&connection, &mut server).await;
    drop(connection);
    settle().await;
    assert_eq!(tasks.alive(), 1, "a stream holds it");
    drop((near, far));
    assert!(matches!((&mut server.ended).await.unwrap(), Ok(server::Served::Closed)));
    settle().await;
    assert_eq!(tasks.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_leaves_is_noticed_while_the_answer_is_prepared() {
    let (connection, mut server, _) = pair().await;
    let mut incoming = {
        let open = connection.open(to("10.0.0.9:80"));
        tokio::pin!(open);
        tokio::select! {
            _ = &mut open => panic!("nobody answered"),
            incoming = server.asked.recv() => incoming.unwrap(),
        }
    };
    std::future::poll_fn(|cx| incoming.poll_gone(cx)).await;
    assert_eq!(connection.active(), 0);
}
