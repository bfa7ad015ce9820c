//! The way in: a port on this machine's loopback that leads to the API server in its namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ambit_lab::netns::Netns;
use anyhow::Context as _;

/// The API server is on this machine: what takes longer will not come.
const CONNECT: Duration = Duration::from_secs(5);
/// Two threads for each; a client multiplexes, so this many clients at once.
const MOST: usize = 256;

/// Listens on a free port of 127.0.0.1 for as long as this process lives; says which.
pub(super) fn start(netns: Netns, to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
    let at = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    let serve = move || {
        // A client that went away while it was accepted is no reason to stop.
        for client in listener.incoming().filter_map(Result::ok) {
            if open.fetch_add(1, Ordering::SeqCst) >= MOST {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (netns, counted) = (netns.clone(), Arc::clone(&open));
            let carried = thread::Builder::new().name("forward".to_owned()).spawn(move || {
                // A connection that cannot be made ends for the client as it would without us.
                let _ = carry(&client, &netns, to);
                counted.fetch_sub(1, Ordering::SeqCst);
            });
            if carried.is_err() {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    };
    thread::Builder::new().name("forwarder".to_owned()).spawn(serve).context("cannot start a thread")?;
    Ok(at)
}

fn carry(client: &TcpStream, netns: &Netns, to: SocketAddr) -> anyhow::Result<()> {
    let server = netns.connect(to, CONNECT)??;
    thread::scope(|scope| {
        scope.spawn(|| one_way(client, &server));
        one_way(&server, client);
    });
    Ok(())
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    // Either end may go; the other is told.
    if io::copy(&mut from, &mut to).is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
    let _ = to.shutdown(Shutdown::Write);
}
