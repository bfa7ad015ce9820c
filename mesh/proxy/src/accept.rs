//! Accepts connections until it is time to leave.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use ambit_runtime::drain::Watch;
use tokio::net::{TcpListener, TcpStream};

/// The wait before accepting again when the process has run out of descriptors: long enough for
/// some to be returned, short enough not to be noticed.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Accepts until told to drain. What waits in the queue at that moment is still accepted; what comes
/// later finds the listener of whoever takes over.
pub async fn accept(listener: TcpListener, watch: Watch, mut serve: impl FnMut(TcpStream, Watch)) {
    let draining = watch.clone();
    let (mut drained, mut leaving) = (Box::pin(draining.signaled()), false);
    loop {
        let accepted = poll_fn(|cx| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            Poll::Pending if leaving => Poll::Ready(None),
            Poll::Pending => drained.as_mut().poll(cx).map(|_| None),
        })
        .await;
        match accepted {
            Some(Ok((stream, _))) => serve(stream, watch.clone()),
            Some(Err(error)) if is_exhausted(&error) => {
                tracing::warn!(error = %error, "Cannot accept connections; is the open file limit too low?");
                tokio::time::sleep(EXHAUSTED).await;
            }
            Some(Err(error)) => {
                tracing::debug!(error = %error, "A connection went away before it was accepted")
            }
            // The queue is empty, so nothing is lost by closing now.
            None if leaving => return,
            // It was empty when the kernel was last asked: let it be asked once more.
            None => {
                leaving = true;
                tokio::task::yield_now().await;
            }
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
}
