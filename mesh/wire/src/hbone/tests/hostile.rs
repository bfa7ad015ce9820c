//! A peer that speaks HTTP/2 by hand, and means no good.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    time::timeout,
};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// `:method: CONNECT` and `:authority: a:1` as HPACK literals without indexing.
const CONNECT: &[u8] = b"\x02\x07CONNECT\x01\x03a:1";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends `frames` after the preface for as long as the server listens, reading its answers if `reading`.
/// Gives how the server ended the connection within the time, and how many requests it saw.
async fn attack(frames: impl Iterator<Item = Vec<u8>> + Send, reading: bool) -> (Option<bool>, usize) {
    let (near, far) = duplex(64 * 1024);
    let mut server = Server::on(far, Settings::default());
    let (mut from, mut into) = split(near);
    let write = async {
        let mut batch = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        for frame in frames {
            batch.extend(frame);
            if batch.len() >= 16 * 1024 {
                if into.write_all(&batch).await.is_err() {
                    break;
                }
                batch.clear();
            }
        }
        let _ = into.write_all(&batch).await;
        pending::<()>().await;
    };
    let read = async {
        let mut sink = [0; 4096];
        while reading && from.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        pending::<()>().await;
    };
    let ended = tokio::select! {
        () = write => None,
        () = read => None,
        ended = timeout(Duration::from_secs(5), &mut server.ended) => ended.ok().map(|ended| ended.unwrap().is_err()),
    };
    (ended, server.asked.len())
}

fn is_connection_error(ended: Option<bool>) -> bool {
    ended == Some(true)
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_ends_the_connection_before_it_costs_much() {
    let frames = (0..100_000u32).flat_map(|index| {
        let stream = 2 * index + 1;
        [frame(HEADERS, END_HEADERS, stream, CONNECT), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
    });
    let (ended, asked) = attack(frames, true).await;
    assert!(is_connection_error(ended), "{ended:?}");
    assert!(asked <= 2000, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_allowed_are_refused_and_very_many_more_end_the_connection() {
    let open = |count| (0..count).map(|index: u32| frame(HEADERS, END_HEADERS, 2 * index + 1, CONNECT));
    // As many as Envoy opens before it has heard how many it may.
    for count in [205, 1024] {
        let (ended, asked) = attack(open(count), true).await;
        assert_eq!((ended, asked), (None, 200), "{count}");
    }
    let (ended, asked) = attack(open(10_000), true).await;
    assert!(is_connection_error(ended) && asked <= 200, "{ended:?} {asked}");
}

#[tokio::test(start_paused = true)]
async fn a_ping_flood_without_reading_stops_the_flooder_not_the_server() {
    // Answers fill the socket, and nothing more is read or kept: the attacker's own writes stop.
    let sent = AtomicUsize::new(0);
    let frames = std::iter::repeat_with(|| {
        sent.fetch_add(1, Ordering::Relaxed);
        frame(PING, 0, 0, &[0; 8])
    });
    let (ended, _) = attack(frames.take(1_000_000), false).await;
    assert_eq!(ended, None);
    let bytes = sent.load(Ordering::Relaxed) * 17;
    assert!(bytes < 512 * 1024, "{bytes} bytes of PING were taken in");
}

#[tokio::test(start_paused = true)]
async fn a_settings_flood_without_reading_stops_the_flooder_not_the_server() {
    let sent = AtomicUsize::new(0);
    let frames = std::iter::repeat_with(|| {
        sent.fetch_add(1, Ordering::Relaxed);
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])
    });
    let (ended, _) = attack(frames.take(1_000_000), false).await;
    assert_eq!(ended, None);
    let bytes = sent.load(Ordering::Relaxed) * 15;
    assert!(bytes < 512 * 1024, "{bytes} bytes of SETTINGS were taken in");
}

#[tokio::test(start_paused = true)]
async fn headers_that_never_end_end_the_connection() {
    let first = frame(HEADERS, 0, 1, CONNECT);
    let more = frame(CONTINUATION, 0, 1, &[&b"\x00\x01x\x7f\x81\x7e"[..], &[b'y'; 16_000]].concat());
    let (ended, asked) = attack(std::iter::once(first).chain(std::iter::repeat_n(more, 10_000)), true).await;
    assert!(is_connection_error(ended), "{ended:?}");
    assert_eq!(asked, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_head_that_is_too_large_is_refused_and_the_next_is_served() {
    // A literal header of 70 000 bytes: 127 + 69 873 in HPACK's integers.
    let mut large = [CONNECT, b"\x00\x01x\x7f\xf1\xa1\x04"].concat();
    large.extend(vec![b'y'; 70_000]);
    let frames = [frame(HEADERS, END_HEADERS, 1, &large), frame(HEADERS, END_HEADERS, 3, CONNECT)];
    let (ended, asked) = attack(frames.into_iter(), true).await;
    assert_eq!((ended, asked), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_frame_larger_than_allowed_ends_the_connection() {
    let (ended, _) =
        attack(std::iter::once(frame(HEADERS, END_HEADERS, 1, &vec![0; 1024 * 1024 + 1])), true).await;
    assert!(is_connection_error(ended), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn random_bytes_end_the_connection_without_panic() {
    for seed in 0..200u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        let bytes: Vec<u8> = (0..512).map(|_| byte()).collect();
        // As a stranger, and as a peer whose frames are well-formed but meaningless.
        let (near, far) = duplex(64 * 1024);
        let server = Server::on(far, Settings::default());
        let (_, mut into) = split(near);
        into.write_all(&bytes).await.unwrap();
        drop(into);
        let _ = timeout(Duration::from_secs(60), server.ended).await.unwrap();
        attack(
            bytes.chunks(24).map(|chunk| frame(chunk[0] % 12, chunk[1], chunk[2].into(), &chunk[3..])),
            true,
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_no_connect_or_has_no_authority_is_seen_as_such() {
    let (near, far) = duplex(SOCKET);
    let mut server = Server::on(far, Settings::default());
    let (_from, mut into) = split(near);
    // GET https a:1 / from the static table; then CONNECT to nowhere that can be read.
    let get = b"\x82\x87\x84\x01\x03a:1";
    let nowhere = b"\x02\x07CONNECT\x01\x01a";
    let frames = [
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, get),
        frame(HEADERS, END_HEADERS, 3, nowhere),
    ];
    into.write_all(&[PREFACE, &frames.concat()].concat()).await.unwrap();
    let first = server.asked.recv().await.unwrap();
    assert_eq!((first.method, first.authority.is_ok()), (http::Method::GET, true));
    let second = server.asked.recv().await.unwrap();
    assert_eq!((second.method, second.authority), (http::Method::CONNECT, Err(headers::InvalidAuthority)));
}
