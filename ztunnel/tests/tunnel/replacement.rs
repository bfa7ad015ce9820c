//! Tunnels that are told to go, that are replaced under load, and that are killed.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use crate::harness::*;

/// Opens connections one after another until told to stop; counts those that failed.
struct Load {
    done: Cell<u32>,
    failed: RefCell<Vec<String>>,
    stop: Cell<bool>,
}

impl Load {
    fn new() -> Self {
        Self { done: Cell::new(0), failed: Default::default(), stop: Cell::new(false) }
    }

    async fn run(&self, what: &str, mut one: impl AsyncFnMut() -> Result<(), String>) {
        while !self.stop.get() {
            match one().await {
                Ok(()) => self.done.set(self.done.get() + 1),
                Err(error) => self.failed.borrow_mut().push(format!("{what}: {error}")),
            }
        }
    }
}

#[test]
fn a_tunnel_is_replaced_under_load_and_no_new_connection_fails() {
    for same_node in ["direct", "hbone"] {
        world(async move |world: World| {
            let env = world.env().with("SAME_NODE", same_node).with("TERMINATION_GRACE_PERIOD_SECONDS", "30");
            let old = world.tunnel_with(env.clone()).await;
            let (web, client) = (world.pod("web").await, world.pod("client").await);
            let _app = App::echo(&web, 8080);
            let stranger = world.stranger();
            let config = world.ca.certificate(&identity("curl")).client_config(web.identity());
            let (mut long, _) = call(&stranger, web.at(8080)).await.unwrap();
            let mut long_tunnel = world.hbone(&stranger, "curl", &web).await;
            let mut long_stream = long_tunnel.connect(web.at(8080)).await.unwrap();
            greeting(&mut long_stream).await.unwrap();
            let load = Load::new();
            let plain = load.run("plain text", async || {
                let called = call(&stranger, web.at(8080)).await;
                called.map(drop).map_err(|error| error.to_string())
            });
            let captured = load.run("captured", async || {
                let called = call(&client, web.at(8080)).await;
                called.map(drop).map_err(|error| error.to_string())
            });
            let hbone = load.run("HBONE", async || {
                let stream = stranger.connect(web.at(HBONE)).await.map_err(|error| error.to_string())?;
                let peer = Peer::over(stream, config.clone()).await.map_err(|error| error.to_string())?;
                let stream = peer.connect(web.at(8080)).await;
                let mut stream = match stream {
                    Ok(stream) => stream,
                    // A tunnel that was told to go before it was asked: a client dials another.
                    Err(NoStream::Broken(error)) if error.is_go_away() => return Ok(()),
                    Err(error) => return Err(format!("{error:?}")),
                };
                greeting(&mut stream).await.map(drop).map_err(|error| error.to_string())
            });
            let replace = async {
                until_true("the load runs", async || load.done.get() > 100).await;
                let new = world.tunnel_with(env).await;
                world.agent.until_connected(2).await;
                // Two at once.
                let so_far = load.done.get();
                until_true("both serve", async || load.done.get() > so_far + 100).await;
                old.signal(Signal::SIGTERM);
                old.line(&["Draining"]).await;
                let so_far = load.done.get();
                until_true("the new one serves", async || load.done.get() > so_far + 200).await;
                // What is open stays so, and the tunnel that was told to go waits for it.
                exchange(&mut long, b"going on").await.unwrap();
                exchange(&mut long_stream, b"going on").await.unwrap();
                assert!(old.exited().is_none(), "{}", old.said());
                // A new stream is not opened on a tunnel that goes.
                assert!(long_tunnel.connect(web.at(8080)).await.is_err());
                drop((long, long_stream));
                let _ = long_tunnel.ended().await;
                let status = old.until_exited().await;
                assert_eq!(status.code(), Some(0), "{}", old.said());
                let so_far = load.done.get();
                until_true("and goes on serving", async || load.done.get() > so_far + 100).await;
                load.stop.set(true);
                new
            };
            let (new, (), (), ()) = tokio::join!(replace, plain, captured, hbone);
            assert_eq!(*load.failed.borrow(), Vec::<String>::new(), "of {}", load.done.get());
            assert!(new.is_ready().await);
        });
    }
}

#[test]
fn the_deadline_ends_what_does_not_end_by_itself() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("TERMINATION_GRACE_PERIOD_SECONDS", "3")).await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::echo(&web, 8080);
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        let told = Instant::now();
        tunnel.signal(Signal::SIGTERM);
        until_closed(&mut open).await;
        let status = tunnel.until_exited().await;
        assert_eq!(status.code(), Some(0), "{}", tunnel.said());
        // Three seconds of grace leave two for connections.
        let took = told.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_millis(3500)).contains(&took), "{took:?}");
    });
}

#[test]
fn a_killed_tunnel_is_followed_by_one_that_serves_all_its_pods() {
    world(async |world: World| {
        let tunnel = world.tunnel().await;
        let (web, client) = (world.pod("web").await, world.pod("client").await);
        let _app = App::echo(&web, 8080);
        let (mut open, _) = call(&client, web.at(8080)).await.unwrap();
        tunnel.signal(Signal::SIGKILL);
        until_closed(&mut open).await;
        world.agent.until_connected(0).await;
        // Nothing goes around it.
        let refused = client.connect(web.at(8080)).await;
        assert!(refused.is_err(), "captured, and nobody takes it");
        let again = world.tunnel().await;
        call(&client, web.at(8080)).await.unwrap();
        world.hbone(&world.stranger(), "curl", &web).await.connect(web.at(8080)).await.unwrap();
        assert_eq!(again.counted("workload_manager_active_proxy_count", &[]).await, 2);
    });
}

#[test]
fn a_stream_that_is_half_closed_survives_the_order_to_go() {
    world(async |world: World| {
        let tunnel = world.tunnel_with(world.env().with("TERMINATION_GRACE_PERIOD_SECONDS", "30")).await;
        let (web, client) = (world.pod("web").await, world.stranger());
        let _app = App::serve(web.listen(8080), |mut stream, _| async move {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            // The answer takes its time.
            sleep(Duration::from_millis(300)).await;
            let _ = stream.write_all(&said).await;
        });
        let mut stream = client.connect(web.at(8080)).await.unwrap();
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        tunnel.signal(Signal::SIGTERM);
        let mut heard = String::new();
        timeout(SOON, stream.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, "question");
        assert_eq!(tunnel.until_exited().await.code(), Some(0));
    });
}
