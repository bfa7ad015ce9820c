//! Speaks HTTP with clients: reads requests, and writes what [`Proxy`] answers.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use ambit_runtime::drain::Watch;
use hyper::{
    Request, Response,
    body::Incoming,
    rt::Write as _,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::{
    body::Answer,
    io::{Told, TunnelIo},
    lent::Lent,
    request::{Proxy, Tunnel},
};

/// What the head of a request may take, in bytes.
const HEAD: usize = 64 * 1024;
/// Requests under way on one HTTP/2 connection of a client.
const STREAMS: u32 = 250;
/// HTTP/2 windows: a stream's, and four times that for the connection (protocols 12, line 9).
const WINDOW: u32 = 1024 * 1024;
/// Streams that a client resets before we have looked at them; beyond, it is flooding.
const RESETS: usize = 20;
/// Streams that we had to reset, and what comes on streams that we have forgotten, while a connection lasts; beyond, the
/// client is broken. A client whose long bodies are refused makes some, which is why there are not fewer.
const ERRORS: usize = 1024;

/// Completes when a connection should end as soon as it can: everything ends, or it has been open for about `age`.
/// Connections that were opened together do not come back together.
pub async fn leaving(drain: &Watch, age: Duration) {
    let spread = rand::random_range(0.75..1.25);
    tokio::select! {
        _ = drain.signaled() => {}
        () = tokio::time::sleep(age.mul_f64(spread)) => {}
    }
}

/// Serves HTTP/1 until the client leaves. What is `told` of each request is known to `io`, too.
///
/// A connection that rests has no buffers (decision 0030): hyper is told that the client has left, gives back what it
/// read from, and begins anew with the next request.
pub async fn http1(
    mut io: TunnelIo,
    told: Told,
    proxy: Arc<Proxy>,
    tunnel: Arc<Tunnel>,
    drain: Watch,
    age: Duration,
) {
    let answer = |request: Request<Incoming>| {
        let (proxy, tunnel, told) = (proxy.clone(), tunnel.clone(), told.clone());
        // hyper keeps room for it as long as the connection lasts; an idle one shall not pay for that.
        Box::pin(async move {
            told.heads.came();
            Ok::<Response<Answer>, Infallible>(proxy.answer(&tunnel, Some(told), request).await)
        })
    };
    let mut cut = pin!(drain.forced());
    let mut leaving = pin!(leaving(&drain, age));
    loop {
        let (lent, lender) = Lent::new(io);
        let connection = http1::Builder::new()
            .max_buf_size(HEAD)
            .half_close(true)
            .serve_connection(lent, service_fn(answer));
        // What an idle connection shall not keep.
        let mut connection = Box::pin(connection.with_upgrades());
        let (ended, leaves) = tokio::select! {
            ended = &mut connection => (ended, false),
            () = &mut cut => return,
            () = &mut leaving => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = &mut connection => (ended, true),
                    () = &mut cut => return,
                }
            }
        };
        drop(connection);
        let returned = lender.returned().filter(|_| ended.is_ok());
        report(ended);
        let Some(mut returned) = returned else { return };
        let mut goes_on = false;
        if returned.is_resting() && !leaves {
            let gauge = &proxy.shared().metrics.resting;
            gauge.inc();
            goes_on = tokio::select! {
                woken = returned.woken() => woken.unwrap_or(false),
                () = &mut leaving => false,
                () = &mut cut => false,
            };
            gauge.dec();
        }
        if !goes_on {
            tokio::select! {
                // It was said to whoever is there, as far as it could be.
                _ = poll_fn(|cx| Pin::new(&mut returned).poll_shutdown(cx)) => return,
                () = &mut cut => return,
            }
        }
        io = returned;
    }
}

/// Serves HTTP/2 until the client leaves.
pub async fn http2(io: TunnelIo, proxy: Arc<Proxy>, tunnel: Arc<Tunnel>, drain: Watch, age: Duration) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let (proxy, tunnel) = (proxy.clone(), tunnel.clone());
        async move { Ok::<Response<Answer>, Infallible>(proxy.answer(&tunnel, None, request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERRORS)
        .enable_connect_protocol()
        .serve_connection(io, answer);
    let mut connection = pin!(connection);
    let mut cut = pin!(drain.forced());
    let ended = tokio::select! {
        ended = &mut connection => return report(ended),
        () = &mut cut => return,
        () = leaving(&drain, age) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = &mut connection => ended,
                () = &mut cut => return,
            }
        }
    };
    report(ended);
}

fn report(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "Connection of a client ended");
    }
}
