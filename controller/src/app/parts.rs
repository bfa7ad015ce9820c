//! The parts of a controller: each runs until the drain, and one that ends before is a failure of the whole.

use std::{future::Future, io};

use ambit_runtime::{
    drain::Watch,
    task::{self, Task},
};
use ambit_wire::channel::ControlStream;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

/// Connections whose handshake is done and that nobody has begun to serve yet.
const ACCEPTED: usize = 64;

/// The parts of a controller, each ended by the drain.
pub(super) struct Parts {
    pub(super) watch: Watch,
    pub(super) failed: mpsc::Sender<&'static str>,
}

impl Parts {
    /// Starts a part. It is told to stop by the future that `run` is given, and cut off when the drain is out of
    /// patience; if it ends by itself, that is a failure.
    pub(super) fn start<F>(&self, name: &'static str, run: impl FnOnce(Stop) -> F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (watch, failed) = (self.watch.clone(), self.failed.clone());
        let told = self.watch.clone();
        let part = run(Box::pin(async move {
            told.signaled().await;
        }));
        let part = task::spawn(name, async move {
            let forced = watch.clone();
            tokio::select! {
                () = part => {}
                () = forced.forced() => {}
            }
        });
        let watch = self.watch.clone();
        task::spawn("supervisor", async move {
            part.await;
            if watch.mode().is_none() {
                // Full: another part has failed already.
                let _ = failed.try_send(name);
            }
        })
    }

    /// Hands connections on until the drain starts, and then closes the listener, so that the next connection is
    /// refused at once and not left waiting.
    pub(super) fn accept(
        &self,
        connections: impl Stream<Item = io::Result<ControlStream>> + Send + 'static,
    ) -> ReceiverStream<io::Result<ControlStream>> {
        let (hand_on, accepted) = mpsc::channel(ACCEPTED);
        self.start("listener", |stop| async move {
            tokio::pin!(connections, stop);
            loop {
                let next = tokio::select! {
                    () = &mut stop => return,
                    next = connections.next() => next,
                };
                let Some(connection) = next else { return };
                if hand_on.send(connection).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(accepted)
    }
}

/// Completes when a part should end.
pub(super) type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
