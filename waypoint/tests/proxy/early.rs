//! Requests of HTTP/2 that are answered before all of them has come.

use ambit_model::route::{Match, Path, Rule};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::time::timeout;

use crate::world::*;

/// A connection of HTTP/2 whose frames the test decides.
async fn client(tunnel: &Tunnel) -> h2::client::SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(tunnel.connect(WEB).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A request that no route takes, of which the body is not sent yet.
async fn refused(client: &h2::client::SendRequest<Bytes>) -> h2::SendStream<Bytes> {
    let request = Request::builder().method(Method::POST).uri("http://web/nobody").body(()).unwrap();
    let mut client = timeout(SOON, client.clone().ready()).await.unwrap().unwrap();
    let (response, body) = client.send_request(request, false).unwrap();
    let response = timeout(SOON, response).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let mut said = response.into_body();
    while let Some(piece) = timeout(SOON, said.data()).await.unwrap() {
        piece.unwrap();
    }
    body
}

async fn only_one_path(world: &World) {
    let rule = Rule {
        matches: vec![Match::path(Path::prefix("/there").unwrap())],
        backends: vec![to("shop/web", 1)],
        ..Rule::default()
    };
    world.route(vec![rule]);
}

#[test]
fn what_was_under_way_when_a_request_was_refused_is_no_mistake_of_the_client() {
    world(async |world| {
        let _app = world.web().await;
        only_one_path(&world).await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let client = client(&tunnel).await;
        // More than are remembered, and more than mistakes are forgiven.
        for round in 0..12 {
            let mut bodies = Vec::new();
            for _ in 0..100 {
                bodies.push(refused(&client).await);
            }
            for mut body in bodies {
                assert!(body.send_data(Bytes::from_static(b"late"), true).is_ok(), "round {round}");
            }
        }
        drop(refused(&client).await);
    });
}

#[test]
fn a_body_that_goes_on_after_the_refusal_is_stopped() {
    world(async |world| {
        let _app = world.web().await;
        only_one_path(&world).await;
        let _waypoint = world.start().await;
        let tunnel = world.tunnel().await;
        let client = client(&tunnel).await;
        let mut body = refused(&client).await;
        let stopped = timeout(SOON, async {
            let piece = Bytes::from_static(&[b'x'; 16 * 1024]);
            for _ in 0..8 {
                let _ = body.send_data(piece.clone(), false);
            }
            std::future::poll_fn(|cx| body.poll_reset(cx)).await
        });
        assert_eq!(stopped.await.unwrap().unwrap(), h2::Reason::NO_ERROR);
        // And so is one that does not go on at all.
        let mut body = refused(&client).await;
        let stopped = timeout(SOON, std::future::poll_fn(|cx| body.poll_reset(cx)));
        assert_eq!(stopped.await.unwrap().unwrap(), h2::Reason::NO_ERROR);
    });
}
