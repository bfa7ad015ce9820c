//! HTTP/2 as others test it: h2spec, unchanged, at both places where a waypoint speaks it.

use std::{path::PathBuf, sync::Arc};

use ambit_wire::tls::handshake;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use crate::world::*;

/// All of its tests, of which some wait for what does not come.
const ALL: std::time::Duration = std::time::Duration::from_secs(90);

/// The program. Says so loudly when it is not there.
fn h2spec() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().map(|dir| dir.join("tools/kubernetes/h2spec")).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: HTTP/2's conformance tests: no h2spec here; `.ci/cluster-programs` builds it");
    }
    found
}

/// Runs all tests, each connection of which becomes one that `open` opens. Returns what failed.
async fn failures<S>(program: PathBuf, open: impl AsyncFn() -> Option<S>) -> Vec<String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let run = Command::new(program).args(["127.0.0.1", &port]).kill_on_drop(true).output();
    let serve = async {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            if let Some(mut to) = open().await {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
            }
        }
    };
    let output = tokio::select! {
        output = timeout(ALL, run) => output.expect("it ends").unwrap(),
        () = serve => unreachable!("it serves for ever"),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("146 tests, "), "{said}");
    let failed = said.lines().filter_map(|line| line.trim_start().strip_prefix("\u{d7} "));
    failed.filter_map(|line| Some(line.split_once(": ")?.1.to_owned())).collect()
}

#[test]
fn clients_of_http2_meet_what_the_rfc_says() {
    let Some(program) = h2spec() else { return };
    world(async |world| {
        let _app = world.web().await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let failed = failures(program, async || tunnel.connect(WEB).await.ok()).await;
        // What does not begin like HTTP/2 is HTTP/1.1 here, and answered as such.
        assert_eq!(failed, ["Sends invalid connection preface"]);
    });
}

#[test]
fn peers_meet_what_the_rfc_says() {
    let Some(program) = h2spec() else { return };
    world(async |world| {
        let _waypoint = world.start().await;
        let open = async || {
            let tcp = TcpStream::connect(WAYPOINT).await.unwrap();
            let certificate = world.ca.certificate(&client_identity());
            let config = certificate.client_config(Arc::from([gate()]));
            Some(handshake::connect(config, tcp, SOON).await.unwrap().0)
        };
        let failed = failures(program, open).await;
        // Two ask for a resource, which nobody has who only opens tunnels, and want to see its content. Frames of 20 kB are
        // none too large where a MiB is allowed, nor are streams that are answered at once.
        let excused = [
            "Sends a large size DATA frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
            "Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
            "Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
            "Sends a PRIORITY frame on half-closed (remote) stream",
            "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
        ];
        let rest: Vec<_> = failed.iter().filter(|failed| !excused.contains(&failed.as_str())).collect();
        assert!(rest.is_empty(), "{rest:?}");
    });
}
