//! Connections that become those of another protocol (RFC 9110, 7.8): WebSocket and its like.

use ambit_runtime::task;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use crate::{
    body::{Answer, Ending},
    refusal::Refusal,
};

/// Ends the connection of a client whose wish is not granted. After a CONNECT there is no more HTTP on it, whatever it is
/// told; it hears that to its end.
pub fn decline(client: OnUpgrade) {
    task::spawn("declined upgrade", async move {
        if let Ok(client) = client.await {
            // Who has gone need not be told.
            let _ = TokioIo::new(client).shutdown().await;
        }
    });
}

/// The body of a 101: none. When both sides have switched, bytes move until one is done with it; then the request is
/// recorded as what it was.
pub fn answer(client: OnUpgrade, server: OnUpgrade, ending: Ending) -> Answer {
    task::spawn("upgraded connection", async move {
        let switched = async {
            let (client, server) = tokio::try_join!(client, server).map_err(|error| error.to_string())?;
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let moved = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            moved.map_err(|error| error.to_string())
        };
        match switched.await {
            Ok((_, sent)) => ending.end_after(Ok(()), sent),
            Err(reason) => ending.end_after(Err(&Refusal::ResponseBroke(reason)), 0),
        }
    });
    Answer::nothing()
}
