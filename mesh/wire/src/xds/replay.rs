//! What a client makes of responses, without a connection: for fuzzers, and for captures that are looked at later.

use bytes::Bytes;
use prost::Message as _;

use super::{Handler, Mode, message::Response, subscription::Subscriptions};

/// Hands responses, as they are on the wire, to `handler` the way one stream of a client does that
/// subscribes to `types`. Gives the answer to each: the text of a NACK, `None` for an ACK. What is no
/// response ends the stream.
pub fn replay(
    types: impl IntoIterator<Item = (&'static str, Mode)>,
    responses: impl IntoIterator<Item = Bytes>,
    handler: &mut impl Handler,
) -> Vec<Option<String>> {
    let mut subscriptions = Subscriptions::new(types.into_iter().map(|(url, mode)| (url.to_owned(), mode)));
    let mut answers = Vec::new();
    for response in responses {
        let Ok(response) = Response::decode(response) else { break };
        let (update, receipt) = subscriptions.receive(response);
        let known = subscriptions.knows(&update.type_url);
        let rejected = if known { handler.apply(update) } else { Vec::new() };
        answers.push(subscriptions.settle(receipt, &rejected).nack);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::super::{ADDRESS, Rejected, Update};
    use super::*;

    struct Picky;

    impl Handler for Picky {
        fn apply(&mut self, response: Update) -> Vec<Rejected> {
            let rejected = |name: &str| Rejected { name: name.to_owned(), reason: "no".to_owned() };
            response.upserts.iter().map(|one| rejected(&one.name)).collect()
        }
    }

    #[test]
    fn answers_are_given_in_order_until_something_is_no_response() {
        let response = |name: &str| {
            let sealed = super::super::message::seal(ADDRESS, name, "1", Bytes::new());
            let resources = if name.is_empty() { Vec::new() } else { vec![sealed] };
            Response { type_url: ADDRESS.to_owned(), resources, ..Response::default() }.encode_to_vec().into()
        };
        let stream = [response(""), response("a"), Bytes::from_static(&[0xff; 9]), response("")];
        let answers = replay([(ADDRESS, Mode::Wildcard)], stream, &mut Picky);
        assert_eq!(answers, [None, Some("a: no".to_owned())]);
    }
}
