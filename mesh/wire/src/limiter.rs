//! What a rate limit service is asked, and what it answers: `envoy.service.ratelimit.v3`, as a client.
//!
//! Connections are whoever calls [`ask`]'s business, and so are time and size. An answer is believed as far as it makes
//! sense: a verdict that is not known is none, and a header that nobody may set is left out.

use std::time::Duration;

use ambit_model::{limit::Standing, route::HeaderEdit};
use ambit_proto::ratelimit::{self as pb, rate_limit_service_client::RateLimitServiceClient};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Uri};
use pb::rate_limit_response::{Code, DescriptorStatus};
use prost::Message;

use crate::unary::{CallError, SendRequest, Sender};

/// How long a whole answer may be, in bytes: a status for each of some descriptors, and a few headers.
pub const LARGEST_ANSWER: usize = 64 * 1024;
/// Where it is asked, for doubles in tests.
pub const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// The most headers of an answer that are heeded.
const HEADERS: usize = 32;
/// The flag and length before a gRPC message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// What a limit service says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Why there is no room for it; `None`: there is.
    pub over: Option<Over>,
    /// How the limit stands that is nearest to its end, of those that have room and say how they stand.
    pub nearest: Option<Standing>,
    /// What its client is told.
    pub for_client: Vec<(HeaderName, HeaderValue)>,
    /// What the application is told.
    pub for_application: Vec<(HeaderName, HeaderValue)>,
}

/// A limit that is reached. Of several, the one that keeps waiting longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Over {
    /// How many are taken in its time, if that is said.
    pub limit: Option<u32>,
    /// How many may come now.
    pub remaining: u32,
    /// When there is room again, if that is said.
    pub reset: Option<Duration>,
}

/// Why an answer is none, or a question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAnswer {
    /// It is not one gRPC message that is not compressed.
    #[error("is not one plain gRPC message")]
    Frame,
    /// It is another message.
    #[error("cannot be decoded: {0}")]
    Message(String),
    /// It has no verdict, or one that is not known here.
    #[error("has no verdict: overall_code is {0}")]
    Verdict(i32),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What came is no answer.
    #[error("its answer {0}")]
    Answer(#[from] InvalidAnswer),
}

/// Asks a limit service whose authority is `origin`, with `send`, whether there is room for one request. It is told that
/// nobody waits for longer than `patience`.
///
/// The future is boxed: of its own type the compiler does not see that any thread may run it.
pub fn ask<'s>(
    domain: &str,
    descriptors: &[Vec<(&str, String)>],
    origin: Uri,
    patience: Duration,
    send: &'s SendRequest<'s>,
) -> BoxFuture<'s, Result<Answer, AskError>> {
    let mut question = tonic::Request::new(question(domain, descriptors));
    question.set_timeout(patience);
    let client = RateLimitServiceClient::with_origin(Sender(send), origin);
    let mut client = client.max_decoding_message_size(LARGEST_ANSWER);
    Box::pin(async move {
        let response = client.should_rate_limit(question).await.map_err(CallError::from)?;
        Ok(answer_of(response.into_inner())?)
    })
}

fn question(domain: &str, descriptors: &[Vec<(&str, String)>]) -> pb::RateLimitRequest {
    let descriptor = |entries: &Vec<(&str, String)>| pb::RateLimitDescriptor { entries: entries_of(entries) };
    pb::RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
        hits_addend: 1,
    }
}

fn entries_of(entries: &[(&str, String)]) -> Vec<pb::rate_limit_descriptor::Entry> {
    let entry = |(key, value): &(&str, String)| pb::rate_limit_descriptor::Entry {
        key: (*key).to_owned(),
        value: value.clone(),
    };
    entries.iter().map(entry).collect()
}

/// Reads a question, as a limit service does: the domain, and each descriptor.
#[expect(clippy::type_complexity, reason = "what is asked, for doubles in tests")]
pub fn decode_question(body: &[u8]) -> Result<(String, Vec<Vec<(String, String)>>), InvalidAnswer> {
    let message: pb::RateLimitRequest = unframed(body)?;
    let descriptor = |one: pb::RateLimitDescriptor| {
        one.entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    Ok((message.domain, message.descriptors.into_iter().map(descriptor).collect()))
}

fn answer_of(message: pb::RateLimitResponse) -> Result<Answer, InvalidAnswer> {
    let over = match Code::try_from(message.overall_code) {
        Ok(Code::Ok) => None,
        Ok(Code::OverLimit) => Some(over(&message.statuses)),
        Ok(Code::Unknown) | Err(_) => return Err(InvalidAnswer::Verdict(message.overall_code)),
    };
    Ok(Answer {
        over,
        nearest: nearest(&message.statuses),
        for_client: usable(&message.response_headers_to_add),
        for_application: usable(&message.request_headers_to_add),
    })
}

/// The answer of a limit service, as [`ask`] reads it, for doubles in tests.
pub fn encode_answer(answer: &Answer) -> Bytes {
    let code = if answer.over.is_some() { Code::OverLimit } else { Code::Ok };
    let status = |over: Over| DescriptorStatus {
        code: Code::OverLimit.into(),
        current_limit: over
            .limit
            .map(|limit| pb::rate_limit_response::RateLimit { requests_per_unit: limit }),
        limit_remaining: over.remaining,
        duration_until_reset: over.reset.and_then(|reset| reset.try_into().ok()),
    };
    let standing = |standing: Standing| DescriptorStatus {
        code: Code::Ok.into(),
        current_limit: Some(pb::rate_limit_response::RateLimit { requests_per_unit: standing.limit }),
        limit_remaining: standing.remaining,
        duration_until_reset: standing.reset.and_then(|reset| reset.try_into().ok()),
    };
    let headers = |list: &[(HeaderName, HeaderValue)]| {
        let header = |(name, value): &(HeaderName, HeaderValue)| pb::HeaderValue {
            key: name.to_string(),
            value: String::new(),
            raw_value: value.as_bytes().to_vec(),
        };
        list.iter().map(header).collect()
    };
    framed(&pb::RateLimitResponse {
        overall_code: code.into(),
        statuses: answer.over.map(status).into_iter().chain(answer.nearest.map(standing)).collect(),
        response_headers_to_add: headers(&answer.for_client),
        request_headers_to_add: headers(&answer.for_application),
    })
}

fn over(statuses: &[DescriptorStatus]) -> Over {
    let reached = statuses.iter().filter(|status| status.code == i32::from(Code::OverLimit));
    let told = reached.map(|status| Over {
        limit: status.current_limit.map(|limit| limit.requests_per_unit),
        remaining: status.limit_remaining,
        reset: reset_of(status),
    });
    told.max_by_key(|over| over.reset).unwrap_or_default()
}

fn nearest(statuses: &[DescriptorStatus]) -> Option<Standing> {
    let standing = |status: &DescriptorStatus| {
        let limit = status.current_limit.as_ref()?.requests_per_unit;
        let has_room = status.code == i32::from(Code::Ok);
        has_room.then(|| Standing { limit, remaining: status.limit_remaining, reset: reset_of(status) })
    };
    statuses.iter().filter_map(standing).reduce(Standing::nearer)
}

/// A negative one is none.
fn reset_of(status: &DescriptorStatus) -> Option<Duration> {
    status.duration_until_reset.and_then(|reset| reset.try_into().ok())
}

/// Headers that may be set: the same as a filter of a route may.
fn usable(headers: &[pb::HeaderValue]) -> Vec<(HeaderName, HeaderValue)> {
    let one = |header: &pb::HeaderValue| {
        let raw = str::from_utf8(&header.raw_value).ok()?;
        let value = if raw.is_empty() { header.value.as_str() } else { raw };
        HeaderEdit::parse(&[(&header.key, value)], &[], &[]).ok()?.set().first().cloned()
    };
    headers.iter().take(HEADERS).filter_map(one).collect()
}

fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + body.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&body);
    framed.freeze()
}

fn unframed<M: Message + Default>(body: &[u8]) -> Result<M, InvalidAnswer> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>().ok_or(InvalidAnswer::Frame)?;
    let [compressed, length @ ..] = prefix;
    let is_whole = u32::try_from(message.len()) == Ok(u32::from_be_bytes(*length));
    if *compressed != 0 || !is_whole {
        return Err(InvalidAnswer::Frame);
    }
    M::decode(message).map_err(|error| InvalidAnswer::Message(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
        let name = proptest::sample::select(vec!["x-limit", "retry-after", "set-cookie"]);
        (name, "[a-z]{1,4}")
            .prop_map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")))
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let over = (option::of(any::<u32>()), any::<u32>(), option::of(0..1_000_000_u64)).prop_map(
            |(limit, remaining, reset)| Over { limit, remaining, reset: reset.map(Duration::from_millis) },
        );
        let nearest = (any::<u32>(), any::<u32>(), option::of(0..1_000_000_u64)).prop_map(
            |(limit, remaining, reset)| Standing {
                limit,
                remaining,
                reset: reset.map(Duration::from_millis),
            },
        );
        (option::of(over), option::of(nearest), vec(header(), 0..3), vec(header(), 0..3)).prop_map(
            |(over, nearest, for_client, for_application)| Answer {
                over,
                nearest,
                for_client,
                for_application,
            },
        )
    }

    fn decode_answer(body: &[u8]) -> Result<Answer, InvalidAnswer> {
        answer_of(unframed(body)?)
    }

    proptest! {
        #[test]
        fn an_answer_is_read_as_it_was_meant(answer in answer()) {
            prop_assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
        }

        #[test]
        fn a_question_is_read_as_it_was_meant(
            domain in "[a-z]{0,4}",
            descriptors in vec(vec(("[a-z]{1,3}", "[a-zé]{0,3}"), 0..3), 0..3),
        ) {
            let asked: Vec<Vec<_>> = descriptors.iter()
                .map(|one| one.iter().map(|(key, value)| (key.as_str(), value.clone())).collect()).collect();
            prop_assert_eq!(decode_question(&framed(&question(&domain, &asked))), Ok((domain, descriptors)));
        }

        /// Foreign bytes never panic.
        #[test]
        fn any_bytes_are_read_or_refused(
            answer in answer(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            noise in vec(any::<u8>(), 0..40),
        ) {
            let mut body = encode_answer(&answer).to_vec();
            for (place, byte) in damage {
                let place = place.index(body.len());
                body[place] = byte;
            }
            let _ = (decode_answer(&body), decode_answer(&noise), decode_question(&noise));
        }
    }

    #[test]
    fn an_answer_that_says_nothing_is_none() {
        let verdict = |code| {
            let message = pb::RateLimitResponse { overall_code: code, ..pb::RateLimitResponse::default() };
            decode_answer(&framed(&message))
        };
        assert_eq!(verdict(1), Ok(Answer::default()));
        assert_eq!(verdict(2).map(|answer| answer.over), Ok(Some(Over::default())));
        assert_eq!(verdict(0), Err(InvalidAnswer::Verdict(0)));
        assert_eq!(verdict(7), Err(InvalidAnswer::Verdict(7)));
        let whole = encode_answer(&Answer::default());
        for body in [&b""[..], &whole[..4], &[0, 0, 0, 0, 9], &[whole.as_ref(), &[0]].concat()] {
            assert_eq!(decode_answer(body), Err(InvalidAnswer::Frame), "{body:?}");
        }
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        assert_eq!(decode_answer(&compressed), Err(InvalidAnswer::Frame));
        assert!(matches!(decode_answer(&[0, 0, 0, 0, 1, 0xff]), Err(InvalidAnswer::Message(_))));
    }

    #[test]
    fn of_several_limits_the_one_is_told_that_is_nearest_to_its_end() {
        let status = |limit: Option<u32>, remaining, seconds| DescriptorStatus {
            code: Code::Ok.into(),
            current_limit: limit.map(|limit| pb::rate_limit_response::RateLimit { requests_per_unit: limit }),
            limit_remaining: remaining,
            duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let told = |statuses: &[DescriptorStatus]| nearest(statuses).map(|one| (one.limit, one.reset));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let all = [status(Some(9), 5, 1), status(None, 0, 1), status(Some(4), 3, 1), status(Some(3), 3, 60)];
        assert_eq!(told(&all), Some((3, seconds(60))), "one without a limit is none");
        assert_eq!(told(&all[..1]), Some((9, seconds(1))));
        assert_eq!(told(&[status(Some(9), 5, -1)]), Some((9, None)));
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn a_header_that_nobody_may_set_is_left_out() {
        let header = |key: &str, value: &str| pb::HeaderValue {
            key: key.into(),
            value: value.into(),
            raw_value: Vec::new(),
        };
        let message = pb::RateLimitResponse {
            overall_code: 1,
            response_headers_to_add: vec![
                header("content-length", "0"),
                header("transfer-encoding", "chunked"),
                header("x-ok", "1"),
                header(":status", "200"),
                header("x-torn", "a\r\nb: c"),
            ],
            request_headers_to_add: vec![header("host", "elsewhere"), header("x-ok", "2")],
            ..pb::RateLimitResponse::default()
        };
        let answer = decode_answer(&framed(&message)).expect("an answer");
        let names = |list: &[(HeaderName, HeaderValue)]| {
            list.iter().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            (names(&answer.for_client), names(&answer.for_application)),
            (vec!["x-ok".to_owned()], vec!["x-ok".to_owned()],)
        );
    }
}
