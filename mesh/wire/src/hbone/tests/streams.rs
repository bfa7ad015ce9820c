//! One stream among others: halves, resets, windows.

use std::{future::poll_fn, io::ErrorKind};

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::hbone::stream::TunnelIo;

async fn read_all(stream: &mut TunnelStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = stream.data().await {
        all.extend(piece.unwrap());
    }
    all
}

#[tokio::test(start_paused = true)]
async fn edge_1_a_half_close_travels_and_the_other_direction_lives_on() {
    let (connection, mut server, _) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    near.send_when_ready("question".into()).await.unwrap();
    near.finish().unwrap();
    assert_eq!(read_all(&mut far).await, b"question");
    far.send_when_ready("answer".into()).await.unwrap();
    far.finish().unwrap();
    assert_eq!(read_all(&mut near).await, b"answer");
}

#[tokio::test(start_paused = true)]
async fn edge_1_a_half_close_travels_the_other_way_as_well() {
    let (connection, mut server, _) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    far.finish().unwrap();
    assert_eq!(read_all(&mut near).await, b"");
    near.send_when_ready("still here".into()).await.unwrap();
    near.finish().unwrap();
    assert_eq!(read_all(&mut far).await, b"still here");
}

#[tokio::test(start_paused = true)]
async fn edge_4_a_dropped_stream_reads_as_its_end_and_breaks_the_writers_pipe() {
    let (connection, mut server, _) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    far.send_when_ready("last words".into()).await.unwrap();
    assert_eq!(near.data().await.unwrap().unwrap(), "last words");
    drop(far);
    assert_eq!(read_all(&mut near).await, b"");
    assert_eq!(near.send_when_ready("?".into()).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_finished_and_flushed_may_be_dropped_without_loss() {
    let (connection, mut server, _) = pair().await;
    for _ in 0..2 {
        let (mut near, mut far) = stream(&connection, &mut server).await;
        // Twice the window: most of it is still here when the end is said.
        let said = async {
            for _ in 0..8 {
                near.send(Bytes::from(vec![1; 1024 * 1024])).unwrap();
            }
            near.finish().unwrap();
            poll_fn(|cx| near.poll_flushed(cx)).await;
            drop(near);
        };
        let ((), heard) = tokio::join!(said, read_all(&mut far));
        assert_eq!(heard.len(), 8 * 1024 * 1024);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_flush_ends_with_the_stream() {
    let (connection, mut server, _) = pair().await;
    let (mut near, far) = stream(&connection, &mut server).await;
    for _ in 0..8 {
        near.send(Bytes::from(vec![1; 1024 * 1024])).unwrap();
    }
    near.finish().unwrap();
    settle().await;
    drop(far);
    poll_fn(|cx| near.poll_flushed(cx)).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_with_an_error_is_an_error() {
    let (connection, mut server, _) = pair().await;
    for (reason, kind) in
        [(Reason::STREAM_CLOSED, ErrorKind::BrokenPipe), (Reason::INTERNAL_ERROR, ErrorKind::Other)]
    {
        let (mut near, mut far) = stream(&connection, &mut server).await;
        far.reset(reason);
        assert_eq!(near.data().await.unwrap().unwrap_err().kind(), kind, "{reason}");
        assert_eq!(near.send_when_ready("?".into()).await.unwrap_err().kind(), kind, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn edge_6_a_stream_counts_once_until_it_is_gone() {
    let (connection, mut server, _) = pair().await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    assert_eq!(connection.active(), 1);
    near.finish().unwrap();
    far.finish().unwrap();
    assert_eq!(read_all(&mut near).await, b"");
    assert_eq!(connection.active(), 1, "both halves have ended, but are not gone");
    drop(near);
    assert_eq!(connection.active(), 0);
    drop(connection.open(to("web.shop:80")));
    let refused = async { server.asked.recv().await.unwrap().refuse(StatusCode::UNAUTHORIZED).unwrap() };
    let (opened, ()) = tokio::join!(connection.open(to("web.shop:80")), refused);
    opened.unwrap_err();
    assert_eq!(connection.active(), 0, "neither one never sent nor one refused stays counted");
}

#[tokio::test(start_paused = true)]
async fn edge_9_streams_that_nobody_reads_do_not_stop_the_one_that_somebody_does() {
    let (connection, mut server, _) = pair().await;
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let (mut near, far) = stream(&connection, &mut server).await;
        // A whole stream window, which nobody takes.
        for _ in 0..64 {
            near.send(Bytes::from(vec![0; 64 * 1024])).unwrap();
        }
        stuck.push((near, far));
    }
    let (mut near, mut far) = stream(&connection, &mut server).await;
    let write = async {
        for _ in 0..256 {
            near.send_when_ready(Bytes::from(vec![7; 64 * 1024])).await.unwrap();
        }
        near.finish().unwrap();
    };
    let ((), read) = tokio::join!(write, read_all(&mut far));
    assert_eq!(read.len(), 16 * 1024 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_a_reader_that_does_not_read() {
    let settings = Settings { stream_window: 64 * 1024, ..Settings::default() };
    let (connection, mut server, _) = pair_with(settings.clone()).await;
    let (mut near, mut far) = stream(&connection, &mut server).await;
    let mut sent = 0;
    let full = async {
        loop {
            near.send_when_ready(Bytes::from(vec![1; 16 * 1024])).await.unwrap();
            sent += 16 * 1024;
        }
    };
    assert!(tokio::time::timeout(std::time::Duration::from_secs(5), full).await.is_err());
    let most = usize::try_from(settings.stream_window).unwrap() + settings.send_buffer + 16 * 1024;
    assert!((64 * 1024..=most).contains(&sent), "{sent}");
    near.finish().unwrap();
    assert_eq!(read_all(&mut far).await.len(), sent, "what was taken is delivered, and the end after it");
}

#[tokio::test(start_paused = true)]
async fn a_stream_as_byte_stream_carries_bytes_and_half_closes() {
    let (connection, mut server, _) = pair().await;
    let (near, far) = stream(&connection, &mut server).await;
    let (mut near, mut far) = (TunnelIo::from(near), TunnelIo::from(far));
    let sent: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let mut got = Vec::new();
    let write = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(write, far.read_to_end(&mut got));
    assert_eq!((read.unwrap(), got), (sent.len(), sent));
    far.write_all(b"and back").await.unwrap();
    far.shutdown().await.unwrap();
    let mut back = String::new();
    near.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "and back");
}

#[tokio::test(start_paused = true)]
async fn sixty_four_mebibytes_arrive_unchanged_on_eight_streams_at_once() {
    let (connection, mut server, _) = pair().await;
    let mut all = Vec::new();
    for seed in 0..8u8 {
        let (mut near, mut far) = stream(&connection, &mut server).await;
        all.push(async move {
            let piece = |index: u32| {
                let length = 1 + usize::try_from(index.wrapping_mul(2_654_435_761) % 131_072).unwrap();
                Bytes::from(vec![seed ^ index.to_le_bytes()[0]; length])
            };
            let write = async {
                let mut hash = xxhash();
                let mut sent = 0;
                for index in 0.. {
                    let piece = piece(index);
                    sent += piece.len();
                    hash.extend(&piece);
                    near.send_when_ready(piece).await.unwrap();
                    if sent >= 8 * 1024 * 1024 {
                        break;
                    }
                }
                near.finish().unwrap();
                hash.finish()
            };
            let read = async {
                let mut hash = xxhash();
                while let Some(piece) = far.data().await {
                    hash.extend(&piece.unwrap());
                }
                hash.finish()
            };
            let (sent, got) = tokio::join!(write, read);
            assert_eq!(sent, got);
        });
    }
    futures_util::future::join_all(all).await;
}

/// A hash that sees order, from the standard library.
fn xxhash() -> Fnv {
    Fnv(0xcbf2_9ce4_8422_2325)
}

struct Fnv(u64);

impl Fnv {
    fn extend(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0u64, |word, &byte| (word << 8) | u64::from(byte));
            self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
        }
    }

    fn finish(self) -> u64 {
        self.0
    }
}
