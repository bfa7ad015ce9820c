//! What one subscriber is sent, as the body of a gRPC response, written piece by piece.
//!
//! A response may be the whole mesh. It is encoded while the transport takes it: what is in memory for a subscriber
//! is a piece, and references to resources that all subscribers share. (A codec of tonic encodes a whole message
//! into a buffer of the stream's own, which stays as large as its largest message.)

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::{Message as _, encoding};
use tokio::sync::mpsc;
use tonic::Status;

use crate::xds::message::Response;

/// As much as a few frames of HTTP/2: more only lies in memory.
const PIECE: usize = 32 * 1024;
/// `resources` in `DeltaDiscoveryResponse`.
const RESOURCES: u32 = 2;
/// Before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;

/// The body. Ends with the status that was sent last, or with success when the sender is gone.
#[derive(Debug)]
pub(super) struct Answers {
    responses: mpsc::Receiver<Result<Response, Status>>,
    under_way: Option<Message>,
    ended: bool,
}

impl Answers {
    pub(super) fn new(responses: mpsc::Receiver<Result<Response, Status>>) -> Self {
        Self { responses, under_way: None, ended: false }
    }
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.under_way.as_mut().and_then(Message::piece) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.under_way = None;
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(self.responses.poll_recv(context)) {
                Some(Ok(response)) => match Message::new(response) {
                    Ok(message) => {
                        self.under_way = Some(message);
                        continue;
                    }
                    Err(status) => status,
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.under_way.is_none()
    }
}

/// One message, as much of it as was not taken yet.
#[derive(Debug)]
struct Message {
    /// Prefix and all fields but the resources.
    start: Option<Vec<u8>>,
    resources: vec::IntoIter<Bytes>,
    left: usize,
}

impl Message {
    fn new(mut response: Response) -> Result<Self, Status> {
        let length = response.encoded_len();
        let Ok(told) = u32::try_from(length) else {
            return Err(Status::resource_exhausted(format!("a response of {length} bytes fits no message")));
        };
        let resources = std::mem::take(&mut response.resources).into_iter();
        let mut start = Vec::with_capacity(PREFIX + response.encoded_len());
        start.put_u8(0);
        start.put_u32(told);
        response.encode_raw(&mut start);
        Ok(Self { start: Some(start), resources, left: PREFIX + length })
    }

    fn piece(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let mut piece = BytesMut::with_capacity(self.left.min(PIECE));
        if let Some(start) = self.start.take() {
            piece.extend_from_slice(&start);
        }
        while piece.len() < PIECE {
            let Some(resource) = self.resources.next() else { break };
            encoding::bytes::encode(RESOURCES, &resource, &mut piece);
        }
        self.left = self.left.saturating_sub(piece.len());
        Some(piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambit_proto::discovery::{ControlPlane, DeltaDiscoveryResponse};
    use futures_util::future::poll_fn;
    use tonic::Code;

    async fn frame(body: &mut Answers) -> Option<Frame<Bytes>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.map(Result::unwrap)
    }

    async fn pieces(response: Response) -> Vec<Bytes> {
        let (sender, responses) = mpsc::channel(1);
        sender.try_send(Ok(response)).unwrap();
        drop(sender);
        let mut body = Answers::new(responses);
        let mut pieces = Vec::new();
        loop {
            let frame = frame(&mut body).await.unwrap();
            match frame.into_data() {
                Ok(data) => pieces.push(data),
                Err(trailers) => {
                    assert_eq!(trailers.into_trailers().unwrap()["grpc-status"], "0");
                    assert!(body.is_end_stream() && self::frame(&mut body).await.is_none());
                    return pieces;
                }
            }
        }
    }

    fn response(resources: impl IntoIterator<Item = usize>) -> Response {
        Response {
            system_version_info: "3".into(),
            resources: resources.into_iter().map(|size| vec![0; size].into()).collect(),
            type_url: "t".into(),
            nonce: "n".into(),
            removed_resources: vec!["gone".into()],
            control_plane: Some(ControlPlane { identifier: "me".into() }),
        }
    }

    #[tokio::test]
    async fn a_message_of_any_size_comes_in_pieces_and_whole() {
        for (sizes, most) in [(vec![], 1), (vec![0; 3], 1), (vec![0; 100_000], 8), (vec![PIECE * 3, 0], 2)] {
            let sent = response(sizes);
            let pieces = pieces(sent.clone()).await;
            assert!(pieces.len() <= most, "{}", pieces.len());
            let mut whole = BytesMut::from_iter(pieces.into_iter().flatten());
            let prefix = whole.split_to(PREFIX);
            assert_eq!(prefix[0], 0);
            assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, whole.len());
            assert_eq!(Response::decode(&whole[..]).unwrap(), sent);
        }
    }

    #[tokio::test]
    async fn what_is_read_by_the_generated_message_is_what_was_sent() {
        let whole = BytesMut::from_iter(pieces(response([0, 0])).await.into_iter().flatten());
        let read = DeltaDiscoveryResponse::decode(&whole[PREFIX..]).unwrap();
        assert_eq!((read.resources.len(), &*read.nonce, &*read.type_url), (2, "n", "t"));
        assert_eq!(read.removed_resources, ["gone"]);
    }

    #[tokio::test]
    async fn one_piece_of_a_large_message_is_in_memory_at_a_time() {
        let (sender, responses) = mpsc::channel(1);
        sender.try_send(Ok(response([1000; 1000]))).unwrap();
        let mut body = Answers::new(responses);
        while body.under_way.as_ref().is_none_or(|message| message.left > 0) {
            let piece = frame(&mut body).await.unwrap().into_data().unwrap();
            assert!(piece.len() < PIECE + 1100, "{}", piece.len());
        }
    }

    #[tokio::test]
    async fn a_refusal_is_the_last_that_is_said() {
        let (sender, responses) = mpsc::channel(2);
        sender.try_send(Ok(response([]))).unwrap();
        sender.try_send(Err(Status::cancelled("come again"))).unwrap();
        let mut body = Answers::new(responses);
        assert!(frame(&mut body).await.unwrap().is_data());
        let trailers = frame(&mut body).await.unwrap().into_trailers().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        assert_eq!((status.code(), status.message()), (Code::Cancelled, "come again"));
        assert!(frame(&mut body).await.is_none());
    }
}
